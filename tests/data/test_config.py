from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.data import DataConfig, parse_size
from calotype.data.config import parse_range
from calotype.errors import ConfigError

sides = st.integers(1, 99_999)


@given(sides, sides)
def test_a_size_is_width_by_height(width, height):
    assert parse_size(f"{width}x{height}") == (width, height)
    assert parse_size(str(width)) == (width, width)


@pytest.mark.parametrize("text", ["", "0", "-3", "32x", "x32", "3x4x5", "32.0", "zwölf", "4x-4", "٣"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="write 32 for a square"):
        parse_size(text)


@given(st.floats(-1e6, 1e6, width=32), st.floats(2**-10, 1e6, width=32))
def test_a_range_is_low_to_high(low, extent):
    assert parse_range(f"{low!r}:{low + extent!r}") == (low, low + extent)


@pytest.mark.parametrize("text", ["", "1", "1:0", "0:0", "a:b", "0:1:2", "0:nan", "-inf:0"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ConfigError, match="LO:HI"):
        parse_range(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": ""}, "source is empty"),
        ({"width": 32}, "give both"),
        ({"width": -1, "height": -1}, "width -1"),
        ({"fit": "cover"}, "crop, pad or stretch"),
        ({"channels": 2}, "channels is 2"),
        ({"value_range": "5:1"}, "LO below HI"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{"source": "photos", **settings})

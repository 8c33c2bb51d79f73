"""Glyphs are always the same, whole, legible and balanced."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest

from calotype.data.sources import glyphs
from calotype.data.sources.glyphs import CHANNELS, CLASS_NAMES, TYPEFACES, GlyphsConfig, Mode, render
from calotype.errors import ConfigError, DataError

MODES = get_args(Mode)
SIZES = [(28, 28), (64, 48), (48, 64), (33, 17), (9, 100), (100, 9), (150, 131)]  # width, height


def test_the_same_image_whoever_asks_and_in_any_order():
    config = GlyphsConfig(mode="rgb", seed=3)
    forwards = [render(config, i, 20, 24)[0] for i in range(30)]
    backwards = [render(config, i, 20, 24)[0] for i in reversed(range(30))]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert len({image.tobytes() for image in forwards}) == 30


def test_another_process_draws_the_same():
    code = (
        "import hashlib, sys; from calotype.data.sources.glyphs import *\n"
        "drawn = b''.join(render(GlyphsConfig(mode='rgba', seed=5), i, 28, 28)[0].tobytes() for i in (4, 70))\n"
        "assert 'matplotlib' not in sys.modules\n"  # its fonts are used, its code would take a second to import
        "print(hashlib.sha256(drawn).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert not runs[0].stderr


def test_threads_draw_what_one_thread_draws():
    glyphs._cached_mask.cache_clear()  # so that the threads draw the masks too
    config = GlyphsConfig()
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda i: render(config, i, 28, 28)[0], range(200)))
    glyphs._cached_mask.cache_clear()
    assert all(np.array_equal(image, render(config, i, 28, 28)[0]) for i, image in enumerate(threaded))


def test_the_count_changes_no_image_and_the_seed_changes_all():
    few, many, other = GlyphsConfig(count=10), GlyphsConfig(count=10**7), GlyphsConfig(seed=1)
    for i in range(10):
        assert np.array_equal(render(few, i, 28, 28)[0], render(many, i, 28, 28)[0])
        assert not np.array_equal(render(few, i, 28, 28)[0], render(other, i, 28, 28)[0])
    image, label = render(few, 10**12, 28, 28)  # there is always more
    assert np.ptp(image) > 0
    assert 0 <= label < 26


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "height"), [*SIZES, (1, 1), (2, 3)])
def test_shape_and_type(mode, width, height):
    for i in range(3):
        image, label = render(GlyphsConfig(mode=mode), i, width, height)
        assert image.shape == (height, width, CHANNELS[mode])
        assert image.dtype == np.uint8
        assert isinstance(label, int)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_letter_is_whole_and_fills_the_image(width, height):
    for i in range(104):
        alpha = render(GlyphsConfig(mode="rgba"), i, width, height)[0][:, :, 3]
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any(), f"image {i} has ink at its border"
        rows, columns = np.nonzero(alpha)
        # The scale is at least 0.68 of what fits, and a pixel and a bit stays free at each side: 0.68 (1 - 2.5 / 9).
        assert max(np.ptp(rows) + 1, np.ptp(columns) + 1) >= 0.49 * min(width, height)


@pytest.mark.parametrize("mode", ["gray", "rgb"])
def test_ink_contrasts_with_the_background(mode):
    light_on_dark = 0
    luma = np.array([1.0]) if mode == "gray" else np.array([0.299, 0.587, 0.114])
    for i in range(130):
        brightness = render(GlyphsConfig(mode=mode), i, 28, 28)[0] @ luma
        ink = np.abs(brightness - brightness[0, 0]).max()  # the corner is background
        # Ink and background are at least 105 apart; a thin stroke covers at least half of some pixel.
        assert ink > 52
        light_on_dark += brightness[0, 0] < 128
    assert 40 <= light_on_dark <= 90  # binomial(130, 1/2): 65 within 4.4 standard deviations of 5.7


def test_rgba_has_real_transparency_with_soft_edges():
    for i in range(26):
        image, _ = render(GlyphsConfig(mode="rgba"), i, 40, 40)
        alpha = image[:, :, 3]
        assert (alpha == 0).mean() > 0.3
        assert alpha.max() > 200
        assert ((alpha > 0) & (alpha < 255)).any()
        assert (image[:, :, :3] == image[0, 0, :3]).all()  # the hidden colour is the ink's: no fringe when resized


def test_the_letter_is_the_same_in_every_mode():
    for i in range(20):
        alpha = render(GlyphsConfig(mode="rgba"), i, 28, 28)[0][:, :, 3].astype(float)
        gray = render(GlyphsConfig(mode="gray"), i, 28, 28)[0][:, :, 0].astype(float)
        assert abs(np.corrcoef(alpha.ravel(), gray.ravel())[0, 1]) > 0.99
        assert render(GlyphsConfig(mode="rgb"), i, 28, 28)[1] == render(GlyphsConfig(mode="gray"), i, 28, 28)[1]


def test_labels_are_balanced_and_in_no_fixed_order():
    labels = [render(GlyphsConfig(seed=2), i, 1, 1)[1] for i in range(26 * 40)]
    blocks = [tuple(labels[i : i + 26]) for i in range(0, len(labels), 26)]
    assert all(sorted(block) == list(range(26)) for block in blocks)
    assert len(set(blocks)) > 20
    # Every second image is a fair share too, as it is for one of two workers.
    counts = np.bincount(labels[::2], minlength=26)
    assert counts.min() >= 8  # mean 20, standard deviation at most sqrt(10)
    assert len(CLASS_NAMES) == 26


def test_typefaces_are_distinct_and_hold_every_letter():
    for letter in "AgRx":
        drawn = {glyphs._mask(typeface, letter, 64).image.tobytes() for typeface in TYPEFACES}
        assert len(drawn) == len(TYPEFACES)
    for typeface in TYPEFACES:
        letters = {glyphs._mask(typeface, letter, 64).image.tobytes() for letter in "".join(CLASS_NAMES)}
        assert len(letters) == 26  # a face without letters draws one box for all


def test_both_cases_are_drawn_but_no_lower_case_l(monkeypatch):
    asked = set()
    mask = glyphs._mask

    def noted(typeface, letter, resolution):
        asked.add((typeface, letter))
        return mask(typeface, letter, resolution)

    monkeypatch.setattr(glyphs, "_mask", noted)
    for i in range(1000):
        render(GlyphsConfig(), i, 8, 8)
    assert {letter for _, letter in asked} == set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")
    assert {typeface for typeface, _ in asked} == set(TYPEFACES)


def test_masks_are_empty_around_the_ink():
    for size in (32, 256):
        for letter in "fjQ":
            image = glyphs._mask("STIXGeneralBolIta", letter, size).image
            left, top, right, bottom = image.getbbox()
            assert left >= 1
            assert top >= 1
            assert right < image.width
            assert bottom < image.height


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("glyphs", GlyphsConfig()),
        ("glyphs:rgb", GlyphsConfig(mode="rgb")),
        ("glyphs:rgba:20000", GlyphsConfig(mode="rgba", count=20_000)),
        ("glyphs:gray:20000:7", GlyphsConfig(count=20_000, seed=7)),
    ],
)
def test_parse(text, config):
    assert GlyphsConfig.parse(text) == config


@pytest.mark.parametrize(
    ("text", "value", "remedy"),
    [
        ("letters", "letters", "glyphs:mode:count:seed"),
        ("glyphs:rgb:1:2:3", "glyphs:rgb:1:2:3", "glyphs:mode:count:seed"),
        ("glyphs:cmyk", "cmyk", "gray, rgb or rgba"),
        ("glyphs:", "''", "gray, rgb or rgba"),
        ("glyphs:rgb:20k", "20k", "digits only"),
        ("glyphs:rgb:-1", "-1", "digits only"),
        ("glyphs:rgb:0", "0", "at least 1"),
        ("glyphs:rgb:10:x", "'x'", "digits only"),
        ("glyphs:rgb:10:", "''", "digits only"),
        ("glyphs:rgb:٣", "٣", "digits only"),
        ("glyphs:rgb:" + "9" * 19, "9" * 19, "digits only"),
    ],
)
def test_parse_errors_name_the_value_and_the_remedy(text, value, remedy):
    with pytest.raises(ConfigError) as error:
        GlyphsConfig.parse(text)
    assert value in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize("bad", [{"mode": "RGB"}, {"count": 0}, {"seed": -1}])
def test_config_errors(bad):
    with pytest.raises(ConfigError, match=str(next(iter(bad.values())))):
        GlyphsConfig(**bad)


@pytest.mark.parametrize(("index", "width", "height"), [(-1, 8, 8), (0, 0, 8), (0, 8, -2)])
def test_an_image_needs_a_place_and_a_size(index, width, height):
    with pytest.raises(ConfigError, match=f"glyph {index} at {width}x{height}"):
        render(GlyphsConfig(), index, width, height)


def test_a_missing_font_is_reported_with_its_remedy():
    with pytest.raises(DataError, match=r"NoSuchFace\.ttf is missing.*pip install"):
        glyphs._font_file("NoSuchFace")

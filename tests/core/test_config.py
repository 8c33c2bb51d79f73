from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.core.config import build, override, plain, read_assignments, read_toml, write_toml
from calotype.data import DataConfig
from calotype.errors import ConfigError
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Everything:
    """A field of every type that the configs of calotype use, and of nested lists."""

    text: str
    number: float = 0.5
    count: int = 3
    flag: bool = False
    choice: Literal["crop", "pad"] = "crop"
    widths: tuple[int, ...] = (32, 64)
    nested: tuple[tuple[float, ...], ...] = ()
    names: tuple[str, ...] = ()
    perhaps: int | None = 1


# Text as files and people have it; TOML has no form for half a surrogate pair.
texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.floats(allow_nan=False, allow_infinity=False)
everything = st.builds(
    Everything,
    text=texts,
    number=numbers,
    count=st.integers(-(2**63), 2**63 - 1),
    flag=st.booleans(),
    choice=st.sampled_from(["crop", "pad"]),
    widths=st.lists(st.integers(-9, 9)).map(tuple),
    nested=st.lists(st.lists(numbers).map(tuple), max_size=4).map(tuple),
    names=st.lists(texts, max_size=4).map(tuple),
)


@given(everything)
def test_toml_round_trip(instance: Everything) -> None:
    text = write_toml({"title": instance.text, "section": plain(instance)})
    values = tomllib.loads(text)
    assert values["title"] == instance.text
    assert build(Everything, values["section"], "section") == instance


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    awkward = Everything(text='"quoted" \\ \n\t\r\0\x7f é 猫 🐈 = # [x]', number=1e-300, names=("", " ", "a\u2028b"))
    path = tmp_path / "config.toml"
    path.write_bytes(write_toml({"section": plain(awkward)}).encode())
    assert build(Everything, read_toml(path)["section"], "section") == awkward


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), 1e16, 1e-5, -0.0, 5e-324, 0.1])
def test_floats_come_back_as_the_same_floats(number: float) -> None:
    read = tomllib.loads(write_toml({"value": number}))["value"]
    assert isinstance(read, float)
    assert read.hex() == number.hex()


def test_the_configs_of_calotype_come_back() -> None:
    instances: list[Any] = [DataConfig(source="glyphs"), TrainConfig(images=5, learning_rate=3e-4, flips=True)]
    instances += [family.Config() for family in FAMILIES.values()]
    for instance in instances:
        values = tomllib.loads(write_toml({"part": plain(instance)}))["part"]
        assert build(type(instance), values, "part") == instance


def test_values_without_a_toml_form_are_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="None"):
        write_toml({"value": None})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": "a", "cuont": 3}, r"part\.cuont is unknown: did you mean count\?"),
        ({"text": "a", "zzzz": 3}, r"part\.zzzz is unknown: choose one of choice, count, .*, widths"),
        ({}, r"part\.text is missing"),
        ({"text": 3}, r"part\.text is 3, but .* type str"),
        ({"text": "a", "count": 1.5}, r"part\.count is 1\.5, but .* type int"),
        ({"text": "a", "count": True}, r"part\.count is True, but .* type int"),
        ({"text": "a", "flag": 1}, r"part\.flag is 1, but .* type bool"),
        ({"text": "a", "number": "fast"}, r"part\.number is 'fast', but .* type float"),
        ({"text": "a", "number": False}, r"part\.number is False, but .* type float"),
        ({"text": "a", "choice": "squash"}, r"part\.choice is 'squash': choose one of 'crop', 'pad'"),
        ({"text": "a", "widths": 32}, r"part\.widths is 32, but it is a list: write \[32\]"),
        ({"text": "a", "widths": [32, "x"]}, r"part\.widths is 'x', but .* type int"),
        ({"text": "a", "nested": [[1.0], 2.0]}, r"part\.nested is 2\.0, but it is a list"),
        ({"text": "a", "perhaps": "x"}, r"part\.perhaps is 'x', but .* type int"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(Everything, values, "part")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, -(10**400)])
def test_numbers_that_cannot_be_computed_with_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"has to be a finite number|at most 64 bits"):
        build(Everything, {"text": "", "number": value}, "section")


@pytest.mark.parametrize("values", [None, 3, "text", ["text"]])
def test_what_is_no_section_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="it is a section"):
        build(Everything, values, "section")


def test_nothing_is_a_value_where_it_may_be() -> None:
    assert build(Everything, {"text": "", "perhaps": None}, "section").perhaps is None
    with pytest.raises(ConfigError, match="has to be of type int"):
        build(Everything, {"text": "", "count": None}, "section")


def test_whole_numbers_serve_as_floats() -> None:
    built = build(Everything, {"text": "a", "number": 2, "nested": [[1], [2.5]]}, "part")
    assert isinstance(built.number, float)
    assert built == Everything(text="a", number=2.0, nested=((1.0,), (2.5,)))
    assert isinstance(built.nested[0][0], float)


def test_the_dataclass_checks_its_values() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        build(TrainConfig, {"images": 1, "batch_size": 0}, "training")
    with pytest.raises(ConfigError, match="learning_rate is nan"):
        replace(TrainConfig(images=1), learning_rate=float("nan"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    for content in (b"a = ", b"a = '\xff'", b"a = 1\na = 2"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match="is not valid TOML"):
            read_toml(tmp_path / "bad.toml")


SECTIONS = {"data": DataConfig, "training": TrainConfig}


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("training.learning-rate = 1e-3", "training", "learning_rate", 1e-3),
        ("training.flips=true", "training", "flips", True),
        ("data.fit=pad", "data", "fit", "pad"),
        ('data.fit="pad"', "data", "fit", "pad"),
        ("data.source=a=b", "data", "source", "a=b"),
        ("data.source=my pictures", "data", "source", "my pictures"),
        ("data.value_range=0:4095", "data", "value_range", "0:4095"),
        ("data.width=48", "data", "width", 48),
    ],
)
def test_override(assignment: str, section: str, key: str, value: object) -> None:
    values: dict[str, Any] = {"data": {"channels": 3}}
    override(values, assignment, SECTIONS)
    assert values[section][key] == value
    assert type(values[section][key]) is type(value)
    assert values["data"]["channels"] == 3


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("training.learning_rate", "SECTION.KEY=VALUE"),
        ("learning_rate=1", "SECTION.KEY=VALUE"),
        ("trainig.flips=true", r"section 'trainig': did you mean training\?"),
        ("training.flip=true", r"training\.flip is unknown: did you mean flips\?"),
    ],
)
def test_bad_overrides_are_refused(assignment: str, words: str) -> None:
    values: dict[str, Any] = {}
    with pytest.raises(ConfigError, match=words):
        override(values, assignment, SECTIONS)
    assert values == {}


def test_read_assignments() -> None:
    read = read_assignments(["steps=9", "solver=euler", "sigma-max=40.0", "steps=12"])
    assert read == {"steps": 12, "solver": "euler", "sigma_max": 40.0}
    assert read_assignments([]) == {}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        read_assignments(["steps"])


@given(texts)
def test_any_text_is_a_value(text: str) -> None:
    """What is no TOML literal is taken as it stands; nothing a user types ends in a traceback."""
    values: dict[str, Any] = {}
    override(values, f"data.source={text}", SECTIONS)
    assert list(values["data"]) == ["source"]

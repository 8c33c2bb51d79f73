"""The options about pictures are the same for all commands that take any."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from calotype import cli
from calotype.commands.options import DATA_OPTIONS
from calotype.data import DataConfig
from calotype.errors import DataError

DATA_COMMANDS = ("check", "train", "compare")


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_commands_take_the_same_options_about_pictures(command: str) -> None:
    """Every entry of [data] can be set, by one option of the same name, kind and default in all of them."""
    options = {name: inspect.signature(cli.COMMANDS[name]).parameters for name in DATA_COMMANDS}
    entries = {field.name for field in dataclasses.fields(DataConfig)} - {"source", "width", "height", "to_learn"}
    assert set(DATA_OPTIONS.values()) == entries
    for option in (*DATA_OPTIONS, "size"):
        own, other = options[command][option], options["train"][option]
        assert (own.annotation, own.default) == (other.annotation, other.default), option
        assert not own.default, option  # so that what is not given has no say
        assert f"\n        {option}: " in (cli.COMMANDS[command].__doc__ or "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--no-labels"], {"labels": False}),
        (["--labels-from", "metadata.csv:label"], {"labels_from": "metadata.csv:label"}),
        (["--stream", "--strict"], {"stream": True, "strict": True}),
        (
            ["--fit", "pad", "--range", "0:255", "--channels", "3"],
            {"fit": "pad", "value_range": "0:255", "channels": 3},
        ),
    ],
)
@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_options_about_pictures_mean_the_same(
    command: str, words: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.applications import comparison
    from calotype.data import check as data_check
    from calotype.training import setup

    found: list[Any] = []

    def take(*arguments: Any, settings: Any = None, **_: Any) -> None:
        found.append(arguments[0] if settings is None else settings.get("data", settings))
        raise DataError("enough")

    monkeypatch.setattr(data_check, "check", take)
    monkeypatch.setattr(setup, "train", take)
    monkeypatch.setattr(comparison, "compare", take)
    cli.main([command, *(["vae"] if command == "train" else []), "x", *words])
    (values,) = found
    for name, value in expected.items():
        assert (values[name] if isinstance(values, dict) else getattr(values, name)) == value

"""What Python may give to a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calotype.commands import COMMANDS
from calotype.commands.arguments import Assignments, Labels, MaybePath
from calotype.commands.command import command


@command
def example(run: Path, /, out: MaybePath = None, labels: Labels = (), set: Assignments = (), device: str = "") -> Any:
    """Give what is given."""
    return run, out, labels, set, device


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (None, (), (), "")),
        ({"out": "b"}, (Path("b"), (), (), "")),
        ({"labels": "a b,c"}, (None, ("a b", "c"), (), "")),
        ({"labels": ""}, (None, (), (), "")),
        ({"labels": ["a", "b"]}, (None, ["a", "b"], (), "")),
        ({"set": "steps=4"}, (None, (), ("steps=4",), "")),
        ({"device": "cpu"}, (None, (), (), "cpu")),
    ],
)
def test_python_may_give_text(options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert example("a", **options) == (Path("a"), *expected)
    assert example(Path("a"), **options) == (Path("a"), *expected)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_explains_its_arguments(name: str) -> None:
    about = COMMANDS[name].__doc__ or ""
    assert f"    Example: calotype {name}" in about
    for argument in COMMANDS[name].__annotations__:
        assert argument == "return" or f"\n        {argument}: " in about, argument

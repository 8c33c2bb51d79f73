"""What a function needs to be a command."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# The types of arguments, as they are annotated.
PATHS = ("Path", "MaybePath")
NAMES = ("Labels", "Names")
ASSIGNMENTS = "Assignments"


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Let Python give as text what a command line does: paths, names with commas between them, and one KEY=VALUE.

    A Run stands for its directory. The signature and docstring stay those of the function.
    """
    declared = signature(function)

    @wraps(function)
    def called(*values: P.args, **options: P.kwargs) -> R:
        bound = declared.bind(*values, **options)
        for name, value in bound.arguments.items():
            annotation = declared.parameters[name].annotation
            if is_path(annotation) and isinstance(value, str | PathLike):
                bound.arguments[name] = Path(value)
            elif isinstance(value, str):
                bound.arguments[name] = _of_text(value, annotation)
        return function(*bound.args, **bound.kwargs)

    return called


def _of_text(value: str, annotation: Any) -> Any:
    """What a text means for an argument of that annotation."""
    if annotation in NAMES:
        return tuple(value.split(",")) if value else ()
    return (value,) if annotation == ASSIGNMENTS else value


def is_path(annotation: Any) -> bool:
    """Whether the annotation of an argument, as text, is of a path."""
    text = str(annotation)
    return text in PATHS or text.startswith("Annotated[Path,")

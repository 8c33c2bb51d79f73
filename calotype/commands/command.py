"""What a function needs to be a command."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PATHS = ("Path", "MaybePath")  # the types of arguments that are paths, as they are annotated


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Let Python give paths as text as well. The signature and docstring stay those of the function."""
    declared = signature(function)
    paths = [name for name, value in declared.parameters.items() if is_path(value.annotation)]

    @wraps(function)
    def called(*values: P.args, **options: P.kwargs) -> R:
        bound = declared.bind(*values, **options)
        for name in paths:
            if isinstance(bound.arguments.get(name), str):
                bound.arguments[name] = Path(bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return called


def is_path(annotation: Any) -> bool:
    """Whether the annotation of an argument, as text, is of a path."""
    text = str(annotation)
    return text in PATHS or text.startswith("Annotated[Path,")

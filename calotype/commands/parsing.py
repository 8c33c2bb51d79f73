"""Words of a command line -> the arguments of a command, by its signature and docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import BoundArguments, Parameter, signature, unwrap
from math import isfinite
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, cast, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff

from calotype.commands.arguments import Flag
from calotype.core.paths import check_word, named
from calotype.core.untrusted import LARGEST
from calotype.errors import ConfigError

JSON = "json"
JSON_HELP = "        json: print for programs."


class Parsed(NamedTuple):
    """The arguments of a command."""

    arguments: BoundArguments
    json: bool  # whether the report is to be for programs


def parse(command: Callable[..., Any], words: Sequence[str], *, reports: bool = False) -> Parsed:
    """Read the words of a command line; help, and words that the command does not know, end the program as usual.

    Args:
        command: a function of `calotype.commands`.
        words: what stands after the name of the command.
        reports: whether the command returns a Report, and so has the option --json.

    Raises:
        ConfigError: a path that the system does not take, a number of more than 64 bits or not finite, or a word that
            is not UTF-8.
    """
    for word in words:
        check_word(word)
    declared = signature(command)

    def collect(*values: Any, **options: Any) -> Parsed:
        as_json = options.pop(JSON, False)
        return Parsed(declared.bind(*values, **options), as_json)

    types = _types(command) | ({JSON: Flag} if reports else {})
    parameters = [value.replace(annotation=types[name]) for name, value in declared.parameters.items()]
    if reports:
        parameters.append(Parameter(JSON, Parameter.KEYWORD_ONLY, default=False, annotation=Flag))
    collect.__annotations__ = types
    collect.__signature__ = declared.replace(parameters=parameters, return_annotation=Parsed)  # type: ignore[attr-defined]
    about = command.__doc__ or ""
    collect.__doc__ = about.replace("\n\n    Raises:", f"\n{JSON_HELP}\n\n    Raises:") if reports else about
    parsed: Parsed = tyro.cli(collect, prog=f"calotype {command.__name__}", args=words, config=(FlagCreatePairsOff,))
    arguments = parsed.arguments.arguments
    for name, value in arguments.items():
        arguments[name] = _checked(name, value)
    return parsed


def _types(command: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters. What a command returns may be known to type checkers alone, as it needs torch."""

    def parameters() -> None: ...

    parameters.__annotations__ = {k: v for k, v in command.__annotations__.items() if k != "return"}
    return get_type_hints(parameters, cast(FunctionType, unwrap(command)).__globals__, include_extras=True)


def _checked(name: str, value: Any) -> Any:
    """The value of an argument; a path gets a name. Raises ConfigError."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, Path):
        return named(value)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise ConfigError(f"{option} is {str(value)[:20]}..., but numbers have at most 64 bits: give a smaller one")
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{option} is {value}, but it has to be a finite number: give one, or leave it out")
    return value

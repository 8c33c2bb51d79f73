"""Frozen dataclasses <-> TOML. Errors name the unusable key or value and the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from calotype.core.untrusted import LARGEST, NotPlain, brief, parse_toml, read_text
from calotype.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; for a run directory, of its config.toml."""
    try:
        path = config_file(path)
        return parse_toml(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: give the path of a recipe or of a run's config.toml") from error
    except (OSError, NotPlain) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): give the path of a recipe or of a run's config.toml"
        ) from error
    except ValueError as error:  # of TOML and UTF-8 too
        raise ConfigError(f"{path} is not valid TOML ({error}): mend or restore the file") from error


def config_file(path: Path) -> Path:
    """The path of a settings file; for a run directory, of its config.toml."""
    return path / "config.toml" if (path / "config.toml").is_file() else path


def write_toml(values: Mapping[str, Any]) -> str:
    """TOML text of plain values and of tables one level deep."""
    lines = [f"{key} = {_literal(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for name, table in values.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML string
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(entry) for entry in value)}]"
    raise TypeError(f"no TOML form for {value!r}")


def build(cls: type[T], values: Mapping[str, Any], section: str) -> T:
    """An instance of the dataclass `cls` from plain values; `section` names them in messages.

    Raises:
        ConfigError: for an unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} is {brief(values)}, but it is a section: write [{section}] and its entries")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{section}.{key} is unknown{nearest(key, list(fields))}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{section}.{name} is missing: add it")
    return cls(**{key: _convert(value, hints[key], f"{section}.{key}") for key, value in values.items()})


def plain(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass instance by name, ready for write_toml."""
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def override(values: dict[str, Any], assignment: str, sections: Mapping[str, type]) -> None:
    """Apply `section.key=value`, as given on a command line, to nested plain values.

    The value is TOML; anything that is not a TOML literal is taken as a string, so that `data.fit=pad` needs no quotes.
    """
    name, separator, text = assignment.partition("=")
    section, dot, key = name.strip().partition(".")
    if not separator or not dot:
        raise ConfigError(f"--set {assignment!r} is not of the form SECTION.KEY=VALUE, such as model.blocks=3")
    if section not in sections:
        raise ConfigError(f"--set names section {section!r}{nearest(section, list(sections))}")
    names = [field.name for field in dataclasses.fields(sections[section])]
    key = key.replace("-", "_")
    if key not in names:
        raise ConfigError(f"{section}.{key} is unknown{nearest(key, names)}")
    values.setdefault(section, {})[key] = _read_literal(text)


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """The values of `key=value` texts, as given on a command line. Raises ConfigError."""
    values = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment!r} is not of the form KEY=VALUE, such as solver=euler")
        values[name.strip().replace("-", "_")] = _read_literal(text)
    return values


def _read_literal(text: str) -> Any:
    try:
        return parse_toml(f"value = {text.strip()}")["value"]
    except ValueError:
        return text.strip()


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f": choose one of {', '.join(sorted(known))}"


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ConfigError, naming the nearest known value, if a value is unknown."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r}{nearest(value, [k for k in known if k])}")


def check_widths(name: str, widths: Iterable[int]) -> None:
    """Raise ConfigError for widths that are not multiples of 16, which fill a processor's vectors."""
    for width in widths:
        if width < 16 or width % 16:
            near = max(16, round(width / 16) * 16)
            raise ConfigError(f"{name} contains {width}, but widths are multiples of 16: use {near}")


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        allowed = [option for option in get_args(hint) if option is not type(None)]
        if value is None and len(allowed) < len(get_args(hint)):
            return None
        return _convert(value, allowed[0], name)
    if origin is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise ConfigError(f"{name} is {brief(value)}: choose one of {choices}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {brief(value)}, but it is a list: write [{brief(value)}]")
        return tuple(_convert(entry, get_args(hint)[0], name) for entry in value)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise ConfigError(f"{name} is {brief(value)}, but numbers have at most 64 bits: give a smaller one")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} is {brief(value)}, but it has to be of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}, but it has to be a finite number")
    return value

"""Options that several commands have, as the entries of config.toml that they set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from calotype.errors import ConfigError

# Options of check, train and compare about pictures, and the entries of [data] that they set.
DATA_OPTIONS: Mapping[str, str] = {
    "fit": "fit",
    "range": "value_range",
    "channels": "channels",
    "pages": "pages",
    "no_labels": "labels",
    "labels_from": "labels_from",
    "strict": "strict",
    "stream": "stream",
}


def data_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of [data] that the arguments of a command set."""
    found = {entry: asked[option] for option, entry in DATA_OPTIONS.items() if asked[option]}
    if "labels" in found:
        found["labels"] = False
    return found


def assignments(**values: Any) -> list[str]:
    """KEY=VALUE for each option that was given."""
    return [f"{name}={value}" for name, value in values.items() if value is not None]


def refuse_beside_resume(
    command: Callable[..., Any], asked: Mapping[str, Any], allowed: Sequence[str], what: str
) -> None:
    """Refuse settings beside --resume: what was made with settings goes on with them. Raises ConfigError.

    Args:
        command: the function whose arguments were given.
        asked: its arguments by name.
        allowed: those that --resume takes.
        what: is resumed, for the message.
    """
    defaults = {name: parameter.default for name, parameter in signature(command).parameters.items()}
    idle = [name for name in defaults if asked[name] != defaults[name] and name not in ("resume", "display", *allowed)]
    if idle:
        place = "; the place of pictures that have moved is --data" if "data" in idle else ""
        raise ConfigError(f"--resume takes the settings of the {what}: leave out {', '.join(idle)}{place}")


def refuse_moved(place: str, example: str) -> None:
    """Refuse --data without --resume, where nothing could have moved. Raises ConfigError."""
    if place:
        raise ConfigError(f"--data is for --resume, where pictures have moved: name pictures as in {example}")

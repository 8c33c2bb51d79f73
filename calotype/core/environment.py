"""The environment variables that Calotype reads, validated: errors name the variable. An empty one counts as unset.

WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and TORCHELASTIC_* are those of torchrun.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from calotype.errors import ConfigError


def text(name: str, default: str = "") -> str:
    """The value of a variable."""
    return os.environ.get(name) or default


def required(name: str, reason: str) -> str:
    """The value of a variable that has to be set. Raises ConfigError, with the reason."""
    found = text(name)
    if not found:
        raise ConfigError(f"{reason}, but {name} is not set: start the processes by torchrun, or unset WORLD_SIZE")
    return found


def whole(name: str, default: int, least: int = 0, most: int = 2**31) -> int:
    """The value as a whole number, from `least` to `most`. Raises ConfigError."""
    found = text(name, str(default)).strip()
    if not (found.isascii() and found.isdigit() and len(found) < 20 and least <= int(found) <= most):
        raise ConfigError(f"{name} is {found[:40]!r}, but it is a whole number from {least} to {most}: set or unset it")
    return int(found)


def seconds(name: str, default: float) -> float:
    """A time above 0, in seconds, of at most a year. Raises ConfigError."""
    found = text(name, str(default))
    try:
        value = float(found)
    except ValueError:
        value = math.nan
    if not 0 < value <= 366 * 86_400:
        raise ConfigError(f"{name} is {found[:40]!r}, but it is a time in seconds, such as 1800: set or unset it")
    return value


def folder(name: str) -> Path | None:
    """A folder, with ~ expanded; None if unset. Raises ConfigError if it is not a valid path."""
    found = text(name)
    try:
        path = Path(found).expanduser()
        found.encode()
    except (RuntimeError, UnicodeEncodeError) as error:  # nobody has that name; or it is not UTF-8
        raise ConfigError(f"{name} is {found!r}, which is no folder ({error}): set it to a folder of yours") from error
    return path if found else None


def home() -> Path | None:
    """The home of the user, who may have none."""
    try:
        return Path.home()
    except RuntimeError:
        return None

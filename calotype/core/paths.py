"""Paths from users: with a proper name, from which other names can be derived, and valid for the system."""

from __future__ import annotations

import sys
from pathlib import Path

from calotype.errors import ConfigError

DEEPEST = 250  # parts of a path; making each folder of thousands would take as many calls within one another
LONGEST = 200  # bytes of a name to which something is added; file systems allow 255


def check_word(text: str) -> None:
    """Raise ConfigError for an argument that no file, report or config can hold: not UTF-8, or with a null byte."""
    if "\0" in text:
        raise ConfigError(f"{text!r} has a null byte: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if sys.getfilesystemencoding() != "utf-8":
            raise ConfigError(
                f"'{shown}' is not of the encoding {sys.getfilesystemencoding()}, which is that of the locale, and "
                "Calotype needs UTF-8: set PYTHONUTF8=1"
            ) from None
        raise ConfigError(
            f"the name '{shown}' is not UTF-8, which reports and a run's config.toml are: rename it, or give a link "
            "to it with another name"
        ) from None


def named(path: Path) -> Path:
    """A path with a proper name: `.` and paths that end in `..` are resolved.

    Raises:
        ConfigError: the system rejects the path: a name too long, a loop of links, a folder without permission.
    """
    if len(path.parts) > DEEPEST:
        raise ConfigError(f"the path {str(path)[:97]}... has {len(path.parts):,} parts: give one of at most {DEEPEST}")
    try:
        found = path.resolve() if path.name in ("", "..") else path
        found.lstat()
    except FileNotFoundError:  # what is to be there says so itself
        return path.absolute() if path.name in ("", "..") else path
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        shown = str(path) if len(str(path)) <= 100 else f"{str(path)[:97]}..."
        raise ConfigError(f"the path {shown} cannot be used ({reason}): give another") from error
    check_word(str(found))
    return found


def beside(path: Path, before: str = "", after: str = "") -> Path:
    """A path beside another, with `before` and `after` around its name, which is shortened if very long.

    Raises:
        ConfigError: as `named`; or the path has no name, as /.
    """
    found = named(path)
    if not found.name:
        raise ConfigError(f"{path} has no place beside it: give another path")
    return found.with_name(f"{before}{shortened(found.name)}{after}")


def shortened(name: str) -> str:
    """A name of at most LONGEST bytes."""
    return name.encode()[:LONGEST].decode("utf-8", "ignore")

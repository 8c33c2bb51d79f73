"""Reading files from untrusted sources: plain values within limits only.

People exchange runs, packs, recipes and reports. A file's claims are checked before use: it has to be a regular file,
since a pipe or device would never end; not larger than its kind can be; and its values nested, and large, within
limits.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 26
"""Of a file of settings or facts, unless said otherwise: the names of 10,000 classes are some MB."""

DEEPEST = 32  # lists and tables within each other; calotype writes six
LARGEST = 2**63  # whole numbers are below this, as torch and numpy hold them
LONGEST_TEXT = 10_000  # characters of a text in JSON: a sentence, or the name of a picture
LONGEST_SETTING = 4_096  # characters of a text in TOML: no path is longer
LONGEST_SHOWN = 200  # characters of a value in a message


class NotPlain(ValueError):
    """A file whose kind, size or values are outside the limits."""


def check_regular(path: Path, most: int | None = None) -> None:
    """Raise NotPlain if a path is not a regular file or has more than `most` bytes, OSError if it is missing."""
    _check_status(path.stat(), most)


def _check_status(status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPlain("it is no regular file")
    if most is not None and status.st_size > most:
        raise NotPlain(f"it has {status.st_size:,} bytes, and such a file has at most {most:,}")


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """Open a regular file for reading, without blocking on a pipe. Raises as `check_regular`."""
    check_regular(path, most)  # since to open a device may do something
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_status(os.fstat(file.fileno()), most)
    except BaseException:
        file.close()
        raise
    return file


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file. Raises OSError, or ValueError if it is not UTF-8 or outside the limits."""
    check_regular(path, most)
    return path.read_text(encoding="utf-8")


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The values of a JSON file. Raises OSError, or ValueError if they are outside the limits."""
    return parse_json(read_text(path, most))


def parse_json(text: str, deepest: int = DEEPEST, longest: int = LONGEST_TEXT) -> Any:
    """The values of a JSON text. Raises ValueError if they are outside the limits."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise NotPlain("its values are nested too deeply") from None
    check_plain(found, deepest, longest)
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text. Raises ValueError if they are outside the limits."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise NotPlain("its values are nested too deeply") from None
    check_plain(found, longest=LONGEST_SETTING)
    return found


def check_plain(values: Any, deepest: int = DEEPEST, longest: int = LONGEST_TEXT) -> None:
    """Raise NotPlain for values nested too deeply, numbers too large, and text too long or not valid Unicode."""
    level, depth = [values], 0
    while level:
        if depth > deepest:
            raise NotPlain("its values are nested too deeply")
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
                raise NotPlain("a whole number in it is too large")
            elif isinstance(value, str):
                _check_text(value, longest)
        level, depth = below, depth + 1


def _check_text(value: str, longest: int) -> None:
    if len(value) > longest:
        raise NotPlain(f"a text in it has more than {longest:,} characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotPlain("a text in it is not Unicode") from None


def brief(value: object) -> str:
    """A value for a message, shortened if long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."

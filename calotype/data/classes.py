"""Classes selected by name or number: the values of `--labels`.

A name takes precedence over a number, and a longer name over shorter ones, so "a,b" is the class of that name if there
is one, and otherwise the classes "a" and "b".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from calotype.errors import ConfigError

LISTED = 20  # classes that a message names


class Choice(NamedTuple):
    """A requested class."""

    number: int
    by_number: bool  # as no class has that name


def choose(wanted: Sequence[int | str], names: Sequence[str], unseen: Sequence[int]) -> list[Choice]:
    """Resolve the requested classes.

    Args:
        wanted: names, or numbers as int or as text; a name with a comma may be split into consecutive items.
        names: of the classes of a model.
        unseen: numbers of classes without training pictures.

    Raises:
        ConfigError: a class does not exist, is ambiguous, or has no training pictures.
    """
    found: list[Choice] = []
    at = 0
    while at < len(wanted):
        choice, used = _next(wanted[at:], names)
        found.append(choice)
        at += used
    check_seen([choice.number for choice in found], names, unseen)
    return found


def check_seen(numbers: Iterable[int], names: Sequence[str], unseen: Sequence[int]) -> None:
    """Raise ConfigError if one of the classes has no training pictures."""
    never = set(unseen)
    first = next((number for number in numbers if number in never), None)
    if first is not None:
        known = [name for k, name in enumerate(names) if k not in never]
        raise ConfigError(
            f"class {names[first]!r} has no training pictures, so the model does not know it: ask for {_some(known)}, "
            "or add pictures of it and train again"
        )


def told(choices: Sequence[Choice], names: Sequence[str]) -> str:
    """The names of the classes that are drawn, as text for people."""
    parts = [f"{names[c.number]!r}" + (f" (class number {c.number})" if c.by_number else "") for c in choices[:LISTED]]
    more = f" and {len(choices) - LISTED:,} more" if len(choices) > LISTED else ""
    turns = " in turn" if len(choices) > 1 else ""
    return f"{', '.join(parts)}{more}{turns}"


def _next(wanted: Sequence[int | str], names: Sequence[str]) -> tuple[Choice, int]:
    """The class named by the longest run of first pieces, and the number of these pieces."""
    first = wanted[0]
    if isinstance(first, str):
        pieces = [piece for piece in wanted if isinstance(piece, str)]
        longest = 1 + max(name.count(",") for name in names)
        for used in range(min(longest, len(pieces)), 0, -1):
            number = _named(",".join(pieces[:used]), names)
            if number is not None:
                return Choice(number, False), used
        text = first.strip()
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise _unknown(first, names)
        first = int(text)
        if first < len(names):
            return Choice(first, True), 1
    elif 0 <= first < len(names):
        return Choice(first, False), 1
    raise _unknown(wanted[0], names)


def _named(text: str, names: Sequence[str]) -> int | None:
    """The class of a name: an exact match, else one up to surrounding spaces and Unicode normalisation."""
    if text in names:
        return names.index(text)
    alike = [k for k, name in enumerate(names) if _plain(name) == _plain(text)]
    if len(alike) > 1:
        raise ConfigError(
            f"class {text!r} may be any of {_some([ascii(names[k]) for k in alike])}, which differ in spaces or in how "
            f"accents are written: ask by number, such as {alike[0]}"
        )
    return alike[0] if alike else None


def _plain(text: str) -> str:
    return ",".join(part.strip() for part in unicodedata.normalize("NFC", text).split(","))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _unknown(name: int | str, names: Sequence[str]) -> ConfigError:
    return ConfigError(f"class {name!r} is unknown: the model knows {_some(names)}, or 0 to {len(names) - 1}")

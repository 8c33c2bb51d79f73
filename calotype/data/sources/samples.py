"""Class files beside each picture, in the form of WebDataset: 000123.jpg and 000123.cls.

In WebDataset the key of a sample is the name up to its first dot, so 000123.left.jpg and 000123.cls belong together.
Other sources have dots in the names themselves, as cam1.007.jpg and cam1.007.cls. Both work if a label belongs to the
pictures whose name equals its own, or continues it after a dot, and the longest such name wins.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from calotype.core.untrusted import parse_json
from calotype.data.sources.tables import names_of_values

LABEL_SUFFIXES = (".cls", ".json")
MOST_BYTES = 1 << 20  # of a file with a label
KEYS = ("cls", "label")  # of a JSON file

Kind = Literal["cls", "json"]
KINDS: tuple[Kind, ...] = ("cls", "json")
"""Where labels may be said, the first that is there counts."""

_MOST_VIEWS = 8  # endings of the pictures of a sample; more are parts of names
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class Members(NamedTuple):
    """Labels by the names of their files, without suffix."""

    cls: dict[str, str]
    json: dict[str, str]

    def of(self, kind: Kind) -> dict[str, str]:
        """The labels of a kind."""
        return self.cls if kind == "cls" else self.json


class Matched(NamedTuple):
    """The labels of pictures, by picture name."""

    labels: dict[Kind, dict[str, str]]
    used: frozenset[str]  # names without suffix of label files that belong to a picture
    notes: tuple[str, ...]


def parse_label(content: bytes, suffix: str) -> str | None:
    """The class in a label file; None if there is none."""
    text = content.decode("utf-8-sig", errors="replace").strip()
    if suffix == ".cls":
        return text or None
    try:
        values = parse_json(text)
    except ValueError:
        return None
    found = next((values[key] for key in KEYS if key in values), None) if isinstance(values, dict) else None
    return str(found) if isinstance(found, (int, str)) and found != "" else None


def match(pictures: Sequence[str], members: Members) -> Matched:
    """Find the label of each picture that has one; all pictures of a sample have the same label."""
    labels: dict[Kind, dict[str, str]] = {kind: {} for kind in KINDS}
    used: set[str] = set()
    for name in pictures:
        for kind in KINDS:
            told = members.of(kind)
            key = _key(name, told) if told else None
            if key is not None:
                labels[kind][name] = told[key]
                used.add(key)
    return Matched(labels, frozenset(used), tuple(_notes(pictures)))


def _key(name: str, told: Mapping[str, str]) -> str | None:
    """The longest label file name that equals a picture's name, or that the picture's name continues after a dot."""
    bare = os.path.splitext(name)[0]
    first = bare.rpartition("/")[0]
    while bare:
        if bare in told:
            return bare
        shorter = bare.rpartition(".")[0]
        if len(shorter) <= len(first) + (1 if first else 0):
            return None
        bare = shorter
    return None


def _notes(pictures: Sequence[str]) -> Iterable[str]:
    """Notes on samples with several pictures."""
    views: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    for name in pictures:
        folder, slash, base = name.rpartition("/")
        key, _, ending = base.partition(".")
        samples[folder + slash + key] += 1
        if len(views) <= _MOST_VIEWS or ending in views:
            views[ending] += 1
    several = sum(count > 1 for count in samples.values())
    if several > len(samples) / 2 and 1 < len(views) <= _MOST_VIEWS:
        endings = ", ".join(f".{ending} ({count:,})" for ending, count in views.most_common())
        yield (
            f"{several:,} samples have several pictures, {endings}: each is learned as a picture of its own; take out "
            "those that should not be."
        )


def choose(counts: Mapping[Kind, int], total: int) -> tuple[Kind | None, tuple[str, ...]]:
    """The kind of label files with the classes, and a note on label files that are not used.

    They are used if more than half of the pictures have one; a picture without one is then reported.
    """
    for kind in KINDS:
        if 2 * counts.get(kind, 0) > total:
            return kind, ()
    notes = tuple(
        f"{counts[kind]:,} of {total:,} pictures have a class in a .{kind} file of their own: too few to be the "
        "classes, so these files are not read."
        for kind in KINDS
        if counts.get(kind)
    )
    return None, notes


class Numbered(NamedTuple):
    """Class names, and the class number of each value in label files."""

    class_names: tuple[str, ...]
    numbers: dict[str, int]  # -1 and below: no class, which is a mistake where a picture has it


def number(values: Iterable[str]) -> Numbered:
    """Number the classes of label texts: integers are class numbers, other texts are numbered in sorted order.

    Raises:
        DataError: the texts are not classes, or too many.
    """
    known = sorted(set(values))
    if not all(_WHOLE.fullmatch(value) for value in known):
        names = names_of_values(known)
        return Numbered(names, {name: k for k, name in enumerate(names)})
    numbers = {value: int(value) for value in known}
    return Numbered(names_of_values([value for value in numbers.values() if value >= 0] or [0]), numbers)

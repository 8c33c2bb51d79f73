"""Records: the pictures of a source, loaded one by one, and their metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple

from numpy.typing import NDArray

from calotype.errors import DataError

Split = Literal["train", "held_out"]

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread: 100 megapixels of 16-bit RGBA, the most that is accepted, are 0.8 GB."""


MAX_CLASSES = 10_000
"""More than this are numbers or names of pictures, not classes."""


def check_class_count(count: int) -> None:
    """Raise DataError if there are too many different labels to be classes."""
    if count > MAX_CLASSES:
        raise DataError(
            f"the labels name {count:,} classes, but at most {MAX_CLASSES:,} can be learned: they may be numbers of "
            "something else; pass over them with --no-labels"
        )


def check_class_number(highest: int) -> None:
    """Raise DataError if labels are numbers too high to be class numbers, however few there are."""
    if highest >= MAX_CLASSES:
        raise DataError(
            f"the labels are numbers up to {highest:,}, but classes are numbered below {MAX_CLASSES:,}: number them "
            "from 0 on, or pass over them with --no-labels"
        )


class BadPicture(DataError):
    """An unusable picture. The text before the first colon of the reason is its kind."""

    def __init__(self, reason: str, values: Values | None = None) -> None:
        super().__init__(reason)
        self.reason, self.values = reason, values


class Skipped(NamedTuple):
    """A skipped picture and the reason."""

    name: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details, for counting."""
        return self.reason.partition(":")[0]


class Values(NamedTuple):
    """The least and the greatest value found in 16-bit or float pictures."""

    low: float
    high: float
    integer: bool

    def union(self, other: Values | None) -> Values:
        """The range of both."""
        if other is None:
            return self
        return Values(min(self.low, other.low), max(self.high, other.high), self.integer and other.integer)


class Facts(NamedTuple):
    """The facts in the header of a picture, with its orientation applied."""

    format: str
    mode: str  # as Pillow names it, or the dtype of an array
    width: int
    height: int
    colour: bool
    alpha: bool | None  # None: there is an alpha channel, and only decoding tells whether it is ever below 255
    deep: bool  # more than 8 bits per channel, to be scaled by the value range
    pages: int = 1  # pages of a TIFF, or frames of an animation; where one of them is a record of its own, 1


class Loaded(NamedTuple):
    """A loaded picture: an encoded file, or values (H, W) or (H, W, C)."""

    content: BinaryIO | NDArray[Any]
    label: int | None
    page: int | None = None  # of a file with several, as `decode.pages` names it; None: the first


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a source; `load` may be called from any thread, and raises BadPicture or OSError."""

    name: str
    load: Callable[[], Loaded]
    split: Split | None = None  # None: the source does not say
    facts: Facts | None = None  # where the source knows them without loading
    held: int = 0  # bytes of it that are in memory already
    file: str = ""  # the name of the file of which it is one of several pages; "": it is alone


def in_memory(record: Record) -> int:
    """The number of bytes of a record that are in memory already."""
    return record.held


@dataclass(frozen=True, slots=True)
class Source:
    """Pictures in a fixed order; `records` may be called again, and yields the same each time."""

    records: Callable[[], Iterator[Record]]
    class_names: tuple[str, ...] = ()  # empty: no labels
    skipped: tuple[Skipped, ...] = ()  # what is known to be of no use before anything is loaded
    other_files: int = 0  # files that are no pictures and do not claim to be
    notes: tuple[str, ...] = ()  # what the user may not expect, as sentences
    class_counts: tuple[int, ...] = ()  # training pictures of each class, where the records are but a sample of them
    ignored: tuple[Skipped, ...] = ()  # folders and files that are left out though nothing is wrong with them

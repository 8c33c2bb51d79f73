"""The data section of a run's config: how a source of pictures becomes a data set."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from calotype.core.paths import check_word
from calotype.data.sources.label_files import LabelsFrom
from calotype.errors import ConfigError

Fit = Literal["crop", "pad", "stretch"]
Pages = Literal["first", "all"]

FEWEST_TO_LEARN = 16  # pictures: with fewer there is not one to hold out that means anything
MAX_PIXELS = 100_000_000
"""Larger pictures are refused from the header: a file of 1 kB may claim more pixels than there is memory."""

CHANNELS = (1, 3, 4)  # gray, RGB, RGBA


class ValueRange(NamedTuple):
    """The values of a 16-bit or float picture that become byte 0 and byte 255."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The source of pictures, and their conversion to bytes of one size.

    Raises:
        ConfigError: an entry is out of its range.
    """

    source: str  # a path, "glyphs:mode:count:seed", or "hub:user/name"
    width: int = 0  # 0, with height 0: the recommended size of these pictures
    height: int = 0
    fit: Fit = "crop"  # crop keeps the scale of both axes and leaves no border, so it is the default
    channels: int = 0  # 1, 3 or 4; 0: decided from what most files are
    value_range: str = ""  # "LO:HI" for 16-bit and float pictures; "": 0:65535 for integers, 0:1 for floats
    pages: Pages = "first"  # of a TIFF stack or an animation; all: each page or frame is a picture of its own
    labels: bool = True  # False: the labels of the source are not read
    labels_from: str = ""  # "FILE:COLUMN", a table in the source that says the classes; "": folders or label files do
    strict: bool = False  # True: the first file that cannot be used is an error, not an entry in a list
    stream: bool = False  # True: shards are read while a model learns from them, and but a sample is packed
    to_learn: bool = True  # False: pictures to be measured, not learnt from; one is enough, and they may be alike

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("source is empty, but there must be pictures: give a path, glyphs, or hub:user/name")
        check_word(self.source)
        if min(self.width, self.height) < 0 or (self.width == 0) != (self.height == 0):
            raise ConfigError(
                f"width {self.width} and height {self.height} are no size: give both as 1 or more, "
                "or both as 0 for the recommended size"
            )
        if self.stream and not self.to_learn:
            raise ConfigError("stream is set, but the pictures are to be measured, which packs them: leave it out")
        if self.pages not in get_args(Pages):
            raise ConfigError(f"pages is {self.pages!r}, but the choice is first or all: choose one")
        if self.pages == "all" and self.stream:
            raise ConfigError(
                "pages is all, but of shards that are streamed the number of pictures must be known: leave out one of "
                "them, or save the pages as files"
            )
        if self.width * self.height > MAX_PIXELS:
            raise ConfigError(
                f"width {self.width} and height {self.height} are more than {MAX_PIXELS:,} pixels, which no picture "
                "that is read has: give a smaller size"
            )
        if self.fit not in get_args(Fit):
            raise ConfigError(f"fit is {self.fit!r}, but pictures are fitted by crop, pad or stretch: choose one")
        if self.channels not in (0, *CHANNELS):
            raise ConfigError(
                f"channels is {self.channels}, but pictures have 1 (gray), 3 (RGB) or 4 (RGBA): choose one, "
                "or 0 to let the files decide"
            )
        self.range()
        if self.labels_from and not self.labels:
            raise ConfigError(f"labels_from is {self.labels_from!r}, but labels is false: leave out one of them")
        if self.labels_from and self.stream:
            raise ConfigError(f"labels_from is {self.labels_from!r}, but shards that are streamed have no such table")
        self.table()

    def table(self) -> LabelsFrom | None:
        """The table of the classes, or None."""
        return LabelsFrom.parse(self.labels_from) if self.labels_from else None

    def range(self) -> ValueRange | None:
        """The stated value range, or None."""
        return parse_range(self.value_range) if self.value_range else None

    @property
    def fewest(self) -> int:
        """The minimum number of usable pictures."""
        return FEWEST_TO_LEARN if self.to_learn else 1


def parse_size(text: str) -> tuple[int, int]:
    """Read a size: "32" is 32 wide and 32 high, "48x64" is 48 wide and 64 high.

    Returns:
        (width, height) in pixels, each 1 or more.

    Raises:
        ConfigError: the text has another form.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(re.fullmatch("[0-9]{1,19}", side) and 0 < int(side) < 100_000 for side in sides):
        raise ConfigError(f"size {text!r} is no size in pixels: write 32 for a square, or 48x64 for width x height")
    return int(sides[0]), int(sides[-1])


def parse_range(text: str) -> ValueRange:
    """Read "LO:HI", such as "0:4095" or "-1:1".

    Raises:
        ConfigError: the text has another form, or LO is not below HI.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"value range {text!r} is not LO:HI with LO below HI: write for example 0:4095 or -1:1")
    return ValueRange(low, high)

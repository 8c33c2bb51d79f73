"""The structure of TIFF files: the pages that are pictures, and their tags.

Pillow decodes some kinds wrongly without an error: 16 bits with white as 0, colour in separate planes, signed bytes. So
the directories are parsed here, where every count and offset of a file is checked before it is followed, and libtiff,
through Pillow, only decompresses. A library that does all of it would bring its own codecs for the common LZW, 45 MB
that hostile files can reach.

Source: TIFF Revision 6.0 (1992); for BigTIFF, the specification of libtiff.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.data.decoding.formats import CAMERA_RAW
from calotype.data.records import BadPicture

MOST_PAGES = 100_000

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
OFFSETS, ORIENTATION, SAMPLES, ROWS, COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
T4_OPTIONS, T6_OPTIONS, PREDICTOR, COLORMAP = 292, 293, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 322, 323, 324, 325
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 332, 338, 339, 347
YCBCR_COEFFICIENTS, SUBSAMPLING, REFERENCE, DEPTH = 529, 530, 532, 32997
_KIND, _OLD_KIND, _MAKE, _SUB_DIRECTORIES, _DNG = 254, 255, 271, 330, 50706
_READ = frozenset(
    (
        *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, OFFSETS, ORIENTATION, SAMPLES, ROWS, COUNTS),
        *(PLANAR, T4_OPTIONS, T6_OPTIONS, PREDICTOR, COLORMAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS),
        *(INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, YCBCR_COEFFICIENTS, SUBSAMPLING, REFERENCE, DEPTH),
        *(_KIND, _OLD_KIND, _MAKE, _SUB_DIRECTORIES, _DNG),
    )
)
_OF_PAGES = frozenset((WIDTH, HEIGHT, PHOTOMETRIC, TILE_WIDTH, _KIND, _OLD_KIND, _MAKE, _SUB_DIRECTORIES, _DNG))
_THERE = frozenset((_MAKE, _SUB_DIRECTORIES, _DNG))  # that these are there is enough
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 18: "u8"}
RATIONAL = 5
"""The type of a value in two parts, numerator and denominator."""

LISTS = frozenset((OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS))
"""Tags with a value for each strip or tile."""

_MOST_VALUES = 1 << 18  # of a tag: a palette of 16 bits has 196,608
_MOST_SEGMENTS = 1 << 22
_MOST_TAGS = 4096  # of a directory; real ones have some dozens

_SENSOR = frozenset((32803, 34892))  # photometric interpretations of camera raw files


class Page(NamedTuple):
    """A directory of a TIFF: the tags of one picture, as integers."""

    tags: dict[int, NDArray[Any]]
    after: int  # offset of the next directory; 0: there is none

    def get(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        values = self.tags.get(tag)
        return int(values[0]) if values is not None and len(values) else default

    @property
    def tiled(self) -> bool:
        """Whether the page consists of tiles."""
        return TILE_WIDTH in self.tags

    @property
    def reduced(self) -> bool:
        """Whether the page is marked as a smaller copy of another page, or as a mask."""
        return bool(self.get(_KIND, 0) & 0b101) or self.get(_OLD_KIND, 0) == 2


class Tiff:
    """An open TIFF file. Raises BadPicture if its header is damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(16)
        self.order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
        self.large = head[2:4] in (b"+\0", b"\0+")
        try:
            (self.first,) = struct.unpack_from(self.order + ("Q" if self.large else "I"), head, 8 if self.large else 4)
        except struct.error:
            raise BadPicture("damaged: the header is cut off") from None

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes of the file. Raises BadPicture beyond its end."""
        if offset + count > self.size:
            raise BadPicture("damaged: the file ends before its pixels or tags")
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise BadPicture("damaged: the file has become shorter")
        return data

    def page(self, offset: int, wanted: frozenset[int] = _READ) -> Page:
        """The directory at an offset, with some of its tags."""
        count_kind, entry_size, size_kind = ("Q", 20, "Q") if self.large else ("H", 12, "I")
        width = struct.calcsize(size_kind)
        start = offset + struct.calcsize(count_kind)
        (count,) = struct.unpack(self.order + count_kind, self.read(offset, start - offset))
        if not 0 < count <= _MOST_TAGS:
            raise BadPicture(f"damaged: a directory of {count} tags")
        entries = self.read(start, count * entry_size)
        after = self.file.read(width)  # some writers leave the last one out
        tags = {}
        for at in range(0, len(entries), entry_size):
            tag, kind, length = struct.unpack_from(self.order + "HH" + size_kind, entries, at)
            if tag in wanted and kind in _TYPES:
                field = at + 4 + width
                tags[tag] = self._values(tag, kind, length, entries[field : field + width])
        return Page(tags, struct.unpack(self.order + size_kind, after)[0] if len(after) == width else 0)

    def _values(self, tag: int, kind: int, length: int, field: bytes) -> NDArray[Any]:
        dtype = np.dtype(_TYPES[kind]).newbyteorder(self.order)
        length *= 2 if kind == RATIONAL else 1
        if tag in _THERE:
            return np.zeros(1, np.int64)
        if length > (_MOST_SEGMENTS if tag in LISTS else _MOST_VALUES):
            raise BadPicture(f"damaged: tag {tag} of {length:,} values")
        size = length * dtype.itemsize
        data = field[:size] if size <= len(field) else self.read(self._offset(field), size)
        return np.frombuffer(data, dtype)

    def _offset(self, field: bytes) -> int:
        return int.from_bytes(field, "little" if self.order == "<" else "big")

    def chain(self) -> Iterator[tuple[int, Page]]:
        """All directories with their offsets, including thumbnails; a link back to an earlier one ends the chain."""
        offset, seen = self.first, set[int]()
        while offset and offset not in seen and len(seen) < MOST_PAGES:
            seen.add(offset)
            page = self.page(offset, _OF_PAGES)
            yield offset, page
            offset = page.after

    def first_page(self) -> int:
        """The offset of the first directory that is a picture; raises as `pages`."""
        found = next(self._pictures(), None)
        if found is None:
            raise BadPicture("not a picture: a TIFF without a page but thumbnails; give the picture itself")
        return found

    def pages(self) -> list[int]:
        """Offsets of the directories that are pictures, neither thumbnails nor masks nor levels of a pyramid.

        Raises:
            BadPicture: there is none, or the file is camera raw data.
        """
        return list(self._pictures()) or [self.first_page()]

    def _pictures(self) -> Iterator[int]:
        first: Page | None = None
        for offset, page in self.chain():
            if first is None:
                first = page
                check_not_raw(page)
            if not page.reduced and not _is_level(page, first):
                yield offset


def check_not_raw(page: Page) -> None:
    """Raise BadPicture if the first page of a file belongs to camera raw data, often as its preview."""
    preview = page.reduced and (_MAKE in page.tags or _SUB_DIRECTORIES in page.tags)
    if _DNG in page.tags or page.get(PHOTOMETRIC, 0) in _SENSOR or preview:
        raise BadPicture(CAMERA_RAW.reason)


def _is_level(page: Page, first: Page) -> bool:
    """Whether a page is a smaller copy of the first one, as in whole-slide images, tiled and often unmarked."""
    width, height = first.get(WIDTH, 1), first.get(HEIGHT, 1)
    found = page.get(WIDTH, 1), page.get(HEIGHT, 1)
    if not first.tiled or 2 * found[0] > width + 1:
        return False
    scale = width / max(1, found[0])
    return abs(height / scale - found[1]) <= 2

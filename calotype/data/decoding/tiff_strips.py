"""Decompression of the strips and tiles of TIFF pages by libtiff, through Pillow."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from calotype.data.decoding.tiff import (
    BITS,
    COMPRESSION,
    COUNTS,
    DEPTH,
    EXTRA_SAMPLES,
    FILL_ORDER,
    HEIGHT,
    INK_SET,
    JPEG_TABLES,
    LISTS,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    RATIONAL,
    REFERENCE,
    ROWS,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBSAMPLING,
    T4_OPTIONS,
    T6_OPTIONS,
    TILE_COUNTS,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
    YCBCR_COEFFICIENTS,
    Page,
    Tiff,
)
from calotype.data.records import MAX_FILE_BYTES, BadPicture

_STORED = 1
_BYTE_CODECS = frozenset((1, 5, 8, 32946, 32773, 34925, 50000))  # none, LZW, deflate, PackBits, LZMA, Zstandard
_PREDICTED_CODECS = frozenset((5, 8, 32946, 34925, 50000))
_BIT_CODECS = frozenset((2, 3, 4))  # of CCITT
_JPEG_CODECS = frozenset((6, 7))  # old and new
_OPTIONAL_CODECS = {34925: "LZMA", 50000: "Zstandard"}  # that libtiff may be built without
_OTHER_CODECS = {
    32766: "NeXT",
    32771: "CCITT with word alignment",
    32809: "ThunderScan",
    32908: "Pixar film",
    32909: "Pixar log",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI log",
    34677: "SGI log of 24 bits",
    34712: "JPEG 2000",
    34887: "LERC",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# Tags that a decoder of pictures needs besides those of strips and tiles.
_DESCRIBING = frozenset(
    (
        *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, ROWS, PLANAR, EXTRA_SAMPLES),
        *(SAMPLE_FORMAT, JPEG_TABLES, INK_SET, YCBCR_COEFFICIENTS, SUBSAMPLING, REFERENCE),
    )
)
_BAND = 1 << 26  # bytes decompressed at a time
_REVERSED = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)


def not_read(what: str, remedy: str = "save it as gray or RGB of 8 or 16 bits") -> BadPicture:
    """The reason for an unsupported kind of TIFF, as opposed to damage."""
    return BadPicture(f"TIFF of a kind that is not read: {what}; {remedy}")


class Geometry(NamedTuple):
    """The geometry of a page's segments, which are strips or tiles."""

    width: int  # of the page, pixels
    height: int
    samples: int  # of a pixel
    bits: int  # of a sample
    planes: int  # 1: the samples of a pixel lie together; else that many, one for each sample
    tile_width: int
    tile_height: int

    @property
    def together(self) -> int:
        """The samples of a pixel within one segment."""
        return self.samples if self.planes == 1 else 1

    @property
    def across(self) -> int:
        """The number of segments in a row."""
        return -(-self.width // self.tile_width)

    @property
    def down(self) -> int:
        """The number of segments in a column."""
        return -(-self.height // self.tile_height)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row of a segment, padded to whole bytes."""
        return -(-self.tile_width * self.together * self.bits // 8)


def geometry(page: Page) -> Geometry:
    """The geometry of a page. Raises BadPicture if it is too large or inconsistent."""
    width, height = page.get(WIDTH, 0), page.get(HEIGHT, 0)
    samples, bits = page.get(SAMPLES, 1), page.get(BITS, 1)
    if page.get(DEPTH, 1) > 1:
        raise not_read("a volume in one page", "save its slices as pages or files")
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise BadPicture(f"no pixels: {width}x{height}")
    if not 0 < samples < 1 << 16 or len(set(page.tags.get(BITS, np.ones(1))[:samples].tolist())) > 1:
        raise not_read(f"{samples} samples a pixel of different depths")
    planes = samples if page.get(PLANAR, 1) == 2 else 1
    if page.tiled:
        tile = page.get(TILE_WIDTH, 0), page.get(TILE_HEIGHT, 0)
    else:
        tile = width, min(height, page.get(ROWS, height))
    if min(tile) < 1:
        raise BadPicture(f"damaged: strips or tiles of {tile[0]}x{tile[1]}")
    found = Geometry(width, height, samples, bits, planes, *tile)
    claimed = found.row_bytes * found.across * (found.down * found.tile_height if page.tiled else height) * planes
    if claimed > MAX_FILE_BYTES:
        raise BadPicture(f"too large: {width}x{height} with {samples} x {bits} bits is more than 1 GiB")
    return found


def check_codec(page: Page) -> None:
    """Raise BadPicture if the compression of a page is not supported."""
    codec = page.get(COMPRESSION, 1)
    if codec not in _BYTE_CODECS | _BIT_CODECS | _JPEG_CODECS:
        raise not_read(
            f"compression {codec} ({_OTHER_CODECS.get(codec, 'unknown')})", "save it without, or with LZW or deflate"
        )


def is_encoded_picture(page: Page) -> bool:
    """Whether the segments of a page are JPEG files."""
    return page.get(COMPRESSION, 1) in _JPEG_CODECS


def is_predicted(page: Page) -> bool:
    """Whether the predictor tag applies to the compression of a page."""
    return page.get(COMPRESSION, 1) in _PREDICTED_CODECS


def segments(tiff: Tiff, page: Page, lies: Geometry) -> NDArray[np.uint8]:
    """The decompressed segments of a page: bytes (planes, down, across, tile height, bytes of a row).

    The last strip may have padding rows of 0.
    """
    codec = page.get(COMPRESSION, 1)
    if codec in _BIT_CODECS and lies.bits * lies.together != 1:
        raise not_read(f"CCITT compression of {lies.together} x {lies.bits} bits")
    row = lies.row_bytes
    offsets, counts = _places(tiff, page, lies)
    total = lies.planes * lies.down * lies.across
    found = np.zeros((total, lies.tile_height, row), np.uint8)
    together = max(1, _BAND // (lies.tile_height * row))
    start = 0
    while start < total:
        # The last strip of a plane is short, and so ends a band.
        per_plane = lies.down * lies.across
        stop = min(start + together, (start // per_plane + 1) * per_plane)
        rows = (stop - start) * lies.tile_height
        if not page.tiled and stop % per_plane == 0:
            rows -= lies.down * lies.tile_height - lies.height
        band = found[start:stop].reshape(-1, row)[:rows]
        if codec == _STORED:
            _copy(tiff, page, band, offsets[start:stop], lies.tile_height)
        else:
            band[:] = _decompress(tiff, page, lies, rows, offsets[start:stop], counts[start:stop])
        start = stop
    return found.reshape(lies.planes, lies.down, lies.across, lies.tile_height, row)


def _places(tiff: Tiff, page: Page, lies: Geometry) -> tuple[list[int], list[int]]:
    """Offset and count of bytes of each segment."""
    tags = (TILE_OFFSETS, TILE_COUNTS) if page.tiled else (OFFSETS, COUNTS)
    if page.tiled and TILE_OFFSETS not in page.tags:
        tags = (OFFSETS, COUNTS)  # some writers use the tags of strips
    total = lies.planes * lies.down * lies.across
    none = np.zeros(0, np.int64)
    offsets, counts = (page.tags.get(tag, none)[:total].tolist() for tag in tags)
    if not counts and page.get(COMPRESSION, 1) == _STORED:
        counts = [lies.row_bytes * lies.tile_height] * total  # not used: what is stored is as long as its pixels
    if len(offsets) < total or len(counts) < total:
        raise BadPicture(f"damaged: {min(len(offsets), len(counts))} strips or tiles of {total}")
    if sum(counts) > 2 * tiff.size + (1 << 20) and page.get(COMPRESSION, 1) != _STORED:
        raise BadPicture("damaged: strips or tiles overlap")
    return offsets, counts


def _copy(tiff: Tiff, page: Page, band: NDArray[np.uint8], offsets: list[int], rows: int) -> None:
    for number, offset in enumerate(offsets):
        part = band[number * rows : (number + 1) * rows]
        part[:] = np.frombuffer(tiff.read(offset, part.size), np.uint8).reshape(part.shape)
    if page.get(FILL_ORDER, 1) == 2:
        band[:] = _REVERSED[band]


def _decompress(
    tiff: Tiff, page: Page, lies: Geometry, rows: int, offsets: list[int], counts: list[int]
) -> NDArray[np.uint8]:
    """Segments by libtiff, as the strips of a gray picture of bytes, or of bits; bytes (rows, bytes of a row)."""
    faxed = page.get(COMPRESSION, 1) in _BIT_CODECS
    width, bits = (lies.tile_width, 1) if faxed else (lies.row_bytes, 8)
    tags = {WIDTH: [width], HEIGHT: [rows], BITS: [bits], PHOTOMETRIC: [1], SAMPLES: [1], ROWS: [lies.tile_height]}
    for tag in (COMPRESSION, FILL_ORDER, T4_OPTIONS, T6_OPTIONS):
        if tag in page.tags:
            tags[tag] = page.tags[tag].tolist()
    data = [tiff.read(offset, count) for offset, count in zip(offsets, counts, strict=True)]
    with TiffImagePlugin.TiffImageFile(io.BytesIO(single(tags, data))) as image:
        try:
            image.load()
        except OSError as error:
            lacking = _OPTIONAL_CODECS.get(page.get(COMPRESSION, 1))
            hint = f", or Pillow is built without {lacking} here" if lacking else ""
            raise BadPicture(f"damaged: a strip or tile cannot be decompressed ({error}){hint}") from None
        found = np.asarray(image)
    return np.packbits(found, axis=1) if faxed else found


def encoded_picture(tiff: Tiff, page: Page, lies: Geometry) -> bytes:
    """A TIFF with this page alone, for a decoder of its segments."""
    offsets, counts = _places(tiff, page, lies)
    kept = _DESCRIBING
    tags = {tag: values.tolist() for tag, values in page.tags.items() if tag in kept}
    if page.tiled:
        tags |= {TILE_WIDTH: [lies.tile_width], TILE_HEIGHT: [lies.tile_height]}
    data = [tiff.read(offset, count) for offset, count in zip(offsets, counts, strict=True)]
    return single(tags, data, tiled=page.tiled)


def single(tags: dict[int, list[int]], data: list[bytes], tiled: bool = False) -> bytes:
    """A little-endian TIFF of one page, of some tags and its strips or tiles."""
    places = (TILE_OFFSETS, TILE_COUNTS) if tiled else (OFFSETS, COUNTS)
    starts = np.cumsum([8, *(len(segment) for segment in data)]).tolist()
    body = b"".join(data)
    tags = {**tags, places[0]: starts[:-1], places[1]: [len(segment) for segment in data]}
    entries, more = [], b""
    end = 8 + len(body)
    for tag, values in sorted(tags.items()):
        kind, code = {JPEG_TABLES: (7, "B"), **dict.fromkeys((YCBCR_COEFFICIENTS, REFERENCE), (RATIONAL, "I"))}.get(
            tag, (4, "I") if max(values, default=0) >= 1 << 16 or tag in LISTS else (3, "H")
        )
        packed = struct.pack(f"<{len(values)}{code}", *values)
        count = len(values) // (2 if kind == RATIONAL else 1)
        if len(packed) > 4:
            entries.append(struct.pack("<HHII", tag, kind, count, end + len(more)))
            more += packed + b"\0" * (len(packed) % 2)
        else:
            entries.append(struct.pack("<HHI4s", tag, kind, count, packed))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", end + len(more)) + body + more + directory

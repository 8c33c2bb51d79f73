"""Preparing PNG for Pillow: without metadata, which exceeds its limits, and with all 16 bits of colour.

Source: Portable Network Graphics (PNG) Specification, third edition (W3C, 2025).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.data.decoding.values import Samples
from calotype.data.records import BadPicture

START = b"\x89PNG\r\n\x1a\n"
"""The first bytes of every PNG."""

_PIXELS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"))
_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_MOST_TEXT = 1 << 20  # of one that may tell the orientation: Pillow's own limit


class Header(NamedTuple):
    """The content of the IHDR chunk."""

    width: int
    height: int
    depth: int
    colour_type: int  # 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA
    interlaced: bool


def read_header(data: bytes) -> Header:
    """The header of a PNG. Raises BadPicture if it has none."""
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise BadPicture("damaged: the PNG has no header")
    width, height, depth, colour_type, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    return Header(width, height, depth, colour_type, interlace == 1)


def has_metadata(data: bytes) -> bool:
    """Whether there may be chunks that `without_metadata` removes and that Pillow limits."""
    return any(kind in data for kind in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"))


def without_metadata(file: BinaryIO, pixels: bool) -> bytes:
    """A PNG without the chunks that do not affect its pixels; damaged parts are kept.

    Args:
        pixels: whether to include pixel data, or only what precedes it and the head of its first chunk.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    kept = [file.read(len(START))]
    for at, size, kind in _chunks(file, len(START), end):
        if kind in _PIXELS or _may_tell_orientation(file, kind, at, size):
            file.seek(at)
            if kind == b"IDAT" and not pixels:
                return b"".join([*kept, file.read(8)])
            kept.append(file.read(size + 12))
    return b"".join(kept)


def count_frames(file: BinaryIO, most: int) -> int:
    """The number of frames of an animation, and of a separate default image; up to a limit."""
    end = file.seek(0, os.SEEK_END)
    animated, frames, alone = False, 0, 0
    for _, _, kind in _chunks(file, len(START), end):
        if kind == b"acTL":
            animated = True
        elif kind == b"IDAT" and not frames:
            if not animated:
                return 1
            alone = 1
        elif kind == b"fcTL":
            frames += 1
            if frames >= most:
                break
    return max(1, min(most, frames + alone))


def _chunks(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Offset, content size and type of each chunk; the last may be truncated."""
    while at + 8 <= end:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        yield at, size, kind
        if kind == b"IEND":
            return
        at += size + 12


def _may_tell_orientation(file: BinaryIO, kind: bytes, at: int, size: int) -> bool:
    """Whether a metadata chunk may contain the orientation and is not too large."""
    if kind == b"eXIf":
        return size <= _MOST_TEXT
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or size > _MOST_TEXT:
        return False
    file.seek(at + 8)
    content = file.read(size)
    keyword = next((word for word in _ORIENTATION_TEXTS if content.startswith(word)), None)
    if keyword is None:
        return False
    if kind == b"zTXt":
        packed = content[len(keyword) + 1 :]
    elif kind == b"iTXt" and content[len(keyword) : len(keyword) + 1] == b"\1":
        packed = content[len(keyword) + 2 :].split(b"\0", 2)[-1]
    else:
        return True
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_TEXT)) < _MOST_TEXT
    except zlib.error:
        return False


def deep_samples(data: bytes, frame: int | None) -> Samples:
    """All 16 bits of the samples of a PNG: of colour Pillow gives the high byte unless another layout is set.

    Args:
        data: a file of depth 16, without metadata.
        frame: of an animation; only the first is supported.
    """
    header = read_header(data)
    if frame:
        raise BadPicture("a frame of an animation of 16 bits: not read; save the frames as single files")
    if header.colour_type == 4:  # gray and alpha, two bytes each, as if they were RGBA
        found = _loaded(data, "RGBA").astype(np.uint16)
        return Samples((found[:, :, :1] << 8) | found[:, :, 1:2], (found[:, :, 2] << 8) | found[:, :, 3])
    if header.colour_type == 0:
        values = _loaded(data, "I;16B")[:, :, None]
    else:
        mode = "RGBA" if header.colour_type == 6 else "RGB"
        high, low = (_loaded(data, f"{mode};16{first}") for first in "BL")  # the second takes the low byte for the high
        values = (high.astype(np.uint16) << 8) | low
    if header.colour_type == 6:
        return Samples(values[:, :, :3], values[:, :, 3])
    key = content(data, b"tRNS")
    if key is None:
        return Samples(values)
    alpha = np.where((values == np.frombuffer(key, ">u2")).all(axis=2), 0, 65535)
    return Samples(values, alpha.astype(np.uint16))


def _loaded(data: bytes, rawmode: str) -> NDArray[Any]:
    """The pixels of a PNG, loaded with a sample layout."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
        image.load()
        return np.asarray(image)


def content(data: bytes, wanted: bytes) -> bytes | None:
    """The content of the first chunk of a type; None if there is none."""
    for at, size, kind in _chunks(io.BytesIO(data), len(START), len(data)):
        if kind == wanted:
            return data[at + 8 : at + 8 + size]
    return None

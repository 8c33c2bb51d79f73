"""JPEG by simplejpeg: several times as fast as Pillow at the size of training pictures, and strict about damage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from calotype.data.records import BadPicture

START = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

# Complaints of the decoder about files whose pixels are nevertheless all there.
_HARMLESS = ("extraneous bytes", "Unknown Adobe color transform", "JFIF major revision")


class Header(NamedTuple):
    """Size as stored, before orientation, and whether there is colour."""

    width: int
    height: int
    colour: bool


def read_header(data: bytes) -> Header | None:
    """The header of a gray or YCbCr JPEG from its first bytes; None: it is another kind, or goes on beyond them.

    Other kinds are CMYK and YCCK: simplejpeg turns them into RGB without regard to whether the ink is inverted.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: the data ends within the header
        return None
    return Header(width, height, space == "YCbCr") if space in ("Gray", "YCbCr") else None


def decode_jpeg(data: bytes, header: Header, min_side: int = 0) -> NDArray[np.uint8] | None:
    """The pixels, uint8 (H, W, 1 or 3), as stored; None: Pillow should try.

    Args:
        data: the whole file.
        header: what `read_header` said of it.
        min_side: where not 0, decode at a half, a quarter or an eighth of the size, both sides keeping this many.

    Raises:
        BadPicture: damaged. A lenient decoder would give gray or shifted pixels behind the damage.
    """
    colorspace = "RGB" if header.colour else "GRAY"
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace, min_height=min_side, min_width=min_side)
    except ValueError as error:
        if any(text in str(error) for text in _HARMLESS):
            return None
        raise BadPicture(f"damaged: {error}") from None
    return pixels


def may_be_rotated(data: bytes) -> bool:
    """Whether there is EXIF or XMP that might tell an orientation."""
    return b"Exif\0" in data or b"tiff:Orientation" in data

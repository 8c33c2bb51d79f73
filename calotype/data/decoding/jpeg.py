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


# The markers that begin a frame: usual ones, and others by what is special about them.
_USUAL = (0xC0, 0xC1, 0xC2)
_SPECIAL = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic coding"),
    0xF7: "JPEG-LS",
}


class Header(NamedTuple):
    """Size as stored, before orientation, and whether there is colour."""

    width: int
    height: int
    colour: bool


def read_header(data: bytes) -> Header | None:
    """The header of a gray or YCbCr JPEG of 8 bits from its first bytes; None: another kind, or a longer header.

    Other kinds are CMYK and YCCK: simplejpeg turns them into RGB without regard to whether the ink is inverted.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: the data ends within the header
        return None
    if space not in ("Gray", "YCbCr") or _frame(data)[1] != 8:
        return None
    return Header(width, height, space == "YCbCr")


def kind_not_read(data: bytes) -> str | None:
    """The unsupported kind of a JPEG that cannot be decoded, as opposed to damage; None: a usual kind."""
    marker, bits = _frame(data)
    return _SPECIAL.get(marker) or (f"{bits} bits a sample" if bits != 8 else None)


def _frame(data: bytes) -> tuple[int, int]:
    """The marker of the frame, and the bits of a sample; without a marker those of the usual kind.

    Source: ITU-T T.81, B.2.2; of JPEG-LS, ITU-T T.87.
    """
    at = 2
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SPECIAL or marker in _USUAL:
            return marker, data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return _USUAL[0], 8


def decode_jpeg(data: bytes, header: Header, min_side: int = 0) -> NDArray[np.uint8] | None:
    """The pixels, uint8 (H, W, 1 or 3), as stored; None: left to Pillow.

    Args:
        data: the whole file.
        header: from `read_header`.
        min_side: where not 0, decode at a half, a quarter or an eighth of the size, both sides keeping this many.

    Raises:
        BadPicture: damaged. A lenient decoder would return gray or shifted pixels after the damage.
    """
    colorspace = "RGB" if header.colour else "GRAY"
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace, min_height=min_side, min_width=min_side)
    except ValueError as error:
        if any(text in str(error) for text in _HARMLESS) or kind_not_read(data):
            return None
        raise BadPicture(f"damaged: {error}") from None
    return pixels


def may_be_rotated(data: bytes) -> bool:
    """Whether EXIF or XMP may contain an orientation."""
    return b"Exif\0" in data or b"tiff:Orientation" in data

"""Use of Pillow: the permitted readers, the meaning of its errors, and the orientation of pictures."""

from __future__ import annotations

import re
import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from calotype.data.config import MAX_PIXELS
from calotype.data.decoding import jpeg, png
from calotype.data.decoding.formats import AVIF, HEAD_BYTES, format_of_bytes
from calotype.data.records import BadPicture

# Pillow's readers of raster images (that of JPEG reads MPO, too). The rest either run other programs (EPS) or hold no
# pictures of this kind.
_FORMATS = "JPEG PNG WEBP GIF TIFF BMP DIB AVIF JPEG2000 PPM TGA ICO ICNS QOI PCX SGI DDS PSD XBM XPM".split()

# What Pillow's decoders raise on damaged files: documented are OSError and SyntaxError, the rest are slips of its
# parsers that fuzzing brings out.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""To be given to `bad_picture`, which makes a reason of them."""

_ORIENTATION = 0x0112  # the EXIF tag
# What Pillow does not identify although it begins so, mostly of 16 bits or of a rare version.
_STARTS = {b"8BPS": "PSD", b"BM": "BMP", b"DDS ": "DDS", b"GIF8": "GIF", png.START: "PNG", jpeg.START: "JPEG"}
# What Pillow says of kinds that it does not read, where nothing need be damaged.
_NOT_SUPPORTED = re.compile(r"unsupported|not (yet )?supported|cannot decode|not implemented", re.IGNORECASE)


@cache
def formats() -> tuple[str, ...]:
    """The permitted formats that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def check_pixels(width: int, height: int) -> None:
    """Raise BadPicture for a picture without pixels, or with more than the limit."""
    if width < 1 or height < 1:
        raise BadPicture(f"no pixels: {width}x{height}")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"too large: {width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels")


def check_read(head: bytes) -> None:
    """Raise BadPicture if a file begins like an unsupported format."""
    format = format_of_bytes(head[:HEAD_BYTES])
    if format is not None and not (format is AVIF and "AVIF" in formats()):
        raise BadPicture(format.reason)


def bad_picture(error: BaseException, head: bytes) -> BadPicture:
    """A decoder's error as a reason."""
    if isinstance(error, BadPicture):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadPicture(f"too large: more than {MAX_PIXELS // 1_000_000} megapixels")
    if head.startswith(jpeg.START) and (kind := jpeg.kind_not_read(head)):
        return BadPicture(f"JPEG of a kind that is not read: {kind}; save it as JPEG of 8 bits, or as PNG or TIFF")
    if isinstance(error, UnidentifiedImageError):
        begun = next((name for start, name in _STARTS.items() if head.startswith(start)), None)
        if begun is None:
            return BadPicture("not a picture that can be read")
        return BadPicture(
            f"not a picture that can be read: it begins as {begun}, and is of a kind that is not read, or damaged; "
            "save it as PNG, JPEG or TIFF"
        )
    if isinstance(error, MemoryError):
        return BadPicture("too large: it does not fit in memory")
    if isinstance(error, NotImplementedError) or _NOT_SUPPORTED.search(str(error)):
        return BadPicture(f"a kind of picture that is not read: {error}; save it as PNG, JPEG or TIFF")
    return BadPicture(f"damaged: {str(error) or type(error).__name__}")


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a picture; 1: upright."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except DECODER_ERRORS:  # metadata that cannot be read says nothing about how the picture lies
        return 1


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Rotate and mirror pixels (H, W, C) by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels

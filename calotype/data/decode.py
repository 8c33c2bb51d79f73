"""Everything that people have as pictures -> uint8 (H, W, C).

The rules, where a format leaves a choice:

- Content decides what a file is, not its name. Of an animation the first frame is taken. EXIF orientation is applied.
- Palette, CMYK, Lab and YCbCr become RGB; a palette or a key colour with transparency becomes RGBA; gray with alpha
  becomes RGBA. Colour profiles are not applied.
- 16-bit gray, 32-bit integers and floats are scaled: byte = round(255 (v - low) / (high - low)), by default with
  0:65535 for integers and 0:1 for floats. A value outside the range makes the picture a bad one: clipping would
  destroy it, and nobody would know.
- Of 16-bit *colour* files Pillow keeps the high byte, which differs from the rule above by at most one level.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from calotype.data import jpeg
from calotype.data.config import MAX_PIXELS, ValueRange
from calotype.data.records import MAX_FILE_BYTES, BadPicture, Facts, Loaded, Values

# Pillow's readers of raster images (that of JPEG reads MPO, too). The rest either run other programs (EPS) or hold no
# pictures of this kind.
_FORMATS = "JPEG PNG WEBP GIF TIFF BMP DIB AVIF JPEG2000 PPM TGA ICO ICNS QOI PCX SGI DDS PSD XBM XPM".split()

# What Pillow's decoders raise on damaged files: documented are OSError and SyntaxError, the rest are slips of its
# parsers that fuzzing brings out.
_DECODER_ERRORS = (
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

_INTEGERS = ValueRange(0, 65535)
_FLOATS = ValueRange(0, 1)
_ORIENTATION = 0x0112  # the EXIF tag
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # the chunk IHDR comes first, and has 13 bytes
_PNG_HEADER = 33  # bytes up to the end of IHDR
_HEADER_BYTES = 1 << 16  # holds the header of nearly every picture; where it does not, Pillow reads on


class Decoded(NamedTuple):
    """A picture as bytes, uint8 (H, W, C) with C 1, 3 or 4, and its values before scaling where it was scaled."""

    pixels: NDArray[np.uint8]
    values: Values | None = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings from the user: about large pictures, which have a limit here, and about metadata.

    To be entered by the calling thread around its worker threads, since filters belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_facts(file: BinaryIO) -> Facts:
    """What the header of an encoded picture tells.

    Raises:
        BadPicture: it is no picture, or is too large.
    """
    head = file.read(_HEADER_BYTES)
    if not head:
        raise BadPicture("empty file")
    facts = _plain_facts(head)
    if facts is not None:
        _check_pixels(facts.width, facts.height)
        return facts
    file.seek(0)
    try:
        with Image.open(file, formats=_formats()) as image:
            _check_pixels(*image.size)
            return _image_facts(image)
    except _DECODER_ERRORS as error:
        raise _bad(error) from None


def array_facts(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Facts:
    """What the shape (H, W) or (H, W, C) and the dtype of an array tell."""
    channels = shape[2] if len(shape) == 3 else 1
    return Facts(
        format="array",
        mode=f"{dtype} x {channels}",
        width=shape[1],
        height=shape[0],
        colour=channels >= 3,
        alpha=None if channels == 4 else False,
        deep=dtype.kind in "uif" and dtype != np.uint8,
    )


def decode(loaded: Loaded, value_range: ValueRange | None = None, min_side: int = 0) -> Decoded:
    """Decode a picture as its source has it.

    Args:
        loaded: an encoded file, which is closed, or an array.
        value_range: for 16-bit and float pictures; None: 0:65535 for integers and 0:1 for floats.
        min_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, which is the mean of its
            pixels, as long as both sides keep this many; 0: at its own size.

    Raises:
        BadPicture: it cannot be used; says why.
    """
    if isinstance(loaded.content, np.ndarray):
        return decode_array(loaded.content, value_range)
    with loaded.content as file:
        data = file.read(MAX_FILE_BYTES + 1)
    return decode_bytes(data, value_range, min_side)


def decode_bytes(data: bytes, value_range: ValueRange | None = None, min_side: int = 0) -> Decoded:
    """Decode an encoded picture; arguments and errors as of `decode`."""
    if not data:
        raise BadPicture("empty file")
    if len(data) > MAX_FILE_BYTES:
        raise BadPicture(f"too large: more than {MAX_FILE_BYTES >> 20} MiB in one file")
    if data.startswith(jpeg.START):
        pixels = _decode_jpeg(data, min_side)
        if pixels is not None:
            return Decoded(pixels)
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _check_pixels(*image.size)
            image.load()
            orientation = _orientation(image)
            decoded = _image_pixels(image, value_range)
    except _DECODER_ERRORS as error:
        raise _bad(error) from None
    return Decoded(_upright(decoded.pixels, orientation), decoded.values)


def decode_array(array: NDArray[Any], value_range: ValueRange | None = None) -> Decoded:
    """Turn values (H, W) or (H, W, C) into bytes: bool is 0 or 255, uint8 is kept, the rest is scaled."""
    if array.ndim == 2:
        array = array[:, :, None]
    _check_pixels(array.shape[1], array.shape[0])
    if array.dtype == np.uint8:
        return Decoded(array)
    if array.dtype == np.bool_:
        return Decoded(array * np.uint8(255))
    if array.dtype.kind == "f" or array.dtype == np.uint16 or (array.dtype.kind in "iu" and value_range):
        return _scale(array, value_range)
    raise BadPicture(
        f"values of type {array.dtype}: no scale from them to bytes is obvious, so save uint8, or pass --range LO:HI"
    )


def has_transparency(decoded: Decoded) -> bool:
    """Whether any pixel is less than opaque."""
    return decoded.pixels.shape[2] == 4 and bool((decoded.pixels[:, :, 3] < 255).any())


def suggest_range(values: Values) -> str:
    """The usual range "LO:HI" that holds these values: that of a bit depth, 0:1, -1:1, or else their own."""
    low, high, integer = values
    if low >= 0:
        usual = [255, 1023, 4095, 16383, 65535] if integer else [1, 255, 65535]
        top = next((top for top in usual if high <= top), math.ceil(high))
        return f"0:{top}"
    if low >= -1 and high <= 1:
        return "-1:1"
    return f"{math.floor(low)}:{math.ceil(high)}"


@cache
def _formats() -> tuple[str, ...]:
    """The formats to try that this build of Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadPicture(f"no pixels: {width}x{height}")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"too large: {width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels")


def _bad(error: BaseException) -> BadPicture:
    """A decoder's error as a reason."""
    if isinstance(error, BadPicture):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadPicture(f"too large: more than {MAX_PIXELS // 1_000_000} megapixels")
    if isinstance(error, UnidentifiedImageError):
        return BadPicture("not a picture that can be read")
    if isinstance(error, MemoryError):
        return BadPicture("too large: it does not fit in memory")
    return BadPicture(f"damaged: {str(error) or type(error).__name__}")


def _plain_facts(head: bytes) -> Facts | None:
    """The facts of the most common kinds, gray or colour in 8 bits and upright, at a tenth of what Pillow takes."""
    if b"Exif\0" in head or b"eXIf" in head or b"tiff:Orientation" in head:
        return None
    if head.startswith(jpeg.START):
        header = jpeg.read_header(head)
        if header is not None:
            mode = "RGB" if header.colour else "L"
            return Facts("JPEG", mode, header.width, header.height, header.colour, alpha=False, deep=False)
    if head.startswith(_PNG_START) and b"IDAT" in head[_PNG_HEADER:] and b"tRNS" not in head:
        width, height, depth, colour_type = struct.unpack_from(">IIBB", head, len(_PNG_START))
        if depth == 8 and colour_type in (0, 2):
            return Facts(
                "PNG", "RGB" if colour_type else "L", width, height, bool(colour_type), alpha=False, deep=False
            )
    return None


def _decode_jpeg(data: bytes, min_side: int) -> NDArray[np.uint8] | None:
    """The upright pixels of a JPEG of the common kinds; None: Pillow should try."""
    header = jpeg.read_header(data)
    if header is None:
        return None
    _check_pixels(header.width, header.height)
    pixels = jpeg.decode_jpeg(data, header, min_side)
    if pixels is None or not jpeg.may_be_rotated(data):
        return pixels
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return _upright(pixels, _orientation(image))


def _image_facts(image: Image.Image) -> Facts:
    width, height = image.size
    if _orientation(image) >= 5 and image.format != "TIFF":  # of TIFF, Pillow itself gives the size upright
        width, height = height, width
    palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    gray_palette = palette is not None and palette[0::3] == palette[1::3] == palette[2::3]
    return Facts(
        format=image.format or "",
        mode=image.mode,
        width=width,
        height=height,
        colour=not (image.mode[:1] in "1LIF" and image.mode != "LAB") and not gray_palette,
        alpha=None if _has_alpha(image) else False,
        deep=image.mode[:1] in "IF",
    )


def _has_alpha(image: Image.Image) -> bool:
    return image.mode[:1] not in "IF" and bool(image.has_transparency_data)


def _image_pixels(image: Image.Image, value_range: ValueRange | None) -> Decoded:
    if image.mode[:1] in "IF":  # I;16, I;16B, I, F
        return _scale(np.asarray(image)[:, :, None], value_range)
    if _has_alpha(image):
        return Decoded(np.asarray(image.convert("RGBA")))
    if image.mode in ("1", "L"):
        return Decoded(np.asarray(image.convert("L"))[:, :, None])
    return Decoded(np.asarray(image.convert("RGB")))


def _scale(values: NDArray[Any], value_range: ValueRange | None) -> Decoded:
    """Scale values (H, W, C) to bytes by the stated range, or by that of their type."""
    integer = values.dtype.kind != "f"
    low, high = value_range or (_INTEGERS if integer else _FLOATS)
    found = Values(float(values.min()), float(values.max()), integer)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        raise BadPicture("values not finite: there are NaN or infinite values")
    if found.low < low or found.high > high:
        raise BadPicture(
            f"values out of range: {found.low:g} to {found.high:g} is not within {ValueRange(low, high)}; "
            f"pass --range {suggest_range(found)}",
            found,
        )
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return Decoded(np.rint(scaled).astype(np.uint8), found)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODER_ERRORS:  # metadata that cannot be read says nothing about how the picture lies
        return 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels (H, W, C) the way EXIF says they are to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels

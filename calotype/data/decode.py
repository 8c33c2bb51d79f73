"""Decoding: pictures of all supported formats -> uint8 (H, W, C).

The rules, where a format leaves a choice:

- The content of a file determines its format, not its name. Of several pages or frames one is taken, by default the
  first. The orientation of EXIF and TIFF is applied.
- Palette, CMYK, Lab and YCbCr become RGB; a palette or a key colour with transparency becomes RGBA; gray with alpha
  becomes RGBA. Colour profiles are not applied.
- More than 8 bits, gray or colour, and floats are scaled: byte = round(255 (v - low) / (high - low)), by default with
  0:65535 for integers and 0:1 for floats. A picture with a value outside the range is rejected: clipping would destroy
  it without notice.
- A picture that cannot be decoded faithfully is rejected, with a reason that names its format rather than damage.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.data.config import ValueRange
from calotype.data.decoding import jpeg, png, tiff_pixels
from calotype.data.decoding.animation import count_frames
from calotype.data.decoding.corrections import corrected
from calotype.data.decoding.formats import HEAD_BYTES, TIFF_STARTS
from calotype.data.decoding.pillow import (
    DECODER_ERRORS,
    bad_picture,
    check_pixels,
    check_read,
    formats,
    orientation_of,
    upright,
)
from calotype.data.decoding.tiff import ORIENTATION, Tiff
from calotype.data.decoding.values import Decoded, Samples, no_usual_range, to_bytes
from calotype.data.records import MAX_FILE_BYTES, BadPicture, Facts, Loaded

_PNG_HEADER = 33  # bytes up to the end of IHDR
_HEADER_BYTES = 1 << 16  # holds the header of nearly every picture; where it does not, Pillow reads on


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings about large pictures, which have a limit here, and about metadata.

    The calling thread has to enter it around its worker threads, since filters apply to the whole process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_facts(file: BinaryIO, page: int | None = None) -> Facts:
    """The facts in the header of an encoded picture.

    Args:
        file: an encoded picture, left open.
        page: a name from `pages`; None: the first page.

    Raises:
        BadPicture: it is not a picture, is too large, or of an unsupported kind.
    """
    head = file.read(_HEADER_BYTES)
    if not head:
        raise BadPicture("empty file")
    facts = _plain_facts(head)
    try:
        if facts is None:
            facts = _tiff_facts(file, page) if head.startswith(TIFF_STARTS) else _pillow_facts(file, head, page)
    except DECODER_ERRORS as error:
        raise bad_picture(error, head) from None
    check_pixels(facts.width, facts.height)
    return facts


def pages(file: BinaryIO) -> list[int]:
    """The names of the pages or frames of an encoded picture, for `Loaded.page`; raises as `read_facts`."""
    head = file.read(_HEADER_BYTES)
    if not head:
        raise BadPicture("empty file")
    try:
        if head.startswith(TIFF_STARTS):
            check_read(head)
            return Tiff(file).pages()
        return list(range(count_frames(file, head)))
    except DECODER_ERRORS as error:
        raise bad_picture(error, head) from None


def array_facts(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Facts:
    """The facts from the shape (H, W) or (H, W, C) and the dtype of an array."""
    channels = shape[2] if len(shape) == 3 else 1
    return Facts(
        format="array",
        mode=f"{dtype.newbyteorder('=')} x {channels}",
        width=shape[1],
        height=shape[0],
        colour=channels >= 3,
        alpha=None if channels == 4 else False,
        deep=dtype.kind in "uif" and dtype != np.uint8,
    )


def decode(loaded: Loaded, value_range: ValueRange | None = None, min_side: int = 0) -> Decoded:
    """Decode a loaded picture.

    Args:
        loaded: an encoded file, which is closed, or an array.
        value_range: for 16-bit and float pictures; None: 0:65535 for integers and 0:1 for floats.
        min_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, by averaging, as long as
            both sides keep this many pixels; 0: at full size.

    Raises:
        BadPicture: it cannot be used; the message has the reason.
    """
    if isinstance(loaded.content, np.ndarray):
        return decode_array(loaded.content, value_range)
    with loaded.content as file:
        head = file.read(HEAD_BYTES)
        if head.startswith(TIFF_STARTS):  # of which only the pixels of one page are read
            return _decode_tiff(file, head, value_range, loaded.page)
        data = head + file.read(MAX_FILE_BYTES + 1 - len(head))
    return decode_bytes(data, value_range, min_side, loaded.page)


def decode_bytes(
    data: bytes, value_range: ValueRange | None = None, min_side: int = 0, page: int | None = None
) -> Decoded:
    """Decode an encoded picture; arguments and errors as of `decode`, and `page` as of `read_facts`."""
    if not data:
        raise BadPicture("empty file")
    if len(data) > MAX_FILE_BYTES:
        raise BadPicture(f"too large: more than {MAX_FILE_BYTES >> 20} MiB in one file")
    if data.startswith(TIFF_STARTS):
        return _decode_tiff(io.BytesIO(data), data, value_range, page)
    if data.startswith(jpeg.START):
        pixels = _decode_jpeg(data, min_side)
        if pixels is not None:
            return Decoded(pixels)
    try:
        if not data.startswith(png.START):
            check_read(data)
        elif png.has_metadata(data):
            data = png.without_metadata(io.BytesIO(data), pixels=True)
        image = _frame(data, page) if page else Image.open(io.BytesIO(data), formats=formats())
        check_pixels(*image.size)
        image.load()
        orientation = orientation_of(image)
        if image.format == "PNG":
            decoded = _png_pixels(image, data, value_range, page)
        else:
            decoded = _any_pixels(corrected(image, data), value_range)
    except DECODER_ERRORS as error:
        raise bad_picture(error, data) from None
    return Decoded(upright(decoded.pixels, orientation), decoded.values)


class _Cursor(threading.local):
    """The open animation of a thread: a frame is composited over its predecessors."""

    data = b""
    image: Image.Image


_cursor = _Cursor()


def _frame(data: bytes, number: int) -> Image.Image:
    """A frame of an animation after the first, composited over its predecessors."""
    if _cursor.data != data or _cursor.image.tell() > number:
        _cursor.image = Image.open(io.BytesIO(data), formats=formats())
        check_pixels(*_cursor.image.size)
        _cursor.data = data
    try:
        _cursor.image.seek(number)
    except DECODER_ERRORS:
        _cursor.data = b""
        raise
    return _cursor.image


def _decode_tiff(file: BinaryIO, head: bytes, value_range: ValueRange | None, page: int | None) -> Decoded:
    try:
        check_read(head)
        tiff, found = tiff_pixels.open_page(file, page)
        check_pixels(found.lies.width, found.lies.height)
        decoded = _any_pixels(tiff_pixels.samples(tiff, found), value_range)
    except DECODER_ERRORS as error:
        raise bad_picture(error, head) from None
    return Decoded(upright(decoded.pixels, found.page.get(ORIENTATION, 1)), decoded.values)


def decode_array(array: NDArray[Any], value_range: ValueRange | None = None) -> Decoded:
    """Turn values (H, W) or (H, W, C) into bytes: bool is 0 or 255, uint8 is kept, the rest is scaled."""
    if array.ndim == 2:
        array = array[:, :, None]
    check_pixels(array.shape[1], array.shape[0])
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.uint8:
        return Decoded(array)
    if array.dtype == np.bool_:
        return Decoded(array * np.uint8(255))
    if array.dtype.kind not in "iuf":
        raise BadPicture(f"values of type {array.dtype}: pictures are integers, floats or bools; save them as such")
    if array.dtype.kind == "f" or array.dtype == np.uint16 or value_range:
        return to_bytes(Samples(array), value_range)
    raise no_usual_range(array.dtype)


def has_transparency(decoded: Decoded) -> bool:
    """Whether any pixel is not opaque."""
    return decoded.pixels.shape[2] == 4 and bool((decoded.pixels[:, :, 3] < 255).any())


def _plain_facts(head: bytes) -> Facts | None:
    """The facts of the common kinds, upright 8-bit gray or colour, in a tenth of Pillow's time."""
    if b"Exif\0" in head or b"eXIf" in head or b"tiff:Orientation" in head:
        return None
    if head.startswith(jpeg.START):
        header = jpeg.read_header(head)
        if header is not None:
            mode = "RGB" if header.colour else "L"
            return Facts("JPEG", mode, header.width, header.height, header.colour, alpha=False, deep=False)
    if head.startswith(png.START) and b"IDAT" in head[_PNG_HEADER:] and not any(x in head for x in (b"tRNS", b"acTL")):
        width, height, depth, colour_type, _ = png.read_header(head)
        if depth == 8 and colour_type in (0, 2):
            colour = colour_type == 2
            return Facts("PNG", "RGB" if colour else "L", width, height, colour, alpha=False, deep=False)
    return None


def _decode_jpeg(data: bytes, min_side: int) -> NDArray[np.uint8] | None:
    """The upright pixels of a JPEG of the common kinds; None: left to Pillow."""
    header = jpeg.read_header(data)
    if header is None:
        return None
    check_pixels(header.width, header.height)
    pixels = jpeg.decode_jpeg(data, header, min_side)
    if pixels is None or not jpeg.may_be_rotated(data):
        return pixels
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return upright(pixels, orientation_of(image))


def _tiff_facts(file: BinaryIO, page: int | None) -> Facts:
    file.seek(0)
    check_read(file.read(HEAD_BYTES))
    tiff = Tiff(file)
    found = tiff.pages() if page is None else [page]
    return tiff_pixels.facts(tiff, found[0], len(found))


def _pillow_facts(file: BinaryIO, head: bytes, page: int | None) -> Facts:
    check_read(head)
    if head.startswith(png.START):
        facts = _png_facts(png.without_metadata(file, pixels=False))
    else:
        file.seek(0)
        with Image.open(file, formats=formats()) as image:
            check_pixels(*image.size)
            palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
            facts = _image_facts(image, palette)
    if page is not None:  # what earlier frames leave behind may be transparent
        return facts._replace(alpha=None)
    return facts._replace(pages=count_frames(file, head))


def _png_facts(data: bytes) -> Facts:
    header = png.read_header(data)
    check_pixels(header.width, header.height)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        palette = png.content(data, b"PLTE") if header.colour_type == 3 else None
        facts = _image_facts(image, palette)
    alpha = None if header.colour_type in (4, 6) or png.content(data, b"tRNS") is not None else False
    return facts._replace(alpha=alpha, deep=header.depth == 16, colour=facts.colour and header.colour_type != 4)


def _image_facts(image: Image.Image, palette: Sequence[int] | None) -> Facts:
    width, height = image.size
    if orientation_of(image) >= 5:
        width, height = height, width
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


def _png_pixels(image: Image.Image, data: bytes, value_range: ValueRange | None, page: int | None) -> Decoded:
    header = png.read_header(data)
    if header.depth == 16:
        return to_bytes(png.deep_samples(data, page), value_range)
    key = image.info.get("transparency")
    if header.colour_type == 0 and header.depth in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << header.depth) - 1)  # Pillow scales pixels, and not the key
    return _image_pixels(image, value_range)


def _any_pixels(found: Image.Image | Samples, value_range: ValueRange | None) -> Decoded:
    return _image_pixels(found, value_range) if isinstance(found, Image.Image) else to_bytes(found, value_range)


def _image_pixels(image: Image.Image, value_range: ValueRange | None) -> Decoded:
    if image.mode[:1] in "IF":  # I;16, I;16B, I, F
        return to_bytes(Samples(np.asarray(image)[:, :, None]), value_range)
    if _has_alpha(image):
        return Decoded(np.asarray(image.convert("RGBA")))
    if image.mode in ("1", "L"):
        return Decoded(np.asarray(image.convert("L"))[:, :, None])
    return Decoded(np.asarray(image.convert("RGB")))

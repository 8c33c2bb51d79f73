"""The interpretation of TIFF samples: depth, byte order, predictor, palette, inks, planes and alpha."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.data.decoding.tiff import (
    COLORMAP,
    EXTRA_SAMPLES,
    INK_SET,
    ORIENTATION,
    PHOTOMETRIC,
    PREDICTOR,
    REFERENCE,
    SAMPLE_FORMAT,
    SUBSAMPLING,
    YCBCR_COEFFICIENTS,
    Page,
    Tiff,
)
from calotype.data.decoding.tiff_strips import (
    Geometry,
    check_codec,
    encoded_picture,
    geometry,
    is_encoded_picture,
    is_predicted,
    not_read,
    segments,
)
from calotype.data.decoding.values import Samples
from calotype.data.records import BadPicture, Facts

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _INKS: 4, _YCBCR: 3, _LAB: 3}  # samples
_NAMES = {_PALETTE: "P", _INKS: "CMYK", _YCBCR: "YCbCr", _LAB: "LAB"}
_TYPES = {  # by sample format and bits
    **{(1, bits): f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{(2, bits): f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{(3, bits): f"f{bits // 8}" for bits in (16, 32, 64)},
}
_PACKED = range(1, 16)  # bits of unsigned samples that share bytes
_UNPACKED_AT_A_TIME = 1 << 22
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of extra samples; others have no meaning for a picture
_ALPHA_OF_COREL = 999
_BT_601 = (299, 1000, 587, 1000, 114, 1000)


class Layout(NamedTuple):
    """The checked layout of a page's samples."""

    page: Page
    lies: Geometry
    photometric: int
    dtype: np.dtype[Any]  # of a sample once unpacked
    alpha: int | None  # which sample is alpha
    premultiplied: bool

    @property
    def deep(self) -> bool:
        """Whether the value range applies."""
        return self.dtype != np.uint8 and self.photometric != _PALETTE


def layout(tiff: Tiff, offset: int) -> Layout:
    """The layout of the page at an offset. Raises BadPicture, naming the kind, if it is not supported."""
    page = tiff.page(offset)
    check_codec(page)
    lies = geometry(page)
    photometric = page.get(PHOTOMETRIC, _WHITE_IS_ZERO)
    if photometric not in _COLOURS:
        raise not_read(f"photometric interpretation {photometric}")
    alpha, premultiplied = _alpha(page, photometric, lies.samples)
    return Layout(page, lies, photometric, _dtype(page, photometric, lies), alpha, premultiplied)


def _alpha(page: Page, photometric: int, samples: int) -> tuple[int | None, bool]:
    """The index of the alpha sample, and whether colour is premultiplied."""
    colours = _COLOURS[photometric]
    if samples < colours:
        raise BadPicture(f"damaged: {samples} samples a pixel, where there must be {colours}")
    extra = page.tags.get(EXTRA_SAMPLES, np.zeros(0, np.int64)).tolist()[-(samples - colours) or samples :]
    if not extra and photometric == _RGB and samples == 4:
        return 3, False  # older writers do not say it
    known = [kind for kind in extra if kind in (_ASSOCIATED, _UNASSOCIATED, _ALPHA_OF_COREL)]
    if known:
        return colours + extra.index(known[0]), known[0] == _ASSOCIATED
    if samples > colours and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        raise not_read(
            f"{samples} channels that are neither colours nor alpha", "save the one that is the picture, or RGB"
        )
    return None, False


def _dtype(page: Page, photometric: int, lies: Geometry) -> np.dtype[Any]:
    kinds = set(page.tags.get(SAMPLE_FORMAT, np.ones(1)).tolist())
    kind = 1 if kinds == {4} else int(min(kinds))  # 4: undefined
    bits = lies.bits
    if kind == 1 and bits in _PACKED and bits != 8:
        found = np.dtype(np.uint8 if bits < 8 else np.uint16)
    elif len(kinds) == 1 and (kind, bits) in _TYPES:
        found = np.dtype(_TYPES[kind, bits])
    else:
        what = {1: "unsigned integers", 2: "signed integers", 3: "floats"}.get(kind, "complex or mixed numbers")
        raise not_read(f"samples that are {what} of {bits} bits")
    allowed = {
        _PALETTE: found.kind == "u" and bits <= 16,
        _INKS: bits in (8, 16) and kind == 1 and page.get(INK_SET, 1) == 1,
        _YCBCR: bits == 8 and kind == 1,
        _LAB: bits == 8 and lies.samples == 3,
    }
    if not allowed.get(photometric, True):
        raise not_read(f"{_NAMES[photometric]} of {bits} bits a sample, or with other inks")
    return np.dtype(np.uint8) if photometric == _LAB else found


def facts(tiff: Tiff, offset: int, pages: int) -> Facts:
    """The facts in the directory of a page."""
    page, lies, photometric, dtype, alpha, _ = found = layout(tiff, offset)
    width, height = lies.width, lies.height
    if page.get(ORIENTATION, 1) in range(5, 9):
        width, height = height, width
    gray = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    name = _NAMES.get(photometric, ("L" if gray else "RGB") + ("A" if alpha is not None else ""))
    if found.deep and photometric not in _NAMES:
        name = f"{dtype} x {_COLOURS[photometric] + (alpha is not None)}"
    if lies.bits == 1 and gray:
        name = "1"
    colour = _has_colour(page) if photometric == _PALETTE else not gray
    return Facts("TIFF", name, width, height, colour, None if alpha is not None else False, found.deep, pages)


def _has_colour(page: Page) -> bool:
    palette = page.tags.get(COLORMAP, np.zeros(0, np.int64))
    third = len(palette) // 3
    red, green, blue = palette[:third], palette[third : 2 * third], palette[2 * third : 3 * third]
    return not (np.array_equal(red, green) and np.array_equal(green, blue))


def samples(tiff: Tiff, found: Layout) -> Samples | Image.Image:
    """The samples of a page as stored, before its orientation; for JPEG a Pillow image."""
    page, lies, photometric, _, alpha, premultiplied = found
    if is_encoded_picture(page):
        return _encoded(tiff, found)
    if photometric == _YCBCR:
        _check_ycbcr(page)
    stored = _values(tiff, found)
    values = _stretched(stored, lies.bits) if lies.bits < 16 and lies.bits != 8 else stored
    colour = values[:, :, : _COLOURS[photometric]]
    opacity = None if alpha is None else values[:, :, alpha]
    if photometric == _PALETTE:
        return Samples(_looked_up(page, stored[:, :, 0], lies.bits), _as_byte(opacity))
    if photometric in (_INKS, _YCBCR, _LAB):
        return Samples(_converted(colour, photometric), _as_byte(opacity))
    return Samples(colour, opacity, premultiplied, photometric == _WHITE_IS_ZERO)


def _encoded(tiff: Tiff, found: Layout) -> Image.Image:
    """A page with JPEG segments, whose colour space is that of JPEG."""
    if found.dtype != np.uint8 or found.lies.bits != 8 or found.photometric in (_PALETTE, _LAB):
        raise not_read("JPEG compression of other than 8-bit gray, RGB, YCbCr or CMYK")
    image = Image.open(io.BytesIO(encoded_picture(tiff, found.page, found.lies)), formats=("TIFF",))
    image.load()
    return image


def _check_ycbcr(page: Page) -> None:
    """Raise BadPicture for YCbCr other than that of JPEG without subsampling."""
    subsampling = page.tags.get(SUBSAMPLING, np.full(2, 2)).tolist()
    reference = page.tags.get(REFERENCE, np.zeros(0, np.int64)).tolist()
    coefficients = page.tags.get(YCBCR_COEFFICIENTS, np.array(_BT_601)).tolist()
    whole = [a / b if b else 0.0 for a, b in zip(reference[::2], reference[1::2], strict=True)]
    plain = [a / b if b else 0.0 for a, b in zip(coefficients[::2], coefficients[1::2], strict=True)]
    near = len(plain) == 3 and np.allclose(plain, [0.299, 0.587, 0.114], atol=1e-3)
    if subsampling != [1, 1] or (whole and whole != [0, 255, 128, 255, 128, 255]) or not near:
        raise not_read("YCbCr with fewer samples of colour, or of video levels, outside JPEG", "save it as RGB")


def _values(tiff: Tiff, found: Layout) -> NDArray[Any]:
    """The samples (H, W, samples), in the byte order of this machine."""
    page, lies, _, dtype, *_ = found
    raw = segments(tiff, page, lies)  # (planes, down, across, tile height, row bytes)
    predictor = page.get(PREDICTOR, 1) if is_predicted(page) else 1
    if predictor not in (1, 2, 3) or (predictor == 2 and lies.bits % 8) or (predictor == 3 and dtype.kind != "f"):
        raise not_read(f"predictor {predictor} for samples of {lies.bits} bits")
    shape = (*raw.shape[:-1], lies.tile_width, lies.together)
    if lies.bits % 8:
        values: NDArray[Any] = _unpacked(raw, lies, dtype).reshape(shape)
    elif predictor == 3:
        values = _float_predicted(raw.reshape(-1, lies.row_bytes), dtype, lies.together).reshape(shape)
    else:
        stored = dtype.newbyteorder(tiff.order)
        values = raw.reshape(-1).view(stored).astype(dtype, copy=False).reshape(shape)
    if predictor == 2:
        unsigned = values.view(f"u{dtype.itemsize}")
        np.cumsum(unsigned, axis=-2, dtype=unsigned.dtype, out=unsigned)
    # (planes, down, across, h, w, together) -> (down, h, across, w, planes, together)
    values = values.transpose(1, 3, 2, 4, 0, 5)
    rows, columns = lies.down * lies.tile_height, lies.across * lies.tile_width
    return values.reshape(rows, columns, -1)[: lies.height, : lies.width]


def _unpacked(raw: NDArray[np.uint8], lies: Geometry, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Unpack samples of less than a byte, the highest bit first."""
    each = lies.tile_width * lies.together
    rows = raw.reshape(-1, lies.row_bytes)
    found = np.empty((len(rows), each), dtype)
    weights = (1 << np.arange(lies.bits - 1, -1, -1)).astype(dtype)
    step = max(1, _UNPACKED_AT_A_TIME // each)
    for start in range(0, len(rows), step):
        bits = np.unpackbits(rows[start : start + step], axis=1)[:, : each * lies.bits]
        found[start : start + step] = bits.reshape(-1, each, lies.bits) @ weights
    return found


def _float_predicted(rows: NDArray[np.uint8], dtype: np.dtype[Any], together: int) -> NDArray[Any]:
    """Floats whose bytes were split by significance, the highest first, and differenced along the row.

    Source: Adobe Photoshop TIFF Technical Note 3 (2005).
    """
    differences = rows.reshape(len(rows), -1, together)
    planes = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(len(rows), dtype.itemsize, -1)
    whole = np.ascontiguousarray(planes.transpose(0, 2, 1))  # (rows, samples, bytes), big endian
    return whole.view(dtype.newbyteorder(">")).astype(dtype)


def _stretched(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Samples of fewer bits at the scale of 8, or of more than 8 at that of 16."""
    top = 255 if bits < 8 else 65535
    table = np.rint(np.arange(1 << bits) * (top / ((1 << bits) - 1))).astype(values.dtype)
    return np.asarray(table[values])


def _as_byte(alpha: NDArray[Any] | None) -> NDArray[Any] | None:
    return alpha if alpha is None or alpha.dtype == np.uint8 else np.rint(alpha / 257).astype(np.uint8)


def _looked_up(page: Page, indices: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The colours of a palette, which has 16 bits: writers scale theirs by 256 or by 257, so the high byte is right."""
    palette = page.tags.get(COLORMAP, np.zeros(0, np.int64))
    if len(palette) < 3 << bits:
        raise BadPicture("damaged: the palette is too short")
    colours: NDArray[Any] = palette[: 3 << bits].astype(np.uint16)
    if colours.max() >= 256:  # else of 8 bits, as some writers have it
        colours = colours >> 8
    return colours.astype(np.uint8).reshape(3, -1).T[indices]


def _converted(values: NDArray[Any], photometric: int) -> NDArray[np.uint8]:
    """Inks, YCbCr and L*a*b* as RGB, by Pillow."""
    if values.dtype == np.uint16:
        values = np.rint(values / 257).astype(np.uint8)
    image = Image.frombytes(_NAMES[photometric], values.shape[1::-1], np.ascontiguousarray(values).tobytes())
    return np.asarray(image.convert("RGB"))


def open_page(file: BinaryIO, offset: int | None) -> tuple[Tiff, Layout]:
    """A page of a TIFF file; without an offset, the first. Raises BadPicture."""
    tiff = Tiff(file)
    return tiff, layout(tiff, tiff.first_page() if offset is None else offset)

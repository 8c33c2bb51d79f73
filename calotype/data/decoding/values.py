"""Values of any type and depth -> bytes: byte = round(255 (v - low) / (high - low))."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.data.config import ValueRange
from calotype.data.records import BadPicture, Values

_INTEGERS = ValueRange(0, 65535)
_FLOATS = ValueRange(0, 1)
_CHUNK = 1 << 22  # values scaled at a time, as float64


class Decoded(NamedTuple):
    """A picture as bytes, uint8 (H, W, C) with C 1, 3 or 4, and its values before scaling, if it was scaled."""

    pixels: NDArray[np.uint8]
    values: Values | None = None


class Samples(NamedTuple):
    """The samples of a file, before conversion to bytes."""

    colour: NDArray[Any]  # (H, W, 1 or 3); uint8 is kept, anything else is scaled by the value range
    alpha: NDArray[Any] | None = None  # (H, W), of the same type: from 0 to the largest integer of it, or to 1.0
    premultiplied: bool = False  # colour is colour times alpha
    white_is_zero: bool = False


def to_bytes(samples: Samples, value_range: ValueRange | None) -> Decoded:
    """Scale samples to bytes; alpha has a range of its own. Raises BadPicture for values outside the range."""
    colour, alpha, premultiplied, white_is_zero = samples
    if premultiplied and alpha is not None:
        colour = _unmultiplied(colour, alpha)
    found = None
    if colour.dtype == np.uint8:
        pixels = colour
    else:
        pixels, found = scale(colour, value_range)
    if white_is_zero:
        pixels = 255 - pixels
    if alpha is None:
        return Decoded(pixels, found)
    if alpha.dtype != np.uint8:
        alpha, _ = scale(alpha, _FLOATS if alpha.dtype.kind == "f" else ValueRange(0, np.iinfo(alpha.dtype).max))
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return Decoded(np.concatenate([rgb, alpha[:, :, None]], axis=2), found)


def _unmultiplied(colour: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Undo premultiplication of colour by alpha; where alpha is 0, the colour is unknown and set to 0."""
    opaque = 1.0 if alpha.dtype.kind == "f" else float(np.iinfo(alpha.dtype).max)
    shown = np.broadcast_to(alpha[:, :, None] != 0, colour.shape)
    plain = np.divide(colour * opaque, alpha[:, :, None], out=np.zeros(colour.shape), where=shown)
    if colour.dtype.kind == "f":
        return np.asarray(plain)
    return np.rint(np.minimum(plain, opaque)).astype(colour.dtype)


def scale(values: NDArray[Any], value_range: ValueRange | None) -> tuple[NDArray[np.uint8], Values]:
    """Scale numbers of any shape to bytes by a stated range, or by 0:65535 for integers and 0:1 for floats.

    Raises:
        BadPicture: a value is outside the range, which clipping would destroy, or is NaN or infinite; or there is no
            range, and the type has no usual one.
    """
    if values.dtype == np.int8 and value_range is None:
        raise no_usual_range(values.dtype)
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
    flat = values.reshape(-1)
    pixels = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        pixels[part] = np.rint((flat[part].astype(np.float64) - low) * (255 / (high - low)))
    return pixels.reshape(values.shape), found


def no_usual_range(dtype: np.dtype[Any]) -> BadPicture:
    """The reason for rejecting a type whose black and white values are not defined."""
    return BadPicture(
        f"values of type {dtype}: no scale from them to bytes is obvious, so save uint8, or pass --range LO:HI"
    )


def suggest_range(values: Values) -> str:
    """The usual range "LO:HI" that contains these values: that of a bit depth, 0:1, -1:1, or else their own range."""
    low, high, integer = values
    if low >= 0:
        usual = [255, 1023, 4095, 16383, 65535] if integer else [1, 255, 65535]
        top = next((top for top in usual if high <= top), math.ceil(high))
        return f"0:{top}"
    if low >= -1 and high <= 1:
        return "-1:1"
    return f"{math.floor(low)}:{math.ceil(high)}"

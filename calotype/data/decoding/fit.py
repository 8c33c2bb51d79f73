"""Bytes of any size and number of channels -> bytes of the size and channels of a data set.

All resizing of calotype's data is done here, once, with Pillow's Lanczos filter, whose support grows with the
reduction (so it is anti-aliased) and whose results are clipped, never wrapped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.data.config import Fit
from calotype.errors import DataError

Box = tuple[float, float, float, float]

_WHITE = 255  # what transparent pictures are shown on, and so what they lie on where alpha is dropped


def fit_picture(pixels: NDArray[np.uint8], *, width: int, height: int, channels: int, fit: Fit) -> NDArray[np.uint8]:
    """Fit a picture to a size and a number of channels; unchanged if it has both.

    Args:
        pixels: uint8 (H, W, C), C being 1, 3 or 4.
        width: columns wanted.
        height: rows wanted.
        channels: 1, 3 or 4. If alpha is dropped, the picture is composited over white.
        fit: crop takes the largest centred part of the wanted aspect; pad shows all of the picture, with black
            around it, or transparency; stretch changes the aspect.

    Returns:
        uint8 (height, width, channels), contiguous.
    """
    pixels = with_channels(pixels, channels)
    if pixels.shape[:2] != (height, width):
        pixels = _FITS[fit](pixels, width, height)
    if channels == 4:
        pixels = fill_hidden(pixels)
    return np.ascontiguousarray(pixels)


def with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert the channels of uint8 (H, W, C): gray by BT.601 luma, alpha composited over white or added as opaque."""
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if found == 4:
        return with_channels(_over_white(pixels), channels)
    if channels == 1 and found == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[:, :, None]
    if channels == 3 and found == 1:
        return np.repeat(pixels, 3, axis=2)
    if channels == 4:
        opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        return np.concatenate([with_channels(pixels, 3), opaque], axis=2)
    raise DataError(f"pictures of {found} channels cannot be made ones of {channels}: only 1, 3 and 4 are known")


def fill_hidden(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give fully transparent pixels of uint8 (H, W, 4) the mean colour of the picture, weighted by alpha.

    These colours are invisible, and programs leave anything there: black, white, or the remains of erased content. A
    model would waste capacity on them, and they would show at edges where its alpha is slightly off.
    """
    alpha = pixels[:, :, 3]
    hidden = alpha == 0
    if not hidden.any():
        return pixels
    weight = alpha.astype(np.float64)
    total = max(weight.sum(), 1.0)  # a picture that is all transparent becomes black underneath
    mean = np.tensordot(weight, pixels[:, :, :3], axes=([0, 1], [0, 1])) / total  # (3,)
    filled = pixels.copy()
    filled[hidden, :3] = np.rint(mean).astype(np.uint8)
    return filled


def _over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour, alpha = pixels[:, :, :3].astype(np.uint16), pixels[:, :, 3:].astype(np.uint16)
    mixed = colour * alpha + _WHITE * (255 - alpha)  # at most 255 * 255, which uint16 holds
    return ((mixed + 127) // 255).astype(np.uint8)


def _crop(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    h, w = pixels.shape[:2]
    scale = min(w / width, h / height)  # source pixels to one of the result
    if scale == 1:  # cut on whole pixels: half a pixel off would blur all of them
        left, top = (w - width) // 2, (h - height) // 2
        return pixels[top : top + height, left : left + width]
    box_width, box_height = min(scale * width, w), min(scale * height, h)
    left, top = (w - box_width) / 2, (h - box_height) / 2
    return _resize(pixels, width, height, (left, top, left + box_width, top + box_height))


def _pad(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    h, w, channels = pixels.shape
    scale = max(w / width, h / height)
    inner_width, inner_height = max(1, round(w / scale)), max(1, round(h / scale))
    inner = pixels if scale == 1 else _resize(pixels, inner_width, inner_height, (0, 0, w, h))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    padded = np.zeros((height, width, channels), np.uint8)
    padded[top : top + inner_height, left : left + inner_width] = inner
    return padded


def _stretch(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    h, w = pixels.shape[:2]
    return _resize(pixels, width, height, (0, 0, w, h))


_FITS = {"crop": _crop, "pad": _pad, "stretch": _stretch}


def _resize(pixels: NDArray[np.uint8], width: int, height: int, box: Box) -> NDArray[np.uint8]:
    """Resample the box (left, top, right, bottom) of uint8 (H, W, C) to uint8 (height, width, C)."""
    channels = pixels.shape[2]
    if channels == 4:
        return _resize_rgba(pixels, width, height, box)
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))
    resized = image.resize((width, height), Image.Resampling.LANCZOS, box)
    return np.asarray(resized).reshape(height, width, channels)


def _resize_rgba(pixels: NDArray[np.uint8], width: int, height: int, box: Box) -> NDArray[np.uint8]:
    """Resample with colour multiplied by alpha, so that transparent pixels do not bleed into their neighbours.

    In floats: the filter overshoots at edges, and were alpha clipped there before the colour is divided by it, as in
    Pillow's 8-bit RGBa, every outline would become too bright.
    """
    alpha = pixels[:, :, 3].astype(np.float32)
    planes = [*np.moveaxis(pixels[:, :, :3] * alpha[:, :, None], 2, 0), alpha]
    resized = [Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS, box) for plane in planes]
    values = np.stack([np.asarray(plane) for plane in resized], axis=2)  # (height, width, 4)
    visible = values[:, :, 3:] >= 0.5  # what rounds to an alpha of 0 has no colour
    values[:, :, :3] = np.divide(values[:, :, :3], values[:, :, 3:], where=visible, out=np.zeros_like(values[:, :, :3]))
    return np.rint(values).clip(0, 255).astype(np.uint8)

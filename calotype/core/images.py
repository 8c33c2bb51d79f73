"""Bytes <-> [-1, 1], grids, and PNG files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from calotype.core.files import write_atomic
from calotype.core.untrusted import NotPlain, check_regular
from calotype.errors import DataError

MOST_PIXELS = 1 << 28
"""Of a file that is read back: a grid of 64 pictures of 2,000 pixels a side has fewer."""


def to_unit(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 0..255 to float in [-1, 1]; 0 becomes -1 and 255 becomes 1."""
    return images.to(dtype) / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8 0..255, rounded; values outside the range are clipped to it."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """A uint8 image (C, H, W) with 1 (gray), 3 (RGB) or 4 (RGBA) channels as a Pillow image."""
    array = image.cpu().permute(1, 2, 0).numpy()  # (H, W, C)
    if array.shape[2] == 1:
        return Image.fromarray(array[:, :, 0])
    if array.shape[2] in (3, 4):
        return Image.fromarray(np.ascontiguousarray(array))
    raise DataError(f"an image with {array.shape[2]} channels has no PNG form: write it with --npz")


def png(image: Tensor, command: str = "train") -> Callable[[BinaryIO], object]:
    """A function that writes one uint8 image (C, H, W) to a file as PNG, with a note of the command."""
    note = PngInfo()
    note.add_text("Software", f"calotype {command}")
    picture = to_pil(image)
    return lambda file: picture.save(file, format="PNG", pnginfo=note)


def write_png(path: Path, image: Tensor, command: str = "train", root: Path | None = None) -> None:
    """Write one uint8 image (C, H, W) as PNG, whole or not at all; `root` as of `write_atomic`."""
    write_atomic(path, png(image, command), root)


def read_png(path: Path) -> Tensor:
    """Read a PNG of 8 bits that `write_png` wrote: uint8 (C, H, W).

    Raises:
        DataError: it is not such a file, or is larger than calotype writes.
    """
    try:
        check_regular(path)
        with warnings.catch_warnings(), Image.open(path, formats=("PNG",)) as image:
            warnings.simplefilter("ignore")  # about its size, which has a limit here
            if image.width * image.height > MOST_PIXELS or image.mode not in ("L", "RGB", "RGBA"):
                raise NotPlain(f"it is {image.width}x{image.height} of {image.mode}")
            array = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read ({error}): restore it, or remove it") from error
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay uint8 images (N, C, H, W) out in rows, white between them: uint8 (C, H', W').

    Args:
        columns: images per row; by default the grid is about as wide as high.
        gap: pixels between images and around them.
    """
    n, c, h, w = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n * h / w)))
    rows = math.ceil(n / columns)
    sheet = torch.full((c, gap + rows * (h + gap), gap + columns * (w + gap)), 255, dtype=torch.uint8)
    for i, image in enumerate(images.cpu()):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def cells(sheet: Tensor, height: int, width: int, gap: int = 2) -> Tensor:
    """The images of a grid: uint8 (N, C, height, width), without the white cells at its end."""
    _, high, wide = sheet.shape
    found = [
        sheet[:, top : top + height, left : left + width]
        for top in range(gap, high - height, height + gap)
        for left in range(gap, wide - width, width + gap)
    ]
    while found and bool((found[-1] == 255).all()):
        found.pop()
    return torch.stack(found) if found else sheet.new_empty(0, sheet.shape[0], height, width)

"""Networks in which a pixel is computed from the pixels before it, in raster order, and the layers they are made of.

Maps are (B, rows, columns, channels). Such a network is evaluated in three ways by the same code: for whole images in
training, and in drawing for one row or one pixel at a time. The latter two are told their `Place`, whose memory holds
what the layers need of the rows and pixels before; a layer that is called for place after place in raster order gives
what it gives for whole images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.images import to_unit
from calotype.core.rng import Noise
from calotype.nn.native.recorder import Recorder, Vector

Own = Literal["all", "A", "B"]

Reach = Mapping[int, int]
"""The receptive field to the right of a pixel, in columns, by the number of rows above; 0 is its own row."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place where a network is evaluated: a row, or a pixel of it, and the memory of its layers between places."""

    memory: dict[nn.Module, Any]
    width: int  # columns of the map
    row: int
    column: int | None = None  # None: the whole row
    level: int = 0  # halvings of the resolution
    recorder: Recorder | None = None  # where what is done is to be written down, for pixels of any column

    def coarser(self) -> Place:
        """The same place in a map of half as many rows and columns, rounded up."""
        column = None if self.column is None else self.column // 2
        return replace(self, width=-(-self.width // 2), row=self.row // 2, column=column, level=self.level + 1)

    @property
    def even(self) -> bool:
        """Whether a map of half as many rows and columns has a place of its own here."""
        return self.row % 2 == 0 and (self.column is None or self.column % 2 == 0)


class PixelNetwork(nn.Module, ABC):
    """Maps an image to numbers for each pixel that depend on the pixels before it, in raster order.

    What depends on whole rows above is computed apart from what depends on the own row: in drawing the former is
    needed once per row only.
    """

    margin: int  # of the canvas that the network looks at
    ordered: bool  # whether channels of a pixel see those before them, and the numbers are in groups by channel
    halvings: int = 0  # of the resolution, to the lowest level
    recordable: bool = True  # whether its layers can be recorded, see `calotype.nn.native`

    def encode(self, pixels: Tensor) -> Tensor:
        """The canvas values of pixels: uint8 (..., C) to float (..., features). Default: values in [-1, 1]."""
        return to_unit(pixels, next(self.parameters()).dtype)

    @abstractmethod
    def above(self, canvas: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Any:
        """The input of `beside` from the rows above, for whole images, or for the row at a place."""

    @abstractmethod
    def beside(
        self,
        canvas: Tensor,
        above: Any,
        labels: Tensor | None,
        at: Place | None,
        noise: Noise | None,
    ) -> Tensor:
        """The numbers (B, H, W, outputs), or those of the pixel at a place (B, 1, 1, outputs), given `above`."""

    def reach(self) -> Reach | None:
        """The receptive field to the right; None if it is unlimited, or if whole rows are needed."""
        return None

    def forward(self, pixels: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """The numbers of all pixels: uint8 (B, H, W, C) to (B, H, W, outputs). With noise, dropout is on."""
        return self.numbers(self.encode(pixels), labels, noise)

    def numbers(self, encoded: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """The numbers of all pixels from encoded pixels, (B, H, W, features)."""
        canvas = canvas_of(encoded, self.margin)
        return self.beside(canvas, self.above(canvas, labels, None, noise), labels, None, noise)


def through(*layers: Reach) -> Reach:
    """The reach of layers that follow one another."""
    total: dict[int, int] = {0: 0}
    for layer in layers:
        further: dict[int, int] = {}
        for up, right in total.items():
            for more, columns in layer.items():
                further[up + more] = max(further.get(up + more, 0), right + columns)
        total = further
    return total


def either(*parts: Reach) -> Reach:
    """The reach of parts that are added."""
    return {up: max(part[up] for part in parts if up in part) for up in sorted({up for part in parts for up in part})}


def lag_of(reach: Reach) -> int:
    """The number of columns by which a row has to lag behind the one above, so that its receptive field is complete."""
    return 1 + max((right // up for up, right in reach.items() if up), default=0)


def canvas_of(x: Tensor, margin: int) -> Tensor:
    """x with margins of zeros above, left and right, and a feature that is 1 there.

    By it a network tells the outside of the image from pixels in the middle of their range: x (B, H, W, features) to
    (B, margin + H, margin + W + margin, features + 1).
    """
    sides = (0, 0, margin, margin, margin, 0)
    mark = F.pad(torch.zeros_like(x[..., :1]), sides, value=1.0)
    return torch.cat([F.pad(x, sides), mark], -1)


def here(x: Tensor, at: Place | None) -> Tensor:
    """The part of a map at a place: the whole map, or the pixel (B, 1, 1, C) of a row."""
    if at is not None and at.recorder is not None:
        known: Any = x
        return cast(Tensor, known if isinstance(known, Vector) else at.recorder.map(x, at))
    return x if at is None or at.column is None else x[:, :, at.column : at.column + 1]

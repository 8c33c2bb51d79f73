"""Maps at several levels of resolution, each half the one before: the building blocks of autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.layers import zeroed

Size = tuple[int, int]
"""Rows and columns of a map."""


def level_sizes(size: Size, levels: int, patch: int, point: bool) -> list[Size]:
    """Rows and columns of each level, finest first."""
    sizes = [(-(-size[0] // patch), -(-size[1] // patch))]
    while len(sizes) < levels:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return [*sizes[:-1], (1, 1)] if point else sizes


def conv(inputs: int, outputs: int, size: Size) -> nn.Conv2d:
    """3 x 3, of a map of one position 1 x 1."""
    kernel = 1 if size == (1, 1) else 3
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Style(NamedTuple):
    """The style of the layers of levels."""

    bottleneck: int = 1  # branches have so many times fewer features within, and two convolutions more
    pooled: bool = False  # between levels features are averaged and repeated, instead of learned maps
    scale: float = 1.0  # of the weights that end a block


PLAIN = Style()


class Branch(nn.Module):
    """Convolutions, each after a SiLU.

    Args:
        features: of what goes in, between, and of what comes out; all are 3 x 3.
        size: of the map.
        bottleneck: above 1 it is 1 x 1 to so many times fewer features, twice 3 x 3 there, and 1 x 1 out.
    """

    def __init__(self, features: Sequence[int], size: Size, bottleneck: int) -> None:
        super().__init__()
        if bottleneck == 1:
            self.convs = nn.ModuleList(conv(a, b, size) for a, b in pairwise(features))
            return
        narrow = features[0] // bottleneck if len(features) < 3 else features[1] // bottleneck
        ends = nn.Conv2d(features[0], narrow, 1), nn.Conv2d(narrow, features[-1], 1)
        self.convs = nn.ModuleList((ends[0], conv(narrow, narrow, size), conv(narrow, narrow, size), ends[1]))

    def forward(self, h: Tensor) -> Tensor:
        """Apply SiLU and convolution in turn: (B, features[0], h, w) to (B, features[-1], h, w)."""
        for layer in self.convs:
            h = layer(F.silu(h))
        return h

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that ends it."""
        return cast(nn.Conv2d, self.convs[-1])


class Block(nn.Module):
    """h + branch(h), of two convolutions 3 x 3, or through a bottleneck."""

    def __init__(self, width: int, size: Size, style: Style) -> None:
        super().__init__()
        self.branch = Branch((width, width, width), size, style.bottleneck)
        with torch.no_grad():
            self.branch.last.weight.mul_(style.scale)

    def forward(self, h: Tensor) -> Tensor:
        """h + branch(h): (B, width, h, w) to the same shape."""
        return h + self.branch(h)


def blocks_of(widths: Sequence[int], sizes: Sequence[Size], counts: Sequence[int], style: Style) -> nn.ModuleList:
    """So many blocks for each level."""
    levels = zip(widths, sizes, counts, strict=True)
    return nn.ModuleList(nn.Sequential(*(Block(width, size, style) for _ in range(n))) for width, size, n in levels)


def ups(widths: Sequence[int], sizes: Sequence[Size], style: Style) -> nn.ModuleList:
    """From each level but the finest to the one before it."""
    steps = zip(pairwise(sizes), pairwise(widths), strict=True)
    return nn.ModuleList(Up(coarse, fine, b, a, style.pooled) for (fine, coarse), (a, b) in steps)


def downs(widths: Sequence[int], sizes: Sequence[Size], style: Style) -> nn.ModuleList:
    """From each level but the coarsest to the one after it."""
    steps = zip(pairwise(sizes), pairwise(widths), strict=True)
    return nn.ModuleList(Down(fine, coarse, a, b, style.pooled) for (fine, coarse), (a, b) in steps)


class Down(nn.Module):
    """To the next coarser level: half as many rows and columns, rounded up, or a single position."""

    def __init__(self, fine: Size, coarse: Size, inputs: int, outputs: int, pooled: bool) -> None:
        super().__init__()
        point = coarse == (1, 1)
        self.kernel = fine if point else (2, 2)
        self.pooled = pooled
        self.conv = _between(nn.Conv2d, inputs, outputs, self.kernel, pooled)
        self.missing = (0, 0) if point else (fine[1] % 2, fine[0] % 2)  # columns, rows

    def forward(self, x: Tensor) -> Tensor:
        """From the finer to the coarser level: (B, inputs, *fine) to (B, outputs, *coarse)."""
        if self.pooled:
            x = F.avg_pool2d(x, self.kernel, ceil_mode=True)  # of those there are, at an edge with half a position
        else:
            x = F.pad(x, (0, self.missing[0], 0, self.missing[1]))
        return x if self.conv is None else self.conv(x)


class Up(nn.Module):
    """From the next coarser level."""

    def __init__(self, coarse: Size, fine: Size, inputs: int, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.fine, self.pooled = fine, pooled
        self.kernel = fine if coarse == (1, 1) else (2, 2)
        self.conv = _between(nn.ConvTranspose2d, inputs, outputs, self.kernel, pooled)

    def forward(self, x: Tensor) -> Tensor:
        """From the coarser to the finer level: (B, inputs, *coarse) to (B, outputs, *fine)."""
        if self.conv is not None:
            x = self.conv(x)
        if self.pooled:
            x = F.interpolate(x, scale_factor=[float(k) for k in self.kernel], mode="nearest")
        return x[:, :, : self.fine[0], : self.fine[1]]


def _between(kind: Callable[..., nn.Module], inputs: int, outputs: int, kernel: Size, pooled: bool) -> nn.Module | None:
    """The learned layer between two levels; with pooling only if they differ in features."""
    if not pooled:
        return kind(inputs, outputs, kernel, kernel)
    return nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None


class Encoder(nn.Module):
    """From an image to a map at each level.

    Args:
        channels: of the image.
        widths: features per level, finest first.
        sizes: rows and columns of each level.
        blocks: per level.
        patch: pixels a side that are one position of the finest level; with one, its neighbours are seen too.
        style: of levels.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        sizes: Sequence[Size],
        blocks: Sequence[int],
        patch: int,
        style: Style,
    ) -> None:
        super().__init__()
        self.high, self.wide = sizes[0][0] * patch, sizes[0][1] * patch
        kernel = patch if patch > 1 else 3
        self.stem = nn.Conv2d(channels, widths[0], kernel, patch, padding=0 if patch > 1 else 1)
        self.blocks = blocks_of(widths, sizes, blocks, style)
        self.down = downs(widths, sizes, style)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W), in [-1, 1], to (B, width, h, w) of each level, finest first."""
        h = self.stem(F.pad(x, (0, self.wide - x.shape[3], 0, self.high - x.shape[2])))
        found = []
        for k, blocks in enumerate(self.blocks):
            h = blocks(self.down[k - 1](h) if k else h)
            found.append(h)
        return found


class Numbers(nn.Module):
    """From the finest level to numbers for each pixel, which begin at zero: (B, width, h, w) to (B, H, W, outputs)."""

    def __init__(self, width: int, outputs: int, size: Size, patch: int) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        self.last = zeroed(nn.Conv2d(width, outputs * patch**2, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Features of the finest level (B, width, h, w) to parameters of each pixel (B, H, W, outputs)."""
        numbers = self.last(F.silu(h))
        numbers = F.pixel_shuffle(numbers, self.patch) if self.patch > 1 else numbers
        return numbers[:, :, : self.size[0], : self.size[1]].permute(0, 2, 3, 1)

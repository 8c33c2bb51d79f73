"""Maps at several levels of resolution, each half as fine as the one before: what autoencoders are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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


class Block(nn.Module):
    """h + c2(silu(c1(silu(h)))), both 3 x 3."""

    def __init__(self, width: int, size: Size, scale: float) -> None:
        super().__init__()
        self.first, self.second = conv(width, width, size), conv(width, width, size)
        with torch.no_grad():
            self.second.weight.mul_(scale)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.silu(self.first(F.silu(h))))


def blocks_of(widths: Sequence[int], sizes: Sequence[Size], counts: Sequence[int], scale: float) -> nn.ModuleList:
    """So many blocks for each level."""
    levels = zip(widths, sizes, counts, strict=True)
    return nn.ModuleList(nn.Sequential(*(Block(width, size, scale) for _ in range(n))) for width, size, n in levels)


def ups(widths: Sequence[int], sizes: Sequence[Size]) -> nn.ModuleList:
    """From each level but the finest to the one before it."""
    steps = zip(pairwise(sizes), pairwise(widths), strict=True)
    return nn.ModuleList(Up(coarse, fine, b, a) for (fine, coarse), (a, b) in steps)


class Down(nn.Module):
    """To the next coarser level: half as many rows and columns, rounded up, or a single position."""

    def __init__(self, fine: Size, coarse: Size, inputs: int, outputs: int) -> None:
        super().__init__()
        point = coarse == (1, 1)
        kernel = fine if point else (2, 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, kernel)
        self.missing = (0, 0) if point else (fine[1] % 2, fine[0] % 2)  # columns, rows

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, self.missing[0], 0, self.missing[1])))


class Up(nn.Module):
    """From the next coarser level."""

    def __init__(self, coarse: Size, fine: Size, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fine = fine
        kernel = fine if coarse == (1, 1) else (2, 2)
        self.conv = nn.ConvTranspose2d(inputs, outputs, kernel, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, : self.fine[0], : self.fine[1]]


class Encoder(nn.Module):
    """From an image to a map at each level.

    Args:
        channels: of the image.
        widths: features per level, finest first.
        sizes: rows and columns of each level.
        blocks: per level.
        patch: pixels a side that are one position of the finest level; with one, its neighbours are seen too.
        scale: of the weights that end a block.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        sizes: Sequence[Size],
        blocks: Sequence[int],
        patch: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.high, self.wide = sizes[0][0] * patch, sizes[0][1] * patch
        kernel = patch if patch > 1 else 3
        self.stem = nn.Conv2d(channels, widths[0], kernel, patch, padding=0 if patch > 1 else 1)
        self.blocks = blocks_of(widths, sizes, blocks, scale)
        steps = zip(pairwise(sizes), pairwise(widths), strict=True)
        self.down = nn.ModuleList(Down(fine, coarse, a, b) for (fine, coarse), (a, b) in steps)

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
        numbers = self.last(F.silu(h))
        numbers = F.pixel_shuffle(numbers, self.patch) if self.patch > 1 else numbers
        return numbers[:, :, : self.size[0], : self.size[1]].permute(0, 2, 3, 1)

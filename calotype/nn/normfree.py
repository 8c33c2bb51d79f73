"""Generator and discriminator without normalisation: residual blocks of grouped convolutions, mirrored.

    block:          x + c3(a(c2(a(c1(x)))))     c1 1 x 1 to more features, c2 3 x 3 in groups, c3 1 x 1 back, at first 0
    generator:      z -> features of the coarsest map, each times a learned pattern; blocks; to twice the size; ...
    discriminator:  the same in reverse; each feature of the coarsest map against a learned pattern; a linear map

with a(x) a leaky ReLU. What keeps signals at their size in place of norms is how weights begin: of variance 1 / inputs,
less by the number L of blocks, L^(-1/4) for each layer of a block.

Source: Huang et al. 2024, arXiv:2501.05441; Zhang et al. 2019, arXiv:1901.09321, for the beginning. Maps are made
larger by bilinear interpolation and smaller by means of 2 x 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.levels import Size, level_sizes

SLOPE = 0.2  # of the leaky ReLU for negative values
GAIN = (2 / (1 + SLOPE**2)) ** 0.5  # by which it reduces the deviation of normal values


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _begun(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    """Weights of standard deviation gain / sqrt(inputs), and no bias."""
    nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _conv(
    inputs: int, outputs: int, gain: float = 1.0, kernel: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
    _begun(layer, gain)
    return layer


class Block(nn.Module):
    """A residual block.

    Args:
        width: features.
        expansion: times as many within.
        group: features of a group; fewer where they do not fill one.
        depth: blocks of the network.
    """

    def __init__(self, width: int, expansion: int, group: int, depth: int) -> None:
        super().__init__()
        inner, gain = width * expansion, GAIN * depth**-0.25
        self.first = _conv(width, inner, gain, bias=True)
        self.second = _conv(inner, inner, gain, kernel=3, groups=max(1, inner // group), bias=True)
        self.third = _conv(inner, width, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual branch: (B, width, h, w) to the same shape."""
        return x + self.third(_activated(self.second(_activated(self.first(x)))))


def _levels(widths: Sequence[int], blocks: Sequence[int], expansion: int, group: int) -> nn.ModuleList:
    """The blocks of each level, finest first."""
    depth = sum(blocks)
    return nn.ModuleList(
        nn.Sequential(*(Block(width, expansion, group, depth) for _ in range(n)))
        for width, n in zip(widths, blocks, strict=True)
    )


def _between(inputs: int, outputs: int) -> nn.Module:
    """From one level to another, where they differ in features."""
    return _conv(inputs, outputs) if inputs != outputs else nn.Identity()


class Generator(nn.Module):
    """From latents, and classes, to an image.

    Args:
        channels: of the image.
        size: its height and width.
        latents: of an image.
        widths: features per level of resolution, finest first.
        blocks: per level.
        expansion, group: of blocks.
        num_classes: of the labels; 0: none.
        patch: pixels a side that are one position of the finest level.
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        latents: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        expansion: int,
        group: int,
        num_classes: int = 0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        self.sizes = level_sizes(size, len(widths), patch, point=False)
        self.embed = nn.Embedding(num_classes, latents) if num_classes else None
        self.pattern = nn.Parameter(nn.init.normal_(torch.empty(widths[-1], *self.sizes[-1])))
        self.start = nn.Linear(latents * (2 if num_classes else 1), widths[-1], bias=False)
        _begun(self.start, 1.0)
        self.levels = _levels(widths, blocks, expansion, group)
        self.between = nn.ModuleList(_between(coarse, fine) for fine, coarse in pairwise(widths))
        self.last = _conv(widths[0], channels * patch**2)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(B, latents) to (B, C, H, W), in [-1, 1] where it is an image, and beyond."""
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], 1)
        x = self.start(z)[:, :, None, None] * self.pattern
        for k in reversed(range(len(self.levels))):
            x = self.levels[k](x)
            if k:
                x = self.between[k - 1](x)
                high, wide = self.sizes[k - 1]
                x = F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, :high, :wide]
        x = self.last(x)
        if self.patch > 1:
            x = F.pixel_shuffle(x, self.patch)[:, :, : self.size[0], : self.size[1]]
        return x


class Discriminator(nn.Module):
    """From an image, and its class, to a logit; the mirror image of the generator, with its arguments."""

    def __init__(
        self,
        channels: int,
        size: Size,
        widths: Sequence[int],
        blocks: Sequence[int],
        expansion: int,
        group: int,
        num_classes: int = 0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        sizes = level_sizes(size, len(widths), patch, point=False)
        self.patch, self.missing = patch, (sizes[0][0] * patch - size[0], sizes[0][1] * patch - size[1])
        self.first = _conv(channels * patch**2, widths[0])
        self.levels = _levels(widths, blocks, expansion, group)
        self.between = nn.ModuleList(_between(fine, coarse) for fine, coarse in pairwise(widths))
        positions = sizes[-1][0] * sizes[-1][1]
        self.pattern = nn.Parameter(nn.init.normal_(torch.empty(widths[-1], *sizes[-1]), std=positions**-0.5))
        self.embed = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        self.last = nn.Linear(widths[-1], widths[-1] if num_classes else 1, bias=False)
        _begun(self.last, 1.0)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W) to logits (B,)."""
        if self.patch > 1:
            x = F.pixel_unshuffle(F.pad(x, (0, self.missing[1], 0, self.missing[0])), self.patch)
        x = self.first(x)
        for k, level in enumerate(self.levels):
            x = level(x)
            if k < len(self.between):
                x = F.avg_pool2d(self.between[k](x), 2, ceil_mode=True)
        found = self.last((x * self.pattern).sum((2, 3)))
        if self.embed is None:
            return found[:, 0]
        return (found * self.embed(labels)).sum(1) / found.shape[1] ** 0.5

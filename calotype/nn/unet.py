"""A U-Net for images of any size: residual blocks modulated by an embedding, attention at chosen levels.

One network holds the published ones as designs, see `DESIGNS`; widths and numbers of blocks are free. `patch` > 1
folds squares of pixels into channels: on a CPU most of the time goes to the finest level, and a network on folded
pixels sees several times more images in the same time. A few channels stay at the full resolution beside it, and are
merged with what comes back: through the folded ones alone the noise of single pixels does not pass, and samples
come out grainy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.layers import SelfAttention, SinusoidalEmbedding, dropout, fork, groups_for, zeroed

Resample = Literal["none", "down", "up"]
Size = Sequence[int]  # rows and columns of a map


class Design(NamedTuple):
    """Differences between published U-Nets besides widths and depths. Initial weights are torch's in all of them."""

    resample: Literal["conv", "block"]  # between levels: a convolution alone, or a residual block that resamples
    project: bool  # whether the skip of a resampling block is a convolution, also where no width changes
    modulation: Literal["scale", "shift"]  # h <- norm(h) * (1 + scale) + shift, or h <- norm(h + shift)
    middle: int  # blocks below the lowest level, of which the first attends; where one would not, it is left out
    attend_up: Literal["all", "last"]  # blocks of an attending level that attend on the way up
    skip_scale: float  # factor on the sum of a block's two branches
    head_width: int  # channels per head of attention; 0: one head
    group_width: int  # channels per group of a norm at least; at most 32 groups
    eps: float  # of the norms
    endpoint: bool  # whether the slowest frequency of the embedding is 1 / 10,000, or the one above it


DESIGNS: Mapping[str, Design] = {
    # Ours: as few operations as do the work. Below the lowest level nothing but attention would be new.
    "light": Design("conv", False, "scale", 1, "all", 1.0, 64, 16, 1e-5, False),
    # Ho et al. 2020, arXiv:2006.11239.
    "ddpm": Design("conv", False, "shift", 2, "all", 1.0, 0, 4, 1e-6, True),
    # Song et al. 2021, arXiv:2011.13456, as retrained by Karras et al. 2022, arXiv:2206.00364.
    "ddpm++": Design("block", True, "shift", 2, "last", 0.5**0.5, 0, 4, 1e-6, True),
    # Dhariwal & Nichol 2021, arXiv:2105.05233.
    "adm": Design("block", False, "scale", 2, "all", 1.0, 64, 4, 1e-5, False),
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip, modulated by an embedding; starts as (a projection of) the identity."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        design: Design,
        dropout_rate: float = 0.0,
        attention: bool = False,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        self.design, self.dropout_rate, self.resample = design, dropout_rate, resample
        self.norm1 = _norm(inputs, design)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, outputs * (2 if design.modulation == "scale" else 1))
        self.norm2 = _norm(outputs, design)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        projected = inputs != outputs or (design.project and resample != "none")
        self.skip = nn.Conv2d(inputs, outputs, 1) if projected else nn.Identity()
        self.attention = (
            SelfAttention(_norm(outputs, design), design.head_width, design.skip_scale) if attention else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise | None, size: Size | None = None) -> Tensor:
        """x (B, inputs, h, w) and embedding (B, embedding) to (B, outputs, h', w'); `size` crops an upsampled map."""
        h = self.conv1(_resampled(F.silu(self.norm1(x)), self.resample, size))
        h = F.silu(self._modulated(h, self.modulation(embedding)[:, :, None, None]))
        h = self.conv2(dropout(h, self.dropout_rate, noise))
        h = self.skip(_resampled(x, self.resample, size)) + h
        return self.attention(h if self.design.skip_scale == 1 else h * self.design.skip_scale)

    def _modulated(self, h: Tensor, by: Tensor) -> Tensor:
        if self.design.modulation == "shift":
            return self.norm2(h + by)
        scale, shift = by.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm2(h), 1 + scale)


def _norm(channels: int, design: Design) -> nn.GroupNorm:
    return nn.GroupNorm(groups_for(channels, design.group_width), channels, design.eps)


def _resampled(x: Tensor, resample: Resample, size: Size | None) -> Tensor:
    """x at half or twice the resolution; on the way up it is cut to the size of what it will meet."""
    if resample == "down":
        return F.avg_pool2d(x, 2, ceil_mode=True)
    if resample == "up":
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if size is None else x[:, :, : size[0], : size[1]]
    return x


class ConvResample(nn.Module):
    """To half or twice the resolution by one convolution; the embedding is ignored."""

    def __init__(self, width: int, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        self.conv = nn.Conv2d(width, width, 3, stride=2 if resample == "down" else 1, padding=1)

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise | None, size: Size | None = None) -> Tensor:
        """x (B, width, h, w) to (B, width, h', w'); `size` crops the result of upsampling."""
        return self.conv(_resampled(x, "up", size) if self.resample == "up" else x)


class UNet(nn.Module):
    """Map an image and a scalar per image (and a label) to an image of `out_channels`.

    Args:
        in_channels, out_channels: of the image.
        widths: channels per level, finest first; each level halves the resolution (rounding up).
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: levels with self-attention, 0 the finest; the published designs also attend below the lowest level.
        patch: side of the pixel squares that are folded into channels.
        num_classes: labels 0..num_classes - 1, and num_classes for an image of no class; 0: no labels.
        dropout_rate: within the residual blocks, only where forward is given noise.
        base: channels of the first convolution, and of the embedding of the scalar; 0: widths[0].
        design: an entry of DESIGNS.
        detail: channels at the full resolution, where patch > 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        patch: int = 1,
        num_classes: int = 0,
        dropout_rate: float = 0.0,
        base: int = 0,
        design: str = "light",
        detail: int = 16,
    ) -> None:
        super().__init__()
        self.patch, base, chosen = patch, base or widths[0], DESIGNS[design]
        embedding = 4 * base
        self.embed_scalar = nn.Sequential(
            SinusoidalEmbedding(base, endpoint=chosen.endpoint),
            nn.Linear(base, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.embed_label = nn.Embedding(num_classes + 1, embedding) if num_classes else None

        def block(inputs: int, level: int, attends: bool, resample: Resample = "none") -> ResidualBlock:
            outputs = inputs if resample != "none" else widths[level]
            return ResidualBlock(inputs, outputs, embedding, chosen, dropout_rate, attends, resample)

        def resampler(width: int, level: int, resample: Resample) -> nn.Module:
            return block(width, level, False, resample) if chosen.resample == "block" else ConvResample(width, resample)

        if patch > 1:
            self.stem = nn.Conv2d(in_channels, detail, 3, padding=1)
            self.fold = nn.Conv2d(detail * patch**2, base, 1)
            self.unfold = nn.Conv2d(widths[0], detail * patch**2, 1)
            self.merge = ResidualBlock(2 * detail, detail, embedding, chosen, dropout_rate)
        else:
            self.stem = nn.Conv2d(in_channels, base, 3, padding=1)
        self.down, skips, width = nn.ModuleList(), [base], base
        for level in range(len(widths)):
            if level > 0:
                self.down.append(resampler(width, level, "down"))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(block(width, level, level in attention))
                width = widths[level]
                skips.append(width)
        lowest = len(widths) - 1
        middle = chosen.middle if chosen.middle > 1 or lowest in attention else 0
        self.middle = nn.ModuleList(block(width, lowest, attends=k == 0) for k in range(middle))
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for k in range(blocks + 1):
                attends = level in attention and (chosen.attend_up == "all" or k == blocks)
                self.up.append(block(width + skips.pop(), level, attends))
                width = widths[level]
            if level > 0:
                self.up.append(resampler(width, level - 1, "up"))
        width = detail if patch > 1 else width
        self.last_norm = _norm(width, chosen)
        self.last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, scalar: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """Args: x float (B, C, H, W); scalar (B,); labels int64 (B,), required iff built with num_classes."""
        height, width = x.shape[2:]
        embedding = self.embed_scalar(scalar)
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(labels)
        embedding = F.silu(embedding)

        bottom, right = -height % self.patch, -width % self.patch
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        fine = h = self.stem(x)
        if self.patch > 1:
            h = self.fold(F.pixel_unshuffle(fine, self.patch))
        skips = [h]
        for i, layer in enumerate(self.down):
            h = layer(h, embedding, fork(noise, f"down{i}"))
            skips.append(h)
        for i, layer in enumerate(self.middle):
            h = layer(h, embedding, fork(noise, f"middle{i}"))
        for i, layer in enumerate(self.up):
            if layer.resample == "up":
                h = layer(h, embedding, fork(noise, f"up{i}"), skips[-1].shape[2:])
            else:
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding, fork(noise, f"up{i}"))
        if self.patch > 1:
            h = torch.cat([F.pixel_shuffle(self.unfold(h), self.patch), fine], dim=1)
            h = self.merge(h, embedding, fork(noise, "merge"))
        return self.last(F.silu(self.last_norm(h)))[:, :, :height, :width]

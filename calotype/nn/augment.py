"""Differentiable augmentation of the discriminator's input, of real and generated images alike.

Each kind of change befalls an image with a probability. At less than 0.8 or so the generator learns the images as they
are, and not the changes: of what can be told from all that is seen, unchanged images are the most common.

    flip        left to right
    shift       by whole pixels, up to an eighth of the side, and what is left is black
    turn        by up to a tenth of a turn, scaled by up to a quarter: sizes and sides
    colour      brightness, contrast, and saturation where there is some
    cut         a square of half the side, black

Source: Karras et al. 2020, arXiv:2006.06676; Zhao et al. 2020, arXiv:2006.10738.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.core.rng import Noise

Change = Callable[[Tensor, Noise], Tensor]
"""Images (B, C, H, W) in [-1, 1], and noise of as many: all of them changed."""

BLACK = -1.0


def augmented(images: Tensor, probability: Tensor | float, noise: Noise, kinds: Sequence[str]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], each changed in each way with a probability; at 0 they are the same.

    Args:
        noise: of the images; the same noise makes the same changes.
        kinds: of CHANGES, in this order.
    """
    for kind in kinds:
        own = noise.fork(kind)
        chosen = own.uniform().to(images.device) < probability
        if bool(chosen.any()):
            images = torch.where(chosen[:, None, None, None], CHANGES[kind](images, own), images)
    return images


def _flip(x: Tensor, noise: Noise) -> Tensor:
    return x.flip(3)


def _shift(x: Tensor, noise: Noise) -> Tensor:
    high, wide = x.shape[2:]
    dy, dx = (_whole(noise, max(1, round(side / 8)), x) for side in (high, wide))
    rows = torch.arange(high, device=x.device)[None] - dy[:, None]  # (B, H), whence a row comes
    columns = torch.arange(wide, device=x.device)[None] - dx[:, None]
    taken = x.gather(2, rows.clamp(0, high - 1)[:, None, :, None].expand_as(x))
    taken = taken.gather(3, columns.clamp(0, wide - 1)[:, None, None, :].expand_as(x))
    inside = ((rows >= 0) & (rows < high))[:, None, :, None] & ((columns >= 0) & (columns < wide))[:, None, None, :]
    return torch.where(inside, taken, BLACK)


def _turn(x: Tensor, noise: Noise) -> Tensor:
    angle = (noise.uniform() * 2 - 1).to(x) * 0.2 * math.pi
    grown, stretched = (torch.exp2((noise.uniform() * 2 - 1).to(x) * 0.3) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    ratio = x.shape[2] / x.shape[3]
    zero = torch.zeros_like(cos)
    rows = torch.stack(
        [cos * grown, -sin * grown * ratio, zero, sin * stretched / ratio, cos * stretched, zero], 1
    ).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    warped: Tensor = _Warp.apply(x - BLACK, grid)
    return warped + BLACK


class _Warp(torch.autograd.Function):
    """Bilinear sampling at given places, zero outside, with a gradient of any order in the images; it is linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _WarpBack.apply(gradient, grid, ctx.size), None


class _WarpBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        like = gradient.new_zeros(size)
        back: tuple[Tensor, Tensor] = torch.ops.aten.grid_sampler_2d_backward(
            gradient, like, grid, 0, 0, False, (True, False)
        )
        return back[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Warp.apply(gradient, grid), None, None


def _colour(x: Tensor, noise: Noise) -> Tensor:
    brighter, contrast, saturation = ((noise.uniform() * 2 - 1).to(x)[:, None, None, None] for _ in range(3))
    x = x + 0.5 * brighter
    if x.shape[1] >= 3:
        gray = x[:, :3].mean(1, keepdim=True)
        x = torch.cat([gray + (x[:, :3] - gray) * (1 + saturation), x[:, 3:]], 1)
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + (x - middle) * (1 + 0.5 * contrast)


def _cut(x: Tensor, noise: Noise) -> Tensor:
    inside = []
    for k in (2, 3):
        side = x.shape[k]
        middle = (noise.uniform() * side).long().to(x.device)[:, None]
        inside.append((torch.arange(side, device=x.device)[None] - middle).abs() * 4 <= side)
    within = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(within, BLACK, x)


def _whole(noise: Noise, most: int, like: Tensor) -> Tensor:
    """Whole numbers from -most to most, int64 (B,)."""
    return (noise.uniform() * (2 * most + 1)).long().clamp(max=2 * most).to(like.device) - most


CHANGES: Mapping[str, Change] = {"flip": _flip, "shift": _shift, "turn": _turn, "colour": _colour, "cut": _cut}

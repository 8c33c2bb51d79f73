"""Layers that several networks share."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.distributed import processes

L = TypeVar("L", nn.Conv2d, nn.Linear)


def dropout(x: Tensor, rate: float, noise: Noise | None) -> Tensor:
    """Zero values with probability `rate` and scale the rest up, by `noise`; without noise, or at rate 0, return x."""
    if noise is None or rate == 0:
        return x
    kept = noise.uniform(*x.shape[1:]) >= rate
    return x * kept.to(x.dtype) / (1 - rate)


def fork(noise: Noise | None, name: int | str) -> Noise | None:
    """The fork of a noise for a part of a network; without noise there is none."""
    return None if noise is None else noise.fork(name)


def groups_for(channels: int, width: int = 16) -> int:
    """The number of groups of a group norm over `channels`: of `width` channels each if that divides, 32 at most."""
    return next(g for g in range(min(32, max(1, channels // width)), 0, -1) if channels % g == 0)


def zeroed(layer: L) -> L:
    """The layer with weights and bias zero: a residual branch that ends in it starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def full(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a product gave under autocast in the precision of its input, where what follows is then the faster.

    On a CPU gates on maps of few channels, and attention, take four times as long in bfloat16 as in float32.
    """
    return x.to(dtype) if x.device.type == "cpu" else x


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast where `full` keeps the precision."""
    return torch.autocast("cpu", enabled=False) if x.device.type == "cpu" else nullcontext()


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch, in training, is that of all processes together."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        if processes.size() == 1 or not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        wide = x.to(self.running_mean.dtype)
        count = wide.new_tensor([x.numel() / x.shape[1]])
        # Deviations are from the mean, and not of squares: those of large means would lose their digits.
        count, total = processes.summed(torch.cat([count, wide.sum((0, 2, 3))])).split([1, x.shape[1]])
        mean = total / count
        apart = wide - mean[:, None, None]
        variance = processes.summed(apart.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        found = apart * scale[:, None, None]
        return (found + self.bias[:, None, None] if self.affine else found).to(x.dtype)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies: (B,) -> (B, features).

    From 1 to 1 / max_period, which is one of them with `endpoint` and otherwise the one after the last.
    """

    frequencies: Tensor

    def __init__(self, features: int, max_period: float = 10_000.0, endpoint: bool = False) -> None:
        super().__init__()
        half = features // 2
        # Not on "meta" either, where arithmetic takes torch a second: it imports its compiler.
        steps = torch.arange(half, dtype=torch.float32, device="cpu") / max(1, half - endpoint)
        self.register_buffer("frequencies", torch.exp(-math.log(max_period) * steps), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Cosines, then sines, of the scalars at each frequency: (B,) to (B, features)."""
        angles = value[:, None] * self.frequencies.to(value.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a map, residual and pre-normalised: (B, C, H, W) -> the same.

    Args:
        norm: of the C channels, before the projections.
        head_width: channels per head, about; 0: one head.
        skip_scale: factor on the sum of the input and what attention adds.
    """

    def __init__(self, norm: nn.GroupNorm, head_width: int = 64, skip_scale: float = 1.0) -> None:
        super().__init__()
        channels = norm.num_channels
        wanted = max(1, channels // head_width) if head_width else 1
        self.heads = next(h for h in range(wanted, 0, -1) if channels % h == 0)
        self.skip_scale = skip_scale
        self.norm = norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x plus multi-head attention over its positions: (B, C, H, W) to the same shape."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(1)  # (B, heads, HW, d)
        attended = F.scaled_dot_product_attention(q, k, v)
        summed = x + self.out(attended.transpose(2, 3).reshape(b, c, h, w))
        return summed if self.skip_scale == 1 else summed * self.skip_scale

"""Latents of finitely many values: finite scalar quantisation, and a codebook of vectors.

Both take a map (B, features, h, w) to one of whole codes, pass the gradient on as if nothing had been rounded, and
number the codes: a map of numbers from 0 to `codes` - 1 can be modelled as any image of such values.

Source: Mentzer et al. 2023, arXiv:2309.15505 (FSQ); van den Oord et al. 2017, arXiv:1711.00937 (VQ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantised(NamedTuple):
    """Whole codes."""

    values: Tensor  # (B, features, h, w), with the gradient of what was rounded
    numbers: Tensor  # int64 (B, h, w)
    loss: Tensor  # (B,), to be added to that of each image


class FSQ(nn.Module):
    """Each feature is bounded, and rounded to one of its levels: a grid of codes, without a codebook to learn.

    Args:
        levels: of each feature, 2 or more; there are as many codes as their product.
    """

    scale: Tensor
    offset: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels, self.features, self.codes = tuple(levels), len(levels), math.prod(levels)
        sizes = torch.tensor(self.levels, dtype=torch.float32)[:, None, None]
        # Values lie at whole numbers, or halfway between where the number of levels is even, in the middle around 0.
        self.register_buffer("scale", (sizes - 1) / 2, persistent=False)
        self.register_buffer("offset", (sizes % 2 == 0).float() / 2, persistent=False)
        basis = torch.tensor([1, *self.levels[:-1]]).cumprod(0)[:, None, None]
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, x: Tensor) -> Quantised:
        """Codes of features, (B, features, h, w), of any size; values are from -1 to 1."""
        bounded = torch.tanh(x) * (self.scale + 0.49)  # so that the outermost levels are as wide as the others
        whole = (bounded - self.offset).round() + self.offset
        whole = whole.clamp(-self.scale, self.scale)
        passed = bounded + (whole - bounded).detach()
        values = passed / self.scale.clamp(min=0.5)
        return Quantised(values, self._number(whole), x.new_zeros(len(x)))

    def _number(self, whole: Tensor) -> Tensor:
        return ((whole + self.scale).round().long() * self.basis).sum(1)

    def values(self, numbers: Tensor) -> Tensor:
        """The values, (B, features, h, w), of the codes of such numbers, (B, h, w)."""
        places = numbers[:, None] // self.basis % torch.tensor(self.levels, device=numbers.device)[:, None, None]
        return (places.to(self.scale.dtype) - self.scale) / self.scale.clamp(min=0.5)


class VQ(nn.Module):
    """The nearest of a codebook of vectors, which follow the features that choose them.

    The loss pulls codes to features, and with a quarter of that weight features to codes.

    Args:
        codes: of the codebook.
        features: of a code.
    """

    COMMITMENT = 0.25

    def __init__(self, codes: int, features: int) -> None:
        super().__init__()
        self.codes, self.features = codes, features
        self.book = nn.Parameter(nn.init.uniform_(torch.empty(codes, features), -1, 1))

    def forward(self, x: Tensor) -> Quantised:
        """Codes of features, (B, features, h, w)."""
        flat = x.movedim(1, -1)  # (B, h, w, features)
        apart = flat.square().sum(-1, keepdim=True) - 2 * flat @ self.book.T + self.book.square().sum(1)
        numbers = apart.argmin(-1)
        chosen = F.embedding(numbers, self.book).movedim(-1, 1)
        pull = (chosen - x.detach()).square() + self.COMMITMENT * (chosen.detach() - x).square()
        return Quantised(x + (chosen - x).detach(), numbers, pull.flatten(1).sum(1))

    def values(self, numbers: Tensor) -> Tensor:
        """The values, (B, features, h, w), of the codes of such numbers, (B, h, w)."""
        return F.embedding(numbers, self.book).movedim(-1, 1)

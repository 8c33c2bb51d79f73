"""Data whose best denoiser is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

VARIANCES = torch.tensor([4.0, 1.0, 0.25, 0.01], dtype=torch.float64).reshape(1, 4, 1, 1)
MEAN = torch.tensor([0.3, -0.2, 0.0, 0.9], dtype=torch.float64).reshape(1, 4, 1, 1)


def exact_denoise(x: Tensor, sigma: float) -> Tensor:
    """The posterior mean for data N(MEAN, VARIANCES): mu + S (S + sigma^2)^-1 (x - mu)."""
    return MEAN + VARIANCES / (VARIANCES + sigma**2) * (x - MEAN)


def exact_solution(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The probability-flow ODE for that data: each direction scales by sqrt((l + end^2) / (l + start^2))."""
    return MEAN + ((VARIANCES + end**2) / (VARIANCES + start**2)).sqrt() * (x - MEAN)


def mixture_denoise(x: Tensor, sigma: float, centres: Tensor, deviation: float, weights: Tensor) -> Tensor:
    """The posterior mean for a mixture of normals of one deviation: x (B, D), centres (K, D), weights (K,)."""
    total = deviation**2 + sigma**2
    logits = weights.log() - (x[:, None] - centres).square().sum(2) / (2 * total)
    means = centres + deviation**2 / total * (x[:, None] - centres)  # (B, K, D)
    return (logits.softmax(1)[:, :, None] * means).sum(1)

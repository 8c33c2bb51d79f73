"""Solvers of the probability-flow ODE of diffusion, as functions of a denoiser.

With noise level sigma as time, the ODE of Karras et al. 2022 (arXiv:2206.00364, eq. 1 with s(t) = 1, sigma(t) = t) is

    dx/dsigma = (x - D(x; sigma)) / sigma,

where D(x; sigma) estimates the clean image. A solver carries x from noise level sigmas[0] to sigmas[-1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x: float (B, C, H, W), sigma: scalar) -> the estimate of the clean image, float (B, C, H, W)."""

Solver = Callable[[Denoise, Tensor, Tensor], Tensor]
"""(denoise, x at noise level sigmas[0], sigmas: decreasing (T + 1,)) -> x at noise level sigmas[-1]."""


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels from sigma_max down to sigma_min in `steps` values, then 0: float64 (steps + 1,).

    sigma_i = (sigma_max^(1/rho) + i / (steps - 1) * (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate the probability-flow ODE with Euler's first-order rule; T network calls. The same as DDIM at eta 0.

    Args:
        x: image at noise level sigmas[0], float (B, C, H, W).
        sigmas: decreasing noise levels, float (T + 1,); the last may be 0.
    """
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        x = x + (following - sigma) * slope
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate the probability-flow ODE with Heun's second-order rule.

    Args:
        x: image at noise level sigmas[0], float (B, C, H, W).
        sigmas: decreasing noise levels, float (T + 1,); 2T network calls, 2T - 1 where the last is 0.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            slope_ahead = (ahead - denoise(ahead, following)) / following
            ahead = x + (following - sigma) * (slope + slope_ahead) / 2
        x = ahead
    return x


SOLVERS: Mapping[str, Solver] = {"euler": euler, "heun": heun}

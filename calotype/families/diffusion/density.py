"""The log density of an image under the probability-flow ODE, of any denoiser.

The ODE dx/dsigma = (x - D(x; sigma)) / sigma carries an image at the smallest noise level r to one at the largest s,
where the density is N(0, s^2 I), about. Along it ln p changes by the divergence of the flow, so over C H W = d values

    ln p(x_r) = ln N(x_s; 0, s^2 I) + d ln(s / r) - integral over ln sigma from ln r to ln s of tr dD/dx.

The trace is exact, by d products with the Jacobian, or estimated from random signs v as the mean of v^T (dD/dx) v.

Source: Song et al. 2021, arXiv:2011.13456, appendix D.2; Hutchinson's estimator as in Grathwohl et al. 2018,
arXiv:1810.01367.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from calotype.core.rng import Noise
from calotype.families.diffusion.solvers import Denoise


def log_density(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None, probes: int = 1) -> Tensor:
    """ln p of images at noise level sigmas[0], in nats: float64 (B,). Heun's rule, two network calls a step.

    Args:
        denoise: differentiable in x.
        x: float (B, C, H, W).
        sigmas: rising noise levels, positive, float (T + 1,).
        noise: of these images, for the random signs; None for the exact trace, which costs d times as much.
        probes: random signs per image and step.
    """
    signs = None if noise is None else [noise.normal(*x.shape[1:]).sign().to(x) for _ in range(probes)]
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for sigma, following in pairwise(sigmas.tolist()):
        clean, trace = _with_trace(denoise, x, sigma, signs)
        slope = (x - clean) / sigma
        ahead = x + (following - sigma) * slope
        clean, trace_ahead = _with_trace(denoise, ahead, following, signs)
        x = x + (following - sigma) * (slope + (ahead - clean) / following) / 2
        total += math.log(following / sigma) * (trace + trace_ahead) / 2
    low, high = float(sigmas[0]), float(sigmas[-1])
    d = x[0].numel()
    end = -x.double().square().flatten(1).sum(1) / (2 * high**2) - d * (math.log(high) + math.log(2 * math.pi) / 2)
    return end + d * math.log(high / low) - total


def _with_trace(denoise: Denoise, x: Tensor, sigma: float, signs: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """The estimate of the clean image, and the trace of its Jacobian: float64 (B,)."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        clean = denoise(at, sigma)
        if signs is None:
            units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
            directions = [unit.expand_as(x) for unit in units]
        else:
            directions = signs
        products = [
            (v * torch.autograd.grad(clean, at, v, retain_graph=k + 1 < len(directions))[0]).flatten(1).double().sum(1)
            for k, v in enumerate(directions)
        ]
    return clean.detach(), sum(products[1:], products[0]) / (1 if signs is None else len(signs))

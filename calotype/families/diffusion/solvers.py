"""Solvers of diffusion: they carry an image from one noise level to another, as functions of a denoiser.

With noise level sigma as time, the probability-flow ODE of Karras et al. 2022 (arXiv:2206.00364, eq. 1 with s(t) = 1,
sigma(t) = t) is

    dx/dsigma = (x - D(x; sigma)) / sigma,

where D(x; sigma) estimates the clean image. Images are unscaled, x = y + sigma n; a process that the literature scales
by alpha is the same seen as x_t / alpha, and the rules below come out the same for it. In lambda = -ln sigma,

    x(t) = sigma_t / sigma_s x(s) + sigma_t * integral from lambda_s to lambda_t of e^l D(l) dl,

which the exponential integrators (DPM-Solver++, UniPC) solve with D as a polynomial in lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import expm1, factorial, log

import torch
from torch import Tensor

from calotype.core.rng import Noise

Denoise = Callable[[Tensor, float], Tensor]
"""(x: float (B, C, H, W), sigma) -> the estimate of the clean image, float (B, C, H, W)."""

Solver = Callable[[Denoise, Tensor, Tensor, Noise, float], Tensor]
"""(denoise, x at noise level sigmas[0], sigmas: decreasing (T + 1,), noise, stochasticity) -> x at sigmas[-1].

`stochasticity` 0 is the rule as it stands; what more of it means is said where a solver takes it. Noise levels and what
is computed from them are Python's numbers: exact to 16 digits whatever the images are, and no work for a GPU.
"""


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, stochasticity: float = 0.0) -> Tensor:
    """Integrate the probability-flow ODE with Euler's first-order rule; T network calls.

    Args:
        x: image at noise level sigmas[0], float (B, C, H, W).
        sigmas: decreasing noise levels, float (T + 1,); the last may be 0.
        noise: what churn adds.
        stochasticity: churn, see `churned`.
    """
    for sigma, following in pairwise(sigmas.tolist()):
        x, sigma = churned(x, sigma, noise, stochasticity, len(sigmas) - 1)
        slope = (x - denoise(x, sigma)) / sigma
        x = x + (following - sigma) * slope
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, stochasticity: float = 0.0) -> Tensor:
    """Integrate the probability-flow ODE with Heun's second-order rule.

    Args:
        x: image at noise level sigmas[0], float (B, C, H, W).
        sigmas: decreasing noise levels, float (T + 1,); 2T network calls, 2T - 1 where the last is 0.
        noise: what churn adds.
        stochasticity: churn, see `churned`.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2.
    """
    for sigma, following in pairwise(sigmas.tolist()):
        x, sigma = churned(x, sigma, noise, stochasticity, len(sigmas) - 1)
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            slope_ahead = (ahead - denoise(ahead, following)) / following
            ahead = x + (following - sigma) * (slope + slope_ahead) / 2
        x = ahead
    return x


def churned(x: Tensor, sigma: float, noise: Noise, churn: float, steps: int) -> tuple[Tensor, float]:
    """Raise the noise level by fresh noise before a step, to sigma * (1 + min(churn / steps, sqrt(2) - 1)).

    What a step then removes is partly new: errors of earlier steps are forgotten, and more steps are needed.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2, with S_noise = 1 and at every noise level.
    """
    if churn == 0:
        return x, sigma
    raised = sigma * (1 + min(churn / steps, 2**0.5 - 1))
    return x + (raised**2 - sigma**2) ** 0.5 * noise.normal(*x.shape[1:]).to(x), raised


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, stochasticity: float = 0.0) -> Tensor:
    """DDIM: keep part of the noise that is seen in x, and draw the rest anew; T network calls.

    With eta = `stochasticity`, from noise level s to t:

        fresh^2 = eta^2 t^2 (s^2 - t^2) / s^2,    x_t = D + sqrt(t^2 - fresh^2) (x_s - D) / s + fresh n

    eta = 0 is Euler's rule; eta = 1 samples the posterior q(x_t | x_s, D) of DDPM.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16, unscaled.
    """
    for sigma, following in pairwise(sigmas.tolist()):
        clean = denoise(x, sigma)
        fresh = stochasticity * following * (1 - (following / sigma) ** 2) ** 0.5
        x = _renewed(x, clean, sigma, following, fresh, (following**2 - fresh**2) ** 0.5 / sigma, noise)
    return x


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, stochasticity: float = 0.0) -> Tensor:
    """Ancestral sampling of DDPM; T network calls, and it wants many.

    From noise level s to t, the posterior q(x_t | x_s, D) has mean D + t^2 / s^2 (x_s - D) and variance
    t^2 (s^2 - t^2) / s^2, the smaller of the two that DDPM tried; this is `ddim` at eta = 1. The larger is the variance
    that the forward process adds, (1 + t^2) (s^2 - t^2) / (1 + s^2), and with it the published figures were made.
    `stochasticity` 0 takes the smaller, 1 the larger, and between them the logarithm is interpolated.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7 and section 3.2, unscaled; Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 15, for the interpolation.
    """
    for sigma, following in pairwise(sigmas.tolist()):
        clean = denoise(x, sigma)
        between = sigma**2 - following**2
        smaller, larger = following**2 * between / sigma**2, (1 + following**2) * between / (1 + sigma**2)
        fresh = (smaller ** (1 - stochasticity) * larger**stochasticity) ** 0.5
        x = _renewed(x, clean, sigma, following, fresh, (following / sigma) ** 2, noise)
    return x


def _renewed(
    x: Tensor, clean: Tensor, sigma: float, following: float, fresh: float, kept: float, noise: Noise
) -> Tensor:
    """The clean image with a share of what was seen beyond it and fresh noise; none where the noise level is 0."""
    x = clean + kept * (x - clean)
    return x + fresh * noise.normal(*x.shape[1:]).to(x) if fresh and following > 0 else x


def dpm2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, stochasticity: float = 0.0) -> Tensor:
    """DPM-Solver++(2M): second order by the slope of D since the step before; T network calls.

    The first step is of first order, and so is a step to 0, which returns D.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    before: tuple[Tensor, float] | None = None  # D and lambda of the step before
    for sigma, following in pairwise(sigmas.tolist()):
        clean, place = denoise(x, sigma), -log(sigma)
        ahead = clean
        if before is not None and following > 0:
            step = -log(following) - place
            ahead = clean + step / (2 * (place - before[1])) * (clean - before[0])
        x = following / sigma * x + (1 - following / sigma) * ahead
        before = clean, place
    return x


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, stochasticity: float = 0.0) -> Tensor:
    """UniPC-2: a second-order predictor, and a corrector that uses the next call's D for the step behind it; T calls.

    Both take D as the polynomial in lambda through the known values, see `_weights`; but where there is one difference
    of D, its weight is 1/2 as in the authors' code, the limit for small steps: with few, long steps the ends are half
    as far off as with the weight of the equations. The order is 3 where the corrector follows; the step to 0 returns D.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8, in data prediction; github.com/wl-zhao/UniPC,
    uni_pc.py, for the weight 1/2.
    """
    known: list[tuple[Tensor, float]] = []  # (D, lambda), newest first
    behind: tuple[Tensor, float] | None = None  # x and sigma before the last step, for the corrector
    for sigma, following in pairwise(sigmas.tolist()):
        clean, place = denoise(x, sigma), -log(sigma)
        if behind is not None:
            x = _exponential_step(*behind, sigma, [known[0], (clean, place), *known[1:2]])
        known = [(clean, place), *known[:1]]
        behind = x, sigma
        x = clean if following == 0 else _exponential_step(x, sigma, following, known)
    return x


def _exponential_step(x: Tensor, sigma: float, following: float, known: list[tuple[Tensor, float]]) -> Tensor:
    """x at noise level `following`, with D through the known (value, lambda), the first of which is of `sigma`."""
    start = known[0][1]
    step = -log(following) - start
    growth = expm1(-step)  # following / sigma - 1
    result = following / sigma * x - growth * known[0][0]
    places = [(place - start) / step for _, place in known[1:]]
    for weight, place, (value, _) in zip(_weights(places, step), places, known[1:], strict=True):
        result = result - growth * weight / place * (value - known[0][0])
    return result


def _weights(places: list[float], step: float) -> list[float]:
    """The weights a of the differences of D: sum_i a_i r_i^(k-1) = k! h phi_(k+1)(-h) / (1 - e^-h) for k = 1, 2, ...

    r_i are the places of the values in steps of length h, phi_1(z) = (e^z - 1) / z and
    phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z. A single weight is 1/2, see `unipc`.
    """
    if len(places) == 1:
        return [0.5]
    phi, moments = expm1(-step) / -step, []
    for k in range(1, len(places) + 1):
        phi = (phi - 1 / factorial(k)) / -step
        moments.append(phi * factorial(k) * -step / expm1(-step))
    powers = torch.tensor(
        [[place ** (k - 1) for place in places] for k in range(1, len(places) + 1)], dtype=torch.float64
    )
    return torch.linalg.solve(powers, powers.new_tensor(moments)).tolist() if places else []


SOLVERS: Mapping[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm2m": dpm2m,
    "unipc": unipc,
}


def network_calls(solver: str, steps: int) -> int:
    """The number of network calls of a solver for `steps` steps, the last of them to 0."""
    return 2 * steps - 1 if solver == "heun" else steps


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels from sigma_max down to sigma_min in `steps` values: float64 (steps,).

    sigma_i = (sigma_max^(1/rho) + i / (steps - 1) * (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + ramp * (low - high)) ** rho

"""Noise schedules: the distribution of noise levels in training, and how the network is conditioned on them.

Noise levels are sigma in x = y + sigma * n. A schedule says how often each is met in training (as the quantile function
of that distribution), at which scale x is handed to the network (c_in), by which number the network knows the level
(c_noise), and between which levels it reaches.

    lognormal  ln sigma ~ N(noise_mean, noise_std^2);  c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma) / 4
               Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    linear     t uniform in 1..1000, beta_t rising linearly from 1e-4 to 0.02, abar_t = prod(1 - beta),
               sigma_t = sqrt((1 - abar_t) / abar_t);  c_in = sqrt(abar_t) = 1 / sqrt(1 + sigma^2), c_noise = t - 1
               Source: Ho et al. 2020, arXiv:2006.11239, section 4.
    cosine     the same with abar_t = f(t) / f(0), f(t) = cos((t / 1000 + 0.008) / 1.008 * pi / 2)^2, beta_t <= 0.999
               Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
    flow       x_t = (1 - t) y + t n, so sigma = t / (1 - t);  t uniform in (0, 1), or where noise_std > 0
               logit(t) = ln sigma ~ N(noise_mean, noise_std^2);  c_in = 1 - t, c_noise = 1000 t
               Source: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206, eq. 19.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

STEPS = 1000  # of the discrete schedules, as published
# Sampling starts no higher, unless told to: nothing of an image is left to see there. The cosine schedule goes on to
# 20000, where the least error of a predicted noise is an image a hundred times too bright.
FARTHEST = 80.0


class Schedule(ABC):
    """Noise levels of training and sampling; all methods work in the dtype and on the device of their argument."""

    smallest: float  # the noise levels between which it reaches
    largest: float
    spacing = "logsnr"  # of the levels that samples are drawn at, unless something else is asked for

    @abstractmethod
    def draw(self, u: Tensor) -> Tensor:
        """The noise level below which a share u of those met in training lies; u in [0, 1)."""

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """c_in, the factor on x before the network."""

    @abstractmethod
    def condition(self, sigma: Tensor) -> Tensor:
        """c_noise, the number by which the network knows the noise level."""

    @abstractmethod
    def levels(self, times: Tensor) -> Tensor:
        """Noise levels by the schedule's own time: 1 is `largest`, 0 is `smallest`."""


class LogNormal(Schedule):
    """EDM's distribution. Its own time is ln sigma."""

    spacing = "karras"

    def __init__(self, mean: float, std: float, sigma_data: float) -> None:
        self.mean, self.std, self.sigma_data = mean, std, sigma_data
        # Two and a half grey levels, which the last call removes. EDM goes on to 0.002: of few calls those below are
        # lost, and short trainings hardly meet such levels.
        self.smallest = 0.02
        self.largest = FARTHEST

    def draw(self, u: Tensor) -> Tensor:
        """The quantile u in [0, 1) of the log-normal distribution of sigma; same shape as u."""
        return _lognormal(u, self.mean, self.std)

    def scale(self, sigma: Tensor) -> Tensor:
        """c_in = 1 / sqrt(sigma² + sigma_data²); same shape as sigma."""
        return (sigma.square() + self.sigma_data**2).rsqrt()

    def condition(self, sigma: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4; same shape as sigma."""
        return sigma.log() / 4

    def levels(self, times: Tensor) -> Tensor:
        """Geometric interpolation from `smallest` at time 0 to `largest` at time 1; same shape as times."""
        return self.smallest * (self.largest / self.smallest) ** times


def _lognormal(u: Tensor, mean: float, std: float) -> Tensor:
    edge = torch.finfo(u.dtype).eps  # `uniform` gives 0, where the quantile is not finite
    return (mean + std * torch.special.ndtri(u.clamp(edge, 1 - edge))).exp()


class Discrete(Schedule):
    """A thousand steps of a variance-preserving process; between the steps ln sigma is interpolated."""

    def __init__(self, betas: Tensor) -> None:
        kept = (1 - betas.double()).cumprod(0)
        self.table = ((1 - kept) / kept).sqrt()  # rises with t
        self.smallest, self.largest = float(self.table[0]), float(self.table[-1])
        self._logs: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def draw(self, u: Tensor) -> Tensor:
        """The table's entry at the share u in [0, 1) of its length; same shape as u."""
        index = (u * len(self.table)).long().clamp(max=len(self.table) - 1)
        return self._log_table(u)[index].exp()

    def scale(self, sigma: Tensor) -> Tensor:
        """c_in = 1 / sqrt(1 + sigma²), which makes the process variance-preserving; same shape as sigma."""
        return (1 + sigma.square()).rsqrt()

    def condition(self, sigma: Tensor) -> Tensor:
        """c_noise: the step, from 0 to 999, interpolated linearly in ln sigma; same shape as sigma."""
        known, wanted = self._log_table(sigma), sigma.log()
        upper = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        low, high = known[upper - 1], known[upper]
        return upper - 1 + ((wanted - low) / (high - low)).clamp(0, 1)

    def levels(self, times: Tensor) -> Tensor:
        """Noise levels at times in [0, 1] of the table, interpolated linearly in ln sigma; same shape as times."""
        known = self._log_table(times)
        place = times * (len(known) - 1)
        lower = place.floor().long().clamp(0, len(known) - 2)
        return (known[lower] + (place - lower) * (known[lower + 1] - known[lower])).exp()

    def _log_table(self, like: Tensor) -> Tensor:
        """The logarithms of the table in a dtype and on a device; first the dtype, since not all have float64."""
        key = like.dtype, like.device
        if key not in self._logs:
            self._logs[key] = self.table.log().to(like.dtype).to(like.device)
        return self._logs[key]


class Flow(Schedule):
    """Straight paths from image to noise. Its own time is t."""

    spacing = "time"

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.smallest, self.largest = 1e-3, 999.0  # t = 0.001 and 0.999: sigma has no end at t = 1

    def draw(self, u: Tensor) -> Tensor:
        """sigma = t / (1 - t) at quantile u in [0, 1): t is logit-normal if `std` is positive, otherwise uniform."""
        if self.std > 0:
            return _lognormal(u, self.mean, self.std)
        t = u.clamp(self.smallest / (1 + self.smallest), self.largest / (1 + self.largest))
        return t / (1 - t)

    def scale(self, sigma: Tensor) -> Tensor:
        """c_in = 1 / (1 + sigma) = 1 - t; same shape as sigma."""
        return 1 / (1 + sigma)

    def condition(self, sigma: Tensor) -> Tensor:
        """c_noise = 1000 t, with t = sigma / (1 + sigma); same shape as sigma."""
        return STEPS * sigma / (1 + sigma)

    def levels(self, times: Tensor) -> Tensor:
        """Noise levels at times in [0, 1], interpolated linearly in t; same shape as times."""
        low, high = self.smallest / (1 + self.smallest), self.largest / (1 + self.largest)
        t = low + times * (high - low)
        return t / (1 - t)


def linear_betas() -> Tensor:
    """The variances added per step, rising linearly: float64 (1000,)."""
    return torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64, device="cpu")


def cosine_betas() -> Tensor:
    """The variances added per step of the cosine schedule: float64 (1000,)."""
    t = torch.arange(STEPS + 1, dtype=torch.float64, device="cpu") / STEPS
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


SCHEDULES: Mapping[str, Callable[[float, float, float], Schedule]] = {
    "lognormal": LogNormal,
    "linear": lambda mean, std, sigma_data: Discrete(linear_betas()),
    "cosine": lambda mean, std, sigma_data: Discrete(cosine_betas()),
    "flow": lambda mean, std, sigma_data: Flow(mean, std),
}
"""name -> (noise_mean, noise_std, sigma_data) -> the schedule."""

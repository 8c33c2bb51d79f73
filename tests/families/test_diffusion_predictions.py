"""What networks predict: each quantity by its own definition, and every conversion between them to 1e-12."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from calotype.core.rng import Noise
from calotype.families.diffusion.predictions import PREDICTIONS, convert

SIGMA = torch.logspace(-3, 2.5, 60, dtype=torch.float64)
SIGMA_DATA = 0.6
Y = Noise.shared(0, 60, "cpu").normal().double()
N = Noise.shared(1, 60, "cpu").normal().double()
X = Y + SIGMA * N


def by_definition(name: str) -> Tensor:
    """The target in the words of its paper, from image and noise."""
    alpha = (1 + SIGMA**2).rsqrt()  # variance-preserving: alpha^2 + s^2 = 1, s / alpha = sigma
    t = SIGMA / (1 + SIGMA)  # straight path: x_t = (1 - t) y + t n
    total = SIGMA**2 + SIGMA_DATA**2
    return {
        "eps": N,
        "x0": Y,
        "v": alpha * N - SIGMA * alpha * Y,
        "velocity": ((1 - (t + 1e-3)) * Y + (t + 1e-3) * N - ((1 - t) * Y + t * N)) / 1e-3,  # d x_t / dt
        "edm": (Y - SIGMA_DATA**2 / total * X) / (SIGMA * SIGMA_DATA / total.sqrt()),
    }[name]


@pytest.mark.parametrize("name", PREDICTIONS)
def test_targets_are_the_published_ones(name: str) -> None:
    target = PREDICTIONS[name](SIGMA, SIGMA_DATA).target(X, Y)
    # (y - c_skip x) / c_out loses what y is larger than c_out: a factor of 1 / sigma at the smallest levels.
    torch.testing.assert_close(target, by_definition(name), rtol=1e-12, atol=3e-12)


@pytest.mark.parametrize(("given", "wanted"), [*itertools.product(PREDICTIONS, PREDICTIONS)])
def test_conversions_are_identities(given: str, wanted: str) -> None:
    a, b = (PREDICTIONS[name](SIGMA, SIGMA_DATA) for name in (given, wanted))
    there = convert(by_definition(given), X, a, b)
    # What the other network would have said, up to the digits that x = y + sigma n lost of the smaller part.
    size = (1 + SIGMA + 1 / SIGMA) * (1 + Y.abs() + N.abs())
    assert float(((there - by_definition(wanted)).abs() / size).max()) < 1e-12
    clean = b.clean(X, there)
    torch.testing.assert_close(clean, Y, rtol=1e-12, atol=1e-12)  # the same clean image, whoever said it
    back = convert(there, X, b, a)
    torch.testing.assert_close(a.clean(X, back), Y, rtol=1e-12, atol=1e-12)


def test_edm_has_unit_scales() -> None:
    """EDM asks that the network's effective target have variance 1 at every noise level."""
    n = 200_000
    y, e = SIGMA_DATA * Noise.shared(1, n, "cpu").normal().double(), Noise.shared(2, n, "cpu").normal().double()
    for sigma in torch.tensor([0.01, 0.3, 1.0, 40.0], dtype=torch.float64):
        target = PREDICTIONS["edm"](sigma, SIGMA_DATA).target(y + sigma * e, y)
        assert float(target.var()) == pytest.approx(1, abs=0.02)  # 6 * sqrt(2 / n)


def test_the_flow_of_a_gaussian_has_the_known_velocity() -> None:
    """v*(x, t) = -mu + (t - (1 - t) S) ((1 - t)^2 S + t^2)^-1 (x_t - (1 - t) mu), here in one dimension."""
    mu, variance = 0.4, 0.3
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    xt = torch.linspace(-2, 2, 19, dtype=torch.float64)
    sigma, x = t / (1 - t), xt / (1 - t)
    clean = mu + variance / (variance + sigma**2) * (x - mu)
    velocity = PREDICTIONS["velocity"](sigma, SIGMA_DATA).target(x, clean)
    # E[n - y | x_t] for y ~ N(mu, variance), n ~ N(0, 1): covariance of (n - y) with x_t over the variance of x_t.
    expected = -mu + (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2) * (xt - (1 - t) * mu)
    torch.testing.assert_close(velocity, expected, rtol=1e-12, atol=1e-12)

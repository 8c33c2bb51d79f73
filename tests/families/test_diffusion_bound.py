"""The variational bound against closed forms: normal data, for which likelihood and denoiser are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from calotype.core.images import to_unit
from calotype.core.rng import Noise
from calotype.families.diffusion.bound import CHOICES, path, pixel_nats, variational_bits

SIDE = 12
AXIS = torch.arange(SIDE, dtype=torch.float64)
ALONG = 0.7 ** (AXIS[:, None] - AXIS).abs()
COVARIANCE = 0.04 * torch.kron(ALONG, ALONG)  # smooth images: neighbours correlate by 0.7
VARIANCES, BASIS = torch.linalg.eigh(COVARIANCE)
MEAN = 0.1


def images(n: int, seed: int) -> Tensor:
    drawn = Noise.shared(seed, n, "cpu").normal(SIDE**2).double() @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    return ((drawn + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).reshape(n, 1, SIDE, SIDE)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    along = (x.flatten(1) - MEAN) @ BASIS * VARIANCES / (VARIANCES + sigma.reshape(-1, 1) ** 2)
    return (MEAN + along @ BASIS.T).reshape(x.shape)


def exact_bits(of: Tensor) -> Tensor:
    """-log2 p of 8-bit images, per dimension. A cell is 0.0078 wide and the density varies over 0.05 and more."""
    density = torch.distributions.MultivariateNormal(torch.full((SIDE**2,), MEAN, dtype=torch.float64), COVARIANCE)
    nats = -density.log_prob(to_unit(of, torch.float64).flatten(1)) - SIDE**2 * math.log(2 / 255)
    return nats / (SIDE**2 * math.log(2))


def test_the_bound_of_the_exact_denoiser_is_tight() -> None:
    some = images(24, 0)
    bits = variational_bits(denoise, some, Noise.shared(1, 24, "cpu"), 80.0)
    assert bits.dtype == torch.float64
    gap = bits - exact_bits(some)
    choice = math.log2(CHOICES) / SIDE**2
    error = float(gap.std()) / math.sqrt(24)
    # A bound, by more than its draws can hide; and tight: what pixels drawn apart from each other cost at a noise of
    # a grey level or two is below a twentieth of a bit.
    assert -3 * error < float(gap.mean()) < choice + 0.05 + 3 * error


def test_a_worse_denoiser_has_a_worse_bound() -> None:
    some = images(24, 0)
    best, worse = (
        variational_bits(lambda x, s, c=c: c * denoise(x, s), some, Noise.shared(1, 24, "cpu"), 80.0).mean()
        for c in (1.0, 0.9)
    )
    assert worse > best + 0.1


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.02), (0.16, 3.0), (0.02, 80.0)])
def test_the_path_is_that_of_immse(low: float, high: float) -> None:
    """1/2 integral of mmse d snr = 1/2 sum ln((1 + l snr_max) / (1 + l snr_min)) for normal data."""
    n = 400
    y = Noise.shared(0, n, "cpu").normal(SIDE**2).double() @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    found = path(denoise, y.reshape(n, 1, SIDE, SIDE), Noise.shared(1, n, "cpu"), low, high, 16)
    exact = 0.5 * ((1 + VARIANCES / low**2) / (1 + VARIANCES / high**2)).log().sum()
    assert float(found.mean()) == pytest.approx(float(exact), abs=4 * float(found.std()) / math.sqrt(n))


def test_the_path_does_not_depend_on_how_it_is_cut() -> None:
    y = to_unit(images(300, 3), torch.float64)
    whole = path(denoise, y, Noise.shared(1, 300, "cpu"), 0.02, 5.0, 40)
    parts = sum(
        path(denoise, y, Noise.shared(k, 300, "cpu"), a, b, 20) for k, (a, b) in enumerate([(0.02, 0.3), (0.3, 5.0)], 2)
    )
    error = math.sqrt((float(whole.var()) + float(parts.var())) / 300)
    # The same images on both sides: only the draws differ.
    assert float((whole - parts).mean()) == pytest.approx(0, abs=4 * error)


@pytest.mark.parametrize("deviation", [1e-3, 0.01, 50.0])
def test_the_probabilities_of_all_images_sum_to_one(deviation: float) -> None:
    """Of two pixels, over all 65,536 images; each probability is good to six digits."""
    levels = torch.arange(256, dtype=torch.uint8)
    every = torch.cartesian_prod(levels, levels).reshape(-1, 1, 1, 2)
    seen = torch.tensor([0.3, -1.2], dtype=torch.float64).reshape(1, 1, 1, 2)
    parts = (pixel_nats(seen.expand(len(part), 1, 1, 2), deviation, part) for part in every.split(8192))
    total = sum((-nats).exp().sum(1) for nats in parts)
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_plain_background_costs_little_once_its_histogram_is_found() -> None:
    """Nine tenths of the pixels are black: knowing each up to a noise of five grey levels, the rest is inferred."""
    n = 2000
    picture = torch.where(torch.arange(n) % 10 == 0, torch.arange(n) % 256, 0).to(torch.uint8).reshape(1, 1, 1, n)
    seen = to_unit(picture, torch.float64) + 0.04 * Noise.shared(0, 1, "cpu").normal(1, 1, n).double()
    flat, found = (pixel_nats(seen, 0.04, picture)[:, 0] / n).tolist()
    # Flat: half of the greys around black are impossible. Found: a tenth of the pixels at their cost of 3.05 nats
    # (ln(0.04 * 127.5) + ln(2 pi e) / 2), and which they are, at most 0.33 nats a pixel.
    assert flat > 2
    assert found < 0.1 * 3.05 + 0.33 + 0.2


def test_values_far_outside_give_numbers() -> None:
    seen = torch.tensor([100.0, -3.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    assert bool(torch.isfinite(pixel_nats(seen, 0.00175, torch.zeros(1, 1, 1, 2, dtype=torch.uint8))).all())

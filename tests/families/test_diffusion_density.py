"""The density of the probability-flow ODE against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.families.diffusion import Diffusion, DiffusionConfig
from calotype.families.diffusion.density import log_density
from calotype.families.diffusion.solvers import karras
from tests.gaussian import MEAN, VARIANCES, exact_denoise, mixture_denoise

LOW, HIGH = 0.05, 1e5


def test_of_normal_data() -> None:
    x = MEAN + VARIANCES.sqrt() * Noise.shared(0, 5, "cpu").normal(4, 1, 1).double()
    exact = torch.distributions.Normal(MEAN, (VARIANCES + LOW**2).sqrt()).log_prob(x).flatten(1).sum(1)
    ends = math.log(LOW), math.log(HIGH)
    levels = [torch.linspace(*ends, n + 1, dtype=torch.float64).exp() for n in (400, 800)]
    coarse, fine = ((log_density(exact_denoise, x, at, None) - exact).abs().max() for at in levels)
    # The end is taken for N(0, HIGH^2), off by |mean x| / HIGH^2, some 1e-5; the rule is of second order.
    assert fine < 1e-3
    assert coarse / fine == pytest.approx(4, rel=0.1)


def mixture(x: Tensor, sigma: float) -> Tensor:
    centres = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.5, 1.0]], dtype=x.dtype)
    return mixture_denoise(x.flatten(1), sigma, centres, 0.3, torch.tensor([0.3, 0.7], dtype=x.dtype)).reshape(x.shape)


def test_random_signs_are_unbiased() -> None:
    """Of a mixture, whose Jacobian is full; mean and spread over many draws."""
    n = 600
    x = torch.tensor([0.4, 0.2, -0.6], dtype=torch.float64).reshape(1, 3, 1, 1)
    levels = karras(21, 0.05, 50.0, 7.0).flip(0)
    exact = log_density(mixture, x, levels, None)
    drawn = log_density(mixture, x.expand(n, -1, -1, -1), levels, Noise.shared(1, n, "cpu"))
    error = float(drawn.std()) / math.sqrt(n)
    assert 0 < error
    assert float(drawn.mean()) == pytest.approx(float(exact), abs=4 * error)
    more = log_density(mixture, x.expand(n, -1, -1, -1), levels, Noise.shared(1, n, "cpu"), probes=8)
    assert float(more.std()) < float(drawn.std()) / 2  # by the square root of 8


def test_an_untrained_model_has_the_density_that_it_starts_from() -> None:
    """EDM's denoiser with a network of zeros is that of N(0, sigma_data^2): in bits, of dequantised pixels."""
    spec, sd = ImageSpec(1, 8, 8), 0.3
    with seeded(0):
        model = Diffusion(spec, DiffusionConfig(widths=(16,), attention=(), sigma_data=sd)).double().to_eval()
    images = ((Noise.shared(0, 16, "cpu").normal(*spec.shape) * sd + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    bits = model.density_bits(Batch(images, None), Noise.shared(1, 16, "cpu"), steps=100)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * (sd**2 + model.schedule.smallest**2)) - math.log2(2 / 255)
    assert bits.kind == "estimate"
    deviation = 1 / math.log(2) / math.sqrt(2 * 16 * spec.dims)  # of the mean of -log2 p over the pixels
    assert float(bits.per_image.mean()) == pytest.approx(entropy, abs=4 * deviation)

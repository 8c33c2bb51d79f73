"""Diffusion against closed forms: for Gaussian data the denoiser and the solution of the ODE are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calotype.errors import ConfigError
from calotype.families.diffusion import Diffusion, DiffusionConfig, DiffusionOptions
from calotype.families.solvers import SOLVERS, Solver, karras_sigmas
from calotype.images import to_unit
from calotype.model import Batch, ImageSpec
from calotype.rng import Noise, seeded

VARIANCES = torch.tensor([4.0, 1.0, 0.25, 0.01], dtype=torch.float64).reshape(1, 4, 1, 1)
MEAN = torch.tensor([0.3, -0.2, 0.0, 0.9], dtype=torch.float64).reshape(1, 4, 1, 1)


def exact_denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean for data N(MEAN, VARIANCES): mu + S (S + sigma^2)^-1 (x - mu)."""
    return MEAN + VARIANCES / (VARIANCES + sigma**2) * (x - MEAN)


def exact_solution(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The probability-flow ODE for that data: each direction scales by sqrt((l + end^2) / (l + start^2))."""
    return MEAN + ((VARIANCES + end**2) / (VARIANCES + start**2)).sqrt() * (x - MEAN)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver: str, order: int) -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4, 1, 1) * 10
    steps, errors = [32, 64, 128, 256, 512], []
    for count in steps:
        sigmas = karras_sigmas(count + 1, 0.05, 10.0, 7.0)[:-1]  # ends above 0: the last step to 0 is first order
        result = SOLVERS[solver](exact_denoise, x, sigmas)
        errors.append(float((result - exact_solution(x, sigmas[0], sigmas[-1])).abs().max()))
    slope = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
    assert abs(slope - order) < 0.15


@pytest.mark.parametrize(("solver", "calls"), [("euler", 9), ("heun", 17)])
def test_network_calls(solver: str, calls: int) -> None:
    counted = 0

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal counted
        counted += 1
        return exact_denoise(x, sigma)

    SOLVERS[solver](denoise, torch.ones(1, 4, 1, 1, dtype=torch.float64), karras_sigmas(9, 0.002, 80.0, 7.0))
    assert counted == calls


@pytest.mark.parametrize("solver", SOLVERS.values())
def test_sampling_gaussian_data_gives_its_moments(solver: Solver) -> None:
    n = 20_000
    start = Noise.shared(0, n, "cpu").normal(4, 1, 1).double() * 80
    images = solver(exact_denoise, start, karras_sigmas(200, 0.002, 80.0, 7.0))
    # The mean of n values has standard deviation sqrt(l / n), their variance l * sqrt(2 / n); five of them, plus what
    # a first-order rule leaves after 200 steps (1 %).
    assert bool(((images.mean(0) - MEAN[0]).abs() < 5 * (VARIANCES[0] / n).sqrt() + 0.01).all())
    assert bool(((images.var(0) / VARIANCES[0] - 1).abs() < 5 * math.sqrt(2 / n) + 0.05).all())


def test_sigmas_follow_the_formula() -> None:
    sigmas = karras_sigmas(18, 0.002, 80.0, 7.0)
    assert sigmas.shape == (19,)
    assert sigmas[0] == pytest.approx(80, rel=1e-12)
    assert sigmas[17] == pytest.approx(0.002, rel=1e-12)
    assert sigmas[18] == 0
    assert sigmas[5] == pytest.approx((80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rel=1e-12)
    assert bool((sigmas[1:] < sigmas[:-1]).all())
    assert karras_sigmas(1, 0.002, 80.0, 7.0).tolist() == pytest.approx([80, 0])


SPEC = ImageSpec(1, 8, 8)


def make(spec: ImageSpec = SPEC, seed: int = 0, **settings: object) -> Diffusion:
    config = DiffusionConfig(**{"widths": (16, 16), "blocks": 1, "sigma_data": 0.5} | settings)  # type: ignore[arg-type]
    with seeded(seed):
        return Diffusion(spec, config)


def test_preconditioning_has_unit_scales() -> None:
    """EDM asks that the network's input and its effective target have variance 1 at every noise level."""
    sd, n = 0.5, 200_000
    noise = Noise.shared(1, n, "cpu")
    y, e = sd * noise.normal().double(), noise.normal().double()
    for sigma in (0.01, 0.3, 1.0, 40.0):
        c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / math.hypot(sigma, sd)
        x = y + sigma * e
        assert float((x / math.hypot(sigma, sd)).var()) == pytest.approx(1, abs=0.02)  # 6 * sqrt(2 / n)
        assert float(((y - c_skip * x) / c_out).var()) == pytest.approx(1, abs=0.02)


def test_an_untrained_model_returns_the_preconditioned_input() -> None:
    model = make()  # its last layer starts at zero
    x = torch.linspace(-3, 3, 2 * 64).reshape(2, 1, 8, 8)
    sigma = torch.tensor([0.1, 5.0])
    expected = (0.25 / (sigma**2 + 0.25)).reshape(2, 1, 1, 1) * x
    torch.testing.assert_close(model.denoise(x, sigma, None), expected)


def test_an_untrained_loss_is_the_known_one() -> None:
    """With F = 0 the expected loss is E[(c_skip x - y)^2] / c_out^2 = 1 for centred data of variance sigma_data^2."""
    n = 4000
    values = torch.where(torch.arange(n * 64).reshape(n, 1, 8, 8) % 2 == 0, 64, 191).to(torch.uint8)
    model = make(sigma_data=float(to_unit(values).std()))
    loss = model.loss(Batch(values, None), Noise.shared(0, n, "cpu"))
    # Per image and level the weighted error has mean 1; over 256,000 values six deviations are below 0.02.
    assert loss.value.item() == pytest.approx(1, abs=0.02)


def test_loss_of_the_exact_denoiser_is_smaller_than_of_any_other() -> None:
    """One-dimensional Gaussian data: the loss of c * D* is smallest at c = 1."""
    y = Noise.shared(2, 50_000, "cpu").normal().double() * 0.5
    sigma = (Noise.shared(3, 50_000, "cpu").normal().double() * 1.2 - 1.2).exp()
    x = y + sigma * Noise.shared(4, 50_000, "cpu").normal().double()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    best: Callable[[float], float] = lambda c: float((weight * (c * 0.25 / (0.25 + sigma**2) * x - y) ** 2).mean())  # noqa: E731
    assert best(1.0) < best(0.97)
    assert best(1.0) < best(1.03)


def test_sigma_data_is_measured() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(50).reshape(4, 1, 5, 5)
    measured = Diffusion.measured(DiffusionConfig(), images)
    assert measured.sigma_data == 1  # half of the values at -1, half at 1
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = float(to_unit(grey, torch.float64).std(correction=0))
    assert Diffusion.measured(DiffusionConfig(), grey).sigma_data == pytest.approx(expected, abs=5e-5)  # four digits
    kept = DiffusionConfig(sigma_data=0.3)
    assert Diffusion.measured(kept, images) == kept
    assert Diffusion.measured(DiffusionConfig(), torch.full((4, 1, 5, 5), 7, dtype=torch.uint8)).sigma_data == 0.01


def test_labels_matter_and_dropout_needs_noise() -> None:
    model = make(ImageSpec(1, 8, 8, num_classes=3), dropout=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05)
    x, sigma = torch.ones(1, 1, 8, 8), torch.tensor([1.0])
    a, b = (model.denoise(x, sigma, torch.tensor([k])) for k in (0, 1))
    assert not torch.allclose(a, b)
    assert torch.equal(a, model.denoise(x, sigma, torch.tensor([0])))
    dropped = model.denoise(x, sigma, torch.tensor([0]), Noise.shared(0, 1, "cpu"))
    assert not torch.allclose(a, dropped)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": (20,)}, "multiples of 16"),
        ({"widths": ()}, "empty"),
        ({"blocks": 0}, "blocks"),
        ({"attention": (2,)}, "level 2"),
        ({"dropout": 1.0}, "dropout"),
        ({"sigma_data": -1.0}, "sigma_data"),
        ({"noise_std": 0.0}, "noise_std"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**settings)


def test_too_many_levels_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(ConfigError, match="at most 3: remove 1"):
        make(ImageSpec(1, 9, 12), widths=(16, 16, 16, 16), patch=2)


@pytest.mark.parametrize("options", [{"steps": 0}, {"solver": "magic"}, {"sigma_min": 90.0}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DiffusionOptions(**options)  # type: ignore[arg-type]

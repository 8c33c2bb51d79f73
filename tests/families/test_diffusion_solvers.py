"""Solvers against closed forms: for Gaussian data the denoiser and the solution of the ODE are known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from calotype.core.rng import Noise
from calotype.families.diffusion.guidance import guided
from calotype.families.diffusion.solvers import SOLVERS, Denoise, karras, network_calls
from tests.gaussian import MEAN, VARIANCES, exact_denoise, exact_solution, mixture_denoise

ODE = {"euler": 1, "ddim": 1, "heun": 2, "dpm2m": 2, "unipc": 3}  # a predictor of order 2, and a corrector


def to_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def noise(n: int, seed: int = 9) -> Noise:
    return Noise.shared(seed, n, "cpu")


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
@pytest.mark.parametrize(("solver", "order"), [*ODE.items()])
def test_order_of_convergence(solver: str, order: int, spacing: str) -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4, 1, 1) * 10
    steps, errors = [32, 64, 128, 256, 512], []
    for count in steps:  # from 10 to 0.05: the step to 0 is of first order
        even = torch.linspace(math.log(10), math.log(0.05), count + 1, dtype=torch.float64).exp()
        sigmas = karras(count + 1, 0.05, 10.0, 7.0) if spacing == "karras" else even
        result = SOLVERS[solver](exact_denoise, x, sigmas, noise(3), 0.0)
        errors.append(float((result - exact_solution(x, sigmas[0], sigmas[-1])).abs().max()))
    slope = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
    assert abs(slope - order) < 0.15


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_calls(solver: str) -> None:
    counted = 0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        nonlocal counted
        counted += 1
        return exact_denoise(x, sigma)

    x = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    SOLVERS[solver](denoise, x, to_zero(karras(9, 0.002, 80.0, 7.0)), noise(1), 0.0)
    assert counted == network_calls(solver, 9) == (17 if solver == "heun" else 9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_perfect_guess_is_returned(solver: str) -> None:
    """Where D is always y, every rule ends at y, whatever the path."""
    y = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4, 1, 1)
    for steps in (1, 2, 3, 7):
        result = SOLVERS[solver](lambda x, s: y, y + 80.0, to_zero(karras(steps, 0.002, 80.0, 7.0)), noise(2), 0.0)
        torch.testing.assert_close(result, y, rtol=0, atol=1e-9)


STOCHASTIC = [("ddpm", 0.0), ("ddpm", 1.0), ("ddim", 0.5), ("ddim", 1.0), ("euler", 10.0), ("heun", 30.0)]


@pytest.mark.parametrize(("solver", "stochasticity"), [(name, 0.0) for name in ODE] + STOCHASTIC)
def test_sampling_gaussian_data_gives_its_moments(solver: str, stochasticity: float) -> None:
    n = 20_000
    start = Noise.shared(0, n, "cpu").normal(4, 1, 1).double() * 80
    sigmas = to_zero(karras(200, 0.002, 80.0, 7.0))
    images = SOLVERS[solver](exact_denoise, start, sigmas, noise(n), stochasticity)
    # The mean of n values has standard deviation sqrt(l / n), their variance l * sqrt(2 / n); five of them, plus what
    # a first-order rule leaves after 200 steps (1 %).
    assert bool(((images.mean(0) - MEAN[0]).abs() < 5 * (VARIANCES[0] / n).sqrt() + 0.01).all())
    assert bool(((images.var(0) / VARIANCES[0] - 1).abs() < 5 * math.sqrt(2 / n) + 0.05).all())


def test_ancestral_steps_are_the_posterior_of_ddpm() -> None:
    """From x_s and a known y, x_t is N(y + t^2/s^2 (x_s - y), t^2 (s^2 - t^2) / s^2); here s = 2, t = 1, one step."""
    n, y, x = 100_000, 0.25, 1.0
    start = torch.full((n, 1, 1, 1), x, dtype=torch.float64)
    levels = torch.tensor([2.0, 1.0], dtype=torch.float64)
    # The larger variance: alpha_t = 1 / sqrt(2) and alpha_s = 1 / sqrt(5), so beta = 1 - 2 / 5, unscaled 2 * 3 / 5.
    for stochasticity, variance in ((0.0, 3 / 4), (1.0, 6 / 5), (0.5, (3 / 4 * 6 / 5) ** 0.5)):
        drawn = SOLVERS["ddpm"](lambda z, s: torch.full_like(z, y), start, levels, noise(n), stochasticity)
        assert float(drawn.mean()) == pytest.approx(y + (x - y) / 4, abs=5 * math.sqrt(variance / n))
        assert float(drawn.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    eta1 = SOLVERS["ddim"](lambda z, s: torch.full_like(z, y), start, levels, noise(n), 1.0)
    torch.testing.assert_close(eta1, SOLVERS["ddpm"](lambda z, s: torch.full_like(z, y), start, levels, noise(n), 0.0))


class Silent(Noise):
    """No noise: a step of a stochastic rule is then its mean."""

    def normal(self, *shape: int) -> Tensor:
        return torch.zeros_like(super().normal(*shape))


def test_the_bound_of_ancestral_sampling_falls_with_its_steps_to_that_of_immse() -> None:
    """-VLB(T) of the exact denoiser: the divergences of its steps from the posterior of the forward process, summed.

    A step of `ddpm` has mean m(D) and variance v, the posterior mean m(y) and the same v; so the divergence is
    |m(D) - m(y)|^2 / (2 v), which should be 1/2 (1 / s^2 - 1 / t^2) |y - D|^2 from noise level t to s. Its mean is
    known, and falls with T to the integral of I-MMSE.
    """
    silent = Silent.shared(9, 3, "cpu")
    y = MEAN + torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4, 1, 1)
    for t, s in [(3.0, 2.0), (1.0, 0.1), (80.0, 20.0)]:
        x, ends = (
            y + t * torch.linspace(1, -2, 12, dtype=torch.float64).reshape(3, 4, 1, 1),
            torch.tensor([t, s], dtype=torch.float64),
        )
        means = [SOLVERS["ddpm"](d, x, ends, silent, 0.0) for d in (exact_denoise, lambda x, sigma: y)]
        variance = s**2 * (t**2 - s**2) / t**2
        divergence = (means[0] - means[1]).square() / (2 * variance)
        weighted = (1 / s**2 - 1 / t**2) / 2 * (y - exact_denoise(x, t)).square()
        torch.testing.assert_close(divergence, weighted, rtol=1e-12, atol=1e-12)

    def bound(steps: int) -> float:
        levels = torch.linspace(math.log(80), math.log(0.02), steps + 1, dtype=torch.float64).exp().tolist()
        return sum(
            (1 / s**2 - 1 / t**2) / 2 * float((VARIANCES * t**2 / (VARIANCES + t**2)).sum())
            for t, s in pairwise(levels)
        )

    bounds = [bound(2**k) for k in range(1, 12)]
    exact = 0.5 * float(((1 + VARIANCES / 0.02**2) / (1 + VARIANCES / 80**2)).log().sum())
    assert all(a > b > exact for a, b in pairwise(bounds))
    assert bounds[-1] == pytest.approx(exact, rel=0.005)


def test_stochastic_rules_draw_from_the_noise_alone() -> None:
    x, sigmas = torch.ones(3, 4, 1, 1, dtype=torch.float64) * 80, to_zero(karras(5, 0.002, 80.0, 7.0))
    for solver, stochasticity in STOCHASTIC:
        once, again, other = (SOLVERS[solver](exact_denoise, x, sigmas, noise(3, k), stochasticity) for k in (1, 1, 2))
        assert torch.equal(once, again)
        assert not torch.equal(once, other)


def mixture() -> tuple[Denoise, Tensor, Tensor]:
    centres = torch.tensor([[-1.0, 0.5], [0.8, 0.8], [0.4, -0.9]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return lambda x, s: mixture_denoise(x[:, :, 0, 0], s, centres, 0.1, weights)[:, :, None, None], centres, weights


@pytest.mark.parametrize(
    ("solver", "stochasticity"), [("heun", 0.0), ("heun", 20.0), ("ddpm", 0.0), ("dpm2m", 0.0), ("unipc", 0.0)]
)
def test_all_modes_of_a_mixture_are_drawn_in_proportion(solver: str, stochasticity: float) -> None:
    denoise, centres, weights = mixture()
    n = 6_000
    start = Noise.shared(5, n, "cpu").normal(2, 1, 1).double() * 80
    steps = 200 if solver == "ddpm" else 80
    drawn = SOLVERS[solver](denoise, start, to_zero(karras(steps, 0.002, 80.0, 7.0)), noise(n), stochasticity)
    drawn = drawn[:, :, 0, 0]
    nearest = torch.cdist(drawn, centres).argmin(1)
    for k, weight in enumerate(weights.tolist()):
        members = drawn[nearest == k]
        # Shares: four standard deviations. The start is N(0, 80^2) instead of the mixture's own spread: below 1e-3.
        assert len(members) / n == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / n) + 1e-3)
        # Within a mode: Kolmogorov and Smirnov's distance of each coordinate from N(centre, 0.1^2); 2.2 / sqrt(n) is
        # passed by chance once in 8,000, and 0.02 is for the finite number of steps.
        for d in range(2):
            values = members[:, d].sort().values
            ideal = torch.special.ndtr((values - centres[k, d]) / 0.1)
            empirical = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
            assert float((empirical - ideal).abs().max()) < 2.2 / math.sqrt(len(values)) + 0.02


def released_unipc(denoise: Denoise, x: Tensor, sigmas: list[float]) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 in data prediction, written down from the authors' code, unscaled."""
    lambdas = [-math.log(sigma) for sigma in sigmas[:-1]]
    outputs = [denoise(x, sigmas[0])]
    for i in range(1, len(sigmas) - 1):
        step = lambdas[i] - lambdas[i - 1]
        growth = math.expm1(-step)
        first = sigmas[i] / sigmas[i - 1] * x - growth * outputs[-1]
        slope, place = torch.zeros_like(x), 0.0
        if i > 1:
            place = (lambdas[i - 2] - lambdas[i - 1]) / step
            slope = (outputs[-2] - outputs[-1]) / place
        there = denoise(first - growth * 0.5 * slope, sigmas[i])
        change = there - outputs[-1]
        if i == 1:
            x = first - growth * 0.5 * change
        else:
            phi = growth / -step - 1
            right = torch.tensor([phi / growth, (phi / -step - 0.5) * 2 / growth], dtype=torch.float64)
            weights = torch.linalg.solve(torch.tensor([[1.0, 1.0], [place, 1.0]], dtype=torch.float64), right)
            x = first - growth * (weights[0] * slope + weights[1] * change)
        outputs.append(there)
    return outputs[-1]


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_unipc_is_that_of_the_released_code(steps: int) -> None:
    denoise, _, _ = mixture()
    start = Noise.shared(5, 50, "cpu").normal(2, 1, 1).double() * 80
    sigmas = to_zero(karras(steps, 0.02, 80.0, 7.0))
    torch.testing.assert_close(
        SOLVERS["unipc"](denoise, start, sigmas, noise(50), 0.0), released_unipc(denoise, start, sigmas.tolist())
    )


def test_unipc_ends_nearer_than_dpm2m_of_as_many_calls() -> None:
    """Mean distance from the exact end, of Heun's rule in 600 steps, for a mixture of normal distributions."""
    denoise, _, _ = mixture()
    start = Noise.shared(5, 200, "cpu").normal(2, 1, 1).double() * 80

    def end(solver: str, steps: int) -> Tensor:
        return SOLVERS[solver](denoise, start, to_zero(karras(steps, 0.02, 80.0, 7.0)), noise(200), 0.0)

    truth = end("heun", 600)
    for steps in (10, 12, 16):
        unipc, dpm2m = (float((end(name, steps) - truth).flatten(1).norm(dim=1).mean()) for name in ("unipc", "dpm2m"))
        assert unipc < dpm2m


def test_guidance_of_a_mixture() -> None:
    """Weight 1 is the class, 0 no class, and for normal classes of one width the guided mean moves as the formula."""
    centres = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    of_class: Denoise = lambda x, s: mixture_denoise(x, s, centres[1:], 0.2, torch.ones(1, dtype=torch.float64))  # noqa: E731
    none: Denoise = lambda x, s: mixture_denoise(x, s, centres, 0.2, even)  # noqa: E731
    x, sigma = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None], 0.7

    def with_weight(weight: float, interval: tuple[float, ...] = (0.0, 1e9)) -> Tensor:
        return guided(lambda x, s: (none(x, s), of_class(x, s)), of_class, weight, interval)(x, sigma)

    torch.testing.assert_close(with_weight(1), of_class(x, sigma))
    torch.testing.assert_close(with_weight(0), none(x, sigma))
    torch.testing.assert_close(with_weight(3), 3 * of_class(x, sigma) - 2 * none(x, sigma))
    torch.testing.assert_close(with_weight(3, (0.8, 2.0)), of_class(x, sigma))  # 0.7 lies outside
    torch.testing.assert_close(with_weight(3, (0.7, 2.0)), with_weight(3))


def test_levels_follow_the_formula() -> None:
    sigmas = karras(18, 0.002, 80.0, 7.0)
    assert sigmas.shape == (18,)
    assert sigmas[0] == pytest.approx(80, rel=1e-12)
    assert sigmas[17] == pytest.approx(0.002, rel=1e-12)
    assert sigmas[5] == pytest.approx((80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rel=1e-12)
    assert bool((sigmas[1:] < sigmas[:-1]).all())
    assert karras(1, 0.002, 80.0, 7.0).tolist() == pytest.approx([80])


def test_every_solver_is_tested_for_its_order_or_its_moments() -> None:
    assert set(SOLVERS) == {*ODE, *(name for name, _ in STOCHASTIC)}


def repaint(known: float, correlation: float, repeats: int, n: int) -> Tensor:
    """Complete the second of two normal values from the first: RePaint, made of one solver and nothing else.

    Source: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1.
    """
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
        return (x[:, :, 0, 0] @ gain.T)[:, :, None, None]

    sigmas, draws = to_zero(karras(40, 0.01, 20.0, 7.0)), noise(n)
    x = draws.normal(2, 1, 1).double() * 20
    for i in range(len(sigmas) - 1):
        for k in range(repeats):
            x[:, :1] = known + sigmas[i] * draws.normal(1, 1, 1).double()
            x = SOLVERS["ddpm"](denoise, x, sigmas[i : i + 2], draws, 0.0)
            if k + 1 < repeats:
                x = x + (sigmas[i] ** 2 - sigmas[i + 1] ** 2).sqrt() * draws.normal(2, 1, 1).double()
    x[:, :1] = known
    return x[:, :, 0, 0]


def test_completion_needs_no_second_sampler() -> None:
    """Known values stay, and the others approach the conditional as resampling grows, which plain replacement lacks."""
    known, correlation, n = 1.5, 0.9, 4000
    conditional = known * correlation
    plain, some, more = (repaint(known, correlation, repeats, n) for repeats in (1, 4, 12))
    assert bool((more[:, 0] == known).all())
    off = [abs(float(x[:, 1].mean()) - conditional) for x in (plain, some, more)]
    error = math.sqrt((1 - correlation**2) / n)
    assert off[0] > 5 * error
    assert off[2] < off[1] + 4 * error < off[0]
    assert off[2] < off[0] / 3

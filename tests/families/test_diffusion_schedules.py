"""Noise levels: the published tables, the distribution of training, and what the network is told."""

from __future__ import annotations

import math

import pytest
import torch

from calotype.families.diffusion.schedules import SCHEDULES, STEPS, Discrete, Schedule, cosine_betas, linear_betas


def schedule(name: str, mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> Schedule:
    return SCHEDULES[name](mean, std, sigma_data)


def test_linear_is_that_of_ddpm() -> None:
    betas = linear_betas()
    assert len(betas) == STEPS
    assert float(betas[0]) == pytest.approx(1e-4, rel=1e-12)
    assert float(betas[-1]) == pytest.approx(0.02, rel=1e-12)
    kept = 1.0
    for beta in betas.tolist():
        kept *= 1 - beta
    assert kept == pytest.approx(4.0358e-5, rel=1e-4)  # abar_T, as DDPM's 1e-5 order of the prior's KL has it
    assert schedule("linear").largest == pytest.approx(math.sqrt((1 - kept) / kept), rel=1e-9)


def test_cosine_is_that_of_improved_ddpm() -> None:
    kept = (1 - cosine_betas()).cumprod(0)
    f = lambda t: math.cos((t / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    for t in (1, 10, 500, 990):
        assert float(kept[t - 1]) == pytest.approx(f(t) / f(0), rel=1e-9)
    assert float(cosine_betas().max()) == 0.999


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_discrete_schedule_names_its_steps(name: str) -> None:
    known = schedule(name)
    assert isinstance(known, Discrete)
    t = torch.arange(STEPS, dtype=torch.float64)
    torch.testing.assert_close(known.condition(known.table), t, rtol=0, atol=1e-6)
    torch.testing.assert_close(known.draw((t + 0.5) / STEPS), known.table)  # each step equally often
    torch.testing.assert_close(known.levels(torch.linspace(0, 1, STEPS, dtype=torch.float64)), known.table)
    kept = 1 / (1 + known.table**2)
    torch.testing.assert_close(known.scale(known.table), kept.sqrt())  # x_t = sqrt(abar) x
    halfway = known.condition((known.table[3] * known.table[4]).sqrt())
    assert float(halfway) == pytest.approx(3.5, abs=1e-9)  # interpolated in ln sigma
    assert float(known.condition(torch.tensor(1e9, dtype=torch.float64))) == STEPS - 1
    assert float(known.condition(torch.tensor(1e-9, dtype=torch.float64))) == 0


def test_lognormal_draws_its_quantiles() -> None:
    known = schedule("lognormal")
    u = torch.tensor([0.5, 0.8413447460685429, 0.0227501319481792], dtype=torch.float64)
    expected = torch.tensor([-1.2, 0.0, -3.6], dtype=torch.float64).exp()
    torch.testing.assert_close(known.draw(u), expected, rtol=1e-9, atol=0)
    assert bool(torch.isfinite(known.draw(torch.tensor([0.0, 1 - 2**-24]))).all())  # all that `uniform` can give


def test_lognormal_scales_to_unit_variance() -> None:
    sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(schedule("lognormal").scale(sigma) ** 2 * (sigma**2 + 0.25), torch.ones_like(sigma))


def test_flow_is_the_straight_path() -> None:
    uniform, logit = schedule("flow", std=0.0), schedule("flow", mean=0.0, std=1.0)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(uniform.draw(t), t / (1 - t))
    torch.testing.assert_close(uniform.condition(uniform.draw(t)), 1000 * t)
    torch.testing.assert_close(uniform.scale(uniform.draw(t)), 1 - t)
    assert float(logit.draw(torch.tensor([0.5], dtype=torch.float64))) == pytest.approx(1)  # the median is t = 1/2
    assert bool(torch.isfinite(uniform.draw(torch.tensor([0.0, 1 - 2**-24]))).all())


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_run_between_the_ends(name: str) -> None:
    known = schedule(name)
    levels = known.levels(torch.linspace(1, 0, 50, dtype=torch.float64))
    assert bool((levels[1:] < levels[:-1]).all())
    assert float(levels[0]) == pytest.approx(known.largest, rel=1e-9)
    assert float(levels[-1]) == pytest.approx(known.smallest, rel=1e-6)

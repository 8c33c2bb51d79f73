"""The diffusion model: its loss, its settings, guidance and what it does when sampled."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calotype.core.images import to_unit
from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.families.diffusion import Diffusion, DiffusionConfig, DiffusionOptions
from calotype.families.diffusion.config import GUIDANCE
from calotype.families.diffusion.predictions import PREDICTIONS
from calotype.families.diffusion.schedules import FARTHEST, SCHEDULES, Discrete
from calotype.families.diffusion.solvers import SOLVERS
from calotype.sampling import sampler

SPEC = ImageSpec(1, 8, 8)


def make(spec: ImageSpec = SPEC, seed: int = 0, **settings: object) -> Diffusion:
    config = DiffusionConfig(**{"widths": (16, 16), "blocks": 1, "sigma_data": 0.5} | settings)  # type: ignore[arg-type]
    with seeded(seed):
        return Diffusion(spec, config)


def test_presets_take_each_position_of_a_map_of_latents_by_itself() -> None:
    images, maps = (Diffusion.presets(ImageSpec(4, 16, 16, encoded=told))["tiny"].model for told in (False, True))
    assert (images.patch, maps.patch) == (2, 1)
    assert len(maps.widths) == len(images.widths) + 1
    assert (images.attention, maps.attention) == ((), (1,))


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
        ({"noise_std": float("nan")}, "noise_std"),
        ({"noise_mean": float("inf")}, "noise_mean"),
        ({"sigma_data": float("nan")}, "sigma_data"),
        ({"base": 24}, "multiples of 16: use 32"),
        ({"label_dropout": -0.1}, "label_dropout"),
        ({"prediction": "epsilon"}, "did you mean eps"),
        ({"loss": "mse"}, "model.loss"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"design": "dit"}, "model.design"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**settings)


def test_too_many_levels_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(ConfigError, match="at most 3: remove 1"):
        make(ImageSpec(1, 9, 12), widths=(16, 16, 16, 16), patch=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"solver": "dpm2"}, "did you mean dpm2m"),
        ({"sigma_min": 90.0, "sigma_max": 80.0}, "sigma_min must be the lower"),
        ({"guidance": -2.0}, "guidance is -2"),
        ({"guidance_interval": (5.0, 0.2)}, "the lower first"),
        ({"guidance_interval": (5.0,)}, "two noise levels"),
        ({"stochasticity": 0.5, "solver": "unipc"}, "no meaning for unipc"),
        ({"stochasticity": 2.0, "solver": "ddim"}, "0 to 1"),
        ({"stochasticity": -1.0}, "0 or more"),
        ({"stochasticity": float("nan")}, "0 or more"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"sigma_max": float("inf")}, "sigma_max is inf"),
        ({"spacing": "even"}, "spacing is 'even'"),
        ({"spacing": "time", "sigma_min": 0.02}, "leave out sigma_min"),
        ({"rho": 0.0}, "rho"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DiffusionOptions(**options)  # type: ignore[arg-type]


def test_options_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="sigma_min 100 and sigma_max 80"):
        make().check_options(DiffusionOptions(sigma_min=100.0))
    with pytest.raises(ConfigError, match="has no classes"):
        make().check_options(DiffusionOptions(guidance=2.0))
    with pytest.raises(ConfigError, match="label_dropout 0"):
        make(ImageSpec(1, 8, 8, 3), label_dropout=0.0).check_options(DiffusionOptions(guidance=2.0))
    with pytest.raises(ConfigError, match="has no classes"):
        sampler.sample(make(), range(2), 0, None, DiffusionOptions(guidance=2.0))


def test_without_labels_a_model_with_classes_is_asked_for_no_class() -> None:
    model = disturbed(make(ImageSpec(1, 8, 8, 3))).to_eval()
    x = torch.ones(2, 1, 8, 8)
    assert torch.equal(model.denoise(x, 1.0, None), model.denoise(x, 1.0, torch.tensor([3, 3])))


def test_clipping_keeps_every_estimate_in_range() -> None:
    model = disturbed(make()).to_eval()
    x = torch.linspace(-30, 30, 64).reshape(1, 1, 8, 8)
    free, clipped = (model.denoiser(None, DiffusionOptions(clip=clip))(x, 0.5) for clip in (False, True))
    assert float(free.abs().max()) > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


def disturbed(model: Diffusion) -> Diffusion:
    """Zero-initialised layers hide what is behind them: move all weights off zero."""
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.add_(0.1 * Noise.shared(k, 1, "cpu").normal(*p.shape)[0])
    return model


def test_the_textbook_loss_of_ddpm() -> None:
    """L = E|n - eps(x_t, t)|^2, written out: t uniform, x_t = sqrt(abar) y + sqrt(1 - abar) n."""
    model = disturbed(make(prediction="eps", schedule="linear"))
    images = (torch.arange(4 * 64) % 251).reshape(4, 1, 8, 8).to(torch.uint8)
    value = model.loss(Batch(images, None), Noise.shared(3, 4, "cpu")).value

    same = Noise.shared(3, 4, "cpu")
    t, n = (same.spread() * 1000).long(), same.normal(1, 8, 8)
    assert isinstance(model.schedule, Discrete)
    kept = (1 / (1 + model.schedule.table[t] ** 2)).float().reshape(-1, 1, 1, 1)
    predicted = model.network(kept.sqrt() * to_unit(images) + (1 - kept).sqrt() * n, t.float())
    torch.testing.assert_close(value, (n - predicted).square().mean(), rtol=1e-4, atol=0)


def test_the_textbook_loss_of_flow_matching() -> None:
    """E|v(x_t, t) - (n - y)|^2 with x_t = (1 - t) y + t n and t uniform."""
    model = disturbed(make(prediction="velocity", schedule="flow", noise_std=0.0))
    images = (torch.arange(4 * 64) % 251).reshape(4, 1, 8, 8).to(torch.uint8)
    value = model.loss(Batch(images, None), Noise.shared(3, 4, "cpu")).value

    same = Noise.shared(3, 4, "cpu")
    t, n = same.spread(), same.normal(1, 8, 8)
    y, share = to_unit(images), t.reshape(-1, 1, 1, 1)
    predicted = model.network((1 - share) * y + share * n, 1000 * t)
    torch.testing.assert_close(value, (n - y - predicted).square().mean(), rtol=1e-4, atol=0)


def test_the_loss_can_be_measured_in_another_space() -> None:
    """x0-prediction with the loss of v is v's loss for the same clean image: a weight of 1 + 1 / sigma^2."""
    images = (torch.arange(64) % 251).reshape(1, 1, 8, 8).to(torch.uint8)
    plain, as_v = disturbed(make(prediction="x0")), disturbed(make(prediction="x0", loss="v"))
    a, b = (m.loss(Batch(images, None), Noise.shared(3, 1, "cpu")).value.item() for m in (plain, as_v))
    sigma = float(plain.schedule.draw(Noise.shared(3, 1, "cpu").spread())[0])
    assert b / a == pytest.approx(1 + 1 / sigma**2, rel=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_prediction_learns_on_every_schedule(prediction: str, schedule: str) -> None:
    model = disturbed(make(prediction=prediction, schedule=schedule))
    batch = Batch((torch.arange(8 * 64) % 251).reshape(8, 1, 8, 8).to(torch.uint8), None)
    model.loss(batch, Noise.shared(0, 8, "cpu")).value.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    images = model.to_eval().sample(Noise.per_image(0, range(2), "cpu"), None, DiffusionOptions(steps=4))
    assert images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_image_of_a_stochastic_solver_is_its_own_too(solver: str) -> None:
    model = disturbed(make()).to_eval()
    options = DiffusionOptions(solver=solver, steps=5, stochasticity={"ddim": 0.7, "heun": 10.0}.get(solver, 0.0))
    both = model.sample(Noise.per_image(0, [3, 8], "cpu"), None, options)
    alone = model.sample(Noise.per_image(0, [8, 8], "cpu"), None, options)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])


def test_a_share_of_the_labels_is_hidden_in_training_only() -> None:
    model = make(ImageSpec(1, 8, 8, 3), label_dropout=0.25)
    n = 400
    batch = Batch(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % 3)
    assert batch.labels is not None
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    for training in (True, False):
        model.train(training).loss(batch, Noise.per_image(0, range(n), "cpu"))
        changed = seen[-1] != batch.labels
        assert (seen[-1][changed] == 3).all()
        # five standard deviations of a binomial share
        assert abs(changed.double().mean() - 0.25 * training) <= 5 * math.sqrt(0.25 * 0.75 / n) * training


def test_guidance_mixes_the_class_with_no_class() -> None:
    model = disturbed(make(ImageSpec(1, 8, 8, 3))).to_eval()
    x, sigma, labels = torch.ones(2, 1, 8, 8), 1.0, torch.tensor([0, 2])
    of_class, none = (model.denoise(x, sigma, wanted) for wanted in (labels, torch.tensor([3, 3])))
    assert not torch.allclose(of_class, none)
    for weight in (0.0, 1.0, 3.0):
        mixed = model.denoiser(labels, DiffusionOptions(guidance=weight))(x, sigma)
        torch.testing.assert_close(mixed, none + weight * (of_class - none), rtol=1e-4, atol=1e-5)
    outside = DiffusionOptions(guidance=3.0, guidance_interval=(2.0, 5.0))
    torch.testing.assert_close(model.denoiser(labels, outside)(x, sigma), of_class)


@pytest.mark.parametrize(
    ("classes", "dropout", "weight"),
    [(3, 0.1, GUIDANCE), (3, 0.0, 1.0), (0, 0.1, 1.0)],
)
def test_models_that_can_be_guided_are_unless_it_is_said_otherwise(classes: int, dropout: float, weight: float) -> None:
    model = disturbed(make(ImageSpec(1, 8, 8, classes), label_dropout=dropout)).to_eval()
    x, labels = torch.ones(2, 1, 8, 8), torch.tensor([0, 2]) if classes else None
    found, asked = (model.denoiser(labels, DiffusionOptions(**told)) for told in ({}, {"guidance": weight}))
    assert torch.equal(found(x, 1.0), asked(x, 1.0))
    assert torch.equal(found(x, 10.0), model.denoise(x, 10.0, labels))  # the class alone
    if classes:
        assert torch.equal(model.denoiser(None, DiffusionOptions())(x, 1.0), model.denoise(x, 1.0, None))


def test_the_noise_levels_of_sampling() -> None:
    schedule = SCHEDULES["cosine"](0, 1, 0.5)
    assert isinstance(schedule, Discrete)
    for spacing in ("karras", "logsnr", "time"):
        levels = make(schedule="cosine").levels(DiffusionOptions(steps=10, spacing=spacing))
        assert levels.shape == (11,)
        assert float(levels[0]) == pytest.approx(schedule.largest if spacing == "time" else FARTHEST, rel=1e-9)
        assert float(levels[-2]) == pytest.approx(schedule.smallest, rel=1e-6)
        assert float(levels[-1]) == 0
        if spacing == "logsnr":
            torch.testing.assert_close(levels[1:-1] / levels[:-2], (levels[1] / levels[0]).expand(9))
    # A thousand steps of its own time are the steps of DDPM.
    thousand = make(schedule="cosine").levels(DiffusionOptions(steps=1000, solver="ddpm"))
    torch.testing.assert_close(thousand[:-1], schedule.table.flip(0))


def test_the_spacing_suits_the_schedule_unless_its_ends_are_moved() -> None:
    ours, moved = DiffusionOptions(steps=9), {"sigma_max": 80.0}
    for schedule, spacing in {"lognormal": "karras", "linear": "logsnr", "cosine": "logsnr", "flow": "time"}.items():
        model = make(schedule=schedule)
        assert torch.equal(model.levels(ours), model.levels(DiffusionOptions(steps=9, spacing=spacing)))
    assert float(make(schedule="flow").levels(DiffusionOptions(steps=9, **moved))[0]) == pytest.approx(80)


def test_the_bound_of_an_untrained_model_is_a_bound_of_what_it_is() -> None:
    """The untrained EDM denoiser is that of N(0, sigma_data^2), so for such pixels the bound is near their entropy."""
    n, sd = 8, 0.3
    images = ((Noise.shared(0, n, "cpu").normal(1, 12, 12) * sd + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    model = make(ImageSpec(1, 12, 12), sigma_data=sd).to_eval()
    bits = model.bits_per_dim(Batch(images, None), Noise.shared(1, n, "cpu"))
    y = to_unit(images, torch.float64).flatten(1)
    density = torch.distributions.Normal(0.0, sd)
    exact = -(density.log_prob(y.float()).double() + torch.tensor(2 / 255).log()).mean(1) / torch.tensor(2.0).log()
    gap = bits.per_image - exact
    assert bits.kind == "bound"
    error = float(gap.std()) / n**0.5
    assert -3 * error < float(gap.mean()) < 0.1 + 3 * error  # the choice of a way costs 0.036 here

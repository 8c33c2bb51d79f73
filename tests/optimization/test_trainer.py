"""The trainer on toy models whose right behaviour is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calotype.core.images import to_bytes, to_unit
from calotype.core.model import Batch, GenerativeModel, ImageSpec, Loss, Preset, Turn
from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.families.diffusion import Diffusion, DiffusionConfig
from calotype.optimization import trainer as trainer_module
from calotype.optimization.config import TrainConfig, power_exponent
from calotype.optimization.trainer import NONFINITE_LIMIT, NonFinite, Progress, Trainer
from tests.conftest import Stripes

SPEC = ImageSpec(1, 8, 8, 2)


def diffusion(dtype: torch.dtype = torch.float32, **settings: Any) -> Diffusion:
    config = DiffusionConfig(**{"widths": (16, 16), "blocks": 1, "attention": (1,), "sigma_data": 0.6} | settings)
    with seeded(1):
        return Diffusion(SPEC, config).to(dtype)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"images": 10_000, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.0} | settings)


def trained(model: GenerativeModel, steps: int, **settings: Any) -> Trainer:
    trainer = Trainer(model, Stripes().batches(8), config(**settings))
    for _ in trainer.run(steps):
        pass
    return trainer


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class Duel(GenerativeModel):
    """Two players: one learns the mean of the data, the other to mirror the first. Counts who was called."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    Options = Config

    def __init__(self, spec: ImageSpec, config: object = None) -> None:
        super().__init__(spec, config)
        with seeded(0):
            self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)
        self.calls: list[tuple[str, float]] = []

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        return {}

    def players(self) -> Mapping[str, nn.Module]:
        return {"first": self.first, "second": self.second}

    def turns(self) -> Sequence[Turn]:
        return (Turn("first", self.first_loss, repeats=2), Turn("second", self.second_loss))

    def first_loss(self, batch: Batch, noise: Noise) -> Loss:
        self.calls.append(("first", float(noise.normal()[0])))
        target = to_unit(batch.images).mean((1, 2, 3))
        return Loss((self.first(torch.ones(len(target), 1))[:, 0] - target).square().mean(), {"target": target.mean()})

    def second_loss(self, batch: Batch, noise: Noise) -> Loss:
        self.calls.append(("second", float(noise.normal()[0])))
        one = torch.ones(len(batch.images), 1)
        return Loss((self.second(one) + self.first(one)).square().mean(), {})

    def sample(self, noise: Noise, labels: Tensor | None = None, options: Any = None) -> Tensor:
        return to_bytes(noise.normal(*self.spec.shape))


def test_turns_alternate_and_touch_their_player_alone() -> None:
    model = Duel(SPEC)
    before = {k: v.clone() for k, v in model.second.state_dict().items()}
    trainer = Trainer(model, Stripes().batches(8), config())
    progress = next(iter(trainer.run(1)))
    assert [name for name, _ in model.calls] == ["first", "first", "second"]
    assert len({value for _, value in model.calls}) == 3  # each turn has noise of its own
    assert set(progress.losses) == {"first", "first/target", "second"}
    assert progress.images_seen == 24
    assert not all(torch.equal(before[k], v) for k, v in model.second.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_only_the_player_of_a_turn_gets_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Duel(SPEC)
    trainer = Trainer(model, Stripes().batches(8), config())
    seen: list[tuple[bool, bool]] = []
    for name, (optimizer,) in trainer.optimizers.items():
        original = optimizer.step

        def step(*args: Any, original: Any = original, name: str = name) -> Any:
            seen.append((model.first.weight.grad is not None, model.second.weight.grad is not None))
            assert seen[-1] == (name == "first", name == "second")
            return original(*args)

        monkeypatch.setattr(optimizer, "step", step)
    list(trainer.run(2))
    assert len(seen) == 6


def test_two_player_learning_converges() -> None:
    model = Duel(SPEC)
    trained(model, 400, learning_rate=0.05, images=10**6)
    mean = float(to_unit(Stripes().images).mean())
    one = torch.ones(1, 1)
    assert model.first(one).item() == pytest.approx(mean, abs=0.05)
    assert model.second(one).item() == pytest.approx(-mean, abs=0.05)


@pytest.mark.parametrize("build", [diffusion, lambda: Duel(SPEC)], ids=["one player", "two players"])
def test_resume_is_bit_exact(build: Any) -> None:
    straight = trained(build(), 12)
    half = trained(build(), 5)
    torch.manual_seed(999)  # another process has another global state
    other = build()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)  # whatever it starts from
    resumed = Trainer(other, Stripes().batches(8), config())
    resumed.load_state_dict(half.state_dict())
    list(resumed.run(12))
    assert same_weights(straight.model, resumed.model)
    assert same_weights(straight.ema, resumed.ema)
    assert straight.images_seen == resumed.images_seen


def test_training_ignores_the_global_generator() -> None:
    torch.manual_seed(1)
    a = trained(diffusion(dropout=0.2), 3)
    torch.manual_seed(2)
    b = trained(diffusion(dropout=0.2), 3)
    assert same_weights(a.model, b.model)


def test_another_seed_trains_otherwise() -> None:
    assert not same_weights(trained(diffusion(), 2).model, trained(diffusion(), 2, seed=1).model)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_accumulation_equals_the_whole_batch(micro_batch: int) -> None:
    """In float64, with dropout: the same gradient from parts of any size. SGD would show it bare; here it is Adam's."""
    whole, parts = diffusion(dropout=0.1), diffusion(dropout=0.1)
    gradients = []
    for model, size in ((whole, 0), (parts, micro_batch)):
        trainer = Trainer(model.double(), Stripes().batches(8), config(micro_batch=size))
        trainer._backward(trainer.turns[0], 0, trainer.params["model"])
        gradients.append([p.grad for p in trainer.params["model"]])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)  # noise and images enter as float32 products


def test_channels_last_does_not_change_the_loss() -> None:
    model = diffusion()
    batch = Stripes().batches(8).at(0)
    first = model.loss(batch, Noise.shared(0, 8, "cpu")).value
    model.to(memory_format=torch.channels_last)
    images = batch.images.to(memory_format=torch.channels_last)
    second = model.loss(Batch(images, batch.labels), Noise.shared(0, 8, "cpu")).value
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_ema_is_the_power_function_average() -> None:
    """After T steps the average weights the parameters of step t by t^gamma, up to the discretisation of the update."""
    trainer = Trainer(Duel(SPEC), Stripes().batches(8), config(ema_std=0.1))
    gamma, history = power_exponent(0.1), []
    for _ in trainer.run(50):
        history.append(trainer.model.state_dict()["first.weight"].clone().double())  # type: ignore[union-attr]
    weights = [1.0]
    for t in range(2, 51):  # the recursion in closed form: step t keeps (1 - 1/t)^(gamma + 1) of what was
        keep = (1 - 1 / t) ** (gamma + 1)
        weights = [w * keep for w in weights] + [1 - keep]
    assert sum(weights) == pytest.approx(1)
    expected = sum(w * h for w, h in zip(weights, history, strict=True))
    torch.testing.assert_close(trainer.ema.state_dict()["first.weight"].double(), expected, rtol=1e-5, atol=1e-7)


def test_ema_has_no_memory_of_the_initial_weights() -> None:
    trainer = trained(diffusion(), 1)
    assert same_weights(trainer.model, trainer.ema)


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_power_exponents_are_the_published_ones(std: float, gamma: float) -> None:
    assert power_exponent(std) == pytest.approx(gamma, abs=0.005)  # arXiv:2312.02696, section 3.1


def test_learning_rate_schedule() -> None:
    trainer = Trainer(Duel(SPEC), Stripes().batches(8), config(images=2400, warmup=0.1, decay=0.5, learning_rate=1.0))
    rates = [trainer.learning_rate(step) for step in range(trainer.steps)]
    assert trainer.steps == 100
    assert rates[:10] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])
    assert rates[10:50] == pytest.approx([1.0] * 40)
    assert rates[50:] == pytest.approx([1 - 0.01 - 0.02 * k for k in range(50)])


def test_gradients_are_clipped() -> None:
    trainer = Trainer(Duel(SPEC), Stripes().batches(8), config(clip_norm=1e-3))
    norms: list[float] = []
    (optimizer,) = trainer.optimizers["first"]
    original = optimizer.step

    def step(*args: Any) -> Any:
        norms.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in trainer.params["first"] if p.grad is not None))
        )
        return original(*args)

    optimizer.step = step  # type: ignore[method-assign]
    progress = next(iter(trainer.run(1)))
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)
    assert float(progress.grad_norms["first"]) > 1e-3


def test_beta2_begins_where_it_is_to_and_ends_where_it_is_to() -> None:
    trainer = Trainer(Duel(SPEC), Stripes().batches(8), config(images=2400, beta1=0.1, beta2=0.99, beta2_first=0.9))
    assert trainer.betas(0) == (0.1, 0.9)
    assert trainer.betas(trainer.steps // 2) == pytest.approx((0.1, 0.945))
    assert trainer.betas(trainer.steps) == pytest.approx((0.1, 0.99))
    list(trainer.run(3))
    assert [o.param_groups[0]["betas"] for o in trainer.optimizers["first"]] == [trainer.betas(2)]
    assert Trainer(Duel(SPEC), Stripes().batches(8), config(beta2=0.95)).betas(0) == (0.9, 0.95)


def test_updates_with_long_gradients_are_skipped() -> None:
    """A step whose gradient is longer than allowed leaves the weights and moments as they were."""
    trainer = Trainer(Duel(SPEC), Stripes().batches(8), config(skip_norm=1e-6))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    progress = next(iter(trainer.run(1)))
    assert float(progress.grad_norms["first"]) > 1e-6
    assert "first" in progress.skipped
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in before.items())
    longest = 2 * max(map(float, progress.grad_norms.values()))
    free, allowed = (Trainer(Duel(SPEC), Stripes().batches(8), config(skip_norm=norm)) for norm in (0.0, longest))
    assert next(iter(allowed.run(1))).skipped == ()
    next(iter(free.run(1)))
    assert all(torch.equal(a, b) for a, b in zip(free.model.parameters(), allowed.model.parameters(), strict=True))


class Poisoned(Duel):
    """Its first player's loss is not finite for chosen draws, told apart by their noise."""

    bad: frozenset[int] = frozenset()

    def first_loss(self, batch: Batch, noise: Noise) -> Loss:
        loss = super().first_loss(batch, noise)
        return Loss(loss.value * float("nan"), loss.parts) if len(self.calls) - 1 in self.bad else loss


def test_an_update_that_is_not_finite_is_not_applied() -> None:
    model = Poisoned(SPEC)
    model.bad = frozenset({0, 1})
    before = {k: v.clone() for k, v in model.first.state_dict().items()}
    trainer = Trainer(model, Stripes().batches(8), config())
    first = next(iter(trainer.run(1)))
    assert first.skipped == ("first", "first")
    assert all(torch.equal(before[k], v) for k, v in model.first.state_dict().items())
    assert not trainer.optimizers["first"][0].state
    second = next(iter(trainer.run(2)))
    assert second.skipped == ()
    assert trainer.bad_turns == {"first": 0, "second": 0}


def test_several_in_a_row_are_reported() -> None:
    model = Poisoned(SPEC)
    model.bad = frozenset(range(100))
    trainer = Trainer(model, Stripes().batches(8), config())
    model.second_loss = lambda batch, noise: Loss(model.second.weight.sum() * float("inf"), {})  # type: ignore[method-assign]
    trainer.turns = model.turns()
    with pytest.raises(NonFinite, match="first"):
        list(trainer.run(10))
    assert trainer.bad_turns == {"first": NONFINITE_LIMIT, "second": 1}
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_player_that_always_fails_is_not_hidden_by_one_that_does_not() -> None:
    model = Duel(SPEC)
    model.second_loss = lambda batch, noise: Loss(model.second.weight.sum() * float("nan"), {})  # type: ignore[method-assign]
    trainer = Trainer(model, Stripes().batches(8), config())
    with pytest.raises(NonFinite, match="second"):
        list(trainer.run(10))
    assert trainer.step == NONFINITE_LIMIT - 1


def test_held_out_loss_is_without_dropout_and_fits_in_micro_batches() -> None:
    plain, dropping = (Trainer(diffusion(dropout=rate), Stripes().batches(8), config()) for rate in (0.0, 0.5))
    held_out = Stripes(16).batches(8)
    expected = plain.held_out_loss(held_out, 2)["model"]
    assert dropping.held_out_loss(held_out, 2)["model"] == expected
    plain.micro_batch = 3
    assert plain.held_out_loss(held_out, 2)["model"] == pytest.approx(expected, rel=1e-5)  # float32 sums in parts


def test_after_passing_over_the_data_is_other_data() -> None:
    def noises(shift: int) -> list[float]:
        model = Duel(SPEC)
        trainer = Trainer(model, Stripes().batches(8), config())
        trainer.pass_over(shift)
        list(trainer.run(4))
        return [value for _, value in model.calls]

    assert noises(3)[:9] == noises(0)[3:]


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else() -> None:
    class Large(Duel):
        def first_loss(self, batch: Batch, noise: Noise) -> Loss:
            if len(batch.images) > 2:
                raise torch.OutOfMemoryError("simulated")
            return super().first_loss(batch, noise)

    with seeded(0):
        small, plain = Large(SPEC), Duel(SPEC)
    plain.load_state_dict(small.state_dict())
    trainer = Trainer(small, Stripes().batches(8), config())
    progress = list(trainer.run(3))[-1]
    assert progress.micro_batch == 2
    reference = trained(plain, 3, micro_batch=2)
    assert same_weights(trainer.model, reference.model)
    assert trainer.state_dict()["counters"]["micro_batch"] == 2  # a resumed run does not run out again


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    model = Duel(SPEC)
    trainer = Trainer(model, Stripes().batches(8), config())

    def broken(batch: Batch, noise: Noise) -> Loss:
        raise RuntimeError("shapes do not match")

    trainer.turns = (Turn("first", broken),)
    with pytest.raises(RuntimeError, match="shapes"):
        list(trainer.run(1))


def test_held_out_loss_is_repeatable_and_changes_nothing() -> None:
    trainer = trained(diffusion(), 3)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    held_out = Stripes(16).batches(8)
    assert trainer.held_out_loss(held_out, 2) == trainer.held_out_loss(held_out, 2)
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    "bad",
    [
        {"images": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup": 1.5},
        {"beta2": 1.0},
        {"ema_std": 0.3},
        {"micro_batch": -1},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        config(**bad)


def test_bf16_is_refused_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "native_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="bf16"):
        Trainer(Duel(SPEC), Stripes().batches(8), config(precision="bf16"))


def test_bf16_autocast_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "native_bf16", lambda device: True)
    slow, exact = trained(diffusion(), 3), trained(diffusion(), 3, precision="fp32")
    assert not same_weights(slow.model, exact.model)
    assert all(p.dtype == torch.float32 for p in slow.model.parameters())


def steps_of(progress: Iterator[Progress]) -> list[int]:
    return [p.step for p in progress]


def test_run_stops_where_it_is_told() -> None:
    trainer = Trainer(Duel(SPEC), Stripes().batches(8), config(images=24 * 5))
    assert steps_of(trainer.run(2)) == [1, 2]
    assert steps_of(trainer.run()) == [3, 4, 5]
    assert steps_of(trainer.run()) == []
    assert np.isclose(trainer.learning_rate(4), 1e-3 * 0.2)


def test_moments_come_back_on_the_device_of_their_parameter() -> None:
    param = torch.nn.Parameter(torch.zeros(3, device="meta"))
    moments = Trainer._like(param, {"step": torch.tensor(5.0), "exp_avg": torch.ones(3)})
    assert {value.device.type for value in moments.values()} == {"meta"}

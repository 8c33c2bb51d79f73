"""Adversarial losses, penalties and networks against closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calotype.core.model import Batch, ImageSpec, Loss, Trainable, Turn
from calotype.core.rng import Noise, seeded
from calotype.data.packs.batches import Batches
from calotype.errors import ConfigError
from calotype.families.gan import GAN, GANConfig, GANOptions
from calotype.families.gan.config import NETWORKS
from calotype.families.gan.losses import LOSSES, gradient_penalty, squared_gradient
from calotype.families.gan.model import _truncated
from calotype.nn.augment import CHANGES, augmented
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from tests.conftest import Stripes

SMALL = GANConfig(widths=(16, 32), blocks=(1, 1), latents=8)


def model_of(spec: ImageSpec, **changes: Any) -> GAN:
    with seeded(0):
        return GAN(spec, replace(SMALL, **changes))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- losses and penalties


def test_losses_are_what_their_equations_say() -> None:
    real, fake = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.25, 2.0]).double()
    s = lambda u: math.log1p(math.exp(u))  # noqa: E731
    classify = (s(-1) + s(0.5)) / 2 + (s(0.25) + s(2)) / 2
    expected = {
        "minimax": (classify, -(s(0.25) + s(2)) / 2),
        "non-saturating": (classify, (s(-0.25) + s(-2)) / 2),
        "least-squares": ((0 + 1.5**2) / 4 + (0.25**2 + 4) / 4, (0.75**2 + 1) / 4),
        "wasserstein": (1.125 - 0.25, -1.125),
        "hinge": ((0 + 1.5) / 2 + (1.25 + 3) / 2, -1.125),
        "relativistic": ((s(0.25 - 1) + s(2 + 0.5)) / 2, (s(1 - 0.25) + s(-0.5 - 2)) / 2),
    }
    assert expected.keys() == LOSSES.keys()
    for name, loss in LOSSES.items():
        found = float(loss.discriminator(real, fake)), float(loss.generator(real, fake))
        assert found == pytest.approx(expected[name], abs=1e-12), name


def test_where_nothing_is_told_apart_the_losses_are_known() -> None:
    same = torch.full((4,), 0.7)
    assert float(LOSSES["relativistic"].discriminator(same, same)) == pytest.approx(math.log(2))
    assert float(LOSSES["relativistic"].generator(same, same)) == pytest.approx(math.log(2))
    zero = torch.zeros(4)
    assert float(LOSSES["minimax"].discriminator(zero, zero)) == pytest.approx(math.log(4))


def test_penalties_are_of_the_sum_over_all_values_of_an_image() -> None:
    """Of a linear discriminator w x the gradient is w everywhere."""
    w = normal(2, 3, 4)
    judge = lambda x: (x * w).flatten(1).sum(1)  # noqa: E731
    images = normal(5, 2, 3, 4, seed=1).requires_grad_()
    assert float(squared_gradient(judge(images), images)) == pytest.approx(0.5 * float(w.square().sum()), rel=1e-6)
    found = gradient_penalty(judge, images.detach(), normal(5, 2, 3, 4, seed=2), torch.rand(5))
    assert float(found) == pytest.approx((float(w.norm()) - 1) ** 2, rel=1e-6)


def test_penalties_are_those_of_finite_differences() -> None:
    model = model_of(ImageSpec(1, 4, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * normal(*p.shape))
    images = normal(2, 1, 4, 4).requires_grad_()
    found = float(squared_gradient(model.discriminator(images, None), images).detach())
    total, h = 0.0, 1e-5
    with torch.no_grad():
        for i in range(16):
            step = torch.zeros(16).double()
            step[i] = h
            up, down = (model.discriminator(images + sign * step.view(1, 4, 4), None) for sign in (1, -1))
            total += float(((up - down) / (2 * h)).square().mean())
    assert found == pytest.approx(0.5 * total, rel=1e-5)


@pytest.mark.parametrize(("loss", "least"), [("minimax", 0.9), ("wasserstein", 0.9), ("relativistic", 0.5)])
def test_the_dirac_gan_circles_unless_it_is_penalised(loss: str, least: float) -> None:
    """Real images are all 0, generated ones all theta, the discriminator is psi x: Mescheder et al. 2018.

    Steps in turn keep the distance from the equilibrium; where the losses of the two are not each other's opposite it
    falls, but with penalties as an exponential, and without as a root of time.
    """

    def radius(weight: float) -> float:
        theta, psi = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
        farthest = 0.0
        for step in range(2000):
            zero, fake = torch.zeros(1, 1, 1, 1, requires_grad=True), theta.detach().view(1, 1, 1, 1).requires_grad_()
            of_real, of_fake = (psi * zero).flatten(), (psi * fake).flatten()
            value = LOSSES[loss].discriminator(of_real, of_fake)
            value = value + weight * (squared_gradient(of_real, zero) + squared_gradient(of_fake, fake))
            (of_psi,) = torch.autograd.grad(value, psi)
            told = LOSSES[loss].generator(torch.zeros(1), (psi * theta).view(1))
            (of_theta,) = torch.autograd.grad(told, theta)
            with torch.no_grad():
                psi -= 0.02 * of_psi
                theta -= 0.02 * of_theta
            if step >= 1000:
                farthest = max(farthest, math.hypot(theta.item(), psi.item()))
        return farthest

    assert radius(0.5) < 0.1
    assert radius(0.0) > least


# -- the game


class Symbols:
    """Images of one pixel, of one of four values, as often as `counts` says."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.images = torch.repeat_interleave(torch.arange(4), torch.tensor(counts)).to(torch.uint8).view(-1, 1, 1, 1)

    def read(self, indices: np.ndarray) -> Batch:
        return Batch(self.images[indices], None)


class Table(Trainable):
    """A discriminator with a logit for each symbol, against a generator that draws them with probabilities q."""

    def __init__(self, q: Tensor) -> None:
        super().__init__()
        self.table, self.q = nn.Parameter(torch.zeros(4)), q

    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self}

    def turns(self) -> Sequence[Turn]:
        return (Turn("discriminator", self.loss),)

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        drawn = torch.searchsorted(self.q.cumsum(0), noise.spread()).clamp(max=3)
        return Loss(LOSSES["minimax"].discriminator(self.table[batch.images.flatten().long()], self.table[drawn]), {})


def test_the_best_discriminator_and_the_value_of_the_game_are_reached() -> None:
    """D* = p / (p + q), and there V = 2 JSD(p, q) - log 4: Goodfellow et al. 2014, proposition 1 and theorem 1."""
    p, q = torch.tensor([4, 2, 1, 1]) / 8, torch.tensor([0.1, 0.2, 0.3, 0.4])
    data = Symbols([256, 128, 64, 64])
    config = TrainConfig(images=512 * 300, batch_size=512, learning_rate=0.05)
    trainer = Trainer(Table(q), Batches(data, np.arange(512), 512, seed=0), config)
    losses = [float(progress.losses["discriminator"]) for progress in trainer.run()]
    reached = torch.sigmoid(trainer.model.table.detach())
    torch.testing.assert_close(reached, p / (p + q), atol=0.01, rtol=0)
    middle = (p + q) / 2
    jsd = 0.5 * float((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum())
    assert -losses[-1] == pytest.approx(2 * jsd - math.log(4), abs=0.01)


def trainer_of(model: GAN, data: Stripes, **training: Any) -> Trainer:
    values: dict[str, Any] = {"images": 640, "batch_size": 8, "beta1": 0.0, "threads": 1} | training
    return Trainer(model, data.batches(values["batch_size"]), TrainConfig(**values))


@pytest.mark.parametrize("turn", [0, 1])
def test_a_turn_leaves_the_other_player_as_it_was(turn: int) -> None:
    data = Stripes(labels=False)
    trainer = trainer_of(model_of(ImageSpec(1, 8, 8)), data)
    names = [t.player for t in trainer.turns]
    before = {name: [p.clone() for p in params] for name, params in trainer.params.items()}
    trainer._turn(trainer.turns[turn], 0, 1e-3)
    for name, params in trainer.params.items():
        same = [torch.equal(p, b) for p, b in zip(params, before[name], strict=True)]
        assert all(p.grad is None for p in params)
        assert all(same) if name != names[turn] else not any(same[-1:])


def test_every_parameter_of_both_players_learns() -> None:
    data = Stripes()
    trainer = trainer_of(model_of(ImageSpec(1, 8, 8, 2)), data, images=8 * 2 * 4)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    list(trainer.run())
    for name, p in trainer.model.named_parameters():
        assert not torch.equal(p, before[name]), name


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(loss: str) -> None:
    more = {"wasserstein": {"gradient_penalty": 10.0, "r1": 0.0, "r2": 0.0}}.get(loss, {})
    trainer = trainer_of(
        model_of(ImageSpec(1, 8, 8), loss=loss, critic_steps=2, **more), Stripes(labels=False), images=96
    )
    *_, last = trainer.run()
    assert last.images_seen == 96
    assert trainer.step == 4, "two batches for the discriminator and one for the generator in each step"
    assert not last.skipped
    assert all(math.isfinite(float(value)) for value in last.losses.values())


def test_a_gradient_in_parts_is_that_of_the_whole() -> None:
    """With penalties, which need a second derivative."""
    found = []
    for micro in (0, 2):
        model = model_of(ImageSpec(1, 8, 8), augment=0.5, changes=tuple(CHANGES)).double()
        model.progress = 1.0
        trainer = trainer_of(model, Stripes(labels=False), micro_batch=micro, precision="fp32", images=16)
        list(trainer.run())
        found.append([p.detach().clone() for p in trainer.model.parameters()])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_penalties_fall_by_a_cosine_to_their_end() -> None:
    model = model_of(ImageSpec(1, 8, 8), penalty_end=0.2, penalty_time=0.5)
    weights = []
    for model.progress in (0.0, 0.25, 0.5, 1.0):
        weights.append(model._penalty_weight())
    assert weights == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_what_ails_the_players_is_named_with_what_to_change() -> None:
    model = model_of(ImageSpec(1, 8, 8))
    well = {
        "samples/diversity": 0.9,
        "seen/discriminator/real": 2.0,
        "seen/discriminator/fake": -1.0,
        "held_out/discriminator/real": 1.5,
        "held_out/discriminator/fake": -1.0,
        "seen/discriminator/accuracy": 0.8,
        "held_out/discriminator/accuracy": 0.7,
    }
    assert model.remark(well) is None
    sure = model.remark(well | {"samples/diversity": 0.1, "seen/discriminator/accuracy": 1.0})
    assert sure is not None
    assert sure.collapsed
    assert "--set model.r1=3 --set model.r2=3" in sure.text
    chased = model.remark(well | {"samples/diversity": 0.1})
    assert chased is not None
    assert "model.loss=relativistic" in chased.text
    near = {"seen/discriminator/real": -0.98, "seen/discriminator/accuracy": 0.55, "held_out/discriminator/real": -0.98}
    assert model.remark(well | near | {"samples/distance": 0.4}) is None  # as in many short runs that go on well
    none = {"seen/discriminator/real": -0.999, "held_out/discriminator/real": -1.001}
    starved = model.remark(well | none | {"samples/distance": 0.4})
    assert starved is not None
    assert "nothing left to learn from" in starved.text
    assert model.remark(well | none | {"held_out/discriminator/real": -0.9, "samples/distance": 0.4}) is None
    model.images_seen = 100_000
    faint = model.remark(well | near | {"samples/distance": 0.4})
    assert faint is not None
    assert not faint.collapsed
    assert "--set model.r1=0.33 --set model.r2=0.33" in faint.text
    assert model.remark(well | near | {"samples/distance": 0.02}) is None  # nothing is left to see
    memorised = {"held_out/discriminator/real": -0.7, "held_out/discriminator/accuracy": 0.5}
    by_heart = model.remark(well | memorised)
    assert by_heart is not None
    assert not by_heart.collapsed
    assert "held-out ones are 90% of the way" in by_heart.text
    assert "model.augment=0.4" in by_heart.text
    # all logits of these classes are lower, those of generated images as well
    lower = memorised | {"held_out/discriminator/fake": -3.5}
    assert model.remark(well | lower) is None
    # within what a few dozen held-out pictures can tell
    chance = memorised | {"held_out/discriminator/accuracy": 0.6}
    assert model.remark(well | chance) is None
    assert model.remark(well | memorised | {"seen/discriminator/accuracy": 0.6}) is None  # nor right about those
    assert model.remark(well | memorised | {"seen/discriminator/real": -1.1}) is None


def test_with_few_pictures_the_discriminator_sees_them_changed() -> None:
    def overfit(count: int, **changes: float) -> float:
        config = GAN.measured(replace(GANConfig(), **changes), torch.zeros(count, 1, 4, 4, dtype=torch.uint8))
        return config.overfit

    assert overfit(600) == 0.6
    assert overfit(5_000) == 0.0
    assert overfit(600, augment=0.2) == 0.0
    assert overfit(600, overfit=0.0) == 0.0
    with pytest.raises(ConfigError, match="or -1 to have it chosen"):
        GANConfig(overfit=-0.5)


def test_with_few_pictures_penalties_fall_slowly() -> None:
    def fall(count: int, **changes: float) -> tuple[float, float]:
        config = GAN.measured(replace(GANConfig(), **changes), torch.zeros(count, 1, 4, 4, dtype=torch.uint8))
        return config.penalty_end, config.penalty_time

    assert fall(600) == (0.1, 1.0)
    assert fall(5_000) == (0.05, 0.4)
    assert fall(600, penalty_end=0.0, penalty_time=0.5) == (0.0, 0.5)
    chosen, open_ = (
        model_of(ImageSpec(1, 8, 8), penalty_end=end, penalty_time=time) for end, time in ((0.05, 0.4), (-1, -1))
    )
    for progress in (0.0, 0.1, 0.4, 1.0):
        chosen.progress = open_.progress = progress
        assert chosen._penalty_weight() == open_._penalty_weight()
    for bad in ({"penalty_end": -0.5}, {"penalty_time": 0.0}):
        with pytest.raises(ConfigError, match="or -1 to have it chosen"):
            GANConfig(**bad)


# -- changes of images


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("spec", [ImageSpec(1, 6, 9), ImageSpec(4, 8, 8)])
def test_changes_keep_the_shape_and_are_those_of_their_noise(kind: str, spec: ImageSpec) -> None:
    images = normal(16, *spec.shape).clamp(-1, 1)
    noise = Noise.shared(3, 16, "cpu")
    assert torch.equal(augmented(images, 0.0, noise, [kind]), images)
    once, again = (augmented(images, 1.0, Noise.shared(3, 16, "cpu"), [kind]) for _ in range(2))
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, images)
    some = augmented(images, 0.5, Noise.shared(3, 16, "cpu"), [kind])
    same = (some == images).flatten(1).all(1)
    assert 2 <= int(same.sum()) <= 14
    assert torch.equal(some[~same], once[~same])


@pytest.mark.parametrize("kind", CHANGES)
def test_changes_have_first_and_second_derivatives(kind: str) -> None:
    images = normal(3, 3, 5, 6).requires_grad_()

    def changed(x: Tensor) -> Tensor:
        return augmented(x, 1.0, Noise.shared(1, 3, "cpu"), [kind]).square()

    assert torch.autograd.gradcheck(changed, images)
    assert torch.autograd.gradgradcheck(changed, images)


def test_a_shift_moves_whole_pixels_and_leaves_black() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(50, -1, -1, -1)
    moved = augmented(images, 1.0, Noise.shared(0, 50, "cpu"), ["shift"])
    for image in moved:
        inside = image[0] >= 0
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        kept = image[0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert bool((kept >= 0).all())
        assert torch.equal(kept.diff(dim=1), torch.ones_like(kept[:, 1:]))
        assert bool((image[0][~inside] == -1).all())
        assert min(kept.shape) >= 7


@pytest.mark.slow
def test_what_is_seen_changed_now_and_then_is_learned_as_it_is() -> None:
    """Dots in the middle, which the discriminator sees shifted in half of cases: they are drawn in the middle."""
    spec = ImageSpec(1, 8, 8)
    data = Stripes(labels=False)
    data.images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    data.images[:, :, 3:5, 3:5] = 255
    model = model_of(spec, augment=0.5, changes=("shift",))
    trainer = trainer_of(model, data, images=16 * 2 * 300, batch_size=16, learning_rate=3e-3, ema_std=0.1)
    list(trainer.run())
    drawn = trainer.ema.to_eval().sample(Noise.per_image(0, range(32), "cpu")).float()
    dot = data.images[0].float()
    assert float((drawn - dot).abs().mean()) < 20
    share = drawn[:, :, 3:5, 3:5].sum() / drawn.sum()
    assert float(share) > 0.6


def test_of_pairs_the_probability_of_changes_follows_the_differences() -> None:
    """A discriminator that gives all images large logits is sure of none where only differences count."""
    for loss, rises in (("relativistic", False), ("non-saturating", True)):
        model = model_of(ImageSpec(1, 8, 8), overfit=0.9, loss=loss, r1=0.0, r2=0.0)
        model.probability.fill_(0.1)
        model.discriminator.forward = lambda x, labels: 5 + 0 * x.mean((1, 2, 3))  # type: ignore[method-assign]
        images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        model.discriminator_loss(Batch(images, None), Noise.shared(0, 4, "cpu"))
        assert (float(model.probability) > 0.1) == rises, loss


def test_the_probability_of_changes_follows_how_sure_the_discriminator_is() -> None:
    model = model_of(ImageSpec(1, 8, 8), overfit=0.6)
    sure, unsure = torch.ones(100), torch.tensor([1.0, -1.0]).repeat(50)
    model._adapt(sure)
    assert float(model.probability) == pytest.approx(100 / 100_000)
    model._adapt(unsure)
    assert float(model.probability) == 0
    for _ in range(2_000):
        model._adapt(sure)
    assert float(model.probability) == pytest.approx(0.8)


# -- images


def test_latents_are_truncated_by_their_rank() -> None:
    z = torch.linspace(-4, 4, 101)
    found = _truncated(z, 1.0)
    assert bool((found.diff() > 0).all())
    assert float(found[0]) == pytest.approx(-1, abs=1e-3)
    assert float(found[-1]) == pytest.approx(1, abs=1e-3)
    assert float(found[50]) == pytest.approx(0, abs=1e-6)
    drawn = _truncated(normal(20_000), 0.5)
    inside = normal(200_000, seed=1)
    inside = inside[inside.abs() < 0.5]
    assert float(drawn.std()) == pytest.approx(float(inside.std()), rel=0.02)


def test_latents_of_an_image_are_found_again() -> None:
    """Of images of the model itself, one that comes close, and each by itself."""
    model = model_of(ImageSpec(3, 8, 8, 2)).to_eval()
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(0.2 * normal(*p.shape).float())
        model.generator.last.weight.mul_(0.1)
    labels = torch.tensor([0, 1, 0])
    images = model.sample(Noise.per_image(5, range(3), "cpu"), labels)
    found = model.encode(images, labels)
    assert found.shape == (3, 8)
    back = model.decode(found, labels)
    others = model.sample(Noise.per_image(6, range(3), "cpu"), labels)
    off, apart = ((x.float() - images.float()).abs().mean((1, 2, 3)) for x in (back, others))
    assert bool((off < 0.2 * apart).all()), (off, apart)
    alone = model.encode(images[1:2], labels[1:2])
    torch.testing.assert_close(alone, found[1:2], atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match="latents are 5 for each picture, but the model has 8"):
        model.decode(torch.zeros(1, 5), labels[:1])


def test_classes_change_images_and_logits() -> None:
    model = model_of(ImageSpec(3, 8, 8, 3)).to_eval()
    noise = Noise.per_image(0, range(2), "cpu")
    a, b = (model.sample(noise, torch.tensor([k, k])) for k in (0, 2))
    assert not torch.equal(a, b)
    images = normal(2, 3, 8, 8).float()
    assert not torch.equal(*(model.discriminator(images, torch.tensor([k, k])) for k in (0, 2)))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "spec", [ImageSpec(1, 28, 28), ImageSpec(4, 45, 31, 2), ImageSpec(3, 7, 5), ImageSpec(1, 1, 1)]
)
def test_images_of_any_size_are_drawn_and_judged(spec: ImageSpec, network: str) -> None:
    with seeded(0):
        model = GAN(spec, replace(GAN.presets(spec)["tiny"].model, network=network)).to_eval()
    labels = torch.tensor([0, 1, 1]) if spec.num_classes else None
    images = model.sample(Noise.per_image(0, range(3), "cpu"), labels)
    assert images.shape == (3, *spec.shape)
    assert images.dtype == torch.uint8
    logits = model.discriminator(images.float() / 127.5 - 1, labels)
    assert logits.shape == (3,)


@pytest.mark.parametrize("patch", [2, 3])
def test_a_patch_is_a_position_and_every_pixel_counts(patch: int) -> None:
    model = model_of(ImageSpec(3, 13, 17), patch=patch)
    images = model.generator(torch.ones(2, 8), None)
    assert images.shape == (2, 3, 13, 17)
    assert model.generator.sizes[0] == (-(-13 // patch), -(-17 // patch))
    x = normal(2, 3, 13, 17).float().requires_grad_()
    (gradient,) = torch.autograd.grad(model.discriminator(x, None).sum(), x)
    assert bool((gradient != 0).all())


@pytest.mark.parametrize(
    ("network", "widths", "generator", "discriminator"),
    [
        # As in mimicry 0.1.16, by its own count: SNGANGenerator32 and SNGANDiscriminator32.
        ("resnet", (256, 256, 256, 256), 4_276_739, 1_053_825),
        # z 100 -> 4 x 4 x 512 -> 256 -> 128 -> 3: weights, scales and shifts, and the bias of the last layer.
        (
            "dcgan",
            (64, 128, 256, 512),
            128 * 8192 + 2 * (512 + 256 + 128) + 16 * (512 * 256 + 256 * 128 + 128 * 3) + 3,
            16 * (3 * 128 + 128 * 256 + 256 * 512) + 128 + 2 * (256 + 512) + 512 * 16,
        ),
    ],
)
def test_networks_have_the_published_size(
    network: str, widths: tuple[int, ...], generator: int, discriminator: int
) -> None:
    share = 0.5 if network == "resnet" else 1.0
    config = GANConfig(network=network, widths=widths, blocks=(1,) * 4, latents=128, critic_share=share, r1=0, r2=0)
    with torch.device("meta"):
        model = GAN(ImageSpec(3, 32, 32), config)
    assert sum(p.numel() for p in model.generator.parameters()) == generator
    assert sum(p.numel() for p in model.discriminator.parameters()) == discriminator


def test_spectral_norm_is_the_largest_singular_value() -> None:
    model = model_of(ImageSpec(1, 8, 8), network="resnet", spectral=True, r1=0.0, r2=0.0)
    list(trainer_of(model, Stripes(labels=False), images=8 * 2 * 40).run())
    for name, module in model.discriminator.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            largest = float(torch.linalg.svdvals(module.weight.detach().flatten(1).double())[0])
            assert largest == pytest.approx(1, abs=0.05), name


def test_signals_keep_their_size_through_deep_networks() -> None:
    """However many blocks there are, images and logits begin at about the same deviation."""
    for blocks in (1, 6):
        model = model_of(ImageSpec(3, 32, 32), widths=(32, 32, 32, 32), blocks=(blocks,) * 4)
        images = model.generator(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), None)
        assert 0.3 < images.std().item() < 3
        assert 0.1 < model.discriminator(images / images.std(), None).std().item() < 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loss": "hing"}, "model.loss"),
        ({"network": "unet"}, "model.network"),
        ({"widths": (24, 32)}, "contains 24, but widths are multiples of 16"),
        ({"blocks": (1,)}, "give each level both"),
        ({"changes": ("spin",)}, "model.changes"),
        ({"augment": 1.0}, "model.augment is 1.0"),
        ({"r1": -1.0}, "model.r1 is -1.0"),
        ({"critic_steps": 0}, "model.critic_steps is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(SMALL, **changes)


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="truncation is -1"):
        GANOptions(truncation=-1.0)

"""The variational family: bounds against closed forms, latents in order, and settings that do what they say."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calotype.core.images import to_unit
from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.families.vae import VAE, VAEConfig, VAEOptions
from calotype.nn.distributions import Distribution
from calotype.nn.ladder import Gaussian, Ladder, Step
from calotype.nn.levels import level_sizes
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from tests.conftest import Stripes

TRAINING = [TrainConfig(images=1000, batch_size=8, micro_batch=part, precision="fp32") for part in (0, 3)]
SMALL: dict[str, Any] = {"widths": (16, 16, 32), "blocks": (1, 1, 1), "latents": (1, 2, 1), "latent_width": 3}


def model_of(spec: ImageSpec, disturbed: bool = True, likelihood: str = "categorical", **more: Any) -> VAE:
    """A float64 model, by default with random weights, so that no layer is idle."""
    with seeded(0):
        model = VAE(spec, VAEConfig(**(SMALL | {"likelihood": likelihood} | more))).double()
        if disturbed:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * torch.randn_like(p))
    return model.to_eval()


def by(samples: int) -> VAEOptions:
    """So many samples of the latents for the bound."""
    return VAEOptions(bound_samples=samples)


def pictures(spec: ImageSpec, n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, *spec.shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- against closed forms


class Density(Distribution):
    """N(numbers, s^2) of values in [-1, 1], as a density: a yardstick, and no distribution of bytes."""

    channelwise = True

    def __init__(self, dims: int, scale: float) -> None:
        super().__init__(dims)
        self.parameters, self.draws, self.scale = dims, dims, scale

    def log_prob(self, parameters: Tensor, pixels: Tensor) -> Tensor:
        x = to_unit(pixels, parameters.dtype)
        return torch.distributions.Normal(parameters, self.scale).log_prob(x).sum(-1)

    def sample(self, parameters: Tensor, uniforms: Tensor, taste: Any = None) -> Tensor:
        raise NotImplementedError

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters


class Linear(nn.Module):
    """x = A z + b + s e, with z ~ N(0, 1); q(z | x) = N(B (x - b), exp(c)^2): images of one row of D values."""

    def __init__(self, dims: int, latents: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(dims, latents) * 0.3)
        self.bias = nn.Parameter(normal(dims, seed=1) * 0.1)
        self.guess = nn.Parameter(normal(latents, dims, seed=2) * 0.1)
        self.log_scale = nn.Parameter(torch.zeros(latents, dtype=torch.float64))

    def encode(self, x: Tensor) -> list[Tensor]:
        return [x.flatten(1)]

    def infer(self, known: Sequence[Tensor], labels: Tensor | None, noise: Noise) -> tuple[Tensor, list[Step]]:
        mean = ((known[0] - self.bias) @ self.guess.T)[:, :, None, None]
        posterior = Gaussian(mean, self.log_scale[:, None, None].expand_as(mean))
        z = posterior.sample(noise.normal(*mean.shape[1:]).double())
        prior = Gaussian(torch.zeros_like(mean), torch.zeros_like(mean))
        return (z[:, :, 0, 0] @ self.weight.T + self.bias)[:, None, None], [Step(z, posterior, prior)]

    facts = staticmethod(Ladder.facts)


def linear(latents: int = 1, scale: float = 0.5, dims: int = 5) -> VAE:
    """A VAE whose network and distribution are linear and Gaussian; its images are one pixel of several channels."""
    model = model_of(ImageSpec(dims, 1, 1), widths=(16,), blocks=(1,), latents=(1,))
    model.network, model.distribution = Linear(dims, latents), Density(dims, scale)  # type: ignore[assignment]
    return model


@torch.no_grad()
def exact(model: VAE, images: Tensor) -> Tensor:
    """log p(x) of the linear model: N(b, A A^T + s^2)."""
    network: Any = model.network
    covariance = network.weight @ network.weight.T + model.distribution.scale**2 * torch.eye(len(network.bias))  # type: ignore[attr-defined]
    marginal = torch.distributions.MultivariateNormal(network.bias, covariance)
    return marginal.log_prob(to_unit(images, torch.float64).flatten(1))


def make_exact(model: VAE) -> None:
    """Give the linear model, of one latent, its own posterior: of precision 1 + A'A/s^2, mean A'(x - b)/s^2 by that."""
    network: Any = model.network
    scale = model.distribution.scale  # type: ignore[attr-defined]
    precision = 1 + (network.weight.T @ network.weight) / scale**2
    with torch.no_grad():
        network.guess.copy_(network.weight.T / scale**2 / precision)
        network.log_scale.copy_(-0.5 * precision[0].log())


def test_with_the_exact_posterior_all_weights_are_the_likelihood() -> None:
    model = linear()
    make_exact(model)
    images = pictures(model.spec, 4)
    weights = model.log_weights(images, None, Noise.shared(0, 4, "cpu"), 7)
    torch.testing.assert_close(weights, exact(model, images).expand(7, 4), rtol=1e-12, atol=1e-12)
    bits = model.bits_per_dim(Batch(images, None), Noise.shared(0, 4, "cpu"), by(7))
    assert bits.kind == "bound"
    torch.testing.assert_close(bits.per_image, -exact(model, images) / (5 * math.log(2)), rtol=1e-12, atol=1e-12)


def test_with_another_posterior_more_samples_give_a_tighter_bound() -> None:
    """ELBO < 5 samples < 50 < log p, in the mean over enough draws to tell."""
    model = linear()
    images = pictures(model.spec, 400)
    batch, nats = Batch(images, None), -5 * math.log(2)
    bounds = [
        float(model.bits_per_dim(batch, Noise.shared(1, 400, "cpu"), by(k)).per_image.mean()) * nats for k in (1, 5, 50)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < float(exact(model, images).mean())
    many = float(model.bits_per_dim(batch, Noise.shared(1, 400, "cpu"), by(3000)).per_image.mean()) * nats
    assert many == pytest.approx(float(exact(model, images).mean()), abs=0.02)


def test_trained_it_finds_principal_components() -> None:
    """Its optimum is PPCA, whose likelihood is that of the data's largest eigenvalues, and noise of the given scale."""
    dims, scale = 4, 0.3
    model = linear(latents=2, scale=scale, dims=dims).requires_grad_(True).train()
    images = pictures(ImageSpec(dims, 1, 1), 256)
    x = to_unit(images, torch.float64).flatten(1) @ torch.diag(torch.tensor([1.0, 0.8, 0.3, 0.2], dtype=torch.float64))
    images = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, :, None, None]
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.02)
    for step in range(1500):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 1500)
        optimizer.zero_grad()
        model.loss(Batch(images, None), Noise.shared(step, len(images), "cpu")).value.backward()
        optimizer.step()
    seen = to_unit(images, torch.float64).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(seen.T, correction=0))
    kept = (values.clamp(min=scale**2)).clone()
    kept[:-2] = scale**2
    best = torch.distributions.MultivariateNormal(seen.mean(0), vectors @ torch.diag(kept) @ vectors.T)
    found, wanted = float(exact(model, images).mean()), float(best.log_prob(seen).mean())
    assert found == pytest.approx(wanted, abs=0.01)


def test_the_divergence_is_that_of_many_draws() -> None:
    q = Gaussian(normal(1, 3, 1, 1), 0.3 * normal(1, 3, 1, 1, seed=1))
    p = Gaussian(normal(1, 3, 1, 1, seed=2), 0.3 * normal(1, 3, 1, 1, seed=3))
    count = 200_000
    z = q.sample(normal(count, 3, 1, 1, seed=4))
    many = (q.log_prob(z) - p.log_prob(z)).mean(0)
    spread = (q.log_prob(z) - p.log_prob(z)).std(0) / count**0.5
    assert bool(((q.kl(p)[0] - many).abs() < 5 * spread).all())
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.log_scale.exp()), torch.distributions.Normal(p.mean, p.log_scale.exp())
    )
    torch.testing.assert_close(q.kl(p), reference, rtol=1e-12, atol=1e-12)


def test_divergences_of_the_ladder_add_up_to_that_of_all_latents() -> None:
    """The sum of those of each map, given the ones before, is log q - log p of them all in the mean over draws."""
    spec, count = ImageSpec(1, 5, 6), 4000
    model = model_of(spec)
    images = pictures(spec, 1).expand(count, -1, -1, -1)
    known = model.network.encode(to_unit(images, torch.float64))
    with torch.no_grad():
        _, steps = model.network.infer(known, None, Noise.shared(0, count, "cpu"))
    assert len(steps) == 4
    sums = torch.stack([step.kl().flatten(1).sum(1) for step in steps]).sum(0)
    drawn = -torch.stack([step.log_ratio() for step in steps]).sum(0)
    difference = sums - drawn
    assert float(difference.mean().abs()) < 5 * float(difference.std()) / count**0.5
    assert float(sums.mean()) > 0.1


def test_a_model_that_knows_nothing_takes_eight_bits() -> None:
    spec = ImageSpec(3, 5, 4)
    model = model_of(spec, disturbed=False)
    for samples in (1, 3):
        bits = model.bits_per_dim(Batch(pictures(spec, 2), None), Noise.shared(0, 2, "cpu"), by(samples))
        torch.testing.assert_close(bits.per_image, torch.full((2,), 8.0, dtype=torch.float64), rtol=0, atol=1e-12)


# -- the ladder


@pytest.mark.parametrize(
    ("size", "levels", "patch", "point", "expected"),
    [
        ((28, 28), 5, 1, True, [(28, 28), (14, 14), (7, 7), (4, 4), (1, 1)]),
        ((45, 31), 3, 2, False, [(23, 16), (12, 8), (6, 4)]),
        ((1, 1), 1, 1, True, [(1, 1)]),
    ],
)
def test_levels(size: tuple[int, int], levels: int, patch: int, point: bool, expected: list[tuple[int, int]]) -> None:
    assert level_sizes(size, levels, patch, point) == expected


@pytest.mark.parametrize("spec", [ImageSpec(1, 28, 28), ImageSpec(4, 45, 31, 2), ImageSpec(3, 7, 5, 3)], ids=str)
@pytest.mark.parametrize("more", [{}, {"patch": 2}, {"point": False}], ids=str)
def test_images_of_any_size_go_in_and_out(spec: ImageSpec, more: dict[str, Any]) -> None:
    model = model_of(spec, likelihood="logistics", **more)
    labels = torch.arange(2) % spec.num_classes if spec.num_classes else None
    images = pictures(spec, 2)
    assert model.decode(model.encode(images, labels), labels).shape == images.shape
    assert model.sample(Noise.per_image(0, range(2), "cpu"), labels).shape == images.shape
    assert bool(torch.isfinite(model.bits_per_dim(Batch(images, labels), Noise.shared(0, 2, "cpu")).per_image).all())


def test_finer_latents_follow_the_coarser_ones() -> None:
    """In the order in which they are drawn: those before do not change with the ones after, which change with them."""
    network: Ladder = model_of(ImageSpec(1, 9, 10)).network
    shapes = network.latent_shapes()
    assert [shape[1:] for shape in shapes] == [(1, 1), (5, 5), (5, 5), (9, 10)]
    latents = [normal(2, *shape, seed=k) for k, shape in enumerate(shapes)]
    whole = network.decode(latents, None)
    for k in range(len(shapes)):
        assert not torch.allclose(network.decode([*latents[:k], latents[k] + 1, *latents[k + 1 :]], None), whole)
    assert not torch.allclose(network.decode(latents[:2], None), whole)


def test_every_latent_and_pixel_of_a_reconstruction_is_its_own_images() -> None:
    model = model_of(ImageSpec(1, 9, 10))
    images = pictures(model.spec, 4)
    together = model.encode(images)
    for i in range(4):
        torch.testing.assert_close(model.encode(images[i : i + 1])[0], together[i], rtol=1e-9, atol=1e-12)


def test_classes_change_images_and_latents() -> None:
    model = model_of(ImageSpec(1, 8, 8, 2))
    images, labels = pictures(model.spec, 2), torch.tensor([0, 1])
    assert not torch.equal(model.encode(images, labels), model.encode(images, 1 - labels))
    noise = lambda: Noise.per_image(0, range(2), "cpu")  # noqa: E731
    assert not torch.equal(model.sample(noise(), labels), model.sample(noise(), 1 - labels))


# -- codes

CODED: dict[str, Any] = {"widths": (16, 16), "blocks": (1, 1), "latents": (0, 1), "point": False}


@pytest.mark.parametrize("code", [{"code": "fsq", "codes": (3, 2)}, {"code": "vq", "codes": (6,)}], ids=str)
@pytest.mark.parametrize("spec", [ImageSpec(1, 9, 6), ImageSpec(4, 7, 12, 2)], ids=str)
def test_codes_are_certain_and_cost_what_all_alike_cost(code: dict[str, Any], spec: ImageSpec) -> None:
    """By summing over all codes of one position: the bound is the part of log p(x) that its own codes have."""
    model = model_of(spec, likelihood="logistics", **(CODED | code))
    labels = torch.arange(3) % 2 if spec.num_classes else None
    images = pictures(spec, 3)
    known = model.network.encode(to_unit(images, torch.float64))
    numbers, steps = model.network.infer(known, labels, Noise.shared(0, 3, "cpu"))
    positions = math.ceil(spec.height / 2) * math.ceil(spec.width / 2)
    nats = model._log_prob(numbers, images) - positions * math.log(6)
    for samples in (1, 4):
        bits = model.bits_per_dim(Batch(images, labels), Noise.shared(0, 3, "cpu"), by(samples)).per_image
        torch.testing.assert_close(bits, -nats.detach() / (spec.dims * math.log(2)), rtol=1e-12, atol=1e-12)
    latents = model.encode(images, labels)
    assert latents.shape == (3, model.network.quantiser.features * positions)  # type: ignore[union-attr]
    assert torch.equal(model.decode(latents, labels), model._mean(numbers.detach()))
    value, parts = losses(model, Batch(images, labels))
    further = float(steps[0].loss().mean()) / spec.dims if code["code"] == "vq" else 0.0  # type: ignore[union-attr]
    assert value == pytest.approx(parts["elbo"] + further, rel=1e-9)
    assert 1 <= parts["perplexity"] <= 6


def test_the_likelihood_is_that_of_all_codes_together() -> None:
    """One position of six codes: log p(x) by enumeration is at least the bound."""
    model = model_of(
        ImageSpec(1, 1, 2), widths=(16, 16), blocks=(1, 1), latents=(0, 1), point=False, code="fsq", codes=(3, 2)
    )
    images = pictures(model.spec, 20)
    network: Any = model.network
    every = network.quantiser.values(torch.arange(6)[:, None, None]).double()
    numbers = network.decode([every], None)
    each = torch.stack([model._log_prob(numbers[k : k + 1].expand(20, -1, -1, -1), images) for k in range(6)])
    exact_bits = -(torch.logsumexp(each, 0) - math.log(6)) / (2 * math.log(2))
    bound = model.bits_per_dim(Batch(images, None), Noise.shared(0, 20, "cpu")).per_image
    assert bool((bound >= exact_bits - 1e-12).all())
    own = network.infer(network.encode(to_unit(images, torch.float64)), None, Noise.shared(0, 20, "cpu"))[1][
        0
    ].found.numbers
    torch.testing.assert_close(bound, -(each.gather(0, own[None, :, 0, 0])[0] - math.log(6)) / (2 * math.log(2)))


# -- settings


def losses(model: VAE, batch: Batch, **changes: Any) -> tuple[float, dict[str, float]]:
    model.config = replace(model.config, **changes)
    loss = model.train().loss(batch, Noise.shared(0, len(batch.images), "cpu"))
    model.eval()
    return float(loss.value), {name: float(value) for name, value in loss.parts.items()}


def test_beta_weighs_the_divergence_and_the_bound_is_reported_at_one() -> None:
    model = model_of(ImageSpec(1, 6, 6))
    batch = Batch(pictures(model.spec, 3), None)
    for beta in (0.0, 1.0, 4.0):
        value, parts = losses(model, batch, beta=beta)
        assert value == pytest.approx(parts["reconstruction"] + beta * parts["kl"], rel=1e-9)
        assert parts["elbo"] == pytest.approx(parts["reconstruction"] + parts["kl"], rel=1e-9)
        held_out = float(model.loss(batch, Noise.shared(0, 3, "cpu")).value)
        assert held_out == pytest.approx(parts["elbo"], rel=1e-9)


def test_free_bits_are_a_floor_of_each_latent_map() -> None:
    model = model_of(ImageSpec(1, 6, 6))
    batch = Batch(pictures(model.spec, 3), None)
    value, parts = losses(model, batch, free_bits=1e4)
    floor = 4 * 1e4 / (model.spec.dims * math.log(2))  # four maps, all below it
    assert value == pytest.approx(parts["reconstruction"] + floor, rel=1e-9)
    assert losses(model, batch, free_bits=1e-9)[0] == pytest.approx(parts["elbo"], rel=1e-9)


def test_the_weight_of_the_divergence_rises_with_images_seen() -> None:
    model = model_of(ImageSpec(1, 6, 6))
    batch = Batch(pictures(model.spec, 4), None)
    weights = []
    for step in range(5):
        model.images_seen = 4 * step
        value, parts = losses(model, batch, warmup=12)
        weights.append((value - parts["reconstruction"]) / parts["kl"])
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 1, 1], abs=1e-9)


def test_a_resumed_or_divided_step_weighs_the_divergence_alike() -> None:
    """The trainer says how many images were seen, so nothing is to be kept, or counted twice."""
    with seeded(0):
        model = VAE(ImageSpec(1, 6, 6), VAEConfig(**(SMALL | {"likelihood": "categorical", "warmup": 1000})))
    copies = [Trainer(copy.deepcopy(model), Stripes(32, 1, 6, 6).batches(8), settings) for settings in TRAINING]
    seen = []
    for _ in range(3):
        seen.append([float(next(trainer.run()).losses["model"]) for trainer in copies])
        assert [trainer.model.images_seen for trainer in copies] == [8 * (len(seen) - 1)] * 2
    torch.testing.assert_close(*torch.tensor(seen).T, rtol=1e-4, atol=1e-5)
    resumed = Trainer(copy.deepcopy(model), Stripes(32, 1, 6, 6).batches(8), TRAINING[0])
    resumed.load_state_dict(copies[0].state_dict())
    assert float(next(resumed.run()).losses["model"]) == float(next(copies[0].run()).losses["model"])


def test_the_importance_weighted_objective_is_its_bound() -> None:
    model = model_of(ImageSpec(1, 6, 6))
    batch = Batch(pictures(model.spec, 3), None)
    value, _ = losses(model, batch, samples=5)
    bits = model.bits_per_dim(batch, Noise.shared(0, 3, "cpu"), by(5))
    assert value == pytest.approx(float(bits.per_image.mean()), rel=1e-9)


def test_active_latents_are_counted() -> None:
    model = model_of(ImageSpec(1, 6, 6), disturbed=False)
    batch = Batch(pictures(model.spec, 3), None)
    assert losses(model, batch)[1]["active"] == 0  # as all posteriors are their priors
    assert losses(model_of(ImageSpec(1, 6, 6)), batch)[1]["active"] == 1


def test_latents_that_say_nothing_are_remarked_on() -> None:
    model = model_of(ImageSpec(1, 6, 6))
    assert model.remark({"model": 1.0, "model/active": 0.3}) is None
    assert model.remark({"model": 1.0, "model/active": 0.0}) is None  # they may become active yet
    model.images_seen = 50_000
    remark = model.remark({"model": 1.0, "model/active": 0.0})
    assert remark is not None
    assert "model.free_bits=1" in remark.text
    coded = model_of(ImageSpec(1, 6, 6), **(CODED | {"code": "vq", "codes": (64,)}))
    assert coded.remark({"model/perplexity": 20.0}) is None
    remark = coded.remark({"model/perplexity": 1.5})
    assert remark is not None
    assert "1.5 of 64" in remark.text


def test_binary_images_are_told_from_others() -> None:
    binary = (pictures(ImageSpec(1, 6, 6), 4) > 99).to(torch.uint8) * 255
    assert VAE.measured(VAEConfig(), binary).likelihood == "bernoulli"
    assert VAE.measured(VAEConfig(), pictures(ImageSpec(1, 6, 6), 4)).likelihood == "logistics"
    spec = ImageSpec(3, 6, 6)
    palette = pictures(ImageSpec(3, 6, 1), 4).expand(4, *spec.shape)  # flat, of 24 colours
    assert VAE.measured(VAEConfig(), palette).likelihood == "categorical"
    assert VAE.measured(VAEConfig(likelihood="logistics"), palette).likelihood == "logistics"
    many = pictures(ImageSpec(3, 6, 1), 60).expand(60, *spec.shape)  # as flat, of some 360
    assert VAE.measured(VAEConfig(), many).likelihood == "logistics"
    assert VAE.measured(VAEConfig(), palette[:, :1]).likelihood == "logistics"  # more grays than palettes are sure of
    assert VAE.measured(VAEConfig(), palette[:2, :1]).likelihood == "categorical"  # of 12
    model = model_of(ImageSpec(1, 6, 6), likelihood="bernoulli")
    assert model.bits_per_dim(Batch(binary, None), Noise.shared(0, 4, "cpu")).images == ""
    gray = Batch(pictures(model.spec, 4), None)
    assert model.bits_per_dim(gray, Noise.shared(0, 4, "cpu")).images == "binarised at random"


def test_options_of_sampling() -> None:
    model = model_of(ImageSpec(1, 6, 6))
    noise = lambda seed: Noise.per_image(seed, range(2), "cpu")  # noqa: E731
    still = VAEOptions(temperature=0, pixels="mean")
    assert torch.equal(model.sample(noise(0), None, still), model.sample(noise(1), None, still))
    assert not torch.equal(model.sample(noise(0)), model.sample(noise(1)))
    drawn, mean = (model.sample(noise(0), None, VAEOptions(pixels=pixels)) for pixels in ("drawn", "mean"))
    assert not torch.equal(drawn, mean)
    assert torch.equal(model.sample(noise(0)), mean)
    binary = model_of(ImageSpec(1, 6, 6), likelihood="bernoulli")
    assert set(binary.sample(noise(0)).unique().tolist()) <= {0, 255}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (16, 20, 32)}, "multiples of 16"),
        ({"latents": (1, 1)}, "give each level all three"),
        ({"latents": (0, 0, 0)}, "at least one"),
        ({"latents": (1, 1, 0)}, "coarsest level"),
        ({"blocks": (0, 1, 1)}, "at least 1"),
        ({"latent_width": 0}, "at least 1"),
        ({"beta": -1.0}, "0 or more"),
        ({"samples": 5, "beta": 2.0}, "leave out"),
        ({"likelihood": "mse"}, "likelihood"),
        ({"code": "fsq"}, "point=false"),
        ({"code": "fsq", "latents": (0, 0, 1), "point": False, "codes": (1, 5)}, "2 or more"),
        ({"code": "vq", "latents": (0, 0, 1), "point": False}, "one size"),
        ({"code": "fsq", "latents": (0, 0, 1), "point": False, "beta": 2.0}, "leave out"),
        ({"code": "rvq"}, "code"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VAEConfig(**(SMALL | settings))


def test_one_level_is_the_pixels() -> None:
    """Else its images would be of one position, whatever the size of the pictures."""
    one = {"widths": (16,), "blocks": (1,), "latents": (1,)}
    with pytest.raises(ConfigError, match="two or more levels, or point=false"):
        model_of(ImageSpec(1, 6, 6), **one)
    for spec, settings in ((ImageSpec(1, 6, 6), one | {"point": False}), (ImageSpec(1, 1, 1), one)):
        assert model_of(spec, **settings).sample(Noise.per_image(0, range(2), "cpu")).shape == (2, *spec.shape)


def test_images_of_fewer_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="give fewer"):
        model_of(ImageSpec(1, 1, 1))


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"temperature": math.nan}, {"pixels": "median"}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        VAEOptions(**options)

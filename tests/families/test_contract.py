"""What every family promises, over FAMILIES."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from calotype.core.config import build, plain, read_toml, write_toml
from calotype.core.model import Batch, Encodable, GenerativeModel, HasLikelihood, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.sampling import sampler
from tests.conftest import Stripes

SPECS = [ImageSpec(1, 8, 8), ImageSpec(2, 1, 5), ImageSpec(3, 9, 7), ImageSpec(4, 8, 12, num_classes=2)]


def smallest(name: str, spec: ImageSpec) -> GenerativeModel:
    """A trained-a-little model of the family's smallest size."""
    family = FAMILIES[name]
    preset = next(iter(family.presets(spec).values()))
    data = Stripes(32, spec.channels, spec.height, spec.width, labels=spec.num_classes > 0)
    across = data.images[::2]  # neighbours differ: flat colours take a VAE many more steps until its means differ
    config = family.measured(preset.model, across)
    with seeded(0):
        model = family(spec, config)
    trainer = Trainer(model, data.batches(8), TrainConfig(images=10_000, batch_size=8, learning_rate=1e-3))
    list(trainer.run(2))
    return trainer.ema


@pytest.fixture(scope="module", params=[(name, spec) for name in FAMILIES for spec in SPECS], ids=str)
def model(request: pytest.FixtureRequest) -> GenerativeModel:
    return smallest(*request.param)


def labels_of(model: GenerativeModel, n: int) -> torch.Tensor | None:
    return torch.arange(n) % model.spec.num_classes if model.spec.num_classes else None


def test_samples_are_bytes_of_the_spec(model: GenerativeModel) -> None:
    images = model.sample(Noise.per_image(0, range(3), "cpu"), labels_of(model, 3))
    assert images.dtype == torch.uint8
    assert images.shape == (3, *model.spec.shape)
    assert not torch.equal(images[0], images[1])


def test_an_image_does_not_depend_on_selection_order_or_company(model: GenerativeModel) -> None:
    labels = sampler.cycle(range(model.spec.num_classes)) if model.spec.num_classes else None
    together = sampler.sample(model, range(21), seed=7, labels=labels)
    chosen = [20, 3, 11, 0]
    assert torch.equal(sampler.sample(model, chosen, seed=7, labels=labels), together[chosen])
    for i in (0, 17):
        assert torch.equal(sampler.sample(model, [i], seed=7, labels=labels)[0], together[i])
    assert not torch.equal(sampler.sample(model, [0], seed=8, labels=labels)[0], together[0])


def test_sampling_ignores_and_keeps_the_global_generator(model: GenerativeModel) -> None:
    torch.manual_seed(1)
    first = model.sample(Noise.per_image(0, range(2), "cpu"), labels_of(model, 2))
    state = torch.get_rng_state()
    second = model.sample(Noise.per_image(0, range(2), "cpu"), labels_of(model, 2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_every_parameter_belongs_to_one_player(model: GenerativeModel) -> None:
    owned = [id(p) for player in model.players().values() for p in player.parameters()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in model.parameters()}


def test_turns_name_players_and_every_parameter_learns(model: GenerativeModel) -> None:
    trainable = copy.deepcopy(model).requires_grad_(True).train()
    with torch.no_grad():
        for p in trainable.parameters():
            p.add_(0.01)  # zero-initialised layers hide what is behind them
    data = Stripes(4, *model.spec.shape, labels=model.spec.num_classes > 0)
    players = dict(trainable.players())
    for turn in trainable.turns():
        assert turn.player in players
        loss = turn.loss(Batch(data.images, data.label), Noise.shared(0, 4, "cpu"))
        assert loss.value.shape == ()
        assert not any(part.requires_grad for part in loss.parts.values())
        loss.value.backward(inputs=list(players[turn.player].parameters()))
        stuck = [k for k, p in players[turn.player].named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert stuck == []


def test_the_loss_of_an_image_is_its_own(model: GenerativeModel) -> None:
    """The loss is a mean over images: the loss of two halves is the mean of theirs."""
    data = Stripes(6, *model.spec.shape, labels=model.spec.num_classes > 0)
    batch, noise = Batch(data.images, data.label), lambda: Noise.shared(5, 6, "cpu")
    for turn in model.turns():
        whole = turn.loss(batch, noise()).value
        halves = [turn.loss(batch.rows(a, a + 3), noise().rows(a, a + 3)).value for a in (0, 3)]
        torch.testing.assert_close(whole, sum(halves) / 2, rtol=1e-5, atol=1e-6)


def test_config_survives_toml(model: GenerativeModel, tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "config.toml"  # type: ignore[operator]
    path.write_text(write_toml({"model": plain(model.config)}))
    assert build(type(model).Config, read_toml(path)["model"], "model") == model.config


def test_options_and_config_are_frozen_dataclasses(model: GenerativeModel) -> None:
    for kind in (type(model).Config, type(model).Options):
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_weights_survive_a_state_dict(model: GenerativeModel) -> None:
    with seeded(9):
        other = type(model)(model.spec, model.config)
    other.load_state_dict(model.state_dict())
    noise = lambda: Noise.per_image(0, range(2), "cpu")  # noqa: E731
    assert torch.equal(other.to_eval().sample(noise(), labels_of(model, 2)), model.sample(noise(), labels_of(model, 2)))


def test_labels_are_checked(model: GenerativeModel) -> None:
    with pytest.raises(ConfigError, match="labels"):
        sampler.sample(model, [0], 0, None if model.spec.num_classes else sampler.cycle([0]))


def test_capabilities_work_where_they_are_declared(model: GenerativeModel) -> None:
    data = Stripes(3, *model.spec.shape, labels=model.spec.num_classes > 0)
    if isinstance(model, HasLikelihood):
        bits = model.bits_per_dim(Batch(data.images, data.label), Noise.shared(0, 3, "cpu"))
        assert bits.per_image.shape == (3,)
        assert bits.per_image.dtype == torch.float64
        # What an image gets does not depend on its company, but for the rounding of other shapes of batches.
        rows = lambda indices: Noise.per_image(0, indices, "cpu")  # noqa: E731
        together = model.bits_per_dim(Batch(data.images, data.label), rows([0, 1, 2])).per_image
        alone = model.bits_per_dim(Batch(data.images, data.label).rows(1, 2), rows([1])).per_image
        assert float(alone[0]) == pytest.approx(float(together[1]), rel=1e-4)
    if isinstance(model, Encodable):
        latents = model.encode(data.images, data.label)
        assert len(latents) == 3
        assert latents.ndim == 2
        decoded = model.decode(latents, data.label)
        assert decoded.dtype == torch.uint8
        assert decoded.shape == data.images.shape
    assert model.spec.dims == data.images[0].numel()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (28, 28), (64, 48), (256, 256)])
def test_presets_fit_any_image(name: str, size: tuple[int, int]) -> None:
    spec = ImageSpec(3, *size)
    presets = FAMILIES[name].presets(spec)
    configs = [FAMILIES[name].measured(preset.model, Stripes(4, *spec.shape).images) for preset in presets.values()]
    with torch.device("meta"):
        counts = [sum(p.numel() for p in FAMILIES[name](spec, config).parameters()) for config in configs]
    matched = [(count, preset) for count, preset in zip(counts, presets.values(), strict=True) if preset.auto]
    assert [count for count, _ in matched] == sorted(count for count, _ in matched)
    wanted = [preset.images_wanted for _, preset in matched]
    assert wanted == sorted(wanted)
    assert wanted[0] == 0

"""What only a CUDA GPU can show; collected where there is one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from calotype.core import devices
from calotype.core.model import GenerativeModel, HasLikelihood, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.runs import checkpoints
from calotype.sampling import sampler
from tests.conftest import Stripes

SPEC = ImageSpec(3, 24, 24, num_classes=2)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    devices.make_repeatable()


def trainer(name: str, preset: str, **settings: object) -> Trainer:
    """A trainer of a family's preset on the GPU, the same each time."""
    family = FAMILIES[name]
    chosen = family.presets(SPEC)[preset]
    data = Stripes(64, *SPEC.shape)
    with seeded(0):
        model = family(SPEC, family.measured(chosen.model, data.images)).cuda()
    config = TrainConfig(images=10_000, batch_size=16, optimizer=chosen.optimizer, **settings)  # type: ignore[arg-type]
    return Trainer(model, data.batches(16), config)


def trained(name: str, **settings: object) -> GenerativeModel:
    steps = trainer(name, next(iter(FAMILIES[name].presets(SPEC))), **settings)
    list(steps.run(3))
    return steps.ema


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [0, 1])
def test_a_resumed_run_is_bit_exact(name: str, precision: str, size: int, tmp_path: Path) -> None:
    preset = list(FAMILIES[name].presets(SPEC))[size]
    straight = trainer(name, preset, precision=precision)
    list(straight.run(8))
    first = trainer(name, preset, precision=precision)
    list(first.run(5))
    kept = checkpoints.write(tmp_path, 80, first.state_dict(), {})
    second = trainer(name, preset, precision=precision)
    second.load_state_dict(checkpoints.read(kept))
    list(second.run(8))
    for part in ("model", "ema"):
        for key, value in straight.state_dict()[part].items():
            assert torch.equal(value, second.state_dict()[part][key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_does_not_depend_on_selection_or_order(name: str) -> None:
    model, labels = trained(name), sampler.cycle(range(2))
    together = sampler.sample(model, range(70), 7, labels)
    assert torch.equal(sampler.sample(model, [69, 3, 64], 7, labels), together[[69, 3, 64]])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gpu_draws_what_the_cpu_draws(name: str) -> None:
    """The same noise; so the same images, but for rounding: TF32 keeps 10 bits of a factor."""
    model, labels = trained(name), sampler.cycle(range(2))
    here = sampler.sample(model, range(8), 7, labels).int()
    there = sampler.sample(copy.deepcopy(model).cpu(), range(8), 7, labels).int()
    assert (here - there).abs().float().mean() < 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gpu_finds_the_likelihood_that_the_cpu_finds(name: str) -> None:
    model, data = trained(name), Stripes(64, *SPEC.shape)
    if not isinstance(model, HasLikelihood):
        return
    batch = data.batches(4).at(0)
    here = model.bits_per_dim(batch, Noise.per_image(0, range(4), "cpu")).per_image.cpu()
    there = copy.deepcopy(model).cpu().bits_per_dim(batch, Noise.per_image(0, range(4), "cpu")).per_image
    assert torch.allclose(here, there, rtol=0.01), (here, there)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_is_close_to_fp32_and_not_taken_by_itself_where_it_is_slower(name: str) -> None:
    preset = next(iter(FAMILIES[name].presets(SPEC)))
    ways = [trainer(name, preset, precision=precision) for precision in ("auto", "fp32", "bf16")]
    steps = list(zip(*(way.run(3) for way in ways), strict=True))
    for by_itself, exact, close in steps:
        for key, value in exact.losses.items():
            assert torch.equal(by_itself.losses[key], value)
            # Eight bits of a factor, and far fewer steps than would let the two drift apart.
            assert close.losses[key].item() == pytest.approx(value.item(), rel=0.05)
    assert any(not torch.equal(close.losses[k], v) for _, exact, close in steps for k, v in exact.losses.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # compiling imports what torch itself deprecates
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_training_is_the_same_training(name: str) -> None:
    preset = next(iter(FAMILIES[name].presets(SPEC)))
    plain, compiled = trainer(name, preset, precision="fp32"), trainer(name, preset, precision="fp32", compile=True)
    for a, b in zip(plain.run(3), compiled.run(3), strict=True):
        for key in a.losses:
            assert a.losses[key].item() == pytest.approx(b.losses[key].item(), rel=0.01)

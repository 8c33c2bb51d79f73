"""The planner: from a budget to the size of the network and the number of images to see on this machine.

A short probe of this machine's speed turns a time budget into a number of images. The choice is written to the run's
config, and from then on nothing depends on the clock, so the run can be repeated from its config.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from calotype.core.config import build, nearest, plain
from calotype.core.model import GenerativeModel, ImageSpec, Preset
from calotype.core.rng import seeded
from calotype.data.packs.batches import Batches
from calotype.distributed import processes
from calotype.errors import ConfigError, is_out_of_memory
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.sampling import sampler

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
IMAGES = {"img": 1, "kimg": 1_000, "Mimg": 1_000_000}

LONGEST_BUDGET = 1e12  # of any unit; more is a slip of the finger

OF_THE_PRESET = ("batch_size", "optimizer", "learning_rate", "beta1")  # what a preset decides in [training]

CHECKPOINTS = 20  # per run: a kill costs at most a twentieth of it
PREVIEW_SHARE = 0.04  # of a time budget at most, for watching it improve
PREVIEWS = range(4, 21)  # per run
PROBE_SHARE = 0.05  # of a time budget at most, for measuring
LONGEST_PROBE = 8.0  # seconds per size of network; more does not make it more exact
FASTER = 4  # times the images/s of a size the next may have at most: on a GPU small networks leave it idle
CLOSING_SECONDS = 2.0  # loading, writing, the last grid's overhead
MEASURED_IMAGES = 5_000  # enough to know a standard deviation to about 1 %
MEASURED_VALUES = 2**26  # at most, of large images fewer


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train: in seconds or in images seen; the other field is None."""

    text: str
    seconds: float | None
    images: int | None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse `90s`, `30m`, `2h`, `20000img`, `500kimg`, `2Mimg`. Raises ConfigError."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d|img|kimg|Mimg)", text.strip())
        amount = float(match[1]) if match else 0.0
        if not match or not 0 < amount < LONGEST_BUDGET:
            raise ConfigError(
                f"budget {text!r} is not understood: give a time (90s, 30m, 2h) or images (20000img, 500kimg, 2Mimg)"
            )
        unit = match[2]
        if unit in SECONDS:
            return cls(text.strip(), amount * SECONDS[unit], None)
        return cls(text.strip(), None, max(1, round(amount * IMAGES[unit])))

    def part(self, share: float) -> str:
        """The text of a share of this budget."""
        if self.images is not None:
            return f"{max(1, round(share * self.images))}img"
        return f"{share * (self.seconds or 0):.10g}s"


class Plan(NamedTuple):
    """The network and the number of images chosen for a budget."""

    preset: str
    model: Any  # the family's Config, nothing left open
    training: TrainConfig
    images_per_second: float | None  # measured, for a time budget
    by_pictures: Mapping[str, Any] = MappingProxyType({})  # entries of the model that the training pictures decided


class Speed(NamedTuple):
    """The speed of a trainer, measured by a probe."""

    images_per_second: float
    preview_seconds: float


def plan(
    family: type[GenerativeModel],
    preset: str,
    budget: Budget,
    spec: ImageSpec,
    sample_images: torch.Tensor,
    make_batches: Callable[[TrainConfig], Batches],
    device: torch.device,
    overrides: Mapping[str, Mapping[str, Any]],
    report: Callable[[str], None],
    shard: int = 1,
) -> Plan:
    """Choose the size of the network and the number of images to see.

    Args:
        preset: a name of family.presets(spec), or "auto" for the largest that the budget can train.
        sample_images: training images to measure the data by, uint8 (N, C, H, W).
        overrides: values set by the user, by section "model" and "training"; they are kept.
        shard: processes that the weights are sharded over.

    Raises:
        ConfigError: for an unknown preset, settings that do not fit the images, or a budget too short to train in.
    """
    started = time.perf_counter()

    def left() -> float:
        spent = processes.by_first(lambda: time.perf_counter() - started)
        return (budget.seconds or 0.0) - spent - CLOSING_SECONDS

    presets = family.presets(spec)
    if preset != "auto" and preset not in presets:
        raise ConfigError(f"preset {preset!r} is unknown{nearest(preset, ['auto', *presets])}")
    chosen: tuple[Plan, Speed | None] | None = None
    images = None
    for name in [name for name in presets if presets[name].auto] if preset == "auto" else [preset]:
        if images is not None and FASTER * images < presets[name].images_wanted:
            break  # it is not worth its measurement, which takes minutes for a network made for other machines
        candidate, speed = _settings(family, name, presets[name], sample_images, overrides), None
        if budget.seconds is not None:
            report(f"measuring the speed of this machine with the {name} network")
            limit = min(LONGEST_PROBE, PROBE_SHARE * budget.seconds)
            try:
                speed = _probe(family, spec, candidate, make_batches(candidate.training), device, limit, shard)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if chosen is None:
                    raise ConfigError(
                        f"memory is too short for the {name} network on {spec.width}x{spec.height} images: choose a "
                        "smaller --size or --preset"
                    ) from error
                break  # the next smaller one fitted
        images = (budget.images or 0) if speed is None else _images(left(), speed)
        if chosen is not None and images < presets[name].images_wanted:
            break
        chosen = candidate, speed
    assert chosen is not None
    candidate, speed = chosen
    if speed is None:
        return _fixed(candidate, budget.images or 0)
    return _timed(candidate, left(), speed, budget)


def _settings(
    family: type[GenerativeModel],
    name: str,
    preset: Preset,
    images: torch.Tensor,
    overrides: Mapping[str, Mapping[str, Any]],
) -> Plan:
    model = build(family.Config, plain(preset.model) | dict(overrides.get("model", {})), "model")
    training = {name: getattr(preset, name) for name in OF_THE_PRESET}
    training |= {"images": 1, "threads": torch.get_num_threads()} | dict(overrides.get("training", {}))
    measured = family.measured(model, images)
    before = plain(model)
    by_pictures = {key: value for key, value in plain(measured).items() if value != before[key]}
    return Plan(name, measured, build(TrainConfig, training, "training"), None, by_pictures)


def _fixed(candidate: Plan, images: int) -> Plan:
    training = candidate.training
    every = training.checkpoint_every or max(1, images // CHECKPOINTS)
    previews = training.preview_every or max(1, images // PREVIEWS[-1])
    return candidate._replace(training=replace(training, images=images, checkpoint_every=every, preview_every=previews))


def _timed(candidate: Plan, seconds: float, speed: Speed, budget: Budget) -> Plan:
    previews, images = _previews(seconds, speed), _images(seconds, speed)
    if images < candidate.training.batch_size:
        raise ConfigError(
            f"budget {budget.text} is too short: this machine sees {speed.images_per_second:.1f} images/s with the "
            f"{candidate.preset} network, and previews take {speed.preview_seconds:.1f} s each: give a longer one"
        )
    fitted = _fixed(candidate, images)
    every = candidate.training.preview_every or max(1, images // previews)
    return fitted._replace(
        training=replace(fitted.training, preview_every=every), images_per_second=speed.images_per_second
    )


def _previews(seconds: float, speed: Speed) -> int:
    return min(PREVIEWS[-1], max(PREVIEWS[0], int(PREVIEW_SHARE * seconds / speed.preview_seconds)))


def _images(seconds: float, speed: Speed) -> int:
    """Images that can be seen in the time left after previews."""
    return int((seconds - _previews(seconds, speed) * speed.preview_seconds) * speed.images_per_second)


def images_in(
    seconds: float,
    family: type[GenerativeModel],
    spec: ImageSpec,
    model: Any,
    training: TrainConfig,
    batches: Batches,
    device: torch.device,
    shard: int = 1,
) -> int:
    """Images that a model can be trained on in a number of seconds on this machine, by a measurement.

    Args:
        model: the config of the model, of the family's Config class.
    """
    limit, candidate = min(LONGEST_PROBE, PROBE_SHARE * seconds), Plan("", model, training, None)
    started = time.perf_counter()
    speed = _probe(family, spec, candidate, batches, device, limit, shard)
    spent = processes.by_first(lambda: time.perf_counter() - started)
    return max(0, _images(seconds - spent - CLOSING_SECONDS, speed))


def _probe(
    family: type[GenerativeModel],
    spec: ImageSpec,
    candidate: Plan,
    batches: Batches,
    device: torch.device,
    limit: float,
    shard: int,
) -> Speed:
    """Time training steps and one preview for about `limit` seconds. The trained weights are discarded."""
    with seeded(0):
        model = family(spec, candidate.model).to(device)
    # A rate that never diverges, and not a share of it, as warming up would make it: gradients behind layers that begin
    # at zero may then be so small that the processor takes several times as long for them.
    config = replace(candidate.training, images=10**12, learning_rate=1e-6, warmup=0.0)
    trainer = Trainer(model, batches, config, shard)
    started = before = time.perf_counter()
    durations: list[float] = []
    for _ in trainer.run():
        _wait_for(device)
        now = time.perf_counter()
        durations.append(now - before)
        before = now
        if processes.by_first(lambda: len(durations) >= 4 and time.perf_counter() - started > limit * 0.7):
            break
    del durations[0]  # the first step allocates memory and chooses kernels
    middle = sorted(durations)[len(durations) // 2]
    trainer.gather()

    def drawing() -> float:
        started = time.perf_counter()
        preview(trainer.ema)
        _wait_for(device)
        return time.perf_counter() - started

    return Speed(*processes.by_first(lambda: [trainer.images_per_step / middle, drawing()]))


def preview(model: GenerativeModel) -> torch.Tensor:
    """Preview images of a run: one batch, always of the same seeds, uint8 (n, C, H, W)."""
    count = sampler.batch_size(model, next(model.parameters()).device)
    return sampler.sample(model, range(count), seed=0, labels=sampler.all_classes(model.spec))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

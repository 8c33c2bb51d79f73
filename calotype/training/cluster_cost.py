"""`calotype plan`: estimates of the cost of training a recipe on a cluster."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from calotype.core import devices
from calotype.core.config import build, nearest, plain, read_toml
from calotype.core.model import Batch, GenerativeModel, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.data import parse_size
from calotype.data.packs.batches import Batches
from calotype.distributed.cost_model import DEVICES, Cluster, Cost, Device, Turn, Work, cost, recording
from calotype.errors import ConfigError
from calotype.nn.layers import BatchNorm2d
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import BF16_PARAMETERS, Trainer, gains_from_bf16
from calotype.runs.config import family
from calotype.training.planner import OF_THE_PRESET
from calotype.training.recipe import Request, request

CPU = "cpu"
RECORDED = 2  # images of the smaller of two steps that are recorded
TIMED = 7  # steps
SHARE = 0.2  # of a step may be sums over devices; with more, fewer devices do nearly as well
# Of gloo between processes of one machine: what benchmarks/scaling.py measured.
GLOO_LINK, GLOO_LATENCY = 1.2e9, 0.75e-3


class Scaling(NamedTuple):
    """The estimated cost of training on a cluster."""

    title: str
    weights: int
    batch: int
    budget: int  # images to see
    images_per_step: int
    cluster: Cluster
    device: str
    cost: Cost
    memory: float  # of a device, bytes

    @property
    def images_per_second(self) -> float:
        """Images per second of all devices together."""
        return self.images_per_step / self.cost.seconds

    @property
    def hours(self) -> float:
        """Hours until the images of the budget are seen."""
        return self.budget / self.images_per_second / 3600

    @property
    def exit_status(self) -> int:
        """0: an estimate always succeeds."""
        return 0

    def as_dict(self) -> dict[str, Any]:
        """The cost of training in seconds, bytes and images, as plain values."""
        cost = self.cost
        return {
            "title": self.title,
            "weights": self.weights,
            "batch_size": self.batch,
            "images": self.budget,
            "device": self.device,
            "nodes": self.cluster.nodes,
            "devices": self.cluster.size,
            "shard": self.cluster.shard,
            "images_each": cost.images,
            "memory_bytes": sum(cost.memory.values()),
            "memory_of_device_bytes": self.memory,
            "sent_bytes": cost.sent,
            "step_seconds": cost.seconds,
            "images_per_second": self.images_per_second,
            "hours": self.hours,
        }

    def text(self) -> str:
        """The estimate as text for people."""
        cost, cluster = self.cost, self.cluster
        held = ", ".join(f"{name} {_size(value)}" for name, value in cost.memory.items())
        used = sum(cost.memory.values())
        nodes = "" if cluster.nodes == 1 else f" in {cluster.nodes} nodes"
        divided = "" if cluster.shard == 1 else f", of which {cluster.shard} hold the weights between them"
        lines = [
            f"{self.title}, {self.weights:,} weights, batches of {self.batch:,}",
            f"{cluster.size} x {self.device}{nodes}{divided}: at most {cost.images} images each",
            f"memory of each: {_size(used)} of {_size(self.memory)} ({held})",
            f"each sends {_size(cost.sent)} a step",
            f"a step: {_time(cost.seconds)} (computing {_time(cost.computing)}, sums over devices "
            f"{_time(cost.summing)})",
            f"{self.images_per_second:,.0f} images/s: {self.budget:,} images in {_time(3600 * self.hours)}",
            "not counted: reading pictures, checkpoints, previews, measuring, and waiting for the slowest",
        ]
        if cost.micro_batch < cost.images:
            lines.append(f"memory is short: {cost.micro_batch} images at a time, by --set training.micro_batch")
        if used > self.memory:
            lines.append("this does not fit: give more devices with --shard, a smaller --preset, or another --device")
        if cost.summing > SHARE * cost.seconds:
            lines.append(
                f"sums over devices take {cost.summing / cost.seconds:.0%}: fewer devices, or larger batches, use them "
                "better"
            )
        return "\n".join(lines)


def scale(
    recipe: Path,
    *,
    device: str = "h100",
    nodes: int = 1,
    gpus: int = 1,
    shard: int = 1,
    budget: str | None = None,
    preset: str | None = None,
    size: str = "",
    channels: int = 0,
    classes: int = -1,
    settings: dict[str, dict[str, Any]] | None = None,
) -> Scaling:
    """Estimate the cost of training by a recipe.

    Args:
        recipe: a TOML file as for training, or the config.toml of a run.
        device: a key of DEVICES, or "cpu" for processes of one thread on this machine, which is then measured.
        nodes, gpus: machines, and devices or processes in each.
        shard: processes that the weights are sharded over.
        budget: images to see, such as 200Mimg; by default that of the recipe.
        preset: size of the network; by default that of the recipe.
        size, channels, classes: of the pictures; by default those of the run.
        settings: other values, by section and key.

    Raises:
        ConfigError: a value is missing, or values contradict each other.
    """
    if device not in (*DEVICES, CPU):
        raise ConfigError(f"--device is {device!r}{nearest(device, [*DEVICES, CPU])}")
    for name, value in (("--nodes", nodes), ("--gpus", gpus), ("--shard", shard)):
        if value < 1:
            raise ConfigError(f"{name} is {value}: give at least 1")
    cluster = Cluster(nodes, gpus, shard)
    if cluster.size % shard:
        raise ConfigError(f"--shard is {shard}, but there are {cluster.size} devices: give a number that divides them")
    asked = request(
        "", "", budget=budget, preset=preset, size=None, settings=settings or {}, recipe=recipe, source="unread"
    )
    spec = _spec(recipe, size, channels, classes)
    if asked.budget.images is None:
        raise ConfigError(
            f"the budget is {asked.budget.text}, a time, but the time is what is asked for: give images, such as "
            "--budget 10Mimg"
        )
    model, config = _chosen(asked, spec)
    if cluster.size > config.batch_size:
        raise ConfigError(
            f"there are {cluster.size} devices for batches of {config.batch_size}: give at least an image for each, "
            "by --set training.batch_size"
        )
    return _scaled(asked, spec, model, config, device, cluster)


def _spec(recipe: Path, size: str, channels: int, classes: int) -> ImageSpec:
    facts = read_toml(recipe).get("dataset", {})
    labels = read_toml(recipe).get("data", {}).get("labels", True)
    width, height = parse_size(size) if size else (facts.get("width", 0), facts.get("height", 0))
    if not width:
        raise ConfigError(f"{recipe} does not say how large pictures are: give --size, such as 32")
    known = len(facts.get("class_names", ())) if labels else 0
    return ImageSpec(channels or facts.get("channels", 3), height, width, known if classes < 0 else classes)


def _chosen(asked: Request, spec: ImageSpec) -> tuple[Any, TrainConfig]:
    """The model and how it is trained."""
    kind = family(asked.family)
    presets = kind.presets(spec)
    if asked.preset not in presets:
        raise ConfigError(f"preset {asked.preset!r} is not a size of network here{nearest(asked.preset, [*presets])}")
    preset = presets[asked.preset]
    values = build(kind.Config, plain(preset.model) | dict(asked.settings["model"]), "model")
    training = {name: getattr(preset, name) for name in OF_THE_PRESET} | dict(asked.settings["training"])
    noise = Noise.shared(0, 64, "cpu").uniform(*spec.shape)
    model = kind.measured(values, (noise * 255).to(torch.uint8))
    return model, build(TrainConfig, training | {"images": asked.budget.images}, "training")


def _scaled(asked: Request, spec: ImageSpec, model: Any, config: TrainConfig, device: str, cluster: Cluster) -> Scaling:
    with seeded(0):
        trained = family(asked.family)(spec, model)
    weights = sum(p.numel() for p in trained.parameters())
    if device == CPU:
        half = config.precision == "bf16" or (
            config.precision == "auto" and gains_from_bf16(torch.device("cpu"), weights)
        )
        known = this_machine()
    else:
        half = config.precision == "bf16" or (config.precision == "auto" and weights >= BF16_PARAMETERS)
        known = DEVICES[device]
    work = recorded(trained, config, half)
    seconds = None
    if device == CPU:
        shared = max(1.0, cluster.devices / (os.cpu_count() or 1))  # processes of a core: each waits for the others
        seconds = shared * _measured(trained, config, -(-config.batch_size // cluster.size))
        known = known._replace(latency=shared * known.latency)
    found = cost(work, known, cluster, config.batch_size, seconds)
    return Scaling(
        f"{asked.family} ({asked.preset} network) on {spec.width}x{spec.height}, {spec.channels} channel(s)",
        weights,
        config.batch_size,
        config.images,
        config.batch_size * sum(turn.repeats for turn in work.turns),
        cluster,
        device,
        found,
        known.memory,
    )


def needed(model: GenerativeModel, config: TrainConfig, device: str) -> float:
    """Bytes that training takes on one device besides torch itself: weights, moments, averages and activations."""
    weights = sum(p.numel() for p in model.parameters())
    half = config.precision == "bf16" or (config.precision == "auto" and gains_from_bf16(torch.device(device), weights))
    alone = this_machine()._replace(memory=float("inf"))
    batch = config.micro_batch or config.batch_size
    return sum(cost(recorded(model, config, half), alone, Cluster(1, 1), batch, 0.0).memory.values())


def this_machine() -> Device:
    """This machine as a device: its processes and memory. Its speed is measured with the network itself."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Device(1e11, 2e11, 1e10, memory, 1e-5, GLOO_LINK, GLOO_LINK / 10, GLOO_LATENCY)


class _Pictures:
    """Pictures of noise, and classes."""

    def __init__(self, spec: ImageSpec, count: int) -> None:
        self.images = (255 * Noise.shared(0, count, "cpu").uniform(*spec.shape)).to(torch.uint8)
        self.labels = torch.arange(count) % spec.num_classes if spec.num_classes else None

    def read(self, indices: np.ndarray) -> Batch:
        return Batch(self.images[indices], None if self.labels is None else self.labels[indices])


def _trainer(model: GenerativeModel, config: TrainConfig, batch: int, **changes: Any) -> Trainer[GenerativeModel]:
    """A trainer of the given batch size, at a learning rate too small to change weights."""
    config = replace(config, batch_size=batch, micro_batch=0, images=10**12, learning_rate=1e-9, warmup=0.0, **changes)
    pictures = _Pictures(model.spec, batch)
    return Trainer(model, Batches(pictures, np.arange(batch), batch, 0), config)


def recorded(model: GenerativeModel, config: TrainConfig, half: bool) -> Work:
    """The operations of a training step, from two steps of few images on this machine's CPU in float32."""
    found = []
    for batch in (RECORDED, 2 * RECORDED):
        trainer = _trainer(model, config, batch, precision="fp32", compile=False)
        list(trainer.run(1))  # optimizers make their moments in the first
        with recording([*trainer.model.parameters()]) as steps, _counted(trainer.model) as sums:
            list(trainer.run(2))
        found += steps
    moments = sum(
        value.numel()
        for entries in trainer.state_dict()["optimizers"].values()
        for entry in entries.values()
        for value in entry.values()
        if value.ndim
    )
    turns = tuple(Turn(sum(p.numel() for p in trainer.params[t.player]), t.repeats) for t in trainer.turns)
    return Work(found[0], found[1], RECORDED, turns, moments, len(sums), half)


@contextmanager
def _counted(model: GenerativeModel) -> Iterator[list[None]]:
    """A list with an entry for each all-reduce within a block: batch normalisation has two in each pass."""
    sums: list[None] = []

    def count(*_: Any) -> None:
        sums.extend([None] * (4 if torch.is_grad_enabled() else 2))

    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]
    hooks = [norm.register_forward_hook(count) for norm in norms]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def _measured(model: GenerativeModel, config: TrainConfig, images: int) -> float:
    """Seconds of a step of `images` images by one thread of this machine."""
    devices.keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = _trainer(model, config, images)
        seconds, before = [], time.perf_counter()
        for _ in trainer.run(TIMED):
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
        return statistics.median(seconds[2:])
    finally:
        torch.set_num_threads(threads)


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, scale in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"

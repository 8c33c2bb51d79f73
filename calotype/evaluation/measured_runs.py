"""Measuring a run: samples, likelihoods and costs, by one process or several."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calotype.core.config import build, plain, read_assignments
from calotype.core.display import Display
from calotype.core.images import cells, read_png
from calotype.core.model import HasLikelihood
from calotype.core.rng import fold, permutation
from calotype.data import PackedDataset
from calotype.distributed.work_sharing import Action, Help
from calotype.evaluation.course import Course
from calotype.evaluation.likelihood import asked, likelihoods
from calotype.evaluation.protocol import Subject
from calotype.evaluation.report import Value
from calotype.runs.log import training_seconds
from calotype.runs.portable_paths import shareable
from calotype.runs.run import TrainedModel
from calotype.sampling import sampler

IMAGES = 2_000  # per set, where the data set has as many held-out images
FEWEST = 200  # where it has not, but for images that are given
SEEDS = 2


class Drawing(NamedTuple):
    """The settings by which a run draws images and computes likelihoods."""

    model: TrainedModel
    n: int  # images per seed
    labels: Callable[[int], int] | None
    options: Any
    actions: Mapping[str, Action]
    drawn: list[int]  # images in each of the calls that this process has made


def of_run(model: TrainedModel, packed: PackedDataset, n: int, seed: int, options: Sequence[str]) -> Drawing:
    """Settings with the class proportions of the run's data. Raises CalotypeError."""
    model.run.check_data(packed)
    chosen = build(model.model.Options, read_assignments(options), "option")
    labels = proportional(packed, seed)
    sampler.check(model.model, labels, chosen)
    drawn: list[int] = []

    def draw(s: int, indices: Tensor) -> Tensor:
        drawn.append(len(indices))
        return sampler.sample(model.model, indices.tolist(), s, labels, chosen)

    actions: dict[str, Action] = {f"seed {s}": partial(draw, s) for s in range(seed, seed + SEEDS)}
    if isinstance(model.model, HasLikelihood):
        of = model.model
        actions["likelihood"] = asked(lambda batch, noise: of.bits_per_dim(batch, noise, chosen), packed, seed)
    return Drawing(model, images_per_set(n, packed), labels, chosen, actions, drawn)


def subject(
    work: Drawing,
    packed: PackedDataset,
    seed: int,
    checkpoint: str,
    count: int,
    helped: Help,
    display: Display,
) -> Subject:
    """Samples, likelihoods and costs of a run, by `count` processes. Called in the first of them."""
    model, n, labels, chosen = work.model, work.n, work.labels, work.options
    calls, sets, seconds = _calls(model.model), [], 0.0
    for s in range(seed, seed + SEEDS):
        parts, done, started = [], 0, time.perf_counter()
        for part in helped(f"seed {s}", sampler.parts(model.model, range(n))):
            parts.append(part)
            done += len(part)
            display.count(f"samples of seed {s}", done, n)
        seconds += time.perf_counter() - started
        sets.append(torch.cat(parts))
    config, log = model.run.config, model.run.read_log()
    device = next(model.model.parameters()).device
    counted = calls()
    facts = {
        "kind": "run",
        "path": shareable(model.run.path),
        "family": config.family,
        "preset": config.preset,
        "checkpoint": checkpoint,
        "weights_sha256": model.digest,
        "options": plain(chosen),
    }
    cost = {
        "images seen in training": max((record.get("images_seen", 0) for record in log), default=0),
        "seconds of training": round(training_seconds(log)),
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "samples per second": SEEDS * n / seconds,
        "network calls per image": model.model.network_calls(chosen) or counted / len(work.drawn),
        "peak memory in MB": peak_memory(),
        "device": str(device),
        "processes": count,
        "threads": torch.get_num_threads(),
    }
    spec = model.spec
    sheets = [(int(path.stem), read_png(path)) for path in model.run.previews()]
    stages = [
        Course(seen, images)
        for seen, sheet in sheets
        if sheet.shape[0] == spec.channels and len(images := cells(sheet, spec.height, spec.width))
    ]
    told_labels = None if labels is None else torch.tensor([labels(i) for i in range(n)])
    return Subject(
        sets,
        told_labels,
        tuple(range(seed, seed + SEEDS)),
        facts,
        cost,
        _likelihoods(work, packed, seed, helped, display),
        stages,
    )


def images_per_set(n: int, packed: PackedDataset) -> int:
    """The requested number; for 0 the number of held-out images, within limits."""
    return n or max(FEWEST, min(IMAGES, len(packed.held_out)))


def proportional(packed: PackedDataset, seed: int) -> Callable[[int], int] | None:
    """The class of image i, in the proportions of the training images; None without classes."""
    if packed.labels is None:
        return None
    told = packed.labels[packed.train]
    return sampler.cycle(told[permutation(fold(seed, "labels"), len(told))].tolist())


def _calls(model: nn.Module) -> Callable[[], int]:
    """Count the calls of a model's networks; the returned function stops counting and gives the number."""
    count = [0]

    def called(*_: object) -> None:
        count[0] += 1

    hooks = [child.register_forward_hook(called) for child in model.children()]

    def tell() -> int:
        for hook in hooks:
            hook.remove()
        return count[0]

    return tell


def peak_memory() -> int:
    """Peak memory of this process, in MB: of the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _likelihoods(work: Drawing, packed: PackedDataset, seed: int, helped: Help, display: Display) -> list[Value]:
    if "likelihood" not in work.actions:
        return [Value("bits/dim", "samples", None, None, None, 0, "not defined: the model is implicit")]
    return likelihoods(lambda parts: helped("likelihood", parts), packed, seed, display)

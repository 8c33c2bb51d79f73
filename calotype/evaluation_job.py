"""`calotype evaluate`: a run, or a folder of images, measured against a data set."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calotype import sampling
from calotype.config import build, plain, read_assignments
from calotype.curves import points
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.display import Display, PlainDisplay, packing_on
from calotype.errors import ConfigError, RunError
from calotype.evaluation import controls, features
from calotype.evaluation.course import Course
from calotype.evaluation.evaluate import NORMAL
from calotype.evaluation.page import Pictures, page
from calotype.evaluation.protocol import Outcome, Subject, evaluated
from calotype.evaluation.report import Report, Value
from calotype.evaluation.views import NOTHING, Views, views
from calotype.images import cells, read_png, write_atomic
from calotype.model import Batch, Bits, Encodable, GenerativeModel, HasLikelihood
from calotype.rng import Noise, fold, permutation
from calotype.runs import Run, TrainedModel, load

IMAGES = 2_000  # per set, where the data set has as many held-out images
FEWEST = 200  # where it has not, but for images that are given
SEEDS = 2
# Held-out images for the likelihood, by its kind: a bound takes many network calls, what is exact takes one.
LIKELIHOOD_BATCH = range(8, 65)  # images at a time, and of large ones fewer:
LIKELIHOOD_VALUES = 2**16
LIKELIHOOD_IMAGES = 2_000  # at most
SHOWN = 100  # samples on the page
PREVIEWS = 6  # of training
VIEWED = 96  # held-out images whose latents are looked at


def evaluate(
    subject: str | Path | Run,
    *,
    data: str = "",
    n: int = 0,
    seed: int = 0,
    features: str = "EffLite0",
    checkpoint: str = "last",
    device: str = "auto",
    display: Display | None = None,
    **options: Any,
) -> Report:
    """Measure a run, or images from anywhere, by the protocol of docs/evaluation.md.

    Args:
        subject: a run; or a folder, zip, tar, Parquet or npz of images, with `data`.
        data: what images from elsewhere are to be like: a source of pictures as for train.
        n: images per set; 0 for as many as are held out, 200 to 2000, and for all images from elsewhere up to 2000.
        seed: of the samples; those of the seed after it are measured too.
        features: what images are compared by: EffLite0, or the file of a network saved by `torch.export.save`.
        checkpoint: "last", "best", or images seen.
        device: "auto", "cpu", "cuda" or "mps".
        display: where to show progress; by default plain lines.
        options: of sampling, such as steps=32.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    path = subject.path if isinstance(subject, Run) else Path(subject)
    assignments = [f"{name}={value}" for name, value in options.items()]
    with display or PlainDisplay() as shown:
        return measure(
            path,
            data=data,
            n=n,
            seed=seed,
            network=features,
            checkpoint=checkpoint,
            options=assignments,
            device=device,
            display=shown,
        ).report


def run(subject: Path, *, out: Path | None, display: Display, **asked: Any) -> Path:
    """Measure, write evaluation.json and its page, and say what came of it; returns the place of the first.

    Other arguments are those of `measure`.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    beside = subject if _is_run(subject) else subject.with_name(f"{subject.name}-evaluation")
    place = out or beside / "evaluation.json"
    if place.is_dir():
        raise ConfigError(f"{place} is a folder: name a file for the report, such as {place / 'evaluation.json'}")
    outcome = measure(subject, display=display, **asked)
    display.message(outcome.report.text())
    written = write(
        outcome, place, Run.open(subject) if _is_run(subject) else None, asked["checkpoint"], asked["device"]
    )
    display.message(f"report: {place}")
    display.message(f"page: {written}")
    return place


def write(outcome: Outcome, place: Path, trained: Run | None, checkpoint: str, device: str) -> Path:
    """Write a report and its page, beside it, whose place is returned. Raises RunError."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        outcome.report.save(place)  # before the page, whose pictures may take long
        seen = NOTHING if trained is None else _views(trained, checkpoint, device)
        return _write_page(outcome, place.with_suffix(".html"), trained, seen)
    except OSError as error:
        raise RunError(
            f"the report cannot be written to {place.parent} ({error.strerror}): choose another --out"
        ) from error


def _views(run: Run, checkpoint: str, device: str) -> Views:
    """What latents of held-out pictures are, of a model that has some."""
    model = load(run, checkpoint=checkpoint, device=device, report=lambda _: None)
    if not isinstance(model.model, Encodable):
        return NOTHING
    packed = prepare(run.config.data)
    batch = packed.read(controls.chosen(packed.held_out, VIEWED, 0, "latents"))
    return views(model.model, batch, next(model.model.parameters()).device)


def _write_page(outcome: Outcome, place: Path, trained: Run | None, seen: Views) -> Path:
    previews = sorted((trained.path / "previews").glob("*.png")) if trained else []
    some = [previews[i] for i in np.linspace(0, len(previews) - 1, min(len(previews), PREVIEWS)).round().astype(int)]
    pictures = Pictures(
        samples=outcome.samples[:SHOWN],
        real=outcome.real[:SHOWN],
        suspects=outcome.suspects,
        over_training=[(f"{int(path.stem):,} images", read_png(path)) for path in some],
        latents=seen,
    )
    text = page(outcome.report, pictures, points(trained.read_log()) if trained else {})
    write_atomic(place, lambda file: file.write(text.encode()))
    return place


def measure(
    subject: Path,
    *,
    data: str,
    n: int,
    seed: int,
    network: str,
    checkpoint: str,
    options: Sequence[str],
    device: str,
    display: Display,
) -> Outcome:
    """Draw or read the images, and measure them. Raises CalotypeError."""
    if not subject.exists():
        raise ConfigError(f"{subject} does not exist: give a run directory, or a folder of images with --data")
    if _is_run(subject) and data:
        raise ConfigError("a run is measured on the data it was trained on: leave out --data")
    if not _is_run(subject) and not data:
        raise ConfigError(f"{subject} is no run: to measure images, say by --data which pictures they are to be like")
    if n < 0 or n == 1:
        raise ConfigError(f"n is {n}: give at least 2 images, or leave it out")
    if options and data:
        raise ConfigError("options of sampling were given, but the images are there already: leave out --set")
    compare_by = features.network(network)
    if data:
        packed = prepare(DataConfig(source=data), progress=packing_on(display))
        found = _found(subject, packed, n, seed, display)
    else:
        model = load(subject, checkpoint=checkpoint, device=device, report=display.message)
        packed = prepare(model.run.config.data, progress=packing_on(display))
        model.run.check_data(packed)
        found = _drawn(model, packed, images_per_set(n, packed), seed, checkpoint, options, display)
    asked: dict[str, Any] = {"--data": data, "-n": n, "--seed": seed, "--checkpoint": checkpoint}
    asked["--features"] = "" if network == "EffLite0" else network
    given = [word for name, value in asked.items() if value and value != "last" for word in (name, str(value))]
    given += [word for assignment in options for word in ("--set", assignment)]
    command = " ".join(map(quote, ["calotype", "evaluate", str(subject), *given]))
    return evaluated(found, packed, compare_by, seed, command, display)


def _is_run(path: Path) -> bool:
    return (path / "config.toml").is_file()


# -- what is measured


def _drawn(
    model: TrainedModel,
    packed: PackedDataset,
    n: int,
    seed: int,
    checkpoint: str,
    options: Sequence[str],
    display: Display,
) -> Subject:
    """Samples of a run, in the proportions of its classes."""
    chosen = build(model.model.Options, read_assignments(options), "option")
    labels = proportional(packed, seed)
    sampling.check(model.model, labels, chosen)
    calls, sets, seconds = _calls(model.model), [], 0.0
    for s in range(seed, seed + SEEDS):
        parts, started = [], time.perf_counter()
        for part in sampling.stream(model.model, range(n), s, labels, chosen):
            parts.append(part.images)
            display.count(f"samples of seed {s}", sum(len(part) for part in parts), n)
        seconds += time.perf_counter() - started
        sets.append(torch.cat(parts))
    config, log = model.run.config, model.run.read_log()
    device = next(model.model.parameters()).device
    counted, batches = calls(), SEEDS * -(-n // sampling.batch_size(model.model, device))
    facts = {
        "kind": "run",
        "path": str(model.run.path),
        "family": config.family,
        "preset": config.preset,
        "checkpoint": checkpoint,
        "weights_sha256": model.digest,
        "options": plain(chosen),
    }
    cost = {
        "images seen in training": max((record.get("images_seen", 0) for record in log), default=0),
        "seconds of training": round(_seconds(log)),
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "samples per second": SEEDS * n / seconds,
        "network calls per image": model.model.network_calls(chosen) or counted / batches,
        "peak memory in MB": peak_memory(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    spec = model.spec
    stages = [
        Course(int(path.stem), cells(read_png(path), spec.height, spec.width))
        for path in sorted((model.run.path / "previews").glob("*.png"))
    ]
    told_labels = None if labels is None else torch.tensor([labels(i) for i in range(n)])
    return Subject(
        sets,
        told_labels,
        tuple(range(seed, seed + SEEDS)),
        facts,
        cost,
        _likelihoods(model.model, packed, seed, chosen, display),
        stages,
    )


def images_per_set(n: int, packed: PackedDataset) -> int:
    """As many as asked for; for 0 as many as are held out, within limits."""
    return n or max(FEWEST, min(IMAGES, len(packed.held_out)))


def proportional(packed: PackedDataset, seed: int) -> Callable[[int], int] | None:
    """The class of image i, in the proportions of the training images; None without classes."""
    if packed.labels is None:
        return None
    told = packed.labels[packed.train]
    return sampling.cycle(told[permutation(fold(seed, "labels"), len(told))].tolist())


def _found(folder: Path, packed: PackedDataset, n: int, seed: int, display: Display) -> Subject:
    """Images from elsewhere, brought to the size and the channels of the data set."""
    spec = packed.spec
    config = DataConfig(
        source=str(folder), width=spec.width, height=spec.height, channels=spec.channels, labels=False, to_learn=False
    )
    there = prepare(config, progress=packing_on(display))
    indices = permutation(fold(seed, "images"), len(there))[: n or IMAGES]
    facts = {"kind": "images", "path": str(folder), "images": len(there), "skipped": len(there.skipped)}
    return Subject([there.read(np.sort(indices)).images], None, (), facts, {}, (), ())


def _seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """How long training took by its log, without the time between a stop and what continued it."""
    elapsed = [(record["event"], record.get("elapsed", record["time"])) for record in log]
    return sum(max(0.0, after - before) for (_, before), (event, after) in pairwise(elapsed) if event != "resumed")


def _calls(model: nn.Module) -> Callable[[], int]:
    """Count the calls of the networks of a model from here on, until what is returned is called."""
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
    """Of this process so far, in MB; of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _likelihoods(
    model: GenerativeModel, packed: PackedDataset, seed: int, options: Any, display: Display
) -> list[Value]:
    if not isinstance(model, HasLikelihood):
        return [Value("bits/dim", "samples", None, None, None, 0, "not defined: the model is implicit")]
    return likelihoods(lambda batch, noise: model.bits_per_dim(batch, noise, options), packed, seed, display)


def likelihoods(
    bits_per_dim: Callable[[Batch, Noise], Bits], packed: PackedDataset, seed: int, display: Display
) -> list[Value]:
    """Bits per dimension of held-out images; of pictures of two values, which are binary data, nats as well."""
    most = controls.chosen(packed.held_out, LIKELIHOOD_IMAGES, seed, "likelihood")
    wanted, found = len(most), list[Tensor]()
    at_once = max(LIKELIHOOD_BATCH[0], min(LIKELIHOOD_BATCH[-1], LIKELIHOOD_VALUES // packed.spec.dims))
    name, binary = "", True
    while (done := sum(len(part) for part in found)) < wanted:
        display.count("held-out images for the likelihood", done, wanted)
        some = most[done : min(wanted, done + at_once)]
        noise = Noise.per_image(fold(seed, "likelihood"), [int(i) for i in some], "cpu")
        batch = packed.read(some)
        bits = bits_per_dim(batch, noise)
        found.append(bits.per_image)
        wanted = min(wanted, bits.enough)
        name = f"{bits.kind}, {bits.images}" if bits.images else bits.kind
        binary = binary and (bool(bits.images) or len(batch.images.unique()) <= 2)
    per_image = torch.cat(found)
    values = [_mean(f"bits/dim ({name})", per_image)]
    return [*values, _mean(f"nats ({name})", per_image * packed.spec.dims * math.log(2))] if binary else values


def _mean(name: str, per_image: Tensor) -> Value:
    value, error = float(per_image.mean()), float(per_image.std()) / len(per_image) ** 0.5
    return Value(name, "samples", value, value - NORMAL * error, value + NORMAL * error, len(per_image))

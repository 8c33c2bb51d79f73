"""Measuring the models and the classical methods of a comparison by one protocol."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from calotype.applications import evaluation
from calotype.applications.comparison.job import Job, going_on, keep
from calotype.core.model import Completable, Encodable, HasLikelihood
from calotype.core.rng import Noise, fold
from calotype.data import PackedDataset
from calotype.distributed import processes
from calotype.distributed.locks import locked_file
from calotype.distributed.work_sharing import Help, led
from calotype.evaluation import controls, measured_runs
from calotype.evaluation import features as feature_networks
from calotype.evaluation.baselines import BASELINES
from calotype.evaluation.baselines.baseline import Baseline
from calotype.evaluation.comparison import Entry
from calotype.evaluation.features import FeatureNetwork
from calotype.evaluation.likelihood import asked, likelihoods
from calotype.evaluation.protocol import Outcome, Subject, evaluated
from calotype.evaluation.report import Value
from calotype.runs.run import Run, load

EDITED = 16  # held-out pictures that are encoded and decoded again
AT_ONCE = 250  # images that a classical method draws
CHECKPOINT = "best"


def measure_all(job: Job, packed: PackedDataset) -> None:
    """Measure the models and methods without a result."""
    begun = job.begun()
    for name in job.waiting(job.config.families):
        if name in begun:
            with going_on(job, name):
                _measure_run(job, packed, Run.open(job.path / name))
    for name in job.waiting(job.config.baselines):
        job.shown.message(f"-- {name}: {BASELINES[name].told}")
        with going_on(job, name, "baseline"):
            _measure_baseline(job, packed, name)


def _measure_run(job: Job, packed: PackedDataset, run: Run) -> None:
    name = run.path.name
    job.shown.message(f"-- measuring {name}")
    place = run.path / "evaluation.json"
    with locked_file(place):
        outcome = evaluation.measure(
            run.path,
            data="",
            n=job.config.n,
            seed=job.config.seed,
            network=job.config.features,
            checkpoint=CHECKPOINT,
            options=(),
            device=job.device,
            display=job.shown,
        )

        def write() -> None:
            evaluation.write(evaluation.of_first(outcome), place, run, CHECKPOINT, job.device)

        processes.by_first(write)

    def finish() -> None:
        found = evaluation.of_first(outcome)
        off, completes = _edits(job, packed, run)
        keep(job, Entry(name, "model", found.report, off=off, completes=completes), found.samples, found.real)

    processes.by_first(finish)


def _edits(job: Job, packed: PackedDataset, run: Run) -> tuple[float | None, bool]:
    """The reconstruction error of held-out pictures if the model encodes, and whether it completes."""
    model = load(run, checkpoint=CHECKPOINT, device=job.device, report=lambda _: None).model
    if not isinstance(model, Encodable):
        return None, isinstance(model, Completable)
    device = next(model.parameters()).device
    batch = packed.read(controls.chosen(packed.held_out, EDITED, job.config.seed, "edited"))
    labels = None if batch.labels is None else batch.labels.to(device)
    back = model.decode(model.encode(batch.images.to(device), labels), labels).cpu()
    return float((back.double() - batch.images.double()).abs().mean()), isinstance(model, Completable)


def _measure_baseline(job: Job, packed: PackedDataset, name: str) -> None:
    """Measure a baseline: the first process fits it and draws, all extract features."""
    network = processes.agreed(lambda: feature_networks.network(job.config.features))

    def lead(helped: Help) -> None:
        known, started = packed.read(packed.train), time.perf_counter()
        fitted = BASELINES[name](known)
        seconds = time.perf_counter() - started
        by_all = replace(network, spread=lambda parts: helped("features", parts))
        outcome = _of_baseline(job, name, fitted, packed, seconds, by_all)
        keep(job, Entry(name, "baseline", outcome.report), outcome.samples, outcome.real)

    led(lead, {"features": network.rows})


def _of_baseline(
    job: Job, name: str, fitted: Baseline, packed: PackedDataset, seconds: float, network: FeatureNetwork
) -> Outcome:
    """The result of a classical method, by the same protocol."""
    seed, shown = job.config.seed, job.shown
    n = measured_runs.images_per_set(job.config.n, packed)
    labels, sets = measured_runs.proportional(packed, seed), []
    told = None if labels is None else torch.tensor([labels(i) for i in range(n)])
    started = time.perf_counter()
    for s in range(seed, seed + measured_runs.SEEDS):
        parts = []
        for first in range(0, n, AT_ONCE):
            indices = range(first, min(n, first + AT_ONCE))
            noise = Noise.per_image(fold(s, "sample"), indices, "cpu")
            parts.append(fitted.sample(noise, None if told is None else told[list(indices)]))
            shown.count(f"samples of seed {s}", first, n)
        sets.append(torch.cat(parts))
    drawn = measured_runs.SEEDS * n / (time.perf_counter() - started)
    bits: list[Value] = []
    if isinstance(fitted, HasLikelihood):
        ask = asked(fitted.bits_per_dim, packed, seed)
        bits = likelihoods(lambda parts: map(ask, parts), packed, seed, shown)
    subject = Subject(
        sets,
        told,
        tuple(range(seed, seed + measured_runs.SEEDS)),
        {"kind": "baseline", "name": name, "told": fitted.told},
        {"seconds of training": round(seconds, 1), "samples per second": drawn},
        bits,
        (),
    )
    return evaluated(subject, packed, network, seed, job.command, shown)

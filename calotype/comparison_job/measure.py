"""The models and the classical methods of a comparison, measured by one protocol."""

from __future__ import annotations

import time

import torch

from calotype import evaluation_job
from calotype.baselines import BASELINES
from calotype.baselines.baseline import Baseline
from calotype.comparison_job.job import Job, going_on, keep
from calotype.data import PackedDataset
from calotype.evaluation import controls
from calotype.evaluation import features as feature_networks
from calotype.evaluation.comparison import Entry
from calotype.evaluation.protocol import Outcome, Subject, evaluated
from calotype.evaluation.report import Value
from calotype.model import Completable, Encodable, HasLikelihood
from calotype.rng import Noise, fold
from calotype.runs import Run, load

EDITED = 16  # held-out pictures that are encoded and decoded again
AT_ONCE = 250  # images that a classical method draws
CHECKPOINT = "best"


def measure_all(job: Job, packed: PackedDataset) -> None:
    """Measure those that are not measured yet."""
    for name in job.config.families:
        if job.entry(name).exists() or not (job.path / name / "config.toml").exists():
            continue
        with going_on(job, name):
            _measure_run(job, packed, Run.open(job.path / name))
    known = packed.read(packed.train) if any(not job.entry(b).exists() for b in job.config.baselines) else None
    for name in job.config.baselines:
        if not job.entry(name).exists() and known is not None:
            job.shown.message(f"-- {name}: {BASELINES[name].told}")
            with going_on(job, name, "baseline"):
                started = time.perf_counter()
                fitted = BASELINES[name](known)
                outcome = _of_baseline(job, name, fitted, packed, time.perf_counter() - started)
                keep(job, Entry(name, "baseline", outcome.report), outcome.samples, outcome.real)


def _measure_run(job: Job, packed: PackedDataset, run: Run) -> None:
    name = run.path.name
    job.shown.message(f"-- measuring {name}")
    outcome = evaluation_job.measure(
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
    evaluation_job.write(outcome, run.path / "evaluation.json", run, CHECKPOINT, job.device)
    off, completes = _edits(job, packed, run)
    keep(job, Entry(name, "model", outcome.report, off=off, completes=completes), outcome.samples, outcome.real)


def _edits(job: Job, packed: PackedDataset, run: Run) -> tuple[float | None, bool]:
    """How far held-out pictures are from what comes back of them, if they can be encoded; if they can be completed."""
    model = load(run, checkpoint=CHECKPOINT, device=job.device, report=lambda _: None).model
    if not isinstance(model, Encodable):
        return None, isinstance(model, Completable)
    device = next(model.parameters()).device
    batch = packed.read(controls.chosen(packed.held_out, EDITED, job.config.seed, "edited"))
    labels = None if batch.labels is None else batch.labels.to(device)
    back = model.decode(model.encode(batch.images.to(device), labels), labels).cpu()
    return float((back.double() - batch.images.double()).abs().mean()), isinstance(model, Completable)


def _of_baseline(job: Job, name: str, fitted: Baseline, packed: PackedDataset, seconds: float) -> Outcome:
    """A classical method by the same protocol."""
    seed, shown = job.config.seed, job.shown
    n = evaluation_job.images_per_set(job.config.n, packed)
    labels, sets = evaluation_job.proportional(packed, seed), []
    told = None if labels is None else torch.tensor([labels(i) for i in range(n)])
    started = time.perf_counter()
    for s in range(seed, seed + evaluation_job.SEEDS):
        parts = []
        for first in range(0, n, AT_ONCE):
            indices = range(first, min(n, first + AT_ONCE))
            noise = Noise.per_image(fold(s, "sample"), indices, "cpu")
            parts.append(fitted.sample(noise, None if told is None else told[list(indices)]))
            shown.count(f"samples of seed {s}", first, n)
        sets.append(torch.cat(parts))
    drawn = evaluation_job.SEEDS * n / (time.perf_counter() - started)
    bits: list[Value] = []
    if isinstance(fitted, HasLikelihood):
        bits = evaluation_job.likelihoods(fitted.bits_per_dim, packed, seed, shown)
    subject = Subject(
        sets,
        told,
        tuple(range(seed, seed + evaluation_job.SEEDS)),
        {"kind": "baseline", "name": name, "told": fitted.told},
        {"seconds of training": round(seconds, 1), "samples per second": drawn},
        bits,
        (),
    )
    return evaluated(subject, packed, feature_networks.network(job.config.features), seed, job.command, shown)

"""`calotype compare`: every family trained on the same pictures with equal budgets, and measured by one protocol.

A comparison is a directory: compare.toml, a run directory for each family, an entry for each that is measured, and the
page. What is there is not done again, so that a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from shlex import quote
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calotype import __version__, evaluation_job, training
from calotype.baselines import BASELINES
from calotype.baselines.baseline import Baseline
from calotype.config import build, plain, read_toml, write_toml
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.display import Display, PlainDisplay, packing_on
from calotype.errors import CalotypeError, ConfigError, RunError
from calotype.evaluation import controls
from calotype.evaluation import features as feature_networks
from calotype.evaluation.comparison import Comparison, Entry
from calotype.evaluation.comparison_page import page
from calotype.evaluation.protocol import Outcome, Subject, evaluated
from calotype.evaluation.report import Report, Value
from calotype.families import FAMILIES
from calotype.images import cells, grid, read_png, write_atomic, write_png
from calotype.loop import Interrupted
from calotype.model import Completable, Encodable, HasLikelihood
from calotype.plan import Budget
from calotype.request import DEFAULT_BUDGET, data_config
from calotype.rng import Noise, fold
from calotype.runs import Run, family, load

CONFIG = "compare.toml"
PAGE = "comparison.html"
HELD_OUT = "held-out pictures"  # beside the samples on the page
SHOWN = 64  # samples of each
EDITED = 16  # held-out pictures that are encoded and decoded again
AT_ONCE = 250  # images that a classical method draws
CHECKPOINT = "best"
GOOD_FOR = {  # before anything is measured: what is known of the families
    "autoregressive": "exact likelihood, completion; slow to draw",
    "diffusion": "quality and variety; several network calls an image",
    "gan": "sharp pictures in one call; may leave kinds of pictures out",
    "vae": "latents to edit in, fast to draw; softer pictures",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """What is compared, and how: compare.toml, with the section [data]."""

    budget: str  # of all families together
    families: tuple[str, ...]
    baselines: tuple[str, ...]  # classical methods
    n: int  # images per set, 0 for as many as suit the held-out pictures
    seed: int
    features: str
    threads: int = 0  # of the CPU; 0: as torch chooses
    recipe: str = ""  # a comparison whose runs are repeated, image for image

    def __post_init__(self) -> None:
        if not self.families:
            raise ConfigError("no families are named: give some, such as --families diffusion,gan, or leave them out")
        for name in self.families:
            family(name)
        if len(set(self.families)) < len(self.families):
            raise ConfigError(f"families are {', '.join(self.families)}: name each once")
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError(f"classical method {name!r} is unknown: choose of {', '.join(BASELINES)}")
        if self.n < 0 or self.n == 1:
            raise ConfigError(f"n is {self.n}: give at least 2 images, or leave it out")
        Budget.parse(self.budget)

    @property
    def share(self) -> str:
        """The budget of each family."""
        return Budget.parse(self.budget).part(1 / len(self.families))


class Job(NamedTuple):
    """A comparison in its directory."""

    path: Path
    config: CompareConfig
    data: DataConfig
    device: str
    shown: Display

    def entry(self, name: str) -> Path:
        """Where what was found of a model or a method is kept."""
        return self.path / "entries" / f"{name}.json"

    @property
    def command(self) -> str:
        """That repeats it."""
        return f"calotype compare --recipe {quote(str(self.path))}"


def compare(
    data: str | Path | DataConfig = "",
    *,
    budget: str | None = None,
    families: Sequence[str] = (),
    out: str | Path | None = None,
    size: str | None = None,
    settings: Mapping[str, Any] | None = None,
    n: int = 0,
    seed: int = 0,
    features: str = "EffLite0",
    baselines: Sequence[str] | None = None,
    threads: int = 0,
    device: str = "auto",
    recipe: str | Path | None = None,
    display: Display | None = None,
) -> Comparison:
    """Train every family on the same pictures, measure them by one protocol, and write a page.

    Args:
        data: pictures as for train.
        budget: of all families together, shared equally: a time such as "40m", or images such as "2Mimg"; measuring
            comes on top of it. By default "30m".
        families: by default all.
        out: the directory; by default a new one below runs/.
        size: "32" or "48x64", width first; by default what suits the pictures.
        settings: values for the section "data" of config.toml.
        n: images per set; 0 for as many as are held out, 200 to 2000.
        seed: of weights, order, noise and samples.
        features: what images are compared by, as for evaluate.
        baselines: classical methods, by default all of calotype.baselines.
        threads: of the CPU; 0: as torch chooses.
        device: "auto", "cpu", "cuda" or "mps"; with "auto" and several GPUs each trains a family.
        recipe: the directory of another comparison, all whose runs are repeated image for image.
        display: where to show progress; by default plain lines.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    with display or PlainDisplay() as shown:
        if recipe is not None:
            asked = {"data": data, "budget": budget, "families": families, "size": size, "settings": settings, "n": n}
            asked |= {"seed": seed, "baselines": baselines is not None, "threads": threads}
            idle = [name for name, value in asked.items() if value] + (["features"] if features != "EffLite0" else [])
            if idle:
                raise ConfigError(f"a recipe says what is compared, and how: leave out {', '.join(idle)}")
            config, data = _read(Path(recipe))
            config = replace(config, recipe=str(recipe))
        else:
            config = CompareConfig(
                budget=budget or DEFAULT_BUDGET,
                families=tuple(families) or tuple(FAMILIES),
                baselines=tuple(BASELINES if baselines is None else baselines),
                n=n,
                seed=seed,
                features=features,
                threads=threads,
            )
        chosen = data_config(data, size, settings or {})
        feature_networks.network(config.features)  # before training, and not after
        path = Path(out) if out is not None else training.new_place(chosen.source, "compare")
        if (path / CONFIG).exists():
            raise RunError(
                f"{path} is already a comparison: go on with `calotype compare --resume {quote(str(path))}`, or choose "
                "another --out"
            )
        if path.exists() and (path.is_file() or any(path.iterdir())):
            raise RunError(f"{path} exists and is not empty: choose another --out")
        prepare(chosen, progress=packing_on(shown))  # before anything is made: what is wrong with the pictures
        try:
            path.mkdir(parents=True, exist_ok=True)
            text = write_toml({"calotype": __version__} | plain(config) | {"data": plain(chosen)})
            write_atomic(path / CONFIG, lambda file: file.write(text.encode()))
        except OSError as error:
            raise RunError(f"{path} cannot be made ({error}): choose another --out") from error
        return _all(Job(path, config, chosen, device, shown))


def resume(path: str | Path, *, device: str = "auto", display: Display | None = None) -> Comparison:
    """Go on with a comparison; what is finished is not done again. Raises CalotypeError."""
    config, data = _read(Path(path))
    with display or PlainDisplay() as shown:
        return _all(Job(Path(path), config, data, device, shown))


def _read(path: Path) -> tuple[CompareConfig, DataConfig]:
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is no comparison: it has no {CONFIG}. Give the directory that `calotype compare` made")
    values = read_toml(path / CONFIG)
    values.pop("calotype", None)
    data = build(DataConfig, values.pop("data", {}), "data")
    return build(CompareConfig, values, "compare"), data


# -- the parts


def _all(job: Job) -> Comparison:
    try:
        packed = prepare(job.data, progress=packing_on(job.shown))
        runs = _planned(job)
        _train(job, runs)
        _measure(job, packed)
        comparison = _write(job, packed)
    except Interrupted as error:
        stopped = RunError(f"stopped and saved. Continue with: calotype compare --resume {quote(str(job.path))}")
        stopped.exit_status = error.exit_status
        raise stopped from error
    except OSError as error:
        raise RunError(
            f"{job.path} cannot be written ({error}). Make room, then continue with: calotype compare --resume "
            f"{quote(str(job.path))}"
        ) from error
    return comparison


def _planned(job: Job) -> list[Run]:
    """The run directories of all families; of those without one yet what the budget can train is found out."""
    job.shown.message(
        f"{len(job.config.families)} families, each with a budget of {job.config.share}, and "
        f"{len(job.config.baselines)} classical methods; measuring them comes on top\ndirectory: {job.path}"
    )
    for name in job.config.families:
        if job.entry(name).exists() or (job.path / name / "config.toml").exists():
            continue
        settings: dict[str, dict[str, Any]] = {"training": {"seed": job.config.seed}}
        if job.config.threads:
            settings["training"]["threads"] = job.config.threads
        known = Path(job.config.recipe) / name / "config.toml" if job.config.recipe else None
        with _going_on(job, name):
            training.begin(
                name,
                job.data,
                budget=None if known else job.config.share,
                out=job.path / name,
                settings={} if known else settings,
                recipe=known,
                device=job.device,
                display=job.shown,
            )
    runs = [Run.open(job.path / name) for name in job.config.families if (job.path / name / "config.toml").exists()]
    job.shown.message(_plan(runs))
    return runs


def _plan(runs: Sequence[Run]) -> str:
    """What will be trained, for people."""
    rows = [["", "network", "parameters", "images to see", "disk", "good for"]]
    for run in runs:
        count = sum(p.numel() for p in run.config.new_model().parameters())
        disk = 4 * 16 * count / 2**20  # of each parameter the value, its mean and two moments; in four checkpoints
        told = GOOD_FOR.get(run.config.family, "")
        size, images = f"{count:,}", f"{run.config.training.images:,}"
        rows.append([run.config.family, run.config.preset, size, images, f"{disk:.0f} MB", told])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"memory so far: {evaluation_job.peak_memory():,} MB"])


@contextmanager
def _going_on(job: Job, name: str, kind: str = "model") -> Iterator[None]:
    """What goes wrong with one of them is written down, and the others go on."""
    try:
        yield
    except Interrupted:
        raise
    except CalotypeError as error:
        _keep(job, Entry(name, kind, None, failure=str(error)))
        job.shown.message(f"{name} failed: {error}\nthe others go on")


def _train(job: Job, runs: Sequence[Run]) -> None:
    waiting = [run for run in runs if not job.entry(run.path.name).exists() and not _is_trained(run)]
    devices = _devices(job.device)
    if len(devices) > 1 and len(waiting) > 1:
        _train_apart(job, waiting, devices)
        return
    for run in waiting:
        job.shown.message(f"-- {run.path.name}")
        with _going_on(job, run.path.name):
            training.resume(run.path, device=job.device, display=job.shown)


def _is_trained(run: Run) -> bool:
    return any(record["event"] == "finished" for record in run.read_log())


def _devices(asked: str) -> list[str]:
    if asked != "auto" or torch.cuda.device_count() < 2:
        return [asked]
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def _train_apart(job: Job, runs: Sequence[Run], devices: Sequence[str]) -> None:
    """Train each run by a process of its own, on the next device that is free."""
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)
    started: list[subprocess.Popen[bytes]] = []

    def train(run: Run) -> tuple[Run, int]:
        device = free.get()
        try:
            with (run.path / "train.log").open("ab") as log:
                command = [sys.executable, "-m", "calotype", "train", "--resume", str(run.path), "--device", device]
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
                started.append(process)
                return run, process.wait()
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            for run, status in pool.map(train, runs):
                job.shown.message(f"{run.path.name}: {'trained' if status == 0 else f'failed ({status})'}")
                if status > 0:
                    told = (run.path / "train.log").read_text(errors="replace").strip().splitlines()
                    with _going_on(job, run.path.name):
                        raise RunError(told[-1].removeprefix("calotype: ") if told else f"status {status}")
        except BaseException:
            for process in started:
                process.terminate()  # it saves where it is
            raise


def _measure(job: Job, packed: PackedDataset) -> None:
    for name in job.config.families:
        if job.entry(name).exists() or not (job.path / name / "config.toml").exists():
            continue
        with _going_on(job, name):
            _measure_run(job, packed, Run.open(job.path / name))
    known = packed.read(packed.train) if any(not job.entry(b).exists() for b in job.config.baselines) else None
    for name in job.config.baselines:
        if not job.entry(name).exists() and known is not None:
            job.shown.message(f"-- {name}: {BASELINES[name].told}")
            with _going_on(job, name, "baseline"):
                started = time.perf_counter()
                fitted = BASELINES[name](known)
                outcome = _of_baseline(job, name, fitted, packed, time.perf_counter() - started)
                _keep(job, Entry(name, "baseline", outcome.report), outcome.samples, outcome.real)


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
    _keep(job, Entry(name, "model", outcome.report, off=off, completes=completes), outcome.samples, outcome.real)


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


# -- what is kept, and the page


def _keep(job: Job, entry: Entry, samples: Tensor | None = None, real: Tensor | None = None) -> None:
    """Write what was found, so that it is not found again."""
    place = job.entry(entry.name)
    place.parent.mkdir(exist_ok=True)
    for name, images in ((entry.name, samples), (HELD_OUT, real)):
        if images is not None:
            write_png(place.with_name(f"{name}.png"), grid(images[:SHOWN], 8))
    told = asdict(entry) | {"report": entry.report.as_dict() if entry.report else None}
    write_atomic(place, lambda file: file.write(json.dumps(told, allow_nan=False).encode()))


def _entry(path: Path) -> Entry:
    told = json.loads(path.read_text())
    return Entry(**(told | {"report": Report.of(told["report"]) if told["report"] else None}))


def _write(job: Job, packed: PackedDataset) -> Comparison:
    named = [*job.config.families, *job.config.baselines]
    entries = [_entry(job.entry(name)) for name in named if job.entry(name).exists()]
    about = next((dict(entry.report.data) for entry in entries if entry.report), {"source": job.data.source})
    found = Comparison(about, entries, job.command)
    spec, samples, links = packed.spec, dict[str, Tensor](), dict[str, str]()
    for name in (HELD_OUT, *named):
        place = job.entry(name).with_suffix(".png")
        if place.exists():
            samples[name] = cells(read_png(place), spec.height, spec.width)
        if (job.path / name / "evaluation.html").exists():
            links[name] = f"{name}/evaluation.html"
    found.save(job.path / "comparison.json")
    text = page(found, samples, links)
    write_atomic(job.path / PAGE, lambda file: file.write(text.encode()))
    job.shown.message(f"\n{found.text()}\n\ntable: {job.path / 'comparison.json'}\npage: {job.path / PAGE}")
    return found

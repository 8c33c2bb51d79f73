"""`calotype compare`: every family trained on the same pictures with equal budgets, and measured by one protocol.

job        the directory: the request and the results
train      the runs, planned and trained
measure    models and classical methods by the protocol
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from calotype.applications.comparison.job import (
    CONFIG,
    HELD_OUT,
    CompareConfig,
    Job,
    cannot_be_written,
    check_begun,
    kept,
    read,
)
from calotype.applications.comparison.measure import measure_all
from calotype.applications.comparison.train import planned, train_all
from calotype.core.config import plain
from calotype.core.display import Display, for_process, packing_on
from calotype.core.files import make_folder, write_atomic
from calotype.core.images import cells, read_png
from calotype.core.outputs import check_outputs
from calotype.core.signals import way_on
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.distributed import processes
from calotype.distributed.locks import locked
from calotype.errors import ConfigError, RunError
from calotype.evaluation import features as feature_networks
from calotype.evaluation import plots
from calotype.evaluation.baselines import BASELINES
from calotype.evaluation.comparison import Comparison
from calotype.evaluation.comparison_page import page
from calotype.families import FAMILIES
from calotype.runs.portable_paths import shareable, write_config
from calotype.runs.run import Run, name_source
from calotype.training import setup
from calotype.training.loop import Interrupted
from calotype.training.recipe import DEFAULT_BUDGET, data_config

__all__ = ["CompareConfig", "compare", "resume"]

COMPARED = "compared"  # what is done in the directory, see `locks`
PAGE = "comparison.html"
REMEDY = "What is finished is kept: go on with `calotype compare --resume`"


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
    """Compare families on the same pictures. Arguments and errors as of `calotype.commands.compare`.

    Args:
        settings: values for the section "data" of config.toml.
        baselines: classical methods; by default all.
    """
    if processes.may_be_restarted() and out is None:
        raise ConfigError(
            "torchrun is to start processes again, and they have to find the comparison: give its place, --out"
        )
    with processes.joined(REMEDY), for_process(display, processes.is_first()) as shown:
        # One that was started again tells the others: what is on another machine may be there for the first time.
        if processes.any_of(int(processes.is_restarted())) and out is not None and _is_comparison(Path(out)):
            return _go_on(Path(out), "", device, shown)
        config, chosen = processes.agreed(
            lambda: _asked(data, budget, families, size, settings or {}, n, seed, features, baselines, threads, recipe)
        )
        path = Path(processes.by_first(lambda: _place(out, chosen)))
        if recipe is not None:
            _name_sources(Path(recipe), config, chosen, shown)
        # before anything is made: what is wrong with the pictures
        packed = processes.first_then_all(lambda: prepare(chosen, progress=packing_on(shown)))
        chosen = replace(chosen, source=packed.config.source)  # which means the same from everywhere
        job = Job(path, config, chosen, device, shown, {})
        processes.by_first(lambda: _make(job))
        with locked(path, COMPARED):
            return _all(job, packed)


def _asked(
    data: str | Path | DataConfig,
    budget: str | None,
    families: Sequence[str],
    size: str | None,
    settings: Mapping[str, Any],
    n: int,
    seed: int,
    features: str,
    baselines: Sequence[str] | None,
    threads: int,
    recipe: str | Path | None,
) -> tuple[CompareConfig, DataConfig]:
    """The families, methods and pictures to compare, from arguments or the recipe. Raises CalotypeError."""
    if recipe is not None:
        asked = {"data": data, "budget": budget, "families": families, "size": size, "settings": settings, "n": n}
        asked |= {"seed": seed, "baselines": baselines is not None, "threads": threads}
        idle = [name for name, value in asked.items() if value] + (["features"] if features != "EffLite0" else [])
        if idle:
            raise ConfigError(f"a recipe says what is compared, and how: leave out {', '.join(idle)}")
        config, data = read(Path(recipe))
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
    chosen = data_config(data, size, settings)
    feature_networks.network(config.features)  # before training, and not after
    return config, chosen


def _place(out: str | Path | None, data: DataConfig) -> str:
    """The path of the new directory. Raises RunError if it exists."""
    path = Path(out) if out is not None else setup.new_place(data.source, "compare")
    check_outputs("compare", (data.source,), out=path)
    if (path / CONFIG).exists():
        raise RunError(
            f"{path} is already a comparison: go on with `calotype compare --resume {quote(str(path))}`, or choose "
            "another --out"
        )
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise RunError(f"{path} exists and is not empty: choose another --out")
    return str(path)


def _make(job: Job) -> None:
    try:
        make_folder(job.path)
        _write_config(job)
    except OSError as error:
        raise RunError(f"{job.path} cannot be made ({error}): choose another --out") from error


def _write_config(job: Job) -> None:
    write_config(job.path / CONFIG, plain(job.config) | {"data": plain(job.data)})


def resume(path: str | Path, *, data: str = "", device: str = "auto", display: Display | None = None) -> Comparison:
    """Continue a comparison; finished parts are not repeated.

    Args:
        data: where the pictures are now, if they have moved; updates compare.toml and the config.toml of the runs.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    with processes.joined(REMEDY), for_process(display, processes.is_first()) as shown:
        return _go_on(Path(path), data, device, shown)


def _is_comparison(path: Path) -> bool:
    """Whether the comparison exists, by the first process."""
    return processes.by_first(lambda: (path / CONFIG).exists())


def _go_on(path: Path, data: str, device: str, shown: Display) -> Comparison:
    processes.agreed(lambda: read(path))  # before anything is written there
    with locked(path, COMPARED):
        config, known = processes.agreed(lambda: read(path))
        job = Job(path, config, known, device, shown, {})
        begun = processes.agreed(lambda: [Run.open(path / name) for name in job.begun()])
        processes.agreed(lambda: check_begun(job, begun))
        _name_sources(path, config, replace(known, source=data or known.source), shown)
        packed = processes.first_then_all(lambda: _pictures(job, begun, data))
        if data:
            job = job._replace(data=replace(known, source=packed.config.source))
            processes.by_first(lambda: _move(job, begun))
        return _all(job, packed)


def _name_sources(path: Path, config: CompareConfig, data: DataConfig, shown: Display) -> None:
    """Report the paths outside its directory that compare.toml names, before they are read."""
    name_source(data.source, path / CONFIG, shown.message)
    if config.features not in feature_networks.NETWORKS:
        shown.message(f"features: {config.features}, as {path / CONFIG} says")
    if config.recipe and Path(config.recipe) != path:
        shown.message(f"recipe: {config.recipe}, as {path / CONFIG} says")


def _pictures(job: Job, begun: Sequence[Run], data: str) -> PackedDataset:
    """The packed pictures of the comparison: those of its existing runs, if any. Raises DataError."""
    progress = packing_on(job.shown)
    if begun:
        return begun[0].pictures(data, progress)
    return prepare(replace(job.data, source=data or job.data.source), progress=progress)


def _move(job: Job, begun: Sequence[Run]) -> None:
    """Replace the place of the pictures in the configs. Raises RunError."""
    try:
        _write_config(job)
    except OSError as error:
        raise cannot_be_written(job, error) from error
    for run in begun:
        with run.locked():
            run.rewrite(replace(run.config, data=replace(run.config.data, source=job.data.source)))
    job.shown.message(f"the pictures are at {job.data.source}: {job.path / CONFIG} has the new place")


def _all(job: Job, packed: PackedDataset) -> Comparison:
    go_on = f"Continue with: {job.way_on}"
    try:
        with way_on(go_on):
            processes.by_first(plots.prepare)
            runs = planned(job)
            train_all(job, runs)
            measure_all(job, packed)
            comparison = processes.first_then_all(lambda: _found(job))
            processes.by_first(lambda: _write(job, packed, comparison))
    except Interrupted as error:
        stopped = RunError(f"stopped and saved. {go_on}")
        stopped.exit_status = error.exit_status
        raise stopped from error
    except OSError as error:
        raise cannot_be_written(job, error) from error
    if job.later:
        raise RunError(
            f"not done yet: {', '.join(job.later)}; see above. What is done is kept. Continue with: {job.way_on}"
        )
    return comparison


def _found(job: Job) -> Comparison:
    named = [*job.config.families, *job.config.baselines]
    present = {name: kept(job.entry(name)) for name in named if job.entry(name).exists()} | job.later
    entries = [present[name] for name in named if name in present]
    about = next((dict(entry.report.data) for entry in entries if entry.report), {"source": shareable(job.data.source)})
    return Comparison(about, entries, job.command)


def _write(job: Job, packed: PackedDataset, found: Comparison) -> None:
    """Write the table and the page. Raises RunError."""
    named = [*job.config.families, *job.config.baselines]
    spec, samples, links = packed.spec, dict[str, Tensor](), dict[str, str]()
    for name in (HELD_OUT, *named):
        place = job.entry(name).with_suffix(".png")
        if place.exists():
            samples[name] = cells(read_png(place), spec.height, spec.width)
        if (job.path / name / "evaluation.html").exists():
            links[name] = f"{name}/evaluation.html"
    try:
        found.save(job.path / "comparison.json")  # before the page, whose plots take memory
        text = page(found, samples, links)
        write_atomic(job.path / PAGE, lambda file: file.write(text.encode()))
    except OSError as error:
        raise cannot_be_written(job, error) from error
    job.shown.message(f"\n{found.text()}\n\ntable: {job.path / 'comparison.json'}\npage: {job.path / PAGE}")

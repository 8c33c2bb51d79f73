"""`calotype sample`: images of a run and a seed, written to a folder or file, by one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.core.config import build, plain, read_assignments
from calotype.core.display import Display, clock, for_process
from calotype.core.files import check_own, remove_tree
from calotype.core.outputs import check_outputs
from calotype.core.signals import way_on
from calotype.data.classes import told
from calotype.distributed import processes
from calotype.errors import ConfigError
from calotype.runs.run import load, place_in
from calotype.sampling import sampler, writers
from calotype.sampling.manifests import writing

MOST = 100_000_000  # images of a job; the list of those that are missing is held in memory
LAST = 10**15  # number of a first image
REMEDY = "Finished images are kept: repeat the command to continue"


def run(
    path: Path,
    *,
    n: int,
    seed: int,
    first: int,
    out: Path | None,
    grid: Path | None,
    npz: Path | None,
    labels: Sequence[str] | None,
    options: Sequence[str],
    checkpoint: str,
    ema: bool,
    device: str,
    display: Display | None,
) -> tuple[Path, ...]:
    """Draw images of a run and write them to every requested output; returns the paths.

    Raises:
        CalotypeError: for anything the user can mend, before the first image is drawn.
    """
    with way_on(REMEDY), processes.joined(REMEDY), for_process(display, processes.is_first()) as shown:
        default = "" if out or grid or npz else "grid"
        if default:
            name = f"samples-{seed}.png" if first == 0 else f"samples-{seed}-from-{first}.png"
            grid = processes.agreed(lambda: place_in(path, name))
        processes.by_first(lambda: check_outputs("sample", (), default=default, out=out, grid=grid, npz=npz))
        job = processes.agreed(lambda: _job(path, n, seed, first, labels, options, checkpoint, ema, device, shown))
        return _drawn(job, path, out, grid, npz, shown)


def _job(
    path: Path,
    n: int,
    seed: int,
    first: int,
    labels: Sequence[str] | None,
    options: Sequence[str],
    checkpoint: str,
    ema: bool,
    device: str,
    display: Display,
) -> writers.Job:
    """The sampling job. Raises CalotypeError."""
    if n < 1 or first < 0:
        raise ConfigError(f"n is {n} and first is {first}: draw at least 1 image, numbered from 0 or more")
    if n > MOST or first > LAST:
        raise ConfigError(f"n is {n} and first is {first}: draw at most {MOST:,} at a time, from {LAST:,} or below")
    model = load(path, checkpoint=checkpoint, ema=ema, device=processes.local_device(device), report=display.message)
    chosen = build(model.model.Options, read_assignments(options), "option")
    choices = model.choices(labels)
    numbers = [choice.number for choice in choices]
    classes = sampler.cycle(numbers) if choices else None
    sampler.check(model.model, classes, chosen)
    if choices:
        turn = first % len(choices)
        display.message(f"classes: {told([*choices[turn:], *choices[:turn]], model.class_names)}")
    facts = {"weights_sha256": model.digest, "labels": numbers or None, "options": plain(chosen)}
    return writers.Job(model.model, n, seed, first, classes, chosen, facts, model.class_names, model.told())


def _drawn(
    job: writers.Job, path: Path, out: Path | None, grid: Path | None, npz: Path | None, display: Display
) -> tuple[Path, ...]:
    """Draw the images into a folder by all processes; the first writes the other outputs."""
    folder = out or writers.parts_folder(job, grid or npz or path)
    if out is None:
        processes.by_first(lambda: check_own(folder))  # it has a name that others can foresee

    def finish() -> None:
        if grid is not None:
            writers.write_grid(job, folder, grid)
        if npz is not None:
            writers.write_npz(job, folder, npz)
        if out is None:
            remove_tree(folder)

    with writing(job.maker(), folder, "--out"):
        done = writers.to_folder(job, folder, lambda done, total: display.count("images", done, total))
        processes.by_first(finish)
    places = tuple(place for place in (out, grid, npz) if place is not None)
    speed = done.drawn / done.seconds if done.drawn else 0.0
    kept = f"; {done.kept} were there already" if done.kept else ""
    display.message(f"{done.drawn} images in {clock(done.seconds)}, {speed:.1f} images/s{kept}")
    display.message(f"images: {', '.join(map(str, places))}")
    return places

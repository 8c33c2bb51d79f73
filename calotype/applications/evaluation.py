"""`calotype evaluate`: a run, or a folder of images, measured against a data set.

With several processes, the first one computes the metrics. All of them draw samples, compute likelihoods and extract
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from calotype.core.display import Display, counted, for_process, packing_on
from calotype.core.files import make_folder, write_atomic
from calotype.core.images import read_png
from calotype.core.model import Encodable
from calotype.core.outputs import check_outputs
from calotype.core.paths import beside
from calotype.core.rng import fold, permutation
from calotype.core.signals import way_on
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.distributed import processes
from calotype.distributed.locks import WAIT, locked_file
from calotype.distributed.work_sharing import Action, Help, led
from calotype.errors import ConfigError, RunError
from calotype.evaluation import controls, features, measured_runs, plots
from calotype.evaluation.page import Pictures, page
from calotype.evaluation.protocol import FEWEST, Outcome, Subject, evaluated
from calotype.evaluation.report import Report
from calotype.evaluation.training_curves import points
from calotype.evaluation.views import NOTHING, Views, views
from calotype.runs.portable_paths import shareable
from calotype.runs.run import Run, load, name_source

COLOURED = ("RGB", "P", "CMYK", "YCbCr", "LAB", "HSV")  # modes of Pillow
SHOWN = 100  # samples on the page
PREVIEWS = 6  # of training
VIEWED = 96  # held-out images whose latents are looked at
REMEDY = "Repeat the command"


def run(subject: Path, *, out: Path | None, display: Display | None, **asked: Any) -> Report:
    """Measure, write evaluation.json and its page, and return the findings.

    Other arguments are those of `measure`.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    place = out or (subject if _is_run(subject) else beside(subject, after="-evaluation")) / "evaluation.json"

    def told(outcome: Outcome, shown: Display) -> None:
        shown.message(outcome.report.text())
        trained = Run.open(subject) if _is_run(subject) else None
        written = write(outcome, place, trained, asked["checkpoint"], asked["device"], asked["data"])
        shown.message(f"report: {place}")
        shown.message(f"page: {written}")

    with way_on(REMEDY), processes.joined(REMEDY), for_process(display, processes.is_first()) as shown:
        inputs = (subject, asked["data"], asked["network"].partition(":")[2] or asked["network"])
        processes.by_first(lambda: check_outputs("evaluate", inputs, out=place))
        processes.agreed(lambda: _refuse(subject, asked["data"], asked["n"], asked["options"]))
        with locked_file(place, f"{WAIT}, or choose another --out"):  # its page too, which is named like it
            processes.by_first(plots.prepare)
            outcome = measure(subject, display=shown, **asked)
            processes.by_first(lambda: told(of_first(outcome), shown))
        return Report.of(processes.by_first(lambda: of_first(outcome).report.as_dict()))


def of_first(outcome: Outcome | None) -> Outcome:
    """The measurements, in the first process."""
    assert outcome is not None
    return outcome


def write(outcome: Outcome, place: Path, trained: Run | None, checkpoint: str, device: str, data: str = "") -> Path:
    """Write a report and, beside it, its page; returns the path of the page. Raises RunError.

    Args:
        data: where the pictures of the run are, as for `evaluate`.
    """
    try:
        make_folder(place.parent)
        outcome.report.save(place)  # before the page, whose pictures may take long
        seen = NOTHING if trained is None else _views(outcome, trained, checkpoint, device, data)
        return _write_page(outcome, place.with_suffix(".html"), trained, seen)
    except OSError as error:
        raise RunError(
            f"the report cannot be written to {place.parent} ({error.strerror}): choose another --out"
        ) from error


def _views(outcome: Outcome, run: Run, checkpoint: str, device: str, data: str) -> Views:
    """Views of the latents of held-out pictures, for a model with latents.

    None if the run was trained further meanwhile: they would be of another model.
    """
    model = load(run, checkpoint=checkpoint, device=device, report=lambda _: None)
    if not isinstance(model.model, Encodable) or model.digest != outcome.report.subject["weights_sha256"]:
        return NOTHING
    packed = run.pictures(data)
    batch = packed.read(controls.chosen(packed.held_out, VIEWED, 0, "latents"))
    return views(model.model, batch, next(model.model.parameters()).device)


def _write_page(outcome: Outcome, place: Path, trained: Run | None, seen: Views) -> Path:
    previews = trained.previews() if trained else []
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
) -> Outcome | None:
    """Draw or read the images, and measure them; returns None except in the first process.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    processes.agreed(lambda: _refuse(subject, data, n, options))
    compare_by = processes.agreed(lambda: features.network(network))
    actions: dict[str, Action] = {"features": compare_by.rows}
    work: measured_runs.Drawing | None = None
    if not _is_run(subject):
        packed = processes.first_then_all(lambda: prepare(DataConfig(source=data), progress=packing_on(display)))
    else:
        here = processes.local_device(device)
        model = processes.agreed(lambda: load(subject, checkpoint=checkpoint, device=here, report=display.message))
        if not data:
            name_source(model.run.config.data.source, model.run.path / "config.toml", display.message)
        packed = processes.first_then_all(lambda: model.run.pictures(data, packing_on(display)))
        work = processes.agreed(lambda: measured_runs.of_run(model, packed, n, seed, options))
        actions |= work.actions
    asked_for: dict[str, Any] = {"--data": shareable(data), "-n": n, "--seed": seed, "--checkpoint": checkpoint}
    asked_for["--features"] = "" if network == "EffLite0" else shareable(network)
    given = [word for name, value in asked_for.items() if value and value != "last" for word in (name, str(value))]
    given += [word for assignment in options for word in ("--set", assignment)]
    command = " ".join(map(quote, ["calotype", "evaluate", shareable(subject), *given]))
    count = processes.size()

    def lead(helped: Help) -> Outcome:
        if work is None:
            found = _found(subject, packed, n, seed, display)
        else:
            found = measured_runs.subject(work, packed, seed, checkpoint, count, helped, display)
        by_all = replace(compare_by, spread=lambda parts: helped("features", parts))
        return evaluated(found, packed, by_all, seed, command, display)

    return led(lead, actions)


def _refuse(subject: Path, data: str, n: int, options: Sequence[str]) -> None:
    if not subject.exists():
        raise ConfigError(f"{subject} does not exist: give a run directory, or a folder of images with --data")
    if not _is_run(subject) and not data:
        raise ConfigError(f"{subject} is no run: to measure images, say by --data which pictures they are to be like")
    if n < 0 or n == 1:
        raise ConfigError(f"n is {n}: give at least 2 images, or leave it out")
    if options and not _is_run(subject):
        raise ConfigError("options of sampling were given, but the images are there already: leave out --set")


def _is_run(path: Path) -> bool:
    return (path / "config.toml").is_file()


# -- what is measured


def _found(folder: Path, packed: PackedDataset, n: int, seed: int, display: Display) -> Subject:
    """Images of a folder, fitted to the size and channels of the data set."""
    spec = packed.spec
    config = DataConfig(
        source=str(folder),
        width=spec.width,
        height=spec.height,
        fit=packed.config.fit,
        channels=spec.channels,
        labels=False,
        to_learn=False,
    )
    there = prepare(config, progress=packing_on(display))
    if len(there) < FEWEST:
        raise ConfigError(f"{folder} has {len(there)} image, but a set to measure has {FEWEST} or more: add images")
    indices = permutation(fold(seed, "images"), len(there))[: n or measured_runs.IMAGES]
    facts = {"kind": "images", "path": shareable(folder), "images": len(there), "skipped": len(there.skipped)}
    warnings = unlike(there, packed)
    if n > len(there):
        warnings.append(f"{n} images were asked for, but there are {len(there)}: all of them are measured")
    return Subject([there.read(np.sort(indices)).images], None, (), facts, {}, (), (), warnings)


def unlike(there: PackedDataset, packed: PackedDataset) -> list[str]:
    """The differences between images of a folder and the pictures of the data set, as sentences."""
    survey, spec, found = there.survey(), packed.spec, []
    others = sorted((count, f"{width}x{height}") for width, height, count in survey["sizes"])
    sizes = [size for _, size in others[::-1] if size != f"{spec.width}x{spec.height}"]
    if sizes:
        several = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
        found.append(
            f"images of {sizes[0]}{several} were brought to the {spec.width}x{spec.height} of the data set "
            f"({packed.config.fit}): what is measured are the images after that"
        )
    colour = any(mode.startswith(COLOURED) or mode.endswith(("x 3", "x 4")) for mode in survey["modes"])
    if colour and spec.channels == 1:
        found.append("images in colour were made gray, as the data set is")
    if not colour and spec.channels > 1:
        found.append(f"the images are gray, but the data set has {spec.channels} channels: they differ by that alone")
    if survey["alpha_channels"] and spec.channels != 4:
        found.append("images with transparency were laid over white, as the data set has none")
    if there.skipped:
        first = there.skipped[0]
        found.append(
            f"{counted(len(there.skipped), 'file that cannot be used is', 'files that cannot be used are')} not "
            f"measured, the first {first.name} ({first.reason})"
        )
    if there.values is not None:
        found.append("images of 16 bits or floats were brought to bytes by the range of their type")
    return found

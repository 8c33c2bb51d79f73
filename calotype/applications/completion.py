"""`calotype complete`: completing pictures by a run from their upper parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calotype.applications.pictures import Given, given
from calotype.core.config import build, plain, read_assignments
from calotype.core.display import Display
from calotype.core.files import make_folder, open_folder
from calotype.core.images import grid, png, write_png
from calotype.core.model import Completable
from calotype.core.outputs import check_outputs
from calotype.errors import ConfigError, RunError
from calotype.runs.run import TrainedModel, load, place_in
from calotype.sampling import sampler
from calotype.sampling.manifests import Maker, digest, writing

MOST = 64  # pictures: more make a sheet that cannot be looked at


def run(
    path: Path,
    pictures: str,
    *,
    rows: int | None,
    pixels: int | None,
    n: int,
    seed: int,
    out: Path | None,
    folder: Path | None,
    labels: Sequence[str] | None,
    options: Sequence[str],
    checkpoint: str,
    device: str,
    display: Display,
) -> tuple[Path, ...]:
    """Complete pictures from their beginnings; returns the output paths.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    if n < 1:
        raise ConfigError(f"n is {n}: draw at least 1 completion of each picture")
    default = "" if out or folder else "out"
    if default:
        out = place_in(path, f"completions-{seed}.png")
    check_outputs("complete", (pictures,), default=default, out=out, folder=folder)
    model = load(path, checkpoint=checkpoint, device=device, report=display.message)
    if not isinstance(model.model, Completable):
        raise sampler.cannot_complete()
    known = _known(model, rows, pixels)
    chosen = build(model.model.Options, read_assignments(options), "option")
    model.model.check_options(chosen)
    found = given(model, pictures, labels, MOST, display, "completed")
    classes = _classes(model, found, labels, n)
    beginnings = found.images.repeat_interleave(n, 0)
    facts = {"weights_sha256": model.digest, "pictures_sha256": digest(found.images.numpy()), "kept pixels": known}
    facts |= {"n": n, "seed": seed, "options": plain(chosen)}
    facts["labels"] = None if classes is None else [classes(i) for i in range(len(beginnings))]
    maker = Maker("complete", facts, model.told())
    with nullcontext() if folder is None else writing(maker, folder, "--folder"):
        _draw(model, found, beginnings, known, n, seed, classes, chosen, out, folder, display)
    places = tuple(place for place in (out, folder) if place is not None)
    display.message(f"completions: {', '.join(map(str, places))}")
    return places


def _draw(
    model: TrainedModel,
    found: Given,
    beginnings: Tensor,
    known: int,
    n: int,
    seed: int,
    classes: Callable[[int], int] | None,
    options: Any,
    out: Path | None,
    folder: Path | None,
    display: Display,
) -> None:
    """Draw the completions and write them to every place. Raises RunError."""
    drawn: list[Tensor] = []
    display.count("completions", 0, len(beginnings))
    try:
        for part in sampler.complete(model.model, beginnings, known, seed, classes, options):
            drawn.append(part.images)
            if folder is not None:  # at once, so that a job that is stopped has lost nothing
                with open_folder(folder) as opened:
                    for i, image in zip(part.indices, part.images, strict=True):
                        opened.write(f"{i // n:06d}-{i % n:02d}.png", png(image, "complete"))
            display.count("completions", sum(map(len, drawn)), len(beginnings))
        if out is not None:
            make_folder(out.parent)
            write_png(out, _sheet(found.images, torch.cat(drawn), known, n), "complete")
    except OSError as error:
        raise RunError(f"completions cannot be written ({error}): choose another --out or --folder") from error


def _known(model: TrainedModel, rows: int | None, pixels: int | None) -> int:
    spec = model.spec
    if rows is not None and pixels is not None:
        raise ConfigError("rows and pixels both say how much is kept: give one of them")
    if pixels is not None:
        if not 0 <= pixels <= spec.height * spec.width:
            raise ConfigError(f"pixels is {pixels}, but the images have {spec.height * spec.width}: give 0 to that")
        return pixels
    kept = spec.height // 2 if rows is None else rows
    if not 0 <= kept <= spec.height:
        raise ConfigError(f"rows is {kept}, but the images have {spec.height}: give 0 to that")
    return kept * spec.width


def _classes(model: TrainedModel, found: Given, asked: Sequence[str] | None, n: int) -> Callable[[int], int] | None:
    """The class of each completion: the requested ones in turn, or that of its picture."""
    if asked is not None or found.labels is None:
        return model.labels(asked)
    each = found.labels.tolist()
    return lambda i: int(each[i // n])


def _sheet(pictures: Tensor, completions: Tensor, known: int, n: int) -> Tensor:
    """A sheet with a row per picture: the picture, the kept part, and its completions."""
    kept = pictures.clone(memory_format=torch.contiguous_format)
    kept.flatten(2)[:, :, known:] = 128
    rows = torch.cat([pictures[:, None], kept[:, None], completions.unflatten(0, (-1, n))], 1)
    return grid(rows.flatten(0, 1), columns=n + 2)

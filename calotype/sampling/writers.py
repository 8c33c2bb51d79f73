"""Writing samples: a folder of PNGs, one grid, or one NPZ; an interrupted job resumes with the images it has."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from calotype.core.files import hidden_stem, open_folder
from calotype.core.images import grid, png, read_png, write_png
from calotype.core.model import GenerativeModel
from calotype.core.paths import named
from calotype.data.sources import npy
from calotype.distributed.work_sharing import Help, led
from calotype.errors import DataError, PlaceError, RunError
from calotype.sampling import sampler
from calotype.sampling.manifests import Maker, claim


class Job(NamedTuple):
    """A request for images."""

    model: GenerativeModel
    n: int
    seed: int
    first: int
    labels: Callable[[int], int] | None
    options: Any
    facts: Mapping[str, Any]  # what else decides the images: weights, labels, options
    class_names: Sequence[str] = ()  # by number
    told: Mapping[str, Any] = {}  # the run and the checkpoint, for people

    @property
    def indices(self) -> range:
        """The numbers of the images."""
        return range(self.first, self.first + self.n)

    def identity(self) -> dict[str, Any]:
        """The settings that have to agree for one job to continue another; the number of images may differ."""
        return {"seed": self.seed} | dict(self.facts)

    def maker(self) -> Maker:
        """The maker for the manifest, with the names of the classes that are drawn in turn."""
        told = dict(self.told)
        if self.facts.get("labels") and self.class_names:
            told["classes"] = [self.class_names[k] for k in self.facts["labels"]]
        return Maker("sample", self.identity(), told)


class Done(NamedTuple):
    """The result of a job; with several processes only the first has it."""

    drawn: int
    kept: int  # from an earlier, interrupted job
    seconds: float


def to_folder(job: Job, folder: Path, progress: Callable[[int, int], None]) -> Done:
    """Write 000000.png, 000001.png, ... into a folder; existing images are kept.

    Of several processes each draws and writes its share, into one folder.

    Raises:
        RunError: when the folder holds samples of other settings, or cannot be written.
    """

    def drawn(indices: torch.Tensor) -> torch.Tensor:
        some: list[int] = indices.tolist()
        _write(folder, some, sampler.sample(job.model, some, job.seed, job.labels, job.options))
        return indices

    return led(lambda helped: _to_folder(job, folder, progress, helped), {"draw": drawn}) or Done(0, 0, 0.0)


def _to_folder(job: Job, folder: Path, progress: Callable[[int, int], None], helped: Help) -> Done:
    claim(job.maker(), folder, "--out")
    started = time.perf_counter()
    missing = [i for i in job.indices if not _file(folder, i).exists()]
    kept, drawn = job.n - len(missing), 0
    progress(kept, job.n)
    for part in helped("draw", sampler.parts(job.model, missing)):
        drawn += len(part)
        progress(kept + drawn, job.n)
    return Done(drawn, kept, time.perf_counter() - started)


def parts_folder(job: Job, path: Path) -> Path:
    """The folder of the finished images of an output file until it is complete.

    The folder's name depends on the settings, so a second job does not conflict with an interrupted first.
    """
    mark = hashlib.sha256(json.dumps(job.identity(), sort_keys=True).encode()).hexdigest()[:8]
    path = named(path)
    return path.with_name(f"{hidden_stem(path.name)}{mark}.parts")


def write_grid(job: Job, folder: Path, path: Path) -> None:
    """Lay the finished images of a job out side by side, in one PNG. Raises RunError."""
    _write_file(path, folder, lambda: write_png(path, grid(_images(job, folder)), "sample"))


def write_npz(job: Job, folder: Path, path: Path) -> None:
    """Write the finished images of a job to one NPZ: `images`, uint8 (N, H, W, C).

    With classes also `labels`, int64 (N,), and `class_names`, whose entry k is the name of label k.

    Raises:
        RunError: when it cannot be written.
    """
    arrays: dict[str, Any] = {"images": _images(job, folder).permute(0, 2, 3, 1).contiguous().numpy()}
    if job.labels is not None:
        arrays["labels"] = np.array([job.labels(i) for i in job.indices], dtype=np.int64)
    if job.class_names:
        arrays["class_names"] = np.array(job.class_names, dtype=np.str_)
    _write_file(path, folder, lambda: npy.write_npz(path, arrays, "sample", compress=True))


def _write_file(path: Path, folder: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except (OSError, PlaceError) as error:
        raise RunError(f"{path} cannot be written ({error}): choose another; the images are in {folder}") from error


def _images(job: Job, folder: Path) -> torch.Tensor:
    try:
        images = [read_png(_file(folder, i)) for i in job.indices]
    except DataError as error:
        raise RunError(f"an image in {folder} cannot be used: {error}, and repeat the command") from error
    for i, image in zip(job.indices, images, strict=True):
        if image.shape != job.model.spec.shape:
            raise RunError(f"{_file(folder, i)} is not of the model: remove it, and repeat the command")
    return torch.stack(images)


def _write(folder: Path, indices: Sequence[int], images: torch.Tensor) -> None:
    try:
        with open_folder(folder) as opened:
            for i, image in zip(indices, images, strict=True):
                opened.write(_file(folder, i).name, png(image, "sample"))
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error}): finished images are kept, repeat to continue") from error


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"

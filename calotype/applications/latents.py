"""Encoding and decoding by a trained model, and files of latents: the base of the commands about latents."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from calotype.applications.pictures import Given
from calotype.core.display import Display
from calotype.core.files import make_folder, open_folder
from calotype.core.images import grid, png, write_png
from calotype.core.model import Encodable
from calotype.core.outputs import check_outputs
from calotype.core.untrusted import NotPlain, check_regular
from calotype.data.sources.npy import DAMAGE, read_member, write_npz
from calotype.errors import ConfigError, RunError
from calotype.runs import run
from calotype.runs.run import TrainedModel
from calotype.sampling import manifests
from calotype.sampling.manifests import Maker, digest
from calotype.sampling.sampler import batch_size

MOST = 64  # pictures on a sheet: more cannot be looked at


def load(path: Path, checkpoint: str, device: str, display: Display) -> TrainedModel:
    """The model of a run, if it encodes pictures. Raises CalotypeError."""
    model = run.load(path, checkpoint=checkpoint, device=device, report=display.message)
    if not isinstance(model.model, Encodable):
        raise ConfigError(f"{path} is a model of a family without latents for pictures: train a vae or a gan")
    return model


class Opened(NamedTuple):
    """A model, and where the sheet of its images goes, if anywhere."""

    model: TrainedModel
    out: Path | None


def opened(
    command: str,
    path: Path,
    inputs: Sequence[str | Path],
    sheet: str,
    *,
    out: Path | None,
    folder: Path | None,
    checkpoint: str,
    device: str,
    display: Display,
) -> Opened:
    """Check the places that a command writes, and load the model of a run.

    Args:
        command: its name.
        path: the run directory.
        inputs: the places that the command reads.
        sheet: the name of a sheet in the run, for which `out` and `folder` leave the place open.

    Raises:
        CalotypeError: a place cannot be written, or the run has no model with latents.
    """
    default = "" if out or folder else "out"
    if default:
        out = run.place_in(path, sheet)
    check_outputs(command, inputs, default=default, out=out, folder=folder)
    return Opened(load(path, checkpoint, device, display), out)


def writing(
    model: TrainedModel, command: str, folder: Path | None, inputs: Tensor, classes: Tensor | None, **facts: int
) -> AbstractContextManager[None]:
    """Lock and claim the output folder of a command, if any, see `manifests.writing`."""
    if folder is None:
        return nullcontext()
    made_of = digest(inputs.numpy(), None if classes is None else classes.numpy())
    decisive = {"weights_sha256": model.digest, "pictures_sha256": made_of} | facts
    return manifests.writing(Maker(command, decisive, model.told()), folder, "--folder")


def read(path: Path) -> tuple[Tensor, Tensor | None]:
    """Latents float32 (N, D) of an npz file, and the numbers of their classes if it has them. Raises ConfigError."""
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            latents = _numbers(archive, "latents", np.float32)
            labels = _numbers(archive, "labels", np.int64) if "labels.npy" in archive.namelist() else None
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give a file that calotype encode wrote") from None
    except DAMAGE as error:
        raise ConfigError(f"{path} has no latents ({error}): give a file that calotype encode wrote") from None
    if latents.ndim != 2 or not len(latents) or not bool(torch.isfinite(latents).all()):
        raise ConfigError(f"latents in {path} are {tuple(latents.shape)}: give finite numbers, a row for each picture")
    return latents, labels


def _numbers(archive: zipfile.ZipFile, name: str, dtype: type[np.generic]) -> Tensor:
    found = read_member(archive, name)
    if found.dtype.kind not in "iuf":
        raise NotPlain(f"{name} are of type {found.dtype}")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what has no place becomes infinite, or no class, and is refused
        return torch.from_numpy(found.astype(dtype))


def parts(model: TrainedModel, found: Given) -> Iterator[Given]:
    """The pictures in batches that fit in memory."""
    size = batch_size(model.model, next(model.model.parameters()).device)
    for start in range(0, len(found.images), size):
        rows = slice(start, start + size)
        yield Given(found.images[rows], None if found.labels is None else found.labels[rows])


def encoded(model: TrainedModel, found: Given, verb: str, display: Display) -> Iterator[Tensor]:
    """Latents of pictures, in batches, on the CPU."""
    done = 0
    for part in parts(model, found):
        yield encode(model, part).cpu()
        done += len(part.images)
        display.count(verb, done, len(found.images))


def save(model: TrainedModel, found: Given, latents: Tensor, out: Path, command: str) -> None:
    """Write the latents of pictures, and their classes, to an npz file. Raises RunError."""
    arrays: dict[str, Any] = {"latents": latents.numpy()}
    if found.labels is not None:
        arrays |= {"labels": found.labels.numpy(), "class_names": np.array(model.class_names)}
    try:
        make_folder(out.parent)
        write_npz(out, arrays, command)
    except OSError as error:
        raise RunError(f"latents cannot be written to {out} ({error.strerror}): choose another --out") from error


def encode(model: TrainedModel, found: Given) -> Tensor:
    """The latents of pictures (N, D), on the device of the model."""
    device = next(model.model.parameters()).device
    labels = None if found.labels is None else found.labels.to(device)
    return cast(Encodable, model.model).encode(found.images.to(device), labels)


def decode(model: TrainedModel, latents: Tensor, labels: Tensor | None) -> Tensor:
    """The images of latents, uint8 (N, C, H, W) on the CPU."""
    given_labels = None if labels is None else labels.to(latents.device)
    return cast(Encodable, model.model).decode(latents, given_labels).cpu()


def decoded(model: TrainedModel, latents: Tensor, classes: Tensor | None, display: Display) -> Iterator[Tensor]:
    """Pictures of latents, in batches, on the CPU."""
    device = next(model.model.parameters()).device
    size = batch_size(model.model, device)
    for start in range(0, len(latents), size):
        rows = slice(start, start + size)
        yield decode(model, latents[rows].to(device), None if classes is None else classes[rows])
        display.count("decoded", min(start + size, len(latents)), len(latents))


def through(model: TrainedModel, found: Given, display: Display) -> Iterator[Tensor]:
    """Reconstructions of pictures, in batches, on the CPU."""
    done = 0
    for part in parts(model, found):
        yield decode(model, encode(model, part), part.labels)
        done += len(part.images)
        display.count("reconstructed", done, len(found.images))


WRITTEN = {
    "reconstruct": "reconstructions",
    "invert": "inversions",
    "interpolate": "interpolation",
    "decode": "decoded",
}  # by command, in messages


def write(
    sheet: Tensor,
    columns: int,
    out: Path | None,
    folder: Path | None,
    images: Tensor,
    display: Display,
    command: str,
) -> tuple[Path, ...]:
    """Write a sheet, if requested, and each image to a file in a folder."""
    places = tuple(place for place in (out, folder) if place is not None)
    try:
        if out is not None:
            make_folder(out.parent)
            write_png(out, grid(sheet, columns=columns), command)
        if folder is not None:
            with open_folder(folder) as opened:
                for i, image in enumerate(images):
                    opened.write(f"{i:06d}.png", png(image, command))
    except OSError as error:
        raise RunError(f"{WRITTEN[command]} cannot be written ({error}): choose another --out or --folder") from error
    display.message(f"{WRITTEN[command]}: {', '.join(map(str, places))}")
    return places

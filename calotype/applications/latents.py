"""`calotype reconstruct`, `invert`, `interpolate`, `encode` and `decode`: a run, and pictures or their latents."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from calotype.applications.pictures import Given, given
from calotype.core.display import Display, counted
from calotype.core.errors import ConfigError, RunError
from calotype.core.files import make_folder, open_folder
from calotype.core.images import grid, png, write_png
from calotype.core.model import Encodable
from calotype.core.outputs import check_outputs
from calotype.core.untrusted import NotPlain, check_regular
from calotype.data.classes import check_seen
from calotype.data.sources.npy import DAMAGE, read_member, write_npz
from calotype.runs.run import TrainedModel, load, place_in
from calotype.sampling.manifests import Maker, digest, writing
from calotype.sampling.sampler import batch_size

MOST = 64  # pictures on a sheet: more cannot be looked at


def reconstruct(
    path: Path,
    pictures: str,
    *,
    out: Path | None,
    folder: Path | None,
    labels: Sequence[str] | None,
    checkpoint: str,
    device: str,
    display: Display,
) -> list[Path]:
    """Pictures beside what their latents give back; returns where they are.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    default = "" if out or folder else "out"
    if default:
        out = place_in(path, "reconstructions.png")
    check_outputs("reconstruct", (pictures,), default=default, out=out, folder=folder)
    model = _load(path, checkpoint, device, display)
    found = given(model, pictures, labels, None if folder else MOST, display, "reconstructed")
    with _writing(model, "reconstruct", folder, found.images, found.labels):
        back = torch.cat(list(_through(model, found, display)))
        off = float((back.float() - found.images.float()).abs().mean())
        display.message(
            f"{counted(len(back), 'picture', 'pictures')}; on average a value comes back {off:.1f} of 255 away"
        )
        sheet = torch.stack([found.images[:MOST], back[:MOST]], 1).flatten(0, 1)
        return _write(sheet, 8, out, folder, back, display, "reconstruct")


def invert(
    path: Path,
    pictures: str,
    *,
    out: Path | None,
    sheet: Path | None,
    labels: Sequence[str] | None,
    checkpoint: str,
    device: str,
    display: Display,
) -> list[Path]:
    """Latents whose pictures are the nearest to given ones, and both side by side; returns where they are.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    default = "" if sheet else "sheet"
    if sheet is None:
        sheet = place_in(path, "inversions.png") if out is None else path / "inversions.png"
    check_outputs("invert", (pictures,), default=default, out=out, sheet=sheet)
    model = _load(path, checkpoint, device, display)
    found = given(model, pictures, labels, MOST if out is None else None, display, "inverted")
    latents = torch.cat(list(_encoded(model, found, "inverted", display)))
    shown = found.images[:MOST]
    on = next(model.model.parameters()).device
    back = _decode(model, latents[:MOST].to(on), None if found.labels is None else found.labels[:MOST])
    off = float((back.float() - shown.float()).abs().mean())
    display.message(
        f"{counted(len(latents), 'picture', 'pictures')}; on average a value is {off:.1f} of 255 away "
        "from what was found"
    )
    both = torch.stack([shown, back], 1).flatten(0, 1)
    places = _write(both, 8, sheet, None, back, display, "invert")
    if out is not None:
        _save(model, found, latents, out, "invert")
        display.message(f"latents: {out}")
        places.append(out)
    return places


def interpolate(
    path: Path,
    first: str,
    last: str,
    *,
    steps: int,
    out: Path | None,
    folder: Path | None,
    labels: Sequence[str] | None,
    checkpoint: str,
    device: str,
    display: Display,
) -> list[Path]:
    """Pictures on the way from one to another, evenly between their latents; returns where they are.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    if steps < 2:
        raise ConfigError(f"steps is {steps}: give at least 2, for the two ends")
    default = "" if out or folder else "out"
    if default:
        out = place_in(path, "interpolation.png")
    check_outputs("interpolate", (first, last), default=default, out=out, folder=folder)
    model = _load(path, checkpoint, device, display)
    named = (labels[:1], labels[1:2] or labels[:1]) if labels else (None, None)
    if labels is not None and len(labels) > 2:
        raise ConfigError(f"labels names {len(labels)} classes: give one for both pictures, or one for each")
    ends = [given(model, *end, 1, display, "taken") for end in zip((first, last), named, strict=True)]
    pictures = torch.cat([end.images for end in ends])
    classes = None
    if ends[0].labels is not None and ends[1].labels is not None:  # that of the nearer end
        nearer = torch.linspace(0, 1, steps) < 0.5
        classes = torch.where(nearer, ends[0].labels, ends[1].labels)
    with _writing(model, "interpolate", folder, pictures, classes, steps=steps):
        a, b = (_encode(model, end) for end in ends)
        shares = torch.linspace(0, 1, steps, device=a.device)[:, None]
        between = _decode(model, torch.lerp(a, b, shares), classes)
        sheet = torch.cat([ends[0].images, between, ends[1].images])
        return _write(sheet, len(sheet), out, folder, between, display, "interpolate")


def encode(
    path: Path,
    pictures: str,
    *,
    out: Path,
    labels: Sequence[str] | None,
    checkpoint: str,
    device: str,
    display: Display,
) -> Path:
    """Write the latents of pictures, and their classes, to an npz file.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    check_outputs("encode", (pictures,), out=out)
    model = _load(path, checkpoint, device, display)
    found = given(model, pictures, labels, None, display, "encoded")
    latents = torch.cat(list(_encoded(model, found, "encoded", display)))
    _save(model, found, latents, out, "encode")
    display.message(f"{counted(len(found.images), 'picture', 'pictures')}, {latents.shape[1]} latents each: {out}")
    return out


def decode(
    path: Path,
    latents: Path,
    *,
    out: Path | None,
    folder: Path | None,
    labels: Sequence[str] | None,
    checkpoint: str,
    device: str,
    display: Display,
) -> list[Path]:
    """Pictures of the latents in an npz file, as `encode` writes it; returns where they are.

    Raises:
        CalotypeError: for anything the user can mend.
    """
    default = "" if out or folder else "out"
    if default:
        out = place_in(path, "decoded.png")
    check_outputs("decode", (latents,), default=default, out=out, folder=folder)
    model = _load(path, checkpoint, device, display)
    values, classes = _read(latents)
    asked = model.labels(labels) if labels is not None or classes is None else None
    if asked is not None:
        classes = torch.tensor([asked(i) for i in range(len(values))])
    elif classes is not None and model.class_names:
        highest = len(model.class_names) - 1
        if classes.shape != values.shape[:1] or int(classes.min()) < 0 or int(classes.max()) > highest:
            raise ConfigError(f"labels in {latents} are not one of 0 to {highest} for each picture: give --labels")
        check_seen(classes.tolist(), model.class_names, model.spec.unseen)
    if not model.class_names:
        classes = None
    with _writing(model, "decode", folder, values, classes):
        images = torch.cat(list(_decoded(model, values, classes, display)))
        return _write(images[:MOST], 8, out, folder, images, display, "decode")


def _load(path: Path, checkpoint: str, device: str, display: Display) -> TrainedModel:
    model = load(path, checkpoint=checkpoint, device=device, report=display.message)
    if not isinstance(model.model, Encodable):
        raise ConfigError(f"{path} is a model of a family without latents for pictures: train a vae or a gan")
    return model


def _writing(
    model: TrainedModel, command: str, folder: Path | None, inputs: Tensor, classes: Tensor | None, **facts: int
) -> AbstractContextManager[None]:
    """Hold and claim the folder for the pictures that a command makes of its inputs, if there is one, see `writing`."""
    if folder is None:
        return nullcontext()
    made_of = digest(inputs.numpy(), None if classes is None else classes.numpy())
    decisive = {"weights_sha256": model.digest, "pictures_sha256": made_of} | facts
    return writing(Maker(command, decisive, model.told()), folder, "--folder")


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
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


def _parts(model: TrainedModel, found: Given) -> Iterator[Given]:
    """The pictures, as many at a time as fit."""
    size = batch_size(model.model, next(model.model.parameters()).device)
    for start in range(0, len(found.images), size):
        rows = slice(start, start + size)
        yield Given(found.images[rows], None if found.labels is None else found.labels[rows])


def _encoded(model: TrainedModel, found: Given, verb: str, display: Display) -> Iterator[Tensor]:
    """Latents of pictures, some at a time, on the CPU."""
    done = 0
    for part in _parts(model, found):
        yield _encode(model, part).cpu()
        done += len(part.images)
        display.count(verb, done, len(found.images))


def _save(model: TrainedModel, found: Given, latents: Tensor, out: Path, command: str) -> None:
    arrays: dict[str, Any] = {"latents": latents.numpy()}
    if found.labels is not None:
        arrays |= {"labels": found.labels.numpy(), "class_names": np.array(model.class_names)}
    try:
        make_folder(out.parent)
        write_npz(out, arrays, command)
    except OSError as error:
        raise RunError(f"latents cannot be written to {out} ({error.strerror}): choose another --out") from error


def _encode(model: TrainedModel, found: Given) -> Tensor:
    device = next(model.model.parameters()).device
    labels = None if found.labels is None else found.labels.to(device)
    return cast(Encodable, model.model).encode(found.images.to(device), labels)


def _decode(model: TrainedModel, latents: Tensor, labels: Tensor | None) -> Tensor:
    given_labels = None if labels is None else labels.to(latents.device)
    return cast(Encodable, model.model).decode(latents, given_labels).cpu()


def _decoded(model: TrainedModel, latents: Tensor, classes: Tensor | None, display: Display) -> Iterator[Tensor]:
    """Pictures of latents, some at a time, on the CPU."""
    device = next(model.model.parameters()).device
    size = batch_size(model.model, device)
    for start in range(0, len(latents), size):
        rows = slice(start, start + size)
        yield _decode(model, latents[rows].to(device), None if classes is None else classes[rows])
        display.count("decoded", min(start + size, len(latents)), len(latents))


def _through(model: TrainedModel, found: Given, display: Display) -> Iterator[Tensor]:
    done = 0
    for part in _parts(model, found):
        yield _decode(model, _encode(model, part), part.labels)
        done += len(part.images)
        display.count("reconstructed", done, len(found.images))


WRITTEN = {
    "reconstruct": "reconstructions",
    "invert": "inversions",
    "interpolate": "interpolation",
    "decode": "decoded",
}  # by command, in messages


def _write(
    sheet: Tensor,
    columns: int,
    out: Path | None,
    folder: Path | None,
    images: Tensor,
    display: Display,
    command: str,
) -> list[Path]:
    """Write a sheet, where one is asked for, and the images each to a file of a folder."""
    places = [place for place in (out, folder) if place is not None]
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

"""Pictures as NumPy arrays: .npy, and .npz with the names of arrays that data sets commonly have."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.data.config import MAX_PIXELS
from calotype.data.decode import array_facts
from calotype.data.records import Loaded, Record, Source, Split, check_class_number
from calotype.data.sources.npy import DAMAGE, Header, read_header, read_member
from calotype.errors import DataError

# Names of the pictures and of their labels in an .npz file, with the split they belong to. The first line of each
# split that is there is used.
_NAMES: tuple[tuple[str, str, Split | None], ...] = (
    ("x_train", "y_train", "train"),
    ("train_images", "train_labels", "train"),
    ("train_x", "train_y", "train"),
    ("x_test", "y_test", "held_out"),
    ("test_images", "test_labels", "held_out"),
    ("test_x", "test_y", "held_out"),
    ("x_val", "y_val", "held_out"),
    ("val_images", "val_labels", "held_out"),
    ("images", "labels", None),
    ("x", "y", None),
    ("X", "y", None),
    ("data", "labels", None),
    ("arr_0", "arr_1", None),
)


class _Part(NamedTuple):
    """One array of pictures of an .npz file, its labels, and its split."""

    images: str
    labels: NDArray[np.int64] | None
    split: Split | None


def npy(path: Path) -> Source:
    """The pictures of an .npy file, (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    try:
        with path.open("rb") as file:
            header = read_header(file)
        channels_first = _checked(header, path.name)
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read as an array ({error}): save it again with numpy.save") from None

    def records() -> Iterator[Record]:
        facts = array_facts(_picture_shape(images.shape, channels_first), images.dtype)
        for i in range(len(images)):
            yield Record(f"{path.name}[{i}]", partial(_row, images, i, channels_first), facts=facts)

    return Source(records)


def npz(path: Path, labels: bool = True) -> Source:
    """The pictures of an .npz file, with the labels beside them; the arrays are read one picture at a time."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
        parts = _parts(path, keys, labels)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read as arrays ({error}): save it again with numpy.savez") from None
    known = [part.labels for part in parts if part.labels is not None]
    class_names: tuple[str, ...] = ()
    if len(known) == len(parts):
        highest = max(int(part.max(initial=0)) for part in known)
        check_class_number(highest)
        class_names = tuple(str(i) for i in range(1 + highest))

    def records() -> Iterator[Record]:
        for part in parts:
            yield from _part_records(path, part)

    return Source(records, class_names, notes=tuple(_notes(parts, keys)) if labels else ())


def _notes(parts: list[_Part], keys: set[str]) -> Iterator[str]:
    """Notes on arrays that may be labels but are not used."""
    names = {images: labels for images, labels, _ in _NAMES}
    unlabelled = [part.images for part in parts if part.labels is None]
    if len(unlabelled) < len(parts):
        yield from (f"No labels: {name} has no {names[name]} beside it, which others have." for name in unlabelled)
    used = {name for part in parts for name in (part.images, names[part.images])}
    if others := sorted(keys - used):
        wanted = ", ".join(names[name] for name in unlabelled)
        yield f"The arrays {', '.join(others)} are not read" + (f": classes would be {wanted}." if wanted else ".")


def _parts(path: Path, keys: set[str], wanted: bool) -> list[_Part]:
    chosen = [entry for entry in _NAMES if entry[0] in keys]
    if any(split == "train" for *_, split in chosen):
        chosen = [entry for entry in chosen if entry[2] is not None]
    else:
        chosen = [entry for entry in chosen if entry[2] is None][:1]
    if not chosen:
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(keys))}, and none has a name that pictures have: "
            "name them images and labels, or x_train, y_train, x_test and y_test"
        )
    with zipfile.ZipFile(path) as archive:
        return [
            _Part(images, _labels(archive, key, path) if wanted and key in keys else None, split)
            for images, key, split in chosen
        ]


def _labels(archive: zipfile.ZipFile, key: str, path: Path) -> NDArray[np.int64]:
    labels = read_member(archive, key)
    if labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
        return labels.argmax(axis=1).astype(np.int64)
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all()))
    if labels.ndim == 0 or labels.size != len(labels) or not whole or np.isinf(labels).any():
        raise DataError(
            f"{key} in {path} has shape {labels.shape} and type {labels.dtype}, but labels are one integer "
            "or one one-hot row per picture: save class numbers, or pass over them with --no-labels"
        )
    return labels.reshape(-1).astype(np.int64)


def _is_one_hot(labels: NDArray[Any]) -> bool:
    return labels.dtype.kind in "iufb" and bool(
        ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
    )


def _part_records(path: Path, part: _Part) -> Iterator[Record]:
    with _array_of(path, part.images) as (file, header):
        shape, _, dtype = header
        channels_first = _checked(header, f"{part.images} in {path.name}")
        if header.fortran_order and len(shape) > 1:
            raise DataError(
                f"{part.images} in {path} is stored column by column, so that no picture can be read by itself: save "
                "numpy.ascontiguousarray of it"
            )
        if part.labels is not None and len(part.labels) != shape[0]:
            raise DataError(f"{path} has {shape[0]} pictures in {part.images}, but {len(part.labels)} labels for them")
        facts = array_facts(_picture_shape(shape, channels_first), dtype)
        row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
        for i in range(shape[0]):
            try:
                row = np.frombuffer(file.read(row_bytes), dtype).reshape(shape[1:])
            except DAMAGE as error:
                raise DataError(f"{part.images} in {path} is damaged at picture {i} ({error})") from None
            label = None if part.labels is None else int(part.labels[i])
            picture = np.moveaxis(row, 0, -1) if channels_first else row
            yield Record(f"{part.images}[{i}]", partial(Loaded, picture, label), part.split, facts)


@contextmanager
def _array_of(path: Path, name: str) -> Iterator[tuple[Any, Header]]:
    """An array of an .npz file: a stream of its values, and its header."""
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(zipfile.ZipFile(path))
            file = opened.enter_context(archive.open(f"{name}.npy"))
            header = read_header(file)
        except DAMAGE as error:
            raise DataError(
                f"{name} in {path} cannot be read as an array ({error}): save it again with numpy.savez"
            ) from None
        yield file, header


def _checked(header: Header, name: str) -> bool:
    """Whether the channels of pictures come first. Raises DataError for an array of anything else than pictures."""
    shape, _, dtype = header
    if dtype.kind not in "biuf":
        raise DataError(f"{name} holds values of type {dtype}, but pictures are integers, floats or bools: save such")
    channels_first = _channels_first(shape, name)
    height, width, *_ = _picture_shape(shape, channels_first)
    if not 0 < height * width <= MAX_PIXELS or not dtype.itemsize or not all(shape[1:]):
        raise DataError(
            f"{name} has shape {shape}, but a picture has 1 to {MAX_PIXELS:,} pixels: leave out what is none, and save "
            "larger ones smaller"
        )
    return channels_first


def _row(images: NDArray[Any], index: int, channels_first: bool) -> Loaded:
    picture = np.array(images[index])  # a copy: reads the file here, in a worker
    return Loaded(np.moveaxis(picture, 0, -1) if channels_first else picture, None)


def _channels_first(shape: tuple[int, ...], name: str) -> bool:
    """Whether pictures of this shape are (N, C, H, W); if both orders fit, channels are last."""
    if len(shape) == 3:
        return False
    if len(shape) == 4 and (shape[3] in (1, 3, 4) or shape[1] in (1, 3, 4)):
        return shape[3] not in (1, 3, 4)
    raise DataError(
        f"{name} has shape {shape}, but pictures are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1, 3 or 4: "
        "save them so"
    )


def _picture_shape(shape: tuple[int, ...], channels_first: bool) -> tuple[int, ...]:
    return (*shape[2:], shape[1]) if channels_first else shape[1:]

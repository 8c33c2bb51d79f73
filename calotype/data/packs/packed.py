"""A packed data set: a directory of plain files, memory-mapped, from which training reads batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from calotype.core.config import build
from calotype.core.model import Batch, ImageSpec
from calotype.core.untrusted import NotPlain, brief, check_regular, read_json
from calotype.data.config import DataConfig
from calotype.data.records import Skipped, Values
from calotype.data.sources.npy import DAMAGE, read_array
from calotype.errors import CalotypeError, ConfigError, DataError

if TYPE_CHECKING:
    from calotype.data.packs.stream import Stream

FORMAT = 2
"""Version of the files of a pack. Another one is packed again."""

MOST_BYTES = 1 << 32
"""Of the lists of a pack: the names of ten million pictures take 1 GB."""

MOST_VALUES = 1 << 50  # of all pictures, a petabyte

IMAGES, LABELS, SPLIT, DATASET, SURVEY = "images.u8", "labels.npy", "split.npy", "dataset.json", "survey.json"

_WHOLE: set[tuple[Path, str, tuple[tuple[int, int], ...]]] = set()
"""Packs of which this process knows that they are what was packed."""


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """Pictures of one size as bytes, with their labels and their split. Immutable."""

    path: Path
    spec: ImageSpec
    class_names: tuple[str, ...]  # empty: no labels
    digest: str  # of pixels, labels, split and class names: equal digests, equal data
    config: DataConfig  # with size and channels filled in, and the source by its absolute address
    images: np.memmap[Any, np.dtype[np.uint8]]  # (N, H, W, C)
    labels: NDArray[np.int64] | None  # (N,)
    class_counts: tuple[int, ...]  # training pictures of each class, of all shards where this is a sample of some
    train: NDArray[np.int64]  # indices of what training may see
    held_out: NDArray[np.int64]  # indices of the rest whose class has training pictures; no picture is in both
    split_rule: str
    fingerprint: str  # of the source, when it was packed
    skipped: tuple[Skipped, ...]
    values: Values | None  # those of 16-bit and float pictures before scaling
    stream: Stream | None = None  # what is learned from, where this is but a sample of it

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pack.

        Raises:
            DataError: it is missing, damaged or of another version.
        """
        try:
            about = read_json(path / DATASET, MOST_BYTES)
            if about["format"] != FORMAT:
                found = brief(about["format"])
                raise DataError(f"{path} is a pack of format {found}, not {FORMAT}: remove it to pack again")
            return cls._from_files(path, about)
        except (*DAMAGE, TypeError, AttributeError, ConfigError) as error:
            raise DataError(f"{path} is no whole pack ({error!r}): remove it to pack again") from None

    @classmethod
    def _from_files(cls, path: Path, about: dict[str, Any]) -> Self:
        config, spec = build(DataConfig, about["settings"], "settings"), build(ImageSpec, about["spec"], "spec")
        names = build(_Named, {"class_names": about["class_names"]}, "pack").class_names
        count = about["counts"]["pictures"]
        if type(count) is not int or not 0 < count * spec.dims < MOST_VALUES or spec.num_classes != len(names):
            raise NotPlain("its counts are not those of a pack")
        check_regular(path / IMAGES)
        if (path / IMAGES).stat().st_size != count * spec.dims:
            raise NotPlain(f"{IMAGES} has not the size of {count} pictures")
        split = _array(path / SPLIT, count, np.uint8, 2)
        labels = _array(path / LABELS, count, np.int64, len(names)) if names else None
        counts, held_out = _class_counts(about, labels, split, len(names)), split == 1
        if labels is not None:  # a model cannot be measured on a class that it never saw
            held_out &= np.array(counts)[labels] > 0
        values = about["values"]
        return cls(
            path=path,
            spec=replace(spec, unseen=tuple(k for k, pictures in enumerate(counts) if not pictures)),
            class_names=names,
            digest=_text(about["digest"]),
            config=config,
            images=np.memmap(path / IMAGES, np.uint8, "r", shape=(count, spec.height, spec.width, spec.channels)),
            labels=labels,
            class_counts=counts,
            train=np.flatnonzero(split == 0),
            held_out=np.flatnonzero(held_out),
            split_rule=_text(about["split_rule"]),
            fingerprint=_text(about["fingerprint"]),
            skipped=tuple(Skipped(_text(name), _text(reason)) for name, reason in about["skipped"]),
            values=Values(float(values[0]), float(values[1]), bool(values[2])) if values else None,
        )

    @property
    def left_out(self) -> NDArray[np.int64]:
        """Indices of held-out pictures that are not used, since their class has no training pictures."""
        used = np.zeros(len(self), np.bool_)
        used[self.train] = used[self.held_out] = True
        return np.flatnonzero(~used)

    @property
    def learned(self) -> int:
        """The number of training pictures."""
        return len(self.train) if self.stream is None else self.stream.count

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Copy pictures out of the pack.

        Args:
            indices: positions 0..N-1, int64 (B,).

        Returns:
            A batch whose images are uint8 (B, C, H, W) in channels_last memory, as they lie in the pack.
        """
        pixels = np.asarray(self.images)[indices]  # (B, H, W, C); asarray: indexing a memmap itself costs more
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices])
        return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), labels)

    def is_whole(self) -> bool:
        """Whether pixels, labels and split match their digest; reads all of them, once per process."""
        names = (IMAGES, SPLIT, LABELS) if self.class_names else (IMAGES, SPLIT)
        found = [(self.path / name).stat() for name in names]
        mark = (self.path, self.digest, tuple((status.st_ino, status.st_ctime_ns) for status in found))
        if mark not in _WHOLE:
            held_out = np.zeros(len(self), np.bool_)
            held_out[self.held_out] = True
            hashes = [pixel_hash(picture) for picture in np.asarray(self.images)]
            if content_digest(self.spec, self.class_names, hashes, self.labels, held_out) != self.digest:
                return False
            _WHOLE.add(mark)
        return True

    def survey(self) -> dict[str, Any]:
        """The survey of the headers at the time of packing, and the names of the packed pictures."""
        try:
            found = read_json(self.path / SURVEY, MOST_BYTES)
            if not _is_survey(found, len(self), len(self) + len(self.skipped)):
                raise NotPlain(f"{SURVEY} is not of its pictures")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is no whole pack ({error}): remove it to pack again") from None
        told: dict[str, Any] = found
        return told


def pixel_hash(pixels: NDArray[np.uint8]) -> bytes:
    """A hash of 16 bytes of a picture (H, W, C)."""
    return hashlib.blake2b(pixels.data, digest_size=16).digest()


def content_digest(
    spec: ImageSpec,
    class_names: Sequence[str],
    hashes: Sequence[bytes],
    labels: Sequence[int] | NDArray[np.int64] | None,
    held_out: NDArray[np.bool_],
) -> str:
    """A hash of the contents of a pack that affect training and evaluation.

    Args:
        hashes: of the pixels of each picture.
        labels: the class of each picture, if there are classes.
        held_out: whether each picture is held out, (N,).
    """
    digest = hashlib.blake2b(json.dumps([facts_of(spec), class_names], indent=1).encode(), digest_size=16)
    digest.update(b"".join(hashes))
    digest.update(np.array([] if labels is None else labels, np.int64).tobytes())
    digest.update(held_out.tobytes())
    return digest.hexdigest()


def facts_of(spec: ImageSpec) -> dict[str, int]:
    """The facts about pictures, without the entries about latent maps."""
    return {name: getattr(spec, name) for name in ("channels", "height", "width", "num_classes")}


def _is_survey(found: Any, pictures: int, most: int) -> bool:
    """Whether values are a valid survey of a pack, of at most `most` files."""
    if not isinstance(found, dict):
        return False
    numbers = [found.get(name) for name in ("alpha_channels", "deep", "other_files")]
    sizes, names = found.get("sizes"), found.get("names")
    for table in (found.get("formats"), found.get("modes")):
        if not isinstance(table, dict):
            return False
        numbers += table.values()
    if not isinstance(sizes, list) or not all(isinstance(size, list) and len(size) == 3 for size in sizes):
        return False
    numbers += [number for size in sizes for number in size]
    texts, ignored = [names, found.get("notes")], found.get("ignored")
    if not isinstance(ignored, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in ignored):
        return False
    texts += ignored
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and all(min(size) > 0 for size in sizes)
        and 0 < sum(size[2] for size in sizes) <= most
        and all(isinstance(told, list) and all(isinstance(text, str) for text in told) for told in texts)
        and len(names or ()) == pictures
    )


def _class_counts(
    about: dict[str, Any], labels: NDArray[np.int64] | None, split: NDArray[np.uint8], count: int
) -> tuple[int, ...]:
    """The number of training pictures of each class; packs of earlier versions do not store it."""
    if labels is None:
        return ()
    if "class_counts" not in about:
        return tuple(np.bincount(labels[split == 0], minlength=count).tolist())
    counts = build(_Counted, {"class_counts": about["class_counts"]}, "pack").class_counts
    if len(counts) != count or min(counts) < 0 or max(counts) < 1:
        raise NotPlain("its class_counts are not those of its classes")
    return counts


@dataclass(frozen=True, slots=True)
class _Counted:
    class_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Named:
    class_names: tuple[str, ...]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{brief(value)} is no text")
    return value


def _array(path: Path, count: int, dtype: type[np.generic], below: int) -> NDArray[Any]:
    """An array of integers from 0 to below a limit, one per picture. Raises one of DAMAGE."""
    found = read_array(path, most=1024 + 8 * count)
    if found.shape != (count,) or found.dtype != dtype:
        raise NotPlain(f"{path.name} has not a number for each picture")
    if int(found.min()) < 0 or int(found.max()) >= below:
        raise NotPlain(f"{path.name} has numbers that are not from 0 to {below - 1}")
    return found


def open_or_none(path: Path) -> PackedDataset | None:
    """The pack at a path, or None if there is no usable one."""
    try:
        return PackedDataset.open(path)
    except CalotypeError:
        return None

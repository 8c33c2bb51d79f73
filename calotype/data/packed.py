"""A packed data set: a directory of plain files, memory-mapped, from which training reads batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from calotype.data.config import DataConfig
from calotype.data.records import Skipped, Values
from calotype.errors import CalotypeError, DataError
from calotype.model import Batch, ImageSpec

if TYPE_CHECKING:
    from calotype.data.stream import Stream

FORMAT = 1
"""Version of the files of a pack. Another one is packed again."""

IMAGES, LABELS, SPLIT, DATASET, SURVEY = "images.u8", "labels.npy", "split.npy", "dataset.json", "survey.json"


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
    train: NDArray[np.int64]  # indices of what training may see
    held_out: NDArray[np.int64]  # indices of the rest; no picture is in both
    split_rule: str
    fingerprint: str  # of the source, when it was packed
    skipped: tuple[Skipped, ...]
    values: Values | None  # those of 16-bit and float pictures before scaling
    stream: Stream | None = None  # what is learned from, where this is but a sample of it

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pack.

        Raises:
            DataError: there is none, or it is damaged or of another version.
        """
        try:
            about = json.loads((path / DATASET).read_text())
            if about["format"] != FORMAT:
                raise DataError(f"{path} is a pack of format {about['format']}, not {FORMAT}: remove it to pack again")
            return cls._from_files(path, about)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no whole pack ({error!r}): remove it to pack again") from None

    @classmethod
    def _from_files(cls, path: Path, about: dict[str, Any]) -> Self:
        spec = ImageSpec(**about["spec"])
        shape = (about["counts"]["pictures"], spec.height, spec.width, spec.channels)
        if (path / IMAGES).stat().st_size != np.prod(shape, dtype=np.int64):
            raise ValueError(f"{IMAGES} has not the size of {shape[0]} pictures")
        split = np.load(path / SPLIT, allow_pickle=False)
        values = about["values"]
        return cls(
            path=path,
            spec=spec,
            class_names=tuple(about["class_names"]),
            digest=about["digest"],
            config=DataConfig(**about["settings"]),
            images=np.memmap(path / IMAGES, np.uint8, "r", shape=shape),
            labels=np.load(path / LABELS, allow_pickle=False) if about["class_names"] else None,
            train=np.flatnonzero(split == 0),
            held_out=np.flatnonzero(split == 1),
            split_rule=about["split_rule"],
            fingerprint=about["fingerprint"],
            skipped=tuple(Skipped(*entry) for entry in about["skipped"]),
            values=Values(*values) if values else None,
        )

    @property
    def learned(self) -> int:
        """How many pictures there are to learn from."""
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

    def survey(self) -> dict[str, Any]:
        """What the headers of the files told when they were packed, and the names of the packed pictures."""
        try:
            found: dict[str, Any] = json.loads((self.path / SURVEY).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is no whole pack ({error}): remove it to pack again") from None
        return found


def open_or_none(path: Path) -> PackedDataset | None:
    """The pack at a path, or None where there is none that can be used."""
    try:
        return PackedDataset.open(path)
    except CalotypeError:
        return None

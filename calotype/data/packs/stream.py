"""Streaming: pictures read during training, for sources with too many pictures to pack.

A sample of a source in shards, with all held-out pictures, is packed for everything that reads pictures more than once:
the survey of sizes, measurements, evaluation. Training reads the others part by part, a window of parts at a time, in
an order that is a function of seed and position alone.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import fold, permutation
from calotype.data.config import DataConfig
from calotype.data.decode import decode_bytes, quiet_pillow
from calotype.data.decoding.fit import fit_picture
from calotype.data.packs.order import Windowed
from calotype.data.packs.parallel import ordered_map
from calotype.data.records import BadPicture, Loaded, Record, Source, Split
from calotype.data.sources.shards import Encoded, Shards, fingerprint, open_shards, storage
from calotype.errors import DataError

SAMPLE = 10_000  # pictures that are packed to learn about the others: what evaluation compares with at most
HELD_OUT = 5_000  # and held out, at most, and at most a tenth
LEAST_OF_PART = 64  # pictures taken of a part for either: parts are read whole
TRIES = 8  # pictures after one that cannot be used, for another in its place
TOLD = 20  # such pictures that are named


class Chosen(NamedTuple):
    """Some pictures of a part."""

    part: int
    rows: NDArray[np.int64]
    split: Split


class Replaced(NamedTuple):
    """A picture that was replaced by another."""

    name: str
    reason: str


class Stream:
    """The streamed training pictures, by index, and their order.

    Indices run through the parts of all shards in turn.

    Args:
        shards: the source.
        held_out: whether each part is excluded from training, bool (parts,); empty parts are not.
        fingerprint: of the shards as they were looked at.
    """

    def __init__(self, shards: Shards, held_out: NDArray[np.bool_], fingerprint: str) -> None:
        self.shards, self.fingerprint = shards, fingerprint
        pairs = [(k, part, count) for k, shard in enumerate(shards.shards) for part, count in enumerate(shard.counts)]
        places = np.array([pair for pair in pairs if pair[2]], np.int64).reshape(-1, 3)
        self._shard, self._part, self.counts = places.T
        self.firsts = np.cumsum(self.counts) - self.counts
        self.learned = ~held_out
        self.config: DataConfig | None = None
        self.spec: ImageSpec | None = None
        self.replaced = 0
        self._told: list[Replaced] = []
        self._lock = threading.Lock()
        self._cached: OrderedDict[int, Sequence[Encoded]] = OrderedDict()
        self._together = Windowed(self.firsts[self.learned], self.counts[self.learned], 0).together

    @property
    def count(self) -> int:
        """The number of training pictures."""
        return int(self.counts[self.learned].sum())

    def order(self, seed: int) -> Windowed:
        """The order of the pictures in training."""
        return Windowed(self.firsts[self.learned], self.counts[self.learned], seed)

    def class_counts(self) -> tuple[int, ...]:
        """The number of training pictures per class; empty without classes. Reads the labels of all parts."""
        counts = np.zeros(len(self.shards.class_names), np.int64)
        if len(counts):
            for number in np.flatnonzero(self.learned).tolist():
                said = self.shards.shards[self._shard[number]].labels(int(self._part[number]))
                numbers = np.array([label for label in said if label is not None], np.int64)
                counts += np.bincount(numbers[(numbers >= 0) & (numbers < len(counts))], minlength=len(counts))
        return tuple(counts.tolist())

    def fitted(self, config: DataConfig, spec: ImageSpec) -> Stream:
        """This stream, with the size and channels of the fitted pictures."""
        self.config, self.spec = config, spec
        return self

    def part(self, number: int) -> Sequence[Encoded]:
        """The pictures of a part; parts of two windows are cached."""
        with self._lock:
            if number in self._cached:
                self._cached.move_to_end(number)
                return self._cached[number]
        found = self.shards.shards[self._shard[number]].read(int(self._part[number]))
        with self._lock:
            self._cached[number] = found
            while len(self._cached) > 2 * self._together:
                self._cached.popitem(last=False)
        return found

    def name(self, part: int, row: int) -> str:
        """The name of a picture."""
        shard, before = self.shards.shards[self._shard[part]], int(self._part[part])
        return f"{shard.name}[{sum(shard.counts[:before]) + row}]"

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Read and decode pictures: uint8 (B, C, H, W), in channels_last memory.

        An unusable picture is replaced by the next usable one of its part.

        Raises:
            DataError: a shard has changed or is gone, none of several pictures in a row can be used, or one cannot and
                the config is strict.
        """
        spec = self.spec
        assert spec is not None
        parts = np.searchsorted(self.firsts, indices, side="right") - 1
        for number in dict.fromkeys(parts.tolist()):  # by one thread: files are read from front to back
            self.part(number)
        with quiet_pillow():
            found = list(
                ordered_map(self._fit, zip(parts.tolist(), (indices - self.firsts[parts]).tolist(), strict=True))
            )
        pixels = np.stack([pixels for pixels, _ in found])  # (B, H, W, C)
        labels = torch.tensor([label for _, label in found]) if spec.num_classes else None
        return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), labels)

    def heard(self) -> list[Replaced]:
        """The replaced pictures since the last call, up to a limit."""
        with self._lock:
            told, self._told = self._told, []
        return told

    def _fit(self, place: tuple[int, int]) -> tuple[NDArray[np.uint8], int]:
        """The pixels and the class of a picture, or of the next usable one."""
        part, row = place
        pictures = self.part(part)
        reason = ""
        for k in range(min(TRIES, len(pictures))):
            try:
                return self._decoded(pictures[(row + k) % len(pictures)])
            except BadPicture as error:
                reason = reason or error.reason
            if k == 0:
                self._note(part, row, reason)
        raise DataError(
            f"{self.name(part, row)} and the {TRIES - 1} pictures after it cannot be used ({reason}): mend the shard, "
            "or leave it out"
        )

    def _decoded(self, encoded: Encoded) -> tuple[NDArray[np.uint8], int]:
        config, spec = self.config, self.spec
        assert config is not None
        assert spec is not None
        if not encoded.data:
            raise BadPicture("no picture in this row")
        decoded = decode_bytes(encoded.data, config.range(), min_side=2 * max(config.width, config.height))
        label = -1 if encoded.label is None else encoded.label
        if spec.num_classes and not 0 <= label < spec.num_classes:
            raise BadPicture(f"label: {encoded.label} is none of the classes 0 to {spec.num_classes - 1}")
        pixels = fit_picture(
            decoded.pixels, width=config.width, height=config.height, channels=config.channels, fit=config.fit
        )
        return pixels, label

    def _note(self, part: int, row: int, reason: str) -> None:
        name = self.name(part, row)
        if self.config is not None and self.config.strict:
            raise DataError(f"{name}: {reason} (strict is on, so nothing is passed over)")
        with self._lock:
            self.replaced += 1
            if self.replaced <= TOLD:
                self._told.append(Replaced(name, reason))


class Looked(NamedTuple):
    """A source in shards, and the pictures of it to pack."""

    stream: Stream
    chosen: tuple[Chosen, ...]
    rule: str

    def source(self) -> Source:
        """The pictures to pack."""

        def records() -> Iterator[Record]:
            for part, rows, split in self.chosen:
                pictures = self.stream.part(part)
                for row in rows.tolist():
                    yield Record(self.stream.name(part, row), partial(_loaded, pictures[row]), split)

        notes = (
            f"Of {int(self.stream.counts.sum()):,} pictures in {len(self.stream.shards.shards):,} shards "
            f"{sum(len(c.rows) for c in self.chosen):,} were looked at.",
        )
        shards = self.stream.shards
        return Source(
            records,
            shards.class_names,
            other_files=shards.other_files,
            notes=(*notes, *shards.notes),
            class_counts=self.stream.class_counts(),
            ignored=shards.ignored,
        )


def look(address: str, labels: bool, notes: Path) -> Looked:
    """Open a source in shards, and choose the pictures to pack and the held-out parts.

    Args:
        notes: as of `open_shards`.

    Raises:
        DataError: there are no shards, one is damaged, or there are too few parts to hold one out.
    """
    found = storage(address)
    shards = open_shards(found, labels, notes)
    owners = np.array([k for k, shard in enumerate(shards.shards) for count in shard.counts if count], np.int64)
    if not len(owners):
        raise DataError(f"{address} has no pictures: give shards that have some")
    by_shard = np.array([split == "held_out" for split in shards.splits])
    counts = np.array([count for shard in shards.shards for count in shard.counts if count], np.int64)
    if by_shard.any():
        held, rule = by_shard[owners], "the split of the source, of which some are used"
    else:
        held, rule = _held_out(counts), "whole parts, by their number; equal pictures may be on both sides"
    if held.all() or not held.any():
        raise DataError(
            f"{address} has one part only, a row group or a thousand members, so that none can be held out: leave out "
            "--stream"
        )
    stream = Stream(shards, held, fingerprint(found))
    limits = (("held_out", held, HELD_OUT), ("train", ~held, SAMPLE))
    chosen = [c for split, which, limit in limits for c in _chosen(counts, which, limit, split)]  # type: ignore[arg-type]
    return Looked(stream, tuple(sorted(chosen, key=lambda c: c.part)), rule)


def _held_out(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The held-out parts: at most a tenth of all, each contributing LEAST_OF_PART pictures or more."""
    wanted = min(HELD_OUT, int(counts.sum()) // 10)
    several = max(1, min(len(counts) // 10, wanted // LEAST_OF_PART))
    held = np.zeros(len(counts), np.bool_)
    held[permutation(fold(0, "held out"), len(counts))[:several]] = True
    return held if len(counts) > 1 else np.zeros(1, np.bool_)


def _chosen(counts: NDArray[np.int64], which: NDArray[np.bool_], limit: int, split: Split) -> Iterator[Chosen]:
    """Up to `limit` pictures from as many of the parts as possible."""
    parts = np.flatnonzero(which)
    each = max(LEAST_OF_PART, -(-limit // len(parts)))
    left = limit
    for part in parts[permutation(fold(0, "looked at", split), len(parts))].tolist():
        count = min(each, left, int(counts[part]))
        if count:
            rows = permutation(fold(0, "of a part", part), int(counts[part]))[:count]
            yield Chosen(part, np.sort(rows), split)
        left -= count


def _loaded(encoded: Encoded) -> Loaded:
    if not encoded.data:
        raise BadPicture("no picture in this row")
    return Loaded(io.BytesIO(encoded.data), encoded.label)


def digest(packed: str, stream: Stream) -> str:
    """A digest of the packed sample and of all shards."""
    told = hashlib.blake2b(packed.encode(), digest_size=16)
    for shard in stream.shards.shards:
        told.update(f"{shard.name}\0{shard.counts}\n".encode())
    told.update(stream.fingerprint.encode())
    return told.hexdigest()

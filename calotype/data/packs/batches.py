"""The order of the data: which images make batch k is a function of (seed, k) alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from calotype.core.model import Batch
from calotype.data.packs.order import Order, Shuffled


class Readable(Protocol):
    """Images that can be read by index."""

    def read(self, indices: np.ndarray) -> Batch:
        """The images of int64 `indices` (B,) and their labels."""


class Batches:
    """An endless sequence of shuffled batches, read by position.

    Args:
        data: where images are read from.
        indices: the indices of the images, int64 (n,), or an order of them.
        size: images per batch.
        seed: of the order of indices.
        flips: mirror each image left to right in half of its appearances.
        labels: int64 (n,), the classes of `indices`; with labels, every class appears equally often.
        after: for slow sources: called after each batch; a thread then reads the next batch in advance.
    """

    def __init__(
        self,
        data: Readable,
        indices: np.ndarray | Order,
        size: int,
        seed: int = 0,
        flips: bool = False,
        labels: np.ndarray | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self.order = Shuffled(indices, seed, labels) if isinstance(indices, np.ndarray) else indices
        self.data, self.size, self.flips = data, size, flips
        self.epoch_length = self.order.length
        self._after = after
        self._reader = None if after is None else ThreadPoolExecutor(1, thread_name_prefix="calotype-batches")
        self._ahead: tuple[int, range | None, Future[Batch]] | None = None

    def at(self, k: int, rows: range | None = None) -> Batch:
        """Batch k = 0, 1, 2, ...: images k * size to (k + 1) * size of the endless order.

        Args:
            rows: the rows of the batch to read, by default all.
        """
        if self._reader is None or self._after is None:
            return self._read(k, rows)
        if self._ahead is not None and self._ahead[:2] == (k, rows):
            future = self._ahead[2]
        else:
            future = self._reader.submit(self._read, k, rows)
        batch = future.result()
        self._ahead = k + 1, rows, self._reader.submit(self._read, k + 1, rows)
        self._after()
        return batch

    def _read(self, k: int, rows: range | None) -> Batch:
        chosen, mirrored = [], []
        position, end = k * self.size, (k + 1) * self.size
        while position < end:
            epoch, start = divmod(position, self.epoch_length)
            stop = min(self.epoch_length, start + end - position)
            chosen.append(self.order.take(epoch, start, stop))
            if self.flips:
                mirrored.append(self.order.mirrored(epoch, start, stop))
            position += stop - start
        wanted = slice(None) if rows is None else slice(rows.start, rows.stop)
        batch = self.data.read(np.concatenate(chosen)[wanted])
        if not self.flips:
            return batch
        flip = torch.from_numpy(np.concatenate(mirrored)[wanted])[:, None, None, None]
        return Batch(torch.where(flip, batch.images.flip(3), batch.images), batch.labels)

"""The order of the data: which images make batch k is a function of (seed, k) alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from calotype.errors import DataError
from calotype.model import Batch
from calotype.rng import coins, fold, permutation


class Readable(Protocol):
    """Images that can be read by their number."""

    def read(self, indices: np.ndarray) -> Batch:
        """The images of int64 `indices` (B,) and their labels."""


class Batches:
    """An endless sequence of shuffled batches, read by position.

    Args:
        data: where images are read from.
        indices: the images to use, int64 (n,).
        size: images per batch.
        seed: of the order.
        flips: mirror each image left to right in half of its appearances.
        labels: int64 (n,), the classes of `indices`; given, every class appears equally often.
    """

    def __init__(
        self,
        data: Readable,
        indices: np.ndarray,
        size: int,
        seed: int,
        flips: bool = False,
        labels: np.ndarray | None = None,
    ) -> None:
        if len(indices) == 0:
            raise DataError("there are no images to make batches of: check what is in the source")
        self.data, self.indices, self.size, self.seed, self.flips = data, indices, size, seed, flips
        self._classes = [] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
        largest = max((len(members) for members in self._classes), default=0)
        self.epoch_length = len(self._classes) * largest or len(indices)
        self._epoch = -1
        self._order = self._mirror = np.empty(0)

    def at(self, k: int, rows: range | None = None) -> Batch:
        """Batch k = 0, 1, 2, ...: images k * size to (k + 1) * size of the endless order.

        Args:
            rows: which of them, by default all; others are not read.
        """
        chosen, mirrored = [], []
        position, end = k * self.size, (k + 1) * self.size
        while position < end:
            epoch, start = divmod(position, self.epoch_length)
            self._enter(epoch)
            stop = min(self.epoch_length, start + end - position)
            chosen.append(self._order[start:stop])
            mirrored.append(self._mirror[start:stop])
            position += stop - start
        wanted = slice(None) if rows is None else slice(rows.start, rows.stop)
        batch = self.data.read(np.concatenate(chosen)[wanted])
        if not self.flips:
            return batch
        flip = torch.from_numpy(np.concatenate(mirrored)[wanted])[:, None, None, None]
        return Batch(torch.where(flip, batch.images.flip(3), batch.images), batch.labels)

    def _enter(self, epoch: int) -> None:
        """Make the order of an epoch, unless it is the one at hand."""
        if epoch == self._epoch:
            return
        self._order = self.indices[self._shuffled(epoch)]
        self._mirror = coins(fold(self.seed, "flip", epoch), self.epoch_length)
        self._epoch = epoch

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = permutation(fold(self.seed, "order", epoch), self.epoch_length)
        if not self._classes:
            return order
        share = self.epoch_length // len(self._classes)
        drawn = []
        for c, members in enumerate(self._classes):  # a small class is gone through several times within an epoch
            rounds = -(-share // len(members))
            orders = [permutation(fold(self.seed, "class", epoch, c, r), len(members)) for r in range(rounds)]
            drawn.append(members[np.concatenate(orders)[:share]])
        return np.concatenate(drawn)[order]

"""The order of pictures in training: a function of seed and epoch, read by position."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calotype.core.rng import coins, fold, permutation
from calotype.errors import DataError

WINDOW = 8_192
"""Pictures that are shuffled among each other where there are too many to shuffle all: encoded, some megabytes."""


class Order(Protocol):
    """An order of pictures, different in each epoch."""

    @property
    def length(self) -> int:
        """The number of pictures of an epoch."""

    def take(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """The indices of the pictures at positions start..stop of an epoch."""

    def mirrored(self, epoch: int, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether each of these pictures is mirrored, if mirroring is on."""


class Shuffled:
    """A uniformly random order of all pictures.

    Args:
        indices: the indices of the pictures, int64 (n,).
        seed: of the order.
        labels: int64 (n,), the classes of `indices`; with labels, every class appears equally often.
    """

    def __init__(self, indices: NDArray[np.int64], seed: int, labels: NDArray[np.int64] | None = None) -> None:
        if len(indices) == 0:
            raise DataError("there are no images to make batches of: check what is in the source")
        self.indices, self.seed = indices, seed
        self._classes = [] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
        largest = max((len(members) for members in self._classes), default=0)
        self.length = len(self._classes) * largest or len(indices)
        self._epoch = -1
        self._order = np.empty(0, np.int64)
        self._mirror = np.empty(0, np.bool_)

    def take(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """As of Order."""
        self._enter(epoch)
        return self._order[start:stop]

    def mirrored(self, epoch: int, start: int, stop: int) -> NDArray[np.bool_]:
        """As of Order."""
        self._enter(epoch)
        return self._mirror[start:stop]

    def _enter(self, epoch: int) -> None:
        """Compute the order of an epoch, unless it is the current one."""
        if epoch == self._epoch:
            return
        self._order = self.indices[self._shuffled(epoch)]
        self._mirror = coins(fold(self.seed, "flip", epoch), self.length)
        self._epoch = epoch

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = permutation(fold(self.seed, "order", epoch), self.length)
        if not self._classes:
            return order
        share = self.length // len(self._classes)
        drawn = []
        for c, members in enumerate(self._classes):  # a small class is gone through several times within an epoch
            rounds = -(-share // len(members))
            orders = [permutation(fold(self.seed, "class", epoch, c, r), len(members)) for r in range(rounds)]
            drawn.append(members[np.concatenate(orders)[:share]])
        return np.concatenate(drawn)[order]


class Windowed:
    """A shuffle for pictures in chunks: chunks in random order, and pictures shuffled within a window of chunks.

    Its memory grows with the number of chunks, not of pictures.

    Args:
        firsts: the index of the first picture of each chunk, int64 (n,).
        counts: the number of its pictures, int64 (n,), 1 or more each.
        seed: of the order.
    """

    def __init__(self, firsts: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> None:
        self.firsts, self.counts, self.seed = firsts, counts, seed
        self.length = int(counts.sum())
        self.together = max(1, round(WINDOW * len(counts) / self.length))  # chunks of a window
        self._epoch = self._at = -1
        self._order = self._ends = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int64)
        self._mirror = np.empty(0, np.bool_)

    def take(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """As of Order."""
        return self._collect(epoch, start, stop, mirror=False)

    def mirrored(self, epoch: int, start: int, stop: int) -> NDArray[np.bool_]:
        """As of Order."""
        return self._collect(epoch, start, stop, mirror=True)

    def _collect(self, epoch: int, start: int, stop: int, mirror: bool) -> NDArray:
        self._enter(epoch)
        parts = []
        while start < stop:
            window = int(np.searchsorted(self._ends, start, side="right"))
            begins = int(self._ends[window - 1]) if window else 0
            self._open(window)
            until = min(stop, int(self._ends[window]))
            parts.append((self._mirror if mirror else self._rows)[start - begins : until - begins])
            start = until
        return np.concatenate(parts)

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._epoch, self._at = epoch, -1
        self._order = permutation(fold(self.seed, "chunks", epoch), len(self.counts))
        sizes = np.add.reduceat(self.counts[self._order], np.arange(0, len(self._order), self.together))
        self._ends = np.cumsum(sizes)  # of the windows

    def _open(self, window: int) -> None:
        """Compute the order of a window, unless it is the current one."""
        if window == self._at:
            return
        chosen = self._order[window * self.together : (window + 1) * self.together]
        rows = np.concatenate([np.arange(self.firsts[c], self.firsts[c] + self.counts[c]) for c in chosen])
        self._rows = rows[permutation(fold(self.seed, "rows", self._epoch, window), len(rows))]
        self._mirror = coins(fold(self.seed, "flips", self._epoch, window), len(rows))
        self._at = window

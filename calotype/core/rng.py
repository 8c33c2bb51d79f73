"""All randomness of calotype: values that are functions of a seed and a position.

No generator lives longer than one draw, so there is no state to store: a resumed run draws what an uninterrupted run
would have drawn, and image i of a seed gets the same noise in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def fold(seed: int, *path: int | str) -> int:
    """Derive a child seed in [0, 2^63). Stable across processes and versions, unlike `hash`."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in (seed, *path))  # numpy's integers too
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's global generator seeded, and restore the generator's state afterwards.

    For library code that takes no generator: the initialisers of `torch.nn`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def permutation(seed: int, n: int) -> np.ndarray:
    """A random order of 0..n-1, int64. Sorts raw Philox values, which numpy keeps the same in every version."""
    return np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")


def resample(seed: int, n: int) -> np.ndarray:
    """A bootstrap sample: n of the numbers 0..n-1 with replacement, int64."""
    return (np.random.Philox(key=seed).random_raw(n) % np.uint64(n)).astype(np.int64)


def coins(seed: int, n: int) -> np.ndarray:
    """n fair coins, bool (n,)."""
    return (np.random.Philox(key=seed).random_raw(n) >> np.uint64(63)).astype(bool)


class Noise:
    """All the randomness one batch may use; row i belongs to image i.

    Successive draws of one `Noise` are independent, and so are the draws of its forks. The k-th draw of a given
    `Noise` is always the same, whichever code draws it.
    """

    def __init__(self, seeds: Sequence[int], total: int, rows: range, device: torch.device) -> None:
        self._seeds, self._total, self._rows, self.device = tuple(seeds), total, rows, device
        self._draws = 0

    @classmethod
    def shared(cls, seed: int, n: int, device: torch.device | str) -> Noise:
        """Noise for training: one stream for a global batch of n images, drawn on the device that uses it."""
        return cls([seed], n, range(n), torch.device(device))

    @classmethod
    def per_image(cls, seed: int, indices: Sequence[int], device: torch.device | str) -> Noise:
        """Noise for sampling: one stream per image, drawn on the CPU and so the same on every device."""
        return cls([fold(seed, i) for i in indices], len(indices), range(len(indices)), torch.device(device))

    @property
    def n(self) -> int:
        """The number of images that this noise is for."""
        return len(self._rows)

    def rows(self, start: int, stop: int) -> Noise:
        """The noise of images start..stop of this batch: what a micro-batch or a process takes as its share."""
        chosen = self._rows[start:stop]
        if len(self._seeds) == 1:  # a shared stream is drawn for the whole batch and cut, so shares agree
            return Noise(self._seeds, self._total, chosen, self.device)
        return Noise(self._seeds[start:stop], len(chosen), range(len(chosen)), self.device)

    def fork(self, name: int | str) -> Noise:
        """An independent noise for the same images. A block given a fork may be run twice and draw the same."""
        return Noise([fold(s, name) for s in self._seeds], self._total, self._rows, self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values, float32 (n, *shape)."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform values in [0, 1), float32 (n, *shape)."""
        return self._draw(torch.rand, shape)

    def spread(self) -> Tensor:
        """Uniform values in [0, 1), float32 (n,), that lie evenly over a shared batch instead of by chance.

        Each is uniform, so means over them are unbiased, and they vary less than those over independent values.
        Streams of single images stay independent.
        Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1.
        """
        if len(self._seeds) > 1:
            return self.uniform()
        whole = Noise(self._seeds, self._total, range(self._total), self.device)
        whole._draws, self._draws = self._draws, self._draws + 1
        first = whole.uniform()[:1]
        places = torch.arange(self._rows.start, self._rows.stop, device=self.device) / self._total
        return (first + places) % 1

    def _draw(self, fn: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        seeds = [fold(s, "draw", self._draws) for s in self._seeds]
        self._draws += 1
        if len(seeds) == 1 and self._total != 1:
            generator = torch.Generator(self.device).manual_seed(seeds[0])
            values = fn((self._total, *shape), generator=generator, device=self.device)
            return values[self._rows.start : self._rows.stop]
        drawn = [fn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(self.device)

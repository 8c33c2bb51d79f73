"""Distances between two sets of images, and how much of one the other covers: functions of features alone.

All take float64 (N, D) features, one row per image, and none depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.rng import fold, permutation

SIZES = 10  # at which the Fréchet distance is measured to extrapolate it
AT_ONCE = 2**22  # distances held at once


class Moments(NamedTuple):
    """Mean and covariance of features."""

    n: int
    mean: Tensor  # float64 (D,)
    covariance: Tensor  # float64 (D, D), unbiased; zero for a single row

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of rows held at once; some of them are centred at a time."""
        found = Streaming()
        for part in features.split(AT_ONCE // 1024):
            found.add(part)
        return found.moments()


@dataclass
class Streaming:
    """Moments of features that come in parts, equal to those of all at once.

    Source: Chan, Golub, LeVeque 1979, eq. 1.5, for the covariance.
    """

    n: int = 0
    mean: Tensor | None = None
    scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """More rows."""
        mean = features.mean(0)
        centred = features - mean
        scatter = centred.T @ centred
        if self.mean is None or self.scatter is None:
            self.n, self.mean, self.scatter = len(features), mean, scatter
            return
        total, apart = self.n + len(features), mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(apart, apart) * (self.n * len(features) / total)
        self.mean = self.mean + apart * (len(features) / total)
        self.n = total

    def moments(self) -> Moments:
        """Of all rows so far."""
        assert self.mean is not None
        assert self.scatter is not None
        return Moments(self.n, self.mean, self.scatter / max(1, self.n - 1))


class Frechet:
    """Fréchet distances to a reference: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

    By eigenvalues of symmetric matrices, so it is defined with fewer images than features, too.
    Source: Heusel et al. 2017, arXiv:1706.08500.
    """

    def __init__(self, reference: Moments) -> None:
        self.reference = reference
        values, vectors = torch.linalg.eigh(reference.covariance)
        self._root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def to(self, other: Moments) -> float:
        """The distance, 0 or more."""
        inner = self._root @ other.covariance @ self._root
        cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
        trace = self.reference.covariance.trace() + other.covariance.trace() - 2 * cross
        return max(0.0, float((self.reference.mean - other.mean).square().sum() + trace))

    def extrapolated(self, features: Tensor, seed: int) -> float:
        """The distance at infinitely many images: the intercept of a line through its values over 1 / N.

        At finite N it is too large by about a constant over N, which differs from model to model.
        Source: Chong & Forsyth 2020, arXiv:1911.07023.
        """
        n = len(features)
        sizes = sorted({max(2, round(n * (k + 1) / SIZES)) for k in range(SIZES // 5 - 1, SIZES)})
        inverse, values = [], []
        for size in sizes:
            for repeat in range(max(1, n // size)):  # smaller sets vary more: more of them, disjoint
                order = permutation(fold(seed, "extrapolate", size), n)[repeat * size : (repeat + 1) * size]
                inverse.append(1 / size)
                values.append(self.to(Moments.of(features[order])))
        x, y = torch.tensor(inverse, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        return float(y.mean() - slope * x.mean())


class Kernel(NamedTuple):
    """A kernel distance and how sure it is."""

    value: float
    standard_error: float


def kernel_distance(x: Tensor, y: Tensor) -> Kernel:
    """KID: the squared maximum mean discrepancy under (x . y / D + 1)^3, unbiased; of as many rows of each.

    The statistic is the mean over i != j of h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), its variance
    4 (n - 2) / (n (n - 1)) var_i mean_j h_ij + 2 / (n (n - 1)) var h_ij, which holds where both sets are alike, too.

    Source: Binkowski et al. 2018, arXiv:1801.01401; Gretton et al. 2012, JMLR 13, lemma 6; Sutherland et al. 2017,
    arXiv:1611.04488, for the variance.
    """
    n, d = min(len(x), len(y)), x.shape[1]
    x, y = x[:n], y[:n]
    sums, squares, total = torch.zeros(n, dtype=torch.float64), 0.0, 0.0
    step = max(1, AT_ONCE // n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        h = _cubic(x[rows] @ x.T, d) + _cubic(y[rows] @ y.T, d) - _cubic(x[rows] @ y.T, d) - _cubic(y[rows] @ x.T, d)
        h[torch.arange(len(h)), torch.arange(start, start + len(h))] = 0
        sums[rows] = h.sum(1)
        squares += float(h.square().sum())
        total += float(h.sum())
    pairs = n * (n - 1)
    value = total / pairs
    first = float((sums / (n - 1)).var())
    second = squares / pairs - value**2
    # The means over j carry noise of their own, second / n, which the last term counts already. What is left may come
    # out below 0 where the sets are alike; the variance is then held at half of the last term.
    first -= second / (n - 1)
    variance = max(4 * (n - 2) * first + 2 * second, second) / pairs
    return Kernel(value, variance**0.5)


def kernel_distance_of_few(x: Tensor, y: Tensor) -> Kernel:
    """KID of few rows x to many rows y, unbiased; its standard error by leaving out each of x in turn, as y is many."""
    n, m, d = len(x), len(y), x.shape[1]
    of_y = 0.0
    step = max(1, AT_ONCE // m)
    for start in range(0, m, step):
        of_y += float(_cubic(y[start : start + step] @ y.T, d).sum())
    of_y = (of_y - float(_cubic(y.square().sum(1), d).sum())) / (m * (m - 1))
    to_y = _cubic(x @ y.T, d).mean(1)  # (N,)
    own = _cubic(x @ x.T, d).fill_diagonal_(0)

    def value(among: float, to: float, count: int) -> float:
        return among / (count * (count - 1)) + of_y - 2 * to / count

    whole, rows = float(own.sum()), own.sum(1)
    without = torch.tensor([value(whole - 2 * float(rows[i]), float(to_y.sum() - to_y[i]), n - 1) for i in range(n)])
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return Kernel(value(whole, float(to_y.sum()), n), float(error))


def _cubic(products: Tensor, d: int) -> Tensor:
    return (products / d + 1) ** 3


class Manifolds(NamedTuple):
    """Per image: what precision, recall, density and coverage are the means of."""

    precision: Tensor  # float64 (N,), of each sample: 1 where it lies within reach of a real image
    recall: Tensor  # float64 (M,), of each real image: 1 where it lies within reach of a sample
    density: Tensor  # float64 (N,), of each sample: in reach of how many real images, over k
    coverage: Tensor  # float64 (M,), of each real image: 1 where a sample lies within its reach


def manifolds(real: Tensor, samples: Tensor, k: int) -> Manifolds:
    """Improved precision and recall, density and coverage; an image reaches as far as its k-th neighbour of its kind.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    reach_real, reach_samples = reach(real, k), reach(samples, k)
    within = torch.zeros(len(samples), dtype=torch.float64)
    recall = torch.zeros(len(real), dtype=torch.float64)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for rows, distances in _distances(real, samples):
        within += (distances < reach_real[rows, None]).double().sum(0)
        recall[rows] = (distances < reach_samples).any(1).double()
        nearest[rows] = distances.amin(1)
    return Manifolds((within > 0).double(), recall, within / k, (nearest < reach_real).double())


def reach(features: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th nearest other row: (N,)."""
    found = torch.empty(len(features), dtype=features.dtype)
    for rows, distances in _distances(features, features):
        distances[torch.arange(len(distances)), torch.arange(rows.start, rows.start + len(distances))] = -1  # itself
        found[rows] = distances.kthvalue(k + 1, 1).values
    return found


def nearest(queries: Tensor, among: Tensor, but: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distance and place of the nearest row of `among` for each query: (N,), int64 (N,).

    Args:
        queries: (N, D).
        among: (M, D).
        but: int64 (N,), the row of `among` that each query passes over, such as itself.
    """
    distance = torch.empty(len(queries), dtype=queries.dtype)
    place = torch.empty(len(queries), dtype=torch.int64)
    for rows, relative in _relative(queries, among):
        if but is not None:
            relative[torch.arange(len(relative)), but[rows]] = torch.inf
        least, place[rows] = relative.min(1)
        distance[rows] = (least + queries[rows].square().sum(1)).clamp_(min=0).sqrt_()
    return distance, place


def _distances(x: Tensor, y: Tensor) -> Iterable[tuple[slice, Tensor]]:
    """Distances of some rows of x at a time to all rows of y."""
    for rows, relative in _relative(x, y):
        yield rows, relative.add_(x[rows].square().sum(1)[:, None]).clamp_(min=0).sqrt_()


def _relative(x: Tensor, y: Tensor) -> Iterable[tuple[slice, Tensor]]:
    """Squared distances of some rows of x at a time to all rows of y, less the square of the row: y . y - 2 x . y.

    What is given may be written to, and is gone with the next.
    """
    y_squared = y.square().sum(1)
    step = min(len(x), max(1, AT_ONCE // len(y)))
    held = torch.empty(step, len(y), dtype=x.dtype)  # memory that is new costs as much as the arithmetic
    for start in range(0, len(x), step):
        rows = slice(start, min(len(x), start + step))
        yield rows, torch.addmm(y_squared, x[rows], y.T, alpha=-2, out=held[: rows.stop - start])

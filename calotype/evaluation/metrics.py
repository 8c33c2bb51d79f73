"""Distances between two sets of images, and coverage of one by the other: functions of features alone.

All take float64 (N, D) features, one row per image. None depends on the order of the rows: subsets and parts are
chosen in an order that is derived from the rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.core.rng import Noise, fold

SIZES = 10  # at which the Fréchet distance is measured to extrapolate it
AT_ONCE = 2**22  # distances held at once
NEIGHBOURS = 4  # times k of the nearest are looked at for those outside a part


def shuffled(features: Tensor, seed: int) -> Tensor:
    """A random permutation of rows (N, D) that does not depend on their order: int64 (N,).

    They are sorted by a hash of two random projections, so that without some of the rows the others keep their order.
    The projections are rounded, since the scale of features may differ in the last bits.
    """
    directions = Noise.shared(fold(seed, "shuffled"), 2 * features.shape[1], "cpu").normal().to(features)
    mantissas, exponents = torch.frexp(features @ directions.view(-1, 2))
    bits = (mantissas * 2**24).round().long() + (exponents.long() << 26)  # (N, 2)
    return ((bits[:, 0] * _ODD) ^ bits[:, 1]).mul(_ODD).argsort()


_ODD = 0x1E3779B97F4A7C15  # the high bits of a product with it depend on all bits


class Moments(NamedTuple):
    """Mean and covariance of features."""

    n: int
    mean: Tensor  # float64 (D,)
    covariance: Tensor  # float64 (D, D), unbiased; zero for a single row

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of rows held in memory; rows are centred in batches."""
        found = Streaming()
        for part in features.split(AT_ONCE // 1024):
            found.add(part)
        return found.moments()


@dataclass
class Streaming:
    """Moments of features accumulated in parts, equal to those of all at once.

    Source: Chan, Golub, LeVeque 1979, eq. 1.5, for the covariance.
    """

    n: int = 0
    mean: Tensor | None = None
    scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add rows (n, D)."""
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
        """The moments of all rows added so far."""
        assert self.mean is not None
        assert self.scatter is not None
        return Moments(self.n, self.mean, self.scatter / max(1, self.n - 1))


class Frechet:
    """Fréchet distances to a reference: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

    Computed by eigenvalues of symmetric matrices, so it is defined with fewer images than features too.
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
            order = shuffled(features, fold(seed, "extrapolate", size))
            for repeat in range(max(1, n // size)):  # smaller sets vary more: more of them, disjoint
                inverse.append(1 / size)
                values.append(self.to(Moments.of(features[order[repeat * size : (repeat + 1) * size]])))
        x, y = torch.tensor(inverse, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        return float(y.mean() - slope * x.mean())


class Kernel(NamedTuple):
    """A kernel distance and its standard error."""

    value: float
    standard_error: float


class Pairs(NamedTuple):
    """Statistics of a kernel over all pairs of two sets, or over all distinct pairs of one set."""

    mean: float
    rows: Tensor  # mean of each row's pairs, float64 (N,)
    columns: Tensor
    interaction: float  # variance of the values that is not of rows or columns


def kernel_distance(x: Tensor, y: Tensor, of_y: Pairs | None = None) -> Kernel:
    """KID: the squared maximum mean discrepancy under (x . y / D + 1)^3, unbiased, of N rows and M rows.

    With g_i the mean of k(x_i, x_j) over the other j, less that of k(x_i, y_j), likewise for y, and s_xx, s_yy and s_xy
    the variances of k that are not of its arguments alone, the variance is

        4 var g_x / N + 4 var g_y / M + 2 s_xx / (N (N - 1)) + 2 s_yy / (M (M - 1)) + 4 s_xy / (N M),

    which holds where both sets are alike, too. What s adds to the variances of g, which are of means, is taken off.

    Args:
        of_y: pairs(y, y), if already computed.

    Source: Binkowski et al. 2018, arXiv:1801.01401; Gretton et al. 2012, JMLR 13, lemma 6; Hoeffding 1948 for the
    variance.
    """
    n, m = len(x), len(y)
    of_x, of_y, between = pairs(x), of_y or pairs(y), pairs(x, y)
    value = of_x.mean + of_y.mean - 2 * between.mean
    first = 4 * float((of_x.rows - between.rows).var()) / n + 4 * float((of_y.rows - between.columns).var()) / m
    in_x, in_y = of_x.interaction / (n * (n - 1)), of_y.interaction / (m * (m - 1))
    crossed = between.interaction / (n * m)
    first -= 4 * (in_x + in_y + 2 * crossed)
    second = 2 * in_x + 2 * in_y + 4 * crossed
    # The first may come out below 0 where the sets are alike; the variance is then held at half of the second.
    return Kernel(value, max(first + second, second / 2) ** 0.5)


def pairs(x: Tensor, y: Tensor | None = None) -> Pairs:
    """Statistics of the kernel of rows x (N, D) with rows y (M, D), or with the other rows of x."""
    other = x if y is None else y
    n, m, d = len(x), len(other), x.shape[1]
    rows, columns, squares = torch.zeros(n, dtype=x.dtype), torch.zeros(m, dtype=x.dtype), 0.0
    step = max(1, AT_ONCE // m)
    for start in range(0, n, step):
        values = _cubic(x[start : start + step] @ other.T, d)
        if y is None:
            values[torch.arange(len(values)), torch.arange(start, start + len(values))] = 0
        rows[start : start + step] = values.sum(1)
        columns += values.sum(0)
        squares += float(values.square().sum())
    per_row, per_column = (n - 1, n - 1) if y is None else (m, n)
    rows, columns = rows / per_row, columns / per_column
    mean, count = float(rows.mean()), n * per_row
    # The variance of the values is that of rows, of columns, and the rest, whose share in the first two is taken off.
    rest = squares / count - mean**2 - float(rows.var(correction=0)) - float(columns.var(correction=0))
    return Pairs(mean, rows, columns, max(0.0, rest / max(1 - 1 / per_row - 1 / per_column, 0.1)))


def _cubic(products: Tensor, d: int) -> Tensor:
    return (products / d + 1) ** 3


class Manifolds(NamedTuple):
    """Improved precision and recall, density and coverage, float64, of two sets or with each of parts left out."""

    precision: Tensor  # share of samples within reach of a real image
    recall: Tensor  # share of real images within reach of a sample
    density: Tensor  # in reach of how many real images a sample is, over k, in the mean
    coverage: Tensor  # share of real images within whose reach a sample lies


class Spread(NamedTuple):
    """Values of two sets, and of the sets with each of G parts left out in turn."""

    whole: Manifolds  # of ()
    without_real: Manifolds  # of (G,)
    without_samples: Manifolds  # of (G,)


def manifolds(real: Tensor, samples: Tensor, k: int, parts: int, seed: int = 0) -> Spread:
    """Precision, recall, density, coverage; the radius of an image is the distance to its k-th neighbour in its set.

    Args:
        real: (M, D).
        samples: (N, D).
        parts: into which both sets are divided at random, G.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    of_real, of_samples = _part_of(real, parts, seed), _part_of(samples, parts, seed)
    reach_real, reach_samples = reach(real, k, of_real, parts), reach(samples, k, of_samples, parts)  # (1 + G, .)
    kept_real, kept_samples = (
        torch.stack([of != part for part in range(-1, parts)]) for of in (of_real, of_samples)
    )  # (1 + G, .), the first of all
    within = torch.zeros(1 + parts, len(samples), dtype=torch.float64)
    recalled = torch.zeros(1 + parts, len(real), dtype=torch.bool)
    nearest = torch.full((1 + parts, len(real)), torch.inf, dtype=real.dtype)
    for rows, distances in _distances(real, samples):
        for g in range(1 + parts):
            inside = distances[kept_real[g, rows]] < reach_real[g, rows][kept_real[g, rows], None]
            within[g] += inside.sum(0)
            few = distances[:, kept_samples[g]]
            recalled[g, rows] = (few < reach_samples[g, kept_samples[g]]).any(1)
            nearest[g, rows] = few.amin(1)
    covered = nearest < reach_real[0]  # with each part of the samples left out
    covered_of_kept = nearest[0] < reach_real  # of the real images
    share = [kept_real.double(), kept_samples.double()]
    real_share, sample_share = (kept / kept.sum(1, keepdim=True) for kept in share)
    reached = (within > 0).double()
    without_real = Manifolds(
        reached.mean(1),
        real_share @ recalled[0].double(),
        within.mean(1) / k,
        (real_share * covered_of_kept).sum(1),
    )
    without_samples = Manifolds(
        sample_share @ reached[0], recalled.double().mean(1), sample_share @ within[0] / k, covered.double().mean(1)
    )
    return Spread(
        Manifolds(*(values[0] for values in without_real)),
        Manifolds(*(values[1:] for values in without_real)),
        Manifolds(*(values[1:] for values in without_samples)),
    )


def _part_of(features: Tensor, parts: int, seed: int) -> Tensor:
    """Which part each row is in, of parts of equal size: int64 (N,)."""
    part = torch.empty(len(features), dtype=torch.int64)
    part[shuffled(features, seed)] = torch.arange(len(features)) % parts
    return part


def reach(features: Tensor, k: int, part: Tensor, parts: int) -> Tensor:
    """The distance of each row to its k-th nearest other row, of all and of those outside each part: (1 + G, N).

    If fewer than k rows are left, the distance is that among all rows.
    """
    found = torch.empty(1 + parts, len(features), dtype=features.dtype)
    for rows, distances in _distances(features, features):
        distances[torch.arange(len(distances)), torch.arange(rows.start, rows.start + len(distances))] = torch.inf
        found[0, rows] = distances.kthvalue(k, 1).values
        least = distances.topk(min(NEIGHBOURS * k, len(features)), 1, largest=False)
        for g in range(parts):
            left = least.values.masked_fill(part[least.indices] == g, torch.inf).kthvalue(k, 1).values
            lost = left.isinf()  # so many of the nearest are of one part
            if lost.any():
                left[lost] = distances[lost].masked_fill(part == g, torch.inf).kthvalue(k, 1).values
            found[1 + g, rows] = torch.where(left.isinf(), found[0, rows], left)
    return found


def nearest(queries: Tensor, among: Tensor, but: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distance and index of the nearest row of `among` for each query: (N,), int64 (N,).

    Args:
        queries: (N, D).
        among: (M, D).
        but: int64 (N,), the row of `among` that each query excludes, such as itself.
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

    The yielded buffer may be modified; the next iteration overwrites it.
    """
    y_squared = y.square().sum(1)
    step = min(len(x), max(1, AT_ONCE // len(y)))
    held = torch.empty(step, len(y), dtype=x.dtype)  # memory that is new costs as much as the arithmetic
    for start in range(0, len(x), step):
        rows = slice(start, min(len(x), start + step))
        yield rows, torch.addmm(y_squared, x[rows], y.T, alpha=-2, out=held[: rows.stop - start])

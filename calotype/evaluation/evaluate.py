"""Metrics with confidence intervals from features, computed alike for every generator and for the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.core.rng import fold, resample
from calotype.evaluation.metrics import (
    Frechet,
    Kernel,
    Moments,
    Pairs,
    Spread,
    kernel_distance,
    manifolds,
    pairs,
    shuffled,
)
from calotype.evaluation.report import Value

K = 5  # neighbours of precision, recall, density and coverage
REFERENCE = 10_000  # training images that sets are compared with, at most
BOOTSTRAP = 100  # resampled sets
GROUPS = 10  # left out in turn for the interval of the extrapolated distance
PARTS = 20  # left out in turn, of the images and of the reference, for those of precision, recall, density and coverage
NORMAL = 1.96  # standard errors of a 95 % interval


class Estimate(NamedTuple):
    """A value of one set of images."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference set, standardised: each feature with mean 0 and standard deviation 1."""

    features: Tensor  # float64 (M, D), in these units
    mean: Tensor
    deviation: Tensor
    frechet: Frechet

    @classmethod
    def of(cls, features: Tensor, standardised: bool = True) -> Reference:
        """From features of the reference images, float64 (M, D); not `standardised`, the units are those they have."""
        if standardised:
            mean, deviation = features.mean(0), features.std(0, correction=0)
            deviation = torch.where(deviation > 0, deviation, 1.0)  # a feature that never changes
        else:
            mean, deviation = torch.zeros_like(features[0]), torch.ones_like(features[0])
        scaled = (features - mean) / deviation
        return cls(scaled, mean, deviation, Frechet(Moments.of(scaled)))

    def scaled(self, features: Tensor) -> Tensor:
        """Other features, standardised like the reference."""
        return (features - self.mean) / self.deviation


def frechet(reference: Reference, features: Tensor, seed: int) -> Estimate:
    """The Fréchet distance; its spread is that of resampled sets, without their bias."""
    features = features[shuffled(features, seed)]
    sets = (features[resample(fold(seed, "bootstrap", k), len(features))] for k in range(BOOTSTRAP))
    values = torch.tensor([reference.frechet.to(Moments.of(some)) for some in sets])
    return Estimate(reference.frechet.to(Moments.of(features)), float(values.std()))


def extrapolated(reference: Reference, features: Tensor, seed: int) -> Estimate:
    """The Fréchet distance at infinitely many images; its spread is that of leaving out a tenth of them in turn."""
    value = reference.frechet.extrapolated(features, seed)
    features = features[shuffled(features, seed)]
    group = torch.arange(len(features)) % GROUPS
    values = torch.tensor([reference.frechet.extrapolated(features[group != g], seed) for g in range(GROUPS)])
    return Estimate(value, float(((GROUPS - 1) / GROUPS * (values - values.mean()).square().sum()).sqrt()))


def kernel(reference: Reference, features: Tensor, seed: int) -> Estimate:
    """The kernel distance."""
    found: Kernel = kernel_distance(features, reference.features, _pairs(reference))
    return Estimate(found.value, found.standard_error)


@lru_cache(maxsize=2)  # the same for all sets
def _pairs(reference: Reference) -> Pairs:
    return pairs(reference.features)


@lru_cache(maxsize=2)  # four metrics of each seed's set come one after the other
def _manifolds(reference: Reference, features: Tensor, seed: int) -> Spread:
    chosen = shuffled(reference.features, seed)[: len(features)]
    return manifolds(reference.features[chosen], features, K, PARTS, seed)


def _manifold(name: str) -> Callable[[Reference, Tensor, int], Estimate]:
    def estimate(reference: Reference, features: Tensor, seed: int) -> Estimate:
        found = _manifolds(reference, features, seed)
        value, variance = float(getattr(found.whole, name)), 0.0
        for without in (getattr(found.without_real, name), getattr(found.without_samples, name)):
            variance += (PARTS - 1) / PARTS * float((without - without.mean()).square().sum())
        if name != "density":  # a share of none or all is not without error: at least as of 2 more on either side
            n = len(features)
            share = (n * value + 2) / (n + 4)
            variance = max(variance, share * (1 - share) / n)
        return Estimate(value, math.sqrt(variance))

    return estimate


class Metric(NamedTuple):
    """A row of the table of metrics."""

    estimate: Callable[[Reference, Tensor, int], Estimate]
    needs: int  # images; with fewer it is not reported
    lower_is_better: bool
    told: str  # what it says
    least: float = -math.inf  # that it can be, and so its interval
    most: float = math.inf


METRICS: Mapping[str, Metric] = {
    "FD": Metric(frechet, 50, True, "Fréchet distance: how far the set is from the training images as a whole", 0.0),
    "FD∞": Metric(extrapolated, 200, True, "the same without the excess that few images bring"),
    "KID": Metric(kernel, 20, True, "kernel distance: likewise, and right with few images; about 0 for real ones"),
    "precision": Metric(_manifold("precision"), 50, False, "share of images that look like real ones", 0.0, 1.0),
    "recall": Metric(_manifold("recall"), 50, False, "share of real images that have their like in the set", 0.0, 1.0),
    "density": Metric(_manifold("density"), 50, False, "how much like real ones; about 1 for real ones", 0.0),
    "coverage": Metric(_manifold("coverage"), 50, False, "share of real images with one of the set close by", 0.0, 1.0),
}
DISTANCES = ("FD", "FD∞", "KID")  # named with the feature network, since their size is a matter of its features


PAPERS = "Inception"  # the network that FID is defined on


def titled(name: str, network: str) -> str:
    """A metric with its feature network: FD-EffLite0, or FID for Inception with the published weights."""
    if name not in DISTANCES:
        return name
    return name.replace("FD", "FID") if network == PAPERS and "FD" in name else f"{name}-{network}"


def metric_of(title: str) -> str:
    """A metric without the feature network: FD of FD-EffLite0."""
    name = title.partition("-")[0].replace("FID", "FD")
    return name if name in DISTANCES else title


def measured(name: str, of: str, sets: Sequence[Tensor], reference: Reference, network: str, seed: int = 0) -> Value:
    """One metric over sets that differ in the seed alone: their mean and its 95 % interval.

    Args:
        name: of METRICS.
        of: samples, or the name of a control.
        sets: features per seed, float64 (N, D) in the units of the reference.
        network: the name of the feature network.
        seed: of resampling.
    """
    metric, n = METRICS[name], min(map(len, sets))
    title = titled(name, network)
    available = min(n, len(reference.features))
    if available < metric.needs:
        return Value(title, of, None, None, None, n, f"needs {metric.needs} images, there are {available}")
    found = [metric.estimate(reference, features, seed) for features in sets]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    within = float(torch.tensor([f.standard_error**2 for f in found], dtype=torch.float64).mean())
    between = float(values.var()) if len(found) > 1 else 0.0
    error = math.sqrt(max(within, between) / len(found))
    value, d = float(values.mean()), reference.features.shape[1]
    note = f"fewer images than the {d} features" if name == "FD" and n <= d else ""
    low, high = max(metric.least, value - NORMAL * error), min(metric.most, value + NORMAL * error)
    return Value(title, of, value, low, high, n, note)


def share(name: str, of: str, value: float, n: int) -> Value:
    """A share of n images with its 95 % interval. Source: Wilson 1927."""
    z = NORMAL**2
    middle = (value + z / (2 * n)) / (1 + z / n)
    half = NORMAL * (value * (1 - value) / n + z / (4 * n * n)) ** 0.5 / (1 + z / n)
    return Value(name, of, value, max(0.0, middle - half), min(1.0, middle + half), n)

"""Class coverage: the classes that samples reach, and how evenly, by the classifier of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from calotype.core.rng import fold, resample
from calotype.evaluation.evaluate import BOOTSTRAP, NORMAL, share
from calotype.evaluation.report import Value

REACHED = 0.1  # of its share in the training images: a class with fewer of the samples is not counted as reached

TOLD: Mapping[str, tuple[str, str]] = {
    "modes": ("classes that the set reaches, by at least a tenth of their share in the training images", "higher"),
    "class divergence": ("how far its classes are out of proportion: Kullback-Leibler divergence, in nats", "lower"),
    "as asked": ("share of images in which a classifier sees the class that was asked for", "higher"),
}


def shares(classes: Tensor, count: int) -> Tensor:
    """How often each of `count` classes occurs: float64 (count,), summing to 1."""
    return torch.bincount(classes, minlength=count).double() / len(classes)


def reached(found: Tensor, wanted: Tensor) -> float:
    """The number of classes reached, among those with a positive wanted share."""
    return float(((wanted > 0) & (found > 0) & (found >= REACHED * wanted)).sum())


def divergence(found: Tensor, wanted: Tensor) -> float:
    """KL(found || wanted) of shares, in nats, without the classes whose wanted share is 0."""
    both = (found > 0) & (wanted > 0)
    return float((found[both] * (found[both] / wanted[both]).log()).sum())


def modes(of: str, sets: Sequence[Tensor], wanted: Tensor, asked: Tensor | None, seed: int) -> list[Value]:
    """Class coverage of sets that differ in the seed alone.

    Args:
        of: samples, or the name of a control.
        sets: the classes seen, int64 (N,) per seed.
        wanted: shares of the classes among the training images.
        asked: int64 (N,), the requested classes; None if none were requested.
        seed: of resampling.
    """
    found = []
    for name, measure in (("modes", reached), ("class divergence", divergence)):
        value = sum(measure(shares(classes, len(wanted)), wanted) for classes in sets) / len(sets)
        half = NORMAL * _spread(sets, wanted, measure, fold(seed, name, of))
        most = float((wanted > 0).sum()) if name == "modes" else float("inf")
        found.append(Value(name, of, value, max(0.0, value - half), min(most, value + half), len(sets[0])))
    if asked is not None:
        right = torch.cat([classes == asked for classes in sets])
        found.append(share("as asked", of, float(right.double().mean()), len(right)))
    return found


def _spread(sets: Sequence[Tensor], wanted: Tensor, measure: Callable[[Tensor, Tensor], float], seed: int) -> float:
    """The standard error of a mean over sets, by resampling their images."""
    values = torch.tensor(
        [
            sum(
                measure(shares(classes[resample(fold(seed, k, s), len(classes))], len(wanted)), wanted)
                for s, classes in enumerate(sets)
            )
            / len(sets)
            for k in range(BOOTSTRAP)
        ]
    )
    return float(values.std())

"""Memorisation: distances from samples to training images, compared with those of held-out images.

A sample is *close* if it is nearer to a training image than all but one in a hundred held-out images are. About one
sample in a hundred of a model that does not copy is close: this is the mean over sets of held-out images of any size;
with 50 of them, the share in one set typically deviates from that mean by as much as the mean. The control is the
held-out images that were not used to find that distance. Distances are measured between features and between pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.evaluation.evaluate import share
from calotype.evaluation.metrics import nearest, shuffled
from calotype.evaluation.report import Value

CLOSEST = 0.01  # of held-out images, whose distance is called close
# Share of close samples from which a model is said to copy, if its interval lies above: held-out images have 0.01, and
# good models of data with much that looks alike, such as digits, come to several times that.
FLAGGED = 0.1
BY_CHANCE = 0.001  # how often the distance that is called close may be so far off that it alone makes a share look high
SUSPECTS = 16
FEWEST_TO_COMPARE = 50  # images, to say how near is near
TAIL = 10  # of the least distances, from which smaller ones are extrapolated
APART = 2_000  # training images that say it where there are fewer held-out ones, at most
PIXELS = 32 * 32  # positions of the images whose pixels are compared; larger ones are averaged down


class Near(NamedTuple):
    """The nearest training image of each of N images."""

    distance: Tensor  # float (N,)
    place: Tensor  # int64 (N,), among the training images


def pixels(images: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as rows of float32 in 0..1, large ones averaged down."""
    values = images.float() / 255
    height, width = images.shape[2:]
    if height * width > PIXELS:
        shrink = (PIXELS / (height * width)) ** 0.5
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        values = F.interpolate(values, size, mode="area")
    return values.flatten(1)


def near(rows: Tensor, training: Tensor) -> Near:
    """The nearest training rows of rows, (N, D) and (M, D)."""
    return Near(*nearest(rows, training))


def authentic(found: Near, training: Tensor) -> float:
    """The share of images farther from their nearest training image than that is from the next one.

    Source: Alaa et al. 2022, arXiv:2102.08921, section 3.3.
    """
    places, where = torch.unique(found.place, return_inverse=True)
    return float((found.distance > _to_others(training, places)[where]).double().mean())


def _to_others(training: Tensor, places: Tensor) -> Tensor:
    """The distance from each of some training rows to its nearest other training row: (len(places),)."""
    return nearest(training[places], training, but=places)[0]


def apart(training: Tensor, n: int, seed: int) -> Tensor:
    """The distances from n training rows, or all, to the nearest other one, as a reference without copies."""
    return _to_others(training, shuffled(training, seed)[:n])


def limit(of_held_out: Tensor) -> float:
    """The distance below which an image is close, from those of N held-out images (N,): a share CLOSEST is below it.

    Below the i-th least of N distances lie i / (N + 1) of others in the mean. Where i = (N + 1) CLOSEST is 1 or more,
    the distance is interpolated. Below the least one, so for N < 99, it is extrapolated by the power of the distance
    that few images of a space of m dimensions follow, P(d) ~ d^m, with the likeliest m of the nearest tenth of the
    images, or of 10.

    Source: Hill 1975, Annals of Statistics 3, 1163, for m.
    """
    ordered = of_held_out.double().sort().values
    n = len(ordered)
    rank = CLOSEST * (n + 1)
    if rank >= 1:
        below = int(rank)
        return float(torch.lerp(ordered[below - 1], ordered[min(below, n - 1)], rank - below))
    tail = ordered[: min(n, max(TAIL, n // 10) + 1)]
    spread = float((tail[-1] / tail[:-1]).log().mean()) if tail[0] > 0 else 0.0  # 1 / m
    return float(ordered[0]) * rank**spread


def beyond_chance(references: int) -> float:
    """The share of close images above which a model is reported to copy, if N distances defined close.

    The distance is at most the least of the N. Images that are no copies come closer than that with a probability that
    is itself drawn by chance, P(it is above s) = (1 - s)^N: of few distances, a share of several tenths says nothing.
    """
    return max(FLAGGED, 1 - BY_CHANCE ** (1 / max(1, references)))


def close(found: Near, closest: float) -> float:
    """The share of images that are close."""
    return float((found.distance <= closest).double().mean())


def suspects(found: Near) -> Tensor:
    """The images nearest to training images, the most suspicious first: int64 (16,) or fewer."""
    return found.distance.argsort()[:SUSPECTS]


def near_duplicates(rows: Tensor, of_real: Tensor) -> float:
    """The share of images nearer to another of their set than all but one in a hundred real images are.

    Args:
        rows: of the images, (N, D).
        of_real: rows of the same number of real images.
    """
    own, _ = nearest(rows, rows, but=torch.arange(len(rows)))
    real, _ = nearest(of_real, of_real, but=torch.arange(len(of_real)))
    return float((own <= limit(real)).double().mean())


class Space(NamedTuple):
    """Rows of the sets in one space, in which distances are taken."""

    samples: Sequence[Tensor]  # per seed, float32 (N, D)
    held_out: Tensor
    copies: Tensor  # training images, as a model would give that copies
    training: Tensor  # all of them
    authentic: bool  # whether to say how many are authentic, which takes as long again


class Finding(NamedTuple):
    """The result of a search for copies in one space."""

    values: Sequence[Value]
    share: float  # of the samples that are close
    flagged: bool
    near: Near  # of the first seed's samples


def examined(space: Space, name: str, seed: int) -> Finding:
    """Look for copies among samples, held-out images and training images, in the space of that name.

    Half of the held-out images define close, the other half is the control. If a half is too small, the distances
    between training images are used as well.
    """
    half, held_out = len(space.held_out) // 2, space.held_out[shuffled(space.held_out, seed)]
    if half < FEWEST_TO_COMPARE:
        distances, others = apart(space.training, APART, seed), held_out
        references = len(distances) // 2  # two images may be the nearest of each other
    else:
        distances, others = near(held_out[:half], space.training).distance, held_out[half:]
        references = half
    closest = limit(distances)
    found = {
        "samples": [near(rows, space.training) for rows in space.samples],
        "held_out": [near(others, space.training)],
        "train": [near(space.copies, space.training)],
    }
    values = []
    for of, sets in found.items():
        n = sum(len(part.distance) for part in sets)
        values.append(share(f"close in {name}", of, sum(close(part, closest) for part in sets) / len(sets), n))
        if space.authentic:
            shares = [authentic(part, space.training) for part in sets]
            values.append(share(f"authentic in {name}", of, sum(shares) / len(sets), n))
    low, middle = values[0].low, values[0].value
    assert low is not None
    assert middle is not None
    return Finding(values, middle, low > beyond_chance(references), found["samples"][0])


def repeated(sets: Mapping[str, Sequence[Tensor]], real: Tensor) -> list[Value]:
    """The number of images nearer to another of their set than all but one in a hundred real images are."""
    found, name = [], "near-duplicates"
    for of, same in sets.items():
        n = min(len(real), *map(len, same))
        if n < FEWEST_TO_COMPARE:
            note = f"needs {FEWEST_TO_COMPARE} images, there are {n}"
            found.append(Value(name, of, None, None, None, n, note))
            continue
        some = real[shuffled(real, 0)[:n]]
        shares = [near_duplicates(features[shuffled(features, 0)[:n]], some) for features in same]
        found.append(share(name, of, sum(shares) / len(shares), n * len(shares)))
    return found

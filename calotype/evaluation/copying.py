"""Are these my training images? Distances of samples to training images, beside those of images not trained on.

A sample is *close* where it is nearer to a training image than all but one in a hundred held-out images are. Of a model
that does not copy about one sample in a hundred is; held-out images that were not used to find that distance are the
control. Distances are taken between features, and between pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.evaluation.metrics import nearest
from calotype.rng import fold, permutation

CLOSEST = 0.01  # of held-out images, whose distance is called close
# Share of close samples from which a model is said to copy, if its interval lies above: held-out images have 0.01, and
# good models of data with much that looks alike, such as digits, come to several times that.
FLAGGED = 0.1
SUSPECTS = 16
PIXELS = 32 * 32  # positions of the images whose pixels are compared; larger ones are averaged down


class Near(NamedTuple):
    """The nearest training image of each of N images."""

    distance: Tensor  # float (N,)
    place: Tensor  # int64 (N,), among the training images
    authentic: Tensor  # bool (N,): farther from it than that is from the next training image


class Close(NamedTuple):
    """How many samples are close to a training image, in one space."""

    share: float
    authentic: float  # share; about a half of images of the same distribution


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
    distance, place = nearest(rows, training)
    found, where = torch.unique(place, return_inverse=True)
    apart = _to_others(training, found)[where]
    return Near(distance, place, distance > apart)


def _to_others(training: Tensor, places: Tensor) -> Tensor:
    """The distance of some training rows to the nearest other one: (len(places),)."""
    return nearest(training[places], training, but=places)[0]


def apart(training: Tensor, n: int, seed: int) -> Tensor:
    """The distances of n training rows, or of all, to the nearest other one: of images that are not copies."""
    chosen = permutation(fold(seed, "apart"), len(training))[:n]
    return _to_others(training, torch.from_numpy(chosen))


def limit(of_held_out: Tensor) -> float:
    """The distance that is called close, from those of held-out images: (N,)."""
    return float(of_held_out.double().quantile(CLOSEST))


def close(found: Near, closest: float) -> Close:
    """How many images are close."""
    return Close(float((found.distance <= closest).double().mean()), float(found.authentic.double().mean()))


def suspects(found: Near) -> Tensor:
    """The images nearest to training images, the most suspicious first: int64 (16,) or fewer."""
    return found.distance.argsort()[:SUSPECTS]


def near_duplicates(rows: Tensor, of_real: Tensor) -> float:
    """The share of images that are nearer to another one than all but one in a hundred of as many real images are.

    Args:
        rows: of the images, (N, D).
        of_real: of as many real images.
    """
    own, _ = nearest(rows, rows, but=torch.arange(len(rows)))
    real, _ = nearest(of_real, of_real, but=torch.arange(len(of_real)))
    return float((own <= limit(real)).double().mean())

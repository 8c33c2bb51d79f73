"""Sample quality over training, from the few preview images of a run at each stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from calotype.evaluation.evaluate import NORMAL, Reference, titled
from calotype.evaluation.features import FeatureNetwork
from calotype.evaluation.metrics import kernel_distance
from calotype.evaluation.report import Value

FEWEST = 4  # images of a stage
AMONG = 2_000  # reference images


class Course(NamedTuple):
    """The quality at a stage of training."""

    images_seen: int
    images: Tensor  # uint8 (N, C, H, W), of the same seeds at every stage


def course(stages: Sequence[Course], network: FeatureNetwork, reference: Reference) -> tuple[Value, ...]:
    """The kernel distance of each stage, unbiased with few images; `of` is the number of images seen by then."""
    found = []
    for images_seen, images in stages:
        if len(images) < FEWEST:
            continue
        value, error = kernel_distance(reference.scaled(network.features(images)), reference.features[:AMONG])
        low, high = value - NORMAL * error, value + NORMAL * error
        found.append(Value(titled("KID", network.name), str(images_seen), value, low, high, len(images)))
    return tuple(found)

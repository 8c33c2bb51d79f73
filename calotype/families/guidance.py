"""Classifier-free guidance, the part common to families: label dropout in training, and checks of the scale.

A model that has seen a share of its images without their class knows images in general as well. Guidance exaggerates
what the class adds to that,

    D = D_none + weight (D_class - D_none),

D being what the family's network says: of the clean image, or logits of the next pixel.

Source: Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from calotype.core.rng import Noise
from calotype.errors import ConfigError

AUTO = -1.0  # the family's own weight, where a model can be guided


def hidden(labels: Tensor | None, share: float, none: int, noise: Noise) -> Tensor | None:
    """The labels (B,), about a share of them replaced by that of no class."""
    if labels is None or share == 0:
        return labels
    return torch.where(noise.fork("labels").uniform() < share, none, labels)


def check_weight(weight: float, usual: str) -> None:
    """Raise ConfigError unless this is a weight, or AUTO: as is usual."""
    if not (isfinite(weight) and (weight >= 0 or weight == AUTO)):
        raise ConfigError(
            f"guidance is {weight}: give 0 (no class), 1 (as trained) or more, such as 2; or {AUTO:g} for {usual} "
            "where the model can be guided"
        )


def check_can_be_guided(weight: float, num_classes: int, label_dropout: float) -> None:
    """Raise ConfigError where a weight is asked for of a model that knows nothing but images with their classes."""
    if weight in (1, AUTO) or (num_classes and label_dropout):
        return
    why = "was trained with model.label_dropout 0" if num_classes else "has no classes"
    raise ConfigError(f"guidance is {weight}, but the model {why}: leave guidance out")

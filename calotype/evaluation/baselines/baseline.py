"""The interface of a baseline: fitted to training images, it draws images; some baselines have a likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from calotype.core.images import to_unit
from calotype.core.model import Batch
from calotype.core.rng import Noise


class Baseline(ABC):
    """A classical generator, fitted in seconds."""

    told: str  # what it does, in a few words

    @abstractmethod
    def __init__(self, known: Batch) -> None:
        """Fit it to training images, uint8 (N, C, H, W), and their labels if they have some."""

    @abstractmethod
    def sample(self, noise: Noise, labels: Tensor | None) -> Tensor:
        """Images, uint8 (n, C, H, W); image i depends on row i of the noise, and on its label, alone."""


class Examples:
    """The training images that a baseline draws from."""

    def __init__(self, known: Batch) -> None:
        self.images = known.images
        self.places: list[Tensor] = []  # of the images of each class
        if known.labels is not None:
            self.places = [torch.nonzero(known.labels == k)[:, 0] for k in range(int(known.labels.max()) + 1)]

    def chosen(self, uniforms: Tensor, labels: Tensor | None) -> Tensor:
        """Random indices of images, of the given labels if any: int64, shaped like the uniforms (n, ...) in [0, 1)."""
        if labels is None or not self.places:
            return (uniforms.double() * len(self.images)).long()
        found = []
        for row, label in zip(uniforms.double(), labels.tolist(), strict=True):
            own = self.places[label] if label < len(self.places) else self.places[0][:0]
            own = own if len(own) else torch.arange(len(self.images))  # of a class without images
            found.append(own[(row * len(own)).long()])
        return torch.stack(found)

    def of(self, uniforms: Tensor, labels: Tensor | None) -> Tensor:
        """Random images in [-1, 1], chosen by uniforms (n,): float32 (n, C, H, W)."""
        return to_unit(self.images[self.chosen(uniforms, labels)])

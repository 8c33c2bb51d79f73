"""A quick, rough measure of sample quality during training, for models whose loss does not measure it.

A few samples, always of the same seed, are compared with held-out pictures by the features of `calotype evaluate`, or
with all pictures where few are held out. The kernel distance is unbiased with few images; diversity is the mean
distance between two samples as a share of that between two pictures, and falls to 0 at mode collapse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.core.model import GenerativeModel
from calotype.core.rng import fold, permutation
from calotype.data import PackedDataset
from calotype.evaluation import controls, features
from calotype.evaluation.evaluate import Reference
from calotype.evaluation.metrics import kernel_distance
from calotype.sampling import sampler

SAMPLES = 200
PICTURES = 1_000  # held-out ones, at most
FEWEST = 100  # of them; where there are fewer, all pictures are compared with
SEED = 0


class Judgement(NamedTuple):
    """The measured quality of some samples."""

    distance: float  # kernel distance from held-out pictures; about 0 is as good as it gets
    diversity: float  # of samples, as a share of that of held-out pictures


class Judge:
    """Measures samples against the held-out pictures of a data set."""

    def __init__(self, packed: PackedDataset) -> None:
        self.network = features.network("EffLite0")
        among = packed.held_out if len(packed.held_out) >= FEWEST else np.arange(len(packed))
        some = controls.chosen(among, PICTURES, SEED, "judge")
        self.reference = Reference.of(self.network.features(packed.read(some).images), self.network.standardised)
        self.spread = _spread(self.reference.features[:SAMPLES])
        self.labels: Tensor | None = None
        if packed.labels is not None:
            told = packed.labels[packed.train]
            self.labels = torch.from_numpy(told[permutation(fold(SEED, "judge"), len(told))][:SAMPLES])

    def __call__(self, model: GenerativeModel) -> Judgement:
        """Draw samples and measure them."""
        labels = None if self.labels is None else sampler.cycle(self.labels.tolist())
        images = sampler.sample(model, range(SAMPLES), SEED, labels)
        found = self.reference.scaled(self.network.features(images))
        distance = kernel_distance(found, self.reference.features).value
        return Judgement(distance, _spread(found) / max(self.spread, 1e-12))


def _spread(rows: Tensor) -> float:
    """The mean distance between two rows, (N, D)."""
    n = len(rows)
    return float(torch.cdist(rows, rows).sum()) / (n * (n - 1))

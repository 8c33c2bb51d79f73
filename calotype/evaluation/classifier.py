"""A small classifier of the classes of a data set, which measures class coverage and the accuracy of requested classes.

It is trained on the training images once, by the trainer of the models, and cached. Its features also serve to compare
small gray images, which a network trained on photographs represents poorly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from calotype.core.caches import read_entry, write_entry
from calotype.core.images import to_unit
from calotype.core.model import Batch, ImageSpec, Loss, Trainable, Turn
from calotype.core.rng import Noise, fold, seeded
from calotype.data import PackedDataset
from calotype.data.packs.batches import Batches
from calotype.evaluation.features import FeatureNetwork, smooth
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer

SIDE = 32  # images are resized to it
WIDTHS = (32, 64, 128)  # of the maps of 16, 8 and 4 a side
IMAGES = 120_000  # seen in training: a minute; 99 of 100 digits are told apart after half of it
EPOCHS = 60  # of a small data set, at most
VERSION = 1  # of what is above: a classifier of another one is trained anew
AT_ONCE = 256  # images per call
MOST_BYTES = 1 << 28  # of its weights; those of 10,000 classes are 6 MB


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(max(1, width // 16), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x + self.second(F.relu(self.first(F.relu(self.norm(x)))))


class Classifier(Trainable):
    """A residual network at three resolutions.

    Args:
        spec: of the images, with at least two classes.
    """

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = spec.channels
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), Block(width)]
            before = width
        self.maps = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(before)
        self.head = nn.Linear(before, spec.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Features of images (B, C, SIDE, SIDE) in [-1, 1]: (B, D)."""
        found: Tensor = self.maps(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the classes: (B, classes)."""
        found: Tensor = self.head(self.norm(features))
        return found

    def turns(self) -> Sequence[Turn]:
        """A single turn, with cross-entropy."""
        return (Turn("model", self._loss),)

    def _loss(self, batch: Batch, noise: Noise) -> Loss:
        assert batch.labels is not None
        return Loss(F.cross_entropy(self.logits(self.features(self._fed(batch.images))), batch.labels), {})

    def _fed(self, images: Tensor) -> Tensor:
        return smooth(to_unit(images, self.head.weight.dtype), SIDE)

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """The most probable class of each of uint8 images (N, C, H, W): int64 (N,)."""
        return torch.cat([self.logits(self.features(self._fed(part))).argmax(1) for part in images.split(AT_ONCE)])

    @property
    def digest(self) -> str:
        """A digest of the weights, eight hexadecimal digits."""
        return hashlib.sha256(self.stored()).hexdigest()[:8]

    def stored(self) -> bytes:
        """The weights as a file."""
        return safetensors.save({name: value.contiguous() for name, value in self.state_dict().items()})


def classifier(packed: PackedDataset, report: Callable[[int, int], None]) -> Classifier | None:
    """The classifier of a data set, cached or trained now; None for data with fewer than two classes.

    Args:
        report: called with the images seen and their total.
    """
    if packed.labels is None or len(packed.spec.classes) < 2:
        return None
    with seeded(fold(0, "classifier")):
        model = Classifier(packed.spec)
    name = f"{packed.digest[:16]}-{VERSION}"
    if not _loaded(model, read_entry("classifiers", name, MOST_BYTES)):
        batches = Batches(packed, packed.train, 64, fold(0, "classifier"))
        images = min(IMAGES, EPOCHS * len(packed.train))
        config = TrainConfig(images=images, optimizer="muon", learning_rate=0.01, decay=1.0, clip_norm=10.0)
        trainer = Trainer(model, batches, config)
        for progress in trainer.run():
            report(min(images, progress.images_seen), images)
        model = trainer.ema
        write_entry("classifiers", name, model.stored())
    return model.to_eval().to_channels_last()


def as_features(model: Classifier) -> FeatureNetwork:
    """The classifier as a feature network for gray images; its name has the digest of its weights."""
    mark = model.digest
    return FeatureNetwork(f"Classifier@{mark}", mark, SIDE, lambda values: model.features(values[:, :1] / 127.5 - 1))


def _loaded(model: Classifier, kept: bytes | None) -> bool:
    """Load weights from the cache; whether there were any that fit this network."""
    if kept is None:
        return False
    try:
        model.load_state_dict(safetensors.load(kept))
    except (SafetensorError, RuntimeError):  # of another version
        return False
    return True

"""Training batches: of packed or streamed pictures, or of their latents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from calotype.core.display import Display
from calotype.core.rng import fold, permutation
from calotype.data import PackedDataset
from calotype.data.packs.batches import Batches
from calotype.data.packs.stream import Stream
from calotype.distributed import processes
from calotype.errors import ConfigError
from calotype.families.latents import Latents
from calotype.optimization.config import TrainConfig
from calotype.runs.run import TrainedModel
from calotype.training import first_stage
from calotype.training.planner import MEASURED_IMAGES, MEASURED_VALUES


def learned(
    first: TrainedModel | None, latents: Latents | None, pictures: PackedDataset, shown: Display
) -> PackedDataset:
    """What the model is trained on: the pictures, or the maps that a first stage makes of them."""
    if first is None or latents is None:
        return pictures
    if pictures.stream is not None:
        raise ConfigError("pictures are streamed, but latents are made of packed ones: leave out --stream")

    def counted(done: int, total: int) -> None:
        shown.count("pictures encoded", done, total)

    return processes.first_then_all(lambda: first_stage.encoded(first, pictures, latents, counted))


def some_images(packed: PackedDataset) -> torch.Tensor:
    """A fixed sample of training images, by which the data is measured: uint8 (N, C, H, W)."""
    count = max(1, min(MEASURED_IMAGES, MEASURED_VALUES // packed.spec.dims))
    order = permutation(fold(0, "measure"), len(packed.train))[:count]
    return packed.read(packed.train[np.sort(order)]).images


def training_batches(packed: PackedDataset, config: TrainConfig, tell: Callable[[str], object] = str) -> Batches:
    """The batches of training, in order.

    Args:
        tell: called with pictures that are read in training and cannot be used.
    """
    labels = None
    if packed.stream is not None:
        return _streamed_batches(packed.stream, config, tell)
    if config.balanced:
        if packed.labels is None:
            raise ConfigError("training.balanced is set, but the pictures have no classes: leave it out")
        labels = packed.labels[packed.train]
    return Batches(packed, packed.train, config.batch_size, fold(config.seed, "data"), config.flips, labels)


def _streamed_batches(stream: Stream, config: TrainConfig, tell: Callable[[str], object]) -> Batches:
    if config.balanced:
        raise ConfigError(
            "training.balanced is set, but pictures are streamed, and their classes are not known before they are "
            "read: leave it out"
        )

    def after() -> None:
        for replaced in stream.heard():
            tell(f"{replaced.name} cannot be used ({replaced.reason}): another is shown in its place")

    order = stream.order(fold(config.seed, "data"))
    return Batches(stream, order, config.batch_size, flips=config.flips, after=after)

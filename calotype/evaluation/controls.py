"""Controls: sets of images of known quality, of the size of the set of samples."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from calotype.core.images import to_bytes, to_unit
from calotype.core.rng import Noise, fold, permutation
from calotype.data import PackedDataset

FITTED = 5_000  # training images that the normal distribution is fitted to, at most
PATCHES = 4  # patches a side of the images of shuffled patches

NAMES = {
    "held_out": "held-out images: what no model can be better than",
    "train": "training images: what a copying model would give",
    "gaussian": "a normal distribution fitted to the pixels",
    "patches": "held-out images with their patches shuffled",
}


def chosen(indices: np.ndarray, n: int, seed: int, name: str) -> np.ndarray:
    """n of the indices in a random order, or all where there are fewer."""
    return indices[permutation(fold(seed, "control", name), len(indices))[:n]]


def gaussian(packed: PackedDataset, n: int, seed: int) -> Tensor:
    """n images from the normal distribution with mean and covariance of the training pixels: uint8 (n, C, H, W).

    Of m training images x = mean + A z / sqrt(m - 1), with A the m centred images and z standard normal, has their
    covariance exactly, without that matrix ever being made.
    """
    known = to_unit(packed.read(chosen(packed.train, FITTED, seed, "fit")).images)
    mean = known.mean(0)
    centred = (known - mean).flatten(1)
    z = Noise.shared(fold(seed, "gaussian"), n, "cpu").normal(len(known)) / math.sqrt(max(1, len(known) - 1))
    return to_bytes(mean + (z @ centred).reshape(n, *mean.shape))


def shuffled_patches(images: Tensor, seed: int) -> Tensor:
    """Images cut into 4 x 4 patches, which change places within each image: uint8 (N, C, H, W).

    A border that does not come to a whole patch stays where it is.
    """
    n, c, height, width = images.shape
    h, w = height // PATCHES, width // PATCHES
    found = images.clone()
    if h == 0 or w == 0:
        return found
    inner = images[:, :, : h * PATCHES, : w * PATCHES].reshape(n, c, PATCHES, h, PATCHES, w)
    patches = inner.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, P^2, C, h, w)
    order = np.stack([permutation(fold(seed, "patches", i), PATCHES**2) for i in range(n)])
    moved = torch.gather(patches, 1, torch.from_numpy(order)[:, :, None, None, None].expand_as(patches))
    moved = moved.unflatten(1, (PATCHES, PATCHES)).permute(0, 3, 1, 4, 2, 5)
    found[:, :, : h * PATCHES, : w * PATCHES] = moved.reshape(n, c, h * PATCHES, w * PATCHES)
    return found

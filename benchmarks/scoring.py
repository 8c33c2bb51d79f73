"""How good generated digits are, for the benchmarks until `calotype evaluate` exists: a reader, a distance, an error.

The reader is a small classifier, trained here on the training images; its features give a Fréchet distance that means
something for the data set it was trained on, and nothing elsewhere. The reader is kept beside the caller's results.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calotype.core.images import to_unit
from calotype.core.model import Batch
from calotype.core.rng import Noise, fold, permutation, seeded
from calotype.data import PackedDataset

EPOCHS = 2
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # noise levels at which denoisers are compared


def reader_of(packed: PackedDataset, kept: Path) -> nn.Sequential:
    """A small convolutional classifier of the training images; read from a file beside `kept`, or trained and kept."""
    spec = packed.spec
    kept = kept.with_stem(f"{kept.stem}-{packed.digest[:8]}")
    with seeded(0):
        reader = nn.Sequential(
            nn.Conv2d(spec.channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (spec.height // 4) * (spec.width // 4), 64),
            nn.ReLU(),
            nn.Linear(64, spec.num_classes),
        )
    if kept.exists():
        reader.load_state_dict(load_file(kept))
        return reader.requires_grad_(False)
    optimizer = torch.optim.Adam(reader.parameters(), 1e-3)
    for epoch in range(EPOCHS):
        for indices in np.array_split(packed.train[permutation(epoch, len(packed.train))], len(packed.train) // 128):
            images, labels = packed.read(indices)
            assert labels is not None
            F.cross_entropy(reader(images.float() / 255), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file(reader.state_dict(), kept)
    return reader.requires_grad_(False)


def share_read(reader: nn.Sequential, images: Tensor, labels: Tensor) -> float:
    """The share of images that the classifier reads as their label."""
    return round((reader(images.float() / 255).argmax(1) == labels).double().mean().item(), 4)


def distance(reader: nn.Sequential, images: Tensor, reference: Tensor) -> float:
    """The Fréchet distance between images and a reference, uint8 (N, C, H, W), in the reader's 64 features."""
    (m1, s1), (m2, s2) = (_moments(reader[:-1](x.float() / 255).double()) for x in (images, reference))
    values, vectors = torch.linalg.eigh(s1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp(min=0).sqrt().sum()
    return round(float((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * cross), 3)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(0), features.T.cov()


@torch.no_grad()
def errors(
    denoise: Callable[[Tensor, float, Tensor | None], Tensor], batch: Batch, device: str = "cpu"
) -> dict[str, float]:
    """The root mean square error of a denoiser at fixed noise levels, as a share of the noise; the same noise for all.

    Args:
        denoise: (x, sigma, labels) -> the clean image.
        batch: held-out images.
        device: of the denoiser.
    """
    y, found = to_unit(batch.images).to(device), {}
    labels = None if batch.labels is None else batch.labels.to(device)
    for k, sigma in enumerate(LEVELS):
        noise = Noise.shared(fold(0, "errors", k), len(y), "cpu").normal(*y.shape[1:]).to(device)
        clean = torch.cat(
            [
                denoise(part, sigma, None if labels is None else labels[i : i + len(part)])
                for i, part in zip(range(0, len(y), 64), (y + sigma * noise).split(64), strict=True)
            ]
        )
        found[f"{sigma:g}"] = round(float((clean - y).square().mean().sqrt()) / sigma, 4)
    return found

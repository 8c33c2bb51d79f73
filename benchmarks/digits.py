"""Digits after a few minutes: train on MNIST for a budget, draw a 10x10 grid, and count the samples that can be read.

    python benchmarks/digits.py --data ../shared/data/mnist --budget 8m --out runs/digits

A small classifier, trained here on the same training images and tested on the held-out ones, reads 1,000 samples; the
figure is the share that it reads as the class asked for, beside its accuracy on held-out images. Look at the grid.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import calotype
from calotype.data import PackedDataset, prepare
from calotype.images import grid, write_png
from calotype.rng import permutation, seeded

SAMPLES = 1_000
EPOCHS = 2


def main() -> None:
    """Train, draw, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    started = time.perf_counter()
    settings = {"training": {"threads": options.threads}}
    run = calotype.train(
        "diffusion", options.data, budget=options.budget, preset=options.preset, out=options.out, settings=settings
    )
    seconds = time.perf_counter() - started
    model = calotype.load(run)
    write_png(options.out / "grid.png", grid(model.sample(100, seed=7), 10))

    packed = prepare(run.config.data)
    reader = train_reader(packed)
    held_out = packed.read(packed.held_out)
    assert held_out.labels is not None
    samples = model.sample(SAMPLES, seed=8)
    asked = torch.arange(SAMPLES) % model.spec.num_classes
    print(
        json.dumps(
            {
                "benchmark": "diffusion/digits",
                "value": share_read(reader, samples, asked),
                "unit": f"share of {SAMPLES} samples read as the class asked for",
                "held_out": share_read(reader, held_out.images, held_out.labels),
                "preset": run.config.preset,
                "images_seen": run.config.training.images,
                "seconds_with_packing": round(seconds, 1),
                "threads": options.threads,
            }
        )
    )


def train_reader(packed: PackedDataset) -> nn.Module:
    """A small convolutional classifier of the training images."""
    spec = packed.spec
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
    optimizer = torch.optim.Adam(reader.parameters(), 1e-3)
    for epoch in range(EPOCHS):
        for indices in np.array_split(packed.train[permutation(epoch, len(packed.train))], len(packed.train) // 128):
            images, labels = packed.read(indices)
            assert labels is not None
            F.cross_entropy(reader(images.float() / 255), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return reader


@torch.no_grad()
def share_read(reader: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the classifier reads as their label."""
    return round((reader(images.float() / 255).argmax(1) == labels).double().mean().item(), 4)


if __name__ == "__main__":
    main()

"""How many modes a GAN covers: a grid of 25 Gaussians, and three digits of MNIST as red, green and blue, 1,000 kinds.

    python benchmarks/modes.py grid
    python benchmarks/modes.py stack --data ../shared/data/mnist --out runs/stacked.npz
    calotype train gan runs/stacked.npz --no-labels --budget 60m --out runs/stacked
    python benchmarks/modes.py count runs/stacked --data ../shared/data/mnist

`grid` trains on points in the plane, pictures of one position and two channels, for each loss and seed the same fully
connected networks and number of steps; of 2,500 samples a mode is covered that has 20 of them within three standard
deviations, and good are those near any mode. `count` draws 25,600 samples, as is usual, and has each channel read by a
classifier of digits that is trained on the spot: the kinds that are there, and KL(samples || evenly) in nats.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import calotype
from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import Noise, fold, permutation, seeded
from calotype.data import DataConfig, prepare
from calotype.data.packs.batches import Batches
from calotype.evaluation.classifier import classifier
from calotype.families.gan import GAN, GANConfig
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer

POINTS, SPREAD = 20_000, 2.5  # of the training set; standard deviation of a mode, in bytes
PLACES = (28, 78, 128, 178, 228)  # bytes
BATCH, SAMPLES, NEEDED = 128, 2_500, 20
STACKED, DRAWN = 60_000, 25_600
WIDTH, LAYERS = 128, 4  # of both networks on the plane
# Penalties have the unit of squared distances: modes are 0.4 apart here, and two digits of MNIST about 10. They fall
# slowly, as with few pictures: falling as with many, one of two seeds missed a mode.
PLANE = GANConfig(widths=(16,), blocks=(1,), latents=2, r1=0.01, r2=0.01, penalty_end=0.1, penalty_time=1.0)


class Grid:
    """Points around 25 places, in memory."""

    def __init__(self) -> None:
        noise = Noise.shared(1, POINTS, "cpu")
        places = torch.cartesian_prod(torch.tensor(PLACES), torch.tensor(PLACES))
        chosen = places[torch.arange(POINTS) % len(places)]
        self.images = (chosen + SPREAD * noise.normal(2)).round().clamp(0, 255).to(torch.uint8)[:, :, None, None]
        self.places = places

    def read(self, indices: np.ndarray) -> Batch:
        """As a data set does."""
        return Batch(self.images[indices], None)


class Connected(nn.Module):
    """Fully connected layers: a generator of points, or a discriminator."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        sides = [inputs, *[WIDTH] * LAYERS]
        layers = [part for a, b in pairwise(sides) for part in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
        self.layers, self.outputs = nn.Sequential(*layers, nn.Linear(WIDTH, outputs)), outputs

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, latents) to (B, channels, 1, 1), or (B, channels, 1, 1) to (B,)."""
        found: Tensor = self.layers(x.flatten(1))
        return found[:, :, None, None] if self.outputs > 1 else found[:, 0]


def grid(options: argparse.Namespace) -> None:
    """Each loss and seed on the plane."""
    data = Grid()
    for loss in options.losses:
        for seed in range(options.seeds):
            config = replace(PLANE, loss=loss)
            if loss == "minimax":
                config = replace(config, r1=0.0, r2=0.0)  # as it was first stated
            with seeded(fold(seed, "weights")):
                model = GAN(ImageSpec(2, 1, 1), config)
                model.generator, model.discriminator = Connected(config.latents, 2), Connected(2, 1)
            training = TrainConfig(
                images=options.images, batch_size=BATCH, learning_rate=1e-3, beta1=0.0, precision="fp32", seed=seed
            )
            trainer = Trainer(model, Batches(data, np.arange(POINTS), BATCH, seed), training)
            started = time.perf_counter()
            for _ in trainer.run():
                pass
            drawn = trainer.ema.to_eval().sample(Noise.per_image(seed, range(SAMPLES), "cpu")).flatten(1)
            apart = torch.cdist(drawn.float(), data.places.float())
            nearest, place = apart.min(1)
            good = nearest <= 3 * SPREAD
            counts = torch.bincount(place[good], minlength=25)
            figures = {
                "benchmark": f"modes/grid {loss}",
                "value": int((counts >= NEEDED).sum()),
                "unit": "modes covered, of 25",
                "seed": seed,
                "good": round(float(good.float().mean()), 3),
                "images": options.images,
                "seconds": round(time.perf_counter() - started, 1),
            }
            print(json.dumps(figures), flush=True)


def stack(options: argparse.Namespace) -> None:
    """Write pictures of three digits."""
    packed = prepare(DataConfig(source=options.data, labels=False))
    digits = packed.read(packed.train).images[:, 0]
    orders = [permutation(fold(0, "stack", k), len(digits)) for k in range(3)]
    images = torch.stack([digits[np.resize(order, STACKED)] for order in orders], -1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, images=images.numpy())
    print(f"{STACKED} pictures of three digits: {options.out}")


def count(options: argparse.Namespace) -> None:
    """Read samples of a run."""
    reader = classifier(prepare(DataConfig(source=options.data)), lambda done, total: None)
    assert reader is not None
    model = calotype.load(options.run, checkpoint=options.checkpoint)
    images = model.sample(DRAWN, seed=0)
    read = [reader.classes(images[:, k : k + 1]) for k in range(3)]
    kinds = torch.bincount(100 * read[0] + 10 * read[1] + read[2], minlength=1_000).double()
    shares = kinds / kinds.sum()
    figures = {
        "benchmark": "modes/stacked",
        "value": int((kinds > 0).sum()),
        "unit": "kinds of three digits, of 1,000",
        "kl": round(float((shares * (1_000 * shares.clamp(min=1e-300)).log()).sum()), 3),
        "samples": DRAWN,
        "loss": model.model.config.loss,
        "images_seen": max(record.get("images_seen", 0) for record in model.run.read_log()),
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("grid")
    part.add_argument("--losses", nargs="*", default=["relativistic", "minimax"])
    part.add_argument("--seeds", type=int, default=5)
    part.add_argument("--images", type=int, default=4_000_000)
    part.set_defaults(what=grid)
    part = parts.add_parser("stack")
    part.add_argument("--data", default="../shared/data/mnist")
    part.add_argument("--out", type=Path, default=Path("runs/stacked.npz"))
    part.set_defaults(what=stack)
    part = parts.add_parser("count")
    part.add_argument("run", type=Path)
    part.add_argument("--data", default="../shared/data/mnist")
    part.add_argument("--checkpoint", default="last")
    part.set_defaults(what=count)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.what(options)


if __name__ == "__main__":
    main()

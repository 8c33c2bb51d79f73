"""What the trainer adds to forward, backward and optimizer step. Prints one JSON line per figure.

Both sides train the same network on glyphs, step by step in turn: the trainer with all it does (reading batches,
noise, clipping, the check for non-finite values, the moving average), and a bare loop that is handed a batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from calotype.core.rng import Noise, seeded
from calotype.data import DataConfig, prepare
from calotype.data.packs.batches import Batches
from calotype.families.diffusion import Diffusion
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="steps per side and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--preset", default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    packed = prepare(DataConfig(source="glyphs:gray:2000", width=28, height=28))
    preset = Diffusion.presets(packed.spec)[options.preset]
    config = Diffusion.measured(preset.model, packed.read(packed.train[:256]).images)
    training = TrainConfig(images=10**9, batch_size=preset.batch_size, learning_rate=1e-4)
    batches = Batches(packed, packed.train, training.batch_size, seed=0)
    with seeded(0):
        trainer = Trainer(Diffusion(packed.spec, config), batches, training)
        bare = Diffusion(packed.spec, config).to_channels_last()
    steps = trainer.run()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4, fused=True)
    batch = batches.at(0)

    def bare_step(seed: int) -> None:
        bare.loss(batch, Noise.shared(seed, len(batch.images), "cpu")).value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ratios, seconds = [], []
    for repeat in range(options.repeats + 1):
        ours, theirs = [], []
        for k in range(options.steps):
            started = time.perf_counter()
            next(steps)
            middle = time.perf_counter()
            bare_step(k)
            ours.append(middle - started)
            theirs.append(time.perf_counter() - middle)
        if repeat:  # the first warms up
            ratios.append(statistics.median(ours) / statistics.median(theirs))
            seconds.append(statistics.median(ours))
    overhead = statistics.median(ratios) - 1
    print(
        json.dumps(
            {
                "benchmark": "trainer/overhead",
                "value": round(overhead, 4),
                "unit": "share of forward, backward and optimizer step",
                "target": 0.05,
                "repeats": [round(r - 1, 4) for r in ratios],
                "seconds_per_step": round(statistics.median(seconds), 4),
                "batch": training.batch_size,
                "threads": options.threads,
            }
        )
    )


if __name__ == "__main__":
    main()

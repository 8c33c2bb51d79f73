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

import torch
from scoring import distance, reader_of, share_read

import calotype
from calotype.core.images import grid, write_png
from calotype.data import prepare

SAMPLES = 2_000


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
    reader = reader_of(packed, options.out.with_name("digits-reader.safetensors"))
    held_out = packed.read(packed.held_out)
    known = packed.read(packed.train[:SAMPLES])
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
                "distance": distance(reader, samples, held_out.images),
                "distance_of_training_images": distance(reader, known.images, held_out.images),
                "preset": run.config.preset,
                "images_seen": run.config.training.images,
                "seconds_with_packing": round(seconds, 1),
                "threads": options.threads,
            }
        )
    )


if __name__ == "__main__":
    main()

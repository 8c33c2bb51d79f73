"""Which variational autoencoder has the best bound after equal time on a CPU? One JSON line per network.

    python benchmarks/bounds.py --data ../shared/data/mnist --likelihood bernoulli --seconds 480 --networks tiny plain
    python benchmarks/bounds.py --data ../shared/data/mnist --images 20000

Each network is timed alone, with a matrix product for scale, and trained on the images that it sees in the given
seconds at that speed, or on as many as are given. Judged by the importance-weighted bound of held-out images, in
bits/dim and nats, beside their ELBO; classes are not used. With bernoulli, images are binarised at random, each time
anew, and so are those that are judged.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from likelihoods import bits, changed, gemm, speed
from torch.utils.flop_counter import FlopCounterMode

from calotype.core import devices
from calotype.core.config import build, plain
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.vae import VAE, VAEConfig, VAEOptions
from calotype.optimization.trainer import Trainer

# Each is the preset tiny with these changes of [model] and [training].
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"preset": "small"},
    "plain": {
        "widths": (32, 64, 64, 128),
        "blocks": (1, 1, 1, 1),
        "latents": (0, 0, 0, 1),
        "latent_width": 32,
    },
    "importance-weighted": {"samples": 5},
    "warm-up": {"warmup": 20_000},
    "free bits": {"free_bits": 1.0},
    "batch 16": {"batch_size": 16},
    "batch 64": {"batch_size": 64},
    "half the rate": {"learning_rate": 2.5e-3},
    "twice the rate": {"learning_rate": 1e-2},
    "AdamW": {"optimizer": "adamw", "learning_rate": 2e-3},
    "one map a level": {"latents": (0, 1, 1, 1, 1)},
    "finest too": {"latents": (1, 2, 2, 2, 1)},
    "wide": {"widths": (32, 64, 96, 96, 96)},
    "categorical": {"likelihood": "categorical"},
}


def trainer_of(packed: PackedDataset, name: str, likelihood: str, images: int, threads: int, precision: str) -> Trainer:
    """The trainer of a row of the table."""
    changes = dict(NETWORKS[name])
    preset = VAE.presets(packed.spec)[changes.pop("preset", "tiny")]
    model = plain(preset.model) | {"likelihood": likelihood}
    chosen = changed(preset, model, changes, images=images, threads=threads, precision=precision)
    config = VAE.measured(build(VAEConfig, model, "model"), packed.read(packed.train[:99]).images)
    with seeded(0):
        network = VAE(packed.spec, config)
    return Trainer(network, Batches(packed, packed.train, chosen.batch_size, seed=0), chosen)


def main() -> None:
    """Time, train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--images", type=int, default=0, help="train on so many instead")
    parser.add_argument("--likelihood", default="auto")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=500, help="images that are judged")
    parser.add_argument("--samples", type=int, default=100, help="of the latents of each of them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    devices.keep_memory()
    packed = prepare(DataConfig(source=options.data, labels=False))
    for name in options.networks:
        settings = options.likelihood, 10**9, options.threads, options.precision
        timed = trainer_of(packed, name, *settings)
        with FlopCounterMode(display=False) as counter:
            next(timed.run())
        fast, product = speed(timed, 4.0), gemm()
        share = fast * counter.get_total_flops() / timed.config.batch_size / 1e9 / product
        images = options.images or int(fast * options.seconds)
        trainer = trainer_of(packed, name, options.likelihood, images, options.threads, options.precision)
        started = time.perf_counter()
        list(trainer.run())
        seconds = time.perf_counter() - started
        model = trainer.ema.to_eval()
        by = [VAEOptions(bound_samples=k) for k in (1, options.samples)]
        elbo, found = (bits(model, packed, options.held_out, options=each) for each in by)
        to_nats = packed.spec.dims * math.log(2)
        figures = {
            "benchmark": f"bounds/{name}",
            "value": round(float(found.mean()), 4),
            "unit": f"bits/dim of {len(found)} held-out images, at most, by {options.samples} samples",
            "standard_error": round(float(found.std()) / len(found) ** 0.5, 4),
            "nats": round(float(found.mean()) * to_nats, 2),
            "elbo_nats": round(float(elbo.mean()) * to_nats, 2),
            "likelihood": model.config.likelihood,
            "images": images,
            "images_per_second": round(fast, 1),
            "seconds": round(seconds, 1),
            "share_of_gemm": round(share, 3),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "gemm_gflops": round(product, 1),
            "threads": options.threads,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

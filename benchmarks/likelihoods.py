"""Which autoregressive network takes the fewest bits after equal time on a CPU? One JSON line per network.

    python benchmarks/likelihoods.py --data ../shared/data/mnist --seconds 120
    python benchmarks/likelihoods.py --data ../shared/data/mnist --seconds 120 --likelihood bernoulli

Each network is timed alone, with a matrix product for scale, and trained on the images that it sees in the given
seconds at that speed. Judged by the exact bits/dim, and nats, of 2,000 held-out images; classes are not used. With
bernoulli, images are binarised at random, each time anew, and so are those that are judged.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import numpy as np
import torch

from calotype.core import devices
from calotype.core.config import build, plain
from calotype.core.model import HasLikelihood, Preset
from calotype.core.rng import Noise, seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.autoregressive import Autoregressive, AutoregressiveConfig
from calotype.nn.causal_unet import CausalUNet
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

HELD_OUT = 2_000
GEMM = 1024

# Each is the preset tiny with these changes of [model] and [training].
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"preset": "small"},
    "no copies": {"copies": False},
    "no copies, no tables": {"copies": False, "tables": False},
    "bf16": {"precision": "bf16"},
    "no attention": {"attention": ()},
    "two levels": {"widths": (32, 64), "blocks": (1, 4), "attention": ()},
    "narrow": {"widths": (16, 32, 64), "blocks": (2, 2, 4)},
    "deep": {"blocks": (2, 3, 6)},
    "wide below": {"widths": (32, 64, 128)},
    "batch 32": {"batch_size": 32},
    "batch 8": {"batch_size": 8},
    "half the rate": {"learning_rate": 2.5e-3},
    "twice the rate": {"learning_rate": 1e-2},
    "longer decay": {"decay": 0.8},
    "AdamW": {"optimizer": "adamw", "learning_rate": 3e-3},
    "gated": {"network": "gated-pixelcnn", "widths": (32,), "blocks": (5,)},
    "pixelcnn++": {"network": "pixelcnn++", "widths": (32, 32), "blocks": (1, 1)},
}


def changed(preset: Preset, model: dict[str, Any], changes: dict[str, Any], **training: Any) -> TrainConfig:
    """The training of a row of a table; changes of [model] are made in `model`."""
    training |= {key: getattr(preset, key) for key in OF_THE_PRESET}
    for key, value in changes.items():
        (training if key in TrainConfig.__dataclass_fields__ else model)[key] = value
    return build(TrainConfig, training, "training")


def trainer_of(packed: PackedDataset, name: str, likelihood: str, images: int, threads: int, precision: str) -> Trainer:
    """The trainer of a row of the table."""
    changes = dict(NETWORKS[name])
    parts = {part: changes.pop(part) for part in ("copies", "tables") if part in changes}
    preset = Autoregressive.presets(packed.spec)[changes.pop("preset", "tiny")]
    model = plain(preset.model) | {"likelihood": likelihood}
    if "network" in changes:
        model |= {"attention": ()}
    chosen = changed(preset, model, changes, images=images, threads=threads, precision=precision)
    config = Autoregressive.measured(build(AutoregressiveConfig, model, "model"), packed.read(packed.train[:99]).images)
    with seeded(0):
        network = Autoregressive(packed.spec, config)
        if parts:  # what is no setting, since nothing is better without it
            spec, outputs = packed.spec, network.distribution.parameters
            shape = (spec.height, spec.width), config.widths, config.blocks, config.attention
            network.network = CausalUNet(spec.channels, outputs, *shape, **parts)
    return Trainer(network, Batches(packed, packed.train, chosen.batch_size, seed=0), chosen)


def speed(trainer: Trainer, seconds: float) -> float:
    """Images/s, from the median of the steps after the first three."""
    durations: list[float] = []
    before = started = time.perf_counter()
    for _ in trainer.run():
        now = time.perf_counter()
        durations.append(now - before)
        before = now
        if len(durations) > 6 and now - started > seconds:
            break
    return trainer.config.batch_size / statistics.median(durations[3:])


def gemm() -> float:
    """GFLOP/s of a matrix product."""
    matrix, durations = torch.randn(GEMM, GEMM), []
    for _ in range(15):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        durations.append(time.perf_counter() - started)
    return 2 * GEMM**3 / statistics.median(durations) / 1e9


@torch.no_grad()
def bits(model: HasLikelihood, packed: PackedDataset, count: int = HELD_OUT, **how: Any) -> torch.Tensor:
    """Bits/dim of held-out images: (n,)."""
    chosen = packed.held_out[np.linspace(0, len(packed.held_out) - 1, min(count, len(packed.held_out))).astype(int)]
    parts = []
    for start in range(0, len(chosen), 50):
        some = chosen[start : start + 50]
        noise = Noise.per_image(0, [int(i) for i in some], "cpu")
        parts.append(model.bits_per_dim(packed.read(some), noise, **how).per_image)
    return torch.cat(parts)


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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    devices.keep_memory()
    packed = prepare(DataConfig(source=options.data, labels=False))
    for name in options.networks:
        settings = options.likelihood, 10**9, options.threads, options.precision
        fast = speed(trainer_of(packed, name, *settings), 4.0)
        images = options.images or int(fast * options.seconds)
        trainer = trainer_of(packed, name, options.likelihood, images, options.threads, options.precision)
        started = time.perf_counter()
        list(trainer.run())
        seconds = time.perf_counter() - started
        found = bits(trainer.ema.to_eval(), packed)
        nats = float(found.mean()) * packed.spec.dims * math.log(2)
        figures = {
            "benchmark": f"likelihoods/{name}",
            "value": round(float(found.mean()), 4),
            "unit": f"bits/dim of {len(found)} held-out images",
            "standard_error": round(float(found.std()) / len(found) ** 0.5, 4),
            "nats": round(nats, 2),
            "likelihood": trainer.ema.config.likelihood,
            "images": images,
            "images_per_second": round(fast, 1),
            "seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "gemm_gflops": round(gemm(), 1),
            "threads": options.threads,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

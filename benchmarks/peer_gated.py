"""Training throughput beside pytorch-generative's Gated PixelCNN. Prints one JSON line per figure.

    python benchmarks/peer_gated.py PATH

PATH is a checkout of github.com/EugenHotaj/pytorch-generative (d1f0a5c was used); its package is not on PyPI, and needs
nothing more for this model. Both sides have 5 gated layers of 32 channels and 256 values on 28x28 images, and do what
they are made for: theirs Adam on its cross entropy, as its trainer does it, ours our trainer with its average and
optimizer, in float32 and in the precision that it chooses on this machine. Steps are interleaved, and a matrix product
is timed in the same run; the share of its speed that the preset `tiny` of the default network reaches stands below.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from interleaved import operations, timed, yardsticks

from calotype.core import devices
from calotype.core.config import build
from calotype.core.images import to_unit
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.autoregressive import Autoregressive, AutoregressiveConfig
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

GATED = AutoregressiveConfig(
    network="gated-pixelcnn", widths=(32,), blocks=(5,), attention=(), likelihood="categorical"
)


def peer(path: Path) -> Any:
    """Their network, imported without the parts of the package that need more than torch."""
    for name in ("pytorch_generative", "pytorch_generative.models"):
        module = ModuleType(name)
        module.__path__ = [str(path / name.replace(".", "/"))]
        sys.modules[name] = module
    theirs = importlib.import_module("pytorch_generative.models.autoregressive.gated_pixel_cnn")
    return theirs.GatedPixelCNN(in_channels=1, out_channels=256, n_gated=5, gated_channels=32, head_channels=32)


def trainer_of(packed: PackedDataset, config: AutoregressiveConfig, **training: Any) -> Trainer:
    """Our trainer of a network."""
    with seeded(0):
        model = Autoregressive(packed.spec, config)
    chosen = build(TrainConfig, {"images": 10**9, "learning_rate": 1e-3, **training}, "training")
    return Trainer(model, Batches(packed, packed.train, chosen.batch_size, seed=0), chosen)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    devices.keep_memory()
    packed = prepare(DataConfig(source="glyphs:gray:2000", width=28, height=28, labels=False))
    theirs = peer(options.peer)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    images = Batches(packed, packed.train, options.batch, seed=0).at(0).images
    seen, wanted = to_unit(images), images[:, 0].long()

    def their_step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(theirs(seen), wanted).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1e50)
        optimizer.step()

    preset = Autoregressive.presets(packed.spec)["tiny"]
    default = {key: getattr(preset, key) for key in OF_THE_PRESET}
    categorical = replace(preset.model, likelihood="categorical")
    trainers = {
        "calotype, float32": trainer_of(packed, GATED, batch_size=options.batch, precision="fp32"),
        "calotype": trainer_of(packed, GATED, batch_size=options.batch),
        "tiny": trainer_of(packed, categorical, **default),
    }
    steps = {name: trainer.run() for name, trainer in trainers.items()}
    yard, work = yardsticks()
    sides: dict[str, Callable[[], object]] = {
        "pytorch-generative": their_step,
        **{name: lambda s=s: next(s) for name, s in steps.items()},  # type: ignore[misc]
        "gemm": yard["gemm"],
    }
    batches = {name: trainer.config.batch_size for name, trainer in trainers.items()}
    batches["pytorch-generative"] = options.batch
    work |= {name: operations(sides[name]) for name in batches}
    seconds = timed(sides, options.rounds, warm_up=2)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    gemm = work["gemm"] / median["gemm"]
    models = {"pytorch-generative": theirs} | {name: trainer.model for name, trainer in trainers.items()}
    for name, batch in batches.items():
        ratios = [b / a for a, b in zip(seconds[name], seconds["pytorch-generative"], strict=True)]
        figures = {
            "benchmark": f"gated/{name}",
            "value": round(batch / median[name], 1),
            "unit": "images/s",
            "times_pytorch_generative": round(statistics.median(ratios) * batch / options.batch, 2),
            "share_of_gemm": round(work[name] / median[name] / gemm, 3),
            "gflop_per_image": round(work[name] / batch / 1e9, 3),
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "gemm_gflops": round(gemm / 1e9, 1),
            "batch": batch,
            "threads": options.threads,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""Which likelihood learns flat colours, and which photographs? Bits/dim after equal time, one JSON line per row.

    python benchmarks/flat.py --seconds 60

Drawings of flat shapes, and random phases with the spectrum of photographs, 3,000 of each (those of `duplicates.py`).
Each row is the preset tiny with the stated settings, trained on the images that it sees in the given processor time at
its speed, and judged by the bits/dim of held-out images: exact of autoregressive models, a bound of VAEs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from duplicates import KINDS
from likelihoods import bits, changed
from PIL import Image

from calotype.core.config import build, plain
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families import FAMILIES
from calotype.optimization.trainer import Trainer

GATED = {"network": "gated-pixelcnn", "widths": (32,), "blocks": (5,), "attention": ()}
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("autoregressive", {"network": "causal-unet", "likelihood": "logistics"}),
    ("autoregressive", GATED | {"likelihood": "categorical"}),
    ("vae", {"likelihood": "logistics"}),
    ("vae", {"likelihood": "categorical"}),
)


def flat_share(images: torch.Tensor) -> float:
    """The share of pixels of the same colour as the one to their left: uint8 (N, C, H, W)."""
    return float((images[..., 1:] == images[..., :-1]).all(1).double().mean())


def pictures(kind: str, count: int, side: int, folder: Path) -> PackedDataset:
    """A pack of pictures of a kind."""
    folder.mkdir()
    for k in range(count):
        image = KINDS[kind](np.random.Generator(np.random.Philox(key=k)))
        resample = Image.Resampling.NEAREST if kind == "drawings" else Image.Resampling.LANCZOS
        image.resize((side, side), resample).save(folder / f"{k:05d}.png")
    return prepare(DataConfig(source=str(folder)), cache=folder.parent / "cache")


def trainer_of(packed: PackedDataset, family: str, settings: dict[str, Any], images: int) -> Trainer:
    """The trainer of a row."""
    kind = FAMILIES[family]
    preset = kind.presets(packed.spec)["tiny"]
    model = plain(preset.model) | settings
    training = changed(preset, model, {}, images=images, threads=torch.get_num_threads())
    with seeded(0):
        network = kind(packed.spec, build(kind.Config, model, "model"))
    return Trainer(network, Batches(packed, packed.train, training.batch_size, seed=0), training)


def speed(trainer: Trainer, seconds: float) -> float:
    """Images a second of processor time."""
    durations, before = [], time.process_time()
    for _ in trainer.run():
        durations.append(time.process_time() - before)
        before = time.process_time()
        if len(durations) > 5 and sum(durations) > seconds:
            break
    return trainer.config.batch_size / float(np.median(durations[2:]))


def main() -> None:
    """Draw, train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--side", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("drawings", "photos"):
            packed = pictures(kind, options.count, options.side, Path(folder) / kind)
            share = flat_share(packed.read(packed.train).images)
            for family, settings in ROWS:
                fast = speed(trainer_of(packed, family, settings, 10**9), options.seconds / 10)
                trainer = trainer_of(packed, family, settings, int(fast * options.seconds))
                list(trainer.run())
                found = bits(trainer.ema.to_eval(), packed, 200)
                figures = {
                    "benchmark": f"flat/{kind}/{family}/{settings['likelihood']}",
                    "value": round(float(found.mean()), 3),
                    "unit": f"bits/dim of {len(found)} held-out images",
                    "standard_error": round(float(found.std()) / len(found) ** 0.5, 3),
                    "images": trainer.config.images,
                    "seconds": options.seconds,
                    "flat_share": round(share, 3),
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

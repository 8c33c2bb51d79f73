"""Images/s in training, of every size of diffusion network, on a device: float32, bfloat16, and compiled.

    python benchmarks/devices.py --device cuda --side 32

One JSON line per size and way to train; sizes that do not fit in memory say so. Random images; what is trained is
thrown away. Median of the steps after the first, which allocates, and compiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch

from calotype.core import devices
from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import seeded
from calotype.data.packs.batches import Batches
from calotype.errors import is_out_of_memory
from calotype.families.diffusion import Diffusion
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16, compiled": {"precision": "bf16", "compile": True},
}


class Random:
    """Random images, the same at every place."""

    def __init__(self, spec: ImageSpec) -> None:
        self.images = torch.randint(0, 256, (1024, *spec.shape), dtype=torch.uint8)

    def read(self, indices: np.ndarray) -> Batch:
        """Images of the indices."""
        return Batch(self.images[indices], None)


def main() -> None:
    """Train a little, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5, help="of steps, per line")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--presets", nargs="*")
    options = parser.parse_args()
    devices.make_repeatable()
    device, spec = devices.choose(options.device), ImageSpec(3, options.side, options.side)
    data = Random(spec)
    for name, preset in Diffusion.presets(spec).items():
        if options.presets and name not in options.presets:
            continue
        for way in options.ways:
            with seeded(0):
                model = Diffusion(spec, Diffusion.measured(preset.model, data.images)).to(device)
            config = TrainConfig(
                images=10**9, batch_size=preset.batch_size, optimizer=preset.optimizer, learning_rate=1e-5, **WAYS[way]
            )
            figures = {"benchmark": f"devices/{name}/{way}", "unit": "images/s in training", "batch": config.batch_size}
            trainer = Trainer(model, Batches(data, np.arange(1024), config.batch_size, 0), config)
            try:
                figures |= {"value": round(speed(trainer, options.seconds), 1)}
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                figures |= {"value": None, "why": "memory is too short"}
            figures |= {
                "micro_batch": trainer.micro_batch,
                "parameters": sum(p.numel() for p in model.parameters()),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            }
            print(json.dumps(figures), flush=True)


def speed(trainer: Trainer, seconds: float) -> float:
    """Images/s."""
    durations: list[float] = []
    before = time.perf_counter()
    for _ in trainer.run():  # which looks at the loss, and so waits for the device
        now = time.perf_counter()
        durations.append(now - before)
        before = now
        if len(durations) > 3 and sum(durations[1:]) > seconds:
            return trainer.images_per_step / statistics.median(durations[1:])
    raise AssertionError


if __name__ == "__main__":
    main()

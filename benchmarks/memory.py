"""What training gains where freed memory is kept by the process, on Linux. One JSON line per family and data.

    python benchmarks/memory.py --data ../shared/data/mnist ../shared/data/cifar10

The smallest preset of each family is trained, in turns of two seconds each with malloc as it comes and as
`calotype.core.devices.keep_memory` sets it. The ratio is of images/s, the median over turns; and the largest memory of
either.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from calotype.core import devices
from calotype.core.config import build
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

SECONDS, TURNS = 2.0, 6


def as_it_comes() -> None:
    """What malloc does once a program has freed some large arrays: those above 32 MB are mapped, and ends trimmed."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-1, 128 * 2**10)
    libc.mallopt(-3, 32 * 2**20)
    libc.malloc_trim(0)


def resident() -> float:
    """MB of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def trainer_of(packed: PackedDataset, name: str, threads: int) -> Trainer:
    """A trainer of the family's smallest preset."""
    family = FAMILIES[name]
    preset = family.presets(packed.spec)["tiny"]
    config = family.measured(preset.model, packed.read(packed.train[:256]).images)
    chosen = {key: getattr(preset, key) for key in OF_THE_PRESET} | {"threads": threads, "images": 10**9}
    training = build(TrainConfig, chosen, "training")
    with seeded(0):
        model = family(packed.spec, config)
    return Trainer(model, Batches(packed, packed.train, training.batch_size, seed=0), training)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["../shared/data/mnist", "../shared/data/cifar10"])
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways: dict[str, Callable[[], None]] = {"as it comes": as_it_comes, "kept": devices.keep_memory}
    for source in options.data:
        packed = prepare(DataConfig(source=source, labels=False))
        for name in options.families:
            trainer = trainer_of(packed, name, options.threads)
            steps = trainer.run()
            next(steps)
            rates: dict[str, list[float]] = {way: [] for way in ways}
            most = dict.fromkeys(ways, 0.0)
            for _ in range(TURNS):
                for way, setting in ways.items():
                    setting()
                    durations: list[float] = []
                    started = time.perf_counter()
                    while time.perf_counter() - started < SECONDS:
                        before = time.perf_counter()
                        next(steps)
                        durations.append(time.perf_counter() - before)
                        most[way] = max(most[way], resident())
                    rates[way].append(trainer.config.batch_size / statistics.median(durations))
            plain, kept = rates.values()
            figures = {
                "benchmark": f"memory/{name}",
                "value": round(statistics.median(b / a for a, b in zip(plain, kept, strict=True)), 3),
                "unit": "images/s with memory kept, of those without",
                "data": Path(source).name,
                "images_per_second": {way: round(statistics.median(found), 1) for way, found in rates.items()},
                "largest_mb": {way: round(value) for way, value in most.items()},
                "threads": options.threads,
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""How fast pictures are packed, and read back as batches: one JSON line per figure.

    python benchmarks/data.py --parquet ../shared/data/cifar10/test.parquet

Each figure is the median of five runs after one that is not counted. Packing uses the cores of the machine; reading
is done by one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from calotype.data import DataConfig, PackedDataset, prepare

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = 5
BATCH = 128
BATCHES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, default=REPOSITORY / "../shared/data/cifar10/test.parquet")
    source = str(parser.parse_args().parquet.resolve())
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        seconds = median(lambda run: pack(source, Path(cache) / str(run)))
        print_line("data/pack", seconds, "s", "< 3 s for 10,000 CIFAR-10 JPEGs on 2 cores")
        dataset = prepare(DataConfig(source=source), cache=Path(cache) / "0")
        rate = BATCH * BATCHES / median(lambda run: read(dataset, run))
        print_line("data/read", rate, "images/s", "> 100,000 of 32x32 RGB, random batches of 128, one core")


def pack(source: str, cache: Path) -> None:
    """Pack the source into an empty cache."""
    prepare(DataConfig(source=source), cache=cache)


def read(dataset: PackedDataset, seed: int) -> None:
    """Read random batches."""
    order = np.random.default_rng(seed).integers(0, len(dataset), (BATCHES, BATCH))
    for indices in order:
        dataset.read(indices)


def median(function: Callable[[int], None]) -> float:
    """Median of the seconds that calls of function(run) take, without the first."""
    seconds = []
    for run in range(RUNS + 1):
        start = time.perf_counter()
        function(run)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def print_line(name: str, value: float, unit: str, target: str) -> None:
    """Print one figure."""
    print(json.dumps({"benchmark": name, "value": round(value, 3), "unit": unit, "target": target}), flush=True)


if __name__ == "__main__":
    main()

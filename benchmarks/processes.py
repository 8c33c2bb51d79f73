"""Training by two processes of one thread beside one of one thread, and where the time goes. One JSON line per figure.

    python benchmarks/processes.py --family diffusion --size 32

Both train a preset on letters with the same global batch, in turn, as torchrun starts them. Of each step the
first process tells how long it took, how long gradients were summed over the processes (with waiting for the other),
how long the optimizers and the average of the weights took, which each process does for all weights; the rest is
forward and backward, of half a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from calotype.core import devices
from calotype.core.config import build
from calotype.core.rng import seeded
from calotype.data import DataConfig, prepare
from calotype.data.packs.batches import Batches
from calotype.distributed import processes
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

WARM_UP, STEPS = 5, 30


def clocked(action: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """An action whose seconds are added up."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return action(*args, **kwargs)
        finally:
            spent[-1] += time.perf_counter() - started

    return timed


def work(options: argparse.Namespace) -> None:
    """Train, as one of the processes; the first prints what it took."""
    torch.set_num_threads(1)
    devices.keep_memory()
    with processes.joined():
        packed = processes.first_then_all(
            lambda: prepare(DataConfig(source="glyphs:rgb:2000", width=options.size, height=options.size))
        )
        family = FAMILIES[options.family]
        preset = family.presets(packed.spec)[options.preset]
        model = family.measured(preset.model, packed.read(packed.train[:500]).images)
        values = {name: getattr(preset, name) for name in OF_THE_PRESET} | {"images": 10**9}
        config = build(TrainConfig, values, "training")
        with seeded(0):
            trainer = Trainer(family(packed.spec, model), Batches(packed, packed.train, config.batch_size, 0), config)
        summing, updating, steps = [0.0], [0.0], list[float]()
        processes.sum_over = clocked(processes.sum_over, summing)
        trainer._average = clocked(trainer._average, updating)  # type: ignore[method-assign]
        for optimizers in trainer.optimizers.values():
            for optimizer in optimizers:
                optimizer.step = clocked(optimizer.step, updating)  # type: ignore[method-assign]
        before = time.perf_counter()
        for _ in trainer.run(WARM_UP + STEPS):
            now = time.perf_counter()
            steps.append(now - before)
            before = now
            for spent in (summing, updating):
                spent.append(0.0)
        parts = {"step": steps, "summing": summing, "updating": updating}
        told = {name: statistics.median(seconds[WARM_UP : WARM_UP + STEPS]) for name, seconds in parts.items()}
        if processes.is_first():
            weights = sum(p.numel() for p in trainer.model.parameters())
            print(json.dumps({"images": trainer.images_per_step, "weights": weights, **told}))


def launched(count: int, options: argparse.Namespace) -> dict[str, float]:
    """What `count` processes took."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__]
    words += ["--family", options.family, "--preset", options.preset, "--size", str(options.size), "--work"]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="diffusion")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--preset", default="small", help="that of diffusion for the default budget, on one core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    rounds = [(launched(1, options), launched(2, options)) for _ in range(options.rounds)]
    ratios = sorted(one["step"] / two["step"] for one, two in rounds)
    for count, runs in enumerate(zip(*rounds, strict=True), 1):
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        figures = {
            "benchmark": f"processes/{options.family} {count}",
            "value": round(middle["images"] / middle["step"], 1),
            "unit": "images/s",
            "milliseconds": {name: round(1000 * middle[name], 1) for name in ("step", "summing", "updating")},
            "weights": int(middle["weights"]),
        }
        if count == 2:
            figures |= {"times_one": round(statistics.median(ratios), 2), "from": round(ratios[0], 2)}
            figures["to"] = round(ratios[-1], 2)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""What a network call buys: the quality of each solver at few calls, and its speed beside DDPM's thousand steps.

    python benchmarks/solvers.py RUN

RUN is a diffusion run on labelled digits (`benchmarks/digits.py` makes one). For each solver and number of network
calls, 2,000 samples of the same seed are judged as in `networks.py`: the share read as the class asked for, and the
Fréchet distance to the held-out images in the reader's features. With --ancestral N, N samples of the 1,000-step
ancestral loop are judged beside as many of the default options, and both are timed. One JSON line per figure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from scoring import distance, reader_of, share_read

import calotype
from calotype.core.images import grid, write_png
from calotype.data import prepare
from calotype.families.diffusion import DiffusionOptions
from calotype.families.diffusion.solvers import network_calls
from calotype.sampling import sampler

CALLS = (5, 8, 10, 15, 20)
LEVELS: tuple[dict[str, Any], ...] = ({}, {"spacing": "logsnr"})
SOLVERS = ("ddim", "heun", "dpm2m", "unipc")


def main() -> None:
    """Sample, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--calls", type=int, nargs="*", default=CALLS)
    parser.add_argument("--ancestral", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trained = calotype.load(options.run, device=options.device)
    model = trained.model
    packed = prepare(trained.run.config.data)
    reader = reader_of(packed, options.run.with_name("digits-reader.safetensors"))
    held_out = packed.read(packed.held_out).images
    classes = model.spec.num_classes

    def judge(name: str, chosen: DiffusionOptions, n: int) -> None:
        started = time.perf_counter()
        samples = sampler.sample(model, range(n), 11, sampler.cycle(range(classes)), chosen)
        seconds = time.perf_counter() - started
        calls = network_calls(chosen.solver, chosen.steps)
        write_png(options.run / f"solver-{name.replace('/', '-')}-{calls}.png", grid(samples[:100], 10))
        figures = {
            "benchmark": f"solvers/{name}",
            "calls": calls,
            "value": distance(reader, samples, held_out),
            "unit": f"Fréchet distance of {n} samples in the reader's features",
            "read": share_read(reader, samples, torch.arange(n) % classes),
            "images_per_second": round(n / seconds, 2),
            "spacing": chosen.spacing,
            "sigma_min": chosen.sigma_min,
            "threads": options.threads,
            "device": options.device,
        }
        print(json.dumps(figures), flush=True)

    for calls in options.calls:
        for solver in SOLVERS:
            steps = (calls + 1) // 2 if solver == "heun" else calls
            for k, levels in enumerate(LEVELS):
                judge(
                    f"{solver}/{k}", DiffusionOptions(solver=solver, steps=steps, guidance=1, **levels), options.samples
                )
    if options.ancestral:
        judge("default", DiffusionOptions(guidance=1), options.ancestral)
        judge("ancestral", DiffusionOptions(solver="ddpm", steps=1000, guidance=1), options.ancestral)


if __name__ == "__main__":
    main()

"""How fast autoregressive images are drawn: the whole network anew for each pixel, kept layers, and the compiled loop.

    python benchmarks/drawing.py

A Gated PixelCNN of 8 layers and 64 features on 28x28 with 256 values, the preset tiny, and two networks that see little
to the right, with random weights. Naive drawing is timed over some of its pixels, each of which takes a whole forward
pass. Where a network allows it the compiled loop draws row by row and, as `wave`, all rows together. Beside the speeds
stands how many of the compiled loop's images are those of the kept layers, at batch 1 of the naive way: all but those
in which a uniform number met a cumulative probability to rounding; and by how many columns a row of a wave is behind
the one above. The sides are interleaved; medians. One JSON line per figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from calotype.core.model import ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.families.autoregressive import Autoregressive, AutoregressiveConfig
from calotype.families.autoregressive.drawing import draw, draw_naively
from calotype.nn.native import loop

SPEC = ImageSpec(1, 28, 28)
CONFIGS = {
    "gated-pixelcnn": AutoregressiveConfig(
        network="gated-pixelcnn", widths=(64,), blocks=(8,), attention=(), likelihood="categorical"
    ),
    "tiny": replace(Autoregressive.presets(SPEC)["tiny"].model, likelihood="categorical"),
    "gated-pixelcnn, 5x32": AutoregressiveConfig(
        network="gated-pixelcnn", widths=(32,), blocks=(5,), attention=(), likelihood="categorical"
    ),
    "pixelcnn": AutoregressiveConfig(
        network="pixelcnn", widths=(128,), blocks=(8,), attention=(), likelihood="categorical"
    ),
}
FORWARDS = 5  # that stand for the 784 of naive drawing


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    """Draw, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, config in CONFIGS.items():
        with seeded(0):
            model = Autoregressive(SPEC, config).to_eval()
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        for n in options.batches:
            uniforms = Noise.per_image(0, range(n), "cpu").uniform(28, 28, 1)
            blank = torch.zeros(n, 1, 28, 28, dtype=torch.uint8)
            asked = model.network, model.distribution, blank, 0, uniforms, None
            ways: dict[str, Callable[[], Any]] = {
                "naive": lambda b=blank, m=model: [m.network(b.permute(0, 2, 3, 1)) for _ in range(FORWARDS)],
                "cached": lambda a=asked: draw(*a, compiled=False),
                "compiled": lambda a=asked: draw(*a, wave=False),
            }
            like = draw_naively(*asked).images if n == 1 else ways["cached"]().images
            lag, judged = loop.wave_lag(model.network), ["compiled"]
            if lag is not None:
                ways["wave"] = lambda a=asked: draw(*a, wave=True)
                judged.append("wave")
            same = {way: int((ways[way]().images == like).flatten(1).all(1).sum()) for way in judged}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, work in ways.items():
                    seconds[way].append(timed(work))
            median = {way: statistics.median(values) for way, values in seconds.items()}
            median["naive"] *= 28 * 28 / FORWARDS
            for way, value in median.items():
                figures = {
                    "benchmark": f"drawing/{name}/{way}",
                    "batch": n,
                    "value": round(n / value, 3),
                    "unit": "images/s",
                    "times_naive": round(median["naive"] / value, 1),
                    "images_the_same": same.get(way),
                    "columns_behind": lag if way == "wave" else None,
                    "threads": options.threads,
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

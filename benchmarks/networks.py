"""Which network makes a CPU worth training on? Several, trained on MNIST for equal time. One JSON line per network.

    python benchmarks/networks.py --data ../shared/data/mnist --seconds 150

First the speeds of all are measured in turn, interleaved, with a matrix product for scale; then each is trained on the
number of images that it sees in the given seconds at that speed, so that what else the machine does while it trains
has no say in the result, and a GPU may train them where the speeds of the CPU lie in --out already. Each is judged by
2,000 samples: the share that a classifier of the training images reads as the class asked for, and the Fréchet distance
to the held-out images in that classifier's features; and by its error at fixed noise levels on held-out images. What is
trained is kept in --out, and a repeated command goes on with the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scoring import distance, errors, reader_of, share_read
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calotype.core.config import build, plain
from calotype.core.images import grid, write_png
from calotype.core.model import Batch
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.diffusion import Diffusion, DiffusionConfig, DiffusionOptions
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.sampling import sampler
from calotype.training.planner import OF_THE_PRESET

SAMPLES = 2_000
OPTIONS = DiffusionOptions(guidance=1)  # of the networks alone
GEMM = 1024
ROUNDS = 7

# Each is the preset tiny with these changes of [model] and [training].
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "one level": {"widths": (64,)},
    "attention": {"attention": (1,)},
    "wider below": {"widths": (32, 96)},
    "v": {"prediction": "v"},
    "patch 4": {"patch": 4, "widths": (64, 128)},
    "AdamW": {"optimizer": "adamw"},
    "batch 64": {"batch_size": 64, "learning_rate": 4e-3},
    "half the rate": {"learning_rate": 1.5e-3},
    "x0": {"prediction": "x0", "loss": "v"},
    "eps, cosine": {"prediction": "eps", "schedule": "cosine"},
    "velocity, flow": {"prediction": "velocity", "schedule": "flow"},
    "two blocks": {"blocks": 2},
    "patch 1": {"patch": 1, "widths": (16, 32, 64)},
    "wider": {"widths": (64, 64)},
    "wider, even below": {"widths": (64, 128)},
    "one level, two blocks": {"widths": (64,), "blocks": 2},
    "one level, AdamW": {"widths": (64,), "optimizer": "adamw"},
    "one level, wider": {"widths": (96,)},
    "wider, batch 64": {"widths": (64, 64), "batch_size": 64, "learning_rate": 4e-3},
    "v, batch 64": {"prediction": "v", "batch_size": 64, "learning_rate": 4e-3},
    "wider, v, batch 64": {"widths": (64, 64), "prediction": "v", "batch_size": 64, "learning_rate": 4e-3},
}

# The sizes that a budget is matched with, as they are and otherwise trained.
SIZES: dict[str, dict[str, Any]] = {
    "tiny size": {},
    "small": {"preset": "small"},
    "small, AdamW": {"preset": "small", "optimizer": "adamw"},
    "small, batch 32": {"preset": "small", "batch_size": 32},
    "small, no attention": {"preset": "small", "attention": ()},
    "medium": {"preset": "medium"},
    "medium, AdamW": {"preset": "medium", "optimizer": "adamw"},
    "medium, batch 32": {"preset": "medium", "batch_size": 32},
}
TABLES = {"networks": NETWORKS, "sizes": SIZES}


def trainer_of(packed: PackedDataset, name: str, images: int, threads: int, device: str = "cpu") -> Trainer:
    """The trainer of a row of the table; in float32 on any device, as on the CPU that it is chosen for."""
    changes = dict((NETWORKS | SIZES)[name])
    preset = Diffusion.presets(packed.spec)[changes.pop("preset", "tiny")]
    model = plain(preset.model)
    training = {name: getattr(preset, name) for name in OF_THE_PRESET} | {"threads": threads, "precision": "fp32"}
    for key, value in changes.items():
        (training if key in TrainConfig.__dataclass_fields__ else model)[key] = value
    config = Diffusion.measured(build(DiffusionConfig, model, "model"), packed.read(packed.train[:5_000]).images)
    chosen = build(TrainConfig, training | {"images": images}, "training")
    with seeded(0):
        network = Diffusion(packed.spec, config).to(device)
    return Trainer(network, Batches(packed, packed.train, chosen.batch_size, seed=0), chosen)


def speeds(packed: PackedDataset, names: list[str], threads: int) -> dict[str, dict[str, float]]:
    """Images/s and share of the matrix product's speed, per name."""
    sides: dict[str, Callable[[], object]] = {}
    work: dict[str, float] = {}
    batch: dict[str, int] = {}
    matrix = torch.randn(GEMM, GEMM)
    for name in names:
        trainer = trainer_of(packed, name, 10**9, threads)
        batch[name], steps = trainer.config.batch_size, trainer.run()
        sides[name] = lambda steps=steps: next(steps)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention counts as 0
            sides[name]()
        work[name] = counter.get_total_flops()
    sides["gemm"], work["gemm"] = lambda: [matrix @ matrix for _ in range(5)], 5 * 2 * GEMM**3
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(ROUNDS + 1):
        for name, step in [*sides.items()][:: (-1) ** k]:  # both ways: what went before has a say in how fast one is
            started = time.perf_counter()
            step()
            if k:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    rate = {name: work[name] / statistics.median(seconds[name]) for name in sides}
    return {
        name: {
            "images_per_second": round(batch[name] / statistics.median(seconds[name]), 1),
            "mflop_per_image": round(work[name] / batch[name] / 1e6),
            "share_of_gemm": round(rate[name] / rate["gemm"], 3),
        }
        for name in names
    }


def main() -> None:
    """Measure, train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--table", choices=TABLES, default="networks", help="tiny with changes, or the sizes")
    parser.add_argument("--names", nargs="*", help="rows to train; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/networks"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--training-threads", type=int, default=0, help="if other than those the speed is measured with"
    )
    parser.add_argument("--device", default="cpu", help="to train and judge on; speeds are those of the CPU")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    packed = prepare(DataConfig(source=options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    names = list(TABLES[options.table])
    trainers = [trainer_of(packed, name, 1, options.threads) for name in names]
    rows = [[plain(trainer.config), plain(trainer.model.config)] for trainer in trainers]
    mark = hashlib.sha256(json.dumps([rows, packed.digest]).encode()).hexdigest()[:8]
    known = options.out / f"speeds-{mark}.json"
    if not known.exists():  # all at once, so that they are comparable
        torch.set_num_threads(options.threads)
        known.write_text(json.dumps(speeds(packed, names, options.threads), indent=1))
    measured = json.loads(known.read_text())
    threads = options.training_threads or options.threads
    torch.set_num_threads(threads)
    reader = reader_of(packed, options.out / "reader.safetensors")
    held_out = packed.read(packed.held_out)
    assert held_out.labels is not None
    some = Batch(held_out.images[:512], held_out.labels[:512])
    for name in names if options.names is None else options.names:
        images = int(measured[name]["images_per_second"] * options.seconds)
        trainer = trainer_of(packed, name, images, threads, options.device)
        place = options.out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{images}-{mark}.safetensors"
        if place.exists():
            trainer.ema.load_state_dict(load_file(place))
        else:
            for _ in trainer.run():
                pass
            save_file({key: value.contiguous() for key, value in trainer.ema.state_dict().items()}, place)
        labels = sampler.cycle(range(packed.spec.num_classes))
        samples = sampler.sample(trainer.ema, range(SAMPLES), 7, labels, OPTIONS)
        write_png(place.with_suffix(".png"), grid(samples[:100], 10))
        figures = {
            "benchmark": f"networks/{name}",
            "value": distance(reader, samples, held_out.images),
            "unit": f"Fréchet distance of {SAMPLES} samples in the reader's features",
            "read": share_read(reader, samples, torch.arange(SAMPLES) % packed.spec.num_classes),
            "errors": errors(trainer.ema.denoise, some, options.device),
            "parameters": sum(p.numel() for p in trainer.ema.parameters()),
            "images_seen": images,
            "seconds": options.seconds,
            "trained_on": options.device,
        }
        print(json.dumps(figures | measured[name]), flush=True)


if __name__ == "__main__":
    main()

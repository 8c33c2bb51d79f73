"""Pictures read from shards while a model learns, beside packed ones; and the memory of a million. JSON lines.

    python benchmarks/streaming.py --format JPEG --threads 1
    python benchmarks/streaming.py --rows 1000000

The first times training steps of a preset on the same pictures, packed and streamed, in turn, and reading alone. The
second goes through so many small pictures in shards, and says how much memory the process has at tenths of the way.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from calotype.core import devices
from calotype.core.config import build
from calotype.core.rng import seeded
from calotype.data import DataConfig, prepare
from calotype.data.packs.batches import Batches
from calotype.data.sources.glyphs import GlyphsConfig, render
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

GROUP = 1_000  # rows of a row group
STEPS = 12  # of a round


def shards(folder: Path, count: int, size: int, form: str, each: int) -> None:
    """Write letters as Parquet shards; more than some thousand are the same again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = []
    for k in range(min(count, 5_000)):
        file = io.BytesIO()
        pixels, _ = render(GlyphsConfig(mode="rgb", count=count, seed=0), k, size, size)
        Image.fromarray(pixels).save(file, form)
        known.append({"bytes": file.getvalue(), "path": None})
    folder.mkdir(parents=True)
    for k in range(0, count, each):
        cells = [known[i % len(known)] for i in range(k, min(count, k + each))]
        pq.write_table(pa.table({"image": cells}), folder / f"{k // each:05d}.parquet", row_group_size=GROUP)


def memory() -> float:
    """Megabytes that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def speeds(options: argparse.Namespace, folder: Path) -> None:
    """Images/s of training and of reading, packed and streamed."""
    torch.set_num_threads(options.threads)
    devices.keep_memory()
    shards(folder / "in", 20_000, options.size, options.format, 2_000)
    config = {"source": str(folder / "in"), "width": options.size, "height": options.size}
    packed = prepare(DataConfig(**config), cache=folder / "cache")
    streamed = prepare(DataConfig(**config, stream=True), cache=folder / "cache")
    assert streamed.stream is not None
    family = FAMILIES["diffusion"]
    preset = family.presets(packed.spec)["small"]
    model = family.measured(preset.model, packed.read(packed.train[:500]).images)
    values = {name: getattr(preset, name) for name in OF_THE_PRESET} | {"images": 10**9}
    training = build(TrainConfig, values, "training")
    size = training.batch_size
    sides = {
        "packed": Batches(packed, packed.train, size, 0),
        "streamed": Batches(streamed.stream, streamed.stream.order(0), size, after=lambda: None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    trainers = {}
    for name, batches in sides.items():
        with seeded(0):
            trainers[name] = Trainer(family(packed.spec, model), batches, training)
        list(trainers[name].run(3))
    for turn in range(1, options.rounds + 1):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            list(trainer.run(3 + STEPS * turn))
            seconds[name].append((time.perf_counter() - started) / STEPS)
    ratios = sorted(a / b for a, b in zip(seconds["packed"], seconds["streamed"], strict=True))
    for name in sides:
        figures = {
            "benchmark": f"streaming/training {name}",
            "value": round(size / statistics.median(seconds[name]), 1),
            "unit": "images/s",
            "threads": options.threads,
            "format": options.format,
        }
        if name == "streamed":
            figures |= {"times_packed": round(statistics.median(ratios), 3), "from": round(ratios[0], 3)}
            figures["to"] = round(ratios[-1], 3)
        print(json.dumps(figures), flush=True)
    alone = Batches(streamed.stream, streamed.stream.order(1), size)
    started = time.perf_counter()
    for k in range(60):
        alone.at(k)
    rate = round(60 * size / (time.perf_counter() - started))
    print(json.dumps({"benchmark": "streaming/reading", "value": rate, "unit": "images/s", "format": options.format}))


def flat(options: argparse.Namespace, folder: Path) -> None:
    """Memory while all pictures are gone through once."""
    shards(folder / "in", options.rows, 8, "PNG", max(GROUP, options.rows // 1_000))
    before = memory()
    data = prepare(DataConfig(source=str(folder / "in"), width=8, height=8, stream=True), cache=folder / "cache")
    assert data.stream is not None
    opened, size = memory(), 256
    batches = Batches(data.stream, data.stream.order(0), size, after=lambda: None)
    total = data.stream.count // size
    found: list[float] = []
    started = time.perf_counter()
    for k in range(total):
        batches.at(k)
        if (k + 1) % max(1, total // 10) == 0:
            found.append(round(memory(), 1))
    figures = {
        "benchmark": "streaming/memory",
        "value": round(max(found) - found[0], 1),
        "unit": "MB more than after a tenth, at the most",
        "pictures": data.stream.count,
        "shards": len(data.stream.shards.shards),
        "before": round(before, 1),
        "opened": round(opened, 1),
        "at_tenths": found,
        "images_per_second": round(total * size / (time.perf_counter() - started)),
    }
    print(json.dumps(figures))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=["JPEG", "PNG"], default="JPEG")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=0, help="measure memory over so many pictures instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.rows:
            flat(options, Path(folder))
        else:
            speeds(options, Path(folder))


if __name__ == "__main__":
    np.seterr(all="raise")
    main()

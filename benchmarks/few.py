"""What a GAN makes of 600 pictures, with and without changes of what its discriminator sees. One JSON line per row.

    python benchmarks/few.py --data ../shared/data/cifar10 --budget 8m --out runs/few

The pictures are 200 each of three classes of CIFAR-10. Each row is a run of `calotype train gan` with the settings that
name it, for the same budget. Its `best` checkpoint is drawn from, 2,000 samples in the proportions of the classes, and
measured by `calotype evaluate` twice: beside the 600 pictures, with what it says of copies; and beside all others of
these classes, of which the run has seen none, which is the figure that counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

import calotype
from calotype.core.config import override
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.evaluation.report import Report
from calotype.runs.run import Run
from calotype.training.recipe import sections

CLASSES = ("automobile", "horse", "ship")
EACH = 200
SAMPLES = 2_000
ROWS: Mapping[str, tuple[str, ...]] = {
    "as they are": ("model.overfit=0",),
    "augment 0.4": ("model.augment=0.4",),
    "overfit 0.6": ("model.overfit=0.6",),
}


def chosen(packed: PackedDataset) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the few pictures, and of all others of their classes."""
    assert packed.labels is not None
    few, rest = [], []
    for name in CLASSES:
        members = np.flatnonzero(packed.labels == packed.class_names.index(name))
        few.append(members[:EACH])
        rest.append(members[EACH:])
    return np.concatenate(few), np.concatenate(rest)


def store(packed: PackedDataset, indices: np.ndarray, place: Path) -> None:
    """Pictures and classes as an archive of arrays."""
    assert packed.labels is not None
    images = packed.read(np.sort(indices)).images.permute(0, 2, 3, 1).numpy()
    labels = np.unique(packed.labels[np.sort(indices)], return_inverse=True)[1]
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, images=images, labels=labels)


def others(run: Path, rest: Path, count: int) -> Report:
    """What samples of a run are beside pictures that it has not seen, of the same classes in the same proportions."""
    model = calotype.load(run, checkpoint="best")
    drawn = run.parent / f"{run.name}.npz"
    images = torch.cat([model.sample(min(500, count - k), seed=0, first=k) for k in range(0, count, 500)])
    np.savez(drawn, images=images.permute(0, 2, 3, 1).numpy())
    return calotype.evaluate(drawn, data=str(rest), n=count)


def measured(run: Path, rest: Path, row: str, options: argparse.Namespace) -> dict[str, object]:
    """The figures of a run."""
    own = calotype.evaluate(run, checkpoint="best", n=500)
    found = others(run, rest, SAMPLES)
    values = {value.name: value for value in found.values if value.of == "samples"}
    floor = {value.name: value for value in found.values if value.of == "held_out"}
    assert own.copying is not None
    return {
        "benchmark": f"few/{row}",
        "value": round(values["FD-EffLite0"].value or 0.0, 1),
        "unit": f"FD-EffLite0 from pictures of the classes never seen; real ones {floor['FD-EffLite0'].value:.1f}",
        "low": round(values["FD-EffLite0"].low or 0.0, 1),
        "high": round(values["FD-EffLite0"].high or 0.0, 1),
        "recall": round(values["recall"].value or 0.0, 3),
        "coverage": round(values["coverage"].value or 0.0, 3),
        "copies": own.copying.verdict,
        "flagged": own.copying.flagged,
        "images": max(record.get("images_seen", 0) for record in Run.open(run).read_log()),
        "threads": options.threads,
    }


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--set", nargs="*", default=[], help="further settings, of all rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/few"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packed = prepare(DataConfig(source=options.data))
    few, rest = options.out / "few.npz", options.out / "rest.npz"
    for indices, place in zip(chosen(packed), (few, rest), strict=True):
        if not place.exists():
            store(packed, indices, place)
    for row in options.rows:
        settings: dict[str, dict[str, object]] = {"training": {"threads": options.threads}}
        for assignment in (*ROWS[row], *options.set):
            override(settings, assignment, sections("gan"))
        run = options.out / row.replace(" ", "-").replace(".", "")
        if not (run / "samples.png").exists():
            calotype.train("gan", str(few), budget=options.budget, out=run, settings=settings)
        print(json.dumps(measured(run, rest, row, options)), flush=True)


if __name__ == "__main__":
    main()

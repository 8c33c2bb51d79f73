"""How often remarks on training are false alarms, and whether each fires on the failure that it names. JSON lines.

    python benchmarks/remarks.py healthy vae --runs 100
    python benchmarks/remarks.py failures

A healthy run is short: letters of 8 to 16 pixels, 60 to 2,000 of them, all or one network of the family's that learns
them, and a budget of 320 to 20,000 images, each chosen by the number of the run. Nothing is wrong with it but that it
may end before it has learned much, so that each remark is a false alarm. The last line counts them, with the 95 %
interval of the rate by Wilson. With `--course FILE` what was measured at each checkpoint is kept, to set limits by.

A failure is provoked by a setting that is known to bring it, or by pictures too few; its line says at how many images
seen its remark came.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import calotype
from calotype.core.display import PlainDisplay
from calotype.core.rng import Noise, fold
from calotype.training.loop import SETTLED

PRESETS: Mapping[str, tuple[str, ...]] = {
    "vae": ("tiny", "tiny", "plain", "codes", "map"),
    "gan": ("tiny",),
    "autoregressive": ("tiny",),
    "diffusion": ("tiny",),
}
SIZES = (8, 12, 16)
MODES = ("gray", "rgb")
PICTURES = (60, 2_000)
IMAGES = (320, 20_000)


class Plan(NamedTuple):
    """A run to make."""

    family: str
    preset: str
    source: str
    size: int
    images: int
    seed: int
    model: Mapping[str, Any] = {}
    training: Mapping[str, Any] = {}
    labels: bool = True


def healthy(family: str, number: int, images: tuple[int, int], sizes: Sequence[int] = SIZES) -> Plan:
    """The healthy run of a number, of so many images seen at least and at most, of one of some sizes."""
    u = Noise.shared(fold(0, "remarks", family, number), 1, "cpu").uniform(6)[0].tolist()

    def between(low: float, high: float, share: float) -> int:
        return round(low * (high / low) ** share)  # evenly on a logarithmic scale

    pictures = between(*PICTURES, u[0])
    source = f"glyphs:{MODES[int(u[1] * len(MODES))]}:{pictures}:{number}"
    preset = PRESETS[family][int(u[2] * len(PRESETS[family]))]
    seen = between(*images, u[3])
    size, model = sizes[int(u[4] * len(sizes))], {}
    if preset in ("codes", "map"):  # made for larger pictures: with fewer features, so that a run takes seconds
        size, model = min(sizes), {"widths": [32], "blocks": [1], "latents": [1]}
    # Checkpoints before SETTLED make no remarks, so few are made: at 5,200 images, 10,400, and the end.
    training = {"checkpoint_every": SETTLED // 2 + 200} if images[0] > SETTLED else {}
    return Plan(family, preset, source, size, seen, number, model, training, u[5] < 0.5)


FAILURES: Mapping[str, Plan] = {
    "posterior has collapsed": Plan("vae", "tiny", "glyphs:gray:600:0", 8, 55_000, 0, {"beta": 30.0}),
    "codes are used as if": Plan(
        "vae", "codes", "glyphs:gray:600:0", 8, 12_000, 0, {"code": "vq", "codes": [64]}, {"learning_rate": 1.0}
    ),
    "generator has collapsed": Plan(
        "gan",
        "tiny",
        "glyphs:gray:600:0",
        8,
        11_000,
        0,
        {"r1": 0.0, "r2": 0.0, "loss": "non-saturating", "overfit": 0.0},
        {"learning_rate": 0.1},
    ),
    "no longer sees how": Plan("gan", "tiny", "glyphs:gray:600:0", 8, 12_000, 0, {"r1": 1e4, "r2": 1e4}),
    "memorised the training pictures": Plan(
        "gan", "tiny", "glyphs:gray:60:0", 8, 30_000, 0, {"r1": 0.0, "r2": 0.0, "overfit": 0.0}
    ),
}


class Course(NamedTuple):
    """What came of a run."""

    remarks: list[dict[str, Any]]  # images_seen and text
    checkpoints: list[dict[str, Any]]
    seconds: float


def trained(plan: Plan) -> Course:
    """Train a run in a folder that is then removed."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = calotype.train(
            plan.family,
            plan.source,
            size=str(plan.size),
            preset=plan.preset,
            budget=f"{plan.images}img",
            out=Path(folder) / "run",
            settings={
                "data": {"labels": plan.labels},
                "model": dict(plan.model),
                "training": {"seed": plan.seed, "threads": 1, "preview_every": plan.images} | dict(plan.training),
            },
            display=PlainDisplay(write=lambda text: None),
        )
        log = run.read_log()
    remarks = [{key: line[key] for key in ("images_seen", "text")} for line in log if line["event"] == "remark"]
    checkpoints = [line for line in log if line["event"] == "checkpoint"]
    return Course(remarks, checkpoints, time.perf_counter() - started)


def rate(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate. Source: Wilson 1927."""
    z, p = 1.96, count / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def measure_healthy(
    family: str, numbers: range, images: tuple[int, int], sizes: Sequence[int], course: Path | None
) -> Iterator[dict[str, Any]]:
    """A line for each run, and one for all."""
    alarms, seconds = 0, 0.0
    for number in numbers:
        plan = healthy(family, number, images, sizes)
        found = trained(plan)
        alarms += bool(found.remarks)
        seconds += found.seconds
        if course is not None:
            with course.open("a") as file:
                file.write(json.dumps({"plan": plan, "checkpoints": found.checkpoints}) + "\n")
        yield {"run": number, **plan._asdict(), "remarks": found.remarks, "seconds": round(found.seconds, 1)}
    low, high = rate(alarms, len(numbers))
    yield {
        "family": family,
        "runs": len(numbers),
        "false alarms": alarms,
        "interval": [low, high],
        "seconds": round(seconds),
    }


def measure_failures() -> Iterator[dict[str, Any]]:
    """A line for each failure."""
    for text, plan in FAILURES.items():
        found = trained(plan)
        said = [remark["images_seen"] for remark in found.remarks if text in remark["text"]]
        yield {"failure": text, "fires": bool(said), "at": said[:1], "seconds": round(found.seconds, 1)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("healthy", "failures"))
    parser.add_argument("family", choices=tuple(PRESETS), nargs="?", default="vae")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--least", type=int, default=IMAGES[0], help="images seen in a run, at least")
    parser.add_argument("--most", type=int, default=IMAGES[1], help="images seen in a run, at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of pictures, in pixels")
    parser.add_argument("--course", type=Path)
    asked = parser.parse_args()
    lines = measure_failures()
    if asked.what == "healthy":
        numbers, images = range(asked.first, asked.first + asked.runs), (asked.least, asked.most)
        lines = measure_healthy(asked.family, numbers, images, asked.sizes, asked.course)
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

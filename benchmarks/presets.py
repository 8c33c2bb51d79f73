"""What each size of network makes of a budget: the tables of docs/presets.md. One JSON line per run.

    python benchmarks/presets.py --data ../shared/data/mnist --budgets 2m 8m --out runs/presets/mnist
    python benchmarks/presets.py --data ../shared/data/cifar10 --presets tiny --budgets 4m --out runs/presets/cifar10
    python benchmarks/presets.py --data glyphs --size 16 --budgets 150s 300s -n 800 --out runs/presets/letters
    python benchmarks/presets.py --data ../shared/data/cifar10 --few --presets tiny --budgets 4m --out runs/presets/few

Each line is a run of `calotype train FAMILY DATA --preset P --budget B`, measured by `calotype evaluate`. With `--few`
the pictures are the 600 of `few.py`, and samples are compared with all others of their classes, which no run has seen.
What is there already is not done again; `--families`, `--presets` choose some, so that each core may do its part, and
`--table` writes what there is as a table, with the number of pictures from which on the larger network is the better.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from few import chosen, others, store

import calotype
from calotype.data import DataConfig, prepare
from calotype.evaluation.report import Report
from calotype.runs.config import family
from calotype.runs.run import Run

FAMILIES = ("autoregressive", "diffusion", "gan", "vae")
PRESETS = ("tiny", "small")
NAMES = ("FD-Classifier", "FD-EffLite0", "as asked", "recall", "coverage")


def figures(report: Report, of: str = "samples") -> dict[str, Any]:
    """Those of the table, each with its interval."""
    rounded: dict[str, Any] = {}
    for value in report.values:
        name = value.name.partition("@")[0]  # without the digest of a classifier
        likelihood = name.startswith("bits/dim")
        if value.value is not None and (likelihood or (value.of == of and name in NAMES)):
            numbers = [value.value, value.low, value.high]
            rounded[name] = [None if number is None else float(f"{number:.4g}") for number in numbers]
    return rounded


def measured(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run; its report is kept beside it."""
    kept = run.path / "presets.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    own = calotype.evaluate(run, checkpoint="best", n=500 if options.few else options.n)
    found = figures(own) | {"real pictures": figures(own, "held_out")}
    if options.few:
        elsewhere = others(run.path, options.out / "rest.npz", options.n)
        found |= figures(elsewhere) | {"real pictures": figures(elsewhere, "held_out")}
    assert own.copying is not None
    found |= {"copies": own.copying.verdict, "samples per second": own.cost.get("samples per second")}
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def line(run: Run, found: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What is printed of a run."""
    name = next(name for name in NAMES[options.few :] if name in found)
    value, low, high = found[name]
    return {
        "benchmark": f"presets/{run.path.name}",
        "value": value,
        "unit": name,
        "low": low,
        "high": high,
        "images": max(record.get("images_seen", 0) for record in run.read_log()),
        "parameters": sum(
            p.numel() for p in family(run.config.family)(run.config.dataset.spec, run.config.model).parameters()
        ),
        "threads": options.threads,
    } | found


def as_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table of docs/presets.md."""
    named = [name for name in NAMES if any(name in one for one in lines)]
    table = "| | Budget | Network | Pictures seen | " + " | ".join(named) + " | Bits/dim | Images/s drawn |\n"
    table += "|---" * (len(named) + 6) + "|\n"
    for one in lines:
        name, preset, budget = one["benchmark"].partition("/")[2].split("-")
        cells = [name, budget, f"`{preset}`", f"{one['images']:,}"]
        for figure in named:
            value, low, high = one.get(figure, (None, None, None))
            if figure.startswith("FD"):
                cells.append(f"{value:.3g} ({low:.3g} to {high:.3g})" if value is not None else "")
            else:
                form = "{:.1f} %" if figure == "as asked" else "{:.2f}"
                cells.append("" if value is None else form.format(100 * value if figure == "as asked" else value))
        bits = next((f"{one[k][0]:.3g}, {k[10:-1].partition(',')[0]}" for k in one if k.startswith("bits/dim")), "")
        table += "| " + " | ".join([*cells, bits, f"{one['samples per second']:,.0f}"]) + " |\n"
    return table


def crossings(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each family where the larger network becomes the better, in pictures that it has then seen.

    Interpolated between two budgets, or extrapolated beyond them: the logarithm of the ratio of both distances is taken
    as linear in the logarithm of the pictures seen.
    """
    told = {}
    for name in dict.fromkeys(one["benchmark"].partition("/")[2].split("-")[0] for one in lines):
        rows = [[one for one in lines if f"/{name}-{preset}-" in one["benchmark"]] for preset in PRESETS]
        if any(len(row) < 2 for row in rows):
            continue
        seen = [math.log(one["images"]) for one in rows[1]]
        ratios = [math.log(b["value"] / a["value"]) for a, b in zip(*rows, strict=True)]
        slope = (ratios[-1] - ratios[0]) / (seen[-1] - seen[0])
        at = math.exp(seen[-1] - ratios[-1] / slope) if slope < 0 else math.inf
        told[name] = f"{at:,.0f}"
    return told


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--size", help="as for calotype train")
    parser.add_argument("--few", action="store_true", help="the 600 pictures of few.py alone")
    parser.add_argument("--budgets", nargs="*", default=["2m", "8m"])
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--table", action="store_true", help="and write them as in docs/presets.md")
    parser.add_argument("-n", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/presets/mnist"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = options.data
    if options.few:
        packed = prepare(DataConfig(source=options.data))
        for indices, place in zip(chosen(packed), ("few.npz", "rest.npz"), strict=True):
            if not (options.out / place).exists():
                store(packed, indices, options.out / place)
        data = str(options.out / "few.npz")
    settings, lines = {"training": {"threads": options.threads}}, []
    for budget in options.budgets:
        for name in options.families:
            for preset in options.presets:
                place = options.out / f"{name}-{preset}-{budget}"
                if not (place / "samples.png").exists():
                    calotype.train(
                        name,
                        data,
                        size=options.size,
                        budget=budget,
                        preset=preset,
                        out=place,
                        settings=settings,
                        go_on=True,
                    )
                run = Run.open(place)
                lines.append(line(run, measured(run, options), options))
                print(json.dumps(lines[-1]), flush=True)
    if options.table:
        print(as_markdown(sorted(lines, key=lambda one: str(one["benchmark"]).replace("-tiny-", "--"))))
        print("the larger network becomes the better after", json.dumps(crossings(lines)))


if __name__ == "__main__":
    main()

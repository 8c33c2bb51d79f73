"""What `calotype plan --device cpu` foretells beside what 1, 2 and 4 processes then take. One JSON line per figure.

    python benchmarks/scaling.py --families diffusion gan vae

The preset and batch are those of `benchmarks/processes.py`, whose processes are measured here. The plan is made before,
in a process of its own, of one thread; with more processes than cores they share them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from processes import launched

from calotype.families import FAMILIES
from calotype.training import cluster_cost

COUNTS = (1, 2, 4)
PRESETS = {"diffusion": "small"}  # of others `tiny`
RECIPE = """
family = "{family}"
preset = "{preset}"
budget = "1Mimg"

[dataset]
channels = 3
height = {size}
width = {size}
class_names = {names}
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=["diffusion", "gan", "vae"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for family in options.families:
        preset = PRESETS.get(family, "tiny")
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "recipe.toml"
            names = json.dumps([f"{k}" for k in range(26)])
            recipe.write_text(RECIPE.format(family=family, preset=preset, size=options.size, names=names))
            told = {count: cluster_cost.scale(recipe, device="cpu", gpus=count).cost for count in COUNTS}
        asked = argparse.Namespace(family=family, size=options.size, preset=preset)
        runs = [{count: launched(count, asked) for count in COUNTS} for _ in range(options.rounds)]
        for count in COUNTS:
            seconds = statistics.median(run[count]["step"] for run in runs)
            figures = {
                "benchmark": f"scaling/{family} {count}",
                "value": round(told[count].seconds / seconds, 2),
                "unit": "foretold / measured",
                "foretold_ms": round(1000 * told[count].seconds, 1),
                "measured_ms": round(1000 * seconds, 1),
                "foretold_summing_ms": round(1000 * told[count].summing, 1),
                "measured_summing_ms": round(1000 * statistics.median(run[count]["summing"] for run in runs), 1),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""Time and memory of `calotype check` on a folder of many small files, and of training's start from its pack.

    python benchmarks/small_files.py --count 100000

The pictures are 16 x 16 PNGs of random shapes in ten class folders, with a text file beside one in ten. Each line is
of one process: the first has to pack them, the second finds the pack. The machine's cache of files is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10


def draw(folder: Path, count: int) -> None:
    """Write the pictures."""
    rng = np.random.Generator(np.random.Philox(key=3))
    for k in range(CLASSES):
        (folder / f"class {k}").mkdir(parents=True)
    for i in range(count):
        picture = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        top, left, height, width = rng.integers(0, 12, 4)
        picture[top : top + height + 2, left : left + width + 2] = rng.integers(0, 256, 3)
        place = folder / f"class {i % CLASSES}" / f"{i:06d}.png"
        Image.fromarray(picture).save(place, compress_level=1)
        if i % 10 == 0:
            place.with_suffix(".txt").write_text("a caption\n")


def measured(words: list[str], cache: str) -> tuple[float, float]:
    """Seconds and the largest memory, in MB, of one command."""
    started = time.perf_counter()
    pid = os.fork()
    if not pid:
        os.environ["CALOTYPE_CACHE"] = cache
        done = subprocess.run([sys.executable, "-m", "calotype.cli", *words], stdout=subprocess.DEVNULL)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        Path(cache, "peak").write_text(f"{done.returncode} {peak}")
        os._exit(0)
    os.waitpid(pid, 0)
    status, peak_kib = Path(cache, "peak").read_text().split()
    if status != "0":
        raise SystemExit(f"{' '.join(words)} ended with {status}")
    return time.perf_counter() - started, int(peak_kib) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as place:
        source, cache = Path(place, "pictures"), Path(place, "cache")
        draw(source, count)
        cache.mkdir()
        for name, words in (
            ("check, packing", ["check", str(source)]),
            ("check, packed", ["check", str(source)]),
        ):
            seconds, megabytes = measured(words, str(cache))
            figures = {"benchmark": f"small_files/{name}", "value": round(seconds, 1), "unit": "s", "files": count}
            print(json.dumps(figures | {"largest_mb": round(megabytes), "cores": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    main()

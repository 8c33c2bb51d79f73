"""Memory that runs out under real commands, by a limit on their process, as `ulimit -v` sets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from calotype.errors import is_out_of_memory
from calotype.runs.checkpoints import found
from calotype.runs.run import Run
from tests.conftest import Survived, environment

# A command that has so many MB, given by the first word, more than it has taken when training begins; and says in the
# file of the second word how many it took.
LIMITED = """
import pathlib, resource, sys
from calotype.training import session
from calotype.cli import main

def megabytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

def limited(context, until_done=session.until_done):
    taken = megabytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (int((taken + float(sys.argv[1])) * 2**20), resource.RLIM_INFINITY))
    until_done(context)
    resource.setrlimit(resource.RLIMIT_AS, (2**46, resource.RLIM_INFINITY))  # OpenBLAS, for plots, ends a process
    pathlib.Path(sys.argv[2]).write_text(str(megabytes("VmPeak") - taken))

resource.setrlimit(resource.RLIMIT_AS, (2**46, resource.RLIM_INFINITY))
session.until_done = limited
session.FINAL_GRID = 1
sys.exit(main(sys.argv[3:]))
"""
FITTING = 2  # images at a time: many batch sizes are tried before
ROOM = 15  # MB for what attempts with more images leave behind; kernels of one batch size take twice that
ANY = 1e6  # MB, which no run of these takes
TRAIN = ["train", "diffusion", "photos", "--budget", "32img", "--set", "training.batch_size=32"]
TRAIN += ["--set", "training.threads=1", "--set", "training.precision=fp32", "--set", "training.preview_every=1000000"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits on the memory of a process are Linux's here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of pictures."""
    from PIL import Image

    place, rng = tmp_path_factory.mktemp("memory"), np.random.Generator(np.random.Philox(key=1))
    (place / "photos").mkdir()
    for k in range(40):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(place / "photos" / f"{k}.png")
    return place


def command(folder: Path, megabytes: float, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(megabytes), "taken", *words],
        cwd=folder,
        env=environment(CALOTYPE_CACHE=str(folder / "cache")),
        capture_output=True,
        text=True,
    )


def weights(run: Path) -> dict[str, bytes]:
    """The files of tensors of the last checkpoint."""
    return {file.name: file.read_bytes() for file in found(run / "checkpoints")[-1].glob("*.safetensors")}


def by(folder: Path, size: int) -> dict[str, bytes]:
    """The weights of a run that takes so many images at a time."""
    done = command(folder, ANY, *TRAIN, "--set", f"training.micro_batch={size}", "--out", f"by {size}")
    assert done.returncode == 0, done.stderr
    return weights(folder / f"by {size}")


class Stopped(NamedTuple):
    """A run whose process had no memory for one image, and what it took to go on with it."""

    said: str
    needed: float  # MB, for FITTING images at a time, on this machine: kernels of other processors differ


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Stopped:
    none = command(folder, 2, *TRAIN, "--set", f"training.micro_batch={FITTING}", "--out", "none")
    assert none.returncode == 2, none.stderr
    resumed = command(folder, ANY, "train", "--resume", "none")  # which needs no memory for packing
    assert resumed.returncode == 0, resumed.stderr
    return Stopped(none.stderr, float((folder / "taken").read_text()))


@pytest.mark.slow
@pytest.mark.fault("no memory for one image", "it is said, the last checkpoint is kept, and the run can go on from it")
def test_where_not_one_image_fits_the_run_is_kept(folder: Path, stopped: Stopped, survived: Survived) -> None:
    assert "Traceback" not in stopped.said
    assert "memory ran out (cpu, 1 image(s) at a time" in stopped.said
    assert "train --resume none" in stopped.said
    assert weights(folder / "none") == by(folder, FITTING)
    survived(1)


@pytest.mark.slow
@pytest.mark.fault("memory for a part of a batch", "it is taken in parts, and the update is that of the whole batch")
def test_a_batch_that_does_not_fit_is_taken_in_parts(folder: Path, stopped: Stopped, survived: Survived) -> None:
    short = command(folder, stopped.needed + ROOM, *TRAIN, "--out", "short")
    assert short.returncode == 0, short.stderr
    told = [record["micro_batch"] for record in Run.open(folder / "short").read_log() if "micro_batch" in record]
    assert told
    assert FITTING <= told[-1] < 32
    assert f"memory is short: {told[-1]} images at a time from here on" in short.stdout
    expected = weights(folder / "none") if told[-1] == FITTING else by(folder, told[-1])
    assert weights(folder / "short") == expected
    survived(1)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("could not create a primitive"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short


# A plot in a process that has 4 MB more than it had after the preparation: no room for libraries, or for OpenBLAS.
PLOT = """
import resource
from calotype.evaluation import plots

plots.prepare()
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 4 * 2**20, resource.RLIM_INFINITY))
assert "<svg" in plots.drawn("a line", 200, 100, lambda figure: figure.add_subplot().plot([1, 2]) and None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs a limit on the address space")
@pytest.mark.fault("no memory left when plots are drawn", "what they need was taken before the work: they are drawn")
def test_plots_are_drawn_where_no_memory_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", PLOT], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

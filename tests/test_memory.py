"""Memory that runs out under real commands, by a limit on their process, as `ulimit -v` sets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calotype.checkpoints import found
from calotype.errors import is_out_of_memory
from calotype.runs import Run
from tests.conftest import Survived, environment

# A command that has so many MB, given by the first word, more than it has taken when training begins.
LIMITED = """
import resource, sys
from calotype import training
from calotype.cli import main

def limited(context, until_done=training.until_done):
    taken = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
    until_done(context)

if sys.argv[1] != "any":
    resource.setrlimit(resource.RLIMIT_AS, (2**46, resource.RLIM_INFINITY))
    training.until_done = limited
sys.exit(main(sys.argv[2:]))
"""
# One step of it takes some 400 MB at once, and 15 MB image by image.
TRAIN = ["train", "diffusion", "photos", "--budget", "64img", "--set", "training.batch_size=64"]
TRAIN += ["--set", "training.threads=1", "--set", "training.precision=fp32"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits on the memory of a process are Linux's here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of pictures."""
    from PIL import Image

    place, rng = tmp_path_factory.mktemp("memory"), np.random.Generator(np.random.Philox(key=1))
    (place / "photos").mkdir()
    for k in range(80):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(place / "photos" / f"{k}.png")
    return place


def command(folder: Path, megabytes: int | None, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, "any" if megabytes is None else str(megabytes), *words],
        cwd=folder,
        env=environment(CALOTYPE_CACHE=str(folder / "cache")),
        capture_output=True,
        text=True,
    )


def weights(run: Path) -> dict[str, bytes]:
    """The files of tensors of the last checkpoint."""
    return {file.name: file.read_bytes() for file in found(run / "checkpoints")[-1].glob("*.safetensors")}


@pytest.mark.fault("memory for a part of a batch", "it is taken in parts, and the update is that of the whole batch")
def test_a_batch_that_does_not_fit_is_taken_in_parts(folder: Path, survived: Survived) -> None:
    short = command(folder, 250, *TRAIN, "--out", "short")
    assert short.returncode == 0, short.stderr
    told = [record["micro_batch"] for record in Run.open(folder / "short").read_log() if "micro_batch" in record]
    assert told
    assert 1 < told[-1] < 64
    assert f"memory is short: {told[-1]} images at a time from here on" in short.stdout
    parts = command(folder, None, *TRAIN, "--set", f"training.micro_batch={told[-1]}", "--out", "parts")
    assert parts.returncode == 0, parts.stderr
    assert weights(folder / "short") == weights(folder / "parts")
    survived(1)


@pytest.mark.fault("no memory for one image", "it is said, the last checkpoint is kept, and the run can go on from it")
def test_where_not_one_image_fits_the_run_is_kept(folder: Path, survived: Survived) -> None:
    words = [*TRAIN, "--set", "training.micro_batch=2"]
    none = command(folder, 2, *words, "--out", "none")
    assert none.returncode == 2
    assert "Traceback" not in none.stderr
    assert "memory ran out (cpu, 1 image(s) at a time" in none.stderr
    assert "train --resume none" in none.stderr
    resumed, whole = command(folder, None, "train", "--resume", "none"), command(folder, None, *words, "--out", "whole")
    assert resumed.returncode == whole.returncode == 0, resumed.stderr
    assert weights(folder / "none") == weights(folder / "whole")
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

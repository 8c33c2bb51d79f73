"""Commands on a trained run are killed, or run out of room; the same command finishes when it is repeated.

What is trained here is tiny; what is killed are the commands that draw from it, measure it, and compare families.
`make faults` kills 50 times in all, the tests one command that draws and one that trains and measures.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from calotype.core.rng import fold
from tests.conftest import Survived, environment, mounts_allowed, start
from tests.faults import FAULTS

TINY = ["--size", "8", "--preset", "tiny", "--budget", "64img", "--set", "training.threads=1"]
COMPARE = ["compare", "photos", "--size", "8", "--families", "vae", "--budget", "64img", "--no-baselines"]


class Work(NamedTuple):
    """A command, and what it comes to."""

    words: list[str]
    again: Callable[[Path], list[str]]  # what a user would type after it was stopped
    outcome: Callable[[Path], object]  # all that it came to, but for the time that it took


def _report(path: Path) -> object:
    return json.loads(path.read_text())["values"]


def _compare_again(folder: Path) -> list[str]:
    return ["compare", "--resume", "compared"] if (folder / "compared" / "compare.toml").exists() else COMPARED


COMPARED = [*COMPARE, "-n", "8", "--threads", "1", "--out", "compared"]
COMMANDS = {
    "sample": Work(
        ["sample", "pixels", "-n", "24", "--out", "new", "--npz", "new.npz", "--grid", "new.png"],
        lambda folder: COMMANDS["sample"].words,
        lambda folder: (_bytes(folder / "new"), np.load(folder / "new.npz")["images"].tobytes(), _bytes(folder)),
    ),
    "complete": Work(
        ["complete", "pixels", "photos", "--folder", "completed", "--out", "completed.png"],
        lambda folder: COMMANDS["complete"].words,
        lambda folder: (_bytes(folder / "completed"), _bytes(folder)),
    ),
    "encode": Work(
        ["encode", "codes", "photos", "--out", "codes.npz"],
        lambda folder: COMMANDS["encode"].words,
        lambda folder: {name: array.tobytes() for name, array in np.load(folder / "codes.npz").items()},
    ),
    "evaluate": Work(
        ["evaluate", "codes", "-n", "8"],
        lambda folder: COMMANDS["evaluate"].words,
        lambda folder: (_report(folder / "codes" / "evaluation.json"), (folder / "codes" / "evaluation.html").exists()),
    ),
    "compare": Work(
        COMPARED,
        _compare_again,
        lambda folder: (
            _report(folder / "compared" / "vae" / "evaluation.json"),
            sorted(path.name for path in (folder / "compared" / "entries").iterdir()),
            (folder / "compared" / "comparison.html").exists(),
        ),
    ),
}


TRIED = tuple(COMMANDS) if FAULTS else ("sample", "compare")


def _bytes(folder: Path) -> dict[str, bytes]:
    """The pictures of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def finish(words: list[str], folder: Path) -> str:
    process = start(words, folder)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def files(folder: Path) -> set[str]:
    """All files, but for locks; packs and features are named for digests of where the pictures are."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"[0-9a-f]{16,}", "DIGEST", name) for name in found if not name.endswith("lock")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and two runs that were trained on them."""
    folder = tmp_path_factory.mktemp("interruptions")
    rng = np.random.Generator(np.random.Philox(key=2))
    (folder / "photos").mkdir()
    for k in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "photos" / f"{k}.png")
    for family, out in (("autoregressive", "pixels"), ("vae", "codes")):
        finish(["train", family, "photos", *TINY, "--out", out], folder)
    return folder


class Whole(NamedTuple):
    """A command that nothing happened to."""

    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """What a command comes to, by its name; done once for all tests, which read it."""

    @functools.cache
    def of(name: str) -> Whole:
        folder = copy(trained, tmp_path_factory.mktemp("whole") / name)
        started = time.monotonic()
        finish(COMMANDS[name].words, folder)
        return Whole(folder, time.monotonic() - started)

    return of


def copy(trained: Path, to: Path) -> Path:
    """The same, with nothing packed."""
    shutil.copytree(trained, to, ignore=shutil.ignore_patterns("cache"))
    return to


@pytest.mark.slow
@pytest.mark.fault(
    "kill -9, at any moment of sample, complete, encode, evaluate, compare",
    "the same command, or --resume, finishes; images and figures are the same, and no file is left over",
)
@pytest.mark.parametrize("name", TRIED)
def test_killed_at_any_moment_it_finishes_the_second_time(
    name: str, trained: Path, whole: Callable[[str], Whole], tmp_path: Path, survived: Survived
) -> None:
    work, undisturbed = COMMANDS[name], whole(name)
    expected, there = work.outcome(undisturbed.folder), files(undisturbed.folder)
    moments = np.random.Generator(np.random.Philox(key=fold(0, name)))
    wanted = -(-FAULTS // len(COMMANDS)) or 1
    kills, seconds = Counter[str](), undisturbed.seconds
    for k in range(20 * wanted):
        folder = copy(trained, tmp_path / str(k))
        words = work.words
        while kills.total() < wanted:
            process, begun = start(words, folder), time.monotonic()
            try:
                # loading torch takes a good part of it, and writes nothing
                printed, _ = process.communicate(timeout=moments.uniform(0.4, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                kills[f"{len(files(folder) - files(trained))} new files"] += 1
                process.send_signal(signal.SIGKILL)
                printed, _ = process.communicate()
                assert "Traceback" not in printed
                words = work.again(folder)
            else:
                assert process.returncode == 0, printed
                seconds = min(seconds, time.monotonic() - begun)  # the machine may have been busier before
                break
        else:
            finish(words, folder)
        assert work.outcome(folder) == expected
        assert files(folder) == there
        shutil.rmtree(folder)
        if kills.total() >= wanted:
            break
    print(f"{name}: {dict(kills)}")
    assert kills.total() == wanted
    survived(wanted)


# A disk of its own, in a place of its own that goes with the process: too small for the command, then large enough.
DISK = """
import os, pathlib, shutil, subprocess, sys

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "disk"], check=True)

def calotype(words):
    command = [sys.executable, "-m", "calotype.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd="disk")
    print(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode

def left():
    return [str(path) for path in pathlib.Path("disk").rglob("*") if ".tmp" in path.name]

wanted, size, words, again = eval(sys.argv[1])
os.environ["CALOTYPE_CACHE"] = os.path.abspath("disk/cache")
mount("size=1g")
shutil.copytree("before", "disk", dirs_exist_ok=True)
mount(f"remount,size={size}")
assert calotype(words) == 2
assert not left(), left()
mount("remount,size=1g")
if again and pathlib.Path("disk", again[-1]).exists():
    words = again
assert calotype(words) == 0
shutil.copytree("disk", "after")
"""


def taken(folder: Path) -> int:
    """What the files of a folder take on a disk of pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.skipif(not mounts_allowed(), reason="a disk of its own cannot be mounted here")
@pytest.mark.fault(
    "a disk that is full in sample, complete, encode, evaluate, compare",
    "it says so, and nothing half-written stays; with room the same command finishes, the same",
)
@pytest.mark.parametrize("name", TRIED)
def test_a_full_disk_is_said_and_the_command_finishes_with_room(
    name: str, trained: Path, whole: Callable[[str], Whole], tmp_path: Path, survived: Survived
) -> None:
    work, undisturbed = COMMANDS[name], whole(name)
    expected, before = work.outcome(undisturbed.folder), taken(copy(trained, tmp_path / "before"))
    written = taken(undisturbed.folder) - before
    shares = (0.1, 0.3, 0.5, 0.7, 0.9) if FAULTS else (0.5,)
    for share in shares:
        folder = tmp_path / f"{share}"
        (folder / "disk").mkdir(parents=True)
        copy(trained, folder / "before")
        again = ["compare", "--resume", "compared"] if name == "compare" else []
        told = repr((None, before + int(share * written), work.words, again))
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", DISK, told],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "room" in done.stdout or "No space left" in done.stdout
        assert work.outcome(folder / "after") == expected
    survived(len(shares))

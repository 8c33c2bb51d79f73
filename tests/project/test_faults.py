"""Commands that are killed at moments nobody chose, started again as a user would, and nothing is lost.

`make faults` kills 50 times, the tests three times.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from calotype.core.rng import fold
from calotype.runs.checkpoints import found
from calotype.runs.run import Run
from tests.conftest import Survived, environment, mounts_allowed, start
from tests.faults import FAULTS, in_the_suite, in_the_table

KILLS = FAULTS or 3
EVERY = 64  # images between checkpoints
TRAIN = ["train", "vae", "photos", "--size", "12", "--budget", "960img", "--out", "run"]
TRAIN += ["--set", f"training.checkpoint_every={EVERY}", "--set", "training.threads=1"]
EVALUATE = ["evaluate", "run", "-n", "8"]


def photos(folder: Path) -> Path:
    """A folder with a folder of pictures, enough that packing them takes a moment."""
    from PIL import Image

    rng = np.random.Generator(np.random.Philox(key=1))
    (folder / "photos").mkdir(parents=True)
    for k in range(200):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / "photos" / f"{k}.png")
    return folder


def next_words(folder: Path) -> list[str]:
    """What a user would type now: to go on where a run is there, else to begin; or to measure what is trained."""
    if not (folder / "run" / "config.toml").exists():
        return TRAIN
    if (folder / "run" / "samples.png").exists():
        return EVALUATE
    return ["train", "--resume", "run"]


def phase(folder: Path) -> str:
    """What a command was doing when it was killed, by the files that it left."""
    if not (folder / "run" / "config.toml").exists():
        return "packing" if (folder / "cache").exists() else "starting"
    if (folder / "run" / "samples.png").exists():
        return "evaluating"
    return "checkpointing" if list((folder / "run" / "checkpoints").glob(".*.tmp")) else "training"


def outcome(folder: Path) -> dict[str, bytes | str]:
    """All that a run and its evaluation came to, but for the time they took."""
    report = json.loads((folder / "run" / "evaluation.json").read_text())
    measured = json.dumps(report["values"])
    newest = found(folder / "run" / "checkpoints")[-1]
    return {file.name: file.read_bytes() for file in newest.iterdir() if file.suffix == ".safetensors"} | {
        "samples.png": (folder / "run" / "samples.png").read_bytes(),
        "evaluation": measured,
    }


def names(folder: Path) -> set[str]:
    """All files, but for locks."""
    files = (path for part in ("run", "cache") for path in (folder / part).rglob("*") if path.is_file())
    return {
        re.sub(r"photos-[0-9a-f]{16}", "photos", str(path.relative_to(folder)))  # the digest of where they are
        for path in files
        if not path.name.endswith("lock")
    }


def finish(folder: Path) -> list[str]:
    """Do what is left to do; returns what was said."""
    said = []
    while not (folder / "run" / "evaluation.html").exists():
        process = start(next_words(folder), folder)
        said.append(process.communicate()[0])
        assert process.returncode == 0, said[-1]
    return said


class Undisturbed(NamedTuple):
    """A run that nothing happened to, and its evaluation."""

    folder: Path
    seconds: float  # of one of the two commands, on the mean


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What the others are compared with, made once: tests read it."""
    folder = photos(tmp_path_factory.mktemp("undisturbed") / "whole")
    started = time.monotonic()
    finish(folder)
    return Undisturbed(folder, (time.monotonic() - started) / 2)


@pytest.mark.slow
@pytest.mark.fault(
    "kill -9, at any moment of packing, training, checkpoints, evaluation",
    "the next command goes on; the result is the same bit for bit, and no file is left over",
)
def test_killed_at_any_moment_nothing_is_lost(undisturbed: Undisturbed, tmp_path: Path, survived: Survived) -> None:
    expected, files = outcome(undisturbed.folder), names(undisturbed.folder)

    moments = np.random.Generator(np.random.Philox(key=fold(0, "kills")))
    kills, rounds = Counter[str](), 0
    while sum(kills.values()) < KILLS:
        folder = photos(tmp_path / str(rounds))
        while sum(kills.values()) < KILLS and not (folder / "run" / "evaluation.html").exists():
            last = found(folder / "run" / "checkpoints")[-1:] if next_words(folder)[1] == "--resume" else []
            process = start(next_words(folder), folder)
            try:
                printed, _ = process.communicate(timeout=moments.uniform(0.2, 1.0) * undisturbed.seconds)
            except subprocess.TimeoutExpired:
                kills[phase(folder)] += 1
                process.send_signal(signal.SIGKILL)
                printed, _ = process.communicate()
            else:
                assert process.returncode == 0, printed
            assert "Traceback" not in printed
            if "continuing at" in printed:
                assert f"continuing at {int(last[0].name):,} of" in printed  # no step before the checkpoint is lost
        finish(folder)
        assert outcome(folder) == expected
        assert names(folder) == files
        rounds += 1
    print(f"{sum(kills.values())} kills in {rounds} runs: {dict(kills)}")
    survived(sum(kills.values()))


def seconds_of(process: subprocess.Popen[str]) -> float:
    """Of the processor, which other processes do not lengthen as they do those of the clock."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.fault("SIGTERM, as before a node is taken away", "it stops within 10 s, saved at the step it was at")
def test_a_stop_is_quick_and_loses_nothing(tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it some seconds before SIGKILL."""
    folder = photos(tmp_path / "stopped")
    process = start([word.replace("960img", "96000img") for word in TRAIN], folder)
    while not found(folder / "run" / "checkpoints")[1:]:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    before = seconds_of(process)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    with process.stdout as output:
        printed = output.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert used.ru_utime + used.ru_stime - before < 10
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped and saved. Continue with: calotype train --resume run" in printed
    seen = [record.get("images_seen", 0) for record in Run.open(folder / "run").read_log()]
    assert int(found(folder / "run" / "checkpoints")[-1].name) >= max(seen)


@pytest.mark.slow
@pytest.mark.fault("pictures deleted while they are learned", "the run goes on from its pack, to the same weights")
def test_the_pictures_vanish_under_a_running_job(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """What is packed is what is learned: the pictures themselves are needed no more."""
    folder = photos(tmp_path / "robbed")
    process = start(TRAIN, folder)
    while not (folder / "run" / "config.toml").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    for picture in (folder / "photos").iterdir():
        picture.unlink()
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    newest = [found(path / "run" / "checkpoints")[-1] / "ema.safetensors" for path in (undisturbed.folder, folder)]
    assert newest[0].read_bytes() == newest[1].read_bytes()


# A disk of its own for a run, in a place of its own that goes with the process: full, then larger; then read-only.
DISK = """
import pathlib, subprocess, sys

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "disk"], check=True)

def calotype(*words):
    done = subprocess.run([sys.executable, "-m", "calotype.cli", *words], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr

mount(f"size={sys.argv[1]}")
full = calotype(*sys.argv[2:])
mount("remount,size=1g")
assert not list(pathlib.Path("disk/run/checkpoints").glob(".*"))
mount("remount,ro")
closed = calotype("train", "--resume", "disk/run")
mount("remount,rw")
assert calotype("train", "--resume", "disk/run") == (0, "")
for file in max(pathlib.Path("disk/run/checkpoints").glob("0*")).glob("*.safetensors"):
    pathlib.Path(file.name).write_bytes(file.read_bytes())
print(full, closed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not mounts_allowed(), reason="a disk of its own cannot be mounted here")
@pytest.mark.fault(
    "a disk that is full, then read-only, under a run", "it says so; with room the run goes on, the same"
)
def test_a_disk_that_is_full_and_then_read_only(undisturbed: Undisturbed, tmp_path: Path, survived: Survived) -> None:
    folder, whole = photos(tmp_path / "short"), undisturbed.folder
    (folder / "disk").mkdir()
    written = (file for file in (whole / "run").rglob("*") if file.is_file() and file.stem != "evaluation")
    taken = sum(file.stat().st_size for file in written)
    words = ["disk/run" if word == "run" else word for word in TRAIN]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", DISK, str(taken // 2), *words],
        cwd=folder,
        env=environment(CALOTYPE_CACHE=str(folder / "cache")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert "Earlier checkpoints are intact: make room" in done.stdout
    assert "Read-only file system" in done.stdout
    for file in found(whole / "run" / "checkpoints")[-1].glob("*.safetensors"):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    survived(2)


# The system's clock, but each look at it is up to a year away from the one before, forwards or back.
CLOCK = """
import random, sys, time
jumps, told = random.Random(0), time.time
time.time = lambda: told() + jumps.uniform(-3.2e7, 3.2e7)
from calotype.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.fault("a clock that jumps by months", "the result is the same, and so are the times that are told")
def test_a_clock_that_jumps(undisturbed: Undisturbed, tmp_path: Path, survived: Survived) -> None:
    jumping = photos(tmp_path / "jumping")
    for words in (TRAIN, EVALUATE):
        done = subprocess.run(
            [sys.executable, "-c", CLOCK, *words],
            cwd=jumping,
            env=environment(CALOTYPE_CACHE=str(jumping / "cache")),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert outcome(jumping) == outcome(undisturbed.folder)
    cost = json.loads((jumping / "run" / "evaluation.json").read_text())["cost"]
    assert 0 <= cost["seconds of training"] < 600
    survived(len(Run.open(jumping / "run").read_log()))


@pytest.mark.slow
@pytest.mark.fault("two commands that train one run", "the second is refused at once, and the first is not disturbed")
def test_two_commands_for_one_run(tmp_path: Path, survived: Survived) -> None:
    folder = photos(tmp_path / "shared")
    first = start(TRAIN, folder)
    while not found(folder / "run" / "checkpoints"):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    second = start(["train", "--resume", "run"], folder)
    printed, _ = second.communicate()
    assert second.returncode == 2
    assert "being trained by another process" in printed
    assert "Traceback" not in printed
    assert first.wait() == 0, first.communicate()[0]
    first.communicate()
    survived(1)


def test_the_page_lists_what_the_tests_break() -> None:
    assert sorted(in_the_table()) == sorted(in_the_suite())

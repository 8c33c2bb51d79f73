"""A run that is killed and continued is the run that was not: tested with processes that are killed for real."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calotype.core.model import Batch, Loss
from calotype.core.rng import Noise
from calotype.errors import DataError, RunError, TrainingDiverged
from calotype.families.diffusion import Diffusion
from calotype.optimization.config import TrainConfig
from calotype.runs import checkpoints
from calotype.runs.run import Run
from calotype.training import setup
from tests.conftest import environment

SETTINGS = {
    "model": {"widths": [16], "blocks": 1, "attention": [], "patch": 2, "dropout": 0.1},
    "training": {"batch_size": 4, "checkpoint_every": 40, "preview_every": 1000, "warmup": 0.0, "flips": True},
}
BUDGET = "480img"


def start(photos: Path, out: Path, **training_settings: object) -> Run:
    settings = SETTINGS | {"training": SETTINGS["training"] | training_settings}
    return setup.train("diffusion", photos, budget=BUDGET, out=out, settings=settings, display=Quiet())


class Quiet:
    """A display that remembers what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def message(self, text: str) -> None:
        self.messages.append(text)

    def count(self, what: str, done: int, total: int) -> None:
        return None

    def training(self, status: object) -> None:
        return None


def final_state(run: Run) -> dict[str, bytes]:
    """The bytes of everything in the newest checkpoint."""
    newest = run.checkpoints()[-1]
    assert newest.name == f"{480:012d}"
    return {path.name: path.read_bytes() for path in sorted(newest.iterdir())}


def child(arguments: list[str], photos: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "calotype.cli", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=photos.parent,
    )


def wait_for(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has come to `count` images, by its log, or the process has ended."""
    log = run / "log.jsonl"
    while process.poll() is None:
        for line in log.read_text().splitlines() if log.exists() else []:
            if line.endswith("}") and json.loads(line).get("images_seen", 0) >= count:
                return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.fault(
    "kill -9 in each quarter of training",
    "resumed, every byte of the last checkpoint is that of an undisturbed run",
)
def test_killed_anywhere_and_resumed_is_bit_exact(picture_folder: Path, tmp_path: Path) -> None:
    straight = start(picture_folder, tmp_path / "straight")
    shutil.copytree(straight.path, tmp_path / "killed")
    killed = tmp_path / "killed"
    for name in ("checkpoints", "previews"):
        shutil.rmtree(killed / name, ignore_errors=True)
    (killed / "log.jsonl").unlink()

    kills = 0
    for count in (0, 80, 200, 360):  # before the first step, and after further and further checkpoints
        process = child(["--resume", str(killed)], picture_folder)
        wait_for(killed, count, process)
        time.sleep(0.003 * count / 40)  # somewhere within a step, a checkpoint, or between
        process.send_signal(signal.SIGKILL)
        printed, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), printed
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2  # the machine may be so fast that a run ends before the last of them
    resumed = setup.resume(killed, display=Quiet())
    assert final_state(resumed) == final_state(straight)


def test_killed_while_writing_a_checkpoint(picture_folder: Path, tmp_path: Path) -> None:
    """What a kill leaves behind half-written has a temporary name, is not read, and is swept away."""
    run = start(picture_folder, tmp_path / "run")
    expected = final_state(run)
    for newest in run.checkpoints()[-2:]:
        shutil.rmtree(newest)
    left = run.path / "checkpoints" / f".{440:012d}.77.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    setup.resume(run.path, display=Quiet())
    assert final_state(run) == expected
    assert not left.exists()


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run")
    expected = final_state(run)
    newest = run.checkpoints()[-1]
    content = bytearray((newest / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "ema.safetensors").write_bytes(content)
    shown = Quiet()
    setup.resume(run.path, display=shown)
    assert any("damaged" in message and newest.name in message for message in shown.messages)
    assert final_state(run) == expected


def test_repeating_a_recipe_repeats_the_run(picture_folder: Path, tmp_path: Path) -> None:
    first = start(picture_folder, tmp_path / "first")
    again = setup.train(out=tmp_path / "again", recipe=first.path / "config.toml", display=Quiet())
    assert final_state(again) == final_state(first)
    assert again.config == replace(first.config, budget="480img")


def test_resuming_a_finished_run_changes_nothing(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run")
    expected = final_state(run)
    shown = Quiet()
    setup.resume(run.path, display=shown)
    assert "nothing to continue" in shown.messages[-1]
    assert final_state(run) == expected


def test_killed_before_the_last_grid_it_is_still_made(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run")
    expected = (run.path / "samples.png").read_bytes()
    (run.path / "samples.png").unlink()
    setup.resume(run.path, display=Quiet())
    assert (run.path / "samples.png").read_bytes() == expected


@pytest.mark.fault("pictures that change before a run is resumed", "it is refused, with what has changed")
def test_changed_pictures_are_noticed(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run")
    next(picture_folder.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="has changed since"):
        setup.resume(run.path, display=Quiet())


def test_the_original_pictures_are_not_needed(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run")
    expected = final_state(run)
    shutil.rmtree(run.checkpoints()[-1])
    picture_folder.rename(tmp_path / "elsewhere")
    setup.resume(run.path, display=Quiet())
    assert final_state(run) == expected


def test_a_run_is_trained_by_one_process_at_a_time(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run")
    with run.locked(), pytest.raises(RunError, match="another process"):
        setup.resume(run.path, display=Quiet())


def test_best_is_the_lowest_held_out_loss_and_is_kept(picture_folder: Path, tmp_path: Path) -> None:
    run = start(picture_folder, tmp_path / "run", learning_rate=0.02)
    losses = {r["images_seen"]: r["held_out/model"] for r in run.read_log() if r["event"] == "checkpoint"}
    best = run.best()
    assert best is not None
    assert int(best.name) == min(losses, key=lambda seen: (losses[seen], -seen))
    newest = [int(p.name) for p in run.checkpoints()][-3:]
    assert newest == [400, 440, 480]


# -- divergence


def poison(monkeypatch: pytest.MonkeyPatch, bad: range, twice: bool = False) -> list[int]:
    """Make the loss infinite for the calls numbered in `bad`; returns the list of calls."""
    calls: list[int] = []
    original = Diffusion.loss

    def loss(self: Diffusion, batch: Batch, noise: Noise) -> Loss:
        result = original(self, batch, noise)
        if not result.value.requires_grad:  # a held-out measurement
            return result
        calls.append(len(calls))
        return Loss(result.value * float("inf"), {}) if calls[-1] in bad else result

    monkeypatch.setattr(Diffusion, "loss", loss)
    return calls


@pytest.mark.fault("an update that is not finite", "it is not applied, and training goes on")
def test_one_bad_update_is_passed_over(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(33, 35))
    run = start(picture_folder, tmp_path / "run")
    events = [record["event"] for record in run.read_log()]
    assert events.count("skipped") == 2
    assert "returned" not in events
    assert final_state(run)


@pytest.mark.fault(
    "three updates in a row that are not finite",
    "the run goes back to its last checkpoint, and on with other pictures",
)
def test_three_in_a_row_go_back_to_the_checkpoint_and_on_with_other_data(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = poison(monkeypatch, range(33, 36))
    run = start(picture_folder, tmp_path / "run")
    returned = [record for record in run.read_log() if record["event"] == "returned"]
    assert len(returned) == 1
    assert returned[0]["images_seen"] == 120  # the checkpoint before step 34
    state = checkpoints.read(run.checkpoints()[-1])
    assert state["counters"]["step"] == 120
    assert state["counters"]["shift"] == 36 - 30  # the stretch of data from the checkpoint to the failure
    assert state["counters"]["returns"] == 0  # reaching the next checkpoint makes up for it
    assert len(calls) == 120 + 6
    assert all(bool(torch.isfinite(v).all()) for v in state["model"].values())


@pytest.mark.fault(
    "updates that are never finite again",
    "the run stops, names a lower rate, and keeps its last good checkpoint",
)
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(33, 10_000))
    with pytest.raises(TrainingDiverged, match=r"last good checkpoint.*learning_rate"):
        start(picture_folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert [int(path.name) for path in run.checkpoints()] == [40, 80, 120]
    assert sum(record["event"] == "returned" for record in run.read_log()) == 3
    used, model = run.model()
    assert int(used.name) == 120
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_settings_of_the_test_are_the_settings_of_the_run(picture_folder: Path, tmp_path: Path) -> None:
    config = start(picture_folder, tmp_path / "run").config.training
    assert config == TrainConfig(
        images=480,
        batch_size=4,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        warmup=0.0,
        flips=True,
        checkpoint_every=40,
        preview_every=1000,
        threads=config.threads,
    )

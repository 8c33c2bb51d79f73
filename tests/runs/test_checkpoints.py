from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calotype.data import DataConfig
from calotype.errors import PlaceError, RunError
from calotype.families.diffusion import DiffusionConfig
from calotype.optimization.config import TrainConfig
from calotype.optimization.optimizers import OPTIMIZERS
from calotype.optimization.trainer import Trainer
from calotype.runs import checkpoints
from calotype.runs.checkpoints import DamagedCheckpoint
from calotype.runs.config import DatasetFacts, RunConfig
from calotype.runs.run import Run, load
from tests.conftest import Stripes, Survived, environment, mounts_allowed

FILES = ["model.safetensors", "ema.safetensors", "optimizers.safetensors", "state.json"]


def small_state(value: float = 1.0) -> dict[str, Any]:
    """What a trainer would give: tensors in several layouts and types, with values that text would not keep."""
    odd = torch.tensor([value, -0.0, 5e-324, float("inf"), float("nan"), 0.1], dtype=torch.float64)
    weights = {
        "conv.weight": torch.linspace(-value, value, 24).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.linspace(0, value, 5).bfloat16(),
        "scalar": torch.tensor(value),
        "count": torch.tensor([2**62 + 1]),
        "odd": odd,
    }
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": weights["conv.weight"] / 3}, 11: {"step": torch.tensor(8.0)}}
    return {
        "counters": {"step": 5, "micro_batch": 64},
        "model": weights,
        "ema": {name: tensor.clone() for name, tensor in weights.items()},
        "optimizers": {"generator": moments, "discriminator": {3: {"exp_avg_sq": odd}}},
    }


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def same(a: Any, b: Any) -> bool:
    """Whether two nested states agree bit for bit, keys and all."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same_bits(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = small_state()
    path = checkpoints.write(tmp_path / "checkpoints", 320, state, {"held_out": 0.1 + 0.2})
    assert path == tmp_path / "checkpoints" / "000000000320"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert same(checkpoints.read(path), state)
    assert checkpoints.facts(path) == {"held_out": 0.1 + 0.2}
    digest, tensors = checkpoints.read_weights(path, "ema")
    assert same(tensors, state["ema"])
    assert digest == json.loads((path / "state.json").read_text())["sha256"]["ema.safetensors"]


def test_state_that_is_empty(tmp_path: Path) -> None:
    """A trainer that has not stepped yet has no moments."""
    state = small_state() | {"optimizers": {}}
    assert same(checkpoints.read(checkpoints.write(tmp_path, 0, state, {})), state)


def test_the_same_position_again_replaces(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, 5, small_state(1.0), {})
    path = checkpoints.write(tmp_path, 5, small_state(2.0), {})
    assert same(checkpoints.read(path), small_state(2.0))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.fault("a bit flipped in a checkpoint", "it is found when the checkpoint is read")
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(tmp_path: Path, survived: Survived, name: str) -> None:
    path = checkpoints.write(tmp_path, 5, small_state(), {"held_out": 1.5})
    file = path / name
    content = file.read_bytes()
    assert len(content) > 200
    positions = [0, 1, 8, 9, *range(50, len(content), len(content) // 20), len(content) - 1]
    for position in positions:
        for bit in (0, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(DamagedCheckpoint, match=r"damaged|cannot be read"):
                checkpoints.read(path)
    file.write_bytes(content)
    assert same(checkpoints.read(path), small_state())
    survived(2 * len(positions))


@pytest.mark.fault("a file of a checkpoint cut off, or gone", "it is found when the checkpoint is read")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_or_missing_is_found(tmp_path: Path, name: str) -> None:
    path = checkpoints.write(tmp_path, 5, small_state(), {})
    content = (path / name).read_bytes()
    for length in (len(content) - 1, len(content) // 2, 8, 0):
        (path / name).write_bytes(content[:length])
        with pytest.raises(DamagedCheckpoint):
            checkpoints.read(path)
    (path / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=name):
        checkpoints.read(path)


@pytest.mark.fault("a file of another checkpoint in the place of its own", "it is found when the checkpoint is read")
def test_files_of_another_checkpoint_are_found(tmp_path: Path) -> None:
    first, second = (checkpoints.write(tmp_path, k, small_state(float(k)), {}) for k in (1, 2))
    shutil.copy(first / "ema.safetensors", second / "ema.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"ema\.safetensors is damaged"):
        checkpoints.read(second)


@pytest.mark.fault("half a checkpoint of a killed process", "it is not taken for one, and is swept away")
def test_what_killed_writers_leave_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    kept = checkpoints.write(tmp_path, 5, small_state(), {})
    for name in (".000000000010.123.tmp", ".000000000001.old.tmp"):
        shutil.copytree(kept, tmp_path / name)
    (tmp_path / ".000000000010.123.tmp" / "state.json").unlink()
    assert checkpoints.found(tmp_path) == [kept]
    newer = checkpoints.write(tmp_path, 10, small_state(), {})
    assert sorted(tmp_path.iterdir()) == [kept, newer]


# -- a full disk


# A limit on the size of files stands for a full disk everywhere; where a tmpfs can be mounted, there is a real one too.
DISKS = ["limit", *(["tmpfs"] if mounts_allowed() else [])]

# The files of the second checkpoint are of growing size, so that in turn each of the four does not fit.
FULL_DISK = """
import os, resource, sys, torch
from pathlib import Path
from calotype.runs import checkpoints
from calotype.errors import PlaceError, RunError

disk, limited = Path(sys.argv[1]), sys.argv[2] == "limit"
ballast, parent = disk / "ballast", disk / "checkpoints"

def leave(free):
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, resource.RLIM_INFINITY))
    else:
        there = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(bytes(there - free))

def release():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    ballast.unlink(missing_ok=True)

state = {"counters": {"step": 1}, "model": {"w": torch.ones(1000)}, "ema": {"w": torch.ones(3000)},
         "optimizers": {"model": {0: {"exp_avg": torch.ones(6000)}}}}
first = checkpoints.write(parent, 1, state, {})
for free in (4096, 8192, 20480, 49152):
    leave(free)
    try:
        checkpoints.write(parent, 2, state, {"note": ["x" * 1_000] * 50})
    except RunError as error:
        print(error)
    else:
        sys.exit("written in spite of the full disk")
    assert list(parent.iterdir()) == [first], list(parent.iterdir())
    assert torch.equal(checkpoints.read(first)["ema"]["w"], torch.ones(3000))
    release()
second = checkpoints.write(parent, 2, state, {"note": ["x" * 1_000] * 50})
assert checkpoints.facts(second)["note"] == ["x" * 1_000] * 50
"""


@pytest.mark.fault(
    "a disk that is full at each file of a checkpoint",
    "it says so, earlier checkpoints are intact, nothing half-written stays",
)
@pytest.mark.parametrize("disk", DISKS)
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_half_written(tmp_path: Path, disk: str) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), disk]
    if disk == "tmpfs":
        mount = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
        inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)]
        command = inside + command
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert "000000000002 could not be written" in line
        assert "Earlier checkpoints are intact: make room, then continue with --resume" in line


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(PlaceError, match="checkpoints is a file and not a folder: choose another"):
        checkpoints.write(tmp_path / "checkpoints", 1, small_state(), {})


# -- in a run


def new_trainer(config: RunConfig) -> Trainer:
    return Trainer(config.new_model(), Stripes(labels=False).batches(config.training.batch_size), config.training)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = RunConfig(
        family="diffusion",
        preset="",
        budget="80img",
        data=DataConfig(source=str(tmp_path / "stripes")),  # as a config is read: absolute
        dataset=DatasetFacts(channels=1, height=8, width=8, class_names=(), train=64, held_out=8, digest="0"),
        model=DiffusionConfig(widths=(16,), blocks=1, attention=(), sigma_data=0.5),
        training=TrainConfig(images=80, batch_size=8),
    )
    return Run.create(tmp_path / "run", config)


def names(run: Run) -> list[int]:
    return [int(path.name) for path in run.checkpoints()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_a_trainer_comes_back_with_its_layout(run: Run, optimizer: str) -> None:
    run.config = replace(run.config, training=replace(run.config.training, optimizer=optimizer))
    trainer = new_trainer(run.config)
    for _ in trainer.run(3):
        pass
    run.save(trainer, {})
    other = new_trainer(run.config)
    assert run.restore(other, pytest.fail)
    assert same(other.state_dict(), trainer.state_dict())
    for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert a.stride() == b.stride()
        for mine, theirs in zip(trainer.optimizers["model"], other.optimizers["model"], strict=True):
            known, loaded = mine.state.get(a, {}), theirs.state.get(b, {})
            assert {k: v.stride() for k, v in known.items()} == {k: v.stride() for k, v in loaded.items()}
    for _ in trainer.run(5):
        pass
    for _ in other.run(5):
        pass
    assert same(other.state_dict(), trainer.state_dict())


def test_the_newest_three_and_the_best_are_kept(run: Run) -> None:
    trainer = new_trainer(run.config)
    scores = [None, 0.9, 0.3, float("nan"), 0.5, 0.4, 0.3, 0.6, 0.7, 0.8, None]
    kept = []
    for step, score in enumerate(scores):
        for _ in trainer.run(step):
            pass
        run.save(trainer, {} if score is None else {"held_out": score})
        kept.append([seen // 8 for seen in names(run)])
    assert kept == [
        [0],
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [2, 3, 4, 5],
        [4, 5, 6],  # as good as step 2, and newer
        [5, 6, 7],
        [6, 7, 8],
        [6, 7, 8, 9],
        [6, 8, 9, 10],
    ]
    best = run.best()
    assert best is not None
    assert int(best.name) == 6 * 8
    assert not list((run.path / "checkpoints").glob(".*"))


def saved_at(run: Run, *steps: int) -> Trainer:
    trainer = new_trainer(run.config)
    for step in steps:
        for _ in trainer.run(step):
            pass
        run.save(trainer, {})
    return trainer


@pytest.mark.fault(
    "a damaged newest checkpoint, at resuming",
    "it is put aside under another name, and the one before is used",
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_is_put_aside_and_the_one_before_used(run: Run, name: str) -> None:
    saved_at(run, 1, 2)
    newest = run.checkpoints()[-1]
    content = bytearray((newest / name).read_bytes())
    content[-3] ^= 1
    (newest / name).write_bytes(content)
    reports: list[str] = []
    trainer = new_trainer(run.config)
    assert run.restore(trainer, reports.append)
    assert trainer.step == 1
    assert len(reports) == 1
    assert name in reports[0]
    assert "put aside as damaged-000000000016" in reports[0]
    assert names(run) == [8]
    assert (run.path / "checkpoints" / "damaged-000000000016" / name).exists()
    for _ in trainer.run(2):
        pass
    run.save(trainer, {})  # the same position again, now sound
    assert same(checkpoints.read(run.checkpoints()[-1]), trainer.state_dict())


def test_the_same_position_may_be_damaged_twice(run: Run) -> None:
    for _ in range(2):
        saved_at(run, 1, 2)
        (run.checkpoints()[-1] / "ema.safetensors").unlink()
        trainer = new_trainer(run.config)
        assert run.restore(trainer, lambda _: None)
        assert trainer.step == 1


def test_a_run_without_a_sound_checkpoint(run: Run) -> None:
    trainer = new_trainer(run.config)
    assert not run.restore(trainer, pytest.fail)
    with pytest.raises(RunError, match="no sound checkpoint"):
        run.model()
    saved_at(run, 1)
    (run.checkpoints()[0] / "state.json").write_text("{}")
    with pytest.raises(RunError, match="no sound checkpoint"):
        run.model(report=lambda _: None)
    assert not run.restore(trainer, lambda _: None)
    assert trainer.step == 0


def test_sampling_passes_over_a_damaged_checkpoint_and_leaves_it(run: Run) -> None:
    trainer = saved_at(run, 1, 2)
    (run.checkpoints()[-1] / "ema.safetensors").write_bytes(b"")
    reports: list[str] = []
    path, _ = run.model(report=reports.append)
    assert int(path.name) == 8
    assert len(reports) == 1
    assert names(run) == [8, 16]
    path, model = run.model(ema=False, report=pytest.fail)
    assert int(path.name) == 16
    assert same(dict(model.state_dict()), dict(trainer.model.state_dict()))


@pytest.mark.parametrize(("asked", "images_seen"), [("last", 16), ("best", 16), ("8", 8), ("000000000008", 8)])
def test_a_checkpoint_by_name(run: Run, asked: str, images_seen: int) -> None:
    saved_at(run, 1, 2)
    assert int(run.model(asked)[0].name) == images_seen


def test_an_unknown_checkpoint_names_those_there_are(run: Run) -> None:
    saved_at(run, 1, 2)
    with pytest.raises(RunError, match="no checkpoint 9: give last, best, or one of 8, 16"):
        run.model("9")


@pytest.mark.fault("a log whose last line was cut off", "that line is passed over, and the log goes on")
def test_the_log_goes_on_after_a_line_that_was_cut_off(run: Run) -> None:
    run.log("one", value=1.5)
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"event": "cut of')
    assert [record["event"] for record in run.read_log()] == ["one"]
    run.log("two")
    run.log("three")
    assert [record["event"] for record in run.read_log()] == ["one", "two", "three"]
    assert len((run.path / "log.jsonl").read_text().splitlines()) == 4


def test_two_trainers_do_not_share_a_run(run: Run) -> None:
    with run.locked(), pytest.raises(RunError, match="being trained by another process"), Run.open(run.path).locked():
        pytest.fail("locked twice")
    with run.locked():
        pass


def test_a_run_is_not_made_over_another(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is already a run: continue it with"):
        Run.create(run.path, run.config)
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="choose another --out"):
            Run.create(path, run.config)
    with pytest.raises(RunError, match="cannot be made a run directory"):
        Run.create(tmp_path / "file" / "below", run.config)
    assert Run.open(run.path).config == run.config


@pytest.mark.fault("a checkpoint that training removes while it is read", "the newest is read in its place")
def test_reading_while_training_goes_on(run: Run, survived: Survived, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is gone before it is read, for as long as newer ones come."""
    trainer, read = saved_at(run, 2), checkpoints.read_weights
    before = [2]

    def late(path: Path, *more: Any) -> checkpoints.ReadWeights:
        if len(before) < 6:
            step = before[-1] + 2
            before.append(step)
            for _ in trainer.run(step):
                pass
            run.save(trainer, {})
            for old in run.checkpoints()[:-1]:
                checkpoints.remove(old)
        return read(path, *more)

    monkeypatch.setattr(checkpoints, "read_weights", late)
    told: list[str] = []
    model = load(run, device="cpu", report=told.append)
    newest = run.checkpoints()[-1]
    assert told == []
    assert model.checkpoint == newest
    assert model.digest == json.loads((newest / "state.json").read_text())["sha256"]["ema.safetensors"]
    survived(5)


def test_a_run_is_read_while_a_thread_saves(run: Run) -> None:
    """Weights and their digest are of one checkpoint, whenever they are read."""
    trainer, stop = saved_at(run, 2), threading.Event()

    def train() -> None:
        while not stop.is_set():
            trainer.step += 1
            next(iter(trainer.averages.values())).data += 1  # so that no two checkpoints have the same weights
            run.save(trainer, {"held_out": -float(trainer.step)})

    thread = threading.Thread(target=train)
    thread.start()
    try:
        seen = {}
        for _ in range(20):
            found = run.weights("best", True, pytest.fail)
            seen[found.path.name] = found.digest
    finally:
        stop.set()
        thread.join()
    assert len(set(seen.values())) == len(seen)

"""Another budget for a run that has begun."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from calotype import cli
from calotype.errors import ConfigError
from calotype.optimization.config import TrainConfig, learning_rate
from calotype.runs import checkpoints
from calotype.runs.run import Run
from calotype.training import extension, planner, session, setup
from calotype.training.planner import Speed
from tests.runs.test_changes import trained
from tests.runs.test_resume import Quiet


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FINAL_GRID", 2)


def state(run: Run) -> list[bytes]:
    """The bytes of the newest checkpoint, but for the counters' file."""
    newest = run.checkpoints()[-1]
    return [(newest / f"{part}.safetensors").read_bytes() for part in checkpoints.PARTS]


def cut(run: Path, images: int) -> None:
    """Back to a checkpoint."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name) > images:
            shutil.rmtree(path)


def test_at_a_rate_that_does_not_fall_it_is_the_run_of_the_longer_budget(tmp_path: Path) -> None:
    """What comes before the new budget is then the same, too: to the last bit."""
    constant = {"warmup": 0.0, "decay": 0.0}
    straight = trained(tmp_path / "straight", "64img", **constant)
    run = trained(tmp_path / "run", "32img", **constant)
    shown = Quiet()
    longer = setup.resume(run.path, budget="64img", display=shown)
    assert state(longer) == state(straight)
    assert "continuing at 32 of 64 images" in shown.messages
    assert any("the budget is 64 images, and was 32" in message for message in shown.messages)
    assert (longer.config.budget, longer.config.training.images) == ("64img", 64)


def test_from_the_checkpoint_on_rates_are_those_of_the_new_budget(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "32img")
    shown = Quiet()
    longer = setup.resume(run.path, budget="64img", display=shown)
    config, steps = longer.config.training, 16
    rates = {r["step"]: r["learning_rate"] for r in longer.read_log() if r["event"] == "progress"}
    assert rates[8] == pytest.approx(learning_rate(config, 7, 8))  # the last of the old budget
    assert rates[16] == pytest.approx(learning_rate(config, 15, steps))
    told = next(message for message in shown.messages if "the budget is" in message)
    assert f"the learning rate is {learning_rate(config, 8, steps):.3g}, where it was 0" in told
    assert checkpoints.read(longer.checkpoints()[-1])["counters"]["step"] == steps


def test_stopped_and_resumed_a_longer_run_is_the_one_that_was_not_stopped(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "32img")
    shutil.copytree(run.path, tmp_path / "twice")
    straight = setup.resume(run.path, budget="64img", display=Quiet())
    twice = tmp_path / "twice"
    setup.resume(twice, budget="64img", display=Quiet())
    cut(twice, 48)
    assert state(setup.resume(twice, display=Quiet())) == state(straight)
    shutil.copy(run.path / "config.toml", twice / "config.toml")
    cut(twice, 32)  # killed after the new budget was written, and before the first checkpoint of it
    assert state(setup.resume(twice, budget="64img", display=Quiet())) == state(straight)


def test_less_than_what_is_done_is_refused_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    run = trained(tmp_path / "run", "32img")
    before = (run.path / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match=r"a budget of 16img for the run in all is less .* 32 images: give a longer"):
        setup.resume(run.path, budget="16img", display=Quiet())
    with pytest.raises(ConfigError, match="is not understood"):
        setup.resume(run.path, budget="soon", display=Quiet())
    assert (run.path / "config.toml").read_bytes() == before
    (run.path / "config.toml").write_bytes(before.replace(b"images = 32", b"images = 16"))
    with pytest.raises(ConfigError, match=r"training.images is 16, but the run has seen 32: .* --budget 64img"):
        setup.resume(run.path, display=Quiet())


def test_a_shorter_budget_that_is_not_used_up_ends_earlier(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "64img")
    cut(run.path, 16)
    shorter = setup.resume(run.path, budget="32img", display=Quiet())
    assert shorter.images_seen() == 32
    rates = [r["learning_rate"] for r in shorter.read_log() if r["event"] == "progress"]
    assert rates[-1] == pytest.approx(learning_rate(shorter.config.training, 7, 8))


def test_a_time_counts_what_training_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run", "32img")
    monkeypatch.setattr(Run, "seconds", lambda self: 50.0)
    monkeypatch.setattr(planner, "_probe", lambda *_: Speed(2.0, 1e-9))
    monkeypatch.setattr(planner, "CLOSING_SECONDS", 0.0)
    with pytest.raises(ConfigError, match=r"a budget of 30s for the run in all is less than training has taken, 50 s"):
        setup.resume(run.path, budget="30s", display=Quiet())
    longer = setup.resume(run.path, budget="60s", display=Quiet())
    assert longer.config.training.images in (51, 52)  # 10 s at 2 images/s, less what the measurement took
    assert longer.config.budget == "60s"
    shown = Quiet()
    monkeypatch.setattr(Run, "seconds", lambda self: 70.0)
    again = setup.resume(run.path, budget="60s", display=shown)  # as a job does that is started again
    assert "nothing to continue" in shown.messages[-1]
    assert again.config == longer.config


@pytest.mark.parametrize(
    ("checkpoints_", "previews", "then"),
    [((20, 20), (40, 40), "both"), ((20, 100), (40, 200), "4 previews"), ((50, 7), (50, 7), "what the user chose")],
)
def test_what_the_budget_decided_is_decided_anew(
    checkpoints_: tuple[int, int], previews: tuple[int, int], then: str
) -> None:
    before = TrainConfig(images=400, checkpoint_every=checkpoints_[0], preview_every=checkpoints_[1])
    after = extension._with_images(before, 800)
    assert (after.images, after.checkpoint_every, after.preview_every) == (800, *previews), then


def test_a_run_that_is_done_goes_on_by_the_command_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", "32img")
    samples = (run.path / "samples.png").read_bytes()
    assert cli.main(["train", "--resume", str(run.path)]) == 0
    printed = capsys.readouterr()
    told = printed.out + printed.err
    words = next(line for line in told.splitlines() if "nothing to continue" in line).partition("To train further: ")[2]
    assert cli.main(["train", *words.split()]) == 0
    assert Run.open(run.path).images_seen() == 64
    assert (run.path / "samples.png").read_bytes() != samples
    assert [r["images_seen"] for r in run.read_log() if r["event"] == "finished"] == [32, 64]


def test_the_last_grid_is_that_of_the_longer_run(tmp_path: Path) -> None:
    """Killed before it is drawn, the one of the shorter budget is still there."""
    run = trained(tmp_path / "run", "32img")
    old = (run.path / "samples.png").read_bytes()
    setup.resume(run.path, budget="64img", display=Quiet())
    new = (run.path / "samples.png").read_bytes()
    (run.path / "samples.png").write_bytes(old)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    (run.path / "log.jsonl").write_text("\n".join(line for line in lines[:-1]) + "\n")
    setup.resume(run.path, display=Quiet())
    assert (run.path / "samples.png").read_bytes() == new

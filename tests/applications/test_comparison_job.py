"""`calotype compare` in miniature, with a small network of features: all families, a stop and a failure, the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import calotype
from calotype import cli
from calotype.applications import comparison
from calotype.core.rng import coins
from calotype.errors import ConfigError, RunError, TrainingDiverged
from calotype.evaluation import classifier, features
from calotype.evaluation.baselines import BASELINES
from calotype.evaluation.comparison import Comparison
from calotype.families import FAMILIES
from calotype.runs.run import Run
from calotype.training import setup
from calotype.training.loop import Interrupted


def small() -> features.FeatureNetwork:
    """Means over a grid of 4 x 4, and of what is between neighbours."""

    def run(values: Tensor) -> Tensor:
        gray = values.mean(1, keepdim=True) / 255
        edges = (gray[:, :, 1:] - gray[:, :, :-1]).abs()
        return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) for x in (gray, edges)], 1)

    return features.FeatureNetwork("small", "0123", 16, run)


@pytest.fixture(autouse=True)
def _small_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "network", lambda name: small())
    monkeypatch.setattr(classifier, "IMAGES", 512)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 binary pictures of 16 x 16: every row is all black or all white, by a coin: 16 bits, 1/16 bits/dim."""
    rows = coins(5, 600 * 16).reshape(600, 16)
    images = np.repeat(rows[:, :, None], 16, axis=2).astype(np.uint8)[..., None] * 255
    path = tmp_path_factory.mktemp("data") / "patterns.npz"
    np.savez(path, images=images)
    return path


def compared(patterns: Path, out: Path, **more: Any) -> Comparison:
    asked: dict[str, Any] = {"budget": "256img", "n": 60, "threads": 1, "baselines": ("phases", "gaussian")} | more
    return calotype.compare(patterns, out=out, **asked)


@pytest.fixture(scope="module")
def whole(patterns: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "network", lambda name: small())
        compared(patterns, out, baselines=None)
    return out


def weights(out: Path, name: str) -> dict[str, Tensor]:
    return Run.open(out / name).model()[1].state_dict()


def alike(one: Path, other: Path, name: str) -> bool:
    a, b = weights(one, name), weights(other, name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def measures(found: Comparison) -> list[dict[str, Any]]:
    """The table without what depends on the clock."""
    timed = ("samples/s", "training seconds")
    return [{key: x for key, x in row.items() if key not in timed} for row in found.rows()]


def test_every_family_and_every_classical_method_is_measured_alike(whole: Path) -> None:
    found = Comparison.open(whole / "comparison.json")
    assert [entry.name for entry in found.entries] == [*FAMILIES, *BASELINES]
    assert not [entry.failure for entry in found.entries if entry.failure]
    assert len({entry.report.protocol.digest for entry in found.entries if entry.report}) == 1
    rows = {row["name"]: row for row in found.rows()}
    assert all(rows[name]["FD-small"] > 0 for name in rows)
    assert all(rows[name]["parameters"] > 0 for name in FAMILIES)
    assert {name: rows[name].get("bits/dim kind") for name in ("autoregressive", "vae", "diffusion", "gan")} == {
        "autoregressive": "exact",
        "vae": "bound",
        "diffusion": "bound",
        "gan": None,
    }
    assert rows["gaussian"]["bits/dim kind"] == "bound"
    questions = {told.question for told in found.verdict()}
    assert {"Nearest to your pictures", "Fastest to draw", "Editing"} <= questions


def test_the_verdict_on_speed_is_one_that_draws_in_one_call(whole: Path) -> None:
    found = Comparison.open(whole / "comparison.json")
    speed = next(told for told in found.verdict() if told.question == "Fastest to draw")
    assert set(speed.names) <= {"gan", "vae"}


@pytest.mark.slow
def test_where_a_pixel_is_told_by_the_one_before_it_the_exact_likelihood_wins(patterns: Path, tmp_path: Path) -> None:
    found = compared(patterns, tmp_path / "won", families=("autoregressive", "vae"), budget="4000img", baselines=())
    told = next(told for told in found.verdict() if told.question.startswith("Likelihood"))
    assert list(told.names) == ["autoregressive"]
    assert "those of vae are upper bounds" in told.answer.lower()
    exact = found.entries[0].likelihood
    assert exact is not None
    assert exact.value is not None
    assert exact.value < 0.5  # on the way to 1/16; pixels that are not told by others take 1


def test_the_page_stands_alone(whole: Path) -> None:
    text = (whole / "comparison.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#|\w+/evaluation\.html")[^"]*"', text)
    assert "<script" not in text
    for name in (*FAMILIES, *BASELINES, "held-out pictures"):
        assert f"<b>{name}</b>" in text
        assert (whole / "entries" / f"{name}.png").exists()
    for name in FAMILIES:
        assert f'href="{name}/evaluation.html"' in text
        assert (whole / name / "evaluation.html").exists()
    assert text.count("<svg") == 2


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def seen(text: str, place: Path) -> tuple[np.ndarray, list[str]]:
    """What a browser shows of a page, and what it says on its console."""
    assert BROWSER is not None
    place.mkdir()
    (place / "page.html").write_text(text)
    shown = place / "page.png"
    flags = "headless no-sandbox disable-gpu no-first-run enable-logging=stderr window-size=1300,6000".split()
    asked = [*flags, f"user-data-dir={place / 'profile'}", f"screenshot={shown}"]
    command = [BROWSER, *(f"--{flag}" for flag in asked), (place / "page.html").as_uri()]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stderr
    with Image.open(shown) as image:
        return np.asarray(image.convert("RGB")), [line for line in told.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium")
def test_a_browser_shows_the_page_and_has_nothing_to_say_of_it(whole: Path, tmp_path: Path) -> None:
    text = (whole / "comparison.html").read_text()
    page, console = seen(text, tmp_path / "whole")
    assert console == []  # where requests would be told as well, none of which the page allows itself
    without = re.sub(r"(<svg[^>]*>).*?</svg>", r"\1</svg>", text, flags=re.DOTALL)
    assert (seen(without, tmp_path / "plots")[0] != page).any(-1).sum() > 2_000  # pixels that the plots painted
    without = re.sub(r'src="data:[^"]*"', 'src="data:,"', text)
    assert (seen(without, tmp_path / "samples")[0] != page).any(-1).sum() > 100_000
    asking = text.replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>')
    (line,) = seen(asking, tmp_path / "asking")[1]
    assert "Content Security Policy" in line


@pytest.mark.slow
def test_two_comparisons_of_one_seed_have_the_same_models_and_the_same_table(
    whole: Path, patterns: Path, tmp_path: Path
) -> None:
    again = calotype.compare(recipe=whole, out=tmp_path / "again")
    assert all(alike(whole, tmp_path / "again", name) for name in FAMILIES)
    assert measures(again) == measures(Comparison.open(whole / "comparison.json"))


@pytest.mark.slow
@pytest.mark.fault("a comparison that is stopped", "it goes on where it was, and repeats nothing")
def test_one_that_was_stopped_goes_on_and_repeats_nothing(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, resumed = [], setup.resume

    def stopping(path: Path, **more: Any) -> Run:
        calls.append(path.name)
        if len(calls) == 2:
            raise Interrupted(path, 15)
        return resumed(path, **more)

    monkeypatch.setattr(setup, "resume", stopping)
    with pytest.raises(RunError, match="calotype compare --resume") as stopped:
        compared(patterns, tmp_path / "stopped", families=("gan", "vae"))
    assert stopped.value.exit_status == 128 + 15
    before = (tmp_path / "stopped" / "gan" / "log.jsonl").read_text()
    found = comparison.resume(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "gan" / "log.jsonl").read_text() == before
    assert calls == ["gan", "vae", "vae"]
    assert [entry.failure for entry in found.models] == ["", ""]
    known = (tmp_path / "stopped" / "vae" / "evaluation.json").stat().st_mtime_ns
    again = comparison.resume(tmp_path / "stopped")
    assert calls == ["gan", "vae", "vae"]
    assert (tmp_path / "stopped" / "vae" / "evaluation.json").stat().st_mtime_ns == known
    assert json.dumps(again.as_dict()) == json.dumps(found.as_dict())


@pytest.mark.fault("a family of a comparison that fails", "the page says why, and the others go on")
def test_a_family_that_fails_is_reported_and_the_others_go_on(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = setup.resume

    def failing(path: Path, **more: Any) -> Run:
        if path.name == "gan":
            raise TrainingDiverged("the loss is not finite, start again")
        return resumed(path, **more)

    monkeypatch.setattr(setup, "resume", failing)
    found = compared(patterns, tmp_path / "failing", families=("gan", "vae"))
    assert [entry.failure for entry in found.entries if entry.kind == "model"] == [
        "the loss is not finite, start again",
        "",
    ]
    page = (tmp_path / "failing" / "comparison.html").read_text()
    assert "gan: the loss is not finite, start again" in page
    assert "<b>vae</b>" in page


@pytest.mark.fault("a second command on a comparison", "it is refused, and the first goes on")
def test_a_comparison_is_worked_on_by_one_command(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first trains, a second changes nothing of what the first finds."""
    resumed, out, refused = setup.resume, tmp_path / "held", []

    def meanwhile(path: Path, **more: Any) -> Run:
        with pytest.raises(RunError, match="held is being compared by another process: wait for it or stop it") as held:
            comparison.resume(out)
        refused.append(held.value)
        return resumed(path, **more)

    monkeypatch.setattr(setup, "resume", meanwhile)
    found = compared(patterns, out, families=("vae",), baselines=())
    assert len(refused) == 1
    assert [entry.failure for entry in found.entries] == [""]


PASSING = {
    "a run that another command trains": lambda path: Run.open(path).locked().__enter__(),
    "a full disk": lambda path: full_disk(),
    "memory that runs out": lambda path: out_of_memory(),
}


def full_disk() -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        raise RunError("log.jsonl cannot be written") from error


def out_of_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")


@pytest.mark.slow
@pytest.mark.fault("a full disk, short memory, a run that is held, in a comparison", "the family is done the next time")
@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_no_finding(patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    resumed, out = setup.resume, tmp_path / "passing"

    def failing(path: Path, **more: Any) -> Run:
        if path.name == "gan":
            with Run.open(path).locked():
                PASSING[kind](path)
        return resumed(path, **more)

    monkeypatch.setattr(setup, "resume", failing)
    with pytest.raises(RunError, match=r"not done yet: gan; .* Continue with: calotype compare --resume"):
        compared(patterns, out, families=("gan", "vae"), baselines=(), budget="64img")
    assert [path.name for path in (out / "entries").glob("*.json")] == ["vae.json"]
    assert "gan" in (out / "comparison.html").read_text()
    monkeypatch.setattr(setup, "resume", resumed)
    found = comparison.resume(out)
    assert [(entry.name, entry.failure) for entry in found.entries] == [("gan", ""), ("vae", "")]


@pytest.mark.slow
def test_what_is_kept_as_a_failure_can_be_tried_again(
    patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed, out = setup.resume, tmp_path / "again"

    def failing(path: Path, **more: Any) -> Run:
        raise TrainingDiverged(f"the loss of {path.absolute()} is not finite")

    monkeypatch.setattr(setup, "resume", failing)
    found = compared(patterns, out, families=("vae",), baselines=(), budget="64img")
    assert found.entries[0].failure == "the loss of again/vae is not finite"  # and not where it lies
    told = capsys.readouterr()
    assert f"to try it again, remove {out / 'entries' / 'vae.json'}" in told.out + told.err
    monkeypatch.setattr(setup, "resume", resumed)
    assert comparison.resume(out).entries[0].failure
    (out / "entries" / "vae.json").unlink()
    assert not comparison.resume(out).entries[0].failure


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n = 60", "n = 50", "n is 50 .* but .* was measured with 60"),
        ("seed = 0", "seed = 1", "the seed of each family is 1 .* has 0"),
        ('"256img"', '"512img"', "the share of the budget of each family is 128img .* has 64img"),
    ],
)
def test_what_was_found_is_not_mixed_with_what_is_asked_for_now(
    whole: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    shutil.copytree(whole, tmp_path / "changed")
    config = tmp_path / "changed" / "compare.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message):
        comparison.resume(tmp_path / "changed")


@pytest.mark.slow
def test_several_devices_train_families_side_by_side(
    whole: Path, patterns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.applications.comparison.train._devices", lambda asked: ["cpu", "cpu"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    compared(patterns, tmp_path / "apart", families=("gan", "vae"), budget="128img")
    assert all(alike(whole, tmp_path / "apart", name) for name in ("gan", "vae"))


def test_the_command_line_takes_what_python_takes(patterns: Path, tmp_path: Path) -> None:
    out = tmp_path / "cli"
    words = ["compare", str(patterns), "--budget", "64img", "--families", "vae", "-n", "60", "--no-baselines"]
    assert cli.main([*words, "--threads", "1", "--out", str(out)]) == 0
    told = json.loads((out / "comparison.json").read_text())
    assert [row["name"] for row in told["rows"]] == ["vae"]
    assert cli.main(["compare", "--resume", str(out)]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"families": ("gan", "gan")}, "name each once"),
        ({"families": ("vea",)}, "did you mean vae"),
        ({"n": 1}, "at least 2"),
        ({"budget": "soon"}, "not understood"),
        ({"baselines": ("magic",)}, "choose of phases"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(
    patterns: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compared(patterns, tmp_path / "none", **more)
    assert not (tmp_path / "none").exists()


def test_a_place_that_is_taken_is_refused(whole: Path, patterns: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        compared(patterns, whole)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        compared(patterns, tmp_path)
    with pytest.raises(RunError, match="no comparison"):
        comparison.resume(tmp_path)


def test_a_recipe_takes_no_settings(whole: Path, patterns: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out data, budget"):
        calotype.compare(patterns, budget="3m", recipe=whole, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_resume_takes_no_settings(capsys: pytest.CaptureFixture[str], whole: Path) -> None:
    assert cli.main(["compare", "--resume", str(whole), "--budget", "3m"]) == 2
    assert "leave out budget" in capsys.readouterr().err


@pytest.mark.fault("a disk that is full while comparing", "it says so, and how to go on")
def test_a_full_disk_is_said_with_the_way_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shutil.copytree(whole, tmp_path / "full")
    monkeypatch.setattr(comparison, "write_atomic", full)
    with pytest.raises(RunError, match=r"No space left.* Make room, then continue with: calotype compare --resume"):
        comparison.resume(tmp_path / "full")

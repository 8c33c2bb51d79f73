"""Settings that are another when a run is resumed: every one is taken and said, or refused; none is passed over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from calotype.core.config import read_toml, write_toml
from calotype.core.rng import fold, permutation
from calotype.data import DataConfig
from calotype.errors import CalotypeError, ConfigError, DataError, RunError
from calotype.families.diffusion import Diffusion
from calotype.optimization.config import TrainConfig
from calotype.runs import changes, checkpoints
from calotype.runs.changes import CHANGEABLE
from calotype.runs.config import ENTRIES, DatasetFacts
from calotype.runs.run import Run
from calotype.training import session, setup
from tests.runs.test_resume import Quiet

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"widths": [16], "blocks": 1, "attention": [], "patch": 2, "dropout": 0.1},
    "training": {"batch_size": 4, "checkpoint_every": 16, "preview_every": 1000, "warmup": 0.0},
}
SEEN = 32  # images at the checkpoint that is gone on from, of 48
SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "dataset": DatasetFacts,
    "model": Diffusion.Config,
    "training": TrainConfig,
}
ALL = [f"{section}.{field.name}" for section, cls in SECTIONS.items() for field in fields(cls)]
TOP = ["family", "preset", "budget"]


def trained(out: Path, budget: str = "48img", **more: Any) -> Run:
    settings = {**SETTINGS, "training": SETTINGS["training"] | more}
    source = "glyphs:gray:40"
    return setup.train("diffusion", source, budget=budget, size="8", out=out, settings=settings, display=Quiet())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs end with few samples, and leave the number of threads as it was."""
    monkeypatch.setattr(session, "FINAL_GRID", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def stopped(finished: Run, tmp_path: Path) -> Path:
    """A copy of the run as of a checkpoint on the way."""
    shutil.copytree(finished.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{48:012d}")
    (tmp_path / "run" / "samples.png").unlink()
    return tmp_path / "run"


def edit(run: Path, name: str, value: Any) -> None:
    """Another value of an entry of config.toml, as by hand."""
    values = read_toml(run / "config.toml")
    section, dot, key = name.partition(".")
    (values[section] if dot else values)[key if dot else section] = value
    (run / "config.toml").write_text(write_toml(values))


def another(name: str, value: Any) -> Any:
    """A value that the entry may have, and that is not the one that it has; drawn by its name."""
    known = {
        "family": "vae",
        "budget": "2h",
        "data.source": "glyphs:gray:41",
        "data.fit": "pad",
        "data.width": 16,
        "data.height": 16,
        "data.value_range": "0:100",
        "data.channels": 3,
        "data.labels_from": "labels.csv:label",
        "dataset.class_names": ["ä", "b"],
        "model.network": "ddpm++",
        "training.optimizer": "adamw",
        "model.base": [16],
        "training.on_collapse": "rollback",
        "training.precision": "fp32",
        "training.images": 64,
        "training.skip_norm": 1e9,
        "training.threads": 2,
    }
    draw = int(permutation(fold(3, name), 7)[0])
    if name in known:
        return known[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 + draw
    if isinstance(value, float):
        return round(value / (2 + draw), 6) if value else 0.01 * (1 + draw)
    if isinstance(value, list):
        return [*value, 16]
    return f"{value}{draw}"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def settings_of(run: Path) -> dict[str, Any]:
    kept: dict[str, Any] = checkpoints.facts(sorted((run / "checkpoints").glob("0*"))[-1])["settings"]
    return kept


@pytest.mark.parametrize("name", [name for name in (*TOP, *ALL) if name not in CHANGEABLE or name == "budget"])
def test_what_has_decided_the_weights_is_refused_by_its_name(stopped: Path, name: str) -> None:
    values = read_toml(stopped / "config.toml")
    section, dot, key = name.partition(".")
    known = values.get(section, {}).get(key) if dot else values.get(section)
    edit(stopped, name, another(name, known))
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(CalotypeError) as refused:
        setup.resume(stopped, display=Quiet())
    told = str(refused.value)
    assert isinstance(refused.value, DataError if name == "dataset.digest" else ConfigError)
    assert name.split(".")[-1] in told or section == "family", told  # other families have other entries
    assert re.search("restore|choose|leave it out|give|did you mean|has to be|use|write", told, re.IGNORECASE), told
    for path, content in before.items():
        assert path.read_bytes() == content, path


TAKEN = [name for name in CHANGEABLE if name not in ("budget", "data.source", "latents.run", "training.compile")]


@pytest.mark.parametrize("name", TAKEN)
def test_what_may_change_is_taken_said_and_kept(stopped: Path, name: str) -> None:
    section, key = name.split(".")
    value = another(name, read_toml(stopped / "config.toml")[section][key])
    edit(stopped, name, value)
    shown = Quiet()
    run = setup.resume(stopped, display=shown)
    assert any(f"from {SEEN} images on" in message for message in shown.messages)
    assert f"continuing at {SEEN} of {run.config.training.images} images" in shown.messages
    assert settings_of(stopped)[name] == value
    logged = [record["text"] for record in run.read_log() if record["event"] == "changed"]
    assert len(logged) == 1
    last = checkpoints.read(run.checkpoints()[-1])
    assert last["counters"]["step"] == run.images_seen() // 4 == run.config.training.images // 4
    if name == "training.micro_batch":  # and not the one that the checkpoint has
        assert last["counters"]["micro_batch"] == value
    again = Quiet()
    setup.resume(stopped, display=again)  # nothing has changed since
    assert not any("images on" in message for message in again.messages)


@pytest.mark.parametrize("name", ["training.checkpoint_every", "training.preview_every", "data.strict"])
def test_what_is_said_to_change_no_weights_changes_none(stopped: Path, finished: Run, name: str) -> None:
    assert CHANGEABLE[name] == changes.SAME
    section, key = name.split(".")
    edit(stopped, name, another(name, read_toml(stopped / "config.toml")[section][key]))
    run = setup.resume(stopped, display=Quiet())
    for part in ("model.safetensors", "ema.safetensors", "optimizers.safetensors"):
        assert (run.checkpoints()[-1] / part).read_bytes() == (finished.checkpoints()[-1] / part).read_bytes()


def test_a_learning_rate_counts_from_the_checkpoint_on(stopped: Path) -> None:
    edit(stopped, "training.learning_rate", 1e-30)
    before = checkpoints.read(sorted((stopped / "checkpoints").iterdir())[-1])["model"]
    run = setup.resume(stopped, display=Quiet())
    after = checkpoints.read(run.checkpoints()[-1])["model"]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_smaller_batch_in_a_run_of_an_earlier_version_is_refused(stopped: Path) -> None:
    """Its checkpoints do not have the settings, but their images are not the steps times the batch size."""
    for path in (stopped / "checkpoints").iterdir():
        without_settings(path)
    edit(stopped, "training.batch_size", 2)
    kept = names(stopped)
    with pytest.raises(RunError, match=r"is of 32 images.*16 with training.batch_size = 2: restore"):
        setup.resume(stopped, display=Quiet())
    assert names(stopped) == kept
    edit(stopped, "training.batch_size", 4)
    shown = Quiet()
    setup.resume(stopped, display=shown)
    assert "continuing at 32 of 48 images" in shown.messages


def without_settings(path: Path) -> None:
    """A checkpoint as an earlier version wrote it."""
    import json

    content = json.loads((path / "state.json").read_text())
    del content["facts"]["settings"], content["sha256_state"]
    content["sha256_state"] = checkpoints._digest_of(content)
    (path / "state.json").write_text(json.dumps(content))


def test_entries_that_mean_nothing_are_refused(stopped: Path) -> None:
    text = (stopped / "config.toml").read_text()
    for more, meant in (("bugdet = '3h'\n", "budget"), ("[trainig]\nseed = 3\n", "training")):
        (stopped / "config.toml").write_text(more + text if "=" in more.splitlines()[0] else text + more)
        with pytest.raises(ConfigError, match=f"did you mean {meant}"):
            Run.open(stopped)


def test_without_a_checkpoint_everything_may_change(stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    edit(stopped, "training.batch_size", 8)
    run = setup.resume(stopped, display=Quiet())
    assert checkpoints.read(run.checkpoints()[-1])["counters"]["step"] == 6


def test_a_checkpoint_under_another_number_is_not_taken(stopped: Path) -> None:
    """Or what is trained after it would be saved below it, and the old one taken again."""
    shutil.copytree(stopped / "checkpoints" / f"{16:012d}", stopped / "checkpoints" / f"{44:012d}")
    shown = Quiet()
    setup.resume(stopped, display=shown)
    assert any("is not the checkpoint that its name says" in message for message in shown.messages)
    assert f"continuing at {SEEN} of 48 images" in shown.messages


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.partition("### What may change\n")[2].partition("\n##")[0]
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|$", section, re.M))
    assert rows == dict(CHANGEABLE)
    assert {name for name in CHANGEABLE if name.partition(".")[0] in SECTIONS} <= set(ALL)
    assert {name.partition(".")[0] for name in CHANGEABLE} <= set(ENTRIES)


def test_pictures_that_have_changed_are_refused_as_before(stopped: Path) -> None:
    edit(stopped, "data.source", "glyphs:gray:41")
    with pytest.raises(DataError, match=r"has changed since .* --data"):
        setup.resume(stopped, display=Quiet())

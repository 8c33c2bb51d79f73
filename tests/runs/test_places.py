"""What is given away says nothing of where it was made; what has moved is found, or asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import calotype
from calotype import cli
from calotype.core.config import read_toml
from calotype.core.images import read_png
from calotype.errors import DataError
from calotype.evaluation import classifier, features
from calotype.runs.portable_paths import LOCAL, read_config, shareable, write_config
from calotype.runs.run import Run
from calotype.training import session, setup
from tests.applications.test_comparison_job import small
from tests.runs.test_resume import Quiet
from tests.training.test_extension import state

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"widths": [16], "blocks": 1, "attention": [], "patch": 2},
    "training": {"batch_size": 8, "checkpoint_every": 32, "preview_every": 32},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "network", lambda name: small())
    monkeypatch.setattr(classifier, "IMAGES", 256)
    monkeypatch.setattr(session, "FINAL_GRID", 2)
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))


def trained(photos: Path, out: Path) -> Run:
    return setup.train("diffusion", photos, budget="64img", out=out, size="8", settings=SETTINGS, display=Quiet())


def telling(folder: Path, words: tuple[str, ...]) -> list[str]:
    """The files below a folder in which any of some words stands."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if any(w.encode() in path.read_bytes() for w in words)]


def test_no_file_of_a_run_or_a_report_says_where_it_was_made(picture_folder: Path, tmp_path: Path) -> None:
    run = trained(picture_folder, tmp_path / "run")
    assert cli.main(["evaluate", str(run.path), "-n", "20"]) == 0
    assert cli.main(["sample", str(run.path), "-n", "2", "--set", "steps=2"]) == 0
    assert telling(run.path, (str(tmp_path), str(Path.home()))) == []
    assert read_toml(run.path / "config.toml")["data"]["source"] == "../photos"
    assert run.config.data.source == Run.open(run.path).config.data.source == str(picture_folder)
    assert read_png(run.path / "samples-0.png").shape[0] == 3


def test_no_file_of_a_comparison_says_where_it_was_made(picture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    calotype.compare(picture_folder, budget="32img", families=("vae",), n=20, baselines=("phases",), size="8", out=out)
    assert telling(out, (str(tmp_path), str(Path.home()))) == []


def test_a_path_that_would_say_who_one_is_stands_apart(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures are in the folder of a user, and the run is not."""
    home = tmp_path / "home" / "jane"
    home.mkdir(parents=True)
    picture_folder.rename(home / "holidays")
    monkeypatch.setenv("HOME", str(home))
    run = trained(home / "holidays", tmp_path / "run")
    assert telling(run.path, ("jane", str(tmp_path))) == [LOCAL]
    assert run.config.data.source == str(home / "holidays")
    (run.path / LOCAL).unlink()
    assert Run.open(run.path).config.data.source == "holidays"
    expected = state(run)
    shutil.rmtree(run.checkpoints()[-1])
    assert state(setup.resume(run.path, display=Quiet())) == expected  # by the pack in the cache
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"holidays does not exist.*--data"):
        setup.resume(run.path, display=Quiet())


@pytest.mark.parametrize(
    "source", ["glyphs", "glyphs:rgba:80", "hub:user/name", "photos", "s3://bucket/me/photos?key=3", "~/photos", "../x"]
)
def test_what_is_written_is_read_again(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "config.toml"
    path.parent.mkdir()
    write_config(path, {"calotype": "1", "data": {"source": source}, "latents": {"run": source}})
    plain = source.startswith(("glyphs", "hub:"))
    whole = source if plain or "://" in source else os.path.abspath(os.path.expanduser(source))
    values = read_config(path)
    assert values["data"]["source"] == values["latents"]["run"] == whole
    assert "key=3" not in path.read_text()
    assert str(tmp_path) not in path.read_text()
    path.write_text(path.read_text().replace(f'"{read_toml(path)["data"]["source"]}"', '"/by/hand"'))
    assert read_config(path)["data"]["source"] == "/by/hand"  # what is written there counts


def test_a_recipe_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[data]\nsource = "../photos"\n')
    assert read_config(tmp_path / "recipe.toml")["data"]["source"] == "../photos"


def test_a_config_of_an_earlier_version_has_an_absolute_path(picture_folder: Path, tmp_path: Path) -> None:
    run = trained(picture_folder, tmp_path / "run")
    config = run.path / "config.toml"
    config.write_text(config.read_text().replace('"../photos"', f'"{picture_folder}"'))
    assert Run.open(run.path).config == run.config


def test_all_moved_together_is_found(picture_folder: Path, tmp_path: Path) -> None:
    """Folders of runs and pictures beside each other, renamed, with no cache."""
    project = tmp_path / "project"
    project.mkdir()
    picture_folder.rename(project / "photos")
    run = trained(project / "photos", project / "runs" / "run")
    expected = state(run)
    shutil.rmtree(run.checkpoints()[-1])
    project.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "cache")
    assert state(setup.resume(tmp_path / "elsewhere" / "runs" / "run", display=Quiet())) == expected


def test_pictures_that_have_moved_are_named(picture_folder: Path, tmp_path: Path) -> None:
    run = trained(picture_folder, tmp_path / "run")
    expected, config = state(run), (run.path / "config.toml").read_bytes()
    shutil.rmtree(run.checkpoints()[-1])
    picture_folder.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"photos does not exist, .* with --data"):
        setup.resume(run.path, display=Quiet())
    with pytest.raises(DataError, match=r"nowhere does not exist, .* with --data"):
        setup.resume(run.path, data=str(tmp_path / "nowhere"), display=Quiet())
    calotype.evaluate(run.path, data=str(tmp_path / "moved"), n=20)
    assert (run.path / "config.toml").read_bytes() == config
    shown = Quiet()
    assert state(setup.resume(run.path, data=str(tmp_path / "moved"), display=shown)) == expected
    assert f"the pictures are at {tmp_path / 'moved'}: {run.path / 'config.toml'} has the new place" in shown.messages
    assert read_toml(run.path / "config.toml")["data"]["source"] == "../moved"


def test_other_pictures_are_refused(picture_folder: Path, tmp_path: Path) -> None:
    run = trained(picture_folder, tmp_path / "run")
    shutil.copytree(picture_folder, tmp_path / "fewer")
    next((tmp_path / "fewer").rglob("*.png")).unlink()
    config = (run.path / "config.toml").read_bytes()
    for again in (setup.resume, calotype.evaluate):
        with pytest.raises(DataError, match=r"fewer has other pictures than .*run was trained on \(digest"):
            again(run.path, data=str(tmp_path / "fewer"))  # type: ignore[operator]
    assert (run.path / "config.toml").read_bytes() == config


def test_a_comparison_whose_pictures_have_moved(picture_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    calotype.compare(picture_folder, budget="32img", families=("vae",), n=20, baselines=(), size="8", out=out)
    (out / "entries" / "vae.json").unlink()
    picture_folder.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache")
    assert cli.main(["compare", "--resume", str(out)]) == 2
    assert cli.main(["compare", "--resume", str(out), "--data", str(tmp_path / "moved")]) == 0
    for config in (out / "compare.toml", out / "vae" / "config.toml"):
        assert read_config(config)["data"]["source"] == str(tmp_path / "moved")


def test_data_beside_resume_alone(picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "vae", str(picture_folder), "--data", "x"]) == 2
    assert "--data is for --resume" in capsys.readouterr().err


def test_of_a_path_the_last_part_is_shared() -> None:
    assert [shareable(path) for path in ("/a/b/", "a/b", "~/c", "s3://x/y?z", "glyphs:rgb:9")] == [
        "b",
        "a/b",
        "c",
        "y",
        "glyphs:rgb:9",
    ]

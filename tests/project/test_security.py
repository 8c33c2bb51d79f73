"""Runs, comparisons and sources of strangers: nothing is written, read or run outside them; docs/security.md."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calotype import cli
from calotype.applications.comparison.job import read as read_comparison
from calotype.core.config import write_toml
from calotype.data import DataConfig, prepare
from calotype.data.check import check
from calotype.data.sources import bombs
from calotype.errors import CalotypeError, DataError, PlaceError
from calotype.runs.run import Run
from calotype.training import setup
from tests.conftest import Survived
from tests.project.test_hostile import LEVELS
from tests.runs.test_resume import Quiet

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a vae, with what further commands write into it."""
    run = tmp_path_factory.mktemp("home") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calotype.training.session.FINAL_GRID", 4)
        settings = {"model": LEVELS, "training": {"batch_size": 8, "threads": 1}}
        setup.train("vae", "glyphs:gray:60", size="8", budget="32img", out=run, settings=settings, display=Quiet())
    (run / "evaluation.json").write_text("{}")
    (run / "first" / "checkpoints").mkdir(parents=True)
    (run / "tensorboard").mkdir()
    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.fault("a run from a stranger: links that lead out, in any place", "it is refused, and the link named")
def test_no_link_of_a_run_leads_out(home: Path, tmp_path: Path, survived: Survived) -> None:
    places = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    new = [".lock", ".evaluation.json.tmp", "samples-0.png", "previews/000000000999.png", "train.log", "x/y"]
    for place in (*places, *new):
        run = shutil.copytree(home, tmp_path / "run")
        victim = tmp_path / "mine"
        if (run / place).is_dir():
            (run / place).rename(victim)
            (victim / "000000000999").mkdir()
            (victim / ".work.tmp").mkdir()
        else:
            victim.write_bytes((home / place).read_bytes() if (home / place).exists() else b"precious")
            (run / place).unlink(missing_ok=True)
        (run / place).parent.mkdir(exist_ok=True)
        (run / place).symlink_to(os.path.relpath(victim, (run / place).parent))
        before = contents(tmp_path)
        for action in (lambda: Run.open(tmp_path / "run"), lambda: setup.resume(tmp_path / "run", display=Quiet())):
            with pytest.raises(PlaceError, match=re.escape(f"run/{place} is a link that leads out of")):
                action()
        assert contents(tmp_path) == before
        shutil.rmtree(run)
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    survived(len(places) + len(new))


@pytest.mark.parametrize("place", [".lock", "log.jsonl"])
def test_no_file_of_a_run_is_written_through_another(home: Path, tmp_path: Path, place: str) -> None:
    run = Run.open(shutil.copytree(home, tmp_path / "run"))
    (run.path / place).unlink(missing_ok=True)
    (run.path / place).symlink_to("config.toml")
    before = (run.path / "config.toml").read_bytes()
    with pytest.raises(PlaceError, match=f"{place} is a link to config.toml"), run.locked():
        run.log("note")
    assert (run.path / "config.toml").read_bytes() == before


@pytest.mark.parametrize("place", ["entries", "vae", "entries/vae.json", "comparison.html", "vae/log.jsonl"])
def test_no_link_of_a_comparison_leads_out(tmp_path: Path, place: str) -> None:
    (tmp_path / "comparison" / "entries").mkdir(parents=True)
    (tmp_path / "comparison" / "vae").mkdir()
    (tmp_path / "mine").mkdir()
    values = {"budget": "1h", "families": ["vae"], "baselines": [], "n": 0, "seed": 0, "features": "EffLite0"}
    (tmp_path / "comparison" / "compare.toml").write_text(write_toml(values | {"data": {"source": "glyphs"}}))
    read_comparison(tmp_path / "comparison")
    link = tmp_path / "comparison" / place
    if link.is_dir():
        link.rmdir()
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(PlaceError, match=re.escape(f"comparison/{place} is a link that leads out of")):
        read_comparison(tmp_path / "comparison")
    assert cli.main(["compare", "--resume", str(tmp_path / "comparison")]) == 2


def test_a_run_below_a_link_to_another_disk(home: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    run = Run.open(shutil.copytree(home, tmp_path / "runs" / "letters", ignore=shutil.ignore_patterns("first")))
    run.log("note")
    with run.locked():
        assert run.previews()
    assert cli.main(["sample", str(run.path), "-n", "2"]) == 0
    assert (tmp_path / "disk" / "letters" / "samples-0.png").is_file()


def test_previews_of_other_names_are_passed_over(home: Path, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(home, tmp_path / "run"))
    known = run.previews()
    for name in ("best.png", "1.png", "000000000001.jpg", "x" * 12 + ".png"):
        shutil.copy(known[0], run.path / "previews" / name)
    (run.path / "previews" / "000000000009.png").mkdir()
    assert run.previews() == known


# -- what a stranger's settings name


def test_what_a_run_or_a_recipe_names_is_said_before_it_is_read(picture_folder: Path, tmp_path: Path) -> None:
    data = {"source": str(picture_folder), "width": 8, "height": 8}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(write_toml({"family": "vae", "data": data, "model": LEVELS, "training": {"batch_size": 8}}))
    shown = Quiet()
    run = setup.train(recipe=recipe, budget="16img", out=tmp_path / "run", display=shown)
    assert shown.messages[0] == f"pictures: {picture_folder}, as {recipe} says"
    shown = Quiet()
    setup.resume(run.path, display=shown)
    assert shown.messages[0] == f"pictures: {picture_folder}, as {run.path / 'config.toml'} says"
    shutil.rmtree(picture_folder)
    shutil.rmtree(tmp_path / "run" / "previews")
    os.mkfifo(picture_folder)
    shown = Quiet()
    with pytest.raises(CalotypeError), limited(20):
        setup.resume(run.path, display=shown)
    assert shown.messages[0].startswith("pictures: ")


# -- sources that never end


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Fail where a block takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def bound_socket(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    os.chdir(here)
    return folder / "socket"


def link_to_pipe(folder: Path) -> Path:
    (folder / "photos.zip").symlink_to(pipe(folder))
    return folder / "photos.zip"


def of_the_kernel(folder: Path) -> Path:
    (folder / "photos.tar").symlink_to("/proc/self/status")  # of no size, like those that wait for ever
    return folder / "photos.tar"


SOURCES: list[Callable[[Path], Path]] = [pipe, bound_socket, link_to_pipe, of_the_kernel, lambda _: Path("/dev/zero")]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.fault("pictures from a pipe, a device or a socket", "they are refused, and nothing waits")
def test_a_source_that_never_ends(tmp_path: Path, source: Callable[[Path], Path], survived: Survived) -> None:
    path = source(tmp_path)
    if not path.exists():
        pytest.skip("there is none here")
    actions: list[Callable[[], Any]] = [
        lambda: prepare(DataConfig(source=str(path)), cache=tmp_path / "cache"),
        lambda: prepare(DataConfig(source=str(path), to_learn=False), cache=tmp_path / "cache"),
        lambda: prepare(DataConfig(source=str(path), stream=True), cache=tmp_path / "cache"),
        lambda: setup.train(recipe=path, out=tmp_path / "run", display=Quiet()),
    ]
    for action in actions:
        with pytest.raises(CalotypeError) as error, limited(20):
            action()
        assert path.name in str(error.value)
    with limited(20):
        assert cli.main(["check", str(path)]) in (1, 2)
    survived(len(actions) + 1)


def test_pictures_of_a_folder_that_never_end_are_left_out(picture_folder: Path) -> None:
    for name in ("pipe", "pipe.png"):
        os.mkfifo(picture_folder / "dots" / name)
    (picture_folder / "dots" / "zero.png").symlink_to("/dev/zero")
    (picture_folder / "dots" / "status").symlink_to("/proc/self/status")
    with limited(60):
        assert check(DataConfig(source=str(picture_folder))).pictures == 40


def test_a_zip_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bombs, "FREE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(20):
            archive.writestr(f"{k}.png", bytes(1 << 20))
    with pytest.raises(DataError, match=r"bomb\.zip unfolds to more than 200 times its size"):
        prepare(DataConfig(source=str(tmp_path / "bomb.zip")), cache=tmp_path / "cache")


# -- the page


def test_each_promise_of_the_threat_model_is_held_by_a_test() -> None:
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!Who|--)(.+) \|$", page, re.M)
    assert len(rows) > 12
    known = {
        f"{path.stem}.{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    for row in rows:
        named = re.findall(r"test_\w+\.test_\w+", row.rpartition("|")[2])
        assert named, row
        assert set(named) <= known, row


def test_the_policy_is_where_people_look() -> None:
    root = TESTS.parent
    assert "docs/security.md" in (root / "SECURITY.md").read_text(encoding="utf-8")
    assert "docs/security.md" in (root / "README.md").read_text(encoding="utf-8")
    assert "security.md" in (DOCS / "index.md").read_text(encoding="utf-8")

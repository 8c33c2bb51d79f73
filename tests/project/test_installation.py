"""Calotype as `pip install .` leaves it: in a place of its own that cannot be written, used from elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import unprivileged

ROOT = Path(__file__).parents[2]
TINY = ["--set", "model.widths=[16]", "--set", "model.blocks=[1]", "--set", "model.attention=[]"]


def run(*words: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, words)), capture_output=True, encoding="utf-8", **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return done


def test_a_wheel_holds_all_files_of_the_package(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    files = (path for path in (ROOT / "calotype").rglob("*") if path.is_file() and path.suffix != ".pyc")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An environment with Calotype in it; what it depends on comes from that of the tests."""
    place = tmp_path / "installed"
    run(sys.executable, "-m", "venv", "--without-pip", place)
    (packages,) = place.glob("lib/python*/site-packages")
    known = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "known.pth").write_text("\n".join(known), encoding="utf-8")
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", *alone, ROOT)
    return place


@pytest.mark.slow
def test_it_works_from_elsewhere_where_it_cannot_be_written_and_without_a_compiler(
    installed: Path, tmp_path: Path
) -> None:
    before = sorted(installed.rglob("*"))
    for path in (installed, *before):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o555)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    around = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    around |= {"OMP_NUM_THREADS": "1", "PATH": "/nowhere"}  # and no HOME
    prefix = [shutil.which(word) or word for word in unprivileged()]

    def used(*words: str) -> subprocess.CompletedProcess[str]:
        return run(*prefix, installed / "bin" / "python", *words, cwd=elsewhere, env=around)

    def calotype(*words: str) -> subprocess.CompletedProcess[str]:
        return used("-m", "calotype", *words)

    closed = f"import os, calotype; print(calotype.__file__, os.access({str(installed)!r}, os.W_OK))"
    place, writable = used("-c", closed).stdout.rsplit(maxsplit=1)
    assert place.startswith(str(installed))
    assert writable == "False"
    budget = ["--size", "8", "--budget", "64img", "--out", "run"]
    trained = calotype("train", "autoregressive", "glyphs:gray:60", *budget, *TINY, "--set", "training.batch_size=16")
    drawn = calotype("sample", "run", "-n", "2", "--out", "new")
    calotype("evaluate", "run", "-n", "8")
    for said in (trained.stderr, drawn.stderr):
        assert said.count("no C compiler") == 1
        assert "Traceback" not in said
    assert {path.name for path in (elsewhere / "new").glob("*.png")} == {"000000.png", "000001.png"}
    assert (elsewhere / "run" / "evaluation.html").is_file()
    assert (elsewhere / "run" / "curves.png").is_file()
    assert sorted(installed.rglob("*")) == before
    for path in (installed, *before):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)  # for whoever sweeps up

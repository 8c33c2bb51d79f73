"""Nothing of the user's is replaced: what each command writes, against everything that may be in its place."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calotype import cli
from calotype.commands.command import is_path
from calotype.core.images import write_png
from calotype.core.outputs import DIRECTORY, INPUTS, JOB, NPZ, OUTPUTS, PICTURES, PNG, REPORT, Form, check_outputs
from calotype.data.sources.npy import write_npz
from calotype.errors import PlaceError
from tests.core.test_files import make_dead_link, make_directory, make_link, make_pipe, make_socket

IMAGE = torch.zeros(1, 4, 4, dtype=torch.uint8)
OPTIONS = [(command, option) for command, options in OUTPUTS.items() for option in options]
FILES = [(command, option) for command, option in OPTIONS if not OUTPUTS[command][option].is_folder]
FOLDERS = [(command, option) for command, option in OPTIONS if OUTPUTS[command][option].is_folder]
PICTURE_FOLDERS = [(command, option) for command, option in OPTIONS if OUTPUTS[command][option] is PICTURES]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def ending(form: Form) -> str:
    return form.endings[0] if form.endings else ""


def named(command: str, option: str, stem: str = "out") -> Path:
    return Path(stem + ending(OUTPUTS[command][option]))


def write_own(command: str, option: str, place: Path) -> None:
    """What the command wrote there before."""
    form = OUTPUTS[command][option]
    if form is PNG:
        write_png(place, IMAGE, command)
    elif form is NPZ:
        write_npz(place, {"latents": np.zeros((2, 3))}, command)
    elif form is REPORT:
        place.write_text('{\n "format": 2,\n "protocol_digest": "1"\n}')
        place.with_suffix(".html").write_text('<meta name="generator" content="calotype evaluate">')


def refused(command: str, option: str, place: Path, *inputs: str | Path) -> str:
    """That a place is refused, and nothing is changed; returns what is said."""
    before = everything()
    with pytest.raises(PlaceError) as error:
        check_outputs(command, inputs, **{option: place})
    assert everything() == before
    text = str(error.value)
    assert f"--{option}" in text
    assert any(remedy in text for remedy in ("choose", "name ")), text
    return text


def everything() -> dict[str, object]:
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None) for path in Path().rglob("*")
    }


def test_every_path_of_every_command_is_declared() -> None:
    assert set(OUTPUTS) == set(INPUTS) == set(cli.COMMANDS)
    for name, command in cli.COMMANDS.items():
        paths = {option for option, value in signature(command).parameters.items() if is_path(value.annotation)}
        assert paths <= {*OUTPUTS[name], *INPUTS[name]}, name
        assert {*OUTPUTS[name], *INPUTS[name]} <= set(signature(command).parameters), name


@pytest.mark.parametrize(("command", "option"), OPTIONS)
@pytest.mark.parametrize("odd", [make_link, make_dead_link, make_pipe, make_socket])
def test_what_is_no_file_and_no_folder(
    here: Path, command: str, option: str, odd: Callable[[Path, Path], None]
) -> None:
    (here / "victim").write_text("precious")
    odd(here / named(command, option), here / "victim")
    assert any(word in refused(command, option, named(command, option)) for word in ("link to", "pipe", "socket"))


@pytest.mark.parametrize(("command", "option"), FILES)
@pytest.mark.parametrize("place", ["", ".", "..", "/", "folder", "/dev/null", "/dev/stdout"])
def test_a_folder_or_a_device_where_a_file_is_meant(here: Path, command: str, option: str, place: str) -> None:
    (here / "folder").mkdir()
    refused(command, option, Path(place))


@pytest.mark.parametrize(("command", "option"), OPTIONS)
@pytest.mark.parametrize(
    "place",
    ["x" * 300, "missing/" + "x" * 300, "x" * 300 + "/a", "y/" * 3000, "file/a", "a\0b", "/proc/no/such", "/proc/x"],
)
def test_where_nothing_can_be(here: Path, command: str, option: str, place: str) -> None:
    (here / "file").write_text("in the way")
    said = refused(command, option, Path(place))
    assert "cannot be written" in said
    assert len(said) < 600


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_where_nothing_may_be_written(here: Path, command: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "closed").mkdir()
    if os.geteuid():
        (here / "closed").chmod(0o500)
    else:  # root may write there, unless the disk is read-only
        original = os.open

        def closed(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_CREAT:
                raise OSError(30, os.strerror(30))
            return original(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", closed)
    assert "cannot be written (" in refused(command, option, Path("closed") / named(command, option))
    (here / "closed").chmod(0o700)


@pytest.mark.parametrize(("command", "option"), FILES)
def test_a_file_that_it_did_not_write(here: Path, command: str, option: str) -> None:
    place, picture = named(command, option), io.BytesIO()
    write_png(Path("other.png"), IMAGE, "nobody")
    write_npz(Path("other.npz"), {"latents": np.zeros((2, 3))}, "nobody")
    pictures = Path("other.png").read_bytes(), Path("other.npz").read_bytes(), picture.getvalue()
    for content in (b"", b"mine", b"{}", b'{"format": 2}', b"<html>", b"calotype " + command.encode(), *pictures):
        place.write_bytes(content)
        assert "is there" in refused(command, option, place)


@pytest.mark.parametrize(("command", "option"), FILES)
def test_what_it_wrote_before_is_replaced(here: Path, command: str, option: str) -> None:
    place = named(command, option)
    check_outputs(command, (), **{option: place})
    check_outputs(command, (), **{option: Path("new/folder") / place})
    assert not Path("new").exists()
    if OUTPUTS[command][option] is not JOB:
        write_own(command, option, place)
        check_outputs(command, (), **{option: place})


@pytest.mark.parametrize(("command", "option"), FILES)
def test_what_is_read_is_not_replaced(here: Path, command: str, option: str) -> None:
    if OUTPUTS[command][option] is JOB:
        return
    place = named(command, option)
    write_own(command, option, place)  # so that it is recognised
    os.link(place, "hard")
    Path("soft").symlink_to(place)
    for source in (place, place.absolute(), Path("..") / "work" / place, Path("hard"), Path("soft")):
        assert "is what is read" in refused(command, option, place, "glyphs", source)
    check_outputs(command, ("glyphs", "user/name", "x" * 5000, "~nobody-of-this-name/x"[1:]), **{option: place})


@pytest.mark.parametrize(("command", "option"), FILES)
@pytest.mark.parametrize("other", [".toml", ".jpg", ".html", ".JSON", ".npz", ".png", ".zip"])
def test_an_ending_of_another_format(here: Path, command: str, option: str, other: str) -> None:
    form = OUTPUTS[command][option]
    if not form.endings or other.lower() in form.endings:
        check_outputs(command, (), **{option: Path(f"out{other}")})
    else:
        assert f"name it out{form.endings[0]}" in refused(command, option, Path(f"out{other}"))


def test_the_page_beside_a_report_is_an_output_too(here: Path) -> None:
    Path("report.html").write_text("mine")
    assert "report.html is there" in refused("evaluate", "out", Path("report.json"))
    Path("report.html").unlink()
    Path("report.html").mkdir()
    assert "report.html is a folder" in refused("evaluate", "out", Path("report.json"))


@pytest.mark.parametrize(("command", "option"), FOLDERS)
def test_a_file_where_a_folder_is_meant(here: Path, command: str, option: str) -> None:
    Path("file").write_text("mine")
    assert "file is a file" in refused(command, option, Path("file"))
    for place in ("new", "new/deep"):
        check_outputs(command, (), **{option: Path(place)})
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    for place in ("empty", "link"):
        check_outputs(command, (), **{option: Path(place)})


@pytest.mark.parametrize(("command", "option"), PICTURE_FOLDERS)
def test_a_folder_with_files_that_it_did_not_write(here: Path, command: str, option: str) -> None:
    folder = Path("folder")
    folder.mkdir()
    write_png(folder / "000000.png", IMAGE, command)
    (folder / ".lock").touch()
    (folder / "samples.json").write_text("{}")
    (folder / f".000001.png.{'0' * 16}.tmp").write_text("half of one, of a process that was killed")
    check_outputs(command, (), **{option: folder})
    write_png(folder / "000001.png", IMAGE, "nobody")
    assert "has 000001.png, which" in refused(command, option, folder)
    (folder / "000001.png").unlink()
    Path("victim.png").write_bytes((folder / "000000.png").read_bytes())
    (folder / "000001.png").symlink_to("../victim.png")
    assert "has 000001.png, which" in refused(command, option, folder)
    (folder / "000001.png").unlink()
    (folder / "notes.txt").write_text("mine")
    check_outputs(command, (), **{option: folder})  # its manifest says which are its pictures
    (folder / "samples.json").unlink()
    assert "did not write" in refused(command, option, folder)


@pytest.mark.parametrize(("command", "option"), PICTURE_FOLDERS)
def test_the_folder_of_the_pictures_that_are_read(here: Path, command: str, option: str) -> None:
    Path("photos/new").mkdir(parents=True)
    Path("alias").symlink_to("photos")
    for place in ("photos", "alias", "photos/new", "photos/other", "alias/new"):
        assert any(word in refused(command, option, Path(place), "photos") for word in ("read", "not empty"))
    check_outputs(command, ("photos",), **{option: Path("photos-2")})


def test_a_place_that_nobody_named_is_told_as_one(here: Path) -> None:
    Path("run").write_text("in the way")
    with pytest.raises(PlaceError, match="No --grid was given, so that it is a file in the run"):
        check_outputs("sample", (), default="grid", grid=Path("run/samples-0.png"))
    with pytest.raises(PlaceError, match=r"choose another --grid$"):
        check_outputs("sample", (), grid=Path("run/samples-0.png"))


@pytest.mark.parametrize("run", ["missing", "x" * 300, "file/run", "a" * 200 + "/" + "b" * 300])
@pytest.mark.parametrize("words", [["sample"], ["complete", "photos"], ["reconstruct", "photos"], ["invert", "photos"]])
def test_a_run_that_is_none_is_named_and_no_option_that_nobody_gave(
    here: Path, words: list[str], run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("in the way")
    assert cli.main([words[0], run, *words[1:]]) == 2
    said = capsys.readouterr().err
    assert run[:80] in said
    assert not any(option in said for option in ("--grid", "--out", "--sheet"))


def test_two_outputs_are_two_places(here: Path) -> None:
    for places in (
        {"grid": "a", "npz": "a"},
        {"grid": "a", "npz": "../work/a"},
        {"out": "new", "grid": "new/000001.png"},
    ):
        with pytest.raises(PlaceError, match="choose"):
            check_outputs("sample", (), **{option: Path(place) for option, place in places.items()})
    check_outputs("sample", (), out=Path("new"), grid=Path("new/grid.png"), npz=Path("new.npz"))


@pytest.fixture
def words() -> Callable[[str, str, Path], list[str]]:
    arguments = {
        "train": ["train", "vae", "glyphs:gray:40"],
        "sample": ["sample", "no-run"],
        "interpolate": ["interpolate", "no-run", "a.png", "b.png"],
        "decode": ["decode", "no-run", "z.npz"],
        "evaluate": ["evaluate", "no-run", "--data", "glyphs:gray:40"],
        "compare": ["compare", "glyphs:gray:40"],
        "demo": ["demo"],
    }

    def of(command: str, option: str, place: Path) -> list[str]:
        if command == "launch":
            training = ["--", "train", "vae", "glyphs", "--out", "/shared/run", "--budget", "32img"]
            return ["launch", "--on", "slurm", "--write", str(place), *training]
        return [*arguments.get(command, [command, "no-run", "a.png"]), f"--{option}", str(place)]

    return of


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_command_looks_before_any_work(
    here: Path, command: str, option: str, words: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    form = OUTPUTS[command][option]
    for odd in (make_pipe, make_dead_link) if form.is_folder else (make_pipe, make_directory, make_link):
        Path("victim").write_text("precious")
        odd(here / named(command, option, odd.__name__), here / "victim")
        assert cli.main(words(command, option, named(command, option, odd.__name__))) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"calotype: --{option} {named(command, option, odd.__name__)} is a "), said
        assert form is not DIRECTORY or "new directory" in said
    assert Path("victim").read_text() == "precious"

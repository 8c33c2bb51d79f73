"""Files are written whole, through no link, and nowhere but where they were named."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calotype.core.files import (
    check_contained,
    copy_file,
    make_folder,
    open_append,
    open_folder,
    remove_tree,
    write_bytes,
)
from calotype.errors import PlaceError

PACKAGE = Path(__file__).parents[2] / "calotype"


def make_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def make_dead_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nowhere"))


def make_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path, victim: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # since the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)
    os.close(here)


def make_directory(path: Path, victim: Path) -> None:
    path.mkdir()


ODD = [make_link, make_dead_link, make_pipe, make_socket, make_directory]
"""What may be in the place of a file."""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's."""
    path = tmp_path / "thesis.txt"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("write", [lambda path: write_bytes(path, b"new"), lambda path: open_append(path).close()])
def test_a_place_that_is_no_file_is_refused(
    tmp_path: Path, victim: Path, odd: Callable[[Path, Path], None], write: Callable[[Path], None]
) -> None:
    place = tmp_path / "run" / "log"
    place.parent.mkdir()
    odd(place, victim)
    before = place.lstat()
    with pytest.raises(PlaceError, match=r"run/log is a (link to|pipe|socket|folder)"):
        write(place)
    assert place.lstat().st_ino == before.st_ino
    assert os.listdir(place.parent) == ["log"]
    assert victim.read_text() == "precious"


def test_the_name_of_a_temporary_file_cannot_be_foreseen_and_is_taken_by_nobody(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    with open_folder(tmp_path) as folder:
        for _ in range(2):
            folder.write("out", lambda file: names.extend(name for name in folder.names() if name.startswith(".out.")))
    assert len(set(names)) == 2
    monkeypatch.setattr(secrets, "token_hex", lambda n: "0" * 2 * n)  # even if it could
    (tmp_path / f".out.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "out", b"new")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("below", ["previews", "first/checkpoints"])
def test_below_a_run_no_link_is_followed(tmp_path: Path, below: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / below).parent.mkdir(parents=True)
    outside.mkdir()
    (run / below).symlink_to(outside)
    place = run / below / "file"
    for write in (
        lambda: write_bytes(place, b"x", run),
        lambda: open_append(place, run),
        lambda: make_folder(place, run),
        lambda: copy_file(PACKAGE / "core" / "files.py", place, run),
    ):
        with pytest.raises(PlaceError, match=f"{below} is a link to .*outside"):
            write()
    assert list(outside.iterdir()) == []


def test_a_run_may_itself_be_reached_through_links(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    run = tmp_path / "runs" / "letters"
    make_folder(run)
    make_folder(run / "previews", run)
    write_bytes(run / "previews" / "1.png", b"x", run)
    with open_append(run / "log", run) as log:
        log.write(b"line")
    check_contained(run)
    assert (tmp_path / "disk" / "letters" / "previews" / "1.png").read_bytes() == b"x"


def test_a_file_with_two_names_is_not_appended_to(tmp_path: Path, victim: Path) -> None:
    os.link(victim, tmp_path / "log")
    with pytest.raises(PlaceError, match="2 names"):
        open_append(tmp_path / "log")
    assert victim.read_text() == "precious"
    write_bytes(tmp_path / "log", b"new")  # which is another file then
    assert victim.read_text() == "precious"


def test_names_of_any_length_that_the_disk_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127, "."):
        if name != ".":
            write_bytes(tmp_path / name, b"x")
            assert (tmp_path / name).read_bytes() == b"x"
    for name in ("", ".", ".."):
        with pytest.raises(PlaceError, match="names no file"), open_folder(tmp_path) as folder:
            folder.write(name, lambda file: None)


def test_what_is_left_over_is_swept_where_nobody_is_at_it(tmp_path: Path, victim: Path) -> None:
    dead, alive, link = (tmp_path / f".file.{k * 16}.tmp" for k in "abc")
    other, similar = tmp_path / f".file2.{'a' * 16}.tmp", tmp_path / ".file.tmp"
    for path in (dead, alive, other, similar):
        path.write_text("half")
    link.symlink_to(victim)
    with alive.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_bytes(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (alive, link, other, similar, victim, tmp_path / "file")
    }
    assert victim.read_text() == "precious"


def test_what_is_removed_is_a_folder_and_not_what_its_links_lead_to(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "old" / "deep" / "link").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "old")
    remove_tree(tmp_path / "alias")
    assert (tmp_path / "old" / "deep").is_dir()
    remove_tree(tmp_path / "old")
    remove_tree(tmp_path / "old")
    assert list(tmp_path.iterdir()) == [victim]


@pytest.mark.parametrize("target", ["../thesis.txt", "..", "/", "../run-2", "nowhere/../../thesis.txt", "inside/../.."])
def test_links_that_lead_out_are_refused_by_name(tmp_path: Path, victim: Path, target: str) -> None:
    run = tmp_path / "run"
    (run / "inside" / "deep").mkdir(parents=True)
    (run / "inside" / "deep" / "back").symlink_to("../..")
    (run / "loop").symlink_to("loop")
    check_contained(run)
    (run / "inside" / "out").symlink_to(Path("..") / target if not target.startswith("/") else target)
    with pytest.raises(PlaceError, match=r"run/inside/out is a link that leads out of .*run, to"):
        check_contained(run)


# Calls that write to a path: of these modules and names, and methods of these names.
FUNCTIONS = re.compile(
    r"(os\.(remove|unlink|rename|renames|replace|rmdir|mkdir|makedirs|link|symlink|truncate|chmod|mkfifo)|shutil\.(?!which"
    r"|disk_usage)\w+|tempfile\.\w+|torch\.save|FileLock|SummaryWriter|save_file|\w*Writer)"
)
METHODS = re.compile(r"(write_text|mkdir|rmdir|unlink|symlink_to|hardlink_to|touch|rename|tofile|savefig|chmod|lchmod)")
ALLOWED = {  # why each is sound
    ("core/caches.py", "tempfile.mkdtemp"),  # a folder that this user alone can enter
    ("nn/native/loop.py", "tempfile.TemporaryDirectory"),  # likewise
    ("nn/native/loop.py", "target.chmod"),  # in it
    ("runs/checkpoints.py", "save_file"),  # into a new folder of a random name
    ("runs/checkpoints.py", "HuggingFaceStorageWriter"),  # likewise
    ("distributed/locks.py", "FileLock"),  # after a look whether it is a file
    ("training/tensorboard.py", "SummaryWriter"),  # new files of names of its own, in a run without links that lead out
    ("evaluation/training_curves.py", "figure.savefig"),  # to a file that is open
    ("evaluation/plots.py", "figure.savefig"),
}


def writes(call: ast.Call) -> bool:
    """Whether a call may write to a path."""
    name = ast.unparse(call.func)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else name
    words = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    if method == "open" and name != "os.open":
        return any(isinstance(word, str) and re.fullmatch(r"[rbt+]*[wax][rbt+]*|r[bt]?\+[bt]?", word) for word in words)
    if name == "os.open":
        return "O_CREAT" in ast.unparse(call)
    if method == "write_bytes":
        return name != method  # of a path, and not that of `files`
    if method == "replace":  # of a path; that of a text takes two values, and that of a dataclass has names
        return name != method and len(call.args) == 1 and not call.keywords
    return bool(FUNCTIONS.fullmatch(name) or METHODS.fullmatch(method))


def test_every_write_goes_through_one_module() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), ast.unparse(node.func))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path != PACKAGE / "core" / "files.py" and isinstance(node, ast.Call) and writes(node)
    }
    assert found == ALLOWED


def test_a_process_that_is_killed_leaves_what_the_next_writer_sweeps(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib\nfrom calotype.core.files import write_atomic\n"
        "write_atomic(pathlib.Path(sys.argv[1]), lambda file: (file.write(b'half'), file.flush(), os._exit(9)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")])
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    write_bytes(tmp_path / "file", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

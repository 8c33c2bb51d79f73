"""The same files give the same pictures, classes and splits, whether they lie in a folder, a zip, a tar or a shard."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calotype.data import DataConfig
from calotype.data.sources.names import normal, normal_names
from calotype.data.sources.shards import open_shards, storage
from calotype.data.sources.sources import locate, open_source
from calotype.errors import DataError
from tests.faults import FAULTS
from tests.trees import ARCHIVES, UNIX, WINDOWS, Tree, backslashed, renamed, write_folder, write_tar, write_zip


class Read(NamedTuple):
    """What a source gives of a tree."""

    pictures: list[tuple[bytes, str | None, str | None]]  # content, split, class
    class_names: tuple[str, ...]
    skipped: int
    ignored: list[str]  # last parts of their names
    other_files: int


def read(path: Path) -> Read:
    source = open_source(locate(str(path)), DataConfig(source=str(path)))
    pictures = []
    for record in source.records():
        content, label = record.load()[:2]
        name = source.class_names[label] if label is not None and source.class_names else None
        with content:
            pictures.append((content.read(), record.split, name))
    ignored = sorted(entry.name.rstrip("/").rpartition("/")[2] for entry in source.ignored)
    return Read(sorted(pictures, key=repr), source.class_names, len(source.skipped), ignored, source.other_files)


FOLDERS = st.sampled_from(
    ["cat", "dog", "Dog", "ü ber", "u\u0308 ber", "a.b", "train", "test", "val", "masks", "images", "__MACOSX", ".git"]
)
BASES = st.sampled_from(["0", "1", "cam1.007", "cam1.008", "0_mask", "00.left", "00.right", "00", "é"])
ENDINGS = st.sampled_from([".png", ".png", ".JPG", ".cls", ".json", ".txt", ""])


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Pictures, and files beside them, with contents that all differ but for labels."""
    folders = draw(st.lists(st.lists(FOLDERS, max_size=3).map("/".join), min_size=1, max_size=4, unique=True))
    found = {}
    for k, name in enumerate(
        draw(st.lists(st.tuples(st.sampled_from(folders), BASES, ENDINGS), min_size=1, max_size=24, unique=True))
    ):
        folder, base, ending = name
        label = draw(st.sampled_from(["0", "1", "one"]))
        content = {".cls": label, ".json": json.dumps({"label": label})}.get(ending, f"picture {k}")
        found[f"{folder}/{base}{ending}".lstrip("/")] = content.encode()
    # A folder cannot have the name of a file.
    return {n: c for n, c in found.items() if not any(other.startswith(f"{n}/") for other in found)}


@settings(
    max_examples=25 * max(1, FAULTS // 5),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not FAULTS,
)
@given(tree=trees())
@example(tree={"cat/0.png": b"0", "dog/1.png": b"1", "__MACOSX/cat/._0.png": b"x", "notes.txt": b"y"})
@example(tree={"train/cat/0.png": b"0", "train/dog/1.png": b"1", "test/dog/2.png": b"2", "3.png": b"3"})
@example(tree={"cam1.007.png": b"0", "cam1.007.cls": b"1", "cam1.008.png": b"2", "cam1.008.cls": b"0"})
def test_a_tree_is_the_same_in_all_archives(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as root:
        expected = read(write_folder(Path(root) / "folder", tree))
        for name, write in ARCHIVES.items():
            place = Path(root) / name
            place.mkdir()
            assert read(write(place, tree)) == expected, name
        if expected.pictures:
            as_shards(Path(root), tree, expected)


def as_shards(root: Path, tree: Tree, expected: Read) -> None:
    """A folder of one tar, packed and streamed."""
    place = root / "shards"
    place.mkdir()
    write_tar(place / "00000.tar", tree)
    assert read(place) == expected
    if expected.skipped or {split for _, split, _ in expected.pictures} == {"train", "held_out"}:
        with pytest.raises(DataError, match="pictures of different splits"):
            open_shards(storage(str(place)), True, root / "kept")
        return
    shards = open_shards(storage(str(place)), True, root / "kept")
    names = shards.class_names
    found = [(p.data, None if p.label is None or not names else names[p.label]) for p in shards.shards[0].read(0)]
    assert sorted(found, key=repr) == sorted(((data, name) for data, _, name in expected.pictures), key=repr)
    assert names == expected.class_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./a/b.png", "a/b.png"),
        ("a//b/./c.png", "a/b/c.png"),
        ("/a/b.png", "a/b.png"),
        ("a/../b.png", "b.png"),
        ("../../b.png", "b.png"),
        ("a/", "a"),
        ("...png", "...png"),
        ("C:\\a\\b.png", "a/b.png"),
        ("\\\\?\\C:\\a\\b.png", "a/b.png"),
        ("\\\\server\\a\\b.png", "server/a/b.png"),
        ("C:/a/b.png", "C:/a/b.png"),  # nothing says that it is of Windows
    ],
)
def test_names_have_one_form(name: str, expected: str) -> None:
    assert normal(name, "\\" in name) == expected


@pytest.mark.parametrize(
    ("names", "windows", "expected"),
    [
        (["a\\1.png", "b\\2.png"], False, ["a/1.png", "b/2.png"]),  # no other separator
        (["a\\1.png", "b/2.png"], False, ["a/1.png", "b/2.png"]),
        (["x/a\\1.png", "x/b\\2.png"], False, ["x/a/1.png", "x/b/2.png"]),  # all of them
        (["x/a\\1.png", "x/b/2.png"], False, ["x/a\\1.png", "x/b/2.png"]),  # a part of one name
        (["x/a\\1.png", "x/b/2.png"], True, ["x/a/1.png", "x/b/2.png"]),  # there are no such names on Windows
        (["1.png", "b/2.png"], True, ["1.png", "b/2.png"]),
    ],
)
def test_backslashes_are_separators_or_parts_of_names(names: list[str], windows: bool, expected: list[str]) -> None:
    found = normal_names(names, [windows] * len(names))
    assert found.names == expected
    assert bool(found.notes) == any("\\" in name for name in names)
    assert all("backslashes" in note for note in found.notes)


def numbered(root: str = "", start: int = 0) -> dict[str, bytes]:
    return {f"{root}{'cat' if i % 2 else 'dog'}/{i}.png": b"%d" % i for i in range(start, start + 8)}


def notes(path: Path) -> str:
    return " ".join(open_source(locate(str(path)), DataConfig(source=str(path))).notes)


def test_what_was_made_of_names_is_said(tmp_path: Path) -> None:
    assert "names of the archive have backslashes" in notes(
        write_zip(tmp_path / "a.zip", renamed(numbered(), backslashed), WINDOWS)
    )
    mixed = {**numbered("x/"), "x/cat\\dog/9.png": b"9"}
    assert "read as part of the name" in notes(write_zip(tmp_path / "b.zip", mixed, UNIX))
    assert notes(write_zip(tmp_path / "c.zip", numbered())) == ""


def test_a_name_in_another_encoding_is_said_and_utf8_is_found(tmp_path: Path) -> None:
    tree = renamed(numbered(), lambda name: name.replace("cat", "kätzchen"))
    path = write_zip(tmp_path / "a.zip", tree, utf8=False)
    assert read(path).class_names == ("dog", "kätzchen")
    path.write_bytes(path.read_bytes().replace("kätzchen".encode(), "kätzchen".encode("cp437") + b"x"))
    assert read(path).class_names == ("dog", "kätzchenx")
    assert "code page 437" in notes(path)


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_the_last_of_several_files_of_one_name_is_taken(write: object, tmp_path: Path) -> None:
    pairs = [*numbered().items(), ("./cat/1.png", b"the last"), ("dog//0.png", b"another")]
    path = write(tmp_path / "a", dict(pairs))  # type: ignore[operator]
    found = read(path)
    assert len(found.pictures) == 8
    assert {b"the last", b"another"} < {content for content, _, _ in found.pictures}
    assert "2 names are there again" in notes(path)


def test_class_folders_that_look_alike_are_one_or_said(tmp_path: Path) -> None:
    tree = {"u\u0308/0.png": b"0", "\u00fc/1.png": b"1", "a/2.png": b"2"}
    path = write_folder(tmp_path / "in", tree)
    assert read(path).class_names == ("a", "\u00fc")
    assert "2 folders, whose names Unicode spells in different ways" in notes(path)
    path = write_folder(tmp_path / "other", {"Cat/0.png": b"0", "cat/1.png": b"1"})
    assert "differ in case or spaces only" in notes(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/x/0.png", "b/x/1.png"], "in folders 2 deep such as a/x/0.png"),
        (["a/0.png", "1.png"], "1 in no folder such as 1.png"),
        (["a/0.png", "b/1.png", "b/c/2.png"], "2 folders look like classes"),
        (["train/0.png", "other/1.png"], "train is taken as a class"),
        (["test/0.png", "val/1.png"], "test, val are taken as a class"),
    ],
)
def test_folders_that_are_no_classes_are_said(names: list[str], words: str, tmp_path: Path) -> None:
    assert words in notes(write_folder(tmp_path / "in", dict.fromkeys(names, b"")))


def test_splits_below_classes(tmp_path: Path) -> None:
    tree = {
        f"{c}/{s}/{i}.png": b"%d" % i for i, (c, s) in enumerate([("cat", "train"), ("dog", "train"), ("dog", "val")])
    }
    found = read(write_folder(tmp_path / "in", tree))
    assert found.pictures == [(b"0", "train", "cat"), (b"1", "train", "dog"), (b"2", "held_out", "dog")]

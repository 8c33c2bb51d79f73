"""A cache is believed only where nobody else can write to it, and only what was written under its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from calotype.core import caches
from calotype.core.caches import cache_folder, cache_root, code_folder, read_entry, weakness, write_entry
from calotype.data import DataConfig, prepare
from calotype.evaluation.features import FeatureNetwork, cached
from calotype.nn.native import loop

ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    caches._say.cache_clear()
    yield
    caches._say.cache_clear()


def weaken(path: Path, how: str) -> None:
    """Let others put things at a place."""
    if how == "owner":
        os.chown(path, NOBODY, NOBODY)
    else:
        path.chmod({"group": 0o770, "others": 0o707, "sticky": 0o1777}[how])


# The group of a user who has one alone is no others'.
HOWS = [*(["group"] if not caches._is_private(os.getegid()) else []), "others", "sticky", *(["owner"] if ROOT else [])]


@pytest.mark.parametrize("how", HOWS)
def test_who_can_write_there(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "above" / "cache"
    folder.mkdir(parents=True, mode=0o700)
    (tmp_path / "alias").symlink_to("above/cache")
    for path in (folder, folder / "not there", tmp_path / "alias", tmp_path / "alias" / ".." / "cache"):
        assert weakness(path) == ""
    weaken(folder, how)
    for path in (folder, tmp_path / "alias"):
        assert str(folder) in weakness(path)
    folder.chmod(0o700)
    if how != "owner":
        weaken(folder.parent, how)
        assert bool(weakness(folder)) is (how != "sticky")  # in /tmp and the like only the owner moves a folder
        assert bool(weakness(tmp_path / "alias")) is (how != "sticky")


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_a_link_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "alias").symlink_to("cache")
    os.chown(tmp_path / "alias", NOBODY, NOBODY, follow_symlinks=False)
    assert weakness(tmp_path / "cache") == ""
    assert "alias is a link of another user's" in weakness(tmp_path / "alias")


@pytest.mark.parametrize("how", HOWS)
def test_another_cache_takes_its_place_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    weaken(shared, how)
    monkeypatch.setenv("CALOTYPE_CACHE", str(shared))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = shared / f"of-{os.geteuid()}" if how == "sticky" else tmp_path / "home" / ".cache" / "calotype"
    for _ in range(3):
        assert cache_root(None) == expected
        assert cache_folder("features") == expected / "features"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{shared} is used, since" in said
    assert str(expected) in said
    monkeypatch.setenv("CALOTYPE_CACHE_SHARED", "1")
    assert cache_root(None) == shared
    assert weakness(code_folder()) == ""  # but no compiled code
    assert code_folder() != shared


def test_a_folder_of_the_cache_to_which_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path))
    (tmp_path / "packs").mkdir()
    weaken(tmp_path / "packs", "others")
    assert cache_folder("packs") == tmp_path / f"packs-of-{os.geteuid()}"
    assert cache_folder("features") == tmp_path / "features"


def test_folders_are_made_for_the_user_alone_whatever_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        folder = cache_folder("features")
    finally:
        os.umask(before)
    assert folder == tmp_path / "new" / "cache" / "features"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3


def test_an_entry_is_what_was_written_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path))
    assert read_entry("features", "a", 100) is None
    for name in "ab":
        write_entry("features", name, name.encode() * 10)
        assert read_entry("features", name, 100) == name.encode() * 10
    assert read_entry("features", "a", 9) is None
    path = tmp_path / "features" / "a"
    content = path.read_bytes()
    for k in range(len(content)):
        path.write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
        assert read_entry("features", "a", 100) is None
    for damaged in (b"", content[:-1], content + b"x", (tmp_path / "features" / "b").read_bytes()):
        path.write_bytes(damaged)
        assert read_entry("features", "a", 100) is None
    path.unlink()
    os.mkfifo(path)
    assert read_entry("features", "a", 100) is None


@pytest.mark.fault("features in the cache that are not what was written", "they are computed anew")
def test_forged_features_are_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path))
    network = FeatureNetwork("Mean", "0", 8, lambda x: x.mean((2, 3)))
    images = torch.arange(3 * 64, dtype=torch.uint8).reshape(3, 1, 8, 8)
    expected = cached(network, "key", lambda: images, lambda *_: None)
    (path,) = (tmp_path / "features").iterdir()
    np.save(path, np.zeros((3, 3), np.float32))  # what stood there in earlier versions, and means nothing now
    path.with_name(path.name + ".npy").rename(path)
    assert torch.equal(cached(network, "key", lambda: images, lambda *_: None), expected)
    assert torch.equal(cached(network, "key", lambda: images[:0], lambda *_: None), expected)  # and kept


@pytest.mark.parametrize("name", ["images.u8", "labels.npy", "split.npy"])
@pytest.mark.fault("a bit flipped in a pack", "it is found when the pack is opened, and pictures are packed again")
def test_a_pack_that_is_not_what_was_packed_is_made_again(tmp_path: Path, picture_folder: Path, name: str) -> None:
    config = DataConfig(source=str(picture_folder))
    pack = prepare(config, cache=tmp_path)
    content = (pack.path / name).read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1]) if name != "labels.npy" else content[:-8] + content[-16:-8]
    flipped = content[:-8] + bytes(8 * [0]) if flipped == content else flipped
    (pack.path / name).write_bytes(flipped)
    again = prepare(config, cache=tmp_path)
    assert (again.path / name).read_bytes() == content
    assert again.digest == pack.digest
    assert (prepare(config, cache=tmp_path).path / name).stat().st_mtime_ns == (again.path / name).stat().st_mtime_ns


# -- compiled code


@pytest.fixture(scope="module")
def library() -> Path:
    """A library that does nothing: one that Python has."""
    import _ctypes

    return Path(_ctypes.__file__)


@pytest.mark.parametrize("how", ["nobody", *HOWS, "the file", "the folder above", "a link"])
@pytest.mark.fault("a library that others can have put into the cache", "it is not loaded")
def test_compiled_code_of_others_is_not_loaded(tmp_path: Path, library: Path, how: str) -> None:
    folder = tmp_path / "above" / "native"
    folder.mkdir(parents=True, mode=0o700)
    path = folder / "loop.so"
    shutil.copyfile(library, path)
    path.chmod(0o700)
    if how in HOWS:
        weaken(folder, how)
    elif how == "the file":
        path.chmod(0o777)
    elif how == "the folder above":
        weaken(folder.parent, "others")
    elif how == "a link":
        path.rename(tmp_path / "loop.so")
        weaken(tmp_path, "others")
        path.symlink_to(tmp_path / "loop.so")
    assert (loop._loaded(path) is not None) is (how == "nobody")


def test_a_cache_that_others_can_write_to_has_no_say_in_what_is_drawn_with(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("CALOTYPE_CACHE", str(shared))
    built = loop.built.__wrapped__()
    if built is None:
        pytest.skip("there is no C compiler")
    (path,) = (shared / "native").glob("loop-*.so")
    assert path.stat().st_mode & 0o777 == 0o700
    shutil.copyfile(library, path)
    path.chmod(0o777)
    (shared / "native").chmod(0o1777)
    for trusted in ("", "1"):  # with the word of the user, too, compiled code is built anew
        monkeypatch.setenv("CALOTYPE_CACHE_SHARED", trusted)
        again = loop.built.__wrapped__()
        assert again is not None
        assert hasattr(again, "draw_row")

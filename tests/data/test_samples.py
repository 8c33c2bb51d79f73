"""Shards as WebDataset writes them: labels of samples, packed and streamed, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.check import check
from calotype.data.sources.samples import Members, match, number, parse_label
from calotype.errors import DataError
from tests.pictures import encode, noise
from tests.trees import Tree, write_tar, write_zip

EACH = 40  # pictures of a shard


def matched(pictures: list[str], cls: list[str]) -> dict[str, str]:
    """The label file of each picture that has one."""
    return match(pictures, Members({name: name for name in cls}, {})).labels["cls"]


@pytest.mark.parametrize(
    ("pictures", "labels", "expected"),
    [
        (["000.png", "001.png"], ["000", "001"], ["000", "001"]),
        (["000.left.png", "000.right.png"], ["000"], ["000", "000"]),  # WebDataset: the key ends at the first dot
        (["cam1.007.png", "cam1.008.png"], ["cam1.007", "cam1.008"], ["cam1.007", "cam1.008"]),  # dots in names
        (["cam1.007.png", "cam1.008.png"], ["cam1.007"], ["cam1.007", None]),
        (["cam1.007.left.png", "cam1.007.right.png"], ["cam1.007"], ["cam1.007", "cam1.007"]),
        (["cam1.007.left.png", "cam1.007.right.png"], ["cam1", "cam1.007"], ["cam1.007", "cam1.007"]),  # the longest
        (["a.1/000.png", "a.2/000.png"], ["a.1/000", "a.2/000"], ["a.1/000", "a.2/000"]),  # dots in folders
        (["a.1/000.png"], ["a"], [None]),
        (["0001.png"], ["000"], [None]),  # it goes on without a dot
        ([".000.png"], ["", "."], [None]),
        (["v1.0/x.png"], ["v1", "v1.0"], [None]),
    ],
)
def test_labels_belong_to_the_longest_name(pictures: list[str], labels: list[str], expected: list[str | None]) -> None:
    found = matched(pictures, labels)
    assert [found.get(name) for name in pictures] == expected


@pytest.mark.parametrize(
    ("content", "suffix", "expected"),
    [
        (b"3\n", ".cls", "3"),
        ("\ufeffcat ".encode(), ".cls", "cat"),
        (b" ", ".cls", None),
        (b'{"label": 3}', ".json", "3"),
        (b'{"cls": "a", "label": "b"}', ".json", "a"),
        (b'{"caption": "a cat"}', ".json", None),
        (b'{"label": [1]}', ".json", None),
        (b'{"label": 0.5}', ".json", None),
        (b"[1]", ".json", None),
        (b"{", ".json", None),
        (b"[" * 100_000, ".json", None),
    ],
)
def test_what_label_files_say(content: bytes, suffix: str, expected: str | None) -> None:
    assert parse_label(content, suffix) == expected


def test_integers_are_their_own_numbers_and_texts_are_in_order() -> None:
    assert number(["2", "0", "02"]) == (("0", "1", "2"), {"0": 0, "02": 2, "2": 2})
    assert number(["b", "10", "9"]) == (("10", "9", "b"), {"10": 0, "9": 1, "b": 2})
    assert number(["-1", "1"]).numbers["-1"] == -1  # no class


def shards(root: Path, members: object, count: int = 2) -> Path:
    """A folder of tars; `members` gives the files of a picture by its number."""
    root.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        tree: dict[str, bytes] = {}
        for i in range(k * EACH, k * EACH + EACH):
            tree |= members(i)  # type: ignore[operator]
        write_tar(root / f"{k:05d}.tar", tree)
    return root


def dotted(i: int) -> dict[str, bytes]:
    return {f"cam{i % 2}.{i:03d}.png": encode(noise(i)), f"cam{i % 2}.{i:03d}.cls": b"%d" % (i % 3)}


def plain(i: int) -> dict[str, bytes]:
    return {f"{i:06d}.png": encode(noise(i)), f"{i:06d}.json": json.dumps({"label": i % 3}).encode()}


def foldered(i: int) -> dict[str, bytes]:
    return {f"./{i % 3}/{i:06d}.png": encode(noise(i)), f"./{i % 3}/{i:06d}.txt": b"a caption"}


def unlabelled(i: int) -> dict[str, bytes]:
    return {f"a/{i % 3}/{i:06d}.png": encode(noise(i)), f"b/{i:06d}.png": encode(noise(1000 + i))}


def pack(path: Path, tmp_path: Path, **settings: object) -> PackedDataset:
    return prepare(DataConfig(source=str(path), **settings), cache=tmp_path / "cache")  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [dotted, plain, foldered])
def test_shards_are_packed_as_they_are_streamed(members: object, tmp_path: Path) -> None:
    path = shards(tmp_path / "in", members)
    packed, streamed = pack(path, tmp_path), pack(path, tmp_path, stream=True)
    assert packed.class_names == streamed.class_names == ("0", "1", "2")
    assert len(packed) == 2 * EACH
    stream = streamed.stream
    assert stream is not None
    assert packed.labels is not None
    found = stream.read(np.arange(2 * EACH))
    assert found.labels is not None
    by_pixels = {p.tobytes(): label for p, label in zip(packed.images, packed.labels.tolist(), strict=True)}
    there = {
        np.ascontiguousarray(p.permute(1, 2, 0).numpy()).tobytes(): int(label)
        for p, label in zip(found.images, found.labels, strict=True)
    }
    assert there == by_pixels
    assert by_pixels == {noise(i).tobytes(): i % 3 for i in range(2 * EACH)}


def test_one_shard_is_packed_where_it_cannot_be_streamed(tmp_path: Path) -> None:
    path = shards(tmp_path / "in", dotted, count=1)
    with pytest.raises(DataError, match="leave out --stream"):
        pack(path, tmp_path, stream=True)
    assert pack(path, tmp_path).class_names == pack(path / "00000.tar", tmp_path).class_names == ("0", "1", "2")
    assert check(path, cache=tmp_path / "cache").problem == ""


def test_splits_are_read_off_the_names_of_tars(tmp_path: Path) -> None:
    path = shards(tmp_path / "in", plain)
    (path / "00000.tar").rename(path / "train-00000.tar")
    (path / "00001.tar").rename(path / "test-00000.tar")
    packed = pack(path, tmp_path)
    assert {image.tobytes() for image in packed.images[packed.held_out]} == {
        noise(i).tobytes() for i in range(EACH, 2 * EACH)
    }


def test_shards_whose_folders_are_splits_are_kept_apart(tmp_path: Path) -> None:
    path = shards(tmp_path / "in", lambda i: {f"{'train' if i < EACH else 'val'}/{i}.png": encode(noise(i))})
    packed, streamed = pack(path, tmp_path), pack(path, tmp_path, stream=True)
    assert len(packed.held_out) == len(streamed.held_out) == EACH
    mixed = shards(tmp_path / "mixed", lambda i: {f"{'train' if i % 2 else 'val'}/{i}.png": encode(noise(i))})
    assert len(pack(mixed, tmp_path).held_out) == EACH
    with pytest.raises(DataError, match="pictures of different splits"):
        pack(mixed, tmp_path, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_folders_that_are_no_classes_are_said_of_shards(stream: bool, tmp_path: Path) -> None:
    report = check(DataConfig(source=str(shards(tmp_path / "in", unlabelled)), stream=stream), cache=tmp_path / "cache")
    assert report.classes == {}
    assert any("No labels" in note for note in report.notes)


@pytest.mark.parametrize("stream", [False, True])
def test_what_else_is_in_shards_is_listed(stream: bool, tmp_path: Path) -> None:
    def members(i: int) -> dict[str, bytes]:
        return {**plain(i), f"{i:06d}.txt": b"a caption", f"__MACOSX/._{i:06d}.png": b"x", f"{i:06d}.cls2": b"1"}

    path = shards(tmp_path / "in", members)
    (path / "readme.md").write_text("x")
    report = check(DataConfig(source=str(path), stream=stream), cache=tmp_path / "cache")
    names = " ".join(entry.name for entry in report.ignored)
    assert report.pictures > EACH
    assert all(word in names for word in ("__MACOSX/", ".txt", ".cls2", "readme.md"))
    assert ".json" not in names


def test_a_missing_label_is_said_and_few_labels_are_no_classes(tmp_path: Path) -> None:
    tree: dict[str, bytes] = {}
    for i in range(EACH):
        tree |= dotted(i)
    del tree["cam1.007.cls"]
    with pytest.raises(DataError, match=r"cam1.007.png has the label None"):
        pack(write_tar(tmp_path / "a.tar", tree), tmp_path)
    few: Tree = {name: content for name, content in tree.items() if name.endswith(".png") or name < "cam0.010"}
    path = write_zip(tmp_path / "few.zip", few)
    assert pack(path, tmp_path).class_names == ()
    assert any("too few to be the classes" in note for note in check(path, cache=tmp_path / "cache").notes)


def test_samples_of_several_pictures_are_said(tmp_path: Path) -> None:
    tree = {
        f"{i:03d}.{side}.png": encode(noise(2 * i + (side == "left"))) for i in range(20) for side in ("left", "right")
    }
    tree |= {f"{i:03d}.cls": b"%d" % (i % 2) for i in range(20)}
    report = check(write_tar(tmp_path / "a.tar", tree), cache=tmp_path / "cache")
    assert report.classes == {"0": 20, "1": 20}
    assert any("20 samples have several pictures, .left.png (20), .right.png (20)" in note for note in report.notes)


def test_labels_of_no_picture_are_said(tmp_path: Path) -> None:
    tree = {f"{i}.png": encode(noise(i)) for i in range(20)} | {f"label-{i}.cls": b"1" for i in range(20)}
    report = check(write_tar(tmp_path / "a.tar", tree), cache=tmp_path / "cache")
    assert any("20 .cls files belong to no picture by name" in note for note in report.notes)


def test_a_folder_of_zips_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.zip", "b.zip"):
        write_zip(tmp_path / "in" / name, {"0.png": encode(noise(0))})
    report = check(tmp_path / "in", cache=tmp_path / "cache")
    assert "an archive beside pictures" in report.ignored[0].reason
    assert "a.zip" in report.problem


def test_columns_and_arrays_that_may_be_labels_are_said(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": encode(noise(i)), "path": None} for i in range(EACH)]
    rows = pa.table({"image": cells, "category": ["cat", "dog"] * (EACH // 2)})
    (tmp_path / "in").mkdir()
    pq.write_table(rows, tmp_path / "in" / "a.parquet", row_group_size=EACH // 2)
    for stream in (False, True):
        report = check(DataConfig(source=str(tmp_path / "in"), stream=stream), cache=tmp_path / "cache")
        assert any("the columns category are not read" in note for note in report.notes)
    images = np.stack([noise(i) for i in range(20)])
    np.savez(tmp_path / "a.npz", images=images, targets=np.arange(20) % 2)
    note = check(tmp_path / "a.npz", cache=tmp_path / "cache").notes[0]
    assert note == "The arrays targets are not read: classes would be labels."
    np.savez(tmp_path / "b.npz", x_train=images, y_train=np.arange(20) % 2, x_test=images)
    note = check(tmp_path / "b.npz", cache=tmp_path / "cache").notes[0]
    assert note == "No labels: x_test has no y_test beside it, which others have."


def test_what_is_kept_of_a_tar_is_made_again_where_it_is_damaged(tmp_path: Path) -> None:
    path = shards(tmp_path / "in", dotted)
    expected = pack(path, tmp_path, stream=True).digest
    for kept in (tmp_path / "cache" / "shards").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1])
    assert pack(path, tmp_path, stream=True).digest == expected


def test_a_tar_for_each_class_is_said(tmp_path: Path) -> None:
    for k, name in enumerate(("cat", "dog")):
        tree = {f"{i}.png": encode(noise(100 * k + i)) for i in range(20)}
        write_tar(shards(tmp_path / "in", plain, 0) / f"{name}.tar", tree)
    for stream in (False, True):
        report = check(DataConfig(source=str(tmp_path / "in"), stream=stream), cache=tmp_path / "cache")
        assert any("names of tars, such as cat, dog, are no classes" in note for note in report.notes)


def test_compressed_tars_are_packed_and_not_streamed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(2):
        tree = {name: content for i in range(20) for name, content in plain(20 * k + i).items()}
        write_tar(tmp_path / "in" / f"{k}.tar.gz", tree, "w:gz")
    assert pack(tmp_path / "in", tmp_path).class_names == ("0", "1", "2")
    with pytest.raises(DataError, match="leave out --stream"):
        pack(tmp_path / "in", tmp_path, stream=True)

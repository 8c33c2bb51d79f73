"""What lies beside pictures: left out with the reason and the remedy, and tables of labels, which are offered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.check import CheckReport, check
from calotype.data.sources.exclusions import COMPANION_ENDINGS, COMPANION_FOLDERS, SUFFIXES, SYSTEM_FOLDERS, companions
from calotype.data.sources.label_files import LabelsFrom
from calotype.errors import CalotypeError, ConfigError, DataError
from tests.pictures import encode, folder_of, noise, numbered
from tests.trees import Tree, backslashed, renamed, write_folder, write_tar, write_zip

COUNT = 24
PICTURES = {f"{i}.png": encode(noise(i)) for i in range(COUNT)}
CLASSES = ("cat", "dog")


def reported(tmp_path: Path, tree: Tree, **settings: object) -> CheckReport:
    source = write_folder(tmp_path / "in", tree)
    return check(DataConfig(source=str(source), **settings), cache=tmp_path / "cache")  # type: ignore[arg-type]


def packed(tmp_path: Path, tree: Tree, labels_from: str) -> PackedDataset:
    source = write_folder(tmp_path / "in", tree)
    return prepare(DataConfig(source=str(source), labels_from=labels_from), cache=tmp_path / "cache")


def reasons(report: CheckReport) -> dict[str, str]:
    return {entry.name: entry.reason for entry in report.ignored}


# -- folders and files that are left out


@pytest.mark.parametrize("name", [*SYSTEM_FOLDERS, "$RECYCLE.BIN", "@eaDir", "__MACOSX", ".thumbnails", ".Trash-1000"])
def test_folders_of_systems_are_never_learned(name: str, tmp_path: Path) -> None:
    inside = {f"{name}/{i}.png": encode(noise(100 + i)) for i in range(3)}
    deeper = {f"cat/{name}/x/{i}.png": encode(noise(200 + i)) for i in range(3)}
    found = reported(tmp_path, {**renamed(PICTURES, classed), **inside, **deeper})
    assert found.pictures == COUNT
    assert set(found.classes) == set(CLASSES)
    assert {f"{name}/", f"cat/{name}/"} == set(reasons(found))
    assert name in found.text()
    assert "rename it" in reasons(found)[f"{name}/"]


def classed(name: str) -> str:
    return f"{CLASSES[int(Path(name).stem) % 2]}/{name}"


def test_every_other_file_is_listed_by_name_with_a_remedy(tmp_path: Path) -> None:
    others = [f"file{suffix}" for suffix in SUFFIXES] + ["Thumbs.db", "desktop.ini", ".DS_Store", "what", "odd.qqq"]
    found = reported(tmp_path, {**PICTURES, **dict.fromkeys(others, b"x")})
    assert set(reasons(found)) == set(others)
    assert all(": " in reason for reason in reasons(found).values())
    assert found.other_files == len(others) - 3
    listed = json.loads(json.dumps(found.as_dict()))["ignored"]
    assert {entry["name"] for entry in listed} == set(others)
    assert "film" in reasons(found)["file.mp4"]
    assert "odd.qqq" in found.text()


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.png", "mask/{}_mask.png"),
        ("{}.png", "masks/{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("images/{}.jpg", "annotations/trimaps/{}.png"),
        ("images/train/{}.png", "labels/train/{}.png"),
        ("train/images/{}.png", "train/masks/{}.png"),
        ("test/broken/{}.png", "ground_truth/broken/{}_mask.png"),
        ("train/{}.jpg", "train_masks/{}_mask.gif"),
        ("cat/{}.jpg", "cat/thumbnails/{}.jpg"),
        ("{}.png", "{}_mask.png"),
        ("{}.jpg", "{}.mask.png"),
        ("a/{}.jpg", "a/{}@2x.jpg"),
        ("{}.jpg", "{}_thumb.jpg"),
    ],
)
def test_masks_and_smaller_versions_are_left_out(pictures: str, masks: str) -> None:
    names = [pictures.format(f"p{i}") for i in range(8)]
    found = companions([*names, *(masks.format(f"p{i}") for i in range(8))])
    assert found.names == {masks.format(f"p{i}") for i in range(8)}
    assert found.ignored
    assert all("to learn from" in entry.reason for entry in found.ignored)
    assert companions(names) == (frozenset(), (), ())


@pytest.mark.parametrize(
    "names",
    [
        ["mask/{}.png", "no_mask/{}.png"],  # faces
        ["mask/{}.png", "hat/{}.png"],
        ["masks/{}.png", "hats/{}.png", "coats/{}.png"],  # numbered in each folder: three classes
        ["masks/{}.png"],  # the only folder
        ["masks/m{}.png", "images/i{}.png"],  # of other names
        ["a/{}_mask.png", "b/{}.png"],  # not beside it
        ["with_mask/{}.png", "without_mask/{}.png"],
    ],
)
def test_what_is_only_named_so_is_learned(names: list[str]) -> None:
    assert not companions([name.format(i) for name in names for i in range(8)]).names


WORDS = st.sampled_from([*COMPANION_FOLDERS, "images", "cat", "dog", "a"])


@given(
    st.lists(
        st.tuples(st.lists(WORDS, max_size=2), st.sampled_from("0123"), st.sampled_from(["", *COMPANION_ENDINGS])),
        min_size=1,
        unique_by=str,
    )
)
def test_something_is_always_left_and_each_mask_has_its_picture(parts: list[tuple[list[str], str, str]]) -> None:
    names = ["/".join([*folders, f"{base}{ending}.png"]) for folders, base, ending in parts]
    found = companions(names)
    assert found.names < set(names)
    stems = {Path(name).stem for name in set(names) - found.names}
    for entry in found.ignored:  # there are pictures left whose names those of the masks begin with
        members = [name for name in found.names if name.startswith(entry.name)]
        assert sum(any(Path(name).stem.startswith(stem) for stem in stems) for name in members) > len(members) / 2


def test_masks_are_said_with_the_remedy(tmp_path: Path) -> None:
    found = reported(tmp_path, {**renamed(PICTURES, "images/{}".format), **renamed(PICTURES, "masks/{}".format)})
    assert (found.pictures, found.classes) == (COUNT, {})
    assert "give it by itself" in reasons(found)["masks/"]
    assert prepare(DataConfig(source=str(tmp_path / "in" / "masks")), cache=tmp_path / "cache")  # and that works


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_archives_leave_out_what_folders_do(write: Callable[[Path, Tree], Path], tmp_path: Path) -> None:
    tree = {**renamed(PICTURES, classed), "cat/@eaDir/x.png": b"x", "$RECYCLE.BIN/y.png": b"y", "z.mp4": b"z"}
    path = write(tmp_path / "a", renamed(tree, backslashed))
    found = check(path, cache=tmp_path / "cache")
    assert found.pictures == COUNT
    assert set(reasons(found)) == {"cat/@eaDir/", "$RECYCLE.BIN/", "z.mp4"}


# -- tables of labels


def table(kind: str, name: Callable[[int], str] = "{}.png".format) -> bytes:
    rows = [(name(i), CLASSES[i % 2], i % 3) for i in range(COUNT)]
    if kind == "stylegan":
        return json.dumps({"labels": [[name, level] for name, _, level in rows]}).encode()
    if kind == "dict":
        return json.dumps({name: label for name, label, _ in rows}).encode()
    if kind == "jsonl":
        return "".join(json.dumps({"file_name": n, "label": c, "level": v}) + "\n" for n, c, v in rows).encode()
    mark = {"csv": ",", "tsv": "\t", "semicolons": ";"}[kind]
    lines = [mark.join(map(str, row)) for row in [("file_name", "label", "level"), *rows]]
    return ("\ufeff" + "\r\n".join(lines)).encode()


@pytest.mark.parametrize(
    ("file", "kind", "option"),
    [
        ("metadata.csv", "csv", "metadata.csv:label"),
        ("metadata.csv", "semicolons", "metadata.csv:label"),
        ("metadata.tsv", "tsv", "metadata.tsv:label"),
        ("metadata.jsonl", "jsonl", "metadata.jsonl:label"),
        ("train.csv", "csv", "train.csv:label"),
        ("dataset.json", "stylegan", "dataset.json:label"),
        ("names.json", "dict", "names.json:label"),
    ],
)
def test_a_table_is_offered_and_read(file: str, kind: str, option: str, tmp_path: Path) -> None:
    tree = {**PICTURES, file: table(kind)}
    found = reported(tmp_path, tree)
    assert found.classes == {}
    (note,) = (note for note in found.notes if file in note)
    assert f"{file} has rows for {COUNT} of {COUNT} pictures" in note
    assert f"--labels-from {option}" in note
    data = packed(tmp_path, tree, option)
    numbers = {name: int(Path(name).stem) for name in data.survey()["names"]}
    expected = [CLASSES[k % 2] if kind != "stylegan" else str(k % 3) for k in numbers.values()]
    assert data.labels is not None
    assert [data.class_names[label] for label in data.labels] == expected
    again = check(DataConfig(source=str(tmp_path / "in"), labels_from=option), cache=tmp_path / "cache")
    assert not any(file in note for note in again.notes)
    assert file not in reasons(again)
    assert f"--labels-from {option}" in again.command


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_tables_name_pictures_from_their_own_folder(write: Callable[[Path, Tree], Path], tmp_path: Path) -> None:
    tree = dict(renamed(PICTURES, lambda n: f"photos/{'test' if int(n[:-4]) < 6 else 'train'}/{n}"))
    for split in ("train", "test"):
        lines = [f"{name.rpartition('/')[2]},{CLASSES[len(name) % 2]}" for name in tree if f"/{split}/" in name]
        tree[f"photos/{split}/metadata.csv"] = "\n".join(["file_name,label", *lines]).encode()
    path = write(tmp_path / "a", tree)
    data = prepare(DataConfig(source=str(path), labels_from="metadata.csv:label"), cache=tmp_path / "cache")
    assert data.class_names == CLASSES
    assert len(data.held_out) == 6


def test_names_may_lack_their_suffix_or_have_windows_separators(tmp_path: Path) -> None:
    tree = {
        **renamed(PICTURES, "train/{}".format),
        "labels.csv": table("csv", "{}".format).replace(b"file_name", b"id"),
    }
    assert packed(tmp_path / "a", tree, "labels.csv:label").class_names == CLASSES
    tree = {**renamed(PICTURES, "x/{}".format), "labels.csv": table("csv", "x\\{}.png".format)}
    assert packed(tmp_path / "b", tree, "labels.csv:label").class_names == CLASSES


def test_pictures_without_a_class_are_skipped_and_unknown_names_said(tmp_path: Path) -> None:
    text = (
        table("csv").replace(b"\r\n3.png,dog", b"\r\n3.png,").replace(b"\r\n5.png,dog,2", b"") + b"\r\nnone.png,cat,1"
    )
    data = packed(tmp_path, {**PICTURES, "metadata.csv": text}, "metadata.csv:label")
    assert {entry.name for entry in data.skipped} == {"3.png", "5.png"}
    assert all("no label: metadata.csv" in entry.reason for entry in data.skipped)
    assert len(data) == COUNT - 2
    assert any("1 row of metadata.csv without a picture" in note for note in data.survey()["notes"])


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        (table("csv"), "lable", "did you mean label?"),
        (table("csv"), "", "say which one"),
        (b"", "label", "has no rows"),
        (b"file_name,label\n", "label", "has no rows"),
        (b"0.png,cat\n1.png,dog\n", "label", "give it a first line"),
        (b"file_name,label\nx.png,cat\n", "label", "names pictures: its first row is"),
        (b"file_name,label\n0.png,cat\n0.png,dog\n", "label", "row 3, says that 0.png is dog, and metadata.csv, row 2"),
        (b"file_name,label\n0.png,cat,dog\n", "label", "line 2, has 3 values, but there are 2 columns"),
        (b"file_name,label,label\n0.png,cat,1\n", "label", "two columns named 'label'"),
        (b"file_name\n0.png\n", "", "names of pictures alone"),
        (b"file_name,x\n0.png,0.5\n1.png,1\n", "x", "has numbers such as 0.5"),
        (b"file_name,x\n0.png,-1\n1.png,1\n", "x", "has -1, but classes are numbered from 0"),
        (b"file_name,x\n0.png,\n1.png,\n", "x", "has no values"),
        ("".join(["file_name,x\n", *(f"{i}.png,n{i}\n" for i in range(COUNT))]).encode(), "x", "24 different values"),
        (b"file_name,x\n0.png,1000000\n1.png,1\n", "x", "numbers up to 1,000,000"),
        ("file_name,x\n0.png,\u00e9\n".encode("latin-1"), "x", "is not UTF-8"),
        (b'file_name,x\n0.png,"' + b"y" * 200_000 + b'"\n', "x", "cannot be read"),
    ],
)
def test_a_table_that_says_no_classes_is_an_error(text: bytes, column: str, words: str, tmp_path: Path) -> None:
    option = f"metadata.csv:{column}" if column else "metadata.csv"
    with pytest.raises(DataError) as caught:
        packed(tmp_path, {**PICTURES, "metadata.csv": text}, option)
    assert words in str(caught.value)
    reported(tmp_path, {**PICTURES, "metadata.csv": text})  # and where it is not asked for, no error


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.jsonl", b'{"file_name": "0.png", "x": [1]}\n', "has [1], but a class is one integer or text"),
        ("metadata.jsonl", b'{"file_name": "0.png"}\nno\n', "line 2, is no JSON"),
        ("metadata.jsonl", b"3\n", "each line is an object"),
        ("dataset.json", b'{"labels": null}', "has no rows"),
        ("dataset.json", b'{"labels": [["0.png", [0.5, 1]]]}', "a class is one integer or text"),
        ("dataset.json", b"{", "is no JSON"),
        ("dataset.json", b"3", "no table of labels"),
        ("dataset.json", b"[" * 100_000, "is no JSON"),
    ],
)
def test_json_that_says_no_classes_is_an_error(name: str, text: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        packed(tmp_path, {**PICTURES, name: text}, name + (":x" if name.endswith("l") else ""))
    assert words in str(caught.value)
    reported(tmp_path, {**PICTURES, name: text})


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.csv is no file of the source: .* there are metadata.csv"):
        packed(tmp_path, {**PICTURES, "metadata.csv": table("csv")}, "labels.csv:label")
    for wrong in ("metadata", "label", ":label", "metadata.csv:", "metadata.xml:label"):
        with pytest.raises(ConfigError, match="labels_from is"):
            DataConfig(source="x", labels_from=wrong)
    for settings in ({"labels": False}, {"stream": True}):
        with pytest.raises(ConfigError, match="labels_from is"):
            DataConfig(source="x", labels_from="metadata.csv:x", **settings)  # type: ignore[arg-type]
    for source in ("glyphs:gray:40", "in.npy"):
        with pytest.raises(CalotypeError, match=r"labels_from|does not exist"):
            prepare(DataConfig(source=source, labels_from="metadata.csv:x"), cache=tmp_path / "cache")


@given(st.text(max_size=20))
def test_any_text_names_a_table_or_is_refused(text: str) -> None:
    try:
        found = LabelsFrom.parse(text)
    except ConfigError:
        return
    assert found.file


@given(
    content=st.binary(max_size=200), name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "0.cls", "0.json"])
)
def test_any_bytes_beside_pictures_are_no_error(
    content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from calotype.data.sources.files import folder

    source = write_folder(tmp_path_factory.mktemp("in"), {**dict.fromkeys(list(PICTURES)[:3], b"x"), name: content})
    assert len(list(folder(source).records())) == 3


@pytest.mark.parametrize("name", ["annotations.json", "classes.txt", "0.xml", "labels.mat", "instances.json"])
def test_files_that_may_say_classes_are_named(name: str, tmp_path: Path) -> None:
    text = json.dumps({"images": [{"id": 0, "file_name": "0.png"}], "annotations": []}).encode()
    assert any(name in note for note in reported(tmp_path, {**PICTURES, name: text}).notes)


@pytest.mark.parametrize("files", ["compare.toml", "config.toml checkpoints", "config.toml log.jsonl", "samples.json"])
def test_what_calotype_wrote_among_the_pictures_is_left_out(tmp_path: Path, files: str) -> None:
    """As after `cd photos; calotype train vae .`, which makes photos/runs: previews are not the user's pictures."""
    folder_of(tmp_path / "photos", numbered(20))
    before = prepare(DataConfig(source=str(tmp_path / "photos")), cache=tmp_path / "cache")
    made = folder_of(tmp_path / "photos" / "runs" / "first" / "previews", numbered(3)).parent
    for name in files.split():
        (made / name).write_text("")
    after = prepare(DataConfig(source=str(tmp_path / "photos")), cache=tmp_path / "cache")
    assert after.digest == before.digest
    report = check(DataConfig(source=str(tmp_path / "photos")), cache=tmp_path / "other")
    assert [entry.name for entry in report.ignored] == ["runs/first/"]
    assert len(prepare(DataConfig(source=str(made), to_learn=False), cache=tmp_path / "cache")) == 3  # by itself

"""TIFF stacks and animations: what is said of their pages and frames, and each as a picture of its own."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageSequence

from calotype.cli import main
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.check import check
from calotype.data.decode import decode_bytes, pages, quiet_pillow, read_facts
from calotype.data.decoding import animation
from calotype.errors import ConfigError, DataError
from tests.pictures import encode, encode_image, folder_of, noise, numbered


def stack(path: Path, seed: int, count: int = 10) -> Path:
    """A TIFF of some gray pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.stack([noise(1000 * seed + k, channels=1)[:, :, 0] for k in range(count)])
    tifffile.imwrite(path, values, photometric="minisblack")
    return path


def stacks(folder: Path, count: int = 20) -> Path:
    for seed in range(count):
        stack(folder / f"{seed:02d}.tif", seed)
    return folder


def packed(source: Path, **settings: object) -> PackedDataset:
    return prepare(DataConfig(source=str(source), **settings), cache=source.parent / "cache")


def animated(kind: str, count: int = 7) -> bytes:
    frames = [Image.fromarray(noise(k, 16, 16)) for k in range(count)]
    options = {"lossless": True} if kind == "WEBP" else {"quality": 90} if kind == "AVIF" else {}
    return encode_image(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def test_pages_that_are_left_out_are_counted(tmp_path: Path) -> None:
    stacks(tmp_path / "in")
    (tmp_path / "in" / "a.gif").write_bytes(animated("GIF"))
    (tmp_path / "in" / "one.tif").write_bytes(encode(noise(1), "TIFF"))
    report = check(DataConfig(source=str(tmp_path / "in")), cache=tmp_path / "cache")
    assert report.pictures == 22
    (note,) = report.notes
    assert note.startswith("21 files have several pages or frames: the first of each is used, and the other 186 are")
    assert "--pages all" in note


def test_each_page_is_a_picture_with_the_name_and_label_of_its_file(tmp_path: Path) -> None:
    for seed in range(20):
        stack(tmp_path / "in" / "ab"[seed % 2] / f"{seed}.tif", seed, 3)
    folder_of(tmp_path / "in" / "a", ["one.png"], 500, channels=1)
    data = packed(tmp_path / "in", pages="all")
    names = data.survey()["names"]
    assert len(data) == 61
    assert names[:2] == ["a/0.tif#1", "a/0.tif#2"]
    assert "a/one.png" in names
    for name, image, label in zip(names, data.images, data.labels, strict=True):
        assert label == "ab".index(name[0])
        if name != "a/one.png":
            seed, page = name[2:].split(".tif#")
            np.testing.assert_array_equal(image, noise(1000 * int(seed) + int(page) - 1, channels=1))
    assert data.survey()["notes"] == []


@pytest.mark.parametrize("archive", [False, True])
def test_pages_of_a_file_lie_on_one_side_of_the_split(tmp_path: Path, archive: bool) -> None:
    source = stacks(tmp_path / "in", 40)
    if archive:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
            for path in sorted(source.iterdir()):
                file.write(path, path.name)
        source = tmp_path / "in.zip"
    data = packed(source, pages="all")
    names = data.survey()["names"]
    sides = [{names[i].partition("#")[0] for i in side} for side in (data.train, data.held_out)]
    assert len(data) == 400
    assert not sides[0] & sides[1]
    assert sides[1]


def test_a_single_stack_is_a_source_only_where_all_pages_are_wanted(tmp_path: Path) -> None:
    source = stack(tmp_path / "scan.tif", 1, 40)
    with pytest.raises(
        DataError, match=r"scan.tif has 40 pages or frames: give --pages all, or give a folder of pictures"
    ):
        packed(source)
    data = packed(source, pages="all")
    assert len(data) == 40
    assert data.held_out.tolist() == [36, 37, 38, 39]  # a block: slices beside each other are much alike
    with pytest.raises(DataError, match=r"one.tif is one picture"):
        packed(stack(tmp_path / "one.tif", 1, 1))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_frames_are_as_they_look_one_over_the_other(kind: str) -> None:
    data = animated(kind)
    found = pages(io.BytesIO(data))
    assert read_facts(io.BytesIO(data)).pages == len(found) == 7
    with Image.open(io.BytesIO(data)) as image:
        expected = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    for k in (0, 1, 5, 6, 2):  # backwards as well
        pixels = decode_bytes(data, page=found[k]).pixels
        np.testing.assert_array_equal(pixels[:, :, :3], expected[k])
        if kind == "PNG":
            np.testing.assert_array_equal(pixels, noise(k, 16, 16))


def test_a_picture_before_an_animation_counts_as_one() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encode_image(red, "PNG", save_all=True, append_images=[blue, red], default_image=True)
    with Image.open(io.BytesIO(data)) as image:
        assert len(pages(io.BytesIO(data))) == image.n_frames == 3
    assert (decode_bytes(data, page=1).pixels[:, :, 2] == 255).all()


def test_frames_are_counted_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(animation, "MOST_FRAMES", 5)
    for kind in ("GIF", "PNG", "WEBP"):
        with quiet_pillow():
            assert len(pages(io.BytesIO(animated(kind)))) == 5


def test_a_file_whose_pages_cannot_be_counted_is_one_bad_picture(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", numbered(20))
    (tmp_path / "in" / "bad.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    (tmp_path / "in" / "cut.tif").write_bytes(stack(tmp_path / "s.tif", 1).read_bytes()[:-300])
    data = packed(tmp_path / "in", pages="all")
    assert {entry.name for entry in data.skipped} >= {"bad.tif"}
    assert all(entry.name.startswith(("bad.tif", "cut.tif")) for entry in data.skipped)


def test_pages_are_an_option_of_check_and_part_of_the_command_that_it_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = stack(tmp_path / "scan.tif", 3, 30)
    assert main(["check", str(source), "--pages", "all", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] == 30
    assert report["command"].endswith("--size 8 --pages all")
    assert report["split_rule"] == "the last 10% of the pages of the only file"


def test_settings_of_pages() -> None:
    with pytest.raises(ConfigError, match="the choice is first or all"):
        DataConfig(source="a", pages="some")
    with pytest.raises(ConfigError, match="shards that are streamed"):
        DataConfig(source="a", pages="all", stream=True)

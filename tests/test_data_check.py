from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from calotype.data import DataConfig, check
from calotype.data.duplicates import near_duplicates
from calotype.errors import DataError
from tests.pictures import encode, folder_of, noise, numbered, smooth


@pytest.fixture
def report(tmp_path):
    def made(source: object, **settings: object):
        return check(DataConfig(source=str(source), **settings), cache=tmp_path / "cache")

    return made


def test_counts_sizes_and_the_next_command(tmp_path, report):
    folder = folder_of(tmp_path / "my photos", numbered(20), height=40, width=60)
    (folder / "bad.png").write_bytes(b"")
    (folder / "list.csv").write_text("a")
    found = report(folder)
    assert (found.pictures, len(found.skipped), found.other_files) == (20, 1, 1)
    assert found.formats == {"PNG": 20}
    assert found.modes == {"RGB": 20}
    assert found.sizes["min"] == found.sizes["max"] == [60, 40]
    assert found.recommended_size == (60, 40)
    assert shlex.split(found.command) == ["calotype", "train", "diffusion", str(folder), "--size", "60x40"]
    assert found.train + found.held_out == 20
    text = found.text()
    assert "bad.png" in text
    assert text.endswith(found.command)


def test_classes_and_their_imbalance(tmp_path, report):
    found = report(folder_of(tmp_path / "in", [f"{'cat' if i < 4 else 'dog'}/{i}.png" for i in range(20)]))
    assert found.classes == {"cat": 4, "dog": 16}
    assert found.imbalance == 4
    assert "the largest 4 times the smallest" in found.text()


def test_exact_and_near_duplicates(tmp_path, report):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(smooth(i, 32, 32)).save(folder / f"{i:02d}.png")
    shutil.copy(folder / "03.png", folder / "copy.png")
    (folder / "again.jpg").write_bytes(encode(smooth(5, 32, 32), "JPEG", quality=80))
    found = report(folder)
    assert found.exact_duplicates == (("03.png", "copy.png"),)
    assert found.near_duplicates == (("05.png", "again.jpg"),)


def test_flat_pictures_are_counted_not_paired():
    flat = np.stack([np.full((32, 32, 1), i, np.uint8) for i in range(200)])
    found = near_duplicates(flat, skip=set())
    assert found.flat == 200
    assert len(found.pairs) == 0


def test_a_change_of_brightness_is_a_near_duplicate_and_another_picture_is_not():
    pictures = np.stack([smooth(i, 32, 32) // 2 for i in range(50)])
    brighter = pictures[7:8] + np.uint8(30)
    found = near_duplicates(np.concatenate([pictures, brighter]), skip=set())
    assert found.pairs.tolist() == [[7, 50]]


def test_held_out_pictures_that_are_in_training_are_told(tmp_path, report):
    folder = folder_of(tmp_path / "in", [f"{'test' if i < 5 else 'train'}/{i}.png" for i in range(20)])
    shutil.copy(folder / "test/2.png", folder / "train/leak.png")
    found = report(folder)
    assert found.leaks == (("train/leak.png", "test/2.png"),)
    assert "1 held-out pictures are also in the training split" in found.text()


def test_the_range_of_deep_pictures_is_measured(tmp_path, report):
    values = np.random.default_rng(0).integers(0, 4000, (20, 8, 8)).astype(np.uint16)
    np.save(tmp_path / "a.npy", values)
    found = report(tmp_path / "a.npy")
    assert (found.values.low, found.values.high) == (values.min(), values.max())
    assert found.value_range == "0:4095"
    assert "--range 0:4095" in found.command
    assert report(tmp_path / "a.npy", value_range="0:4095").command == found.command


def test_too_little_is_a_finding_with_its_remedy(tmp_path, report):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).uniform(0, 200, (20, 8, 8)))
    found = report(tmp_path / "a.npy")
    assert found.pictures == 0
    assert found.value_range == "0:255"
    assert found.command == ""
    assert "--range 0:255" in found.text()
    assert report(folder_of(tmp_path / "few", numbered(3))).pictures == 3


def test_what_is_not_there_is_an_error(tmp_path, report):
    with pytest.raises(DataError, match="does not exist"):
        report(tmp_path / "nowhere")


def test_the_report_is_json_and_fits_a_terminal(tmp_path, report):
    folder = folder_of(tmp_path / "in", [f"class {i % 17}/{i}.png" for i in range(60)])
    (folder / "class 0/bad.png").write_bytes(encode(noise(0))[:40])
    found = report(folder)
    assert json.loads(json.dumps(found.as_dict()))["pictures"] == 60
    lines = found.text().splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80

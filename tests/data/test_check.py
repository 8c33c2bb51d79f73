from __future__ import annotations

import io
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from calotype.data import DataConfig
from calotype.data.check import check
from calotype.data.duplicates import near_duplicates
from calotype.data.sources.sources import locate, open_source
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


def drawing(seed: int, gray: bool = False) -> np.ndarray:
    """Flat shapes on a flat ground, drawn smooth at the edges: uint8 (32, 32, 3), or (32, 32, 1)."""
    rng = np.random.default_rng(seed)
    image = Image.new("L" if gray else "RGB", (128, 128), tuple(rng.integers(0, 256, 1 if gray else 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        (x, y), (w, h) = rng.uniform(16, 112, 2), rng.uniform(12, 40, 2)
        fill = tuple(rng.integers(0, 256, 1 if gray else 3).tolist())
        (draw.ellipse, draw.rectangle)[rng.integers(2)]((x - w, y - h, x + w, y + h), fill=fill)
    found = np.asarray(image.resize((32, 32), Image.Resampling.BOX))
    return found[..., None] if gray else found


def letters(count: int) -> np.ndarray:
    source = open_source(locate(f"glyphs:gray:{count}:0"), DataConfig(source="glyphs", width=32, height=32))
    return np.stack([np.asarray(record.load().content).reshape(32, 32, 1) for record in source.records()])


def pairs_of(count: int) -> list[list[int]]:
    return [[i, i + count] for i in range(count)]


COPIES = {
    "JPEG 90": lambda a: np.asarray(Image.open(io.BytesIO(encode(a, "JPEG", quality=90)))).reshape(a.shape),
    "JPEG 75": lambda a: np.asarray(Image.open(io.BytesIO(encode(a, "JPEG", quality=75)))).reshape(a.shape),
    "scaled": lambda a: np.asarray(
        Image.fromarray(a.squeeze())
        .resize((48, 48), Image.Resampling.BICUBIC)
        .resize((32, 32), Image.Resampling.LANCZOS)
    ).reshape(a.shape),
    "darker": lambda a: (a * 0.93).astype(np.uint8),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("kind", ["drawings", "gray drawings", "letters"])
def test_copies_of_drawings_and_letters_are_found_and_nothing_else(kind, copy):
    count = 60
    pictures = letters(count) if kind == "letters" else np.stack([drawing(i, "gray" in kind) for i in range(count)])
    pairs = near_duplicates(np.concatenate([pictures, np.stack([COPIES[copy](a) for a in pictures])]), set()).pairs
    assert all(pair in pairs_of(count) for pair in pairs.tolist())
    assert len(pairs) >= 0.8 * count  # benchmarks/duplicates.py measures how many more


def test_different_letters_of_one_typeface_and_drawings_that_share_most_are_different():
    assert not len(near_duplicates(letters(3000), set()).pairs)
    ground = drawing(0)
    dots = np.stack([ground] * 49)
    for i in range(49):
        y, x = 2 + 4 * (i // 7), 2 + 4 * (i % 7)
        dots[i, y : y + 3, x : x + 3] = 255 - ground[y : y + 3, x : x + 3] // 2 * 2  # one small dot each, elsewhere
    colours = np.stack([np.roll(drawing(3), k, 2) for k in range(3)])  # one drawing in other colours
    for pictures in (dots[np.abs(dots.astype(int) - ground).max((1, 2, 3)) > 100], colours):
        assert not len(near_duplicates(pictures, set()).pairs)


def test_large_transparent_and_gray_pictures_are_compared_too():
    large = np.stack([smooth(i, 160, 200) for i in range(6)])
    shapes = np.zeros((6, 32, 32, 4), np.uint8)
    for i in range(6):
        shapes[i, 3 + i : 12 + 3 * i, 5:25, 3] = 255  # black on transparency: nothing but alpha
    for pictures in (large, shapes):
        both = np.concatenate([pictures, np.clip(pictures.astype(int) + 2, 0, 255).astype(np.uint8)])
        assert near_duplicates(both, set()).pairs.tolist() == pairs_of(6)


@pytest.mark.slow
def test_a_series_is_compared_as_far_as_there_is_time_and_this_is_said(monkeypatch):
    series = np.stack([smooth(0, 32, 32)] * 300)
    series[:, 0, 0, 0] = np.arange(300) % 20
    found = near_duplicates(series, set())
    assert len(found.pairs) == 300 * 299 / 2
    assert found.complete
    for name, value in (("_MAX_MAP_PAIRS", 1000), ("_MAX_VALUES", 1000 * series[0].size), ("_MAX_COMPARISONS", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(f"calotype.data.duplicates.{name}", value)
            assert not near_duplicates(series, set()).complete


def test_nearly_equal_pictures_on_both_sides_are_told(tmp_path, report):
    folder = folder_of(tmp_path / "in", [f"{'test' if i < 5 else 'train'}/{i}.png" for i in range(20)])
    (folder / "test/own.png").write_bytes(encode(drawing(0)))
    (folder / "train/copy.jpg").write_bytes(encode(drawing(0), "JPEG", quality=90))
    found = report(folder, width=32, height=32)
    assert found.leaks == (("train/copy.jpg", "test/own.png"),)
    assert "test/own.png ~ train/copy.jpg" in found.text()


def test_held_out_pictures_that_are_in_training_are_told(tmp_path, report):
    folder = folder_of(tmp_path / "in", [f"{'test' if i < 5 else 'train'}/{i}.png" for i in range(20)])
    shutil.copy(folder / "test/2.png", folder / "train/leak.png")
    found = report(folder)
    assert found.leaks == (("train/leak.png", "test/2.png"),)
    assert "1 held-out picture is also in the training split, or nearly so" in found.text()


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

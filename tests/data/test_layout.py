from __future__ import annotations

import time

import pytest

from calotype.data.sources.layout import arrange, claims_picture


def places(*names: str) -> dict[str, tuple[str | None, int | None]]:
    return {name: tuple(place) for name, place in arrange(names).places.items()}


def test_flat_pictures_have_neither_class_nor_split():
    assert places("a.png", "b.png") == {"a.png": (None, None), "b.png": (None, None)}


def test_a_folder_for_each_class():
    layout = arrange(["dog/1.png", "cat/1.png", "dog/2.png"])
    assert layout.class_names == ("cat", "dog")
    assert {name: place.label for name, place in layout.places.items()} == {
        "dog/1.png": 1,
        "cat/1.png": 0,
        "dog/2.png": 1,
    }


@pytest.mark.parametrize(
    "names",
    [
        ["cat/1.png", "cat/2.png"],  # one folder is no choice
        ["cat/1.png", "dog/1.png", "3.png"],  # one lies above
        ["cat/1.png", "dog/small/1.png", "dog/2.png"],  # one lies below
        ["cat/a/1.png", "dog/a/1.png"],  # two levels
    ],
)
def test_other_folders_are_no_classes(names):
    assert arrange(names).class_names == ()


def test_folders_that_look_like_classes_and_are_not_get_a_note():
    (note,) = arrange(["cat/1.png", "dog/1.png", "stray.png"]).notes
    assert "stray.png" in note


def test_folders_around_everything_are_ignored():
    assert arrange(["data/pets/cat/1.png", "data/pets/dog/1.png"]).class_names == ("cat", "dog")


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "Validation", "held-out"])
def test_split_folders(held_out):
    assert places("train/1.png", f"{held_out}/2.png") == {
        "train/1.png": ("train", None),
        f"{held_out}/2.png": ("held_out", None),
    }


def test_split_folders_with_classes_in_them():
    layout = arrange(["train/cat/1.png", "train/dog/1.png", "test/dog/2.png", "val/cat/3.png"])
    assert layout.class_names == ("cat", "dog")
    assert layout.places["test/dog/2.png"] == ("held_out", 1)
    assert layout.places["val/cat/3.png"] == ("held_out", 0)


def test_beside_split_folders_pictures_are_in_neither():
    layout = arrange(["train/1.png", "test/2.png", "sample.png", "extra/3.png"])
    assert layout.outside == ("sample.png", "extra/3.png")
    assert set(layout.places) == {"train/1.png", "test/2.png"}


@pytest.mark.parametrize("names", [["train/1.png", "train/2.png"], ["test/1.png", "other/2.png"]])
def test_one_side_of_a_split_is_no_split(names):
    assert {place.split for place in arrange(names).places.values()} == {None}


def test_names_tell_pictures():
    assert claims_picture("A B.JPeG") is True
    assert claims_picture("labels.csv") is False
    assert claims_picture("IMG_0001") is None


def test_many_names_take_little_time():
    names = [f"{split}/class {k % 50}/{k}.png" for k in range(50_000) for split in ("train", "dev")]
    started = time.process_time()
    layout = arrange(names)
    assert time.process_time() - started < 20  # linear: about 1 s; per name anew it would be hours
    assert len(layout.class_names) == 50
    assert layout.places["dev/class 7/7.png"].split == "held_out"

"""Classes: which are said to have nothing to learn from, which are drawn, and what `--labels` means."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype import cli
from calotype.core.config import read_toml
from calotype.data import DataConfig, prepare
from calotype.data.classes import choose, told
from calotype.errors import ConfigError, DataError
from calotype.evaluation import measured_runs
from calotype.runs.run import load
from calotype.training import session, setup
from calotype.training.planner import preview

MODEL = {"widths": [16, 16], "blocks": [1, 1], "latents": [0, 1], "latent_width": 4}
TINY = {"model": MODEL, "training": {"batch_size": 8}}
NOTE = "classes have no pictures to learn from"


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """n different pictures of 8 x 8."""
    return np.random.default_rng(seed).integers(0, 255, (n, 8, 8), np.uint8)


def folder(place: Path, counts: dict[str, int]) -> Path:
    """Folders of so many pictures."""
    for k, (name, count) in enumerate(counts.items()):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pixels(count, k)):
            Image.fromarray(picture).save(place / name / f"{i}.png")
    return place


def arrays(labels: np.ndarray) -> Callable[[Path], Path]:
    """A source of pictures with these labels."""

    def make(place: Path) -> Path:
        np.savez(place / "data.npz", images=pixels(len(labels)), labels=labels)
        return place / "data.npz"

    return make


def with_damaged(place: Path) -> Path:
    found = folder(place / "in", {"a": 20, "b": 3, "c": 20})
    for file in (found / "b").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    return found


def of_the_test_split(place: Path) -> Path:
    folder(place / "in" / "train", {"a": 20, "b": 20})
    return folder(place / "in" / "test", {"a": 6, "d": 6}).parent


def split_arrays(place: Path) -> Path:
    train, test = np.arange(40) % 2 + 1, np.arange(10) % 4
    np.savez(place / "split.npz", x_train=pixels(40), y_train=train, x_test=pixels(10, 1), y_test=test)
    return place / "split.npz"


def table(place: Path) -> Path:
    """Parquet with names of which one has no rows."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"bytes": png(picture), "path": None} for picture in pixels(40)]
    schema = pa.table({"image": rows, "label": [2 * (k % 2) for k in range(40)]})
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "fox"]}}}}
    pq.write_table(schema.replace_schema_metadata({"huggingface": json.dumps(info)}), place / "t.parquet")
    return place / "t.parquet"


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


# A source, the names of its classes, and those that have pictures to learn from.
SOURCES = {
    "from one": (arrays(np.arange(60) % 3 + 1), "0123", "123"),
    "gaps": (arrays(np.arange(60) % 3 * 4), "012345678", "048"),
    "columns": (arrays((np.arange(60) % 3 + 1)[:, None]), "0123", "123"),
    "whole floats": (arrays((np.arange(60) % 3 + 1).astype(np.float64)), "0123", "123"),
    "one-hot": (arrays(np.eye(4, dtype=np.float32)[np.arange(60) % 3 + 1]), "0123", "123"),
    "damaged": (with_damaged, "abc", "ac"),
    "of the test split": (of_the_test_split, "abd", "ab"),
    "split of arrays": (split_arrays, "0123", "12"),
    "table": (table, ("cat", "dog", "fox"), ("cat", "fox")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_classes_with_nothing_to_learn_from_are_said_and_never_drawn(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, names, known = SOURCES[name]
    source = make(tmp_path)
    assert cli.main(["check", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    unseen = [k for k in names if k not in known]
    assert list(found["classes"]) == list(names)
    assert [k for k, count in found["train_classes"].items() if count == 0] == unseen
    (note,) = [text for text in found["notes"] if NOTE in text]
    assert all(repr(k) in note for k in unseen)
    assert note.startswith(f"{len(unseen)} of {len(names)} classes")
    assert 1 <= found["imbalance"] < 3

    run = tmp_path / "run"
    asked: list[list[int]] = []
    drawn = calotype.sampling.sampler.sample
    settings = [word for key, value in MODEL.items() for word in ("--set", f"model.{key}={value}")]
    assert cli.main(["train", "vae", str(source), "--budget", "16img", "--out", str(run), *settings]) == 0
    assert NOTE in " ".join(capsys.readouterr().out.split())
    model, packed = load(run), prepare(read_config(run))
    assert [model.class_names[k] for k in model.spec.classes] == list(known)
    assert {packed.class_names[k] for k in packed.labels[packed.held_out]} <= set(known)

    def spy(model, indices, seed, labels=None, options=None):
        asked.append([labels(i) for i in indices])
        return drawn(model, indices, seed, labels, options)

    monkeypatch.setattr(calotype.sampling.sampler, "sample", spy)
    preview(model.model)
    session.final_grid(model.model)
    proportional = measured_runs.proportional(packed, 0)
    asked.append([proportional(i) for i in range(100)])
    assert {model.class_names[k] for labels in asked for k in labels} == set(known)

    places = ["--out", str(tmp_path / "s"), "--npz", str(tmp_path / "s.npz")]
    assert cli.main(["sample", str(run), "-n", "5", *places]) == 0
    assert f"classes: {', '.join(map(repr, known))} in turn" in capsys.readouterr().out
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["classes"] == list(known)
    written = np.load(tmp_path / "s.npz")
    in_turn = [known[i % len(known)] for i in range(5)]
    assert [str(written["class_names"][k]) for k in written["labels"]] == in_turn
    assert cli.main(["sample", str(run), "-n", "1", "--labels", unseen[0]]) == 2
    assert f"class {unseen[0]!r} has no training pictures" in capsys.readouterr().err


def read_config(run: Path) -> DataConfig:
    return load(run).run.config.data


def test_a_run_of_before_counts_nothing_and_draws_all_its_classes(tmp_path: Path) -> None:
    run = setup.train("vae", arrays(np.arange(60) % 3)(tmp_path), budget="16img", out=tmp_path / "run", settings=TINY)
    config = tmp_path / "run" / "config.toml"
    text = config.read_text()
    assert read_toml(config)["dataset"]["class_counts"] == list(run.config.dataset.class_counts)
    lines = [line for line in text.splitlines() if not line.startswith("class_counts")]
    config.write_text("\n".join(lines) + "\n")
    assert load(tmp_path / "run").spec.classes == (0, 1, 2)
    config.write_text(text.replace("class_counts = [", "class_counts = [1, "))
    with pytest.raises(ConfigError, match="3 class_names and 4 class_counts"):
        load(tmp_path / "run")


def test_held_out_pictures_of_other_classes_alone_are_refused(tmp_path: Path) -> None:
    folder(tmp_path / "in" / "train", {"a": 20, "b": 20})
    source = folder(tmp_path / "in" / "test", {"d": 6, "e": 1}).parent
    with pytest.raises(DataError, match=r"all 7 held-out pictures are of classes without training pictures, 'd', 'e'"):
        prepare(DataConfig(source=str(source)))


@pytest.mark.parametrize("labels", [np.arange(40) - 1, np.arange(40) * 1_000_000, np.arange(40) / 2])
def test_labels_that_are_no_classes_are_refused(labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--no-labels"):
        prepare(DataConfig(source=str(arrays(labels)(tmp_path))))


def test_shards_count_what_is_learned_and_not_what_is_looked_at(tmp_path: Path) -> None:
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as archive:
            for i, picture in enumerate(pixels(40, shard)):
                for ending, content in (("png", png(picture)), ("cls", str(1 + i % 2).encode())):
                    member = tarfile.TarInfo(f"{shard}{i:03d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    packed = prepare(DataConfig(source=str(tmp_path), stream=True))
    assert packed.class_names == ("0", "1", "2")
    assert packed.spec.unseen == (0,)
    assert sum(packed.class_counts) == packed.learned == 80
    assert packed.class_counts == (0, 40, 40)


def test_a_class_of_one_picture_is_said_where_classes_are_balanced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (np.arange(40) == 0) * 1, np.arange(4) * 0
    np.savez(tmp_path / "r.npz", x_train=pixels(40), y_train=train, x_test=pixels(4, 1), y_test=test)
    report = calotype.check(str(tmp_path / "r.npz"))
    (note,) = [text for text in report.notes if "--balanced" in text]
    assert "'1' (1 training picture, each shown 39 times)" in note
    words = ["train", "vae", str(tmp_path / "r.npz"), "--budget", "16img", "--preset", "tiny"]
    assert cli.main([*words, "--out", str(tmp_path / "a"), "--balanced"]) == 0
    assert "each shown 39 times" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*words, "--out", str(tmp_path / "b")]) == 0
    assert "each shown" not in capsys.readouterr().out


def test_the_size_asked_for_is_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in", {"a": 10, "b": 10})
    assert cli.main(["check", str(source), "--size", "256"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--size 256, as asked for; without --size it is 8" in text
    assert text.endswith("--size 256")
    assert "recommended" not in text


NAMES = ["7", "3", "a", "b", "a,b", "x, y", "caf\u00e9", " spaced", ""]


@pytest.mark.parametrize(
    ("text", "numbers", "by_number"),
    [
        ("7", [0], False),  # a name comes before a number
        ("3", [1], False),
        ("0", [0], True),
        ("5,0", [5, 0], True),
        ("b,a", [3, 2], False),
        ("a,b", [4], False),  # the longest name
        ("a,b,a", [4, 2], False),
        ("x, y,a", [5, 2], False),
        ("x,y", [5], False),
        (unicodedata.normalize("NFD", "caf\u00e9"), [6], False),
        ("spaced", [7], False),
        ("a, b", [4], False),
        ("3,,3", [1, 8, 1], False),
    ],
)
def test_labels_are_names_first(text: str, numbers: list[int], by_number: bool) -> None:
    found = choose(text.split(","), NAMES, ())
    assert [choice.number for choice in found] == numbers
    assert all(choice.by_number == by_number for choice in found)


def test_what_is_drawn_is_said_by_name() -> None:
    assert told(choose(["0", "3"], NAMES, ()), NAMES) == "'7' (class number 0), '3' in turn"
    assert told(choose(["a"], NAMES, ()), NAMES) == "'a'"


@pytest.mark.parametrize("wanted", [["c"], ["9"], [9], [-1], ["-1"], ["\u0663"], ["99999999999"], ["a", "c"]])
def test_a_class_that_is_not_there_is_named(wanted: list[int | str]) -> None:
    with pytest.raises(ConfigError, match=r"is unknown: the model knows 7, 3, a.*, or 0 to 8"):
        choose(wanted, NAMES, ())


def test_names_that_look_alike_are_told_apart_by_number() -> None:
    names = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    assert [choose([name], names, ())[0].number for name in names] == [0, 1]
    with pytest.raises(ConfigError, match="ask by number, such as 0"):
        choose(["caf\u00e9 "], names, ())


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = pa.table(
        {"image": [{"bytes": png(p), "path": None} for p in pixels(20)], "label": [k % 2 for k in range(20)]}
    )
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "cat"]}}}}
    pq.write_table(data.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'cat'"):
        prepare(DataConfig(source=str(tmp_path / "t.parquet")))


def test_a_class_never_seen_is_refused_by_sampling_itself(tmp_path: Path) -> None:
    run = setup.train("vae", split_arrays(tmp_path), budget="16img", out=tmp_path / "run", settings=TINY)
    model = load(run)
    with pytest.raises(ConfigError, match=r"labels \[3\] are of classes without training pictures"):
        calotype.sampling.sampler.sample(model.model, [0], 0, lambda i: 3)
    assert torch.equal(model.sample(2), model.sample(2, labels=["1", "2"]))

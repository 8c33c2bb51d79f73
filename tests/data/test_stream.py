"""Shards that are read while a model learns from them: the order, the bytes, and what goes wrong."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype import cli
from calotype.data import DataConfig, prepare
from calotype.data.packs import stream as streaming
from calotype.data.packs.batches import Batches
from calotype.data.packs.order import Shuffled, Windowed
from calotype.data.packs.stream import Stream
from calotype.data.sources.shards import OPEN
from calotype.errors import ConfigError, DataError
from tests.distributed.test_processes import started

SIDE = 8
CLASSES = ("a", "b", "c")


def picture(number: int) -> np.ndarray:
    """A picture that no other number has."""
    return np.random.Generator(np.random.Philox(key=number)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, rows: range, group: int = 20, contents: Callable[[int], bytes | None] = encoded) -> None:
    """A shard as Hugging Face writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": contents(k), "path": None} for k in rows]
    table = pa.table({"image": cells, "label": [k % 3 for k in rows]})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}
    told = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), path, row_group_size=group)


def tar(path: Path, rows: range, label: Callable[[int], tuple[str, bytes] | None]) -> None:
    """A shard as WebDataset has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for k in rows:
            told = label(k)
            for ending, content in [("png", encoded(k)), *([told] if told else [])]:
                member = tarfile.TarInfo(f"{k:06d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """200 pictures in four shards of three row groups."""
    for k in range(4):
        parquet(tmp_path / "in" / f"part-{k}.parquet", range(50 * k, 50 * k + 50))
    return tmp_path / "in"


def opened(source: Path | str, tmp_path: Path, **changes: object) -> calotype.data.PackedDataset:
    config = replace(DataConfig(source=str(source), width=SIDE, height=SIDE, stream=True), **changes)  # type: ignore[arg-type]
    return prepare(config, cache=tmp_path / "cache")


def stream_of(source: Path | str, tmp_path: Path, **changes: object) -> Stream:
    found = opened(source, tmp_path, **changes).stream
    assert found is not None
    return found


def batches(stream: Stream, size: int = 16, seed: int = 3, **changes: object) -> Batches:
    return Batches(stream, stream.order(seed), size, **changes)  # type: ignore[arg-type]


# -- the order


def windowed(seed: int = 0) -> Windowed:
    counts = np.array([3_000, 5_000, 1_000, 4_000, 2_500, 5_500, 2_000], np.int64)
    return Windowed(np.cumsum(counts) - counts + 100, counts, seed)


def test_each_picture_is_seen_once_in_an_epoch() -> None:
    order = windowed()
    epochs = [order.take(e, 0, order.length) for e in (0, 1)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(100, 23_100))
    assert (epochs[0] != epochs[1]).mean() > 0.99
    assert (windowed(1).take(0, 0, order.length) != epochs[0]).mean() > 0.99


def test_any_stretch_of_the_order_is_found_by_its_place() -> None:
    whole, coins = windowed().take(1, 0, 23_000), windowed().mirrored(1, 0, 23_000)
    for start, stop in [(0, 1), (22_999, 23_000), (7_000, 15_000), (12, 12_000)]:
        assert np.array_equal(windowed().take(1, start, stop), whole[start:stop])
        assert np.array_equal(windowed().mirrored(1, start, stop), coins[start:stop])
    assert 0.47 < coins.mean() < 0.53  # of 23,000 fair coins: nine standard deviations


def test_a_window_is_of_few_chunks() -> None:
    order = windowed()
    assert order.together == 2  # of about 3,300 each, where 8,192 are to be together
    whole = order.take(0, 0, order.length)
    chunks = np.searchsorted(order.firsts, whole, side="right")
    changes = np.flatnonzero(np.diff(np.sort(np.unique(chunks[:4_000]))))
    assert len(changes) + 1 == len(np.unique(chunks[:4_000])) == 2
    first = whole[:2_000]
    assert abs(np.corrcoef(first, np.arange(2_000))[0, 1]) < 0.15  # and shuffled among themselves


def test_the_order_of_a_pack_is_a_permutation_as_before() -> None:
    order = Shuffled(np.arange(7, dtype=np.int64) + 10, seed=5)
    assert order.take(0, 0, 7).tolist() == [16, 11, 13, 10, 14, 12, 15]  # as first written: runs depend on it
    assert sorted(order.take(3, 0, 7).tolist()) == list(range(10, 17))


# -- the bytes


def test_pictures_are_those_that_packing_gives(shards: Path, tmp_path: Path) -> None:
    stream = stream_of(shards, tmp_path)
    packed = prepare(DataConfig(source=str(shards), width=SIDE, height=SIDE), cache=tmp_path / "cache")
    found = stream.read(np.arange(200))
    expected = packed.read(np.arange(200))
    assert torch.equal(found.images, expected.images)
    assert found.labels is not None
    assert expected.labels is not None
    assert torch.equal(found.labels, expected.labels)
    assert found.images.is_contiguous(memory_format=torch.channels_last)


def test_what_is_packed_is_a_sample_apart_from_what_is_held_out(shards: Path, tmp_path: Path) -> None:
    data = opened(shards, tmp_path)
    stream = data.stream
    assert stream is not None
    assert data.class_names == CLASSES
    held = {data.read(np.array([i])).images.numpy().tobytes() for i in data.held_out}
    learned = stream.order(0).take(0, 0, stream.count)
    seen = {stream.read(np.array([i])).images.numpy().tobytes() for i in learned}
    assert len(seen) == len(learned) == stream.count == data.learned
    assert not held & seen
    assert len(held) == len(data.held_out) > 0
    assert stream.count + int(stream.counts[~stream.learned].sum()) == 200
    sample = {data.read(np.array([i])).images.numpy().tobytes() for i in data.train}
    assert sample <= seen


def test_batches_are_the_same_for_any_reader(shards: Path, tmp_path: Path) -> None:
    """By another thread beforehand, from the middle, and by parts of each batch as several processes read them."""
    plain = [batches(stream_of(shards, tmp_path), flips=True).at(k) for k in range(30)]  # more than an epoch
    ahead = batches(stream_of(shards, tmp_path), flips=True, after=lambda: None)
    for k in [*range(30), 7, 2, 3]:
        assert torch.equal(ahead.at(k).images, plain[k].images)
    for rows in (range(5), range(5, 16)):
        part = batches(stream_of(shards, tmp_path), flips=True).at(17, rows)
        assert torch.equal(part.images, plain[17].images[rows.start : rows.stop])


def test_a_resumed_reader_reads_its_window_only(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.data.packs.order.WINDOW", 40)
    stream = stream_of(shards, tmp_path)
    read: list[int] = []
    part = stream.part
    monkeypatch.setattr(stream, "part", lambda number: read.append(number) or part(number))
    batches(stream, size=8).at(15)
    assert 0 < len(set(read)) <= 4  # of 11: one window, or the end of one and the beginning of the next


# -- splits, formats and places


def test_splits_are_those_of_the_names(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "train-00000-of-00001.parquet", range(100))
    parquet(tmp_path / "in" / "test-00000-of-00001.parquet", range(100, 140))
    data = opened(tmp_path / "in", tmp_path)
    assert data.learned == 100
    assert len(data.held_out) == 40
    assert "split of the source" in data.split_rule


@pytest.mark.parametrize("kind", ["cls", "json", "text", "none"])
def test_tars(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.data.sources.shards.MEMBERS", 25)
    labels: dict[str, Callable[[int], tuple[str, bytes] | None]] = {
        "cls": lambda k: ("cls", b"%d\n" % (k % 3)),
        "json": lambda k: ("json", json.dumps({"label": k % 3}).encode()),
        "text": lambda k: ("cls", CLASSES[k % 3].encode()),
        "none": lambda k: None,
    }
    for k in range(3):
        tar(tmp_path / "in" / f"{k}.tar", range(40 * k, 40 * k + 40), labels[kind])
    stream = stream_of(tmp_path / "in", tmp_path)
    assert stream.counts.tolist() == [25, 15] * 3
    found = stream.read(np.arange(120))
    assert all(np.array_equal(found.images[k].permute(1, 2, 0).numpy(), picture(k)) for k in range(120))
    names = {"cls": ("0", "1", "2"), "json": ("0", "1", "2"), "text": CLASSES, "none": ()}[kind]
    assert stream.shards.class_names == names
    assert (found.labels is None) if not names else found.labels is not None
    if found.labels is not None:
        assert found.labels.tolist() == [k % 3 for k in range(120)]
    assert stream_of(tmp_path / "in", tmp_path, labels=False).read(np.arange(3)).labels is None


def test_an_address_of_object_storage(shards: Path, tmp_path: Path) -> None:
    here, there = stream_of(shards, tmp_path), stream_of(f"file://{shards}", tmp_path)
    numbers = np.arange(0, 200, 7)
    assert torch.equal(here.read(numbers).images, there.read(numbers).images)
    with pytest.raises(DataError, match="cannot be listed"):
        opened(f"file://{tmp_path}/nothing", tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        opened("nosuch://bucket/photos", tmp_path)


def test_many_shards_are_few_open_files(tmp_path: Path) -> None:
    for k in range(300):
        parquet(tmp_path / "in" / f"{k:04d}.parquet", range(4 * k, 4 * k + 4))
    stream = stream_of(tmp_path / "in", tmp_path)
    reader = batches(stream, size=50)
    for k in range(20):
        reader.at(k)
        files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert sum(name.endswith(".parquet") for name in files) <= OPEN
    assert len(stream._cached) <= 2 * stream._together


# -- what goes wrong


def broken(bad: set[int]) -> Callable[[int], bytes | None]:
    return lambda k: (None if k % 2 else b"no picture") if k in bad else encoded(k)


@pytest.mark.fault("a picture in a shard that cannot be read", "another is shown in its place, and it is told")
def test_a_picture_that_cannot_be_used_is_replaced_and_told(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "a.parquet", range(60), contents=broken({3, 4, 19}))
    parquet(tmp_path / "in" / "b.parquet", range(60, 120))
    stream = stream_of(tmp_path / "in", tmp_path)
    found = stream.read(np.array([2, 3, 4, 19, 20]))
    for at, k in enumerate((2, 5, 5, 0, 20)):  # the next of its row group of 20, or from its beginning
        assert np.array_equal(found.images[at].permute(1, 2, 0).numpy(), picture(k))
    told = {entry.name: entry.reason for entry in stream.heard()}
    assert set(told) == {"a.parquet[3]", "a.parquet[4]", "a.parquet[19]"}
    assert told["a.parquet[3]"] == "no picture in this row"
    assert stream.heard() == []
    assert stream.replaced == 3
    with pytest.raises(DataError, match=r"strict is on"):
        stream_of(tmp_path / "in", tmp_path, strict=True)
    stream.config = replace(stream.config, strict=True)  # type: ignore[type-var]
    with pytest.raises(DataError, match=r"a.parquet\[3\]: no picture in this row \(strict is on"):
        stream.read(np.array([3]))


def test_too_many_in_a_row_are_an_error(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "a.parquet", range(60), contents=broken(set(range(0, 20))))
    parquet(tmp_path / "in" / "b.parquet", range(60, 200))
    stream = stream_of(tmp_path / "in", tmp_path)
    with pytest.raises(DataError, match=r"a.parquet\[0\] and the 7 pictures after it cannot be used"):
        stream.read(np.array([0]))


@pytest.mark.fault("a shard that changes, or goes, under a running job", "the run stops, and names it")
@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_shard_that_is_not_what_it_was_is_named(change: str, tmp_path: Path) -> None:
    for k in range(10):
        parquet(tmp_path / "in" / f"part-{k}.parquet", range(20 * k, 20 * k + 20))
    stream = stream_of(tmp_path / "in", tmp_path)
    stream._cached.clear()
    victim = tmp_path / "in" / f"part-{int(np.flatnonzero(stream.learned)[0])}.parquet"
    victim.unlink()  # it is none of the last, which are open
    if change == "other":
        parquet(victim, range(300, 350))
    reader = batches(stream, size=200, after=lambda: None)
    with pytest.raises(DataError, match=r"part-\d.parquet (cannot be read|has changed since)"):
        reader.at(0)


def test_what_cannot_be_streamed_is_said(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no shards: give a folder of \.parquet files, or of \.tar files"):
        opened(tmp_path / "empty", tmp_path)
    parquet(tmp_path / "one" / "a.parquet", range(20))
    with pytest.raises(DataError, match="has one part only"):
        opened(tmp_path / "one", tmp_path)
    tar(shards / "b.tar", range(20), lambda k: None)
    with pytest.raises(DataError, match="give a folder with one kind"):
        opened(shards, tmp_path)
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz"):
        pass
    (tmp_path / "zipped").mkdir()
    shutil.copy(tmp_path / "packed.tar.gz", tmp_path / "zipped" / "a.tar")
    with pytest.raises(DataError, match="unpack it if it is compressed"):
        opened(tmp_path / "zipped", tmp_path)
    with pytest.raises(ConfigError, match="stream is set, but the pictures are to be measured"):
        DataConfig(source="x", stream=True, to_learn=False)


# -- training


def command(source: Path, out: Path) -> list[str]:
    words = ["train", "vae", str(source), "--stream", "--size", str(SIDE), "--budget", "480img", "--out", str(out)]
    settings = ("precision=fp32", "threads=1", "batch_size=16", "checkpoint_every=160")
    return words + [word for setting in settings for word in ("--set", f"training.{setting}")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(calotype.load(run).model.state_dict())


def test_a_run_is_trained_stopped_resumed_and_measured(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.evaluation.classifier.IMAGES", 64)  # it is not what is tested
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert cli.main(command(shards, whole)) == 0
    assert "190 images of 8x8" in capsys.readouterr().out
    shutil.copytree(whole, half)
    for later in sorted((half / "checkpoints").iterdir())[2:]:
        shutil.rmtree(later)
    assert cli.main(["train", "--resume", str(half)]) == 0
    assert "continuing at" in capsys.readouterr().out
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(half).items())
    assert cli.main(["evaluate", str(whole), "-n", "10"]) == 0
    assert (whole / "evaluation.html").exists()
    parquet(shards / "part-2.parquet", range(400, 450))
    assert cli.main(["train", "--resume", str(half)]) == 2
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_read_their_rows_and_train_as_one(shards: Path, tmp_path: Path) -> None:
    assert cli.main(command(shards, tmp_path / "one")) == 0
    done = started(["-m", "calotype", *command(shards, tmp_path / "two")], 2)
    assert done.returncode == 0, done.stderr
    expected = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        # float32, whose sums are rounded in another order: a hundredth of what thirty steps move a weight, 1e-3 each
        assert torch.allclose(value, expected[name], rtol=0, atol=3e-4), name


def test_classes_cannot_be_balanced(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command(shards, tmp_path / "run"), "--balanced"]) == 2
    assert "balanced is set, but pictures are streamed" in capsys.readouterr().err


def test_what_is_looked_at_is_spread_over_all_parts() -> None:
    counts = np.full(1_000, 1_000, np.int64)
    held = streaming._held_out(counts)
    assert 1 <= held.sum() <= 100
    chosen = list(streaming._chosen(counts, ~held, streaming.SAMPLE, "train"))
    assert sum(len(c.rows) for c in chosen) == streaming.SAMPLE
    assert len(chosen) > 100
    assert all(0 <= c.rows.min() and c.rows.max() < 1_000 for c in chosen)

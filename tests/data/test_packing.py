from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from calotype.data import DataConfig, PackedDataset, Skipped, prepare
from calotype.data.packs.survey import recommended_size
from calotype.errors import DataError
from tests.conftest import unprivileged
from tests.pictures import TRANSPOSED, encode, encode_image, folder_of, noise, numbered, png_header, smooth


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path):
    return folder_of(tmp_path / "photos", numbered(40))


def config(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(source=str(folder), **settings)


def packs(cache: Path) -> list[Path]:
    return sorted((cache / "packs").iterdir()) if cache.exists() else []


@pytest.fixture
def hostile(tmp_path):
    """A folder of what people have: some to be read, some to be passed over with a reason."""
    root = folder_of(tmp_path / "hostile ünïcode", numbered(12, "ok "), height=20, width=24)
    rotated = Image.Exif()
    rotated[0x0112] = TRANSPOSED
    rgb, gray = Image.fromarray(smooth(1)), Image.fromarray(noise(2, 20, 20, 1)[:, :, 0])
    transparent = rgb.convert("RGBA")
    transparent.putalpha(gray.resize(rgb.size))
    files = {
        "good/16-bit.png": encode(np.arange(400, dtype=np.uint16).reshape(20, 20) * 150),
        "good/cmyk.jpg": encode_image(rgb.convert("CMYK"), "JPEG"),
        "good/palette.png": encode_image(rgb.quantize(8), transparency=2),
        "good/animated.gif": encode_image(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        "good/animated.webp": encode_image(transparent, "WEBP", save_all=True, append_images=[transparent]),
        "good/rotated.jpg": encode_image(rgb, "JPEG", exif=rotated),
        "good/1-bit.png": encode_image(gray.convert("1")),
        "good/float.tiff": encode(noise(3, 20, 20, 1)[:, :, 0] / np.float32(255), "TIFF"),
        "good/la.png": encode_image(transparent.convert("LA")),
        "good/a PNG in truth.jpg": encode_image(rgb),
        "good/no extension": encode_image(rgb, "JPEG"),
        "bad/truncated.jpg": encode(smooth(4), "JPEG")[:-150],
        "bad/empty.png": b"",
        "bad/bomb.png": png_header(40_000, 40_000),
        "bad/text.png": b"this is no picture at all",
        "bad/float out of range.tif": encode(np.linspace(0, 4095, 400, dtype=np.float32).reshape(20, 20), "TIFF"),
        "other/readme.txt": b"hello",
        "other/.DS_Store": b"\0" * 9,
        "__MACOSX/._ok.png": b"resource fork",
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (root / "bad/dangling.png").symlink_to(root / "nowhere.png")
    (root / "bad/itself.png").symlink_to(root / "bad/itself.png")
    (root / "good/loop").symlink_to(root)
    (root / "other/folder.png").mkdir()
    os.mkfifo(root / "other/pipe.png")
    return root


@pytest.mark.fault(
    "pictures that are cut off, empty, or none, in a folder",
    "the others are packed, each bad one is listed with its reason",
)
def test_a_hostile_folder_gives_its_good_pictures_and_reasons_for_the_rest(hostile, cache):
    data = prepare(config(hostile), cache=cache)
    assert len(data) == 12 + 11
    assert data.spec.channels == 3
    assert {skipped.name: skipped.kind for skipped in data.skipped} == {
        "bad/truncated.jpg": "damaged",
        "bad/empty.png": "empty file",
        "bad/bomb.png": "too large",
        "bad/text.png": "not a picture that can be read",
        "bad/float out of range.tif": "values out of range",
        "bad/dangling.png": "cannot be opened",
        "bad/itself.png": "cannot be opened",
    }
    assert "--range 0:65535" in next(s.reason for s in data.skipped if "range" in s.name)
    assert data.survey()["other_files"] == 1


SKIPPED = """
import json, sys
from pathlib import Path
from calotype.data import DataConfig, prepare
skipped = prepare(DataConfig(source=sys.argv[1]), cache=Path(sys.argv[2])).skipped
print(json.dumps({picture.name: picture.reason for picture in skipped}))
"""


def test_unreadable_files_and_folders_are_listed(photos, cache):
    (photos / "000.png").chmod(0)
    (photos / "closed").mkdir(mode=0)
    command = [*unprivileged(), sys.executable, "-c", SKIPPED, photos, cache]
    done = subprocess.run(command, capture_output=True, text=True)
    (photos / "closed").chmod(0o700)  # for whoever sweeps up
    assert done.returncode == 0, done.stderr
    reasons = json.loads(done.stdout)
    assert set(reasons) == {"000.png", "closed"}
    assert all("Permission denied" in reason for reason in reasons.values())


def test_a_file_that_cannot_be_read_is_listed(photos, cache, monkeypatch):
    real = os.open

    def denied(path, *args, **kwargs):
        if os.fsdecode(path).endswith("000.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    assert prepare(config(photos), cache=cache).skipped == (Skipped("000.png", "cannot be read: Permission denied"),)


def test_strict_stops_at_the_first_bad_file(photos, cache):
    (photos / "010.png").write_bytes(encode(smooth(0))[:-300])
    (photos / "020.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"010\.png|020\.png"):
        prepare(config(photos, strict=True), cache=cache)
    assert packs(cache) == []
    assert len(prepare(config(photos), cache=cache).skipped) == 2
    with pytest.raises(DataError, match="strict is on"):  # a pack made without it does not hide them
        prepare(config(photos, strict=True), cache=cache)


def test_too_few_pictures_say_what_was_found(tmp_path, cache):
    folder = folder_of(tmp_path / "few", numbered(15))
    (folder / "bad.png").write_bytes(b"")
    (folder / "list.csv").write_text("a,b")
    with pytest.raises(
        DataError, match=r"(?s)15 usable.*at least 16.*1 skipped, empty file.*bad\.png.*1 left out: such as list\.csv"
    ):
        prepare(config(folder), cache=cache)
    assert packs(cache) == []


def test_pictures_all_out_of_range_name_the_range_for_all(tmp_path, cache):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).uniform(0, 200, (20, 8, 8)))
    with pytest.raises(DataError, match=r"pass --range 0:255"):
        prepare(config(tmp_path / "a.npy"), cache=cache)
    assert len(prepare(config(tmp_path / "a.npy", value_range="0:255"), cache=cache)) == 20


class TestReading:
    def test_batches_are_views_of_channels_last_memory(self, photos, cache):
        data = prepare(config(photos), cache=cache)
        indices = np.array([5, 0, 5, 39])
        batch = data.read(indices)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (4, 3, 8, 8)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), data.images[indices])
        assert batch.labels is None

    def test_labels_come_along(self, tmp_path, cache):
        data = prepare(config(folder_of(tmp_path / "in", [f"{i % 2}/{i}.png" for i in range(20)])), cache=cache)
        batch = data.read(np.array([1, 15]))
        assert batch.labels.tolist() == data.labels[[1, 15]].tolist()
        assert batch.labels.dtype == torch.int64

    def test_the_pack_cannot_be_written_to(self, photos, cache):
        with pytest.raises(ValueError, match="read-only"):
            prepare(config(photos), cache=cache).images[0] = 0

    def test_the_files_are_as_documented(self, photos, cache):
        data = prepare(config(photos), cache=cache)
        assert sorted(path.name for path in data.path.iterdir()) == [
            "dataset.json",
            "images.u8",
            "split.npy",
            "survey.json",
        ]
        about = json.loads((data.path / "dataset.json").read_text())
        assert about["spec"] == {"channels": 3, "height": 8, "width": 8, "num_classes": 0}
        assert about["counts"]["train"] + about["counts"]["held_out"] == 40
        assert (data.path / "images.u8").read_bytes() == data.images.tobytes()


class TestSplit:
    def test_every_picture_is_on_exactly_one_side(self, photos, cache):
        data = prepare(config(photos), cache=cache)
        assert sorted([*data.train, *data.held_out]) == list(range(40))
        assert len(data.held_out) >= 1

    def test_copies_are_on_one_side(self, tmp_path, cache):
        folder = folder_of(tmp_path / "in", numbered(30))
        for i in range(30):
            shutil.copy(folder / f"{i:03d}.png", folder / f"copy {i:03d}.png")
        data = prepare(config(folder), cache=cache)
        train = {data.images[i].tobytes() for i in data.train}
        held_out = {data.images[i].tobytes() for i in data.held_out}
        assert not train & held_out

    def test_near_copies_are_on_one_side(self, tmp_path, cache):
        folder = tmp_path / "in"
        folder.mkdir()
        for i in range(60):
            (folder / f"{i:02d}.png").write_bytes(encode(smooth(i, 24, 24)))
            (folder / f"{i:02d}.jpg").write_bytes(encode(smooth(i, 24, 24), "JPEG", quality=85))
        pack = prepare(config(folder), cache=cache)
        stems = [{pack.survey()["names"][i][:2] for i in side.tolist()} for side in (pack.train, pack.held_out)]
        assert stems[1]
        assert not stems[0] & stems[1]

    def test_a_rare_class_is_not_held_out_whole(self, tmp_path, cache):
        names = [f"{label}/{i}.png" for label, count in (("a", 60), ("b", 3), ("c", 1)) for i in range(count)]
        for seed in range(20):
            pack = prepare(config(folder_of(tmp_path / f"in{seed}", names, start=100 * seed)), cache=cache)
            assert set(pack.labels[pack.train].tolist()) == {0, 1, 2}

    def test_a_pack_of_an_older_rule_is_made_again_while_the_pictures_are_there(self, photos, cache):
        pack = prepare(config(photos), cache=cache)
        about = json.loads((pack.path / "dataset.json").read_text())
        older = "10% by the hash of the packed pixels, equal pictures on one side"
        (pack.path / "dataset.json").write_text(json.dumps({**about, "split_rule": older}))
        assert prepare(config(photos), cache=cache).split_rule == pack.split_rule
        (pack.path / "dataset.json").write_text(json.dumps({**about, "split_rule": older}))
        shutil.rmtree(photos)
        assert prepare(config(photos), cache=cache).split_rule == older

    def test_pictures_keep_their_side_when_others_come(self, tmp_path, cache):
        folder = folder_of(tmp_path / "in", numbered(200))
        before = prepare(config(folder), cache=cache)
        held_out = {before.images[i].tobytes() for i in before.held_out}
        after = prepare(config(folder_of(folder, numbered(100, "new "), start=1000)), cache=cache)
        assert len(after) == 300
        assert held_out <= {after.images[i].tobytes() for i in after.held_out}
        train = {before.images[i].tobytes() for i in before.train}
        assert train <= {after.images[i].tobytes() for i in after.train}


class TestReuse:
    def test_a_pack_is_reused_while_the_source_is_the_same(self, photos, cache):
        first = prepare(config(photos), cache=cache)
        stamp = (first.path / "images.u8").stat().st_ino
        second = prepare(config(photos), cache=cache)
        assert (second.path / "images.u8").stat().st_ino == stamp
        assert (second.path, second.digest) == (first.path, first.digest)

    def test_the_resolved_config_finds_the_same_pack(self, photos, cache):
        first = prepare(config(photos), cache=cache)
        assert (first.config.width, first.config.height, first.config.channels) == (8, 8, 3)
        assert prepare(first.config, cache=cache).path == first.path
        assert len(packs(cache)) == 1

    def test_it_is_rebuilt_when_a_file_changes(self, photos, cache):
        first = prepare(config(photos), cache=cache)
        (photos / "000.png").write_bytes(encode(noise(1000)))
        second = prepare(config(photos), cache=cache)
        assert second.path == first.path
        assert second.digest != first.digest
        np.testing.assert_array_equal(second.images[0], noise(1000))
        assert [path.name for path in packs(cache)] == [first.path.name]

    def test_settings_have_packs_of_their_own(self, photos, cache):
        paths = {
            prepare(config(photos, **settings), cache=cache).path
            for settings in ({}, {"width": 16, "height": 8}, {"channels": 1}, {"fit": "pad", "width": 4, "height": 4})
        }
        assert len(paths) == 4

    def test_without_the_source_the_pack_is_enough(self, photos, cache):
        first = prepare(config(photos), cache=cache)
        shutil.rmtree(photos)
        assert prepare(first.config, cache=cache).digest == first.digest
        assert prepare(config(photos), cache=cache).digest == first.digest
        with pytest.raises(DataError, match="does not exist"):
            prepare(config(photos, width=5, height=5), cache=cache)

    @pytest.mark.fault("a damaged pack", "it is made again from the pictures")
    def test_a_damaged_pack_is_made_again(self, photos, cache):
        first = prepare(config(photos), cache=cache)
        for name in ("images.u8", "dataset.json", "split.npy"):
            (first.path / name).write_bytes((first.path / name).read_bytes()[:-7])
            with pytest.raises(DataError, match="no whole pack"):
                PackedDataset.open(first.path)
            assert prepare(config(photos), cache=cache).digest == first.digest

    def test_the_digest_is_of_the_contents_alone(self, photos, tmp_path, cache):
        other = shutil.copytree(photos, tmp_path / "elsewhere")
        assert prepare(config(photos), cache=cache).digest == prepare(config(other), cache=cache).digest

    def test_the_cache_is_where_the_environment_says(self, photos, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.delenv("CALOTYPE_CACHE", raising=False)
        assert prepare(config(photos)).path.parent == tmp_path / "xdg/calotype/packs"
        monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "own"))
        assert prepare(config(photos)).path.parent == tmp_path / "own/packs"


class TestFailures:
    @pytest.mark.fault("an interrupt while packing", "nothing is left in the cache")
    def test_an_interrupt_leaves_nothing(self, photos, cache):
        def interrupt(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(config(photos), cache=cache, progress=interrupt)
        assert packs(cache) == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("calotype-data")]

    @pytest.mark.fault("half a pack of a killed process", "it is not taken for one, and is swept away")
    def test_what_a_killed_process_left_is_removed(self, photos, cache):
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        host = os.uname().nodename
        stale = cache / "packs" / f".tmp-photos-x-{host}-{int(dead.stdout)}"
        alive = cache / "packs" / f".tmp-photos-x-{host}-{os.getppid()}"
        for path in (stale, alive):
            path.mkdir(parents=True)
        prepare(config(photos), cache=cache)
        assert not stale.exists()
        assert alive.exists()

    def test_room_is_looked_at_before_any_work(self, photos, cache, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 100))
        with pytest.raises(DataError, match=r"no room.*needed.*free.*CALOTYPE_CACHE"):
            prepare(config(photos), cache=cache)
        assert packs(cache) == []

    def test_a_limit_on_the_size_of_files_is_a_full_disk(self, photos, cache):
        program = (
            "import resource, sys\nfrom pathlib import Path\nfrom calotype.data import DataConfig, prepare\n"
            "from calotype.errors import DataError\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "try: prepare(DataConfig(source=sys.argv[1]), cache=Path(sys.argv[2]))\n"
            "except DataError as error: print(error)"
        )
        found = subprocess.run(
            [sys.executable, "-c", program, photos, cache], capture_output=True, text=True, timeout=60, check=True
        )
        assert "no room for the packed pictures" in found.stdout
        assert packs(cache) == []

    @pytest.mark.fault("a disk that is full while packing", "it says so, and nothing half-written stays")
    def test_a_full_disk_is_told_and_left_clean(self, photos, cache, monkeypatch):
        cache.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", cache], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("mounting a small disk is not permitted")
        try:
            usage = namedtuple("usage", "total used free")
            real = shutil.disk_usage
            answers = iter([usage(10**9, 0, 10**9)])  # the disk fills up after it was looked at
            monkeypatch.setattr(shutil, "disk_usage", lambda path: next(answers, None) or real(path))
            with pytest.raises(DataError, match=r"no room for the packed pictures"):
                prepare(config(photos, width=32, height=32), cache=cache)
            assert packs(cache) == []
        finally:
            subprocess.run(["umount", cache], check=True)

    def test_a_cache_that_cannot_be_written_is_told(self, photos, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match="cannot be written"):
            prepare(config(photos), cache=tmp_path / "file")


def test_many_files_need_few_open_at_once(tmp_path, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = folder_of(tmp_path / "in", numbered(300))
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        assert len(prepare(config(folder), cache=cache)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_progress_ends_at_the_number_of_pictures(photos, cache):
    calls = []
    prepare(
        config(photos), cache=cache, progress=lambda done, total: calls.append((done, total, threading.get_ident()))
    )
    assert calls[-1] == (40, 40, threading.get_ident())


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L"] * 20, 1),
        (["1"] * 10 + ["L"] * 10, 1),
        (["L"] * 19 + ["RGB"], 3),
        (["RGB"] * 20, 3),
        (["RGBA"] * 11 + ["RGB"] * 9, 4),
        (["RGBA"] * 10 + ["RGB"] * 10, 3),
        (["RGBA opaque"] * 20, 3),
        (["LA"] * 20, 4),
        (["LA opaque"] * 20, 1),
    ],
)
def test_the_files_decide_the_channels(tmp_path, cache, modes, channels):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, mode in enumerate(modes):
        image = Image.fromarray(noise(i)).convert(mode.split()[0])
        if "A" in mode and "opaque" not in mode:
            image.putalpha(100)
        image.save(folder / f"{i}.png")
    assert prepare(config(folder), cache=cache).spec.channels == channels


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(28, 28)] * 20, (28, 28)),
        ([(48, 64)] * 20, (48, 64)),
        ([(65, 65)] * 20, (32, 32)),
        ([(640, 480)] * 20, (40, 32)),
        ([(600, 500)] * 20, (32, 32)),
        ([(480, 960)] * 20, (32, 64)),
        ([(500, 500)] * 50 + [(20, 20)], (32, 32)),
        ([(500, 500)] * 50 + [(28, 28)] * 10, (24, 24)),
        ([(9, 9)] * 10 + [(10, 10)] * 10, (16, 16)),
    ],
)
def test_the_recommended_size(sizes, size):
    assert recommended_size(sizes) == size


def changing(change):
    """A report of progress that changes the pictures once, between the look at them and the packing."""
    left = [change]

    def progress(done: int, total: int) -> None:
        if left:
            left.pop()()

    return progress


@pytest.mark.fault("pictures that change, go and come while they are packed", "each is as it was listed, or is told")
def test_a_folder_that_changes_while_it_is_packed(tmp_path, cache):
    """What was listed is packed as it was, or is left out with the reason; the next command packs anew."""
    folder = folder_of(tmp_path / "changing", numbered(300))
    names = sorted(path.name for path in folder.iterdir())

    def change() -> None:
        (folder / names[5]).write_bytes(encode(noise(5, 30, 12)))
        (folder / names[6]).unlink()
        whole = (folder / names[7]).read_bytes()
        (folder / names[7]).write_bytes(whole[: len(whole) // 2])
        (folder / "new.png").write_bytes(encode(noise(6, 12, 12)))

    pack = prepare(config(folder), cache=cache, progress=changing(change))
    assert pack.survey()["names"] == [name for name in names if name not in names[5:8]]
    reasons = {entry.name: entry.kind for entry in pack.skipped}
    changed = "changed while the folder was read"
    assert reasons == {names[5]: changed, names[6]: "cannot be read", names[7]: changed}
    again = prepare(config(folder), cache=cache)
    assert len(again) == 299  # of 300, one is gone and one is cut off, and one has come
    assert [entry.name for entry in again.skipped] == [names[7]]


@pytest.mark.fault("an archive that is replaced while it is packed", "it says so, and nothing is packed")
@pytest.mark.parametrize("kind", ["zip", "tar", "npz", "npy", "parquet"])
def test_an_archive_that_changes_while_it_is_packed(kind, tmp_path, cache):
    path = tmp_path / f"pictures.{kind}"

    def write(count: int, key: int) -> None:
        pictures = [noise(key + k, 12, 12) for k in range(count)]
        if kind == "npy":
            np.save(path, np.stack(pictures))
        elif kind == "npz":
            np.savez(path, images=np.stack(pictures))
        elif kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for k, picture in enumerate(pictures):
                    archive.writestr(f"{key + k}.png", encode(picture))
        elif kind == "tar":
            with tarfile.open(path, "w") as archive:
                for k, picture in enumerate(pictures):
                    member = tarfile.TarInfo(f"{key + k}.png")
                    member.size = len(encode(picture))
                    archive.addfile(member, io.BytesIO(encode(picture)))
        else:
            cells = [{"bytes": encode(picture), "path": None} for picture in pictures]
            pq.write_table(pa.table({"image": cells}), path)

    def replaced() -> None:
        path.unlink()  # so that an array that is mapped stays what it was
        write(280, 1000)

    write(300, 0)
    with pytest.raises(DataError, match="changed while it was read: repeat the command when it is complete"):
        prepare(config(path), cache=cache, progress=changing(replaced))
    assert packs(cache) == []
    assert len(prepare(config(path), cache=cache)) == 280

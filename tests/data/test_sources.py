from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from calotype.data import DataConfig, PackedDataset, prepare
from calotype.errors import ConfigError, DataError
from tests.pictures import encode, folder_of, noise, numbered

PICTURES = np.stack([noise(i) for i in range(20)])  # (20, 8, 8, 3)
LABELS = np.arange(20) % 3


@pytest.fixture
def pack(tmp_path):
    def packed(source: object, **settings: object) -> PackedDataset:
        return prepare(DataConfig(source=str(source), **settings), cache=tmp_path / "cache")

    return packed


def pixels(pack: PackedDataset) -> list[bytes]:
    return sorted(image.tobytes() for image in pack.images)


def expected(pictures: np.ndarray = PICTURES) -> list[bytes]:
    return sorted(image.tobytes() for image in pictures)


def classes_folder(root: Path) -> Path:
    return folder_of(root, [f"{'abc'[i % 3]}/ü {i}.png" for i in range(20)])


def split_folder(root: Path) -> Path:
    return folder_of(root, [f"{'test' if i < 5 else 'train'}/{'ab'[i % 2]}/{i}.png" for i in range(20)])


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
        archive.writestr("__MACOSX/photos/._x.png", b"resource fork")
    return path


def tarred(folder: Path, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname=".")
    return path


def as_folder(folder: Path, tmp_path: Path) -> Path:
    return folder


def as_zip(folder: Path, tmp_path: Path) -> Path:
    return zipped(folder, tmp_path / "photos.zip")


def as_tar(folder: Path, tmp_path: Path) -> Path:
    return tarred(folder, tmp_path / "photos.tar", "w")


def as_tgz(folder: Path, tmp_path: Path) -> Path:
    return tarred(folder, tmp_path / "photos.tgz", "w:gz")


def as_unnamed_xz(folder: Path, tmp_path: Path) -> Path:
    return tarred(folder, tmp_path / "photos", "w:xz")


@pytest.mark.parametrize("form", [as_folder, as_zip, as_tar, as_tgz, as_unnamed_xz])
class TestFiles:
    def test_flat(self, form, tmp_path, pack):
        data = pack(form(folder_of(tmp_path / "in", numbered(20)), tmp_path))
        assert pixels(data) == expected()
        assert data.class_names == ()
        assert data.labels is None

    def test_classes(self, form, tmp_path, pack):
        data = pack(form(classes_folder(tmp_path / "in"), tmp_path))
        assert data.class_names == ("a", "b", "c")
        assert data.spec.num_classes == 3
        for image, label in zip(data.images, data.labels, strict=True):
            assert label == [p.tobytes() for p in PICTURES].index(image.tobytes()) % 3

    def test_labels_can_be_ignored(self, form, tmp_path, pack):
        data = pack(form(classes_folder(tmp_path / "in"), tmp_path), labels=False)
        assert (data.labels, data.class_names, data.spec.num_classes) == (None, (), 0)

    def test_splits(self, form, tmp_path, pack):
        data = pack(form(split_folder(tmp_path / "in"), tmp_path))
        assert data.class_names == ("a", "b")
        assert sorted(data.images[i].tobytes() for i in data.held_out) == expected(PICTURES[:5])
        assert sorted(data.images[i].tobytes() for i in data.train) == expected(PICTURES[5:])

    def test_other_files_and_clutter_are_no_bad_pictures(self, form, tmp_path, pack):
        folder = folder_of(tmp_path / "in", numbered(20))
        for name in (".DS_Store", ".hidden.png", "Thumbs.db", "labels.csv", "notes"):
            (folder / name).write_text("not a picture")
        (folder / "no_suffix").write_bytes(encode(noise(99)))
        data = pack(form(folder, tmp_path))
        assert len(data) == 21
        assert data.skipped == ()
        assert data.survey()["other_files"] == 2


def parquet(path: Path, rows: range, names: list[str] | None = None, **columns: list) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": encode(PICTURES[i]), "path": f"{i}.png"} for i in rows]
    table = pa.table({"image": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})), **columns})
    label = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    return path


class TestParquet:
    def test_a_file_with_named_classes(self, tmp_path, pack):
        path = parquet(tmp_path / "test.parquet", range(20), ["x", "y", "z"], label=LABELS.tolist())
        data = pack(path)
        np.testing.assert_array_equal(data.images, PICTURES)
        np.testing.assert_array_equal(data.labels, LABELS)
        assert data.class_names == ("x", "y", "z")
        assert len(data.train) > 0  # the name of a single file is no split

    def test_texts_and_plain_numbers_as_labels(self, tmp_path, pack):
        texts = [["cat", "dog"][i % 2] for i in range(20)]
        data = pack(parquet(tmp_path / "a.parquet", range(20), label=texts))
        assert data.class_names == ("cat", "dog")
        assert data.labels.tolist() == [i % 2 for i in range(20)]
        assert pack(parquet(tmp_path / "b.parquet", range(20), label=LABELS.tolist())).class_names == ("0", "1", "2")

    def test_splits_by_the_names_of_files(self, tmp_path, pack):
        parquet(tmp_path / "in/data/train-00000-of-00002.parquet", range(5, 12), label=LABELS[5:12].tolist())
        parquet(tmp_path / "in/data/train-00001-of-00002.parquet", range(12, 20), label=LABELS[12:].tolist())
        parquet(tmp_path / "in/data/test-00000-of-00001.parquet", range(5), label=LABELS[:5].tolist())
        data = pack(tmp_path / "in")
        assert sorted(data.images[i].tobytes() for i in data.held_out) == expected(PICTURES[:5])
        assert len(data) == 20

    def test_a_missing_label_is_told_not_guessed(self, tmp_path, pack):
        path = parquet(tmp_path / "a.parquet", range(20), ["x", "y", "z"], label=[-1, *LABELS[1:].tolist()])
        with pytest.raises(DataError, match=r"a.parquet\[0\] has the label -1"):
            pack(path)
        assert pack(path, labels=False).labels is None

    def test_rows_without_bytes_are_bad_pictures(self, tmp_path, pack):
        import pyarrow as pa
        import pyarrow.parquet as pq

        cells = [{"bytes": encode(p), "path": None} for p in PICTURES] + [{"bytes": None, "path": "x.png"}, None]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        pq.write_table(pa.table({"picture": pa.array(cells, kind)}), tmp_path / "a.parquet")
        data = pack(tmp_path / "a.parquet")
        assert [skipped.name for skipped in data.skipped] == ["a.parquet[20]", "a.parquet[21]"]
        assert "only the path 'x.png'" in data.skipped[0].reason

    def test_different_data_sets_in_one_folder_are_refused(self, tmp_path, pack):
        parquet(tmp_path / "in/a.parquet", range(10), ["x", "y", "z"], label=LABELS[:10].tolist())
        parquet(tmp_path / "in/b.parquet", range(10), ["p", "q", "r"], label=LABELS[:10].tolist())
        with pytest.raises(DataError, match="not one data set"):
            pack(tmp_path / "in")

    def test_damage_and_other_tables_are_told(self, tmp_path, pack):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match="columns x"):
            pack(tmp_path / "a.parquet")
        whole = parquet(tmp_path / "b.parquet", range(20)).read_bytes()
        (tmp_path / "b.parquet").write_bytes(whole[:-100])
        with pytest.raises(DataError, match="cannot be read"):
            pack(tmp_path / "b.parquet")


class TestArrays:
    def test_npy_in_all_layouts(self, tmp_path, pack):
        for name, array in {
            "nhwc": PICTURES,
            "nchw": PICTURES.transpose(0, 3, 1, 2),
            "gray": PICTURES[..., 0],
            "gray1": PICTURES[..., :1],
        }.items():
            np.save(tmp_path / f"{name}.npy", array)
            data = pack(tmp_path / f"{name}.npy")
            np.testing.assert_array_equal(data.images, PICTURES if "n" in name else PICTURES[..., :1])

    def test_bool_uint16_and_float(self, tmp_path, pack):
        for name, array, value_range in [
            ("bool", PICTURES > 127, ""),
            ("uint16", PICTURES.astype(np.uint16) * 257, ""),
            ("float", PICTURES.astype(np.float64) / 255, ""),
            ("signed", PICTURES.astype(np.float32) / 127.5 - 1, "-1:1"),
            ("int64", PICTURES.astype(np.int64), "0:255"),
        ]:
            np.save(tmp_path / f"{name}.npy", array)
            data = pack(tmp_path / f"{name}.npy", value_range=value_range)
            np.testing.assert_array_equal(data.images, (PICTURES > 127) * 255 if name == "bool" else PICTURES)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_npz_with_labels(self, tmp_path, pack, save):
        save(tmp_path / "a.npz", images=PICTURES, labels=LABELS[:, None])
        data = pack(tmp_path / "a.npz")
        np.testing.assert_array_equal(data.images, PICTURES)
        np.testing.assert_array_equal(data.labels, LABELS)
        assert data.class_names == ("0", "1", "2")

    def test_npz_with_splits(self, tmp_path, pack):
        np.savez(tmp_path / "a.npz", x_train=PICTURES[5:], y_train=LABELS[5:], x_test=PICTURES[:5], y_test=LABELS[:5])
        data = pack(tmp_path / "a.npz")
        np.testing.assert_array_equal(data.images[data.held_out], PICTURES[:5])
        np.testing.assert_array_equal(data.labels[data.train], LABELS[5:])

    def test_unnamed_arrays(self, tmp_path, pack):
        np.savez(tmp_path / "a.npz", PICTURES)
        np.testing.assert_array_equal(pack(tmp_path / "a.npz").images, PICTURES)

    def test_pickles_are_never_loaded(self, tmp_path, pack):
        np.save(tmp_path / "a.npy", np.array([{}] * 20, object), allow_pickle=True)
        np.savez(tmp_path / "a.npz", images=np.array([{}] * 20, object))
        for name in ("a.npy", "a.npz"):
            with pytest.raises(DataError):
                pack(tmp_path / name)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"weights": PICTURES}, "none has a name"),
            ({"images": PICTURES[0, 0]}, "has shape"),
            ({"images": PICTURES, "labels": LABELS[:7]}, "7 labels"),
            ({"images": PICTURES, "labels": np.eye(20) * 0.5}, "one integer"),
            ({"images": np.asfortranarray(PICTURES)}, "column by column"),
        ],
    )
    def test_arrays_that_are_no_pictures_are_told(self, tmp_path, pack, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=message):
            pack(tmp_path / "a.npz")


class TestGlyphs:
    def test_letters_at_the_size_and_mode_wanted(self, pack):
        data = pack("glyphs:rgba:60:3", width=20, height=12)
        assert data.images.shape == (60, 12, 20, 4)
        assert data.spec.num_classes == 26
        assert pack("glyphs:gray:40").images.shape == (40, 32, 32, 1)
        assert pack("glyphs:rgb:40").spec.channels == 3

    def test_labels_name_the_letters(self, pack):
        from calotype.data.sources.glyphs import GlyphsConfig, render

        data = pack("glyphs:gray:40:5", width=16, height=16)
        for i in (0, 7, 39):
            image, label = render(GlyphsConfig.parse("glyphs:gray:40:5"), i, 16, 16)
            np.testing.assert_array_equal(data.images[i], image)
            assert data.labels[i] == label

    def test_a_wrong_text_is_told(self, pack):
        with pytest.raises(ConfigError, match="sepia"):
            pack("glyphs:sepia")


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="there is no /proc here")
@pytest.mark.parametrize("source", ["/proc", "/proc/self", "/proc/kmsg", "/proc/self/environ"])
def test_what_the_kernel_invents_is_refused(source, pack):
    with pytest.raises(DataError, match="invented by the system"):
        pack(source)


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="there is no /proc here")
def test_a_link_to_what_the_kernel_invents_is_not_followed(tmp_path, pack):
    split_folder(tmp_path / "in")
    (tmp_path / "in/processes").symlink_to("/proc/self")
    data = pack(str(tmp_path / "in"))
    assert any(name.startswith("processes") and "invented" in reason for name, reason in data.skipped)


@pytest.mark.parametrize("source", ["/", "//", "/..", "/usr/.."])
def test_the_whole_file_system_is_refused(source, pack):
    with pytest.raises(DataError, match="is the root of the file system: give the folder"):
        pack(source)


class TestHub:
    """The loader runs for real on builders that need no network: a folder of its cache stands for user/name."""

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
        load = datasets.load_dataset
        monkeypatch.setattr(datasets, "load_dataset", lambda name: load(str(tmp_path / "hf/in")))

    def test_imagefolder(self, tmp_path, pack):
        split_folder(tmp_path / "hf/in")
        data = pack("hub:user/name")
        assert data.class_names == ("a", "b")
        assert sorted(data.images[i].tobytes() for i in data.held_out) == expected(PICTURES[:5])
        assert pixels(data) == expected()

    def test_parquet(self, tmp_path, pack):
        parquet(tmp_path / "hf/in/train.parquet", range(20), ["x", "y", "z"], label=LABELS.tolist())
        data = pack("hub:user/name")
        np.testing.assert_array_equal(data.images, PICTURES)
        np.testing.assert_array_equal(data.labels, LABELS)
        assert data.class_names == ("x", "y", "z")

    @pytest.mark.parametrize("name", ["", "..", "../..", "/", ".", "~", "a/b/c", "größe/x", "a/..", "a/", " a"])
    def test_a_name_is_one(self, name, pack):
        with pytest.raises(DataError, match="names nothing on the hub"):
            pack(f"hub:{name}")

    @pytest.mark.parametrize("name", ["user/name", "name"])
    def test_a_folder_of_the_name_is_not_taken_for_it(self, name, tmp_path, pack, monkeypatch):
        split_folder(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="and an entry of the current folder: give the path"):
            pack(f"hub:{name}")

    def test_offline_is_told_and_a_pack_is_enough(self, tmp_path):
        program = (
            "from calotype.data import DataConfig, prepare\nfrom calotype.errors import DataError\n"
            "try: prepare(DataConfig(source='nobody/nothing'))\nexcept DataError as error: print(error)"
        )
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CALOTYPE_CACHE": str(tmp_path)}
        found = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        assert "'nobody/nothing' is no file or folder here, and the Hugging Face hub does not give it" in found.stdout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("hello"), "is no archive"),
        (lambda path: path.write_bytes(b""), "is no archive"),
        (lambda path: path.write_bytes(encode(noise(0))), "is one picture"),
        (lambda path: path.mkdir(), "no usable pictures"),
    ],
)
def test_what_is_no_source_is_told(tmp_path, pack, make, message):
    make(tmp_path / "thing")
    with pytest.raises(DataError, match=message):
        pack(tmp_path / "thing")


def test_a_cut_off_archive_is_told(tmp_path, pack):
    folder = folder_of(tmp_path / "in", numbered(40), height=64, width=64)
    for path in (as_zip(folder, tmp_path), as_tar(folder, tmp_path), as_tgz(folder, tmp_path)):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"damaged or cut off|is no archive|cannot be read"):
            pack(path)


def test_a_damaged_member_of_a_zip_is_a_bad_picture(tmp_path, pack):
    path = as_zip(folder_of(tmp_path / "in", numbered(20)), tmp_path)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("in/003.png").header_offset + 30 + len("in/003.png") + 20
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)
    (skipped,) = pack(path).skipped
    assert (skipped.name, skipped.kind) == ("in/003.png", "damaged")


def test_one_hot_labels_are_class_numbers(tmp_path, pack):
    classes = np.arange(20) % 4
    np.savez(tmp_path / "a.npz", images=PICTURES, labels=np.eye(4, dtype=np.uint8)[classes])
    packed = pack(tmp_path / "a.npz")
    assert packed.class_names == ("0", "1", "2", "3")
    assert packed.labels.tolist() == classes.tolist()


@pytest.mark.parametrize("labels", [np.full(20, 1_700_000_000), np.zeros((20, 40)), np.array(3)])
def test_labels_that_are_no_classes_are_refused_and_can_be_passed_over(tmp_path, pack, labels):
    np.savez(tmp_path / "a.npz", images=PICTURES, labels=labels)
    with pytest.raises(DataError, match="--no-labels"):
        pack(tmp_path / "a.npz")
    assert pack(tmp_path / "a.npz", labels=False).labels is None


def test_a_missing_extra_is_told_with_its_install_command(tmp_path, pack, monkeypatch):
    path = parquet(tmp_path / "a.parquet", range(20))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        pack(path)
    with pytest.raises(DataError, match="pip install datasets"):
        pack("nobody/nothing")


def test_tar_members_may_come_in_any_order(tmp_path, pack):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for i in reversed(range(20)):
            data = encode(PICTURES[i])
            member = tarfile.TarInfo(f"{'ba'[i % 2]}/{i}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = pack(path)
    np.testing.assert_array_equal(data.images, PICTURES[::-1])
    assert data.labels.tolist() == [1 - i % 2 for i in reversed(range(20))]

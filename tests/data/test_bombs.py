"""Archives and pictures that would reach out of their place, or fill the memory or the day of whoever reads them."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calotype.core.config import write_toml
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.config import MAX_PIXELS
from calotype.data.decode import decode_bytes, quiet_pillow, read_facts
from calotype.data.packs.parallel import _MOST_HELD, ordered_map
from calotype.data.records import BadPicture
from calotype.data.sources import bombs, tables
from calotype.errors import DataError
from tests.conftest import Survived
from tests.faults import FAULTS
from tests.pictures import encode, encode_image, noise, png_chunks
from tests.project.test_hostile import little_memory

GOOD = [(f"{'ab'[i % 2]}/{i}.png", encode(noise(i))) for i in range(20)]


def packed(source: Path) -> PackedDataset:
    return prepare(DataConfig(source=str(source)), cache=source.parent / "cache")


Member = tuple[tarfile.TarInfo, bytes]


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts}


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def tar_of(path: Path, members: list[Member]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if content else None)
    return path


# -- reaching out


def test_links_devices_and_pipes_in_a_tar_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encode(noise(99)))
    kinds = [
        member("a/link.png", kind=tarfile.SYMTYPE, link="../../secret.png"),
        member("a/link to all.png", kind=tarfile.SYMTYPE, link=str(tmp_path / "secret.png")),
        member("a/hard.png", kind=tarfile.LNKTYPE, link=str(tmp_path / "secret.png")),
        member("a/device.png", kind=tarfile.CHRTYPE),
        member("a/disk.png", kind=tarfile.BLKTYPE),
        member("a/pipe.png", kind=tarfile.FIFOTYPE),
        member("a/what is this.png", b"", kind=b"Z"),
    ]
    source = tar_of(tmp_path / "a.tar", [*(member(*entry) for entry in GOOD), *kinds])
    before = everything(tmp_path)
    data = packed(source)
    assert everything(tmp_path) == before
    assert len(data) == 20
    assert noise(99).tobytes() not in {image.tobytes() for image in data.images}


NAMES = [
    "../../up.png",
    f"/tmp/calotype-test-{os.getpid()}.png",
    "a/../../x.png",
    "C:\\x.png",
    "a\n/b.png",
    "a/\x1b[2J.png",
    "a//b.png",
    "a/" * 200,
]


@pytest.mark.fault(
    "archives with names that lead out, links, devices", "no file is made but the pack, no link followed"
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_names_and_nothing_else(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "below" / "deeper" / f"a.{kind}"
    source.parent.mkdir(parents=True)
    odd = [(name.rstrip("/") + ".png", encode(noise(50 + i))) for i, name in enumerate(NAMES)]
    if kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name, content in [*GOOD, *odd]:
                archive.writestr(name, content)
    else:
        tar_of(source, [member(*entry) for entry in [*GOOD, *odd]])
    before = everything(tmp_path)
    data = packed(source)
    assert everything(tmp_path) == before
    assert not [name for name in NAMES if name.startswith("/") and Path(name).exists()]
    assert len(data) >= 20 + len(odd) - 2  # names with a part ".." that is hidden are passed over
    assert len(data.survey()["names"]) == len(data)


def test_classes_whose_names_are_not_unicode_can_be_written_down(tmp_path: Path) -> None:
    names = [(f"{'ab'[i % 2]}\udcff/{i}.png", encode(noise(i))) for i in range(20)]
    data = packed(tar_of(tmp_path / "a.tar", [member(*entry) for entry in names]))
    assert data.class_names == ("a\\xff", "b\\xff")
    assert write_toml({"names": data.class_names}).encode()


def test_names_of_a_zip_that_are_not_unicode_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in GOOD:
            archive.writestr(name.replace("a/", "ä/"), content)
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace("ä/".encode(), b"\xff\xff/"))
    with pytest.raises(DataError, match="cannot be read"):
        packed(tmp_path / "a.zip")


def test_of_entries_of_one_name_one_is_taken(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names are there twice
        for name, content in [*GOOD, *GOOD]:
            archive.writestr(name, content)
    assert len(packed(tmp_path / "a.zip")) == 20
    assert len(packed(tar_of(tmp_path / "a.tar", [member(*entry) for entry in [*GOOD, *GOOD]]))) == 20


def test_archives_within_archives_are_other_files(tmp_path: Path) -> None:
    inner = tar_of(tmp_path / "inner.tar", [member(*entry) for entry in GOOD]).read_bytes()
    source = tar_of(tmp_path / "a.tar", [*(member(*entry) for entry in GOOD), member("b/inner.tar", inner)])
    data = packed(source)
    assert len(data) == 20
    assert data.survey()["other_files"] == 1


def test_a_zip_of_a_later_version_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", GOOD[0][1])
    whole = bytearray((tmp_path / "a.zip").read_bytes())
    whole[whole.rindex(b"PK\1\2") + 6] = 99
    (tmp_path / "a.zip").write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read"):
        packed(tmp_path / "a.zip")


# -- unfolding without end


def empty_entries(path: Path, count: int) -> Path:
    """A zip file whose list has so many entries, all of the same empty file."""
    name = b"0.png"
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    size, at = count * len(entry), len(local)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, at)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, at + size, 1) + struct.pack(
        "<4s4H2LH", b"PK\5\6", *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0
    )
    with path.open("wb") as file:
        file.write(local)
        for _ in range(count // 1000):
            file.write(entry * 1000)
        file.write(end)
    return path


@pytest.mark.fault("a zip or a tar of five million empty entries", "it is refused before its list is read")
def test_more_entries_than_memory_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = empty_entries(tmp_path / "few.zip", 3000)
    with pytest.raises(DataError, match="no usable pictures"):
        packed(few)
    many = 5_000_000 if FAULTS else 30_000
    monkeypatch.setattr(bombs, "MOST_ENTRIES", bombs.MOST_ENTRIES if FAULTS else 10_000)
    source = empty_entries(tmp_path / "many.zip", many)
    with little_memory(1 << 29), pytest.raises(DataError, match="entries: unpack it"):
        packed(source)
    source.unlink()

    entry = gzip.compress(member("a.txt")[0].tobuf() * 1000)
    (tmp_path / "a.tgz").write_bytes(entry * (many // 1000))
    with little_memory(1 << 29), pytest.raises(DataError, match=r"entries: unpack it|unfolds to more"):
        packed(tmp_path / "a.tgz")


def zeros(size: int) -> bytes:
    """A gzip file of so many zeros, in parts of 16 MiB."""
    return gzip.compress(bytes(1 << 24)) * (size >> 24)


def long_head(path: Path, kind: bytes) -> Path:
    """A tar whose first head says that the name of the next file is 8 GiB long, and goes on with zeros."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, (1 << 33) - 1
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + zeros(1 << 28))
    return path


def large_file(path: Path) -> Path:
    """A tar with a picture of 8 GiB of zeros, and with others behind it that are not reached."""
    info = tarfile.TarInfo("x.png")
    info.size = 1 << 33
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + zeros(1 << 28))
    return path


def sparse_file(path: Path) -> Path:
    """A tar of good pictures, and one that is a hole of a terabyte."""
    hole = tarfile.TarInfo("a/hole.png")
    hole.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(hole.tobuf(tarfile.GNU_FORMAT))
    head[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # the real size
    head[386:410] = (b"%011o\0" % 0) * 2
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    tar_of(path, [member(*entry) for entry in GOOD])
    path.write_bytes(bytes(head) + path.read_bytes())
    return path


@pytest.mark.fault("a tar that unfolds to a thousand times its size", "it is refused at 200 times, or 1 GB")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: long_head(path, tarfile.GNUTYPE_LONGNAME), "damaged or cut off|is no archive"),
        (lambda path: long_head(path, tarfile.XHDTYPE), "damaged or cut off|is no archive"),
        (large_file, "unfolds to more than 200 times"),
    ],
    ids=["name", "head", "file"],
)
def test_a_tar_that_unfolds(
    tmp_path: Path, make: Callable[[Path], Path], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bombs, "FREE", 1 << 26)
    with little_memory(1 << 29), pytest.raises(DataError, match=message):
        packed(make(tmp_path / "a.tgz"))


def test_a_hole_of_a_terabyte_is_a_picture_that_is_too_large(tmp_path: Path) -> None:
    with little_memory(1 << 29):
        data = packed(sparse_file(tmp_path / "a.tar"))
    assert [(skipped.name, skipped.kind) for skipped in data.skipped] == [("a/hole.png", "too large")]


def test_a_member_that_holds_more_than_it_says_is_cut_off(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in GOOD:
            archive.writestr(name, content)
        archive.writestr("b/bomb.png", bytes(1 << 28))
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace(struct.pack("<L", 1 << 28), struct.pack("<L", 100)))
    with little_memory(1 << 27):
        data = packed(tmp_path / "a.zip")
    assert [(skipped.name, skipped.kind) for skipped in data.skipped] == [("b/bomb.png", "damaged")]


def test_few_large_files_are_in_memory_at_once() -> None:
    held, most = 0, 0

    def draw() -> object:
        nonlocal held, most
        for _ in range(40):
            held += _MOST_HELD // 2
            most = max(most, held)
            yield _MOST_HELD // 2

    for size in ordered_map(lambda size: size, draw(), lambda size: size):
        held -= size
    assert held == 0
    # Those that wait are no more than is allowed and one; a chunk of two is given back one by one, and drawn for again.
    assert most <= 2.5 * _MOST_HELD


# -- pictures


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def texts(size: int, count: int) -> bytes:
    """A PNG with texts that unfold."""
    picture = encode(noise(0))
    more = b"".join(chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(size))) for i in range(count))
    return picture[:33] + more + picture[33:]


def frames(count: int) -> bytes:
    """A GIF of so many frames."""
    both = encode_image(Image.new("P", (2, 2)), "GIF", save_all=True, append_images=[Image.new("P", (2, 2), 1)])
    at = both.index(b"\x21\xf9", both.index(b"\x21\xf9") + 1) if both.count(b"\x21\xf9") > 1 else both.index(b"\x2c")
    return both[:at] + both[at:-1] * count + both[-1:]


def moving(count: int) -> bytes:
    """A WebP of so many frames."""
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    both = encode_image(red, "WEBP", save_all=True, append_images=[blue], lossless=True)
    at = both.rindex(b"ANMF")
    body = both[12:at] + both[at:] * count
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/tmp/x) (w) file\n"


@pytest.mark.fault("pictures that are bombs", "they are left out with the reason, or their first frame is taken")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: png_chunks(struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0), zlib.compress(bytes(99))),
            "too large",
        ),
        (lambda: texts(1 << 25, 1), ""),
        (lambda: texts((1 << 20) - 9, 100), ""),
        (lambda: frames(1_000_000 if FAULTS else 50_000), ""),
        (lambda: moving(1_000_000 if FAULTS else 50_000), ""),
        (lambda: SVG, "SVG, which is not read"),
        (lambda: EPS, "PostScript or a drawing, which is not read"),
    ],
    ids=["pixels", "text", "texts", "gif", "webp", "svg", "eps"],
)
def test_a_picture_that_is_a_bomb(make: Callable[[], bytes], reason: str) -> None:
    content, started = make(), time.process_time()
    with little_memory(1 << 29), quiet_pillow():
        if reason:
            with pytest.raises(BadPicture, match=reason):
                decode_bytes(content)
        else:
            side = read_facts(io.BytesIO(content)).width
            assert side in (2, 8)
            assert decode_bytes(content).pixels.shape[:2] == (side, side)
    assert time.process_time() - started < 20


def test_a_picture_of_the_most_pixels_is_no_bomb() -> None:
    side = int(MAX_PIXELS**0.5)
    with quiet_pillow():
        assert decode_bytes(encode(np.zeros((side, side), np.uint8))).pixels.shape == (side, side, 1)


# -- tables


def parquet(path: Path, cells: list[dict[str, object]], metadata: dict[bytes, bytes] | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind)})
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")
    return path


def test_a_row_of_a_table_names_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encode(noise(99)))
    os.mkfifo(tmp_path / "pipe.png")
    rows: list[dict[str, object]] = [{"bytes": content, "path": None} for _, content in GOOD]
    rows += [{"bytes": None, "path": str(tmp_path / name)} for name in ("secret.png", "pipe.png")]
    data = packed(parquet(tmp_path / "a.parquet", rows))
    assert len(data) == 20
    assert [skipped.kind for skipped in data.skipped] == ["no picture in this row"] * 2


def test_large_cells_are_read_one_by_one_and_huge_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    rows: list[dict[str, object]] = [{"bytes": noise(i, 512, 683).tobytes(), "path": None} for i in range(8)]
    source = parquet(tmp_path / "a.parquet", rows)
    with pq.ParquetFile(source) as file:
        assert tables._rows_at_once(file, "image") == 64
        monkeypatch.setattr(tables, "_BATCH_BYTES", 3 << 20)
        assert tables._rows_at_once(file, "image") in (2, 3)
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 1 << 16)
    with pytest.raises(DataError, match="it claims"):
        packed(source)


@pytest.mark.parametrize(
    "told", [b"[", b"[1]", b'{"info": 3}', b'{"info": {"features": {"image": {"_type": "ClassLabel"}}}}', b"\xff"]
)
def test_what_a_table_says_of_itself_is_checked(tmp_path: Path, told: bytes) -> None:
    rows: list[dict[str, object]] = [{"bytes": content, "path": None} for _, content in GOOD]
    source = parquet(tmp_path / "a.parquet", rows, {b"huggingface": told})
    try:
        assert packed(source).class_names == ()
    except DataError as error:
        assert "cannot be read" in str(error)  # noqa: PT017


# -- damage to archives as a whole


def test_damaged_archives_and_tables(tmp_path: Path, survived: Survived) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in GOOD:
            archive.writestr(name, content)
    tar = tar_of(tmp_path / "whole.tar", [member(*entry) for entry in GOOD]).read_bytes()
    np.savez(tmp_path / "whole.npz", images=np.zeros((20, 4, 4), np.uint8), labels=np.zeros(20, np.int64))
    whole = {
        "zip": (tmp_path / "whole.zip").read_bytes(),
        "tar": tar,
        "tgz": gzip.compress(tar),
        "npz": (tmp_path / "whole.npz").read_bytes(),
    }
    choose = np.random.Generator(np.random.Philox(key=5))
    refusals = 0
    for k in range(40 * max(1, FAULTS // 5)):
        kind = list(whole)[k % len(whole)]
        content = bytearray(whole[kind])
        for _ in range(3):
            content[choose.integers(len(content))] ^= 1 << choose.integers(8)
        if choose.integers(4) == 0:
            del content[choose.integers(len(content)) :]
        (tmp_path / f"{k}.{kind}").write_bytes(content)
        try:
            with little_memory():
                packed(tmp_path / f"{k}.{kind}")
        except DataError:
            refusals += 1
    assert refusals > k // 20

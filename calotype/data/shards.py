"""Files of many pictures, of which parts are read by their place: Parquet, and tars as WebDataset has them.

A shard is in parts that are read at once, the row groups of a Parquet file or about a thousand members of a tar. Of a
part it is known how many pictures it has, and nothing of each picture. Shards lie in a folder, or at an address of
object storage such as s3://bucket/photos, which pyarrow reads.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from calotype.data.files import walk
from calotype.data.layout import claims_picture, split_named
from calotype.data.records import Split, check_class_count
from calotype.data.tables import INSTALL, Table, names_of_values, table_of
from calotype.errors import DataError
from calotype.files import write_atomic, write_bytes
from calotype.untrusted import open_regular, read_json

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MEMBERS = 1_000  # pictures of a part of a tar
OPEN = 4  # files that stay open
_LABELS = (".cls", ".json")  # members with the class of the picture of the same key
_KEYS = ("cls", "label")  # of a JSON member
_MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4")])


class Encoded(NamedTuple):
    """A picture as its shard has it."""

    data: bytes | None  # None: there is none in its place
    label: int | None


class Shard(Protocol):
    """A file of many pictures."""

    name: str
    counts: tuple[int, ...]  # pictures of each part

    def read(self, part: int) -> Sequence[Encoded]:
        """The pictures of a part. Raises DataError where the file is not what it was."""

    def labels(self, part: int) -> Sequence[int | None]:
        """The classes of the pictures of a part, without reading these. Raises DataError as `read`."""


class File(NamedTuple):
    """Where a shard lies, and what tells that it is still the same."""

    name: str  # relative, "/" between its parts
    address: str
    size: int
    changed: int

    @property
    def split(self) -> Split | None:
        """That its name, or its folder's, says."""
        path = PurePosixPath(self.name)
        stem = path.stem.replace("_", "-").replace(".", "-").partition("-")[0]
        return split_named(stem) or split_named(path.parent.name)


class Storage(NamedTuple):
    """What files are read from."""

    files: tuple[File, ...]
    open: Callable[[File], BinaryIO]
    look: Callable[[File], tuple[int, int]]  # size and time of change, now


class Shards(NamedTuple):
    """A source in shards."""

    shards: tuple[Shard, ...]
    splits: tuple[Split | None, ...]
    class_names: tuple[str, ...]


def storage(address: str) -> Storage:
    """The shards at a place. Raises DataError where there are none, or they cannot be listed."""
    found = _remote(address) if "://" in address else _local(Path(address))
    files = tuple(file for file in found.files if file.name.lower().endswith((".parquet", ".tar")))
    if not files:
        raise DataError(f"{address} has no shards: give a folder of .parquet files, or of .tar files as WebDataset's")
    return found._replace(files=files)


def fingerprint(found: Storage) -> str:
    """A hash of names, sizes and times of change."""
    lines = "\n".join(f"{file.name}\0{file.size}\0{file.changed}" for file in found.files)
    return hashlib.blake2b(lines.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _local(path: Path) -> Storage:
    if path.is_file():
        status = path.stat()
        files = [File(path.name, str(path), status.st_size, status.st_mtime_ns)]
    else:
        files = [File(file.name, str(file.path), file.size, file.mtime_ns) for file in walk(path).files]

    def look(file: File) -> tuple[int, int]:
        status = Path(file.address).stat()
        return status.st_size, status.st_mtime_ns

    return Storage(tuple(files), lambda file: open_regular(Path(file.address)), look)


def _remote(address: str) -> Storage:
    try:
        import pyarrow as pa
        from pyarrow import fs
    except ModuleNotFoundError:
        raise DataError(f"{address} is in object storage, which needs pyarrow: {INSTALL}") from None
    try:
        system, base = fs.FileSystem.from_uri(address)
        listed = system.get_file_info(fs.FileSelector(base, recursive=True))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{address} cannot be listed ({error}): check the address and the rights to it") from None
    files = [
        File(info.path.removeprefix(base).lstrip("/"), info.path, info.size, info.mtime_ns or 0)
        for info in sorted(listed, key=lambda info: info.path)
        if info.is_file
    ]

    def look(file: File) -> tuple[int, int]:
        (info,) = system.get_file_info([file.address])
        if not info.is_file:
            raise FileNotFoundError(file.address)
        return info.size, info.mtime_ns or 0

    return Storage(tuple(files), lambda file: system.open_input_file(file.address), look)


def open_shards(found: Storage, labels: bool, notes: Path) -> Shards:
    """Look at all shards: their parts, and the classes of all pictures.

    Args:
        labels: whether classes are wanted.
        notes: a directory for what is known of tars, which is kept.

    Raises:
        DataError: a shard is damaged, or they are not of one data set.
    """
    kinds = {file.name.lower().rpartition(".")[2] for file in found.files}
    if len(kinds) > 1:
        raise DataError(
            f"there are Parquet files and tars, such as {found.files[0].name} and {found.files[-1].name}: give a "
            "folder with one kind"
        )
    files = _Files(found)
    if kinds == {"parquet"}:
        shards, class_names = _parquet(files, labels)
    else:
        shards, class_names = _tars(files, labels, notes)
    splits = tuple(file.split for file in found.files)
    if not {"train", "held_out"} <= set(splits):
        splits = (None,) * len(splits)
    return Shards(shards, splits, class_names)


class _Files:
    """The files of a storage, of which the last few stay open; each is looked at when it is opened."""

    def __init__(self, found: Storage) -> None:
        self.storage = found
        self._open: dict[str, tuple[BinaryIO, Any]] = {}
        weakref.finalize(self, _close, self._open)

    def get(self, file: File, make: Callable[[BinaryIO], Any]) -> Any:
        """What is made of an open file. Raises DataError where it has changed, or is gone."""
        if file.address in self._open:
            self._open[file.address] = self._open.pop(file.address)  # the last to be closed
            return self._open[file.address][1]
        try:
            if self.storage.look(file) != (file.size, file.changed):
                raise DataError(f"{file.address} has changed since it was looked at: restore it, or start a new run")
            opened = self.storage.open(file)
        except OSError as error:
            raise DataError(f"{file.address} cannot be read ({error}): restore it, or start a new run") from error
        try:
            self._open[file.address] = opened, make(opened)
        except BaseException:
            opened.close()
            raise
        while len(self._open) > OPEN:
            self._open.pop(next(iter(self._open)))[0].close()
        return self._open[file.address][1]


def _close(files: dict[str, tuple[BinaryIO, Any]]) -> None:
    for opened, _ in files.values():
        opened.close()


# -- Parquet


class _ParquetShard:
    """Row groups of a Parquet file."""

    def __init__(
        self, files: _Files, file: File, table: Table, numbers: dict[str, int], counts: tuple[int, ...]
    ) -> None:
        self.name, self.counts = file.name, counts
        self._files, self._file, self._table, self._numbers = files, file, table, numbers

    def read(self, part: int) -> Sequence[Encoded]:
        """As of Shard."""
        image, label = self._table.image, self._table.label
        columns = [f"{image}.bytes", *([label] if label else [])]
        rows = _from_parquet(self._files, self._file, lambda opened: opened.read_row_group(part, columns=columns))
        pictures = rows.column(image).combine_chunks().field("bytes").to_pylist()
        labels = self._labels(rows) if label and self._numbers else [None] * len(pictures)
        return [Encoded(data, number) for data, number in zip(pictures, labels, strict=True)]

    def labels(self, part: int) -> Sequence[int | None]:
        """As of Shard."""
        column = self._table.label
        if not column or not self._numbers:
            return [None] * self.counts[part]
        return self._labels(
            _from_parquet(self._files, self._file, lambda opened: opened.read_row_group(part, columns=[column]))
        )

    def _labels(self, rows: Any) -> list[int | None]:
        values = rows.column(self._table.label).to_pylist()
        return [self._numbers.get(value, -1) if isinstance(value, str) else value for value in values]


def _from_parquet(files: _Files, file: File, read: Callable[[pq.ParquetFile], Any]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return read(files.get(file, pq.ParquetFile))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.address} is damaged ({error}): download it again") from None


def _parquet(files: _Files, labels: bool) -> tuple[tuple[Shard, ...], tuple[str, ...]]:
    try:
        import pyarrow.compute as pc
    except ModuleNotFoundError:
        raise DataError(f"{files.storage.files[0].name} is a Parquet file, which needs pyarrow: {INSTALL}") from None
    table: Table | None = None
    found: list[tuple[File, tuple[int, ...]]] = []
    values: set[Any] = set()
    for file in files.storage.files:
        opened = _from_parquet(files, file, lambda opened: opened)
        here = table_of(opened.schema_arrow, Path(file.name), labels)
        if table not in (None, here):
            raise DataError(
                f"{file.address} differs from the shards before it in columns or classes: give one data set"
            )
        table = here
        metadata = opened.metadata
        found.append((file, tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))))
        if table.label and not table.class_names:
            for group in range(metadata.num_row_groups):  # a row group at a time: memory for its labels
                values |= set(pc.unique(opened.read_row_group(group, [table.label]).column(0)).to_pylist())
                check_class_count(len(values) - 1)
    assert table is not None
    class_names = table.class_names or (names_of_values(sorted(values - {None})) if values - {None} else ())
    numbers = {name: k for k, name in enumerate(class_names)}
    shards = tuple(_ParquetShard(files, file, table, numbers, counts) for file, counts in found)
    return shards, class_names


# -- tars


class _TarShard:
    """Members of a tar. Where each lies is in a file, of which a part is read with the part."""

    def __init__(self, files: _Files, file: File, notes: Path, numbers: NDArray[np.int32]) -> None:
        self.name = file.name
        self._files, self._file, self._notes, self._numbers = files, file, notes, numbers
        total = len(np.load(notes, mmap_mode="r"))
        self.counts = tuple(min(MEMBERS, total - start) for start in range(0, total, MEMBERS))

    def read(self, part: int) -> Sequence[Encoded]:
        """As of Shard."""
        places = np.load(self._notes, mmap_mode="r")[part * MEMBERS : (part + 1) * MEMBERS]
        opened = self._files.get(self._file, lambda file: file)
        first = int(places["offset"][0])
        try:
            opened.seek(first)
            content = opened.read(int(places["offset"][-1] + places["size"][-1]) - first)
        except OSError as error:
            raise DataError(f"{self._file.address} cannot be read ({error}): restore it") from error
        found = []
        for offset, size, label in places.tolist():
            data = content[offset - first : offset - first + size]
            number = int(self._numbers[label]) if len(self._numbers) and label >= 0 else None
            found.append(Encoded(data if len(data) == size and size else None, number))
        return found

    def labels(self, part: int) -> Sequence[int | None]:
        """As of Shard."""
        codes = np.load(self._notes, mmap_mode="r")["label"][part * MEMBERS : (part + 1) * MEMBERS].tolist()
        return [int(self._numbers[code]) if len(self._numbers) and code >= 0 else None for code in codes]


def _tars(files: _Files, labels: bool, notes: Path) -> tuple[tuple[Shard, ...], tuple[str, ...]]:
    known: dict[str, int] = {}  # what is said of classes, in the order in which it is met
    places = []
    for file in files.storage.files:
        key = hashlib.blake2b(f"{file.address}\0{file.size}\0{file.changed}".encode(), digest_size=12).hexdigest()
        place = notes / f"{key}.npy"
        values = notes / f"{key}.json"  # written last
        said = _noted(place, values)
        if said is None:
            members, said = _members(files, file)
            write_atomic(place, partial(np.save, arr=members))
            noted = json.dumps({"classes": said, "sha256": _sha256(place)}).encode()
            write_bytes(values, noted)
        for value in said:
            known.setdefault(value, len(known))
            check_class_count(len(known))
        places.append((file, place, said))
    numeric = bool(known) and all(value.isdecimal() for value in known)
    if not known or not labels:
        class_names: tuple[str, ...] = ()
    else:
        class_names = names_of_values(sorted(int(v) for v in known) if numeric else sorted(known))
    order = {name: k for k, name in enumerate(class_names)}
    shards = []
    for file, place, said in places:
        numbers = np.array([order[str(int(v)) if numeric else v] for v in said] if class_names else [], np.int32)
        shards.append(_TarShard(files, file, place, numbers))
    return tuple(shards), class_names


def _noted(place: Path, values: Path) -> list[str] | None:
    """The classes that a tar names, where it has been looked at, and what was noted of it is as it was written."""
    try:
        noted = read_json(values)
        return noted["classes"] if noted["sha256"] == _sha256(place) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _members(files: _Files, file: File) -> tuple[NDArray[Any], list[str]]:
    """Where the pictures of a tar lie, by one pass over its headers, and the classes that it names."""
    pictures: list[tuple[str, int, int]] = []
    told: dict[str, str] = {}
    try:
        opened = files.get(file, lambda opened: opened)
        opened.seek(0)
        with tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                key, dot, ending = member.name.rpartition("/")[2].partition(".")
                key = member.name[: len(member.name) - len(ending) - len(dot)]
                if not member.isfile() or member.issparse():
                    continue
                if claims_picture(member.name):
                    pictures.append((key, member.offset_data, member.size))
                elif f".{ending.lower()}" in _LABELS:
                    content = archive.extractfile(member)
                    assert content is not None
                    label = _told(content.read(1 << 20), ending.lower())
                    if label is not None:
                        told[key] = label
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{file.address} is no tar that can be read by place ({error}): unpack it if it is compressed, or make it "
            "again"
        ) from None
    if not pictures:
        raise DataError(f"{file.address} has no members that are pictures by name: such as 000001.jpg")
    codes = {value: k for k, value in enumerate(dict.fromkeys(told.values()))}
    rows = [(offset, size, codes[told[key]] if key in told else -1) for key, offset, size in pictures]
    return np.array(rows, _MEMBER), list(codes)


def _told(content: bytes, kind: str) -> str | None:
    """The class that a member says."""
    text = content.decode("utf-8", errors="replace").strip()
    if kind == "json":
        values: Any = None
        with suppress(ValueError, RecursionError):
            values = json.loads(text)
        found = next((values[key] for key in _KEYS if key in values), None) if isinstance(values, dict) else None
        return str(found) if isinstance(found, (int, str)) else None
    return text or None

"""Sharded sources, of which parts are read by position: Parquet, and tars in the form of WebDataset.

A shard consists of parts that are read at once: the row groups of a Parquet file, or about a thousand members of a tar.
The number of pictures of a part is known in advance, but nothing about each picture. Shards lie in a folder, or at an
address of object storage such as s3://bucket/photos, which pyarrow reads.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from calotype.core.untrusted import open_regular
from calotype.data.records import Skipped, Split, check_class_count
from calotype.data.sources.files import COMPRESSED_TARS, walk
from calotype.data.sources.layout import split_of_file
from calotype.data.sources.tables import INSTALL, Table, names_of_values, table_of
from calotype.data.sources.tars import index, label_tars
from calotype.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MEMBERS = 1_000  # pictures of a part of a tar
OPEN = 4  # files that stay open


class Encoded(NamedTuple):
    """An encoded picture of a shard."""

    data: bytes | None  # None: there is none in its place
    label: int | None


class Shard(Protocol):
    """A file of many pictures."""

    name: str
    counts: tuple[int, ...]  # pictures of each part

    def read(self, part: int) -> Sequence[Encoded]:
        """The pictures of a part. Raises DataError if the file has changed."""

    def labels(self, part: int) -> Sequence[int | None]:
        """The classes of the pictures of a part, without reading these. Raises DataError as `read`."""


class File(NamedTuple):
    """The path of a shard, and the facts that detect changes."""

    name: str  # relative, "/" between its parts
    address: str
    size: int
    changed: int

    @property
    def split(self) -> Split | None:
        """The split by the name of the shard or its folder."""
        return split_of_file(self.name)


class Storage(NamedTuple):
    """The storage of files: a folder or an address."""

    files: tuple[File, ...]
    open: Callable[[File], BinaryIO]
    look: Callable[[File], tuple[int, int]]  # size and time of change, now
    ignored: tuple[Skipped, ...] = ()  # what else is there


class Shards(NamedTuple):
    """A source in shards."""

    shards: tuple[Shard, ...]
    splits: tuple[Split | None, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    ignored: tuple[Skipped, ...] = ()  # what is left out of them, and files beside them
    other_files: int = 0


def storage(address: str) -> Storage:
    """The storage at a place. Raises DataError if it has no shards, or cannot be listed."""
    found = _remote(address) if "://" in address else _local(Path(address))
    files = tuple(file for file in found.files if file.name.lower().endswith((".parquet", ".tar")))
    compressed = next((file for file in found.files if file.name.lower().endswith(COMPRESSED_TARS)), None)
    if not files and compressed:
        raise DataError(
            f"{address} has compressed tars, such as {compressed.name}, which cannot be read by place: unpack them to "
            ".tar, or leave out --stream"
        )
    if not files:
        raise DataError(f"{address} has no shards: give a folder of .parquet files, or of .tar files as WebDataset's")
    chosen = set(files)
    others = [file.name for file in found.files if file not in chosen]
    ignored = (*found.ignored, *(Skipped(name, "no shard, but beside them: give it by itself") for name in others))
    return found._replace(files=files, ignored=ignored)


def fingerprint(found: Storage) -> str:
    """A hash of names, sizes and modification times."""
    lines = "\n".join(f"{file.name}\0{file.size}\0{file.changed}" for file in found.files)
    return hashlib.blake2b(lines.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _local(path: Path) -> Storage:
    ignored: tuple[Skipped, ...] = ()
    if path.is_file():
        status = path.stat()
        files = [File(path.name, str(path), status.st_size, status.st_mtime_ns)]
    else:
        found = walk(path)
        files = [File(file.name, str(file.path), file.size, file.mtime_ns) for file in found.files]
        ignored = (*found.ignored, *found.skipped)

    def look(file: File) -> tuple[int, int]:
        status = Path(file.address).stat()
        return status.st_size, status.st_mtime_ns

    return Storage(tuple(files), lambda file: open_regular(Path(file.address)), look, ignored)


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
    """Open all shards: their parts, and the classes of all pictures.

    Args:
        labels: whether classes are wanted.
        notes: the directory for cached indexes of tars.

    Raises:
        DataError: a shard is damaged, or the shards do not form one data set.
    """
    kinds = {file.name.lower().rpartition(".")[2] for file in found.files}
    if len(kinds) > 1:
        raise DataError(
            f"there are Parquet files and tars, such as {found.files[0].name} and {found.files[-1].name}: give a "
            "folder with one kind"
        )
    files = _Files(found)
    opened = _parquet(files, labels) if kinds == {"parquet"} else _tars(files, labels, notes)
    for splits in (tuple(file.split for file in found.files), opened.splits):
        if {"train", "held_out"} <= set(splits):
            return opened._replace(splits=splits, ignored=(*found.ignored, *opened.ignored))
    return opened._replace(splits=(None,) * len(opened.splits), ignored=(*found.ignored, *opened.ignored))


class _Files:
    """The files of a storage, of which the last few stay open; each is checked for changes when opened."""

    def __init__(self, found: Storage) -> None:
        self.storage = found
        self._open: dict[str, tuple[BinaryIO, Any]] = {}
        weakref.finalize(self, _close, self._open)

    def get(self, file: File, make: Callable[[BinaryIO], Any]) -> Any:
        """Apply a function to an open file. Raises DataError if it has changed or is missing."""
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
    """A Parquet file, whose parts are row groups."""

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


def _parquet(files: _Files, labels: bool) -> Shards:
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
    notes = table.notes(opened.schema_arrow.names) if labels else ()
    return Shards(shards, (None,) * len(shards), class_names, notes)


# -- tars


class _TarShard:
    """A tar, whose parts are runs of members. Their offsets are in an index file, read part by part."""

    def __init__(self, files: _Files, file: File, rows: Path, column: str, numbers: NDArray[np.int64]) -> None:
        self.name = file.name
        self._files, self._file, self._rows, self._column, self._numbers = files, file, rows, column, numbers
        total = len(np.load(rows, mmap_mode="r"))
        self.counts = tuple(min(MEMBERS, total - start) for start in range(0, total, MEMBERS))

    def read(self, part: int) -> Sequence[Encoded]:
        """As of Shard."""
        places = np.load(self._rows, mmap_mode="r")[part * MEMBERS : (part + 1) * MEMBERS]
        opened = self._files.get(self._file, lambda file: file)
        first = int(places["offset"][0])
        try:
            opened.seek(first)
            content = opened.read(int(places["offset"][-1] + places["size"][-1]) - first)
        except OSError as error:
            raise DataError(f"{self._file.address} cannot be read ({error}): restore it") from error
        rows = zip(places["offset"].tolist(), places["size"].tolist(), self._labels(places), strict=True)
        found = []
        for offset, size, label in rows:
            data = content[offset - first : offset - first + size]
            found.append(Encoded(data if len(data) == size and size else None, label))
        return found

    def labels(self, part: int) -> Sequence[int | None]:
        """As of Shard."""
        places = np.load(self._rows, mmap_mode="r")[part * MEMBERS : (part + 1) * MEMBERS]
        return self._labels(places)

    def _labels(self, places: NDArray[Any]) -> list[int | None]:
        codes = places[self._column].tolist() if self._column else [-1] * len(places)
        return [int(self._numbers[code]) if code >= 0 else None for code in codes]


def _tars(files: _Files, labels: bool, kept: Path) -> Shards:
    indices = []
    for file in files.storage.files:
        key = f"{file.address}\0{file.size}\0{file.changed}"
        indices.append(index(files.get(file, lambda opened: opened), file.address, key, kept))
    classes = label_tars(indices, [file.name for file in files.storage.files], labels)
    pairs = zip(files.storage.files, indices, classes.numbers, strict=True)
    return Shards(
        tuple(_TarShard(files, file, index.rows, classes.column, numbers) for file, index, numbers in pairs),
        classes.splits,
        classes.class_names,
        classes.notes,
        tuple(
            Skipped(f"{file.name}/{entry.name}", entry.reason)
            for file, index in zip(files.storage.files, indices, strict=True)
            for entry in index.ignored
        ),
        sum(index.other_files for index in indices),
    )

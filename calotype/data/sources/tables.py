"""Pictures in tables: Parquet in the form of Hugging Face, and data sets of the Hugging Face hub."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calotype.core.untrusted import NotPlain, brief, open_regular, parse_json
from calotype.data.records import (
    MAX_FILE_BYTES,
    BadPicture,
    Loaded,
    Record,
    Source,
    Split,
    check_class_count,
    check_class_number,
)
from calotype.data.sources.layout import split_named, split_of_file
from calotype.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 64  # rows read at a time: few enough to bound memory, many enough to hide the cost of a call
_BATCH_BYTES = 1 << 28  # of rows read at a time, where pictures are large
_LABEL_COLUMNS = ("label", "labels")
INSTALL = "pip install datasets (it brings pyarrow along)"


class Table(NamedTuple):
    """The columns of pictures and labels in a table."""

    image: str
    label: str | None
    class_names: tuple[str, ...]  # empty: the labels are numbers or texts without names, or there are none

    def notes(self, columns: list[str]) -> tuple[str, ...]:
        """Notes on columns that may be labels, if no label column is read."""
        others = [name for name in columns if name not in (self.image, self.label)]
        if self.label or not others:
            return ()
        return (
            f"No labels: the columns {', '.join(others)} are not read; name one {' or '.join(_LABEL_COLUMNS)} to have "
            "its values as classes.",
        )


def parquet(files: list[Path], labels: bool = True) -> Source:
    """The pictures of Parquet files with a column of struct(bytes, path), and their labels.

    Splits are derived from the names of files and of their folders, such as train-00000-of-00002.parquet. Without
    `labels` no label column is read.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise DataError(f"{files[0]} is a Parquet file, which needs pyarrow: {INSTALL}") from None
    try:
        tables = {file: table_of(pq.read_schema(file), file, labels) for file in files}
        if len(set(tables.values())) > 1:
            raise DataError(
                f"the Parquet files beside {files[0]} differ in columns or classes, so they are not one data set: "
                "give one file, or a folder with those of one data set"
            )
        table = tables[files[0]]
        class_names = table.class_names or names_of_values(
            [value for file in files for value in _column(pq, file, table.label)]
        )
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"a Parquet file in {files[0].parent} cannot be read ({error}): download it again") from None
    splits = _splits(files)

    def records() -> Iterator[Record]:
        for file in files:
            try:
                with pq.ParquetFile(file) as rows:
                    yield from _rows(
                        _batches(rows, table), table.image, table.label, class_names, file.name, splits[file]
                    )
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                raise DataError(f"{file} is damaged ({error}): download it again") from None

    return Source(records, class_names, notes=table.notes(pq.read_schema(files[0]).names) if labels else ())


def hub(name: str, labels: bool = True) -> Source:
    """The pictures of a data set on the Hugging Face hub, downloaded by `datasets` or taken from its cache.

    Args:
        name: "user/name", or the name alone of one of the first data sets there.
    """
    if os.path.lexists(name):  # `datasets` would read that
        raise DataError(
            f"{name} is a data set on the hub and an entry of the current folder: give the path "
            f"{os.path.abspath(name)}, or run the command in another folder"
        )
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"{name!r} is no file or folder here. If it is a data set on the Hugging Face hub: {INSTALL}"
        ) from None
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # offline is an OSError
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{name!r} is no file or folder here, and the Hugging Face hub does not give it ({reason}): check the "
            "name and the connection; offline, only data sets that were loaded before are there"
        ) from None
    parts = {split: _undecoded(part) for split, part in loaded.items()}
    tables = {_hub_table(part, name, labels) for part in parts.values()}
    if len(tables) > 1:
        raise DataError(f"the splits of {name} differ in columns or classes: {sorted(map(str, tables))}")
    table = tables.pop()
    class_names = table.class_names
    if table.label and not class_names:
        class_names = names_of_values([value for part in parts.values() for value in part[table.label]])
    splits: dict[str, Split | None] = {split: split_named(split) for split in parts}
    whole = "train" not in splits.values() or "held_out" not in splits.values()

    def records() -> Iterator[Record]:
        for split, part in parts.items():
            batches = part.iter(batch_size=_ROWS)
            own = None if whole else splits[split]
            yield from _rows(batches, table.image, table.label, class_names, split, own, by_path=True)

    columns = list(next(iter(parts.values())).features)
    return Source(records, class_names, notes=table.notes(columns) if labels else ())


def table_of(schema: pa.Schema, file: Path, labels: bool) -> Table:
    """The columns of a Parquet file, from Hugging Face's metadata if present, else from types and names."""
    import pyarrow as pa

    def is_image(field: pa.Field) -> bool:
        return pa.types.is_struct(field.type) and {"bytes", "path"} <= {child.name for child in field.type}

    image = next((field.name for field in schema if is_image(field)), None)
    if image is None:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}, and none is a struct of bytes and path: "
            "write it with Hugging Face datasets and an Image column"
        )
    metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}").decode())
    info = metadata.get("info") if isinstance(metadata, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    named = {name: tuple(f["names"]) for name, f in (features or {}).items() if _is_class_label(f)}
    label = _label_column(list(named), schema.names) if labels else None
    return Table(image, label, named.get(label or "", ()))


def _is_class_label(feature: Any) -> bool:
    if not (isinstance(feature, dict) and feature.get("_type") == "ClassLabel"):
        return False
    names = feature.get("names")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _label_column(classes: list[str], columns: list[str]) -> str | None:
    """The label column: one of the usual names, else the first with class names."""
    return next((name for name in _LABEL_COLUMNS if name in columns), classes[0] if classes else None)


def names_of_values(values: list[Any]) -> tuple[str, ...]:
    """Class names for labels that have none: of integers their digits, of texts the texts in order.

    Raises:
        DataError: the values are not classes.
    """
    present = [value for value in values if value is not None]
    if all(isinstance(value, int) for value in present) and present:
        check_class_number(max(present))
        return tuple(str(i) for i in range(max(present) + 1))
    if all(isinstance(value, str) for value in present):
        check_class_count(len(set(present)))
        return tuple(sorted(set(present)))
    raise DataError(
        f"the column of labels holds {type(present[0]).__name__} values, but a class is one integer or text per "
        "picture: pass over it with --no-labels"
    )


def _column(pq: Any, file: Path, column: str | None) -> list[Any]:
    return pq.read_table(file, columns=[column]).column(column).to_pylist() if column else []


def _batches(rows: Any, table: Table) -> Iterator[dict[str, list[Any]]]:
    columns = [table.image] + ([table.label] if table.label else [])
    for batch in rows.iter_batches(batch_size=_rows_at_once(rows, table.image), columns=columns):
        yield batch.to_pydict()


def _rows_at_once(rows: Any, image: str) -> int:
    """The number of rows to read at once, within a memory limit: fewer if the file has large pictures."""
    most, metadata = 1, rows.metadata
    for group in range(metadata.num_row_groups):
        part = metadata.row_group(group)
        chunks = [part.column(i) for i in range(part.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == image)
        if size > MAX_FILE_BYTES * max(1, part.num_rows):
            raise ValueError(f"it claims {size:,} bytes for {part.num_rows:,} pictures")
        most = max(most, size // max(1, part.num_rows))
    return max(1, min(_ROWS, _BATCH_BYTES // most))


def _rows(
    batches: Iterator[dict[str, list[Any]]],
    image: str,
    label: str | None,
    class_names: tuple[str, ...],
    origin: str,
    split: Split | None,
    by_path: bool = False,
) -> Iterator[Record]:
    """Records of rows; `by_path`: of a data set on the hub, whose pictures may be files that `datasets` keeps."""
    numbers = {name: i for i, name in enumerate(class_names)}
    row = 0
    for batch in batches:
        labels = batch[label] if label and class_names else [None] * len(batch[image])
        for cell, value in zip(batch[image], labels, strict=True):
            number = numbers.get(value) if isinstance(value, str) else value
            if number is not None and not isinstance(number, int):
                raise DataError(f"{origin}[{row}] has the label {brief(number)}, but a class is one integer or text")
            held = len(cell["bytes"] or b"") if cell else 0
            yield Record(f"{origin}[{row}]", partial(_cell, cell, number, by_path), split, held=held)
            row += 1


def _cell(cell: dict[str, Any] | None, label: int | None, by_path: bool) -> Loaded:
    if cell and cell["bytes"]:
        return Loaded(io.BytesIO(cell["bytes"]), label)
    if by_path and cell and cell["path"] and _is_kept(Path(cell["path"])):
        try:
            return Loaded(open_regular(Path(cell["path"])), label)
        except NotPlain as error:
            raise BadPicture(f"no file: {error}") from None
    raise BadPicture("no picture in this row" + (f": only the path {cell['path']!r}" if cell and cell["path"] else ""))


def _is_kept(path: Path) -> bool:
    """Whether a file belongs to the cache of `datasets`: a table may name any file."""
    from datasets import config

    kept = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    return path.is_absolute() and any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in kept)


def _splits(files: list[Path]) -> dict[Path, Split | None]:
    found = {file: split_of_file(file.as_posix()) for file in files}
    if {"train", "held_out"} <= set(found.values()):
        return found
    return dict.fromkeys(files)


def _undecoded(part: Any) -> Any:
    """A part of a loaded data set, with pictures as bytes or paths instead of decoded ones."""
    import datasets

    for name, feature in part.features.items():
        if isinstance(feature, datasets.Image):
            part = part.cast_column(name, datasets.Image(decode=False))
    return part


def _hub_table(part: Any, name: str, labels: bool) -> Table:
    import datasets

    image = next((n for n, feature in part.features.items() if isinstance(feature, datasets.Image)), None)
    if image is None:
        raise DataError(f"{name} has the columns {', '.join(part.features)}, and none holds pictures")
    named = {n: tuple(f.names) for n, f in part.features.items() if isinstance(f, datasets.ClassLabel)}
    label = _label_column(list(named), list(part.features)) if labels else None
    return Table(image, label, named.get(label or "", ()))

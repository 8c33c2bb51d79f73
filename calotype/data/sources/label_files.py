"""Label files: tables of the classes of pictures by file name, such as metadata.csv and metadata.jsonl in the form of
Hugging Face's ImageFolder, and dataset.json in the form of StyleGAN.

They lie beside the pictures, or above them. A name is relative to the folder of the table; if no picture is there, the
whole source is searched for one of that name, with or without its suffix.
"""

from __future__ import annotations

import csv
import io
import os.path
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from calotype.core.display import counted
from calotype.core.untrusted import brief, parse_json
from calotype.data.sources.names import normal
from calotype.data.sources.samples import Numbered, number
from calotype.errors import ConfigError, DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
MOST_BYTES = 1 << 26  # of a table: some 500,000 rows
_NAMES = (
    "file_name filename file image image_name image_id image_path img path filepath file_path fname name id".split()
)
_CLASSES = "label labels class class_name category target cls y species type".split()  # likely columns, to be offered
_SHOWN_COLUMNS, _SHOWN_VALUES = 8, 4
_HEADER = "it begins with a picture, so give it a first line with the names of its columns, such as file_name,label"
_FRACTION = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WHOLE_FRACTION = re.compile(r"([+-]?\d+)(\.0*)?")


class LabelsFrom(NamedTuple):
    """The value of --labels-from."""

    file: str  # a name in the source, "/" between its parts; without one, all files of that name
    column: str  # "": there is one column beside that of names

    @classmethod
    def parse(cls, text: str) -> LabelsFrom:
        """Read FILE or FILE:COLUMN. Raises ConfigError."""
        file, colon, column = text, "", ""
        if not text.lower().endswith(SUFFIXES):
            file, colon, column = text.rpartition(":")
        if not file.lower().endswith(SUFFIXES) or (colon and not column):
            raise ConfigError(
                f"labels_from is {text!r}, but it is FILE:COLUMN with a file in the source that ends in "
                f"{', '.join(SUFFIXES)}: write for example metadata.csv:label, or dataset.json"
            )
        return cls(normal(file), column)

    def means(self, name: str) -> bool:
        """Whether the option names a file of the source."""
        return name == self.file or ("/" not in self.file and name.rpartition("/")[2] == self.file)


class Table(NamedTuple):
    """The rows of a table; `line` is the first line of each, or its index in a list."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, Any]]]


class PictureNames:
    """An index of the pictures of a source by the names in tables."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._exact = {name: name for name in names}
        self._loose: dict[str, str | None] = {}  # None: several
        for name in names:
            base = name.rpartition("/")[2]
            for key in {os.path.splitext(name)[0], base, os.path.splitext(base)[0]} - {name}:
                self._loose[key] = name if self._loose.get(key, name) == name else None

    def find(self, value: object, folder: str) -> str | None:
        """The picture that a table in a folder names; None if there is none, or more than one."""
        if not isinstance(value, (str, int)):
            return None
        text = str(value)
        name = normal(text, "\\" in text and "/" not in text)
        beside = f"{folder}/{name}" if folder else name
        for key in (beside, name):
            if key in self._exact:
                return key
        for key in (beside, name, name.rpartition("/")[2]):
            if (found := self._loose.get(key)) is not None:
                return found
        return None


class Labels(NamedTuple):
    """The classes in a table."""

    classes: Numbered
    values: dict[str, str]  # by the names of pictures; those that it does not name are not there
    notes: tuple[str, ...]


def parse_table(name: str, content: bytes) -> Table | None:
    """Read a table; None for JSON that is not a table. Raises DataError if it is damaged."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start:,}): save it as UTF-8") from None
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".json":
        return _json_table(name, text)
    return _json_lines(name, text) if suffix == ".jsonl" else _csv_table(name, text, suffix)


def _csv_table(name: str, text: str, suffix: str) -> Table:
    first = text.partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[tuple[int, dict[str, Any]]] = []
    header: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if not header:
                header = [value.strip() for value in values]
                if repeated := [value for value in header if header.count(value) > 1]:
                    raise DataError(f"{name} has two columns named {repeated[0]!r}: rename one")
                continue
            if len(values) > len(header):
                raise DataError(
                    f"{name}, line {reader.line_num}, has {len(values)} values, but there are {len(header)} columns: "
                    "put values with a comma into quotes"
                )
            rows.append((reader.line_num, dict(zip(header, values, strict=False))))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}, cannot be read ({error}): mend it") from None
    return Table(name, tuple(header), rows)


def _json_lines(name: str, text: str) -> Table:
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, part in enumerate(text.split("\n"), 1):
        if not part.strip():
            continue
        try:
            values = parse_json(part)
        except ValueError as error:
            raise DataError(f"{name}, line {line}, is no JSON ({error}): mend it") from None
        if not isinstance(values, dict):
            raise DataError(f"{name}, line {line}, is {brief(values)}, but each line is an object: mend it")
        rows.append((line, values))
    return Table(name, _columns(rows), rows)


def _json_table(name: str, text: str) -> Table | None:
    """StyleGAN's {"labels": [[name, class], ...]}, an object of classes by name, or a list of objects."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name} is no JSON ({error}): mend it") from None
    if isinstance(values, dict) and "labels" in values:
        values = [] if values["labels"] is None else values["labels"]
    if isinstance(values, dict):
        values = [[key, value] for key, value in values.items() if not isinstance(value, dict)]
    if not isinstance(values, list):
        return None
    if values and all(isinstance(value, dict) for value in values):
        rows = list(enumerate(values, 1))
        return Table(name, _columns(rows), rows)
    if not all(isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) for value in values):
        return None
    return Table(
        name, ("file_name", "label"), [(k, {"file_name": v[0], "label": v[1]}) for k, v in enumerate(values, 1)]
    )


def _columns(rows: list[tuple[int, dict[str, Any]]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for _, row in rows for column in row))


class _Joined(NamedTuple):
    """The rows of a table, joined with their pictures."""

    table: Table
    name_column: str
    rows: list[tuple[int, str, dict[str, Any]]]  # line, picture, values
    unknown: list[Any]  # names of no picture

    def values(self, column: str) -> list[Any]:
        """The values of a column by picture, without empty ones."""
        return [row.get(column) for _, _, row in self.rows if row.get(column) not in (None, "")]


def _join(table: Table, pictures: PictureNames) -> _Joined | None:
    """Join by the column that names the most pictures; None if no column names any."""
    folder = table.name.rpartition("/")[0]
    if _lacks_header(table, pictures):
        return None
    low = {column.lower(): column for column in table.columns}
    likely = [low[name] for name in _NAMES if name in low]
    best: _Joined | None = None
    for column in dict.fromkeys([*likely, *table.columns]):
        found = [(line, pictures.find(row.get(column), folder), row) for line, row in table.rows]
        rows = [(line, name, row) for line, name, row in found if name is not None]
        if rows and (best is None or len(rows) > len(best.rows)):
            best = _Joined(table, column, rows, [row.get(column) for _, name, row in found if name is None])
        if best and column in likely:
            break
    return best


def _lacks_header(table: Table, pictures: PictureNames) -> bool:
    """Whether a table has no header: its first line names a picture."""
    folder = table.name.rpartition("/")[0]
    return any("." in column and pictures.find(column, folder) for column in table.columns)


def offer(table: Table, pictures: PictureNames) -> str:
    """A note on an unused table, with its columns and the option to read it; "" if it names no pictures."""
    if _lacks_header(table, pictures):
        return f"{table.name} is not read: {_HEADER}"
    joined = _join(table, pictures)
    if joined is None:
        return ""
    columns = [column for column in table.columns if column != joined.name_column]
    usable = [column for column in columns if _problem(joined, column, len(pictures.names)) == ""]
    named = len({name for _, name, _ in joined.rows})
    about = f"{table.name} has rows for {named:,} of {len(pictures.names):,} pictures"
    if columns:
        shown = ", ".join(_described(joined, column) for column in columns[:_SHOWN_COLUMNS])
        about += f", with {shown}" + (f" and {len(columns) - _SHOWN_COLUMNS} more" if columns[_SHOWN_COLUMNS:] else "")
    if not usable:
        return f"{about}. It is not read, and no column of it can be classes."
    low = {column.lower(): column for column in usable}
    column = next((low[name] for name in _CLASSES if name in low), usable[0])
    return f"{about}. It is not read: --labels-from {table.name}:{column} makes that column the classes."


def _described(joined: _Joined, column: str) -> str:
    values = list(dict.fromkeys(_text(value) for value in joined.values(column)))
    shown = ", ".join(value if len(value) <= 20 else f"{value[:17]}..." for value in values[:_SHOWN_VALUES])
    return f"{column} ({len(values):,} values: {shown}{', ...' if len(values) > _SHOWN_VALUES else ''})"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _problem(joined: _Joined, column: str, total: int) -> str:
    """The reason why a column cannot be classes; "" if it can."""
    values = joined.values(column)
    odd = next((value for value in values if isinstance(value, (list, dict))), None)
    if odd is not None:
        return f"has {brief(odd)}, but a class is one integer or text for each picture"
    texts = {_text(value) for value in values}
    if not texts:
        return "has no values"
    if all(_FRACTION.fullmatch(text) or _WHOLE_FRACTION.fullmatch(text) for text in texts):
        fraction = next((text for text in sorted(texts) if not _WHOLE_FRACTION.fullmatch(text)), None)
        if fraction is not None:
            return f"has numbers such as {fraction}, but a class is an integer or a text"
        negative = next((text for text in sorted(texts) if text.startswith("-")), None)
        if negative is not None:
            return f"has {negative}, but classes are numbered from 0"
    if len(texts) > max(1, total // 2):
        return f"has {len(texts):,} different values for {total:,} pictures, which are no classes"
    return ""


def read_labels(tables: Sequence[Table], wanted: LabelsFrom, pictures: PictureNames) -> Labels:
    """The classes in a column of tables.

    Raises:
        DataError: the column is missing or not classes, no row names a picture, or two rows disagree.
    """
    values: dict[str, str] = {}
    lines: dict[str, str] = {}
    notes: list[str] = []
    for table in tables:
        joined = _join(table, pictures)
        if joined is None:
            raise _no_pictures(table, pictures)
        column = _column(joined, wanted.column)
        if problem := _problem(joined, column, len(pictures.names)):
            others = ", ".join(name for name in table.columns if name not in (column, joined.name_column))
            raise DataError(
                f"the column {column} of {table.name} {problem}: choose another" + (f", of {others}" if others else "")
            )
        for line, name, row in joined.rows:
            if row.get(column) in (None, ""):
                continue
            value, place = _text(row[column]), f"{table.name}, row {line}"
            if values.setdefault(name, value) != value:
                raise DataError(
                    f"{place}, says that {name} is {value}, and {lines[name]}, that it is {values[name]}: remove one"
                )
            lines.setdefault(name, place)
        if joined.unknown:
            notes.append(
                f"{counted(len(joined.unknown), 'row', 'rows')} of {table.name} without a picture that is used: "
                f"such as {brief(joined.unknown[0])}."
            )
    if all(_WHOLE_FRACTION.fullmatch(value) for value in values.values()):  # 3.0, where a column has empty cells
        values = {name: value.partition(".")[0] for name, value in values.items()}
    return Labels(number(values.values()), values, tuple(notes))


def _no_pictures(table: Table, pictures: PictureNames) -> DataError:
    if not table.rows:
        return DataError(f"{table.name} has no rows: each is to have the name of a picture and its class")
    if _lacks_header(table, pictures):
        return DataError(f"{table.name} cannot be read: {_HEADER}")
    example = {column: table.rows[0][1].get(column) for column in table.columns[:3]}
    return DataError(
        f"no column of {table.name} names pictures: its first row is {brief(example)}, and pictures are named as "
        f"{pictures.names[0] if pictures.names else 'nothing'}: names are relative to the file's folder"
    )


def _column(joined: _Joined, wanted: str) -> str:
    """The requested column, or the only one. Raises DataError."""
    table = joined.table
    columns = [column for column in table.columns if column != joined.name_column]
    if wanted in columns:
        return wanted
    if not wanted and len(columns) == 1:
        return columns[0]
    if not columns:
        raise DataError(f"{table.name} has names of pictures alone, in {joined.name_column}: add a column of classes")
    listed = ", ".join(columns)
    if not wanted:
        raise DataError(
            f"{table.name} has the columns {listed}: say which one, such as --labels-from {table.name}:{columns[0]}"
        )
    close = get_close_matches(wanted, columns, n=1)
    hint = f"did you mean {close[0]}?" if close else "choose one of them"
    raise DataError(f"{table.name} has no column {wanted!r} with facts of pictures, but {listed}: {hint}")

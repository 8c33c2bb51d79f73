"""Tars as shards with random access: an index of each tar, made by one pass over it and cached.

The index is an array with the position of each picture and numbers for its metadata, and a table of the values of those
numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.core.files import make_folder, write_atomic, write_bytes
from calotype.core.untrusted import open_regular, read_json
from calotype.data.records import Skipped, Split, check_class_count
from calotype.data.sources.bombs import TAR_ERRORS, members
from calotype.data.sources.exclusions import why_other
from calotype.data.sources.files import read_member
from calotype.data.sources.layout import Place, arrange, note_on_tars
from calotype.data.sources.listing import Contents, Listing
from calotype.data.sources.samples import KINDS, Kind, choose, number
from calotype.errors import DataError

VERSION = 2  # of what is kept of a tar
_MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("cls", "<i4"), ("json", "<i4"), ("folder", "<i4")])
_MOST_FOLDERS = 20_000  # of one tar: more are no classes, and are not remembered
_MOST_NOTES = 5  # of all shards


class Index(NamedTuple):
    """The index of a tar."""

    rows: Path  # an array of _MEMBER, pictures in the order of their places
    cls: tuple[str, ...]  # the values that the column has, by number
    json: tuple[str, ...]
    folders: tuple[str, ...]
    ignored: tuple[Skipped, ...]  # one entry for each reason
    other_files: int
    notes: tuple[str, ...]


class Classes(NamedTuple):
    """The labels of the pictures of several tars."""

    class_names: tuple[str, ...]
    column: str  # of the rows; "": nothing
    numbers: tuple[NDArray[np.int64], ...]  # for each tar, the class of each value of the column
    splits: tuple[Split | None, ...]  # for each tar, as its folders say
    notes: tuple[str, ...]


def index(opened: BinaryIO, address: str, key: str, kept: Path) -> Index:
    """Index a tar, or load its cached index.

    Args:
        opened: the tar, with random access.
        address: for messages.
        key: identifies the file and its version.
        kept: the directory of cached indexes.

    Raises:
        DataError: it has no random access, as a compressed tar, or no pictures.
    """
    digest = hashlib.blake2b(f"{VERSION}\0{key}".encode(errors="surrogateescape"), digest_size=12).hexdigest()
    rows, about = kept / f"{digest}.npy", kept / f"{digest}.json"  # the second is written last
    facts = _known(rows, about)
    if facts is None:
        make_folder(kept)
        found, facts = _facts(_contents(opened, address), address)
        write_atomic(rows, partial(np.save, arr=found))
        write_bytes(about, json.dumps({**facts, "sha256": _sha256(rows)}).encode())
    return Index(
        rows,
        tuple(facts["cls"]),
        tuple(facts["json"]),
        tuple(facts["folders"]),
        tuple(Skipped(*entry) for entry in facts["ignored"]),
        facts["other_files"],
        tuple(facts["notes"]),
    )


def _known(rows: Path, about: Path) -> dict[str, Any] | None:
    """The cached index of a tar; None if it is missing or damaged."""
    try:
        facts = read_json(about)
        return facts if facts["sha256"] == _sha256(rows) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contents(opened: BinaryIO, address: str) -> Contents:
    listing = Listing(labels=True)
    try:
        opened.seek(0)
        with tarfile.open(fileobj=opened, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for member in members(archive, Path(address)):
                if member.isfile() and not member.issparse():
                    place = (member.offset_data, member.size)
                    listing.add(place, member.name, member.size, partial(read_member, archive, member))
    except TAR_ERRORS as error:
        raise DataError(
            f"{address} is no tar that can be read by place ({error}): unpack it if it is compressed, or make it again"
        ) from None
    return listing.finish()


def _facts(contents: Contents, address: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """The rows of pictures, and the values of their numbers."""
    if not contents.pictures:
        others = f", but {len(contents.others):,} other files such as {contents.others[0]}" if contents.others else ""
        raise DataError(f"{address} has no members that are pictures{others}: give shards that have some")
    values: dict[str, dict[str, int]] = {name: {} for name in (*KINDS, "folders")}

    def code(name: str, value: str | None) -> int:
        return -1 if value is None else values[name].setdefault(value, len(values[name]))

    rows = []
    for picture in contents.pictures:
        kinds = [code(kind, contents.labels[kind].get(picture.name)) for kind in KINDS]
        rows.append((*picture.key, *kinds, code("folders", os.path.dirname(picture.name))))
    found = np.array(rows, _MEMBER)
    if len(values["folders"]) > _MOST_FOLDERS:
        values["folders"], found["folder"] = {"": 0}, 0
    unused = [name for name in contents.others if name not in contents.used]
    reasons = Counter(str(why_other(name)) for name in unused)
    ignored = [list(entry) for entry in contents.ignored]
    for reason, count in reasons.items():
        example = next(name for name in unused if str(why_other(name)) == reason)
        ignored.append([example + (f" and {count - 1:,} more" if count > 1 else ""), reason])
    facts = {name: list(known) for name, known in values.items()}
    return found, {**facts, "ignored": ignored, "other_files": len(contents.others), "notes": contents.notes}


def label_tars(indices: Sequence[Index], names: Sequence[str], labels: bool) -> Classes:
    """Determine the classes of pictures in tars, as arrange_contents does for packed sources.

    Raises:
        DataError: there are too many classes, or a tar has pictures of both sides of a split.
    """
    rows = [np.load(index.rows, mmap_mode="r") for index in indices]
    layout = arrange({f"{folder}/x".lstrip("/"): None for index in indices for folder in index.folders})
    splits = tuple(_split(index, layout.places, name) for index, name in zip(indices, names, strict=True))
    notes = _notes(indices, names)
    nothing = tuple(np.empty(0, np.int64) for _ in indices)
    if not labels:
        return Classes((), "", nothing, splits, notes)
    total = sum(len(row) for row in rows)
    counts: dict[Kind, int] = {kind: sum(int((row[kind] >= 0).sum()) for row in rows) for kind in KINDS}
    kind, said = choose(counts, total)
    if kind is not None:
        known = {value for index in indices for value in getattr(index, kind)}
        check_class_count(len(known))
        classes = number(known)
        numbers = tuple(np.array([classes.numbers[v] for v in getattr(index, kind)], np.int64) for index in indices)
        folders = layout.class_names
        more = (f"The folders of the shards are no classes: the classes are those of the .{kind} files.",)
        return Classes(classes.class_names, kind, numbers, splits, (*(more if folders else ()), *said, *notes))
    if not layout.class_names:
        said = (*said, *note_on_tars(names, ()))
        several = len({folder for index in indices for folder in index.folders}) > 1
        unsaid = ("No labels: the pictures are in folders, but not each in one of several and none deeper.",)
        return Classes((), "", nothing, splits, (*(unsaid if several else ()), *said, *notes))
    check_class_count(len(layout.class_names))
    places = layout.places
    numbers = tuple(
        np.array([places[f"{folder}/x".lstrip("/")].label for folder in index.folders], np.int64) for index in indices
    )
    return Classes(layout.class_names, "folder", numbers, splits, (*layout.notes, *said, *notes))


def _split(index: Index, places: Mapping[str, Place], name: str) -> Split | None:
    """The split by the folders in a tar. Raises DataError if there are several."""
    keys = [f"{folder}/x".lstrip("/") for folder in index.folders]
    found = {places[key].split for key in keys if key in places}
    if len(found) != 1 or not all(key in places for key in keys):
        raise DataError(
            f"{name} has pictures of different splits, going by its folders, and streaming keeps shards apart only: "
            "leave out --stream, or make a shard for each split"
        )
    return found.pop()


def _notes(indices: Sequence[Index], names: Sequence[str]) -> tuple[str, ...]:
    found = [f"In {name}: {note}" for index, name in zip(indices, names, strict=True) for note in index.notes]
    if len(found) <= _MOST_NOTES:
        return tuple(found)
    return (*found[:_MOST_NOTES], f"There are {len(found) - _MOST_NOTES:,} more notes of this kind on other shards.")

"""The layout of a source by file names: which files are pictures, their classes, and their splits."""

from __future__ import annotations

import os.path
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from calotype.data.decoding.formats import HEAD_BYTES, TIFF_STARTS
from calotype.data.records import Split
from calotype.data.sources.exclusions import SUFFIXES

PICTURE_SUFFIXES = frozenset(
    (
        ".apng .avif .bmp .dds .dib .gif .icns .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm "
        ".psd .qoi .sgi .tga .tif .tiff .webp"
    ).split()
)
"""A file so named claims to be a picture: where it is none, that is worth telling."""

_PICTURE_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    *TIFF_STARTS,
    b"BM",
    b"qoif",
    b"8BPS",
    b"\0\0\0\x0cjP  ",
    b"DDS ",
)
SNIFF_BYTES = HEAD_BYTES
"""How much of a file is looked at where its name does not say what it is."""

_TRAIN = frozenset({"train", "training"})
_HELD_OUT = frozenset(
    {
        "test",
        "testing",
        "val",
        "valid",
        "validation",
        "dev",
        "eval",
        "evaluation",
        "heldout",
        "held-out",
        "held_out",
        "holdout",
    }
)


_SHOWN = 6  # names in a note


class Place(NamedTuple):
    """The class and split of a picture."""

    split: Split | None
    label: int | None


class Layout(NamedTuple):
    """The classes and splits derived from a set of names."""

    places: dict[str, Place]
    class_names: tuple[str, ...]  # empty: no labels
    outside: tuple[str, ...]  # names beside the folders of the splits: in neither
    notes: tuple[str, ...]


def claims_picture(name: str) -> bool | None:
    """Whether a file is a picture by its name; None: its first bytes have to decide."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return True
    return False if suffix in SUFFIXES else None


def starts_like_picture(head: bytes) -> bool:
    """Whether the first bytes of a file, 16 or more, are those of a common picture format."""
    return head.startswith(_PICTURE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp"


def split_named(name: str) -> Split | None:
    """The split that a folder or file stem is named after, such as "train" or "Validation"."""
    if name.lower() in _TRAIN:
        return "train"
    return "held_out" if name.lower() in _HELD_OUT else None


def split_of_file(name: str) -> Split | None:
    """The split that a file with many pictures is named after, such as train-00000-of-00002.parquet, or its folder."""
    path = PurePosixPath(name)
    return split_named(re.split(r"[-_.]", path.stem)[0]) or split_named(path.parent.name)


def arrange(names: Iterable[str]) -> Layout:
    """Read classes and splits off relative names of pictures, "/" between their parts.

    Folders around everything are ignored. Then, if a folder named for training and one named for testing or
    validation lie side by side, they are the splits; likewise if, some folders deeper, each picture lies in a folder
    of such a name. Then, if every picture lies in a folder and none deeper, and there are at least two folders, each
    folder is a class. Folder names that differ in Unicode normalisation alone are the same.
    """
    names = list(names)
    depth = _common(names)
    parts = {name: _below(name, depth) for name in names}
    splits = {part[0]: split_named(part[0]) for part in parts.values() if len(part) > 1}
    outside: tuple[str, ...] = ()
    chosen: dict[str, Split | None] = dict.fromkeys(names)
    notes: list[str] = []
    if {"train", "held_out"} <= set(splits.values()):
        outside = tuple(name for name, part in parts.items() if len(part) == 1 or splits[part[0]] is None)
        left_out = set(outside)
        chosen = {name: splits[part[0]] for name, part in parts.items() if name not in left_out}
        parts = {name: parts[name][1:] for name in chosen}
    elif (at := _deeper_splits(parts)) is not None:
        chosen = {name: split_named(part[at]) for name, part in parts.items()}
        parts = {name: (*part[:at], *part[at + 1 :]) for name, part in parts.items()}
    class_names, more = _classes(parts)
    notes += more
    labels = {name: label for label, name in enumerate(class_names)}
    places = {name: Place(split, labels[parts[name][0]] if labels else None) for name, split in chosen.items()}
    return Layout(places, class_names, outside, (*notes, *_spellings(names, class_names)))


def note_on_tars(names: Sequence[str], class_names: tuple[str, ...]) -> tuple[str, ...]:
    """A note if the tars of a data set without classes have names like classes instead of numbers."""
    stems = [PurePosixPath(name).name.partition(".")[0] for name in names]
    if class_names or len(stems) < 2 or any(split_named(re.split(r"[-_]", stem)[0]) for stem in stems):
        return ()
    if any(re.fullmatch(r"\d+|.*[-_ ]\d+|(part|shard|data)\d+", stem, re.IGNORECASE) for stem in stems):
        return ()
    return (
        f"No labels: names of tars, such as {_some(stems)}, are no classes; unpack each into a folder of its name.",
    )


def without_classes(layout: Layout, classes: str) -> tuple[str, ...]:
    """The notes on a layout whose classes are not those of its folders."""
    if not layout.class_names:
        return ()
    return (f"{_some(layout.class_names)} are folders, and no classes: the classes are {classes}.",)


def _common(names: list[str]) -> int:
    """The number of folders that enclose all names."""
    folders = [os.path.dirname(name) for name in names]
    if not folders or "" in folders:
        return 0
    common = os.path.commonpath(folders)
    return len(PurePosixPath(common).parts)


def _below(name: str, depth: int) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part) for part in name.split("/")[depth:])


def _deeper_splits(parts: dict[str, tuple[str, ...]]) -> int | None:
    """The depth, below the first, at which each picture lies in a folder with the name of one of two splits."""
    for depth in range(1, min(map(len, parts.values()), default=0) - 1):
        splits = {split_named(name) for name in {part[depth] for part in parts.values()}}
        if splits == {"train", "held_out"}:
            return depth
    return None


def _classes(parts: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names, and notes on folders that look like classes but are not."""
    folders = {part[0] for part in parts.values() if len(part) == 2}
    depths = Counter(len(part) - 1 for part in parts.values())
    if set(depths) <= {0}:
        return (), ()  # flat
    if set(depths) == {1} and len(folders) >= 2:
        return tuple(sorted(folders)), ()
    if set(depths) == {1}:
        return (), ()  # in one folder, of which there is one within each split
    found = ", ".join(
        f"{count:,} {_depth(depth)} such as {next('/'.join(p) for p in parts.values() if len(p) == depth + 1)}"
        for depth, count in sorted(depths.items())
    )
    if len(folders) >= 2:
        elsewhere = next(name for name, part in parts.items() if len(part) != 2)
        about = (
            f"{len(folders)} folders look like classes, but {len(parts) - depths[1]:,} pictures lie above or below "
            f"them, such as {elsewhere!r}"
        )
    else:
        about = "folders are classes only where each picture lies in one of them, and none deeper"
    return (), (f"No labels: {about}. There are {found}. {_REMEDY}",)


_REMEDY = "To have classes, give each a folder with its pictures directly in it, or a table: see --labels-from."


def _depth(depth: int) -> str:
    return ("in no folder", "in one folder")[depth] if depth < 2 else f"in folders {depth} deep"


def _spellings(names: list[str], class_names: tuple[str, ...]) -> Iterator[str]:
    """Notes on misleading names of folders."""
    if not class_names:
        return
    raw = {part for name in names for part in name.split("/")[:-1]}
    composed: dict[str, set[str]] = {}
    for part in raw:
        composed.setdefault(unicodedata.normalize("NFC", part), set()).add(part)
    for name, spellings in sorted(composed.items()):
        if len(spellings) > 1 and name in class_names:
            yield f"The class {name} is of {len(spellings)} folders, whose names Unicode spells in different ways."
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(name.casefold().strip(), []).append(name)
    for several in alike.values():
        if len(several) > 1:
            yield f"The classes {_some(several)} differ in case or spaces only: rename folders that are one class."
    if named := [name for name in class_names if split_named(name)]:
        yield (
            f"{_some(named)} {'are' if len(named) > 1 else 'is'} taken as a class, as the folders beside: for splits "
            "there must be one named train and one named test or validation."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")

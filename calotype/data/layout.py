"""What the names of files say about pictures: which are pictures, their classes, and their splits."""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from calotype.data.records import Split

PICTURE_SUFFIXES = frozenset(
    (
        ".apng .avif .bmp .dds .dib .gif .icns .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .png .pnm .ppm "
        ".psd .qoi .sgi .tga .tif .tiff .webp"
    ).split()
)
"""A file so named claims to be a picture: where it is none, that is worth telling."""

# Files so named are never opened to see whether they are pictures: they often lie beside each one.
_OTHER_SUFFIXES = frozenset(
    (
        ".csv .doc .docx .gz .htm .html .ini .ipynb .json .jsonl .log .md .mov .mp4 .npy .npz .parquet .pdf .pkl .pt "
        ".pth .py .rst .safetensors .tar .tex .toml .tsv .txt .xml .yaml .yml .zip"
    ).split()
)

_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})  # what operating systems leave behind

_PICTURE_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"qoif",
    b"8BPS",
    b"\0\0\0\x0cjP  ",
    b"DDS ",
)
SNIFF_BYTES = 16
"""How much of a file `starts_like_picture` wants to see."""

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


class Place(NamedTuple):
    """Where a picture belongs."""

    split: Split | None
    label: int | None


class Layout(NamedTuple):
    """The classes and splits that a set of names tells."""

    places: dict[str, Place]
    class_names: tuple[str, ...]  # empty: no labels
    outside: tuple[str, ...]  # names beside the folders of the splits: in neither
    notes: tuple[str, ...]


def is_clutter(name: str) -> bool:
    """Whether a file or folder name is hidden, or is left behind by an operating system."""
    return name.startswith(".") or name.lower() in _CLUTTER


def claims_picture(name: str) -> bool | None:
    """Whether a file is a picture going by its name; None: its first bytes must tell."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return True
    return False if suffix in _OTHER_SUFFIXES else None


def starts_like_picture(head: bytes) -> bool:
    """Whether the first SNIFF_BYTES bytes of a file are those of a common picture format."""
    return head.startswith(_PICTURE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp"


def split_named(name: str) -> Split | None:
    """The split that a folder or file stem is named after, such as "train" or "Validation"."""
    if name.lower() in _TRAIN:
        return "train"
    return "held_out" if name.lower() in _HELD_OUT else None


def arrange(names: Iterable[str]) -> Layout:
    """Read classes and splits off relative names of pictures, "/" between their parts.

    Folders around everything are ignored. Then, where a folder named for training and one named for testing or
    validation lie side by side, they are the splits. Then, where every picture lies in a folder and none deeper, and
    there are at least two folders, each folder is a class.
    """
    names = list(names)
    depth = _common(names)
    parts = {name: _below(name, depth) for name in names}
    splits = {part[0]: split_named(part[0]) for part in parts.values() if len(part) > 1}
    if {"train", "held_out"} <= set(splits.values()):
        outside = tuple(name for name, part in parts.items() if len(part) == 1 or splits[part[0]] is None)
        left_out = set(outside)
        chosen = {name: splits[part[0]] for name, part in parts.items() if name not in left_out}
        parts = {name: parts[name][1:] for name in chosen}
    else:
        outside, chosen = (), dict.fromkeys(names)
    class_names, notes = _classes(parts)
    labels = {name: label for label, name in enumerate(class_names)}
    places = {name: Place(split, labels[parts[name][0]] if labels else None) for name, split in chosen.items()}
    return Layout(places, class_names, outside, notes)


def _common(names: list[str]) -> int:
    """How many folders lie around all the names."""
    folders = [os.path.dirname(name) for name in names]
    if not folders or "" in folders:
        return 0
    common = os.path.commonpath(folders)
    return len(PurePosixPath(common).parts)


def _below(name: str, depth: int) -> tuple[str, ...]:
    return PurePosixPath(name).parts[depth:]


def _classes(parts: dict[str, tuple[str, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names, and notes where folders look like classes and are not."""
    folders = {part[0] for part in parts.values() if len(part) == 2}
    if len(folders) < 2:
        return (), ()
    elsewhere = [name for name, part in parts.items() if len(part) != 2]
    if not elsewhere:
        return tuple(sorted(folders)), ()
    note = (
        f"No labels: {len(folders)} folders look like classes, but {len(elsewhere)} pictures lie above or below them, "
        f"such as {elsewhere[0]!r}."
    )
    return (), (note,)

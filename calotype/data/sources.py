"""Where pictures come from, told apart by what they are: a folder, an archive, a table, arrays, the hub, glyphs."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from calotype.data.arrays import npy, npz
from calotype.data.bombs import check_entries, is_tar
from calotype.data.config import DataConfig
from calotype.data.files import folder, picture, stamp, tar_archive, walk, zip_archive
from calotype.data.glyphs import CHANNELS, CLASS_NAMES, GlyphsConfig, render
from calotype.data.layout import SNIFF_BYTES, claims_picture, starts_like_picture
from calotype.data.npy import DAMAGE
from calotype.data.records import Facts, Loaded, Record, Source
from calotype.data.tables import hub, parquet
from calotype.errors import DataError

GLYPHS_SIZE = 32
"""Width and height of glyphs where the config leaves them open: they have no size of their own."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Location(NamedTuple):
    """A source by an address that means the same from everywhere."""

    kind: Literal["path", "hub", "glyphs"]
    address: str  # the absolute path, "hub:user/name", or the text that names glyphs
    fingerprint: str | None  # another one: the source has changed; None: it is not there


def locate(source: str) -> Location:
    """Find what a source's text means, and fingerprint it without reading the pictures.

    A path that does not exist is no error here, since a pack of it may. Data sets on the hub are taken not to change.
    """
    if source == "glyphs" or source.startswith("glyphs:"):
        return Location("glyphs", source, repr(GlyphsConfig.parse(source)))
    if source.startswith("hub:"):
        return Location("hub", source, source)
    try:
        path = Path(source).expanduser()
        present = path.exists()
    except (OSError, RuntimeError) as error:  # a folder one may not enter, a name too long, an unknown ~user
        raise DataError(f"{source} cannot be looked at ({error}): check the name and its permissions") from None
    if not present and _HUB_NAME.fullmatch(source) and not source.startswith("."):
        return Location("hub", f"hub:{source}", f"hub:{source}")
    return Location("path", str(path.absolute()), _fingerprint(path) if present else None)


def open_source(location: Location, config: DataConfig) -> Source:
    """List the pictures of a source that is there.

    Raises:
        DataError: it is not there, cannot be read, or is nothing that holds pictures.
    """
    if location.kind == "glyphs":
        return glyphs(GlyphsConfig.parse(location.address), config.width or GLYPHS_SIZE, config.height or GLYPHS_SIZE)
    if location.kind == "hub":
        return hub(location.address.removeprefix("hub:"), config.labels)
    path = Path(location.address)
    if location.fingerprint is None:
        raise DataError(f"{path} does not exist: give a folder, an archive, a Parquet or NumPy file, or user/name")
    if path.is_dir():
        return _folder_or_parquet(path, location, config.labels)
    return _unchanging(_opener(path, config)(path), path, location)


def _unchanging(source: Source, path: Path, location: Location) -> Source:
    """The same pictures, whose records are an error where their archive is no longer the one that was listed."""

    def check() -> None:
        if not path.exists() or _fingerprint(path) != location.fingerprint:
            raise DataError(f"{path} changed while it was read: repeat the command when it is complete")

    def records() -> Iterator[Record]:
        check()
        try:
            yield from source.records()
        except (DataError, *DAMAGE):  # of what is no longer there
            check()
            raise
        check()

    return replace(source, records=records)


def glyphs(config: GlyphsConfig, width: int, height: int) -> Source:
    """The built-in letters, drawn at the size wanted."""
    colour, alpha = CHANNELS[config.mode] >= 3, config.mode == "rgba"
    facts = Facts("glyphs", config.mode, width, height, colour, alpha, deep=False)

    def load(index: int) -> Loaded:
        return Loaded(*render(config, index, width, height))

    def records() -> Iterator[Record]:
        for index in range(config.count):
            yield Record(f"glyph {index}", partial(load, index), facts=facts)

    return Source(records, CLASS_NAMES)


def _folder_or_parquet(path: Path, location: Location, labels: bool) -> Source:
    files = [file.path for file in walk(path).files]
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    if tables and not any(claims_picture(file.name) for file in files):
        return _unchanging(parquet(tables, labels), path, location)
    return folder(path)


def _opener(path: Path, config: DataConfig) -> Callable[[Path], Source]:
    """The function for a file, by its first bytes."""
    labels = config.labels
    try:
        with path.open("rb") as file:
            head = file.read(SNIFF_BYTES)
        if head.startswith(b"\x93NUMPY"):
            return npy
        if head.startswith(b"PAR1"):
            return lambda path: parquet([path], labels)
        if zipfile.is_zipfile(path):
            return _zip_opener(path, labels)
        if not starts_like_picture(head) and is_tar(path):
            return tar_archive
        if starts_like_picture(head) and not config.to_learn:
            return picture
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:  # the last two of zips
        raise DataError(f"{path} cannot be read ({error}): check its permissions, or make it again") from None
    what = "is one picture" if starts_like_picture(head) else "is no archive, Parquet or NumPy file"
    raise DataError(f"{path} {what}: give a folder of pictures, a zip or tar of one, .parquet, .npz or .npy")


def _zip_opener(path: Path, labels: bool) -> Callable[[Path], Source]:
    check_entries(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return partial(npz, labels=labels) if names and all(name.endswith(".npy") for name in names) else zip_archive


def _fingerprint(path: Path) -> str:
    """A hash of names, sizes and times of change; it does not read the files."""
    if path.is_dir():
        lines = [f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in walk(path).files]
    else:
        size, changed = stamp(path.stat())
        lines = [f"{size}\0{changed}"]
    text = "\n".join(lines).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()

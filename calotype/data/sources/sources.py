"""Opening a source by its detected type: a folder, an archive, a table, arrays, the hub, glyphs."""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from calotype.core.files import kind
from calotype.data.config import DataConfig
from calotype.data.decoding.formats import not_read
from calotype.data.decoding.pages import count_pages, every_page
from calotype.data.records import Facts, Loaded, Record, Skipped, Source
from calotype.data.sources.arrays import npy, npz
from calotype.data.sources.bombs import check_entries, is_tar
from calotype.data.sources.exclusions import why_other
from calotype.data.sources.files import (
    COMPRESSED_TARS,
    Found,
    folder,
    head,
    kernel_devices,
    picture,
    stamp,
    tar_archive,
    tar_archives,
    walk,
    zip_archive,
)
from calotype.data.sources.glyphs import CHANNELS, CLASS_NAMES, GlyphsConfig, render
from calotype.data.sources.layout import SNIFF_BYTES, claims_picture, split_of_file, starts_like_picture
from calotype.data.sources.npy import DAMAGE
from calotype.data.sources.tables import hub, parquet
from calotype.errors import DataError

GLYPHS_SIZE = 32
"""Width and height of glyphs where the config leaves them open: they have no size of their own."""

_TAR_SUFFIXES = (".tar", *COMPRESSED_TARS)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_NAME_ALONE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # of the first data sets there


class Location(NamedTuple):
    """A source with an absolute address."""

    kind: Literal["path", "hub", "glyphs"]
    address: str  # the absolute path, "hub:user/name", or the text that names glyphs
    fingerprint: str | None  # another one: the source has changed; None: it is not there


def locate(source: str) -> Location:
    """Resolve the text of a source, and fingerprint the source without reading the pictures.

    A missing path is no error here, since its pack may exist. Data sets on the hub are assumed not to change.
    """
    if source == "glyphs" or source.startswith("glyphs:"):
        return Location("glyphs", source, repr(GlyphsConfig.parse(source)))
    if source.startswith("hub:"):
        name = source.removeprefix("hub:")
        if not (_HUB_NAME.fullmatch(name) or _HUB_NAME_ALONE.fullmatch(name)):
            raise DataError(f"{source!r} names nothing on the hub: write hub:user/name, or a path without hub:")
        return Location("hub", source, source)
    try:
        path = Path(source).expanduser()
        present = path.exists()
    except (OSError, RuntimeError) as error:  # a folder one may not enter, a name too long, an unknown ~user
        raise DataError(f"{source} cannot be looked at ({error}): check the name and its permissions") from None
    if present and path.is_dir() and path.resolve() == Path(path.resolve().anchor):
        raise DataError(f"{source} is the root of the file system: give the folder of the pictures")
    if not present and _HUB_NAME.fullmatch(source):
        return Location("hub", f"hub:{source}", f"hub:{source}")
    return Location("path", str(path.absolute()), _fingerprint(path) if present else None)


def open_source(location: Location, config: DataConfig) -> Source:
    """List the pictures of an existing source.

    Raises:
        DataError: it is missing, cannot be read, or cannot hold pictures.
    """
    source = _open(location, config)
    return every_page(source) if config.pages == "all" else source


def _open(location: Location, config: DataConfig) -> Source:
    if location.kind == "path":
        return _path(Path(location.address), location, config)
    _refuse_table(config, location.address)
    if location.kind == "hub":
        return hub(location.address.removeprefix("hub:"), config.labels)
    return glyphs(GlyphsConfig.parse(location.address), config.width or GLYPHS_SIZE, config.height or GLYPHS_SIZE)


def _path(path: Path, location: Location, config: DataConfig) -> Source:
    if location.fingerprint is None:
        raise DataError(f"{path} does not exist: give a folder, an archive, a Parquet or NumPy file, or user/name")
    if path.stat().st_dev in kernel_devices():
        raise DataError(f"{path} is invented by the system, and holds no pictures: give a folder or file on a disk")
    if path.is_dir():
        return _folder(path, location, config)
    _check_ends(path)
    return _unchanging(_opener(path, config)(path), path, location)


def _unchanging(source: Source, path: Path, location: Location) -> Source:
    """The same pictures, whose loading fails if their archive has changed since it was listed."""

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


def _refuse_table(config: DataConfig, source: str) -> None:
    if config.labels_from:
        raise DataError(
            f"labels_from is {config.labels_from!r}, but {source} is no folder, zip or tar of pictures, which may have "
            "such a table: leave it out"
        )


def glyphs(config: GlyphsConfig, width: int, height: int) -> Source:
    """The built-in letters, drawn at the requested size."""
    colour, alpha = CHANNELS[config.mode] >= 3, config.mode == "rgba"
    facts = Facts("glyphs", config.mode, width, height, colour, alpha, deep=False)

    def load(index: int) -> Loaded:
        return Loaded(*render(config, index, width, height))

    def records() -> Iterator[Record]:
        for index in range(config.count):
            yield Record(f"glyph {index}", partial(load, index), facts=facts)

    return Source(records, CLASS_NAMES)


def _check_ends(path: Path) -> None:
    """Raise DataError if reading would not end, or would block."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            f"{path} is {kind(status)}, which has no end that could be waited for: give a folder of pictures, a zip or "
            "tar of one, .parquet, .npz or .npy; what a program writes, write to a file first"
        )
    if not status.st_size:  # also files that the kernel makes up, such as those of /proc
        raise DataError(
            f"{path} is no archive, Parquet or NumPy file, since it is empty: give a folder of pictures, a zip or tar "
            "of one, .parquet, .npz or .npy"
        )


def _folder(path: Path, location: Location, config: DataConfig) -> Source:
    """Picture files; without any, Parquet files or tars, which form one data set."""
    found = walk(path)
    tables = [file for file in found.files if file.name.lower().endswith(".parquet")]
    tars = [file for file in found.files if file.name.lower().endswith(_TAR_SUFFIXES)]
    if not (tables or tars) or any(map(_is_picture, found.files)):
        return folder(path, config.labels, config.table())
    if tables and tars:
        raise DataError(
            f"{path} has Parquet files and tars, such as {tables[0].name} and {tars[0].name}: give a folder with one "
            "kind"
        )
    _refuse_table(config, str(path))
    if tables:
        source = parquet([file.path for file in tables], config.labels)
    else:
        source = tar_archives([(file.path, file.name, split_of_file(file.name)) for file in tars], config.labels)
    chosen = set(tables or tars)
    others = [file.name for file in found.files if file not in chosen]
    ignored = (*found.ignored, *(Skipped(name, str(why_other(name))) for name in others), *source.ignored)
    return replace(
        _unchanging(source, path, location),
        skipped=(*found.skipped, *source.skipped),
        ignored=ignored,
        other_files=source.other_files + len(others),
    )


def _is_picture(file: Found) -> bool:
    claim = claims_picture(file.name)
    return starts_like_picture(head(file.path, SNIFF_BYTES)) if claim is None else claim


def _opener(path: Path, config: DataConfig) -> Callable[[Path], Source]:
    """The function for a file, by its first bytes."""
    labels, table = config.labels, config.table()
    try:
        with path.open("rb") as file:
            first = file.read(SNIFF_BYTES)
        if first.startswith(b"\x93NUMPY"):
            _refuse_table(config, str(path))
            return npy
        if first.startswith(b"PAR1"):
            _refuse_table(config, str(path))
            return lambda path: parquet([path], labels)
        if zipfile.is_zipfile(path):
            return _zip_opener(path, config)
        if not starts_like_picture(first) and is_tar(path):
            return partial(tar_archive, labels=labels, wanted=table)
        if starts_like_picture(first) and (not config.to_learn or config.pages == "all"):
            return picture
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:  # the last two of zips
        raise DataError(f"{path} cannot be read ({error}): check its permissions, or make it again") from None
    if format := not_read(path.name, first):
        raise DataError(f"{path} is {format.reason}")
    what = "is no archive, Parquet or NumPy file"
    if starts_like_picture(first):
        count = count_pages(path)
        what = f"has {count:,} pages or frames: give --pages all, or" if count > 1 else "is one picture"
    give = " give" if what.endswith(" or") else ": give"
    raise DataError(f"{path} {what}{give} a folder of pictures, a zip or tar of one, .parquet, .npz or .npy")


def _zip_opener(path: Path, config: DataConfig) -> Callable[[Path], Source]:
    check_entries(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not names or not all(name.endswith(".npy") for name in names):
        return partial(zip_archive, labels=config.labels, wanted=config.table())
    _refuse_table(config, str(path))
    return partial(npz, labels=config.labels)


def _fingerprint(path: Path) -> str:
    """A hash of names, sizes and modification times, without reading the files."""
    if path.is_dir():
        lines = [f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in walk(path).files]
    else:
        size, changed = stamp(path.stat())
        lines = [f"{size}\0{changed}"]
    text = "\n".join(lines).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()

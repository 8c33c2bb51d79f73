"""Pictures as files: a folder, or a zip or tar of one."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from calotype.data.bombs import TAR_ERRORS, check_entries, members, open_tar
from calotype.data.layout import SNIFF_BYTES, Layout, arrange, claims_picture, is_clutter, starts_like_picture
from calotype.data.records import MAX_FILE_BYTES, BadPicture, Loaded, Record, Skipped, Source
from calotype.errors import DataError

# A zip member that cannot be read: a wrong checksum, a password, a compression that Python lacks.
_MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError)


class Found(NamedTuple):
    """A file below a folder."""

    name: str  # relative, "/" between its parts
    path: Path
    size: int
    mtime_ns: int


class Walk(NamedTuple):
    """All visible files below a folder, sorted by name; what could not be opened or followed is apart."""

    files: list[Found]
    skipped: tuple[Skipped, ...]


class _Listing(NamedTuple):
    pictures: list[str]
    other_files: int


def stamp(status: os.stat_result) -> tuple[int, int]:
    """What another content of a file changes: its size, and the time of the last change, in nanoseconds."""
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def walk(root: Path) -> Walk:
    """List the files below a folder, following symlinks, but no folder twice: links may form a loop."""
    files: list[Found] = []
    skipped: list[Skipped] = []
    seen: set[tuple[int, int]] = set()
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(prefix.rstrip("/"), f"cannot be opened: {error.strerror}"))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if is_clutter(entry.name):
                continue
            # What is not UTF-8 is shown escaped; no two names become the same.
            name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere, or to itself
                skipped.append(Skipped(name, f"cannot be opened: {error.strerror}"))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((Path(entry.path), name + "/"))
            elif stat.S_ISREG(status.st_mode):  # anything else, such as a pipe, would wait for ever
                files.append(Found(name, Path(entry.path), *stamp(status)))
    return Walk(sorted(files), tuple(sorted(skipped)))


def folder(root: Path) -> Source:
    """The pictures of a folder and the folders below it."""
    found, skipped = walk(root)
    files = {file.name: file for file in found}
    listing = _list([(name, partial(_head, file.path)) for name, file in files.items()])
    layout = arrange(listing.pictures)

    def records() -> Iterator[Record]:
        for name, place in layout.places.items():
            yield Record(name, partial(_open_listed, files[name], place.label), place.split)

    return _source(records, layout, listing, skipped)


def picture(path: Path) -> Source:
    """One picture, by itself."""
    return Source(lambda: iter([Record(path.name, partial(_open, path, None))]), ())


def zip_archive(path: Path) -> Source:
    """The pictures of a zip file, read without unpacking it."""
    try:
        check_entries(path)
        with zipfile.ZipFile(path) as archive:
            listed = [member for member in archive.infolist() if not member.is_dir() and _visible(member.filename)]
            listing = _list([(member.filename, partial(_zip_head, archive, member)) for member in listed])
    except (*_MEMBER_ERRORS, ValueError, struct.error) as error:  # ValueError: a name that is not UTF-8
        raise DataError(f"{path} cannot be read as a zip file ({error}): make or download it again") from None
    layout = arrange(listing.pictures)

    def records() -> Iterator[Record]:
        with zipfile.ZipFile(path) as archive:
            for name in layout.places:
                member = archive.getinfo(name)
                yield _member(name, member.file_size, partial(_zip_content, archive, member), layout)

    return _source(records, layout, listing)


def tar_archive(path: Path) -> Source:
    """The pictures of a tar file, compressed or not, read from front to end without unpacking it."""
    listing = _list([(name, partial(bytes, head)) for name, _, head in _tar_members(path, SNIFF_BYTES)])
    layout = arrange(listing.pictures)

    def records() -> Iterator[Record]:
        for name, size, content in _tar_members(path, MAX_FILE_BYTES, layout.places):
            yield _member(name, size, partial(bytes, content), layout)

    return _source(records, layout, listing)


def _source(
    records: Callable[[], Iterator[Record]], layout: Layout, listing: _Listing, skipped: tuple[Skipped, ...] = ()
) -> Source:
    outside = tuple(Skipped(name, "outside the folders of the splits") for name in layout.outside)
    return Source(records, layout.class_names, skipped + outside, listing.other_files, layout.notes)


def _list(files: list[tuple[str, Callable[[], bytes]]]) -> _Listing:
    """Tell pictures from other files by name, or where that says nothing, by their first bytes."""
    pictures = []
    for name, head in files:
        claim = claims_picture(name)
        if claim or (claim is None and starts_like_picture(head())):
            pictures.append(name)
    return _Listing(pictures, len(files) - len(pictures))


def _open(path: Path, label: int | None) -> Loaded:
    return Loaded(path.open("rb"), label)


def _open_listed(file: Found, label: int | None) -> Loaded:
    """Open a file of a folder as it was listed: what is looked at first and read later has to be the same."""
    content = file.path.open("rb")
    if stamp(os.fstat(content.fileno())) != (file.size, file.mtime_ns):
        content.close()
        raise BadPicture("changed while the folder was read: repeat the command when it is complete")
    return Loaded(content, label)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(SNIFF_BYTES)
    except OSError:  # it does not claim to be a picture, so it is counted as another file
        return b""


def _visible(name: str) -> bool:
    return not any(is_clutter(part) for part in name.split("/"))


def _member(name: str, size: int, read: Callable[[], bytes], layout: Layout) -> Record:
    """A record of an archive's member, read now: neither zip nor tar files can be read by several threads at once."""
    place = layout.places[name]
    if size > MAX_FILE_BYTES:
        return Record(name, partial(_fail, f"too large: more than {MAX_FILE_BYTES >> 20} MiB in one file"), place.split)
    try:
        content = read()
    except (*_MEMBER_ERRORS, ValueError) as error:
        return Record(name, partial(_fail, f"damaged: {error}"), place.split)
    return Record(name, partial(_in_memory, content, place.label), place.split, held=len(content))


def _in_memory(content: bytes, label: int | None) -> Loaded:
    return Loaded(io.BytesIO(content), label)


def _fail(reason: str) -> Loaded:
    raise BadPicture(reason)


def _zip_content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        return file.read(member.file_size)  # not all that is there, which may be more than it says


def _zip_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(SNIFF_BYTES)
    except (*_MEMBER_ERRORS, ValueError):
        return b""


def _tar_members(path: Path, limit: int, wanted: Container[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
    """Name, size and up to `limit` first bytes of the visible files of a tar; a name's second file is passed over.

    Raises:
        DataError: the archive itself is damaged, so that nothing is known of what follows.
    """
    seen: set[str] = set()
    try:
        with open_tar(path) as archive:
            for member in members(archive, path):
                name = member.name.removeprefix("./")
                if member.isfile() and _visible(name) and name not in seen and (wanted is None or name in wanted):
                    seen.add(name)
                    file = archive.extractfile(member) if member.size <= MAX_FILE_BYTES else None
                    yield name, member.size, file.read(min(limit, member.size)) if file else b""
    except TAR_ERRORS as error:
        raise DataError(f"{path} is damaged or cut off ({error}): make or download it again") from None

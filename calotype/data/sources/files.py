"""Picture files: a folder, a zip or tar of one, or several tars that form one data set."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from calotype.core.display import counted
from calotype.core.untrusted import NotPlain, open_regular
from calotype.data.records import MAX_FILE_BYTES, BadPicture, Loaded, Record, Skipped, Source, Split
from calotype.data.sources.bombs import TAR_ERRORS, check_entries, check_unfolded, members, open_tar
from calotype.data.sources.exclusions import why_made, why_system
from calotype.data.sources.label_files import LabelsFrom
from calotype.data.sources.layout import Place, note_on_tars
from calotype.data.sources.listing import Arranged, Contents, Listing, Picture, arrange_contents
from calotype.data.sources.names import zip_name
from calotype.errors import DataError

# A zip member that cannot be read: a wrong checksum, a password, a compression that Python lacks.
_MEMBER_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError)


COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""How names of compressed tars end."""

_KERNEL_PLACES = ("/proc", "/sys", "/sys/kernel/debug", "/sys/kernel/tracing")


class Found(NamedTuple):
    """A file found below a folder."""

    name: str  # relative, "/" between its parts
    path: Path
    size: int
    mtime_ns: int


class Walk(NamedTuple):
    """All files below a folder, sorted by name, without system and hidden files, which are listed separately."""

    files: list[Found]
    skipped: tuple[Skipped, ...]  # what could not be opened or followed
    ignored: tuple[Skipped, ...]  # hidden files and folders, and those of systems


def stamp(status: os.stat_result) -> tuple[int, int]:
    """The size of a file and its modification time in nanoseconds, by which changes are detected."""
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


def kernel_devices() -> frozenset[int]:
    """The device numbers of virtual file systems of the kernel, where reading a file may block for ever."""
    return frozenset(os.stat(place).st_dev for place in _KERNEL_PLACES if os.path.ismount(place))


def walk(root: Path) -> Walk:
    """List the files below a folder, following symlinks but visiting each folder once, since links may form a loop.

    Virtual file systems, such as /proc, are excluded.
    """
    files: list[Found] = []
    skipped: list[Skipped] = []
    ignored: list[Skipped] = []
    seen: set[tuple[int, int]] = set()
    kernel = kernel_devices()
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
        if status.st_dev in kernel:
            skipped.append(Skipped(prefix, "no folder of pictures: its files are invented by the system"))
            continue
        made = why_made({entry.name for entry in entries}) if prefix else None
        if made is not None:
            ignored.append(Skipped(prefix, str(made)))
            continue
        for entry in entries:
            # What is not UTF-8 is shown escaped; no two names become the same.
            name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere, or to itself
                skipped.append(Skipped(name, f"cannot be opened: {error.strerror}"))
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if (why := why_system(entry.name, is_folder)) is not None:
                ignored.append(Skipped(name + ("/" if is_folder else ""), str(why)))
            elif is_folder:
                folders.append((Path(entry.path), name + "/"))
            elif stat.S_ISREG(status.st_mode):  # anything else, such as a pipe, would wait for ever
                files.append(Found(name, Path(entry.path), *stamp(status)))
    return Walk(sorted(files), tuple(sorted(skipped)), tuple(sorted(ignored)))


def folder(root: Path, labels: bool = True, wanted: LabelsFrom | None = None) -> Source:
    """The pictures of a folder and the folders below it.

    Args:
        labels: whether classes are wanted.
        wanted: the table of the classes, if not from folders.
    """
    found, skipped, ignored = walk(root)
    listing = Listing(labels, wanted, archive=False, ignored=ignored)
    for file in found:
        listing.add(file, file.name, file.size, partial(head, file.path))
    contents = listing.finish()
    arranged = arrange_contents([contents], labels, wanted)

    def records() -> Iterator[Record]:
        for picture, place in _placed(contents, arranged):
            yield Record(picture.name, partial(_open_listed, picture.key, place.label), place.split)

    return _source(records, arranged, skipped)


def picture(path: Path) -> Source:
    """A single picture."""
    return Source(lambda: iter([Record(path.name, partial(_open, path, None))]), ())


def zip_archive(path: Path, labels: bool = True, wanted: LabelsFrom | None = None) -> Source:
    """The pictures of a zip file, read without unpacking it; further arguments as of folder."""
    try:
        check_entries(path)
        with zipfile.ZipFile(path) as archive:
            contents = _zip_contents(path, archive, labels, wanted)
    except (*_MEMBER_ERRORS, ValueError, struct.error) as error:  # ValueError: a name that is not UTF-8
        raise DataError(f"{path} cannot be read as a zip file ({error}): make or download it again") from None
    arranged = arrange_contents([contents], labels, wanted)

    def records() -> Iterator[Record]:
        with zipfile.ZipFile(path) as archive:
            for picture, place in _placed(contents, arranged):
                member = picture.key
                yield _member(picture.name, member.file_size, partial(_zip_content, archive, member), place)

    return _source(records, arranged)


def _zip_contents(path: Path, archive: zipfile.ZipFile, labels: bool, wanted: LabelsFrom | None) -> Contents:
    check_unfolded(path, (member.file_size for member in archive.infolist()))
    listing = Listing(labels, wanted)
    guessed: list[str] = []
    for member in archive.infolist():
        name = zip_name(member)
        if member.is_dir() or (member.file_size == 0 and name.name.endswith("\\")):  # as some on Windows write folders
            continue
        if name.guessed:
            guessed.append(name.name)
        listing.add(member, name.name, member.file_size, partial(_zip_head, archive, member), name.windows)
    contents = listing.finish()
    if guessed:
        note = (
            f"{counted(len(guessed), 'name of the archive is', 'names of the archive are')} "
            f"neither ASCII nor UTF-8, and read in code page 437, such "
            f"as {guessed[0]}: if names of classes come out wrong, make the archive again."
        )
        contents = contents._replace(notes=(*contents.notes, note))
    return contents


def tar_archive(path: Path, labels: bool = True, wanted: LabelsFrom | None = None) -> Source:
    """The pictures of a tar file, compressed or not, read from front to end without unpacking it; as of folder."""
    return _tars([(path, "", None)], labels, wanted)


def tar_archives(
    paths: Sequence[tuple[Path, str, Split | None]], labels: bool = True, wanted: LabelsFrom | None = None
) -> Source:
    """The pictures of several tars, which are shards of one data set.

    Args:
        paths: each with its name in the source and the split of that name.
        labels: whether classes are wanted.
        wanted: must be None: shards have no table of labels.
    """
    return _tars([(path, f"{name}/", split) for path, name, split in paths], labels, wanted)


def _tars(tars: Sequence[tuple[Path, str, Split | None]], labels: bool, wanted: LabelsFrom | None) -> Source:
    parts = [_tar_contents(path, labels, wanted) for path, _, _ in tars]
    arranged = arrange_contents(parts, labels, wanted)
    if labels:
        more = note_on_tars([name.rstrip("/") for _, name, _ in tars], arranged.class_names)
        arranged = arranged._replace(notes=(*arranged.notes, *more))
    splits = {split for _, _, split in tars}
    by_shard = {"train", "held_out"} <= splits

    def records() -> Iterator[Record]:
        for (path, before, split), part, places in zip(tars, parts, arranged.places, strict=True):
            names = {picture.key: picture.name for picture in part.pictures if picture.name in places}
            for number, member, read in _tar_members(path):
                if number not in names:
                    continue
                place = places[names[number]]
                if by_shard:
                    place = place._replace(split=split)
                yield _member(before + names[number], member.size, partial(read, member.size), place)

    return _source(records, arranged)


def _tar_contents(path: Path, labels: bool, wanted: LabelsFrom | None) -> Contents:
    listing = Listing(labels, wanted)
    for number, member, read in _tar_members(path):
        listing.add(number, member.name, member.size, read)
    return listing.finish()


def _placed(contents: Contents, arranged: Arranged) -> Iterator[tuple[Picture, Place]]:
    """The pictures to use of a single contents, in their order."""
    (places,) = arranged.places
    return ((picture, places[picture.name]) for picture in contents.pictures if picture.name in places)


def _source(records: Callable[[], Iterator[Record]], arranged: Arranged, skipped: Iterable[Skipped] = ()) -> Source:
    return Source(
        records,
        arranged.class_names,
        (*skipped, *arranged.skipped),
        arranged.other_files,
        arranged.notes,
        ignored=arranged.ignored,
    )


def _open(path: Path, label: int | None) -> Loaded:
    try:
        return Loaded(open_regular(path), label)
    except NotPlain as error:
        raise BadPicture(f"no file: {error}") from None


def _open_listed(file: Found, label: int | None) -> Loaded:
    """Open a listed file of a folder, checking that it has not changed since it was listed."""
    loaded = _open(file.path, label)
    content = cast(BinaryIO, loaded.content)
    if stamp(os.fstat(content.fileno())) != (file.size, file.mtime_ns):
        content.close()
        raise BadPicture("changed while the folder was read: repeat the command when it is complete")
    return loaded


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file; empty if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(size) if os.fstat(file.fileno()).st_size else b""  # those of /proc may wait
    except (OSError, NotPlain):  # it does not claim to be a picture, so it is counted as another file
        return b""


def _member(name: str, size: int, read: Callable[[], bytes], place: Place) -> Record:
    """A record of an archive's member, read at once: zip and tar files cannot be read by several threads."""
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


def _zip_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(min(size, member.file_size))
    except (*_MEMBER_ERRORS, ValueError):
        return b""


def _tar_members(path: Path) -> Iterator[tuple[int, tarfile.TarInfo, Callable[[int], bytes]]]:
    """The files of a tar with their indices, and a function for their first bytes, valid until the next file.

    Raises:
        DataError: the archive itself is damaged, so the rest cannot be read.
    """
    try:
        with open_tar(path) as archive:
            for number, member in enumerate(members(archive, path)):
                if member.isfile():
                    yield number, member, partial(read_member, archive, member)
    except TAR_ERRORS as error:
        raise DataError(f"{path} is damaged or cut off ({error}): make or download it again") from None


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, size: int) -> bytes:
    """The first bytes of a tar's member; empty if it is too large."""
    file = archive.extractfile(member) if member.size <= MAX_FILE_BYTES else None
    return file.read(min(size, member.size)) if file else b""

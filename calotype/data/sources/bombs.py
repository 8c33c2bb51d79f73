"""Limits against decompression bombs: archives whose entries or contents are far larger than the file.

An entry of an archive takes a hundred bytes of it at most, and ten times as many in memory; a compressed stream may
expand to a thousand times its size and more. Pictures are compressed already, and expand little.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from calotype.data.records import MAX_FILE_BYTES
from calotype.errors import DataError

MOST_ENTRIES = 2_000_000
"""Of an archive, whose list is held in memory; ImageNet has 1.3 million pictures."""

MOST_RATIO = 200  # bytes for each of a compressed archive; black pictures without compression come near it
FREE = 1 << 30  # bytes that any archive may unfold to

TAR_ERRORS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError)
"""What reading a damaged or hostile tar raises."""

_LIST_ENTRY = 46  # bytes of a zip's list, for each entry, besides its name
_END, _END_64, _LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"


def too_many(path: Path) -> DataError:
    """The error for an archive with more entries than the limit."""
    return DataError(f"{path} has more than {MOST_ENTRIES:,} entries: unpack it, and give the folder")


def check_entries(path: Path) -> None:
    """Raise DataError if the central directory of a zip file, which is read whole, is too long."""
    if _list_bytes(path) > MOST_ENTRIES * 2 * _LIST_ENTRY:
        raise too_many(path)


def check_unfolded(path: Path, sizes: Iterable[int]) -> None:
    """Raise DataError if the members to read of a zip file claim far more bytes than it can hold."""
    if sum(size for size in sizes if size <= MAX_FILE_BYTES) > FREE + MOST_RATIO * path.stat().st_size:
        raise _bomb(path)


def _bomb(path: Path) -> DataError:
    return DataError(
        f"{path} unfolds to more than {MOST_RATIO} times its size, as pictures do not: if they are what it holds, "
        "unpack it, and give the folder"
    )


def _list_bytes(path: Path) -> int:
    """The size of the central directory by the end of a zip file; 0 if it is not stated."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
        at = len(tail) - 22 if tail[-22:-18] == _END and tail[-2:] == b"\0\0" else tail.rfind(_END)
        if at < 0 or len(tail) - at < 22:
            return 0
        (listed,) = struct.unpack_from("<L", tail, at + 12)
        if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR_64:
            file.seek(max(0, size - len(tail) + at - 20 - 56))
            record = file.read(56)
            if record[:4] == _END_64:
                (listed,) = struct.unpack_from("<Q", record, 40)
        return int(listed)


class _Unfolding(io.RawIOBase):
    """A decompressed stream, limited at once and in total to what an archive of its size may hold."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path = stream, path
        self._most = FREE + MOST_RATIO * path.stat().st_size

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:  # heads of a tar say how long they are
            raise tarfile.ReadError(f"a part of it claims {size:,} bytes")
        found = self._stream.read(size)
        self._check()
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and offset > self._most:
            raise _bomb(self._path)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check(self) -> None:
        if self._stream.tell() > self._most:
            raise _bomb(self._path)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar file, compressed or not, that is read from front to end. Raises one of TAR_ERRORS, or DataError."""
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        bounded = cast(Any, _Unfolding(_unfolded(file, head), path))
        with tarfile.open(fileobj=bounded, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            yield archive


def _unfolded(file: IO[bytes], head: bytes) -> Any:
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return lzma.LZMAFile(file)
    return file


def members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Iterate over the entries of a tar, keeping none. Raises DataError if there are too many."""
    for number, member in enumerate(archive):
        if number >= MOST_ENTRIES:
            raise too_many(path)
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # or the list of them grows without end


def is_tar(path: Path) -> bool:
    """Whether a file begins like a tar, compressed or not."""
    try:
        with open_tar(path):
            return True
    except (*TAR_ERRORS, DataError):
        return False

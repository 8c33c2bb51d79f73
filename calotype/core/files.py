"""Writing files: atomically, through no link, and nowhere but at the named place.

A run, a comparison or a folder for pictures may come from a stranger, or lie where others can write, such as /tmp. So a
new file has a random name, is opened exclusively (O_EXCL, O_NOFOLLOW), and is renamed to its final name when complete;
folders are accessed through an open descriptor; and a place that exists and is not a regular file is refused. Links in
the path of a folder that the user names are followed, as everywhere: `runs/` may be a link to another disk. Below such
a folder no link is followed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from calotype.errors import PlaceError

LOCK = ".lock"
"""The name of the file that a command holds while it writes in a folder."""

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)
"""The name of a file, or folder, that is not finished."""

_LONGEST = 200  # bytes of a name within that of its temporary neighbour; file systems allow 255 in all
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def write_atomic(path: Path, write: Callable[[BinaryIO], object], root: Path | None = None) -> None:
    """Write a file atomically through a temporary file beside it: `path` is either complete or unchanged.

    Temporary files of killed processes for the same path are removed.

    Args:
        path: where the file goes.
        write: called with the open binary file.
        root: a folder above it, such as a run, below which no link is followed.

    Raises:
        PlaceError: something is there that is no regular file, or a link leads there.
        OSError: it cannot be written.
    """
    with open_folder(path.parent, root) as folder:
        folder.check(path.name)
        folder.sweep(path.name)
        folder.write(path.name, write)


def write_bytes(path: Path, content: bytes, root: Path | None = None) -> None:
    """Write a file of this content. Other arguments and errors as of `write_atomic`."""
    write_atomic(path, lambda file: file.write(content), root)


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a new file of an unfinished folder, and flush it to disk.

    Raises:
        OSError: it cannot be written, or the path exists.
    """
    with open_folder(path.parent) as folder, folder.create(path.name) as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def open_append(path: Path, root: Path | None = None) -> BinaryIO:
    """A file to read and to append to, made where there is none. Arguments and errors as of `write_atomic`."""
    with open_folder(path.parent, root) as folder:
        return folder.append(path.name)


def make_folder(path: Path, root: Path | None = None) -> None:
    """Create a folder and its parents if missing. Arguments and errors as of `write_atomic`."""
    with open_folder(path, root, make=True):
        pass


def check_place(path: Path) -> None:
    """Raise PlaceError if the path exists and is not a regular file."""
    with open_folder(path.parent) as folder:
        folder.check(path.name)


def check_own(path: Path) -> None:
    """Raise PlaceError if the path is a folder of another user, or a link to one."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PlaceError(f"{path} is there, and not of this user's making: remove it, or choose another place")


def copy_file(source: Path, path: Path, root: Path | None = None) -> None:
    """Write a file with the content of another. Arguments and errors as of `write_atomic`."""
    with source.open("rb") as opened:
        write_atomic(path, lambda file: shutil.copyfileobj(opened, file), root)


def make_private(path: Path) -> None:
    """Create a folder that this user alone can enter, and its parents, if missing and possible."""
    with suppress(OSError):
        for folder in reversed((path, *path.parents)):
            if not folder.is_dir():
                folder.mkdir(0o700)


def remove_tree(path: Path) -> None:
    """Remove a folder and its contents, without following links. Raises OSError; a missing folder is no error.

    After an interruption the rest of the folder keeps its name.
    """
    with suppress(FileNotFoundError), open_folder(path.parent) as folder:
        folder.remove(path.name)


@contextmanager
def open_folder(path: Path, root: Path | None = None, make: bool = False) -> Iterator[Folder]:
    """A folder to write in.

    Args:
        root: a folder above it, below which no link is followed.
        make: create it, and its parents, if missing.

    Raises:
        PlaceError: the path below `root` has a link, or is not a folder.
        OSError: it is missing, or cannot be created or entered.
    """
    top = root or path
    if make:
        top.mkdir(parents=True, exist_ok=True)
    folder = Folder(top, os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        for name in path.relative_to(top).parts:
            below = folder.below(name, make)
            folder.close()
            folder = below
        yield folder
    finally:
        folder.close()


class Folder:
    """An open folder. Its methods act on its entries by name, and no name leads out of it."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._handle)

    def below(self, name: str, make: bool = False) -> Self:
        """Open a folder in this one. Arguments and errors as of `open_folder`."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(_plain(name), dir_fd=self._handle)
        try:
            handle = os.open(
                _plain(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._handle
            )
        except OSError:
            status = self.look(name)
            if status is not None and not stat.S_ISDIR(status.st_mode):
                raise PlaceError(self._refusal(name, status, "a folder")) from None
            raise
        return type(self)(self.path / name, handle)

    def look(self, name: str) -> os.stat_result | None:
        """The status of an entry, of a link itself and not its target; None if it is missing."""
        try:
            return os.stat(_plain(name), dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def check(self, name: str) -> None:
        """Raise PlaceError if the entry exists and is not a regular file."""
        status = self.look(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise PlaceError(self._refusal(name, status, "a file"))

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file, as `write_atomic` does."""
        self.check(name)
        temporary, opened = self._neighbour(name)
        try:
            with opened as file:  # closed after it has its name, since from then on another may sweep it
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._handle)
            raise

    def check_writable(self) -> None:
        """Raise OSError where no file can be made in it, by making one and removing it."""
        temporary, file = self._neighbour("place")
        file.close()
        os.unlink(temporary, dir_fd=self._handle)

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing. Raises FileExistsError if the entry exists."""
        return os.fdopen(os.open(_plain(name), os.O_RDWR | _NEW, 0o666, dir_fd=self._handle), "w+b")

    def append(self, name: str) -> BinaryIO:
        """A file to read and to append to, made where there is none. Raises PlaceError as `check`."""
        self.check(name)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(name, flags, 0o666, dir_fd=self._handle), "ab+")
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return file
        file.close()
        if not stat.S_ISREG(status.st_mode):
            raise PlaceError(self._refusal(name, status, "a file"))
        raise PlaceError(
            f"{self.path / name} has {status.st_nlink} names (hard links), and would change under all of them: put a "
            "copy in its place"
        )

    def make(self, name: str) -> Path:
        """A new folder beside `name`, to be filled and then moved to it; returns its path."""
        temporary = _temporary(name)
        os.mkdir(temporary, 0o777, dir_fd=self._handle)
        return self.path / temporary

    def move(self, old: str, new: str) -> None:
        """Rename an entry; a regular file or an empty folder of the new name is replaced."""
        os.rename(_plain(old), _plain(new), src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def remove(self, name: str) -> None:
        """Remove an entry: a folder with its contents, a link itself. Raises OSError."""
        status = self.look(name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            shutil.rmtree(name, dir_fd=self._handle)
        elif status is not None:
            os.unlink(name, dir_fd=self._handle)

    def names(self) -> list[str]:
        """The names of all entries, sorted."""
        return sorted(os.listdir(self._handle))

    def sweep(self, name: str = "") -> None:
        """Remove the temporary files of killed processes, for one entry or for all."""
        for entry in self.names():
            if LEFTOVER.fullmatch(entry) and (not name or entry.startswith(hidden_stem(name))):
                self._sweep(entry)

    def sync(self) -> None:
        """Flush the names of the folder's entries to disk."""
        os.fsync(self._handle)

    def _sweep(self, leftover: str) -> None:
        """Remove a temporary file that no running process has locked."""
        with suppress(OSError):  # gone, another user's, in use, or there are no locks here: then it stays
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(leftover, flags, dir_fd=self._handle)
            try:
                status = os.fstat(handle)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(leftover, dir_fd=self._handle)
            finally:
                os.close(handle)

    def _neighbour(self, name: str) -> tuple[str, BinaryIO]:
        """A new empty file of a random name, locked so that `sweep` keeps it."""
        while True:
            temporary = _temporary(name)
            file = self.create(temporary)
            with suppress(OSError):  # there are no locks here, and so nobody sweeps
                fcntl.flock(file, fcntl.LOCK_EX)  # another holds it for no longer than it takes to sweep it
            if self.look(temporary) is not None:
                return temporary, file
            file.close()  # swept before it was locked

    def _refusal(self, name: str, status: os.stat_result, wanted: str) -> str:
        path = self.path / name
        if stat.S_ISLNK(status.st_mode):
            return (
                f"{path} is a link to {os.readlink(name, dir_fd=self._handle)}, and nothing is written through links: "
                "remove it, or give the place that it leads to"
            )
        return f"{path} is {kind(status)} and not {wanted}: choose another place"


def kind(status: os.stat_result) -> str:
    """The kind of an entry of a folder, for messages."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a file")


def check_contained(root: Path) -> None:
    """Raise PlaceError if a link in a folder, or below it, leads out of it.

    After this check, paths within the folder stay within it.
    """
    top = os.path.realpath(root)
    folders = [str(root)]
    while folders:
        with suppress(FileNotFoundError, PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    end = os.path.realpath(entry.path)
                    if end != top and not end.startswith(top.rstrip("/") + "/"):
                        raise PlaceError(
                            f"{entry.path} is a link that leads out of {root}, to {os.readlink(entry.path)}: nothing "
                            "is read or written through it. Remove it, or put a copy of what is meant in its place"
                        )
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _plain(name: str) -> str:
    """The name, if it is that of an entry of a folder. Raises PlaceError for others."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise PlaceError(f"{name!r} names no file: give a name")
    return name


def hidden_stem(name: str) -> str:
    """The prefix of names of temporary files and folders for an entry; short enough for a suffix."""
    return f".{os.fsencode(name)[:_LONGEST].decode('utf-8', 'ignore')}."


def _temporary(name: str) -> str:
    return f"{hidden_stem(_plain(name))}{secrets.token_hex(8)}.tmp"

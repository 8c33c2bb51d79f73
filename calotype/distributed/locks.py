"""Locks on directories and files: one writing command at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from calotype.core.files import LOCK, check_place, hidden_stem, make_folder
from calotype.distributed import processes
from calotype.errors import RunError

WAIT = "wait for it or stop it"


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Lock a directory against a second writing command. The system releases the lock when this process dies.

    With several processes the first holds the lock.

    Args:
        doing: a participle for the message to the second command, such as "trained".

    Raises:
        RunError: another process holds the lock, or the directory is not writable.
    """
    with _held(folder / LOCK, folder, doing, WAIT):
        yield


@contextmanager
def locked_file(place: Path, remedy: str = WAIT) -> Iterator[None]:
    """Lock a file against a second writing command, by a hidden file beside it; creates its folder.

    Args:
        remedy: for the message to the second command.

    Raises:
        RunError: another process holds the lock, or the folder is not writable.
    """
    with _held(place.with_name(f"{hidden_stem(place.name)}lock"), place, "written", remedy):
        yield


@contextmanager
def _held(file: Path, what: Path, doing: str, remedy: str) -> Iterator[None]:
    lock = FileLock(file, timeout=0)

    def acquire() -> None:
        try:
            make_folder(file.parent)
            check_place(file)
            lock.acquire()
        except Timeout as error:
            raise RunError(f"{what} is being {doing} by another process: {remedy}") from error
        except OSError as error:
            raise RunError(f"{what} cannot be written ({error}): mend that, or copy it elsewhere") from error

    processes.by_first(acquire)
    try:
        yield
    finally:
        lock.release()

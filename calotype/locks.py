"""One command at a time in a directory that it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from calotype import processes
from calotype.errors import RunError
from calotype.files import LOCK, check_place


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a directory against a second command that writes it. The system frees it when this process dies.

    Of several processes that work together the first holds it.

    Args:
        doing: what is being done there, for the message to the second, such as "trained".

    Raises:
        RunError: another process holds it, or it cannot be written.
    """
    check_place(folder / LOCK)
    lock = FileLock(folder / LOCK, timeout=0)
    processes.by_first(lambda: _acquire(lock, folder, doing))
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, doing: str) -> None:
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(f"{folder} is being {doing} by another process: wait for it or stop it") from error
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error}): mend that, or copy it elsewhere") from error

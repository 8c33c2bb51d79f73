"""The directory of packed data sets: where a pack lies, and how it appears there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calotype.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def slug(address: str) -> str:
    """A short name for people, from the last part of an address."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", address.rstrip("/").rpartition("/")[2]).strip("-.")[:40] or "pictures"


def pack_path(root: Path, address: str, settings: dict[str, Any]) -> Path:
    """Where the pack of a source with these settings lies."""
    key = json.dumps([address, settings], sort_keys=True)
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return root / "packs" / f"{slug(address)}-{digest}"


@contextmanager
def new_pack(target: Path, needed: int) -> Iterator[Path]:
    """Give a temporary directory to fill, which becomes `target` if the block ends well, and is removed if not.

    Args:
        target: the pack; one that is there is replaced.
        needed: bytes that the block will write.

    Raises:
        DataError: the disk has no room, or the cache cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise _full_disk(target.parent, needed)
        temporary = target.parent / f".tmp-{target.name}-{socket.gethostname()}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise _unusable(target.parent, needed, error) from None
    try:
        yield temporary
        _publish(temporary, target)
    except OSError as error:
        if error.errno in _FULL:
            shutil.rmtree(temporary, ignore_errors=True)  # before looking at what is free
            raise _full_disk(target.parent, needed) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, target: Path) -> None:
    """Rename into place. A pack that is there goes aside first; whoever has it open keeps what they have."""
    _sync_directory(temporary)
    old = temporary.with_name(f"{temporary.name}-old")
    with contextlib.suppress(FileNotFoundError):
        target.rename(old)
    try:
        temporary.rename(target)
    finally:
        shutil.rmtree(old, ignore_errors=True)
    _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(packs: Path) -> None:
    """Remove what processes of this machine left behind when they were killed."""
    for path in packs.glob(".tmp-*"):
        found = re.search(rf"-{re.escape(socket.gethostname())}-(\d+)(-old)?$", path.name)
        if found and not _is_alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _unusable(folder: Path, needed: int, error: OSError) -> DataError:
    if error.errno in _FULL:
        return _full_disk(folder, needed)
    return DataError(
        f"the cache {folder} cannot be written to ({error.strerror}): set CALOTYPE_CACHE to a folder of yours"
    )


def _full_disk(folder: Path, needed: int) -> DataError:
    free = shutil.disk_usage(folder).free
    return DataError(
        f"no room for the packed pictures in {folder}: {_size(needed)} needed, {_size(free)} free (or a limit on the "
        "size of files): make room, or set CALOTYPE_CACHE to a folder on a larger disk"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

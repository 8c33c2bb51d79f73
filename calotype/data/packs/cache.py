"""The directory of packs: the path of each pack, and its atomic creation."""

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

from calotype.core.files import Folder, open_folder, remove_tree
from calotype.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def slug(address: str) -> str:
    """A short name for people, from the last part of an address."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", address.rstrip("/").rpartition("/")[2]).strip("-.")[:40] or "pictures"


def pack_path(packs: Path, address: str, settings: dict[str, Any]) -> Path:
    """The path of the pack of a source with these settings."""
    key = json.dumps([address, settings], sort_keys=True)
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return packs / f"{slug(address)}-{digest}"


@contextmanager
def new_pack(target: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary directory, which becomes `target` if the block succeeds, and is removed otherwise.

    Args:
        target: the path of the pack; an existing one is replaced.
        needed: bytes that the block will write.

    Raises:
        DataError: the disk has no room, or the cache cannot be written to.
    """
    try:
        with open_folder(target.parent, make=True) as packs:
            _remove_stale(packs)
            free = shutil.disk_usage(target.parent).free
            if free < needed:
                raise _full_disk(target.parent, needed)
            temporary = target.parent / f".tmp-{target.name}-{socket.gethostname()}-{os.getpid()}"
            packs.remove(temporary.name)
            packs.below(temporary.name, make=True).close()
    except OSError as error:
        raise unusable(target.parent, needed, error) from None
    try:
        yield temporary
        _publish(temporary, target)
    except OSError as error:
        if error.errno in _FULL:
            _remove(temporary)  # before looking at what is free
            raise _full_disk(target.parent, needed) from None
        raise
    finally:
        _remove(temporary)


def _publish(temporary: Path, target: Path) -> None:
    """Rename into place, after moving an existing pack aside; processes that have it open keep it."""
    old = f"{temporary.name}-old"
    with open_folder(target.parent) as packs:
        packs.below(temporary.name).sync()
        try:
            if packs.look(target.name) is not None:
                packs.move(target.name, old)
            packs.move(temporary.name, target.name)
        finally:
            packs.remove(old)
        packs.sync()


def _remove(path: Path) -> None:
    """Remove a folder as far as possible."""
    with contextlib.suppress(OSError):
        remove_tree(path)


def _remove_stale(packs: Folder) -> None:
    """Remove temporary folders of killed processes of this machine."""
    for name in packs.names():
        found = re.search(rf"^\.tmp-.*-{re.escape(socket.gethostname())}-(\d+)(-old)?$", name)
        if found and not _is_alive(int(found[1])):
            with contextlib.suppress(OSError):
                packs.remove(name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def unusable(folder: Path, needed: int, error: OSError) -> DataError:
    """The error for a cache that is not readable or writable, by permissions or for lack of space."""
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

"""Caches of results that can be recomputed, and the conditions under which they are trusted.

Compiled code is run, and packs and features determine results, so a cache is used only where this user and root alone
can write: the folder and all folders above it belong to them, and others have no write permission. In a folder above,
the sticky bit, as of /tmp, is enough. Where others can write, a folder of the user's own is used instead, with one
warning; CALOTYPE_CACHE_SHARED=1 trusts these others with everything except compiled code.

Entries carry a digest of their name and content; a damaged entry, or one of another key, is computed again.
"""

from __future__ import annotations

import atexit
import functools
import grp
import hashlib
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from calotype.core import environment
from calotype.core.files import make_private, open_folder, remove_tree
from calotype.core.paths import named
from calotype.core.untrusted import open_regular
from calotype.errors import ConfigError

_HEAD = b"calotype entry 1\n"
_DIGEST = 32  # bytes of SHA-256
_MOST_LINKS = 40  # in a path, as of Linux


def cache_root(cache: Path | None) -> Path:
    """The cache: the argument, else $CALOTYPE_CACHE, else calotype in $XDG_CACHE_HOME or ~/.cache; or its replacement
    if others can write there.
    """
    stated = _stated(cache)
    if _is_shared():
        return stated
    for place in _candidates(stated):
        make_private(place)
        if not weakness(place) and (place == stated or _is_usable(place)):
            if place != stated:
                _say(stated, place, weakness(stated))
            return place
    place = _of_this_process(os.geteuid())
    _say(stated, place, weakness(stated))
    return place


def cache_folder(kind: str, cache: Path | None = None) -> Path:
    """The folder of one kind of entries, such as features, in the cache; created if possible."""
    root = cache_root(cache)
    folder = root / kind
    make_private(folder)
    if not _is_shared() and (reason := weakness(folder)):
        other = root / f"{kind}-of-{os.geteuid()}"
        make_private(other)
        if weakness(other):
            other = _of_this_process(os.geteuid()) / kind
            make_private(other)
        _say(folder, other, reason)
        return other
    return folder


def code_folder() -> Path:
    """A folder for compiled code, to which nobody else can write."""
    folder = cache_folder("compiled")
    if weakness(folder):
        folder = _of_this_process(os.geteuid()) / "compiled"
        make_private(folder)
    return folder


def read_entry(kind: str, name: str, most: int) -> bytes | None:
    """The content of an entry of the cache; None if it is missing, or its digest does not match.

    Args:
        most: its maximum size in bytes.
    """
    try:
        with open_regular(cache_folder(kind) / name, most + len(_HEAD) + _DIGEST) as file:
            head, digest, content = file.read(len(_HEAD)), file.read(_DIGEST), file.read()
    except (OSError, ValueError):
        return None
    return content if head == _HEAD and digest == _digest(name, content) else None


def write_entry(kind: str, name: str, content: bytes) -> None:
    """Write an entry to the cache. A full or read-only cache is not an error: it costs time alone."""
    with suppress(OSError), open_folder(cache_folder(kind)) as folder:
        folder.sweep(name)
        folder.write(name, lambda file: file.writelines((_HEAD, _digest(name, content), content)))


def weakness(path: Path) -> str:
    """The reason why a path cannot be trusted: who else can write there; empty if only this user and root can.

    Links in the path are followed, and checked as folders are. A path that does not exist yet is as weak as the
    folders above it.
    """
    current, pending, links = Path("/"), [*reversed((Path.cwd() / path).parts[1:])], 0
    status = os.lstat(current)
    while pending:
        if reason := _weakness_above(current, status):
            return reason
        name = pending.pop()
        if name == "..":
            current = current.parent
            status = os.lstat(current)
            continue
        try:
            status = os.lstat(current / name)
        except OSError:  # it is not there, or nothing can be read there either
            return ""
        if not stat.S_ISLNK(status.st_mode):
            current = current / name
            continue
        links += 1
        if not _is_own(status) or links > _MOST_LINKS:
            return f"{current / name} is a link of another user's"
        target = Path(os.readlink(current / name))
        pending.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        current = Path("/") if target.is_absolute() else current
        status = os.lstat(current)
    if not _is_own(status):
        return f"{current} belongs to another user"
    return f"others can write to {current}" if _is_open(status) else ""


def _weakness_above(folder: Path, status: os.stat_result) -> str:
    """The same for a folder whose next entry on the path belongs to the user or root."""
    if not _is_own(status) and not (status.st_uid == _unmapped_user() or folder == Path("/")):
        return f"{folder} belongs to another user"
    return f"others can write to {folder}" if _is_open(status) and not status.st_mode & stat.S_ISVTX else ""


def _is_open(status: os.stat_result) -> bool:
    """Whether others can write to a folder or a file. A user's private group does not count."""
    mode = status.st_mode
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_private(status.st_gid)))


@functools.cache
def _is_private(group: int) -> bool:
    """Whether a group is this user's own, named for the user and without other members."""
    user = os.geteuid()
    if user == 0 or group != os.getegid():
        return False
    with suppress(KeyError):  # a user or a group without a name
        entry, name = grp.getgrgid(group), pwd.getpwuid(user).pw_name
        return entry.gr_name == name and set(entry.gr_mem) <= {name}
    return False


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


@functools.cache
def _unmapped_user() -> int:
    """The apparent owner of system folders in a user namespace that does not map root; -1 elsewhere."""
    try:
        first, _, count = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:3]
        whole = first == "0" and int(count) >= 2**32 - 1
        return -1 if whole else int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):  # there are no such namespaces here
        return -1


def _is_usable(folder: Path) -> bool:
    """Whether this user can read and write in a folder."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective)


def _is_shared() -> bool:
    return environment.text("CALOTYPE_CACHE_SHARED") == "1"


def _stated(cache: Path | None) -> Path:
    if cache:
        return cache
    if stated := environment.folder("CALOTYPE_CACHE"):
        return named(stated)
    home = environment.home()
    base = environment.folder("XDG_CACHE_HOME") or (home / ".cache" if home else None)
    if base is None:
        raise ConfigError("the user has no home for a cache: set CALOTYPE_CACHE to a folder of yours")
    return named(base / "calotype")


def _candidates(stated: Path) -> Iterator[Path]:
    """The candidate places of the cache, the best first."""
    yield stated
    yield stated / f"of-{os.geteuid()}"
    if home := environment.home():
        yield home / ".cache" / "calotype"


@functools.cache
def _of_this_process(user: int) -> Path:
    """A temporary cache that is deleted with the process."""
    place = Path(tempfile.mkdtemp(prefix="calotype-"))
    atexit.register(remove_tree, place)
    return place


@functools.cache
def _say(stated: Path, place: Path, reason: str) -> None:
    if environment.text("RANK", "0") == "0":
        print(
            f"calotype: nothing in the cache {stated} is used, since {reason}: {place} takes its place. Take the right "
            "to write there away from others (chmod go-w), set CALOTYPE_CACHE to a folder of yours, or, if you trust "
            "all who can write there, CALOTYPE_CACHE_SHARED to 1",
            file=sys.stderr,
        )


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()

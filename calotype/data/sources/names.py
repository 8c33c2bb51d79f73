"""Names of archive members in canonical form: parts between "/", without a root, a drive, "." and "..".

Archives are written by many programs. Some programs on Windows separate folders by "\\", which the formats do not allow
and which may be part of a name on other systems.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from calotype.core.display import counted

_DRIVE = re.compile(r"^(?://[?.]/)?[A-Za-z]:(?=/)")
_UNICODE_PATH = 0x7075  # extra field of a zip's entry: the name in UTF-8, with a checksum of the other
_UTF8_FLAG = 0x800
_WINDOWS_SYSTEMS = (0, 10, 14)  # of a zip's entry: FAT, NTFS, VFAT


class Normal(NamedTuple):
    """Canonical names, in their order, and notes on changes."""

    names: list[str]
    notes: tuple[str, ...]


def normal(name: str, backslashes: bool = False) -> str:
    r"""The canonical form of a name, possibly empty; `backslashes`: "\" separates folders."""
    if backslashes:
        name = _DRIVE.sub("", name.replace("\\", "/"))
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def normal_names(names: Sequence[str], windows: Sequence[bool]) -> Normal:
    r"""The canonical names of all files of an archive.

    "\" separates folders in names that Windows wrote, in names without "/", and where every name has one. Elsewhere it
    is part of the name.

    Args:
        names: from the archive, with bytes that are not UTF-8 as surrogates.
        windows: whether the archive marks each as written on Windows.
    """
    everywhere = all("\\" in name for name in names)
    found: list[str] = []
    separated: list[str] = []
    kept: list[str] = []
    for name, written in zip(names, windows, strict=True):
        backslashes = "\\" in name and (written or everywhere or "/" not in name)
        if "\\" in name:
            (separated if backslashes else kept).append(name)
        # What is not UTF-8 is shown escaped; no two names become the same.
        found.append(normal(name, backslashes).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    notes = []
    if separated:
        notes.append(
            f"{counted(len(separated), 'name of the archive has', 'names of the archive have')} "
            f"backslashes, which are read as separators of folders: "
            f"such as {separated[0]!a}."
        )
    if kept:
        notes.append(
            f"{counted(len(kept), 'name of the archive has', 'names of the archive have')} "
            f"backslashes beside slashes, which are read as part of the name: "
            f"such as {kept[0]!a}; make the archive again if they are to separate folders."
        )
    return Normal(found, tuple(notes))


class ZipName(NamedTuple):
    """The name of a zip's entry."""

    name: str
    windows: bool  # whether it was written on Windows
    guessed: bool  # whether it is not ASCII, and nothing says in which encoding it is


def zip_name(entry: zipfile.ZipInfo) -> ZipName:
    """The name of an entry, in UTF-8 if the archive declares or implies it, else in code page 437 as in zipfile."""
    name, guessed = entry.filename, False
    if not entry.flag_bits & _UTF8_FLAG and not name.isascii():
        raw = entry.orig_filename.encode("cp437")
        try:
            name = _unicode_path(entry.extra, raw) or raw.decode("utf-8")  # as macOS writes it, without the flag
        except UnicodeDecodeError:
            guessed = True
    return ZipName(name, entry.create_system in _WINDOWS_SYSTEMS, guessed)


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in the extra field that Info-ZIP defines for it. Raises UnicodeDecodeError."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(body) > 5 and body[0] == 1:
            (checksum,) = struct.unpack_from("<L", body, 1)
            return body[5:].decode("utf-8") if checksum == zlib.crc32(raw) else None
    return None

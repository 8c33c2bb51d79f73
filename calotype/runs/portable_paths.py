"""Paths in the config of a run or a comparison, stored so that the directory can be shared.

A shared run must not reveal where its owner keeps pictures. So config.toml names a path relative to its own directory,
such as ../../photos, where both lie below a folder whose name does not identify the user; such a path stays valid when
everything is moved together. Of any other path config.toml has the last part alone, and local.toml beside it has the
whole path, for this machine only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype import __version__
from calotype.core.config import config_file, read_toml, write_toml
from calotype.core.files import open_folder, write_atomic
from calotype.core.untrusted import brief
from calotype.errors import ConfigError

LOCAL = "local.toml"
FORMAT = 1  # of the configs of runs and comparisons; those of before it was written have this one
PATHS = (("data", "source"), ("latents", "run"), ("", "recipe"))  # entries by section; "": at the top
_NO_PATHS = ("glyphs", "glyphs:", "hub:")  # what sources may begin with that mean the same everywhere


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Write the config of a run or a comparison, and the paths for this machine alone in local.toml beside it.

    The version of Calotype and of the format come first.

    Args:
        values: plain values and sections, as for `write_toml`; paths are those of this machine.

    Raises:
        OSError, PlaceError: it cannot be written.
    """
    local: dict[str, Any] = {}
    content: dict[str, Any] = {"calotype": __version__, "format": FORMAT}
    content |= {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for section, key in PATHS:
        table = content.get(section, {}) if section else content
        if not table.get(key):
            continue
        whole = table[key]
        table[key] = _portable(whole, path.parent)
        if table[key] == _last(whole) != whole:
            (local.setdefault(section, {}) if section else local)[key] = _absolute(whole)
    place = path.with_name(LOCAL)
    if local:  # first, so that no config is without it
        _write(place, local)
    _write(path, content)
    if not local:
        with open_folder(path.parent) as folder:
            folder.remove(LOCAL)


def read_config(path: Path) -> dict[str, Any]:
    """The values of the config of a run or a comparison, or of a recipe, with the paths of this machine.

    Paths in a recipe written by hand are not changed.

    Raises:
        ConfigError: it cannot be read, or is of a format that a later version of Calotype wrote.
    """
    path = config_file(path)
    values = read_toml(path)
    if "calotype" not in values:
        return values
    found = values.pop("format", 1)
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise ConfigError(
            f"{path} has the format {brief(found)}, and this version of Calotype, {__version__}, reads formats up to "
            f"{FORMAT}: update Calotype"
        )
    place = path.with_name(LOCAL)
    local = read_toml(place) if place.is_file() else {}
    for section, key in PATHS:
        table = values.get(section) if section else values
        known = local.get(section) if section else local
        if not isinstance(table, dict) or not isinstance(text := table.get(key), str):
            continue
        whole = known.get(key) if isinstance(known, Mapping) else None
        if text.startswith(("./", "../")):
            table[key] = os.path.normpath(path.parent.absolute() / text)
        elif isinstance(whole, str) and _last(whole) == text:
            table[key] = whole
    return values


def shareable(text: str | Path) -> str:
    """A path as it appears in shared files: of an absolute path or an address the last part alone."""
    text = str(text)
    return _last(text) if os.path.isabs(text) or text.startswith("~") or "://" in text else text


def _write(path: Path, values: Mapping[str, Any]) -> None:
    text = write_toml(values)
    write_atomic(path, lambda file: file.write(text.encode()), path.parent)


def _portable(whole: str, folder: Path) -> str:
    if whole.startswith(_NO_PATHS) and not os.path.isabs(whole):
        return whole
    if "://" in whole:
        return _last(whole)
    relative = Path(os.path.relpath(_absolute(whole), folder.absolute()))
    home = Path(os.path.expanduser("~"))
    common = Path(os.path.commonpath([_absolute(whole), folder.absolute()]))
    if common in (Path(common.anchor), *home.parents) or home.name in relative.parts:
        return _last(whole)
    return relative.as_posix() if relative.parts[:1] == ("..",) else f"./{relative.as_posix()}"


def _absolute(whole: str) -> str:
    return whole if "://" in whole else os.path.abspath(os.path.expanduser(whole))


def _last(whole: str) -> str:
    """The last part of a path or an address, without the query of the address."""
    name = whole.split("?")[0] if "://" in whole else whole
    return name.rstrip("/").rpartition("/")[2] or "pictures"

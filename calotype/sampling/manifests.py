"""The manifest of a folder of samples, `samples.json`: what made the pictures; and a lock while a command writes there.

An interrupted command continues in its folder; a command with other settings is refused before it draws anything, so
no folder mixes the pictures of two models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calotype.core.files import LOCK, open_folder, write_atomic
from calotype.core.outputs import MANIFEST
from calotype.core.untrusted import brief, read_json
from calotype.distributed import processes
from calotype.distributed.locks import locked
from calotype.errors import RunError

TOLD = ("command", "run", "checkpoint", "classes")  # entries for people; the others decide the pictures


class Maker(NamedTuple):
    """The model and settings that make the pictures of a folder."""

    command: str
    facts: Mapping[str, Any]  # what decides the pictures: weights, seed, options; has to agree to continue
    told: Mapping[str, Any] = {}  # run, checkpoint and classes, for people; entries of TOLD

    def manifest(self) -> dict[str, Any]:
        """The content of samples.json."""
        return {"command": self.command} | dict(self.told) | dict(self.facts)


def digest(*arrays: np.ndarray | None) -> str:
    """SHA-256 of arrays: their types, shapes and values."""
    found = hashlib.sha256()
    for array in arrays:
        if array is not None:
            found.update(f"{array.dtype.str} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        found.update(b";")
    return found.hexdigest()


@contextmanager
def writing(maker: Maker, folder: Path, option: str) -> Iterator[None]:
    """Lock a folder of pictures against other commands, creating it if needed, and claim it.

    With several processes all call it, and the first locks and claims.

    Args:
        option: the option that names the folder, such as "--out".

    Raises:
        RunError: the folder holds pictures of another maker or other files, is locked, or cannot be used.
    """
    processes.by_first(lambda: _make(folder, option))
    with locked(folder, "written"):
        processes.by_first(lambda: claim(maker, folder, option))
        yield


def claim(maker: Maker, folder: Path, option: str) -> None:
    """Claim a folder for this maker, or verify an earlier claim. Arguments and errors as of `writing`."""
    _make(folder, option)
    place = folder / MANIFEST
    try:
        if place.exists():
            _check(maker, folder, read_json(place), option)
            return
        there = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
        if there:
            raise RunError(
                f"{folder} is not empty and has no {MANIFEST} that says which model made {there[0]}: choose another "
                f"{option}, or empty it"
            )
        write_atomic(place, lambda file: file.write(json.dumps(maker.manifest(), indent=1).encode()))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} cannot be used for pictures ({error}): choose another {option}") from error


def _make(folder: Path, option: str) -> None:
    try:
        with open_folder(folder, make=True) as opened:
            opened.sweep()  # what was half-written when a command was killed
    except OSError as error:
        raise RunError(f"{folder} cannot be used for pictures ({error}): choose another {option}") from error


def _check(maker: Maker, folder: Path, there: Any, option: str) -> None:
    """Raise RunError if a manifest is of another maker. Earlier versions wrote no entries for people."""
    known = there if isinstance(there, dict) else {}
    wanted = json.loads(json.dumps(maker.manifest()))
    if maker.command != known.get("command", "sample") or _deciding(known) != _deciding(wanted):
        names = [name for name in {**known, **wanted} if name not in TOLD and known.get(name) != wanted.get(name)]
        said = {"weights_sha256": "other weights", "pictures_sha256": "other pictures"}
        differences = ", ".join(said.get(name, f"another {brief(name)}") for name in names) or "another command"
        raise RunError(
            f"{folder} holds pictures of {_told(known)}, and these would be of {_told(wanted)} with other settings "
            f"({differences}): choose another {option}, or remove the folder"
        )


def _deciding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in TOLD}


def _told(manifest: Mapping[str, Any]) -> str:
    """A maker for messages, such as: sample, run photos at 20000 images."""
    command, run, at = (manifest.get(name) for name in ("command", "run", "checkpoint"))
    text = f"`calotype {command if isinstance(command, str) and command.isalpha() else 'sample'}`"
    if run is not None:
        text += f" from run {brief(run)}"
    return text if at is None else f"{text} at {brief(at)} images"

"""Checkpoints: directories of safetensors and JSON, written whole or not at all, verified when read.

`<images seen, 12 digits>/` holds model.safetensors, ema.safetensors, optimizers.safetensors and state.json with the
counters and the SHA-256 of the other files. A checkpoint is built under a temporary name, flushed to the disk and
renamed, so that a name without a dot is always a finished one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calotype.errors import RunError

FORMAT = 1


class DamagedCheckpoint(RunError):
    """A checkpoint whose files are not what was written."""


def write(parent: Path, images_seen: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a trainer's state_dict as a checkpoint below `parent`; returns its directory.

    Args:
        facts: plain values to keep with it, such as the held-out loss.

    Raises:
        RunError: when the disk is full or not writable; nothing half-written stays.
    """
    final = parent / f"{images_seen:012d}"
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        temporary.mkdir()
        files = {
            "model.safetensors": state["model"],
            "ema.safetensors": state["ema"],
            "optimizers.safetensors": _flatten(state["optimizers"]),
        }
        digests = {name: _write_tensors(temporary / name, tensors) for name, tensors in files.items()}
        content = {
            "format": FORMAT,
            "images_seen": images_seen,
            "counters": state["counters"],
            "facts": facts,
            "sha256": digests,
        }
        with (temporary / "state.json").open("w", encoding="utf-8") as file:
            file.write(json.dumps(content | {"sha256_state": _digest_of(content)}, indent=1))
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(temporary)
        if final.exists():
            remove(final)  # the same position again, after a return: its content may differ
        temporary.rename(final)
        _sync_directory(parent)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(parent if parent.exists() else parent.parent).free
        raise RunError(
            f"the checkpoint {final} could not be written ({error}); {free / 1e6:.0f} MB are free there. "
            "Earlier checkpoints are intact: make room, then continue with --resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def found(parent: Path) -> list[Path]:
    """The checkpoints below `parent`, oldest first."""
    return sorted(path for path in parent.glob("[0-9]*") if path.is_dir())


def facts(path: Path) -> dict[str, Any]:
    """What was kept with a checkpoint. Raises DamagedCheckpoint."""
    return _content(path)["facts"]


def digest(path: Path, name: str) -> str:
    """The SHA-256 of the weights `name` of a checkpoint. Raises DamagedCheckpoint."""
    return _content(path)["sha256"][f"{name}.safetensors"]


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, `model` or `ema`, verified. Raises DamagedCheckpoint."""
    return _read_tensors(path / f"{name}.safetensors", _content(path)["sha256"])


def read(path: Path) -> dict[str, Any]:
    """The state_dict that `write` was given. Raises DamagedCheckpoint."""
    content = _content(path)
    tensors = {name: _read_tensors(path / f"{name}.safetensors", content["sha256"]) for name in ("model", "ema")}
    flat = _read_tensors(path / "optimizers.safetensors", content["sha256"])
    return {"counters": content["counters"], **tensors, "optimizers": _unflatten(flat)}


def remove(path: Path) -> None:
    """Delete a checkpoint; killed half-way, what remains is a leftover and no checkpoint."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Delete what killed processes left unfinished. Only for the process that holds the run's lock."""
    for path in parent.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _read_tensors(path: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != digests[path.name]:
            raise DamagedCheckpoint(f"{path} is damaged: its checksum is not the one that was written")
        return load_file(path)
    except (OSError, KeyError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error})") from error


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / "state.json").read_text(encoding="utf-8"))
        stated = content.pop("sha256_state")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path / 'state.json'} cannot be read ({error})") from error
    if stated != _digest_of(content):
        raise DamagedCheckpoint(f"{path / 'state.json'} is damaged: its checksum is not the one that was written")
    if content["format"] != FORMAT:
        raise RunError(f"{path} has checkpoint format {content['format']}, this calotype reads {FORMAT}: update it")
    return content


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flatten(optimizers: Mapping[str, Mapping[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    return {
        f"{player}|{index}|{key}": torch.as_tensor(value)
        for player, moments in optimizers.items()
        for index, entry in moments.items()
        for key, value in entry.items()
    }


def _unflatten(flat: Mapping[str, Tensor]) -> dict[str, dict[int, dict[str, Tensor]]]:
    nested: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, value in flat.items():
        player, index, key = name.split("|")
        nested.setdefault(player, {}).setdefault(int(index), {})[key] = value
    return nested

"""Checkpoints: directories of safetensors and JSON, written whole or not at all, verified when read.

`<images seen, 12 digits>/` holds model.safetensors, ema.safetensors, optimizers.safetensors and state.json with the
counters and the SHA-256 of the other files. A checkpoint is built under a temporary name, flushed to the disk and
renamed, so that a name without a dot is always a finished one.

Where processes divide the weights, model and optimizers are directories of such files, of the slices that each process
had, written and read by torch's distributed checkpoint; any number of processes can go on from them, and one alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from calotype import processes
from calotype.dividing import divided_as, divided_zeros, is_divided
from calotype.errors import RunError

FORMAT = 1
PARTS = ("model", "ema", "optimizers")


class DamagedCheckpoint(RunError):
    """A checkpoint whose files are not what was written."""


def write(parent: Path, images_seen: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a trainer's state_dict as a checkpoint below `parent`; returns its directory.

    Args:
        facts: plain values to keep with it, such as the held-out loss.

    Raises:
        RunError: when the disk is full or not writable; nothing half-written stays.
    """
    with _new(parent, images_seen) as temporary:
        digests = {}
        for name, tensors in zip(PARTS, _flat(state), strict=True):
            digests[f"{name}.safetensors"] = _write_tensors(temporary / f"{name}.safetensors", tensors)
        _finish(temporary, parent, images_seen, state, facts, digests)
    return _place(parent, images_seen)


def write_divided(parent: Path, images_seen: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """The same for a trainer whose weights are divided; all processes have to call it.

    Args:
        state: its state_dict, whose averages the first process has whole.

    Raises:
        RunError: in all processes, where one could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    model, averages, optimizers = _flat(state)
    temporary = Path(processes.by_first(lambda: str(_begin(parent, images_seen))))
    with _told(parent, images_seen):
        try:
            for name, tensors in (("model", model), ("optimizers", optimizers)):
                writer = HuggingFaceStorageWriter(str(temporary / name), save_distributed=True)
                save(dict(tensors), storage_writer=writer)
        except CheckpointException as error:  # in all processes, and no Exception
            if processes.is_first():
                shutil.rmtree(temporary, ignore_errors=True)
            raise OSError("; ".join(str(failure[0]) for failure in error.failures.values())) from error

    def finish() -> None:
        with _told(parent, images_seen), _removed(temporary):
            digests = {"ema.safetensors": _write_tensors(temporary / "ema.safetensors", averages)}
            for file in sorted(temporary.glob("*/*.safetensors")):
                digests[str(file.relative_to(temporary))] = _digest(file)
            _finish(temporary, parent, images_seen, state, facts, digests)

    processes.by_first(finish)


def _place(parent: Path, images_seen: int) -> Path:
    return parent / f"{images_seen:012d}"


@contextmanager
def _told(parent: Path, images_seen: int) -> Iterator[None]:
    """Say what it means where files cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(parent if parent.exists() else parent.parent).free
        raise RunError(
            f"the checkpoint {_place(parent, images_seen)} could not be written ({error}); {free / 1e6:.0f} MB are "
            "free there. Earlier checkpoints are intact: make room, then continue with --resume"
        ) from error


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _new(parent: Path, images_seen: int) -> Iterator[Path]:
    """A directory to build a checkpoint in, which is gone afterwards, as it then has another name or is of no use."""
    temporary = _begin(parent, images_seen)
    with _told(parent, images_seen), _removed(temporary):
        yield temporary


def _begin(parent: Path, images_seen: int) -> Path:
    temporary = parent / f".{_place(parent, images_seen).name}.{os.getpid()}.tmp"
    with _told(parent, images_seen):
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        temporary.mkdir()
    return temporary


def _finish(
    temporary: Path,
    parent: Path,
    images_seen: int,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    digests: Mapping[str, str],
) -> None:
    """Write what says what there is, and give the whole its name."""
    final = _place(parent, images_seen)
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
    """The tensors of one part of a checkpoint, `model` or `ema`, verified. Raises DamagedCheckpoint."""
    return _part(path, name, _content(path)["sha256"])


def read(path: Path) -> dict[str, Any]:
    """The state_dict that was written, whole. Raises DamagedCheckpoint."""
    content = _content(path)
    tensors = {name: _part(path, name, content["sha256"]) for name in PARTS}
    return {**tensors, "counters": content["counters"], "optimizers": _unflatten(tensors["optimizers"])}


def verify(path: Path) -> None:
    """Raise DamagedCheckpoint where files are not what was written."""
    for name, digest in _content(path)["sha256"].items():
        _check(path / name, digest)


def read_divided(
    path: Path,
    weights: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    params: Mapping[str, Sequence[Tensor]],
) -> dict[str, Any]:
    """The state_dict for a trainer whose weights are divided, of which each process reads its slices.

    All processes have to call it, with a checkpoint that is sound, however it was written.

    Args:
        weights, averages: of the trainer; they become those read.
        params: of each player, which moments are divided as.
    """
    moments: dict[str, Tensor] = {}
    for name, (shape, dtype) in _layout(path, "optimizers").items():
        player, index, _ = name.split("|")
        like = params[player][int(index)]
        whole = shape != like.shape or not is_divided(like)
        moments[name] = torch.zeros(shape, dtype=dtype) if whole else divided_zeros(like, dtype)
    filled = {"model": dict(weights), "ema": dict(averages), "optimizers": moments}
    for name, tensors in filled.items():
        _fill(path, name, tensors, alone=False)
    return {**filled, "counters": _content(path)["counters"], "optimizers": _unflatten(moments)}


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
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _check(path: Path, wanted: str) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error})") from error
    if digest != wanted:
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is not the one that was written")


def _part(path: Path, name: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a part, of one file or put together from slices, when its files are as they were written."""
    alone = f"{name}.safetensors"
    if alone in digests:
        _check(path / alone, digests[alone])
        try:
            return load_file(path / alone)
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{path / alone} cannot be read ({error})") from error
    slices = [file for file in digests if file.startswith(f"{name}/")]
    if not slices:
        raise DamagedCheckpoint(f"{path} has no {alone}")
    for file in slices:
        _check(path / file, digests[file])
    tensors = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in _layout(path, name).items()}
    _fill(path, name, tensors, alone=True)
    return tensors


def _layout(path: Path, name: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The shapes and types of the tensors of a part."""
    if (path / name).is_dir():
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        known = HuggingFaceStorageReader(str(path / name)).read_metadata().state_dict_metadata
        entries = {key: entry for key, entry in known.items() if isinstance(entry, TensorStorageMetadata)}
        return {key: (entry.size, entry.properties.dtype) for key, entry in entries.items()}
    with safe_open(path / f"{name}.safetensors", "pt") as file:
        tensors = ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118, as it is no mapping
        return {key: (tensor.shape, tensor.dtype) for key, tensor in tensors}


def _fill(path: Path, name: str, tensors: dict[str, Tensor], alone: bool) -> None:
    """Read a part into tensors, which may be divided.

    Args:
        alone: whether this process reads for itself; otherwise all do so together.
    """
    if (path / name).is_dir():
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what `alone` says
                load(tensors, storage_reader=HuggingFaceStorageReader(str(path / name)), no_dist=alone)
        except CheckpointException as error:
            raise DamagedCheckpoint(f"{path / name} cannot be read ({error.failures})") from error
        return
    with safe_open(path / f"{name}.safetensors", "pt") as file, torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(divided_as(file.get_tensor(key).to(tensor.device), tensor))


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


def _flat(state: Mapping[str, Any]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The tensors of the parts of a state_dict."""
    return state["model"], state["ema"], _flatten(state["optimizers"])


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

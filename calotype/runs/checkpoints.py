"""Checkpoints: directories of safetensors and JSON, written atomically and verified when read.

`<images seen, 12 digits>/` holds model.safetensors, ema.safetensors, optimizers.safetensors and state.json with the
counters and the SHA-256 of the other files. A checkpoint is built under a temporary name, flushed to disk and renamed,
so a name without a dot always belongs to a complete checkpoint.

Where the weights are sharded over processes, model and optimizers are directories of such files, one for the slices of
each process, written and read by torch's distributed checkpoint. Any number of processes, or a single one, can
continue from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from calotype.core.files import Folder, open_folder, remove_tree
from calotype.core.untrusted import brief, check_regular, read_json
from calotype.distributed import processes
from calotype.distributed.sharding import divided_as, divided_zeros, is_divided
from calotype.errors import RunError

FORMAT = 1
PARTS = ("model", "ema", "optimizers")
SCORES = ("score", "held_out")  # among the facts; the first that is there says how good a checkpoint is
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NAME = re.compile(r"[0-9]{12,18}")  # images seen; no run comes to more
_LEFTOVER = re.compile(r"\.[0-9]{12,18}\.[0-9a-z]+\.tmp")
_FILE = re.compile(r"(model|ema|optimizers)(/[A-Za-z0-9_-]{1,80})?\.safetensors")  # alone, or a slice


class DamagedCheckpoint(RunError):
    """A checkpoint whose files do not match their checksums."""


def write(parent: Path, images_seen: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a trainer's state_dict as a checkpoint below `parent`; returns its directory.

    Args:
        facts: plain values to store with it, such as the held-out loss.

    Raises:
        RunError: the disk is full or not writable; no partial checkpoint stays.
    """
    with _new(parent, images_seen) as temporary:
        digests = {}
        for name, tensors in zip(PARTS, _flat(state), strict=True):
            digests[f"{name}.safetensors"] = _write_tensors(temporary / f"{name}.safetensors", tensors)
        _finish(temporary, parent, images_seen, state, facts, digests)
    return _place(parent, images_seen)


def write_divided(parent: Path, images_seen: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint of a trainer with sharded weights; all processes have to call it.

    Args:
        state: the state_dict of the trainer; its averages are whole in the first process.

    Raises:
        RunError: in all processes, if one could not write.
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
                _drop(temporary)
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
    """Turn an OSError while writing into a RunError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter, too, is of the disk: what is written is sound
        free = shutil.disk_usage(parent if parent.exists() else parent.parent).free
        raise RunError(
            f"the checkpoint {_place(parent, images_seen)} could not be written ({error}); {free / 1e6:.0f} MB are "
            "free there. Earlier checkpoints are intact: make room, then continue with --resume"
        ) from (error if isinstance(error, OSError) else OSError(str(error)))


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        _drop(temporary)


def _drop(temporary: Path) -> None:
    with suppress(OSError):
        remove_tree(temporary)


@contextmanager
def _new(parent: Path, images_seen: int) -> Iterator[Path]:
    """A temporary directory to build a checkpoint in; afterwards it has been renamed or is deleted."""
    temporary = _begin(parent, images_seen)
    with _told(parent, images_seen), _removed(temporary):
        yield temporary


def _begin(parent: Path, images_seen: int) -> Path:
    with _told(parent, images_seen), open_folder(parent, parent.parent, make=True) as folder:
        _remove_leftovers(folder)
        return folder.make(_place(parent, images_seen).name)


def _finish(
    temporary: Path,
    parent: Path,
    images_seen: int,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    digests: Mapping[str, str],
) -> None:
    """Write state.json with the checksums, and rename the directory to its final name."""
    final = _place(parent, images_seen)
    content = {
        "format": FORMAT,
        "images_seen": images_seen,
        "counters": state["counters"],
        "facts": facts,
        "sha256": digests,
    }
    with open_folder(temporary, parent) as folder:
        with folder.create("state.json") as file:
            file.write(json.dumps(content | {"sha256_state": _digest_of(content)}, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        folder.sync()
    remove(final)  # the same position again, after a return: its content may differ
    with open_folder(parent, parent.parent) as folder:
        folder.move(temporary.name, final.name)
        folder.sync()


def found(parent: Path) -> list[Path]:
    """The checkpoints below `parent`, oldest first."""
    named = (path for path in parent.glob("[0-9]*") if _NAME.fullmatch(path.name))
    return sorted(path for path in named if path.is_dir() and not path.is_symlink())


def facts(path: Path) -> dict[str, Any]:
    """The facts stored with a checkpoint: numbers or None by name, and settings. Raises DamagedCheckpoint."""
    return _content(path)["facts"]


class ReadWeights(NamedTuple):
    """One part of a checkpoint."""

    digest: str  # SHA-256 of its file, or of the list of those of its slices
    tensors: dict[str, Tensor]


def read_weights(path: Path, name: str, wanted: Mapping[str, Tensor] | None = None) -> ReadWeights:
    """The tensors of one part of a checkpoint, `model` or `ema`, verified.

    Args:
        wanted: the tensors of the network; names, shapes and dtypes in the files are compared with them before any
            tensor is read.

    Raises:
        DamagedCheckpoint: a file does not match its checksum.
        RunError: the files are sound, but of another network.
    """
    digests = _content(path)["sha256"]  # once, since training may write the same position again
    own = [digests[file] for file in _files(name, digests)]
    return ReadWeights(own[0] if len(own) == 1 else _digest_of(own), _part(path, name, digests, wanted))


def read(path: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """The whole state_dict of a checkpoint. Arguments and errors as of `read_weights`."""
    content = _content(path)
    digests = content["sha256"]
    weights = {name: _part(path, name, digests, wanted) for name in ("model", "ema")}
    flat = _part(path, "optimizers", digests)
    return {**weights, "counters": content["counters"], "optimizers": _unflatten(flat, path)}


def verify(path: Path, wanted: Mapping[str, Tensor] | None = None) -> None:
    """Compare files with their checksums. Arguments and errors as of `read_weights`."""
    digests = _content(path)["sha256"]
    for name in digests:
        _check(path, name, digests)
    if wanted is not None:
        for part in ("model", "ema"):
            _compare(path, part, digests, wanted)


def read_divided(
    path: Path,
    weights: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    params: Mapping[str, Sequence[Tensor]],
) -> dict[str, Any]:
    """The state_dict for a trainer with sharded weights; each process reads its slices.

    All processes have to call it, with a sound checkpoint, sharded or not.

    Args:
        weights, averages: tensors of the trainer, which are overwritten.
        params: the parameters of each player; moments are sharded like them.
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
    return {**filled, "counters": _content(path)["counters"], "optimizers": _unflatten(moments, path)}


def remove(path: Path) -> None:
    """Delete a checkpoint if it exists. It is renamed first, so an interrupted deletion leaves no checkpoint."""
    with open_folder(path.parent, path.parent.parent) as folder:
        if folder.look(path.name) is not None:
            doomed = f".{path.name}.old.tmp"
            folder.move(path.name, doomed)
            folder.remove(doomed)


def put_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it no longer counts as one; returns the new name."""
    aside = path.with_name(f"damaged-{path.name}")
    with open_folder(path.parent, path.parent.parent) as folder:
        folder.remove(aside.name)  # the same position may have been damaged before
        folder.move(path.name, aside.name)
    return aside


def _remove_leftovers(folder: Folder) -> None:
    """Delete partial checkpoints of killed processes. Only for the process that holds the run's lock."""
    for name in folder.names():
        if _LEFTOVER.fullmatch(name):
            with suppress(OSError):
                folder.remove(name)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _check(path: Path, name: str, digests: Mapping[str, str]) -> None:
    """Raise DamagedCheckpoint if a file does not match its checksum."""
    file = path / name
    try:
        check_regular(file)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{file} cannot be read ({error})") from error
    if digest != digests[name]:
        raise DamagedCheckpoint(f"{file} is damaged: its checksum is not the one that was written")


def _files(name: str, digests: Mapping[str, str]) -> list[str]:
    """The files of a part: one, or one for each slice."""
    return [file for file in digests if file == f"{name}.safetensors" or file.startswith(f"{name}/")]


def _compare(path: Path, name: str, digests: Mapping[str, str], wanted: Mapping[str, Tensor]) -> None:
    """Raise RunError if a part is of another network, DamagedCheckpoint if its layout cannot be read."""
    found = {key: (tuple(shape), dtype in FLOATS) for key, (shape, dtype) in _layout(path, name).items()}
    told = {key: (tuple(tensor.shape), tensor.is_floating_point()) for key, tensor in wanted.items()}
    odd = sorted(key for key in found.keys() | told.keys() if found.get(key) != told.get(key))
    if not odd:
        return
    for file in _files(name, digests):
        _check(path, file, digests)  # a bit of the file's head may have flipped
    raise RunError(
        f"{path / name}.safetensors is not of the network that config.toml describes: {len(odd)} tensors differ, such "
        f"as {brief(odd[0])}. Restore config.toml, or the checkpoints that were made with it"
    )


def _part(
    path: Path, name: str, digests: Mapping[str, str], wanted: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of a part, from one file or assembled from slices, after verifying checksums."""
    if wanted is not None:
        _compare(path, name, digests, wanted)
    files = _files(name, digests)
    for file in files:
        _check(path, file, digests)
    if files == [f"{name}.safetensors"]:
        try:
            return load_file(path / files[0])
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{path / files[0]} cannot be read ({error})") from error
    tensors = {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in _layout(path, name).items()}
    _fill(path, name, tensors, alone=True)
    return tensors


def _layout(path: Path, name: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The shapes and types of the tensors of a part, as its files claim. Raises DamagedCheckpoint."""
    if (path / name).is_dir():
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        try:
            for file in (path / name).iterdir():
                check_regular(file)
            known = HuggingFaceStorageReader(str(path / name)).read_metadata().state_dict_metadata
        except (OSError, ValueError, KeyError, TypeError, AssertionError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{path / name} cannot be read ({error})") from error
        entries = {key: entry for key, entry in known.items() if isinstance(entry, TensorStorageMetadata)}
        return {key: (entry.size, entry.properties.dtype) for key, entry in entries.items()}
    file = path / f"{name}.safetensors"
    try:
        check_regular(file)
        with safe_open(file, "pt") as opened:
            tensors = ((key, opened.get_tensor(key)) for key in opened.keys())  # noqa: SIM118, as it is no mapping
            return {key: (tensor.shape, tensor.dtype) for key, tensor in tensors}
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{file} cannot be read ({error})") from error


def _fill(path: Path, name: str, tensors: dict[str, Tensor], alone: bool) -> None:
    """Read a part into tensors, which may be sharded.

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
    file = path / "state.json"
    try:
        content = read_json(file)
        stated = content.pop("sha256_state")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"{file} cannot be read ({error})") from error
    if stated != _digest_of(content):
        raise DamagedCheckpoint(f"{file} is damaged: its checksum is not the one that was written")
    if content.get("format") != FORMAT:
        raise RunError(
            f"{path} has checkpoint format {brief(content.get('format'))}, this calotype reads {FORMAT}: update it"
        )
    if _NAME.fullmatch(path.name) and content.get("images_seen") != int(path.name):
        raise DamagedCheckpoint(f"{path} is not the checkpoint that its name says: its state.json is of another")
    if not _is_whole(content):
        raise DamagedCheckpoint(f"{file} does not hold what a checkpoint does, though its checksum is right")
    return content


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Whether the facts are numbers, the checksums texts, and the counters whole numbers."""
    facts, digests, counters = (content.get(name) for name in ("facts", "sha256", "counters"))
    if not (isinstance(facts, dict) and isinstance(digests, dict) and isinstance(counters, dict)):
        return False
    counted = [n for value in counters.values() for n in (value.values() if isinstance(value, dict) else [value])]
    return (
        isinstance(facts.get("settings", {}), dict)
        and all(facts.get(name) is None or type(facts[name]) in (int, float) for name in SCORES)
        and all(_FILE.fullmatch(name) and isinstance(digest, str) for name, digest in digests.items())
        and all(_files(name, digests) for name in PARTS)
        and "ema.safetensors" in digests
        and all(type(n) is int and n >= 0 for n in counted)
    )


def _digest_of(content: Mapping[str, Any] | Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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


def _unflatten(flat: Mapping[str, Tensor], path: Path) -> dict[str, dict[int, dict[str, Tensor]]]:
    nested: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, value in flat.items():
        player, _, rest = name.partition("|")
        index, _, key = rest.partition("|")
        if not re.fullmatch("[0-9]{1,9}", index):
            raise DamagedCheckpoint(f"{path / 'optimizers.safetensors'} has moments of no parameter, {brief(name)}")
        nested.setdefault(player, {}).setdefault(int(index), {})[key] = value
    return nested

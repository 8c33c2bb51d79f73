"""Several processes on one job, as started by `torchrun`: rank, size, collective operations and agreement on errors.

In training each process takes its rows of every batch and all hold the same weights; sums over processes are the same
for each. Drawing and measuring are led by the first process, see `work_sharing`. In a single process, the usual case,
nothing here has an effect. Communication uses torch.distributed: gloo between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from calotype.core import environment
from calotype.errors import CalotypeError, ConfigError, LostProcesses, StoppedElsewhere, passes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
MEETING = timedelta(seconds=300)  # until all have come, as torch has it
PATIENCE = 1_800.0  # seconds for the others; the first alone measures at checkpoints
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # of torchrun: each attempt gets a store of its own
ANSWER = 5.0  # seconds for an answer, where it is asked who is still there
REMEDY = "The run is kept as of its last checkpoint, and goes on with --resume"
_board: Store | None = None  # where it is answered who is still there
_meshes: dict[tuple[str, int], DeviceMesh] = {}
_remedy = REMEDY
_alone = False  # whether this process acts by itself for a while: the others do not wait for it in the same place


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _together() -> bool:
    return not _alone and _joined()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _together() else 1


def is_first() -> bool:
    """Whether this is the first process, which writes files and messages."""
    return rank() == 0


@contextmanager
def joined(remedy: str = REMEDY) -> Iterator[None]:
    """Join the process group that the environment variables describe; without them do nothing.

    Nested blocks, and blocks within an existing process group, do nothing either.

    Args:
        remedy: a sentence on what is kept and what to do if other processes are lost.
    """
    count = environment.whole("WORLD_SIZE", 1, least=1)
    if count < 2 or _joined():
        yield
        return
    # Its functions have the group of the moment of its import as a default, which lives on by that: threads of gloo are
    # then still there when Python ends, and abort the process now and then. Optimizers import it.
    import torch.distributed.nn.functional

    global _board, _remedy
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    environment.required("RANK", f"WORLD_SIZE is {count}")
    number = environment.whole("RANK", 0, most=count - 1)
    patience = timedelta(seconds=environment.seconds("CALOTYPE_PATIENCE", PATIENCE))
    _board, _remedy = _store(number, count, patience), remedy
    dist.init_process_group(backend, store=_board, rank=number, world_size=count, timeout=patience)
    try:
        yield
        any_of(0)  # none leaves while another still waits for it
    finally:
        dist.destroy_process_group()
        for mesh in _meshes.values():  # which torch keeps for good, and by them groups of processes and their threads
            vars(mesh).get("_pg_registry", {}).clear()
        _meshes.clear()
        gc.collect()
        _board = None


def _store(number: int, count: int, patience: timedelta) -> Store:
    """The rendezvous store: that of torchrun if it keeps one, else one kept by the first process.

    Its keys have the number of the attempt as a prefix: otherwise processes that torchrun restarts would find the
    addresses of their predecessors. Each machine counts its own attempts, and a new machine begins at 0: so several
    machines with restarts need a separate store per attempt, which the first process keeps.

    Raises:
        ConfigError: torchrun's store cannot serve restarts on several machines, or the address is not set.
        LostProcesses: the other processes do not connect.
    """
    theirs = environment.text("TORCHELASTIC_USE_AGENT_STORE") == "True"
    machines = environment.whole("GROUP_WORLD_SIZE", 1, least=1)
    if theirs and machines > 1 and may_be_restarted():
        raise ConfigError(
            f"torchrun is to start processes again on {machines} machines, and would not bring them together: set "
            f"{OWN_STORE}=1 in the environment of each torchrun, and use --rdzv-backend c10d"
        )
    address = environment.required("MASTER_ADDR", f"WORLD_SIZE is {count}")
    environment.required("MASTER_PORT", f"WORLD_SIZE is {count}")
    port = environment.whole("MASTER_PORT", 0, least=1, most=65_535)
    try:
        store = TCPStore(address, port, count, is_master=number == 0 and not theirs, timeout=min(patience, MEETING))
    except (RuntimeError, ValueError) as error:
        raise LostProcesses(
            f"the {count} processes of WORLD_SIZE do not meet at {address}:{port} ({str(error).splitlines()[0][:200]}):"
            " start all of them, by torchrun, or unset WORLD_SIZE"
        ) from error
    attempt = environment.text("TORCHELASTIC_RESTART_COUNT", "0") if theirs else "alone"
    return PrefixStore(f"calotype, attempt {attempt}", store)


def is_restarted() -> bool:
    """Whether torchrun has started these processes again, after one of them died."""
    return environment.whole("TORCHELASTIC_RESTART_COUNT", 0) > 0


def may_be_restarted() -> bool:
    """Whether torchrun would restart these processes after a failure."""
    return environment.whole("TORCHELASTIC_MAX_RESTARTS", 0) > 0


@contextmanager
def talking() -> Iterator[None]:
    """Turn a failed communication into LostProcesses, naming the processes that do not answer."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcesses(
            f"others of the {size()} processes are lost ({_missing(error)}): see what they say. {_remedy}"
        ) from error


def _missing(error: RuntimeError) -> str:
    """The processes that no longer answer, as seen from this one."""
    if _board is None:  # others have brought the processes together
        return _first_line(error)
    with contextlib.suppress(RuntimeError):  # the one that kept the store may be gone
        _board.set(f"answer {rank()}", "here")
        asked, silent = time.monotonic(), list(range(size()))
        while silent and time.monotonic() - asked < ANSWER:
            time.sleep(0.1)
            silent = [other for other in silent if not _board.check([f"answer {other}"])]
        if silent:
            return f"no answer from {', '.join(map(str, silent))}"
    return _first_line(error)


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0].split("] ")[-1].split(". ")[0]


def local_device(name: str) -> str:
    """The default device of this process: each process has its own GPU."""
    if name in ("auto", "cuda") and size() > 1 and torch.cuda.is_available():
        return f"cuda:{environment.whole('LOCAL_RANK', 0)}"
    return name


def mesh(device: str, count: int) -> DeviceMesh:
    """The processes in groups of `count`, with a dimension "replicate" of groups and one "shard" within them."""
    from torch.distributed.device_mesh import init_device_mesh

    if (device, count) not in _meshes:
        shape = size() // count, count
        _meshes[device, count] = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
    return _meshes[device, count]


def share(count: int) -> range:
    """This process's rows of a batch of `count`. Raises ConfigError if there are none."""
    if count < size():
        raise ConfigError(
            f"training.batch_size is {count}, but there are {size()} processes: give at least an image for each"
        )
    return range(count * rank() // size(), count * (rank() + 1) // size())


def sum_over(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes; tensors of one dtype are sent together."""
    if size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        with talking():
            dist.all_reduce(flat)
        for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


def summed(x: Tensor) -> Tensor:
    """The differentiable sum of a tensor over the processes; gradients are summed likewise."""
    return x if size() == 1 else _Summed.apply(x)


class _Summed(torch.autograd.Function):
    """A differentiable sum over processes. Every process uses the sum, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        with talking():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


def any_of(flag: int) -> int:
    """The maximum of the processes' flags: a request to one applies to all."""
    if size() == 1:
        return flag
    told = torch.tensor([flag])
    with talking():
        dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def told(text: str, by: int = 0) -> str:
    """Broadcast a text from the first process, or from another rank, to all. The others wait for it."""
    if size() == 1:
        return text
    content = bytearray(text.encode())
    length = torch.tensor([len(content)])
    with talking():
        dist.broadcast(length, by)
    buffer = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == by:
        buffer = torch.frombuffer(content, dtype=torch.uint8) if content else buffer
    if len(buffer):
        with talking():
            dist.broadcast(buffer, by)
    return bytes(buffer.tolist()).decode()


@contextmanager
def acting(alone: bool) -> Iterator[None]:
    """Choose whether this process acts alone, like a single process, or together with the others."""
    global _alone
    before, _alone = _alone, alone
    try:
        yield
    finally:
        _alone = before


def by_first(action: Callable[[], T]) -> T:
    """Run an action in the first process; returns its JSON-serialisable result in all of them.

    Raises:
        StoppedElsewhere: in the others, if it raised a CalotypeError in the first.
    """
    if size() == 1:
        return action()
    if not is_first():
        found: T = received(told(""))
        return found
    try:
        with acting(alone=True):
            found = action()
    except CalotypeError as error:
        told(failure(error))
        raise
    told(json.dumps({"found": found}))
    return found


def first_then_all(action: Callable[[], T]) -> T:
    """Run an action in each process, first in the first, which leaves less work for the others.

    Raises as `by_first` and `agreed`.
    """
    found: list[T] = []
    by_first(lambda: found.append(action()))
    return agreed(lambda: found[0] if found else action())


def agreed(action: Callable[[], T]) -> T:
    """Run an action in each process; returns its result here once it has ended in all of them.

    If it raises a CalotypeError in several processes, one of them reports it.

    Raises:
        StoppedElsewhere: in the others.
    """
    if size() == 1:
        return action()
    found: list[T] = []
    mine: CalotypeError | None = None
    try:
        found.append(action())
    except CalotypeError as error:
        mine = error
    furthest = any_of(0 if mine is None else size() - rank())
    if not furthest:
        return found[0]
    speaker = size() - furthest
    if mine is not None and rank() == speaker:
        told(failure(mine), speaker)
        raise mine
    raise _stopped(told("", speaker))


def failure(error: CalotypeError) -> str:
    """An error as plain values, for `received`."""
    return json.dumps({"error": str(error), "status": error.exit_status, "passing": passes(error)})


def _stopped(text: str) -> StoppedElsewhere:
    content = json.loads(text)
    return StoppedElsewhere.with_status(content["error"], content["status"], content["passing"])


def received(text: str) -> Any:
    """The result sent by another process. Raises StoppedElsewhere if it sent an error."""
    content = json.loads(text)
    if "error" in content:
        raise _stopped(text)
    return content["found"]

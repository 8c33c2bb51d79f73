"""Work led by the first of several processes: it names the tasks, and each process does its share, in rounds.

A share is what a single process would work on at a time, so the results are the same, bit for bit, for any number of
processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from calotype.distributed.processes import acting, agreed, failure, is_first, rank, received, size, talking, told
from calotype.errors import CalotypeError

T = TypeVar("T")
TYPES = (torch.uint8, torch.int64, torch.float32, torch.float64)  # of tensors that are sent, by number
MOST_DIMENSIONS = 4  # of them

Action = Callable[[Tensor], Tensor]
Help = Callable[[str, Sequence[Tensor]], Iterator[Tensor]]
"""(name of an action, tensors) -> what the action makes of each, in order, done by all processes."""


def led(lead: Callable[[Help], T], actions: Mapping[str, Action]) -> T | None:
    """Run a function in the first process, with all processes as workers; returns None in the others.

    Args:
        lead: runs in the first process alone. Its argument is a function that maps an action over tensors, in rounds
            of one tensor per process. Its results have to be consumed to the end.
        actions: the actions by name. The result of an action is a function of its tensor alone, the same in every
            process.

    Raises:
        StoppedElsewhere: in all other processes, if a CalotypeError was raised in one.
    """
    if size() == 1:
        return lead(lambda name, parts: map(actions[name], parts))
    if not is_first():
        while (asked := received(told(""))) is not None:
            _help(asked, actions)
        return None
    at_once = size()
    known: list[CalotypeError] = []  # to all already

    def helped(name: str, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        for start in range(0, len(parts), at_once):
            try:
                with acting(alone=False):
                    made = _round(name, actions[name], parts[start : start + at_once])
            except CalotypeError as error:
                known.append(error)
                raise
            yield from made

    try:
        with acting(alone=True):
            found = lead(helped)
    except CalotypeError as error:
        if not known:
            told(failure(error))
        raise
    told(json.dumps({"found": None}))
    return found


def _round(name: str, action: Action, parts: Sequence[Tensor]) -> list[Tensor]:
    """The results for at most one tensor per process, the first of which is computed here."""
    told(json.dumps({"found": {"action": name, "parts": len(parts)}}))
    others = range(1, len(parts))
    for other in others:
        _send(parts[other], other)
    return [agreed(lambda: action(parts[0])), *map(_taken, others)]


def _help(asked: Mapping[str, Any], actions: Mapping[str, Action]) -> None:
    """The part of another process in a round; it may have no tensor."""
    part = _taken(0) if rank() < asked["parts"] else None
    made = agreed(lambda: None if part is None else actions[asked["action"]](part))
    if made is not None:
        _send(made, 0)


def _send(tensor: Tensor, to: int) -> None:
    """Send a tensor to a process, which receives it by `_taken`."""
    shape = [*tensor.shape, *[0] * (MOST_DIMENSIONS - tensor.ndim)]
    with talking():
        dist.send(torch.tensor([TYPES.index(tensor.dtype), tensor.ndim, *shape]), to)
        dist.send(tensor.cpu().contiguous(), to)


def _taken(sender: int) -> Tensor:
    """Receive a tensor from a process, on the CPU."""
    about = torch.zeros(2 + MOST_DIMENSIONS, dtype=torch.int64)
    with talking():
        dist.recv(about, sender)
        dtype, dimensions, *shape = about.tolist()
        tensor = torch.empty(shape[:dimensions], dtype=TYPES[dtype])
        dist.recv(tensor, sender)
    return tensor

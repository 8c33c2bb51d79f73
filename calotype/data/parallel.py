"""A function over many items in threads, in order, with few items in memory at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 4  # items to a task: hides what a task costs, and bounds the memory of those that wait
_MAX_WORKERS = 16  # beyond this the threads wait for the interpreter's lock, and memory grows


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """Yield function(item) in the order of the items; items are drawn by the calling thread, shortly before use.

    For functions that release the interpreter's lock, as decoders of pictures do. Closing the iterator, or an
    exception, drops what has not begun.
    """
    workers = min(cores(), _MAX_WORKERS)
    source = iter(items)

    def run(chunk: list[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    pending: deque[Future[list[Result]]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="calotype-data")
    try:
        while True:
            while len(pending) < 2 * workers and (chunk := list(islice(source, _CHUNK))):
                pending.append(executor.submit(run, chunk))
            if not pending:
                return
            yield from pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)

"""A parallel map: a function over many items in threads, in order, with few items in memory at once."""

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
_MOST_HELD = 1 << 28  # bytes of items drawn; one more may come on top
_MAX_WORKERS = 16  # beyond this the threads wait for the interpreter's lock, and memory grows


def cores() -> int:
    """The number of processor cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], held: Callable[[Item], int] = lambda _: 0
) -> Generator[Result, None, None]:
    """Yield function(item) in the order of the items; items are drawn by the calling thread, shortly before use.

    Args:
        held: bytes of memory that an item takes until it is done, which limits the number drawn in advance.

    For functions that release the interpreter's lock, as decoders of pictures do. Closing the iterator, or an
    exception, cancels items that have not begun.
    """
    workers = min(cores(), _MAX_WORKERS)
    source = iter(items)

    def run(chunk: list[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    def draw() -> list[Item]:
        chunk: list[Item] = []
        while len(chunk) < _CHUNK and sum(map(held, chunk)) < _MOST_HELD and (more := list(islice(source, 1))):
            chunk += more
        return chunk

    pending: deque[tuple[int, Future[list[Result]]]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="calotype-data")
    try:
        while True:
            while len(pending) < 2 * workers and sum(size for size, _ in pending) < _MOST_HELD and (chunk := draw()):
                pending.append((sum(map(held, chunk)), executor.submit(run, chunk)))
            if not pending:
                return
            yield from pending.popleft()[1].result()
    finally:
        executor.shutdown(cancel_futures=True)

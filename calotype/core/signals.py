"""Signals that ask a program to stop: a request in a loop that can save first, an exception elsewhere.

SIGINT (Ctrl-C), SIGTERM (a scheduler), SIGHUP (the terminal or the connection is gone) and SIGUSR1 (as Slurm sends it
before the time limit) are treated alike. A signal that the parent process has set to be ignored, as `nohup` does, stays
ignored.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ONE_REQUEST = 2.0  # seconds; a scheduler tells every process of a job to stop, and torchrun tells its own once more

_loops: list[Callable[[int], None]] = []  # that save on request, outermost first


class Stopped(KeyboardInterrupt):
    """A signal has ended the work; the command line prints how to continue, and exits with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number, self.way_on = number, ""


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raise Stopped at a signal in the block; after the block a signal ends the process, as is the system's default.

    Under torchrun SIGINT alone is raised: a process that waits for others in compiled code would not see an exception.
    """
    handled = (signal.SIGINT,) if "TORCHELASTIC_RUN_ID" in os.environ else STOPS
    taken = [number for number in handled if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def way_on(text: str) -> Iterator[None]:
    """State how to continue if a signal ends a block, such as "Repeat the command"; the outermost block wins."""
    try:
        yield
    except Stopped as stopped:
        stopped.way_on = text
        raise


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Turn the first signal of STOPS into a request that the loop reads; a second signal stops at once.

    Under torchrun, signals in quick succession count as one request.

    Yields a function that returns the number of the signal received, or 0. Elsewhere than in the main thread Python
    delivers no signals, and the function returns requests by `request` only.
    """
    received, since = 0, 0.0
    moment = ONE_REQUEST if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def receive(number: int, _: FrameType | None) -> None:
        nonlocal since
        if not received:
            since = time.monotonic()
            note(number)
        elif time.monotonic() - since >= moment:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    def note(number: int) -> None:
        nonlocal received
        received = received or number

    def asked() -> int:
        return received

    on_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in STOPS} if on_main else {}
    previous = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    _loops.append(note)
    for number in previous:
        signal.signal(number, receive)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _loops.remove(note)


def request(number: int) -> bool:
    """Ask the running loop to stop as if by a signal; False if no loop is running."""
    for note in _loops:
        note(number)
    return bool(_loops)

"""SIGINT and SIGTERM as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a request that the loop reads; a second one acts at once.

    Yields a function that returns the number of the signal received, or 0. Elsewhere than in the main thread Python
    delivers no signals, and the function returns 0.
    """
    received = 0

    def note(number: int, _: object) -> None:
        nonlocal received
        received = number
        signal.signal(number, previous[signal.Signals(number)])

    def asked() -> int:
        return received

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

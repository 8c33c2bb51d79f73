"""SIGINT and SIGTERM as a request to stop at the next good moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ONE_REQUEST = 2.0  # seconds; a scheduler tells every process of a job to stop, and torchrun tells its own once more


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a request that the loop reads; a second one acts at once.

    Below torchrun what comes within a moment is one request.

    Yields a function that returns the number of the signal received, or 0. Elsewhere than in the main thread Python
    delivers no signals, and the function returns 0.
    """
    received, since = 0, 0.0
    moment = ONE_REQUEST if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def note(number: int, _: object) -> None:
        nonlocal received, since
        if not received:
            received, since = number, time.monotonic()
        elif time.monotonic() - since >= moment:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

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

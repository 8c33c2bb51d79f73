"""A request to stop: once, whoever passes it on; and a second one acts at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from calotype.core import signals
from calotype.core.signals import stop_requests


@pytest.fixture
def acted() -> Iterator[list[int]]:
    """The signals that have acted, on a process that had a handler of its own."""
    found: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, lambda number, _: found.append(number))
    yield found
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_request_acts_at_once(acted: list[int], second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with stop_requests() as stop:
        assert stop() == 0
        signal.raise_signal(signal.SIGTERM)
        assert (stop(), acted) == (signal.SIGTERM, [])
        signal.raise_signal(second)
        assert (stop(), acted) == (signal.SIGTERM, [second])
    signal.raise_signal(signal.SIGTERM)
    assert acted == [second, signal.SIGTERM]


def test_below_torchrun_what_comes_within_a_moment_is_one_request(
    acted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with stop_requests() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            now += signals.ONE_REQUEST / 3
        assert (stop(), acted) == (signal.SIGTERM, [])
        now += 0.1
        signal.raise_signal(signal.SIGTERM)
        assert acted == [signal.SIGTERM]

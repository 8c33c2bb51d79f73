"""Progress: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Protocol, Self

PLAIN_SECONDS = 10.0  # between plain lines: a log of a night stays readable
BLOCKS = "▁▂▃▄▅▆▇█"


class Status(NamedTuple):
    """The progress of training."""

    images_seen: int
    images: int  # the budget
    images_per_second: float
    loss: float
    held_out: float | None
    history: Sequence[float]  # of the loss, oldest first
    told: str = ""  # what else is known

    @property
    def remaining(self) -> float:
        """Seconds to the end of the budget at this speed."""
        return max(0, self.images - self.images_seen) / max(self.images_per_second, 1e-9)


class Display(Protocol):
    """A display of messages and progress, used as a context manager around the work."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def message(self, text: str) -> None:
        """Say something that stays."""

    def count(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` are done; of how many is not known yet where total is None."""

    def training(self, status: Status) -> None:
        """Show how far training has come."""


def for_stream(silent: bool = False) -> Display:
    """A live display where standard output is a terminal, else plain lines.

    Args:
        silent: show nothing, since standard output is for a document.
    """
    if silent:
        return PlainDisplay(write=lambda text: None)
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay()


def for_process(display: Display | None, speaks: bool) -> Display:
    """The display of this process: the argument, else plain lines; a silent one for a process that does not speak."""
    return (display or PlainDisplay()) if speaks else PlainDisplay(write=lambda text: None)


def packing_on(display: Display) -> Callable[[int, int], None]:
    """A progress function for `data.prepare`; during the survey `done` is 0 and `total` the number found so far."""
    return lambda done, total: (
        display.count("pictures packed", done, total) if done else display.count("pictures looked at", total, None)
    )


def clock(seconds: float) -> str:
    """Seconds as text: 42 s, 3:07, 2:05:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def counted(n: int, one: str, many: str) -> str:
    """A number with its noun and, if given, its verb: 1 name has, 2 names have."""
    return f"{n:,} {one if n == 1 else many}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as block characters: means over `width` intervals, blank for means that are not finite."""
    if not values:
        return ""
    width = min(width, len(values))
    cuts = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def describe(status: Status) -> str:
    """One line about a status."""
    share = status.images_seen / status.images
    held_out = "" if status.held_out is None else f"  held-out {status.held_out:.4f}"
    return (
        f"{share:4.0%}  {status.images_seen:,} images  {status.images_per_second:,.0f}/s  "
        f"loss {status.loss:.4f}{held_out}  {status.told}{'  ' if status.told else ''}{clock(status.remaining)} left"
    )


class PlainDisplay:
    """A line now and then, for logs and pipes."""

    def __init__(self, write: Callable[[str], object] | None = None, seconds: float = PLAIN_SECONDS) -> None:
        self._write, self._seconds, self._last = write or self._print, seconds, -math.inf

    @staticmethod
    def _print(text: str) -> None:
        print(text, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def message(self, text: str) -> None:
        """Say something that stays."""
        self._write(text)

    def count(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` are done; of how many is not known yet where total is None."""
        if done != total and self._due():
            self._write(_counted(what, done, total))

    def training(self, status: Status) -> None:
        """Show how far training has come."""
        if self._due() or status.images_seen >= status.images:
            self._write(describe(status))

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class LiveDisplay:
    """A bar, figures and the loss curve, redrawn in place; messages scroll above.

    Displays may be nested and share the same line; only the outermost closes it.
    """

    def __init__(self) -> None:
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._live = Live(Text(""), refresh_per_second=4, transient=True)
        self._depth = 0

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._live.__enter__()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._live.__exit__(kind, error, trace)

    def message(self, text: str) -> None:
        """Say something that stays."""
        self._live.console.print(self._text(text))

    def count(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` are done; of how many is not known yet where total is None."""
        bar = "" if total is None else f"{_bar(done / max(total, 1))} "
        self._live.update(self._text(bar + _counted(what, done, total)))

    def training(self, status: Status) -> None:
        """Show how far training has come."""
        course = sparkline(status.history, 40)
        bar = _bar(status.images_seen / status.images)
        self._live.update(self._text(f"{bar} {describe(status)}\nloss {course}"))


def _counted(what: str, done: int, total: int | None) -> str:
    return f"{what}: {done:,}" if total is None else f"{what}: {done:,} of {total:,}"


def _bar(share: float, width: int = 24) -> str:
    full = round(width * min(1.0, share))
    return "━" * full + "╌" * (width - full)

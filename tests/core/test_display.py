from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from calotype.core import display
from calotype.core.display import LiveDisplay, PlainDisplay, Status, clock, describe, for_stream, sparkline
from tests.conftest import environment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (42, "42 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (187, "3:07"),
        (3599.6, "1:00:00"),
        (7500, "2:05:00"),
        (100 * 3600, "100:00:00"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("values", "width", "blocks"),
    [
        ([], 5, ""),
        ([3.0], 5, "▁"),
        ([2.0, 2.0], 5, "▁▁"),
        (list(range(8)), 8, "▁▂▃▄▅▆▇█"),
        (list(range(8, 0, -1)), 8, "█▇▆▅▄▃▂▁"),
        ([0, 2, 8, 6], 2, "▁█"),  # of the means 1 and 7
        ([0.0, float("nan"), 7.0, float("inf")], 4, "▁ █ "),  # the loss of an update that was not applied
        ([float("nan")], 4, " "),
    ],
)
def test_sparkline(values: list[float], width: int, blocks: str) -> None:
    assert sparkline(values, width) == blocks


@pytest.mark.parametrize("n", [1, 39, 40, 41, 2000])
def test_a_sparkline_fits_its_width(n: int) -> None:
    assert len(sparkline([float(k % 7) for k in range(n)], 40)) == min(n, 40)


def status(images_seen: int, images: int = 2000, loss: float = 0.25, held_out: float | None = None) -> Status:
    return Status(images_seen, images, 100.0, loss, held_out, (1.0, loss))


def test_describe() -> None:
    assert describe(status(1000)) == " 50%  1,000 images  100/s  loss 0.2500  10 s left"
    assert describe(status(2000, held_out=0.5)) == "100%  2,000 images  100/s  loss 0.2500  held-out 0.5000  0 s left"
    assert describe(status(2600)).endswith("  0 s left")  # the last batch may go beyond the budget


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5.0  # a machine that has just started
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    time, lines = Clock(monkeypatch), list[str]()
    shown = PlainDisplay(lines.append, seconds=10)
    for k in range(100):  # a second each
        time.now += 1
        shown.training(status(k))
    assert [line.split()[1] for line in lines] == ["0", "10", "20", "30", "40", "50", "60", "70", "80", "90"]


def test_the_last_status_and_messages_are_always_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    lines: list[str] = []
    with PlainDisplay(lines.append) as shown:
        for k in (1, 2, 2000):
            shown.training(status(k))
        shown.message("one")
        shown.message("two")
    assert [line.split()[1] for line in lines[:2]] == ["1", "2,000"]
    assert lines[2:] == ["one", "two"]


def test_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    time, lines = Clock(monkeypatch), list[str]()
    shown = PlainDisplay(lines.append, seconds=10)
    shown.count("packing", 500, 500)  # at its end there is nothing to wait for, and no turn is used up
    shown.count("packing", 1, 20_000)
    shown.count("packing", 2, 20_000)
    time.now += 10
    shown.count("packing", 15_000, 20_000)
    assert lines == ["packing: 1 of 20,000", "packing: 15,000 of 20,000"]


def test_plain_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    shown = for_stream()
    assert isinstance(shown, PlainDisplay)
    shown.message("hello")
    assert capsys.readouterr().out == "hello\n"


PROGRAM = """
from calotype.core.display import LiveDisplay, Status, for_stream
with for_stream() as shown:
    assert isinstance(shown, LiveDisplay)
    shown.message("a [bold]message[/bold]")
    shown.count("packing", 1, 4)
    shown.count("packing", 0, 0)
    shown._live.refresh()
    for loss in (1.0, float("nan"), 0.5):
        shown.training(Status(10, 20, 3.0, loss, 0.125, (2.0, loss)))
        shown._live.refresh()
    raise SystemExit(7)
"""


def test_a_terminal_gets_a_live_display() -> None:
    master, slave = pty.openpty()
    variables = environment(TERM="xterm", COLUMNS="100", LINES="30")
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=slave, stderr=slave, env=variables) as child:
        os.close(slave)
        output = b""
        while chunk := _read(master):
            output += chunk
    os.close(master)
    text = output.decode()
    assert child.returncode == 7, text
    assert "Traceback" not in text
    assert "a [bold]message[/bold]" in text  # a file name with brackets is not markup
    assert "packing: 0 of 0" in text
    assert "━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌  50%  10 images  3/s  loss 0.5000  held-out 0.1250  3 s left" in text
    assert "loss █▁" in text
    assert "\x1b[?25h" in text  # the cursor is back


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_a_live_display_without_a_terminal_does_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveDisplay() as shown:
        shown.training(status(5))
        shown.message("kept")
    assert "kept" in capsys.readouterr().out

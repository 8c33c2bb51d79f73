"""A command as a process: its streams, what ends it, and its exit status.

The status follows the shell's conventions: 0 is fine; 1 is a finding, or output that could not be written; 2 is a
mistake or a misfortune that the message explains; 70 is a mistake of Calotype; 128 + N is signal N, with 141 for a pipe
whose reader is gone.

A loop that saves, as that of training, takes a broken pipe as a request to stop. A stream that cannot be written for
another reason, such as a full disk, ends nothing: what is left of the work is done, and it is said at the end.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from calotype.core.signals import Stopped, request, stops_raised

BUG = 70  # EX_SOFTWARE of sysexits.h
DEGRADE = "calotype.degrade"
"""The name of the error handler of output: what an encoding does not have is replaced, never an error."""

# What is printed beside words, in ASCII. Names and other words are escaped, so that no two become the same.
_ASCII = {
    **dict(zip("×·–—−≈│┃║─━═╌‘’“”", "x.---~|||----''\"\"", strict=True)),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+"),
    **dict(zip("▁▂▃▄▅▆▇█", "_.,-~=+#", strict=True)),
    **{"∞": "inf", "±": "+-", "…": "...", "≤": "<=", "≥": ">=", "→": "->"},
}


def degrade(error: UnicodeError) -> tuple[str, int]:
    """Of text that a stream cannot hold, what it can: see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = ""
    for character in error.object[error.start : error.end]:
        plain = _ASCII.get(character, "")
        if not plain:
            code = ord(character)
            is_byte = 0xDC80 <= code <= 0xDCFF  # of a name that is not UTF-8, as Python keeps it
            plain = f"\\x{code - 0xDC00:02x}" if is_byte else character.encode("ascii", "backslashreplace").decode()
        found += plain
    return found, error.end


codecs.register_error(DEGRADE, degrade)


def run(command: Callable[[], int]) -> int:
    """Run a command as what a process is for; returns its exit status, whatever happens to it."""
    with streams() as (output, errors):
        status = _ended(command)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):  # known by now
                stream.flush()
        if isinstance(output.failure, BrokenPipeError) or isinstance(errors.failure, BrokenPipeError):
            return status or 128 + signal.SIGPIPE
        if output.failure is not None:
            print(f"calotype: standard output cannot be written ({output.failure.strerror})", file=sys.stderr)
            return status or 1
    return status


def _ended(command: Callable[[], int]) -> int:
    try:
        with stops_raised():
            return command()
    except SystemExit as ended:  # of the parser of arguments
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        after = error.way_on if isinstance(error, Stopped) and error.way_on else "Repeat the command"
        with contextlib.suppress(BrokenPipeError):
            print(f"calotype: stopped. {after}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:  # the reader of a pipe has seen enough
        return 128 + signal.SIGPIPE
    except Exception as error:  # a mistake of Calotype: a user gets a report to send instead of a traceback
        _report(error)
        return BUG


def _report(error: Exception) -> None:
    if os.environ.get("CALOTYPE_TRACEBACK"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown"
    text = " ".join(str(error).split())[:300]
    print(
        f"calotype: this is a bug in Calotype: {type(error).__name__} at {place}: {text}. Please report it, with what "
        "the same command prints with CALOTYPE_TRACEBACK=1 in the environment",
        file=sys.stderr,
    )


@contextmanager
def streams() -> Iterator[tuple[Output, Output]]:
    """Take standard output and standard error over: any text can be written, and a failure is kept, not raised.

    One that is closed leads nowhere, and its descriptor is taken, else the next file that is opened would get it.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    before = sys.stdout, sys.stderr
    output, errors = Output(1 if sys.stdout else _nowhere()), Output(2 if sys.stderr else _nowhere())
    sys.stdout, sys.stderr = text_stream(output, before[0]), text_stream(errors, before[1])
    sys.stderr.reconfigure(line_buffering=True)
    try:
        yield output, errors
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def text_stream(output: Output, before: TextIO | None) -> io.TextIOWrapper:
    """Text on an output, in the encoding of the stream before, in which anything can be written."""
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=before.encoding if before else "utf-8",
        errors=DEGRADE,
        line_buffering=output.isatty(),
        write_through=bool(getattr(before, "write_through", False)),
    )


class Output(io.RawIOBase):
    """A descriptor that is written to; after a failure, which is kept, what is written is dropped.

    BrokenPipeError is raised once, where no loop takes it as a request to stop.
    """

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle
        self.failure: OSError | None = None

    def fileno(self) -> int:
        """Of the descriptor."""
        return self._handle

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._handle)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: object) -> int:
        """Write bytes; returns how many."""
        content = memoryview(data).cast("B")  # type: ignore[arg-type]
        while self.failure is None:
            try:
                return os.write(self._handle, content)
            except BlockingIOError:  # whoever shares it has made it so
                select.select([], [self._handle], [])
            except BrokenPipeError as error:
                self.failure = error
                if not request(signal.SIGPIPE):
                    raise
            except OSError as error:
                self.failure = error
        return len(content)

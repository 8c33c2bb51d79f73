"""The errors that a user can fix; the command line prints their messages without a traceback."""

from __future__ import annotations

import errno
from typing import Self

# What torch and oneDNN say on a CPU; the latter also where it finds no room for the code that it makes.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a memory object",
    "could not create a primitive",
    "could not execute a primitive",
    "std::bad_alloc",
)


class CalotypeError(Exception):
    """An error that a user can fix; the message has the value, the rule and the remedy."""

    exit_status = 2  # of the command line


class ConfigError(CalotypeError):
    """A setting that cannot be used."""


class DataError(CalotypeError):
    """Pictures that cannot be read, packed or learned from."""


class RunError(CalotypeError):
    """A run directory that cannot be created, loaded or resumed."""


class PlaceError(CalotypeError):
    """An output path that is refused: not a file, not written by Calotype, or reached through a link."""


class JobError(CalotypeError):
    """A job that cannot be written, or that a scheduler rejects."""


class StoppedElsewhere(CalotypeError):
    """The error of another process, which has reported it."""

    passing = False  # as of the error of that process, see `passes`

    @classmethod
    def of(cls, error: CalotypeError) -> Self:
        """That of the process that met it."""
        return cls.with_status(str(error), error.exit_status, passes(error))

    @classmethod
    def with_status(cls, text: str, status: int, passing: bool) -> Self:
        """This error with the exit status of that process."""
        stopped = cls(text)
        stopped.exit_status, stopped.passing = status, passing
        return stopped


class LostProcesses(CalotypeError):
    """The others of several processes have stopped, or do not answer."""

    exit_status = 1


class TrainingDiverged(CalotypeError):
    """Training kept producing non-finite gradients; the last good checkpoint is intact."""


def passes(error: BaseException) -> bool:
    """Whether an error is temporary: caused by the environment, so that the same command may succeed later.

    Examples are a lock held by another command, a full disk, a missing drive, and exhausted memory.
    """
    if isinstance(error, StoppedElsewhere):
        return error.passing
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) or is_out_of_memory(cause):
            return True
        cause = cause.__cause__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, the system, torch or oneDNN means that memory ran out; imports none of them."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        known = any(text in str(error) for text in _OUT_OF_MEMORY)
        return known or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError)

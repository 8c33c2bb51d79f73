"""What calotype raises when a user can mend the cause; the command line prints these without a traceback."""

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
    """A mistake or a misfortune that the message explains: the value, the rule and the remedy."""

    exit_status = 2  # of the command line


class ConfigError(CalotypeError):
    """A setting that cannot be used."""


class DataError(CalotypeError):
    """Pictures that cannot be read, packed or learned from."""


class RunError(CalotypeError):
    """A run directory that cannot be created, loaded or resumed."""


class PlaceError(CalotypeError):
    """A place that nothing is written to: it is no file, not Calotype's, or reached through a link."""


class JobError(CalotypeError):
    """A job that cannot be written, or that a scheduler does not take."""


class StoppedElsewhere(CalotypeError):
    """What one of several processes has met, in the others; it has said so."""

    passing = False  # as of the error of that process, see `passes`

    @classmethod
    def of(cls, error: CalotypeError) -> Self:
        """That of the process that met it."""
        return cls.with_status(str(error), error.exit_status, passes(error))

    @classmethod
    def with_status(cls, text: str, status: int, passing: bool) -> Self:
        """With the exit status of that process."""
        stopped = cls(text)
        stopped.exit_status, stopped.passing = status, passing
        return stopped


class LostProcesses(CalotypeError):
    """The others of several processes have stopped, or do not answer."""

    exit_status = 1


class TrainingDiverged(CalotypeError):
    """Training kept producing non-finite gradients; the last good checkpoint is intact."""


def passes(error: BaseException) -> bool:
    """Whether an error is of the surroundings and not of what was asked for, so that the same may succeed later.

    So are a place that another command holds, a full disk, a drive that is not there, memory that ran out.
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
    """Whether an error of Python, the system, torch or oneDNN says that memory ran out; imports none of them."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        known = any(text in str(error) for text in _OUT_OF_MEMORY)
        return known or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError)

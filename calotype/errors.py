"""What calotype raises when a user can mend the cause; the command line prints these without a traceback."""

from __future__ import annotations

from typing import Self


class CalotypeError(Exception):
    """A mistake or a misfortune that the message explains: the value, the rule and the remedy."""

    exit_status = 2  # of the command line


class ConfigError(CalotypeError):
    """A setting that cannot be used."""


class DataError(CalotypeError):
    """Pictures that cannot be read, packed or learned from."""


class RunError(CalotypeError):
    """A run directory that cannot be created, loaded or resumed."""


class JobError(CalotypeError):
    """A job that cannot be written, or that a scheduler does not take."""


class StoppedElsewhere(CalotypeError):
    """What one of several processes has met, in the others; it has said so."""

    @classmethod
    def of(cls, error: CalotypeError) -> Self:
        """That of the process that met it."""
        return cls.with_status(str(error), error.exit_status)

    @classmethod
    def with_status(cls, text: str, status: int) -> Self:
        """With the exit status of that process."""
        stopped = cls(text)
        stopped.exit_status = status
        return stopped


class LostProcesses(CalotypeError):
    """The others of several processes have stopped, or do not answer."""

    exit_status = 1


class TrainingDiverged(CalotypeError):
    """Training kept producing non-finite gradients; the last good checkpoint is intact."""

"""What calotype raises when a user can mend the cause; the command line prints these without a traceback."""


class CalotypeError(Exception):
    """A mistake or a misfortune that the message explains: the value, the rule and the remedy."""

    exit_status = 2  # of the command line


class ConfigError(CalotypeError):
    """A setting that cannot be used."""


class DataError(CalotypeError):
    """Pictures that cannot be read, packed or learned from."""


class RunError(CalotypeError):
    """A run directory that cannot be created, loaded or resumed."""


class TrainingDiverged(CalotypeError):
    """Training kept producing non-finite gradients; the last good checkpoint is intact."""

"""Exceptions a user may meet. The command line prints their text as one line and exits with 2."""


class HashfieldError(Exception):
    """Base of every error that is the caller's to mend, not a bug."""


class DataError(HashfieldError, ValueError):
    """A file, frame or field of the input is wrong; the text names all three."""


class ShapeError(HashfieldError, ValueError):
    """A tensor argument has the wrong shape or dtype."""


class BackendError(HashfieldError, RuntimeError):
    """A backend that was asked for by name cannot take the call."""


class CheckpointError(HashfieldError, ValueError):
    """A checkpoint is missing, broken, or of a version this program does not know."""


class ConfigError(HashfieldError, ValueError):
    """An option's value is out of range or contradicts another."""


class RanksError(HashfieldError, RuntimeError):
    """A run of several processes cannot go on: one of them is gone, has failed, or differs from the others."""

    is_said = False
    """Whether another process tells the user."""

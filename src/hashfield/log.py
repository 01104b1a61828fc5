"""The library's logger. The library never prints; the command line decides how lines look."""

import logging

logger = logging.getLogger("hashfield")
logger.addHandler(logging.NullHandler())

_said: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning the first time this exact text occurs in the process."""
    if message not in _said:
        _said.add(message)
        logger.warning(message)

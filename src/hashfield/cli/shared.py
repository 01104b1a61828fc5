"""What the verbs share: parsing, the console, log lines, set-up of threads and device."""

import logging
import sys
from collections.abc import Sequence
from typing import TypeVar

import torch
import tyro
from rich.console import Console

from hashfield.errors import BackendError, ConfigError

console = Console(highlight=False, soft_wrap=True)

_Options = TypeVar("_Options")


class _Warnings(logging.Handler):
    """A line on stderr for each record, never wrapped; looked up at each call, as a live display stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def parse(kind: type[_Options], arguments: Sequence[str], verb: str, default: _Options | None = None) -> _Options:
    """A verb's options from its arguments; tyro prints help and exits with 2 on what it does not know."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Warnings()], force=True)
    if default is None:
        return tyro.cli(kind, args=list(arguments), prog=f"hashfield {verb}")
    return tyro.cli(kind, args=list(arguments), prog=f"hashfield {verb}", default=default)


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The value that follows an option, or stands behind its '='; None if it is absent."""
    for k, argument in enumerate(arguments):
        if argument == option and k + 1 < len(arguments):
            return arguments[k + 1]
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


def set_up(device: str = "auto", threads: int | None = None) -> None:
    """Choose threads and check the device.

    Raises:
        ConfigError: the number of threads is not positive, or the device's name is not known.
        BackendError: the device has no kernels yet.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: expected auto, cpu or cuda, got {device!r}")
    if device == "cuda":
        raise BackendError("--device cuda: the GPU kernels are not built yet; use --device cpu")


def is_terminal() -> bool:
    """Whether a person watches, on something that can redraw a line."""
    return sys.stdout.isatty() and not console.is_dumb_terminal


def say(text: str) -> None:
    """One line for the user."""
    console.print(text, markup=False)

"""What the verbs share: parsing, the console, log lines, set-up of threads and device."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import tyro
from rich.console import Console

from hashfield.errors import BackendError, ConfigError, HashfieldError
from hashfield.tasks import KINDS, Kind, kind_named, kind_of
from hashfield.train.checkpoint import read_metadata
from hashfield.train.run_folder import RunFolder

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


def kind_from_name(verb: str, arguments: Sequence[str], *, optional: bool = False) -> tuple[Kind, list[str]]:
    """The kind of task that the first argument names, and the arguments after it.

    Args:
        verb: For the text of an error.
        arguments: Of the verb.
        optional: Take the first kind where the first argument is an option or nothing.

    Raises:
        ConfigError: it names none.
    """
    kinds = [kind for kind in KINDS if verb in kind.commands]
    if optional and (not arguments or arguments[0].startswith("-")):
        return kinds[0], list(arguments)
    kind = kind_named(arguments[0]) if arguments else None
    if kind is None or kind not in kinds:
        what = repr(arguments[0]) if arguments else "nothing"
        raise ConfigError(f"{verb}: expected what to {verb} ({', '.join(k.name for k in kinds)}), got {what}")
    return kind, list(arguments[1:])


def kind_of_run(verb: str, arguments: Sequence[str]) -> Kind:
    """The kind of the run that a verb's arguments name; the first kind where they name none, whose own parser then says
    what is wrong.

    Raises:
        CheckpointError: the run is of a kind this program does not know.
        ConfigError: the kind does not have the verb.
    """
    # The values of options come last: one of them may be the folder of another run.
    words = [(k > 0 and arguments[k - 1].startswith("--"), word) for k, word in enumerate(arguments)]
    for _, word in sorted((w for w in words if not w[1].startswith("-")), key=lambda w: w[0]):
        try:
            checkpoint = RunFolder.open(Path(word)).checkpoint
            metadata = read_metadata(checkpoint)
        except HashfieldError:
            continue
        kind = kind_of(metadata, checkpoint)
        if verb not in kind.commands:
            raise ConfigError(f"{verb}: {word} is a run of kind {kind.name!r}, which has no {verb}")
        return kind
    return next(kind for kind in KINDS if verb in kind.commands)


def run_command(kind: Kind, verb: str, arguments: list[str]) -> int:
    """The exit code of the kind's own command."""
    command = kind.command(verb)
    assert command is not None, (kind.name, verb)
    return command(arguments)


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

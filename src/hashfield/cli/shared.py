"""What the verbs share: parsing, the console, log lines, set-up of threads and device."""

import logging
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Literal, TypeVar

import torch
import tyro
from rich.console import Console

from hashfield.cli.help_texts import give_texts
from hashfield.errors import BackendError, ConfigError, HashfieldError
from hashfield.ops.backend import why_not
from hashfield.steps.ranks import Ranks, current, working_alone
from hashfield.tasks import KINDS, Kind, kind_named, kind_of
from hashfield.train.checkpoint import read_metadata
from hashfield.train.run_folder import RunFolder

console = Console(highlight=False, soft_wrap=True)

DeviceName = Literal["auto", "cpu", "cuda", "xpu"]
"""Where to compute. "auto" takes the GPU where its kernels run, else the CPU; "xpu" runs plain torch, slowly;
"mps" is left out, since it lacks float64."""

RENAMED_OPTIONS = {"--train.batch-samples": "--train.batch", "--train.batch-points": "--train.batch"}
"""Options of earlier versions, and what they are called now."""

DEALT = (("nerf", "render"), ("sdf", "render"), ("nerf", "evaluate"))
"""Kinds and verbs whose pictures several ranks share out."""

_Options = TypeVar("_Options")


class _Warnings(logging.Handler):
    """A line on stderr for each record, never wrapped; looked up at each call, as a live display stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless another rank does."""
        if not current().speaks:
            return
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def parse(kind: type[_Options], arguments: Sequence[str], verb: str, default: _Options | None = None) -> _Options:
    """A verb's options from its arguments; tyro prints help and exits with 2 on what it does not know.

    Args:
        kind: The dataclass of the options.
        arguments: What follows the verb on the command line.
        verb: Named in the help text: "train nerf".
        default: The values of what is not given; None: the dataclass's own.

    Raises:
        ConfigError: an option of an earlier version is given, which has another name now.
    """
    for argument in arguments:
        old = argument.partition("=")[0].replace("_", "-")
        if old in RENAMED_OPTIONS:
            raise ConfigError(f"{old}: is called {RENAMED_OPTIONS[old]} now")
    if not {"-h", "--help"}.isdisjoint(arguments):
        give_texts(kind)
    logging.basicConfig(level=logging.WARNING, handlers=[_Warnings()], force=True)
    with ExitStack() as stack:
        if not current().speaks:  # help and complaints are the same on every rank
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
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
        arguments: Arguments of the verb.
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
    """The exit code of the kind's own command.

    Args:
        kind: A kind of task.
        verb: The command's name, such as "train".
        arguments: Words behind it on the command line.
    """
    command = kind.command(verb)
    assert command is not None, (kind.name, verb)
    if current().n > 1 and verb not in ("train", "sweep") and (kind.name, verb) not in DEALT:
        if not current().is_first:
            return 0
        say(f"{verb} of the kind {kind.name} is not shared among ranks: the first one does it")
        with working_alone():
            return command(arguments)
    return command(arguments)


def set_up(
    device: DeviceName = "auto", threads: int | None = None, max_gpu_memory: float | None = None
) -> torch.device:
    """Choose threads, and the device to work on.

    Args:
        device: What the user asks for.
        threads: Threads of the CPU's kernels.
        max_gpu_memory: GiB of GPU memory that may be taken.

    Raises:
        ConfigError: the number of threads or of GiB is not positive.
        BackendError: torch does not see the device asked for.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"--threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads)
    if max_gpu_memory is not None and not max_gpu_memory > 0:
        raise ConfigError(f"--max-gpu-memory: expected GiB above 0, got {max_gpu_memory}")
    chosen = _device(device)
    if chosen.type == "cuda" and max_gpu_memory is not None:
        total = torch.cuda.get_device_properties(chosen).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max_gpu_memory * 2**30 / total))
    return chosen


def _device(name: DeviceName) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        reason = why_not("train_rays", "triton")
        if reason is not None:
            say(f"the GPU is left alone: {reason} (hashfield info tells more)")
        return torch.device("cpu") if reason else _own_gpu()
    seen = {"cpu": lambda: True, "cuda": torch.cuda.is_available, "xpu": torch.xpu.is_available}
    if not seen[name]():
        raise BackendError(f"--device {name}: torch {torch.__version__} sees no such device; use --device cpu")
    return _own_gpu() if name == "cuda" else torch.device(name)


def _own_gpu() -> torch.device:
    """The GPU of this process: of several on a machine, each takes another."""
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device()) if current().n > 1 else torch.device("cuda")


def uses_gpu() -> bool:
    """Whether the GPU's kernels can run here."""
    return torch.cuda.is_available() and why_not("train_rays", "triton") is None


def place_of(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{n} thread{'s' * (n != 1)}" if device.type == "cpu" else device.type


def is_terminal() -> bool:
    """Whether a person watches, on something that can redraw a line."""
    return current().speaks and sys.stdout.isatty() and not console.is_dumb_terminal


def say(text: str) -> None:
    """One line for the user; where several ranks work, one speaks."""
    if not current().speaks:
        return
    console.print(text, markup=False)


def check_same_model(ranks: Ranks, run: Path) -> None:
    """Raise unless all ranks have read the same checkpoint.

    Args:
        ranks: Those that share the work.
        run: Run folder or checkpoint file, on each machine.

    Raises:
        RanksError: one has another.
    """
    if ranks.n > 1:
        with ranks.agreed(), open(RunFolder.open(run).checkpoint, "rb") as handle:
            found = 0
            while block := handle.read(2**24):
                found = zlib.crc32(block, found)
        ranks.check_same("model", found)


@contextmanager
def memory_advice(smaller: str) -> Iterator[None]:
    """Within the block, running out of memory becomes one line that says what helps.

    Args:
        smaller: What to make smaller, by option: "--train.batch or --downscale".

    Raises:
        ConfigError: memory ran out.
    """
    try:
        yield
    except MemoryError as error:
        raise ConfigError(f"out of memory: try a smaller {smaller}") from error
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of GPU memory: raise --max-gpu-memory if it was given, or try a smaller {smaller}, or --device cpu"
        ) from error

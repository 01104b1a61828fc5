"""Processes that need not import torch: each is forked from one that has done so.

That takes two seconds of processor time, more than what most tests want of the process. Of what happens while modules
are imported nothing can be seen this way; tests of that start Python themselves.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

AT_IMPORT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
"""Read when torch is imported. Processes have one thread each, since several run at once."""


class Forked:
    """A process of its own."""

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...], folder: Path, **more: str) -> None:
        """Start it.

        Args:
            function: What it does, of some module.
            arguments: Given to the function.
            folder: Where its output is kept.
            more: Environment variables besides those of this process.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["hashfield.cli.train", "hashfield.cli.nerf", "hashfield.steps.joining", __name__]
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in AT_IMPORT.items():
                patch.setenv(name, value)
            forkserver.ensure_running()
        self._files = [folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        own = {**os.environ, **AT_IMPORT, **more}
        self._process = context.Process(target=_run, args=(function, arguments, self._files, own))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def said(self) -> str:
        """What it has written to standard output so far."""
        return self._files[0].read_text() if self._files[0].exists() else ""

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; what it wrote to standard output and standard error.

        Raises:
            TimeoutError: it did not end within so many seconds, and was killed.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutError(f"still running after {timeout} s: {[file.read_text() for file in self._files]}")
        out, err = (file.read_text() for file in self._files)
        return out, err


def command(words: list[str], folder: Path, **more: str) -> Forked:
    """`hashfield WORDS`; see `Forked`."""
    return Forked(_command, (words,), folder, **more)


def script(code: str, folder: Path, *paths: Path, **more: str) -> Forked:
    """A Python script, which runs in the folder and sees modules there, and in the paths; see `Forked`."""
    return Forked(_script, (code, [str(folder), *map(str, paths)]), folder, **more)


def _run(function: Callable[..., object], arguments: tuple[Any, ...], files: list[Path], own: dict[str, str]) -> None:
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(own)
    sys.exit(function(*arguments))


def _command(words: list[str]) -> int:
    from hashfield.cli.main import run

    return run(words)


def _script(code: str, paths: list[str]) -> None:
    os.chdir(paths[0])
    sys.path[:0] = paths
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})

"""The command line in processes of its own that need not import torch: each is forked from one that has done so.

That takes two seconds of processor time, more than what most tests want of the process. Of what happens while modules
are imported nothing can be seen this way; tests of that start Python themselves.
"""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

AT_IMPORT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
"""Read when torch is imported. Processes have one thread each, since several run at once."""


class Forked:
    """`hashfield WORDS` in a process of its own."""

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        """Start it.

        Args:
            words: What follows the command's name.
            folder: Where its output is kept.
            environment: Variables besides those of this process.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hashfield.cli.train", "hashfield.cli.nerf", "hashfield.steps.joining"])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in AT_IMPORT.items():
                patch.setenv(name, value)
            forkserver.ensure_running()
        self._files = [folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        own = {**os.environ, **AT_IMPORT, **environment}
        self._process = context.Process(target=_run, args=(words, self._files, own))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

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


def _run(words: list[str], files: list[Path], environment: dict[str, str]) -> None:
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    from hashfield.cli.main import run

    sys.exit(run(words))

"""A run's folder: where its config, metrics, checkpoint, report and renderings lie."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hashfield.errors import CheckpointError, ConfigError

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. A single checkpoint file also opens as a run whose other files would lie beside it."""

    path: Path
    """The folder."""
    checkpoint: Path
    """The checkpoint file."""

    @property
    def config_json(self) -> Path:
        """The full configuration, with version."""
        return self.path / "config.json"

    @property
    def metrics_jsonl(self) -> Path:
        """One line of figures per report of the training loop."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The self-contained HTML report."""
        return self.path / "report.html"

    @property
    def renders(self) -> Path:
        """Folder of pictures and videos."""
        return self.path / "renders"

    @classmethod
    def create(cls, out: Path | None, scene_name: str, overwrite: bool = False) -> Self:
        """Make the folder of a new run, if it is not there yet, and return its paths.

        Args:
            out: Where; None means runs/<scene>-<n> with the first free n.
            scene_name: Names the default folder.
            overwrite: Allow a folder that already holds a run.

        Raises:
            ConfigError: the folder holds a run and `overwrite` is False, or it cannot be made.
        """
        if out is None:
            stem = re.sub(r"[^\w.-]+", "-", scene_name).strip("-.") or "run"
            n = 1
            while (Path("runs") / f"{stem}-{n}").exists():
                n += 1
            out = Path("runs") / f"{stem}-{n}"
        run = cls(out, out / CHECKPOINT_NAME)
        run.check_free(overwrite)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be made: {error.strerror}") from error
        return run

    def check_free(self, overwrite: bool) -> None:
        """Check that a new run may begin in this folder, which need not be there yet.

        Raises:
            ConfigError: the folder is a file, or holds a run and `overwrite` is False.
        """
        if self.path.is_file():
            raise ConfigError(f"{self.path}: is a file, expected a folder for the run")
        if not overwrite and (self.checkpoint.exists() or self.config_json.exists()):
            raise ConfigError(f"{self.path}: holds a run already; choose another --out, or --overwrite, or --resume it")

    def remove_if_empty(self) -> None:
        """Remove the folder of a run that ended before anything was written."""
        with suppress(OSError):
            self.path.rmdir()

    @classmethod
    def open(cls, path: Path) -> Self:
        """The run in a folder, or around a checkpoint file.

        Raises:
            CheckpointError: there is no checkpoint.
        """
        if path.is_dir():
            checkpoint = path / CHECKPOINT_NAME
            if not checkpoint.is_file():
                raise CheckpointError(f"{path}: no {CHECKPOINT_NAME} in this folder: not a run, or not yet saved")
            return cls(path, checkpoint)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such run folder or checkpoint file")
        return cls(path.parent, path)

"""`hashfield export RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hashfield.api import load
from hashfield.cli.shared import parse, say
from hashfield.errors import ConfigError
from hashfield.train.checkpoint import export_checkpoint
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class Export:
    """Write a checkpoint in its small form: half precision, without what only training needs."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    out: Path | None = None
    """File to write; default: <run folder>/model.safetensors."""
    overwrite: bool = False
    """Replace a file that is there."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    options = parse(Export, arguments, "export")
    run = RunFolder.open(options.run)
    target = options.out or run.path / "model.safetensors"
    if target.exists() and (not options.overwrite or target.resolve() == run.checkpoint.resolve()):
        raise ConfigError(f"{target}: is there already; choose another --out, or --overwrite")
    load(run.checkpoint)  # a broken checkpoint is named here, not when somebody opens the export
    size = export_checkpoint(run.checkpoint, target)
    say(f"{target}: {size / 1e6:.1f} MB (the checkpoint has {run.checkpoint.stat().st_size / 1e6:.1f} MB)")
    return 0

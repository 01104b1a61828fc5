"""`hashfield export`: a checkpoint in its small form, or the cameras of a run or of a data set for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hashfield.api import load
from hashfield.cli.export_cameras import CameraForm, export_cameras
from hashfield.cli.shared import parse, say
from hashfield.data import ReadOptions
from hashfield.errors import ConfigError
from hashfield.train.checkpoint import export_checkpoint
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class Export:
    """Write a checkpoint in its small form (half precision, without what only training needs), or, with --cameras, the
    cameras of a run or of a data set for other programs."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file; with --cameras also a data set, as `hashfield train nerf` takes it."""
    out: Path | None = None
    """File to write; default: <run folder>/model.safetensors."""
    cameras: Path | None = None
    """Write cameras instead of a checkpoint: folder to write transforms.json or sparse/0 into, or a name that ends in
    .json."""
    form: CameraForm = "transforms"
    """Form of the cameras: transforms.json, or a COLMAP model as .bin or .txt."""
    camera_axes: Literal["opengl", "opencv"] = "opengl"
    """Axes of the cameras in a data set, as for training."""
    overwrite: bool = False
    """Replace files that are there."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    options = parse(Export, arguments, "export")
    if options.cameras is not None:
        if options.out is not None:
            raise ConfigError("--out and --cameras: give only one of them")
        read = ReadOptions(camera_axes=options.camera_axes)
        export_cameras(options.run, options.cameras, options.form, read, overwrite=options.overwrite)
        return 0
    run = RunFolder.open(options.run)
    target = options.out or run.path / "model.safetensors"
    if target.exists() and (not options.overwrite or target.resolve() == run.checkpoint.resolve()):
        raise ConfigError(f"{target}: is there already; choose another --out, or --overwrite")
    load(run.checkpoint)  # a broken checkpoint is named here, not when somebody opens the export
    size = export_checkpoint(run.checkpoint, target)
    say(f"{target}: {size / 1e6:.1f} MB (the checkpoint has {run.checkpoint.stat().st_size / 1e6:.1f} MB)")
    return 0

"""`hashfield export`: a checkpoint in its small form, a web page, or the cameras of a run or of a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hashfield.api import load
from hashfield.aside import write_aside
from hashfield.cli.export_cameras import CameraForm, export_cameras
from hashfield.cli.shared import parse, say
from hashfield.data import ReadOptions
from hashfield.errors import ConfigError, DataError
from hashfield.tasks.web import web_page
from hashfield.train.checkpoint import export_checkpoint
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class Export:
    """Write a checkpoint in its small form (half precision, without what only training needs), as a web page (--web),
    or the cameras of a run or of a data set for other programs (--cameras)."""

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
    web: Path | None = None
    """Write this HTML file instead: a page that draws the model in any browser and loads nothing from anywhere."""
    web_size: Literal["small", "medium", "large"] = "medium"
    """How many bits the page's table has: 6 and 3, 8 and 4, or 8 in coarse and in fine levels."""
    title: str | None = None
    """Heading of the page; default: the run's name."""
    credit: str = ""
    """A line on the page, such as whose photos were used."""
    overwrite: bool = False
    """Replace files that are there."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    options = parse(Export, arguments, "export")
    if options.cameras is not None:
        if options.out is not None or options.web is not None:
            raise ConfigError(f"--{'web' if options.out is None else 'out'} and --cameras: give only one of them")
        read = ReadOptions(camera_axes=options.camera_axes)
        export_cameras(options.run, options.cameras, options.form, read, overwrite=options.overwrite)
        return 0
    run = RunFolder.open(options.run)
    if options.web is not None:
        return _write_web(options, run, options.web)
    target = options.out or run.path / "model.safetensors"
    if target.exists() and (not options.overwrite or target.resolve() == run.checkpoint.resolve()):
        raise ConfigError(f"{target}: is there already; choose another --out, or --overwrite")
    load(run.checkpoint)  # a broken checkpoint is named here, not when somebody opens the export
    size = export_checkpoint(run.checkpoint, target)
    say(f"{target}: {size / 1e6:.1f} MB (the checkpoint has {run.checkpoint.stat().st_size / 1e6:.1f} MB)")
    return 0


def _write_web(options: Export, run: RunFolder, target: Path) -> int:
    if options.out is not None:
        raise ConfigError("--out and --web: give only one of them")
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{target}: expected a name that ends in .html")
    if target.exists() and not options.overwrite:
        raise ConfigError(f"{target}: is there already; choose another name, or --overwrite")
    title = options.title or run.path.resolve().name
    page = web_page(load(run.checkpoint), options.web_size, title, options.credit)
    content = page.html.encode()
    try:
        write_aside(target, lambda aside: aside.write_bytes(content))
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    for note in page.notes:
        say(note)
    say(
        f"{target}: {len(content) / 1e6:.1f} MB, size {options.web_size}: {page.loss_db:.1f} dB to the model it was "
        "made of; open it in a browser"
    )
    return 0

"""`hashfield mesh RUN`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hashfield.api import load
from hashfield.aside import write_aside
from hashfield.cli.progress import Countdown
from hashfield.cli.shared import parse, say, set_up
from hashfield.errors import ConfigError, DataError
from hashfield.export.meshes import check_mesh_file, check_resolution, encode_mesh
from hashfield.tasks.mesh import Box, HasSurface, surface_mesh
from hashfield.train.run_folder import RunFolder


@dataclass(frozen=True)
class MeshOptions:
    """A triangle mesh of a trained model's surface, in the world's units and axes."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    out: Path | None = None
    """File to write (.obj, .ply, .glb or .stl); default: mesh.ply in the run folder."""
    resolution: int = 256
    """Cells of the marching cubes along the longest side of the box."""
    level: float | None = None
    """Value of the surface: density per world unit, or signed distance. Default: chosen from rendered depth, or 0."""
    box: Box | None = None
    """Crop to x0 y0 z0 x1 y1 z1 in world units; default: all that the model holds."""
    components: int = 0
    """Keep this many of the largest connected pieces; 0 keeps all."""
    overwrite: bool = False
    """Replace a file that is there."""
    threads: int | None = None
    """Threads of the kernels."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    options = parse(MeshOptions, arguments, "mesh")
    set_up(threads=options.threads)
    check_resolution(options.resolution)
    if options.components < 0:
        raise ConfigError(f"--components: expected at least 0, got {options.components}")
    target = options.out or RunFolder.open(options.run).path / "mesh.ply"
    check_mesh_file(target)
    if target.exists() and not options.overwrite:
        raise ConfigError(f"{target}: is there already; choose another --out, or --overwrite")
    model = load(options.run)
    if not isinstance(model, HasSurface):
        raise ConfigError(f"{options.run}: what this run learned has no surface")
    before = time.perf_counter()
    surface = model.surface(resolution=options.resolution, box=options.box, level=options.level)
    for note in surface.notes:
        say(note)
    with Countdown(options.resolution, "planes of cells sampled") as countdown:
        mesh, said = surface_mesh(
            surface, options.resolution, n_components=options.components,
            on_progress=lambda fraction: countdown.show(int(fraction * options.resolution)),
        )  # fmt: skip
    for line in said:
        say(line)
    x0, y0, z0, x1, y1, z1 = surface.box
    where = f"box: {x0:.5g} {y0:.5g} {z0:.5g} to {x1:.5g} {y1:.5g} {z1:.5g} in world units"
    content = encode_mesh(target, mesh, ["made by hashfield", *surface.notes, where])
    try:
        write_aside(target, lambda aside: aside.write_bytes(content))
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    say(
        f"{target}: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles, {len(content) / 1e6:.1f} MB, "
        f"{time.perf_counter() - before:.1f} s; {where}"
    )
    return 0

"""`hashfield mesh RUN`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import tyro

from hashfield.api import load
from hashfield.aside import write_aside
from hashfield.cli.evaluate import Evaluate, views_of
from hashfield.cli.progress import Countdown
from hashfield.cli.shared import parse, say, set_up
from hashfield.data.dataset import PosedImages
from hashfield.errors import ConfigError, DataError
from hashfield.export.clouds import Cloud, encode_cloud, encode_volume, points_on, sample_volume
from hashfield.export.meshes import Mesh, check_mesh_file, check_resolution, check_simplify, encode_mesh
from hashfield.export.textures import check_textured_file, encode_textured, make_atlas
from hashfield.tasks.mesh import Box, HasSurface, Surface, SurfaceSource, in_parts, longest_side, surface_mesh
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.texture import bake_texture
from hashfield.train.run_folder import RunFolder

VOLUME: Final = ".npy"
"""Ending of the file that values in space are written to."""
MANY_TRIANGLES: Final = 150_000
"""With more, cutting the surface into charts takes long."""


@dataclass(frozen=True)
class MeshOptions:
    """A trained model's surface in the world's units and axes: triangles with coloured vertices or a texture, or
    points; or its values in space."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    out: Path | None = None
    """File to write (.obj, .ply, .glb or .stl, or .npy for the values in space: density or distance at the corners of
    the cells); default: mesh.ply in the run folder."""
    resolution: int = 256
    """Cells of the marching cubes along the longest side of the box."""
    texture: int = 0
    """Side of a texture in pixels, such as 2048, taken from the photos where they show the surface (.glb or .obj); 0
    gives each vertex a colour."""
    data: Path | None = None
    """The photos for the texture; default: where they lay during training."""
    triangles: int | None = None
    """Simplify to about so many triangles."""
    points: int = 0
    """Write so many points of the surface instead of triangles (.ply); 0 writes triangles."""
    surface: SurfaceSource = "auto"
    """What a radiance field's surface is taken from: a level of its density, or the depth that its cameras render,
    which closes holes of captures and drops floaters. "auto" takes depth where the scene outgrows the unit cube."""
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
    _check(options, target)
    model = load(options.run)
    if not isinstance(model, HasSurface):
        raise ConfigError(f"{options.run}: what this run learned has no surface")
    before = time.perf_counter()
    source = "density" if target.suffix.lower() == VOLUME and isinstance(model, NerfModel) else options.surface
    surface = model.surface(resolution=options.resolution, box=options.box, level=options.level, source=source)
    if options.texture and surface.colors is None:
        raise ConfigError("--texture: what this run learned has no colours")
    for note in surface.notes:
        say(note)
    x0, y0, z0, x1, y1, z1 = surface.box
    where = f"box: {x0:.5g} {y0:.5g} {z0:.5g} to {x1:.5g} {y1:.5g} {z1:.5g} in world units"
    notes = ["made by hashfield", *surface.notes, where]
    if target.suffix.lower() == VOLUME:
        values = sample_volume(surface.value, surface.box, options.resolution)
        what = "density per world unit" if surface.is_log else "signed distance in world units, negative inside"
        files = encode_volume(target, values, surface.box, what, notes)
        summary = f"{' x '.join(map(str, values.shape))} values ({what})"
    else:
        with Countdown(options.resolution, "planes of cells sampled") as countdown:
            mesh, said = surface_mesh(
                surface, options.resolution, n_components=options.components, n_triangles=options.triangles,
                on_progress=lambda fraction: countdown.show(int(fraction * options.resolution)),
            )  # fmt: skip
        for line in said:
            say(line)
        files, summary = _mesh_files(options, target, model, surface, mesh, notes)
    for name, content in files.items():
        _write(target.with_name(name), content)
    size, seconds = sum(map(len, files.values())) / 1e6, time.perf_counter() - before
    say(f"{', '.join(files)} in {target.parent}: {summary}, {size:.1f} MB, {seconds:.1f} s; {where}")
    return 0


def _check(options: MeshOptions, target: Path) -> None:
    """Tell mistakes before minutes of work, not after."""
    kind, is_volume = target.suffix.lower(), target.suffix.lower() == VOLUME
    if options.points and options.texture:
        raise ConfigError("--points and --texture exclude each other")
    if is_volume and options.surface == "depth":
        raise ConfigError(f"{target}: values in space are densities, not depth: leave --surface out")
    if is_volume and (options.points or options.texture or options.triangles or options.components):
        raise ConfigError(f"{target}: values in space take no --points, --texture, --triangles or --components")
    if options.points < 0 or (options.points and kind != ".ply"):
        raise ConfigError(f"--points: expected a number above 0 and a .ply file, got {options.points} and {kind}")
    if options.texture:
        check_textured_file(target, options.texture)
    if not is_volume:
        check_mesh_file(target)
    if options.triangles is not None:
        check_simplify(options.triangles)
    if target.exists() and not options.overwrite:
        raise ConfigError(f"{target}: is there already; choose another --out, or --overwrite")


def _mesh_files(
    options: MeshOptions, target: Path, model: Any, surface: Surface, mesh: Mesh, notes: list[str]
) -> tuple[dict[str, bytes], str]:
    """(contents of the files by name, what is in them)."""
    if options.points:
        place, normals = points_on(mesh, options.points)
        found = None
        if surface.colors is not None:
            colors = in_parts(surface.colors, place, normals)
            found = np.rint(255 * colors.clip(0, 1)).astype(np.uint8)
        return {target.name: encode_cloud(Cloud(place, normals, found), notes)}, f"{len(place):,} points"
    counts = f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles"
    if not options.texture:
        return {target.name: encode_mesh(target, mesh, notes)}, counts
    if len(mesh.faces) > MANY_TRIANGLES:
        say(f"charts of {len(mesh.faces):,} triangles take minutes: --triangles 60000 would be faster")
    atlas = make_atlas(mesh, options.texture)
    cell = longest_side(surface.box) / options.resolution
    texture, lines = bake_texture(model, surface, mesh, atlas, options.texture, cell, _photos(options, model))
    for line in lines:
        say(line)
    return encode_textured(target, mesh, atlas, texture, [*notes, *lines]), f"{counts}, {atlas.n_charts:,} charts"


def _photos(options: MeshOptions, model: Any) -> PosedImages | None:
    """The photos of the run's training views, whole, whatever size they were trained at; None where they are not there
    any more."""
    if not isinstance(model, NerfModel):
        return None
    try:
        return views_of(model, Evaluate(run=options.run, data=options.data, split="train", downscale=1))
    except DataError as error:
        if options.data is not None:
            raise
        say(f"the texture has the field's own colours: {error}")
        return None


def _write(path: Path, content: bytes) -> None:
    try:
        write_aside(path, lambda aside: aside.write_bytes(content))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error

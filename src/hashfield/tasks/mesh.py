"""From a trained model to a mesh: what a model tells of its surface, and the steps that all tasks share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.export.meshes import (
    Mesh,
    Shortcut,
    Values,
    extract_mesh,
    keep_faces,
    largest_components,
    mesh_normals,
    simplify,
)

POINTS_AT_ONCE = 2**18

Box = tuple[float, float, float, float, float, float]
"""Corners x0, y0, z0, x1, y1, z1 of a box, in world units."""


SurfaceSource = Literal["auto", "density", "depth"]
"""What the surface of a radiance field is taken from: a level of its density, or the depth that its cameras render."""


@dataclass(frozen=True)
class Surface:
    """Where a model's surface lies and what is known about it. Every position and length is the world's."""

    value: Values
    """The function whose level set is the surface."""
    level: float
    """Value of the function on the surface."""
    box: Box
    """Where the surface is looked for."""
    inside: Literal["above", "below"]
    """Side of the level that is solid."""
    is_log: bool = False
    """Whether values are interpolated in their logarithm, as densities are."""
    shortcut: Shortcut | None = None
    """Balls of space that need no samples."""
    normals: Callable[[Float64[Tensor, "n 3"]], Float[Tensor, "n 3"]] | None = None
    """Positions -> outward unit normals; None: the mesh's own."""
    colors: Callable[[Float64[Tensor, "n 3"], Float[Tensor, "n 3"]], Float[Tensor, "n 3"]] | None = None
    """(positions, outward unit normals) -> sRGB in 0..1; None: the mesh has no colours."""
    is_seen: Callable[[Float64[Tensor, "n 3"]], Bool[Tensor, " n"]] | None = None
    """Positions -> whether anything is known about them; triangles of which nothing is known are dropped."""
    notes: tuple[str, ...] = ()
    """Lines for the file and the user: units, axes, how the level was chosen, what the colours are."""


@runtime_checkable
class HasSurface(Protocol):
    """A trained model that can be exported as a mesh."""

    def surface(
        self, *, resolution: int, box: Box | None = None, level: float | None = None, source: SurfaceSource = "auto"
    ) -> Surface:
        """The surface to extract.

        Args:
            resolution: Cells along the longest side of the box that will be used.
            box: World units; None: what the model holds.
            level: In the model's own terms; None: the one that suits best.
            source: What a radiance field's surface is taken from. "auto": depth where the scene is larger than the unit
                cube, as captures are, and no level is given, else density. Other kinds have one surface.

        Raises:
            ConfigError: the box lies outside the model, the level is out of range, or there is no such source.
        """
        ...


@torch.no_grad()
def surface_mesh(
    surface: Surface,
    resolution: int,
    *,
    n_components: int = 0,
    n_triangles: int | None = None,
    on_progress: Callable[[float], object] | None = None,
) -> tuple[Mesh, tuple[str, ...]]:
    """(mesh with normals and colours, lines that say what was left out).

    Args:
        surface: Surface of a model.
        resolution: Cells along the longest side of its box.
        n_components: Keep this many of the largest connected pieces; 0 keeps all.
        n_triangles: Simplify to about so many triangles; None keeps all.
        on_progress: Told the fraction of the sampling that is done.

    Raises:
        ConfigError: there is no surface, or nothing of it was seen.
    """
    if n_components < 0:
        raise ConfigError(f"components: expected at least 0, got {n_components}")
    said = []
    mesh = extract_mesh(
        surface.value, surface.box, resolution, surface.level, inside=surface.inside, is_log=surface.is_log,
        shortcut=surface.shortcut, points_at_once=POINTS_AT_ONCE, on_progress=on_progress,
    )  # fmt: skip
    if surface.is_seen is not None:
        seen = in_parts(surface.is_seen, mesh.vertices)
        n_before = len(mesh.faces)
        mesh = keep_faces(mesh, np.logical_or.reduce(seen[mesh.faces], axis=1))
        if not len(mesh.faces):
            raise ConfigError("no surface: nothing of it was seen by a camera")
        said.append(f"{1 - len(mesh.faces) / n_before:.1%} of the triangles, which no camera saw, were left out")
    if n_components:
        n_before = len(mesh.faces)
        mesh, n_pieces = largest_components(mesh, n_components)
        kept = min(n_components, n_pieces)
        said.append(f"{kept} of {n_pieces} connected pieces kept, {len(mesh.faces) / n_before:.1%} of the triangles")
    if n_triangles is not None:
        n_before, cell = len(mesh.faces), longest_side(surface.box) / resolution
        mesh, mean, most = simplify(mesh, n_triangles)
        said.append(
            f"simplified from {n_before:,} to {len(mesh.faces):,} triangles: the old surface lies {mean:.2g} from the "
            f"new one on average, {most:.2g} at most, in world units ({mean / cell:.2f} and {most / cell:.1f} cells)"
        )
    normals = mesh_normals(mesh) if surface.normals is None else in_parts(surface.normals, mesh.vertices)
    normals = normals.astype(np.float32, copy=False)
    colors = None
    if surface.colors is not None:
        colors = in_parts(lambda p, n: (255 * surface.colors(p, n).clamp(0, 1)).round().byte(), mesh.vertices, normals)  # type: ignore[misc]
    return replace(mesh, normals=normals, colors=colors), tuple(said)


def longest_side(box: Box) -> float:
    """Length of the longest side of a box."""
    return max(high - low for low, high in zip(box[:3], box[3:], strict=True))


def in_parts(function: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
    """A function of points over arrays of them, a part at a time."""
    parts = [
        function(*(torch.from_numpy(array[begin : begin + POINTS_AT_ONCE]) for array in arrays)).numpy()
        for begin in range(0, len(arrays[0]), POINTS_AT_ONCE)
    ]
    return np.concatenate(parts)

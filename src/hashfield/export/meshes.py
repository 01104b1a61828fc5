"""Triangle meshes: marching cubes over any function of space, clean-up, and OBJ, PLY, GLB and STL files.

The packages behind it (scikit-image, scipy, trimesh) are the extra `mesh` and are imported when needed.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, UInt8
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.geometry.srgb import linear_from_srgb

FORMATS: Final = (".obj", ".ply", ".glb", ".stl")
BRICK: Final = 8
"""Cells along each side of the bricks that are sampled or skipped as a whole."""
SLAB: Final = 32
"""Cells of a slab along x, and along each side of the blocks given to marching cubes; a multiple of BRICK."""
NEAREST: Final = 1 / 128
"""A vertex keeps this fraction of a cell from the ends of its edge, so that no two vertices coincide."""
LOG_REACH: Final = 4.6
"""Logarithms of value / level are taken between + and - this (a factor of 100)."""
FACES_AT_ONCE: Final = 2**20

Values = Callable[[Float64[Tensor, "n 3"]], Float[Tensor, " n"]]
"""Positions in the world -> the function's value there."""
Shortcut = Callable[[Float64[Tensor, "n 3"], float], Float[Tensor, " n"]]
"""(centres of balls in the world, their radius) -> a value that stands for the whole ball, NaN where it must be
sampled."""


@dataclass(frozen=True)
class Mesh:
    """Triangles in the world, counter-clockwise seen from outside."""

    vertices: Float64[np.ndarray, "n_vertices 3"]
    """Positions in world units."""
    faces: Int32[np.ndarray, "n_faces 3"]
    """Numbers of the corners."""
    normals: Float32[np.ndarray, "n_vertices 3"] | None = None
    """Unit length, outward."""
    colors: UInt8[np.ndarray, "n_vertices 3"] | None = None
    """Colour of each vertex in sRGB."""


# --- extraction --------------------------------------------------------------------------------------------


@torch.no_grad()
def extract_mesh(
    value: Values,
    box: Sequence[float],
    resolution: int,
    level: float,
    *,
    inside: Literal["above", "below"] = "above",
    is_log: bool = False,
    shortcut: Shortcut | None = None,
    points_at_once: int = 2**18,
    slab: int = SLAB,
    on_progress: Callable[[float], object] | None = None,
) -> Mesh:
    """The surface where a function of space equals a level, by marching cubes.

    The lattice is walked in slabs along x. A slab's samples are evaluated brick by brick, those of skipped bricks are
    filled in, and its first plane is the last one of the slab before: no sample is taken twice, so blocks agree on
    them to the bit. Triangles come from the signs alone; vertices are numbered by the lattice edge they lie on, which
    welds blocks exactly. The surface is closed and manifold along its edges wherever it does not leave the box.
    Memory: one slab (140 MB at 1024 x 1024) and the mesh.

    Args:
        value: Called with at most `points_at_once` points; NaN counts as outside.
        box: x0, y0, z0, x1, y1, z1 in the world; the lattice's outermost samples lie on it.
        resolution: Cells along the longest side; the others get as many as makes cells nearly cubes.
        level: The value on the surface.
        inside: Side of the level that is solid.
        is_log: Interpolate log(value / level), clipped to a factor of 100: right for densities, which span powers of
            ten across a surface.
        shortcut: Tells which bricks need no samples; None samples everything.
        points_at_once: Bounds memory.
        slab: Cells of a slab; any multiple of 8 gives the same mesh.
        on_progress: Told the fraction done after each slab.

    Returns:
        Vertices and faces, without normals and colours. Vertices are sorted by lattice edge.

    Raises:
        ConfigError: an argument is out of range, or no surface lies in the box; the text gives the values seen.

    Source: Lorensen and Cline 1987; the table is scikit-image's (method "lorensen"), whose ambiguous faces are decided
    by signs alone, alike in both cells.
    """
    low, size, cells = lattice(box, resolution)
    if slab < BRICK or slab % BRICK:
        raise ConfigError(f"slab: expected a multiple of {BRICK}, got {slab}")
    if not math.isfinite(level) or (is_log and level <= 0):
        raise ConfigError(f"level: expected a finite{' positive' * is_log} number, got {level}")
    shape = tuple(cells + 1)
    layer = lru_cache(maxsize=2)(lambda k: _brick_layer(k, shortcut, low, size, cells))
    seen = (math.inf, -math.inf)
    keys: list[Int64[np.ndarray, " n"]] = []
    places: list[Float64[np.ndarray, "n 3"]] = []
    corners: list[Int32[np.ndarray, "n 3"]] = []
    n_found = 0
    last_plane: np.ndarray | None = None
    for first in range(0, cells[0], slab):
        depth = min(slab, cells[0] - first)
        values = np.full((depth + 1, *shape[1:]), np.nan, np.float32)
        wanted = np.ones(values.shape, np.bool_) if shortcut is None else _fill_skipped(values, first, layer)
        if last_plane is not None:
            values[0] = last_plane
            wanted[0] = False
        found = _sample(values, wanted, first, value, low, size, cells, points_at_once)
        seen = min(seen[0], found[0]), max(seen[1], found[1])
        last_plane = values[-1].copy()
        # NaN compares as False: outside, whichever side that is
        solid = values > level if inside == "above" else values < level
        for begin, edges, triangles in _cubes(solid):
            low_end, axis = edges
            offset = begin + low_end
            from_value = values[tuple(offset.T)]
            high_end = offset.copy()
            high_end[np.arange(len(axis)), axis] += 1
            fraction = _fraction(from_value, values[tuple(high_end.T)], level, is_log)
            offset[:, 0] += first
            place = offset.astype(np.float64)
            place[np.arange(len(axis)), axis] += fraction
            keys.append(np.ravel_multi_index(tuple(offset.T), shape) * 3 + axis)
            places.append(low + size * (place / cells))
            corners.append(triangles + n_found)
            n_found += len(axis)
        if on_progress is not None:
            on_progress((first + depth) / cells[0])
    if not n_found:
        if seen[0] > seen[1]:
            raise ConfigError("no surface: the box holds nothing that needs sampling; another box may")
        raise ConfigError(f"no surface at level {level:g}: values in the box lie from {seen[0]:g} to {seen[1]:g}")
    _, chosen, number = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    keys.clear()
    number = number.astype(np.int32)
    vertices = np.concatenate(places)[chosen]
    places.clear()
    return Mesh(vertices, np.concatenate([number[part] for part in corners]))


def check_resolution(resolution: int) -> None:
    """Raise a ConfigError unless marching cubes can have so many cells along a side."""
    if not 1 <= resolution <= 2**14:
        raise ConfigError(f"resolution: expected 1 to {2**14} cells, got {resolution}")


def lattice(box: Sequence[float], resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low corner, side lengths and cells per axis."""
    corners = np.asarray(box, np.float64)
    if corners.shape != (6,) or not np.isfinite(corners).all() or not (corners[3:] > corners[:3]).all():
        raise ConfigError(f"box: expected finite x0 y0 z0 x1 y1 z1 with x0 < x1 and so on, got {list(box)}")
    check_resolution(resolution)
    size = corners[3:] - corners[:3]
    cells = np.maximum(np.rint(resolution * size / size.max()), 1).astype(np.int64)
    return corners[:3], size, cells


def _brick_layer(
    k: int, shortcut: Shortcut | None, low: np.ndarray, size: np.ndarray, cells: np.ndarray
) -> Float32[np.ndarray, "y z"]:
    """What the shortcut says of the k-th bricks along x; the layer beyond the last is the last."""
    assert shortcut is not None
    n_x, n_y, n_z = -(-cells // BRICK)
    y, z = np.meshgrid(np.arange(n_y), np.arange(n_z), indexing="ij")
    brick = np.stack([np.full_like(y, min(k, n_x - 1)), y, z], -1).reshape(-1, 3)
    center = low + size * ((brick + 0.5) * BRICK / cells)
    radius = float(np.linalg.norm(size / cells)) * BRICK / 2
    return shortcut(torch.from_numpy(center), radius).cpu().numpy().astype(np.float32).reshape(n_y, n_z)


def _fill_skipped(values: np.ndarray, first: int, layer: Callable[[int], np.ndarray]) -> Bool[np.ndarray, "x y z"]:
    """Samples of the slab that must be evaluated; the others get the value of their brick."""
    # The last plane belongs to the next layer of bricks too, if there is one.
    layers = range(first // BRICK, (first + len(values) - 1) // BRICK + 1)
    fill = np.stack([layer(k) for k in layers])
    spread = [np.minimum(np.arange(n) // BRICK, count - 1) for n, count in zip(values.shape, fill.shape, strict=True)]
    values[:] = fill[np.ix_(*spread)]
    wanted = np.isnan(values)
    # A sample on a face between two bricks is wanted where either is.
    for axis, n in enumerate(values.shape):
        faces = np.arange(BRICK, n, BRICK)
        here, before = [slice(None)] * 3, [slice(None)] * 3
        here[axis], before[axis] = faces, faces - 1
        wanted[tuple(here)] |= wanted[tuple(before)]
    return wanted


def _sample(
    values: np.ndarray, wanted: np.ndarray, first: int, value: Values, low: np.ndarray, size: np.ndarray,
    cells: np.ndarray, points_at_once: int,
) -> tuple[float, float]:  # fmt: skip
    """Evaluate the wanted samples of a slab; returns the least and the largest value."""
    flat, mask = values.reshape(-1), wanted.reshape(-1)
    least, largest = math.inf, -math.inf
    for begin in range(0, flat.size, 2**22):
        index = begin + np.flatnonzero(mask[begin : begin + 2**22])
        for some in np.split(index, range(points_at_once, len(index), points_at_once)):
            if not len(some):
                continue
            lattice = np.stack(np.unravel_index(some, values.shape), -1)
            lattice[:, 0] += first
            # Sums and products in this order give both neighbours of a slab the same float64.
            position = low + size * (lattice / cells)
            found = value(torch.from_numpy(position)).cpu().numpy()
            flat[some] = found
            if not np.isnan(found).all():
                least, largest = min(least, float(np.nanmin(found))), max(largest, float(np.nanmax(found)))
    return least, largest


def _cubes(
    solid: Bool[np.ndarray, "x y z"],
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]]:
    """Blocks of a slab that hold surface: first cell, (low ends [n, 3] and axes [n] of the crossed edges, relative to
    it), triangles [m, 3]."""
    from skimage.measure import marching_cubes

    n_y, n_z = (range(0, n - 1, SLAB) for n in solid.shape[1:])
    for y in n_y:
        for z in n_z:
            block = solid[:, y : y + SLAB + 1, z : z + SLAB + 1]
            n = np.count_nonzero(block)
            if n in (0, block.size):
                continue
            signs = np.where(block, np.float32(1), np.float32(-1))
            # With signs for values every vertex is the middle of an edge: which one is read off exactly.
            middle, triangles, _, _ = marching_cubes(
                signs, 0.0, method="lorensen", allow_degenerate=True, gradient_direction="ascent"
            )
            twice = np.rint(2 * middle).astype(np.int64)
            axis = (twice & 1).argmax(1)
            yield np.array([0, y, z]), (twice >> 1, axis), triangles.astype(np.int32)


def _fraction(a: np.ndarray, b: np.ndarray, level: float, is_log: bool) -> np.ndarray:
    """Where between two samples the level is crossed, 0 to 1 without the ends; the middle if one is not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if is_log:
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (np.clip(np.log(x / level), -LOG_REACH, LOG_REACH) for x in (a, b))
    else:
        a, b = a - level, b - level
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = a / (a - b)
    return np.clip(np.where(np.isfinite(fraction), fraction, 0.5), NEAREST, 1 - NEAREST)


# --- normals and clean-up ----------------------------------------------------------------------------------


def mesh_normals(mesh: Mesh) -> Float32[np.ndarray, "n_vertices 3"]:
    """Unit normals of the vertices: the mean of their triangles' normals, weighted by area; 0 where that is 0."""
    total = np.zeros(mesh.vertices.shape)
    for part in _chunks(mesh.faces):
        a, b, c = (mesh.vertices[part[:, k]] for k in range(3))
        normal = np.cross(b - a, c - a)
        for axis in range(3):
            for corner in range(3):
                total[:, axis] += np.bincount(part[:, corner], normal[:, axis], len(total))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return (total / np.where(length > 0, length, 1)).astype(np.float32)


def keep_faces(mesh: Mesh, keep: Bool[np.ndarray, " n_faces"]) -> Mesh:
    """The mesh without the other triangles and the vertices that only they had."""
    faces = mesh.faces[keep]
    used = np.zeros(len(mesh.vertices), np.bool_)
    used[faces.reshape(-1)] = True
    number = np.cumsum(used, dtype=np.int32) - 1
    pick = lambda values: None if values is None else values[used]  # noqa: E731
    return Mesh(mesh.vertices[used], number[faces], pick(mesh.normals), pick(mesh.colors))


def largest_components(mesh: Mesh, n: int) -> tuple[Mesh, int]:
    """(the n connected pieces with the most triangles, how many pieces there were)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b, c = mesh.faces.T
    links = np.ones(2 * len(a), np.bool_)
    ends = np.concatenate([a, b]), np.concatenate([b, c])
    graph = coo_array((links, ends), shape=(len(mesh.vertices),) * 2)
    n_pieces, piece = connected_components(graph, directed=False)
    if n >= n_pieces:
        return mesh, n_pieces
    piece = piece[a]
    # stable, so that of equally large pieces the first stays
    largest = np.argsort(-np.bincount(piece), kind="stable")[:n]
    return keep_faces(mesh, np.isin(piece, largest)), n_pieces


def check_simplify(n_triangles: int) -> None:
    """Raise a ConfigError unless a mesh can be simplified to so many triangles, a ModuleNotFoundError where the package
    for it is missing."""
    if n_triangles < 4:
        raise ConfigError(f"triangles: expected at least 4, got {n_triangles}")
    importlib.import_module("fast_simplification")


def simplify(mesh: Mesh, n_triangles: int) -> tuple[Mesh, float, float]:
    """(the mesh with about so many triangles, mean and largest distance of its old vertices from the new surface).

    Edges are collapsed in the order of the quadric error, by the package fast-simplification of the extra `texture`;
    normals and colours are left out, as they belong to the old vertices. The distances are those of at most 100,000
    vertices, evenly chosen.

    Args:
        mesh: Any mesh.
        n_triangles: At least 4; meshes that have no more are returned as they are.

    Source: Garland and Heckbert 1997.
    """
    check_simplify(n_triangles)
    if len(mesh.faces) <= n_triangles:
        return mesh, 0.0, 0.0
    import fast_simplification
    import igl

    # around its middle, since the package works in float32
    middle = mesh.vertices.mean(0)
    vertices, faces = fast_simplification.simplify(
        (mesh.vertices - middle).astype(np.float32), mesh.faces, target_count=n_triangles
    )[:2]
    found = Mesh(vertices.astype(np.float64) + middle, faces.astype(np.int32))
    some = mesh.vertices[:: -(-len(mesh.vertices) // 100_000)]
    squared = igl.point_mesh_squared_distance(some, found.vertices, found.faces.astype(np.int64))[0]
    distance = np.sqrt(np.maximum(squared, 0))
    return found, float(distance.mean()), float(distance.max())


def _chunks(faces: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(faces), FACES_AT_ONCE):
        yield faces[begin : begin + FACES_AT_ONCE]


# --- files -------------------------------------------------------------------------------------------------


def check_mesh_file(path: Path) -> None:
    """Check that such a file can be written, so that a mistake is told before minutes of work, not after.

    Raises:
        ConfigError: the name's ending is not one of FORMATS.
        ModuleNotFoundError: a package of the extra `mesh` is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    for name in ("trimesh", "scipy.sparse", "skimage.measure"):
        importlib.import_module(name)


def encode_mesh(path: Path, mesh: Mesh, notes: Sequence[str] = ()) -> bytes:
    """Content of a file of the mesh in the format of the path's ending.

    Positions are float32 (OBJ: text of as many digits). PLY and OBJ carry the notes as comments, GLB in asset.extras,
    STL, which holds positions alone, as much of them as its 80 bytes of header take. Colours are sRGB, except in GLB:
    glTF wants linear ones, and gets them with a material that is not shaded, as the colours have light in them.

    Args:
        path: Its ending chooses the format; nothing is written.
        mesh: World units.
        notes: Lines about units, axes and origin; what is not ASCII becomes a question mark.

    Raises:
        ConfigError: the ending is not known.
    """
    check_mesh_file(path)
    import trimesh
    from trimesh.exchange.gltf import export_glb
    from trimesh.exchange.obj import export_obj
    from trimesh.exchange.ply import export_ply
    from trimesh.exchange.stl import export_stl

    kind = path.suffix.lower()
    lines = ascii_lines(notes)
    colors = mesh.colors
    if colors is not None and kind == ".glb":
        colors = _linear_from_srgb(colors)
    normals = mesh.normals
    if normals is not None and kind == ".glb":
        normals = unit_vectors(normals)
    model = trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=normals, vertex_colors=colors, process=False, validate=False
    )
    if kind == ".ply":
        content = export_ply(model, vertex_normal=mesh.normals is not None)
        head, _, body = content.partition(b"end_header\n")
        comments = "".join(f"comment {line}\n" for line in lines)
        head = b"".join(part for part in head.splitlines(True) if not part.startswith(b"comment"))
        return head.replace(b"element vertex", comments.encode() + b"element vertex", 1) + b"end_header\n" + body
    if kind == ".obj":
        header = "\n# ".join(lines or ["hashfield"])
        has_normals = mesh.normals is not None
        return export_obj(model, include_normals=has_normals, digits=obj_digits(mesh), header=header).encode()
    if kind == ".stl":
        content = export_stl(model)
        return " ".join(lines).encode()[:80].ljust(80) + content[80:]

    def annotate(tree: dict[str, Any]) -> None:
        tree["asset"]["extras"] = {"notes": lines}
        if mesh.colors is not None:
            tree["materials"] = [{"extensions": {"KHR_materials_unlit": {}}}]
            tree["extensionsUsed"] = ["KHR_materials_unlit"]
            tree["meshes"][0]["primitives"][0]["material"] = 0

    return export_glb(model, include_normals=mesh.normals is not None, tree_postprocessor=annotate)


def ascii_lines(notes: Sequence[str]) -> list[str]:
    """Lines as comments of any format take them; what is not ASCII becomes a question mark."""
    return [" ".join(line.encode("ascii", "replace").decode().split()) for line in notes]


def unit_vectors(values: Float32[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """Vectors of length 1; those of no length become the third axis, as glTF allows none."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(length > 1e-6, values / np.maximum(length, 1e-12), np.array([0, 0, 1], np.float32)).astype(
        np.float32
    )


def obj_digits(mesh: Mesh) -> int:
    """Decimals of an OBJ file: float32's seven digits and a guard, whatever the unit; normals and colours need six."""
    extent = float(np.abs(mesh.vertices).max(initial=0.0))
    return int(np.clip(8 - math.floor(math.log10(extent)) if extent > 0 else 8, 6, 30))


def _linear_from_srgb(colors: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Linear light of sRGB colours, 8 bits as in the file."""
    return np.rint(255 * linear_from_srgb(np.arange(256) / 255)).astype(np.uint8)[colors]

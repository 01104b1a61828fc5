"""The surface of a radiance field: from density or from rendered depth, what cameras saw of it, its colours.

A radiance field has no surface of its own. Of a field in the unit cube it is taken to be where density first exceeds a
level, and the level is the one whose surface lies nearest to the depth that the training cameras render. Of larger
ones, as captures are, it is what the depth of all these cameras together says, see `fused_depth`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int32
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera, camera_table, project, rays_from_pixels
from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import Spaces
from hashfield.ops.occupancy import CELLS_PER_CASCADE, GRID_SIZE, is_occupied, morton3_inverse
from hashfield.ops.render_rays import FieldParameters, MarchOptions, render_rays
from hashfield.tasks.fused_depth import FusedDepth
from hashfield.tasks.mesh import Box, Surface, SurfaceSource

MAX_VIEWS = 64
"""Cameras whose depth is rendered, spread evenly over those known."""
VIEW_SIZE_PX = 320
"""Longest side of those pictures."""
FUSED_SIZE_PX = 640
"""Longest side of those pictures where the surface is made of them."""
FUSED_REACH_CELLS = 5.0
"""Cells behind the depth that a camera sees of which it still says that they are inside: more than `SEEN_CELLS`, so
that what lies that deep is not taken for a surface."""
MIN_OPACITY = 0.9
"""Pixels below show no surface."""
LEVEL_RAYS = 4096
"""Rays that the level is chosen by."""
LEVELS = tuple(10 ** (k / 8) for k in range(0, 33))
"""Levels tried, per scene unit: 1 to 10,000."""
SEEN_CELLS = 3.0
"""A point counts as seen up to so many cells behind the depth rendered there."""


class NerfView(Protocol):
    """What this file needs of a radiance field's model: a trained one, or one in training."""

    spaces: Spaces
    bits: Tensor
    """Occupied cells, uint8 [cascades * 128^3 / 8]."""
    box: Tensor
    """Scene space, lowest then highest corner [6]; nothing lies outside it."""
    cameras: dict[str, list[Camera]]
    """World, by split."""
    step_scale: float
    """Length of the march's step, in units of sqrt(3)/1024."""

    def parameters_of_field(self) -> FieldParameters:
        """The field's numbers as the fused ops take them."""
        ...

    def density(self, positions_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Density per world unit of length."""
        ...

    def render(self, camera: Camera, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Float32 pictures by name."""
        ...

    def __call__(
        self, positions_world: Float[Tensor, "*batch 3"], directions_world: Float[Tensor, "*batch 3"]
    ) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
        """(color, density) of points seen along unit directions."""
        ...


@dataclass(frozen=True)
class DepthViews:
    """Depth as some cameras render it, small."""

    cameras: tuple[Camera, ...]
    """Cameras in the world."""
    depth: tuple[Float[Tensor, "h w"], ...]
    """World units along the unit ray; infinite where a ray meets less than half of a surface."""
    opacity: tuple[Float[Tensor, "h w"], ...]
    """Opacity of each pixel, 0 to 1."""


@torch.no_grad()
def nerf_surface(
    model: NerfView, *, resolution: int, box: Box | None, level: float | None, source: SurfaceSource = "auto"
) -> Surface:
    """See `hashfield.tasks.mesh.HasSurface`; the level is a density per world unit."""
    if level is not None and not (math.isfinite(level) and level > 0):
        raise ConfigError(f"level: expected a density above 0, got {level}")
    if level is not None and source == "depth":
        raise ConfigError("level: is one of density; a surface from depth has none")
    if source == "auto":
        is_capture = model.spaces.aabb_scale > 1 and any(model.cameras.values())
        source = "depth" if is_capture and level is None else "density"
    cells = OccupiedCells(model)
    whole = cells.box_world()
    if box is not None:
        low, high = np.maximum(box[:3], whole[:3]), np.minimum(box[3:], whole[3:])
        if not (high > low).all():
            corners = " ".join(f"{v:.4g}" for v in whole)
            raise ConfigError(
                f"box: holds nothing of this model, which lies in {corners} (x0 y0 z0 x1 y1 z1, world units)"
            )
        box = _as_box(low, high)
    views = render_depths(model, FUSED_SIZE_PX if source == "depth" else VIEW_SIZE_PX)
    if source == "depth" and not views.cameras:
        raise ConfigError("this run has no cameras to take depth from: take the surface from density")
    notes = [
        "units and axes: the world of the camera poses in the data file (nothing was rotated or scaled)"
        + _up_note(views.cameras),
        "colours: sRGB, each vertex rendered along minus its normal",
    ]
    if box is None:
        box = whole
        if model.spaces.aabb_scale > 1 and views.cameras:
            box = box_of_most(views, whole)
            notes.append("box: holds 98 % of what the cameras see; --box takes another")
    cell = max(b - a for a, b in zip(box[:3], box[3:], strict=True)) / resolution
    is_seen = None
    if views.cameras:
        is_seen = lambda p: seen_by_some(p, views, SEEN_CELLS * cell, grain=cell)  # noqa: E731
    colors = lambda p, n: colors_along_normals(model, p, n, cell)  # noqa: E731
    if source == "depth":
        fused = FusedDepth(views.cameras, views.depth, FUSED_REACH_CELLS * cell)
        notes.append(f"surface: what the depth that {len(views.cameras)} cameras render agrees on")

        def shortcut(centers: Tensor, radius: float) -> Tensor:
            held = cells.shortcut(centers, radius)  # no surface lies where nothing is, so one value is that of all
            return torch.where(held.isnan(), held, fused(centers))

        return Surface(
            value=fused, level=0.0, box=box, inside="below", shortcut=shortcut, colors=colors, is_seen=is_seen,
            notes=tuple(notes),
        )  # fmt: skip
    if level is None:
        level, note = choose_level(model, views, cell)
        notes.append(note)
    else:
        notes.append(f"level: density {level:.4g} per world unit, as asked for")
    return Surface(
        value=lambda p: occupied_density(model, p), level=level, box=box, inside="above", is_log=True,
        shortcut=cells.shortcut, colors=colors, is_seen=is_seen, notes=tuple(notes),
    )  # fmt: skip


def occupied_density(model: NerfView, positions_world: Float64[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Density per world unit where the occupancy grid has something, 0 elsewhere: what rendering sees, too."""
    scene = model.spaces.world_to_scene(positions_world)
    held = is_occupied(scene.float(), model.bits, model.spaces.n_cascades).nonzero()[:, 0]
    density = torch.zeros(len(positions_world))
    density[held] = model.density(positions_world[held])
    return density


class OccupiedCells:
    """The occupancy grid as sums over boxes of cells: whether a brick holds anything takes eight reads."""

    def __init__(self, model: NerfView) -> None:
        """Args:
        model: Its bits are taken as they are.
        """
        self.spaces = model.spaces
        bits = model.bits.numpy()
        cell = morton3_inverse(torch.arange(CELLS_PER_CASCADE)).numpy()
        n = self.spaces.n_cascades
        flags = np.unpackbits(bits, bitorder="little").reshape(n, -1)
        dense = np.zeros((n, *[GRID_SIZE] * 3), np.bool_)
        for k in range(n):
            dense[k][tuple(cell.T)] = flags[k]
        self.sums: Int32[np.ndarray, "n_cascades 129 129 129"] = np.zeros((n, *[GRID_SIZE + 1] * 3), np.int32)
        self.sums[:, 1:, 1:, 1:] = dense.cumsum(1, dtype=np.int32).cumsum(2, dtype=np.int32).cumsum(3, dtype=np.int32)
        self.model_box = model.box.numpy()

    def box_world(self) -> Box:
        """The box of all occupied cells.

        Raises:
            ConfigError: there is none.
        """
        corners = []
        for k, sums in enumerate(self.sums):
            filled = np.diff(np.diff(np.diff(sums, axis=0), axis=1), axis=2) > 0
            if filled.any():
                cell = np.stack(filled.nonzero(), 1)
                side = 2.0**k
                corners.append((np.stack([cell.min(0), cell.max(0) + 1]) / GRID_SIZE - 0.5) * side + 0.5)
        if not corners:
            raise ConfigError("no surface: the model is empty everywhere")
        low = np.maximum(np.min(corners, axis=(0, 1)), self.model_box[:3])
        high = np.minimum(np.max(corners, axis=(0, 1)), self.model_box[3:])
        world = self.spaces.scene_to_world(torch.from_numpy(np.stack([low, high])))
        return _as_box(*world.numpy())

    def shortcut(self, centers_world: Float64[Tensor, "n 3"], radius: float) -> Float[Tensor, " n"]:
        """0 for balls that touch no occupied cell, NaN for the others."""
        center = self.spaces.world_to_scene(centers_world).numpy()
        reach = self.spaces.distance_world_to_scene(radius)
        # The finest cascade that holds the ball; each covers what the finer ones hold.
        distance = 2 * (np.abs(center - 0.5).max(1) + reach)
        cascade = np.ceil(np.log2(np.maximum(distance, 1.0))).astype(np.int64).clip(0, len(self.sums) - 1)
        at = ((center - 0.5) / 2.0 ** cascade[:, None] + 0.5) * GRID_SIZE
        half = (reach * GRID_SIZE / 2.0**cascade)[:, None]
        low = np.floor(at - half).clip(0, GRID_SIZE).astype(np.int64)
        high = (np.floor(at + half) + 1).clip(0, GRID_SIZE).astype(np.int64)
        held = np.zeros(len(center), np.int64)
        for corner in range(8):
            pick = [(corner >> axis) & 1 for axis in range(3)]
            index = [(high if p else low)[:, axis] for axis, p in enumerate(pick)]
            held += (-1) ** (3 - sum(pick)) * self.sums[cascade, index[0], index[1], index[2]].astype(np.int64)
        return torch.from_numpy(np.where(held > 0, np.nan, 0.0))


# --- depth: the level, and what was seen


def render_depths(model: NerfView, size: int = VIEW_SIZE_PX) -> DepthViews:
    """Small depth pictures of the model's cameras, training views first.

    `size` is their longest side in pixels."""
    known = [*model.cameras.get("train", []), *(c for s, v in model.cameras.items() if s != "train" for c in v)]
    index = np.unique(np.linspace(0, len(known) - 1, min(len(known), MAX_VIEWS)).round().astype(int))
    # Neighbours in the list are often neighbours in space: take them far apart first, so that few are asked.
    index = sorted(index.tolist(), key=lambda i: _bit_reversed(i, len(known)))
    cameras, depths, opacities = [], [], []
    for camera in (known[i] for i in index):
        scale = min(1.0, size / max(camera.width, camera.height))
        small = camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
        found = model.render(small, ("depth", "opacity"))
        depth, opacity = (torch.from_numpy(found[name]) for name in ("depth", "opacity"))
        cameras.append(small)
        depths.append(torch.where(opacity > 0.5, depth, torch.inf))
        opacities.append(opacity)
    return DepthViews(tuple(cameras), tuple(depths), tuple(opacities))


def box_of_most(views: DepthViews, whole: Box) -> Box:
    """The box that holds all but a hundredth of the surface points at either end of each axis, and a margin.

    The training box of a capture is mostly far background, which would take most of the cells.
    """
    points = []
    for camera, depth, opacity in zip(views.cameras, views.depth, views.opacity, strict=True):
        row, column = (opacity > MIN_OPACITY)[::4, ::4].nonzero(as_tuple=True)
        if len(row):
            points.append(_surface_points(camera, depth, 4 * row, 4 * column)[0])
    if not points:
        return whole
    low, high = np.quantile(torch.cat(points).numpy(), [0.01, 0.99], axis=0)
    margin = 0.02 * float((high - low).max())
    low, high = np.maximum(low - margin, whole[:3]), np.minimum(high + margin, whole[3:])
    return _as_box(low, high)


def _surface_points(camera: Camera, depth: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(points, ray origins, ray directions) of pixels with this depth, float64, world."""
    pixel = torch.stack([column, row], 1) + 0.5
    origin, direction = rays_from_pixels(camera_table([camera]), torch.zeros(len(row), dtype=torch.int64), pixel)
    return origin + depth[row, column].double()[:, None] * direction, origin, direction


def choose_level(model: NerfView, views: DepthViews, cell: float) -> tuple[float, str]:
    """(density per world unit, a line about it): the level whose surface lies nearest to the rendered depth.

    Rays of opaque pixels are walked in steps of half a cell; a level's surface is where density first exceeds it, its
    error the distance to the rendered depth, at most eight cells. The level of the least mean error wins.

    Args:
        model: Asked for density.
        views: Depth of its cameras.
        cell: Side of the mesh's cells, world units.

    Raises:
        DataError: no camera sees anything opaque.
    """
    rng = np.random.default_rng(0)
    origins, directions, depths = [], [], []
    for camera, depth, opacity in zip(views.cameras, views.depth, views.opacity, strict=True):
        row, column = (opacity > MIN_OPACITY).nonzero(as_tuple=True)
        some = torch.from_numpy(
            rng.choice(len(row), min(len(row), -(-LEVEL_RAYS // len(views.cameras))), replace=False)
        )
        if not len(some):
            continue
        _, origin, direction = _surface_points(camera, depth, row[some], column[some])
        origins.append(origin)
        directions.append(direction)
        depths.append(depth[row[some], column[some]].double())
    if not depths:
        raise DataError("no camera of this run sees anything opaque: name a level")
    origin, direction, depth = (torch.cat(parts) for parts in (origins, directions, depths))
    reach = 8 * cell
    levels = torch.tensor([model.spaces.density_scene_to_world(v) for v in LEVELS], dtype=torch.float64)
    error = torch.empty(len(depth), len(levels), dtype=torch.float64)
    for begin in range(0, len(depth), 256):
        part = slice(begin, begin + 256)
        end = depth[part] + reach
        n = min(2048, max(2, math.ceil(float(end.max()) / (0.5 * cell))))
        # counted back from the depth, so that steps are half a cell there however far the camera is
        t = (end[:, None] - 0.5 * cell * torch.arange(n - 1, -1, -1)).clamp(min=0)
        position = origin[part, None] + t[..., None] * direction[part, None]
        density = occupied_density(model, position.reshape(-1, 3)).reshape(t.shape).double()
        error[part] = (first_crossings(t, density, levels) - depth[part, None]).abs().clamp(max=reach)
    best = int(error.mean(0).argmin())
    within = float((error[:, best] < 2 * cell).double().mean())
    median = float(error[:, best].median())
    return float(levels[best]), (
        f"level: density {float(levels[best]):.4g} per world unit, chosen from depth rendered for "
        f"{len(views.cameras)} cameras: median difference {median:.2g}, {within:.0%} of {len(depth)} rays within "
        f"two cells ({2 * cell:.2g})"
    )


def first_crossings(
    t: Float64[Tensor, "n_rays n"], density: Float64[Tensor, "n_rays n"], levels: Float64[Tensor, " n_levels"]
) -> Float64[Tensor, "n_rays n_levels"]:
    """Where along each ray density first exceeds each level, infinite where it never does.

    Args:
        t: Distances of the samples, rising.
        density: There; its logarithm is interpolated, clipped at a hundredth of the level.
        levels: Above 0.
    """
    most = density.cummax(1).values
    found = []
    for level in levels.tolist():
        first = (most > level).to(torch.int8).argmax(1, keepdim=True)
        before = (first - 1).clamp(min=0)
        a, b = (torch.log(density.gather(1, i).clamp(min=level / 100) / level) for i in (before, first))
        start, stop = t.gather(1, before), t.gather(1, first)
        crossing = torch.where(first > 0, start + (stop - start) * (a / (a - b)).nan_to_num(1.0), stop)
        found.append(torch.where(most[:, -1:] > level, crossing, torch.inf))
    return torch.cat(found, 1)


def seen_by_some(
    positions_world: Float64[Tensor, "n 3"], views: DepthViews, slack: float, grain: float = 0.0
) -> Bool[Tensor, " n"]:
    """Whether some camera has each point in its picture and not farther behind the rendered depth than `slack`.

    Args:
        positions_world: Points in the world.
        views: What is known.
        slack: World units; twice a pixel's width at the point's distance if that is more.
        grain: Points in one cube of this side share an answer, that of one of them; 0 asks for each.
    """
    if grain > 0:
        cube = torch.floor((positions_world - positions_world.amin(0)) / grain).long()
        n_y, n_z = (cube.amax(0) + 1)[1:].tolist()
        number = ((cube[:, 0] * n_y + cube[:, 1]) * n_z + cube[:, 2]).numpy()
        _, first, group = np.unique(number, return_index=True, return_inverse=True)
        return seen_by_some(positions_world[torch.from_numpy(first)], views, slack)[torch.from_numpy(group)]
    seen = torch.zeros(len(positions_world), dtype=torch.bool)
    for camera, depth in zip(views.cameras, views.depth, strict=True):
        index = (~seen).nonzero()[:, 0]
        if not len(index):
            break
        points = positions_world[index]
        pixel, valid = project(camera_table([camera]), torch.zeros(len(points), dtype=torch.int64), points)
        column, row = pixel.nan_to_num(-1.0).floor().unbind(1)
        valid &= (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
        # the farthest of the pixel's neighbours: small pictures are coarse at edges
        farthest = max_pool2d(depth[None], 3, 1, 1)[0]
        distance = (points[valid] - camera.position).norm(dim=1)
        limit = farthest[row[valid].long(), column[valid].long()] + (2 / camera.fx * distance).clamp(min=slack)
        seen[index[valid]] = distance <= limit
    return seen


# --- colours


def colors_along_normals(
    model: NerfView, positions_world: Float64[Tensor, "n 3"], normals: Float[Tensor, "n 3"], cell: float
) -> Float[Tensor, "n 3"]:
    """Colours of surface points in sRGB, each rendered along a short ray.

    A ray goes from two cells outside to three inside, against the normal. Points where it meets next to nothing get the
    field's own colour there.

    Args:
        model: The trained field.
        positions_world: Points on its surface.
        normals: Outward unit normals in the world; near 0 where there is none.
        cell: Side of a cell of the sampled box, in world units.
    """
    spaces = model.spaces
    position = spaces.world_to_scene(positions_world)
    direction = normalize(spaces.direction_world_to_scene(-normals.double()), dim=1)
    # a vertex without a normal is seen from anywhere
    direction[direction.norm(dim=1) < 0.5] = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    step = max(spaces.distance_world_to_scene(cell), math.sqrt(3) / 1024)
    origin, toward = (position - 2 * step * direction).float(), direction.float()
    n = len(position)
    rays = Rays(origin, toward, torch.zeros(n), torch.full((n,), 5 * step))
    options = MarchOptions(spaces.aabb_scale, spaces.cone_angle, model.step_scale, 1e-4)
    found = render_rays(model.parameters_of_field(), rays, model.bits, options)
    color = found.color / found.opacity.clamp(min=1e-3)[:, None]
    faint = (found.opacity < 0.05).nonzero()[:, 0]
    if len(faint):
        color[faint] = model(positions_world[faint], -normals[faint].double())[0].to(color.dtype)
    return color


def _as_box(low: np.ndarray, high: np.ndarray) -> Box:
    x0, y0, z0, x1, y1, z1 = (float(v) for v in (*low, *high))
    return x0, y0, z0, x1, y1, z1


def _up_note(cameras: Sequence[Camera]) -> str:
    if not cameras:
        return ""
    up = torch.stack([camera.up for camera in cameras]).mean(0)
    return "; the cameras' mean up is (" + ", ".join(f"{v:.2f}" for v in up.tolist()) + ")"


def _bit_reversed(i: int, n: int) -> int:
    width = max(1, (n - 1).bit_length())
    return int(f"{i:0{width}b}"[::-1], 2)

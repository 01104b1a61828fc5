"""The surface of a radiance field: analytic fields for each part, and the small trained scene as a whole."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera, camera_rays, look_at
from hashfield.geometry.spaces import Spaces
from hashfield.ops.occupancy import is_occupied, pack_bits
from hashfield.ops.ray_box import ray_box
from hashfield.tasks.mesh import Surface, surface_mesh
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_surface import (
    DepthViews,
    OccupiedCells,
    choose_level,
    colors_along_normals,
    first_crossings,
    nerf_surface,
    occupied_density,
    render_depths,
    seen_by_some,
)
from hashfield.train.run_folder import RunFolder

from .scenes import small_scene

SPACES = Spaces(scale=0.5, offset=(0.5, 0.5, 0.5), aabb_scale=1)  # the box is [-1, 1]^3 in the world
STEEPNESS = 30.0


def orbiting(n: int, size: int = 128, height: float = 1.0) -> list[Camera]:
    turns = np.arange(n) * 2 * math.pi / n
    places = [(3 * math.cos(a), 3 * math.sin(a), height) for a in turns]
    return [Camera(look_at(p, (0, 0, 0)), size, size, 1.2 * size, 1.2 * size, size / 2, size / 2) for p in places]


class Ball(SimpleNamespace):
    """A ball whose density is `surface` at radius 0.5 and grows e-fold in each 1/30 inward; rendered depth is exact."""

    def __init__(self, surface: float = 100.0, cameras: list[Camera] | None = None, spaces: Spaces = SPACES) -> None:
        super().__init__(
            surface_density=surface, spaces=spaces, cameras={"train": orbiting(6) if cameras is None else cameras},
            box=torch.tensor([*spaces.box_min, *spaces.box_max], dtype=torch.float64),
            bits=torch.full((spaces.n_cascades * 128**3 // 8,), 255, dtype=torch.uint8),
        )  # fmt: skip

    def density(self, positions: Tensor) -> Tensor:
        return (self.surface_density * torch.exp(STEEPNESS * (0.5 - positions.norm(dim=1)))).float()

    def render(self, camera: Camera, outputs: Any) -> dict[str, np.ndarray]:
        origin, direction = camera_rays(camera, torch.float64)
        along = -(origin * direction).sum(1)
        miss = (origin.square().sum(1) - along.square()).numpy()
        hit = miss < 0.25
        depth = np.where(hit, along.numpy() - np.sqrt(np.where(hit, 0.25 - miss, 0)), 0)
        shape = (camera.height, camera.width)
        return {
            "depth": depth.reshape(shape).astype(np.float32),
            "opacity": hit.reshape(shape).astype(np.float32),
        }


# --- parts


def test_the_level_is_that_of_the_rendered_depth():
    for wanted in (20.0, 100.0, 700.0):
        model = Ball(wanted)
        level, note = choose_level(model, render_depths(model), 0.02)  # type: ignore[arg-type]
        assert 0.85 * wanted < level < 1.17 * wanted  # levels are tried in steps of a third
        assert "6 cameras" in note and f"{level:.4g}" in note


def test_the_level_cannot_be_chosen_where_nothing_is_opaque():
    model = Ball()
    empty = DepthViews(tuple(orbiting(1, 48)), (torch.full((48, 48), torch.inf),), (torch.zeros(48, 48),))
    with pytest.raises(DataError, match="name a level"):
        choose_level(model, empty, 0.02)  # type: ignore[arg-type]


def test_first_crossings_by_hand():
    t = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    density = torch.tensor([[1.0, 100.0, 1.0, 1e4]], dtype=torch.float64)
    found = first_crossings(t, density, torch.tensor([10.0, 1000.0, 0.5, 1e5], dtype=torch.float64))
    # halfway in the logarithm; between 1 (clipped to 10) and 1e4: two thirds down; from the start; never
    assert found[0, :3].tolist() == pytest.approx([0.5, 2 + 2 / 3, 0.0]) and found[0, 3] == math.inf


@pytest.mark.parametrize("aabb_scale", [1, 4])
def test_bricks_are_skipped_only_where_no_occupied_cell_is(aabb_scale: int):
    spaces = Spaces(scale=0.5, offset=(0.5, 0.4, 0.3), aabb_scale=aabb_scale)
    generator = torch.Generator().manual_seed(aabb_scale)
    values = (torch.rand(spaces.n_cascades * 128**3, generator=generator) > 0.995).float()
    model = Ball(spaces=spaces)
    model.bits = pack_bits(values, 0.5)
    cells = OccupiedCells(model)  # type: ignore[arg-type]
    center = torch.rand(300, 3, generator=generator, dtype=torch.float64) * 1.2 * aabb_scale - 0.6 * aabb_scale
    center = spaces.scene_to_world(center + 0.5)
    radius = 0.04
    skipped = ~cells.shortcut(center, radius).isnan()
    offset = torch.cartesian_prod(*[torch.linspace(-1, 1, 13, dtype=torch.float64)] * 3) * radius / math.sqrt(3)
    points = spaces.world_to_scene(center[:, None] + offset).float().reshape(-1, 3)
    holds = is_occupied(points, model.bits, spaces.n_cascades).reshape(300, -1).any(1)
    assert not (skipped & holds).any()
    assert skipped.float().mean() > 0.3 and holds.any()


def test_the_box_is_that_of_the_occupied_cells():
    values = torch.zeros(128, 128, 128)
    values[32:64, 64:96, 16:20] = 1
    x, y, z = torch.meshgrid(*[torch.arange(128)] * 3, indexing="ij")
    from hashfield.ops.occupancy import morton3

    bits = torch.zeros(128**3)
    bits[morton3(torch.stack([x, y, z], -1).reshape(-1, 3))] = values.reshape(-1)
    model = Ball()
    model.bits = pack_bits(bits, 0.5)
    # scene x, y, z are the world's y, z, x; half a scene unit is a world unit
    found = OccupiedCells(model).box_world()  # type: ignore[arg-type]
    assert found == pytest.approx((-0.75, -0.5, 0.0, -0.6875, 0.0, 0.5))
    model.bits.zero_()
    with pytest.raises(ConfigError, match="empty everywhere"):
        OccupiedCells(model).box_world()  # type: ignore[arg-type]


def test_only_what_cameras_saw_is_seen():
    camera = orbiting(1, 48, 0.0)[0]
    views = DepthViews((camera,), (torch.full((48, 48), 2.5),), (torch.ones(48, 48),))
    points = torch.tensor(
        [[0.6, 0, 0], [0.45, 0, 0], [0.3, 0, 0], [3.5, 0, 0], [0.6, 3.0, 0], [0.6, 0.0, 0.4]], dtype=torch.float64
    )
    # before the surface; within the slack; behind it; behind the camera; beside the picture; before it, off the axis
    assert seen_by_some(points, views, 0.1).tolist() == [True, True, False, False, False, True]


def test_points_of_one_cube_share_an_answer():
    views = render_depths(Ball())  # type: ignore[arg-type]
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    each = seen_by_some(points, views, 0.05)
    assert 0.05 < each.float().mean() < 0.95
    shared = seen_by_some(points, views, 0.05, grain=0.02)
    assert (shared == each).float().mean() > 0.98
    assert (seen_by_some(points, views, 0.05, grain=1e-6) == each).all()


def test_density_is_nothing_in_cells_that_are_not_occupied():
    model = Ball()
    model.bits = pack_bits(torch.arange(128**3).float(), 128**3 / 2)  # upper half of scene z, which is the world's x
    points = torch.tensor([[0.3, 0.1, 0.1], [-0.3, 0.1, 0.1]], dtype=torch.float64)
    found = occupied_density(model, points)  # type: ignore[arg-type]
    assert found[0] == pytest.approx(float(model.density(points[:1]))) and found[1] == 0


# --- the whole


def test_a_ball_becomes_its_mesh():
    model = Ball(cameras=orbiting(6, 256, height=2.0))
    surface = nerf_surface(model, resolution=64, box=None, level=None)  # type: ignore[arg-type]
    surface = replace(surface, colors=None)
    assert surface.box == (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    mesh, said = surface_mesh(surface, 64)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert radius == pytest.approx(np.full(len(radius), 0.5), abs=0.006)
    # cameras all stand at the same height above the middle: the bottom is hidden from them
    assert mesh.vertices[:, 2].max() > 0.49 and -0.48 < mesh.vertices[:, 2].min() < -0.3
    assert "no camera saw" in said[0] and mesh.normals is not None and mesh.colors is None
    outward = mesh.vertices / radius[:, None]
    assert (mesh.normals * outward).sum(1).min() > 0.9
    assert any("z" in note or "up" in note for note in surface.notes)


def test_crop_and_level_are_taken_and_checked():
    model = Ball()
    surface = nerf_surface(model, resolution=32, box=(0.0, -3.0, -3.0, 3.0, 3.0, 3.0), level=50.0)  # type: ignore[arg-type]
    assert surface.box == (0.0, -1.0, -1.0, 1.0, 1.0, 1.0) and surface.level == 50.0
    with pytest.raises(ConfigError, match="box: holds nothing of this model, which lies in -1 -1 -1 1 1 1"):
        nerf_surface(model, resolution=32, box=(2.0, 2.0, 2.0, 3.0, 3.0, 3.0), level=50.0)  # type: ignore[arg-type]
    for level in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="level: expected a density above 0"):
            nerf_surface(model, resolution=32, box=None, level=level)  # type: ignore[arg-type]


def test_nothing_seen_is_said():
    surface = Surface(
        value=lambda p: p.norm(dim=1) - 0.5, level=0.0, box=(-1.0, -1.0, -1.0, 1.0, 1.0, 1.0), inside="below",
        is_seen=lambda p: torch.zeros(len(p), dtype=torch.bool),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="seen by a camera"):
        surface_mesh(surface, 16)
    with pytest.raises(ConfigError, match="components"):
        surface_mesh(surface, 16, n_components=-1)


@pytest.fixture(scope="module")
def trained(trained_nerf: tuple[NerfTask, RunFolder]) -> NerfTask:
    return trained_nerf[0]


def test_the_trained_scene_becomes_a_mesh_near_its_rendered_depth(trained: NerfTask):
    model = trained.model()
    mesh, _ = surface_mesh(model.surface(resolution=64), 64, n_components=4)
    assert len(mesh.faces) > 2000 and mesh.colors is not None and mesh.colors.std() > 10
    camera = small_scene().splits["test"].cameras[0]
    found = model.render(camera, ("depth", "opacity"))
    origin, direction = camera_rays(camera, torch.float64)
    opaque = found["opacity"].reshape(-1) > 0.95
    points = (origin + direction * torch.from_numpy(found["depth"].reshape(-1, 1)))[torch.from_numpy(opaque)]
    nearest = torch.cdist(points, torch.from_numpy(mesh.vertices)).amin(1)
    assert nearest.median() < 0.06 and nearest.quantile(0.9) < 0.15  # cells are about 0.04


def test_colours_are_those_of_the_rendering(trained: NerfTask):
    model = trained.model()
    camera = small_scene().splits["test"].cameras[0]
    found = model.render(camera, ("color", "depth", "opacity"))
    origin, direction = camera_rays(camera, torch.float64)
    opaque = torch.from_numpy(found["opacity"].reshape(-1) > 0.98)
    origin, direction = origin[opaque], direction[opaque]
    points = origin + direction * torch.from_numpy(found["depth"].reshape(-1, 1))[opaque]
    colors = colors_along_normals(model, points, -direction.float(), 0.03)
    rendered = torch.from_numpy(found["color"].reshape(-1, 3))[opaque]
    assert (colors - rendered).abs().median() < 0.05
    t_min, _ = ray_box(origin, direction, model.box[:3], model.box[3:])
    far = origin + (t_min[:, None] - 1) * direction  # outside the box: no light, a colour still
    assert colors_along_normals(model, far[:5], -direction[:5].float(), 0.03).isfinite().all()

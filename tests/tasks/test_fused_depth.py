"""Surfaces from the depth of many cameras: a ball of known depth, wrong pictures, and what nobody sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hashfield.errors import ConfigError
from hashfield.geometry.spaces import Spaces
from hashfield.tasks.fused_depth import FusedDepth
from hashfield.tasks.mesh import surface_mesh
from hashfield.tasks.nerf_surface import nerf_surface, render_depths

from .test_nerf_surface import Ball, orbiting

REACH = 0.1


def fused(model: Ball, **changed: torch.Tensor) -> FusedDepth:
    """Of a model's own depth, with the pictures of some cameras replaced."""
    views = render_depths(model, 256)  # type: ignore[arg-type]
    depths = [changed.get(f"picture{k}", depth) for k, depth in enumerate(views.depth)]
    return FusedDepth(views.cameras, depths, REACH)


def shell(radius: float, n: int = 500) -> torch.Tensor:
    """Points in all directions at one distance from the middle."""
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return radius * points / points.norm(dim=1, keepdim=True)


def test_the_zero_lies_on_the_ball_and_distances_beside_it():
    value = fused(Ball(cameras=[*orbiting(8, 256, 1.5), *orbiting(8, 256, -1.5)]))
    assert value(shell(0.5)).abs().max() < 0.02
    assert value(shell(0.53)).min() > 0.0 and value(shell(0.47)).max() < 0.0
    assert torch.equal(value(shell(0.8)), torch.full((500,), REACH))
    assert torch.equal(value(shell(0.2)), torch.full((500,), REACH))


def test_what_no_camera_tells_of_is_outside():
    value = fused(Ball(cameras=orbiting(1, 256)))
    camera = value.cameras[0].position
    away = camera / camera.norm()
    assert value((2 * camera)[None]) == pytest.approx(REACH)  # behind the camera
    assert value((-0.9 * away)[None]) == pytest.approx(REACH)  # beyond the ball
    assert value((0.45 * away)[None]) < -0.03 and value((0.35 * away)[None]) == pytest.approx(REACH)  # deep inside
    assert value((0.9 * away)[None]) == pytest.approx(REACH)
    assert value(torch.zeros(0, 3, dtype=torch.float64)).shape == (0,)


def test_one_wrong_picture_is_outvoted():
    """A floater in front of one camera of sixteen; and one camera that sees through everything."""
    model = Ball(cameras=[*orbiting(8, 256, 1.5), *orbiting(8, 256, -1.5)])
    value = fused(model, picture3=torch.full((256, 256), 1.0))
    assert value(shell(0.5)).abs().max() < 0.02
    assert value(shell(0.53)).min() > 0.0 and value(shell(0.47)).max() < 0.0
    camera = value.cameras[3].position
    assert value((camera * (1 - 1.02 / camera.norm()))[None]) > 0.0, "just behind the floater others see through"
    value = fused(model, picture3=torch.full((256, 256), torch.inf))
    assert value(shell(0.5)).median() < 0.02 and value(shell(0.53)).min() > 0.0 and value(shell(0.47)).median() < 0.0


def test_pixels_at_edges_say_nothing_of_what_lies_between():
    model = Ball(cameras=orbiting(1, 256))
    views = render_depths(model, 256)  # type: ignore[arg-type]
    depth = torch.full((256, 256), 2.0)
    depth[:, 128:] = 4.0
    value = FusedDepth(views.cameras, [depth], REACH)
    camera = views.cameras[0]
    forward = -camera.position / camera.position.norm()
    middle = camera.position + torch.tensor([[1.0], [3.0], [4.5]], dtype=torch.float64) * forward
    # In front of both sides it is free. Between them and behind both nothing is said.
    assert value(middle).tolist() == pytest.approx([REACH, REACH, REACH])
    beside = middle[1] + 0.02 * torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    assert (value(beside) == REACH).all()


@pytest.mark.parametrize("source", ["density", "depth"])
def test_both_sources_make_a_mesh_of_the_ball(source: str):
    model = Ball(cameras=orbiting(6, 256, height=2.0))
    surface = replace(nerf_surface(model, resolution=64, box=None, level=None, source=source), colors=None)  # type: ignore[arg-type]
    mesh, _ = surface_mesh(surface, 64)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    error = np.abs(radius - 0.5)
    if source == "density":
        assert error.max() < 0.006
    else:  # the rim below, which is hardly seen, is ragged by two cells
        assert error[mesh.vertices[:, 2] > -0.2].max() < 0.02 and error.max() < 0.08
    assert mesh.vertices[:, 2].max() > 0.48 and mesh.normals is not None
    outward = mesh.vertices / radius[:, None]
    assert np.quantile((mesh.normals * outward).sum(1), 0.05 if source == "density" else 0.15) > 0.8


def test_the_source_is_chosen_by_the_size_of_the_scene_and_checked():
    large = Spaces(scale=0.5, offset=(0.5, 0.5, 0.5), aabb_scale=2)

    def taken(model: Ball, **asked):
        return nerf_surface(model, resolution=32, **{"box": None, "level": None, **asked}).inside  # type: ignore[arg-type]

    assert taken(Ball()) == "above" and taken(Ball(spaces=large)) == "below"
    assert taken(Ball(spaces=large), level=50.0) == "above" and taken(Ball(), source="depth") == "below"
    with pytest.raises(ConfigError, match="level: is one of density"):
        taken(Ball(), level=50.0, source="depth")
    with pytest.raises(ConfigError, match="no cameras"):
        taken(Ball(cameras=[]), level=None, source="depth")

"""Sphere tracing and shading of surfaces with a known distance."""

import math

import torch

from hashfield.geometry.rays import Rays
from hashfield.ops.sphere_trace import sphere_trace
from hashfield.render.surface import shade, soft_shadow


def sphere_distance(points: torch.Tensor) -> torch.Tensor:
    return (points - 0.5).norm(dim=1) - 0.25


def rays(origin: list[list[float]], direction: list[list[float]], t_max: float = 10.0) -> Rays:
    o, d = torch.tensor(origin).float(), torch.nn.functional.normalize(torch.tensor(direction).float(), dim=1)
    return Rays(o, d, torch.zeros(len(o)), torch.full((len(o),), t_max))


def test_hits_lie_on_the_sphere() -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=1) * 2 + 0.5
    target = 0.5 + 0.4 * (torch.rand(500, 3, generator=generator) - 0.5)
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    to_center = 0.5 - origin
    along = (to_center * direction).sum(1)
    off = (to_center.square().sum(1) - along**2).clamp(min=0).sqrt()
    t, is_hit, _ = sphere_trace(sphere_distance, Rays(origin, direction, torch.zeros(500), torch.full((500,), 10.0)))
    clear = (off - 0.25).abs() > 1e-3
    assert torch.equal(is_hit[clear], (off < 0.25)[clear])
    exact = along - (0.25**2 - off**2).clamp(min=0).sqrt()
    inner = off < 0.2
    assert float((t - exact)[inner].abs().max()) < 3e-4
    assert bool(((t - exact)[inner] <= 1e-5).all()), "it stops before the surface"


def test_misses_and_limits() -> None:
    t, is_hit, _ = sphere_trace(sphere_distance, rays([[0.5, 0.5, -1]] * 2, [[0, 1, 0], [0, 0, 1]]))
    assert is_hit.tolist() == [False, True]
    is_hit = sphere_trace(sphere_distance, rays([[0.5, 0.5, -1]], [[0, 0, 1]], t_max=1.0)).is_hit
    assert not is_hit.any(), "the sphere begins at t = 1.25"
    t, is_hit, _ = sphere_trace(sphere_distance, rays([[0.5, 0.5, 0.5]], [[0, 0, 1]]))
    assert is_hit.all() and float(t) == 0.0, "from inside"
    none = Rays(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0))
    t, is_hit, _ = sphere_trace(sphere_distance, none)
    assert t.shape == is_hit.shape == (0,)
    missed = Rays(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.zeros(1))
    assert not sphere_trace(sphere_distance, missed).is_hit.any(), "t_max = t_min: nothing to search"


def test_distances_that_are_too_large_are_not_overshot_by_much() -> None:
    t, is_hit, _ = sphere_trace(lambda p: 1.04 * sphere_distance(p), rays([[0.5, 0.5, -1]], [[0, 0, 1]]))
    assert is_hit.all() and abs(float(t) - 1.25) < 3e-4


def test_a_field_of_nan_ends() -> None:
    is_hit = sphere_trace(lambda p: p[:, 0] * math.nan, rays([[0.5, 0.5, -1]], [[0, 0, 1]])).is_hit
    assert is_hit.all()


def test_shadow_is_soft_at_its_edge() -> None:
    start = torch.tensor([[0.5, 0.5, -1.0], [0.5, 0.77, -1.0], [0.5, 2.0, -1.0]])
    toward = torch.tensor([[0.0, 0, 1]]).expand(3, 3).contiguous()
    share = soft_shadow(
        sphere_distance, Rays(start, toward, torch.full((3,), 1e-3), torch.full((3,), 4.0)), softness=0.06
    )
    assert float(share[0]) == 0.0 and float(share[2]) == 1.0
    assert 0.02 < float(share[1]) < 0.6


def test_shading_falls_with_the_angle_and_in_shadow() -> None:
    light = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    view = torch.tensor([[0.0, 1, 0]]).expand(3, 3)
    normal = torch.nn.functional.normalize(torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 0, 1]]), dim=1)
    color = shade(normal, view, light, torch.tensor([1.0, 1.0, 0.0]))
    assert bool(((color >= 0) & (color <= 1)).all())
    assert float(color[0].mean()) > float(color[1].mean()) > float(color[2].mean()) > 0.1

"""Sphere tracing through a network: every way to run it against the float64 reference."""

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from hashfield.errors import BackendError, ShapeError
from hashfield.geometry.cameras import Camera, look_at
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import Spaces
from hashfield.nn.config import EncodingConfig
from hashfield.ops.backend import INTERPRETER_VARIABLE, Backend, use_backend
from hashfield.ops.eval_points import EncodedNetwork
from hashfield.ops.sphere_trace import HIT_DISTANCE, DistanceField, SphereTraceResult, sphere_trace
from hashfield.tasks.sdf_config import SdfConfig
from hashfield.tasks.sdf_model import SdfModel
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.cases import uniform, unit_vectors
from tests.ops.memory import checked_memory

# Numpy, which the interpreter computes with, warns of infinities that kernels meet and handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = os.environ.get(INTERPRETER_VARIABLE) == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

on_triton = pytest.mark.parametrize("backend", backend_params("sphere_trace", ("triton",)))
# Numba has no kernel of its own for it: the loop calls that of eval_points.
fast = pytest.mark.parametrize("backend", ["numba", *backend_params("sphere_trace", ("triton",))])

F4 = GridLayout(3, 2, 4, 10, 9, 2.0)  # a dense level and a hashed one
F2 = GridLayout(3, 3, 2, 12, 11, 1.5)
RADIUS = 0.25


@pytest.fixture(autouse=True)
def within_bounds() -> Iterator[None]:
    """No kernel may touch memory that is not its own; on a card that is the hardware's to tell."""
    with checked_memory() if INTERPRETED else nullcontext():
        yield


def bumpy_sphere(layout: GridLayout, hidden: tuple[int, ...] = (16,), bumps: float = 0.01) -> DistanceField:
    """A network that gives the distance to a sphere, as the coarsest level interpolates it, and random bumps."""
    g = torch.Generator().manual_seed(3)
    scale, n = float(layout.scales[0]), int(layout.resolutions[0])
    table = uniform(g, layout.n_entries, layout.n_features_per_level, low=-1.0)
    vertex = torch.cartesian_prod(*(torch.arange(n),) * 3)
    entry = (vertex * torch.from_numpy(layout.strides[0].astype("int64"))).sum(1)
    table[entry, 0] = ((vertex - 0.5) / scale - 0.5).norm(dim=1) - RADIUS
    weights = []
    for n_in, n_out in zip((layout.n_output, *hidden), (*hidden, 1), strict=True):
        weight = uniform(g, n_out, n_in, low=-bumps, high=bumps)
        weight[:, :2] *= 0.0
        weight[:2] *= 0.0
        weights.append(weight)
    # The distance passes as its positive part in one unit of each layer, as the negative in another.
    weights[0][0, 0], weights[0][1, 0] = 1.0, -1.0
    for weight in weights[1:-1]:
        weight[0, 0] = weight[1, 1] = 1.0
    weights[-1][0] = uniform(g, hidden[-1], low=-bumps, high=bumps)
    weights[-1][0, :2] = torch.tensor([1.0, -1.0])
    box = torch.tensor([[0.1, 0.15, 0.12], [0.9, 0.85, 0.95]])
    return DistanceField(EncodedNetwork(layout, table, tuple(weights)), box)


def rays_at(n: int, *, t_max: float = 3.0) -> Rays:
    """Rays towards the middle: from outside the box, from within it, and from inside the sphere; some miss."""
    g = torch.Generator().manual_seed(4)
    target = 0.5 + 0.8 * (torch.rand(n, 3, generator=g) - 0.5)
    away = uniform(g, n, 1, low=0.3, high=1.5)
    away[1::7] = 0.1
    origin = target + away * unit_vectors(g, n)
    origin[2::9] = 0.5 + 0.1 * (torch.rand(len(origin[2::9]), 3, generator=g) - 0.5)
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    begin = uniform(g, n, high=0.05)
    end = torch.full((n,), t_max)
    end[3::5] = begin[3::5] + 0.3  # may be met too late
    end[4::11] = begin[4::11]  # nothing to search
    return Rays(origin, direction, begin, end)


def on_device(distance: DistanceField) -> DistanceField:
    """The same field on the device."""
    net = distance.network
    short = None if net.table_bf16 is None else net.table_bf16.to(DEVICE)
    weights = tuple(w.to(DEVICE) for w in net.weights)
    there = replace(net, table=net.table.to(DEVICE), weights=weights, table_bf16=short)
    return DistanceField(there, distance.box.to(DEVICE))


MOST = 40
"""Steps of a ray: more than those that arrive need, few enough for an interpreter."""


def traced(distance: DistanceField, rays: Rays, backend: Backend, **options: Any) -> SphereTraceResult:
    """What a backend finds, on the host."""
    options = {"max_steps": MOST, **options}
    there = DEVICE if backend == "triton" else torch.device("cpu")
    found = sphere_trace(
        on_device(distance) if there == DEVICE else distance, rays.to(there), backend=backend, **options
    )
    return SphereTraceResult(*(x.cpu() for x in found))


def exactly(distance: DistanceField, rays: Rays, **options: Any) -> SphereTraceResult:
    """The float64 reference's."""
    options = {"max_steps": MOST, **options}
    net = distance.network
    wide = replace(net, table=net.table.double(), weights=tuple(w.double() for w in net.weights))
    double = Rays(*(x.double() for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
    return sphere_trace(DistanceField(wide, distance.box.double()), double, backend="reference", **options)


def check(distance: DistanceField, rays: Rays, backend: Backend, **options: Any) -> SphereTraceResult:
    """Compare with the float64 reference, but for rays which that itself leaves open within the noise of float32."""
    found, exact = traced(distance, rays, backend, **options), exactly(distance, rays, **options)
    sooner, later = (
        exactly(distance, rays, hit_distance=HIT_DISTANCE + d, **options)
        for d in (tolerances.TRACE_NOISE, -tolerances.TRACE_NOISE)
    )
    clear = (sooner.t == later.t) & (sooner.is_hit == later.is_hit)
    assert int((~clear).sum()) <= 0.05 * len(clear), "too many rays on the brink to judge by"
    assert torch.equal(found.is_hit[clear], exact.is_hit[clear])
    met = clear & exact.is_hit
    assert torch.allclose(found.t[met].double(), exact.t[met], rtol=0, atol=tolerances.TRACE)
    assert torch.allclose(found.position[met].double(), exact.position[met], rtol=0, atol=tolerances.TRACE)
    # The last step of a ray that leaves is of no interest.
    assert bool((found.t >= rays.t_max)[clear & ~exact.is_hit].all())
    assert found.t.dtype == torch.float32 and found.is_hit.dtype == torch.bool and found.position.dtype == torch.float32
    return found


@fast
@pytest.mark.parametrize("n", [0, 1, 130])
def test_agrees_with_float64(backend: Backend, n: int) -> None:
    distance, rays = bumpy_sphere(F4), rays_at(n)
    found = check(distance, rays, backend)
    if n == 130:
        searched = rays.t_max > rays.t_min
        assert 40 < int(found.is_hit.sum()) < 90 and not bool(found.is_hit[~searched].any())
        assert torch.equal(found.t[~searched], rays.t_min[~searched])
        inside = ((rays.origin + rays.t_min[:, None] * rays.direction) - 0.5).norm(dim=1) < 0.2
        assert int(inside.sum()) > 5 and torch.equal(found.t[inside], rays.t_min[inside])
        met = found.is_hit & ~inside
        left = distance(found.position[met], backend="reference").abs()
        assert float((left < 1.05 * HIT_DISTANCE).float().mean()) > 0.9, "hardly any is still under way"


@fast
@pytest.mark.parametrize(
    ("layout", "hidden", "interpolation"),
    [(F2, (16, 48), "linear"), (F4, (64, 64), "smoothstep")],
    ids=["f2", "smooth"],
)
def test_other_networks_agree(
    backend: Backend, layout: GridLayout, hidden: tuple[int, ...], interpolation: Any
) -> None:
    distance = bumpy_sphere(layout, hidden)
    check(replace(distance, network=replace(distance.network, interpolation=interpolation)), rays_at(65), backend)


@fast
@pytest.mark.parametrize("max_steps", [1, 4, 7])
def test_who_is_under_way_in_the_end_counts_as_a_hit(backend: Backend, max_steps: int) -> None:
    found = check(bumpy_sphere(F4), rays_at(65), backend, max_steps=max_steps)
    later = traced(bumpy_sphere(F4), rays_at(65), "reference")
    assert int(found.is_hit.sum()) > int(later.is_hit.sum()) and not bool((found.t > later.t + tolerances.TRACE).any())


@fast
def test_step_and_hit_distance_are_those_asked_for(backend: Backend) -> None:
    distance, rays = bumpy_sphere(F4), rays_at(33)
    found = traced(distance, rays, backend, hit_distance=0.02, step=0.5)
    exact = exactly(distance, rays, hit_distance=0.02, step=0.5)
    assert int((found.is_hit != exact.is_hit).sum()) <= 1
    assert int(((found.t - exact.t).abs()[exact.is_hit] > tolerances.TRACE).sum()) <= 1
    met = found.is_hit & (found.t > rays.t_min)
    assert 0.009 < float(distance(found.position[met]).mean()) < 0.02


@fast
def test_odd_rays_end(backend: Backend) -> None:
    rays = rays_at(12)
    origin, direction, t_max = rays.origin.clone(), rays.direction.clone(), rays.t_max.clone()
    origin[0], origin[1], direction[2] = math.nan, 1e6, 0.0
    origin[2] = 2.0
    t_max[:3] = torch.tensor([1.0, 3.0, math.inf])
    odd = replace(rays, origin=origin, direction=direction, t_max=t_max)
    found = traced(bumpy_sphere(F4), odd, backend)
    expected = traced(bumpy_sphere(F4), odd, "reference")
    assert torch.equal(found.is_hit[:3], expected.is_hit[:3])
    assert found.is_hit[0] and float(found.t[0]) == float(odd.t_min[0]), "a NaN ends its ray"
    assert not found.is_hit[1], "beyond the box the way to it is added: such a ray leaves"
    assert found.is_hit[2], "without a direction or an end, it is still under way"
    torch.testing.assert_close(found.t[3:], traced(bumpy_sphere(F4), rays, backend).t[3:], rtol=0, atol=0)


@fast
def test_inputs_need_not_be_contiguous(backend: Backend) -> None:
    distance, rays = bumpy_sphere(F4), rays_at(33)
    net = distance.network
    odd = replace(net, table=net.table.T.contiguous().T, weights=tuple(w.T.contiguous().T for w in net.weights))
    strided = Rays(*(torch.stack([x, x], -1)[..., 0] for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
    box = distance.box.T.contiguous().T
    found, expected = traced(DistanceField(odd, box), strided, backend), traced(distance, rays, backend)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@fast
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rounded_networks_err_no_more_than_the_reference_does(backend: Backend, precision: Any) -> None:
    distance, rays = bumpy_sphere(F4), rays_at(130)
    net = replace(distance.network, precision=precision, table_bf16=distance.network.table.bfloat16())
    rounded = replace(distance, network=net)
    mine, same, exact = traced(rounded, rays, backend), traced(rounded, rays, "reference"), exactly(distance, rays)
    met = mine.is_hit & same.is_hit & exact.is_hit & (exact.t > rays.t_min)
    assert int((mine.is_hit != same.is_hit).sum()) <= 2 and int(met.sum()) > 20
    allowed = (same.t - exact.t)[met].abs().mean()
    assert 0 < float((mine.t - exact.t)[met].abs().mean()) < 1.5 * float(allowed)


@on_triton
def test_packing_changes_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ray walks alone: whether it is packed with others after every step, or never, its bits are the same."""
    from hashfield.kernels.triton_gpu import sphere_trace as kernels

    distance, rays, found = bumpy_sphere(F4), rays_at(70), []
    for waves in ((1,), (3, 5), (160,)):
        monkeypatch.setattr(kernels, "WAVES", waves)
        found.append(traced(distance, rays, backend, max_steps=11))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@on_triton
@pytest.mark.parametrize("fault", ["hash", "box"])
def test_a_planted_fault_is_found(backend: Backend, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One factor of the spatial hash changed; the box forgotten."""
    from hashfield.kernels.triton_gpu import sphere_trace as kernels

    distance, rays = bumpy_sphere(F4), rays_at(65)
    levels, launch = kernels.levels_of, kernels.launch

    def wrong_levels(layout: GridLayout) -> tuple[float | int, ...]:
        return tuple(2654435763 if value == 2654435761 else value for value in levels(layout))

    def boxless(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        open_box = torch.tensor([-9.0, -9, -9, 9, 9, 9], device=DEVICE)
        launch(kernel, grid, *(open_box if getattr(a, "shape", ()) == (2, 3) else a for a in args), **options)

    if fault == "hash":
        monkeypatch.setattr(kernels, "levels_of", wrong_levels)
    else:
        monkeypatch.setattr(kernels, "launch", boxless)
    with pytest.raises(AssertionError):
        check(distance, rays, backend)


@fast
def test_a_picture_is_that_of_the_reference(backend: Backend) -> None:
    distance = bumpy_sphere(GridLayout(3, 3, 2, 12, 12, 2.0), (32,), bumps=0.003)
    encoding = EncodingConfig(n_levels=3, n_features_per_level=2, log2_hashmap_size=12, base_resolution=12)
    config = SdfConfig(encoding=encoding, finest_resolution=48, n_neurons=32, n_hidden_layers=1)
    field = config.make_field()
    field.load_state_dict(
        {"encoding.table": distance.network.table}
        | {f"network.weights.{k}": w for k, w in enumerate(distance.network.weights)}
    )
    model = SdfModel(field, Spaces(scale=1.0, offset=(0.0, 0.0, 0.0), aabb_scale=1), distance.box.double())
    pose = look_at(
        torch.tensor([0.5, 0.2, 1.9]).double(), torch.full((3,), 0.5).double(), torch.tensor([0.0, 1, 0]).double()
    )
    camera = Camera(pose, 15, 11, 20.0, 20.0, 7.5, 5.5)
    outputs = ("color", "opacity", "depth", "normals")
    with use_backend("reference"):
        right = model.render(camera, outputs, oversample=1)
    with use_backend(backend):
        found = model.to(DEVICE if backend == "triton" else "cpu").render(
            camera, outputs, oversample=1, rays_at_once=100
        )
    assert 20 < right["opacity"].sum() < 130
    assert (found["opacity"] != right["opacity"]).sum() <= 1
    same = found["opacity"] == right["opacity"]
    off = abs(found["depth"] - right["depth"])[same]
    assert (off > tolerances.TRACE).sum() <= 0.03 * off.size and off.max() < HIT_DISTANCE
    # Normals and shadows feel where on the surface a ray ended.
    for name in ("color", "normals"):
        off = abs(found[name] - right[name])[same]
        assert (off > tolerances.TRACE_SHADE).sum() <= 0.03 * off.size and off.max() < 0.2, name


def test_wrong_arguments_are_named() -> None:
    distance, rays = bumpy_sphere(F4), rays_at(4)
    flat = EncodedNetwork(GridLayout(2, 1, 2, 8, 4, 1.0), torch.zeros(16, 2), (torch.zeros(1, 2),))
    for wrong, options, text in (
        (replace(distance, network=flat), {}, "3 dimensions and 1 output"),
        (replace(distance, box=distance.box.flatten()), {}, r"distance.box: expected shape \[2, 3\]"),
        (distance, {"max_steps": 0}, "max_steps: "),
        (distance, {"hit_distance": 0.0}, "hit_distance"),
        (distance, {"step": math.inf}, "step"),
    ):
        with pytest.raises(ShapeError, match=text):
            sphere_trace(wrong, rays, **options)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"rays\.t_max: expected float32 like"):
        sphere_trace(distance, replace(rays, t_max=rays.t_max.double()))
    wide = EncodedNetwork(F4, distance.network.table, (torch.zeros(160, 8), torch.zeros(1, 160)))
    with pytest.raises(BackendError):
        sphere_trace(replace(distance, network=wide), rays, backend="triton")

"""Marching against a walk over every lattice point, on every backend."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.geometry.rays import Rays, RaySamples
from hashfield.geometry.spaces import n_cascades_of
from hashfield.kernels.reference.march import (
    COARSEST_STEP,
    FINEST_STEP,
    steps_from_t,
    t_from_steps,
)
from hashfield.kernels.reference.occupancy import (
    in_cells,
    lookup,
    mip_from_position,
    mip_from_step,
)
from hashfield.ops.backend import Backend
from hashfield.ops.occupancy import CELLS_PER_CASCADE, GRID_SIZE
from hashfield.ops.ray_box import ray_box
from tests import tolerances
from tests.ops.cases import unit_vectors


def bits_from_boxes(generator: torch.Generator, aabb_scale: int, share: float) -> Tensor:
    """Occupied bits in coarse lumps: cubes of 8^3 cells, a share of them set, in every cascade."""
    n_cascades = n_cascades_of(aabb_scale)
    lumps = (torch.rand(n_cascades, 16**3, generator=generator) < share).float()
    # 512 consecutive Morton numbers are one cube of 8^3 cells.
    return ops.pack_bits(lumps.repeat_interleave(512, 1).flatten(), 0.5)


def random_rays(generator: torch.Generator, n: int, aabb_scale: int) -> Rays:
    """Rays from inside and outside the box, some along axes, clipped to the box."""
    origin = 0.5 + (torch.rand(n, 3, generator=generator) - 0.5) * 2 * aabb_scale
    target = 0.5 + (torch.rand(n, 3, generator=generator) - 0.5) * aabb_scale
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    k = n // 8
    direction[:k] = torch.cat([torch.eye(3), -torch.eye(3)])[torch.randint(6, (k,), generator=generator)]
    return in_box(origin, direction, aabb_scale)


def in_box(origin: Tensor, direction: Tensor, aabb_scale: int) -> Rays:
    """Rays with the part of them that lies in the scene's box."""
    centre = torch.full((3,), 0.5, dtype=origin.dtype)
    return Rays(origin, direction, *ops.ray_box(origin, direction, centre - aabb_scale / 2, centre + aabb_scale / 2))


@dataclass(frozen=True)
class Setting:
    """Options of a march and how much of the grid is occupied."""

    aabb_scale: int = 1
    cone_angle: float = 0.0
    step_scale: float = 1.0
    share: float = 0.2
    jitter: bool = True
    some_steps: int = 70
    """Of a ray, where an interpreter marches it: enough that few of them lie where rounding decides."""

    @property
    def march_options(self) -> dict[str, Any]:
        """As `march` takes them."""
        return {
            "aabb_scale": self.aabb_scale,
            "cone_angle": self.cone_angle,
            "step_scale": self.step_scale,
            "max_samples_per_ray": 100_000,
        }


SETTINGS = {
    "object": Setting(),
    "object_long_steps": Setting(step_scale=8.0),
    "object_short_steps": Setting(step_scale=0.5, share=0.05),
    "object_full": Setting(share=2.0, step_scale=4.0),
    "object_empty": Setting(share=-1.0),
    "no_jitter": Setting(jitter=False),
    "capture": Setting(aabb_scale=4, cone_angle=1 / 256),
    "capture_long_steps": Setting(aabb_scale=16, cone_angle=1 / 256, step_scale=2.0, some_steps=200),
    "capture_largest": Setting(aabb_scale=128, cone_angle=1 / 256, share=0.05),
    "capture_without_cone": Setting(aabb_scale=2),
}


def _lattice(rays: Rays, ray: int, jitter: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """t and dt of every lattice point of a ray, in float64."""
    ends = torch.stack([rays.t_min[ray], rays.t_max[ray]]).double()
    first, last = steps_from_t(ends, setting.cone_angle, setting.step_scale)
    if not ends[1] > ends[0]:
        return ends[:0], ends[:0]
    n = first + jitter[ray].double() + torch.arange(math.ceil(last - first) + 2, dtype=torch.float64)
    t = t_from_steps(n, setting.cone_angle, setting.step_scale)
    dt = t_from_steps(n + 1, setting.cone_angle, setting.step_scale) - t
    return t[t < ends[1]], dt[t < ends[1]]


def _is_doubtful(position: Tensor, dt: Tensor, t: Tensor, t_max: float, bits: Tensor, n: int) -> Tensor:
    """Lattice points at which rounding may decide, or which a jump through a coarser cell may pass over."""
    mip = mip_from_step(position, dt, n)
    doubtful = (t_max - t) < tolerances.MARCH_FACE / GRID_SIZE
    for level in {*range(n)}:
        cells = in_cells(position, torch.full_like(mip, level))
        near = (cells - cells.round()).abs().amin(1) < tolerances.MARCH_FACE
        doubtful |= near & (mip == level)
    ratio = torch.log2(dt * 256)
    doubtful |= ((ratio - ratio.round()).abs() < 1e-4) & (ratio > -0.5)
    # Where the step has just outgrown a cascade, the jump may still cross the finer one's empty cell.
    by_step = mip > mip_from_position(position, n)
    finer = lookup(position, (mip - 1).clamp(min=0), bits)
    return doubtful | (by_step & (finer != lookup(position, mip, bits)))


def some_steps(rays: Rays, setting: Setting, generator: torch.Generator) -> Rays:
    """The same rays, of each at most so many steps, from anywhere along it."""
    n_steps = setting.some_steps
    first, last = (steps_from_t(t.double(), setting.cone_angle, setting.step_scale) for t in (rays.t_min, rays.t_max))
    begin = first + torch.rand(rays.n_rays, generator=generator) * (last - first - n_steps).clamp(min=0)
    end = torch.minimum(begin + n_steps, last)
    t_min, t_max = (t_from_steps(n, setting.cone_angle, setting.step_scale).float() for n in (begin, end))
    return Rays(rays.origin, rays.direction, torch.maximum(t_min, rays.t_min), torch.minimum(t_max, rays.t_max))


@pytest.mark.op("march")
@pytest.mark.parametrize("name", SETTINGS)
def test_samples_are_the_occupied_lattice_points(backend: Backend, name: str, generator: torch.Generator) -> None:
    setting = SETTINGS[name]
    n_rays, n_cascades = 48, n_cascades_of(setting.aabb_scale)
    bits = bits_from_boxes(generator, setting.aabb_scale, setting.share)
    rays = random_rays(generator, n_rays, setting.aabb_scale)
    if backend == "triton" and not torch.cuda.is_available():
        # Every step costs the interpreter as much as a thousand rays do: short parts of as many rays, begun and ended
        # anywhere, meet the same cells.
        rays = some_steps(rays, setting, generator)
    jitter = torch.rand(n_rays, generator=generator) if setting.jitter else torch.zeros(n_rays)
    samples = ops.march(rays, bits, jitter=jitter, backend=backend, **setting.march_options)
    check_packing(samples, n_rays)
    n_doubtful = n_points = 0
    for ray in range(n_rays):
        t, dt = _lattice(rays, ray, jitter, setting)
        position = rays.origin[ray].double() + t[:, None] * rays.direction[ray].double()
        occupied = lookup(position, mip_from_step(position, dt, n_cascades), bits)
        doubtful = _is_doubtful(position, dt, t, float(rays.t_max[ray]), bits, n_cascades)
        own = slice(int(samples.ray_offsets[ray]), int(samples.ray_offsets[ray + 1]))
        found_t, found_dt = samples.t[own].double(), samples.dt[own].double()
        at = torch.searchsorted(t, found_t).clamp(max=max(len(t) - 1, 0))
        at = torch.where((at > 0) & ((t[at - 1] - found_t).abs() < (t[at] - found_t).abs()), at - 1, at)
        assert bool((at.diff() > 0).all()), f"ray {ray}: a lattice point twice, or out of order"
        np.testing.assert_allclose(found_t, t[at], rtol=tolerances.MARCH_T, atol=tolerances.SAME_NUMBER)
        np.testing.assert_allclose(found_dt, dt[at], rtol=tolerances.MARCH_DT)
        found = torch.zeros_like(occupied)
        found[at] = True
        missing, extra = occupied & ~found & ~doubtful, found & ~occupied & ~doubtful
        assert not missing.any(), f"ray {ray}: no sample at t={t[missing][:3].tolist()}"
        assert not extra.any(), f"ray {ray}: sample in an empty cell at t={t[extra][:3].tolist()}"
        n_doubtful, n_points = n_doubtful + int(doubtful.sum()), n_points + len(t)
    assert n_doubtful < 0.05 * n_points, "the test lets too much pass"
    if setting.share > 0:
        assert samples.n_samples > 100


def check_packing(samples: RaySamples, n_rays: int) -> None:
    """Offsets ascend and cover the samples; t ascends within a ray; nothing is left unwritten."""
    offsets = samples.ray_offsets
    assert (offsets.dtype, offsets.shape[0], int(offsets[0])) == (torch.int64, n_rays + 1, 0)
    assert bool((offsets.diff() >= 0).all())
    assert int(offsets[-1]) == samples.n_samples == samples.dt.shape[0]
    assert bool(torch.isfinite(samples.t).all()) and bool((samples.dt > 0).all())
    ray = samples.ray_index()
    assert bool((samples.t.diff() > 0)[ray.diff() == 0].all())


@pytest.mark.op("march")
def test_first_sample_lies_at_the_jittered_entry(backend: Backend) -> None:
    bits = torch.full((CELLS_PER_CASCADE // 8,), 255, dtype=torch.uint8)
    rays = in_box(torch.tensor([[-1.0, 0.3, 0.4]] * 3), torch.tensor([[1.0, 0.0, 0.0]] * 3), 1)
    jitter = torch.tensor([0.0, 0.25, 0.75])
    options: dict[str, Any] = {"aabb_scale": 1, "cone_angle": 0.0, "step_scale": 2.0, "max_samples_per_ray": 9}
    samples = ops.march(rays, bits, jitter=jitter, backend=backend, **options)
    first = samples.t[samples.ray_offsets[:-1]]
    np.testing.assert_allclose(first, 1 + jitter.numpy() * 2 * FINEST_STEP, rtol=tolerances.SAME_NUMBER)
    np.testing.assert_allclose(samples.dt, 2 * FINEST_STEP, rtol=tolerances.SAME_NUMBER)
    # Without a word about it, half a step.
    samples = ops.march(rays, bits, backend=backend, **options)
    np.testing.assert_allclose(samples.t[samples.ray_offsets[:-1]], 1 + FINEST_STEP, rtol=tolerances.SAME_NUMBER)


@pytest.mark.op("march")
@pytest.mark.parametrize("limit", [1, 5, 1024])
def test_ray_ends_at_its_last_sample(backend: Backend, limit: int, generator: torch.Generator) -> None:
    bits = bits_from_boxes(generator, 1, 0.3)
    rays = random_rays(generator, 60, 1)
    options: dict[str, Any] = {"aabb_scale": 1, "cone_angle": 0.0, "step_scale": 8.0, "backend": backend}
    full = ops.march(rays, bits, max_samples_per_ray=100_000, **options)
    cut = ops.march(rays, bits, max_samples_per_ray=limit, **options)
    counts = full.ray_offsets.diff()
    assert torch.equal(cut.ray_offsets.diff(), counts.clamp(max=limit))
    place = torch.arange(full.n_samples) - torch.repeat_interleave(full.ray_offsets[:-1], counts)
    assert torch.equal(cut.t, full.t[place < limit])
    assert torch.equal(cut.dt, full.dt[place < limit])


@pytest.mark.op("march")
def test_batch_may_be_split_and_permuted(backend: Backend, generator: torch.Generator) -> None:
    setting = Setting(aabb_scale=4, cone_angle=1 / 256, step_scale=16.0)
    bits = bits_from_boxes(generator, setting.aabb_scale, setting.share)
    rays = random_rays(generator, 65, setting.aabb_scale)
    jitter = torch.rand(65, generator=generator)
    whole = ops.march(rays, bits, jitter=jitter, backend=backend, **setting.march_options)
    order = torch.randperm(65, generator=generator)
    for chosen in (order[:1], order[1:64], order):
        some = Rays(rays.origin[chosen], rays.direction[chosen], rays.t_min[chosen], rays.t_max[chosen])
        part = ops.march(some, bits, jitter=jitter[chosen], backend=backend, **setting.march_options)
        expected = torch.cat([whole.t[whole.ray_offsets[i] : whole.ray_offsets[i + 1]] for i in chosen.tolist()])
        assert torch.equal(part.t, expected)
        assert torch.equal(part.ray_offsets.diff(), whole.ray_offsets.diff()[chosen])


@pytest.mark.op("march")
def test_rays_that_are_no_rays_own_nothing(backend: Backend) -> None:
    bits = torch.full((CELLS_PER_CASCADE // 8,), 255, dtype=torch.uint8)
    n, inf = math.nan, math.inf
    origin = torch.tensor([[n, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5] * 3, [9.0, 9.0, 9.0], [inf, 0.5, 0.5]])
    direction = torch.tensor([[1.0, 0, 0], [n, 0, 0], [0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0]])
    rays = Rays(origin, direction, torch.zeros(5), torch.full((5,), inf))
    samples = ops.march(rays, bits, aabb_scale=1, cone_angle=0.0, backend=backend)
    assert samples.ray_offsets.tolist() == [0] * 6


@pytest.mark.op("march")
def test_march_stays_in_the_box_and_in_its_own_part(backend: Backend) -> None:
    bits = torch.full((CELLS_PER_CASCADE // 8,), 255, dtype=torch.uint8)
    origin, direction = torch.tensor([[-1.0, 0.5, 0.5]] * 3), torch.tensor([[1.0, 0.0, 0.0]] * 3)
    t_min, t_max = torch.tensor([0.0, 1.25, 1.5]), torch.tensor([math.inf, 1.5, 1.25])
    options: dict[str, Any] = {"aabb_scale": 1, "cone_angle": 0.0, "step_scale": 8.0}
    samples = ops.march(Rays(origin, direction, t_min, t_max), bits, backend=backend, **options)
    t, offsets, step = samples.t, samples.ray_offsets.tolist(), 8 * FINEST_STEP
    assert 1.0 <= t[0] < 1.0 + step and 2.0 - step <= t[offsets[1] - 1] < 2.0
    assert 1.25 <= t[offsets[1]] < 1.25 + step and 1.5 - step <= t[offsets[2] - 1] < 1.5
    assert offsets[2] == offsets[3]


@pytest.mark.op("march")
def test_march_takes_what_is_not_contiguous(backend: Backend, generator: torch.Generator) -> None:
    bits = bits_from_boxes(generator, 1, 0.3)
    rays = random_rays(generator, 33, 1)
    strided = Rays(rays.origin.T.contiguous().T, rays.direction.T.contiguous().T, rays.t_min, rays.t_max)
    jitter = torch.rand(33, 2, generator=generator)
    a, b = (
        ops.march(r, bits, aabb_scale=1, cone_angle=0.0, step_scale=8.0, jitter=j, backend=backend)
        for r, j in ((rays, jitter[:, 0].contiguous()), (strided, jitter[:, 0]))
    )
    assert torch.equal(a.t, b.t) and torch.equal(a.ray_offsets, b.ray_offsets)


# The lattice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "dt"),
    [
        (0.1, 0.00169146),
        (0.43, 0.00169146),
        (0.5, 0.00195313),
        (1.0, 0.00390625),
        (10.0, 0.0390625),
        (443.0, 1.73023),
        (500.0, 1.73205),
    ],
)
def test_golden_steps_of_a_cone(t: float, dt: float) -> None:
    n = steps_from_t(torch.tensor([t]).double(), 1 / 256, 1.0)
    assert (t_from_steps(n + 1, 1 / 256, 1.0) - t).item() == pytest.approx(dt, rel=tolerances.MARCH_T)


@pytest.mark.parametrize(
    ("aabb_scale", "expected"),
    [(1, 612), (2, 789), (4, 967), (8, 1145), (16, 1323), (32, 1501), (64, 1678), (128, 1856)],
)
def test_golden_steps_along_the_diagonal(aabb_scale: int, expected: int) -> None:
    ends = torch.tensor([0.0, aabb_scale * math.sqrt(3)]).double()
    assert steps_from_t(ends, 1 / 256, 1.0).diff().item() == pytest.approx(expected, abs=1.0)
    assert steps_from_t(ends, 0.0, 1.0).diff().item() == pytest.approx(1024 * aabb_scale)


@pytest.mark.parametrize("cone_angle", [0.0, 1 / 256, 1 / 64])
@pytest.mark.parametrize("step_scale", [0.5, 1.0, 8.0])
def test_stepping_coordinate_inverts(cone_angle: float, step_scale: float) -> None:
    t = torch.logspace(-4, 3, 500, dtype=torch.float64)
    n = steps_from_t(t, cone_angle, step_scale)
    torch.testing.assert_close(
        t_from_steps(n, cone_angle, step_scale), t, rtol=tolerances.FLOAT64, atol=tolerances.FLOAT64
    )
    dt = t_from_steps(n + 1, cone_angle, step_scale) - t
    assert bool((dt >= FINEST_STEP * step_scale * (1 - tolerances.FLOAT64_PLACE)).all())
    assert bool((dt <= COARSEST_STEP * step_scale * (1 + tolerances.FLOAT64_PLACE)).all())


@pytest.mark.parametrize(
    ("x", "dt", "mip"),
    [
        (0.99, FINEST_STEP, 0),
        (1.0, FINEST_STEP, 1),
        (1.5, FINEST_STEP, 2),
        (-1.6, FINEST_STEP, 3),
        (0.6, 1 / 256, 1),
        (0.6, 1 / 128, 2),
    ],
)
def test_golden_cascades(x: float, dt: float, mip: int) -> None:
    position = torch.tensor([[x, 0.5, 0.5]]).double()
    assert mip_from_step(position, torch.tensor([dt]).double(), 8).item() == mip


def test_cascade_is_capped_and_safe() -> None:
    far = torch.tensor([[1e30, 0.0, 0.0], [math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    assert mip_from_position(far, 3).max() <= 2
    full = torch.full((CELLS_PER_CASCADE // 8,), 255, dtype=torch.uint8)
    assert ops.is_occupied(far, full, 1).tolist() == [False] * 3


# The bit grid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ((1, 2, 3), 53),
        ((127, 0, 0), 299593),
        ((0, 127, 0), 599186),
        ((64, 64, 64), 1835008),
        ((5, 77, 101), 1705415),
    ],
)
def test_golden_morton_numbers(cell: tuple[int, int, int], number: int) -> None:
    assert ops.morton3(torch.tensor([cell])).item() == number
    assert ops.morton3_inverse(torch.tensor([number]))[0].tolist() == list(cell)


def test_morton_numbers_invert(generator: torch.Generator) -> None:
    cell = torch.randint(1024, (1000, 3), generator=generator)
    assert torch.equal(ops.morton3_inverse(ops.morton3(cell)), cell)
    numbers = torch.arange(8**3)
    assert torch.equal(ops.morton3(ops.morton3_inverse(numbers).int()), numbers)


def test_packed_bits_answer_for_their_cells(generator: torch.Generator) -> None:
    values = torch.rand(CELLS_PER_CASCADE, generator=generator)
    values[5] = math.nan
    bits = ops.pack_bits(values, 0.9)
    cell = torch.randint(GRID_SIZE, (2000, 3), generator=generator)
    centre = (cell + 0.5) / GRID_SIZE
    expected = values[ops.morton3(cell)] > 0.9
    assert torch.equal(ops.is_occupied(centre, bits, 1), expected)
    assert torch.equal(ops.pack_bits(values, torch.tensor(0.9)), bits)
    assert not (bits[0] >> 5) & 1


def test_coarse_cascades_cover_the_finer_ones(generator: torch.Generator) -> None:
    values = (torch.rand(3, CELLS_PER_CASCADE, generator=generator) < 2e-5).float()
    bits = ops.pack_bits(values.flatten(), 0.5)
    position = (torch.rand(200_000, 3, generator=generator) - 0.5) * 0.999 + 0.5
    hit = lookup(position, torch.zeros(len(position)).long(), bits)
    assert hit.sum() > 0
    for mip in (1, 2):
        assert bool(lookup(position[hit], torch.full((int(hit.sum()),), mip), bits).all())
    # By brute force over the dense arrays.
    dense = torch.zeros(3, GRID_SIZE, GRID_SIZE, GRID_SIZE, dtype=torch.bool)
    cell = ops.morton3_inverse(torch.arange(CELLS_PER_CASCADE))
    for k in range(3):
        dense[k][tuple(cell.T)] = values[k] > 0.5
        if k:
            pooled = dense[k - 1].view(64, 2, 64, 2, 64, 2).any(5).any(3).any(1)
            dense[k, 32:96, 32:96, 32:96] |= pooled
    packed = dense.flatten(1)[:, (cell * torch.tensor([GRID_SIZE**2, GRID_SIZE, 1])).sum(1)]
    unpacked = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    assert torch.equal(unpacked.flatten().bool(), packed.flatten())


def test_pack_bits_does_not_change_its_input(generator: torch.Generator) -> None:
    values = torch.rand(2 * CELLS_PER_CASCADE, generator=generator)
    kept = values.clone()
    ops.pack_bits(values, 0.5)
    assert torch.equal(values, kept)


def test_position_outside_the_last_cascade_is_empty() -> None:
    bits = torch.full((CELLS_PER_CASCADE // 8 * 2,), 255, dtype=torch.uint8)
    x = torch.tensor([[-0.499, 0.5, 0.5], [-0.501, 0.5, 0.5], [1.499, 0.5, 0.5], [1.501, 0.5, 0.5]])
    assert ops.is_occupied(x, bits, 2).tolist() == [True, False, True, False]


def test_directions_of_the_cases_are_unit(generator: torch.Generator) -> None:
    torch.testing.assert_close(unit_vectors(generator, 50).norm(dim=1), torch.ones(50))


@pytest.mark.parametrize(
    ("aabb_scale", "cone_angle", "step_scale"),
    [(1, 0.0, 1.0), (4, 1 / 256, 1.0), (4, 1 / 256, 4.0), (16, 1 / 256, 2.0)],
)
def test_large_empty_blocks_are_skipped_without_losing_a_sample(
    aabb_scale: int, cone_angle: float, step_scale: float
) -> None:
    """Blocks of 4 and 16 cells are jumped over at once, also where steps grow and the cascade changes on the way."""
    g = torch.Generator().manual_seed(5)
    direction = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=1)
    origin = 0.5 - 0.6 * aabb_scale * direction + 0.2 * torch.randn(300, 3, generator=g)
    half = torch.full((3,), aabb_scale / 2)
    rays = Rays(origin, direction, *ray_box(origin, direction, 0.5 - half, 0.5 + half))
    n_bytes = aabb_scale.bit_length() * 128**3 // 8
    bits = torch.randint(0, 256, (n_bytes,), generator=g) & torch.randint(0, 256, (n_bytes,), generator=g)
    bits &= torch.randint(0, 256, (n_bytes,), generator=g)
    some = torch.rand(n_bytes // 512, generator=g) < 0.3  # whole blocks of 16x16x16 cells
    bits = (bits * torch.repeat_interleave(some, 512)).to(torch.uint8)
    options = {"aabb_scale": aabb_scale, "cone_angle": cone_angle, "step_scale": step_scale}
    jitter = torch.rand(300, generator=g)
    found, expected = (ops.march(rays, bits, jitter=jitter, backend=b, **options) for b in ("numba", "reference"))
    assert len(expected.t) > 300
    # A float32 ray may touch a cell's very face: such a sample may be missing on one side.
    assert int((found.ray_offsets.diff() != expected.ray_offsets.diff()).sum()) <= 1
    if len(found.t) == len(expected.t):
        assert torch.allclose(found.t, expected.t, rtol=tolerances.MARCH_T, atol=0)

"""Volume rendering of a radiance field on GPUs: waves of samples of the rays that still see light.

A wave takes a few samples of every living ray, asks the field for density and colour, and adds what they show; then
the living rays are packed anew. First few samples, since most rays of a trained scene end within them. How many rays
live and how many samples they have stays on the device; every launch has room for all, and programs without work end at
once. So a frame is one CUDA graph for each number of rays: only at its end the host asks whether any ray still lives.
"""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import box_low_of, n_cascades_of
from hashfield.kernels.triton_gpu.common import count_of, launch, pack
from hashfield.kernels.triton_gpu.composite import load3, opaque_share, store3
from hashfield.kernels.triton_gpu.field import DeviceField, field_forward
from hashfield.kernels.triton_gpu.march import (
    MarchedRays,
    as_words,
    lattice_values,
    load_lattice,
    probe,
    ray_block,
    ray_line,
    step_at,
    steps_from_t,
    t_from_steps,
)
from hashfield.kernels.triton_gpu.mlp import flat

WAVES = (8, 16, 64, 256)
"""Samples of each living ray that a wave takes at most; the last one repeats."""
MOST_SAMPLES = 2**23
"""Samples that a wave has room for; with more living rays it takes fewer samples of each."""
FRAMES_KEPT = 2
"""Numbers of rays whose buffers and graph are kept: those of a picture's parts, of which the last is shorter."""

_COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_field(field: Any) -> DeviceField:
    """FieldParameters as the fused kernels take them: the matrices flat and in the compute type."""
    short = {"bfloat16": field.table_bf16, "float16": field.table_fp16}.get(field.precision)
    if field.precision == "float32":
        short = field.table_bf16
    compute = _COMPUTE[field.precision]
    if short is None:
        short = field.table.to(compute)
    return DeviceField(
        layout=field.layout, table=short.contiguous(),
        weights=flat([*field.density_weights, *field.color_weights], compute),
        width=field.density_weights[0].shape[0], color_width=field.color_weights[0].shape[0],
        density_bias=float(field.density_bias),
    )  # fmt: skip


class Seen(NamedTuple):
    """How far each ray of a frame has come, and what it has seen."""

    next_n: Tensor
    """Stepping coordinate at which the next wave goes on."""
    transmittances: Tensor
    color: Tensor
    opacity: Tensor
    depth: Tensor


class Wave(NamedTuple):
    """A wave's living rays, and their samples packed by ray."""

    rays: Tensor
    """Numbers of the rays that live, int32."""
    n_living: Tensor
    """How many, int32 [1]."""
    counts: Tensor
    """Samples of each, int32."""
    ends: Tensor
    """Where those of each end, int32."""
    points: Tensor
    """Lattice points, [quota, n_living]."""
    positions: Tensor
    directions: Tensor
    ts: Tensor
    dts: Tensor
    log_density: Tensor
    rgb: Tensor


@triton.jit
def _start(rays, lattice_pointer, n_rays, seen, living, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr):
    """Every ray at its first lattice point, with all its light, and nothing seen yet."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    begin, end = tl.load(rays.t_min + ray, mask=mask, other=0.0), tl.load(rays.t_max + ray, mask=mask, other=0.0)
    n = steps_from_t(begin, load_lattice(lattice_pointer), HAS_CONE)
    tl.store(seen.next_n + ray, n + tl.load(rays.jitter + ray, mask=mask, other=0.0), mask=mask)
    zero = begin * 0.0
    tl.store(seen.transmittances + ray, zero + 1.0, mask=mask)
    store3(seen.color, ray, zero, zero, zero, mask)
    tl.store(seen.opacity + ray, zero, mask=mask)
    tl.store(seen.depth + ray, zero, mask=mask)
    tl.store(living + ray, (end > begin).to(tl.int32), mask=mask)


@triton.jit(do_not_specialize=["most"])
def _march_some(
    rays, bits, lattice_pointer, wave, next_n, n_rays, most, room, N_CASCADES: tl.constexpr, HAS_CONE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """At most `most` further samples of each living ray, or as many as there is room for: lattice points
    [quota, n_alive] and counts."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_alive = tl.load(wave.n_living)
    quota = tl.minimum(most, tl.maximum(room // tl.maximum(n_alive, 1), 1))
    mask = k < n_alive
    lattice = load_lattice(lattice_pointer)
    ray = tl.load(wave.rays + k, mask=mask, other=0)
    begin = tl.load(rays.t_min + ray, mask=mask, other=0.0)
    end = tl.load(rays.t_max + ray, mask=mask, other=0.0)
    line = ray_line(rays.origin, rays.direction, ray, mask)
    n = tl.load(next_n + ray, mask=mask, other=0.0)
    # As in `march`, and wherever a lattice point becomes a distance again: not before the ray's part of space.
    t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin)
    found = tl.zeros_like(k)
    alive = mask & (t < end)
    while tl.max(alive.to(tl.int32), axis=0) > 0:
        occupied, _, n_far, t_far = probe(n, t, line, bits, lattice, alive, N_CASCADES, HAS_CONE)
        tl.store(wave.points + found * n_alive + k, n, mask=occupied)
        found = tl.where(occupied, found + 1, found)
        n = tl.where(alive, tl.where(occupied, n + 1.0, n_far), n)  # a finished ray resumes there in the next wave
        t_near = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
        t = tl.where(alive, tl.where(occupied, t_near, t_far), t)
        alive = alive & (t < end) & (found < quota)
    tl.store(wave.counts + k, found, mask=k < n_rays)
    tl.store(next_n + ray, tl.where(t < end, n, float("inf")), mask=mask)


@triton.jit
def _fill(
    rays, lattice_pointer, wave, box_min, inverse_side, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Position, direction, distance and step of a wave's samples, packed by ray; TOGETHER neighbours of a ray are
    written by neighbouring threads, so that a store meets few lines."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_alive = tl.load(wave.n_living)
    mask = k < n_alive
    lattice = load_lattice(lattice_pointer)
    ray = tl.load(wave.rays + k, mask=mask, other=0)
    begin_t = tl.load(rays.t_min + ray, mask=mask, other=0.0)[:, None]
    ox, oy, oz, dx, dy, dz, _, _, _ = ray_line(rays.origin, rays.direction, ray, mask)
    count = tl.load(wave.counts + k, mask=mask, other=0)
    first = tl.load(wave.ends + k, mask=mask, other=0) - count
    ox, oy, oz = (ox - box_min)[:, None], (oy - box_min)[:, None], (oz - box_min)[:, None]
    dx, dy, dz = dx[:, None], dy[:, None], dz[:, None]
    for begin in range(0, tl.max(count, axis=0), TOGETHER):
        j = begin + tl.arange(0, TOGETHER)[None, :]
        here = mask[:, None] & (j < count[:, None])
        n = tl.load(wave.points + j * n_alive + k[:, None], mask=here, other=0.0)
        t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin_t)
        to = first[:, None] + j
        x, y, z = (ox + t * dx) * inverse_side, (oy + t * dy) * inverse_side, (oz + t * dz) * inverse_side
        store3(wave.positions, to, x, y, z, here)
        store3(wave.directions, to, dx + t * 0.0, dy + t * 0.0, dz + t * 0.0, here)
        tl.store(wave.ts + to, t, mask=here)
        tl.store(wave.dts + to, step_at(n, t, lattice, HAS_CONE), mask=here)


@triton.jit
def _shade(wave, min_transmittance, seen, living, n_rays, BLOCK: tl.constexpr):
    """Add what a wave's samples show to their rays, and say which rays go on."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < tl.load(wave.n_living)
    ray = tl.load(wave.rays + k, mask=mask, other=0)
    count = tl.load(wave.counts + k, mask=mask, other=0)
    first = tl.load(wave.ends + k, mask=mask, other=0) - count
    transmittance = tl.load(seen.transmittances + ray, mask=mask, other=0.0)
    r, g, b = load3(seen.color, ray, mask)
    opaque = tl.load(seen.opacity + ray, mask=mask, other=0.0)
    distance = tl.load(seen.depth + ray, mask=mask, other=0.0)
    for j in range(tl.max(count, axis=0)):
        here = mask & (j < count) & (transmittance >= min_transmittance)
        density = tl.exp(tl.load(wave.log_density + first + j, mask=here, other=0.0))
        alpha = opaque_share(density * tl.load(wave.dts + first + j, mask=here, other=0.0))
        w = tl.where(here, transmittance * alpha, 0.0)
        x, y, z = load3(wave.rgb, first + j, here)
        r, g, b = r + w * x, g + w * y, b + w * z
        opaque += w
        distance += w * tl.load(wave.ts + first + j, mask=here, other=0.0)
        transmittance = tl.where(here, transmittance * (1.0 - alpha), transmittance)
    store3(seen.color, ray, r, g, b, mask)
    tl.store(seen.opacity + ray, opaque, mask=mask)
    tl.store(seen.depth + ray, distance, mask=mask)
    tl.store(seen.transmittances + ray, transmittance, mask=mask)
    n = tl.load(seen.next_n + ray, mask=mask, other=0.0)
    goes_on = mask & (transmittance >= min_transmittance) & (n < float("inf"))
    tl.store(living + k, goes_on.to(tl.int32), mask=k < n_rays)


class Frame:
    """Room for the rays of a frame, and the waves over them: fixed, so that a captured frame finds it again."""

    def __init__(self, like: DeviceField, n_rays: int, options: Any, n_bytes: int) -> None:
        """Args:
        like: A field of the same sizes and types.
        n_rays: Given each time.
        options: MarchOptions.
        n_bytes: Size of the occupied bits.
        """
        device = like.weights.device
        self.n_rays, self.options, self.is_cuda = n_rays, options, device.type == "cuda"
        self.room = max(n_rays, min(MOST_SAMPLES, n_rays * max(WAVES)))

        def floats(*shape: int) -> Tensor:
            return torch.empty(shape, device=device)

        def counts() -> Tensor:
            return torch.empty(n_rays, dtype=torch.int32, device=device)

        self.field = replace(like, table=torch.empty_like(like.table), weights=torch.empty_like(like.weights))
        self.bits = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self.lattice = torch.tensor(lattice_values(options.cone_angle, options.step_scale), device=device)
        self.rays = MarchedRays(floats(n_rays, 3), floats(n_rays, 3), *(floats(n_rays) for _ in range(3)))
        self.seen = Seen(floats(n_rays), floats(n_rays), floats(n_rays, 3), floats(n_rays), floats(n_rays))
        self.everyone = torch.arange(n_rays, dtype=torch.int32, device=device)
        self.living = counts()
        self.n_alive, self.n_samples = count_of(0, device), count_of(0, device)
        packed = Wave(
            counts(), self.n_alive, counts(), counts(), floats(self.room), floats(self.room, 3), floats(self.room, 3),
            floats(self.room), floats(self.room), floats(self.room), floats(self.room, 3),
        )  # fmt: skip
        self.waves = packed, packed._replace(rays=counts())  # the living of one are listed while the other is read
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_warm = False

    def render(self, field: DeviceField, rays: Any, bits: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors color, opacity and depth of the rays, in memory of their own."""
        for own, given in (
            (self.field.table, field.table), (self.field.weights, field.weights), (self.bits, bits),
            *zip(self.rays, (rays.origin, rays.direction, rays.t_min, rays.t_max, jitter), strict=True),
        ):  # fmt: skip
            own.copy_(given)
        if self._graph is not None:
            self._graph.replay()
        elif not self.is_cuda or not self._is_warm:  # whatever is compiled at a first call happens uncaptured
            self._is_warm = True
            self._enqueue()
        else:
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._enqueue()
            self._graph.replay()
        wave = len(WAVES)
        while int(self.n_alive) > 0:
            self._wave(wave)
            wave += 1
        return self.seen.color.clone(), self.seen.opacity.clone(), self.seen.depth.clone()

    def _enqueue(self) -> None:
        n, block = self.n_rays, ray_block(self.n_rays)
        launch(
            _start, (triton.cdiv(n, block["BLOCK"]),), self.rays, self.lattice, n, self.seen, self.living,
            HAS_CONE=self.options.cone_angle > 0.0, **block,
        )  # fmt: skip
        pack(self.everyone, self.living, self.waves[0].rays, self.n_alive)
        self.occupied = as_words(self.bits)
        for wave in range(len(WAVES)):
            self._wave(wave)

    def _wave(self, wave: int) -> None:
        """Some samples of each living ray: marched, evaluated, added."""
        n, options, living = self.n_rays, self.options, self.waves[wave % 2]
        block, has_cone = ray_block(n), options.cone_angle > 0.0
        grid = (triton.cdiv(n, block["BLOCK"]),)
        launch(
            _march_some, grid, self.rays, self.occupied, self.lattice, living, self.seen.next_n, n,
            WAVES[min(wave, len(WAVES) - 1)], self.room, N_CASCADES=n_cascades_of(options.aabb_scale), HAS_CONE=has_cone,
            **block,
        )  # fmt: skip
        torch.cumsum(living.counts, 0, dtype=torch.int32, out=living.ends)
        self.n_samples.copy_(living.ends[-1:])
        launch(
            _fill, grid, self.rays, self.lattice, living, box_low_of(options.aabb_scale), 1.0 / options.aabb_scale,
            HAS_CONE=has_cone, TOGETHER=8, **block,
        )  # fmt: skip
        field_forward(
            self.field, living.positions, living.directions, self.n_samples, living.log_density, living.rgb
        )
        launch(_shade, grid, living, options.min_transmittance, self.seen, self.living, n, **block)
        pack(living.rays, self.living, self.waves[(wave + 1) % 2].rays, self.n_alive)


@functools.lru_cache(maxsize=FRAMES_KEPT)
def _frame_of(*key: Any) -> list[Frame]:
    return []


def render_rays(field: Any, rays: Any, bits: Tensor, options: Any, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors color [n, 3], opacity [n] and depth [n] of rays; see `hashfield.ops.render_rays`."""
    n, device = rays.n_rays, bits.device
    if not n:
        return torch.zeros((0, 3), device=device), torch.zeros(0, device=device), torch.zeros(0, device=device)
    net = device_field(field)
    kept = _frame_of(
        n, net.layout, net.table.dtype, net.weights.dtype, net.width, net.color_width, net.density_bias,
        net.interpolation, options, device,
    )  # fmt: skip
    if not kept:
        kept.append(Frame(net, n, options, bits.numel()))
    return kept[0].render(net, rays, bits, jitter)

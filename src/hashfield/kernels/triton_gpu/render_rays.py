"""Volume rendering of a radiance field on GPUs: waves of samples of the rays that still see light.

A wave takes a few samples of every living ray, asks the field for density and colour, and adds what they show; then
the living rays are packed anew. First few samples, since most rays of a trained scene end within them. How many rays
live and how many samples they have stays on the device; every launch has room for all, and programs without work end at
once. So a frame is one CUDA graph for each number of rays: only at its end the host asks whether any ray still lives.
"""

import functools
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import box_low_of, n_cascades_of
from hashfield.kernels.triton_gpu.common import count_of, launch, pack
from hashfield.kernels.triton_gpu.composite import load3, opaque_share, store3
from hashfield.kernels.triton_gpu.field import DeviceField, field_forward
from hashfield.kernels.triton_gpu.march import (
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


@triton.jit
def _start(
    t_min, t_max, jitter, lattice_pointer, n_rays, next_n, light, color, opacity, depth, living,
    HAS_CONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every ray at its first lattice point, with all its light, and nothing seen yet."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    begin, end = tl.load(t_min + ray, mask=mask, other=0.0), tl.load(t_max + ray, mask=mask, other=0.0)
    n = steps_from_t(begin, load_lattice(lattice_pointer), HAS_CONE)
    tl.store(next_n + ray, n + tl.load(jitter + ray, mask=mask, other=0.0), mask=mask)
    zero = begin * 0.0
    tl.store(light + ray, zero + 1.0, mask=mask)
    store3(color, ray, zero, zero, zero, mask)
    tl.store(opacity + ray, zero, mask=mask)
    tl.store(depth + ray, zero, mask=mask)
    tl.store(living + ray, (end > begin).to(tl.int32), mask=mask)


@triton.jit(do_not_specialize=["most"])
def _march_some(
    origin, direction, t_min, t_max, words, coarse, lattice_pointer, alive_rays, n_living, next_n, counts, points,
    n_rays, most, room, N_CASCADES: tl.constexpr, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """At most `most` further samples of each living ray, or as many as there is room for: lattice points
    [quota, n_alive] and counts."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_alive = tl.load(n_living)
    quota = tl.minimum(most, tl.maximum(room // tl.maximum(n_alive, 1), 1))
    mask = k < n_alive
    lattice = load_lattice(lattice_pointer)
    ray = tl.load(alive_rays + k, mask=mask, other=0)
    begin = tl.load(t_min + ray, mask=mask, other=0.0)
    end = tl.load(t_max + ray, mask=mask, other=0.0)
    ox, oy, oz, dx, dy, dz, sx, sy, sz = ray_line(origin, direction, ray, mask)
    n = tl.load(next_n + ray, mask=mask, other=0.0)
    # As in `march`, and wherever a lattice point becomes a distance again: not before the ray's part of space.
    t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin)
    found = tl.zeros_like(k)
    alive = mask & (t < end)
    while tl.max(alive.to(tl.int32), axis=0) > 0:
        occupied, _, n_far, t_far = probe(
            n, t, ox, oy, oz, dx, dy, dz, sx, sy, sz, words, coarse, lattice, alive, N_CASCADES, HAS_CONE
        )
        tl.store(points + found * n_alive + k, n, mask=occupied)
        found = tl.where(occupied, found + 1, found)
        n = tl.where(alive, tl.where(occupied, n + 1.0, n_far), n)  # a finished ray resumes there in the next wave
        t_near = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
        t = tl.where(alive, tl.where(occupied, t_near, t_far), t)
        alive = alive & (t < end) & (found < quota)
    tl.store(counts + k, found, mask=k < n_rays)
    tl.store(next_n + ray, tl.where(t < end, n, float("inf")), mask=mask)


@triton.jit
def _fill(
    origin, direction, t_min, lattice_pointer, alive_rays, n_living, counts, ends, points, box_min, inverse_side,
    positions, directions, ts, dts, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Position, direction, distance and step of a wave's samples, packed by ray; TOGETHER neighbours of a ray are
    written by neighbouring threads, so that a store meets few lines."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_alive = tl.load(n_living)
    mask = k < n_alive
    lattice = load_lattice(lattice_pointer)
    ray = tl.load(alive_rays + k, mask=mask, other=0)
    begin_t = tl.load(t_min + ray, mask=mask, other=0.0)[:, None]
    ox, oy, oz, dx, dy, dz, _, _, _ = ray_line(origin, direction, ray, mask)
    count = tl.load(counts + k, mask=mask, other=0)
    first = tl.load(ends + k, mask=mask, other=0) - count
    ox, oy, oz = (ox - box_min)[:, None], (oy - box_min)[:, None], (oz - box_min)[:, None]
    dx, dy, dz = dx[:, None], dy[:, None], dz[:, None]
    for begin in range(0, tl.max(count, axis=0), TOGETHER):
        j = begin + tl.arange(0, TOGETHER)[None, :]
        here = mask[:, None] & (j < count[:, None])
        n = tl.load(points + j * n_alive + k[:, None], mask=here, other=0.0)
        t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), begin_t)
        to = first[:, None] + j
        x, y, z = (ox + t * dx) * inverse_side, (oy + t * dy) * inverse_side, (oz + t * dz) * inverse_side
        store3(positions, to, x, y, z, here)
        store3(directions, to, dx + t * 0.0, dy + t * 0.0, dz + t * 0.0, here)
        tl.store(ts + to, t, mask=here)
        tl.store(dts + to, step_at(n, t, lattice, HAS_CONE), mask=here)


@triton.jit
def _shade(
    alive_rays, n_living, counts, ends, log_density, rgb, ts, dts, min_transmittance, next_n, light, color, opacity,
    depth, living, n_rays, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add what a wave's samples show to their rays, and say which rays go on."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < tl.load(n_living)
    ray = tl.load(alive_rays + k, mask=mask, other=0)
    count = tl.load(counts + k, mask=mask, other=0)
    first = tl.load(ends + k, mask=mask, other=0) - count
    transmittance = tl.load(light + ray, mask=mask, other=0.0)
    r, g, b = load3(color, ray, mask)
    opaque, distance = tl.load(opacity + ray, mask=mask, other=0.0), tl.load(depth + ray, mask=mask, other=0.0)
    for j in range(tl.max(count, axis=0)):
        here = mask & (j < count) & (transmittance >= min_transmittance)
        density = tl.exp(tl.load(log_density + first + j, mask=here, other=0.0))
        alpha = opaque_share(density * tl.load(dts + first + j, mask=here, other=0.0))
        w = tl.where(here, transmittance * alpha, 0.0)
        x, y, z = load3(rgb, first + j, here)
        r, g, b = r + w * x, g + w * y, b + w * z
        opaque += w
        distance += w * tl.load(ts + first + j, mask=here, other=0.0)
        transmittance = tl.where(here, transmittance * (1.0 - alpha), transmittance)
    store3(color, ray, r, g, b, mask)
    tl.store(opacity + ray, opaque, mask=mask)
    tl.store(depth + ray, distance, mask=mask)
    tl.store(light + ray, transmittance, mask=mask)
    n = tl.load(next_n + ray, mask=mask, other=0.0)
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
        self.origin, self.direction, self.color = (floats(n_rays, 3) for _ in range(3))
        self.t_min, self.t_max, self.jitter, self.next_n, self.light, self.opacity, self.depth = (
            floats(n_rays) for _ in range(7)
        )
        self.everyone = torch.arange(n_rays, dtype=torch.int32, device=device)
        self.alive = (counts(), counts())
        self.living, self.counts, self.ends = (counts() for _ in range(3))
        self.n_alive, self.n_samples = count_of(0, device), count_of(0, device)
        self.points, self.ts, self.dts, self.log_density = (floats(self.room) for _ in range(4))
        self.positions, self.directions, self.rgb = (floats(self.room, 3) for _ in range(3))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_warm = False

    def render(self, field: DeviceField, rays: Any, bits: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """color, opacity and depth, in memory of their own."""
        for own, given in (
            (self.field.table, field.table), (self.field.weights, field.weights), (self.bits, bits),
            (self.origin, rays.origin), (self.direction, rays.direction), (self.t_min, rays.t_min),
            (self.t_max, rays.t_max), (self.jitter, jitter),
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
        return self.color.clone(), self.opacity.clone(), self.depth.clone()

    def _enqueue(self) -> None:
        n, block = self.n_rays, ray_block(self.n_rays)
        launch(
            _start, (triton.cdiv(n, block["BLOCK"]),), self.t_min, self.t_max, self.jitter, self.lattice, n, self.next_n,
            self.light, self.color, self.opacity, self.depth, self.living, HAS_CONE=self.options.cone_angle > 0.0,
            **block,
        )  # fmt: skip
        pack(self.everyone, self.living, self.alive[0], self.n_alive)
        self.words, self.coarse = as_words(self.bits)
        for wave in range(len(WAVES)):
            self._wave(wave)

    def _wave(self, wave: int) -> None:
        """Some samples of each living ray: marched, evaluated, added."""
        n, options, alive = self.n_rays, self.options, self.alive[wave % 2]
        block, has_cone = ray_block(n), options.cone_angle > 0.0
        grid = (triton.cdiv(n, block["BLOCK"]),)
        launch(
            _march_some, grid, self.origin, self.direction, self.t_min, self.t_max, self.words, self.coarse,
            self.lattice, alive, self.n_alive, self.next_n, self.counts, self.points, n, WAVES[min(wave, len(WAVES) - 1)],
            self.room, N_CASCADES=n_cascades_of(options.aabb_scale), HAS_CONE=has_cone, **block,
        )  # fmt: skip
        torch.cumsum(self.counts, 0, dtype=torch.int32, out=self.ends)
        self.n_samples.copy_(self.ends[-1:])
        launch(
            _fill, grid, self.origin, self.direction, self.t_min, self.lattice, alive, self.n_alive, self.counts,
            self.ends, self.points, box_low_of(options.aabb_scale), 1.0 / options.aabb_scale, self.positions,
            self.directions, self.ts, self.dts, HAS_CONE=has_cone, TOGETHER=8, **block,
        )  # fmt: skip
        field_forward(self.field, self.positions, self.directions, self.n_samples, self.log_density, self.rgb)
        launch(
            _shade, grid, alive, self.n_alive, self.counts, self.ends, self.log_density, self.rgb, self.ts, self.dts,
            options.min_transmittance, self.next_n, self.light, self.color, self.opacity, self.depth, self.living, n,
            **block,
        )  # fmt: skip
        pack(alive, self.living, self.alive[(wave + 1) % 2], self.n_alive)


@functools.lru_cache(maxsize=FRAMES_KEPT)
def _frame_of(*key: Any) -> list[Frame]:
    return []


def render_rays(field: Any, rays: Any, bits: Tensor, options: Any, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """color [n, 3], opacity [n] and depth [n] of rays; see `hashfield.ops.render_rays`."""
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

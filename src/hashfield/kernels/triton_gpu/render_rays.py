"""Volume rendering of a radiance field on GPUs: waves of samples of the rays that still see light.

A wave takes a few samples of every living ray, asks the field for density and colour, and adds what they show; then
the living rays are counted anew and packed. First few samples, since most rays of a trained scene end within them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import launch
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
def _start(t_min, jitter, lattice_pointer, n_rays, next_n, light, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr):
    """Every ray at its first lattice point, with all its light."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = ray < n_rays
    n = steps_from_t(tl.load(t_min + ray, mask=mask, other=0.0), load_lattice(lattice_pointer), HAS_CONE)
    tl.store(next_n + ray, n + tl.load(jitter + ray, mask=mask, other=0.0), mask=mask)
    tl.store(light + ray, tl.full([BLOCK], 1.0, tl.float32), mask=mask)


@triton.jit
def _march_some(
    origin, direction, t_max, words, coarse, lattice_pointer, alive_rays, n_alive, next_n, counts, points, quota,
    N_CASCADES: tl.constexpr, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """At most `quota` further samples of each living ray: lattice points [quota, n_alive] and counts."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < n_alive
    lattice = load_lattice(lattice_pointer)
    ray = tl.load(alive_rays + k, mask=mask, other=0)
    end = tl.load(t_max + ray, mask=mask, other=0.0)
    ox, oy, oz, dx, dy, dz, sx, sy, sz = ray_line(origin, direction, ray, mask)
    n = tl.load(next_n + ray, mask=mask, other=0.0)
    t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
    found = tl.zeros_like(k)
    alive = mask & (t < end)
    while tl.max(alive.to(tl.int32), axis=0) > 0:
        occupied, _, n_far, t_far = probe(
            n, t, ox, oy, oz, dx, dy, dz, sx, sy, sz, words, coarse, lattice, alive, N_CASCADES, HAS_CONE
        )
        tl.store(points + found * n_alive + k, n, mask=occupied)
        found = tl.where(occupied, found + 1, found)
        n = tl.where(alive, tl.where(occupied, n + 1.0, n_far), n)  # who has enough stays where it goes on
        t_near = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
        t = tl.where(alive, tl.where(occupied, t_near, t_far), t)
        alive = alive & (t < end) & (found < quota)
    tl.store(counts + k, found, mask=mask)
    tl.store(next_n + ray, tl.where(t < end, n, float("inf")), mask=mask)


@triton.jit
def _fill(
    origin, direction, lattice_pointer, alive_rays, n_alive, counts, ends, points, box_min, inverse_side, positions,
    directions, ts, dts, HAS_CONE: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Position, direction, distance and step of a wave's samples, packed by ray; TOGETHER neighbours of a ray are
    written by neighbouring threads, so that a store meets few lines."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < n_alive
    lattice = load_lattice(lattice_pointer)
    ray = tl.load(alive_rays + k, mask=mask, other=0)
    ox, oy, oz, dx, dy, dz, _, _, _ = ray_line(origin, direction, ray, mask)
    count = tl.load(counts + k, mask=mask, other=0)
    first = tl.load(ends + k, mask=mask, other=0) - count
    ox, oy, oz = (ox - box_min)[:, None], (oy - box_min)[:, None], (oz - box_min)[:, None]
    dx, dy, dz = dx[:, None], dy[:, None], dz[:, None]
    for begin in range(0, tl.max(count, axis=0), TOGETHER):
        j = begin + tl.arange(0, TOGETHER)[None, :]
        here = mask[:, None] & (j < count[:, None])
        n = tl.load(points + j * n_alive + k[:, None], mask=here, other=0.0)
        t = tl.maximum(t_from_steps(n, lattice, HAS_CONE), 0.0)
        to = first[:, None] + j
        x, y, z = (ox + t * dx) * inverse_side, (oy + t * dy) * inverse_side, (oz + t * dz) * inverse_side
        store3(positions, to, x, y, z, here)
        store3(directions, to, dx + t * 0.0, dy + t * 0.0, dz + t * 0.0, here)
        tl.store(ts + to, t, mask=here)
        tl.store(dts + to, step_at(n, t, lattice, HAS_CONE), mask=here)


@triton.jit
def _shade(
    alive_rays, n_alive, counts, ends, log_density, rgb, ts, dts, min_transmittance, next_n, light, color, opacity,
    depth, living, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add what a wave's samples show to their rays, and say which rays go on."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = k < n_alive
    ray = tl.load(alive_rays + k, mask=mask, other=0)
    count = tl.load(counts + k, mask=mask, other=0)
    first = tl.load(ends + k, mask=mask, other=0) - count
    shine = tl.load(light + ray, mask=mask, other=0.0)
    r, g, b = load3(color, ray, mask)
    opaque, distance = tl.load(opacity + ray, mask=mask, other=0.0), tl.load(depth + ray, mask=mask, other=0.0)
    for j in range(tl.max(count, axis=0)):
        here = mask & (j < count) & (shine >= min_transmittance)
        density = tl.exp(tl.load(log_density + first + j, mask=here, other=0.0))
        alpha = opaque_share(density * tl.load(dts + first + j, mask=here, other=0.0))
        w = tl.where(here, shine * alpha, 0.0)
        x, y, z = load3(rgb, first + j, here)
        r, g, b = r + w * x, g + w * y, b + w * z
        opaque += w
        distance += w * tl.load(ts + first + j, mask=here, other=0.0)
        shine = tl.where(here, shine * (1.0 - alpha), shine)
    store3(color, ray, r, g, b, mask)
    tl.store(opacity + ray, opaque, mask=mask)
    tl.store(depth + ray, distance, mask=mask)
    tl.store(light + ray, shine, mask=mask)
    n = tl.load(next_n + ray, mask=mask, other=0.0)
    tl.store(living + k, ((shine >= min_transmittance) & (n < float("inf"))).to(tl.int8), mask=mask)


def render_rays(field: Any, rays: Any, bits: Tensor, options: Any, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """color [n, 3], opacity [n] and depth [n] of rays; see `hashfield.ops.render_rays`."""
    n, device = rays.n_rays, bits.device
    color, opacity, depth = (torch.zeros(shape, device=device) for shape in ((n, 3), (n,), (n,)))
    if not n:
        return color, opacity, depth
    net, (words, coarse) = device_field(field), as_words(bits)
    origin, direction, t_min, t_max = (x.contiguous() for x in (rays.origin, rays.direction, rays.t_min, rays.t_max))
    lattice = torch.tensor(lattice_values(options.cone_angle, options.step_scale), device=device)
    has_cone, n_cascades = options.cone_angle > 0.0, options.aabb_scale.bit_length()
    next_n, light = torch.empty(n, device=device), torch.empty(n, device=device)
    block = ray_block(n)
    launch(
        _start, (triton.cdiv(n, block["BLOCK"]),), t_min, jitter.contiguous(), lattice, n, next_n, light,
        HAS_CONE=has_cone, **block,
    )  # fmt: skip
    alive = torch.nonzero(t_max > t_min)[:, 0]
    wave = 0
    while len(alive):
        quota = min(WAVES[min(wave, len(WAVES) - 1)], max(1, MOST_SAMPLES // len(alive)))
        living = torch.empty(len(alive), dtype=torch.int8, device=device)
        _one_wave(
            net, origin, direction, t_max, words, coarse, lattice, alive, quota, next_n, light, options, n_cascades,
            color, opacity, depth, living,
        )  # fmt: skip
        alive = alive[living != 0]
        wave += 1
    return color, opacity, depth


def _one_wave(
    net: DeviceField, origin: Tensor, direction: Tensor, t_max: Tensor, words: Tensor, coarse: Tensor, lattice: Tensor,
    alive: Tensor, quota: int, next_n: Tensor, light: Tensor, options: Any, n_cascades: int, color: Tensor,
    opacity: Tensor, depth: Tensor, living: Tensor,
) -> None:  # fmt: skip
    """Up to `quota` samples of each living ray: marched, evaluated, added."""
    n, device, has_cone = len(alive), alive.device, options.cone_angle > 0.0
    room = n * quota
    counts = torch.empty(n, dtype=torch.int32, device=device)
    points, ts, dts, log_density = (torch.empty(room, device=device) for _ in range(4))
    positions, directions, rgb = (torch.empty((room, 3), device=device) for _ in range(3))
    block = ray_block(n)
    grid = (triton.cdiv(n, block["BLOCK"]),)
    launch(
        _march_some, grid, origin, direction, t_max, words, coarse, lattice, alive, n, next_n, counts, points, quota,
        N_CASCADES=n_cascades, HAS_CONE=has_cone, **block,
    )  # fmt: skip
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    launch(
        _fill, grid, origin, direction, lattice, alive, n, counts, ends, points, 0.5 - 0.5 * options.aabb_scale,
        1.0 / options.aabb_scale, positions, directions, ts, dts, HAS_CONE=has_cone, TOGETHER=8, **block,
    )  # fmt: skip
    field_forward(net, positions, directions, ends[-1:], log_density, rgb)
    launch(
        _shade, grid, alive, n, counts, ends, log_density, rgb, ts, dts, options.min_transmittance, next_n, light,
        color, opacity, depth, living, **block,
    )  # fmt: skip

"""Rendering a radiance field on CPUs: march, density, colour and compositing of chunks of rays in the cache."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    PerThread,
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    part,
    restore_denormals,
    sigmoid,
)
from hashfield.kernels.numba_cpu.encoders import encoder_scratch
from hashfield.kernels.numba_cpu.field import (
    N_COLOR_IN,
    N_DIRECTION,
    N_GEOMETRY,
    RayState,
    Scratch,
    Wave,
    color_blocks,
    density_wave,
    empty_wave,
    march_wave,
    ray_state,
)
from hashfield.kernels.numba_cpu.grid_encode import field_encoder
from hashfield.kernels.numba_cpu.march import first_step, march_of, ray_arrays
from hashfield.kernels.numba_cpu.mlp import ROWS, pack_networks, put, storage
from hashfield.kernels.numba_cpu.simd import LANES, load, store
from hashfield.kernels.numba_cpu.spherical_harmonics import harmonics

CHUNK_RAYS = 256
FIRST_SAMPLES = 4
"""Samples that a wave takes of a ray of which nothing is known yet, at least."""
MOST_SAMPLES = 32
"""Samples that a wave takes of a ray, at most."""


class Settings(NamedTuple):
    """Numbers of a call."""

    min_transmittance: np.float32
    min_weight: np.float32
    density_bias: np.float32
    is_relu: bool
    """Whether the density is a ReLU of the network's output; else its exponential."""


class Seen(NamedTuple):
    """What each ray sees, without a background."""

    color: Any
    """[n, 3]"""
    opacity: Any
    """[n]"""
    depth: Any
    """[n]: sum of weights times distances."""


class Shaded(NamedTuple):
    """The samples of a wave that are coloured."""

    color_in: Any
    """[samples, 32]: the density network's outputs and the direction's harmonics."""
    hidden1: Any
    """[samples, width]: the colour network's hidden layers."""
    hidden2: Any
    rgb: Any
    """[samples, 3]"""
    ray: Any
    """[samples]: number of the ray."""
    weight: Any
    """[samples]: part of the ray's light that the sample stops."""


class Pace(NamedTuple):
    """How the rays of a chunk go on, by their number within the chunk."""

    quota: Any
    """[rays]: samples that each takes in the next wave."""
    passed_over: Any
    """[rays]: weight of the samples since the last one that got a colour."""


class Own(NamedTuple):
    """What one thread works in."""

    state: RayState
    pace: Pace
    wave: Wave
    shaded: Shaded
    scratch: Scratch


@inline
def next_quota(before, taken, thickness, transmittance, min_transmittance):
    """Samples that a ray takes in its next wave: those that should use up its light if all are as thick as the wave's
    were on average, but at most twice as many as before.

    Whatever is asked behind the ray's end is wasted, and every wave costs something, too.
    """
    most = min(2 * before, MOST_SAMPLES)
    # Light falls by e^-thickness at each sample.
    needed = math.log(transmittance / max(min_transmittance, np.float32(1e-6))) * taken
    if needed < most * thickness:
        return max(int(needed / thickness) + 1, 2)
    return most


@part
def shade(state, pace, wave, shaded, n_alive, first_ray, settings, seen):
    """Weights of a wave's samples; keeps those that get a colour. Returns (kept, living rays)."""
    alive, counts, ended, transmittances = state.alive, state.counts, state.ended, state.transmittance
    quota, passed_over = pace.quota, pace.passed_over
    alpha, tau, t, opacity, depth, color_in = wave.alpha, wave.tau, wave.t, seen.opacity, seen.depth, shaded.color_in
    min_transmittance, min_weight = settings.min_transmittance, settings.min_weight
    kept, i, living = 0, 0, 0
    for k in range(n_alive):
        r = alive[k]
        ray, transmittance, over, thickness = first_ray + r, transmittances[r], passed_over[r], np.float32(0.0)
        for j in range(i, i + counts[k]):
            if transmittance < min_transmittance:
                break
            w = transmittance * alpha[j] + over
            transmittance *= np.float32(1.0) - alpha[j]
            thickness += tau[j]
            if w <= np.float32(0.0):
                continue  # nothing there
            if w < min_weight:
                over = w
                continue
            over = np.float32(0.0)
            put(wave.geometry, j * N_GEOMETRY, color_in, kept * N_COLOR_IN, N_GEOMETRY)
            put(state.harmonics, r * N_DIRECTION, color_in, kept * N_COLOR_IN + N_GEOMETRY, N_DIRECTION)
            shaded.ray[kept], shaded.weight[kept] = ray, w
            opacity[ray] += w
            depth[ray] += w * t[j]
            kept += 1
        i += counts[k]
        transmittances[r], passed_over[r] = transmittance, over
        if transmittance >= min_transmittance and not ended[r]:
            quota[r] = next_quota(quota[r], counts[k], thickness, transmittance, min_transmittance)
            alive[living] = r
            living += 1
    return kept, living


@part
def make_up(state, n_chunk, first_ray, min_transmittance, seen):
    """Scale what each ray of a chunk has seen to all the light it lost: samples passed over, and what lies behind
    where the ray was cut, are taken to look like the rest."""
    color, opacity, depth, one = seen.color, seen.opacity, seen.depth, np.float32(1.0)
    for r in range(n_chunk):
        ray, left = first_ray + r, state.transmittance[r]
        if opacity[ray] > np.float32(0.0):
            covered = one if left < min_transmittance else one - left
            scale = covered / opacity[ray]
            opacity[ray] = covered
            depth[ray] *= scale
            for c in range(3):
                color[ray, c] *= scale


@kernel
def _render(rays, march, density, color_net, encoder, settings, own, seen, thread, threads):
    state, pace, wave, shaded = own.state, own.pace, own.wave, own.shaded
    color, opacity, depth, direction, rgb = seen.color, seen.opacity, seen.depth, rays.direction, shaded.rgb
    scratch = Scratch(encoder_scratch(encoder), own.scratch.hidden, own.scratch.sums)
    n_rays = rays.t_min.size
    n_chunks = (n_rays + CHUNK_RAYS - 1) // CHUNK_RAYS
    mode = flush_denormals()
    begin_tiles()
    # Chunks are dealt in turn: a picture's centre costs more than its border.
    for chunk in range(thread, n_chunks, threads):
        first_ray = chunk * CHUNK_RAYS
        n_alive, n_chunk = 0, min(CHUNK_RAYS, n_rays - first_ray)
        for r in range(n_chunk):
            ray = first_ray + r
            color[ray, 0] = color[ray, 1] = color[ray, 2] = opacity[ray] = depth[ray] = np.float32(0.0)
            state.transmittance[r] = np.float32(1.0)
            state.ended[r] = False
            pace.quota[r], pace.passed_over[r] = FIRST_SAMPLES, np.float32(0.0)
            if rays.t_max[ray] > rays.t_min[ray]:
                harmonics(direction[ray, 0], direction[ray, 1], direction[ray, 2], 4, scratch.sums, 0)
                put(scratch.sums, 0, state.harmonics, r * N_DIRECTION, N_DIRECTION)
                state.next_step[r] = first_step(rays, ray, march.steps)
                state.alive[n_alive] = r
                n_alive += 1
        while n_alive > 0:
            m = march_wave(rays, march, state, first_ray, n_alive, pace.quota, wave)
            if m:
                density_wave(encoder, density, wave, m, scratch, settings.density_bias, settings.is_relu)
            kept, n_alive = shade(state, pace, wave, shaded, n_alive, first_ray, settings, seen)
            color_blocks(color_net, shaded.color_in, kept, shaded.hidden1, shaded.hidden2, scratch.sums, rgb)
            for i in range(0, kept * 3, LANES):
                store(rgb, i, sigmoid(load(rgb, i)))
            for i in range(kept):
                ray, w = shaded.ray[i], shaded.weight[i]
                color[ray, 0] += w * rgb[3 * i]
                color[ray, 1] += w * rgb[3 * i + 1]
                color[ray, 2] += w * rgb[3 * i + 2]
        if settings.min_weight > np.float32(0.0):
            make_up(state, n_chunk, first_ray, settings.min_transmittance, seen)
    end_tiles()
    restore_denormals(mode)


def _own(density, color, kind: type) -> Own:
    n = CHUNK_RAYS * MOST_SAMPLES
    shaded = Shaded(
        color_in=np.empty(n * N_COLOR_IN, kind), hidden1=np.empty(n * color.width, kind),
        hidden2=np.empty(n * color.width, kind), rgb=np.empty(n * 3 + LANES, np.float32), ray=np.empty(n, np.int64),
        weight=np.empty(n, np.float32),
    )  # fmt: skip
    sums = np.empty(ROWS * max(color.out_row, N_GEOMETRY), np.float32)
    scratch = Scratch(None, np.empty(ROWS * density.width, kind), sums)
    pace = Pace(np.zeros(CHUNK_RAYS, np.int64), np.zeros(CHUNK_RAYS, np.float32))
    return Own(ray_state(CHUNK_RAYS, kind), pace, empty_wave(n, density.row, kind), shaded, scratch)


def render_rays(field, rays, bits, options, jitter):
    """Tensors color [n, 3], opacity [n] and depth [n] of rays; see `hashfield.ops.render_rays`."""
    n = rays.n_rays
    color, opacity, depth = torch.empty((n, 3)), torch.empty(n), torch.empty(n)
    if n:
        density, color_net, _, _ = pack_networks(field)
        kind, threads = storage(field.precision), n_threads()
        numbers = (options.min_transmittance, options.min_weight, field.density_bias)
        launch(
            _render, ray_arrays(rays, jitter),
            march_of(bits, options.aabb_scale, options.cone_angle, options.step_scale), density, color_net,
            field_encoder(field), Settings(*map(np.float32, numbers), field.density_activation == "relu"),
            PerThread(_own(density, color_net, kind) for _ in range(threads)),
            Seen(*map(as_array, (color, opacity, depth))),
            threads=threads,
        )  # fmt: skip
    return color, opacity, depth

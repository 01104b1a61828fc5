"""Rendering a radiance field on CPUs: march, density, colour and compositing of chunks of rays in the cache."""

import numpy as np
import torch

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    kernel,
    launch,
    part,
    restore_denormals,
    sigmoid,
)
from hashfield.kernels.numba_cpu.field import (
    N_COLOR_IN,
    N_DIRECTION,
    N_GEOMETRY,
    WAVES,
    color_blocks,
    density_wave,
    march_wave,
)
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_inputs import level_table, lookup_table
from hashfield.kernels.numba_cpu.march import as_words, lattice, steps_from_t
from hashfield.kernels.numba_cpu.mlp import ROWS, pack_networks, put
from hashfield.kernels.numba_cpu.simd import LANES, load, store
from hashfield.kernels.numba_cpu.spherical_harmonics import harmonics

CHUNK_RAYS = 256


@part
def shade(
    alive, n_alive, counts, ended, trans, min_transmittance, geometry, harmonic, t, alpha, color_in, ray_of, weight_of,
    first_ray, color, opacity, depth,
):  # fmt: skip
    """Weights of a wave's samples; keeps those that light reaches. Returns (kept, living rays)."""
    kept, i, living = 0, 0, 0
    for k in range(n_alive):
        r = alive[k]
        ray, light = first_ray + r, trans[r]
        for j in range(i, i + counts[k]):
            if light < min_transmittance:
                break
            w = light * alpha[j]
            light *= np.float32(1.0) - alpha[j]
            if w <= np.float32(0.0):
                continue  # nothing there
            put(geometry, j * N_GEOMETRY, color_in, kept * N_COLOR_IN, N_GEOMETRY)
            put(harmonic, r * N_DIRECTION, color_in, kept * N_COLOR_IN + N_GEOMETRY, N_DIRECTION)
            ray_of[kept], weight_of[kept] = ray, w
            opacity[ray] += w
            depth[ray] += w * t[j]
            kept += 1
        i += counts[k]
        trans[r] = light
        if light >= min_transmittance and not ended[r]:
            alive[living] = r
            living += 1
    return kept, living


@kernel
def _render(rays, scene, net, table, n_features, levels, scales, options, color, opacity, depth, thread, threads):
    origin, direction, t_min, t_max, jitter = rays
    words, coarse, n_cascades, steps, box_min, inverse_side = scene
    density_net, color_net, out_row, row = net
    min_transmittance, bias, is_relu = options
    n_rays = t_min.size
    n_chunks = (n_rays + CHUNK_RAYS - 1) // CHUNK_RAYS
    width, n_width = color_net[6], density_net[4]
    wave_size = CHUNK_RAYS * WAVES[WAVES.size - 1]
    stride = wave_size + 2 * BLOCK
    mode = flush_denormals()
    begin_tiles()
    positions = np.empty(3 * stride, np.float32)
    w_t, w_dt = np.empty(wave_size + LANES, np.float32), np.empty(wave_size + LANES, np.float32)
    w_tau, w_alpha = np.empty(wave_size + LANES, np.float32), np.empty(wave_size + LANES, np.float32)
    w_ray = np.empty(wave_size, np.int64)
    storage = density_net[0].dtype  # float32, or uint16 for bfloat16
    features, geometry = np.zeros(wave_size * row, storage), np.empty(wave_size * N_GEOMETRY, storage)
    hidden, raw = np.empty(ROWS * n_width, storage), np.empty(ROWS * N_GEOMETRY, np.float32)
    hidden1, hidden2 = np.empty(wave_size * width, storage), np.empty(wave_size * width, storage)
    color_in, rgb = np.empty(wave_size * N_COLOR_IN, storage), np.empty(wave_size * 3 + LANES, np.float32)
    out = np.empty(ROWS * out_row, np.float32)
    index, weight = np.empty((2 * BLOCK) << 3, np.uint32), np.empty((2 * BLOCK) << 3, np.float32)
    trans, harmonic = np.empty(CHUNK_RAYS, np.float32), np.empty(CHUNK_RAYS * N_DIRECTION, storage)
    direction_terms = np.empty(N_DIRECTION, np.float32)
    n_next, ended = np.empty(CHUNK_RAYS, np.float64), np.empty(CHUNK_RAYS, np.bool_)
    alive, counts = np.empty(CHUNK_RAYS, np.int64), np.empty(CHUNK_RAYS, np.int64)
    weight_of = np.empty(wave_size, np.float32)
    # Chunks are dealt in turn: a picture's centre costs more than its border.
    for chunk in range(thread, n_chunks, threads):
        first_ray = chunk * CHUNK_RAYS
        n_alive = 0
        for r in range(min(CHUNK_RAYS, n_rays - first_ray)):
            ray = first_ray + r
            color[ray, 0] = color[ray, 1] = color[ray, 2] = opacity[ray] = depth[ray] = np.float32(0.0)
            trans[r] = np.float32(1.0)
            ended[r] = False
            if t_max[ray] > t_min[ray]:
                harmonics(direction[ray, 0], direction[ray, 1], direction[ray, 2], 4, direction_terms, 0)
                put(direction_terms, 0, harmonic, r * N_DIRECTION, N_DIRECTION)
                n_next[r] = steps_from_t(np.float64(t_min[ray]), steps) + np.float64(jitter[ray])
                alive[n_alive] = r
                n_alive += 1
        wave = 0
        while n_alive > 0:
            quota = WAVES[min(wave, WAVES.size - 1)]
            m = march_wave(
                origin, direction, t_max, first_ray, alive, n_alive, quota, n_next, ended, counts, words, coarse,
                n_cascades, steps, box_min, inverse_side, positions, stride, w_t, w_dt,
            )  # fmt: skip
            if m:
                density_wave(
                    positions, stride, m, table, n_features, levels, scales, index, weight, features, row,
                    density_net, hidden, raw, geometry, w_dt, w_tau, w_alpha, bias, is_relu,
                )  # fmt: skip
            kept, n_alive = shade(
                alive, n_alive, counts, ended, trans, min_transmittance, geometry, harmonic, w_t, w_alpha,
                color_in, w_ray, weight_of, first_ray, color, opacity, depth,
            )  # fmt: skip
            color_blocks(color_in, kept, color_net, hidden1, hidden2, out, out_row, rgb)
            for i in range(0, kept * 3, LANES):
                store(rgb, i, sigmoid(load(rgb, i)))
            for i in range(kept):
                ray, w = w_ray[i], weight_of[i]
                color[ray, 0] += w * rgb[3 * i]
                color[ray, 1] += w * rgb[3 * i + 1]
                color[ray, 2] += w * rgb[3 * i + 2]
            wave += 1
    end_tiles()
    restore_denormals(mode)


def render_rays(field, rays, bits, options, jitter):
    """color [n, 3], opacity [n] and depth [n] of rays; see `hashfield.ops.render_rays`."""
    n, layout = rays.n_rays, field.layout
    color, opacity, depth = torch.empty((n, 3)), torch.empty(n), torch.empty(n)
    net, _, _ = pack_networks(field.density_weights, field.color_weights, field.precision)
    table = lookup_table(field)
    side = float(options.aabb_scale)
    if n:
        launch(
            _render,
            tuple(as_array(x.contiguous()) for x in (rays.origin, rays.direction, rays.t_min, rays.t_max, jitter)),
            (*as_words(bits), options.aabb_scale.bit_length(), lattice(options.cone_angle, options.step_scale),
             0.5 - 0.5 * side, 1.0 / side),
            net, table, layout.n_features_per_level, level_table(layout), layout.scales,
            (np.float32(options.min_transmittance), np.float32(field.density_bias), field.density_activation == "relu"),
            as_array(color), as_array(opacity), as_array(depth),
        )  # fmt: skip
    return color, opacity, depth

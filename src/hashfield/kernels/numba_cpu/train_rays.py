"""One training step of a radiance field on CPUs, from rays to gradients, without leaving the cache.

Each thread walks its share of the rays in chunks: march and density in waves, colour for what is kept,
composite, loss, and both networks' backward pass, while everything the chunk needs is still in L2. What crosses
to the second kernel is, for each kept sample, its position and the gradient of its features; there every level
of the table is added to by one thread. Nothing depends on timing: same seed, same threads, same bits.
"""

import numpy as np

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    n_threads,
    part,
    restore_denormals,
    round_up,
    share,
    sigmoid,
    task_at,
)
from hashfield.kernels.numba_cpu.field import (
    N_COLOR_IN,
    N_DIRECTION,
    N_GEOMETRY,
    STEEPEST,
    WAVES,
    color_blocks,
    density_wave,
    march_wave,
)
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import add_level
from hashfield.kernels.numba_cpu.grid_inputs import level_table, lookup_table
from hashfield.kernels.numba_cpu.march import as_words, lattice, steps_from_t
from hashfield.kernels.numba_cpu.mlp import (
    PAD,
    ROWS,
    pack_networks,
    paired,
    product_gate,
    product_relu,
    product_store,
    put,
    storage,
    weight_gradient,
)
from hashfield.kernels.numba_cpu.simd import FEATURES, LANES, cycles, load, peek, poke, store
from hashfield.kernels.numba_cpu.spherical_harmonics import harmonics

# Sums that each thread reports.
S_LOSS, S_ERROR, S_MARCHED, S_KEPT, S_RAYS = range(5)
# Time stamps that each thread spends per stage follow them.
STAGES = ("march", "encode + density", "compact", "color", "composite", "backward")
S_STAGES = 5
load4, _, _, store4 = FEATURES[4]


@inline
def loss_and_slope(difference, huber_delta):
    """Squared error, or where huber_delta > 0 instant-ngp's Huber loss (scaled by 1/5)."""
    if huber_delta <= np.float32(0.0):
        return difference * difference, np.float32(2.0) * difference
    size = abs(difference)
    if size <= huber_delta:
        return np.float32(0.1) * difference * difference / huber_delta, np.float32(0.2) * difference / huber_delta
    return np.float32(0.2) * (size - np.float32(0.5) * huber_delta), np.float32(0.2) * np.sign(difference)


@inline
def entropy_slope(w):
    """d(-w log w)/dw; bounded where w is 0."""
    return -np.log(max(w, np.float32(1e-20))) - np.float32(1.0)


@part
def compact(
    alive, n_alive, counts, ended, trans, is_cut, is_dropped, min_transmittance, min_weight, is_relu, kept,
    features, row, geometry, harmonic, t, dt, tau, alpha, positions, stride,
    k_features, k_color_in, k_ray, k_slope, k_weight, k_after, k_positions, k_stride, k_base,
):  # fmt: skip
    """Keep the wave's samples that light still reaches; returns (kept, living rays)."""
    i, living = 0, 0
    for k in range(n_alive):
        r = peek(alive, k)
        light = peek(trans, r)
        for j in range(i, i + peek(counts, k)):
            if light < min_transmittance:
                is_cut[r] = True
                break
            opaque = peek(alpha, j)
            w = light * opaque
            if w < min_weight or (is_relu and opaque <= np.float32(0.0)):
                # Too faint to matter to the pixel, and its gradient is smaller still; its shade remains.
                light *= np.float32(1.0) - opaque
                continue
            put(features, j * row, k_features, kept * row, row)
            put(geometry, j * N_GEOMETRY, k_color_in, kept * N_COLOR_IN, N_GEOMETRY)
            put(harmonic, r * N_DIRECTION, k_color_in, kept * N_COLOR_IN + N_GEOMETRY, N_DIRECTION)
            poke(k_ray, kept, r)
            # d tau / d raw
            poke(k_slope, kept, peek(dt, j) if is_relu else min(peek(tau, j), STEEPEST * peek(dt, j)))
            poke(k_weight, kept, w)
            light *= np.float32(1.0) - opaque
            poke(k_after, kept, light)
            for axis in range(3):
                poke(k_positions, axis * k_stride + k_base + kept, peek(positions, axis * stride + j))
            kept += 1
        i += peek(counts, k)
        poke(trans, r, light)
        if light < min_transmittance:
            is_cut[r] = True
        if not (is_cut[r] or is_dropped[r] or ended[r]):
            poke(alive, living, r)
            living += 1
    return kept, living


@part
def composite_chunk(
    n_chunk, first_ray, kept, rgb, k_ray, k_weight, k_after, k_slope, trans, is_cut, is_dropped, pixel, rest,
    target, background, huber_delta, sparsity, spread, ray_scale, d_rgb, d_raw, sums,
):  # fmt: skip
    """Pixel colours, their loss, and its gradient at every kept sample's raw colour and raw density.

    `sparsity` times the entropy of a ray's weights and of the light it has left is part of the loss. To the densities
    it is one more channel: a sample's "colour" in it is d(-w log w)/dw = -log w - 1. `spread` [n_chunk] holds what
    the samples from one to the end of its ray add to that channel.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    for i in range(0, kept * 3, LANES):
        store(rgb, i, sigmoid(load(rgb, i)))
    for r in range(n_chunk):
        pixel[3 * r] = pixel[3 * r + 1] = pixel[3 * r + 2] = zero
    for i in range(kept):
        r, w = 3 * peek(k_ray, i), peek(k_weight, i)
        for c in range(3):
            poke(pixel, r + c, peek(pixel, r + c) + w * peek(rgb, 3 * i + c))
    for r in range(n_chunk):
        ray = first_ray + r
        if is_dropped[r]:
            for c in range(3):
                pixel[3 * r + c] = rest[3 * r + c] = zero
            continue
        sums[S_RAYS] += 1.0
        opacity = target[ray, 3]
        for c in range(3):
            color = pixel[3 * r + c]
            if not is_cut[r]:
                color += trans[r] * background[ray, c]
            wanted = target[ray, c] * opacity + background[ray, c] * (one - opacity)
            loss, slope = loss_and_slope(color - wanted, huber_delta)
            sums[S_LOSS] += loss
            sums[S_ERROR] += (color - wanted) * (color - wanted)
            pixel[3 * r + c] = slope * ray_scale  # from here on the gradient of the pixel
            rest[3 * r + c] = color  # what the samples from here to the end of the ray add
    if sparsity > zero:
        for r in range(n_chunk):
            spread[r] = trans[r] * entropy_slope(trans[r])
            if not is_dropped[r]:
                sums[S_LOSS] += sparsity * (spread[r] + trans[r])
        for i in range(kept):
            r, w = peek(k_ray, i), peek(k_weight, i)
            spread[r] += w * entropy_slope(w)
            if not is_dropped[r]:
                sums[S_LOSS] += sparsity * (w * entropy_slope(w) + w)
    for i in range(kept):
        r, w = 3 * peek(k_ray, i), peek(k_weight, i)
        slope = zero
        for c in range(3):
            g, color = peek(pixel, r + c), peek(rgb, 3 * i + c)
            behind = peek(rest, r + c) - w * color
            poke(rest, r + c, behind)
            slope += g * (peek(k_after, i) * color - behind)
            poke(d_rgb, 3 * i + c, g * w * color * (one - color))
        if sparsity > zero:
            r = peek(k_ray, i)
            behind = spread[r] - w * entropy_slope(w)
            spread[r] = behind
            if not is_dropped[r]:
                slope += sparsity * ray_scale * (peek(k_after, i) * entropy_slope(w) - behind)
        poke(d_raw, i, peek(k_slope, i) * slope)


@part
def backward_blocks(
    kept, d_rgb, d_raw, k_features, row, k_color_in, hidden1, hidden2, density_net, color_net, out_row,
    raw, g_out, g_hidden, g_hidden2, g_geometry, d_hidden, g_features, grad_pairs, x_pairs, own, n_levels, n_features,
    d_features, d_stride, base,
):  # fmt: skip
    """Both networks' backward pass for a chunk: adds to the thread's weight gradients `own` and writes the
    gradient of the features, level by level, to d_features [level, sample, feature]."""
    w1, w2, w1t, n_width, n_in = density_net[0], density_net[1], density_net[2], density_net[4], density_net[5]
    c1, c2, c3, width = color_net[0], color_net[1], color_net[2], color_net[6]
    p = paired(k_features)
    o2 = n_width * row
    o3 = o2 + N_GEOMETRY * n_width
    o4 = o3 + width * N_COLOR_IN
    o5 = o4 + width * width
    zero = np.float32(0.0)
    for begin in range(0, kept, ROWS):
        n = min(ROWS, kept - begin)
        for s in range(n):
            for c in range(3):
                poke(raw, s * out_row + c, peek(d_rgb, (begin + s) * 3 + c))
            poke(raw, s * out_row + 3, zero)
        put(raw, 0, g_out, 0, n * out_row)
        h1, h2 = begin * width, begin * width
        # colour network, last layer to first
        weight_gradient(g_out, 0, out_row, hidden2, h2, width, own, o5, 3, n, grad_pairs, x_pairs)
        product_gate(
            g_out, 0, out_row, p, c3, 0, p * width, g_hidden, 0, width, n, width, (2 + p) // p, hidden2, h2
        )
        weight_gradient(g_hidden, 0, width, hidden1, h1, width, own, o4, width, n, grad_pairs, x_pairs)
        product_gate(
            g_hidden, 0, width, p, c2, 0, p * width, g_hidden2, 0, width, n, width, width // p, hidden1, h1
        )
        weight_gradient(
            g_hidden2, 0, width, k_color_in, begin * N_COLOR_IN, N_COLOR_IN, own, o3, width, n, grad_pairs, x_pairs
        )
        # only the geometry half of the input has a gradient worth computing
        product_store(
            g_hidden2, 0, width, p, c1, 0, p * N_COLOR_IN, raw, 0, N_GEOMETRY, n, N_GEOMETRY, width // p, own, 0
        )
        for s in range(n):
            poke(raw, s * N_GEOMETRY, peek(raw, s * N_GEOMETRY) + peek(d_raw, begin + s))
        put(raw, 0, g_geometry, 0, n * N_GEOMETRY)
        # density network
        product_relu(
            k_features, begin * row, row, p, w1t, 0, p * n_width, d_hidden, 0, n_width, n, n_width,
            (n_in + p - 1) // p, own, 0,
        )  # fmt: skip
        weight_gradient(g_geometry, 0, N_GEOMETRY, d_hidden, 0, n_width, own, o2, N_GEOMETRY, n, grad_pairs, x_pairs)
        product_gate(
            g_geometry, 0, N_GEOMETRY, p, w2, 0, p * n_width, g_hidden, 0, n_width, n, n_width, N_GEOMETRY // p,
            d_hidden, 0,
        )  # fmt: skip
        weight_gradient(g_hidden, 0, n_width, k_features, begin * row, row, own, 0, n_width, n, grad_pairs, x_pairs)
        product_store(
            g_hidden, 0, n_width, p, w1, 0, p * row, g_features, 0, row, n, row, n_width // p, own, 0
        )
        for level in range(n_levels):
            for s in range(n):
                to = (level * d_stride + base + begin + s) * n_features
                if n_features == 4:
                    store4(d_features, to, load4(g_features, s * row + level * 4))
                else:
                    for f in range(n_features):
                        poke(d_features, to + f, peek(g_features, s * row + level * n_features + f))


@kernel
def _train(
    rays, scene, net, table, n_features, levels, scales, options, work, own_weights, kept_positions, d_features,
    kept_counts, sums, thread, threads,
):  # fmt: skip
    """March, evaluate, composite and differentiate; see `hashfield.ops.train_rays`.

    rays: origin, direction [n, 3], t_min, t_max, jitter [n], target [n, 4], background [n, 3].
    scene: words, coarse, n_cascades, steps, box_min, 1/side. options: min_transmittance, min_weight, huber_delta,
    weight of the entropy, bias, whether density is a ReLU, 1/n_rays, rays to a chunk, samples to a chunk.
    """
    origin, direction, t_min, t_max, jitter, target, background = rays
    words, coarse, n_cascades, steps, box_min, inverse_side = scene
    density_net, color_net, out_row, row = net
    min_transmittance, min_weight, huber_delta, sparsity, bias, is_relu, ray_scale, chunk_rays, chunk_samples = options
    n_rays = t_min.size
    n_levels = scales.size
    mode = flush_denormals()
    begin_tiles()
    (
        positions, w_t, w_dt, w_tau, w_alpha, features, geometry, d_hidden, index, weight,
        k_features, k_color_in, hidden1, hidden2, k_scalars, k_ray, out, g_out, g_hidden, g_hidden2, g_geometry,
        g_features, grad_pairs, x_pairs, r_floats, r_next, r_alive, r_counts, r_flags, harmonic,
    ) = work  # fmt: skip
    positions, w_t, w_dt, w_tau = positions[thread], w_t[thread], w_dt[thread], w_tau[thread]
    w_alpha, features, geometry = w_alpha[thread], features[thread], geometry[thread]
    d_hidden, index, weight = d_hidden[thread], index[thread], weight[thread]
    k_features, k_color_in, k_ray = k_features[thread], k_color_in[thread], k_ray[thread]
    hidden1, hidden2 = hidden1[thread], hidden2[thread]
    k_slope, k_weight = k_scalars[thread, 0], k_scalars[thread, 1]
    k_after, d_raw = k_scalars[thread, 2], k_scalars[thread, 3]
    rgb, d_rgb = k_scalars[thread, 4:7].reshape(-1), k_scalars[thread, 7:10].reshape(-1)
    out, g_out, g_hidden, g_hidden2 = out[thread], g_out[thread], g_hidden[thread], g_hidden2[thread]
    grad_pairs, x_pairs = grad_pairs[thread], x_pairs[thread]
    g_geometry, g_features = g_geometry[thread], g_features[thread]
    trans, pixel, rest = r_floats[thread, 0], r_floats[thread, 1:4].reshape(-1), r_floats[thread, 4:7].reshape(-1)
    spread = r_floats[thread, 7]
    n_next, alive, counts = r_next[thread], r_alive[thread], r_counts[thread]
    ended, is_cut, is_dropped = r_flags[thread, 0], r_flags[thread, 1], r_flags[thread, 2]
    harmonic = harmonic[thread]
    own, own_sums = own_weights[thread], sums[thread]
    own_positions, own_d_features = kept_positions[thread], d_features[thread]
    k_stride = own_positions.size // 3
    capacity = k_stride - 2 * BLOCK
    stride = positions.size // 3
    used = 0
    own[:] = np.float32(0.0)
    own_sums[:] = 0.0
    last = share(n_rays, thread + 1, threads)
    for first_ray in range(share(n_rays, thread, threads), last, chunk_rays):
        room = min(chunk_samples, capacity - used)
        if room < min(chunk_samples, capacity) // 2:
            break  # the rays that are left are not part of this step
        n_chunk = min(chunk_rays, last - first_ray)
        n_alive = 0
        for r in range(n_chunk):
            ray = first_ray + r
            trans[r] = np.float32(1.0)
            ended[r] = is_cut[r] = is_dropped[r] = False
            harmonics(direction[ray, 0], direction[ray, 1], direction[ray, 2], 4, out, 0)
            put(out, 0, harmonic, r * N_DIRECTION, N_DIRECTION)
            if t_max[ray] > t_min[ray]:
                n_next[r] = steps_from_t(np.float64(t_min[ray]), steps) + np.float64(jitter[ray])
                alive[n_alive] = r
                n_alive += 1
        kept, wave = 0, 0
        while n_alive > 0:
            quota = WAVES[min(wave, WAVES.size - 1)]
            if n_alive * quota > room - kept:
                quota = max(1, (room - kept) // n_alive)
                while n_alive > room - kept:  # not even one sample each: later rays give up so that earlier ones end
                    n_alive -= 1
                    is_dropped[alive[n_alive]] = True
                if n_alive == 0:
                    break
            clock0 = cycles()
            m = march_wave(
                origin, direction, t_max, first_ray, alive, n_alive, quota, n_next, ended, counts, words, coarse,
                n_cascades, steps, box_min, inverse_side, positions, stride, w_t, w_dt,
            )  # fmt: skip
            clock1 = cycles()
            own_sums[S_MARCHED] += m
            if m:
                density_wave(
                    positions, stride, m, table, n_features, levels, scales, index, weight, features, row,
                    density_net, d_hidden, out, geometry, w_dt, w_tau, w_alpha, bias, is_relu,
                )  # fmt: skip
            clock2 = cycles()
            kept, n_alive = compact(
                alive, n_alive, counts, ended, trans, is_cut, is_dropped, min_transmittance, min_weight, is_relu, kept,
                features, row, geometry, harmonic, w_t, w_dt, w_tau, w_alpha, positions, stride,
                k_features, k_color_in, k_ray, k_slope, k_weight, k_after, own_positions, k_stride, used,
            )  # fmt: skip
            own_sums[S_STAGES] += clock1 - clock0
            own_sums[S_STAGES + 1] += clock2 - clock1
            own_sums[S_STAGES + 2] += cycles() - clock2
            wave += 1
        clock0 = cycles()
        color_blocks(k_color_in, kept, color_net, hidden1, hidden2, out, out_row, rgb)
        clock1 = cycles()
        composite_chunk(
            n_chunk, first_ray, kept, rgb, k_ray, k_weight, k_after, k_slope, trans, is_cut, is_dropped, pixel,
            rest, target, background, huber_delta, sparsity, spread, ray_scale, d_rgb, d_raw, own_sums,
        )  # fmt: skip
        clock2 = cycles()
        backward_blocks(
            kept, d_rgb, d_raw, k_features, row, k_color_in, hidden1, hidden2, density_net, color_net, out_row,
            out, g_out, g_hidden, g_hidden2, g_geometry, d_hidden, g_features, grad_pairs, x_pairs, own, n_levels,
            n_features, own_d_features, k_stride, used,
        )  # fmt: skip
        own_sums[S_STAGES + 3] += clock1 - clock0
        own_sums[S_STAGES + 4] += clock2 - clock1
        own_sums[S_STAGES + 5] += cycles() - clock2
        used += kept
    own_sums[S_KEPT] = used
    kept_counts[thread] = used
    for i in range(used, used + 2 * BLOCK):
        own_positions[i] = own_positions[k_stride + i] = own_positions[2 * k_stride + i] = np.float32(0.0)
    end_tiles()
    restore_denormals(mode)


@kernel
def _add_table_gradient(
    kept_positions, d_features, kept_counts, grad, n_features, levels, scales, index, weight, parts, thread, threads
):
    """Add every kept sample's feature gradient to the table's; each level (or part of one) has one writer."""
    n_levels = scales.size
    mode = flush_denormals()
    n_tasks = n_levels * parts
    for turn in range((n_tasks + threads - 1) // threads):
        task = task_at(turn, n_tasks, thread, threads)
        if task < 0:
            break
        level, piece = task % n_levels, task // n_levels
        size = levels[level, 1]
        low, high = share(size, piece, parts), share(size, piece + 1, parts)
        if parts == 1:
            high = -1  # the whole level: nothing to compare
        for segment in range(kept_counts.size):
            stride = kept_positions.shape[1] // 3
            add_level(
                kept_positions[segment], 3, stride, 0, kept_counts[segment], grad, n_features, levels, scales,
                False, level, low, high, d_features[segment], level * stride * n_features, n_features,
                index[thread], weight[thread],
            )  # fmt: skip
    restore_denormals(mode)


# --- entry point -------------------------------------------------------------------------------------------

CHUNK_SAMPLES = 12288  # kept samples a chunk has room for
CHUNK_TARGET = 1536  # and is meant to have


class Buffers:
    """Buffers of the training kernels, kept from step to step so that no step pays for fresh pages."""

    def __init__(self, layout, width: int, max_samples: int, threads: int, precision: str):
        self.threads, self.capacity = threads, -(-max_samples // threads)
        row = round_up(layout.n_output, PAD)
        chunk_rays = 1024
        wave = kept = round_up(CHUNK_SAMPLES, ROWS)  # a wave never takes more samples than there is room to keep
        out_row = round_up(3, PAD)
        corner_slots = (2 * BLOCK) << 3

        def floats(*shape):
            return np.zeros((threads, *shape), np.float32)

        def stored(*shape):
            return np.zeros((threads, *shape), storage(precision))

        def pairs(*shape):
            return np.zeros((threads, *shape), np.uint16)

        self.chunk_rays = chunk_rays
        self.work = (
            floats(3 * (wave + 2 * BLOCK)), floats(wave + 16), floats(wave + 16), floats(wave + 16),
            floats(wave + 16), stored(wave * row),
            stored(wave * N_GEOMETRY), stored(ROWS * width), np.zeros((threads, corner_slots), np.uint32),
            floats(corner_slots), stored(kept * row), stored(kept * N_COLOR_IN), stored(kept * width),
            stored(kept * width), floats(10, kept + 16), np.zeros((threads, kept), np.int64),
            floats(ROWS * max(out_row, 16)), stored(ROWS * out_row), stored(ROWS * width), stored(ROWS * width),
            stored(ROWS * N_GEOMETRY), floats(ROWS * row), pairs(ROWS * width), pairs(ROWS * max(width, row, N_COLOR_IN)),
            floats(8, chunk_rays), np.zeros((threads, chunk_rays)),
            np.zeros((threads, chunk_rays), np.int64), np.zeros((threads, chunk_rays), np.int64),
            np.zeros((threads, 3, chunk_rays), np.bool_), stored(chunk_rays * N_DIRECTION),
        )  # fmt: skip
        self.kept_positions = floats(3 * (self.capacity + 2 * BLOCK))
        self.d_features = floats(layout.n_output * (self.capacity + 2 * BLOCK))
        self.kept_counts = np.zeros(threads, np.int64)
        self.sums = np.zeros((threads, S_STAGES + len(STAGES)))
        self.index, self.weight = np.zeros((threads, corner_slots), np.uint32), floats(corner_slots)


def make_buffers(field, max_samples: int) -> Buffers:
    """Buffers for one field and the present number of threads."""
    width = max(field.density_weights[0].shape[0], field.color_weights[0].shape[0])
    return Buffers(field.layout, width, max_samples, n_threads(), field.precision)


def train_rays(
    field, batch, bits, options, workspace, huber_delta: float, sparsity: float, wants_ray_gradients: bool
) -> dict:
    """See `hashfield.ops.train_rays`; adds to workspace.grad_table."""
    assert batch.weight is None and not wants_ray_gradients, "the op leaves such calls to others"
    rays = batch.rays
    buffers: Buffers = workspace.buffers
    layout, threads = field.layout, buffers.threads
    net, density_packing, color_packing = pack_networks(field.density_weights, field.color_weights, field.precision)
    n_rays = rays.n_rays
    own = np.empty((threads, density_packing.n_values + color_packing.n_values), np.float32)
    chunk_rays = int(min(buffers.chunk_rays, max(4, CHUNK_TARGET / max(workspace.samples_per_ray, 1.0))))
    box_min, side = 0.5 - 0.5 * options.aabb_scale, float(options.aabb_scale)
    table = lookup_table(field)
    levels = level_table(layout)
    launch(
        _train,
        tuple(as_array(x.contiguous()) for x in (rays.origin, rays.direction, rays.t_min, rays.t_max, batch.jitter,
                                                 batch.target, batch.background)),
        (*as_words(bits), options.aabb_scale.bit_length(), lattice(options.cone_angle, options.step_scale),
         box_min, 1.0 / side),
        net, table, layout.n_features_per_level, levels, layout.scales,
        (np.float32(options.min_transmittance), np.float32(options.min_weight), np.float32(huber_delta),
         np.float32(sparsity), np.float32(field.density_bias), field.density_activation == "relu",
         np.float32(1.0 / max(n_rays, 1)), chunk_rays, min(CHUNK_SAMPLES, buffers.capacity)),
        buffers.work, own, buffers.kept_positions, buffers.d_features, buffers.kept_counts, buffers.sums,
        threads=threads,
    )  # fmt: skip
    launch(
        _add_table_gradient, buffers.kept_positions, buffers.d_features, buffers.kept_counts,
        as_array(workspace.grad_table).reshape(-1), layout.n_features_per_level, levels, layout.scales,
        buffers.index, buffers.weight, -(-threads // layout.n_levels),
        threads=threads,
    )  # fmt: skip
    sums = buffers.sums.sum(axis=0)
    used = max(sums[S_RAYS], 1.0)
    workspace.samples_per_ray = float(sums[S_KEPT] / used)
    total = own.sum(axis=0)
    split = density_packing.n_values
    return {
        "loss": float(sums[S_LOSS] / used), "squared_error": float(sums[S_ERROR] / (3 * used)),
        "n_rays": int(sums[S_RAYS]), "n_marched": int(sums[S_MARCHED]), "n_kept": int(sums[S_KEPT]),
        "grad_density_weights": density_packing.unpack(total[:split]),
        "grad_color_weights": color_packing.unpack(total[split:]),
        "stage_cycles": dict(zip(STAGES, map(float, sums[S_STAGES:]), strict=True)),
        "ray_gradients": None,
    }  # fmt: skip

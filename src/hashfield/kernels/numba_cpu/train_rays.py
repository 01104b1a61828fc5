"""One training step of a radiance field on CPUs, from rays to gradients, without leaving the cache.

Each thread walks its share of the rays in chunks: march and density in waves, colour for what is kept,
composite, loss, and both networks' backward pass, while everything the chunk needs is still in L2. What crosses
to the second kernel is, for each kept sample, its position and the gradient of its features; there every level
of the table is added to by one thread. Nothing depends on timing: same seed, same threads, same bits. Where the gradients
of rays are wanted, a kernel of its own sums over the samples what they say about origin and direction.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.common import (
    PerThread,
    as_array,
    flush_denormals,
    kernel,
    launch,
    n_threads,
    part,
    restore_denormals,
    round_up,
    share,
)
from hashfield.kernels.numba_cpu.encoders import add_position_gradient, encoder_scratch
from hashfield.kernels.numba_cpu.field import (
    N_COLOR_IN,
    N_DIRECTION,
    N_GEOMETRY,
    STEEPEST,
    WAVES,
    RayState,
    Scratch,
    Wave,
    color_blocks,
    density_wave,
    empty_wave,
    march_wave,
    ray_state,
)
from hashfield.kernels.numba_cpu.gradients import Gradients, by_level
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import field_encoder
from hashfield.kernels.numba_cpu.march import first_step, march_of, ray_arrays
from hashfield.kernels.numba_cpu.mlp import (
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
from hashfield.kernels.numba_cpu.ray_loss import (
    DEPTH_SUMS,
    NEAREST,
    S_ERROR,
    S_KEPT,
    S_LOSS,
    S_MARCHED,
    S_RAYS,
    RayLoss,
    Settings,
    Wanted,
    composite_chunk,
)
from hashfield.kernels.numba_cpu.simd import LANES, cycles, load, peek, poke, store
from hashfield.kernels.numba_cpu.spherical_harmonics import harmonics, harmonics_gradient

STAGES = ("march", "encode + density", "compact", "color", "composite", "backward", "table gradient")
S_STAGES = 5  # time stamps that each thread spends per stage follow the sums


class Chunk(NamedTuple):
    """The kept samples of a chunk of rays, wave after wave."""

    features: Any
    """[samples, row]"""
    color_in: Any
    """[samples, 32]: the density network's outputs and the direction's harmonics."""
    hidden1: Any
    """[samples, width]: the colour network's first hidden layer."""
    hidden2: Any
    ray: Any
    """[samples]: number within the chunk."""
    distance: Any
    """[samples]: t along the ray."""
    depth: Any
    """[samples]: the logarithm of that, where losses on depth need it."""
    slope: Any
    """[samples]: d tau / d raw density."""
    weight: Any
    """[samples]: part of the ray's light that the sample stops."""
    transmittance: Any
    """[samples]: light that is left behind the sample."""
    d_raw: Any
    """[samples]: gradient to the raw density."""
    rgb: Any
    """[samples, 3]: raw colour, then colour."""
    d_rgb: Any
    """[samples, 3]: gradient to the raw colour."""


class Backward(NamedTuple):
    """Memory of the backward pass of one block."""

    g_out: Any
    """[ROWS, outputs]: gradient to the colour network's outputs."""
    g_hidden: Any
    """[ROWS, width]"""
    g_hidden2: Any
    """[ROWS, width]"""
    g_geometry: Any
    """[ROWS, 16]: gradient to the density network's outputs."""
    g_features: Any
    """[ROWS, row]"""
    grad_pairs: Any
    """See `mlp.weight_gradient`."""
    x_pairs: Any


class Tracked(NamedTuple):
    """What a step keeps of its rays only if their gradients are wanted; else the arrays are empty.

    Not None then: a training kernel of its own would be compiled for that. The first three arrays are written by all
    threads, each ray by one.
    """

    is_wanted: bool
    color: Any
    """[n, 3]: rendered colour, background included."""
    grad_color: Any
    """[n, 3]"""
    harmonics: Any
    """[n, 16]: gradient to the harmonics of each ray's direction."""
    g_harmonics: Any
    """[ROWS, 16]: the same of a block's samples."""
    ray: Any
    """[samples]: number of each kept sample's ray."""
    distance: Any
    """[samples]: t along that ray."""


class Own(NamedTuple):
    """What one thread works in, and what it leaves behind."""

    state: RayState
    wave: Wave
    loss: RayLoss
    chunk: Chunk
    scratch: Scratch
    backward: Backward
    weights: Any
    """Gradients of the matrices, one after another as they are packed."""
    positions: Any
    """Planes of all kept samples."""
    features: Any
    """[level, sample, feature]: gradients of the kept samples' features."""
    count: Any
    """[1]: samples that were kept."""
    sums: Any
    """See `ray_loss.S_LOSS`."""


@part
def compact(state, loss, wave, chunk, n_alive, kept, settings, positions, base, tracked):
    """Keep the wave's samples that light still reaches; returns (kept, living rays).

    Those kept before are chunk's first `kept`; their positions go to the planes from `base` on.
    """
    alive, counts, ended = state.alive, state.counts, state.ended
    transmittances, harmonic = state.transmittance, state.harmonics
    is_cut, is_dropped = loss.is_cut, loss.is_dropped
    min_transmittance, min_weight, is_relu = settings.min_transmittance, settings.min_weight, settings.is_relu
    tau, alpha, dt, geometry, features = wave.tau, wave.alpha, wave.dt, wave.geometry, wave.features
    row, stride, kept_stride = wave.row, wave.positions.size // 3, positions.size // 3
    i, living = 0, 0
    for k in range(n_alive):
        r = peek(alive, k)
        transmittance = peek(transmittances, r)
        for j in range(i, i + peek(counts, k)):
            if transmittance < min_transmittance:
                is_cut[r] = True
                break
            opaque = peek(alpha, j)
            w = transmittance * opaque
            if w < min_weight or (is_relu and opaque <= np.float32(0.0)):
                # Too faint to matter to the pixel, and its gradient is smaller still; its shade remains.
                transmittance *= np.float32(1.0) - opaque
                continue
            put(features, j * row, chunk.features, kept * row, row)
            put(geometry, j * N_GEOMETRY, chunk.color_in, kept * N_COLOR_IN, N_GEOMETRY)
            put(harmonic, r * N_DIRECTION, chunk.color_in, kept * N_COLOR_IN + N_GEOMETRY, N_DIRECTION)
            poke(chunk.ray, kept, r)
            poke(chunk.slope, kept, peek(dt, j) if is_relu else min(peek(tau, j), STEEPEST * peek(dt, j)))
            poke(chunk.weight, kept, w)
            transmittance *= np.float32(1.0) - opaque
            poke(chunk.transmittance, kept, transmittance)
            for axis in range(3):
                poke(positions, axis * kept_stride + base + kept, peek(wave.positions, axis * stride + j))
            poke(chunk.distance, kept, peek(wave.t, j))
            kept += 1
        i += peek(counts, k)
        poke(transmittances, r, transmittance)
        if transmittance < min_transmittance:
            is_cut[r] = True
        if not (is_cut[r] or is_dropped[r] or ended[r]):
            poke(alive, living, r)
            living += 1
    return kept, living


@part
def backward_blocks(first_ray, kept, density, color, encoder, chunk, scratch, backward, own, d_features, base, tracked):
    """Both networks' backward pass for a chunk: adds to the thread's weight gradients `own` and writes the
    gradient of the features, level by level, to d_features [level, sample, feature] from sample `base` on."""
    features, color_in, hidden1, hidden2 = chunk.features, chunk.color_in, chunk.hidden1, chunk.hidden2
    d_hidden, sums = scratch.hidden, scratch.sums
    g_out, g_hidden, g_hidden2 = backward.g_out, backward.g_hidden, backward.g_hidden2
    g_geometry, g_features = backward.g_geometry, backward.g_features
    grad_pairs, x_pairs = backward.grad_pairs, backward.x_pairs
    row, n_width, width, out_row = density.row, density.width, color.width, color.out_row
    p = paired(features)
    o2 = n_width * row
    o3 = o2 + N_GEOMETRY * n_width
    o4 = o3 + width * N_COLOR_IN
    o5 = o4 + width * width
    zero = np.float32(0.0)
    for begin in range(0, kept, ROWS):
        n = min(ROWS, kept - begin)
        for s in range(n):
            for c in range(3):
                poke(sums, s * out_row + c, peek(chunk.d_rgb, (begin + s) * 3 + c))
            poke(sums, s * out_row + 3, zero)
        put(sums, 0, g_out, 0, n * out_row)
        h1, h2 = begin * width, begin * width
        # colour network, last layer to first
        weight_gradient(g_out, 0, out_row, hidden2, h2, width, own, o5, 3, n, grad_pairs, x_pairs)
        product_gate(
            g_out, 0, out_row, p, color.w3, 0, p * width, g_hidden, 0, width, n, width, (2 + p) // p, hidden2, h2
        )
        weight_gradient(g_hidden, 0, width, hidden1, h1, width, own, o4, width, n, grad_pairs, x_pairs)
        product_gate(
            g_hidden, 0, width, p, color.w2, 0, p * width, g_hidden2, 0, width, n, width, width // p, hidden1, h1
        )
        weight_gradient(
            g_hidden2, 0, width, color_in, begin * N_COLOR_IN, N_COLOR_IN, own, o3, width, n, grad_pairs, x_pairs
        )
        if tracked.is_wanted:
            product_store(
                g_hidden2, 0, width, p, color.w1, p * N_GEOMETRY, p * N_COLOR_IN,
                tracked.g_harmonics, 0, N_DIRECTION, n, N_DIRECTION, width // p, own, 0,
            )  # fmt: skip
            for s in range(n):
                to = (first_ray + peek(chunk.ray, begin + s)) * N_DIRECTION
                for c in range(0, N_DIRECTION, LANES):
                    term = load(tracked.g_harmonics, s * N_DIRECTION + c)
                    store(tracked.harmonics, to + c, load(tracked.harmonics, to + c) + term)
        # else only the geometry half of the input has a gradient worth computing
        product_store(
            g_hidden2, 0, width, p, color.w1, 0, p * N_COLOR_IN, sums, 0, N_GEOMETRY, n, N_GEOMETRY, width // p, own, 0
        )
        for s in range(n):
            poke(sums, s * N_GEOMETRY, peek(sums, s * N_GEOMETRY) + peek(chunk.d_raw, begin + s))
        put(sums, 0, g_geometry, 0, n * N_GEOMETRY)
        # density network
        product_relu(
            features, begin * row, row, p, density.w1t, 0, p * n_width, d_hidden, 0, n_width, n, n_width,
            (density.n_in + p - 1) // p, own, 0,
        )  # fmt: skip
        weight_gradient(g_geometry, 0, N_GEOMETRY, d_hidden, 0, n_width, own, o2, N_GEOMETRY, n, grad_pairs, x_pairs)
        product_gate(
            g_geometry, 0, N_GEOMETRY, p, density.w2, 0, p * n_width, g_hidden, 0, n_width, n, n_width, N_GEOMETRY // p,
            d_hidden, 0,
        )  # fmt: skip
        weight_gradient(g_hidden, 0, n_width, features, begin * row, row, own, 0, n_width, n, grad_pairs, x_pairs)
        product_store(
            g_hidden, 0, n_width, p, density.w1, 0, p * row, g_features, 0, row, n, row, n_width // p, own, 0
        )
        by_level(g_features, row, n, encoder, d_features, base + begin)


@kernel
def _train(rays, wanted, march, density, color, encoder, settings, own, tracked, thread, threads):
    """March, evaluate, composite and differentiate; see `hashfield.ops.train_rays`."""
    state, wave, loss, chunk, sums = own.state, own.wave, own.loss, own.chunk, own.sums
    scratch = Scratch(encoder_scratch(encoder), own.scratch.hidden, own.scratch.sums)
    alive, direction, positions = state.alive, rays.direction, own.positions
    n_rays = rays.t_min.size
    mode = flush_denormals()
    begin_tiles()
    stride = positions.size // 3
    capacity = stride - 2 * BLOCK
    used = 0
    own.weights[:] = np.float32(0.0)
    sums[:] = 0.0
    last = share(n_rays, thread + 1, threads)
    for first_ray in range(share(n_rays, thread, threads), last, settings.chunk_rays):
        room = min(settings.chunk_samples, capacity - used)
        if room < min(settings.chunk_samples, capacity) // 2:
            break  # the rays that are left are not part of this step
        n_chunk = min(settings.chunk_rays, last - first_ray)
        n_alive = 0
        for r in range(n_chunk):
            ray = first_ray + r
            state.transmittance[r] = np.float32(1.0)
            state.ended[r] = loss.is_cut[r] = False
            loss.is_dropped[r] = wanted.weight[ray] == np.float32(0.0)
            harmonics(direction[ray, 0], direction[ray, 1], direction[ray, 2], 4, scratch.sums, 0)
            put(scratch.sums, 0, state.harmonics, r * N_DIRECTION, N_DIRECTION)
            if rays.t_max[ray] > rays.t_min[ray] and not loss.is_dropped[r]:
                state.next_step[r] = first_step(rays, ray, march.steps)
                alive[n_alive] = r
                n_alive += 1
        kept, turn = 0, 0
        while n_alive > 0:
            quota = WAVES[min(turn, WAVES.size - 1)]
            if n_alive * quota > room - kept:
                quota = max(1, (room - kept) // n_alive)
                while n_alive > room - kept:  # not even one sample each: later rays give up so that earlier ones end
                    n_alive -= 1
                    loss.is_dropped[alive[n_alive]] = True
                if n_alive == 0:
                    break
            clock0 = cycles()
            m = march_wave(rays, march, state, first_ray, n_alive, quota, wave)
            clock1 = cycles()
            sums[S_MARCHED] += m
            if m:
                density_wave(encoder, density, wave, m, scratch, settings.density_bias, settings.is_relu)
            clock2 = cycles()
            kept, n_alive = compact(state, loss, wave, chunk, n_alive, kept, settings, positions, used, tracked)
            sums[S_STAGES] += clock1 - clock0
            sums[S_STAGES + 1] += clock2 - clock1
            sums[S_STAGES + 2] += cycles() - clock2
            turn += 1
        clock0 = cycles()
        color_blocks(color, chunk.color_in, kept, chunk.hidden1, chunk.hidden2, scratch.sums, chunk.rgb)
        clock1 = cycles()
        composite_chunk(first_ray, n_chunk, kept, chunk, state, loss, wanted, settings, sums, tracked)
        clock2 = cycles()
        backward_blocks(
            first_ray, kept, density, color, encoder, chunk, scratch, own.backward, own.weights, own.features, used,
            tracked,
        )  # fmt: skip
        if tracked.is_wanted:
            for i in range(kept):
                poke(tracked.ray, used + i, first_ray + peek(chunk.ray, i))
                poke(tracked.distance, used + i, peek(chunk.distance, i))
        sums[S_STAGES + 3] += clock1 - clock0
        sums[S_STAGES + 4] += clock2 - clock1
        sums[S_STAGES + 5] += cycles() - clock2
        used += kept
    sums[S_KEPT] = used
    own.count[0] = used
    for i in range(used, used + 2 * BLOCK):
        positions[i] = positions[stride + i] = positions[2 * stride + i] = np.float32(0.0)
    end_tiles()
    restore_denormals(mode)


class Gathered(NamedTuple):
    """What a thread of the kernel below reads and writes."""

    tracked: Tracked
    positions: Any
    """See `Own`."""
    features: Any
    count: Any
    grad: Any
    """Planes: gradients to the unit positions of all kept samples."""
    sums: Any
    grad_origin: Any
    """[n, 3]: written by all threads, each ray by one."""
    grad_direction: Any
    """[n, 3]"""


@kernel
def _gather_ray_gradients(direction, inverse_side, encoder, gathered, thread, threads):
    """Sum the gradients to the samples' positions, and those to the harmonics, over the samples of each ray."""
    tracked, positions, features, grad = gathered.tracked, gathered.positions, gathered.features, gathered.grad
    grad_origin, grad_direction = gathered.grad_origin, gathered.grad_direction
    stride, step, kept = positions.size // 3, features.size // encoder.n_levels, gathered.count[0]
    n_rays, side = direction.shape[0], np.float32(inverse_side)
    mode = flush_denormals()
    clock = cycles()
    scratch = encoder_scratch(encoder)
    for axis in range(3):
        for i in range(kept + BLOCK):  # whole blocks are added to
            poke(grad, axis * stride + i, np.float32(0.0))
    for begin in range(0, kept, GATHERED):
        end = min(kept, begin + GATHERED)
        add_position_gradient(
            encoder, positions, begin, end, features, 0, step, encoder.n_features, grad, scratch
        )
        for i in range(begin, end):
            ray, t = peek(tracked.ray, i), peek(tracked.distance, i)
            for axis in range(3):
                slope = peek(grad, axis * stride + i) * side
                grad_origin[ray, axis] += slope
                grad_direction[ray, axis] += t * slope
    for ray in range(share(n_rays, thread, threads), share(n_rays, thread + 1, threads)):
        x, y, z = harmonics_gradient(
            direction[ray, 0], direction[ray, 1], direction[ray, 2], 4, tracked.harmonics, ray * N_DIRECTION
        )
        grad_direction[ray, 0] += x
        grad_direction[ray, 1] += y
        grad_direction[ray, 2] += z
    gathered.sums[S_STAGES + 5] += cycles() - clock
    restore_denormals(mode)


# --- entry point -------------------------------------------------------------------------------------------

CHUNK_RAYS = 1024  # rays that a chunk has room for
CHUNK_SAMPLES = 12288  # kept samples a chunk has room for
CHUNK_TARGET = 1536  # and is meant to have
GATHERED = 12 * BLOCK  # samples whose gradients are gathered at a time, while they are in cache


UNTRACKED = Tracked(
    False, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32),
    np.zeros(0, np.int64), np.zeros(0, np.float32),
)  # fmt: skip


class Buffers:
    """Buffers of the training kernels, kept from step to step so that no step pays for fresh pages."""

    def __init__(self, field, max_samples: int, threads: int):
        """Make room for `max_samples` kept samples of a field."""
        density, color, density_packing, color_packing = pack_networks(field)
        self.threads, self.capacity = threads, -(-max_samples // threads)
        length = self.capacity + 2 * BLOCK
        n_weights = density_packing.n_values + color_packing.n_values
        self.gradients = Gradients(threads, n_weights, field.layout.n_output, threads, length)
        self.positions = np.zeros((threads, 3 * length), np.float32)
        self.sums = np.zeros((threads, S_STAGES + len(STAGES)))
        self._kept_of_rays: list[tuple] = []  # made when first asked for
        self.own = PerThread(self._own(k, density, color, storage(field.precision)) for k in range(threads))

    def tracked(self, color: np.ndarray, grad_color: np.ndarray) -> PerThread:
        """What keeps the rays of a step, given the arrays [n, 3] that their colours and the gradients of these go to."""
        if not self._kept_of_rays:
            length = self.positions.shape[1] // 3
            self._kept_of_rays = [
                (np.zeros(ROWS * N_DIRECTION, np.float32), np.zeros(length, np.int64), np.zeros(length, np.float32))
                for _ in range(self.threads)
            ]
            self.grad_positions = np.zeros_like(self.positions)
        harmonic = np.zeros(len(color) * N_DIRECTION, np.float32)
        return PerThread(Tracked(True, color, grad_color, harmonic, *memory) for memory in self._kept_of_rays)

    def _own(self, thread: int, density, color, kind: type) -> Own:
        n, width = round_up(CHUNK_SAMPLES, ROWS), max(density.width, color.width)

        def floats(size: int) -> np.ndarray:
            return np.zeros(size, np.float32)

        def flags() -> np.ndarray:
            return np.zeros(CHUNK_RAYS, np.bool_)

        def stored(size: int) -> np.ndarray:
            return np.zeros(size, kind)

        return Own(
            state=ray_state(CHUNK_RAYS, kind),
            wave=empty_wave(n, density.row, kind),  # a wave never takes more samples than there is room to keep
            loss=RayLoss(
                flags(), flags(), floats(3 * CHUNK_RAYS), floats(3 * CHUNK_RAYS), floats(CHUNK_RAYS),
                floats(DEPTH_SUMS * CHUNK_RAYS),
            ),
            chunk=Chunk(
                features=stored(n * density.row), color_in=stored(n * N_COLOR_IN), hidden1=stored(n * width),
                hidden2=stored(n * width), ray=np.zeros(n, np.int64), distance=floats(n), depth=floats(n), slope=floats(n), weight=floats(n),
                transmittance=floats(n), d_raw=floats(n), rgb=floats(3 * n + LANES), d_rgb=floats(3 * n),
            ),
            scratch=Scratch(None, stored(ROWS * width), floats(ROWS * max(color.out_row, N_GEOMETRY))),
            backward=Backward(
                g_out=stored(ROWS * color.out_row), g_hidden=stored(ROWS * width), g_hidden2=stored(ROWS * width),
                g_geometry=stored(ROWS * N_GEOMETRY), g_features=floats(ROWS * density.row),
                grad_pairs=np.zeros(ROWS * width, np.uint16),
                x_pairs=np.zeros(ROWS * max(width, density.row, N_COLOR_IN), np.uint16),
            ),
            weights=self.gradients.weights[thread], positions=self.positions[thread],
            features=self.gradients.features[thread], count=self.gradients.counts[thread : thread + 1],
            sums=self.sums[thread],
        )  # fmt: skip


def make_buffers(field, max_samples: int) -> Buffers:
    """Buffers for one field and the present number of threads."""
    return Buffers(field, max_samples, n_threads())


def train_rays(
    field, batch, bits, options, workspace, huber_delta: float, sparsity: float, depth,
    wants_ray_gradients: bool,
) -> dict:  # fmt: skip
    """See `hashfield.ops.train_rays`; adds to workspace.grad_table."""
    buffers: Buffers = workspace.buffers
    rays, n_rays, gradients = batch.rays, batch.n_rays, buffers.gradients
    density, color, density_packing, color_packing = pack_networks(field)
    encoder = field_encoder(field)
    numbers = (options.min_transmittance, options.min_weight, huber_delta, sparsity, *depth, field.density_bias)
    settings = Settings(
        *map(np.float32, numbers),
        field.density_activation == "relu", np.float32(1.0 / max(n_rays, 1)),
        int(min(CHUNK_RAYS, max(4, CHUNK_TARGET / max(workspace.samples_per_ray, 1.0)))),
        min(CHUNK_SAMPLES, buffers.capacity),
    )  # fmt: skip
    target, background = as_array(batch.target.contiguous()), as_array(batch.background.contiguous())
    # Arrays in any case, not None: a kernel of its own would be compiled for that.
    weight = np.ones(n_rays, np.float32) if batch.weight is None else as_array(batch.weight.contiguous())
    log_distance = trust = np.zeros(0, np.float32)
    if batch.distance is not None:
        log_distance = as_array(batch.distance.clamp(min=float(NEAREST)).log().contiguous())
        trust = as_array(batch.trust.contiguous())
    found = tuple(torch.zeros(n_rays, 3) for _ in range(4)) if wants_ray_gradients else None
    tracked = UNTRACKED if found is None else buffers.tracked(as_array(found[0]), as_array(found[1]))
    arrays, marched = ray_arrays(rays, batch.jitter), march_of(bits, options.aabb_scale, options.cone_angle, options.step_scale)
    launch(
        _train, arrays, Wanted(target, background, weight, log_distance, trust), marched, density, color, encoder,
        settings, buffers.own, tracked,
        threads=buffers.threads,
    )  # fmt: skip
    if found is not None:
        own = zip(tracked, buffers.own, buffers.grad_positions, strict=True)
        launch(
            _gather_ray_gradients, arrays.direction, marched.inverse_side, encoder,
            PerThread(
                Gathered(kept, mine.positions, mine.features, mine.count, grad, mine.sums, *map(as_array, found[2:]))
                for kept, mine, grad in own
            ),
            threads=buffers.threads,
        )  # fmt: skip
    gradients.add_to_table(
        encoder, buffers.positions, workspace.grad_table, buffers.sums, workspace.plan
    )  # fmt: skip
    sums = buffers.sums.sum(axis=0)
    used = max(sums[S_RAYS], 1.0)
    workspace.samples_per_ray = float(sums[S_KEPT] / used)
    total = gradients.weights.sum(axis=0)
    split = density_packing.n_values
    return {
        "loss": float(sums[S_LOSS] / used), "squared_error": float(sums[S_ERROR] / (3 * used)),
        "n_rays": int(sums[S_RAYS]), "n_marched": int(sums[S_MARCHED]), "n_kept": int(sums[S_KEPT]),
        "grad_density_weights": density_packing.unpack(total[:split]),
        "grad_color_weights": color_packing.unpack(total[split:]),
        "stage_cycles": dict(zip(STAGES, map(float, sums[S_STAGES:]), strict=True)),
        "ray_gradients": found,
    }  # fmt: skip

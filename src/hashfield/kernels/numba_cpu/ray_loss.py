"""What a training step on CPUs says about its rays: composited colours, their loss, and its gradient at every sample."""

from typing import Any, NamedTuple

import numpy as np

from hashfield.kernels.numba_cpu.common import inline, part, sigmoid
from hashfield.kernels.numba_cpu.simd import LANES, load, peek, poke, store

# Sums that each thread reports.
S_LOSS, S_ERROR, S_MARCHED, S_KEPT, S_RAYS = range(5)
# Distances below this, the finest step, are not told apart by the losses on depth.
NEAREST = np.float32(np.sqrt(3.0) / 1024.0)


class Wanted(NamedTuple):
    """What each ray should see."""

    target: Any
    """[n, 4]: straight alpha."""
    background: Any
    """[n, 3]"""
    weight: Any
    """[n]: how much each ray counts."""
    log_distance: Any
    """[n]: the logarithm of the distance at which something is known to be; empty where nothing is known of any ray."""
    trust: Any
    """[n]: weight of the loss that draws the ray there; empty with it."""


class Settings(NamedTuple):
    """Numbers of a step."""

    min_transmittance: np.float32
    min_weight: np.float32
    huber_delta: np.float32
    sparsity: np.float32
    distortion: np.float32
    nearness: np.float32
    log_horizon: np.float32
    tolerance: np.float32
    density_bias: np.float32
    is_relu: bool
    """Whether the density is a ReLU of the network's output; else its exponential."""
    ray_scale: np.float32
    """One over the number of rays given."""
    chunk_rays: int
    """Rays that a thread takes at a time."""
    chunk_samples: int
    """Samples that these may keep."""


class RayLoss(NamedTuple):
    """What becomes of each ray of a chunk, by its number within the chunk."""

    is_cut: Any
    """[rays]: whether too little light is left for anything behind to matter."""
    is_dropped: Any
    """[rays]: whether it has no part in the step: there was no room for it, or its weight is 0."""
    pixel: Any
    """[rays, 3]: composited colour, then the gradient of the loss to it."""
    behind: Any
    """[rays, 3]: colour that the samples from one to the end of the ray add, background included."""
    entropy_behind: Any
    """[rays]: the same of the entropy's channel; see `composite_chunk`."""
    depth_sums: Any
    """[rays, 5]: sums over a ray's samples for the losses on depth; see `pull`."""


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
    """The slope d(-w log w)/dw, bounded where w is 0."""
    return -np.log(max(w, np.float32(1e-20))) - np.float32(1.0)


DEPTH_SUMS = 5  # sums of a ray: w, w log t, the same two of the samples before, and w times the slope to it of those behind


@inline
def pull(depth_sums, at, w, m):
    """The slope of the distortion loss to the weight w of a ray's next sample, which lies at log t = m: twice the
    distance to every other sample, times that one's weight. Adds the sample to those before."""
    before, moment_before = peek(depth_sums, at + 2), peek(depth_sums, at + 3)
    behind = peek(depth_sums, at) - before - w
    moment_behind = peek(depth_sums, at + 1) - moment_before - w * m
    poke(depth_sums, at + 2, before + w)
    poke(depth_sums, at + 3, moment_before + w * m)
    return np.float32(2.0) * ((m * before - moment_before) + (moment_behind - m * behind))


@inline
def way_to_known(log_distance, trust, ray, m, tolerance):
    """What a unit of weight at log t = m costs for lying elsewhere than where something is known to be."""
    if log_distance.size == 0:
        return np.float32(0.0)
    return trust[ray] * max(np.float32(0.0), abs(m - log_distance[ray]) - tolerance)


@part
def composite_chunk(first_ray, n_chunk, kept, chunk, state, loss, wanted, settings, sums, tracked):
    """Pixel colours, their loss, and its gradient at every kept sample's raw colour and raw density.

    `sparsity` times the entropy of a ray's weights and of the light it has left is part of the loss. To the densities
    it is one more channel: a sample's "colour" in it is d(-w log w)/dw = -log w - 1. So is `distortion` times the spread
    of a ray's weights over log t, `nearness` times what they lack to the horizon, and where distances are known, the way
    to these; all without a background.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    rgb, d_rgb, pixel, behind, entropy_behind = chunk.rgb, chunk.d_rgb, loss.pixel, loss.behind, loss.entropy_behind
    rays, weights, transmittances = chunk.ray, chunk.weight, chunk.transmittance
    left, is_cut, is_dropped = state.transmittance, loss.is_cut, loss.is_dropped
    target, background, ray_scale, sparsity = wanted.target, wanted.background, settings.ray_scale, settings.sparsity
    for i in range(0, kept * 3, LANES):
        store(rgb, i, sigmoid(load(rgb, i)))
    for r in range(n_chunk):
        pixel[3 * r] = pixel[3 * r + 1] = pixel[3 * r + 2] = zero
    for i in range(kept):
        r, w = 3 * peek(rays, i), peek(weights, i)
        for c in range(3):
            poke(pixel, r + c, peek(pixel, r + c) + w * peek(rgb, 3 * i + c))
    for r in range(n_chunk):
        ray = first_ray + r
        if is_dropped[r]:
            for c in range(3):
                pixel[3 * r + c] = behind[3 * r + c] = zero
            continue
        sums[S_RAYS] += 1.0
        opacity, counts = target[ray, 3], wanted.weight[ray]
        for c in range(3):
            color = pixel[3 * r + c]
            if not is_cut[r]:
                color += left[r] * background[ray, c]
            wish = target[ray, c] * opacity + background[ray, c] * (one - opacity)
            value, slope = loss_and_slope(color - wish, settings.huber_delta)
            sums[S_LOSS] += counts * value
            sums[S_ERROR] += counts * ((color - wish) * (color - wish))
            pixel[3 * r + c] = counts * (slope * ray_scale)  # from here on the gradient of the pixel
            behind[3 * r + c] = color
            if tracked.is_wanted:
                tracked.color[ray, c], tracked.grad_color[ray, c] = color, pixel[3 * r + c]
    if sparsity > zero:
        for r in range(n_chunk):
            entropy_behind[r] = left[r] * entropy_slope(left[r])
            if not is_dropped[r]:
                counts = wanted.weight[first_ray + r]
                sums[S_LOSS] += counts * (sparsity * (entropy_behind[r] + left[r]))
        for i in range(kept):
            r, w = peek(rays, i), peek(weights, i)
            entropy_behind[r] += w * entropy_slope(w)
            if not is_dropped[r]:
                counts = wanted.weight[first_ray + r]
                sums[S_LOSS] += counts * (sparsity * (w * entropy_slope(w) + w))
    distortion, nearness, log_horizon = settings.distortion, settings.nearness, settings.log_horizon
    has_depth = distortion > zero or nearness > zero or wanted.log_distance.size > 0
    log_distance, trust, tolerance, depth_sums = wanted.log_distance, wanted.trust, settings.tolerance, loss.depth_sums
    if has_depth:
        depth_sums[: DEPTH_SUMS * n_chunk] = zero
        for i in range(kept):
            r, w = DEPTH_SUMS * peek(rays, i), peek(weights, i)
            poke(depth_sums, r, peek(depth_sums, r) + w)
            m = np.log(max(peek(chunk.distance, i), NEAREST))
            poke(chunk.depth, i, m)
            poke(depth_sums, r + 1, peek(depth_sums, r + 1) + w * m)
        for i in range(kept):
            r, w, m = peek(rays, i), peek(weights, i), peek(chunk.depth, i)
            at = DEPTH_SUMS * r
            force, near = distortion * pull(depth_sums, at, w, m), nearness * max(zero, log_horizon - m)
            near += way_to_known(log_distance, trust, first_ray + r, m, tolerance)
            poke(depth_sums, at + 4, peek(depth_sums, at + 4) + w * (force + near))
            if not is_dropped[r]:
                # Every pair's share is counted from both of its ends.
                counts = wanted.weight[first_ray + r]
                sums[S_LOSS] += counts * w * (np.float32(0.5) * force + near)
        for r in range(n_chunk):
            depth_sums[DEPTH_SUMS * r + 2] = depth_sums[DEPTH_SUMS * r + 3] = zero
    for i in range(kept):
        r, w = 3 * peek(rays, i), peek(weights, i)
        slope = zero
        for c in range(3):
            g, color = peek(pixel, r + c), peek(rgb, 3 * i + c)
            rest = peek(behind, r + c) - w * color
            poke(behind, r + c, rest)
            slope += g * (peek(transmittances, i) * color - rest)
            poke(d_rgb, 3 * i + c, g * w * color * (one - color))
        if sparsity > zero:
            r = peek(rays, i)
            rest = entropy_behind[r] - w * entropy_slope(w)
            entropy_behind[r] = rest
            if not is_dropped[r]:
                counts = wanted.weight[first_ray + r]
                slope += counts * (sparsity * ray_scale * (peek(transmittances, i) * entropy_slope(w) - rest))
        if has_depth:
            r, m = peek(rays, i), peek(chunk.depth, i)
            force = distortion * pull(depth_sums, DEPTH_SUMS * r, w, m) + nearness * max(zero, log_horizon - m)
            force += way_to_known(log_distance, trust, first_ray + r, m, tolerance)
            rest = peek(depth_sums, DEPTH_SUMS * r + 4) - w * force
            poke(depth_sums, DEPTH_SUMS * r + 4, rest)
            if not is_dropped[r]:
                counts = wanted.weight[first_ray + r]
                slope += counts * (ray_scale * (peek(transmittances, i) * force - rest))
        poke(chunk.d_raw, i, peek(chunk.slope, i) * slope)

"""Compositing packed samples to ray colours on CPUs, forward and backward. One thread owns a ray."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    kernel,
    launch,
    restore_denormals,
    share,
)


class Samples(NamedTuple):
    """What is composited: packed samples of n rays and the colour behind each ray."""

    color: Any
    """[samples, 3]"""
    density: Any
    """[samples]"""
    t: Any
    """[samples]"""
    dt: Any
    """[samples]"""
    offsets: Any
    """[n + 1]: where each ray's samples begin."""
    background: Any
    """[n, 3]"""


class Composited(NamedTuple):
    """What comes of it, or the gradients to that."""

    color: Any
    """[n, 3]"""
    opacity: Any
    """[n]"""
    depth: Any
    """[n]"""
    weight: Any
    """[samples]"""


@kernel
def _forward(samples, min_transmittance, found, thread, threads):
    color, density, t, dt, offsets, background = samples
    out, opacity, depth, weight = found
    n_rays = offsets.size - 1
    mode = flush_denormals()
    for ray in range(share(n_rays, thread, threads), share(n_rays, thread + 1, threads)):
        transmittance = np.float32(1.0)
        r = g = b = opaque = distance = np.float32(0.0)
        is_cut = False
        for i in range(offsets[ray], offsets[ray + 1]):
            if transmittance < min_transmittance:
                is_cut = True
            if is_cut:
                weight[i] = np.float32(0.0)
                continue
            alpha = -np.expm1(-density[i] * dt[i])
            w = transmittance * alpha
            weight[i] = w
            r += w * color[i, 0]
            g += w * color[i, 1]
            b += w * color[i, 2]
            opaque += w
            distance += w * t[i]
            transmittance *= np.float32(1.0) - alpha
        if not is_cut:
            r += transmittance * background[ray, 0]
            g += transmittance * background[ray, 1]
            b += transmittance * background[ray, 2]
        out[ray, 0], out[ray, 1], out[ray, 2] = r, g, b
        opacity[ray], depth[ray] = opaque, distance
    restore_denormals(mode)


@kernel
def _backward(samples, min_transmittance, weight, cotangent, d_color, d_density, d_background, thread, threads):
    """With a value v_i = d_out.c_i + d_opacity + d_depth t_i + d_weight_i for every sample, the ray's objective
    is sum w_i v_i + T d_out.background, hence dL/d(density_i) = dt_i (T_{i+1} v_i - sum_{j>i} w_j v_j - T v_bg).
    """
    color, density, t, dt, offsets, background = samples
    d_out, d_opacity, d_depth, d_weight = cotangent
    n_rays = offsets.size - 1
    mode = flush_denormals()
    for ray in range(share(n_rays, thread, threads), share(n_rays, thread + 1, threads)):
        gr, gg, gb = d_out[ray, 0], d_out[ray, 1], d_out[ray, 2]
        transmittance = np.float32(1.0)
        rest = np.float32(0.0)
        is_cut = False
        for i in range(offsets[ray], offsets[ray + 1]):
            if transmittance < min_transmittance:
                is_cut = True
                break
            value = gr * color[i, 0] + gg * color[i, 1] + gb * color[i, 2]
            value += d_opacity[ray] + d_depth[ray] * t[i] + d_weight[i]
            rest += weight[i] * value
            transmittance *= np.exp(-density[i] * dt[i])
        if not is_cut:
            value = gr * background[ray, 0] + gg * background[ray, 1] + gb * background[ray, 2]
            rest += transmittance * value
            d_background[ray, 0], d_background[ray, 1] = transmittance * gr, transmittance * gg
            d_background[ray, 2] = transmittance * gb
        else:
            d_background[ray, 0] = d_background[ray, 1] = d_background[ray, 2] = np.float32(0.0)
        transmittance = np.float32(1.0)
        is_cut = False
        for i in range(offsets[ray], offsets[ray + 1]):
            if transmittance < min_transmittance:
                is_cut = True
            if is_cut:
                d_color[i, 0] = d_color[i, 1] = d_color[i, 2] = d_density[i] = np.float32(0.0)
                continue
            w = weight[i]
            value = gr * color[i, 0] + gg * color[i, 1] + gb * color[i, 2]
            value += d_opacity[ray] + d_depth[ray] * t[i] + d_weight[i]
            d_color[i, 0], d_color[i, 1], d_color[i, 2] = w * gr, w * gg, w * gb
            transmittance *= np.exp(-density[i] * dt[i])
            rest -= w * value
            d_density[i] = dt[i] * (transmittance * value - rest)
    restore_denormals(mode)


def composite_forward(color, density, t, dt, ray_offsets, background, min_transmittance: float):
    """Colour, opacity, depth of every ray and weight of every sample; see `hashfield.ops.composite`."""
    n_rays, n_samples = ray_offsets.shape[0] - 1, t.shape[0]
    out, opacity, depth = torch.empty((n_rays, 3)), torch.empty(n_rays), torch.empty(n_rays)
    weight = torch.empty(n_samples)
    if n_rays:
        samples = Samples(*map(as_array, (color, density, t, dt, ray_offsets, background)))
        found = Composited(*map(as_array, (out, opacity, depth, weight)))
        launch(_forward, samples, np.float32(min_transmittance), found)
    return out, opacity, depth, weight


def composite_backward(
    color, density, t, dt, ray_offsets, background, min_transmittance: float,
    grad_color, grad_opacity, grad_depth, grad_weight,
):  # fmt: skip
    """Gradients to the samples' colour and density and to the background."""
    n_rays = ray_offsets.shape[0] - 1
    *_, weight = composite_forward(color, density, t, dt, ray_offsets, background, min_transmittance)
    d_color, d_density, d_background = (torch.empty_like(x) for x in (color, density, background))
    if n_rays:
        samples = Samples(*map(as_array, (color, density, t, dt, ray_offsets, background)))
        cotangent = Composited(*map(as_array, (grad_color, grad_opacity, grad_depth, grad_weight)))
        launch(
            _backward, samples, np.float32(min_transmittance), as_array(weight), cotangent,
            *map(as_array, (d_color, d_density, d_background)),
        )  # fmt: skip
    return d_color, d_density, d_background

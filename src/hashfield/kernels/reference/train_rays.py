"""Reference of a training step: the composition of the small references; its gradients are autograd's."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hashfield.geometry.rays import RayBatch, Rays
from hashfield.kernels.reference.render_rays import (
    FieldFunctions,
    LitSamples,
    all_densities,
    lit_samples,
    shade_rays,
    small_references,
)


def make_buffers(field: Any, max_samples: int) -> None:
    """The reference keeps no buffers."""


def huber(difference: Float[Tensor, "*shape"], delta: float) -> Float[Tensor, "*shape"]:
    """Squared error for delta 0, else a fifth of Huber's loss: d^2 / (2 delta), or |d| - delta / 2 beyond it."""
    if delta <= 0.0:
        return difference.square()
    size = difference.abs()
    return 0.2 * torch.where(size <= delta, difference.square() / (2 * delta), size - 0.5 * delta)


def entropy(weight: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-w log w of each weight; a weight of 0 adds nothing and gets no gradient."""
    safe = torch.where(weight > 0, weight, 1.0)
    return -safe * safe.log()


NEAREST = math.sqrt(3) / 1024
"""Distance in scene units, the finest step, below which the losses on depth tell no distances apart."""


def distortion_of(
    weight: Float[Tensor, " n_samples"], t: Float[Tensor, " n_samples"], ray_offsets: Int64[Tensor, " n_offsets"]
) -> Float[Tensor, " n_rays"]:
    """Sum over pairs (i, j) of each ray's samples of w_i w_j |log t_i - log t_j|.

    Args:
        weight: Weights of the samples, sorted by ray, then by distance.
        t: Their distances.
        ray_offsets: Where each ray's samples begin.
    """
    counts = ray_offsets[1:] - ray_offsets[:-1]
    n, longest = len(counts), int(counts.max()) if len(counts) else 0
    ray = torch.repeat_interleave(torch.arange(n, device=weight.device), counts)
    place = torch.arange(len(weight), device=weight.device) - ray_offsets[ray]
    zeros = weight.new_zeros(n, longest)
    w = zeros.index_put((ray, place), weight)
    moment = w * zeros.index_put((ray, place), t.clamp(min=NEAREST).log())
    before, moment_before = w.cumsum(1) - w, moment.cumsum(1) - moment
    return 2 * (moment * before - w * moment_before).sum(1)


def train_rays(
    field: Any, batch: RayBatch, bits: Tensor, options: Any, workspace: Any, huber_delta: float, sparsity: float,
    depth: Any, wants_ray_gradients: bool,
) -> dict[str, Any]:  # fmt: skip
    """See `hashfield.ops.train_rays`."""
    return composed_step(
        field, batch, bits, options, workspace, huber_delta, sparsity, depth, wants_ray_gradients, small_references
    )


@torch.enable_grad()
def composed_step(
    field: Any, batch: RayBatch, bits: Tensor, options: Any, workspace: Any, huber_delta: float, sparsity: float,
    depth: Any, wants_ray_gradients: bool, functions_of: Callable[[Any], FieldFunctions],
    densities: Any = all_densities,
) -> dict[str, Any]:  # fmt: skip
    """A training step put together from small functions. Rays take part in order, until the workspace is full.

    Args:
        field: FieldParameters.
        batch: Rays and what they should see.
        bits: Occupied cells.
        options: MarchOptions.
        workspace: TrainWorkspace; its grad_table is added to.
        depth: DepthLosses.
        huber_delta, sparsity: See `hashfield.ops.train_rays`.
        wants_ray_gradients: Whether the result has them.
        functions_of: How a field is asked; applied to a copy whose tensors are leaves of autograd.
        densities: See `lit_samples`.
    """
    n_given, rays = batch.n_rays, batch.rays
    source = field.table if field.table_bf16 is None else field.table_bf16.to(field.table.dtype)
    split = 1 + len(field.density_weights)
    leaves = [x.detach().clone().requires_grad_() for x in (source, *field.density_weights, *field.color_weights)]
    functions = functions_of(
        replace(
            field, table=leaves[0], table_bf16=None, density_weights=tuple(leaves[1:split]),
            color_weights=tuple(leaves[split:]),
        )
    )  # fmt: skip
    # Rays of weight 0 are left out before anything is spent on them, then those whose samples do not fit.
    part = torch.arange(n_given, device=rays.origin.device)
    if batch.weight is not None:
        part = part[batch.weight > 0]
    samples = lit_samples(functions, _some(rays, part), bits, options, batch.jitter[part], densities)
    samples, n = _that_fit(samples, workspace.max_samples)
    part = part[:n]
    some = _some(rays, part)
    origin, direction = (x.detach().requires_grad_(wants_ray_gradients) for x in (some.origin, some.direction))
    some = replace(some, origin=origin, direction=direction)
    target, background = batch.target[part], batch.background[part]
    weight = torch.ones_like(some.t_min) if batch.weight is None else batch.weight[part]

    seen = shade_rays(functions, some, samples, background, options)
    alpha = target[:, 3:]
    difference = seen.color - (target[:, :3] * alpha + background * (1 - alpha))
    loss = huber(difference, huber_delta).sum(1)
    if sparsity > 0.0:
        loss = loss + sparsity * entropy(seen.transmittance).index_add(0, samples_ray(samples), entropy(seen.weight))
    if depth.distortion > 0.0:
        loss = loss + depth.distortion * distortion_of(seen.weight, samples.t, samples.ray_offsets)
    if depth.nearness > 0.0:
        near = seen.weight * (depth.log_horizon - samples.t.clamp(min=NEAREST).log()).clamp(min=0.0)
        loss = loss + depth.nearness * torch.zeros_like(loss).index_add(0, samples_ray(samples), near)
    if batch.distance is not None:
        ray, place = samples_ray(samples), samples.t.clamp(min=NEAREST).log()
        off = (place - batch.distance[part].clamp(min=NEAREST).log()[ray]).abs()
        moved = seen.weight * (off - depth.tolerance).clamp(min=0.0)
        loss = loss + batch.trust[part] * torch.zeros_like(loss).index_add(0, ray, moved)
    total = (weight * loss).sum()
    wanted = [*leaves, seen.color, origin, direction] if wants_ray_gradients else leaves
    grads = torch.autograd.grad(total / max(n_given, 1), wanted, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, wanted, strict=True)]
    workspace.grad_table += grads[0]
    n_kept = int(samples.is_kept.sum())
    workspace.samples_per_ray = n_kept / max(n, 1)
    ray_gradients = None
    if wants_ray_gradients:
        zeros = torch.zeros_like(rays.origin)
        ray_gradients = tuple(zeros.index_copy(0, part, x) for x in (seen.color.detach(), *grads[len(leaves) :]))
    return {
        "loss": float(total.detach()) / max(n, 1), "n_rays": n,
        "squared_error": float((weight[:, None] * difference.detach().square()).mean()) if n else 0.0,
        "n_marched": samples.n_asked, "n_kept": n_kept, "grad_density_weights": grads[1:split],
        "grad_color_weights": grads[split : len(leaves)], "stage_cycles": {}, "ray_gradients": ray_gradients,
    }  # fmt: skip


def samples_ray(samples: LitSamples) -> Int64[Tensor, " n_samples"]:
    """The ray each sample belongs to."""
    counts = samples.ray_offsets[1:] - samples.ray_offsets[:-1]
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _some(rays: Rays, part: Tensor) -> Rays:
    return Rays(rays.origin[part], rays.direction[part], rays.t_min[part], rays.t_max[part])


def _that_fit(samples: LitSamples, max_samples: int) -> tuple[LitSamples, int]:
    """The samples of the rays, from the first on, of which no more than `max_samples` are kept, and their number."""
    before = torch.nn.functional.pad(torch.cumsum(samples.is_kept, 0), (1, 0))
    n = int((before[samples.ray_offsets] <= max_samples).sum()) - 1
    m = int(samples.ray_offsets[n])
    fewer = LitSamples(
        t=samples.t[:m], dt=samples.dt[:m], ray_offsets=samples.ray_offsets[: n + 1], density=samples.density[:m],
        is_kept=samples.is_kept[:m], n_asked=samples.n_asked,
    )  # fmt: skip
    return fewer, n

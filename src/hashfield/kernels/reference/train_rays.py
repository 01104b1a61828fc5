"""Reference of a training step: the composition of the small references; its gradients are autograd's."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hashfield.geometry.rays import RayBatch, Rays
from hashfield.kernels.reference.march import march
from hashfield.kernels.reference.render_rays import evaluate_rays


def make_buffers(field: Any, max_samples: int) -> None:
    """The reference keeps no buffers."""


def huber(difference: Tensor, delta: float) -> Tensor:
    """Squared error for delta 0, else a fifth of Huber's loss: d^2 / (2 delta), or |d| - delta / 2 beyond it."""
    if delta <= 0.0:
        return difference.square()
    size = difference.abs()
    return 0.2 * torch.where(size <= delta, difference.square() / (2 * delta), size - 0.5 * delta)


def entropy(weight: Tensor) -> Tensor:
    """Sum of -w log w; a weight of 0 adds nothing and gets no gradient."""
    weight = weight[weight > 0]
    return -(weight * weight.log()).sum()


@torch.enable_grad()
def train_rays(
    field: Any, batch: RayBatch, bits: Tensor, options: Any, workspace: Any, huber_delta: float, sparsity: float,
    wants_ray_gradients: bool,
) -> dict[str, Any]:  # fmt: skip
    """See `hashfield.ops.train_rays`. Rays are taken in order until the workspace is full."""
    assert batch.weight is None and not wants_ray_gradients, "the op refuses such calls"
    rays, target, background, jitter = batch.rays, batch.target, batch.background, batch.jitter
    _, _, offsets = march(
        rays.origin, rays.direction, rays.t_min, rays.t_max, bits, options.aabb_scale, options.cone_angle,
        options.step_scale, jitter,
    )  # fmt: skip
    n = rays.n_rays
    while n > 0 and int(offsets[n]) > 16 * workspace.max_samples:
        n = n // 2  # what does not fit in memory is not part of this step
    rays = Rays(rays.origin[:n], rays.direction[:n], rays.t_min[:n], rays.t_max[:n])
    target, background, jitter = target[:n], background[:n], jitter[:n]
    source = field.table if field.table_bf16 is None else field.table_bf16.to(field.table.dtype)
    table = source.detach().clone().requires_grad_()
    density = tuple(w.detach().clone().requires_grad_() for w in field.density_weights)
    color = tuple(w.detach().clone().requires_grad_() for w in field.color_weights)
    leaf = replace(field, table=table, table_bf16=None, density_weights=density, color_weights=color)
    pixel, _, _, weight, left = evaluate_rays(leaf, rays, bits, options, jitter, background)
    alpha = target[:, 3:]
    difference = pixel - (target[:, :3] * alpha + background * (1 - alpha))
    loss = huber(difference, huber_delta).sum() / max(n, 1)
    if sparsity > 0.0:
        loss = loss + sparsity * (entropy(weight) + entropy(left)) / max(n, 1)
    grads = torch.autograd.grad(loss, (table, *density, *color), allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip((table, *density, *color), grads, strict=True)]
    workspace.grad_table += grads[0]
    kept = int((weight > 0).sum())
    workspace.samples_per_ray = kept / max(n, 1)
    return {
        "loss": float(loss.detach()), "n_rays": n,
        "squared_error": float(difference.detach().square().mean()) if n else 0.0,
        "n_marched": int(offsets[n]), "n_kept": kept, "grad_density_weights": grads[1:3],
        "grad_color_weights": grads[3:], "stage_cycles": {}, "ray_gradients": None,
    }  # fmt: skip

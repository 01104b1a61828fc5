"""One training step of a radiance field on GPUs, from rays to gradients, without a word to the host.

`train_waves` marches the rays and gathers the samples that matter. Here these are coloured, composited, compared with the
photos, and sent through the field's backward pass. Every buffer has a fixed size and every count stays on the device, so
that the whole step can be captured in a CUDA graph. Only the table's gradient is summed in an order that is not fixed.

| | kernel | a thread to | reads | leaves |
|---|---|---|---|---|
| | `field_forward` | a sample | positions, directions | colours |
| | `_composite_loss` | a ray | colours, weights, photos | loss, gradients at the samples |
| | `field_backward` | a sample | gradients | gradients of table and matrices |
| asked | `_sum_over_rays` | a ray | gradients of positions, harmonics | gradients of origin, direction |
| | `_finish` | | sums | loss, counts, rays of the next step |
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import n_cascades_of
from hashfield.kernels.triton_gpu.common import count_of, launch
from hashfield.kernels.triton_gpu.composite import load3, store3
from hashfield.kernels.triton_gpu.field import DeviceField, field_backward, field_forward, scratch_width
from hashfield.kernels.triton_gpu.march import N_LATTICE, Bits, as_words, lattice_values, ray_block
from hashfield.kernels.triton_gpu.render_rays import device_field
from hashfield.kernels.triton_gpu.spherical_harmonics import direction_gradients
from hashfield.kernels.triton_gpu.train_waves import DROPPED, WAVES, Batch, Box, Room, march_and_cut

N_STATS = 6
"""Numbers a step reports: loss, squared error, rays that took part, kept samples, marched samples, rays of the next."""
NEAREST = tl.constexpr(math.sqrt(3) / 1024)  # below this, the finest step, losses on depth tell no distances apart


# --- records -------------------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """What a ray's loss is made of."""

    min_transmittance: float
    """Less light than this counts as none."""
    huber_delta: float
    """0: squared error."""
    scale: float
    """What the gradient of a ray's loss is multiplied by; 0 divides by the number of rays instead."""
    distortion: float
    nearness: float
    log_horizon: float
    tolerance: float


class RayBudget(NamedTuple):
    """How many rays the next step gets."""

    target_samples: float
    """Kept samples that it should have."""
    fewest_rays: float
    growth: float
    """At most so many times the rays of this step."""
    most_rays: float


class RayGradientBuffers(NamedTuple):
    """Room for the gradients of a step's rays, which `enqueue` fills."""

    color: Tensor
    grad_color: Tensor
    grad_origin: Tensor
    grad_direction: Tensor
    through_harmonics: Tensor
    """The direction's part of its gradient, through the spherical harmonics."""
    grad_harmonics: Tensor
    grad_positions: Tensor
    """Gradients of each kept sample's position, for the rays' own."""
    grad_sample_harmonics: Tensor
    """Gradients of each kept sample's spherical harmonics."""

    @classmethod
    def of(cls, device: torch.device, max_samples: int, max_rays: int) -> "RayGradientBuffers":
        """Room that is all zeros.

        Args:
            device: Where the buffers lie.
            max_samples: Samples that can be kept.
            max_rays: Rays that can be given.
        """
        sizes = [(max_rays, 3)] * 5 + [(max_rays, 16), (max_samples, 3), (max_samples, 16)]
        return cls(*(torch.zeros(size, device=device) for size in sizes))


class Buffers(Room):
    """Room for a step: fixed, so that a captured step finds it again."""

    def __init__(self, field: DeviceField, max_samples: int, max_rays: int) -> None:
        """Args:
        field: Whose device, sizes and types they have.
        max_samples: Samples that can be kept; twice as many can be marched in each wave.
        max_rays: Rays that can be given.
        """
        device = field.weights.device
        self.lattice, self.stats, self.hyper, self.grad_weights = (
            torch.zeros(n, device=device) for n in (N_LATTICE, N_STATS, 2, field.n_weights)
        )
        self.features, self.grad_features = (
            torch.zeros((max_samples, width), dtype=field.weights.dtype, device=device)
            for width in (field.layout.n_output, scratch_width(field.layout))
        )
        super().__init__(device, max_samples, max_rays)

    def reserve(self, max_rays: int) -> None:
        """Make room for so many rays."""
        super().reserve(max_rays)
        self.n_blocks = triton.cdiv(max_rays, ray_block(max_rays)["BLOCK"])
        self.sums = torch.zeros(4 * self.n_blocks, device=self.device)

    def n_bytes(self) -> int:
        """Memory that the buffers take."""
        own = [x for x in vars(self).values() if isinstance(x, Tensor) and x is not self.n_live]
        return sum(x.numel() * x.element_size() for x in (*own, *self.tensors()))


# --- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def loss_and_slope(difference, delta, HUBER: tl.constexpr):
    """Squared error, or instant-ngp's Huber loss (scaled by 1/5), and its derivative."""
    if not HUBER:
        return difference * difference, 2.0 * difference
    size = tl.abs(difference)
    small = size <= delta
    loss = tl.where(small, 0.1 * difference * difference / delta, 0.2 * (size - 0.5 * delta))
    return loss, tl.where(small, 0.2 * difference / delta, tl.where(difference > 0.0, 0.2, -0.2))


@triton.jit
def log_distance(positions, at, here, box, ox, oy, oz, dx, dy, dz):
    """The logarithm of the distance of samples along their rays, read off where they are."""
    x, y, z = load3(positions, at, here)
    t = (x * box.side + box.low - ox) * dx + (y * box.side + box.low - oy) * dy + (z * box.side + box.low - oz) * dz
    return tl.log(tl.maximum(t, NEAREST))


@triton.jit
def pull(w, m, before, moment_before, total, moment):
    """The slope of the distortion loss to the weight w of a sample at log t = m: twice the distance to every other
    sample of its ray, times that one's weight. Given are the sums of w and w m before it, and over all samples."""
    behind, moment_behind = total - before - w, moment - moment_before - w * m
    return 2.0 * ((m * before - moment_before) + (moment_behind - m * behind))


@triton.jit
def _composite_loss(
    batch, state, samples, box, losses, per_ray, sums, max_blocks, HUBER: tl.constexpr, HAS_DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixel colours, their loss, and its gradient at the colour and log-density of every kept sample; into
    `per_ray`, unless it is None, also each ray's colour and the gradient there, 0 for rays that take no part.

    Gradients are of the sum over the rays, times losses.scale, or where that is 0, divided by the number of rays given.
    """
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(batch.n_rays)
    loss_sum, error_sum, used, coloured = 0.0, 0.0, 0.0, 0.0
    if tl.program_id(0) * BLOCK < n_given:
        transmittance = tl.load(state.transmittances + ray, mask=ray < n_given, other=DROPPED)
        mask = (ray < n_given) & (transmittance >= 0.0)
        count = tl.load(state.kept + ray, mask=mask, other=0)
        first = tl.load(state.kept_ends + ray, mask=mask, other=0) - count
        r, g, b = tl.zeros_like(transmittance), tl.zeros_like(transmittance), tl.zeros_like(transmittance)
        longest = tl.max(count, axis=0)
        for j in range(longest):
            here = mask & (j < count)
            w = tl.load(samples.weights + first + j, mask=here, other=0.0)
            x, y, z = load3(samples.rgb, first + j, here)
            r, g, b = r + w * x, g + w * y, b + w * z
        left = tl.where(transmittance >= losses.min_transmittance, transmittance, 0.0)
        behind_r, behind_g, behind_b = load3(batch.background, ray, mask)
        alpha = tl.load(batch.target + 4 * ray + 3, mask=mask, other=0.0)
        r, g, b = r + left * behind_r, g + left * behind_g, b + left * behind_b
        off_r = r - tl.load(batch.target + 4 * ray, mask=mask, other=0.0) * alpha - behind_r * (1.0 - alpha)
        off_g = g - tl.load(batch.target + 4 * ray + 1, mask=mask, other=0.0) * alpha - behind_g * (1.0 - alpha)
        off_b = b - tl.load(batch.target + 4 * ray + 2, mask=mask, other=0.0) * alpha - behind_b * (1.0 - alpha)
        loss_r, g_r = loss_and_slope(off_r, losses.huber_delta, HUBER)
        loss_g, g_g = loss_and_slope(off_g, losses.huber_delta, HUBER)
        loss_b, g_b = loss_and_slope(off_b, losses.huber_delta, HUBER)
        loss, wrong = loss_r + loss_g + loss_b, off_r * off_r + off_g * off_g + off_b * off_b
        if batch.weight is not None:
            own_weight = tl.load(batch.weight + ray, mask=mask, other=0.0)
            loss, wrong = loss * own_weight, wrong * own_weight
            g_r, g_g, g_b = g_r * own_weight, g_g * own_weight, g_b * own_weight
        weight_sum, moment = tl.zeros_like(transmittance), tl.zeros_like(transmittance)
        bent = tl.zeros_like(transmittance)
        if HAS_DEPTH:
            ox, oy, oz = load3(batch.origin, ray, mask)
            dx, dy, dz = load3(batch.direction, ray, mask)
            if batch.trust is not None:
                known = tl.load(batch.log_distance + ray, mask=mask, other=0.0)
                trust = tl.load(batch.trust + ray, mask=mask, other=0.0)
            for j in range(longest):
                here = mask & (j < count)
                w = tl.load(samples.weights + first + j, mask=here, other=0.0)
                m = log_distance(samples.positions, first + j, here, box, ox, oy, oz, dx, dy, dz)
                weight_sum, moment = weight_sum + w, moment + w * m
            before, moment_before = tl.zeros_like(weight_sum), tl.zeros_like(weight_sum)
            for j in range(longest):
                here = mask & (j < count)
                w = tl.load(samples.weights + first + j, mask=here, other=0.0)
                m = log_distance(samples.positions, first + j, here, box, ox, oy, oz, dx, dy, dz)
                force = losses.distortion * pull(w, m, before, moment_before, weight_sum, moment)
                near = losses.nearness * tl.maximum(losses.log_horizon - m, 0.0)
                if batch.trust is not None:
                    near += trust * tl.maximum(tl.abs(m - known) - losses.tolerance, 0.0)
                before, moment_before, bent = before + w, moment_before + w * m, bent + w * (force + near)
                share = w * (0.5 * force + near)  # every pair's share is counted from both of its ends
                if batch.weight is not None:
                    share = share * own_weight
                loss += share
        loss_sum = tl.sum(tl.where(mask, loss, 0.0), axis=0)
        error_sum = tl.sum(tl.where(mask, wrong, 0.0), axis=0)
        used = tl.sum(mask.to(tl.float32), axis=0)
        coloured = tl.sum(count, axis=0).to(tl.float32)
        scale = tl.where(losses.scale > 0.0, losses.scale, 1.0 / n_given.to(tl.float32))
        g_r, g_g, g_b = g_r * scale, g_g * scale, g_b * scale
        if per_ray is not None:
            given = ray < n_given
            store3(per_ray.color, ray, tl.where(mask, r, 0.0), tl.where(mask, g, 0.0), tl.where(mask, b, 0.0), given)
            store3(
                per_ray.grad_color, ray, tl.where(mask, g_r, 0.0), tl.where(mask, g_g, 0.0), tl.where(mask, g_b, 0.0), given
            )
        force_scale = scale
        if batch.weight is not None:
            force_scale = scale * own_weight
        before, moment_before = tl.zeros_like(weight_sum), tl.zeros_like(weight_sum)
        for j in range(longest):
            here = mask & (j < count)
            w = tl.load(samples.weights + first + j, mask=here, other=0.0)
            after = tl.load(samples.afters + first + j, mask=here, other=0.0)
            x, y, z = load3(samples.rgb, first + j, here)
            r, g, b = r - w * x, g - w * y, b - w * z  # what the samples behind add
            store3(samples.grad_rgb, first + j, w * g_r, w * g_g, w * g_b, here)
            slope = g_r * (after * x - r) + g_g * (after * y - g) + g_b * (after * z - b)
            if HAS_DEPTH:
                m = log_distance(samples.positions, first + j, here, box, ox, oy, oz, dx, dy, dz)
                force = losses.distortion * pull(w, m, before, moment_before, weight_sum, moment)
                force += losses.nearness * tl.maximum(losses.log_horizon - m, 0.0)
                if batch.trust is not None:
                    force += trust * tl.maximum(tl.abs(m - known) - losses.tolerance, 0.0)
                before, moment_before, bent = before + w, moment_before + w * m, bent - w * force
                slope += force_scale * (after * force - bent)
            slope *= tl.load(samples.slopes + first + j, mask=here, other=0.0)
            tl.store(samples.grad_log_density + first + j, slope, mask=here)
    own = sums + tl.program_id(0)
    tl.store(own, loss_sum)
    tl.store(own + max_blocks, error_sum)
    tl.store(own + 2 * max_blocks, used)
    tl.store(own + 3 * max_blocks, coloured)


@triton.jit
def _sum_over_rays(batch, state, samples, box, per_ray, BLOCK: tl.constexpr):
    """Gradient of each ray's origin and, through the positions, of its direction, and the sum of its samples' gradients
    of the spherical harmonics; 0 for rays that take no part. How far a sample is along its ray is read off where it is.
    """
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_given = tl.load(batch.n_rays)
    if tl.program_id(0) * BLOCK < n_given:
        mask = ray < n_given
        part = mask & (tl.load(state.transmittances + ray, mask=mask, other=DROPPED) >= 0.0)
        count = tl.load(state.kept + ray, mask=part, other=0)
        first = tl.load(state.kept_ends + ray, mask=part, other=0) - count
        ox, oy, oz = load3(batch.origin, ray, mask)
        dx, dy, dz = load3(batch.direction, ray, mask)
        columns = tl.arange(0, 16)[None, :]
        harmonics = tl.zeros([BLOCK, 16], tl.float32)
        ax, ay, az = tl.zeros_like(ox), tl.zeros_like(ox), tl.zeros_like(ox)
        bx, by, bz = tl.zeros_like(ox), tl.zeros_like(ox), tl.zeros_like(ox)
        for j in range(tl.max(count, axis=0)):
            here = part & (j < count)
            x, y, z = load3(samples.positions, first + j, here)
            t = (x * box.side + box.low - ox) * dx + (y * box.side + box.low - oy) * dy + (z * box.side + box.low - oz) * dz
            gx, gy, gz = load3(per_ray.grad_positions, first + j, here)
            ax, ay, az = ax + gx, ay + gy, az + gz
            bx, by, bz = bx + t * gx, by + t * gy, bz + t * gz
            at = (first + j)[:, None] * 16 + columns
            harmonics += tl.load(per_ray.grad_sample_harmonics + at, here[:, None], other=0.0)
        store3(per_ray.grad_origin, ray, ax * box.inverse_side, ay * box.inverse_side, az * box.inverse_side, mask)
        store3(per_ray.grad_direction, ray, bx * box.inverse_side, by * box.inverse_side, bz * box.inverse_side, mask)
        tl.store(per_ray.grad_harmonics + ray[:, None] * 16 + columns, harmonics, mask[:, None])


@triton.jit
def _finish(
    sums, n_blocks, n_live, n_waves, n_rays, hyper, stats, budget, loss_scale, ADAPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The step's figures; where ADAPT, the rays of the next step and what the optimiser multiplies gradients by."""
    place = tl.arange(0, BLOCK)
    total, error = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    used, kept = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for begin in range(0, n_blocks, BLOCK):
        at, mask = begin + place, begin + place < n_blocks
        total += tl.load(sums + at, mask=mask, other=0.0)
        error += tl.load(sums + n_blocks + at, mask=mask, other=0.0)
        used += tl.load(sums + 2 * n_blocks + at, mask=mask, other=0.0)
        kept += tl.load(sums + 3 * n_blocks + at, mask=mask, other=0.0)
    n_used, n_kept = tl.sum(used, axis=0), tl.sum(kept, axis=0)
    share = 1.0 / tl.maximum(n_used, 1.0)
    loss = tl.sum(total, axis=0) * share
    marched = tl.sum(tl.load(n_live + 4 * place, mask=place < n_waves, other=0), axis=0)
    given = tl.maximum(tl.load(n_rays), 1)
    wanted = n_used * budget.target_samples / tl.maximum(n_kept, 1.0)
    most = tl.minimum(budget.growth * n_used, wanted)
    following = tl.minimum(tl.maximum(budget.fewest_rays, most), budget.most_rays).to(tl.int32)
    tl.store(stats, loss)
    tl.store(stats + 1, tl.sum(error, axis=0) * share * (1.0 / 3.0))
    tl.store(stats + 2, n_used)
    tl.store(stats + 3, n_kept)
    tl.store(stats + 4, marched.to(tl.float32))
    tl.store(stats + 5, following.to(tl.float32))
    if ADAPT:
        tl.store(n_rays, following)
        good = (tl.abs(loss) < float("inf")) & (n_used > 0.0)
        tl.store(hyper + 1, tl.where(good, 1.0 / (loss_scale * given.to(tl.float32)), 0.0))


# --- on the host ---------------------------------------------------------------------------------------------------


def enqueue(
    field: DeviceField, batch: Batch, bits: Bits, aabb_scale: int, has_cone: bool, buffers: Buffers, grad_table: Tensor,
    losses: Losses, *, min_weight: float, budget: RayBudget | None = None, per_ray: RayGradientBuffers | None = None,
) -> None:  # fmt: skip
    """Launch a whole step up to its gradients; nothing is waited for.

    Args:
        field: DeviceField.
        batch: Rays.
        bits: The occupied ones, see `as_words`.
        aabb_scale: Side of the box.
        has_cone: Whether steps grow with distance; buffers.lattice holds the numbers.
        buffers: Room; results are stats, hyper[1], grad_weights.
        grad_table: Added to.
        losses: What the loss is made of.
        min_weight: As MarchOptions has it.
        budget: Where given, batch.n_rays is set for the next step.
        per_ray: Filled with the rays' colours and gradients (scaled like all others), which cost kernels of their own;
            None: not wanted.
    """
    b, samples, state = buffers, buffers.samples, buffers.state
    block, grid, box = ray_block(b.max_rays), (b.n_blocks,), Box.of(aabb_scale)
    options = {"N_CASCADES": n_cascades_of(aabb_scale), "HAS_CONE": has_cone}
    march_and_cut(field, batch, bits, box, b.lattice, b, losses.min_transmittance, min_weight, grid, options, block)
    field_forward(
        field, samples.positions, samples.directions, samples.n, samples.log_density, samples.rgb, features=b.features
    )
    has_depth = losses.distortion > 0.0 or losses.nearness > 0.0 or batch.trust is not None
    launch(
        _composite_loss, grid, batch, state, samples, box, losses, per_ray, b.sums, b.n_blocks,
        HUBER=losses.huber_delta > 0.0, HAS_DEPTH=has_depth, **block,
    )  # fmt: skip
    b.grad_weights.zero_()
    field_backward(
        field, samples.positions, samples.directions, samples.n, samples.grad_log_density, samples.grad_rgb, grad_table,
        b.grad_weights, features=b.features, grad_features=b.grad_features,
        grad_positions=None if per_ray is None else per_ray.grad_positions,
        grad_harmonics=None if per_ray is None else per_ray.grad_sample_harmonics,
    )  # fmt: skip
    if per_ray is not None:
        launch(_sum_over_rays, grid, batch, state, samples, box, per_ray, **block)
        direction_gradients(batch.direction, batch.n_rays, per_ray.grad_harmonics, per_ray.through_harmonics, 4)
        per_ray.grad_direction[: len(batch.direction)] += per_ray.through_harmonics[: len(batch.direction)]
    launch(
        _finish, (1,), b.sums, b.n_blocks, b.n_live, len(WAVES), batch.n_rays, b.hyper, b.stats,
        budget or RayBudget(0.0, 0.0, 1.0, 0.0), losses.scale, ADAPT=budget is not None, BLOCK=1024, num_warps=4,
    )  # fmt: skip


def make_buffers(field: Any, max_samples: int) -> Buffers:
    """Buffers for one field; room for rays is made when a batch comes."""
    return Buffers(device_field(field), max_samples, 1)


def train_rays(
    field: Any, batch: Any, bits: Tensor, options: Any, workspace: Any, huber_delta: float, sparsity: float,
    depth: Any, wants_ray_gradients: bool,
) -> dict[str, Any]:  # fmt: skip
    """See `hashfield.ops.train_rays`; adds to workspace.grad_table. Waits for the result. Takes no sparsity loss."""
    assert sparsity == 0.0, "the op leaves such calls to others"
    rays, buffers = batch.rays, workspace.buffers
    n, device = rays.n_rays, buffers.device
    if n > buffers.max_rays:
        buffers.reserve(n)
    buffers.lattice.copy_(torch.tensor(lattice_values(options.cone_angle, options.step_scale)))
    given = (rays.origin, rays.direction, rays.t_min, rays.t_max, batch.jitter, batch.target, batch.background)
    weight = None if batch.weight is None else batch.weight.contiguous()
    log_distance = None if batch.distance is None else batch.distance.clamp(min=NEAREST.value).log().contiguous()
    trust = None if batch.trust is None else batch.trust.contiguous()
    batch = Batch(*(x.contiguous() for x in given), count_of(n, device), weight, log_distance, trust)
    per_ray = RayGradientBuffers.of(device, buffers.max_samples, buffers.max_rays) if wants_ray_gradients else None
    losses = Losses(options.min_transmittance, huber_delta, 0.0, *depth)
    enqueue(
        device_field(field), batch, as_words(bits), options.aabb_scale, options.cone_angle > 0.0, buffers,
        workspace.grad_table, losses, min_weight=options.min_weight, per_ray=per_ray,
    )  # fmt: skip
    loss, error, used, kept, marched, _ = buffers.stats.tolist()
    workspace.samples_per_ray = kept / max(used, 1.0)
    weights = [*field.density_weights, *field.color_weights]
    grads = [
        g.view(w.shape).clone()
        for g, w in zip(buffers.grad_weights.split([w.numel() for w in weights]), weights, strict=True)
    ]
    return {
        "loss": loss, "squared_error": error, "n_rays": int(used), "n_kept": int(kept), "n_marched": int(marched),
        "grad_density_weights": grads[:2], "grad_color_weights": grads[2:], "stage_cycles": {},
        "ray_gradients": None if per_ray is None else tuple(
            x[:n] for x in (per_ray.color, per_ray.grad_color, per_ray.grad_origin, per_ray.grad_direction)
        ),
    }  # fmt: skip

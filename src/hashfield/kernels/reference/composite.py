"""Reference of emission-absorption compositing along packed rays, in plain torch."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def composite(
    color: Float[Tensor, "n_samples n_channels"],
    density: Float[Tensor, " n_samples"],
    t: Float[Tensor, " n_samples"],
    dt: Float[Tensor, " n_samples"],
    ray_offsets: Int64[Tensor, " n_offsets"],
    background: Float[Tensor, "n_rays n_channels"],
    min_transmittance: float = 0.0,
) -> tuple[
    Float[Tensor, "n_rays n_channels"],
    Float[Tensor, " n_rays"],
    Float[Tensor, " n_rays"],
    Float[Tensor, " n_samples"],
]:
    """Colour, opacity, depth of each ray and weight of each sample.

    alpha_i = 1 - exp(-density_i dt_i), T_i = product of (1 - alpha_j) before i, w_i = alpha_i T_i;
    colour = sum w_i c_i + T_end * background, opacity = sum w_i, depth = sum w_i t_i. Samples with
    T_i < min_transmittance have weight 0, and a ray that has any gets no background.

    Source: instant-ngp src/testbed_nerf.cu (compute_loss_kernel_train_nerf).
    """
    n_rays, n_samples = ray_offsets.shape[0] - 1, color.shape[0]
    counts = ray_offsets[1:] - ray_offsets[:-1]
    ray = torch.repeat_interleave(torch.arange(n_rays, device=color.device), counts, output_size=n_samples)
    place = torch.arange(n_samples, device=color.device) - ray_offsets[ray]
    thickness = density * dt
    through = _sum_within_ray(thickness, place)
    before = torch.where(place > 0, _shift(through, 1), torch.zeros_like(through))
    transmittance = torch.exp(-before)
    used = transmittance.detach() >= min_transmittance
    weight = torch.where(used, -torch.expm1(-thickness) * transmittance, torch.zeros_like(thickness))

    ended = _any_per_ray(~used, ray, n_rays)
    last = (ray_offsets[1:] - 1).clamp(min=0)
    total = through[last] if n_samples else through.new_zeros(n_rays)
    left = torch.exp(-torch.where(counts > 0, total, torch.zeros_like(total)))
    left = torch.where(ended, torch.zeros_like(left), left)

    out = (left[:, None] * background).index_add(0, ray, weight[:, None] * color)
    zero = weight.new_zeros(n_rays)
    return out, zero.index_add(0, ray, weight), zero.index_add(0, ray, weight * t), weight


def _sum_within_ray(x: Tensor, place: Tensor) -> Tensor:
    # Segmented inclusive scan by doubling. A plain cumsum minus its value at the ray's start would lose the
    # small thicknesses of a ray behind a batch of thick ones.
    longest = int(place.max()) + 1 if place.numel() else 0
    offset = 1
    while offset < longest:
        x = x + torch.where(place >= offset, _shift(x, offset), torch.zeros_like(x))
        offset *= 2
    return x


def _shift(x: Tensor, offset: int) -> Tensor:
    return torch.cat([x.new_zeros(min(offset, x.shape[0])), x[: max(x.shape[0] - offset, 0)]])


def _any_per_ray(
    flag: Bool[Tensor, " n_samples"], ray: Int64[Tensor, " n_samples"], n_rays: int
) -> Bool[Tensor, " n_rays"]:
    return torch.bincount(ray[flag], minlength=n_rays) > 0

"""The encodings that treat each input component by itself, in plain torch, which is their path on every device."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def identity_encode(x: Float[Tensor, "n n_dims"], scale: float, offset: float) -> Float[Tensor, "n n_dims"]:
    """The features x * scale + offset."""
    return x * scale + offset


def frequency_encode(x: Float[Tensor, "n n_dims"], n_frequencies: int) -> Float[Tensor, "n n_output"]:
    """Features sin(2^k pi x_j) and cos(2^k pi x_j): by component j, then frequency k, then sine before cosine."""
    k = torch.arange(n_frequencies, dtype=x.dtype, device=x.device)
    angle = x[:, :, None] * (math.pi * torch.exp2(k))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def triangle_wave_encode(x: Float[Tensor, "n n_dims"], n_frequencies: int) -> Float[Tensor, "n n_output"]:
    """4 |frac(v) - 1/2| - 1 of v = 2^(k-1) x_j + k/4: by component j, then frequency k.

    The slope at v of frequency k is -2^(k+1) where floor(2 v) is even, else 2^(k+1).
    """
    k = torch.arange(n_frequencies, dtype=x.dtype, device=x.device)
    v = x[:, :, None] * torch.exp2(k - 1) + k / 4
    fraction = v - v.detach().floor()
    # Not abs(), whose derivative at the lower kink, where floor(2 v) is odd, is 0.
    wave = torch.where(fraction.detach() < 0.5, 1 - 4 * fraction, 4 * fraction - 3)
    return wave.flatten(1)


def one_blob_encode(x: Float[Tensor, "n n_dims"], n_bins: int) -> Float[Tensor, "n n_output"]:
    """How much of a blob around x_j falls into each of n_bins equal bins of [0, 1]: by component j, then bin.

    The blob is the quartic kernel 15/16 (1 - u^2)^2 with a radius of one bin, wrapped around the unit interval.
    """
    edge = torch.arange(n_bins + 1, dtype=x.dtype, device=x.device) / n_bins
    distance = edge - x[:, :, None]  # [n, n_dims, n_bins + 1]
    below = sum(_quartic_cdf((distance + turn) * n_bins) for turn in (0.0, -1.0, 1.0))
    assert isinstance(below, Tensor)
    # C(1) is taken as C(0) + 1, so that the bins sum to 1 wherever x lies.
    below = torch.cat([below[..., :-1], below[..., :1] + 1], -1)
    return (below[..., 1:] - below[..., :-1]).flatten(1)


def _quartic_cdf(u: Tensor) -> Tensor:
    """Integral of the kernel from -1 to u: 15/16 u (1 - 2/3 u^2 + 1/5 u^4) + 1/2, 0 below -1 and 1 above 1."""
    u = u.clamp(-1, 1)
    square = u * u
    return (15 / 16) * u * (1 - (2 / 3) * square + 0.2 * square * square) + 0.5

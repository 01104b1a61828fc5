"""How close a picture is to another: PSNR and SSIM."""

import math
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hashfield.errors import ShapeError

SSIM_WINDOW: Final = 11
"""Taps of the Gaussian window per axis."""
SSIM_SIGMA: Final = 1.5
"""Standard deviation of the window, pixels."""

_C1: Final = 0.01**2
_C2: Final = 0.03**2
_BAND: Final = 48  # rows filtered together: their sums stay in a cache


def psnr(
    prediction: Float[Tensor, "*shape"] | Float[np.ndarray, "*shape"],
    target: Float[Tensor, "*shape"] | Float[np.ndarray, "*shape"],
) -> float:
    """Peak signal-to-noise ratio in dB: -10 log10(mean squared error) over all pixels and channels.

    Both pictures are clipped to [0, 1] and not quantised; the mean is taken in float64.

    Args:
        prediction: colours, 1 is the brightest.
        target: the same shape.

    Returns:
        Decibels; infinite for equal pictures, not a number where the prediction is.

    Raises:
        ShapeError: shapes differ or there is nothing to compare.

    >>> round(psnr(torch.full((4, 4, 3), 0.6), torch.full((4, 4, 3), 0.5)), 4)
    20.0
    """
    a, b = _pair("psnr", prediction, target)
    error = (a.double().clamp(0.0, 1.0) - b.double().clamp(0.0, 1.0)).square().mean().item()
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def ssim(
    prediction: Float[Tensor, "h w c"] | Float[np.ndarray, "h w c"],
    target: Float[Tensor, "h w c"] | Float[np.ndarray, "h w c"],
    mask: Bool[np.ndarray, "h w"] | None = None,
) -> float:
    """Structural similarity, the mean over channels and over every place where the whole window fits.

    The window is an 11x11 Gaussian of sigma 1.5 with population (not sample) variances, C1 = 0.01^2 and
    C2 = 0.03^2 for a data range of 1. Both pictures are clipped to [0, 1].

    Args:
        prediction: colours, at least 11 pixels on a side.
        target: the same shape.
        mask: where windows may be centred; None: everywhere. Windows reach five pixels beyond it.

    Returns:
        1 for equal pictures, lower otherwise; not a number where the mask holds no such place.

    Raises:
        ShapeError: shapes differ, or the picture is smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, `ssim_index.m`: no padding, so borders never enter. This
    equals tf.image.ssim and scikit-image's with gaussian_weights and without use_sample_covariance.
    instant-ngp's own script measures another SSIM (5 taps, luminance, reflected borders).
    """
    a, b = _pair("ssim", prediction, target)
    if a.ndim != 3 or min(a.shape[0], a.shape[1]) < SSIM_WINDOW or a.shape[2] < 1:
        raise ShapeError(
            f"ssim: expected [height, width, channels] of at least {SSIM_WINDOW} pixels on a side, got {tuple(a.shape)}"
        )
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    taps: list[float] = (window / window.sum()).tolist()
    # Variances do not care about a constant; near zero their cancellation costs fewer digits.
    a = a.float().clamp(0.0, 1.0).sub(0.5).permute(2, 0, 1).contiguous()
    b = b.float().clamp(0.0, 1.0).sub(0.5).permute(2, 0, 1).contiguous()
    n_rows, margin, total = a.shape[1], SSIM_WINDOW - 1, 0.0
    half = margin // 2
    inner = None if mask is None else torch.from_numpy(mask)[half : n_rows - half, half : a.shape[2] - half]
    for first in range(0, n_rows - margin, _BAND):
        last = min(first + _BAND + margin, n_rows)
        for x, y in zip(a[:, first:last], b[:, first:last], strict=True):
            maps = torch.stack([x, y, x * y, x * x + y * y])
            mean_x, mean_y, mean_xy, mean_squares = _filtered(_filtered(maps, taps, 1), taps, 2)
            product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
            contrast = (2.0 * (mean_xy - product) + _C2) / (mean_squares - squares + _C2)
            # Back from the shift by a half: (m + 0.5) of each mean.
            shift = 0.5 * (mean_x + mean_y)
            luminance = (2.0 * (product + shift) + 0.5 + _C1) / (squares + 2.0 * shift + 0.5 + _C1)
            similarity = luminance * contrast
            if inner is not None:
                similarity = similarity[inner[first : last - margin]]
            total += similarity.sum(dtype=torch.float64).item()
    n_places = (n_rows - margin) * (a.shape[2] - margin) if inner is None else int(inner.sum())
    return total / (a.shape[0] * n_places) if n_places else math.nan


def _filtered(maps: Tensor, taps: list[float], axis: int) -> Tensor:
    """Maps correlated with symmetric taps along an axis, without padding."""
    size = maps.shape[axis] - len(taps) + 1
    middle = len(taps) // 2
    out = maps.narrow(axis, middle, size) * taps[middle]
    for tap in range(middle):
        pair = maps.narrow(axis, tap, size) + maps.narrow(axis, len(taps) - 1 - tap, size)
        out.add_(pair, alpha=taps[tap])
    return out


def _pair(name: str, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Both as detached tensors on the CPU, shapes checked."""
    a, b = (torch.as_tensor(value).detach().cpu() for value in (prediction, target))
    if a.shape != b.shape or a.numel() == 0:
        raise ShapeError(f"{name}: expected two pictures of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ShapeError(f"{name}: expected floats in [0, 1], got {a.dtype} and {b.dtype}")
    return a, b

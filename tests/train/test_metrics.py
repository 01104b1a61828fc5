"""PSNR and SSIM against definitions written out, and the promises of their docstrings."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from hashfield.errors import ShapeError
from hashfield.train.metrics import psnr, ssim


def ssim_written_out(a: torch.Tensor, b: torch.Tensor) -> float:
    """The formula of Wang et al. with a whole 2-D window, in float64, where the window fits."""
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    x, y = (v.double().clamp(0, 1).permute(2, 0, 1)[:, None] for v in (a, b))
    mean_x, mean_y = conv2d(x, window), conv2d(y, window)
    var_x, var_y = conv2d(x * x, window) - mean_x**2, conv2d(y * y, window) - mean_y**2
    both = conv2d(x * y, window) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return (
        ((2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
        .mean()
        .item()
    )


@pytest.mark.parametrize("shape", [(11, 11, 3), (11, 40, 1), (59, 70, 3), (107, 23, 4)])
def test_ssim_is_the_formula(shape, generator):
    a = torch.rand(shape, generator=generator)
    b = 0.7 * a + 0.4 * torch.rand(shape, generator=generator)
    assert ssim(a, b) == pytest.approx(ssim_written_out(a, b), abs=1e-6)
    assert ssim(b, a) == pytest.approx(ssim(a, b), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.9, 0.8), (0.0, 1.0), (0.02, 0.0), (1.0, 1.0)])
def test_ssim_of_flat_pictures(a, b):
    # Variances vanish here, so the value is the luminance term alone.
    found = ssim(torch.full((20, 20, 3), a), torch.full((20, 20, 3), b))
    assert found == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=2e-5)


def test_ssim_of_equal_pictures_is_one_and_falls_with_noise(generator):
    a = torch.rand(64, 48, 3, generator=generator)
    noise = torch.randn(a.shape, generator=generator)
    values = [ssim(a, a + level * noise) for level in (0.0, 0.02, 0.1, 0.4)]
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert values == sorted(values, reverse=True)


def test_psnr_is_the_formula(generator):
    a, b = (torch.rand(9, 7, 3, generator=generator) for _ in range(2))
    expected = -10 * math.log10(np.mean((a.double().numpy() - b.double().numpy()) ** 2))
    assert psnr(a, b) == pytest.approx(expected, abs=1e-9)
    assert psnr(a.numpy(), b.numpy()) == pytest.approx(expected, abs=1e-9)


def test_psnr_clips_and_does_not_quantise():
    half = torch.full((4, 4, 3), 0.5)
    assert psnr(torch.full((4, 4, 3), 1.7), torch.ones(4, 4, 3)) == math.inf
    assert psnr(torch.full((4, 4, 3), -3.0), torch.zeros(4, 4, 3)) == math.inf
    assert psnr(half + 1e-3, half) == pytest.approx(60.0, abs=1e-3)  # below half a step of 8 bits


def test_not_a_number_is_not_hidden():
    broken = torch.full((12, 12, 3), 0.5)
    broken[0, 0, 0] = math.nan
    assert math.isnan(psnr(broken, torch.full((12, 12, 3), 0.5)))
    assert math.isnan(ssim(broken, torch.full((12, 12, 3), 0.5)))


@pytest.mark.parametrize("function", [psnr, ssim])
def test_wrong_shapes_are_named(function):
    with pytest.raises(ShapeError, match=r"\(20, 20, 3\) and \(20, 21, 3\)"):
        function(torch.zeros(20, 20, 3), torch.zeros(20, 21, 3))
    with pytest.raises(ShapeError, match="floats"):
        function(torch.zeros(20, 20, 3, dtype=torch.uint8), torch.zeros(20, 20, 3))


def test_a_picture_smaller_than_the_window_is_refused():
    with pytest.raises(ShapeError, match="at least 11"):
        ssim(torch.zeros(10, 30, 3), torch.zeros(10, 30, 3))
    with pytest.raises(ShapeError):
        psnr(torch.zeros(0, 3), torch.zeros(0, 3))

"""The sRGB curve: known values, its inverse, and the same for arrays and tensors."""

import numpy as np
import pytest
import torch

from hashfield.geometry.srgb import linear_from_srgb, srgb_from_linear

LINEAR = np.concatenate([np.linspace(-0.5, 1, 200), np.geomspace(1.1, 1e4, 50)]).astype(np.float32)


def test_srgb_curve_and_its_inverse() -> None:
    assert srgb_from_linear(np.float32([0.0, 0.0031308, 1.0])) == pytest.approx([0.0, 0.04045, 1.0], abs=1e-5)
    assert np.allclose(linear_from_srgb(srgb_from_linear(LINEAR)), LINEAR, rtol=1e-4, atol=1e-6)
    assert (np.diff(srgb_from_linear(LINEAR)) > 0).all()


@pytest.mark.parametrize("curve", [srgb_from_linear, linear_from_srgb])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_and_tensors_agree_and_keep_their_type(curve, dtype: type[np.floating]) -> None:
    values = LINEAR.astype(dtype)
    array, tensor = curve(values), curve(torch.from_numpy(values))
    assert array.dtype == dtype and tensor.dtype == torch.from_numpy(values).dtype and array.shape == values.shape
    np.testing.assert_allclose(tensor.numpy(), array, rtol=8 * np.finfo(dtype).eps)

"""The sRGB curve and its inverse, for numpy's arrays and torch's tensors alike.

Source: IEC 61966-2-1; beyond 1 the curve goes on, as instant-ngp does for its images, and below 0 as the straight line
it begins with.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Values = TypeVar("Values", np.ndarray, Tensor)
"""An array or a tensor of floats, of any shape; results have its type, dtype and shape."""


def srgb_from_linear(linear: Values) -> Values:
    """The sRGB value of linear light.

    >>> srgb_from_linear(np.array([0.0, 0.0031308, 1.0])).round(4).tolist()
    [0.0, 0.0404, 1.0]
    """
    # Below the bend the power is not used; raised to the bend first, it is never asked for a negative number.
    power = 1.055 * linear.clip(0.0031308, None) ** (1 / 2.4) - 0.055
    return _where(linear <= 0.0031308, 12.92 * linear, power)


def linear_from_srgb(value: Values) -> Values:
    """The linear light of an sRGB value: the inverse of `srgb_from_linear`.

    >>> linear_from_srgb(torch.tensor([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """
    power = ((value.clip(0.04045, None) + 0.055) / 1.055) ** 2.4
    return _where(value <= 0.04045, value / 12.92, power)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else np.where(condition, a, b)

"""Reference of the real spherical harmonics, in plain torch."""

import torch
from jaxtyping import Float
from torch import Tensor


def spherical_harmonics(directions: Float[Tensor, "n 3"], degree: int = 4) -> Float[Tensor, "n n_coefficients"]:
    """The first degree^2 real spherical harmonics of each direction.

    The input is used as it is: nothing normalises it, and off the unit sphere the polynomials go on as
    written.

    Source: tiny-cuda-nn encodings/spherical_harmonics.h, whose input (d + 1) / 2 is undone here.
    """
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    values = [torch.full_like(x, 0.28209479177387814)]
    if degree > 1:
        values += [-0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x]
    if degree > 2:
        values += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.94617469575755997 * zz - 0.31539156525251999,
            -1.0925484305920792 * x * z,
            0.54627421529603959 * (xx - yy),
        ]
    if degree > 3:
        values += [
            0.59004358992664352 * y * (yy - 3 * xx),
            2.8906114426405538 * x * y * z,
            0.45704579946446572 * y * (1 - 5 * zz),
            0.3731763325901154 * z * (5 * zz - 3),
            0.45704579946446572 * x * (1 - 5 * zz),
            1.4453057213202769 * z * (xx - yy),
            0.59004358992664352 * x * (3 * yy - xx),
        ]
    return torch.stack(values, 1)

"""Reference of the real spherical harmonics, in plain torch."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def spherical_harmonics(directions: Float[Tensor, "n 3"], degree: int = 4) -> Float[Tensor, "n n_coefficients"]:
    """The first degree^2 real spherical harmonics of each direction.

    The input is used as it is: nothing normalises it, and off the unit sphere the polynomials go on as
    written.

    Source: tiny-cuda-nn encodings/spherical_harmonics.h, whose input (d + 1) / 2 is undone here.
    """
    if degree > 4:
        return _by_recurrence(directions, degree)
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


def _by_recurrence(directions: Float[Tensor, "n 3"], degree: int) -> Float[Tensor, "n n_coefficients"]:
    """Any number of bands: Y(l, m) = K(l, |m|) P(l, |m|)(z) times the real or imaginary part of (x + i y)^|m|.

    P are the associated Legendre polynomials without their factor (1 - z^2)^(|m|/2), which the power of x + i y brings.
    """
    x, y, z = directions.unbind(1)
    one = torch.ones_like(x)
    real, imaginary, diagonal = one, torch.zeros_like(x), one
    values: dict[tuple[int, int], Tensor] = {}
    for m in range(degree):
        if m > 0:
            real, imaginary = x * real - y * imaginary, x * imaginary + y * real
            diagonal = diagonal * (1 - 2 * m)
        before, legendre = torch.zeros_like(x), diagonal
        for band in range(m, degree):
            if band > m:
                following = ((2 * band - 1) * z * legendre - (band + m - 1) * before) / (band - m)
                before, legendre = legendre, following
            norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m))
            if m == 0:
                values[band, 0] = norm * legendre
            else:
                values[band, m] = math.sqrt(2) * norm * legendre * real
                values[band, -m] = math.sqrt(2) * norm * legendre * imaginary
    return torch.stack([values[band, m] for band in range(degree) for m in range(-band, band + 1)], 1)

"""Spherical harmonics of directions on CPUs."""

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, share


@inline
def harmonics(x, y, z, degree, out, at):
    """Write the degree^2 values of one direction, in tiny-cuda-nn's order, to out[at:]."""
    f = np.float32
    out[at] = f(0.28209479177387814)
    if degree > 1:
        out[at + 1] = f(-0.48860251190291987) * y
        out[at + 2] = f(0.48860251190291987) * z
        out[at + 3] = f(-0.48860251190291987) * x
    if degree > 2:
        xx, yy, zz = x * x, y * y, z * z
        out[at + 4] = f(1.0925484305920792) * x * y
        out[at + 5] = f(-1.0925484305920792) * y * z
        out[at + 6] = f(0.94617469575755997) * zz - f(0.31539156525251999)
        out[at + 7] = f(-1.0925484305920792) * x * z
        out[at + 8] = f(0.54627421529603959) * (xx - yy)
        if degree > 3:
            out[at + 9] = f(0.59004358992664352) * y * (yy - f(3.0) * xx)
            out[at + 10] = f(2.8906114426405538) * x * y * z
            out[at + 11] = f(0.45704579946446572) * y * (f(1.0) - f(5.0) * zz)
            out[at + 12] = f(0.3731763325901154) * z * (f(5.0) * zz - f(3.0))
            out[at + 13] = f(0.45704579946446572) * x * (f(1.0) - f(5.0) * zz)
            out[at + 14] = f(1.4453057213202769) * z * (xx - yy)
            out[at + 15] = f(0.59004358992664352) * x * (f(3.0) * yy - xx)


@kernel
def _forward(directions, degree, out, thread, threads):
    n = directions.shape[0]
    for i in range(share(n, thread, threads), share(n, thread + 1, threads)):
        harmonics(directions[i, 0], directions[i, 1], directions[i, 2], degree, out, i * degree * degree)


@inline
def harmonics_gradient(x, y, z, degree, g, at):
    """Gradient to a direction, three numbers free of each other, from that to its degree^2 values g[at:]."""
    f = np.float32
    gx, gy, gz = f(0.0), f(0.0), f(0.0)
    if degree > 1:
        c = f(0.48860251190291987)
        gx -= c * g[at + 3]
        gy -= c * g[at + 1]
        gz += c * g[at + 2]
    if degree > 2:
        c, d = f(1.0925484305920792), f(0.54627421529603959)
        gx += c * (y * g[at + 4] - z * g[at + 7]) + f(2.0) * d * x * g[at + 8]
        gy += c * (x * g[at + 4] - z * g[at + 5]) - f(2.0) * d * y * g[at + 8]
        gz += f(2.0) * f(0.94617469575755997) * z * g[at + 6] - c * (y * g[at + 5] + x * g[at + 7])
    if degree > 3:
        a, b, c = f(0.59004358992664352), f(2.8906114426405538), f(0.45704579946446572)
        d, e = f(0.3731763325901154), f(1.4453057213202769)
        xx, yy, zz = x * x, y * y, z * z
        gx += a * (f(-6.0) * x * y * g[at + 9] + f(3.0) * (yy - xx) * g[at + 15]) + b * y * z * g[at + 10]
        gx += c * (f(1.0) - f(5.0) * zz) * g[at + 13] + f(2.0) * e * x * z * g[at + 14]
        gy += a * (f(3.0) * (yy - xx) * g[at + 9] + f(6.0) * x * y * g[at + 15]) + b * x * z * g[at + 10]
        gy += c * (f(1.0) - f(5.0) * zz) * g[at + 11] - f(2.0) * e * y * z * g[at + 14]
        gz += b * x * y * g[at + 10] - f(10.0) * c * z * (y * g[at + 11] + x * g[at + 13])
        gz += d * (f(15.0) * zz - f(3.0)) * g[at + 12] + e * (xx - yy) * g[at + 14]
    return gx, gy, gz


@kernel
def _backward(directions, degree, grad, out, thread, threads):
    n = directions.shape[0]
    for i in range(share(n, thread, threads), share(n, thread + 1, threads)):
        x, y, z = directions[i, 0], directions[i, 1], directions[i, 2]
        out[i, 0], out[i, 1], out[i, 2] = harmonics_gradient(x, y, z, degree, grad, i * degree * degree)


def spherical_harmonics_forward(directions, degree: int) -> torch.Tensor:
    """Values [n, degree^2]; see `hashfield.ops.spherical_harmonics`."""
    out = torch.empty((directions.shape[0], degree * degree), dtype=torch.float32)
    if out.numel():
        launch(_forward, as_array(directions), degree, as_array(out).reshape(-1))
    return out


def spherical_harmonics_backward(directions, degree: int, grad) -> torch.Tensor:
    """Gradient to the directions [n, 3] for the cotangent [n, degree^2]."""
    out = torch.empty_like(directions)
    if out.numel():
        launch(_backward, as_array(directions), degree, as_array(grad).reshape(-1), as_array(out))
    return out

"""Spherical harmonics of directions on GPUs: forward and the gradient to the directions."""

import torch
import triton
import triton.language as tl

from hashfield.kernels.triton_gpu.common import as_columns, count_of, launch, load_positions, spherical_harmonics_of

BLOCK = 128


@triton.jit
def _forward(directions, n_live, out, DEGREE: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.load(n_live)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    x, y, z = load_positions(directions, rows, inside, 3)
    values = as_columns(spherical_harmonics_of(x, y, z, DEGREE), 16, 4)
    columns = tl.arange(0, 16)[None, :]
    N_COLUMNS: tl.constexpr = DEGREE * DEGREE
    tl.store(out + rows[:, None] * N_COLUMNS + columns, values, inside[:, None] & (columns < N_COLUMNS))


@triton.jit
def _cotangent(grad, rows, inside, COLUMN: tl.constexpr, N_COLUMNS: tl.constexpr):
    return tl.load(grad + rows * N_COLUMNS + COLUMN, inside, other=0.0)


@triton.jit
def _backward(directions, n_live, grad, grad_directions, DEGREE: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.load(n_live)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    x, y, z = load_positions(directions, rows, inside, 3)
    xx, yy, zz = x * x, y * y, z * z
    N: tl.constexpr = DEGREE * DEGREE
    dx, dy, dz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    if DEGREE > 1:
        dy -= 0.48860251190291987 * _cotangent(grad, rows, inside, 1, N)
        dz += 0.48860251190291987 * _cotangent(grad, rows, inside, 2, N)
        dx -= 0.48860251190291987 * _cotangent(grad, rows, inside, 3, N)
    if DEGREE > 2:
        g = 1.0925484305920792 * _cotangent(grad, rows, inside, 4, N)
        dx += g * y
        dy += g * x
        g = 1.0925484305920792 * _cotangent(grad, rows, inside, 5, N)
        dy -= g * z
        dz -= g * y
        dz += 0.94617469575755997 * 2.0 * z * _cotangent(grad, rows, inside, 6, N)
        g = 1.0925484305920792 * _cotangent(grad, rows, inside, 7, N)
        dx -= g * z
        dz -= g * x
        g = 0.54627421529603959 * 2.0 * _cotangent(grad, rows, inside, 8, N)
        dx += g * x
        dy -= g * y
    if DEGREE > 3:
        g = 0.59004358992664352 * _cotangent(grad, rows, inside, 9, N)
        dx -= 6.0 * g * x * y
        dy += 3.0 * g * (yy - xx)
        g = 2.8906114426405538 * _cotangent(grad, rows, inside, 10, N)
        dx += g * y * z
        dy += g * x * z
        dz += g * x * y
        g = 0.45704579946446572 * _cotangent(grad, rows, inside, 11, N)
        dy += g * (1.0 - 5.0 * zz)
        dz -= 10.0 * g * y * z
        dz += 0.3731763325901154 * (15.0 * zz - 3.0) * _cotangent(grad, rows, inside, 12, N)
        g = 0.45704579946446572 * _cotangent(grad, rows, inside, 13, N)
        dx += g * (1.0 - 5.0 * zz)
        dz -= 10.0 * g * x * z
        g = 1.4453057213202769 * _cotangent(grad, rows, inside, 14, N)
        dx += 2.0 * g * x * z
        dy -= 2.0 * g * y * z
        dz += g * (xx - yy)
        g = 0.59004358992664352 * _cotangent(grad, rows, inside, 15, N)
        dx += 3.0 * g * (yy - xx)
        dy += 6.0 * g * x * y
    tl.store(grad_directions + rows * 3, dx, inside)
    tl.store(grad_directions + rows * 3 + 1, dy, inside)
    tl.store(grad_directions + rows * 3 + 2, dz, inside)


def spherical_harmonics_forward(directions: torch.Tensor, degree: int) -> torch.Tensor:
    """The first degree^2 harmonics [n, degree^2] of directions [n, 3]."""
    n = directions.shape[0]
    out = torch.empty((n, degree**2), dtype=torch.float32, device=directions.device)
    live = count_of(n, directions.device)
    launch(_forward, (triton.cdiv(n, BLOCK),), directions, live, out, DEGREE=degree, BLOCK=BLOCK)
    return out


def spherical_harmonics_backward(directions: torch.Tensor, degree: int, grad_output: torch.Tensor) -> torch.Tensor:
    """Gradient [n, 3] to the directions for the cotangent [n, degree^2]."""
    grad = torch.empty_like(directions)
    direction_gradients(directions, count_of(directions.shape[0], directions.device), grad_output, grad, degree)
    return grad


def direction_gradients(
    directions: torch.Tensor, n_live: torch.Tensor, grad_output: torch.Tensor, out: torch.Tensor, degree: int
) -> None:
    """Write the gradients of the first n_live directions to `out`.

    Args:
        directions: float32 [capacity, 3].
        n_live: int32 [1] on the device.
        grad_output: float32 [capacity, degree^2], cotangent of the harmonics.
        out: float32 [capacity, 3].
        degree: 1 to 4.
    """
    grid = (triton.cdiv(directions.shape[0], BLOCK),)
    launch(_backward, grid, directions, n_live, grad_output, out, DEGREE=degree, BLOCK=BLOCK)

"""Rays of pixels on CPUs: lens models inverted in float64, one pixel at a time."""

import math

import numpy as np
import torch

from hashfield.kernels.numba_cpu.common import as_array, inline, kernel, launch, part, share


@inline
def radial(x, k1, k2, k3, k4):
    """The function f(x) = x (1 + k1 x^2 + k2 x^4 + k3 x^6 + k4 x^8) and its derivative."""
    s = x * x
    return (
        x * (1.0 + s * (k1 + s * (k2 + s * (k3 + s * k4)))),
        1.0 + s * (3.0 * k1 + s * (5.0 * k2 + s * (7.0 * k3 + s * 9.0 * k4))),
    )


@part
def invert_radial(value, k1, k2, k3, k4, limit):
    """The x in [0, limit] with f(x) = value: Newton inside a shrinking bracket, as in the reference."""
    value = min(value, radial(limit, k1, k2, k3, k4)[0])
    low, high, x = 0.0, limit, min(value, limit)
    for _ in range(60):
        reached, slope = radial(x, k1, k2, k3, k4)
        if reached <= value:
            low = x
        else:
            high = x
        step = x - (reached - value) / slope
        if not low <= step <= high:
            step = 0.5 * (low + high)
        moved = abs(step - x)
        x = step
        if moved < 1e-14 * (1.0 + x):
            break
    return x


@inline
def distort(u, v, k1, k2, k3, k4, p1, p2):
    """Radial-tangential distortion and its Jacobian (a, b; b, d)."""
    r2 = u * u + v * v
    scale = 1.0 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    growth = k1 + r2 * (2.0 * k2 + r2 * (3.0 * k3 + r2 * 4.0 * k4))
    return (
        u * scale + 2.0 * p1 * u * v + p2 * (r2 + 2.0 * u * u),
        v * scale + 2.0 * p2 * u * v + p1 * (r2 + 2.0 * v * v),
        scale + 2.0 * u * u * growth + 2.0 * p1 * v + 6.0 * p2 * u,
        2.0 * u * v * growth + 2.0 * p1 * u + 2.0 * p2 * v,
        scale + 2.0 * v * v * growth + 6.0 * p1 * v + 2.0 * p2 * u,
    )


@part
def undistort(u_d, v_d, k1, k2, k3, k4, p1, p2, limit):
    """Plane coordinates that OpenCV's radial-tangential lens maps to (u_d, v_d): damped Newton on the sheet that
    holds the axis, as in the reference; the radial limit where none does."""
    rho = math.hypot(u_d, v_d)
    ratio = invert_radial(rho, k1, k2, k3, k4, limit) / rho if rho > 0.0 else 1.0
    held_u, held_v = u_d * ratio, v_d * ratio
    bend = abs(p1) + abs(p2)
    if bend == 0.0 or rho > radial(limit, k1, k2, k3, k4)[0] + 4.0 * bend * limit * limit:
        return held_u, held_v
    u, v = held_u, held_v
    is_folded = True
    for _ in range(12):
        x, y, a, b, d = distort(u, v, k1, k2, k3, k4, p1, p2)
        if a * d - b * b >= 0.05:
            is_folded = False
            break
        u, v = 0.8 * u, 0.8 * v
    if is_folded:
        u, v = 0.0, 0.0
    x, y, a, b, d = distort(u, v, k1, k2, k3, k4, p1, p2)
    miss = math.hypot(u_d - x, v_d - y)
    arrived = 2e-14 * (1.0 + rho)
    for _ in range(40):
        if miss <= arrived:
            break
        det = a * d - b * b
        miss_u, miss_v = u_d - x, v_d - y
        step_u, step_v = (d * miss_u - b * miss_v) / det, (a * miss_v - b * miss_u) / det
        is_better = False
        for _ in range(8):
            new_u, new_v = u + step_u, v + step_v
            x, y, a, b, d = distort(new_u, new_v, k1, k2, k3, k4, p1, p2)
            new_miss = math.hypot(u_d - x, v_d - y)
            is_better = new_miss < miss and a * d - b * b > 0.0 and math.hypot(new_u, new_v) <= limit
            if is_better:
                break
            step_u, step_v = 0.5 * step_u, 0.5 * step_v
        if not is_better:
            break
        u, v, miss = new_u, new_v, new_miss
    if miss <= 2.2e-13 * (1.0 + rho):
        return u, v
    return held_u, held_v


@part
def pixel_direction(camera, px, py):
    """Unit direction, in the space of the pose, of the ray through a pixel position."""
    u, v = (px - camera[14]) / camera[12], (py - camera[15]) / camera[13]
    w = 1.0
    lens, limit = camera[16], camera[23]
    if lens == 1.0:
        u, v = undistort(
            u, v, camera[17], camera[18], camera[19], camera[20], camera[21], camera[22],
            limit if limit > 0.0 else 1e3,
        )  # fmt: skip
    elif lens == 2.0:
        rho = math.hypot(u, v)
        if rho > 0.0:
            theta = invert_radial(
                rho, camera[17], camera[18], camera[19], camera[20], limit if limit > 0.0 else math.pi
            )
            u, v, w = u * math.sin(theta) / rho, v * math.sin(theta) / rho, math.cos(theta)
    elif lens == 3.0:
        v = min(max(v, -0.5 * math.pi), 0.5 * math.pi)
        level = math.cos(v)
        u, v, w = math.sin(u) * level, math.sin(v), math.cos(u) * level
    x = camera[0] * u + camera[1] * v + camera[2] * w
    y = camera[4] * u + camera[5] * v + camera[6] * w
    z = camera[8] * u + camera[9] * v + camera[10] * w
    length = math.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


@kernel
def _camera_rays(table, camera_index, pixel, origin, direction, thread, threads):
    n = camera_index.size
    for i in range(share(n, thread, threads), share(n, thread + 1, threads)):
        camera = table[camera_index[i]]
        x, y, z = pixel_direction(camera, pixel[i, 0], pixel[i, 1])
        direction[i, 0], direction[i, 1], direction[i, 2] = x, y, z
        origin[i, 0], origin[i, 1], origin[i, 2] = camera[3], camera[7], camera[11]


@kernel
def _view_rays(camera, numbers, is_some, first, width, box, origin, direction, t_min, t_max, thread, threads):
    """Pixels first + numbers[i], or first + i: their rays, clipped to the box as the reference's `ray_box` does."""
    n = t_min.size
    zero, infinity = np.float32(0.0), np.float32(np.inf)
    for i in range(share(n, thread, threads), share(n, thread + 1, threads)):
        index = first + (numbers[i] if is_some else i)
        x, y, z = pixel_direction(camera, index % width + 0.5, index // width + 0.5)
        direction[i, 0], direction[i, 1], direction[i, 2] = x, y, z
        origin[i, 0], origin[i, 1], origin[i, 2] = camera[3], camera[7], camera[11]
        near, far, is_hit = zero, infinity, True
        for axis in range(3):
            o, d = origin[i, axis], direction[i, axis]
            if d == zero:
                is_hit = is_hit and box[axis] <= o <= box[3 + axis]
            else:
                a, b = (box[axis] - o) / d, (box[3 + axis] - o) / d
                near, far = max(near, min(a, b)), min(far, max(a, b))
        is_hit = is_hit and far > near and far < infinity and x == x
        t_min[i], t_max[i] = (near, far) if is_hit else (zero, zero)


def view_rays(table, width: int, first: int, n_rays: int, box, numbers=None):
    """Origin, direction, t_min and t_max of pixels of one camera; see `hashfield.ops.camera_rays.view_rays`."""
    n = n_rays if numbers is None else numbers.shape[0]
    origin, direction, t_min, t_max = torch.empty((n, 3)), torch.empty((n, 3)), torch.empty(n), torch.empty(n)
    if n:
        some = np.empty(0, np.int64) if numbers is None else as_array(numbers.long().contiguous())
        launch(
            _view_rays, as_array(table[0].double().contiguous()), some, numbers is not None, first, width,
            as_array(box.float().contiguous()), *map(as_array, (origin, direction, t_min, t_max)),
        )  # fmt: skip
    return origin, direction, t_min, t_max


def camera_rays_forward(table, camera_index, pixel) -> tuple[torch.Tensor, torch.Tensor]:
    """Origin and unit direction [n, 3] float32 of each pixel's ray; see `hashfield.ops.camera_rays`."""
    n = camera_index.shape[0]
    origin, direction = torch.empty((n, 3)), torch.empty((n, 3))
    if n:
        launch(
            _camera_rays, as_array(table.double().contiguous()), as_array(camera_index.long().contiguous()),
            as_array(pixel.double().contiguous()), as_array(origin), as_array(direction),
        )  # fmt: skip
    return origin, direction

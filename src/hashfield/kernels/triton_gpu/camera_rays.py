"""Rays of pixels on GPUs: lens models inverted in float64, a thread to a pixel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.kernels.triton_gpu.common import INTERPRETED, launch

FARTHEST_OPENCV, FARTHEST_FISHEYE = tl.constexpr(1e3), tl.constexpr(3.141592653589793)
HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def radial(x, k1, k2, k3, k4):
    """The function f(x) = x (1 + k1 x^2 + k2 x^4 + k3 x^6 + k4 x^8) and its derivative."""
    s = x * x
    value = x * (1.0 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    return value, 1.0 + s * (3.0 * k1 + s * (5.0 * k2 + s * (7.0 * k3 + s * 9.0 * k4)))


@triton.jit
def invert_radial(value, k1, k2, k3, k4, limit, active):
    """The x in [0, limit] with f(x) = value: Newton inside a shrinking bracket, as in the reference."""
    edge, _ = radial(limit, k1, k2, k3, k4)
    value = tl.minimum(value, edge)
    low, high, x = tl.zeros_like(value), limit, tl.minimum(value, limit)
    turn = 0
    moving = active
    while (turn < 60) & (tl.max(moving.to(tl.int32), axis=0) > 0):
        reached, slope = radial(x, k1, k2, k3, k4)
        below = reached <= value
        low, high = tl.where(below, x, low), tl.where(below, high, x)
        step = x - (reached - value) / slope
        step = tl.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        step = tl.where(moving, step, x)
        moving = moving & (tl.abs(step - x) >= 1e-14 * (1.0 + x))
        x = step
        turn += 1
    return x


@triton.jit
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


@triton.jit
def length2(x, y):
    """Length of a vector of two."""
    return tl.sqrt(x * x + y * y)


@triton.jit
def undistort(u_d, v_d, k1, k2, k3, k4, p1, p2, limit, active):
    """Plane coordinates that OpenCV's radial-tangential lens maps to (u_d, v_d): damped Newton on the sheet that holds
    the axis, as in the reference; the radial limit where none does."""
    rho = length2(u_d, v_d)
    safe = tl.where(rho > 0.0, rho, 1.0)
    ratio = tl.where(rho > 0.0, invert_radial(rho, k1, k2, k3, k4, limit, active) / safe, 1.0)
    held_u, held_v = u_d * ratio, v_d * ratio
    bend = tl.abs(p1) + tl.abs(p2)
    edge, _ = radial(limit, k1, k2, k3, k4)
    solved = active & (bend > 0.0) & (rho <= edge + 4.0 * bend * limit * limit)
    u, v = held_u, held_v
    folded = solved
    for _ in range(12):  # on the fold itself no step is possible: start a little inside
        _, _, a, b, d = distort(u, v, k1, k2, k3, k4, p1, p2)
        folded = folded & (a * d - b * b < 0.05)
        u, v = tl.where(folded, 0.8 * u, u), tl.where(folded, 0.8 * v, v)
    u, v = tl.where(folded, 0.0, u), tl.where(folded, 0.0, v)
    x, y, a, b, d = distort(u, v, k1, k2, k3, k4, p1, p2)
    miss = length2(u_d - x, v_d - y)
    moving = solved & (miss > 2e-14 * (1.0 + rho))
    turn = 0
    while (turn < 40) & (tl.max(moving.to(tl.int32), axis=0) > 0):
        x, y, a, b, d = distort(u, v, k1, k2, k3, k4, p1, p2)
        det = a * d - b * b
        det = tl.where(moving, det, 1.0)
        step_u, step_v = (d * (u_d - x) - b * (v_d - y)) / det, (a * (v_d - y) - b * (u_d - x)) / det
        better = tl.zeros_like(moving)
        for _ in range(8):
            new_u, new_v = u + step_u, v + step_v
            x, y, a, b, d = distort(new_u, new_v, k1, k2, k3, k4, p1, p2)
            new_miss = length2(u_d - x, v_d - y)
            fits = (new_miss < miss) & (a * d - b * b > 0.0) & (length2(new_u, new_v) <= limit) & moving
            taken = fits & (better == 0)
            u, v, miss = tl.where(taken, new_u, u), tl.where(taken, new_v, v), tl.where(taken, new_miss, miss)
            better = better | fits
            step_u, step_v = tl.where(better, 0.0, 0.5 * step_u), tl.where(better, 0.0, 0.5 * step_v)
        moving = moving & better & (miss > 2e-14 * (1.0 + rho))
        turn += 1
    found = solved & (miss <= 2.2e-13 * (1.0 + rho))
    return tl.where(found, u, held_u), tl.where(found, v, held_v)


@triton.jit
def pixel_ray(table, camera, px, py, mask, HAS_OPENCV: tl.constexpr, HAS_FISHEYE: tl.constexpr):
    """Position of a camera and unit direction of the ray through a pixel position, in the space of its pose, float64.

    `camera` is the row of the table; the flags say which lenses occur in it.
    """
    row = table + 24 * camera
    u = (px - tl.load(row + 14, mask=mask, other=0.0)) / tl.load(row + 12, mask=mask, other=1.0)
    v = (py - tl.load(row + 15, mask=mask, other=0.0)) / tl.load(row + 13, mask=mask, other=1.0)
    w = tl.zeros_like(u) + 1.0
    if HAS_OPENCV or HAS_FISHEYE:
        lens, limit = tl.load(row + 16, mask=mask, other=0.0), tl.load(row + 23, mask=mask, other=1.0)
        k1, k2 = tl.load(row + 17, mask=mask, other=0.0), tl.load(row + 18, mask=mask, other=0.0)
        k3, k4 = tl.load(row + 19, mask=mask, other=0.0), tl.load(row + 20, mask=mask, other=0.0)
        plane_u, plane_v = u, v
        if HAS_OPENCV:
            p1, p2 = tl.load(row + 21, mask=mask, other=0.0), tl.load(row + 22, mask=mask, other=0.0)
            is_opencv = mask & (lens == 1.0)
            farthest = tl.where(limit > 0.0, limit, FARTHEST_OPENCV)
            found_u, found_v = undistort(plane_u, plane_v, k1, k2, k3, k4, p1, p2, farthest, is_opencv)
            u, v = tl.where(is_opencv, found_u, u), tl.where(is_opencv, found_v, v)
        if HAS_FISHEYE:
            rho = length2(plane_u, plane_v)
            is_fisheye = mask & (lens == 2.0) & (rho > 0.0)
            farthest = tl.where(limit > 0.0, limit, FARTHEST_FISHEYE)
            theta = invert_radial(rho, k1, k2, k3, k4, farthest, is_fisheye)
            lateral = tl.sin(theta) / tl.where(rho > 0.0, rho, 1.0)
            u, v = tl.where(is_fisheye, plane_u * lateral, u), tl.where(is_fisheye, plane_v * lateral, v)
            w = tl.where(is_fisheye, tl.cos(theta), w)
            is_panorama = mask & (lens == 3.0)
            latitude = tl.minimum(tl.maximum(plane_v, -HALF_PI), HALF_PI)
            level = tl.cos(latitude)
            u, w = tl.where(is_panorama, tl.sin(plane_u) * level, u), tl.where(is_panorama, tl.cos(plane_u) * level, w)
            v = tl.where(is_panorama, tl.sin(latitude), v)
    x = tl.load(row, mask=mask, other=0.0) * u + tl.load(row + 1, mask=mask, other=0.0) * v
    y = tl.load(row + 4, mask=mask, other=0.0) * u + tl.load(row + 5, mask=mask, other=0.0) * v
    z = tl.load(row + 8, mask=mask, other=0.0) * u + tl.load(row + 9, mask=mask, other=0.0) * v
    x += tl.load(row + 2, mask=mask, other=1.0) * w
    y += tl.load(row + 6, mask=mask, other=1.0) * w
    z += tl.load(row + 10, mask=mask, other=1.0) * w
    length = tl.sqrt(x * x + y * y + z * z)
    ox, oy = tl.load(row + 3, mask=mask, other=0.0), tl.load(row + 7, mask=mask, other=0.0)
    return ox, oy, tl.load(row + 11, mask=mask, other=0.0), x / length, y / length, z / length


@triton.jit
def _camera_rays(
    table, camera_index, pixel, n, origin, direction, HAS_OPENCV: tl.constexpr, HAS_FISHEYE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    camera = tl.load(camera_index + i, mask=mask, other=0)
    px, py = tl.load(pixel + 2 * i, mask=mask, other=0.0), tl.load(pixel + 2 * i + 1, mask=mask, other=0.0)
    ox, oy, oz, x, y, z = pixel_ray(table, camera, px, py, mask, HAS_OPENCV, HAS_FISHEYE)
    tl.store(origin + 3 * i, ox.to(tl.float32), mask=mask)
    tl.store(origin + 3 * i + 1, oy.to(tl.float32), mask=mask)
    tl.store(origin + 3 * i + 2, oz.to(tl.float32), mask=mask)
    tl.store(direction + 3 * i, x.to(tl.float32), mask=mask)
    tl.store(direction + 3 * i + 1, y.to(tl.float32), mask=mask)
    tl.store(direction + 3 * i + 2, z.to(tl.float32), mask=mask)


@triton.jit
def _slab(o, d, low, high, near, far):
    """The part of [near, far] in which o + t d lies between two planes."""
    parallel = d == 0.0
    safe = tl.where(parallel, 1.0, d)
    a, b = (low - o) / safe, (high - o) / safe
    inside = (low <= o) & (o <= high)
    near = tl.where(parallel, near, tl.maximum(near, tl.minimum(a, b)))
    far = tl.where(parallel, tl.where(inside, far, -1.0), tl.minimum(far, tl.maximum(a, b)))
    return near, far


@triton.jit
def box_range(ox, oy, oz, dx, dy, dz, box):
    """(t_min >= 0, t_max) inside the box [x0, y0, z0, x1, y1, z1]; (0, 0) for a miss."""
    near, far = tl.zeros_like(ox), tl.zeros_like(ox) + 1e30
    near, far = _slab(ox, dx, tl.load(box), tl.load(box + 3), near, far)
    near, far = _slab(oy, dy, tl.load(box + 1), tl.load(box + 4), near, far)
    near, far = _slab(oz, dz, tl.load(box + 2), tl.load(box + 5), near, far)
    hit = far > near
    return tl.where(hit, near, 0.0), tl.where(hit, far, 0.0)


@triton.jit
def _view_rays(
    table, box, width, first, n, origin, direction, t_min, t_max, HAS_OPENCV: tl.constexpr, HAS_FISHEYE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rays through the centres of pixels first, first + 1, ... of one camera, clipped to a box."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    row = (i + first) // width
    px, py = (i + first - row * width).to(tl.float64) + 0.5, row.to(tl.float64) + 0.5
    ox, oy, oz, x, y, z = pixel_ray(table, tl.zeros_like(i), px, py, mask, HAS_OPENCV, HAS_FISHEYE)
    near, far = box_range(ox, oy, oz, x, y, z, box)
    tl.store(origin + 3 * i, ox.to(tl.float32), mask=mask)
    tl.store(origin + 3 * i + 1, oy.to(tl.float32), mask=mask)
    tl.store(origin + 3 * i + 2, oz.to(tl.float32), mask=mask)
    tl.store(direction + 3 * i, x.to(tl.float32), mask=mask)
    tl.store(direction + 3 * i + 1, y.to(tl.float32), mask=mask)
    tl.store(direction + 3 * i + 2, z.to(tl.float32), mask=mask)
    tl.store(t_min + i, near.to(tl.float32), mask=mask)
    tl.store(t_max + i, far.to(tl.float32), mask=mask)


def pixel_block(n: int) -> dict[str, int]:
    """Pixels to a program and its warps."""
    return {"BLOCK": min(1024, triton.next_power_of_2(n)) if INTERPRETED.value else 128, "num_warps": 4}


def lenses_of(table: Tensor) -> dict[str, bool]:
    """Which lens models occur in a camera table; reads it, so a table on a device is waited for. Panoramas share the
    code, and the flag, of fisheyes: both see behind the camera."""
    found = set(table[:, 16].tolist())
    return {"HAS_OPENCV": 1.0 in found, "HAS_FISHEYE": bool(found & {2.0, 3.0})}


def camera_rays_forward(table: Tensor, camera_index: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Origin and unit direction [n, 3] float32 of each pixel's ray; see `hashfield.ops.camera_rays`."""
    n, device = camera_index.shape[0], camera_index.device
    origin, direction = torch.empty((n, 3), device=device), torch.empty((n, 3), device=device)
    if n:
        block = pixel_block(n)
        launch(
            _camera_rays, (triton.cdiv(n, block["BLOCK"]),), table.to(device).double().contiguous(),
            camera_index.long().contiguous(), pixel.to(device).double().contiguous(), n, origin, direction,
            **lenses_of(table), **block,
        )  # fmt: skip
    return origin, direction


def view_rays(
    table: Tensor, width: int, first: int, n: int, box: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors origin, direction [n, 3], t_min and t_max [n] of a picture's pixels; see
    `hashfield.ops.camera_rays.view_rays`."""
    device = box.device
    origin, direction = torch.empty((n, 3), device=device), torch.empty((n, 3), device=device)
    t_min, t_max = torch.empty(n, device=device), torch.empty(n, device=device)
    if n:
        block = pixel_block(n)
        launch(
            _view_rays, (triton.cdiv(n, block["BLOCK"]),), table.double().to(device).contiguous(), box.double(), width,
            first, n, origin, direction, t_min, t_max, **lenses_of(table), **block,
        )  # fmt: skip
    return origin, direction, t_min, t_max

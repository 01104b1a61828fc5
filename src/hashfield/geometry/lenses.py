"""Lens models in plain torch: what a lens does to plane coordinates, and its inverse.

The formulas are those that `hashfield.geometry.cameras.Camera` states.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Lens = Literal["pinhole", "opencv", "fisheye", "equirectangular"]
LENSES: Final[tuple[Lens, ...]] = get_args(Lens)

MAX_RADIUS: Final = 1000.0
"""Largest radius of plane coordinates that the radial-tangential lens model is inverted to (89.94 degrees)."""


def lens_limit(lens: Lens, distortion: Sequence[float]) -> float:
    """How far a lens model can be inverted: the smallest radius (opencv; in plane coordinates, without p1 and
    p2) or angle (fisheye; radians) at which the distorted radius stops growing, at most `MAX_RADIUS` or pi; 0
    for a pinhole, pi for a panorama.

    The distorted radius is f(x) = x (1 + k1 x^2 + ... + k4 x^8), so the limit is the first root of f'.
    """
    if lens in ("pinhole", "equirectangular"):
        return 0.0 if lens == "pinhole" else math.pi
    k1, k2, k3, k4 = (*distortion[:4], 0.0, 0.0, 0.0, 0.0)[:4]
    # In y = 1 / x^2 the leading coefficient is 1, so that tiny k3, k4 do not spoil the root that counts
    roots = np.roots([1.0, 3 * k1, 5 * k2, 7 * k3, 9 * k4])
    real = [root.real for root in roots if abs(root.imag) <= 1e-9 * abs(root) and root.real > 1e-12]
    limit = 1 / math.sqrt(max(real)) if real else math.inf
    return min(limit, MAX_RADIUS if lens == "opencv" else math.pi)


class LensRows(NamedTuple):
    """Columns of a camera table, each of shape [n] or, for one camera shared by all pixels, [1]."""

    rotation: Tensor  # [n, 3, 3]
    position: Tensor  # [n, 3]
    fx: Tensor
    fy: Tensor
    cx: Tensor
    cy: Tensor
    lens: Tensor
    k: tuple[Tensor, Tensor, Tensor, Tensor]
    p1: Tensor
    p2: Tensor
    limit: Tensor


def lens_rows(rows: Tensor) -> LensRows:
    """The columns of a camera table's rows [n, 24] by name; the limit without gradient."""
    pose = rows[:, :12].reshape(-1, 3, 4)
    fx, fy, cx, cy, lens, k1, k2, k3, k4, p1, p2, limit = rows[:, 12:].unbind(1)
    return LensRows(pose[:, :, :3], pose[:, :, 3], fx, fy, cx, cy, lens, (k1, k2, k3, k4), p1, p2, limit.detach())


def radial(x: Tensor, k: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The function f(x) = x (1 + k1 x^2 + k2 x^4 + k3 x^6 + k4 x^8) and its derivative."""
    k1, k2, k3, k4 = k
    s = x * x
    value = x * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
    return value, slope


def _invert_radial(value: Tensor, k: tuple[Tensor, ...], limit: Tensor) -> Tensor:
    """The x in [0, limit] with f(x) = value, or the limit where value lies beyond f(limit).

    Newton inside a shrinking bracket: f grows on [0, limit], so a step that leaves the bracket is replaced by
    its middle and the search cannot fail, however strong the distortion. Gradient: none.
    """
    value = torch.minimum(value, radial(limit, k)[0])
    low, high = torch.zeros_like(value), limit.expand_as(value).clone()
    x = torch.minimum(value, high)
    tolerance = 4 * torch.finfo(value.dtype).eps
    for _ in range(80):
        reached, slope = radial(x, k)
        below = reached <= value
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        step = x - (reached - value) / slope
        following = torch.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        moved = (following - x).abs() > tolerance * (1 + x)
        x = following
        if not bool(moved.any()):
            break
    return x


def distort(u: Tensor, v: Tensor, rows: LensRows) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Radial-tangential distortion of plane coordinates and its Jacobian (du_d/du, du_d/dv = dv_d/du, dv_d/dv).

    Args:
        u, v: Plane coordinates [n].
        rows: Each one's lens.
    """
    k1, k2, k3, k4 = rows.k
    p1, p2 = rows.p1, rows.p2
    r2 = u * u + v * v
    scale = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    growth = k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4))  # d scale / d r2
    u_d = u * scale + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
    v_d = v * scale + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
    j_uu = scale + 2 * u * u * growth + 2 * p1 * v + 6 * p2 * u
    j_uv = 2 * u * v * growth + 2 * p1 * u + 2 * p2 * v
    j_vv = scale + 2 * v * v * growth + 6 * p1 * v + 2 * p2 * u
    return u_d, v_d, (j_uu, j_uv, j_vv)


def _newton_step(u: Tensor, v: Tensor, u_d: Tensor, v_d: Tensor, rows: LensRows) -> tuple[Tensor, Tensor]:
    """Newton's step towards the point that is distorted to (u_d, v_d); 0 where the Jacobian is nearly
    singular."""
    reached_u, reached_v, jacobian = distort(u, v, rows)
    j_uu, j_uv, j_vv = (part.detach() for part in jacobian)
    determinant = j_uu * j_vv - j_uv * j_uv
    usable = determinant > 1e-3
    inverse = torch.where(usable, 1 / torch.where(usable, determinant, 1.0), 0.0)
    miss_u, miss_v = u_d - reached_u, v_d - reached_v
    return (j_vv * miss_u - j_uv * miss_v) * inverse, (j_uu * miss_v - j_uv * miss_u) * inverse


def _selected(rows: LensRows, index: Tensor, n: int) -> LensRows:
    """Lens columns of some of n pixels."""

    def pick(column: Tensor) -> Tensor:
        return column.expand(n)[index]

    k1, k2, k3, k4 = (pick(column) for column in rows.k)
    return rows._replace(k=(k1, k2, k3, k4), p1=pick(rows.p1), p2=pick(rows.p2), limit=pick(rows.limit))


def _damped_newton(u: Tensor, v: Tensor, u_d: Tensor, v_d: Tensor, rows: LensRows) -> tuple[Tensor, Tensor, Tensor]:
    """Plane coordinates that radial-tangential distortion maps to (u_d, v_d), and whether they were found.

    A step is halved until it misses by less, stays within the radial limit, and stays on the sheet of the
    distortion that holds the axis (determinant > 0): so neither a start nor a target near the fold, where the
    determinant is 0, throws the search out. The arguments [n] are the start and the target.
    """
    n = len(u_d)
    u, v = u.clone(), v.clone()
    for _ in range(12):  # on the fold itself no step is possible: start a little inside
        _, _, (a, b, d) = distort(u, v, rows)
        folded = a * d - b * b < 0.05
        u, v = torch.where(folded, 0.8 * u, u), torch.where(folded, 0.8 * v, v)
    u, v = torch.where(folded, 0.0, u), torch.where(folded, 0.0, v)
    tolerance = 1e3 * torch.finfo(u.dtype).eps * (1 + torch.hypot(u_d, v_d))
    active = torch.arange(n)
    for _ in range(40):
        part = _selected(rows, active, n)
        target_u, target_v = u_d[active], v_d[active]
        reached_u, reached_v, (a, b, d) = distort(u[active], v[active], part)
        miss_u, miss_v = target_u - reached_u, target_v - reached_v
        inverse = 1 / (a * d - b * b)
        step_u, step_v = (d * miss_u - b * miss_v) * inverse, (a * miss_v - b * miss_u) * inverse
        miss = torch.hypot(miss_u, miss_v)
        size = torch.ones_like(miss)
        accepted = torch.zeros_like(miss, dtype=torch.bool)
        for _ in range(8):
            new_u, new_v = u[active] + size * step_u, v[active] + size * step_v
            reached_u, reached_v, (a, b, d) = distort(new_u, new_v, part)
            accepted = (
                (torch.hypot(target_u - reached_u, target_v - reached_v) < miss)
                & (a * d - b * b > 0)
                & (torch.hypot(new_u, new_v) <= part.limit)
            )
            if bool(accepted.all()):
                break
            size = torch.where(accepted, size, 0.5 * size)
        # What takes no step has arrived, up to rounding, or is as near as the sheet comes.
        active = active[accepted]
        if not len(active):
            break
        u[active], v[active] = new_u[accepted], new_v[accepted]
    reached_u, reached_v, _ = distort(u, v, rows)
    return u, v, torch.hypot(u_d - reached_u, v_d - reached_v) <= tolerance


def undistort(u_d: Tensor, v_d: Tensor, rows: LensRows) -> tuple[Tensor, Tensor]:
    """Plane coordinates that radial-tangential distortion maps to (u_d, v_d).

    The radius alone is inverted first, which cannot fail; damped Newton in two dimensions then adds p1 and p2,
    up to where they fold the image. Beyond the model's range (corners of wide lenses with strong k1) the
    radius is held at the limit.

    Args:
        u_d, v_d: Distorted plane coordinates [n].
        rows: Each one's lens.

    Gradient: first order in everything, by one more Newton step from the solution (implicit differentiation).
    """
    with torch.no_grad():
        rho = torch.hypot(u_d, v_d)
        limit = rows.limit.expand_as(rho)
        edge = radial(limit, rows.k)[0]
        within = rho <= edge
        ratio = _invert_radial(rho, rows.k, limit) / torch.where(rho > 0, rho, 1.0)
        ratio = torch.where(rho > 0, ratio, 1.0)
        u, v = u_d * ratio, v_d * ratio
        tangential = rows.p1.abs() + rows.p2.abs()
        # Tangential terms move a point by at most 4 (|p1| + |p2|) r2, and the edge of the range with it: whether a
        # pixel near the edge lies within shows when it is solved.
        near = rho <= edge + 4 * tangential * limit * limit
        index = ((rows.lens == 1) & (tangential > 0) & near).nonzero()[:, 0]
        if len(index):
            part = _selected(rows, index, len(rho))
            found_u, found_v, found = _damped_newton(u[index], v[index], u_d[index], v_d[index], part)
            within[index] = found
            u[index], v[index] = torch.where(found, found_u, u[index]), torch.where(found, found_v, v[index])
    if not u_d.requires_grad:  # as u_d comes from pixel and table, it tells for both
        return u, v
    step_u, step_v = _newton_step(u, v, u_d, v_d, rows)
    return torch.where(within, u + step_u, u), torch.where(within, v + step_v, v)


def fisheye_direction(u_d: Tensor, v_d: Tensor, rows: LensRows) -> Tensor:
    """Unit direction whose fisheye image is (u_d, v_d); angles up to `lens_limit`, 90 degrees and more included.

    Args:
        u_d, v_d: Distorted plane coordinates [n].
        rows: Each one's lens.

    Gradient: first order, as in `undistort`; on the axis itself the image is a pinhole's to first order.
    """
    squared = u_d * u_d + v_d * v_d
    off_axis = squared > 0
    rho = torch.sqrt(torch.where(off_axis, squared, 1.0))
    with torch.no_grad():
        limit = rows.limit.expand_as(rho)
        target = torch.where(off_axis, rho, 0.0)
        theta = _invert_radial(target, rows.k, limit)
        _, slope = radial(theta, rows.k)
        usable = (target <= radial(limit, rows.k)[0]) & (slope > 1e-6) & off_axis
        inverse = torch.where(usable, 1 / torch.where(usable, slope, 1.0), 0.0)
    theta = theta + (rho - radial(theta, rows.k)[0]) * inverse
    lateral = torch.where(off_axis, torch.sin(theta) / rho, 1.0)
    return torch.stack([lateral * u_d, lateral * v_d, torch.where(off_axis, torch.cos(theta), 1.0)], dim=-1)

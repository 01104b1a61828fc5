"""In which units corrections of cameras are learned, and which of them photos cannot tell.

A number's unit is how far it moves rays; see `refinement`, which learns the numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.geometry.cameras import Camera, rays_from_pixels

PHOTOS_PER_LENS: Final = 4
"""Photos that a lens must have taken, on average, to be corrected on its own; else all lenses are corrected alike."""
DISTANCES: Final = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Where points are supposed to stand before a camera, in units of the cameras' median distance from the middle."""
DAMPING: Final = 0.1
"""Share of each number's own effect that is added before units are made of effects (CamP's lambda)."""
PHOTOS_PER_WAY: Final = 8
"""Photos for each smooth function of the place that gains must not follow; with fewer, only their mean is held."""
LEAST_VARIATION: Final = 0.2
"""Where such a function varies by less than this over the photos, by its spread over the whole sphere, a field could
hardly follow it either, and gains may."""


def lens_key(camera: Camera) -> tuple[Any, ...]:
    """What tells lenses apart, whatever the number of pixels."""
    w, h = camera.width, camera.height
    numbers = (camera.fx / w, camera.fy / h, camera.cx / w, camera.cy / h, *camera.distortion)
    return (camera.lens, *(round(x, 9) for x in numbers))


def lens_numbers(cameras: Sequence[Camera]) -> dict[tuple[Any, ...], int]:
    """The number of each lens, by its key. All have the number 0, and so one correction, where lenses took fewer than
    `PHOTOS_PER_LENS` photos on average, as phones' files have it that state each photo's own focal length."""
    keys = list(dict.fromkeys(lens_key(camera) for camera in cameras))
    alike = len(keys) * PHOTOS_PER_LENS > len(cameras)
    return {key: 0 if alike else k for k, key in enumerate(keys)}


def rotation_of(vector: Float64[Tensor, "n 3"]) -> Float64[Tensor, "n 3 3"]:
    """Rotation about each vector by its length in radians (Rodrigues); differentiable at 0 too."""
    squared = (vector * vector).sum(1)[:, None, None]
    is_small = squared < 1e-8
    angle = torch.sqrt(torch.where(is_small, 1.0, squared))
    a = torch.where(is_small, 1 - squared / 6, torch.sin(angle) / angle)
    b = torch.where(is_small, 0.5 - squared / 24, (1 - torch.cos(angle)) / (angle * angle))
    x, y, z = vector.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + a * cross + b * (cross @ cross)


def inverse_root(effects: Float64[Tensor, "n k k"]) -> Float64[Tensor, "n k k"]:
    """The inverse square root of the mean products of what numbers do to rays.

    In units of its columns each number moves rays by one radian, and no two of them do the same. Damped, so that what
    hardly shows is not moved without bounds.
    """
    damped = effects + DAMPING * torch.diag_embed(effects.diagonal(dim1=1, dim2=2))
    size, vector = torch.linalg.eigh(damped)
    return (vector * size.clamp(min=1e-12).rsqrt()[:, None, :]) @ vector.mT


def _lattice(n: int = 7) -> Float64[Tensor, "n_pixels 2"]:
    """Places in a picture, as fractions of its width and height."""
    fraction = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.cartesian_prod(fraction, fraction)


def pose_effects(
    table: Float64[Tensor, "n_photos 24"], sizes: Float64[Tensor, "n_photos 2"]
) -> Float64[Tensor, "n_photos 6 6"]:
    """Mean products of what a camera's turns and shifts do to the directions in which it sees points at `DISTANCES`."""
    n, places = len(table), _lattice()
    pixel = (sizes[:, None] * places).reshape(-1, 2)
    index = torch.arange(n).repeat_interleave(len(places))
    _, direction = rays_from_pixels(table, index, pixel)
    x, y, z = direction.unbind(1)
    zero = torch.zeros_like(x)
    turn = -torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    across = torch.eye(3, dtype=table.dtype) - direction[:, :, None] * direction[:, None, :]
    found = torch.zeros(n, 6, 6, dtype=table.dtype)
    for distance in DISTANCES:
        effect = torch.cat([turn, across / distance], 2)
        found.index_add_(0, index, effect.mT @ effect / (len(places) * len(DISTANCES)))
    return found


def lens_effects(
    table: Float64[Tensor, "n_photos 24"], sizes: Float64[Tensor, "n_photos 2"], number: Tensor, *, follows: bool
) -> Float64[Tensor, "n_lenses 5 5"]:
    """Mean products of what a lens's focal length, principal point, k1 and k2 do to the directions of its pixels, as
    seen against points at `DISTANCES`.

    Args:
        table: The cameras.
        sizes: Width and height of each photo.
        number: Lens of each photo.
        follows: Whether cameras follow the focal length, so that of its effect only perspective is left.
    """
    places = _lattice()
    n_lenses = int(number.max()) + 1
    found = torch.zeros(n_lenses, 5, 5, dtype=table.dtype)
    for k in range(n_lenses):
        first = int((number == k).nonzero()[0])
        (width, height), (fx, fy, cx, cy) = sizes[first].tolist(), table[first, 12:16].tolist()
        u, v = ((places[:, i] * size - c) / f for i, (size, c, f) in enumerate(((width, cx, fx), (height, cy, fy))))
        r2, zero = u * u + v * v, torch.zeros_like(u)
        one = torch.ones_like(u)
        share = float((number == k).double().mean()) if follows else 0.0
        for distance in DISTANCES:
            left = 1 - share / distance
            across = torch.stack([left * u, one * width / fx, zero, u * r2, u * r2 * r2], 1)
            down = torch.stack([left * v, zero, one * height / fy, v * r2, v * r2 * r2], 1)
            found[k] += (across.T @ across + down.T @ down) / (len(places) * len(DISTANCES))
    return found


def pose_gauge(position: Float64[Tensor, "n 3"], to_units: Float64[Tensor, "n 6 6"]) -> Float64[Tensor, "n6 n_free"]:
    """Orthonormal directions, among all corrections of poses, in which all cameras move as one: three turns, three
    shifts and growth about their middle. To first order, which small corrections are.

    Args:
        position: Centres of the cameras, in the unit of the corrections' shifts.
        to_units: Makes of a turn and a shift the numbers that are learned.
    """
    n = len(position)
    out = position - position.mean(0)
    axes = torch.eye(3, dtype=position.dtype)
    none = torch.zeros(n, 3, dtype=position.dtype)
    ways = [torch.cat([none, axis.expand(n, 3)], 1) for axis in axes]
    ways += [torch.cat([axis.expand(n, 3), torch.linalg.cross(axis.expand(n, 3), out)], 1) for axis in axes]
    ways.append(torch.cat([none, out], 1))
    flat = torch.stack([(to_units @ way[:, :, None]).reshape(-1) for way in ways], 1)
    left, size, _ = torch.linalg.svd(flat, full_matrices=False)
    return left[:, size > 1e-6 * size[0]]


def smooth_ways(outward: Float64[Tensor, "n_photos 3"]) -> Float64[Tensor, "n_photos n_ways"]:
    """Orthonormal vectors over the photos in which gains could as well be how surfaces shine: a constant, and spherical
    harmonics of the direction from which a photo was taken, up to degree 2 where there are photos enough.

    Args:
        outward: From what the photos show to where each was taken, of any length.
    """
    n = len(outward)
    x, y, z = torch.nn.functional.normalize(outward, dim=1).unbind(1)
    first = [math.sqrt(3) * x, math.sqrt(3) * y, math.sqrt(3) * z]
    second = [math.sqrt(15) * x * y, math.sqrt(15) * y * z, math.sqrt(15) * z * x]
    second += [math.sqrt(15) / 2 * (x * x - y * y), math.sqrt(5) / 2 * (3 * z * z - 1)]
    chosen = first + second if n >= 9 * PHOTOS_PER_WAY else first if n >= 4 * PHOTOS_PER_WAY else []
    constant = torch.full((n, 1), 1 / math.sqrt(n), dtype=outward.dtype)
    if not chosen:
        return constant
    ways = torch.stack(chosen, 1) / math.sqrt(n)
    left, size, _ = torch.linalg.svd(ways - ways.mean(0), full_matrices=False)
    return torch.cat([constant, left[:, size > LEAST_VARIATION]], 1)

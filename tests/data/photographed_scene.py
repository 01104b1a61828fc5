"""Photos of a scene by formula, sharp and full of texture: a floor and two walls, for structure from motion."""

from functools import cache

import numpy as np
import torch

from hashfield.geometry.cameras import Camera, camera_rays, look_at


@cache
def _noise(seed: int) -> np.ndarray:
    """A texture [256, 256, 3] in 0..1 with structure of all sizes, that repeats."""
    random = np.random.default_rng(seed)
    total = np.zeros((256, 256, 3))
    for size, weight in ((8, 1.0), (32, 1.0), (128, 0.7), (256, 0.3)):
        total += weight * np.kron(random.random((size, size, 3)), np.ones((256 // size, 256 // size, 1)))
    return total / 3.0


def photo(camera: Camera) -> np.ndarray:
    """The picture that a camera takes, uint8 [h, w, 3]: floor z = 0 and walls at x = -2 and y = -2."""
    origin, direction = (part.numpy() for part in camera_rays(camera, torch.float64))
    best = np.full(len(origin), np.inf)
    color = np.full((len(origin), 3), 0.6)
    for axis, place in ((2, 0.0), (0, -2.0), (1, -2.0)):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (place - origin[:, axis]) / direction[:, axis]
        hit = origin + t[:, None] * direction
        a, b = (hit[:, k] for k in range(3) if k != axis)
        is_seen = (t > 0) & (t < best) & (hit[:, 2] > -1e-6) & (np.abs(a) < 4) & (np.abs(b) < 4)
        best[is_seen] = t[is_seen]
        texture = _noise(axis)
        u, v = ((c[is_seen] * 64) % 256 for c in (a, b))
        i, j, fu, fv = u.astype(int), v.astype(int), (u % 1)[:, None], (v % 1)[:, None]
        i2, j2 = (i + 1) % 256, (j + 1) % 256
        color[is_seen] = (1 - fu) * ((1 - fv) * texture[i, j] + fv * texture[i, j2]) + fu * (
            (1 - fv) * texture[i2, j] + fv * texture[i2, j2]
        )
    return (255 * color.reshape(camera.height, camera.width, 3)).round().astype(np.uint8)


def cameras(n: int = 10, size: tuple[int, int] = (400, 300)) -> list[Camera]:
    """Cameras on an arc around the corner that the planes make, at slightly different heights.

    Args:
        n: How many.
        size: Width and height in pixels.
    """
    found = []
    for k in range(n):
        angle = np.radians(10 + 70 * k / max(1, n - 1))
        position = (3.0 * np.cos(angle), 3.0 * np.sin(angle), 1.6 + 0.3 * (k % 3))
        pose = look_at(position, (-0.5, -0.5, 0.5))
        found.append(Camera(pose, *size, fx=360.0, fy=360.0, cx=size[0] / 2, cy=size[1] / 2))
    return found

"""The demo's own small scene: solids by formula, ray traced exactly, so that a first run needs no download.

Everything is numpy in float32, a whole picture at a time on one thread: a second thread gained nothing when
it was tried, the two wait for each other between numpy's calls. Rays are cast once per pixel; where the
picture changes fast a pixel is cast again on a 2x2 grid, which costs less than doing so everywhere and looks
the same.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import atan, cos, pi, sin, sqrt, tan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from hashfield.data.dataset import PosedImages, Scene
from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import Spaces

SIZE = 400
"""Width and height of every view, pixels."""
CAMERA_ANGLE_X = 0.64
"""Horizontal field of view, radians. 4 units away the picture is 2.65 wide."""
CAMERA_DISTANCE = 4.0
"""Distance of every camera from the origin, world units."""
N_VIEWS = {"train": 60, "test": 8}

_FINE = 2  # sub-pixels per axis where the picture changes fast
_CONTRAST = 0.06  # change to a neighbour (in 0..1, premultiplied) from which a pixel is cast again
_AIM = (0.0, 0.0, -0.17)
_PLINTH_TOP = -0.52

Vector = tuple[Any, Any, Any]
"""Components x, y, z, each an array over rays or one number for all of them."""
Color = tuple[float, float, float]
Texture = Callable[[Vector, Vector], Vector]
"""Point and normal in the solid's own frame -> linear albedo."""

_LIGHT = (0.50, -0.42, sqrt(1.0 - 0.50**2 - 0.42**2))  # unit vector towards the light
_LIGHT_COLOR = (1.00, 0.93, 0.82)
_FILL = (-0.72, 0.60, sqrt(1.0 - 0.72**2 - 0.60**2))  # from behind, weak, shadowless: no side is flat
_FILL_COLOR = (0.20, 0.23, 0.28)
_SKY_COLOR = (0.42, 0.50, 0.62)
_GROUND_COLOR = (0.30, 0.25, 0.21)


def _dot(a: Vector, b: Vector) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _along(origin: Vector, direction: Vector, t: Any) -> Vector:
    return origin[0] + direction[0] * t, origin[1] + direction[1] * t, origin[2] + direction[2] * t


def _take(v: Vector, index: np.ndarray) -> Vector:
    x, y, z = (c[index] if np.ndim(c) else c for c in v)
    return x, y, z


def _mix(a: Vector, b: Vector, w: Any) -> Vector:
    return a[0] + (b[0] - a[0]) * w, a[1] + (b[1] - a[1]) * w, a[2] + (b[2] - a[2]) * w


def _smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    u = np.clip((x - low) * (1.0 / (high - low)), 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def _wave(phase: np.ndarray, sharpness: float) -> np.ndarray:
    """A wave between 0 and 1 whose flanks steepen with sharpness, so that stripes keep soft edges."""
    return np.clip(np.sin(phase) * (0.5 * sharpness), -0.5, 0.5) + 0.5


def _plinth(p: Vector, n: Vector) -> Vector:
    x, y, _ = p
    a, b = _wave(x * (pi / 0.24), 6.0), _wave(y * (pi / 0.24), 6.0)
    color = _mix((0.16, 0.24, 0.33), (0.80, 0.76, 0.66), a + b - 2.0 * a * b)
    radius = np.sqrt(x * x + y * y)
    color = _mix(color, (0.74, 0.52, 0.20), _smoothstep(0.975, 0.990, radius))
    color = _mix(color, (0.24, 0.11, 0.06), _smoothstep(1.035, 1.050, radius))
    side = np.flatnonzero(np.abs(n[2]) < 0.5)
    if side.size:
        flutes = _mix((0.17, 0.07, 0.04), (0.42, 0.20, 0.10), _wave(40.0 * np.arctan2(y[side], x[side]), 1.5))
        for channel, wood in zip(color, flutes, strict=True):
            channel[side] = wood
    return color


def _marble(p: Vector, n: Vector) -> Vector:
    x, y, z = p
    swirl = 17.0 * (z + 0.07 * np.sin(7.0 * x + 2.0 * np.sin(5.0 * y)) + 0.05 * np.sin(8.0 * y + 4.0 * z))
    color = _mix((0.02, 0.22, 0.25), (0.88, 0.84, 0.72), _wave(swirl, 2.2))
    vein = _smoothstep(0.80, 1.0, np.sin(swirl + 1.2 * np.sin(6.0 * x + 3.0 * y)))
    return _mix(color, (0.85, 0.55, 0.18), vein * 0.8)


def _crate(half: tuple[float, float, float]) -> Texture:
    def texture(p: Vector, n: Vector) -> Vector:
        x, y, z = p
        rings = np.sqrt((x + 0.5) ** 2 + (0.6 * z - 0.2) ** 2) + 0.02 * np.sin(9.0 * y + 5.0 * x)
        color = _mix((0.40, 0.19, 0.08), (0.74, 0.45, 0.21), _wave(rings * 62.0, 1.0))
        # The second-smallest distance to a pair of faces is small along every edge of the box.
        a, b, c = (h - np.abs(q) for h, q in zip(half, p, strict=True))
        edge = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
        return _mix((0.07, 0.16, 0.12), color, _smoothstep(0.045, 0.058, edge))

    return texture


def _candy(major: float) -> Texture:
    def texture(p: Vector, n: Vector) -> Vector:
        x, y, z = p
        tube = np.arctan2(y, np.sqrt(x * x + z * z) - major)
        stripe = _wave(12.0 * np.arctan2(z, x) + 2.0 * tube, 3.0)
        return _mix((0.60, 0.05, 0.05), (0.93, 0.86, 0.72), stripe)

    return texture


def _barber(p: Vector, n: Vector) -> Vector:
    x, y, z = p
    stripe = _wave(3.0 * np.arctan2(y, x) + 15.0 * z, 3.0)
    color = _mix((0.10, 0.17, 0.50), (0.90, 0.88, 0.82), stripe)
    return _mix(color, (0.72, 0.50, 0.19), _smoothstep(0.29, 0.305, np.abs(z)))


def _gold(p: Vector, n: Vector) -> Vector:
    return _mix((0.70, 0.42, 0.09), (0.90, 0.62, 0.20), _wave(30.0 * p[2], 1.0))


def _dots(base: Color, dot: Color, frequency: float, phase: float) -> Texture:
    def texture(p: Vector, n: Vector) -> Vector:
        x, y, z = n
        wave = np.sin(frequency * x + phase) * np.sin(frequency * y) * np.sin(frequency * z + 0.5)
        return _mix(base, dot, _smoothstep(0.10, 0.30, np.abs(wave)))

    return texture


@dataclass(frozen=True)
class _Solid:
    """One shape, turned by `yaw` about z, then moved to `center`. Its ray functions work in its own frame."""

    kind: Literal["sphere", "box", "cylinder", "torus"]
    center: tuple[float, float, float]
    shape: tuple[float, ...]
    """Sphere: radius; box: half edges; cylinder (upright): radius, half height; torus (axis y): radii."""
    texture: Texture
    yaw: float = 0.0
    gloss: float = 0.35
    """Strength of the highlight."""
    exponent: float = 60.0
    """Blinn-Phong exponent."""
    mirror: float = 0.25
    """Share of the mirrored sky at grazing angles."""

    @property
    def bound(self) -> float:
        """Radius of a sphere about `center` that holds the solid."""
        if self.kind == "torus":
            return self.shape[0] + self.shape[1]
        return sqrt(sum(s * s for s in self.shape))

    def to_own(self, v: Vector) -> Vector:
        if self.yaw == 0.0:
            return v
        c, s = cos(self.yaw), sin(self.yaw)
        return c * v[0] + s * v[1], c * v[1] - s * v[0], v[2]

    def to_world(self, v: Vector) -> Vector:
        if self.yaw == 0.0:
            return v
        c, s = cos(self.yaw), sin(self.yaw)
        return c * v[0] - s * v[1], s * v[0] + c * v[1], v[2]

    def crossing(self, o: Vector, d: Vector) -> tuple[np.ndarray, np.ndarray]:
        """Where rays enter and leave the solid; enter > leave is a miss. For the torus: a hull around it."""
        if self.kind == "box":
            spans = [_slab(o[axis], d[axis], half) for axis, half in enumerate(self.shape)]
        elif self.kind == "cylinder":
            across = d[0] * d[0] + d[1] * d[1]
            reach = o[0] * o[0] + o[1] * o[1] - self.shape[0] ** 2
            spans = [_ball(np.maximum(across, 1e-12), o[0] * d[0] + o[1] * d[1], reach)]
            spans.append(_slab(o[2], d[2], self.shape[1]))
        else:
            spans = [_ball(1.0, _dot(o, d), _dot(o, o) - self.bound**2)]
            if self.kind == "torus":
                spans.append(_slab(o[1], d[1], self.shape[1]))
        enter, leave = spans[0]
        for near, far in spans[1:]:
            enter, leave = np.maximum(enter, near), np.minimum(leave, far)
        return enter, leave

    def first_hit(self, o: Vector, d: Vector, start: float = 0.0) -> np.ndarray:
        """Distance at which each ray first meets the solid beyond `start`, infinite where it does not."""
        enter, leave = self.crossing(o, d)
        meets = (enter <= leave) & (leave > start)
        if self.kind != "torus":
            return np.where(meets, np.maximum(enter, start), np.float32(np.inf))
        t = np.full(meets.shape, np.inf, np.float32)
        live = np.flatnonzero(meets)
        at, end = np.maximum(enter, start)[live], leave[live]
        o, d = _take(o, live), _take(d, live)
        # Sphere tracing: the distance is exact outside, so steps never overshoot and rays close in quickly.
        for _ in range(16):
            if live.size == 0:
                break
            gap = at
            for _ in range(4):  # rays that have arrived stand still, which is cheaper than sorting them out
                x, y, z = _along(o, d, at)
                ring = np.sqrt(x * x + z * z) - self.shape[0]
                gap = np.sqrt(ring * ring + y * y) - self.shape[1]
                at = at + gap
            arrived = gap < 1e-5
            t[live[arrived]] = at[arrived]
            going = np.flatnonzero(~arrived & (at < end))
            live, at, end, o, d = live[going], at[going], end[going], _take(o, going), _take(d, going)
        return t

    def normal(self, p: Vector) -> Vector:
        x, y, z = p
        if self.kind == "sphere":
            k = 1.0 / self.shape[0]
            return x * k, y * k, z * k
        if self.kind == "torus":
            k = 1.0 - self.shape[0] / np.sqrt(x * x + z * z)
            x, z = x * k, z * k
            k = 1.0 / np.sqrt(x * x + y * y + z * z)
            return x * k, y * k, z * k
        if self.kind == "cylinder":
            ring = np.sqrt(x * x + y * y)
            on_side = (ring - self.shape[0]) > (np.abs(z) - self.shape[1])
            k = on_side / np.maximum(ring, np.float32(1e-6))
            return x * k, y * k, np.copysign((~on_side).astype(np.float32), z)
        gaps = [np.abs(c) - half for c, half in zip(p, self.shape, strict=True)]
        face = np.argmax(np.stack(gaps), axis=0)
        x, y, z = (np.copysign((face == axis).astype(np.float32), c) for axis, c in enumerate(p))
        return x, y, z


def _slab(o: Any, d: Any, half: float) -> tuple[Any, Any]:
    """Where rays enter and leave the space |x| <= half, along one axis."""
    inverse = 1.0 / np.where(np.abs(d) < 1e-12, np.float32(1e-12), d)
    a, b = (-half - o) * inverse, (half - o) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _ball(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """Roots of a t^2 + 2 b t + c; (inf, 0) where there are none."""
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0.0))
    return np.where(square < 0.0, np.float32(np.inf), (-b - root) / a), (-b + root) / a


def _make_solids() -> tuple[_Solid, ...]:
    top = _PLINTH_TOP
    crate = (0.27, 0.27, 0.33)
    red = _dots((0.62, 0.06, 0.05), (0.95, 0.85, 0.60), 6.0, 0.4)
    yellow = _dots((0.90, 0.55, 0.05), (0.16, 0.22, 0.40), 5.0, 1.1)
    green = _dots((0.04, 0.36, 0.22), (0.90, 0.92, 0.80), 5.0, 0.9)
    violet = _dots((0.24, 0.07, 0.38), (0.92, 0.70, 0.80), 5.0, 0.2)
    return (
        # The plinth comes first: shadows and the sky's share treat it apart.
        _Solid("cylinder", (0.0, 0.0, top - 0.11), (1.12, 0.11), _plinth, 0.0, 0.15, 30.0, 0.20),
        _Solid("sphere", (-0.36, 0.36, top + 0.46), (0.46,), _marble, 0.0, 0.55, 90.0, 0.45),
        _Solid("box", (0.42, 0.42, top + crate[2]), crate, _crate(crate), 0.45, 0.12, 25.0, 0.10),
        _Solid("sphere", (0.42, 0.42, top + 2 * crate[2] + 0.22), (0.22,), _gold, 0.0, 0.9, 70.0, 0.60),
        _Solid("torus", (0.40, -0.42, top + 0.42), (0.31, 0.11), _candy(0.31), 0.62, 0.5, 60.0, 0.35),
        _Solid("cylinder", (-0.52, -0.40, top + 0.34), (0.17, 0.34), _barber, 0.0, 0.4, 50.0, 0.30),
        _Solid("sphere", (-0.52, -0.40, top + 0.68 + 0.14), (0.14,), red, 0.0, 0.7, 80.0, 0.45),
        _Solid("sphere", (-0.02, -0.66, top + 0.16), (0.16,), yellow, 0.0, 0.6, 80.0, 0.40),
        _Solid("sphere", (-0.20, -0.22, top + 0.11), (0.11,), green, 0.0, 0.6, 80.0, 0.40),
        _Solid("sphere", (0.80, 0.02, top + 0.13), (0.13,), violet, 0.0, 0.6, 80.0, 0.40),
    )


_SOLIDS = _make_solids()


def _sunlight(me: int, p: Vector, n: Vector, square: list[np.ndarray]) -> np.ndarray:
    """Cosine between normal and light where the light reaches the point, 0 elsewhere.

    Args:
        me: index of the solid the points lie on.
        square: for each solid, its centre's squared distance from the points.
    """
    lit = np.maximum(_dot(n, _LIGHT), 0.0)
    height = _dot(p, _LIGHT)
    for index, solid in enumerate(_SOLIDS):
        if index == 0 or (index == me and solid.kind != "torus"):
            continue  # nothing lies below the plinth; a convex solid shades itself through its normal alone
        along = _dot(solid.center, _LIGHT) - height
        meets = (square[index] - along * along < solid.bound**2) & (along > -solid.bound) & (lit > 0.0)
        near = np.flatnonzero(meets)
        if near.size:
            origin = solid.to_own(_minus(_take(p, near), solid.center))
            hit = solid.first_hit(origin, solid.to_own(_LIGHT), start=4e-3)
            lit[near[np.isfinite(hit)]] = 0.0
    return lit


def _open_share(me: int, p: Vector, n: Vector, square: list[np.ndarray]) -> np.ndarray:
    """Share of the sky left open by the other solids, each taken as a sphere of like size; shares multiply.

    Source: the form factor of a sphere seen from a surface point, max(0, n.c)/|c| * (r/|c|)^2.
    """
    if me == 0:
        open_share = np.ones_like(p[2])
    else:  # half of what looks down sees the plinth, fading with height
        open_share = 1.0 - 0.55 * np.maximum(-n[2], 0.0) / (1.0 + 3.0 * np.maximum(p[2] - _PLINTH_TOP, 0.0))
    outwards = _dot(n, p)
    for index, solid in enumerate(_SOLIDS):
        if index in (0, me):
            continue
        radius = solid.bound if solid.kind == "sphere" else 0.86 * solid.bound
        weight = (0.45 if solid.kind == "torus" else 0.85) * radius * radius
        apart = np.maximum(square[index], radius * radius)
        facing = np.maximum(_dot(solid.center, n) - outwards, 0.0)
        open_share *= np.maximum(1.0 - weight * facing / (apart * np.sqrt(apart)), 0.15)
    return open_share


def _shade(me: int, origin: Vector, direction: Vector, t: np.ndarray) -> list[np.ndarray]:
    """Display colour in [0, 1], encoded with a square root, of points hit on solid `me`."""
    solid = _SOLIDS[me]
    p = _along(origin, direction, t)
    own = solid.to_own(_minus(p, solid.center))
    own_normal = solid.normal(own)
    n = solid.to_world(own_normal)
    albedo = solid.texture(own, own_normal)
    # No matrix product here: BLAS would wake threads of its own for it.
    norm = _dot(p, p)
    square = [norm + (_dot(s.center, s.center) - 2.0 * _dot(s.center, p)) for s in _SOLIDS]
    open_share = _open_share(me, p, n, square)
    sun = _sunlight(me, p, n, square)

    cosine = np.clip(-_dot(n, direction), 0.0, 1.0)
    half = _minus(_LIGHT, direction)
    along = np.maximum(_dot(n, half), 0.0) / np.sqrt(_dot(half, half))
    highlight = (sun > 0.0) * (solid.gloss * np.exp((0.5 * solid.exponent) * (along * along - 1.0)))
    # A soft sky is mirrored in the surface; Schlick's curve says how much of it.
    fresnel = solid.mirror * open_share * (0.10 + 0.90 * (1.0 - cosine) ** 4)
    sky = _smoothstep(-0.25, 0.65, n[2] * (2.0 * cosine) + direction[2])
    above = (0.5 + 0.5 * n[2]) * open_share
    below = open_share - above
    fill = np.maximum(_dot(n, _FILL), 0.0) * open_share
    color = []
    for i in range(3):
        light = _SKY_COLOR[i] * above + _GROUND_COLOR[i] * below + _FILL_COLOR[i] * fill + _LIGHT_COLOR[i] * sun
        linear = albedo[i] * light + highlight
        linear = linear + fresnel * (0.12 + (0.75 + 0.2 * _SKY_COLOR[i]) * sky - linear)
        color.append(np.sqrt(np.clip(linear / (1.0 + 0.12 * linear), 0.0, 1.0)))
    return color


def _trace(origin: Vector, direction: Vector) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied RGBA [4, n] and distance [n] (0 where empty) of rays that start at one point."""
    n = direction[0].size
    distance = np.full(n, np.inf, np.float32)
    owner = np.full(n, -1, np.int8)
    for index, solid in enumerate(_SOLIDS):
        start = _minus(origin, solid.center)
        along = _dot(start, direction)
        near = np.flatnonzero(along * along > _dot(start, start) - solid.bound**2)
        if near.size == 0:
            continue
        hit = solid.first_hit(solid.to_own(start), solid.to_own(_take(direction, near)))
        closer = np.flatnonzero(hit < distance[near])
        distance[near[closer]] = hit[closer]
        owner[near[closer]] = index
    rgba = np.zeros((4, n), np.float32)
    for index in range(len(_SOLIDS)):
        mine = np.flatnonzero(owner == index)
        if mine.size:
            color = _shade(index, origin, _take(direction, mine), distance[mine])
            for channel, values in zip(rgba, color, strict=False):
                channel[mine] = values
            rgba[3, mine] = 1.0
    distance[owner < 0] = 0.0
    return rgba, distance


def _render(camera: Camera) -> tuple[UInt8[np.ndarray, "h w 4"], Float32[np.ndarray, "h w"]]:
    """Picture with straight alpha, and distance along the ray of each pixel's centre."""
    pose = camera.camera_to_world.tolist()
    origin = (pose[0][3], pose[1][3], pose[2][3])
    height, width = camera.height, camera.width

    def trace(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v = (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy
        w = 1.0 / np.sqrt(u * u + v * v + 1.0)
        u, v = u * w, v * w
        right, down, forward = (pose[i][0] * u + pose[i][1] * v + pose[i][2] * w for i in range(3))
        return _trace(origin, (right, down, forward))

    y, x = (g.reshape(-1).astype(np.float32) + 0.5 for g in np.mgrid[0:height, 0:width])
    rgba, distance = trace(x, y)

    uneven = np.zeros((height, width), bool)
    for channel in rgba.reshape(4, height, width):
        jump = np.abs(channel[1:] - channel[:-1]) > _CONTRAST
        uneven[1:] |= jump
        uneven[:-1] |= jump
        jump = np.abs(channel[:, 1:] - channel[:, :-1]) > _CONTRAST
        uneven[:, 1:] |= jump
        uneven[:, :-1] |= jump
    again = np.flatnonzero(uneven)
    step = (np.arange(_FINE, dtype=np.float32) + 0.5) / _FINE - 0.5
    dy, dx = (g.reshape(-1) for g in np.meshgrid(step, step, indexing="ij"))
    fine, _ = trace((x[again, None] + dx).reshape(-1), (y[again, None] + dy).reshape(-1))
    rgba[:, again] = fine.reshape(4, -1, _FINE**2).mean(axis=2)

    rgba[:3] /= np.maximum(rgba[3], 1e-6)
    image = (np.clip(rgba, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image.T).reshape(height, width, 4), distance.reshape(height, width)


def _look_at_middle(position: np.ndarray) -> np.ndarray:
    """Camera-to-world [3, 4] (OpenCV axes) of an upright camera that looks at the scene's middle."""
    forward = np.asarray(_AIM) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, position], axis=1)


def _positions(split: str, n_views: int, seed: int) -> np.ndarray:
    """Camera centres [n, 3] on the upper hemisphere; the test views stand between the training views."""
    generator = np.random.default_rng([seed, 0 if split == "train" else 1])
    i = np.arange(n_views)
    start = generator.uniform(0.0, 2.0 * pi)
    if split == "train":  # a golden spiral: equal area per view, from 8 to 78 degrees above the horizon
        low, high = sin(0.14), sin(1.36)
        height = low + (high - low) * (i + generator.uniform(0.3, 0.7, n_views)) / n_views
        angle = start + i * (pi * (3.0 - sqrt(5.0)))
    else:
        height = np.sin(np.deg2rad(np.resize([20.0, 45.0, 30.0, 60.0], n_views)))
        angle = start + 2.0 * pi * i / n_views
    ring = np.sqrt(1.0 - height * height)
    return CAMERA_DISTANCE * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)


def make_demo_scene(
    seed: int = 0, *, size: int = SIZE, n_train: int = N_VIEWS["train"], n_test: int = N_VIEWS["test"]
) -> tuple[Scene, dict[str, list[Float[np.ndarray, "h w"]]]]:
    """The demo's scene with its views, and the exact depth of each view.

    Ten solids, z up, that stay within 1.2 world units of the middle in x and y and 0.75 in z: with the usual
    scale of 0.33 they lie well inside a box of `aabb_scale` 1.

    Args:
        seed: turns and jitters the cameras; the solids are always the same.
        size: width and height of every view, pixels.
        n_train: number of training views.
        n_test: number of test views.

    Returns:
        The scene (splits "train" and "test", uint8 RGBA with straight alpha, exact pinhole cameras), and per
        split a list of float32 images: distance along the ray through the pixel's centre, world units, 0
        where it meets nothing.
    """
    focal = size / 2 / tan(CAMERA_ANGLE_X / 2)
    splits: dict[str, PosedImages] = {}
    depths: dict[str, list[np.ndarray]] = {}
    for split, n_views in {"train": n_train, "test": n_test}.items():
        cameras = tuple(
            Camera(torch.from_numpy(_look_at_middle(position)), size, size, focal, focal, size / 2, size / 2)
            for position in _positions(split, n_views, seed)
        )
        rendered = [_render(camera) for camera in cameras]
        splits[split] = PosedImages(
            cameras=cameras,
            images=tuple(image for image, _ in rendered),
            names=tuple(f"{split}/r_{i}.png" for i in range(n_views)),
        )
        depths[split] = [depth for _, depth in rendered]
    scene = Scene(
        name="demo",
        path=Path("demo"),
        form="by formula",
        spaces=Spaces(),
        has_alpha=True,
        splits=splits,
        notes=(f"scene made by formula: {n_train} training and {n_test} test views of {size}x{size}",),
    )
    return scene, depths


def save_nerf_synthetic(scene: Scene, folder: Path) -> None:
    """Write views of centred pinholes that share one angle of view in NeRF-synthetic form.

    Args:
        folder: made where missing; files of the same names are replaced.
    """
    for split, views in scene.splits.items():
        frames = []
        for camera, image, name in zip(views.cameras, views.images, views.names, strict=True):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target, compress_level=6)
            pose = camera.camera_to_world.numpy() * np.array([1.0, -1.0, -1.0, 1.0])  # to OpenGL axes
            matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
            frames.append({"file_path": f"./{name.removesuffix('.png')}", "transform_matrix": matrix})
        angle = 2.0 * atan(views.cameras[0].width / 2 / views.cameras[0].fx)
        text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=2)
        (folder / f"transforms_{split}.json").write_text(text + "\n", encoding="utf-8")

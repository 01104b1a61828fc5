"""Camera paths for pictures and videos: a turntable made from training cameras, and interpolation between keyframes."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Final

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.geometry.cameras import Camera, look_at

_FULL_CIRCLE_GAP: Final = math.radians(120)
"""Cameras that leave out a wider arc than this around the scene do not get a full turntable."""
_SWING: Final = 0.9
"""Share of the covered arc that a swinging camera uses: its ends are seen from one side only."""
_LEAST_SWING: Final = math.radians(20)
"""A swing is never narrower than this, or cameras side by side would make a still picture."""


# --- turntable


def focus_point(cameras: Sequence[Camera]) -> Float64[Tensor, " 3"]:
    """Point of the world nearest to all optical axes in the least-squares sense.

    Minimises sum |(1 - d d^T)(p - o)|^2 over the axes o + t d. Where the axes are parallel the distance along
    them is not determined; the point then lies in front of the mean position by twice the cameras' mean
    distance from it.

    Raises:
        ConfigError: no cameras.
    """
    if not cameras:
        raise ConfigError("focus_point: no cameras")
    position = torch.stack([camera.position for camera in cameras])
    forward = torch.stack([camera.forward for camera in cameras])
    forward = forward / forward.norm(dim=1, keepdim=True)
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    center = position.mean(dim=0)
    spread = float((position - center).norm(dim=1).mean())
    guess = center + forward.mean(dim=0) * (2 * spread if spread > 0 else 1.0)
    # Weak pull towards the guess: decides only what the axes leave open
    pull = 1e-6 * torch.eye(3, dtype=torch.float64)
    offset = position - guess
    return guess + torch.linalg.solve(across.mean(dim=0) + pull, (across @ offset[:, :, None]).mean(dim=0)[:, 0])


def up_axis(cameras: Sequence[Camera]) -> Float64[Tensor, " 3"]:
    """Unit vector of the world that is up for the cameras.

    The direction most nearly perpendicular to all cameras' right axes (nobody rolls a camera on purpose),
    with the sign of their mean up axis; exact for a turntable whatever its elevations. Where the right axes
    do not span a plane (cameras side by side) or contradict the mean, the mean up axis itself; +z where that
    vanishes.

    Source: nerfstudio, camera_utils.py (orientation "vertical" and its threshold 0.17).
    """
    mean = torch.stack([camera.up for camera in cameras]).mean(dim=0)
    fallback = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    mean = mean / mean.norm() if float(mean.norm()) > 1e-3 else fallback
    right = torch.stack([camera.camera_to_world[:, 0] for camera in cameras])
    # the 3x3 scatter matrix has the axes as eigenvectors, squared singular values in growing order
    values, vectors = torch.linalg.eigh(right.T @ right)
    vertical = vectors[:, 0]
    cosine = float(vertical @ mean)
    if math.sqrt(max(float(values[1]), 0.0)) <= 0.17 * math.sqrt(len(cameras)) or abs(cosine) < 0.7:
        return mean
    return vertical if cosine > 0 else -vertical


def orbit_path(
    cameras: Sequence[Camera],
    n_frames: int,
    *,
    width: int | None = None,
    height: int | None = None,
    turns: float = 1.0,
    full_circle: bool | None = None,
) -> tuple[Camera, ...]:
    """Pinhole cameras on a turntable around what the given cameras look at; the last frame leads back to the
    first.

    The axis is `up_axis` through `focus_point`; distance and elevation are the cameras' medians. Where the
    cameras leave out an arc of more than 120 degrees, the far side has not been seen: the path then swings to
    and fro inside the covered arc instead of going round. Where most cameras look away from the focus (a
    panorama), the path stands at their median position and turns the view.

    Args:
        cameras: training cameras, world.
        n_frames: frames of one loop, >= 1.
        width: pixels; default the first camera's.
        height: pixels; default the first camera's. The shorter side keeps the cameras' median field of view.
        turns: rounds of a full circle; negative turns the other way.
        full_circle: True or False forces the circle or the swing.

    Raises:
        ConfigError: no cameras, or a count or size below 1.
    """
    if not cameras:
        raise ConfigError("orbit_path: no cameras to make an orbit from")
    width = cameras[0].width if width is None else width
    height = cameras[0].height if height is None else height
    for name, value in (("n_frames", n_frames), ("width", width), ("height", height)):
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")

    up = up_axis(cameras)
    east = _perpendicular(up)
    north = torch.linalg.cross(up, east)
    center = focus_point(cameras)
    position = torch.stack([camera.position for camera in cameras])
    forward = torch.stack([camera.forward for camera in cameras])
    to_center = center - position
    distance = to_center.norm(dim=1)
    looks_inward = 2 * int(((to_center * forward).sum(dim=1) > 0).sum()) >= len(cameras)

    # `arm` is where a camera stands as seen from the focus, or where it looks in a panorama
    arm = -to_center / distance.clamp(min=1e-12)[:, None] if looks_inward else forward
    elevation = float(torch.asin((arm @ up).clamp(-1, 1)).median())
    elevation = max(-1.5, min(1.5, elevation))  # 86 degrees: nearer to the axis the picture would spin
    azimuth = torch.atan2(arm @ north, arm @ east)
    start, covered = _covered_arc(azimuth)
    circle = covered >= 2 * math.pi - _FULL_CIRCLE_GAP if full_circle is None else full_circle
    radius = max(float(distance.median()), 1e-6)

    focal = usual_focal_px(cameras, width, height)
    stand = position.median(dim=0).values
    path = []
    for frame in range(n_frames):
        phase = 2 * math.pi * frame / n_frames
        if circle:
            angle = float(azimuth[0]) + turns * phase
        else:
            swing = 0.5 * max(_SWING * covered, _LEAST_SWING)
            angle = start + 0.5 * covered + swing * math.sin(phase)
        around = east * math.cos(angle) + north * math.sin(angle)
        direction = around * math.cos(elevation) + up * math.sin(elevation)
        pose = (
            look_at(center + radius * direction, center, up) if looks_inward else look_at(stand, stand + direction, up)
        )
        path.append(Camera(pose, width, height, focal, focal, 0.5 * width, 0.5 * height))
    return tuple(path)


def usual_focal_px(cameras: Sequence[Camera], width: int, height: int) -> float:
    """Focal length in pixels at which a picture's shorter side has the cameras' median field of view.

    Args:
        cameras: At least one.
        width: Pixels of the picture.
        height: Pixels of the picture.
    """
    return min(width, height) * statistics.median(c.fy / min(c.width, c.height) for c in cameras)


def _perpendicular(axis: Tensor) -> Tensor:
    """A unit vector across `axis`, made from the world axis that is farthest from it."""
    other = torch.eye(3, dtype=torch.float64)[int(axis.abs().argmin())]
    across = other - axis * (axis @ other)
    return across / across.norm()


def _covered_arc(azimuth: Tensor) -> tuple[float, float]:
    """Start and extent (radians) of the shortest arc that holds all angles."""
    ordered = torch.sort(azimuth).values.tolist()
    gaps = [
        (following - angle) % (2 * math.pi)
        for angle, following in zip(ordered, [*ordered[1:], ordered[0]], strict=True)
    ]
    if len(ordered) == 1 or max(gaps) == 0:
        return ordered[0], 0.0
    widest = max(range(len(gaps)), key=gaps.__getitem__)
    return ordered[(widest + 1) % len(ordered)], 2 * math.pi - gaps[widest]


# --- interpolation


def interpolate_path(
    keyframes: Sequence[Camera],
    n_frames: int,
    *,
    times: Sequence[float] | None = None,
    closed: bool = False,
) -> tuple[Camera, ...]:
    """Cameras along a smooth path through all keyframes.

    Cubic Hermite splines with central-difference slopes (Catmull-Rom for even times): positions, logarithms
    of focal lengths, principal points, and rotations as quaternions normalised after blending.

    Args:
        keyframes: at least one; same lens and distortion; sizes are those of the first.
        n_frames: frames to make. An open path's first and last frame are the first and last keyframe; a
            closed path's last frame is one step before the first keyframe.
        times: one growing number per keyframe; default 0, 1, 2, ... A closed path takes as long from the last
            keyframe back to the first as the others take on average.
        closed: whether the path returns to its start.

    Raises:
        ConfigError: no keyframes, lenses differ, times do not grow, or `n_frames` < 1.
    """
    if not keyframes:
        raise ConfigError("interpolate_path: no keyframes")
    if n_frames < 1:
        raise ConfigError(f"n_frames: expected at least 1, got {n_frames}")
    first = keyframes[0]
    if any((camera.lens, camera.distortion) != (first.lens, first.distortion) for camera in keyframes):
        raise ConfigError("interpolate_path: keyframes differ in lens or distortion")
    knots = [float(index) for index in range(len(keyframes))] if times is None else [float(t) for t in times]
    if len(knots) != len(keyframes) or not all(math.isfinite(t) for t in knots):
        raise ConfigError(f"times: expected {len(keyframes)} finite numbers, got {times!r}")
    if any(later <= earlier for earlier, later in itertools.pairwise(knots)):
        raise ConfigError(f"times: expected growing numbers, got {times!r}")
    if len(keyframes) == 1:
        return (first,) * n_frames

    values = torch.stack([_pose_values(camera.resized(first.width, first.height)) for camera in keyframes])
    for index in range(1, len(values)):  # q and -q are one rotation: take the nearer
        if float(values[index, :4] @ values[index - 1, :4]) < 0:
            values[index, :4] *= -1
    period = None
    if closed:
        period = (knots[-1] - knots[0]) * len(knots) / (len(knots) - 1)
    sample = _spline(knots, values, period)
    span = period if period is not None else knots[-1] - knots[0]
    steps = n_frames if closed else max(n_frames - 1, 1)
    return tuple(_camera_from_values(sample(knots[0] + span * frame / steps), first) for frame in range(n_frames))


def _pose_values(camera: Camera) -> Tensor:
    """Quaternion (4), position (3), log focal lengths (2), principal point (2)."""
    optics = [math.log(camera.fx), math.log(camera.fy), camera.cx, camera.cy]
    return torch.cat(
        [
            quaternion_of(camera.camera_to_world[:, :3]),
            camera.position,
            torch.tensor(optics, dtype=torch.float64),
        ]
    )


def _camera_from_values(values: Tensor, like: Camera) -> Camera:
    pose = torch.cat([rotation_of(values[:4]), values[4:7, None]], dim=1)
    log_fx, log_fy, cx, cy = values[7:].tolist()
    return Camera(pose, like.width, like.height, math.exp(log_fx), math.exp(log_fy), cx, cy, like.lens, like.distortion)


def _spline(knots: list[float], values: Tensor, period: float | None) -> Callable[[float], Tensor]:
    """Cubic Hermite spline through (knots, values); with a period it closes on itself."""
    count = len(knots)

    def knot(index: int) -> tuple[float, Tensor]:
        if period is None:
            index = min(max(index, 0), count - 1)
            return knots[index], values[index]
        rounds, index = divmod(index, count)
        value = values[index]
        # Once round, a quaternion may come back with the other sign
        sign = torch.ones_like(value)
        if rounds % 2 and float(values[0, :4] @ values[-1, :4]) < 0:
            sign[:4] = -1
        return knots[index] + rounds * period, value * sign

    def slope(index: int) -> Tensor:
        (t0, before), (t1, after) = knot(index - 1), knot(index + 1)
        return (after - before) / (t1 - t0)

    def sample(t: float) -> Tensor:
        last = count - 1 if period is not None else count - 2
        index = next((i for i in range(last, 0, -1) if knots[i] <= t), 0)
        (t0, start), (t1, end) = knot(index), knot(index + 1)
        width = t1 - t0
        s = (t - t0) / width
        return (
            (2 * s**3 - 3 * s**2 + 1) * start
            + (s**3 - 2 * s**2 + s) * width * slope(index)
            + (3 * s**2 - 2 * s**3) * end
            + (s**3 - s**2) * width * slope(index + 1)
        )

    return sample


def quaternion_of(rotation: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z) of a rotation matrix [3, 3], by the largest of its four components."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    candidates = (
        (1 + a + e + i, (1 + a + e + i, h - f, c - g, d - b)),
        (1 + a - e - i, (h - f, 1 + a - e - i, b + d, c + g)),
        (1 - a + e - i, (c - g, b + d, 1 - a + e - i, f + h)),
        (1 - a - e + i, (d - b, c + g, f + h, 1 - a - e + i)),
    )
    best = torch.tensor(max(candidates)[1], dtype=torch.float64)
    return best / best.norm()


def rotation_of(quaternion: Tensor) -> Tensor:
    """Rotation matrix of a quaternion (w, x, y, z) of any length but 0."""
    w, x, y, z = (quaternion / quaternion.norm()).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )

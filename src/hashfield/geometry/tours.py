"""Camera paths made from the cameras of a scene: a spiral before it, a ride along its photos, panoramas."""

import itertools
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.geometry.cameras import Camera, look_at, panorama
from hashfield.geometry.paths import focus_point, interpolate_path, quaternion_of, up_axis, usual_focal_px


def _check(cameras: Sequence[Camera], n_frames: int) -> None:
    if not cameras:
        raise ConfigError("a camera path: no cameras to make it from")
    if n_frames < 1:
        raise ConfigError(f"n_frames: expected at least 1, got {n_frames}")


def spiral_path(
    cameras: Sequence[Camera], n_frames: int, *, width: int, height: int, turns: int = 2
) -> tuple[Camera, ...]:
    """Pinhole cameras on a flat spiral before what forward-facing cameras look at; the last frame leads to the first.

    The spiral lies around the cameras' mean, within the distances that nine tenths of them keep from it along their
    mean axes, and every frame looks at the point in which the cameras' axes meet.

    Args:
        cameras: Training cameras, world.
        n_frames: Frames of one loop, >= 1.
        width: Pixels.
        height: Pixels.
        turns: Rounds of the circle while the distance to the scene swings once to and fro.

    Raises:
        ConfigError: no cameras, or no frames.

    Source: LLFF's path, bmild/nerf load_llff.py (`render_path_spiral`).
    """
    _check(cameras, n_frames)
    position = torch.stack([camera.position for camera in cameras])
    center, target = position.mean(dim=0), focus_point(cameras)
    if float((target - center).norm()) < 1e-9:  # cameras on a circle around it
        target = center + cameras[0].forward
    axes = look_at(center, target, up_axis(cameras))[:, :3]
    radii = torch.quantile(((position - center) @ axes).abs(), 0.9, dim=0)
    # cameras of one place still give a picture that moves
    radii = radii.clamp(min=0.02 * float((target - center).norm()))
    radii[2] = min(float(radii[2]), 0.5 * float((target - center).norm()))
    focal = usual_focal_px(cameras, width, height)
    path = []
    for frame in range(n_frames):
        angle = torch.tensor(2 * torch.pi * turns * frame / n_frames, dtype=torch.float64)
        offset = torch.stack([torch.cos(angle), -torch.sin(angle), -torch.sin(angle / turns)])
        pose = look_at(center + axes @ (radii * offset), target, -axes[:, 1])
        path.append(Camera(pose, width, height, focal, focal, 0.5 * width, 0.5 * height))
    return tuple(path)


def along_path(cameras: Sequence[Camera], n_frames: int, *, width: int, height: int) -> tuple[Camera, ...]:
    """Pinhole cameras on a smooth way through the places of all photos, in their order, at an even speed.

    Args:
        cameras: Training cameras, world, in the order of the ride.
        n_frames: Frames, >= 1; the first and last are at the first and last photo.
        width: Pixels.
        height: Pixels.

    Raises:
        ConfigError: no cameras, or no frames.
    """
    _check(cameras, n_frames)
    focal = usual_focal_px(cameras, width, height)
    stops = [Camera(c.camera_to_world, width, height, focal, focal, 0.5 * width, 0.5 * height) for c in cameras]
    way, times = [stops[0]], [0.0]
    steps = [_step(before, after) for before, after in itertools.pairwise(stops)]
    usual = statistics.median(steps) if steps else 0.0
    for stop, step in zip(stops[1:], steps, strict=True):
        if step <= 1e-3 * usual or step == 0:  # twice the same place: no time would pass
            continue
        way.append(stop)
        times.append(times[-1] + step)
    return interpolate_path(way, n_frames, times=times)


def _step(before: Camera, after: Camera) -> float:
    """How much a camera moves between two stops: the way, and, so that turning on the spot takes time too, the turn as
    the way that something a unit away would seem to move."""
    moved = float((after.position - before.position).norm())
    turn = abs(float(quaternion_of(before.camera_to_world[:, :3]) @ quaternion_of(after.camera_to_world[:, :3])))
    return moved + 2 * float(torch.acos(torch.tensor(min(1.0, turn), dtype=torch.float64)))


def as_panoramas(cameras: Sequence[Camera], known: Sequence[Camera], width: int) -> tuple[Camera, ...]:
    """Cameras of the whole sphere at the places of given ones, upright, with their view in the middle of the picture.

    Args:
        cameras: Where to stand.
        known: Cameras of the scene, which tell what is up.
        width: Pixels; half as many high.

    Raises:
        ConfigError: no cameras, or the width is below 2.
    """
    if not known or width < 2:
        raise ConfigError("panoramas: no cameras that tell what is up" if not known else "--width: expected at least 2")
    up = up_axis(known)
    return tuple(panorama(_upright(camera, up), width, width // 2) for camera in cameras)


def _upright(camera: Camera, up: Tensor) -> Tensor:
    """The pose at the camera's place that looks its way, but level."""
    level = camera.forward - up * (camera.forward @ up)
    if float(level.norm()) < 1e-6:  # it looks straight up or down
        level = camera.up - up * (camera.up @ up)
    return look_at(camera.position, camera.position + level, up)

"""Camera paths for pictures and videos: a turntable made from training cameras, interpolation between
keyframes, and hashfield's own camera-path file.

The camera-path file is JSON in UTF-8. All poses are camera-to-world matrices in the world (the frame and
units of the data file the model was trained on) with OpenGL camera axes (x right, y up, looking along -z), as
in transforms.json:

    {
      "format": "hashfield_camera_path",
      "version": 1,
      "width": 800, "height": 600,       pixels of every frame
      "fps": 30,                         frames per second, default 30
      "fov_y": 40.0,                     optional default for all poses, see below
      "frames": [pose, ...]              one pose per frame of the video, or instead of it:
      "keyframes": [pose, ...]           poses the camera passes through, smoothly
      "seconds": 4.0,                    with keyframes: length of the video; not needed where each pose has
      "time"
      "closed": false                    with keyframes: return to the first one at the end, default false
    }

A pose is an object:

    "camera_to_world"                    3x4 or 4x4 list of rows
    "fov_y"                              vertical field of view in degrees, 0 < fov_y < 180; or instead of it
    "fx", "fy", "cx", "cy"               pixels of width x height; fy defaults to fx, cx and cy to the centre
    "lens", "distortion"                 optional: "pinhole" (default), "opencv" or "fisheye"; k1 k2 k3 k4 p1
    p2; or "equirectangular": the whole sphere, without field of view or distortion
    "time"                               keyframes only: seconds from the start, growing; on all keyframes or
    on none

The optics (fov_y, fx, fy, cx, cy, lens, distortion) may stand at the top level as a default; a pose that
states a focal length or field of view replaces all four of fx, fy, cx, cy. Unknown fields are errors: they
would be typing mistakes.
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.aside import write_aside
from hashfield.errors import ConfigError, DataError, HashfieldError
from hashfield.geometry.cameras import Camera, flip_opengl, is_whole_panorama, look_at, panorama, rotation_fault

FORMAT: Final = "hashfield_camera_path"
VERSION: Final = 1
MAX_FRAMES: Final = 100_000
MAX_SIZE: Final = 32_768

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

    focal = min(width, height) * statistics.median(c.fy / min(c.width, c.height) for c in cameras)
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


# --- file


@dataclass(frozen=True)
class CameraPath:
    """The frames of a video."""

    cameras: tuple[Camera, ...]
    """A camera for each frame, in the world; all have one size."""
    fps: float = 30.0
    """Frames per second."""


_TOP: Final = {"format", "version", "width", "height", "fps", "frames", "keyframes", "seconds", "closed"}
_OPTICS: Final = {"fov_y", "fx", "fy", "cx", "cy", "lens", "distortion"}
_FOCUS: Final = {"fov_y", "fx", "fy", "cx", "cy"}


def write_camera_path(path: Path, camera_path: CameraPath) -> None:
    """Write the frames as a camera-path file that `read_camera_path` gives back exactly.

    The file is written aside and renamed.

    Raises:
        ConfigError: no frames, or frames of several sizes.
    """
    _write_path(path, camera_path.cameras, "frames", {"fps": camera_path.fps})


def write_keyframes(
    path: Path, keyframes: Sequence[Camera], *, seconds: float, fps: float = 30.0, closed: bool = False
) -> None:
    """Write keyframes as a camera-path file, from which `read_camera_path` makes the frames between them.

    The file is written aside and renamed.

    Args:
        path: The JSON file.
        keyframes: What the camera passes through; all of one size.
        seconds: Length of the video.
        fps: Frames per second.
        closed: Whether the path returns to its start.

    Raises:
        ConfigError: no keyframes, or keyframes of several sizes.
    """
    _write_path(path, keyframes, "keyframes", {"fps": fps, "seconds": seconds, "closed": closed})


def _write_path(path: Path, cameras: Sequence[Camera], name: str, values: Mapping[str, Any]) -> None:
    if not cameras:
        raise ConfigError(f"camera path: no {name}")
    if len({(camera.width, camera.height) for camera in cameras}) > 1:
        raise ConfigError(f"camera path: {name} differ in size")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "width": cameras[0].width,
        "height": cameras[0].height,
        **values,
        name: [_pose_entry(camera) for camera in cameras],
    }
    text = json.dumps(document, indent=1) + "\n"
    write_aside(Path(path), lambda aside: aside.write_text(text, encoding="utf-8"))


def _pose_entry(camera: Camera) -> dict[str, Any]:
    # + 0.0 turns the -0.0 of a flipped zero into 0.0
    matrix = (flip_opengl(camera.camera_to_world) + 0.0).tolist()
    if camera.lens == "equirectangular":
        if not is_whole_panorama(camera):
            raise ConfigError("camera path: a part of a panorama cannot be written, only the whole sphere")
        return {"camera_to_world": matrix, "lens": camera.lens}
    entry = {"camera_to_world": matrix, "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy}
    if camera.lens != "pinhole":
        entry |= {"lens": camera.lens, "distortion": list(camera.distortion)}
    return entry


def read_camera_path(path: Path, *, width: int | None = None, height: int | None = None) -> CameraPath:
    """The frames of a camera-path file; the form is described at the top of this module.

    Args:
        path: the JSON file.
        width: replaces the file's, as if its pictures were scaled per axis. Give both or none.
        height: the same.

    Raises:
        DataError: one line that names the file, the frame and the field.
        ConfigError: only one of width and height is given.
    """
    if (width is None) != (height is None):
        raise ConfigError("read_camera_path: give both width and height, or none")
    reader = PathReader(Path(path))
    cameras, fps = reader.read()
    if width is not None and height is not None:
        cameras = [camera.resized(width, height) for camera in cameras]
    return CameraPath(tuple(cameras), fps)


class PathReader:
    """Reads and checks one camera-path file; what it raises names file, place and field."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, message: str) -> DataError:
        return DataError(f"{self.path}: {where + ': ' if where else ''}{message}")

    def read(self) -> tuple[list[Camera], float]:
        top = self.document()
        unknown = sorted(set(top) - _TOP - _OPTICS)
        if unknown:
            raise self.fail("", f"unknown field {', '.join(map(repr, unknown))}")
        if ("frames" in top) == ("keyframes" in top):
            raise self.fail("", "expected either 'frames' or 'keyframes'")
        size = tuple(self.size(top, name) for name in ("width", "height"))
        fps = self.number(top.get("fps", 30), "fps", "", low=0, high=1000)
        name = "frames" if "frames" in top else "keyframes"
        entries = top[name]
        if not isinstance(entries, list) or not entries:
            raise self.fail(f"'{name}'", "expected a list with at least one pose")
        if len(entries) > MAX_FRAMES:
            raise self.fail(f"'{name}'", f"{len(entries)} poses are more than the limit of {MAX_FRAMES}")
        allowed = {"camera_to_world", *_OPTICS} | ({"time"} if name == "keyframes" else set())
        cameras = []
        for index, entry in enumerate(entries):
            where = f"{name[:-1]} {index}"
            if not isinstance(entry, dict):
                raise self.fail(where, f"expected an object, got {_kind(entry)}")
            unknown = sorted(set(entry) - allowed)
            if unknown:
                raise self.fail(where, f"unknown field {', '.join(map(repr, unknown))}")
            cameras.append(self._camera(entry, top, size, where))
        if name == "frames":
            for field in ("seconds", "closed"):
                if field in top:
                    raise self.fail(f"'{field}'", "belongs to keyframes, not to frames")
            return cameras, fps
        return self._between(cameras, entries, top, fps), fps

    def json(self) -> dict[str, Any]:
        """The object in the file."""
        try:
            top = json.loads(self.path.read_bytes().decode("utf-8-sig"))
        except FileNotFoundError as error:
            raise self.fail("", "no such file") from error
        except OSError as error:
            raise self.fail("", f"cannot be read: {error.strerror or error}") from error
        except json.JSONDecodeError as error:
            raise self.fail("", f"not JSON: line {error.lineno} column {error.colno}: {error.msg}") from error
        except (UnicodeDecodeError, RecursionError, ValueError) as error:
            raise self.fail("", f"not JSON in UTF-8: {error}") from error
        if not isinstance(top, dict):
            raise self.fail("", f"expected an object, got {_kind(top)}")
        return top

    def document(self) -> dict[str, Any]:
        """The object in a file of hashfield's own format."""
        top = self.json()
        if top.get("format") != FORMAT:
            known = (("camera_path", "a camera path of nerfstudio's"), ("path", "a camera path of instant-ngp's"))
            known += (("frames", "a data set, a transforms.json"),)
            maker = next((maker for field, maker in known if field in top), None)
            hint = f"; it looks like {maker}" if maker else ""
            raise self.fail("'format'", f"expected {FORMAT!r}{hint}")
        if top.get("version") != VERSION or isinstance(top.get("version"), bool):
            raise self.fail("'version'", f"this program reads version {VERSION}, got {top.get('version')!r}")
        return top

    def size(self, top: Mapping[str, Any], name: str) -> int:
        value = self.number(top.get(name), name, "", low=0, high=MAX_SIZE)
        if value != int(value):
            raise self.fail(f"'{name}'", f"expected a whole number of pixels, got {value}")
        return int(value)

    def number(self, value: object, field: str, where: str, low: float = -math.inf, high: float = math.inf) -> float:
        """The finite number of a field, with low < number <= high (low may be reached where it is -inf).

        Args:
            value: What the file has there.
            field: The field, for the error.
            where: The frame or keyframe, for the error; "" at the top level.
            low: Bound that the number must exceed.
            high: Bound that it may reach.
        """
        place = f"{where + ', ' if where else ''}'{field}'"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(place, f"expected a number, got {_kind(value)}")
        if abs(value) > 1e300 or not math.isfinite(value):
            raise self.fail(place, "not finite")
        if not low < value <= high:
            bounds = [f"> {low:g}"] * math.isfinite(low) + [f"<= {high:g}"] * math.isfinite(high)
            raise self.fail(place, f"expected a number {' and '.join(bounds)}, got {value:g}")
        return float(value)

    def numbers(self, value: object, count: int, field: str, where: str) -> list[float]:
        """The list of so many finite numbers of a field.

        Args:
            value: What the file has there.
            count: How many there must be.
            field: The field, for the error.
            where: The frame or keyframe, for the error.
        """
        if not isinstance(value, list) or len(value) != count:
            got = f"{len(value)} entries" if isinstance(value, list) else _kind(value)
            raise self.fail(f"{where}, '{field}'", f"expected {count} numbers, got {got}")
        return [self.number(item, field, where) for item in value]

    def _camera(self, entry: Mapping[str, Any], top: Mapping[str, Any], size: tuple[int, ...], where: str) -> Camera:
        width, height = size
        if {**top, **entry}.get("lens") == "equirectangular":
            stated = sorted(name for name in (*_FOCUS, "distortion") if name in entry)
            if stated:
                raise self.fail(f"{where}, '{stated[0]}'", "a panorama of the whole sphere has none")
            return panorama(self._pose(entry.get("camera_to_world"), where), width, height)
        own = entry if any(name in entry for name in ("fov_y", "fx")) else {**top, **entry}
        focus = {name: own[name] for name in _FOCUS if name in own}
        if ("fov_y" in focus) == ("fx" in focus):
            raise self.fail(where, "expected either 'fov_y' (degrees) or 'fx' (pixels)")
        if "fov_y" in focus:
            if "fy" in focus:
                raise self.fail(where, "expected either 'fov_y' (degrees) or 'fx' and 'fy' (pixels)")
            degrees = self.number(focus["fov_y"], "fov_y", where, low=0, high=179.9)
            fx = fy = 0.5 * height / math.tan(math.radians(degrees) / 2)
        else:
            fx = self.number(focus["fx"], "fx", where, low=0)
            fy = self.number(focus.get("fy", fx), "fy", where, low=0)
        cx = self.number(focus.get("cx", 0.5 * width), "cx", where)
        cy = self.number(focus.get("cy", 0.5 * height), "cy", where)
        optics = {**top, **entry}
        distortion = optics.get("distortion", [])
        if distortion != []:
            distortion = self.numbers(distortion, 6, "distortion", where)
        try:
            return Camera(
                self._pose(entry.get("camera_to_world"), where),
                width,
                height,
                fx,
                fy,
                cx,
                cy,
                optics.get("lens", "pinhole"),
                tuple(distortion),
            )
        except DataError:
            raise
        except HashfieldError as error:
            raise self.fail(where, str(error)) from error

    def _pose(self, value: object, where: str) -> Tensor:
        if not isinstance(value, list) or len(value) not in (3, 4):
            raise self.fail(f"{where}, 'camera_to_world'", "expected a 3x4 or 4x4 list of rows")
        rows = [self.numbers(row, 4, "camera_to_world", where) for row in value]
        if len(rows) == 4 and rows[3] != [0, 0, 0, 1]:
            raise self.fail(f"{where}, 'camera_to_world'", f"the last row must be 0 0 0 1, got {rows[3]}")
        pose = torch.tensor(rows[:3], dtype=torch.float64)
        if rotation_fault(pose[:, :3]) > 1e-3:
            raise self.fail(
                f"{where}, 'camera_to_world'", "columns 0-2 are not a rotation (orthonormal, determinant +1)"
            )
        return flip_opengl(pose)

    def _between(
        self, cameras: list[Camera], entries: list[dict[str, Any]], top: Mapping[str, Any], fps: float
    ) -> list[Camera]:
        closed = top.get("closed", False)
        if not isinstance(closed, bool):
            raise self.fail("'closed'", f"expected true or false, got {_kind(closed)}")
        timed = [index for index, entry in enumerate(entries) if "time" in entry]
        times = None
        if timed:
            if len(timed) < len(entries):
                missing = next(index for index in range(len(entries)) if index not in timed)
                raise self.fail(f"keyframe {missing}", "no 'time', but other keyframes have one")
            times = [self.number(entry["time"], "time", f"keyframe {index}") for index, entry in enumerate(entries)]
        if "seconds" in top:
            seconds = self.number(top["seconds"], "seconds", "", low=0)
        elif times is not None and len(times) > 1:
            seconds = (times[-1] - times[0]) * (len(times) / (len(times) - 1) if closed else 1)
        else:
            raise self.fail("'seconds'", "missing: keyframes without 'time' need the length of the video")
        if seconds * fps > MAX_FRAMES:
            raise self.fail("'seconds'", f"{seconds:g} s at {fps:g} fps is more than the limit of {MAX_FRAMES} frames")
        try:
            n_frames = max(1, round(seconds * fps))
            return list(interpolate_path(cameras, n_frames, times=times, closed=closed))
        except HashfieldError as error:
            raise self.fail("'keyframes'", str(error)) from error


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    names = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    if value is None:
        return "nothing"
    return names.get(type(value), f"the number {value}")

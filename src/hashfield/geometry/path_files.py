"""Camera paths of any program: hashfield's own files, instant-ngp's base_cam.json, and nerfstudio's camera_path.json.

instant-ngp's keyframes are positions in its training space, which is our scene space; between them runs a uniform
B-spline, which passes near its keyframes, not through them. nerfstudio's frames are in the space into which it moves,
turns and scales every data set; its dataparser_transforms.json tells how, and without that file its default rule is
applied to the cameras that are known.

Source: instant-ngp, camera_path.h and camera_path.cu; nerfstudio, nerfstudio_dataparser.py, camera_utils.py and
scripts/render.py; written from a description of both.
"""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.geometry.camera_path import MAX_FRAMES, CameraPath, PathReader, read_camera_path
from hashfield.geometry.cameras import Camera, Lens, flip_opengl, panorama, rotation_fault
from hashfield.geometry.paths import rotation_of
from hashfield.geometry.spaces import Spaces


@dataclass(frozen=True)
class PathPlace:
    """What a path of another program needs to be placed in the world of a scene."""

    spaces: Spaces
    """Spaces of the scene: instant-ngp's paths are in scene space."""
    cameras: Sequence[Camera]
    """All cameras of the data set, world: nerfstudio's default rule and the size of the pictures come from them."""
    dataparser: Path | None = None
    """The dataparser_transforms.json of nerfstudio's run, where there is one."""
    applied: Float64[Tensor, "3 4"] | None = None
    """`applied_transform` of the data file: what the file that nerfstudio began with was turned by."""


@dataclass(frozen=True)
class PathWish:
    """What the user wants of a path, each None where the file decides."""

    width: int | None = None
    """Pixels; the height follows where it is not given."""
    height: int | None = None
    """Pixels; the width follows where it is not given."""
    n_frames: int | None = None
    """Frames of a path that tells no number."""
    fps: float | None = None
    """Frames per second of a path that tells none."""


def read_path_file(path: Path, place: PathPlace, wish: PathWish) -> tuple[CameraPath, list[str]]:
    """The frames of a camera-path file of any of the three programs, and notes about what of it is not shown.

    Args:
        path: The JSON file.
        place: The scene that it belongs to.
        wish: What the user asks for.

    Raises:
        DataError: one line that names the file, the frame and the field.
        ConfigError: only one of width and height is given with hashfield's own file.
    """
    reader = PathReader(Path(path))
    top = reader.json()
    if "camera_path" in top:
        return _Nerfstudio(reader, top, place, wish).read()
    if "path" in top and "format" not in top:
        return _InstantNgp(reader, top, place, wish).read()
    if (wish.width is None) != (wish.height is None):
        raise ConfigError("--width and --height: give both, or none, with a camera path")
    return read_camera_path(path, width=wish.width, height=wish.height), []


def _size(shape: tuple[int, int], wish: PathWish) -> tuple[int, int]:
    """The pictures' size: as wished; what is not given follows from the shape (width, height) that the file has."""
    width, height = wish.width, wish.height
    if width is None and height is None:
        return shape
    if width is None:
        width = max(1, round(shape[0] * (height or 1) / shape[1]))
    return width, height if height is not None else max(1, round(shape[1] * width / shape[0]))


# --- instant-ngp

_DEFAULT_FRAMES: Final = 60
_DEFAULT_FPS: Final = 30.0
_DEFAULT_SIZE: Final = (1280, 720)


class _InstantNgp:
    """Reads instant-ngp's base_cam.json."""

    def __init__(self, reader: PathReader, top: Mapping[str, Any], place: PathPlace, wish: PathWish) -> None:
        self.reader, self.top, self.place, self.wish = reader, top, place, wish

    def read(self) -> tuple[CameraPath, list[str]]:
        reader, top = self.reader, self.top
        entries = top["path"]
        if not isinstance(entries, list) or not entries:
            raise reader.fail("'path'", "expected a list with at least one keyframe")
        if len(entries) > MAX_FRAMES:
            raise reader.fail("'path'", f"{len(entries)} keyframes are more than the limit of {MAX_FRAMES}")
        loop = top.get("loop", False)
        if not isinstance(loop, bool):
            raise reader.fail("'loop'", "expected true or false")
        order = int(reader.number(top.get("spline_order", 3), "spline_order", "", low=-1, high=3))
        values, times = [], []
        notes = []
        for index, entry in enumerate(entries):
            where = f"keyframe {index}"
            if not isinstance(entry, dict):
                raise reader.fail(where, "expected an object")
            rotation = torch.tensor(reader.numbers(entry.get("R"), 4, "R", where), dtype=torch.float64)
            if not float(rotation.norm()) > 1e-6:
                raise reader.fail(f"{where}, 'R'", "a quaternion of length 0")
            position = reader.numbers(entry.get("T"), 3, "T", where)
            fov = reader.number(entry.get("fov"), "fov", where, low=0, high=179.9)
            values.append([*(rotation / rotation.norm()).tolist(), *position, fov])
            times.append(reader.number(entry.get("timestamp", 0), "timestamp", where))
            aperture = entry.get("aperture_size", entry.get("dof", 0))
            if not notes and isinstance(aperture, int | float) and aperture > 0:
                notes.append("warning: the path's aperture is ignored: everything is shown in focus")
        if any(entry.get("glow_mode") for entry in entries):
            notes.append("the path's glow_mode is ignored")
        n_frames, fps = self._length()
        known = self.place.cameras
        width, height = _size((known[0].width, known[0].height) if known else _DEFAULT_SIZE, self.wish)
        keys = torch.tensor(values, dtype=torch.float64)
        knots = _knots(times)
        # A frame shows the moment at which its shutter opens, as instant-ngp's frames begin at j / n.
        frames = [_blend(keys, *_segment(knots, k / n_frames, loop), loop, order) for k in range(n_frames)]
        notes.append(
            f"instant-ngp's camera path: {len(entries)} keyframes, {n_frames} frames of {width}x{height} at {fps:g} fps"
        )
        return CameraPath(tuple(self._camera(frame, width, height) for frame in frames), fps), notes

    def _length(self) -> tuple[int, float]:
        """Frames, and frames per second."""
        fps = self.wish.fps or _DEFAULT_FPS
        if self.wish.n_frames is not None:
            return self.wish.n_frames, fps
        seconds = self.reader.number(self.top.get("duration_seconds", 0), "duration_seconds", "", low=-1)
        if seconds * fps > MAX_FRAMES:
            raise self.reader.fail("'duration_seconds'", f"{seconds:g} s are more than {MAX_FRAMES} frames")
        return max(1, round(seconds * fps)) if seconds > 0 else _DEFAULT_FRAMES, fps

    def _camera(self, frame: Tensor, width: int, height: int) -> Camera:
        x, y, z, w = frame[:4].tolist()
        spaces = self.place.spaces
        # instant-ngp's camera axes are ours; its space is our scene space
        axes = rotation_of(torch.tensor([w, x, y, z], dtype=torch.float64))
        world = torch.stack([spaces.direction_scene_to_world(axes[:, column]) for column in range(3)], dim=1)
        pose = torch.cat([world, spaces.scene_to_world(frame[4:7])[:, None]], dim=1)
        focal = 0.5 * height / math.tan(math.radians(float(frame[7])) / 2)
        return Camera(pose, width, height, focal, focal, 0.5 * width, 0.5 * height)


def _knots(times: Sequence[float]) -> list[float]:
    """Times of the keyframes: the file's where they grow from above 0, else evenly spaced up to 1."""
    grows = times[0] > 0 and all(later > earlier for earlier, later in itertools.pairwise(times))
    return list(times) if grows else [(index + 1) / len(times) for index in range(len(times))]


def _segment(knots: Sequence[float], moment: float, loop: bool) -> tuple[int, float]:
    """(keyframe i, fraction of the way from it to the next) at a moment of the path, 0 to 1."""
    n = len(knots)
    if n == 1:
        return 0, moment
    time = moment * (knots[-1] if loop else knots[-2])
    index = min(bisect.bisect_right(knots, time), n - 1 if loop else n - 2)
    before = knots[index - 1] if index else 0.0
    return index, (time - before) / (knots[index] - before)


def _blend(keys: Float64[Tensor, "n_keys 8"], index: int, t: float, loop: bool, order: int) -> Tensor:
    """A keyframe's values between keyframes: a uniform B-spline of the order, quaternions with signs that agree."""
    weights = {
        0: {0: 1.0} if t < 0.5 else {1: 1.0},
        1: {0: 1 - t, 1: t},
        2: {-1: (1 - t) ** 2 / 2, 0: (1 + 2 * t - 2 * t * t) / 2, 1: t * t / 2},
        3: {
            -1: (1 - t) ** 3 / 6,
            0: (3 * t**3 - 6 * t * t + 4) / 6,
            1: (-3 * t**3 + 3 * t * t + 3 * t + 1) / 6,
            2: t**3 / 6,
        },
    }[order]
    total = torch.zeros(8, dtype=torch.float64)
    for step, weight in weights.items():
        place = (index + step) % len(keys) if loop else min(max(index + step, 0), len(keys) - 1)
        value = weight * keys[place]
        if float(value[:4] @ total[:4]) < 0:
            value[:4] *= -1
        total += value
    total[:4] /= total[:4].norm()
    return total


# --- nerfstudio

_CAMERA_TYPES: Final[Mapping[str, Lens]] = {
    "perspective": "pinhole", "fisheye": "fisheye", "equirectangular": "equirectangular",
}  # fmt: skip


class _Nerfstudio:
    """Reads nerfstudio's camera_path.json, of its old and its newer viewer."""

    def __init__(self, reader: PathReader, top: Mapping[str, Any], place: PathPlace, wish: PathWish) -> None:
        self.reader, self.top, self.place, self.wish = reader, top, place, wish

    def read(self) -> tuple[CameraPath, list[str]]:
        reader, top = self.reader, self.top
        entries = top["camera_path"]
        if not isinstance(entries, list) or not entries:
            raise reader.fail("'camera_path'", "expected a list with at least one frame")
        if len(entries) > MAX_FRAMES:
            raise reader.fail("'camera_path'", f"{len(entries)} frames are more than the limit of {MAX_FRAMES}")
        kind = str(top.get("camera_type", "perspective")).lower()
        if kind not in _CAMERA_TYPES:
            raise reader.fail("'camera_type'", f"{kind} is not supported; supported are {', '.join(_CAMERA_TYPES)}")
        size = _size((reader.size(top, "render_width"), reader.size(top, "render_height")), self.wish)
        seconds = top.get("seconds")
        if seconds is not None:
            # as its renderer does: the number of frames over the length, whatever fps the file says
            fps = len(entries) / reader.number(seconds, "seconds", "", low=0)
        else:
            fps = reader.number(top.get("fps", 30), "fps", "", low=0, high=1000)
        world_from_path, note = self._placement()
        cameras = [self._camera(entry, index, _CAMERA_TYPES[kind], size, world_from_path)
                   for index, entry in enumerate(entries)]  # fmt: skip
        notes = [
            f"nerfstudio's camera path: {len(cameras)} frames of {size[0]}x{size[1]} at {fps:g} fps; {note}",
            *["warning: the path's crop is ignored: the whole scene is shown"] * (top.get("crop") is not None),
        ]
        if any(isinstance(entry, dict) and entry.get("render_time") is not None for entry in entries):
            notes.append("the path's render_time is ignored: the scene is at rest")
        return CameraPath(tuple(cameras), fps), notes

    def _camera(
        self, entry: object, index: int, lens: Lens, size: tuple[int, int], world_from_path: Float64[Tensor, "4 4"]
    ) -> Camera:
        reader, where, (width, height) = self.reader, f"frame {index}", size
        if not isinstance(entry, dict):
            raise reader.fail(where, "expected an object")
        numbers = reader.numbers(entry.get("camera_to_world"), 16, "camera_to_world", where)
        pose = torch.tensor(numbers, dtype=torch.float64).reshape(4, 4)
        if (pose[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).abs().max() > 1e-4:
            raise reader.fail(
                f"{where}, 'camera_to_world'", f"the last row must be 0 0 0 1, got {pose[3].tolist()} (transposed?)"
            )
        axes = pose[:3, :3] / pose[:3, :3].norm(dim=0).clamp(min=1e-12)
        if rotation_fault(axes) > 1e-3:
            raise reader.fail(f"{where}, 'camera_to_world'", "columns 0-2 are not a rotation")
        axes = world_from_path[:3, :3] @ axes
        axes = axes / axes.norm(dim=0)
        position = world_from_path[:3, :3] @ pose[:3, 3] + world_from_path[:3, 3]
        to_world = flip_opengl(torch.cat([axes, position[:, None]], dim=1))
        if lens == "equirectangular":
            return panorama(to_world, width, height)
        fov = reader.number(entry.get("fov"), "fov", where, low=0, high=179.9)
        focal = 0.5 * height / math.tan(math.radians(fov) / 2)
        return Camera(to_world, width, height, focal, focal, 0.5 * width, 0.5 * height, lens)

    def _placement(self) -> tuple[Float64[Tensor, "4 4"], str]:
        """The matrix (rotation, scale, shift) from the path's space to the world, and what it comes from."""
        if self.place.dataparser is None:
            matrix = nerfstudio_normalisation(self.place.cameras)
            note = "placed as nerfstudio normalises these cameras by default; else name --dataparser-transforms"
            return torch.linalg.inv(matrix), note
        reader = PathReader(self.place.dataparser)
        top = reader.json()
        rows = top.get("transform")
        if not isinstance(rows, list) or len(rows) not in (3, 4):
            raise reader.fail("'transform'", "expected 3 rows of 4 numbers")
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3] = torch.tensor(
            [reader.numbers(row, 4, "transform", "rows") for row in rows[:3]], dtype=torch.float64
        )  # fmt: skip
        matrix[:3] *= reader.number(top.get("scale", 1), "scale", "", low=0)
        if abs(float(torch.linalg.det(matrix[:3, :3]))) < 1e-12:
            raise reader.fail("'transform'", "is singular")
        world = torch.linalg.inv(matrix)
        if self.place.applied is not None:
            applied = torch.eye(4, dtype=torch.float64)
            applied[:3] = self.place.applied
            world = applied @ world
        return world, f"placed by {self.place.dataparser.name}"


def nerfstudio_normalisation(cameras: Sequence[Camera]) -> Float64[Tensor, "4 4"]:
    """The matrix by which nerfstudio moves, turns and scales a data set by default: the mean camera to the origin, the
    mean up axis to +z (by the smallest turn), the farthest camera's largest coordinate to 1.

    Args:
        cameras: All of the data set, world.

    Raises:
        ConfigError: no cameras.
    """
    if not cameras:
        raise ConfigError("nerfstudio's camera path: the scene has no cameras to place it by")
    position = torch.stack([camera.position for camera in cameras])
    up = torch.stack([camera.up for camera in cameras]).mean(dim=0)
    turn = _turn_to_z(up / up.norm())
    center = position.mean(dim=0)
    turned = (position - center) @ turn.T
    largest = float(turned.abs().max())
    scale = 1 / largest if largest > 0 else 1.0
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = scale * turn, -scale * (turn @ center)
    return matrix


def _turn_to_z(axis: Float64[Tensor, " 3"]) -> Float64[Tensor, "3 3"]:
    """The smallest rotation that takes a unit vector to +z."""
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    cross, cosine = torch.linalg.cross(axis, z), float(axis @ z)
    if cosine < -1 + 1e-8:  # opposite: any half turn about an axis across will do
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    x, y, w = cross.tolist()
    skew = torch.tensor([[0.0, -w, y], [w, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + skew + skew @ skew / (1 + cosine)

"""The camera-path file of hashfield: the frames of a video, or keyframes between which they are interpolated.

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
      "seconds": 4.0,                    with keyframes: length of the video; not needed where each has "time"
      "closed": false                    with keyframes: return to the first one at the end, default false
    }

A pose is an object:

    "camera_to_world"                    3x4 or 4x4 list of rows
    "fov_y"                              vertical field of view in degrees, 0 < fov_y < 180; or instead of it
    "fx", "fy", "cx", "cy"               pixels of width x height; fy defaults to fx, cx and cy to the centre
    "lens", "distortion"                 optional: "pinhole" (default), "opencv" or "fisheye" with k1 k2 k3 k4 p1 p2;
                                         or "equirectangular": the whole sphere, without field of view or distortion
    "time"                               keyframes only: seconds from the start, growing; on all keyframes or on none

The optics (fov_y, fx, fy, cx, cy, lens, distortion) may stand at the top level as a default; a pose that
states a focal length or field of view replaces all four of fx, fy, cx, cy. Unknown fields are errors: they
would be typing mistakes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hashfield.aside import write_aside
from hashfield.errors import ConfigError, DataError, HashfieldError
from hashfield.geometry.cameras import Camera, flip_opengl, is_whole_panorama, panorama, rotation_fault
from hashfield.geometry.paths import interpolate_path

FORMAT: Final = "hashfield_camera_path"
VERSION: Final = 1
MAX_FRAMES: Final = 100_000
MAX_SIZE: Final = 32_768


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
        path: The JSON file.
        width: Pixels, instead of the file's, as if its pictures were scaled per axis. Give both or none.
        height: Pixels, instead of the file's.

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

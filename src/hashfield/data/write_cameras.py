"""Cameras out: transforms.json as instant-ngp and nerfstudio read it, and COLMAP models.

Both are read again by `hashfield.data` to cameras that are equal but for rounding. Poses, sizes and intrinsics are
written as they are given: cameras should be those of the whole photos.
"""

import json
import math
import posixpath
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from hashfield.aside import write_aside
from hashfield.data.files import escapes, normalized
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera, flip_opengl, is_whole_panorama
from hashfield.geometry.paths import quaternion_of
from hashfield.geometry.spaces import DEFAULT_OFFSET, DEFAULT_SCALE, Spaces

_TERMS: Final = ("k1", "k2", "k3", "k4", "p1", "p2")


def _checked_names(cameras: Sequence[Camera], names: Sequence[str]) -> list[str]:
    if not cameras:
        raise ConfigError("no cameras to write")
    if len(cameras) != len(names):
        raise ConfigError(f"{len(cameras)} cameras, but {len(names)} names of photos")
    found = [normalized(name) for name in names]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ConfigError(f"two cameras have the same photo: {twice}")
    return found


# --- transforms.json


def write_transforms(
    path: Path,
    cameras: Sequence[Camera],
    names: Sequence[str],
    *,
    spaces: Spaces | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    frame_extra: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write cameras as a transforms.json; it is written aside and renamed.

    Intrinsics stand once at the top where all cameras share them, else in every frame; the lens model stands at the top
    wherever all cameras have the same one, since nerfstudio looks for it there alone.

    Args:
        path: The file.
        cameras: In the world, one for each photo, of the photo's size.
        names: The photos' files relative to the file's folder, or absolute; with ending.
        spaces: The training box; None leaves it to the reader's defaults.
        splits: Names of photos by "train", "val" and "test", for the file's lists of names.
        masks: Name of a photo -> its mask file, relative to the file's folder: black pixels are not learned from.
        extra: More fields of the top level, e.g. what made the file.
        frame_extra: More fields of each frame, as many mappings as cameras.

    Raises:
        ConfigError: no cameras, another number of names, or a name twice.
        DataError: the file cannot be written.
    """
    files = _checked_names(cameras, names)
    optics = [_transforms_optics(camera) for camera in cameras]
    is_shared = all(other == optics[0] for other in optics)
    top: dict[str, Any] = {**(extra or {})}
    if is_shared:
        top |= optics[0]
    elif all(other["camera_model"] == optics[0]["camera_model"] for other in optics):
        top["camera_model"] = optics[0]["camera_model"]
        optics = [{name: value for name, value in own.items() if name != "camera_model"} for own in optics]
    if spaces is not None:
        # no room for rounding here: the numbers are read back as they are
        top["aabb_scale"] = spaces.aabb_scale
        if spaces.scale != DEFAULT_SCALE or spaces.offset != DEFAULT_OFFSET:
            top |= {"scale": spaces.scale, "offset": list(spaces.offset)}
    for split, listed in (splits or {}).items():
        top[f"{split}_filenames"] = [normalized(name) for name in listed]
    mask_of = {normalized(name): normalized(mask) for name, mask in (masks or {}).items()}
    frames = []
    more = [{}] * len(files) if frame_extra is None else frame_extra
    for camera, own, file, fields in zip(cameras, optics, files, more, strict=True):
        matrix = [*(flip_opengl(camera.camera_to_world) + 0.0).tolist(), [0.0, 0.0, 0.0, 1.0]]
        frame: dict[str, Any] = {"file_path": file, **fields, **({} if is_shared else own)}
        if file in mask_of:
            frame["mask_path"] = mask_of[file]
        frames.append({**frame, "transform_matrix": matrix})
    text = json.dumps({**top, "frames": frames}, indent=1, allow_nan=False) + "\n"
    _write(path, text.encode())


def _transforms_optics(camera: Camera) -> dict[str, Any]:
    """Size, intrinsics and lens of a camera as fields. A fisheye gets no p1 and p2, by which instant-ngp would read its
    k3 and k4 as something else."""
    values: dict[str, Any] = {"w": camera.width, "h": camera.height}
    distortion = dict(zip(_TERMS, camera.distortion, strict=bool(camera.distortion)))
    if camera.lens == "equirectangular":
        _check_whole(camera)
        # focal lengths as nerfstudio has them, in its own units
        focal = {"fl_x": camera.width / 2, "fl_y": camera.height, "cx": camera.cx, "cy": camera.cy}
        return {**values, **focal, "camera_model": "EQUIRECTANGULAR"}
    if camera.lens == "pinhole":
        model = {"camera_model": "PINHOLE"}
    elif camera.lens == "opencv":
        model = {"camera_model": "OPENCV", **distortion}
    else:
        model = {"camera_model": "OPENCV_FISHEYE", "is_fisheye": True}
        model |= {name: distortion[name] for name in _TERMS[:4]}
    values |= {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy}
    if camera.lens != "fisheye":  # for readers that know no other field; of a fisheye it would be another angle
        values |= {
            "camera_angle_x": 2 * math.atan(0.5 * camera.width / camera.fx),
            "camera_angle_y": 2 * math.atan(0.5 * camera.height / camera.fy),
        }
    return values | model


def _check_whole(camera: Camera) -> None:
    if not is_whole_panorama(camera):
        raise ConfigError("a part of a panorama cannot be written, only the whole sphere")


# --- COLMAP


def write_colmap(
    folder: Path,
    cameras: Sequence[Camera],
    names: Sequence[str],
    *,
    points: Float[np.ndarray, "n_points 3"] | None = None,
    colors: UInt8[np.ndarray, "n_points 3"] | None = None,
    text: bool = False,
) -> None:
    """Write cameras as a COLMAP model: cameras, images and points3D, binary or text.

    Cameras that share size, intrinsics and lens become one. Images see no points, and points no images: what structure
    from motion matched is not known here.

    Args:
        folder: Folder of the model, e.g. sparse/0; made where missing.
        cameras: In the world, one for each photo, of the photo's size.
        names: The photos' files relative to the folder of photos.
        points: Points of the world.
        colors: Their colours; default grey.
        text: Write .txt instead of .bin.

    Raises:
        ConfigError: no cameras, another number of names, a name twice or one that leads out of the folder of photos, a
            lens that COLMAP does not have, or a folder that holds a model in the other form.
        DataError: a file cannot be written.
    """
    files = _checked_names(cameras, names)
    for file in files:
        if escapes(file):
            raise ConfigError(f"{file}: leads out of the folder of photos, which a COLMAP model cannot say")
    ending, other = (".txt", ".bin") if text else (".bin", ".txt")
    if any((folder / f"{name}{other}").exists() for name in ("cameras", "images")):
        raise ConfigError(f"{folder}: holds a COLMAP model as {other} already; take another folder")
    points = np.empty((0, 3)) if points is None else np.asarray(points, np.float64)
    colors = np.full((len(points), 3), 128, np.uint8) if colors is None else colors
    if points.shape != (len(points), 3) or colors.shape != points.shape:
        raise ConfigError(f"points: expected n x 3 with as many colours, got {points.shape} and {colors.shape}")
    lenses: dict[tuple[Any, ...], int] = {}
    camera_ids = [lenses.setdefault(_colmap_lens(camera), len(lenses) + 1) for camera in cameras]
    poses = [_camera_from_world(camera) for camera in cameras]
    write = _colmap_text if text else _colmap_binary
    for name, data in write(_Model(lenses, camera_ids, poses, files, points, colors)).items():
        _write(folder / f"{name}{ending}", data)


class _Model(NamedTuple):
    """What a COLMAP model holds, whatever its form."""

    lenses: Mapping[tuple[Any, ...], int]
    """What `_colmap_lens` says of a camera -> its number."""
    camera_ids: Sequence[int]
    """Number of the camera of each photo."""
    poses: Sequence[Sequence[float]]
    files: Sequence[str]
    points: np.ndarray
    colors: np.ndarray


def _colmap_lens(camera: Camera) -> tuple[Any, ...]:
    """COLMAP's number and name of the model, width, height and parameters."""
    focal = (camera.fx, camera.fy, camera.cx, camera.cy)
    size = (camera.width, camera.height)
    if camera.lens == "equirectangular":
        _check_whole(camera)
        return 17, "EQUIRECTANGULAR", *size, float(camera.width), float(camera.height)
    k1, k2, k3, k4, p1, p2 = camera.distortion or (0.0,) * 6
    if camera.lens == "pinhole":
        return 1, "PINHOLE", *size, *focal
    if camera.lens == "fisheye":
        return 5, "OPENCV_FISHEYE", *size, *focal, k1, k2, k3, k4
    if k4:
        raise ConfigError("COLMAP has no lens with the radial term k4 (r^8); write transforms.json instead")
    if k3:
        return 6, "FULL_OPENCV", *size, *focal, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0
    return 4, "OPENCV", *size, *focal, k1, k2, p1, p2


def _camera_from_world(camera: Camera) -> list[float]:
    """World-to-camera: quaternion qw qx qy qz, then translation."""
    rotation = camera.camera_to_world[:, :3].T
    return [*quaternion_of(rotation).tolist(), *(-rotation @ camera.position + 0.0).tolist()]


def _colmap_binary(model: _Model) -> dict[str, bytes]:
    cameras = [struct.pack("<Q", len(model.lenses))]
    for (kind, _, width, height, *parameters), number in model.lenses.items():
        cameras.append(struct.pack(f"<IiQQ{len(parameters)}d", number, kind, width, height, *parameters))
    images = [struct.pack("<Q", len(model.files))]
    for number, (camera_id, pose, file) in enumerate(zip(model.camera_ids, model.poses, model.files, strict=True), 1):
        images.append(struct.pack("<I7dI", number, *pose, camera_id) + file.encode() + b"\0" + struct.pack("<Q", 0))
    record = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("n_views", "<u8")])
    table = np.zeros(len(model.points), record)
    table["id"], table["xyz"], table["rgb"] = np.arange(1, len(model.points) + 1), model.points, model.colors
    points3d = struct.pack("<Q", len(model.points)) + table.tobytes()
    return {"cameras": b"".join(cameras), "images": b"".join(images), "points3D": points3d}


def _colmap_text(model: _Model) -> dict[str, bytes]:
    # repr of a float is the shortest text that is read back as the same number
    cameras = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]", f"# Number of cameras: {len(model.lenses)}"]
    for (_, kind, width, height, *parameters), number in model.lenses.items():
        cameras.append(" ".join([str(number), kind, str(width), str(height), *map(repr, parameters)]))
    images = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    images.append(f"# Number of images: {len(model.files)}, mean observations per image: 0")
    for number, (camera_id, pose, file) in enumerate(zip(model.camera_ids, model.poses, model.files, strict=True), 1):
        images += [" ".join([str(number), *map(repr, pose), str(camera_id), file]), ""]
    points3d = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"]
    points3d.append(f"# Number of points: {len(model.points)}, mean track length: 0")
    for number, (point, color) in enumerate(zip(model.points.tolist(), model.colors.tolist(), strict=True), 1):
        points3d.append(" ".join([str(number), *map(repr, point), *map(str, color), "0"]))
    tables = {"cameras": cameras, "images": images, "points3D": points3d}
    return {name: ("\n".join(lines) + "\n").encode() for name, lines in tables.items()}


def _write(path: Path, data: bytes) -> None:
    try:
        write_aside(path, lambda aside: aside.write_bytes(data))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def common_folder(names: Sequence[str]) -> str:
    """The folder that all files lie in, "" where there is none: of images/a.png and images/b/c.png it is images."""
    folders = [posixpath.dirname(normalized(name)).split("/") for name in names]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)

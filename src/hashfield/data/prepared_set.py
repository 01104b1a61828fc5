"""What structure from motion found, written as a data set: photos that need it, COLMAP's model, transforms.json."""

import os
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hashfield.data.assemble import SILHOUETTE
from hashfield.data.photo_files import Photo, copy_name, grey_copy, share_transparent, upright_name, write_upright
from hashfield.data.structure_from_motion import Workshop
from hashfield.data.training_box import ChosenBox, choose_box
from hashfield.data.video_frames import laplacian
from hashfield.data.write_cameras import write_transforms
from hashfield.geometry.cameras import Camera
from hashfield.geometry.paths import up_axis
from hashfield.geometry.spaces import DEFAULT_OFFSET, DEFAULT_SCALE, Spaces


def write_data_set(shop: Workshop, out: Path, photos: list[Photo], solved: dict[str, Any]) -> str:
    """Write photos that need it, the COLMAP model and transforms.json; the last is what makes a data set of it. Returns
    a note about the training box.

    Args:
        shop: Where the cameras were found.
        out: Folder of the data set.
        photos: All of them, also those without a place.
        solved: What the stage "solve" of `structure_worker.py` gave.
    """
    placed = [photo for photo in photos if copy_name(photo) in solved["images"]]
    files = _final_photos(out, placed)
    sizes = {str(solved["images"][copy_name(photo)]["camera"]): (photo.width, photo.height) for photo in placed}
    for camera_id, camera in solved["cameras"].items():
        sizes.setdefault(camera_id, (camera["width"], camera["height"]))
    raw = [_camera(solved["images"][copy_name(p)], solved["cameras"]) for p in placed]
    points = np.array(solved["points"], np.float64).reshape(-1, 3)
    has_alpha = share_transparent(placed) >= SILHOUETTE
    rotation, center, scale, box = _world(raw, points, has_alpha)
    names = _model_names(placed, files, out)
    result = shop.folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    written = shop.run(
        "write",
        model=str(shop.folder / "model"),
        out=str(result),
        world={"scale": scale, "rotation": rotation.tolist(), "translation": (-scale * rotation @ center).tolist()},
        sizes=sizes,
        names={copy_name(photo): name for photo, name in zip(placed, names, strict=True)},
    )
    images = [written["images"][name] for name in names]
    sharp = [float(laplacian(grey_copy(shop.photos / copy_name(photo))).var()) for photo in placed]
    (out / "sparse").mkdir(exist_ok=True)
    shutil.rmtree(out / "sparse" / "0", ignore_errors=True)
    result.replace(out / "sparse" / "0")
    write_transforms(
        out / "transforms.json",
        [_camera(image, written["cameras"]) for image in images],
        [_relative(file, out) for file in files],
        spaces=Spaces(DEFAULT_SCALE, DEFAULT_OFFSET, box.spaces.aabb_scale),
        extra={"ply_file_path": "sparse/0/sparse.ply"},
        frame_extra=[
            {"sharpness": round(value, 3), "colmap_im_id": image["id"]}
            for value, image in zip(sharp, images, strict=True)
        ],
    )
    return f"training box: around {box.center_reason}; aabb_scale {box.spaces.aabb_scale}, {box.size_reason}"


def _relative(file: Path, folder: Path) -> str:
    """The path of a file from a folder, with forward slashes; the whole path where they lie on different drives."""
    try:
        return Path(os.path.relpath(file, folder.resolve())).as_posix()
    except ValueError:
        return file.as_posix()


def _final_photos(out: Path, placed: list[Photo]) -> list[Path]:
    """Where each photo lies for good: where it is, or in `images`, written anew."""
    files = []
    used = {photo.path.name.casefold() for photo in placed if not photo.is_rewritten}
    for photo in placed:
        if not photo.is_rewritten:
            files.append(photo.path.resolve())
            continue
        name = upright_name(photo)
        while name.casefold() in used:
            name = f"_{name}"
        used.add(name.casefold())
        target = out / "images" / name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            aside = target.with_name(f".part-{name}")
            write_upright(photo, aside)
            aside.replace(target)
        files.append(target.resolve())
    return files


def _model_names(placed: list[Photo], files: list[Path], out: Path) -> list[str]:
    """Names in the COLMAP model: relative to the folder of photos."""
    return [
        file.name if file.parent == (out / "images").resolve() else photo.name
        for photo, file in zip(placed, files, strict=True)
    ]


_LENS_OF: Final = {"OPENCV": "fx fy cx cy k1 k2 p1 p2", "RADIAL": "f cx cy k1 k2", "SIMPLE_RADIAL": "f cx cy k1"}


def _camera(image: dict[str, Any], cameras: dict[str, Any]) -> Camera:
    """The camera of one photo of a result."""
    stated = cameras[str(image["camera"])]
    values = dict(zip(_LENS_OF[stated["model"]].split(), stated["params"], strict=True))
    pose = torch.tensor(image["camera_to_world"], dtype=torch.float64)
    return Camera(
        pose, stated["width"], stated["height"],
        fx=values.get("fx", values.get("f", 0.0)), fy=values.get("fy", values.get("f", 0.0)),
        cx=values["cx"], cy=values["cy"], lens="opencv",
        distortion=tuple(values.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2")),
    )  # fmt: skip


def _world(
    cameras: list[Camera], points: np.ndarray, has_alpha: bool
) -> tuple[np.ndarray, np.ndarray, float, ChosenBox]:
    """Rotation, centre, scale and box of the data set's world: p' = scale * rotation @ (p - centre). Up is +z, and the
    training box is the one that instant-ngp's default scale and offset mean."""
    up = up_axis(cameras).numpy()
    rotation = rotation_between(up, np.array([0.0, 0.0, 1.0]))
    turned = [
        camera.moved(torch.from_numpy(np.column_stack([rotation @ p[:, :3], rotation @ p[:, 3]])))
        for camera in cameras
        for p in (camera.camera_to_world.numpy(),)
    ]
    box = choose_box(turned, points @ rotation.T, f"{len(points)} sparse points", has_alpha)
    center = (0.5 - np.array(box.spaces.offset)) / box.spaces.scale
    return rotation, rotation.T @ center, box.spaces.scale / DEFAULT_SCALE, box


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation [3, 3] that takes unit vector a to b."""
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    v = np.cross(a, b)
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)

"""Writes small COLMAP models, as binary files and as text, and LLFF's poses_bounds.npy."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.data.small_scenes import FOCAL, HEIGHT, WIDTH, opengl_pose, picture, save

MODEL_NUMBERS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6,
    "FOV": 7,
    "SIMPLE_RADIAL_FISHEYE": 8,
    "RADIAL_FISHEYE": 9,
    "THIN_PRISM_FISHEYE": 10,
    "RAD_TAN_THIN_PRISM_FISHEYE": 11,
    "SIMPLE_DIVISION": 12,
    "DIVISION": 13,
    "SIMPLE_FISHEYE": 14,
    "FISHEYE": 15,
    "EUCM": 16,
    "EQUIRECTANGULAR": 17,
}


@dataclass
class ColmapModel:
    """What the three files say."""

    cameras: list[tuple[int, str, int, int, list[float]]] = field(default_factory=list)
    """id, model, width, height, parameters."""
    images: list[tuple[int, list[float], int, str]] = field(default_factory=list)
    """id, qw qx qy qz tx ty tz, camera id, name."""
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))


def camera_from_world(index: int, n: int) -> list[float]:
    """The pose of `opengl_pose` as COLMAP writes it: quaternion and translation, world to camera."""
    pose = np.array(opengl_pose(index, n))[:3]
    rotation = (pose[:, :3] * [1, -1, -1]).T
    # the quaternion is the eigenvector of the largest eigenvalue of this matrix (Bar-Itzhack 2000)
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = rotation.T
    matrix = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [yz - zy, zx - xz, xy - yx, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix, "L")[1][:, -1]
    quaternion = np.array([w, -x, -y, -z])
    translation = -rotation @ pose[:, 3]
    return [*quaternion.tolist(), *translation.tolist()]


def ring(
    n: int = 9, model: str = "PINHOLE", parameters: list[float] | None = None, name: str = "{:04d}.png"
) -> ColmapModel:
    """The ring of cameras of `small_scenes`, image ids that are not in order, and 200 points near the middle."""
    parameters = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2] if parameters is None else parameters
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    images = [(100 - index, camera_from_world(index, n), 7, name.format(index)) for index in range(n)]
    return ColmapModel([(7, model, WIDTH, HEIGHT, parameters)], images, points)


def write_binary(folder: Path, model: ColmapModel) -> Path:
    """Writes cameras.bin, images.bin and points3D.bin; each image sees two points."""
    folder.mkdir(parents=True, exist_ok=True)
    cameras = struct.pack("<Q", len(model.cameras))
    for number, name, width, height, parameters in model.cameras:
        cameras += struct.pack(f"<IiQQ{len(parameters)}d", number, MODEL_NUMBERS[name], width, height, *parameters)
    images = struct.pack("<Q", len(model.images))
    for number, pose, camera, name in model.images:
        images += struct.pack("<I7dI", number, *pose, camera) + name.encode() + b"\0"
        images += struct.pack("<QddQddQ", 2, 1.5, 2.5, 1, 3.5, 4.5, 2**64 - 1)
    points = struct.pack("<Q", len(model.points))
    for index, point in enumerate(model.points):
        points += struct.pack("<Q3d3BdQII", index + 1, *point, 10, 20, 30, 0.7, 1, model.images[0][0], 0)
    for name, data in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.bin").write_bytes(data)
    return folder


def write_text(folder: Path, model: ColmapModel) -> Path:
    """Writes cameras.txt, images.txt and points3D.txt; the second image sees no point, so that its line is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    cameras = ["# Camera list", f"# Number of cameras: {len(model.cameras)}"]
    for number, name, width, height, parameters in model.cameras:
        cameras.append(" ".join(map(str, (number, name, width, height, *map(repr, parameters)))))
    images = ["# Image list", f"# Number of images: {len(model.images)}, mean observations per image: 1"]
    for index, (number, pose, camera, name) in enumerate(model.images):
        images.append(" ".join(map(str, (number, *map(repr, pose), camera, name))))
        images.append("" if index == 1 else "1.5 2.5 1 3.5 4.5 -1")
    points = [f"# Number of points: {len(model.points)}, mean track length: 1"]
    points += [f"{index} {x!r} {y!r} {z!r} 10 20 30 0.7 1 0" for index, (x, y, z) in enumerate(model.points.tolist())]
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_photos(folder: Path, model: ColmapModel, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Writes an opaque photo for each image of the model."""
    for index, (_, _, _, name) in enumerate(model.images):
        save(folder / name, picture(index, width, height, alpha=False), "RGB")
    return folder


def write_capture(folder: Path, model: ColmapModel | None = None, *, text: bool = False) -> Path:
    """Writes a folder with sparse/0 and images, and returns it."""
    model = ring() if model is None else model
    (write_text if text else write_binary)(folder / "sparse/0", model)
    write_photos(folder / "images", model)
    return folder


def llff_rows(n: int = 9, near: float = 2.0, far: float = 6.0) -> np.ndarray:
    """The ring of cameras as rows of poses_bounds.npy."""
    rows = []
    for index in range(n):
        right, up, back, position = np.array(opengl_pose(index, n))[:3].T
        size = np.array([HEIGHT, WIDTH, FOCAL])
        rows.append([*np.stack([-up, right, back, position, size], axis=1).ravel(), near, far])
    return np.array(rows)


def write_llff(folder: Path, rows: np.ndarray | None = None, name: str = "{:04d}.png", images: str = "images") -> Path:
    """Writes poses_bounds.npy and a photo for each row, and returns the folder."""
    rows = llff_rows() if rows is None else rows
    names = sorted(name.format(index) for index in range(len(rows)))
    for index, photo in enumerate(names):
        save(folder / images / photo, picture(index, alpha=False), "RGB")
    np.save(folder / "poses_bounds.npy", rows)
    return folder


def write_neus(folder: Path, n: int = 9, name: str = "cameras_sphere.npz", *, masks: bool = True) -> Path:
    """Writes the ring of cameras as NeuS does, a hundred times as large and off the origin, and returns the folder.

    The object's sphere has radius 150 around (10, 20, 30). Masks are white in the right half.
    """
    matrices = {}
    # pixel centres at whole numbers: half a pixel less than ours
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2 - 0.5], [0, FOCAL + 1, HEIGHT / 2 - 0.5], [0, 0, 1]])
    sphere = np.diag([150.0, 150.0, 150.0, 1.0])
    sphere[:3, 3] = 10, 20, 30
    for index in range(n):
        pose = np.array(opengl_pose(index, n))[:3] * [1, -1, -1, 1]
        pose[:, 3] = 100 * pose[:, 3] + [10, 20, 30]
        rotation = pose[:, :3].T
        matrix = np.eye(4)
        matrix[:3] = intrinsics @ np.column_stack([rotation, -rotation @ pose[:, 3]])
        matrices |= {f"world_mat_{index}": (-2 if index % 2 else 3) * matrix, f"scale_mat_{index}": sphere}
        save(folder / f"image/{index:03d}.png", picture(index, alpha=False), "RGB")
        if masks:
            white = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
            white[:, WIDTH // 2 :] = 255
            white[..., 3] = 255
            save(folder / f"mask/{index:03d}.png", white, "RGB")
    np.savez(folder / name, **matrices)
    return folder

"""Writes tiny data sets: a ring of cameras around the origin and pictures of a few pixels."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 12, 8
FOCAL = 15.0


def opengl_pose(index: int, n: int, radius: float = 4.0, height: float = 1.5) -> list[list[float]]:
    """Camera-to-world (OpenGL axes) of one camera of a ring around the z axis, looking at the origin."""
    angle = 2 * math.pi * index / n
    position = np.array([radius * math.cos(angle), radius * math.sin(angle), height])
    back = position / np.linalg.norm(position)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose.tolist()


def picture(index: int, width: int = WIDTH, height: int = HEIGHT, *, alpha: bool = True) -> np.ndarray:
    """RGBA pixels that tell image, row and column apart; the left half is transparent where there is
    alpha."""
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., 0] = 7 * index + 50
    pixels[..., 1] = np.arange(height)[:, None] + 80
    pixels[..., 2] = np.arange(width) + 120
    pixels[..., 3] = 255
    if alpha:
        pixels[:, : width // 2, 3] = 0
    return pixels


def save(path: Path, pixels: np.ndarray, mode: str = "RGBA", **options: Any) -> None:
    """Writes an image; the ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode == "RGBA" else image.convert(mode)).save(path, **options)


def document(n: int, name: str = "images/{:04d}.png", **top: Any) -> dict[str, Any]:
    """The object of a transforms.json with n frames."""
    frames = [{"file_path": name.format(i), "transform_matrix": opengl_pose(i, n)} for i in range(n)]
    return {"fl_x": FOCAL, "fl_y": FOCAL, "w": WIDTH, "h": HEIGHT, **top, "frames": frames}


Change = Callable[[dict[str, Any]], None]


def write_json(path: Path, values: Any) -> Path:
    """Writes a data file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def write_scene(
    folder: Path,
    n: int = 9,
    *,
    alpha: bool = True,
    change: Change | None = None,
    name: str = "images/{:04d}.png",
    file: str = "transforms.json",
    **top: Any,
) -> Path:
    """Writes a folder with n PNGs and a transforms.json in instant-ngp's form, and returns the folder.

    Args:
        change: edits the JSON's object before it is written.
        name: file_path of each frame; without an ending ".png" is added to the files.
        top: more fields of the top level.
    """
    values = document(n, name, **top)
    for index, frame in enumerate(values["frames"]):
        stated = frame["file_path"]
        path = folder / (stated if Path(stated).suffix == ".png" else stated + ".png")
        save(path, picture(index, alpha=alpha), "RGBA" if alpha else "RGB")
    if change is not None:
        change(values)
    write_json(folder / file, values)
    return folder


def write_synthetic(folder: Path, counts: dict[str, int], **top: Any) -> Path:
    """Writes a NeRF-synthetic folder: transforms_{split}.json and {split}/r_{i}.png, and returns the
    folder."""
    n = sum(counts.values())
    number = 0
    for split, count in counts.items():
        values = document(count, f"./{split}/r_{{}}", camera_angle_x=0.7, **top)
        for field in ("fl_x", "fl_y", "w", "h"):
            del values[field]
        for index, frame in enumerate(values["frames"]):
            frame["transform_matrix"] = opengl_pose(number, n)
            frame["rotation"] = 0.01
            save(folder / split / f"r_{index}.png", picture(number))
            number += 1
        write_json(folder / f"transforms_{split}.json", values)
    return folder

"""Points and volumes: what programs take that do not want triangles."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8

from hashfield.errors import ConfigError
from hashfield.export.meshes import Mesh, Values, ascii_lines, lattice


@dataclass(frozen=True)
class Cloud:
    """Points on a surface."""

    points: Float64[np.ndarray, "n 3"]
    """World units."""
    normals: Float32[np.ndarray, "n 3"]
    colors: UInt8[np.ndarray, "n 3"] | None
    """Colour of each point in sRGB."""


def points_on(mesh: Mesh, n: int, seed: int = 0) -> tuple[Float64[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]]:
    """(points spread evenly over a mesh's triangles, unit normals there, between those of the corners).

    Args:
        mesh: With normals.
        n: Points, at least 1.
        seed: Seed of their places.

    Raises:
        ConfigError: n is out of range.
    """
    if not 1 <= n <= 10**8:
        raise ConfigError(f"points: expected 1 to 100,000,000, got {n}")
    assert mesh.normals is not None
    rng = np.random.default_rng(seed)
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    area = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=1))
    # one point in each of n equal parts of the area: more even than independent ones
    face = np.searchsorted(area, (np.arange(n) + rng.random(n)) / n * area[-1], side="right").clip(max=len(area) - 1)
    root, along = np.sqrt(rng.random(n)), rng.random(n)
    shares = np.stack([1 - root, root * (1 - along), root * along], 1)
    corners = mesh.faces[face]
    place = sum(shares[:, k, None] * mesh.vertices[corners[:, k]] for k in range(3))
    normal = sum(shares[:, k, None] * mesh.normals[corners[:, k]] for k in range(3))
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return place, (normal / np.maximum(length, 1e-12)).astype(np.float32)  # type: ignore[return-value]


def encode_cloud(cloud: Cloud, notes: Sequence[str] = ()) -> bytes:
    """A binary PLY file of points with normals and colours."""
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    if cloud.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    table = np.zeros(len(cloud.points), fields)
    columns = [*cloud.points.T, *cloud.normals.T, *(() if cloud.colors is None else cloud.colors.T)]
    for (name, _), column in zip(fields, columns, strict=True):
        table[name] = column
    kinds = {"<f4": "float", "u1": "uchar"}
    head = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in ascii_lines(notes))]
    head += [f"element vertex {len(table)}", *(f"property {kinds[kind]} {name}" for name, kind in fields), "end_header"]
    return ("\n".join(head) + "\n").encode() + table.tobytes()


@torch.no_grad()
def sample_volume(
    value: Values, box: Sequence[float], resolution: int, points_at_once: int = 2**18
) -> Float32[np.ndarray, "x y z"]:
    """A function of space at the corners of a lattice over a box, outermost ones on the box.

    Args:
        value: The function.
        box: x0, y0, z0, x1, y1, z1 in the world.
        resolution: Cells along the longest side; the others get as many as makes cells nearly cubes.
        points_at_once: Bounds memory.
    """
    low, size, cells = lattice(box, resolution)
    found = np.empty(cells + 1, np.float32)
    flat = found.reshape(-1)
    for begin in range(0, flat.size, points_at_once):
        some = np.arange(begin, min(begin + points_at_once, flat.size))
        at = np.stack(np.unravel_index(some, found.shape), -1)
        flat[some] = value(torch.from_numpy(low + size * (at / cells))).cpu().numpy()
    return found


def encode_volume(
    path: Path, volume: Float32[np.ndarray, "x y z"], box: Sequence[float], what: str, notes: Sequence[str] = ()
) -> dict[str, bytes]:
    """Contents of the files of a volume by name: the numbers as .npy, and a JSON file that says where they lie.

    Args:
        path: The .npy file.
        volume: Numbers at lattice corners, x first.
        box: First and last corner of the lattice, world units.
        what: What the numbers are.
        notes: Lines about units and axes.
    """
    file = BytesIO()
    np.save(file, volume)
    sides = [(high - low) / (n - 1) for low, high, n in zip(box[:3], box[3:], volume.shape, strict=True)]
    facts = {"values": what, "shape": volume.shape, "axes": ["x", "y", "z"], "box": list(box), "spacing": sides}
    return {
        path.name: file.getvalue(),
        f"{path.stem}.json": json.dumps({**facts, "notes": list(notes)}, indent=1).encode(),
    }

"""Meshes with something wrong or odd about them, and what the user is told.

Shared by the test that expects the messages and by benchmarks/messages.py, which prints them.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class MeshCase:
    """One mesh file."""

    name: str
    situation: str
    """For the reader of the table."""
    build: Callable[[Path], Path]
    """Makes it in an empty folder; returns what the user would name."""
    expected: str
    """Regular expression that the message holds."""
    outcome: Literal["error", "note", "silent"] = "error"
    """Whether it is refused, read with that line among the notes, or read without a word."""


Triangles = tuple[np.ndarray, np.ndarray]


def sphere(n: int = 16, radius: float = 1.0, center: Sequence[float] = (0.0, 0.0, 0.0)) -> Triangles:
    """Vertices and faces of a closed sphere of rings, poles included; the triangles lie inside the sphere."""
    theta, phi = np.pi * np.arange(1, n) / n, 2 * np.pi * np.arange(2 * n) / (2 * n)
    ring = np.stack(
        [
            np.sin(theta)[:, None] * np.cos(phi),
            np.cos(theta)[:, None] * np.ones_like(phi),
            np.sin(theta)[:, None] * np.sin(phi),
        ],
        -1,
    )
    vertices = np.concatenate([[[0.0, 1, 0]], ring.reshape(-1, 3), [[0.0, -1, 0]]])
    faces, last, width = [], len(vertices) - 1, 2 * n
    for k in range(width):
        k1 = (k + 1) % width
        faces.append((0, 1 + k1, 1 + k))
        faces.append((last, last - width + k, last - width + k1))
        for r in range(n - 2):
            a, b = 1 + r * width, 1 + (r + 1) * width
            faces += [(a + k, a + k1, b + k), (a + k1, b + k1, b + k)]
    return vertices * radius + np.asarray(center), np.array(faces, np.int64)


def torus(n: int = 48, major: float = 1.0, minor: float = 0.4) -> Triangles:
    """Vertices and faces of a closed torus around y."""
    u, v = 2 * np.pi * np.arange(2 * n)[:, None] / (2 * n), 2 * np.pi * np.arange(n)[None] / n
    ring = major + minor * np.cos(v)
    vertices = np.stack([ring * np.cos(u), minor * np.sin(v) + 0 * u, ring * np.sin(u)], -1).reshape(-1, 3)
    i, k = (x.ravel() for x in np.meshgrid(np.arange(2 * n), np.arange(n), indexing="ij"))
    a, b, c, d = (x % (2 * n) * n + y % n for x, y in ((i, k), (i + 1, k), (i, k + 1), (i + 1, k + 1)))
    return vertices, np.concatenate([np.stack([a, c, d], 1), np.stack([a, d, b], 1)])


def write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    """The path, where the mesh now lies as text."""
    lines = ["v " + " ".join(repr(float(x)) for x in vertex) for vertex in vertices]
    lines += ["f " + " ".join(str(int(k) + 1) for k in face) for face in faces]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_stl(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    """The path, where the mesh now lies as binary STL, each triangle with corners of its own."""
    parts = [b"made for a test".ljust(80, b" "), struct.pack("<I", len(faces))]
    parts += [struct.pack("<12fH", 0, 0, 0, *vertices[face].ravel(), 0) for face in faces]
    path.write_bytes(b"".join(parts))
    return path


def write_text(name: str, text: str) -> Callable[[Path], Path]:
    """A file with this text."""

    def build(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return build


def obj(change: Callable[[np.ndarray, np.ndarray], Triangles]) -> Callable[[Path], Path]:
    """A small sphere, changed, as OBJ."""
    return lambda folder: write_obj(folder / "sphere.obj", *change(*sphere()))


def with_values(rows: int, value: float) -> Callable[[np.ndarray, np.ndarray], Triangles]:
    """The first vertices replaced by a number."""

    def change(vertices: np.ndarray, faces: np.ndarray) -> Triangles:
        vertices = vertices.copy()
        vertices[:rows] = value
        return vertices, faces

    return change


def turned(faces: np.ndarray, which: slice) -> np.ndarray:
    """Faces of which some name their corners the other way round."""
    faces = faces.copy()
    faces[which] = faces[which][:, ::-1]
    return faces


def cracked(folder: Path) -> Path:
    """STL whose corners differ in the last digits from triangle to triangle."""
    vertices, faces = sphere()
    corners = vertices[faces].reshape(-1, 3) + np.random.default_rng(0).uniform(-1, 1, (3 * len(faces), 3)) * 2e-7
    return write_stl(folder / "cracked.stl", corners, np.arange(len(corners)).reshape(-1, 3))


def two_spheres(folder: Path) -> Path:
    """Two closed spheres that overlap."""
    a, b = sphere(), sphere(center=(0.9, 0.0, 0.0))
    return write_obj(folder / "two.obj", np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1] + len(a[0])]))


def fin(folder: Path) -> Path:
    """A closed sphere with a triangle that stands on one of its edges."""
    vertices, faces = sphere()
    faces = np.concatenate([faces, [[faces[40, 0], faces[40, 1], len(vertices)]]])
    return write_obj(folder / "fin.obj", np.concatenate([vertices, [[2.0, 2, 2]]]), faces)


def truncated(folder: Path) -> Path:
    """Binary STL that ends in the middle of a triangle."""
    path = write_stl(folder / "short.stl", *sphere())
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def is_folder(folder: Path) -> Path:
    """A folder named like a mesh."""
    (folder / "mesh.obj").mkdir()
    return folder / "mesh.obj"


SHEET = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3\nf 1 3 4\n"

CASES: tuple[MeshCase, ...] = (
    MeshCase("missing", "no such file", lambda folder: folder / "no.obj", "no such file"),
    MeshCase("folder", "a folder in place of a file", is_folder, "expected a mesh file"),
    MeshCase("ending", "a file of another kind", write_text("mesh.txt", SHEET), r"expected a mesh file \(.obj, .ply"),
    MeshCase("empty", "an empty file", write_text("empty.obj", ""), "no triangles found"),
    MeshCase("garbage_ply", "text that is no PLY", write_text("a.ply", "hello\nworld\n"), "not a readable PLY file"),
    MeshCase("garbage_glb", "text that is no GLB", write_text("a.glb", "hello " * 20), "not a readable GLB file"),
    MeshCase("truncated", "a binary STL cut short", truncated, "no triangles found"),
    MeshCase("points", "vertices and no triangle", write_text("p.obj", "v 0 0 0\nv 1 0 0\n"), "no triangles found"),
    MeshCase("index", "a triangle of vertices that are not there", write_text("i.obj", SHEET + "f 1 2 9\n"),
             "not a readable OBJ|name vertices that the file does not hold"),
    MeshCase("all_nan", "every corner is NaN", obj(with_values(10**6, np.nan)), "all of its 960 triangles have corners "
             "that are not finite"),
    MeshCase("one_point", "every corner at one point", obj(with_values(10**6, 3.0)), "diagonal of 0"),
    MeshCase("line", "all corners on a line", write_text("l.obj", "v 0 0 0\nv 1 0 0\nv 3 0 0\nf 1 2 3\n"), "no area"),
    MeshCase("huge", "coordinates of 1e30", obj(lambda v, f: (v * 1e30, f)), "expected 1e-8 to 1e8, scale it"),
    MeshCase("some_nan", "one corner is NaN", obj(with_values(1, np.nan)),
             "warning: 32 of 960 triangles have corners that are not finite numbers; they are left out", "note"),
    MeshCase("degenerate", "a triangle with two equal corners",
             obj(lambda v, f: (v, np.concatenate([f, [[5, 5, 6]]]))),
             "warning: 1 of 961 triangles have two equal corners", "note"),
    MeshCase("twice", "every triangle given twice", obj(lambda v, f: (v, np.concatenate([f, f]))),
             "warning: 960 of 1920 triangles are there twice", "note"),
    MeshCase("hole", "a sphere with a hole", obj(lambda v, f: (v, f[100:])),
             r"warning: the mesh is not closed \(\d+ edges with one triangle\)", "note"),
    MeshCase("sheet", "a flat square", write_text("sheet.obj", SHEET), "next to nothing is inside", "note"),
    MeshCase("fin", "a sphere with a fin", fin, "2 edges with one triangle, 1 edges with more than two", "note"),
    MeshCase("contradiction", "some triangles face inwards", obj(lambda v, f: (v, turned(f, slice(0, 200)))),
             "warning: 200 of 960 triangles faced the other way than their neighbours; turned", "note"),
    MeshCase("inside_out", "all triangles face inwards", obj(lambda v, f: (v, turned(f, slice(None)))),
             "warning: the triangles faced inwards; all of them are turned", "note"),
    MeshCase("overlap", "two closed spheres that overlap", two_spheres, "closed but passes through itself", "note"),
    MeshCase("cracks", "an STL whose corners differ in the last digits", cracked,
             "closed by merging vertices nearer than 1e-06 of the diagonal", "note"),
    MeshCase("seams", "an STL file: three corners for each triangle",
             lambda folder: write_stl(folder / "sphere.stl", *sphere()), "inside: angle-weighted normals", "silent"),
)  # fmt: skip

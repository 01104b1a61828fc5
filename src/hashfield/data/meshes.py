"""Triangle meshes from files: OBJ, PLY, STL, GLB and GLTF, cleaned, with what was found wrong in words.

`mesh_files` reads, libigl orients; trimesh and libigl come with the extra `mesh`.
"""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float64, Int64

from hashfield.data.mesh_files import read_content
from hashfield.errors import ConfigError, DataError

EXTENSIONS: Final = (".obj", ".ply", ".stl", ".glb", ".gltf")
SEAM: Final = 1e-6
"""Vertices nearer than about this share of the diagonal are one, where that closes a mesh."""
MAX_FACES: Final = 2**27

InsideRule = Literal["normals", "winding"]


@dataclass(frozen=True)
class SourceMesh:
    """A surface of triangles."""

    name: str
    path: Path
    """What the user named, resolved; a made-up name for a mesh made by formula."""
    vertices: Float64[np.ndarray, "n_vertices 3"]
    """World: as the file has them, node transforms applied. No two are equal."""
    faces: Int64[np.ndarray, "n_faces 3"]
    """Counter-clockwise seen from outside, as far as that can be known."""
    is_closed: bool
    """Every edge has two faces, and they agree about which side is outside."""
    notes: tuple[str, ...] = ()
    """Lines for the user: what was found and done. Those that begin with "warning: " need a look."""

    @property
    def box(self) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
        """Lowest and highest corner."""
        return self.vertices.min(0), self.vertices.max(0)


def mesh_library(name: str) -> Any:
    """A module of the extra `mesh`.

    Raises:
        ConfigError: it is not installed; the text says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"igl": "libigl"}.get(name, name)
        raise ConfigError(f"meshes need the package {package}: pip install 'hashfield[mesh]'") from error


def read_mesh(path: Path) -> SourceMesh:
    """The mesh in a file, in world units, ready for distance queries.

    Scenes become one mesh with each node's transform applied. Vertices at equal positions (seams of texture
    coordinates, the triangles of an STL file) are one. Triangles with corners that are not finite numbers, with two
    equal corners, or given twice are left out, with a note.

    Raises:
        DataError: not a mesh, or none of its triangles is usable; the text names the file.
        ConfigError: the extra `mesh` is not installed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir() or path.suffix.lower() not in EXTENSIONS:
        raise DataError(f"{path}: expected a mesh file ({', '.join(EXTENSIONS)})")
    trimesh = mesh_library("trimesh")
    mesh_library("igl")  # named now, not after minutes of reading
    try:
        content = read_content(path, trimesh)
    except (DataError, MemoryError):
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # trimesh raises whatever its parsers stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable {path.suffix[1:].upper()} file: {reason:.200}") from error
    if not len(content.faces):
        raise DataError(f"{path}: no triangles found (empty, cut short, or of another format than its name says?)")
    mesh = make_mesh(content.vertices, content.faces, path.stem, path.resolve())
    return replace(mesh, notes=(*content.notes, *mesh.notes))


def make_mesh(
    vertices: Float64[np.ndarray, "n_vertices 3"], faces: Int64[np.ndarray, "n_faces 3"], name: str, path: Path
) -> SourceMesh:
    """The cleaned mesh of these triangles; see `read_mesh`.

    Raises:
        DataError: no triangle is usable.
    """
    notes: list[str] = []
    if len(faces) > MAX_FACES:
        raise DataError(f"{path}: {len(faces)} triangles are more than {MAX_FACES}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        wrong = int(((faces < 0) | (faces >= len(vertices))).any(1).sum())
        raise DataError(f"{path}: {wrong} of {len(faces)} triangles name vertices that the file does not hold")
    is_finite = np.asarray(np.isfinite(vertices).all(1))
    faces = _left_out(
        faces, np.asarray(is_finite[faces].all(1)), notes, "have corners that are not finite numbers", path
    )
    vertices, faces = _merged(vertices, faces)
    size = float(np.linalg.norm(vertices.max(0) - vertices.min(0)))
    if not 1e-8 < size < 1e8:
        raise DataError(f"{path}: the box of its triangles has a diagonal of {size:g}: expected 1e-8 to 1e8, scale it")
    a, b, c = faces.T
    faces = _left_out(faces, (a != b) & (b != c) & (c != a), notes, "have two equal corners", path)
    sides = vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    area = 0.5 * np.linalg.norm(np.cross(sides[0] / size, sides[1] / size), axis=1)
    if not area.sum() > 1e-15:
        raise DataError(f"{path}: its {len(faces)} triangles have no area")
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    is_first = np.zeros(len(faces), bool)
    is_first[first] = True
    faces = _left_out(faces, is_first, notes, "are there twice", path)
    open_edges, crowded_edges = _edges(faces)
    if open_edges:
        near_vertices, near_faces = _merged(*_drawn_together(vertices, faces, SEAM * size))
        if len(near_faces) and not any(_edges(near_faces)):
            notes.append(f"closed by merging vertices nearer than {SEAM:g} of the diagonal")
            vertices, faces, open_edges, crowded_edges = near_vertices, near_faces, 0, 0
    faces = _oriented(vertices, faces, notes)
    is_closed = not open_edges and not crowded_edges and _is_consistent(faces)
    if not is_closed:
        faults = [
            text
            for text, count in (
                (f"{open_edges} edges with one triangle", open_edges),
                (f"{crowded_edges} edges with more than two", crowded_edges),
                ("sides that contradict each other", not open_edges and not crowded_edges),
            )
            if count
        ]
        notes.append(f"warning: the mesh is not closed ({', '.join(faults)})")
    return SourceMesh(name, path, vertices, faces, is_closed, tuple(notes))


def _left_out(faces: np.ndarray, keep: np.ndarray, notes: list[str], why: str, path: Path) -> np.ndarray:
    n_lost = int((~keep).sum())
    if n_lost == len(faces):
        raise DataError(f"{path}: all of its {len(faces)} triangles {why}")
    if n_lost:
        notes.append(f"warning: {n_lost} of {len(faces)} triangles {why}; they are left out")
    return faces[keep]


def _merged(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices in use, equal ones once; 0.0 and -0.0 are equal."""
    used, inverse = np.unique(faces, return_inverse=True)
    faces = inverse.reshape(-1, 3)
    if not len(used):
        return vertices[:0], faces
    unique, inverse = np.unique(vertices[used] + 0.0, axis=0, return_inverse=True)
    return unique, np.ascontiguousarray(inverse.reshape(-1)[faces], np.int64)


def _drawn_together(vertices: np.ndarray, faces: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices moved to the first of those within reach of each other, and the faces that still have three corners."""
    pairs = mesh_library("scipy.spatial").cKDTree(vertices).query_pairs(reach, output_type="ndarray")
    sparse = mesh_library("scipy.sparse")
    ones, n = np.ones(len(pairs), bool), len(vertices)
    graph = sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), (n, n))
    _, group = mesh_library("scipy.sparse.csgraph").connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    faces = first[group][faces]
    a, b, c = faces.T
    return vertices, faces[(a != b) & (b != c) & (c != a)]


def _edges(faces: np.ndarray) -> tuple[int, int]:
    """How many edges have one triangle, and how many more than two."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    counts = np.unique(edges[:, 0] * (edges.max() + 1) + edges[:, 1], return_counts=True)[1]
    return int((counts == 1).sum()), int((counts > 2).sum())


def _is_consistent(faces: np.ndarray) -> bool:
    """Whether no two triangles run along an edge in the same direction."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return len(np.unique(edges[:, 0] * (edges.max() + 1) + edges[:, 1])) == len(edges)


def _volume(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Signed volume between each triangle and the middle of the box."""
    a, b, c = (vertices - 0.5 * (vertices.min(0) + vertices.max(0)))[faces].transpose(1, 0, 2)
    return np.einsum("nd,nd->n", a, np.cross(b, c)) / 6


def _oriented(vertices: np.ndarray, faces: np.ndarray, notes: list[str]) -> np.ndarray:
    """The faces, turned so that neighbours agree and volumes are positive."""
    if not _is_consistent(faces):
        before = faces
        faces, piece = mesh_library("igl").bfs_orient(faces)
        faces = np.ascontiguousarray(faces, np.int64)
        inverted = np.bincount(piece, _volume(vertices, faces))[piece] < 0
        faces[inverted] = faces[inverted][:, ::-1]
        n_turned = int((_parity(faces) != _parity(before)).sum())
        notes.append(f"warning: {n_turned} of {len(faces)} triangles faced the other way than their neighbours; turned")
    elif _volume(vertices, faces).sum() < 0:
        faces = np.ascontiguousarray(faces[:, ::-1])
        notes.append("warning: the triangles faced inwards; all of them are turned")
    return faces


def _parity(faces: np.ndarray) -> np.ndarray:
    """Whether each triangle names its corners in an even order of their numbers."""
    a, b, c = faces.T
    return (a < b) ^ (b < c) ^ (c < a)

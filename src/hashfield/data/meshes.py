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
        package = {"igl": "libigl", "skimage": "scikit-image"}.get(name.partition(".")[0], name.partition(".")[0])
        raise ConfigError(f"meshes need the package {package}: pip install 'hashfield[mesh]'") from error


def check_mesh_packages() -> None:
    """Raise where a package is missing that training on a mesh, or judging its result, comes to need later.

    Raises:
        ConfigError: the text says what to install.
    """
    for name in ("trimesh", "igl", "scipy.sparse", "skimage.measure"):
        mesh_library(name)


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
    with np.errstate(over="ignore"):  # of numbers near the largest there are, the diagonal is infinite
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
    if len(first) < len(faces):
        faces = _without_inner_walls(faces, notes)
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


def _without_inner_walls(faces: np.ndarray, notes: list[str]) -> np.ndarray:
    """The faces without those at which two bodies touch: the same triangles twice.

    Each such wall must end at edges where the rest of the surface goes on on both sides; sheets that are drawn from
    both sides stay, and so does a surface that is given twice.
    """
    _, first, group, count = np.unique(
        np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    group, is_wall = group.reshape(-1), count == 2
    if not is_wall.any():
        return faces
    walls = faces[first[is_wall]]
    n_vertices = int(faces.max()) + 1

    def edge_keys(some: np.ndarray) -> np.ndarray:
        edges = np.sort(some[:, [[0, 1], [1, 2], [2, 0]]], axis=2)
        return edges[..., 0] * n_vertices + edges[..., 1]

    keys, edge, n_walls = np.unique(edge_keys(walls), return_inverse=True, return_counts=True)
    edge = edge.reshape(-1, 3)
    rest = np.sort(edge_keys(faces[~is_wall[group]]).reshape(-1))
    n_rest = np.searchsorted(rest, keys, "right") - np.searchsorted(rest, keys)
    sparse, n = mesh_library("scipy.sparse"), len(walls)
    # Walls that share an edge are one patch.
    graph = sparse.coo_matrix(
        (np.ones(3 * n, bool), (np.repeat(np.arange(n), 3), n + edge.reshape(-1))), (n + len(keys),) * 2
    )
    _, patch = mesh_library("scipy.sparse.csgraph").connected_components(graph, directed=False)
    is_rim = n_walls == 1
    fits = np.bincount(patch[n:], is_rim & (n_rest >= 2)) == np.bincount(patch[n:], is_rim)
    fits &= np.bincount(patch[n:], is_rim) > 0
    is_inner = np.zeros(len(count), bool)
    is_inner[np.flatnonzero(is_wall)[fits[patch[:n]]]] = True
    n_lost = int(is_inner[group].sum())
    if n_lost:
        notes.append(f"{n_lost} of {len(faces)} triangles lie between two bodies that touch; they are left out")
    return faces[~is_inner[group]]


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


def _is_contradicted(faces: np.ndarray) -> np.ndarray:
    """Whether another triangle runs along one of its edges in the same direction, for each."""
    edges = faces[:, [[0, 1], [1, 2], [2, 0]]]
    keys = edges[..., 0] * (edges.max() + 1) + edges[..., 1]
    _, inverse, count = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray((count[inverse.reshape(-1, 3)] > 1).any(1))


def _volume(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Signed volume between each triangle and the middle of the box."""
    a, b, c = (vertices - 0.5 * (vertices.min(0) + vertices.max(0)))[faces].transpose(1, 0, 2)
    return np.einsum("nd,nd->n", a, np.cross(b, c)) / 6


def _own_volume(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Signed volume between each piece of surface and its own middle, so that what is missing counts little."""
    corners = vertices[faces]
    n = np.bincount(piece)
    middle = np.stack([np.bincount(piece, corners[..., d].mean(1)) / n for d in range(3)], 1)
    a, b, c = (corners - middle[piece][:, None]).transpose(1, 0, 2)
    return np.bincount(piece, np.einsum("nd,nd->n", a, np.cross(b, c)) / 6)


def _oriented(vertices: np.ndarray, faces: np.ndarray, notes: list[str]) -> np.ndarray:
    """The faces, turned so that neighbours agree and no body is inside out.

    Within a piece of surface, the side that most of its area calls outside is outside: a few turned triangles do not
    turn a wall. Whole bodies are then judged by how they lie in each other, see `_is_body_inside_out`.
    """
    agreed, piece = mesh_library("igl").bfs_orient(faces)
    is_turned = _parity(agreed) != _parity(faces)
    area = np.linalg.norm(
        np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]), axis=1
    )
    piece_area = np.bincount(piece, area)
    share = np.bincount(piece, area * is_turned) / np.maximum(piece_area, 1e-300)
    is_turned ^= (share > 0.5)[piece]
    share = np.minimum(share, 1 - share)
    is_body = _is_body(vertices, faces, piece)
    # A scrap that contradicts what it hangs on, at an edge with more than two triangles, faces away from the middle.
    volume = np.bincount(piece, np.where(is_turned, -1, 1) * _volume(vertices, faces))
    is_scrap = ~is_body & (piece_area < _SCRAP * piece_area.sum()) & (volume < 0)
    if is_scrap.any():
        agreed = np.where(is_turned[:, None], faces[:, ::-1], faces)
        is_scrap &= np.bincount(piece, _is_contradicted(agreed)) > 0
        is_turned ^= is_scrap[piece]
    faces = np.where(is_turned[:, None], faces[:, ::-1], faces)
    if is_turned.any():
        n_turned = int(is_turned.sum())
        notes.append(f"warning: {n_turned} of {len(faces)} triangles faced the other way than their neighbours; turned")
    volume = np.bincount(piece, _volume(vertices, faces))
    must_turn = np.zeros(len(is_body), bool)
    bodies = np.flatnonzero(is_body)
    volume[bodies] = _own_volume(vertices, faces, piece)[bodies]
    if len(bodies) and ((volume[bodies] < 0) | (share[bodies] > _UNCLEAR)).any():
        must_turn[bodies] = _is_body_inside_out(vertices, faces, piece, bodies, volume[bodies], share[bodies])
    # Sheets have no inside that could tell; together they follow the volume that all of the surface has.
    volume = np.where(must_turn, -volume, volume)
    unclear = ~is_body & (share > _UNCLEAR) & (volume < 0)
    must_turn |= unclear
    if np.where(unclear, -volume, volume).sum() < 0:
        must_turn ^= ~is_body
    turned = must_turn[piece]
    if turned.all():
        notes.append("warning: the triangles faced inwards; all of them are turned")
    elif turned.any():
        n, what = int(must_turn.sum()), "bodies and sheets" if (must_turn & ~is_body).any() else "bodies"
        notes.append(f"warning: {n} of {len(must_turn)} {what} were inside out ({int(turned.sum())} triangles); turned")
    return np.ascontiguousarray(np.where(turned[:, None], faces[:, ::-1], faces), np.int64)


_SCRAP: Final = 0.01
"""Share of the whole area up to which a sheet is a scrap."""
_UNCLEAR: Final = 0.4
"""Share of a piece's area that contradicts the rest from which the file does not say which side is outside."""
_NEARLY_CLOSED: Final = 1.0
"""A piece of surface whose holes have a rim of less than this times the root of its area encloses a body."""


def _is_body(vertices: np.ndarray, faces: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Whether each piece of surface encloses something: it is closed, but for small holes."""
    n_pieces = int(piece.max()) + 1
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    owner = np.repeat(piece, 3)
    order = np.lexsort((edges[:, 1], edges[:, 0], owner))
    edges, owner = edges[order], owner[order]
    begins = np.ones(len(edges), bool)
    begins[1:] = (edges[1:] != edges[:-1]).any(1) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(begins)
    is_rim = np.diff(np.append(first, len(edges))) == 1
    rim, rim_owner = edges[first[is_rim]], owner[first[is_rim]]
    length = np.bincount(rim_owner, np.linalg.norm(vertices[rim[:, 0]] - vertices[rim[:, 1]], axis=1), n_pieces)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    area = np.bincount(piece, 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1), n_pieces)
    return (area > 0) & (length**2 < _NEARLY_CLOSED * area)


def _is_body_inside_out(
    vertices: np.ndarray,
    faces: np.ndarray,
    piece: np.ndarray,
    bodies: np.ndarray,
    volume: np.ndarray,
    share: np.ndarray,
) -> np.ndarray:
    """Whether each body must be turned, so that the surface winds less than zero times around no place.

    A body that faces inwards is a cavity where it lies in another, and wrong where it lies in nothing. From a wrong
    one on inwards the file is not trusted: there, walls face outwards and inwards by turns.

    Args:
        vertices, faces: Of all pieces; neighbours agree.
        piece: Of each face.
        bodies: Numbers of the pieces that enclose something.
        volume: Of each body, negative where it faces inwards.
        share: Of each body's area, how much faced the other way than the rest.
    """
    order = np.argsort(piece, kind="stable")
    starts = np.searchsorted(piece[order], np.arange(int(piece.max()) + 2))
    parts = [faces[order[starts[k] : starts[k + 1]]] for k in bodies]
    n = len(bodies)
    low, high = (np.stack([f(vertices[part.reshape(-1)], 0) for part in parts]) for f in (np.min, np.max))
    probes = [vertices[part[np.linspace(0, len(part) - 1, _BODY_PROBES).astype(int)]].mean(1) for part in parts]
    holders: list[list[int]] = [[] for _ in range(n)]
    for k in range(n):
        inside = np.flatnonzero((low >= low[k]).all(1) & (high <= high[k]).all(1) & (np.abs(volume) < abs(volume[k])))
        if not len(inside):
            continue
        tree = mesh_library("igl").FastWindingNumberBVH()
        tree.init(vertices, np.ascontiguousarray(parts[k], np.int64))
        turns = tree.winding_number(np.concatenate([probes[i] for i in inside])).reshape(len(inside), -1)
        for i in inside[np.median(np.abs(turns), axis=1) > 0.5]:  # most of it, as bodies may touch
            holders[i].append(k)
    sign = np.where(volume < 0, -1, 1)
    found, is_trusted = sign.copy(), share <= _UNCLEAR
    for i in sorted(range(n), key=lambda i: (len(holders[i]), -abs(volume[i]))):
        around = int(found[holders[i]].sum())
        if not is_trusted[holders[i]].all() or not is_trusted[i]:
            found[i], is_trusted[i] = (-1 if around > 0 else 1), False
        elif around + sign[i] < 0:
            found[i], is_trusted[i] = 1, False
    return found != sign


_BODY_PROBES: Final = 9


def _parity(faces: np.ndarray) -> np.ndarray:
    """Whether each triangle names its corners in an even order of their numbers."""
    a, b, c = faces.T
    return (a < b) ^ (b < c) ^ (c < a)

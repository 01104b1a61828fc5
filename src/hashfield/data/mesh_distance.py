"""Exact signed distances to a mesh. libigl finds the nearest point of the surface; the sign is decided here.

Why libigl: `benchmarks/mesh_distance.py`. Points are asked in Morton order, neighbours after each other, which makes
its tree two to three times as fast as points in random order.
"""

from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float64, Int64

from hashfield.data.meshes import InsideRule, mesh_library
from hashfield.ops.occupancy import morton3

_AT_ONCE: Final = 2**17  # points a call: it holds the interpreter lock, and Ctrl-C waits for it
_ON_FEATURE: Final = 1e-7  # barycentric coordinates below this lie on the edge or vertex
_PROBES: Final = 4096
_PIECES: Final = 1024  # of many pieces, so many are probed
_DISAGREE: Final = 0.002
"""Share of probes on whose sign normals and winding numbers may differ before a closed mesh counts as one that passes
through itself; tiny triangles and points on the surface cost a few in ten thousand."""

INSIDE: Final = {
    "normals": "angle-weighted normals of the nearest point (the mesh is closed)",
    "winding": "the generalised winding number is above 0.5",
}
"""What decides that a point is inside, in words."""


def morton_order(points_unit: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
    """An order of the points in which neighbours follow each other; 1024 cells per axis of [0, 1]."""
    cell = torch.from_numpy((np.clip(points_unit, 0.0, 1.0) * 1023).astype(np.int64))
    return np.argsort(morton3(cell).numpy(), kind="stable")


class DistanceQuery:
    """Distances of points to one mesh: negative inside, in the units of its vertices.

    Two rules say what inside is. "normals": (point - nearest point) . normal < 0, with the nearest point's normal being
    the sum of its faces' normals weighted by their angles there, which is exact for a closed surface. "winding": the
    generalised winding number is above 0.5, which agrees with it on closed surfaces, and has an answer for surfaces
    with holes, overlaps and contradictions.

    Source: Baerentzen, Aanaes 2005 (angle-weighted normals); Jacobson et al. 2013 and Barill et al. 2018 (winding
    numbers, and how to have them fast).
    """

    def __init__(
        self,
        vertices: Float64[np.ndarray, "n_vertices 3"],
        faces: Int64[np.ndarray, "n_faces 3"],
        rule: InsideRule | None = None,
        is_closed: bool = True,
    ) -> None:
        """Args:
        vertices: Inside [0, 1]^3, or points will be asked in a poor order.
        faces: Counter-clockwise from outside.
        rule: What inside is; None: normals where the mesh is closed and winding numbers agree with them, else winding.
        is_closed: Whether every edge has two faces that agree.

        Raises:
            ConfigError: libigl is not installed.
        """
        self._igl: Any = mesh_library("igl")
        self.vertices = np.ascontiguousarray(vertices, np.float64)
        # Slivers without area have no normal; on a closed surface their neighbours cover them.
        a, b, c = self.vertices[faces].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal, axis=1)
        self.all_faces = np.ascontiguousarray(faces, np.int64)
        self.faces = np.ascontiguousarray(faces[length > 0], np.int64)
        self._tree = self._igl.AABB()
        self._tree.init(self.vertices, self.faces)
        self._winding: Any = None
        self.passes_through_itself = False
        self.rule: InsideRule = "winding"
        if rule is not None:
            self.rule = rule
        elif is_closed:
            self.rule = "normals"
        if rule is None and is_closed and _touches_itself(self.faces):
            self.rule = "winding"  # where only corners touch, normals of one body mix with those of another
        self._normals = _feature_normals(self.vertices, self.faces) if self.rule == "normals" else None
        if (
            self.rule == "normals"
            and rule is None
            and (self._disagreement() > _DISAGREE or self._disagrees_around_a_piece())
        ):
            self.passes_through_itself = True
            self.rule = "winding"

    def _disagreement(self) -> float:
        """Share of probes to which the two rules give different signs."""
        rng = np.random.default_rng(0)
        low, high = self.vertices.min(0), self.vertices.max(0)
        near = self.vertices[self.faces[rng.integers(len(self.faces), size=_PROBES // 2)]].mean(1)
        near = near + rng.normal(size=near.shape) * 0.01 * np.linalg.norm(high - low)
        probes = np.concatenate([near, low + rng.random((_PROBES // 2, 3)) * (high - low)])
        by_normals = self.signed(probes) < 0
        return float(np.mean(by_normals != (self.winding_number(probes) > 0.5)))

    def _disagrees_around_a_piece(self) -> bool:
        """Whether the two rules differ around some piece of surface that is too small to be hit by random probes."""
        piece = _pieces(self.faces, len(self.vertices))
        n_pieces = int(piece.max()) + 1
        if n_pieces == 1:
            return False
        order = np.argsort(piece, kind="stable")
        begin = np.searchsorted(piece[order], np.arange(n_pieces + 1))
        chosen = np.random.default_rng(0).permutation(n_pieces)[:_PIECES]
        faces = np.stack([order[np.linspace(begin[k], begin[k + 1] - 1, 4).astype(int)] for k in chosen]).reshape(-1)
        a, b, c = self.vertices[self.faces[faces]].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        size = np.linalg.norm(normal, axis=1, keepdims=True) ** 0.5
        step = 0.05 * normal / size  # a twentieth of the triangle's size
        probes = np.concatenate([(a + b + c) / 3 + step, (a + b + c) / 3 - step])
        differ = (self.signed(probes) < 0) != (self.winding_number(probes) > 0.5)
        return bool((differ.reshape(2, len(chosen), 4).sum((0, 2)) >= 3).any())

    def nearest(self, points: Float64[np.ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(distance [n] >= 0, face [n], nearest point of the surface [n, 3])."""
        points = np.ascontiguousarray(points, np.float64)
        order = morton_order(points)
        distance, face, nearest = np.empty(len(points)), np.empty(len(points), np.int64), np.empty((len(points), 3))
        for first in range(0, len(points), _AT_ONCE):
            part = order[first : first + _AT_ONCE]
            squared, face[part], nearest[part] = self._tree.squared_distance(self.vertices, self.faces, points[part])
            distance[part] = np.sqrt(squared)
        return distance, face, nearest

    def unsigned(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """Distances >= 0."""
        return self.nearest(points)[0]

    def signed(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """Distances, negative inside."""
        distance, face, nearest = self.nearest(points)
        if self.rule == "winding":
            is_inside = self.winding_number(points) > 0.5
        else:
            assert self._normals is not None
            feature = _feature(self.vertices, self.faces[face], nearest)
            normal = self._normals[face, feature]
            is_inside = np.einsum("nd,nd->n", points - nearest, normal) < 0
        return np.where(is_inside, -distance, distance)

    def winding_number(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """How often the surface winds around each point: 1 inside and 0 outside of a closed one."""
        if self._winding is None:
            self._winding = self._igl.FastWindingNumberBVH()
            self._winding.init(self.vertices, self.all_faces)
        points = np.ascontiguousarray(points, np.float64)
        order = morton_order(points)
        found = np.empty(len(points))
        for first in range(0, len(points), _AT_ONCE):
            part = order[first : first + _AT_ONCE]
            found[part] = self._winding.winding_number(points[part])
        return found

    def cast(
        self, origin: Float64[np.ndarray, "n 3"], direction: Float64[np.ndarray, "n 3"]
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n 3"]]:
        """(t, normal) where each ray first meets the mesh: t infinite and the normal 0 where it does not.

        t is in units of the direction's length; the normal is the triangle's, of unit length.
        """
        t, normal = np.full(len(origin), np.inf), np.zeros((len(origin), 3))
        for first in range(0, len(origin), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            rays = (np.ascontiguousarray(x[part], np.float64) for x in (origin, direction))
            face, found, _ = self._tree.intersect_ray_first(self.vertices, self.faces, *rays)
            is_hit = face >= 0
            t[part] = np.where(is_hit, found, np.inf)
            a, b, c = self.vertices[self.faces[face[is_hit]]].transpose(1, 0, 2)
            across = np.cross(b - a, c - a)
            normal[part][is_hit] = across / np.linalg.norm(across, axis=1, keepdims=True)
        return t, normal


# --- pieces of surface


def _pieces(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """The number of the piece of surface that each face belongs to; pieces share no vertex."""
    sparse = mesh_library("scipy.sparse")
    ends = faces[:, :2].reshape(-1), faces[:, 1:].reshape(-1)
    graph = sparse.coo_matrix((np.ones(len(ends[0]), bool), ends), (n_vertices, n_vertices))
    _, label = mesh_library("scipy.sparse.csgraph").connected_components(graph, directed=False)
    return np.unique(label[faces[:, 0]], return_inverse=True)[1].reshape(-1)


def _touches_itself(faces: np.ndarray) -> bool:
    """Whether some vertex of a closed surface has more than one ring of triangles around it."""
    n, corner = len(faces), np.arange(3 * len(faces)).reshape(-1, 3)
    # Two corners at the same vertex belong to one ring where their triangles share an edge there.
    begin, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    at_begin, at_end = corner.reshape(-1), np.roll(corner, -1, axis=1).reshape(-1)
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    order = np.lexsort((high, low))
    if len(order) % 2 or not all((x[order[::2]] == x[order[1::2]]).all() for x in (low, high)):
        return False  # not closed, as slivers are left out: no rings to count
    a, b = order[::2], order[1::2]
    at_low = np.where(begin < end, at_begin, at_end)
    at_high = np.where(begin < end, at_end, at_begin)
    ends = np.concatenate([at_low[a], at_high[a]]), np.concatenate([at_low[b], at_high[b]])
    sparse = mesh_library("scipy.sparse")
    graph = sparse.coo_matrix((np.ones(len(ends[0]), bool), ends), (3 * n, 3 * n))
    n_rings, _ = mesh_library("scipy.sparse.csgraph").connected_components(graph, directed=False)
    return n_rings > len(np.unique(faces))


# --- angle-weighted normals


def _feature(vertices: np.ndarray, corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """What of its triangle each point lies on: 0..2 a corner, 3..5 the edge across from corner 0..2, 6 the inside."""
    a, b, c = (vertices[corners[:, k]] for k in range(3))
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (np.einsum("nd,nd->n", x, y) for x, y in ((ab, ab), (ab, ac), (ac, ac)))
    d20, d21 = np.einsum("nd,nd->n", ap, ab), np.einsum("nd,nd->n", ap, ac)
    scale = 1.0 / np.maximum(d00 * d11 - d01 * d01, 1e-300)
    v, w = (d11 * d20 - d01 * d21) * scale, (d00 * d21 - d01 * d20) * scale
    is_off = np.stack([1 - v - w, v, w], 1) < _ON_FEATURE  # on the edge across from that corner
    n_off = is_off.sum(1)
    feature = np.full(len(points), 6)
    feature[n_off == 1] = 3 + is_off[n_off == 1].argmax(1)
    feature[n_off == 2] = (~is_off[n_off == 2]).argmax(1)
    return feature


def _feature_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[n_faces, 7, 3]: normal at each feature of each triangle, numbered as `_feature` does; only directions count."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    at_vertex = np.zeros_like(vertices)
    for corner, left, right in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        x = vertices[faces[:, left]] - vertices[faces[:, corner]]
        y = vertices[faces[:, right]] - vertices[faces[:, corner]]
        angle = np.arctan2(np.linalg.norm(np.cross(x, y), axis=1), np.einsum("nd,nd->n", x, y))
        for d in range(3):
            at_vertex[:, d] += np.bincount(faces[:, corner], angle * normal[:, d], len(vertices))
    edges = np.sort(faces[:, [[1, 2], [2, 0], [0, 1]]].reshape(-1, 2), axis=1)
    _, number = np.unique(edges[:, 0] * len(vertices) + edges[:, 1], return_inverse=True)
    per_edge = np.repeat(normal, 3, axis=0)
    at_edge = np.stack([np.bincount(number, per_edge[:, d]) for d in range(3)], 1)[number].reshape(-1, 3, 3)
    return np.concatenate([at_vertex[faces], at_edge, normal[:, None]], axis=1)

"""Polygons as triangles: in fans where a fan covers them, else by cutting off ears.

Our own code, since trimesh cuts every polygon as a fan from its first corner, which is wrong for concave ones, and
libraries that do better are not among those that the extra `mesh` installs.
"""

from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

_FLAT: Final = 1e-9
"""Triangles below this share of their polygon's area count as having none."""
_STARTS: Final = 16
"""Corners from which a fan is tried."""
_NEAR: Final = 1e-12
"""Tolerance of positions in a polygon of size 1."""


def triangulate(
    vertices: Float64[np.ndarray, "n_vertices 3"],
    corners: Int64[np.ndarray, " n_corners"],
    counts: Int64[np.ndarray, " n_polygons"],
) -> Int64[np.ndarray, "n_faces 3"]:
    """Triangles of polygons, in the order of the polygons and wound as these are.

    A polygon may be concave, may have corners on a line, and may have holes that are joined to its outline by a pair
    of coinciding edges. One that is not planar is cut as its projection along its mean normal is. One that crosses
    itself, or names vertices that do not exist, still gets triangles, without a promise.

    Args:
        vertices: Positions, in any unit.
        corners: Numbers of the vertices, polygon after polygon.
        counts: Corners of each polygon, 3 or more.
    """
    ends = np.cumsum(counts)
    parts, owners = [], []
    for n in np.unique(counts):
        which = np.flatnonzero(counts == n)
        table = corners[(ends[which] - n)[:, None] + np.arange(n)]
        faces, rows = (table, np.arange(len(table))) if n == 3 else _cut(vertices, table)
        parts.append(faces)
        owners.append(which[rows])
    if not parts:
        return np.zeros((0, 3), np.int64)
    order = np.argsort(np.concatenate(owners), kind="stable")
    return np.ascontiguousarray(np.concatenate(parts)[order], np.int64)


@np.errstate(over="ignore", invalid="ignore")  # numbers near the largest there are; their polygons become fans
def _cut(vertices: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of polygons [m, n] of the same number of corners, and the row that each belongs to."""
    m, n = table.shape
    start = np.zeros(m, np.int64)
    exists = np.asarray(((table >= 0) & (table < len(vertices))).all(1))
    points = vertices[np.where(exists[:, None], table, 0)]
    known = np.asarray(exists & np.isfinite(points).all((1, 2)))
    points = np.where(known[:, None, None], points, 0.0)
    points = points - points.mean(1, keepdims=True)
    normal = _fan_normals(points).sum(1)
    area = np.linalg.norm(normal, axis=1)
    extent = np.abs(points).max((1, 2))
    known &= np.isfinite(area) & (area > _FLAT * extent**2)
    normal = normal / np.maximum(area, 1e-300)[:, None]
    left = np.flatnonzero(known)
    smallest = np.full(m, -np.inf)
    for first in range(min(n, 2 if n == 4 else _STARTS)):
        if not len(left):
            break
        fan = np.einsum("mkd,md->mk", _fan_normals(np.roll(points[left], -first, axis=1)), normal[left]).min(1)
        # A quad always has a diagonal that covers it, and the better one is it even where a corner is on a line.
        better = fan > smallest[left] if n == 4 else fan > _FLAT * area[left]
        start[left[better]], smallest[left[better]] = first, fan[better]
        left = left[fan <= _FLAT * area[left]]
    if n == 4:
        left = left[:0]
    fanned = np.ones(m, bool)
    fanned[left] = False
    rows = np.flatnonzero(fanned)
    turned = np.take_along_axis(table[rows], (start[rows, None] + np.arange(n)) % n, axis=1)
    fans = np.stack([np.repeat(turned[:, :1], n - 2, 1), turned[:, 1:-1], turned[:, 2:]], -1).reshape(-1, 3)
    parts, owners = [fans], [np.repeat(rows, n - 2)]
    for row in left:
        ears = _clipped(_in_plane(points[row], normal[row]) / extent[row])
        parts.append(table[row][ears].reshape(-1, 3))
        owners.append(np.full(len(ears), row))
    return np.concatenate(parts), np.concatenate(owners)


def _fan_normals(points: np.ndarray) -> np.ndarray:
    """[m, n - 2, 3]: twice the vector areas of the triangles of a fan from corner 0, for points [m, n, 3]."""
    spokes = points[:, 1:] - points[:, :1]
    return np.cross(spokes[:, :-1], spokes[:, 1:])


def _in_plane(points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """[n, 2]: points along two axes across the normal, counter-clockwise where they are so around it."""
    u = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    u /= np.linalg.norm(u)
    v = np.cross(normal, u)
    # Sums written out: equal points get equal coordinates, which a matrix product does not promise.
    return np.stack([points[:, 0] * a[0] + points[:, 1] * a[1] + points[:, 2] * a[2] for a in (u, v)], 1)


def _clipped(xy: np.ndarray) -> np.ndarray:
    """[n_triangles, 3]: corners of the triangles of a counter-clockwise polygon [n, 2] of about size 1.

    The best-shaped ear goes first, so that corners on a line end in proper triangles where there are any. Where no
    ear is left, which takes a polygon that touches or crosses itself, first corners that only touch an ear are let
    pass, then all.
    """
    n = len(xy)
    before, after = np.roll(np.arange(n), 1), np.roll(np.arange(n), -1)
    alive = np.ones(n, bool)

    def turn(i: int) -> float:
        (ax, ay), (bx, by), (cx, cy) = xy[before[i]], xy[i], xy[after[i]]
        return (bx - ax) * (cy - by) - (by - ay) * (cx - bx)

    is_reflex = np.array([turn(i) <= _NEAR for i in range(n)])

    def shape(i: int, tolerance: float) -> float:
        """How well-shaped an ear is, at most about 1; -inf where it is none."""
        twice_area = turn(i)
        if twice_area <= _NEAR:
            return -np.inf
        corners = xy[[before[i], i, after[i]]]
        sides = np.roll(corners, -1, axis=0) - corners
        found = twice_area / max(float((sides**2).sum(1).max()), 1e-300)
        if not np.isfinite(tolerance):
            return found
        others = xy[is_reflex & alive]
        across = [sides[k, 0] * (others[:, 1] - corners[k, 1]) - sides[k, 1] * (others[:, 0] - corners[k, 0])
                  for k in range(3)]  # fmt: skip
        is_inside = np.min(across, axis=0) >= tolerance
        # Another corner at the place of one of these is the far side of a cut to a hole.
        is_corner = (np.abs(others[:, None] - corners).max(2) <= _NEAR).any(1)
        return -np.inf if bool((is_inside & ~is_corner).any()) else found

    shapes = np.array([shape(i, -_NEAR) for i in range(n)])
    triangles = []
    for _ in range(n - 3):
        best = int(shapes.argmax())
        for tolerance in (-_NEAR, _NEAR, np.inf):
            if shapes[best] > -np.inf:
                break
            shapes = np.array([shape(i, tolerance) if alive[i] else -np.inf for i in range(n)])
            best = int(shapes.argmax())
        if shapes[best] == -np.inf:  # nothing but corners on a line is left
            best = int(np.flatnonzero(alive)[np.argmin([abs(turn(int(i))) for i in np.flatnonzero(alive)])])
        a, c = int(before[best]), int(after[best])
        triangles.append((a, best, c))
        alive[best], shapes[best] = False, -np.inf
        after[a], before[c] = c, a
        for i in (a, c):
            is_reflex[i] = turn(i) <= _NEAR
        for i in (a, c):
            shapes[i] = shape(i, -_NEAR)
    last = int(np.flatnonzero(alive)[0])
    triangles.append((int(before[last]), last, int(after[last])))
    found = np.array(triangles)
    sides = np.abs(xy[found] - np.roll(xy[found], -1, axis=1)).max(2)
    return found[(sides > _NEAR).all(1)]  # cuts to holes leave triangles between two equal points

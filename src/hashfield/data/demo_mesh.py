"""A closed mesh made by formula: a knotted tube with ripples."""

from pathlib import Path
from typing import Final

import numpy as np

from hashfield.data.meshes import SourceMesh, make_mesh

DEMO: Final = "demo"
"""Stands for the path of the demo's mesh."""


def demo_mesh(n_along: int = 720, n_around: int = 60) -> SourceMesh:
    """A tube along the trefoil (2, 3) on a torus, its radius rippled along and around it.

    Args:
        n_along: Rings of vertices.
        n_around: Vertices of a ring.
    """
    s = 2 * np.pi * np.arange(n_along)[:, None] / n_along
    a = 2 * np.pi * np.arange(n_around)[None, :] / n_around

    def center(s: np.ndarray) -> np.ndarray:
        ring = 1.0 + 0.42 * np.cos(3 * s)
        return np.concatenate([ring * np.cos(2 * s), 0.42 * np.sin(3 * s), ring * np.sin(2 * s)], 1)

    middle, step = center(s), 1e-4
    along = center(s + step) - center(s - step)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    # Away from the torus' own middle circle: turns with the tube and closes with it.
    out = middle - np.concatenate([np.cos(2 * s), np.zeros_like(s), np.sin(2 * s)], 1)
    out -= along * (out * along).sum(1, keepdims=True)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    side = np.cross(along, out)
    radius = 0.2 + 0.012 * np.cos(6 * a) + 0.02 * np.sin(48 * s) * (0.5 + 0.5 * np.cos(a))
    offset = np.cos(a)[..., None] * out[:, None] + np.sin(a)[..., None] * side[:, None]
    vertices = (middle[:, None] + radius[..., None] * offset).reshape(-1, 3)
    i, k = (x.ravel() for x in np.meshgrid(np.arange(n_along), np.arange(n_around), indexing="ij"))
    i1, k1 = (i + 1) % n_along, (k + 1) % n_around
    v00, v10, v01, v11 = (x * n_around + y for x, y in ((i, k), (i1, k), (i, k1), (i1, k1)))
    faces = np.concatenate([np.stack([v00, v11, v10], 1), np.stack([v00, v01, v11], 1)])
    return make_mesh(vertices, faces, DEMO, Path(DEMO))

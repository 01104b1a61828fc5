"""Training points of a signed distance: on the surface, near it, and anywhere in its box, with exact distances.

Exact distances cost more than a training step, so a chunk of points serves several steps. Everything follows from the
seed and the step's number, so a resumed run needs no saved points.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hashfield.data.mesh_distance import DistanceQuery, morton_order

HALF_DIAGONAL: Final = 0.5 * 3**0.5  # of the unit cube
_LOGISTIC: Final = 3**0.5 / np.pi  # scale of a logistic distribution of standard deviation 1


@dataclass(frozen=True)
class Chunk:
    """Points that are trained on together."""

    positions_unit: Float[Tensor, "n 3"]
    """float32, in Morton order, so that neighbours share cells of the grid."""
    distance: Float[Tensor, "n 1"]
    """Signed; unit space."""


class SurfaceSampler:
    """Points uniform over a surface by area."""

    def __init__(self, vertices: Float64[np.ndarray, "n_vertices 3"], faces: np.ndarray) -> None:
        """Args: vertices, faces: of the mesh; at least one face has an area."""
        self.corners = vertices[faces]
        a, b, c = self.corners.transpose(1, 0, 2)
        area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
        self.cumulated = np.cumsum(area)
        self.area = float(self.cumulated[-1])

    def draw(self, n: int, rng: np.random.Generator) -> Float64[np.ndarray, "n 3"]:
        """n points: a triangle by area, then uniform barycentric coordinates 1 - u, u (1 - r), u r with u a root."""
        face = np.searchsorted(self.cumulated, rng.random(n) * self.area, side="right").clip(max=len(self.corners) - 1)
        a, b, c = self.corners[face].transpose(1, 0, 2)
        u, r = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
        return (1 - u) * a + u * (1 - r) * b + u * r * c


class MeshSamples:
    """A pool of chunks: one new chunk every `steps_per_chunk` steps, between them any of the last `n_chunks`.

    Source: instant-ngp src/testbed_sdf.cu for the mix: half on the surface with distance 0, three eighths near it with
    logistic noise, an eighth uniform in the box.
    """

    def __init__(
        self, query: DistanceQuery, box: Float64[np.ndarray, "2 3"], *, seed: int, n_points: int, surface_share: float,
        near_share: float, noise: float, steps_per_chunk: int, n_chunks: int,
    ) -> None:  # fmt: skip
        """Args:
        query: Answers distances; unit space.
        box: Lowest and highest corner of the uniform points.
        seed: Of every draw.
        n_points: Of a chunk.
        surface_share, near_share: Of a chunk; the rest is uniform.
        noise: Standard deviation of each coordinate of the points near the surface.
        steps_per_chunk: Steps from one new chunk to the next.
        n_chunks: Kept.
        """
        self.query, self.box, self.seed, self.noise = query, box, seed, noise
        self.surface = SurfaceSampler(query.vertices, query.faces)
        self.n_surface, self.n_near = round(surface_share * n_points), round(near_share * n_points)
        self.n_points, self.steps_per_chunk, self.n_chunks = n_points, steps_per_chunk, n_chunks
        self._made: dict[int, Chunk] = {}

    def at_step(self, step: int) -> Chunk:
        """The points of a step."""
        newest = step // self.steps_per_chunk
        oldest = max(0, newest - self.n_chunks + 1)
        number = newest
        if step % self.steps_per_chunk:
            number = int(np.random.default_rng((self.seed, 1, step)).integers(oldest, newest + 1))
        for old in [k for k in self._made if k < oldest]:
            del self._made[old]
        if number not in self._made:
            self._made[number] = self.chunk(number)
        return self._made[number]

    def chunk(self, number: int) -> Chunk:
        """The chunk with this number, made anew."""
        rng = np.random.Generator(np.random.SFC64((self.seed, 0, number)))
        on_surface = self.surface.draw(self.n_surface + self.n_near, rng)
        uniform = rng.random((self.n_near, 3)).clip(1e-9, 1 - 1e-9)
        near = on_surface[self.n_surface :] + np.log(uniform / (1 - uniform)) * (self.noise * _LOGISTIC)
        anywhere = self.box[0] + rng.random((self.n_points - len(on_surface), 3)) * (self.box[1] - self.box[0])
        points = np.concatenate([on_surface[: self.n_surface], near.clip(0.0, 1.0), anywhere])
        # The distance is that of the float32 position the network gets.
        points = points.astype(np.float32).astype(np.float64)
        distance = np.concatenate([np.zeros(self.n_surface), self.query.signed(points[self.n_surface :])])
        order = morton_order(points)
        return Chunk(
            torch.from_numpy(points[order].astype(np.float32)),
            torch.from_numpy(distance[order].astype(np.float32))[:, None],
        )

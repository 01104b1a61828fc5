"""Training points of a signed distance: on the surface, near it, and anywhere in its box, with exact distances.

Exact distances cost more than a training step, so a chunk of points serves several steps. Everything follows from the
seed and the step's number, so a resumed run needs no saved points.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hashfield.data.mesh_distance import DistanceQuery, morton_order

HALF_DIAGONAL: Final = 0.5 * 3**0.5  # of the unit cube
_CPU: Final = torch.device("cpu")
_LOGISTIC: Final = 3**0.5 / np.pi  # scale of a logistic distribution of standard deviation 1


@dataclass(frozen=True)
class SampleChunk:
    """Points that are trained on together."""

    positions_unit: Float[Tensor, "n 3"]
    """Positions in the unit cube, float32, in Morton order, so that neighbours share cells of the grid."""
    distance: Float[Tensor, "n 1"]
    """Signed; unit space."""

    def to(self, device: torch.device) -> "SampleChunk":
        """This chunk on another device."""
        return SampleChunk(self.positions_unit.to(device), self.distance.to(device))


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
        """Random points of the surface: a triangle by area, then uniform barycentric coordinates 1 - u, u (1 - r), u r
        with u a root."""
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
        device: torch.device = _CPU, makes_ahead: bool = False, share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """Args:
        query: Answers distances; unit space.
        box: Lowest and highest corner of the uniform points.
        seed: Seed of every draw.
        n_points: Points of a chunk.
        surface_share, near_share: Shares of a chunk that lie on the surface and near it; the rest is uniform.
        noise: Standard deviation of each coordinate of the points near the surface.
        steps_per_chunk: Steps from one new chunk to the next.
        n_chunks: How many chunks are kept.
        device: Where they are kept.
        makes_ahead: Whether a process makes the next chunk while steps go on elsewhere, on a GPU.
        share: (k, n): of a chunk's points only every n-th is kept, from the k-th on, and distances are computed of
            these alone; the rest is for others, who draw the same points.
        """
        self.query, self.box, self.seed, self.noise = query, box, seed, noise
        self.surface = SurfaceSampler(query.vertices, query.faces)
        self.n_surface, self.n_near = round(surface_share * n_points), round(near_share * n_points)
        self.n_points, self.steps_per_chunk, self.n_chunks = n_points, steps_per_chunk, n_chunks
        self.device, self.share = device, share
        self._made: dict[int, SampleChunk] = {}
        self._maker: _Maker | None = None
        if makes_ahead:
            self._maker = _Maker(
                {
                    "vertices": query.vertices, "faces": query.all_faces, "rule": query.rule, "box": box, "seed": seed,
                    "n_points": n_points, "surface_share": surface_share, "near_share": near_share, "noise": noise,
                    "share": share,
                }
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait for the process that makes chunks ahead, if there is one, to have read the mesh."""
        if self._maker is not None:
            self._maker.wait_until_ready()

    def at_step(self, step: int) -> SampleChunk:
        """The points of a step."""
        newest = step // self.steps_per_chunk
        oldest = max(0, newest - self.n_chunks + 1)
        number = newest
        if step % self.steps_per_chunk:
            number = int(np.random.default_rng((self.seed, 1, step)).integers(oldest, newest + 1))
        for old in [k for k in self._made if k < oldest]:
            del self._made[old]
        if number not in self._made:
            coming = self._maker.answer(number) if self._maker is not None else None
            self._made[number] = (coming or self.chunk(number)).to(self.device)
        if self._maker is not None and newest + 1 not in self._made:
            self._maker.ask(newest + 1)
        return self._made[number]

    def chunk(self, number: int) -> SampleChunk:
        """The chunk with this number, made anew, on the host."""
        rng = np.random.Generator(np.random.SFC64((self.seed, 0, number)))
        on_surface = self.surface.draw(self.n_surface + self.n_near, rng)
        uniform = rng.random((self.n_near, 3)).clip(1e-9, 1 - 1e-9)
        near = on_surface[self.n_surface :] + np.log(uniform / (1 - uniform)) * (self.noise * _LOGISTIC)
        anywhere = self.box[0] + rng.random((self.n_points - len(on_surface), 3)) * (self.box[1] - self.box[0])
        points = np.concatenate([on_surface[: self.n_surface], near.clip(0.0, 1.0), anywhere])
        k, n = self.share
        points, n_surface = points[k::n], len(range(k, self.n_surface, n))
        # The distance is that of the float32 position the network gets.
        points = points.astype(np.float32).astype(np.float64)
        distance = np.concatenate([np.zeros(n_surface), self.query.signed(points[n_surface:])])
        order = morton_order(points)
        return SampleChunk(
            torch.from_numpy(points[order].astype(np.float32)),
            torch.from_numpy(distance[order].astype(np.float32))[:, None],
        )


class _Maker:
    """Makes chunks in another process, since libigl holds the interpreter's lock of this one. Where it fails, chunks
    are made here."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        """Args: recipe: what `_serve` makes its samples of."""
        command = [sys.executable, "-c", "from hashfield.data.mesh_samples import _serve; _serve()"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, who decides when a run ends
        )  # fmt: skip
        weakref.finalize(self, _end, self._process)
        self._coming: int | None = None
        self._is_ready = False
        self._send(recipe)

    def wait_until_ready(self) -> None:
        """Wait until it has read the mesh."""
        if not self._is_ready:
            self._is_ready = True
            self._receive()

    def ask(self, number: int) -> None:
        """Let it make a chunk, unless it is at that one."""
        if self._coming == number:
            return
        self.wait_until_ready()
        if self._coming is not None:
            self._receive()  # of a step that did not come
        self._coming = number
        self._send(number)

    def answer(self, number: int) -> SampleChunk | None:
        """The chunk, if it was the one asked for; it is waited for."""
        if self._coming != number:
            return None
        self._coming = None
        found = self._receive()
        return None if found is None else SampleChunk(*(torch.from_numpy(x) for x in found))

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone: `_receive` says so
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let the other process go."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _serve() -> None:
    """What the other process does: chunks by number, from and to its parent, until that is gone."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    recipe = pickle.load(sys.stdin.buffer)
    query = DistanceQuery(recipe.pop("vertices"), recipe.pop("faces"), recipe.pop("rule"))
    samples = MeshSamples(query, **recipe, steps_per_chunk=1, n_chunks=1)
    pickle.dump("ready", out)
    out.flush()
    while True:
        try:
            number = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        chunk = samples.chunk(number)
        pickle.dump((chunk.positions_unit.numpy(), chunk.distance.numpy()), out)
        out.flush()

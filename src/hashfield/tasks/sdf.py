"""Signed distances from a mesh: the training task. It says what is learned, `hashfield.steps` how a step runs.

Its configuration is `sdf_config`, what comes out of it `sdf_model`.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from hashfield.data.mesh_distance import INSIDE, DistanceQuery
from hashfield.data.mesh_samples import HALF_DIAGONAL, MeshSamples
from hashfield.data.meshes import InsideRule, SourceMesh
from hashfield.errors import CheckpointError
from hashfield.geometry.cameras import Camera, camera_table, look_at, pixel_centers
from hashfield.geometry.spaces import Spaces
from hashfield.nn.config import MLPConfig
from hashfield.ops.camera_rays import camera_rays
from hashfield.steps.choice import point_steps
from hashfield.steps.protocol import StepResult
from hashfield.steps.ranks import current
from hashfield.steps.recipes import PointRecipe
from hashfield.tasks.sdf_config import SdfConfig
from hashfield.tasks.sdf_model import SdfModel
from hashfield.tasks.shared import (
    CPU,
    check_seed,
    fingerprint_of,
)
from hashfield.train.checkpoint import config_to_dict
from hashfield.train.schedule import learning_rate_at

MARGIN: Final = 0.005
"""The box reaches beyond the mesh by this share of its diagonal. Source: instant-ngp src/testbed_sdf.cu."""


class MeshInUnitSpace:
    """A mesh where the encoding sees it, and its exact distances."""

    def __init__(self, mesh: SourceMesh, inside: Literal["auto", "normals", "winding"] = "auto") -> None:
        """Args:
        mesh: The mesh in the world.
        inside: As SdfConfig has it.

        Raises:
            DataError, ConfigError: the mesh is too large or too small for its numbers.
        """
        low, high = mesh.box
        scale = 1.0 / float((high - low + 2 * MARGIN * np.linalg.norm(high - low)).max())
        x, y, z = (0.5 - 0.5 * (low + high) * scale).tolist()
        self.spaces = Spaces(scale=scale, offset=(x, y, z), aabb_scale=1)
        vertices = self.spaces.world_to_unit(torch.from_numpy(mesh.vertices)).numpy()
        rule: InsideRule | None = None if inside == "auto" else inside
        self.query = DistanceQuery(vertices, mesh.faces, rule, mesh.is_closed)
        low, high = vertices.min(0), vertices.max(0)
        margin = MARGIN * np.linalg.norm(high - low)
        self.box = np.stack([low - margin, high + margin]).clip(0.0, 1.0)

    def notes(self) -> list[str]:
        """Lines for the user about what inside means here."""
        notes = [f"inside: {INSIDE[self.query.rule]}"]
        if self.query.passes_through_itself:
            notes.append("warning: the mesh is closed but passes through itself, so normals do not tell inside")
        if self.query.rule == "winding":
            probes = np.random.default_rng(0).random((4096, 3)) * (self.box[1] - self.box[0]) + self.box[0]
            if not (self.query.winding_number(probes) > 0.5).any():
                notes.append("warning: next to nothing is inside this surface; a mesh made of the model will be empty")
        return notes

    def normals_seen(self, camera: Camera) -> np.ndarray:
        """Picture of the mesh itself: unit normals in the world [h, w, 3], 0 where nothing is."""
        table = self.spaces.camera_table_to_scene(camera_table([camera]))
        pixel = pixel_centers(camera.width, camera.height)
        rays = camera_rays(table, torch.zeros(len(pixel), dtype=torch.int64), pixel)
        _, normal = self.query.cast(*(x.double().numpy() for x in rays))
        normal = self.spaces.direction_scene_to_world(torch.from_numpy(normal))
        return normal.reshape(camera.height, camera.width, 3).float().numpy()


class SdfTask:
    """Training of a signed distance on one mesh; see `hashfield.train.task.Task`."""

    name = "sdf"

    def __init__(
        self,
        config: SdfConfig,
        mesh: SourceMesh,
        *,
        seed: int = 0,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
        device: torch.device = CPU,
    ) -> None:
        """Args:
        config: What to train and how.
        mesh: The surface; its search tree is built here.
        seed: Seed of every random choice.
        background: Colour behind the surface in pictures.
        device: Where to train; exact distances are made on the host.

        Raises:
            ConfigError: the seed is negative, or the mesh is too large or too small for its numbers.
        """
        self.config, self.mesh, self.seed = config, mesh, check_seed(seed)
        self.background, self.device = background, device
        self.truth = MeshInUnitSpace(mesh, config.inside)
        self.spaces = self.truth.spaces
        self.field = config.make_field(torch.Generator().manual_seed(seed)).to(device)
        train = config.train
        recipe = PointRecipe(
            n_points=train.batch, loss="mape", l2=train.l2, has_squared_error=False, seed=seed
        )  # fmt: skip
        self.steps = point_steps(self.field, recipe, config.precision)
        self.samples = self._samples(makes_ahead=device.type == "cuda")
        up = (0.0, 0.0, 1.0) if mesh.path.suffix.lower() == ".stl" else (0.0, 1.0, 0.0)
        self.cameras = {"orbit": view_cameras(mesh.box, up)}

    def _samples(self, makes_ahead: bool) -> MeshSamples:
        train = self.config.train
        return MeshSamples(
            self.truth.query, self.truth.box, seed=self.seed, n_points=train.batch, surface_share=train.surface_share,
            near_share=train.near_share, noise=train.noise * HALF_DIAGONAL / 1024,
            steps_per_chunk=train.steps_per_chunk, n_chunks=train.n_chunks, device=self.device,
            makes_ahead=makes_ahead, share=(current().rank, current().n),
        )  # fmt: skip

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        self.samples.wait_until_ready()
        self.steps.warm_up()
        if not self.steps.is_captured or self.device.type == "cuda":  # an interpreter compiles nothing
            self.model().render(self.cameras["orbit"][0].resized(2, 2))
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def begin(self) -> None:
        """Do nothing: the first step makes the first points."""

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of points."""
        train = self.config.train
        chunk = self.samples.at_step(step)
        rate = learning_rate_at(fraction, train.learning_rate, train.final_learning_rate, train.flat_until)
        return self.steps.step(rate, (chunk.positions_unit, chunk.distance))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        tensors, values = self.steps.state()
        return {**tensors, "box": torch.from_numpy(self.truth.box)}, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration or mesh.
        """
        box = tensors.get("box")
        if box is None or box.shape != (2, 3) or not np.allclose(box.numpy(), self.truth.box, atol=1e-9):
            raise CheckpointError("checkpoint: the mesh has another box than the one the run was begun with")
        self.steps.restore(tensors, values)

    def fingerprint(self) -> int:
        """A number that tells this task's data from others."""
        return fingerprint_of(torch.from_numpy(self.mesh.vertices), torch.from_numpy(self.mesh.faces))

    def describe(self) -> dict[str, Any]:
        """What makes the checkpoint stand alone."""
        return {
            "config": config_to_dict(self.config),
            "spaces": self.spaces.to_dict(),
            "background": list(self.background),
            "seed": self.seed,
            "cameras": {name: [camera.to_dict() for camera in views] for name, views in self.cameras.items()},
            "scene": {
                "name": self.mesh.name,
                "path": str(self.mesh.path),
                "n_vertices": len(self.mesh.vertices),
                "n_faces": len(self.mesh.faces),
                "inside": self.truth.query.rule,
            },
        }

    def model(self) -> SdfModel:
        """The field as it is now, for evaluation and rendering. Shares memory with the task."""
        return SdfModel(
            self.field, self.spaces, torch.from_numpy(self.truth.box).to(self.device), cameras=self.cameras,
            background=self.background, precision=self.config.precision,
            info={"scene": self.describe()["scene"]},
        )  # fmt: skip


def view_cameras(
    mesh_box: tuple[np.ndarray, np.ndarray], up: tuple[float, float, float], n_views: int = 8, size: int = 640
) -> list[Camera]:
    """Cameras all around a box, a little above it, that see all of it.

    Args:
        mesh_box: Least and largest corner, world units.
        up: Unit vector that is up in the pictures.
        n_views: How many cameras.
        size: Pixels of each side of a picture.
    """
    low, high = (torch.from_numpy(np.asarray(corner, np.float64)) for corner in mesh_box)
    center, radius = 0.5 * (low + high), 0.5 * float((high - low).norm())
    half_angle = math.radians(18)
    upward = torch.tensor(up, dtype=torch.float64)
    side = torch.eye(3, dtype=torch.float64)[int(upward.abs().argmin())]
    side = side - upward * (side @ upward)
    side, across = side / side.norm(), torch.linalg.cross(upward, side / side.norm())
    focal = 0.5 * size / math.tan(half_angle)
    views = []
    for k in range(n_views):
        angle = 2 * math.pi * (k + 0.4) / n_views
        towards = (math.cos(angle) * side + math.sin(angle) * across) * math.cos(0.35) + upward * math.sin(0.35)
        pose = look_at(center + 1.02 * radius / math.sin(half_angle) * towards, center, upward)
        views.append(Camera(pose, size, size, focal, focal, 0.5 * size, 0.5 * size))
    return views


def gpu_memory(config: SdfConfig) -> int:
    """Bytes of GPU memory that a run takes, nearly."""
    from hashfield.steps.memory import points_memory

    encoding, train = config.encoding.reaching(config.finest_resolution), config.train
    shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(encoding.n_output(3), 1)
    pool = 16 * train.n_chunks * train.batch  # three coordinates and a distance each
    return points_memory(encoding.layout(3), sum(a * b for a, b in shapes), train.batch, 1, pool)

"""Signed distances from a mesh: configuration, training task and trained model. Reads top to bottom.

One step: points with exact distances -> encode -> network -> relative error -> gradients -> Adam.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.data.mesh_distance import INSIDE, DistanceQuery
from hashfield.data.mesh_samples import HALF_DIAGONAL, MeshSamples
from hashfield.data.meshes import InsideRule, SourceMesh
from hashfield.errors import CheckpointError, ConfigError, HashfieldError
from hashfield.geometry.cameras import Camera, camera_table, look_at, pixel_centers
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import Spaces
from hashfield.nn.config import EncodingConfig, MLPConfig
from hashfield.nn.encodings import GridEncoding, encoding_from_config, table_of
from hashfield.nn.networks import NetworkWithEncoding
from hashfield.ops.backend import runs_on_triton
from hashfield.ops.camera_rays import camera_rays, view_rays
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.eval_points import EncodedNetwork, eval_points, network_precision, on_its_device
from hashfield.ops.mlp import mlp
from hashfield.ops.ray_box import ray_box
from hashfield.ops.sphere_trace import DistanceField, sphere_trace
from hashfield.ops.train_points import PointsWorkspace, train_points
from hashfield.render.surface import SHADOW_START, shade, soft_shadow
from hashfield.tasks.mesh import Box, Surface
from hashfield.tasks.shared import (
    CPU,
    RunPrecision,
    check_seed,
    restore_trained,
    stored,
    stored_background,
    stored_cameras,
    stored_info,
    trained_state,
    warn_of_other_bits,
)
from hashfield.train.checkpoint import config_from_dict, config_to_dict, load_tensors, read_metadata, restore_module
from hashfield.train.optim import TableOptimizer, check_rates, learning_rate_at
from hashfield.train.task import StepResult

if TYPE_CHECKING:  # needs triton
    from hashfield.train.on_device import DeviceOptimizer
    from hashfield.train.points_on_device import PointsTraining


MARGIN: Final = 0.005
"""The box reaches beyond the mesh by this share of its diagonal. Source: instant-ngp src/testbed_sdf.cu."""

# --- configuration -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SdfTrainConfig:
    """How a signed distance is trained. Every schedule is a fraction of the planned run."""

    batch_points: int = 2**16
    """Points per step."""
    learning_rate: float = 3e-3
    """Of table and network until `flat_until`."""
    final_learning_rate: float = 3e-5
    """At the end of the run, reached by half a cosine."""
    flat_until: float = 0.2
    """Fraction of the run with the full learning rate."""
    l2: float = 1e-6
    """L2 on the network's matrices."""
    surface_share: float = 0.25
    """Of a batch: points on the surface."""
    near_share: float = 0.6
    """Of a batch: points near the surface; the rest is uniform in the box."""
    noise: float = 3.0
    """Standard deviation of the points near the surface, in 1/1024 of half the unit cube's diagonal. The paper's mix,
    0.5, 0.375 and 1, knows too little about space: in a short run its field changes sign far from the surface."""
    steps_per_chunk: int = 16
    """Steps from one fresh set of exact distances to the next; between them older sets serve again."""
    n_chunks: int = 48
    """Sets kept."""

    def __post_init__(self) -> None:
        if not 256 <= self.batch_points <= 2**24:
            raise ConfigError(f"batch_points: expected 256 to {2**24}, got {self.batch_points}")
        check_rates(self.learning_rate, self.final_learning_rate, self.flat_until)
        shares = self.surface_share, self.near_share
        if not (min(shares) >= 0 and sum(shares) <= 1):
            raise ConfigError(f"surface_share and near_share: expected shares with a sum of at most 1, got {shares}")
        if not 0 < self.noise <= 256:
            raise ConfigError(f"noise: expected a number in (0, 256], got {self.noise}")
        for name in ("steps_per_chunk", "n_chunks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class SdfConfig:
    """Everything that decides how a mesh becomes a model."""

    preset: str = "default"
    """fast, default, quality, paper or gpu: where the other values start from. Not named, the run's length and the
    device choose."""
    encoding: EncodingConfig = EncodingConfig()
    """Of positions. per_level_scale is not set here: it follows from finest_resolution."""
    finest_resolution: int = 2048
    """Vertices per axis at the last level (N_max)."""
    n_neurons: int = 64
    """Neurons of the hidden layers."""
    n_hidden_layers: int = 2
    """Hidden layers."""
    precision: RunPrecision = "float32"
    """Of the network; lookups are of half as many bits too unless it is float32. Sums and parameters are float32
    always. auto: on GPUs float16; on CPUs bfloat16 where they have instructions for it. float16 means auto where there
    is no GPU. A surface needs more digits than a colour."""
    inside: Literal["auto", "normals", "winding"] = "auto"
    """What tells inside from outside: normals of the nearest point, or the winding number being above a half. auto:
    normals where the mesh is closed and does not pass through itself."""
    train: SdfTrainConfig = SdfTrainConfig()
    """Points, rates, schedules."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", EncodingConfig.of(self.encoding))  # a GridConfig will do
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"precision: expected auto, float32, bfloat16 or float16, got {self.precision!r}")
        if self.inside not in ("auto", "normals", "winding"):
            raise ConfigError(f"inside: expected auto, normals or winding, got {self.inside!r}")
        if self.n_neurons % 16 or not 16 <= self.n_neurons <= 256:
            raise ConfigError(f"n_neurons: expected a multiple of 16 up to 256, got {self.n_neurons}")
        if not 1 <= self.n_hidden_layers <= 8:
            raise ConfigError(f"n_hidden_layers: expected 1 to 8, got {self.n_hidden_layers}")
        if self.encoding.otype != "Grid" and self.precision == "bfloat16":
            raise ConfigError("precision: bfloat16 needs a grid")
        if self.encoding.per_level_scale != EncodingConfig().per_level_scale:
            raise ConfigError("encoding.per_level_scale: follows from finest_resolution; set that instead")
        if self.encoding.interpolation == "nearest":
            raise ConfigError("encoding.interpolation: expected linear or smoothstep, since a surface needs a gradient")
        if self.finest_resolution < self.encoding.base_resolution:
            raise ConfigError(f"finest_resolution: expected at least base_resolution, got {self.finest_resolution}")

    def make_field(self, generator: torch.Generator | None = None) -> NetworkWithEncoding:
        """A field with fresh parameters."""
        encoding = self.encoding.reaching(self.finest_resolution)
        return NetworkWithEncoding(
            encoding_from_config(encoding, 3, generator=generator), 1,
            MLPConfig(self.n_neurons, self.n_hidden_layers), generator=generator,
        )  # fmt: skip


def _preset(name: str, log2_hashmap_size: int, finest_resolution: int) -> SdfConfig:
    return SdfConfig(
        preset=name, encoding=EncodingConfig(log2_hashmap_size=log2_hashmap_size), finest_resolution=finest_resolution
    )


PRESETS: dict[str, SdfConfig] = {
    # For about a minute.
    "fast": _preset("fast", 18, 1024),
    # For a few minutes.
    "default": _preset("default", 19, 2048),
    # From five minutes on.
    "quality": _preset("quality", 19, 2048),
    # The paper's encoding, learning rate and mix of points, for comparisons; slower to the same quality on a CPU.
    "paper": SdfConfig(
        preset="paper",
        encoding=EncodingConfig(n_levels=16, n_features_per_level=2, log2_hashmap_size=19),
        train=SdfTrainConfig(
            batch_points=2**18,
            learning_rate=1e-4,
            final_learning_rate=1e-5,
            flat_until=0.9,
            surface_share=0.5,
            near_share=0.375,
            noise=1.0,
        ),
    ),
    # For GPUs, where a step costs a thousandth of its points' exact distances, which the host makes meanwhile. Eleven
    # bits are what the paper's networks have. Reasoned, not measured.
    "gpu": SdfConfig(
        preset="gpu",
        encoding=EncodingConfig(log2_hashmap_size=19),
        precision="float16",
        train=SdfTrainConfig(batch_points=2**18, steps_per_chunk=512, n_chunks=64),
    ),
}


def preset_for(max_seconds: float | None, n_steps: int | None, on_gpu: bool = False) -> str:
    """The preset that suits a length of training, where the user names none."""
    if on_gpu:
        return "gpu"
    if max_seconds is not None:
        return "fast" if max_seconds < 150 else "default" if max_seconds < 280 else "quality"
    return "fast" if n_steps is None or n_steps <= 3000 else "default" if n_steps <= 8000 else "quality"


def encoded_network(field: NetworkWithEncoding, table_bf16: Tensor | None, precision: RunPrecision) -> EncodedNetwork:
    """A field's numbers as the fused ops take them; `precision` as SdfConfig describes it."""
    encoding, weights = field.encoding, tuple(w.detach() for w in field.network.weights)
    if not isinstance(encoding, GridEncoding):
        return EncodedNetwork(GridLayout(), table_of(encoding), weights, encode=encoding)
    return on_its_device(
        EncodedNetwork(
            layout=encoding.layout,
            table=encoding.table.detach(),
            weights=weights,
            table_bf16=None if precision == "float32" else table_bf16,
            precision=network_precision(precision, encoding.table.device),
            interpolation=encoding.config.interpolation,
        )
    )


def gpu_memory(config: SdfConfig) -> int:
    """Bytes of GPU memory that a run takes, nearly."""
    from hashfield.train.points_on_device import n_bytes_of

    encoding, train = config.encoding.reaching(config.finest_resolution), config.train
    shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(encoding.n_output(3), 1)
    pool = 16 * train.n_chunks * train.batch_points  # three coordinates and a distance each
    return n_bytes_of(encoding.layout(3), sum(a * b for a, b in shapes), train.batch_points, 1, pool)


# --- the trained model -------------------------------------------------------------------------------------


NORMAL_REACH = 1 / 512
"""Half the distance over which pictures' normals are differences, as a share of the box."""


class SdfModel(nn.Module):
    """A trained signed distance with its box and cameras: stands alone, needs no mesh."""

    box: Tensor
    table_bf16: Tensor

    def __init__(
        self,
        field: NetworkWithEncoding,
        spaces: Spaces,
        box: Float[Tensor, "2 3"],
        *,
        cameras: Mapping[str, Sequence[Camera]] | None = None,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
        precision: RunPrecision = "float32",
        info: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        field: Positions in unit space to distances in unit space.
        spaces: Of the mesh.
        box: Unit space, lowest and highest corner: where the field was trained, with the whole surface inside.
        cameras: World, by name.
        background: Colour behind the surface.
        precision: Of rendering, as SdfConfig describes it.
        info: Names and figures, free-form.
        """
        super().__init__()
        self.field = field.requires_grad_(False)
        self.spaces = spaces
        self.register_buffer("box", box)
        self.register_buffer("table_bf16", table_of(field.encoding).detach().to(torch.bfloat16))
        self.cameras = {name: list(views) for name, views in (cameras or {}).items()}
        self.background = background
        self.precision: RunPrecision = precision
        self.info = info or {}

    @property
    def box_world(self) -> Float[Tensor, "2 3"]:
        """Lowest and highest corner of the box in the world."""
        corners = self.spaces.unit_to_world(self.box)
        return torch.stack([corners.amin(0), corners.amax(0)])

    @property
    def distance_field(self) -> DistanceField:
        """The field's numbers and box: a function of positions in unit space."""
        return DistanceField(encoded_network(self.field, self.table_bf16, self.precision), self.box)

    @torch.no_grad()
    def distance_unit(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance in unit space. Outside the box: that of the box's nearest point plus the way there, so
        rather too much."""
        return self.distance_field(positions_unit)

    @torch.no_grad()
    def distance(self, positions_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Signed distance in world units, negative inside."""
        position = self.spaces.world_to_unit(positions_world).reshape(-1, 3).to(self.box.device)
        found = self.spaces.distance_scene_to_world(self.distance_unit(position))
        return found.reshape(positions_world.shape[:-1]).to(positions_world.device)

    forward = distance

    def normals_unit(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Unit normals: the direction of the field's analytic gradient, through network and encoding."""
        encoding, weights = self.field.encoding, [w.detach() for w in self.field.network.weights]
        with torch.enable_grad():
            position = positions_unit.detach().float().requires_grad_(True)
            if isinstance(encoding, GridEncoding):
                found = encoded_mlp(
                    position, encoding.table.detach(), weights, encoding.layout,
                    interpolation=encoding.config.interpolation,
                )  # fmt: skip
            else:
                found = mlp(encoding(position), weights)
            (gradient,) = torch.autograd.grad(found.sum(), position)
        return torch.nn.functional.normalize(gradient, dim=1)

    def smooth_normals_unit(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Unit normals from central differences over `NORMAL_REACH`, for pictures and meshes: the field's own gradient
        jumps from cell to cell of the finest level, and is rougher than the surface it describes."""
        steps = NORMAL_REACH * torch.eye(3, dtype=positions_unit.dtype, device=positions_unit.device)
        distance = self.distance_field  # made once: on GPUs that rounds the table
        slopes = [distance(positions_unit + e) - distance(positions_unit - e) for e in steps]
        return torch.nn.functional.normalize(torch.stack(slopes, 1), dim=1)

    def normals(self, positions_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Unit normals in the world, outwards: the direction of the field's analytic gradient."""
        position = self.spaces.world_to_unit(positions_world).reshape(-1, 3).to(self.box.device)
        normal = self.spaces.direction_scene_to_world(self.normals_unit(position))
        return normal.reshape(positions_world.shape).to(positions_world.device)

    def surface(self, *, resolution: int, box: Box | None = None, level: float | None = None) -> Surface:
        """What a mesh of the surface needs, see `hashfield.tasks.mesh`; the level is a signed distance in world units.

        Raises:
            ConfigError: the box lies outside the model, or the level is not a finite number.
        """
        low, high = self.box_world.tolist()
        whole: Box = (low[0], low[1], low[2], high[0], high[1], high[2])
        box, level = whole if box is None else box, 0.0 if level is None else level
        if not math.isfinite(level):
            raise ConfigError(f"level: expected a distance in world units, got {level}")
        if any(box[k] >= whole[k + 3] or box[k + 3] <= whole[k] for k in range(3)):
            raise ConfigError(f"box: {box} lies outside the model's, {whole}")

        def shortcut(centers: Tensor, radius: float) -> Tensor:
            # Away from the surface learned distances are off by a tenth; half of them is still trusted.
            found = self.distance(centers)
            return torch.where((found - level).abs() > 2 * radius, found, torch.nan)

        return Surface(
            value=self.distance, level=level, box=box, inside="below", shortcut=shortcut, normals=self.normals,
            notes=(f"units and axes are those of {self.info.get('scene', {}).get('path', 'the mesh it was made from')}",
                   f"surface at a signed distance of {level:g}"),
        )  # fmt: skip

    @torch.no_grad()
    def render(
        self,
        camera: Camera,
        outputs: Sequence[str] = ("color", "depth"),
        background: tuple[float, float, float] | None = None,
        rays_at_once: int = 2**19,
        oversample: int = 2,
    ) -> dict[str, np.ndarray]:
        """Pictures of the surface: float32 arrays by name.

        Args:
            camera: In the world; its width and height are the picture's.
            outputs: Of "color" (shaded, with soft shadow), "opacity", "depth", "normals".
            background: Behind the surface; None leaves the colour premultiplied by opacity.
            rays_at_once: Bounds memory.
            oversample: Rays per pixel along each axis.

        Returns:
            color [h, w, 3] in sRGB; opacity [h, w]; depth [h, w], the mean distance along the unit ray in world
            units, 0 where nothing is; normals [h, w, 3], unit vectors in the world, 0 where nothing is.

        Raises:
            ConfigError: an output is not known.
        """
        unknown = sorted(set(outputs) - {"color", "opacity", "depth", "normals"})
        if unknown:
            raise ConfigError(f"outputs: expected color, opacity, depth, normals; got {unknown[0]!r}")
        fine = camera.resized(camera.width * oversample, camera.height * oversample)
        table = self.spaces.camera_table_to_scene(camera_table([fine]))
        # The key light stands above the eye's left shoulder and turns with it.
        axes = self.spaces.direction_world_to_scene(fine.camera_to_world[:, :3].T).float()
        light = torch.nn.functional.normalize(-0.55 * axes[0] - 0.75 * axes[1] - 0.65 * axes[2], dim=0)
        distance, box = self.distance_field, self.box.float()
        light, n_pixels = light.to(box.device), fine.width * fine.height
        parts: dict[str, list[Tensor]] = {name: [] for name in ("color", "opacity", "depth", "normals")}
        for first in range(0, n_pixels, rays_at_once):
            # Scene and unit space are the same: the box has a side of 1.
            rays = view_rays(
                table, fine.width, fine.height, self.box.flatten(), first=first,
                n_rays=min(rays_at_once, n_pixels - first),
            )  # fmt: skip
            t, is_hit, position = sphere_trace(distance, rays)
            point, view = position[is_hit], -rays.direction[is_hit]
            normal = self.smooth_normals_unit(point) if {"color", "normals"} & set(outputs) else torch.zeros_like(point)
            color = torch.zeros_like(point)
            if "color" in outputs:
                start = point + SHADOW_START * normal
                towards = light.expand_as(point).contiguous()
                _, leaves = ray_box(start, towards, box[0], box[1])
                starts = torch.full_like(leaves, SHADOW_START)
                share = soft_shadow(distance, Rays(start, towards, starts, leaves))
                color = shade(normal, view, towards, share)

            def spread(values: Tensor, is_hit: Tensor = is_hit) -> Tensor:
                return values.new_zeros(len(is_hit), *values.shape[1:]).index_put((is_hit,), values)

            parts["opacity"].append(is_hit.float())
            parts["depth"].append(spread(t[is_hit]))
            parts["normals"].append(spread(normal))
            parts["color"].append(spread(color))
        shape = (camera.height, oversample, camera.width, oversample)
        mean = {name: torch.cat(p).reshape(*shape, *p[0].shape[1:]).mean((1, 3)) for name, p in parts.items()}
        opacity = mean["opacity"]
        found = {"color": mean["color"], "opacity": opacity}
        if background is not None:
            found["color"] = mean["color"] + (1 - opacity)[..., None] * opacity.new_tensor(background)
        found["depth"] = self.spaces.distance_scene_to_world(mean["depth"] / opacity.clamp(min=1e-6))
        normal = torch.nn.functional.normalize(mean["normals"], dim=-1)
        found["normals"] = self.spaces.direction_scene_to_world(normal)
        return {name: found[name].cpu().numpy() for name in outputs}


def view_cameras(
    mesh_box: tuple[np.ndarray, np.ndarray], up: tuple[float, float, float], n_views: int = 8, size: int = 640
) -> list[Camera]:
    """Cameras all around a box, a little above it, that see all of it."""
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


def load_model(path: Path) -> SdfModel:
    """The model in a checkpoint file, exported or not.

    Raises:
        CheckpointError: the file is missing, broken or does not describe a signed distance; the text names what.
    """
    metadata = read_metadata(path, SdfTask.name)
    config = config_from_dict(SdfConfig, metadata.get("config"), f"{path}: config")
    try:
        spaces = Spaces.from_dict(stored(metadata, "spaces", dict, path))
        cameras, background = stored_cameras(metadata, path), stored_background(metadata, path)
        expected = expected_shapes(config)
    except CheckpointError:
        raise
    except HashfieldError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors = load_tensors(path, expected)
    field = config.make_field()
    restore_module(field, tensors, path)
    box = tensors["box"].double()
    if not bool(((box >= 0) & (box <= 1)).all() and (box[0] < box[1]).all()):
        raise CheckpointError(f"{path}: tensor 'box': expected two corners of a box in [0, 1], got {box.tolist()}")
    return SdfModel(
        field, spaces, box, cameras=cameras, background=background, precision=config.precision,
        info=stored_info(metadata),
    )  # fmt: skip


def expected_shapes(config: SdfConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors that a checkpoint of such a field must hold."""
    encoding = config.encoding.reaching(config.finest_resolution)
    shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(encoding.n_output(3), 1)
    found = {f"field.network.weights.{k}": shape for k, shape in enumerate(shapes)} | {"box": (2, 3)}
    if encoding.otype == "Grid":
        layout = encoding.layout(3)
        found["field.encoding.table"] = (layout.n_entries, layout.n_features_per_level)
    return found


# --- the training task -------------------------------------------------------------------------------------


class MeshInUnitSpace:
    """A mesh where the encoding sees it, and its exact distances."""

    def __init__(self, mesh: SourceMesh, inside: Literal["auto", "normals", "winding"] = "auto") -> None:
        """Args:
        mesh: World.
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
        seed: Of every random choice.
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
        self.matrices = list(self.field.network.weights)
        self.on_device: PointsTraining | None = None
        """The training that is never waited for, on GPUs."""
        self.workspace: PointsWorkspace | None = None
        self.optimizer: TableOptimizer | DeviceOptimizer
        network = encoded_network(self.field, None, config.precision)
        if runs_on_triton(device) and network.is_fused and network.limit("triton") is None:
            self.on_device = self._device_training(network)
            self.optimizer = self.on_device.optimizer
        else:
            self.optimizer = TableOptimizer(table_of(self.field.encoding), self.matrices, l2=config.train.l2)
            self.workspace = PointsWorkspace(self.network(), config.train.batch_points)
        self.samples = self._samples(config.train.batch_points, makes_ahead=device.type == "cuda")
        up = (0.0, 0.0, 1.0) if mesh.path.suffix.lower() == ".stl" else (0.0, 1.0, 0.0)
        self.cameras = {"orbit": view_cameras(mesh.box, up)}

    def _device_training(self, network: EncodedNetwork) -> "PointsTraining":
        from hashfield.train.on_device import COMPUTE, AdamOptions, DeviceOptimizer
        from hashfield.train.points_on_device import PointsTraining

        train = self.config.train
        optimizer = DeviceOptimizer(
            table_of(self.field.encoding), self.matrices, COMPUTE[network.precision], AdamOptions(l2=train.l2)
        )
        return PointsTraining(
            network.layout, network.interpolation, optimizer, train.batch_points, "mape", self.seed,
            is_fixed_point=False,
        )  # fmt: skip

    def _samples(self, n_points: int, makes_ahead: bool = False) -> MeshSamples:
        train = self.config.train
        return MeshSamples(
            self.truth.query, self.truth.box, seed=self.seed, n_points=n_points, surface_share=train.surface_share,
            near_share=train.near_share, noise=train.noise * HALF_DIAGONAL / 1024,
            steps_per_chunk=train.steps_per_chunk, n_chunks=train.n_chunks, device=self.device,
            makes_ahead=makes_ahead,
        )  # fmt: skip

    def network(self) -> EncodedNetwork:
        """The field's numbers as they are now."""
        table_bf16 = self.optimizer.table_bf16 if isinstance(self.optimizer, TableOptimizer) else None
        return encoded_network(self.field, table_bf16, self.config.precision)

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        network = self.network()
        few = self._samples(64).chunk(0).to(self.device)
        self.samples.wait_until_ready()
        if self.on_device is not None:
            self.on_device.warm_up()
            eval_points(network, few.positions_unit)
            if self.device.type == "cuda":  # an interpreter compiles nothing
                self.model().render(self.cameras["orbit"][0].resized(2, 2))
                self.field.requires_grad_(True)
                torch.cuda.synchronize()
            return
        scratch = PointsWorkspace(network, 64)
        found = train_points(network, few.positions_unit, few.distance, scratch, loss="mape")
        optimizer = TableOptimizer(torch.zeros_like(network.table), [torch.zeros_like(m) for m in self.matrices])
        optimizer.step(torch.zeros_like(network.table), found.grad_weights, 1e-3)
        self.model().render(self.cameras["orbit"][0].resized(2, 2))
        self.field.requires_grad_(True)

    def begin(self) -> None:
        """Nothing: the first step makes the first points."""

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of points."""
        config = self.config.train
        chunk = self.samples.at_step(step)
        rate = learning_rate_at(fraction, config.learning_rate, config.final_learning_rate, config.flat_until)
        if self.on_device is not None:
            figures = self.on_device.step(rate, (chunk.positions_unit, chunk.distance))
            return StepResult(figures[0], torch.full_like(figures[1], math.nan), figures[2], figures[3])
        assert self.workspace is not None and isinstance(self.optimizer, TableOptimizer)
        found = train_points(self.network(), chunk.positions_unit, chunk.distance, self.workspace, loss="mape")
        if math.isfinite(found.loss):
            self.optimizer.step(self.workspace.grad_table, found.grad_weights, rate)
        else:
            self.workspace.grad_table.zero_()
        n = len(chunk.distance)
        return StepResult(found.loss, math.nan, n, n)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        tensors, values = trained_state(self.field, self.optimizer, self.network().precision)
        if self.on_device is not None or self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        return {**tensors, "box": torch.from_numpy(self.truth.box)}, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration or mesh.
        """
        restore_trained(self.field, self.optimizer, tensors, values)
        box = tensors.get("box")
        if box is None or box.shape != (2, 3) or not np.allclose(box.numpy(), self.truth.box, atol=1e-9):
            raise CheckpointError("checkpoint: the mesh has another box than the one the run was begun with")
        warn_of_other_bits(values, self.network().precision, follows_threads=self.on_device is None)

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
        model = SdfModel(
            self.field, self.spaces, torch.from_numpy(self.truth.box).to(self.device), cameras=self.cameras,
            background=self.background, precision=self.config.precision,
            info={"scene": self.describe()["scene"]},
        )  # fmt: skip
        self.field.requires_grad_(True)
        return model

"""Radiance fields from posed photos: configuration, training task and trained model. Reads top to bottom.

One step: pixels -> rays -> march -> encode -> networks -> composite -> loss -> gradients -> Adam -> occupancy.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.data.dataset import PosedImages, Scene
from hashfield.data.pixel_sampler import PixelSampler
from hashfield.errors import CheckpointError, ConfigError, HashfieldError
from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.spaces import Spaces
from hashfield.log import logger
from hashfield.nn.config import EncodingConfig, MLPConfig, RadianceFieldConfig
from hashfield.nn.encodings import GridEncoding, table_of
from hashfield.nn.fields import RadianceField
from hashfield.ops.backend import fast_precision, runs_on_triton
from hashfield.ops.camera_rays import view_rays
from hashfield.ops.occupancy_update import carve, silhouettes
from hashfield.ops.render_rays import FieldParameters, MarchOptions, render_rays
from hashfield.ops.total_variation import cube_sides, total_variation
from hashfield.ops.train_rays import TrainRaysResult, TrainWorkspace, train_rays
from hashfield.render.occupancy import OccupancyGrid
from hashfield.tasks.mesh import Box, Surface
from hashfield.train.checkpoint import (
    config_from_dict,
    config_to_dict,
    generator_state,
    load_checkpoint,
    read_metadata,
    restore_generator,
    restore_module,
    tensor_shapes,
)
from hashfield.train.optim import TableOptimizer, learning_rate_at
from hashfield.train.task import StepResult

if TYPE_CHECKING:  # needs triton
    from hashfield.train.on_device import DeviceOptimizer, DeviceTraining

RunPrecision = Literal["auto", "float32", "bfloat16", "float16"]
_CPU = torch.device("cpu")

# --- configuration -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NerfTrainConfig:
    """How a radiance field is trained. Every schedule is a fraction of the planned run."""

    batch_samples: int = 2**16
    """Samples kept (trained on) per step; the number of rays adapts to it."""
    learning_rate: float = 2e-2
    """Of table and networks until `flat_until`."""
    final_learning_rate: float = 5e-4
    """At the end of the run, reached by half a cosine."""
    flat_until: float = 0.4
    """Fraction of the run with the full learning rate."""
    l2: float = 1e-6
    """L2 on the networks' matrices."""
    huber_delta: float = 0.0
    """0: squared error; else the delta of instant-ngp's Huber loss (0.1 in the paper preset)."""
    sparsity: float = 0.0
    """Weight of the entropy of a ray's sample weights in the loss, which is the squared error summed over channels.
    HashNeRF's 1e-10 is 3e-7 here."""
    total_variation: float = 0.0
    """Weight of the grid's total variation in random cubes of vertices; HashNeRF's 1e-6 is 3e-6 here."""
    total_variation_until: float = 0.02
    """Fraction of the run at which that ends: HashNeRF's 1,000 steps of 50,000."""
    min_transmittance: float = 1e-2
    """A training ray ends where less light than this is left."""
    min_weight: float = 4e-3
    """Samples that weigh less in their pixel are not coloured and not trained. At most 1e-3 counts in scenes without
    silhouettes: their fog is made of faint samples, which go only if they are trained."""
    step_scales: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    """Length of the march's step, in units of sqrt(3)/1024, in each stage of the run."""
    step_until: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """Fraction of the run at which each stage ends."""

    def __post_init__(self) -> None:
        if not 256 <= self.batch_samples <= 2**24:
            raise ConfigError(f"batch_samples: expected 256 to {2**24}, got {self.batch_samples}")
        for name in ("learning_rate", "final_learning_rate"):
            if not 0 < getattr(self, name) < 10:
                raise ConfigError(f"{name}: expected a number in (0, 10), got {getattr(self, name)}")
        for name in ("flat_until", "total_variation_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected a fraction, got {getattr(self, name)}")
        for name in ("sparsity", "total_variation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        if not 0 < self.min_transmittance < 1:
            raise ConfigError(f"min_transmittance: expected a number in (0, 1), got {self.min_transmittance}")
        if not 0 <= self.min_weight < 0.5:
            raise ConfigError(f"min_weight: expected a number in [0, 0.5), got {self.min_weight}")
        if len(self.step_scales) != len(self.step_until) or not self.step_scales:
            raise ConfigError("step_scales and step_until: expected equally many values, at least one")
        if any(not 0.1 <= s <= 64 for s in self.step_scales):
            raise ConfigError(f"step_scales: expected numbers in [0.1, 64], got {self.step_scales}")
        if list(self.step_until) != sorted(self.step_until) or self.step_until[-1] < 1.0:
            raise ConfigError(f"step_until: expected rising fractions that end at 1, got {self.step_until}")


@dataclass(frozen=True)
class OccupancyConfig:
    """How the occupancy grid is kept. Values of None depend on whether the scene could be carved."""

    use_alpha: bool = True
    """Carve the grid from the photos' alpha, where they have any, before the first step."""
    carve_margin_px: int = 9
    """Silhouettes are grown by this before carving: about half a cell's projected diagonal at 800 px."""
    pixel_margin_px: int = 14
    """Rays are drawn within silhouettes grown by this; pixels farther out practically never meet anything."""
    decay: float | None = None
    """Of a cell's old value at each refresh; None: 0.6 carved, 0.95 not."""
    most_steps: int = 32
    """Steps between refreshes, at most; an eighth of the steps so far, at least 4, is taken if that is less."""
    full_sweeps: int = 8
    """Refreshes that ask every living cell, at the start of an uncarved run."""
    max_cells: int = 2**18
    """Cells asked by later refreshes of a grid with more living cells than this."""

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 < self.decay < 1:
            raise ConfigError(f"decay: expected a number in (0, 1), got {self.decay}")
        for name in ("carve_margin_px", "pixel_margin_px", "full_sweeps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("most_steps", "max_cells"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class NerfConfig:
    """Everything that decides how a scene becomes a model."""

    preset: str = "default"
    """fast, default, quality, paper, hashnerf, gpu-fast, gpu or gpu-quality: where the other values start from. Not
    named, the run's length and the device choose."""
    encoding: EncodingConfig = EncodingConfig()
    """Of positions. per_level_scale is not set here: it follows from finest_resolution."""
    finest_resolution: int = 2048
    """Vertices per axis and unit of aabb_scale at the last level (N_max)."""
    density_bias: float | None = None
    """Added to the log-density. None: 3 where the scene was carved, so that hulls start opaque, else
    2 - ln(aabb_scale), so that the box does not. With a ReLU the exponential of that is added to the density."""
    n_neurons: int = 64
    """Neurons of the hidden layers."""
    density_layers: int = 1
    """Hidden layers of the density network. Networks other than 1 and 2, encodings other than grids and other than
    linear interpolation go through the small ops in float32: slower."""
    color_layers: int = 2
    """Hidden layers of the colour network."""
    density_activation: Literal["exp", "relu"] = "exp"
    """What makes the density network's first output a density: exp as in instant-ngp, relu as in HashNeRF."""
    color_sees_density: bool = True
    """Whether that output also feeds the colour network, as in instant-ngp; not in HashNeRF."""
    precision: RunPrecision = "auto"
    """Of lookups and networks; sums and parameters are float32 always. auto: on GPUs float16; on CPUs bfloat16 lookups,
    and bfloat16 networks where the CPU has instructions for them. float16 means auto where there is no GPU."""
    train: NerfTrainConfig = NerfTrainConfig()
    """Batches, loss, schedules."""
    occupancy: OccupancyConfig = OccupancyConfig()
    """Empty-space skipping."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", EncodingConfig.of(self.encoding))  # a GridConfig will do
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"precision: expected auto, float32, bfloat16 or float16, got {self.precision!r}")
        if self.n_neurons % 16 or not 16 <= self.n_neurons <= 256:
            raise ConfigError(f"n_neurons: expected a multiple of 16 up to 256, got {self.n_neurons}")
        for name in ("density_layers", "color_layers"):
            if not 0 <= getattr(self, name) <= 16:
                raise ConfigError(f"{name}: expected 0 to 16, got {getattr(self, name)}")
        if self.density_activation not in ("exp", "relu"):
            raise ConfigError(f"density_activation: expected exp or relu, got {self.density_activation!r}")
        if not self.is_fused and self.precision == "bfloat16":
            raise ConfigError("precision: bfloat16 needs a linear grid, one density layer and two colour layers")
        if self.train.total_variation > 0 and self.encoding.otype != "Grid":
            raise ConfigError(f"total_variation: needs a grid, the encoding is {self.encoding.otype}")
        if self.encoding.per_level_scale != EncodingConfig().per_level_scale:
            raise ConfigError("encoding.per_level_scale: follows from finest_resolution; set that instead")
        if self.finest_resolution < self.encoding.base_resolution:
            raise ConfigError(f"finest_resolution: expected at least base_resolution, got {self.finest_resolution}")

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels take such a field."""
        usual = self.encoding.otype == "Grid" and self.encoding.interpolation == "linear"
        return usual and (self.density_layers, self.color_layers) == (1, 2)

    @property
    def is_plain(self) -> bool:
        """Whether GPUs train such a field without waiting: what the fused kernels take, and no further loss."""
        usual = self.density_activation == "exp" and self.color_sees_density and self.n_neurons <= 128
        return self.is_fused and usual and self.train.sparsity == 0.0 and self.train.total_variation == 0.0

    def field_config(self, aabb_scale: int, density_bias: float) -> RadianceFieldConfig:
        """Sizes of the field for a box of this side."""
        return RadianceFieldConfig(
            encoding=self.encoding.reaching(self.finest_resolution * aabb_scale),
            density_network=MLPConfig(self.n_neurons, self.density_layers),
            color_network=MLPConfig(self.n_neurons, self.color_layers),
            density_bias=density_bias,
            density_activation=self.density_activation,
            color_sees_density=self.color_sees_density,
        )


def _preset(name: str, log2_hashmap_size: int, batch_samples: int, **changes: Any) -> NerfConfig:
    return NerfConfig(
        preset=name,
        encoding=EncodingConfig(log2_hashmap_size=log2_hashmap_size),
        train=NerfTrainConfig(batch_samples=batch_samples, **changes),
    )


PRESETS: dict[str, NerfConfig] = {
    # For about a minute.
    "fast": _preset("fast", 18, 2**15, step_until=(0.1, 0.25, 0.6, 1.0)),
    # For a few minutes.
    "default": _preset("default", 19, 2**16),
    # From five minutes on: more of the run at the full resolution.
    "quality": _preset("quality", 19, 2**16, step_until=(0.05, 0.15, 0.3, 1.0)),
    # The paper's encoding, loss and step, for comparisons; not the fastest on a CPU.
    "paper": NerfConfig(
        preset="paper",
        encoding=EncodingConfig(n_levels=16, n_features_per_level=2, log2_hashmap_size=19),
        train=NerfTrainConfig(batch_samples=2**16, huber_delta=0.1, min_transmittance=1e-4, min_weight=0.0),
    ),
    # HashNeRF-pytorch's networks (NeRFSmall), finest resolution and losses, over our grid, sampling and optimiser. Its
    # densities start at 0, where half of space has no gradient through the ReLU; lego then stays empty. Ours start at
    # `density_bias`.
    "hashnerf": NerfConfig(
        preset="hashnerf",
        encoding=EncodingConfig(n_levels=16, n_features_per_level=2, log2_hashmap_size=19),
        finest_resolution=512,
        density_activation="relu",
        color_sees_density=False,
        train=NerfTrainConfig(batch_samples=2**15, final_learning_rate=1e-3, sparsity=3e-7, total_variation=3e-6),
    ),
    # For GPUs, where a step costs little and faint samples are affordable: a few seconds, and more.
    "gpu-fast": _preset("gpu-fast", 19, 2**16),
    "gpu": _preset("gpu", 19, 2**18, step_until=(0.05, 0.15, 0.3, 1.0), min_transmittance=1e-3, min_weight=5e-4),
    # From half a minute on: tens of thousands of steps outgrow a table of 2^19 entries a level. Reasoned, not measured.
    "gpu-quality": _preset(
        "gpu-quality", 21, 2**18, step_until=(0.03, 0.1, 0.2, 1.0), min_transmittance=1e-4, min_weight=1e-4
    ),
}


def preset_for(max_seconds: float | None, n_steps: int | None, on_gpu: bool = False) -> str:
    """The preset that suits a length of training, where the user names none."""
    if on_gpu:
        if max_seconds is not None:
            return "gpu-fast" if max_seconds < 4 else "gpu" if max_seconds < 30 else "gpu-quality"
        return "gpu-fast" if n_steps is None or n_steps <= 2000 else "gpu" if n_steps <= 20000 else "gpu-quality"
    if max_seconds is not None:
        return "fast" if max_seconds < 150 else "default" if max_seconds < 280 else "quality"
    return "fast" if n_steps is None or n_steps <= 3000 else "default" if n_steps <= 8000 else "quality"


def parse_background(text: str) -> tuple[float, float, float]:
    """(r, g, b) in 0..1 of "white", "black" or "#rrggbb".

    Raises:
        ConfigError: it is none of these.
    """
    named = {"white": "#ffffff", "black": "#000000"}
    code = named.get(text.lower(), text)
    try:
        if len(code) != 7 or code[0] != "#":
            raise ValueError
        r, g, b = (int(code[k : k + 2], 16) / 255 for k in (1, 3, 5))
    except ValueError:
        raise ConfigError(f"background: expected white, black or #rrggbb, got {text!r}") from None
    return r, g, b


def network_precision(precision: RunPrecision, device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """The precision of networks on a device, where NerfConfig asks for `precision`."""
    if precision in ("auto", "float16"):
        return "float16" if runs_on_triton(device) else fast_precision(device)
    return precision


def field_parameters(
    module: RadianceField, table_bf16: Tensor | None, precision: RunPrecision = "auto"
) -> FieldParameters:
    """A field module's numbers as the fused ops take them; `precision` as NerfConfig describes it."""
    first, *others = (w.detach() for w in module.color_network.weights)
    if not module.config.color_sees_density:
        first = nn.functional.pad(first, (1, 0))  # the kernels hand it that output too, here with weight 0
    encoding = module.encoding
    found = FieldParameters(
        layout=module.config.encoding.layout(3) if isinstance(encoding, GridEncoding) else GridLayout(),
        table=table_of(module.encoding).detach(),
        density_weights=tuple(w.detach() for w in module.density_network.weights),
        color_weights=(first, *others),
        density_bias=module.config.density_bias,
        density_activation=module.config.density_activation,
        interpolation=module.config.encoding.interpolation,
        encode=None if isinstance(encoding, GridEncoding) else encoding,
    )
    if not found.is_fused:
        return found
    networks = network_precision(precision, found.table.device)
    if networks == "float16" and found.limit("triton") is not None:
        networks = "float32"  # the reference then runs
    return replace(
        found,
        table_bf16=None if precision == "float32" or networks == "float16" else table_bf16,
        precision=networks,
        table_fp16=found.table.to(torch.float16) if networks == "float16" else None,
    )


def gpu_memory(config: NerfConfig, scene: Scene) -> int:
    """Bytes of GPU memory that a run takes, nearly."""
    from hashfield.train.on_device import n_bytes_of

    field = config.field_config(scene.spaces.aabb_scale, 0.0)
    shapes = expected_shapes(field, scene.spaces).items()
    n_weights = sum(math.prod(shape) for name, shape in shapes if "_network." in name)
    n_pixels = sum(camera.width * camera.height for camera in scene.splits["train"].cameras)
    n_cells = scene.spaces.n_cascades * 128**3
    return n_bytes_of(field.encoding.layout(3), n_weights, config.train.batch_samples, n_pixels, n_cells)


# --- the trained model -------------------------------------------------------------------------------------


class NerfModel(nn.Module):
    """A trained radiance field with its spaces, cameras and occupancy: stands alone, needs no photos."""

    bits: Tensor
    box: Tensor
    table_bf16: Tensor

    def __init__(
        self,
        module: RadianceField,
        spaces: Spaces,
        bits: Tensor,
        box: Float[Tensor, " 6"],
        *,
        cameras: Mapping[str, Sequence[Camera]] | None = None,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
        step_scale: float = 1.0,
        precision: RunPrecision = "auto",
        info: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        module: The field; positions in unit space.
        spaces: Of the scene.
        bits: Occupied cells.
        box: Scene space; nothing lies outside it.
        cameras: World, by split.
        background: Colour the scene was meant to be seen on.
        step_scale: Of the march when rendering.
        precision: Of rendering, as NerfConfig describes it.
        info: Names and figures, free-form.
        """
        super().__init__()
        self.field = module.requires_grad_(False)
        self.spaces = spaces
        self.register_buffer("bits", bits)
        self.register_buffer("box", box)
        self.register_buffer("table_bf16", table_of(module.encoding).detach().to(torch.bfloat16))
        self.cameras = {split: list(views) for split, views in (cameras or {}).items()}
        self.background = background
        self.step_scale = step_scale
        self.precision: RunPrecision = precision
        self.info = info or {}

    def density(self, positions_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Density per world unit of length; 0 outside the training box."""
        position = self.spaces.world_to_unit(positions_world).reshape(-1, 3)
        density = self.spaces.density_scene_to_world(self.field.density(position.float()))
        density = torch.where(((position >= 0) & (position <= 1)).all(-1), density, 0.0)
        return density.reshape(positions_world.shape[:-1])

    def forward(
        self, positions_world: Float[Tensor, "*batch 3"], directions_world: Float[Tensor, "*batch 3"]
    ) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
        """(color, density) of points seen along unit directions (from the eye to the point)."""
        position = self.spaces.world_to_unit(positions_world).reshape(-1, 3).float()
        direction = self.spaces.direction_world_to_scene(directions_world).reshape(-1, 3).float()
        color, density = self.field(position, direction)
        density = torch.where(((position >= 0) & (position <= 1)).all(-1), density, 0.0)
        density = self.spaces.density_scene_to_world(density)
        batch = positions_world.shape[:-1]
        return color.reshape(*batch, 3), density.reshape(batch)

    @torch.no_grad()
    def render(
        self,
        camera: Camera,
        outputs: Sequence[str] = ("color", "depth"),
        background: tuple[float, float, float] | None = None,
        rays_at_once: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Pictures of the scene: float32 arrays by name.

        Args:
            camera: In the world; its width and height are the picture's.
            outputs: Of "color", "opacity", "depth", "normals".
            background: Composited behind the colour; None leaves the colour premultiplied by opacity.
            rays_at_once: Bounds memory; None: 2^18 on CPUs, 2^22 elsewhere.

        Returns:
            color [h, w, 3] in sRGB; opacity [h, w]; depth [h, w], the mean distance along the unit ray in world
            units, 0 where nothing is; normals [h, w, 3], unit vectors in the world, 0 where nothing is.

        Raises:
            ConfigError: an output is not known.
        """
        unknown = sorted(set(outputs) - {"color", "opacity", "depth", "normals"})
        if unknown:
            raise ConfigError(f"outputs: expected color, opacity, depth, normals; got {unknown[0]!r}")
        shape = (camera.height, camera.width)
        parts: dict[str, list[Tensor]] = {name: [] for name in outputs}
        for found in self.render_parts(camera, outputs, background, rays_at_once):
            for name, part in found.items():
                parts[name].append(part)
        return {name: _on_host(p).reshape(*shape, *p[0].shape[1:]) for name, p in parts.items()}

    @torch.no_grad()
    def render_parts(
        self,
        camera: Camera,
        outputs: Sequence[str] = ("color",),
        background: tuple[float, float, float] | None = None,
        rays_at_once: int | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """The pixels of a picture in order, some at a time, where the model lies: see `render`."""
        field = field_parameters(self.field, self.table_bf16, self.precision)
        device = self.bits.device
        table = self.spaces.camera_table_to_scene(camera_table([camera]))
        options = MarchOptions(self.spaces.aabb_scale, self.spaces.cone_angle, self.step_scale, 1e-4)
        n_pixels, most = camera.width * camera.height, rays_at_once or (2**18 if device.type == "cpu" else 2**22)
        for first in range(0, n_pixels, most):
            n = min(most, n_pixels - first)
            rays = view_rays(table, camera.width, camera.height, self.box, first=first, n_rays=n)
            found = render_rays(field, rays, self.bits, options)
            distance = torch.where(found.opacity > 1e-3, found.depth / found.opacity.clamp(min=1e-3), 0.0)
            part: dict[str, Tensor] = {}
            if "color" in outputs:
                color = found.color
                if background is not None:
                    color = color + (1 - found.opacity)[:, None] * color.new_tensor(background)
                part["color"] = color
            if "opacity" in outputs:
                part["opacity"] = found.opacity
            if "depth" in outputs:
                part["depth"] = self.spaces.distance_scene_to_world(distance)
            if "normals" in outputs:
                points = rays.origin + distance[:, None] * rays.direction
                part["normals"] = self._normals(points, found.opacity > 0.1)
            yield part

    def surface(self, *, resolution: int, box: Box | None = None, level: float | None = None) -> Surface:
        """What a mesh of the scene needs, see `hashfield.tasks.mesh`; the level is a density per world unit.

        Raises:
            ConfigError: the box lies outside the model, or the level is not positive.
            DataError: the level is to be chosen and no camera sees anything opaque.
        """
        from hashfield.tasks.nerf_surface import nerf_surface  # it builds on this file

        return nerf_surface(self, resolution=resolution, box=box, level=level)

    def _normals(self, positions_scene: Tensor, is_hit: Tensor) -> Tensor:
        """World normals -grad(density)/|grad| where a ray hits, from central differences over one cell of the
        finest occupancy grid: the field's own gradient is rougher than the surface it describes."""
        normals = torch.zeros_like(positions_scene)
        points = positions_scene[is_hit]
        reach = 0.5 / 128
        gradient = torch.stack(
            [
                self._log_density(points + step) - self._log_density(points - step)
                for step in reach * torch.eye(3, dtype=points.dtype, device=points.device)
            ],
            1,
        )
        normals[is_hit] = torch.nn.functional.normalize(-gradient, dim=1)
        return self.spaces.direction_scene_to_world(normals)

    def _log_density(self, positions_scene: Tensor) -> Tensor:
        # the logarithm, since density itself spans many powers of ten across a surface
        density = self.field.density(self.spaces.scene_to_unit(positions_scene))
        return torch.log(density.clamp(1e-4, 1e4))


def _on_host(parts: list[Tensor]) -> np.ndarray:
    """Parts of a picture, one after another, as an array of its own."""
    if parts[0].device.type != "cuda":
        return np.concatenate([part.cpu().numpy() for part in parts])
    # By way of pinned memory, which PyTorch keeps: a copy into fresh pages takes some ten times as long.
    n = sum(len(part) for part in parts)
    pinned = torch.empty((n, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
    first = 0
    for part in parts:
        pinned[first : first + len(part)].copy_(part, non_blocking=True)
        first += len(part)
    torch.cuda.current_stream().synchronize()
    return pinned.numpy().copy()


def load_model(path: Path, device: torch.device = _CPU) -> NerfModel:
    """The model in a checkpoint file, exported or not, on a device.

    Raises:
        CheckpointError: the file is missing, broken or does not describe a radiance field; the text names what.
    """
    metadata = read_metadata(path)
    if metadata.get("task") != "nerf":
        raise CheckpointError(f"{path}: task: expected 'nerf', got {metadata.get('task')!r}")
    try:
        config = config_from_dict(NerfConfig, metadata.get("config"), f"{path}: config")
        spaces = Spaces.from_dict(_part(metadata, "spaces", dict, path))
        bias = _part(metadata, "density_bias", float, path)
        background = _part(metadata, "background", list, path)
        step_scale = _part(metadata, "step_scale", float, path)
        if not 0.1 <= step_scale <= 64:  # as in NerfTrainConfig; a march of no or negative steps would never end
            raise CheckpointError(f"{path}: metadata: step_scale: expected a number in [0.1, 64], got {step_scale}")
        cameras = {
            split: [Camera.from_dict(view) for view in views]
            for split, views in _part(metadata, "cameras", dict, path).items()
        }
        field_config = config.field_config(spaces.aabb_scale, bias)
    except CheckpointError:
        raise
    except HashfieldError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = expected_shapes(field_config, spaces)
    found = tensor_shapes(path)
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        if found[name][0] != shape:
            raise CheckpointError(f"{path}: tensor {name!r}: expected shape {shape}, got {found[name][0]}")
    tensors, _ = load_checkpoint(path)
    module = RadianceField(field_config)
    restore_module(module, tensors, path)
    if not bool(torch.isfinite(tensors["box"]).all()):
        raise CheckpointError(f"{path}: tensor 'box' holds numbers that are not finite")
    if len(background) != 3 or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in background):
        raise CheckpointError(f"{path}: background: expected three numbers in 0..1, got {background!r}")
    info = {k: metadata[k] for k in ("scene", "figures", "hashfield", "config", "precision") if k in metadata}
    return NerfModel(
        module.to(device), spaces, tensors["bits"].to(device), tensors["box"].double().to(device), cameras=cameras,
        background=(background[0], background[1], background[2]), step_scale=step_scale, precision=config.precision,
        info=info,
    )  # fmt: skip


def expected_shapes(config: RadianceFieldConfig, spaces: Spaces) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors that a checkpoint of such a field must hold."""
    found: dict[str, tuple[int, ...]] = {"bits": (spaces.n_cascades * 128**3 // 8,), "box": (6,)}
    if config.n_grid_parameters:
        layout = config.encoding.layout(3)
        found["field.encoding.table"] = (layout.n_entries, layout.n_features_per_level)
    for network, shapes in zip(("density", "color"), config.network_shapes(), strict=True):
        for k, shape in enumerate(shapes):
            found[f"field.{network}_network.weights.{k}"] = shape
    return found


def _part(metadata: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    value = metadata.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
        raise CheckpointError(f"{path}: metadata: {name}: expected {kind.__name__}, got {value!r}")
    return value


LONGEST_RAYS = 2**14
"""Samples for which a thread has room, however small the batch: a handful of the longest rays fit at once."""

# --- the training task -------------------------------------------------------------------------------------


class NerfTask:
    """Training of a radiance field on one scene; see `hashfield.train.task.Task`."""

    name = "nerf"

    def __init__(
        self,
        config: NerfConfig,
        scene: Scene,
        *,
        seed: int = 0,
        background: str = "white",
        device: torch.device = _CPU,
    ) -> None:
        """Args:
        config: What to train and how.
        scene: Photos with cameras; only the split "train" is used.
        seed: Of every random choice.
        background: Colour behind the scene in evaluation and rendering; training draws random ones.
        device: Where to train.

        Raises:
            ConfigError: the background is not a colour, or the seed is negative.
        """
        if seed < 0:
            raise ConfigError(f"seed: expected a whole number >= 0, got {seed}")
        self.config, self.scene, self.seed, self.device = config, scene, seed, device
        self.background = parse_background(background)
        self.spaces = scene.spaces
        self.is_carved = config.occupancy.use_alpha and scene.has_alpha
        bias, decay = config.density_bias, config.occupancy.decay
        # Uncarved, a ray should get through some of the box at first, whatever its size.
        usual_bias = 3.0 if self.is_carved else 2.0 - math.log(self.spaces.aabb_scale)
        if config.density_activation == "relu":
            usual_bias = math.exp(usual_bias)
        self.density_bias: float = usual_bias if bias is None else bias
        self.min_weight = config.train.min_weight if self.is_carved else min(config.train.min_weight, 1e-3)
        self.decay: float = (0.6 if self.is_carved else 0.95) if decay is None else decay
        views: PosedImages = scene.splits["train"]
        table = self.spaces.camera_table_to_scene(camera_table(views.cameras))
        self.sampler = PixelSampler(views.images, table, device)
        init = torch.Generator().manual_seed(seed)
        field_config = config.field_config(self.spaces.aabb_scale, self.density_bias)
        self.field = RadianceField(field_config, generator=init).to(device)
        self.matrices = [*self.field.density_network.weights, *self.field.color_network.weights]
        self.on_device: DeviceTraining | None = None
        """The training that is never waited for, on GPUs."""
        self.workspace: TrainWorkspace | None = None
        self.optimizer: TableOptimizer | DeviceOptimizer
        if runs_on_triton(device) and config.is_plain:
            self.on_device = self._device_training()
            self.optimizer = self.on_device.optimizer
        else:
            self.optimizer = TableOptimizer(table_of(self.field.encoding), self.matrices, l2=config.train.l2)
            self.workspace = TrainWorkspace(
                self.parameters(), max(2 * config.train.batch_samples, LONGEST_RAYS * torch.get_num_threads())
            )
        seeds = np.random.SeedSequence(seed).spawn(3)
        self.random = {
            name: np.random.Generator(np.random.SFC64(s))
            for name, s in zip(("pixels", "rays", "occupancy"), seeds, strict=True)
        }
        self.n_rays = max(16, config.train.batch_samples // 64)
        self.next_refresh = 0
        self.n_refreshes = 0
        self.grid: OccupancyGrid | None = None
        self.box: Tensor | None = None

    def _device_training(self) -> "DeviceTraining":
        from hashfield.train.on_device import COMPUTE, DeviceOptimizer, DeviceTraining, Recipe

        train = self.config.train
        recipe = Recipe(
            aabb_scale=self.spaces.aabb_scale, cone_angle=self.spaces.cone_angle,
            min_transmittance=train.min_transmittance, min_weight=self.min_weight, huber_delta=train.huber_delta,
            batch_samples=train.batch_samples, l2=train.l2,
        )  # fmt: skip
        encoding = self.field.encoding
        assert isinstance(encoding, GridEncoding), "is_plain"
        compute = COMPUTE[network_precision(self.config.precision, self.device)]
        optimizer = DeviceOptimizer(encoding.table, self.matrices, compute, recipe)
        return DeviceTraining(encoding.layout, self.density_bias, optimizer, recipe, self.seed)

    def parameters(self) -> FieldParameters:
        """The field's numbers as they are now."""
        table_bf16 = self.optimizer.table_bf16 if isinstance(self.optimizer, TableOptimizer) else None
        return field_parameters(self.field, table_bf16, self.config.precision)

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        if self.on_device is not None:
            self._warm_up_device(self.on_device)
        else:
            self._warm_up_host()

    def _warm_up_device(self, training: "DeviceTraining") -> None:
        s, aabb_scale = self.sampler, self.spaces.aabb_scale
        training.set_pool(s.spans, s.span_ends, s.starts, s.widths, s.pixels, s.table)
        training.warm_up()
        if self.device.type != "cuda":
            return  # an interpreter compiles nothing
        masks = s.pixels[:, 3].contiguous() if self.is_carved else None
        alive = carve(s.table[:1], s.starts[:1], s.widths[:1], s.heights[:1], masks, aabb_scale=aabb_scale)
        grid = OccupancyGrid.start(alive, aabb_scale)
        box = torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64, device=self.device)
        camera = self.scene.splits["train"].cameras[0].resized(64, 64)
        NerfModel(self.field, self.spaces, grid.bits, box, precision=self.config.precision).render(camera)
        self.field.requires_grad_(True)
        torch.cuda.synchronize()

    def _warm_up_host(self) -> None:
        s, spaces = self.sampler, self.spaces
        generator, device = np.random.default_rng(0), self.device
        one = slice(0, 1)
        tiny = torch.zeros((1, 4), dtype=torch.uint8, device=device)
        ones = torch.ones(1, dtype=torch.int64, device=device)
        zeros = torch.zeros(1, dtype=torch.int64, device=device)
        masks = silhouettes(tiny, zeros, ones, ones, 1) if self.is_carved else None
        carve(s.table[one][:0], zeros[:0], ones[:0], ones[:0], masks, aabb_scale=spaces.aabb_scale)
        dead = torch.zeros(spaces.n_cascades * 128**3, dtype=torch.bool, device=device)
        dead[:1] = True
        grid = OccupancyGrid.start(dead, spaces.aabb_scale)
        field = self.parameters()
        grid.refresh(field, generator, 0.5, 1)
        box = torch.tensor([0.0, 0, 0, 1, 1, 1], device=device).double()
        batch = s.draw(2, box, generator)
        workspace = TrainWorkspace(field, 1024)
        options = MarchOptions(spaces.aabb_scale, spaces.cone_angle)
        grads = train_rays(
            field, batch.rays, batch.target, torch.zeros(2, 3, device=device), grid.bits, options, workspace,
            jitter=torch.zeros(2, device=device),
        )  # fmt: skip
        scratch = TableOptimizer(torch.zeros_like(field.table), [torch.zeros_like(m) for m in self.matrices])
        scratch.step(torch.zeros_like(field.table), self.matrix_gradients(grads), 1e-3)
        camera = self.scene.splits["train"].cameras[0].resized(2, 2)
        NerfModel(self.field, spaces, grid.bits, box, precision=self.config.precision).render(camera)
        self.field.requires_grad_(True)

    def begin(self) -> None:
        """Carve the grid and choose the pixels to draw from."""
        s, config = self.sampler, self.config.occupancy
        masks = None
        if self.is_carved:
            masks = silhouettes(s.pixels, s.starts, s.widths, s.heights, config.carve_margin_px)
        alive = carve(s.table, s.starts, s.widths, s.heights, masks, aabb_scale=self.spaces.aabb_scale)
        if not bool(alive.any()):
            raise ConfigError(
                "nothing to train: no cell of the training box is seen by a camera"
                + (" inside every silhouette (wrong poses, or an empty alpha channel?)" if self.is_carved else "")
            )
        self._choose_pixels()
        self.grid = OccupancyGrid.start(alive, self.spaces.aabb_scale)
        if self.is_carved:
            self.box = self.grid.living_box()
        else:  # nearly the whole box lives
            whole = [*self.spaces.box_min, *self.spaces.box_max]
            self.box = torch.tensor(whole, dtype=torch.float64, device=self.device)
        if self.on_device is not None:
            self.on_device.set_scene(self.grid.bits, self.box)

    def _choose_pixels(self) -> None:
        s = self.sampler
        if self.is_carved:
            s.use_masks(silhouettes(s.pixels, s.starts, s.widths, s.heights, self.config.occupancy.pixel_margin_px))
        if self.on_device is not None:
            self.on_device.set_pool(s.spans, s.span_ends, s.starts, s.widths, s.pixels, s.table)

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of rays through the whole pipeline, and the grid's refresh when it is due."""
        assert self.grid is not None and self.box is not None, "begin() or restore() comes first"
        config, random = self.config.train, self.random
        if step >= self.next_refresh and step > 0:
            self._refresh(step)
        rate = learning_rate_at(fraction, config.learning_rate, config.final_learning_rate, config.flat_until)
        if self.on_device is not None:
            figures = self.on_device.step(rate, self.step_scale(fraction))
            return StepResult(figures[0], figures[1], figures[2], figures[3])
        assert self.workspace is not None and isinstance(self.optimizer, TableOptimizer)
        n = self.n_rays
        batch = self.sampler.draw(n, self.box, random["pixels"])
        jitter = torch.from_numpy(random["rays"].random(n, dtype=np.float32)).to(self.device)
        background = torch.from_numpy(random["rays"].random((n, 3), dtype=np.float32)).to(self.device)
        options = MarchOptions(
            self.spaces.aabb_scale, self.spaces.cone_angle, self.step_scale(fraction), config.min_transmittance,
            self.min_weight,
        )  # fmt: skip
        result = train_rays(
            self.parameters(), batch.rays, batch.target, background, self.grid.bits, options, self.workspace,
            jitter=jitter, huber_delta=config.huber_delta, sparsity=config.sparsity,
        )  # fmt: skip
        if not math.isfinite(result.loss):
            self.workspace.grad_table.zero_()
        elif result.n_rays > 0:
            if config.total_variation > 0 and fraction < config.total_variation_until:
                result.loss += config.total_variation * self._add_total_variation(step)
            self.optimizer.step(self.workspace.grad_table, self.matrix_gradients(result), rate)
        # Rays of the next step: what the sample budget allows, at most twice as many.
        wanted = result.n_rays * config.batch_samples / max(result.n_kept, 1)
        self.n_rays = int(min(max(16, min(2 * result.n_rays, wanted)), 2**18))
        return StepResult(result.loss, result.squared_error, result.n_rays, result.n_kept)

    def matrix_gradients(self, result: TrainRaysResult) -> list[Tensor]:
        """A step's gradients of the field's matrices, density network first."""
        first, *others = result.grad_color_weights
        if not self.config.color_sees_density:
            first = first[:, 1:].contiguous()  # without the column that `field_parameters` adds
        return [*result.grad_density_weights, first, *others]

    def _add_total_variation(self, step: int) -> float:
        assert self.workspace is not None  # such runs are not captured on a GPU
        layout = self.field.config.encoding.layout(3)
        sides = cube_sides(layout)
        # Of a generator of its own for each step, so that the others draw the same with and without.
        generator = np.random.default_rng((self.seed, step))
        highest = layout.resolutions.astype(np.int64)[:, None] - np.array(sides)[:, None]
        assert self.workspace is not None
        corners = torch.from_numpy((generator.random((layout.n_levels, 3)) * highest).astype(np.int64)).to(self.device)
        weight, table = self.config.train.total_variation, table_of(self.field.encoding)
        return total_variation(table, self.workspace.grad_table, layout, corners=corners, sides=sides, weight=weight)

    def step_scale(self, fraction: float) -> float:
        """Length of the march's step at this point of the run."""
        config = self.config.train
        for scale, until in zip(config.step_scales, config.step_until, strict=True):
            if fraction < until:
                return scale
        return config.step_scales[-1]

    def _refresh(self, step: int) -> None:
        assert self.grid is not None
        config = self.config.occupancy
        full_sweeps = 1 if self.is_carved else config.full_sweeps
        max_cells = len(self.grid.living) if self.n_refreshes < full_sweeps else config.max_cells
        if self.on_device is not None:
            self.on_device.refresh(self.grid.values, self.grid.living, self.decay, max_cells)
            self.grid.bits = self.on_device.bits
        else:
            self.grid.refresh(self.parameters(), self.random["occupancy"], self.decay, max_cells)
        self.n_refreshes += 1
        self.next_refresh = step + max(4, min(config.most_steps, step // 8))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        assert self.grid is not None and self.box is not None
        tensors = {f"field.{name}": p.detach() for name, p in self.field.named_parameters()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.state().items()}
        tensors |= {"occupancy.values": self.grid.values, "bits": self.grid.bits, "box": self.box}
        if self.on_device is not None:
            self.n_rays = int(self.on_device.n_rays)
        if self.on_device is not None or self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        values = {
            "optimizer_steps": self.optimizer.n_steps,
            "n_rays": self.n_rays,
            "next_refresh": self.next_refresh,
            "n_refreshes": self.n_refreshes,
            "samples_per_ray": 64.0 if self.workspace is None else self.workspace.samples_per_ray,
            "threads": torch.get_num_threads(),
            "precision": self.parameters().precision,
            "random": {name: generator_state(g) for name, g in self.random.items()},
        }
        if self.on_device is not None:
            values["device_random"] = self.on_device.random_state()
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration.
        """
        restore_module(self.field, tensors, "checkpoint")
        for name in ("occupancy.values", "bits", "box"):
            if name not in tensors:
                raise CheckpointError(f"checkpoint: tensor {name!r} is missing")
        n_cells = self.spaces.n_cascades * 128**3
        if tensors["occupancy.values"].shape != (n_cells,) or tensors["bits"].shape != (n_cells // 8,):
            raise CheckpointError("checkpoint: the occupancy grid has another size than this scene's")
        try:
            moments = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
            self.optimizer.restore(moments, int(values["optimizer_steps"]))
            self.n_rays = int(values["n_rays"])
            self.next_refresh = int(values["next_refresh"])
            self.n_refreshes = int(values["n_refreshes"])
            if self.workspace is not None:
                self.workspace.samples_per_ray = float(values["samples_per_ray"])
            for name, generator in self.random.items():
                restore_generator(generator, values["random"][name], f"checkpoint: random.{name}")
            threads, precision = values["threads"], values.get("precision")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        if (self.on_device is not None) != ("device_random" in values):
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        elif threads != torch.get_num_threads() and self.on_device is None:
            logger.warning(
                "the run was begun on %s threads and goes on with %s: it will differ in the last bits",
                threads, torch.get_num_threads(),
            )  # fmt: skip
        if precision not in (None, self.parameters().precision):
            logger.warning(
                "the run was begun with %s networks and goes on with %s, which this machine runs faster",
                precision, self.parameters().precision,
            )  # fmt: skip
        self.grid = OccupancyGrid.restored(
            self.spaces.aabb_scale,
            tensors["occupancy.values"].to(self.device, copy=True),
            tensors["bits"].to(self.device, copy=True),
        )
        self.box = tensors["box"].double().to(self.device, copy=True)
        self._choose_pixels()
        if self.on_device is not None:
            self.on_device.set_scene(self.grid.bits, self.box)
            self.on_device.n_rays.fill_(min(self.n_rays, self.on_device.max_rays))
            if "device_random" in values:
                self.on_device.restore_random(values["device_random"])

    def describe(self) -> dict[str, Any]:
        """What makes the checkpoint stand alone."""
        return {
            "config": config_to_dict(self.config),
            "spaces": self.spaces.to_dict(),
            "density_bias": self.density_bias,
            "background": list(self.background),
            "step_scale": self.config.train.step_scales[-1],
            "seed": self.seed,
            "cameras": {
                split: [camera.to_dict() for camera in views.cameras] for split, views in self.scene.splits.items()
            },
            "scene": {
                "name": self.scene.name,
                "path": str(self.scene.path),
                "has_alpha": self.scene.has_alpha,
                "camera_axes": self.scene.camera_axes,
            },
        }

    def model(self) -> NerfModel:
        """The field as it is now, for evaluation and rendering. Shares memory with the task."""
        assert self.grid is not None and self.box is not None
        model = NerfModel(
            self.field, self.spaces, self.grid.bits, self.box,
            cameras={split: views.cameras for split, views in self.scene.splits.items()},
            background=self.background, step_scale=self.config.train.step_scales[-1],
            precision=self.config.precision, info={"scene": {"name": self.scene.name, "path": str(self.scene.path)}},
        )  # fmt: skip
        self.field.requires_grad_(True)
        return model

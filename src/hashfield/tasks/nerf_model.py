"""A trained radiance field: its numbers as the fused ops take them, its pictures, its checkpoint read back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from hashfield.errors import CheckpointError, ConfigError, HashfieldError
from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import GRID_SIZE, Spaces
from hashfield.nn.config import RadianceFieldConfig, RunPrecision
from hashfield.nn.encodings import table_of
from hashfield.nn.fields import RadianceField, field_parameters
from hashfield.nn.frozen import frozen_view, with_buffers
from hashfield.ops.backend import runs_on_triton
from hashfield.ops.camera_rays import view_rays
from hashfield.ops.occupancy import morton3_inverse
from hashfield.ops.render_rays import FieldParameters, MarchOptions, RenderResult, render_rays
from hashfield.render.between_pixels import picture_between_pixels
from hashfield.steps.state import restore_module
from hashfield.tasks.frames import (
    DEFAULT_QUALITY,
    QUALITIES,
    CameraFrames,
    Corners,
    FrameEconomy,
    Quality,
    common_box,
)
from hashfield.tasks.mesh import Box, Surface, SurfaceSource
from hashfield.tasks.nerf_config import NerfConfig
from hashfield.tasks.nerf_surface import nerf_surface
from hashfield.tasks.shared import CPU, stored, stored_background, stored_cameras, stored_info
from hashfield.train.checkpoint import OpenCheckpoint, config_from_dict, open_checkpoint


class NerfModel(CameraFrames, nn.Module):
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
        quality: Quality = DEFAULT_QUALITY,
    ) -> None:
        """Args:
        module: The field; positions in unit space.
        spaces: Spaces of the scene.
        bits: Occupied cells.
        box: Scene space; nothing lies outside it.
        cameras: World, by split.
        background: Colour the scene was meant to be seen on.
        step_scale: Step length of the march when rendering.
        precision: Number type of rendering, as NerfConfig describes it.
        info: Names and figures, free-form.
        quality: Quality of pictures against their speed; may be set at any time.
        """
        super().__init__()
        self.field = frozen_view(module)
        self.spaces = spaces
        self.register_buffer("bits", bits)
        self.register_buffer("box", box)
        self.register_buffer("table_bf16", table_of(module.encoding).detach().to(torch.bfloat16))
        self.cameras = {split: list(views) for split, views in (cameras or {}).items()}
        self.background = background
        self.step_scale = step_scale
        self.precision: RunPrecision = precision
        self.info = info or {}
        self.quality = quality

    def parameters_of_field(self) -> FieldParameters:
        """The field's numbers as the fused ops take them."""
        return field_parameters(self.field, self.table_bf16, self.precision)

    @property
    def box_world(self) -> Float64[Tensor, "2 3"]:
        """Lowest and highest corner, in the world, of the box that rays are clipped to."""
        return self.spaces.scene_to_world(self.box.double().cpu().reshape(2, 3))

    def within(self, corners: Corners) -> "NerfModel":
        """A view of the field in which only what lies in a box of the world is seen: see `frames.HasBox`."""
        wanted = self.spaces.world_to_scene(torch.tensor(corners, dtype=torch.float64))
        return with_buffers(self, box=common_box(self.box.reshape(2, 3), wanted.to(self.box)).flatten())

    def occupied_cells(self, n_most: int = 20_000) -> tuple[Float64[Tensor, "n 3"], Float64[Tensor, " n"]]:
        """Where the field is taken to hold something: centres and sides of cells, in the world.

        Args:
            n_most: Cells that are given at most: where more are occupied, eight are joined into one, as often as
                needed.
        """
        n = self.spaces.n_cascades
        bits = self.bits.cpu()[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1)
        occupied = bits.bool().reshape(n, GRID_SIZE**3)
        for joined in range(GRID_SIZE.bit_length() - 1):
            # In Morton order the eight cells of a coarser one follow each other.
            cells = occupied.reshape(n, -1, 8**joined).any(2)
            side = GRID_SIZE >> joined
            centers, sides = [], []
            for cascade in range(n):
                cell = (morton3_inverse(cells[cascade].nonzero()[:, 0]).double() + 0.5) / side - 0.5
                if cascade:  # the middle is what the finer cascades are about
                    cell = cell[(cell.abs() > 0.25).any(1)]
                centers.append(0.5 + cell * 2**cascade)
                sides.append(torch.full((len(cell),), 2.0**cascade / side, dtype=torch.float64))
            if sum(map(len, centers)) <= n_most:
                break
        return self.spaces.scene_to_world(torch.cat(centers)), self.spaces.distance_scene_to_world(torch.cat(sides))

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
        """Pictures of the scene, of the model's `quality`: float32 arrays by name.

        Args:
            camera: In the world; its width and height are the picture's.
            outputs: Some of "color", "opacity", "depth", "normals".
            background: Composited behind the colour; None leaves the colour premultiplied by opacity.
            rays_at_once: Bounds memory; None: 2^21 on CPUs, 2^22 elsewhere. Parts are whole rows, at least two,
                where pixels are interpolated.

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
        device, economy = self.bits.device, self.economy
        table = self.spaces.camera_table_to_scene(camera_table([camera]))
        most = rays_at_once or (2**21 if device.type == "cpu" else 2**22)
        if economy.tolerance > 0:  # rows keep their neighbours together
            most = max(2, most // camera.width) * camera.width
        n_pixels = camera.width * camera.height
        for first in range(0, n_pixels, most):
            n = min(most, n_pixels - first)

            def rays_of(numbers: Tensor | None, first: int = first, n: int = n) -> Rays:
                width, height = camera.width, camera.height
                return view_rays(table, width, height, self.box, first=first, n_rays=n, numbers=numbers)

            seen = self._seen(rays_of, camera.width, n // camera.width, "depth" in outputs or "normals" in outputs)
            part: dict[str, Tensor] = {}
            if "color" in outputs:
                color = seen.color
                if background is not None:
                    color = color + (1 - seen.opacity)[:, None] * color.new_tensor(background)
                part["color"] = color
            if "opacity" in outputs:
                part["opacity"] = seen.opacity
            if "depth" in outputs:
                part["depth"] = self.spaces.distance_scene_to_world(seen.depth)
            if "normals" in outputs:
                rays = rays_of(None)
                points = rays.origin + seen.depth[:, None] * rays.direction
                part["normals"] = self._normals(points, seen.opacity > 0.1)
            yield part

    @property
    def quality(self) -> Quality:
        """Quality of pictures against their speed; may be set at any time."""
        return self._quality

    @quality.setter
    def quality(self, quality: Quality) -> None:
        if quality not in QUALITIES:
            raise ConfigError(f"quality: expected one of {', '.join(QUALITIES)}, got {quality!r}")
        self._quality: Quality = quality

    @property
    def economy(self) -> FrameEconomy:
        """What pictures leave out: that of `quality` on CPUs, nothing elsewhere."""
        saves = self.bits.device.type == "cpu" and not runs_on_triton(self.bits.device)
        return QUALITIES[self.quality if saves else "exact"]

    def _seen(self, rays_of: Callable[[Tensor | None], Rays], width: int, height: int, has_depth: bool) -> RenderResult:
        """What a picture, or whole rows of one, sees; depth is the mean distance, if it is wanted.

        Args:
            rays_of: Rays of the pixels with these numbers, or of all.
            width, height: Pixels.
            has_depth: Whether it is.
        """
        field, economy, spaces = self.parameters_of_field(), self.economy, self.spaces
        options = MarchOptions(
            spaces.aabb_scale, spaces.cone_angle, self.step_scale, economy.min_transmittance, economy.min_weight
        )

        def seen(some: Rays) -> RenderResult:
            found = render_rays(field, some, self.bits, options)
            if not has_depth:
                return found
            distance = torch.where(found.opacity > 1e-3, found.depth / found.opacity.clamp(min=1e-3), 0.0)
            return RenderResult(found.color, found.opacity, distance)

        def of_pixels(numbers: Tensor) -> Tensor:
            found = seen(rays_of(numbers))
            return torch.cat([found.color, found.opacity[:, None], found.depth[:, None]][: 3 if has_depth else 2], 1)

        if not economy.tolerance:
            return seen(rays_of(None))
        found = picture_between_pixels(width, height, of_pixels, economy.tolerance, int(has_depth))
        return RenderResult(found[:, :3], found[:, 3], found[:, -1])

    def surface(
        self, *, resolution: int, box: Box | None = None, level: float | None = None, source: SurfaceSource = "auto"
    ) -> Surface:
        """What a mesh of the scene needs, see `hashfield.tasks.mesh`.

        Args:
            resolution: Cells along the longest side of the box.
            box: Where to look, in world units; None: what the model holds, or most of what cameras see
                where the training box is large.
            level: Density per world unit at the surface; None: chosen from what the cameras see.
            source: Whether density or rendered depth makes the surface.

        Raises:
            ConfigError: the box lies outside the model, the level is not positive, or depth has no level or no camera.
            DataError: the level is to be chosen and no camera sees anything opaque.
        """
        return nerf_surface(self, resolution=resolution, box=box, level=level, source=source)

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


def load_model(source: Path | OpenCheckpoint, device: torch.device = CPU) -> NerfModel:
    """The model in a checkpoint, exported or not, on a device.

    Args:
        source: The checkpoint, opened or not.
        device: Where the model answers.

    Raises:
        CheckpointError: the file is missing, broken or does not describe a radiance field; the text names what.
    """
    checkpoint = open_checkpoint(source)
    path, metadata = checkpoint.path, checkpoint.of_task("nerf")
    try:
        config = config_from_dict(NerfConfig, metadata.get("config"), f"{path}: config")
        spaces = Spaces.from_dict(stored(metadata, "spaces", dict, path))
        bias = stored(metadata, "density_bias", float, path)
        background = stored_background(metadata, path)
        step_scale = stored(metadata, "step_scale", float, path)
        if not 0.1 <= step_scale <= 64:  # as in NerfTrainConfig; a march of no or negative steps would never end
            raise CheckpointError(f"{path}: metadata: step_scale: expected a number in [0.1, 64], got {step_scale}")
        cameras = stored_cameras(metadata, path)
        field_config = config.field_config(spaces.aabb_scale, bias)
    except CheckpointError:
        raise
    except HashfieldError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors = checkpoint.tensors(expected_shapes(field_config, spaces))
    module = RadianceField(field_config)
    restore_module(module, tensors, path)
    if not bool(torch.isfinite(tensors["box"]).all()):
        raise CheckpointError(f"{path}: tensor 'box' holds numbers that are not finite")
    return NerfModel(
        module.to(device), spaces, tensors["bits"].to(device), tensors["box"].double().to(device), cameras=cameras,
        background=background, step_scale=step_scale, precision=config.precision, info=stored_info(metadata),
    )  # fmt: skip


def expected_shapes(config: RadianceFieldConfig, spaces: Spaces) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors that a checkpoint of such a field must hold."""
    found: dict[str, tuple[int, ...]] = {"bits": (spaces.n_cells // 8,), "box": (6,)}
    if config.n_grid_parameters:
        layout = config.encoding.layout(3)
        found["field.encoding.table"] = (layout.n_entries, layout.n_features_per_level)
    for network, shapes in zip(("density", "color"), config.network_shapes(), strict=True):
        for k, shape in enumerate(shapes):
            found[f"field.{network}_network.weights.{k}"] = shape
    return found

"""A trained signed distance: its numbers as the fused ops take them, its pictures, its checkpoint read back."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from hashfield.errors import CheckpointError, ConfigError, HashfieldError
from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import Spaces
from hashfield.nn.config import MLPConfig, RunPrecision
from hashfield.nn.encodings import GridEncoding, table_of
from hashfield.nn.frozen import frozen_view, with_buffers
from hashfield.nn.networks import NetworkWithEncoding, encoded_network
from hashfield.ops.camera_rays import view_rays
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.mlp import mlp
from hashfield.ops.ray_box import ray_box
from hashfield.ops.sphere_trace import DistanceField, sphere_trace
from hashfield.render.surface import SHADOW_START, shade, soft_shadow
from hashfield.steps.state import restore_module
from hashfield.tasks.frames import CameraFrames, Corners, common_box
from hashfield.tasks.mesh import Box, Surface, SurfaceSource
from hashfield.tasks.sdf_config import SdfConfig
from hashfield.tasks.shared import (
    CPU,
    stored,
    stored_background,
    stored_cameras,
    stored_info,
)
from hashfield.train.checkpoint import OpenCheckpoint, config_from_dict, open_checkpoint

NORMAL_REACH = 1 / 512
"""Half the distance over which pictures' normals are differences, as a share of the box."""


class SdfModel(CameraFrames, nn.Module):
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
        spaces: Spaces of the mesh.
        box: Unit space, lowest and highest corner: where the field was trained, with the whole surface inside.
        cameras: World, by name.
        background: Colour behind the surface.
        precision: Number type of rendering, as SdfConfig describes it.
        info: Names and figures, free-form.
        """
        super().__init__()
        self.field = frozen_view(field)
        self.spaces = spaces
        self.register_buffer("box", box)
        self.register_buffer("table_bf16", table_of(field.encoding).detach().to(torch.bfloat16))
        self.cameras = {name: list(views) for name, views in (cameras or {}).items()}
        self.background = background
        self.precision: RunPrecision = precision
        self.info = info or {}

    @property
    def box_world(self) -> Float64[Tensor, "2 3"]:
        """Lowest and highest corner of the box in the world."""
        corners = self.spaces.unit_to_world(self.box.cpu())
        return torch.stack([corners.amin(0), corners.amax(0)])

    def within(self, corners: Corners) -> "SdfModel":
        """A view of the distance in which only what lies in a box of the world is seen: see `frames.HasBox`. The
        surface is cut open there, and the cut is closed."""
        wanted = self.spaces.world_to_unit(torch.tensor(corners, dtype=torch.float64))
        return with_buffers(self, box=common_box(self.box, wanted.to(self.box)))

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

    def surface(
        self, *, resolution: int, box: Box | None = None, level: float | None = None, source: SurfaceSource = "auto"
    ) -> Surface:
        """What a mesh of the surface needs, see `hashfield.tasks.mesh`.

        Args:
            resolution: Cells along the longest side of the box.
            box: Where to look, in world units; None: all that the model holds.
            level: Signed distance in world units at the surface; None: 0.
            source: "auto": a distance has one surface.

        Raises:
            ConfigError: the box lies outside the model, the level is not a finite number, or another source is named.
        """
        if source != "auto":
            raise ConfigError(f"surface: a signed distance has one of its own, not one of {source}")
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
            outputs: Some of "color" (shaded, with soft shadow), "opacity", "depth", "normals".
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
            # A ray that begins inside the body meets the face of the box that cuts it open.
            is_cut = (t <= rays.t_min)[is_hit] & (rays.t_min > 0)[is_hit]
            normal[is_cut] = face_normals(point[is_cut], box)
            color = torch.zeros_like(point)
            if "color" in outputs:
                start = point + SHADOW_START * normal
                towards = light.expand_as(point).contiguous()
                _, leaves = ray_box(start, towards, box[0], box[1])
                starts = torch.full_like(leaves, SHADOW_START)
                share = soft_shadow(distance, Rays(start, towards, starts, leaves))
                color = shade(normal, view, towards, share)

            def scatter_to_hits(values: Tensor, is_hit: Tensor = is_hit) -> Tensor:
                return values.new_zeros(len(is_hit), *values.shape[1:]).index_put((is_hit,), values)

            parts["opacity"].append(is_hit.float())
            parts["depth"].append(scatter_to_hits(t[is_hit]))
            parts["normals"].append(scatter_to_hits(normal))
            parts["color"].append(scatter_to_hits(color))
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


def face_normals(points: Float[Tensor, "n 3"], box: Float[Tensor, "2 3"]) -> Float[Tensor, "n 3"]:
    """Outward normals of the faces of a box on which points lie."""
    face = torch.cat([points - box[0], box[1] - points], 1).abs().argmin(1)
    axes = torch.eye(3, dtype=points.dtype, device=points.device)
    return torch.cat([-axes, axes])[face]


def load_model(source: Path | OpenCheckpoint, device: torch.device = CPU) -> SdfModel:
    """The model in a checkpoint, exported or not, on a device.

    Args:
        source: The checkpoint, opened or not.
        device: Where the model answers.

    Raises:
        CheckpointError: the file is missing, broken or does not describe a signed distance; the text names what.
    """
    checkpoint = open_checkpoint(source)
    path, metadata = checkpoint.path, checkpoint.of_task("sdf")
    config = config_from_dict(SdfConfig, metadata.get("config"), f"{path}: config")
    try:
        spaces = Spaces.from_dict(stored(metadata, "spaces", dict, path))
        cameras, background = stored_cameras(metadata, path), stored_background(metadata, path)
        expected = expected_shapes(config)
    except CheckpointError:
        raise
    except HashfieldError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors = checkpoint.tensors(expected)
    field = config.make_field()
    restore_module(field, tensors, path)
    box = tensors["box"].double()
    if not bool(((box >= 0) & (box <= 1)).all() and (box[0] < box[1]).all()):
        raise CheckpointError(f"{path}: tensor 'box': expected two corners of a box in [0, 1], got {box.tolist()}")
    return SdfModel(
        field.to(device), spaces, box.to(device), cameras=cameras, background=background, precision=config.precision,
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

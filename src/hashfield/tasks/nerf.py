"""Radiance fields from posed photos: the training task. It says what is learned, `hashfield.steps` how a step runs.

Its configuration is `nerf_config`, what comes out of it `nerf_model`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from hashfield.data.dataset import PosedImages, Scene
from hashfield.errors import ConfigError
from hashfield.geometry.cameras import camera_table
from hashfield.geometry.focus import distances_to_focus
from hashfield.geometry.rays import PixelPool
from hashfield.nn.fields import RadianceField
from hashfield.ops.occupancy_update import carve, silhouettes
from hashfield.steps.choice import ray_steps
from hashfield.steps.occupancy import Upkeep
from hashfield.steps.pixel_source import flat_masks, masked_pool, pixel_pool
from hashfield.steps.protocol import StepResult
from hashfield.steps.recipes import RayRecipe
from hashfield.tasks.nerf_config import NerfConfig
from hashfield.tasks.nerf_model import NerfModel, expected_shapes
from hashfield.tasks.shared import CPU, check_seed, parse_background
from hashfield.train.checkpoint import config_to_dict
from hashfield.train.schedule import learning_rate_at

HORIZON = 0.8
"""Share of the median distance to the point that the cameras look at from which on nothing is near, for the loss."""


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
        device: torch.device = CPU,
    ) -> None:
        """Args:
        config: What to train and how.
        scene: Photos with cameras; only the split "train" is used.
        seed: Seed of every random choice.
        background: Colour behind the scene in evaluation and rendering; training draws random ones.
        device: Where to train.

        Raises:
            ConfigError: the background is not a colour, or the seed is negative.
        """
        self.config, self.scene, self.seed, self.device = config, scene, check_seed(seed), device
        self.background = parse_background(background)
        self.spaces = scene.spaces
        self.is_carved = config.occupancy.use_alpha and scene.has_alpha
        self.density_bias = self._density_bias()
        views: PosedImages = scene.splits["train"]
        cameras = self.spaces.camera_table_to_scene(camera_table(views.cameras))
        self.pool = pixel_pool(views.images, cameras, device)
        """Every pixel of the photos."""
        self.focus = distances_to_focus(self.pool.table)
        """How far each camera is from the point that all of them look at, scene units, if there is one."""
        self.masks = None if views.masks is None else flat_masks(views.masks, device)
        """1 where a pixel may be learned from; None: everywhere."""
        init = torch.Generator().manual_seed(seed)
        field_config = config.field_config(self.spaces.aabb_scale, self.density_bias)
        self.field = RadianceField(field_config, generator=init).to(device)
        self.steps = ray_steps(self.field, self._recipe(), config.precision, self.pool)

    def _density_bias(self) -> float:
        if self.config.density_bias is not None:
            return self.config.density_bias
        # Uncarved, a ray should get through some of the box at first, whatever its size.
        bias = 3.0 if self.is_carved else 2.0 - math.log(self.spaces.aabb_scale)
        return math.exp(bias) if self.config.density_activation == "relu" else bias

    def _recipe(self) -> RayRecipe:
        train, occupancy = self.config.train, self.config.occupancy
        nearness = train.nearness if train.nearness is not None else 0.0 if self.is_carved else 0.005
        decay = occupancy.decay if occupancy.decay is not None else 0.6 if self.is_carved else 0.95
        return RayRecipe(
            aabb_scale=self.spaces.aabb_scale,
            cone_angle=self.spaces.cone_angle,
            batch=train.batch,
            min_transmittance=train.min_transmittance,
            min_weight=train.min_weight if self.is_carved else min(train.min_weight, 1e-3),
            upkeep=Upkeep(
                decay=decay,
                full_sweeps=1 if self.is_carved else occupancy.full_sweeps,
                max_cells=occupancy.max_cells,
                most_steps=occupancy.most_steps,
            ),
            huber_delta=train.huber_delta,
            sparsity=train.sparsity,
            distortion=train.distortion if train.distortion is not None else 0.0 if self.is_carved else 0.01,
            nearness=0.0 if self.focus is None else nearness,
            horizon=1.0 if self.focus is None else HORIZON * float(self.focus.median()),
            total_variation=train.total_variation,
            l2=train.l2,
            seed=self.seed,
        )

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        pool, spaces, device = self.pool, self.spaces, self.device
        self.steps.warm_up()
        if self.steps.is_captured and device.type != "cuda":
            return  # an interpreter compiles nothing
        # One pixel of one photo for a device, none for a host: that is enough to compile.
        n = 1 if self.steps.is_captured else 0
        starts, ones = pool.starts[:1], torch.ones(1, dtype=torch.int64, device=device)
        tiny = silhouettes(pool.pixels[:1], starts, ones, ones, 1) if self.is_carved else None
        carve(pool.table[:n], starts[:n], ones[:n], ones[:n], tiny, aabb_scale=spaces.aabb_scale)
        bits = torch.zeros(spaces.n_cells // 8, dtype=torch.uint8, device=device)
        box = torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64, device=device)
        side = 64 if self.steps.is_captured else 2
        camera = self.scene.splits["train"].cameras[0].resized(side, side)
        NerfModel(self.field, spaces, bits, box, precision=self.config.precision).render(camera)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def begin(self) -> None:
        """Carve the grid and choose the pixels to draw from."""
        masks = self._silhouettes(self.config.occupancy.carve_margin_px)
        alive = self._carved(masks)
        if not bool(alive.any()):
            raise ConfigError(
                "nothing to train: no cell of the training box is seen by a camera"
                + (" inside every silhouette (wrong poses, or an empty alpha channel?)" if self.is_carved else "")
            )
        whole = [*self.spaces.box_min, *self.spaces.box_max]
        # Uncarved, nearly the whole box lives.
        box = None if self.is_carved else torch.tensor(whole, dtype=torch.float64, device=self.device)
        self.steps.draw_from(self._training_pool())
        self.steps.begin(alive, box)

    def _carved(self, masks: UInt8[Tensor, " n_pixels"] | None) -> Bool[Tensor, " n_cells"]:
        """The cells that can hold anything."""
        pool, rules, aabb_scale = self.pool, self.config.occupancy, self.spaces.aabb_scale
        photos = (pool.table, pool.starts, pool.widths, pool.heights)
        if self.is_carved or self.focus is None:
            return carve(*photos, masks, aabb_scale=aabb_scale)
        # A camera that was held closer than most has a subject that is closer than most.
        distance = self.focus.clamp(max=float(self.focus.median()))
        fewest = max(1, min(rules.fewest_views, len(pool.table) // 4))
        often = carve(*photos, None, aabb_scale=aabb_scale, fewest=fewest, near=rules.nearest * distance)
        # Behind what all look at, the background of a single photo is worth having.
        return often | carve(*photos, None, aabb_scale=aabb_scale, near=distance)

    def _silhouettes(self, margin_px: int) -> UInt8[Tensor, " n_pixels"] | None:
        pool = self.pool
        if not self.is_carved:
            return None
        inside = silhouettes(pool.pixels, pool.starts, pool.widths, pool.heights, margin_px)
        # What a mask leaves out says nothing of the scene: it carves nothing away.
        return inside if self.masks is None else torch.where(self.masks == 0, 1, inside)

    def _training_pool(self) -> PixelPool:
        """The pixels that rays are drawn from: within silhouettes, and not left out by the photos' masks."""
        pool = self.pool if self.masks is None else masked_pool(self.pool, self.masks)
        inside = self._silhouettes(self.config.occupancy.pixel_margin_px)
        if inside is None:
            return pool
        return masked_pool(pool, inside if self.masks is None else inside * self.masks)

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of rays through the whole pipeline, and the grid's refresh when it is due."""
        train = self.config.train
        rate = learning_rate_at(fraction, train.learning_rate, train.final_learning_rate, train.flat_until)
        has_total_variation = train.total_variation > 0 and fraction < train.total_variation_until
        return self.steps.step(step, rate, self.step_scale(fraction), has_total_variation=has_total_variation)

    def step_scale(self, fraction: float) -> float:
        """Length of the march's step at this point of the run."""
        train = self.config.train
        for scale, until in zip(train.step_scales, train.step_until, strict=True):
            if fraction < until:
                return scale
        return train.step_scales[-1]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        return self.steps.state()

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration.
        """
        self.steps.draw_from(self._training_pool())
        self.steps.restore(tensors, values)

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
                "folder": None if self.scene.folder is None else str(self.scene.folder),
                "reading": dict(self.scene.reading),
                "photos": {split: list(views.names) for split, views in self.scene.splits.items()},
            },
        }

    def model(self) -> NerfModel:
        """The field as it is now, for evaluation and rendering. Shares memory with the task."""
        grid, box = self.steps.grid, self.steps.box
        assert grid is not None and box is not None, "begin() or restore() comes first"
        return NerfModel(
            self.field, self.spaces, grid.bits, box,
            cameras={split: views.cameras for split, views in self.scene.splits.items()},
            background=self.background, step_scale=self.config.train.step_scales[-1],
            precision=self.config.precision, info={"scene": {"name": self.scene.name, "path": str(self.scene.path)}},
        )  # fmt: skip


def gpu_memory(config: NerfConfig, scene: Scene) -> int:
    """Bytes of GPU memory that a run takes, nearly."""
    from hashfield.steps.memory import rays_memory

    field = config.field_config(scene.spaces.aabb_scale, 0.0)
    shapes = expected_shapes(field, scene.spaces).items()
    n_weights = sum(math.prod(shape) for name, shape in shapes if "_network." in name)
    n_pixels = sum(camera.width * camera.height for camera in scene.splits["train"].cameras)
    n_cells = scene.spaces.n_cells
    return rays_memory(field.encoding.layout(3), n_weights, config.train.batch, n_pixels, n_cells)

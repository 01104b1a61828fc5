"""Radiance fields from posed photos: the training task. It says what is learned, `hashfield.steps` how a step runs.

Its configuration is `nerf_config`, what comes out of it `nerf_model`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from hashfield.data.dataset import PosedImages, Scene
from hashfield.errors import ConfigError
from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.focus import distances_to_focus
from hashfield.geometry.rays import PixelPool
from hashfield.nn.encodings import GridEncoding
from hashfield.nn.fields import RadianceField
from hashfield.ops.occupancy_update import carve, silhouettes
from hashfield.steps.choice import ray_steps
from hashfield.steps.depth_teacher import DepthOfPhoto, DepthTeacher
from hashfield.steps.occupancy import Upkeep
from hashfield.steps.pixel_source import flat_masks, masked_pool, pixel_pool
from hashfield.steps.protocol import StepResult
from hashfield.steps.ranks import current
from hashfield.steps.recipes import RayRecipe, update_parts
from hashfield.steps.refinement import Part, Refinement
from hashfield.steps.streamed_pool import StreamedPool, overview
from hashfield.tasks.nerf_config import LONGEST_INTERVAL, NerfConfig
from hashfield.tasks.nerf_model import NerfModel, expected_shapes
from hashfield.tasks.shared import CPU, check_seed, fingerprint_of, parse_background
from hashfield.train.checkpoint import config_to_dict
from hashfield.train.schedule import learning_rate_at

HORIZON = 0.8
"""Share of the median distance to the point that the cameras look at from which on nothing is near, for the loss."""

DEPTH_TOLERANCE = 0.01
"""Relative error of depth maps and points that is not held against a ray: as long as the march's steps at first."""

FEWEST_EXPOSURES = 32
"""Photos from which on each one's exposure is learned unasked: enough to leave to the scene what changes smoothly with
where they were taken from, see `hashfield.steps.correction_units.smooth_ways`."""

RESIDENT_BYTES = 2**30
"""Bytes of photos in memory at a time, where they lie in files and nothing says how many."""

MARGIN_OF_ERROR = 0.025
"""Share of a picture's longer side by which silhouettes are grown where poses or lenses are refined: as much as half a
degree, a hundredth of the distance and three of a hundred of the focal length move a pixel near the border, if they do
so in directions that have nothing to do with each other."""


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
            ConfigError: the background is not a colour, the seed is negative, or photos are to be refined where that
                is not possible.
        """
        self.scene, self.seed, self.device = scene, check_seed(seed), device
        self.background = parse_background(background)
        self.spaces = scene.spaces
        self.is_carved = config.occupancy.use_alpha and scene.has_alpha
        config = replace(config, refine=self._refined_parts(config))
        self.config = config
        """What is trained and how; what is refined is named."""
        self.density_bias = self._density_bias()
        views: PosedImages = scene.splits["train"]
        cameras = self.spaces.camera_table_to_scene(camera_table(views.cameras))
        self.streamed: StreamedPool | None = None
        """Where rays are drawn from if the photos are not in memory."""
        self.shrunk = 1
        """By what the sides of the photos in `pool` are divided."""
        if views.files is None:
            self.pool = pixel_pool(views.images, cameras, device)
            """Every pixel of the photos; where they are not in memory, what carving needs of them."""
            self.masks = None if views.masks is None else flat_masks(views.masks, device)
            """1 where a pixel may be learned from; None: everywhere."""
        else:
            self.streamed, self.masks = self._stream(views, cameras), None
        self.focus = distances_to_focus(self.pool.table)
        """How far each camera is from the point that all of them look at, scene units, if there is one."""
        init = torch.Generator().manual_seed(seed)
        field_config = config.field_config(self.spaces.aabb_scale, self.density_bias)
        self.field = RadianceField(field_config, generator=init).to(device)
        self.refinement = (
            Refinement(config.refine, views.cameras, self.spaces, config.refinement, device) if config.refine else None
        )
        """What is learned of the photos besides; None: nothing."""
        self.depth_note: str | None = None
        """Why what is known of depth is not learned from, or at what price, for the user."""
        self.teacher = self._teacher(views)
        """What is known of depth; None: nothing, or it is not learned from."""
        self.depth_print = None if self.teacher is None else fingerprint_of(*self.teacher.known())
        """A number that tells what is known of depth from other knowledge."""
        pool = self.pool if self.streamed is None else self.streamed.pool(device)
        self.steps = ray_steps(self.field, self._recipe(), config.precision, pool, self.refinement, self.teacher)

    def _refined_parts(self, config: NerfConfig) -> tuple[Part, ...]:
        """What is learned of the photos besides the scene.

        Photos whose light differs make sheets in front of their cameras, which then are as bright as each photo likes;
        where few photos were taken, a gain could as well be how surfaces shine.

        Raises:
            ConfigError: what is asked for could not be told from photo to photo, or from rank to rank.
        """
        views = self.scene.splits["train"]
        if config.refine is None:
            is_possible = self.device.type == "cpu" and current().n == 1 and views.files is None
            return ("exposure",) if is_possible and not self.is_carved and len(views) >= FEWEST_EXPOSURES else ()
        if not config.refine:
            return ()
        if self.scene.splits["train"].files is not None:
            raise ConfigError("--refine needs the photos in memory: give more --max-image-memory, or a --downscale")
        if current().n > 1:
            raise ConfigError("--refine works in one process only: leave it out, or train without torchrun")
        return config.refine

    def _teacher(self, views: PosedImages) -> DepthTeacher | None:
        """What the scene knows of depth, in scene units; sets `depth_note`."""
        sources = self.config.train.depth_sources
        if views.depths is None or not sources:
            return None
        if current().n > 1 or views.files is not None:
            why = "several ranks train" if current().n > 1 else "photos are trained on from files"
            self.depth_note = f"what is known of depth is not learned from where {why}"
            return None
        if self.device.type == "cuda":
            self.depth_note = "learning from depth: steps are taken one by one on this GPU, not as a graph: slower"
        scale, none = float(self.spaces.distance_world_to_scene(1.0)), slice(None if "points" in sources else 0)
        known = [
            DepthOfPhoto(
                one.z if "files" in sources else None, one.scale * scale, one.pixels[none], one.distance[none] * scale
            )
            for one in views.depths
        ]  # fmt: skip
        return DepthTeacher(known, self.pool)

    def _stream(self, views: PosedImages, cameras: Tensor) -> StreamedPool:
        """The pool of photos that lie in files; sets `pool` and `shrunk`."""
        assert views.files is not None
        sizes = [(camera.width, camera.height) for camera in views.cameras]
        n_bytes = self.scene.resident_bytes or RESIDENT_BYTES
        # an overview takes little beside the strips, and carving needs no more
        room = n_bytes // 8 if self.is_carved else None
        whole, self.shrunk = overview(views.files, sizes, cameras, n_bytes=room, masks=views.masks)
        self.pool = whole.to(self.device)
        margin = self.config.occupancy.pixel_margin_px if self.is_carved else None
        return StreamedPool(
            views.files, sizes, cameras, n_bytes, seed=self.seed, masks=views.masks, margin_px=margin,
            rank=current().rank, n_ranks=current().n,
        )  # fmt: skip

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
        encoding = self.field.encoding
        entries = encoding.layout.entries.tolist() if isinstance(encoding, GridEncoding) else []
        return RayRecipe(
            aabb_scale=self.spaces.aabb_scale,
            cone_angle=self.spaces.cone_angle,
            batch=train.batch,
            min_transmittance=train.min_transmittance,
            min_weight=train.min_weight if self.is_carved else min(train.min_weight, 1e-3),
            upkeep=Upkeep(
                decay=decay,
                full_sweeps=occupancy.full_sweeps,
                max_cells=occupancy.max_cells,
                most_steps=occupancy.most_steps,
            ),
            huber_delta=train.huber_delta,
            sparsity=train.sparsity,
            distortion=train.distortion if train.distortion is not None else 0.0 if self.is_carved else 0.02,
            nearness=0.0 if self.focus is None else nearness,
            horizon=1.0 if self.focus is None else HORIZON * float(self.focus.median()),
            tolerance=DEPTH_TOLERANCE if self.teacher is not None else 0.0,
            total_variation=train.total_variation,
            l2=train.l2,
            parts=update_parts(entries, 8 * train.batch, train.touches_per_update, LONGEST_INTERVAL),
            seed=self.seed,
            own_pixels=self.streamed.n_drawable if self.streamed is not None and current().n > 1 else 0,
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
        masks = self._silhouettes(self.config.occupancy.carve_margin_px + self._margin_of_error())
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
        if fewest == 1:
            return often
        # Behind what all look at, the background of a single photo is worth having.
        return often | carve(*photos, None, aabb_scale=aabb_scale, near=distance)

    def _silhouettes(self, margin_px: int) -> UInt8[Tensor, " n_pixels"] | None:
        pool = self.pool
        if not self.is_carved:
            return None
        margin_px = -(-margin_px // self.shrunk)
        inside = silhouettes(pool.pixels, pool.starts, pool.widths, pool.heights, margin_px)
        # What a mask leaves out says nothing of the scene: it carves nothing away.
        return inside if self.masks is None else torch.where(self.masks == 0, 1, inside)

    def _margin_of_error(self) -> int:
        """Pixels by which silhouettes may be off where the cameras are to be corrected: they must not carve then."""
        if self.refinement is None or not self.refinement.moves_rays:
            return 0
        return math.ceil(MARGIN_OF_ERROR * int(torch.maximum(self.pool.widths, self.pool.heights).max()))

    def _training_pool(self) -> PixelPool:
        """The pixels that rays are drawn from: within silhouettes, and not left out by the photos' masks."""
        if self.streamed is not None:
            return self.streamed.pool(self.device)
        pool = self.pool if self.masks is None else masked_pool(self.pool, self.masks)
        inside = self._silhouettes(self.config.occupancy.pixel_margin_px + self._margin_of_error())
        if inside is None:
            return pool
        return masked_pool(pool, inside if self.masks is None else inside * self.masks)

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of rays through the whole pipeline, and the grid's refresh when it is due."""
        train = self.config.train
        rate = learning_rate_at(fraction, train.learning_rate, train.final_learning_rate, train.flat_until)
        if self.refinement is not None:
            self.refinement.fraction = fraction
        if self.teacher is not None:
            self.teacher.weight = train.depth_weight(fraction)
        has_total_variation = train.total_variation > 0 and fraction < train.total_variation_until
        result = self.steps.step(step, rate, self.step_scale(fraction), has_total_variation=has_total_variation)
        # On a device the number of rays is not known here, and the pool stays what it is.
        if self.streamed is not None and not isinstance(result.n_rays, Tensor):
            own = int(result.n_rays) // current().n  # of the rays of all ranks
            if self.streamed.advance(own):
                self.steps.draw_from(self.streamed.pool(self.device))
        return result

    def step_scale(self, fraction: float) -> float:
        """Length of the march's step at this point of the run."""
        train = self.config.train
        for scale, until in zip(train.step_scales, train.step_until, strict=True):
            if fraction < until:
                return scale
        return train.step_scales[-1]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        tensors, values = self.steps.state()
        return tensors, values if self.streamed is None else {**values, "strips": self.streamed.state()}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration.
        """
        if self.streamed is not None and "strips" in values:  # a run that began with all photos in memory has none
            self.streamed.restore(values["strips"])
        self.steps.draw_from(self._training_pool())
        self.steps.restore(tensors, values)

    def fingerprint(self) -> int:
        """A number that tells this task's data from others."""
        pool, known = self.pool, () if self.teacher is None else self.teacher.known()
        masks = () if self.masks is None else (self.masks,)
        return fingerprint_of(pool.pixels, pool.widths, pool.table, *masks, *known)

    def describe(self) -> dict[str, Any]:
        """What makes the checkpoint stand alone."""
        return {
            "config": config_to_dict(self.config),
            "spaces": self.spaces.to_dict(),
            "density_bias": self.density_bias,
            "background": list(self.background),
            "step_scale": self.config.train.step_scales[-1],
            "seed": self.seed,
            "cameras": {split: [camera.to_dict() for camera in views] for split, views in self.cameras().items()},
            **({} if self.refinement is None else {"refinement": self.refinement.report()}),
            "scene": {
                "name": self.scene.name,
                "path": str(self.scene.path),
                "has_alpha": self.scene.has_alpha,
                "camera_axes": self.scene.camera_axes,
                "folder": None if self.scene.folder is None else str(self.scene.folder),
                "reading": dict(self.scene.reading),
                "unit": self.scene.unit,
                "depth": self.depth_print,
                "photos": {split: list(views.names) for split, views in self.scene.splits.items()},
            },
        }

    def cameras(self) -> dict[str, list[Camera]]:
        """The cameras by split as they are known now: the training photos' as refined, and others carried along with
        them (`Refinement.carried`). Those of the scene where nothing is refined."""
        splits, refinement = self.scene.splits, self.refinement
        if refinement is None:
            return {split: list(views.cameras) for split, views in splits.items()}
        return {
            split: refinement.refined_cameras() if split == "train" else [*map(refinement.carried, views.cameras)]
            for split, views in splits.items()
        }

    def _info(self) -> dict[str, Any]:
        scene = {"scene": {"name": self.scene.name, "path": str(self.scene.path), "unit": self.scene.unit}}
        return scene if self.refinement is None else {**scene, "refinement": self.refinement.report()}

    def model(self) -> NerfModel:
        """The field as it is now, for evaluation and rendering. Shares memory with the task."""
        grid, box = self.steps.grid, self.steps.box
        assert grid is not None and box is not None, "begin() or restore() comes first"
        return NerfModel(
            self.field, self.spaces, grid.bits, box,
            cameras=self.cameras(),
            background=self.background, step_scale=self.config.train.step_scales[-1],
            precision=self.config.precision, info=self._info(),
        )  # fmt: skip


def gpu_memory(config: NerfConfig, scene: Scene) -> int:
    """Bytes of GPU memory that a run takes, nearly."""
    from hashfield.steps.memory import rays_memory

    field = config.field_config(scene.spaces.aabb_scale, 0.0)
    shapes = expected_shapes(field, scene.spaces).items()
    n_weights = sum(math.prod(shape) for name, shape in shapes if "_network." in name)
    n_pixels = sum(camera.width * camera.height for camera in scene.splits["train"].cameras)
    if scene.splits["train"].files is not None:
        n_pixels = min(n_pixels, (scene.resident_bytes or RESIDENT_BYTES) // 4)
    n_cells = scene.spaces.n_cells
    return rays_memory(field.encoding.layout(3), n_weights, config.train.batch, n_pixels, n_cells)

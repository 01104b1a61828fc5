"""Radiance fields from posed photos: the training task. Reads top to bottom.

One step: pixels -> rays -> march -> encode -> networks -> composite -> loss -> gradients -> Adam -> occupancy.
Its configuration is `nerf_config`, what comes out of it `nerf_model`.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hashfield.data.dataset import PosedImages, Scene
from hashfield.data.pixel_sampler import PixelSampler
from hashfield.errors import CheckpointError, ConfigError
from hashfield.geometry.cameras import camera_table
from hashfield.log import logger
from hashfield.nn.encodings import GridEncoding, table_of
from hashfield.nn.fields import RadianceField
from hashfield.ops.backend import runs_on_triton
from hashfield.ops.eval_points import network_precision
from hashfield.ops.occupancy_update import carve, silhouettes
from hashfield.ops.render_rays import FieldParameters, MarchOptions
from hashfield.ops.total_variation import cube_sides, total_variation
from hashfield.ops.train_rays import TrainRaysResult, TrainWorkspace, train_rays
from hashfield.render.occupancy import OccupancyGrid
from hashfield.tasks.nerf_config import NerfConfig
from hashfield.tasks.nerf_model import NerfModel, expected_shapes, field_parameters
from hashfield.tasks.shared import CPU, check_seed, parse_background, restore_trained, trained_state, warn_of_other_bits
from hashfield.train.checkpoint import config_to_dict, generator_state, restore_generator
from hashfield.train.optim import TableOptimizer, learning_rate_at
from hashfield.train.task import StepResult

if TYPE_CHECKING:  # needs triton
    from hashfield.train.on_device import DeviceOptimizer, DeviceTraining

LONGEST_RAYS = 2**14
"""Samples for which a thread has room, however small the batch: a handful of the longest rays fit at once."""


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
        seed: Of every random choice.
        background: Colour behind the scene in evaluation and rendering; training draws random ones.
        device: Where to train.

        Raises:
            ConfigError: the background is not a colour, or the seed is negative.
        """
        self.config, self.scene, self.seed, self.device = config, scene, check_seed(seed), device
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
                self.parameters(), max(2 * config.train.batch, LONGEST_RAYS * torch.get_num_threads())
            )
        seeds = np.random.SeedSequence(seed).spawn(3)
        self.random = {
            name: np.random.Generator(np.random.SFC64(s))
            for name, s in zip(("pixels", "rays", "occupancy"), seeds, strict=True)
        }
        self.n_rays = max(16, config.train.batch // 64)
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
            batch_samples=train.batch, l2=train.l2,
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
        wanted = result.n_rays * config.batch / max(result.n_kept, 1)
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
        tensors, values = trained_state(self.field, self.optimizer, self.parameters().precision)
        tensors |= {"occupancy.values": self.grid.values, "bits": self.grid.bits, "box": self.box}
        if self.on_device is not None:
            self.n_rays = int(self.on_device.n_rays)
        if self.on_device is not None or self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        values |= {
            "n_rays": self.n_rays,
            "next_refresh": self.next_refresh,
            "n_refreshes": self.n_refreshes,
            "samples_per_ray": 64.0 if self.workspace is None else self.workspace.samples_per_ray,
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
        restore_trained(self.field, self.optimizer, tensors, values)
        for name in ("occupancy.values", "bits", "box"):
            if name not in tensors:
                raise CheckpointError(f"checkpoint: tensor {name!r} is missing")
        n_cells = self.spaces.n_cascades * 128**3
        if tensors["occupancy.values"].shape != (n_cells,) or tensors["bits"].shape != (n_cells // 8,):
            raise CheckpointError("checkpoint: the occupancy grid has another size than this scene's")
        try:
            self.n_rays = int(values["n_rays"])
            self.next_refresh = int(values["next_refresh"])
            self.n_refreshes = int(values["n_refreshes"])
            if self.workspace is not None:
                self.workspace.samples_per_ray = float(values["samples_per_ray"])
            for name, generator in self.random.items():
                restore_generator(generator, values["random"][name], f"checkpoint: random.{name}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        is_moved = (self.on_device is not None) != ("device_random" in values)
        if is_moved:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        follows_threads = self.on_device is None and not is_moved
        warn_of_other_bits(values, self.parameters().precision, follows_threads=follows_threads)
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


def gpu_memory(config: NerfConfig, scene: Scene) -> int:
    """Bytes of GPU memory that a run takes, nearly."""
    from hashfield.train.on_device import n_bytes_of

    field = config.field_config(scene.spaces.aabb_scale, 0.0)
    shapes = expected_shapes(field, scene.spaces).items()
    n_weights = sum(math.prod(shape) for name, shape in shapes if "_network." in name)
    n_pixels = sum(camera.width * camera.height for camera in scene.splits["train"].cameras)
    n_cells = scene.spaces.n_cascades * 128**3
    return n_bytes_of(field.encoding.layout(3), n_weights, config.train.batch, n_pixels, n_cells)

"""How a radiance field is built and trained: its configuration and the presets."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hashfield.errors import ConfigError
from hashfield.nn.config import EncodingConfig, MLPConfig, RadianceFieldConfig, RunPrecision
from hashfield.steps.choice import captures_rays
from hashfield.steps.refinement import Part, RefineOptions, check_parts
from hashfield.tasks.config import (
    RateConfig,
    check_batch,
    check_n_layers,
    check_n_neurons,
    check_per_level_scale,
    check_precision,
)

LONGEST_INTERVAL = 2
"""Steps between two updates of a level, at most: with four, fox loses 0.3 dB."""


@dataclass(frozen=True)
class NerfTrainConfig(RateConfig):
    """How a radiance field is trained. Every schedule is a fraction of the planned run."""

    batch: int = 2**16
    """Samples trained on in a step; the number of rays adapts to it."""
    learning_rate: float = 2e-2
    final_learning_rate: float = 5e-4
    flat_until: float = 0.4
    touches_per_update: float = 2.0
    """A level is updated once the batches since have touched its entries this often on average, or after
    `LONGEST_INTERVAL` steps; 0 updates every level at every step."""
    huber_delta: float = 0.0
    """Delta of instant-ngp's Huber loss (0.1 in the paper preset); 0 takes the squared error."""
    sparsity: float = 0.0
    """Weight of the entropy of a ray's sample weights in the loss, which is the squared error summed over channels.
    HashNeRF's 1e-10 is 3e-7 here."""
    distortion: float | None = None
    """Weight of the spread of a ray's sample weights over the logarithm of distance, mip-NeRF 360's distortion loss in
    essence; default: 0 in carved scenes, 0.02 in others, where it turns fog into surfaces."""
    nearness: float | None = None
    """Weight of a loss on what lies nearer to a camera than 0.8 of the distance at which the cameras look at a common
    point; it grows as the logarithm of how much nearer. Of two places that explain the photos alike, the farther one is
    then taken. Default: 0 in carved scenes, 0.005 in others; without a common point there is no such loss."""
    depth: float | None = None
    """Weight of a loss on what is known of depth, from depth maps that the data name and points of structure from
    motion: how far, by the logarithm of distance, a ray's weights lie from where something is known to be. It fades to
    0 on the way to depth_until. 0: no depth is read. Default: 0.1 for depth maps, and points are left out."""
    depth_until: float = 0.5
    """Fraction of the run at which the loss on known depth has faded to nothing."""
    total_variation: float = 0.0
    """Weight of the grid's total variation in random cubes of vertices; HashNeRF's 1e-6 is 3e-6 here."""
    total_variation_until: float = 0.02
    """Fraction of the run at which the loss on total variation ends: HashNeRF's 1,000 steps of 50,000."""
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
        super().__post_init__()
        check_batch(self.batch)
        if not 0 <= self.touches_per_update <= 100:
            raise ConfigError(f"touches_per_update: expected 0 to 100, got {self.touches_per_update}")
        if not 0 <= self.total_variation_until <= 1:
            raise ConfigError(f"total_variation_until: expected a fraction, got {self.total_variation_until}")
        for name in ("sparsity", "total_variation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        if not 0 < self.depth_until <= 1:
            raise ConfigError(f"depth_until: expected a fraction above 0, got {self.depth_until}")
        for name in ("distortion", "nearness", "depth"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name}: expected a finite number of at least 0, got {value}")
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

    @property
    def depth_sources(self) -> tuple[Literal["files", "points"], ...]:
        """What is read of depth; see `hashfield.data.ReadOptions`."""
        return ("files",) if self.depth is None else ("files", "points") if self.depth > 0 else ()

    def depth_weight(self, fraction: float) -> float:
        """The weight of what is known of depth at this point of the run."""
        whole = DEPTH_WEIGHT if self.depth is None else self.depth
        return whole * max(0.0, 1.0 - fraction / self.depth_until)


DEPTH_WEIGHT = 0.1
"""Weight of what depth maps know, where nothing else is asked for."""


@dataclass(frozen=True)
class OccupancyConfig:
    """How the occupancy grid is kept. Values of None depend on whether the scene could be carved."""

    use_alpha: bool = True
    """Carve the grid from the photos' alpha, where they have any, before the first step."""
    fewest_views: int = 1
    """Without alpha, where the cameras look at a common point: training cameras that must see a cell for it to hold
    anything, but never more than a quarter of them, if it is nearer to one of them than that point. More than 1 keeps
    out what few cameras can make up, but leaves holes where few photos look; the losses on depth do the first without
    the second."""
    nearest: float = 0.25
    """Without alpha, where the cameras look at a common point: cells that are nearer to a camera than this share of the
    median distance to that point hold nothing. 0: no such rule."""
    carve_margin_px: int = 9
    """Silhouettes are grown by this before carving: about half a cell's projected diagonal at 800 px."""
    pixel_margin_px: int = 14
    """Rays are drawn within silhouettes grown by this; pixels farther out practically never meet anything."""
    decay: float | None = None
    """What a cell's old value is multiplied by at each refresh; default: 0.6 in carved scenes, 0.95 in others."""
    most_steps: int = 32
    """Steps between refreshes, at most; an eighth of the steps so far, at least 4, is taken if that is less."""
    full_sweeps: int = 1
    """Refreshes that ask every living cell, at the start of the run. Each costs as much as dozens of steps where the
    box is large, and tells little so early."""
    max_cells: int = 2**19
    """Cells asked by later refreshes of a grid that has more living cells than this. With fewer, cells that hold
    something fade before they are asked again."""

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 < self.decay < 1:
            raise ConfigError(f"decay: expected a number in (0, 1), got {self.decay}")
        if not 0 <= self.nearest < 1:
            raise ConfigError(f"nearest: expected a number in [0, 1), got {self.nearest}")
        for name in ("fewest_views", "carve_margin_px", "pixel_margin_px", "full_sweeps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("most_steps", "max_cells"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class NerfConfig:
    """Everything that decides how a scene becomes a model."""

    preset: str = "default"
    """Where the other values start from: fast, default, quality, paper, hashnerf, gpu-fast, gpu or gpu-quality.
    Default: chosen from the run's length and the device."""
    encoding: EncodingConfig = EncodingConfig()
    """Encoding of positions; its per_level_scale is not set but follows from finest_resolution."""
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
    """Whether the density network's first output also feeds the colour network, as in instant-ngp; not in HashNeRF."""
    precision: RunPrecision = "auto"
    """Number type of lookups and networks; sums and parameters are float32 always. auto means float16 on GPUs, and on
    CPUs bfloat16 lookups and, where the CPU has instructions for it, bfloat16 networks. float16 means auto where there
    is no GPU."""
    train: NerfTrainConfig = NerfTrainConfig()
    """Batches, loss and schedules."""
    occupancy: OccupancyConfig = OccupancyConfig()
    """How empty space is skipped."""
    refine: tuple[Part, ...] | None = None
    """What is learned of the photos besides the scene: poses (turn and shift of each), lens (focal length, principal
    point and first distortion terms, shared), exposure (a gain of each photo and channel). Default: exposure, where the
    scene is not carved from silhouettes, at least 32 photos are in memory, and one process trains on a CPU; else
    nothing. Named alone: nothing."""
    refinement: RefineOptions = RefineOptions()
    """How fast poses, lens and exposure are learned, and when."""

    def __post_init__(self) -> None:
        check_parts(self.refine or ())
        object.__setattr__(self, "encoding", EncodingConfig.of(self.encoding))  # a GridConfig will do
        check_precision(self.precision)
        check_n_neurons(self.n_neurons)
        for name in ("density_layers", "color_layers"):
            check_n_layers(name, getattr(self, name), 0, 16)
        if self.density_activation not in ("exp", "relu"):
            raise ConfigError(f"density_activation: expected exp or relu, got {self.density_activation!r}")
        if not self.is_fused and self.precision == "bfloat16":
            raise ConfigError("precision: bfloat16 needs a linear grid, one density layer and two colour layers")
        if self.train.total_variation > 0 and self.encoding.otype != "Grid":
            raise ConfigError(f"total_variation: needs a grid, the encoding is {self.encoding.otype}")
        check_per_level_scale(self.encoding)
        if self.finest_resolution < self.encoding.base_resolution:
            raise ConfigError(f"finest_resolution: expected at least base_resolution, got {self.finest_resolution}")

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels take such a field."""
        return self.field_config(1, 0.0).is_fused

    @property
    def trains_on_device(self) -> bool:
        """Whether GPUs train such a field without waiting: what the fused kernels take, no further loss, and nothing
        refined."""
        train = self.train
        return not self.refine and captures_rays(
            self.field_config(1, 0.0), sparsity=train.sparsity, total_variation=train.total_variation
        )  # fmt: skip

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


def _preset(name: str, log2_hashmap_size: int, batch: int, **changes: Any) -> NerfConfig:
    return NerfConfig(
        preset=name,
        encoding=EncodingConfig(log2_hashmap_size=log2_hashmap_size),
        train=NerfTrainConfig(batch=batch, **changes),
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
        refine=(),
        encoding=EncodingConfig(n_levels=16, n_features_per_level=2, log2_hashmap_size=19),
        train=NerfTrainConfig(
            batch=2**16,
            touches_per_update=0.0,
            huber_delta=0.1,
            distortion=0.0,
            nearness=0.0,
            depth=0.0,
            min_transmittance=1e-4,
            min_weight=0.0,
        ),
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
        refine=(),
        train=NerfTrainConfig(
            batch=2**15,
            touches_per_update=0.0,
            final_learning_rate=1e-3,
            sparsity=3e-7,
            distortion=0.0,
            nearness=0.0,
            depth=0.0,
            total_variation=3e-6,
        ),
    ),
    # For GPUs, where a step costs little and faint samples are affordable: a few seconds, and more. Every level is
    # updated at every step, as in all that was measured on one.
    "gpu-fast": _preset("gpu-fast", 19, 2**16, touches_per_update=0.0),
    "gpu": _preset(
        "gpu",
        19,
        2**18,
        touches_per_update=0.0,
        step_until=(0.05, 0.15, 0.3, 1.0),
        min_transmittance=1e-3,
        min_weight=5e-4,
    ),
    # From half a minute on: tens of thousands of steps outgrow a table of 2^19 entries a level. Reasoned, not measured.
    "gpu-quality": _preset(
        "gpu-quality",
        21,
        2**18,
        touches_per_update=0.0,
        step_until=(0.03, 0.1, 0.2, 1.0),
        min_transmittance=1e-4,
        min_weight=1e-4,
    ),
}


def preset_for(max_seconds: float | None, n_steps: int | None, on_gpu: bool = False) -> str:
    """The preset that suits a length of training, where the user names none.

    Args:
        max_seconds: Length of the training by the clock, or None.
        n_steps: Its length in steps, or None. Without either, the short preset is taken.
        on_gpu: Whether it runs on a GPU.
    """
    if on_gpu:
        if max_seconds is not None:
            return "gpu-fast" if max_seconds < 4 else "gpu" if max_seconds < 30 else "gpu-quality"
        return "gpu-fast" if n_steps is None or n_steps <= 2000 else "gpu" if n_steps <= 20000 else "gpu-quality"
    if max_seconds is not None:
        return "fast" if max_seconds < 150 else "default" if max_seconds < 280 else "quality"
    return "fast" if n_steps is None or n_steps <= 3000 else "default" if n_steps <= 8000 else "quality"

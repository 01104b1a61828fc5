"""How a mesh becomes a signed distance: its configuration and the presets."""

from dataclasses import dataclass
from typing import Literal

import torch

from hashfield.errors import ConfigError
from hashfield.nn.config import EncodingConfig, MLPConfig, RunPrecision
from hashfield.nn.encodings import encoding_from_config
from hashfield.nn.networks import NetworkWithEncoding
from hashfield.tasks.config import (
    RateConfig,
    check_batch,
    check_n_layers,
    check_n_neurons,
    check_per_level_scale,
    check_precision,
)


@dataclass(frozen=True)
class SdfTrainConfig(RateConfig):
    """How a signed distance is trained. Every schedule is a fraction of the planned run."""

    batch: int = 2**16
    """Points per step."""
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-5
    flat_until: float = 0.2
    surface_share: float = 0.25
    """Share of a batch that lies on the surface."""
    near_share: float = 0.6
    """Share of a batch that lies near the surface; the rest is uniform in the box."""
    noise: float = 3.0
    """Standard deviation of the points near the surface, in 1/1024 of half the unit cube's diagonal. The paper's mix,
    0.5, 0.375 and 1, knows too little about space: in a short run its field changes sign far from the surface."""
    steps_per_chunk: int = 16
    """Steps from one fresh set of exact distances to the next; between them older sets serve again."""
    n_chunks: int = 48
    """Sets of exact distances that are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch(self.batch)
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
    """Where the other values start from: fast, default, quality, paper or gpu. Default: chosen from the run's length
    and the device."""
    encoding: EncodingConfig = EncodingConfig()
    """Encoding of positions; its per_level_scale is not set but follows from finest_resolution."""
    finest_resolution: int = 2048
    """Vertices per axis at the last level (N_max)."""
    n_neurons: int = 64
    """Neurons of the hidden layers."""
    n_hidden_layers: int = 2
    """Hidden layers."""
    precision: RunPrecision = "float32"
    """Number type of the network; unless it is float32, lookups have half as many bits too. Sums and parameters are
    float32 always. auto means float16 on GPUs, and bfloat16 on CPUs that have instructions for it. float16 means auto
    where there is no GPU. A surface needs more digits than a colour."""
    inside: Literal["auto", "normals", "winding"] = "auto"
    """What tells inside from outside: the normal of the nearest point, or a winding number above a half. auto takes
    normals where the mesh is closed and does not pass through itself."""
    train: SdfTrainConfig = SdfTrainConfig()
    """Points, rates, schedules."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", EncodingConfig.of(self.encoding))  # a GridConfig will do
        check_precision(self.precision)
        if self.inside not in ("auto", "normals", "winding"):
            raise ConfigError(f"inside: expected auto, normals or winding, got {self.inside!r}")
        check_n_neurons(self.n_neurons)
        check_n_layers("n_hidden_layers", self.n_hidden_layers, 1, 8)
        if self.encoding.otype != "Grid" and self.precision == "bfloat16":
            raise ConfigError("precision: bfloat16 needs a grid")
        check_per_level_scale(self.encoding)
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
            batch=2**18,
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
        train=SdfTrainConfig(batch=2**18, steps_per_chunk=512, n_chunks=64),
    ),
}


def preset_for(max_seconds: float | None, n_steps: int | None, on_gpu: bool = False) -> str:
    """The preset that suits a length of training, where the user names none.

    Args:
        max_seconds: Length of the training by the clock, or None.
        n_steps: Its length in steps, or None. Without either, the short preset is taken.
        on_gpu: Whether it runs on a GPU, which has one preset for all lengths.
    """
    if on_gpu:
        return "gpu"
    if max_seconds is not None:
        return "fast" if max_seconds < 150 else "default" if max_seconds < 280 else "quality"
    return "fast" if n_steps is None or n_steps <= 3000 else "default" if n_steps <= 8000 else "quality"

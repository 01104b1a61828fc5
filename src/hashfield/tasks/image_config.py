"""How a picture becomes a model: its configuration and the presets."""

import math
from dataclasses import dataclass, replace

import torch

from hashfield.errors import ConfigError
from hashfield.nn.config import EncodingConfig, MLPConfig, RunPrecision
from hashfield.nn.encodings import encoding_from_config
from hashfield.nn.networks import NetworkWithEncoding
from hashfield.ops.train_points import LOSSES, PointLoss
from hashfield.tasks.config import (
    RateConfig,
    check_batch,
    check_n_layers,
    check_n_neurons,
    check_per_level_scale,
    check_precision,
)

LONGEST_INTERVAL = 8
"""Steps between two updates of a level, at most."""


@dataclass(frozen=True)
class ImageTrainConfig(RateConfig):
    """How an image is trained. Every schedule is a fraction of the planned run."""

    batch: int = 2**16
    """Pixels in a step, about: the lattice they are drawn from has whole cells."""
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-4
    flat_until: float = 0.3
    touches_per_update: float = 0.5
    """A level is updated once the batches since have touched its entries this often on average, or after
    `LONGEST_INTERVAL` steps; 0 updates every level at every step."""
    loss: PointLoss = "l2"
    """What is minimised, of sRGB values; l2 is what PSNR measures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_batch(self.batch)
        if not 0 <= self.touches_per_update <= 100:
            raise ConfigError(f"touches_per_update: expected 0 to 100, got {self.touches_per_update}")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss: expected {', '.join(LOSSES)}, got {self.loss!r}")


@dataclass(frozen=True)
class ImageConfig:
    """Everything that decides how a picture becomes a model. What is None follows from the picture's size."""

    preset: str = "default"
    """Where the other values start from: default, small, paper or gpu. Default: chosen by the device."""
    encoding: EncodingConfig = EncodingConfig(n_levels=6, n_features_per_level=4, log2_hashmap_size=24)
    """Encoding of positions. Its log2_hashmap_size is the most that T may be; its per_level_scale follows from
    finest_resolution."""
    finest_resolution: int | None = None
    """Vertices per axis of the last level (N_max); default: `finest_per_pixel` times the longer side."""
    finest_per_pixel: float = 1.0
    """Share of the longer side in pixels that N_max is. The paper has half; a cell for every pixel follows the picture
    more closely, in up to four times the numbers."""
    least_resolution: int = 512
    """Least N_max that is chosen, unless the longer side has fewer pixels: small pictures can have a cell for every
    pixel."""
    numbers_per_pixel: float = 2.5
    """Most numbers of the table for each pixel; T is lowered until that holds, but not below `least_numbers`."""
    least_numbers: int = 2**21
    """Numbers that the table may have however small the picture is."""
    max_numbers: int = 2**25
    """Most numbers of the table however large the picture is. Each costs 18 bytes of memory in training and 2 in an
    export."""
    n_neurons: int = 32
    """Width of the hidden layers, a multiple of 16."""
    n_hidden_layers: int = 1
    """Hidden layers. On a CPU a small network, and so more steps, beats the paper's two of 64."""
    precision: RunPrecision = "auto"
    """Number type of lookups and network; sums and parameters are float32 always. auto means float16 on GPUs, and on
    CPUs bfloat16 lookups and, where the CPU has instructions for it, a bfloat16 network. float16 means auto where
    there is no GPU."""
    train: ImageTrainConfig = ImageTrainConfig()
    """Batches, loss, schedule."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", EncodingConfig.of(self.encoding))  # a GridConfig will do
        check_precision(self.precision)
        check_n_neurons(self.n_neurons)
        check_n_layers("n_hidden_layers", self.n_hidden_layers, 1, 8)
        if self.precision == "bfloat16" and self.encoding.otype != "Grid":
            raise ConfigError("precision: bfloat16 needs a grid")
        check_per_level_scale(self.encoding)
        if self.encoding.interpolation == "nearest":
            raise ConfigError("encoding.interpolation: expected linear or smoothstep, got nearest")
        finest, base = self.finest_resolution, self.encoding.base_resolution
        if finest is not None and not base <= finest <= 2**24:
            raise ConfigError(f"finest_resolution: expected base_resolution ({base}) to {2**24}, got {finest}")
        if not 0.001 <= self.finest_per_pixel <= 4:
            raise ConfigError(f"finest_per_pixel: expected 0.001 to 4, got {self.finest_per_pixel}")
        if not 0.01 <= self.numbers_per_pixel <= 1e6:
            raise ConfigError(f"numbers_per_pixel: expected 0.01 to 1e6, got {self.numbers_per_pixel}")
        for name in ("least_numbers", "max_numbers"):
            if not 2**10 <= getattr(self, name) <= 2**32:
                raise ConfigError(f"{name}: expected 2^10 to 2^32, got {getattr(self, name)}")
        if not 1 <= self.least_resolution <= 2**24:
            raise ConfigError(f"least_resolution: expected 1 to 2^24, got {self.least_resolution}")

    def fitted(self, width: int, height: int) -> "ImageConfig":
        """This configuration with N_max and T decided for a picture of this size.

        N_max follows the longer side. T is the largest power of two up to the encoding's own for which the table stays
        within its budget; levels of up to T vertices are then stored without hashing.
        """
        longer = max(width, height)
        wanted = max(math.ceil(longer * self.finest_per_pixel), min(longer, self.least_resolution))
        finest = self.finest_resolution or max(self.encoding.base_resolution, wanted)
        budget = min(self.max_numbers, max(self.least_numbers, self.numbers_per_pixel * width * height))
        log2_t = self.encoding.log2_hashmap_size
        while log2_t > 8 and (self.encoding.otype, self.encoding.type) == ("Grid", "Hash"):
            grid = replace(self.encoding, log2_hashmap_size=log2_t).reaching(finest).layout(2)
            if grid.n_parameters <= budget:
                break
            log2_t -= 1
        return replace(self, finest_resolution=finest, encoding=replace(self.encoding, log2_hashmap_size=log2_t))

    def grid(self) -> EncodingConfig:
        """The encoding with its per-level scale; `fitted` comes first."""
        assert self.finest_resolution is not None
        return self.encoding.reaching(self.finest_resolution)


PRESETS: dict[str, ImageConfig] = {
    # As close to the picture as the time allows; on 8-bit pictures larger than the pixels themselves.
    "default": ImageConfig(),
    # A sixth of the numbers or less: soft where the picture has detail.
    "small": ImageConfig(
        preset="small", numbers_per_pixel=0.5, finest_per_pixel=0.25, least_resolution=16, least_numbers=2**14
    ),
    # The paper's encoding, network and batch (its T, 2^24, may be lowered by max_numbers); not the fastest on a CPU.
    "paper": ImageConfig(
        preset="paper",
        encoding=EncodingConfig(n_levels=16, n_features_per_level=2, log2_hashmap_size=24),
        n_neurons=64,
        n_hidden_layers=2,
        finest_per_pixel=0.5,
        numbers_per_pixel=1e6,
        least_resolution=16,
        train=ImageTrainConfig(batch=2**18, touches_per_update=0.0),
    ),
    # For GPUs, where a step of 2^18 pixels costs little more than its launch. Reasoned, not measured.
    "gpu": ImageConfig(preset="gpu", n_neurons=64, n_hidden_layers=2, train=ImageTrainConfig(batch=2**18)),
}


def preset_for(on_gpu: bool) -> str:
    """The preset that suits a device, where the user names none."""
    return "gpu" if on_gpu else "default"


def make_module(config: ImageConfig, n_channels: int, generator: torch.Generator | None = None) -> NetworkWithEncoding:
    """The trainable module of a fitted configuration.

    Args:
        config: Fitted to a picture.
        n_channels: Numbers of a pixel.
        generator: Source of the initial values; torch's default if None.
    """
    encoding = encoding_from_config(config.grid(), 2, generator=generator)
    network = MLPConfig(config.n_neurons, config.n_hidden_layers)
    return NetworkWithEncoding(encoding, n_channels, network, generator=generator)

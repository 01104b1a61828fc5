"""Images as functions from position to colour: configuration, training task and trained model. Reads top to bottom.

One step: pixels, one of each cell of a lattice -> encode -> network -> loss -> gradients -> Adam.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hashfield.data.pictures import Picture, linear_from_srgb
from hashfield.errors import CheckpointError, ConfigError, HashfieldError
from hashfield.geometry.fixed_point import to_fixed_point
from hashfield.log import logger
from hashfield.nn.config import EncodingConfig, MLPConfig
from hashfield.nn.encodings import GridEncoding, encoding_from_config, table_of
from hashfield.nn.networks import NetworkWithEncoding
from hashfield.ops.backend import runs_on_triton
from hashfield.ops.eval_points import EncodedNetwork, eval_points, network_precision, on_its_device
from hashfield.ops.pixel_batch import pixel_batch
from hashfield.ops.train_points import LOSSES, PointLoss, PointsWorkspace, train_points
from hashfield.tasks.shared import (
    CPU,
    RunPrecision,
    check_seed,
    restore_trained,
    stored_info,
    trained_state,
    warn_of_other_bits,
)
from hashfield.train.checkpoint import (
    config_from_dict,
    config_to_dict,
    generator_state,
    load_tensors,
    read_metadata,
    restore_generator,
    restore_module,
)
from hashfield.train.optim import TableOptimizer, check_rates, learning_rate_at
from hashfield.train.task import StepResult

if TYPE_CHECKING:  # needs triton
    from hashfield.train.on_device import DeviceOptimizer
    from hashfield.train.points_on_device import PointsTraining


# --- configuration -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageTrainConfig:
    """How an image is trained. Every schedule is a fraction of the planned run."""

    batch: int = 2**16
    """Pixels per step, about: the lattice they are drawn from has whole cells."""
    learning_rate: float = 1e-2
    """Of table and network until `flat_until`."""
    final_learning_rate: float = 1e-4
    """At the end of the run, reached by half a cosine."""
    flat_until: float = 0.3
    """Fraction of the run with the full learning rate."""
    l2: float = 1e-6
    """L2 on the network's matrices."""
    touches_per_update: float = 0.5
    """A level is updated once the batches since have touched its entries this often on average, at most after
    `LONGEST_INTERVAL` steps; 0 updates every level at every step."""
    loss: PointLoss = "l2"
    """What is minimised, of sRGB values; l2 is what PSNR measures."""

    def __post_init__(self) -> None:
        if not 256 <= self.batch <= 2**24:
            raise ConfigError(f"batch: expected 256 to {2**24}, got {self.batch}")
        check_rates(self.learning_rate, self.final_learning_rate, self.flat_until)
        if not 0 <= self.touches_per_update <= 100:
            raise ConfigError(f"touches_per_update: expected 0 to 100, got {self.touches_per_update}")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss: expected {', '.join(LOSSES)}, got {self.loss!r}")


@dataclass(frozen=True)
class ImageConfig:
    """Everything that decides how a picture becomes a model. What is None follows from the picture's size."""

    preset: str = "default"
    """default, small, paper or gpu: where the other values start from. Not named, the device chooses."""
    encoding: EncodingConfig = EncodingConfig(n_levels=6, n_features_per_level=4, log2_hashmap_size=24)
    """Of positions. Its log2_hashmap_size is the most T may be; per_level_scale follows from finest_resolution."""
    finest_resolution: int | None = None
    """Vertices per axis of the last level (N_max). None: `finest_per_pixel` of the longer side."""
    finest_per_pixel: float = 1.0
    """N_max as a share of the longer side in pixels. The paper has half; a cell for every pixel follows the picture
    more closely, in up to four times the numbers..."""
    least_resolution: int = 512
    """...but no less than this or the longer side, whichever is less: small ones can have a cell for every pixel."""
    numbers_per_pixel: float = 2.5
    """T is lowered until the table has no more numbers than this a pixel (but `least_numbers` it may have)..."""
    least_numbers: int = 2**21
    """...whatever the size of the picture..."""
    max_numbers: int = 2**25
    """...nor more than this; each costs 18 bytes of memory in training, and 2 in an export."""
    n_neurons: int = 32
    """Width of the hidden layers, a multiple of 16."""
    n_hidden_layers: int = 1
    """Hidden layers. On a CPU a small network, and so more steps, beats the paper's two of 64."""
    precision: RunPrecision = "auto"
    """Of lookups and network; sums and parameters are float32 always. auto: on GPUs float16; on CPUs bfloat16 lookups,
    and a bfloat16 network where the CPU has instructions for it. float16 means auto where there is no GPU."""
    train: ImageTrainConfig = ImageTrainConfig()
    """Batches, loss, schedule."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", EncodingConfig.of(self.encoding))  # a GridConfig will do
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"precision: expected auto, float32, bfloat16 or float16, got {self.precision!r}")
        if self.n_neurons % 16 or not 16 <= self.n_neurons <= 256:
            raise ConfigError(f"n_neurons: expected a multiple of 16 up to 256, got {self.n_neurons}")
        if not 1 <= self.n_hidden_layers <= 8:
            raise ConfigError(f"n_hidden_layers: expected 1 to 8, got {self.n_hidden_layers}")
        if self.precision == "bfloat16" and self.encoding.otype != "Grid":
            raise ConfigError("precision: bfloat16 needs a grid")
        if self.encoding.per_level_scale != EncodingConfig().per_level_scale:
            raise ConfigError("encoding.per_level_scale: follows from finest_resolution; set that instead")
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
        """The same with N_max and T decided for a picture of this size.

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
    """The trainable module of a fitted configuration."""
    encoding = encoding_from_config(config.grid(), 2, generator=generator)
    network = MLPConfig(config.n_neurons, config.n_hidden_layers)
    return NetworkWithEncoding(encoding, n_channels, network, generator=generator)


def network_parameters(module: NetworkWithEncoding, table_bf16: Tensor | None, config: ImageConfig) -> EncodedNetwork:
    """A module's numbers as the fused ops take them."""
    encoding = module.encoding
    precision, weights = config.precision, tuple(w.detach() for w in module.network.weights)
    if not isinstance(encoding, GridEncoding):
        return EncodedNetwork(config.encoding.layout(2), table_of(module.encoding), weights, encode=encoding)
    return on_its_device(
        EncodedNetwork(
            layout=encoding.layout,
            table=encoding.table.detach(),
            weights=weights,
            table_bf16=None if precision == "float32" else table_bf16,
            precision=network_precision(precision, encoding.table.device),
            interpolation=config.encoding.interpolation,
        )
    )


def gpu_memory(config: ImageConfig, width: int, height: int, n_channels: int, n_pixel_bytes: int) -> int:
    """Bytes of GPU memory that a run takes, nearly.

    Args:
        config: Fitted or not.
        width, height, n_channels: Of the picture.
        n_pixel_bytes: Of its numbers as stored, if they lie on the GPU; else 0.
    """
    from hashfield.train.points_on_device import n_bytes_of

    config = config.fitted(width, height)
    columns, rows = lattice_for(config.train.batch, width, height)
    shapes = MLPConfig(config.n_neurons, config.n_hidden_layers).shapes(config.grid().n_output(2), n_channels)
    n_weights = sum(a * b for a, b in shapes)
    return n_bytes_of(config.grid().layout(2), n_weights, columns * rows, n_channels, n_pixel_bytes)


# --- the trained model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageShape:
    """What a model knows of the picture it was trained on."""

    width: int
    height: int
    n_channels: int
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    is_hdr: bool
    """Whether values may exceed 1; the file held linear light."""

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.n_channels in (2, 4)

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 2**24 and 1 <= self.height <= 2**24):
            raise ConfigError(f"width, height: expected 1 to {2**24} pixels, got {self.width}x{self.height}")
        if not 1 <= self.n_channels <= 4:
            raise ConfigError(f"n_channels: expected 1 to 4, got {self.n_channels}")


class ImageModel(nn.Module):
    """A trained image: stands alone, needs no file."""

    table_bf16: Tensor

    def __init__(
        self, module: NetworkWithEncoding, config: ImageConfig, shape: ImageShape, info: dict[str, Any] | None = None
    ) -> None:
        """Args:
        module: Encoding and network.
        config: Fitted.
        shape: Of the picture.
        info: Names and figures, free-form.
        """
        super().__init__()
        self.field = module.requires_grad_(False)
        self.config, self.shape, self.info = config, shape, info or {}
        self.register_buffer("table_bf16", table_of(module.encoding).detach().to(torch.bfloat16))

    def forward(self, positions_unit: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch n_channels"]:
        """Values at positions (x / width, y / height), y down: sRGB, multiplied by alpha where there is one.

        In HDR pictures the sRGB curve goes on beyond 1; `data.pictures.linear_from_srgb` undoes it.
        """
        network = network_parameters(self.field, self.table_bf16, self.config)
        found = eval_points(network, to_fixed_point(positions_unit.reshape(-1, 2)).to(self.table_bf16.device))
        return found.reshape(*positions_unit.shape[:-1], self.shape.n_channels).to(positions_unit.device)

    def strips(
        self,
        crop: tuple[float, float, float, float] | None = None,
        width: int | None = None,
        height: int | None = None,
        *,
        most_per_axis: int = 8,
        points_at_once: int = 2**20,
    ) -> Iterator[Float32[np.ndarray, "rows width n_channels"]]:
        """The picture, or a part of it at any size, from top to bottom in strips: values as `forward` gives them.

        Where the result is coarser than the picture, each of its pixels is the mean over a grid of points in it; where
        it is finer, the model is asked between the pixels it was trained on.

        Args:
            crop: (left, top, width, height) in pixels of the picture; all of it if None.
            width: Of the result; None: as many as the crop has, or what keeps the shape.
            height: The same.
            most_per_axis: Of the points to a coarser pixel.
            points_at_once: Bounds memory.

        Raises:
            ConfigError: the crop is empty or not inside the picture, or the size is not positive.
        """
        x0, y0, w, h = self.crop_of(crop)
        width, height = self.size_of(crop, width, height)
        per_x, per_y = (min(most_per_axis, max(1, math.ceil(a / b - 1e-9))) for a, b in ((w, width), (h, height)))
        column = (x0 + (np.arange(width * per_x) + 0.5) * (w / (width * per_x))) / self.shape.width
        rows_at_once = max(1, points_at_once // (width * per_x * per_y))
        network = network_parameters(self.field, self.table_bf16, self.config)
        x = to_fixed_point(torch.from_numpy(column))
        for first in range(0, height, rows_at_once):
            rows = min(rows_at_once, height - first)
            row = (y0 + (first + (np.arange(rows * per_y) + 0.5) / per_y) * (h / height)) / self.shape.height
            y = to_fixed_point(torch.from_numpy(row))
            planes = torch.stack([x.expand(len(y), -1).reshape(-1), y[:, None].expand(-1, len(x)).reshape(-1)])
            found = eval_points(network, planes.to(self.table_bf16.device).T).reshape(rows, per_y, width, per_x, -1)
            yield (found[:, 0, :, 0] if per_x == per_y == 1 else found.mean((1, 3))).cpu().numpy()

    def render(
        self,
        crop: tuple[float, float, float, float] | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> Float32[np.ndarray, "height width n_channels"]:
        """The picture, or a part of it at any size, as one array; see `strips`."""
        return np.concatenate(list(self.strips(crop, width, height)))

    def crop_of(self, crop: tuple[float, float, float, float] | None) -> tuple[float, float, float, float]:
        """The crop, or the whole picture.

        Raises:
            ConfigError: it is not inside the picture.
        """
        shape = self.shape
        if crop is None:
            return 0.0, 0.0, float(shape.width), float(shape.height)
        x, y, w, h = crop
        inside = x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= shape.width and y + h <= shape.height
        if not inside:
            raise ConfigError(
                f"crop: expected left, top, width, height inside {shape.width}x{shape.height} pixels, got "
                f"{x:g} {y:g} {w:g} {h:g}"
            )
        return x, y, w, h

    def size_of(
        self, crop: tuple[float, float, float, float] | None, width: int | None, height: int | None
    ) -> tuple[int, int]:
        """Width and height of the result of `strips`."""
        _, _, w, h = self.crop_of(crop)
        for name, value in (("width", width), ("height", height)):
            if value is not None and not 1 <= value <= 2**20:
                raise ConfigError(f"{name}: expected 1 to {2**20}, got {value}")
        if width is None:
            width = max(1, round(w)) if height is None else max(1, round(height * w / h))
        if height is None:
            height = max(1, round(width * h / w))
        return width, height


def compare(model: ImageModel, picture: Picture, points_at_once: int = 2**20) -> dict[str, Any]:
    """How close a model comes to its picture, over every pixel and channel, as JSON values.

    Raises:
        ConfigError: the picture is not of the model's size and channels.
    """
    shape = shape_of(picture)
    if shape != model.shape:
        raise ConfigError(f"{picture.path}: is {shape}, the model is of {model.shape}")
    error = clipped = peak = 0.0
    y = 0
    for found in model.strips(points_at_once=points_at_once):
        wanted = picture.region(0, y, picture.width, len(found))
        y += len(found)
        error += float(np.square(found - wanted, dtype=np.float64).sum())
        limited = np.clip(found, 0.0, 1.0) - np.clip(wanted, 0.0, 1.0)
        clipped += float(np.square(limited, dtype=np.float64).sum())
        peak = max(peak, float(wanted.max()))
    count = picture.width * picture.height * picture.n_channels

    def decibels(total: float, top: float = 1.0) -> float:
        return math.inf if total == 0 else 10 * math.log10(top * top * count / total)

    space = "sRGB values" + (", by the curve's continuation where light exceeds 1" if shape.is_hdr else "")
    found = {
        "psnr": decibels(error if shape.is_hdr else clipped),
        "psnr_of": f"all pixels and channels, {space}{', multiplied by alpha' if shape.has_alpha else ''}, peak 1, "
        + ("not clipped" if shape.is_hdr else "clipped to [0, 1], not quantised"),
    }
    if shape.is_hdr:
        found |= {
            "psnr_clipped": decibels(clipped), "psnr_clipped_of": "the same clipped to [0, 1], as a screen shows it",
            "psnr_of_peak": decibels(error, peak), "peak": peak,
        }  # fmt: skip
    return found


def shape_of(picture: Picture) -> ImageShape:
    """What a model of this picture knows of it."""
    return ImageShape(picture.width, picture.height, picture.n_channels, picture.is_hdr)


def to_linear(values: Float32[np.ndarray, "h w c"], has_alpha: bool) -> Float32[np.ndarray, "h w c"]:
    """What a model answers, as linear light; alpha stays."""
    found = linear_from_srgb(values)
    if has_alpha:
        found[..., -1] = values[..., -1]
    return found


def load_model(path: Path) -> ImageModel:
    """The model in a checkpoint file, exported or not.

    Raises:
        CheckpointError: the file is missing, broken or does not describe an image; the text names what.
    """
    metadata = read_metadata(path, ImageTask.name)
    try:
        config = config_from_dict(ImageConfig, metadata.get("config"), f"{path}: config")
        shape = config_from_dict(ImageShape, metadata.get("image"), f"{path}: image")
        if config.finest_resolution is None:
            raise CheckpointError(f"{path}: config.finest_resolution: expected a number, got None")
        n_encoded = config.grid().n_output(2)
    except CheckpointError:
        raise
    except HashfieldError as error:
        raise CheckpointError(f"{path}: {error}") from error
    widths = [n_encoded, *[config.n_neurons] * config.n_hidden_layers, shape.n_channels]
    expected = {}
    if config.encoding.otype == "Grid":
        layout = config.grid().layout(2)
        expected["field.encoding.table"] = (layout.n_entries, layout.n_features_per_level)
    expected |= {f"field.network.weights.{k}": (widths[k + 1], widths[k]) for k in range(len(widths) - 1)}
    tensors = load_tensors(path, expected)
    module = make_module(config, shape.n_channels)
    restore_module(module, tensors, path)
    return ImageModel(module, config, shape, stored_info(metadata))


# --- the training task -------------------------------------------------------------------------------------


class ImageTask:
    """Training of one picture; see `hashfield.train.task.Task`."""

    name = "image"

    def __init__(
        self,
        config: ImageConfig,
        picture: Picture,
        *,
        seed: int = 0,
        device: torch.device = CPU,
        is_picture_on_device: bool = True,
    ) -> None:
        """Args:
        config: What to train and how; what it leaves open is fitted to the picture.
        picture: Stays open as long as the task.
        seed: Of every random choice.
        device: Where to train.
        is_picture_on_device: Whether the picture is copied there, to draw pixels from; else batches are drawn on the
            host and copied: slower, for pictures that have no room.

        Raises:
            ConfigError: the seed is negative.
        """
        self.picture, self.seed, self.shape, self.device = picture, check_seed(seed), shape_of(picture), device
        self.config = config.fitted(picture.width, picture.height)
        init = torch.Generator().manual_seed(seed)
        self.field = make_module(self.config, picture.n_channels, init).to(device)
        self.layout = self.config.grid().layout(2)
        self.matrices = list(self.field.network.weights)
        self.lattice = lattice_for(self.config.train.batch, picture.width, picture.height)
        pixels = picture.pixels
        codes = pixels.view(np.int16) if pixels.dtype in (np.uint16, np.float16) else pixels
        self.pixels, self.values = torch.from_numpy(codes), torch.from_numpy(picture.values())
        if is_picture_on_device:
            self.pixels, self.values = self.pixels.to(device), self.values.to(device)
        self.random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
        self.on_device: PointsTraining | None = None
        """The training that is never waited for, on GPUs."""
        self.workspace: PointsWorkspace | None = None
        self.optimizer: TableOptimizer | DeviceOptimizer
        entries = self.layout.entries.tolist() if self.config.encoding.otype == "Grid" else []
        self.intervals = update_intervals(
            entries, 4 * self.lattice[0] * self.lattice[1], self.config.train.touches_per_update
        )
        parts = list(zip(entries, self.intervals, strict=True)) or None
        network = network_parameters(self.field, None, self.config)
        if runs_on_triton(device) and network.is_fused and network.limit("triton") is None:
            self.on_device = self._device_training(network, parts, is_picture_on_device)
            self.optimizer = self.on_device.optimizer
            return
        self.optimizer = TableOptimizer(
            table_of(self.field.encoding), self.matrices, l2=self.config.train.l2,
            parts=parts,
        )  # fmt: skip
        self.workspace = PointsWorkspace(self.parameters(), self.lattice[0] * self.lattice[1])

    def _device_training(
        self, network: EncodedNetwork, parts: list[tuple[int, int]] | None, draws_there: bool
    ) -> "PointsTraining":
        from hashfield.train.on_device import COMPUTE, AdamOptions, DeviceOptimizer
        from hashfield.train.points_on_device import PixelSource, PointsTraining

        optimizer = DeviceOptimizer(
            table_of(self.field.encoding), self.matrices, COMPUTE[network.precision],
            AdamOptions(l2=self.config.train.l2), parts,
        )  # fmt: skip
        source = PixelSource(self.pixels, self.lattice, self.values, self.shape.has_alpha, self.shape.is_hdr)
        return PointsTraining(
            network.layout, network.interpolation, optimizer, self.lattice[0] * self.lattice[1],
            self.config.train.loss, self.seed, is_fixed_point=True, source=source if draws_there else None,
        )  # fmt: skip

    def parameters(self) -> EncodedNetwork:
        """The module's numbers as they are now."""
        table_bf16 = self.optimizer.table_bf16 if isinstance(self.optimizer, TableOptimizer) else None
        return network_parameters(self.field, table_bf16, self.config)

    def draw(self, lattice: tuple[int, int], random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Positions and values of a batch, where the picture lies."""
        bits = torch.from_numpy(random.integers(0, 2**32, lattice[0] * lattice[1], dtype=np.int64))
        return pixel_batch(
            self.pixels, bits.to(self.pixels.device), lattice, self.values, self.shape.n_channels,
            has_alpha=self.shape.has_alpha, is_premultiplied=self.shape.is_hdr,
        )  # fmt: skip

    # --- Task protocol

    def warm_up(self) -> None:
        """Compile every kernel of a run by calling it on next to nothing."""
        network = self.parameters()
        if self.on_device is not None:
            self.on_device.warm_up()
            eval_points(network, torch.zeros((4, 2), dtype=torch.int32, device=self.device))
            if self.on_device.source is None:
                self.draw((2, 2), np.random.default_rng(0))
            return
        positions, target = (x.to(self.device) for x in self.draw((2, 2), np.random.default_rng(0)))
        grads = train_points(network, positions, target, PointsWorkspace(network, 4), loss=self.config.train.loss)
        scratch = TableOptimizer(torch.zeros_like(network.table), [torch.zeros_like(m) for m in self.matrices])
        scratch.step(torch.zeros_like(network.table), grads.grad_weights, 1e-3)
        eval_points(network, positions)

    def begin(self) -> None:
        """Nothing: every pixel is drawn from the first step on."""

    def step(self, step: int, fraction: float) -> StepResult:
        """One batch of pixels."""
        config = self.config.train
        rate = learning_rate_at(fraction, config.learning_rate, config.final_learning_rate, config.flat_until)
        if self.on_device is not None:
            batch = None if self.on_device.source is not None else self.draw(self.lattice, self.random)
            figures = self.on_device.step(rate, batch)
            return StepResult(figures[0], figures[1], figures[2], figures[3])
        assert self.workspace is not None and isinstance(self.optimizer, TableOptimizer)
        positions, target = (x.to(self.device) for x in self.draw(self.lattice, self.random))
        found = train_points(self.parameters(), positions, target, self.workspace, loss=config.loss)
        if not math.isfinite(found.loss):
            self.workspace.grad_table.zero_()
        else:
            self.optimizer.step(self.workspace.grad_table, found.grad_weights, rate)
        return StepResult(found.loss, found.squared_error, len(target), len(target))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that a resumed run needs, and that a model needs."""
        tensors, values = trained_state(self.field, self.optimizer, self.parameters().precision)
        if max(self.intervals, default=1) > 1:  # of the levels that wait for their update
            if self.on_device is not None:
                tensors["optimizer.gradient"] = self.on_device.pending_gradient()
            elif self.workspace is not None:
                tensors["optimizer.gradient"] = self.workspace.grad_table
        if self.on_device is not None or self.device.type != "cpu":
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        values["random"] = generator_state(self.random)
        if self.on_device is not None:
            values["device_random"] = self.on_device.random_state()
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it does not fit this task's configuration.
        """
        restore_trained(self.field, self.optimizer, tensors, values)
        try:
            if max(self.intervals, default=1) > 1:
                if self.on_device is not None:
                    self.on_device.restore_gradient(tensors["optimizer.gradient"])
                elif self.workspace is not None:
                    self.workspace.grad_table.copy_(tensors["optimizer.gradient"])
            restore_generator(self.random, values["random"], "checkpoint: random")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint: state: missing or wrong: {error}") from error
        is_moved = (self.on_device is not None) != ("device_random" in values)
        if is_moved:
            logger.warning("the run was begun on another device and goes on here: with other random numbers")
        elif self.on_device is not None:
            self.on_device.restore_random(values["device_random"])
        follows_threads = self.on_device is None and not is_moved
        warn_of_other_bits(values, self.parameters().precision, follows_threads=follows_threads)

    def describe(self) -> dict[str, Any]:
        """What makes the checkpoint stand alone."""
        return {
            "config": config_to_dict(self.config),
            "image": config_to_dict(self.shape),
            "seed": self.seed,
            "scene": {"name": self.picture.name, "path": str(self.picture.path)},
        }

    def model(self) -> ImageModel:
        """The image as it is now, for evaluation and rendering. Shares memory with the task."""
        info = {"scene": {"name": self.picture.name, "path": str(self.picture.path)}}
        model = ImageModel(self.field, self.config, self.shape, info)
        self.field.requires_grad_(True)
        return model


LONGEST_INTERVAL = 8
"""Steps between two updates of a level, at most."""


def update_intervals(entries: list[int], touches: int, wanted: float) -> list[int]:
    """Steps between the updates of each level: powers of two, so that a level's turn comes with those of coarser ones.

    >>> update_intervals([1000, 2**20, 2**22], 2**18, 0.5)
    [1, 2, 8]
    """
    found = []
    for size in entries:
        interval = 1
        while interval < LONGEST_INTERVAL and interval * touches < wanted * size:
            interval *= 2
        found.append(interval)
    return found


def lattice_for(batch: int, width: int, height: int) -> tuple[int, int]:
    """Cells in x and y, `batch` of them or a few less, about square in pixels.

    >>> lattice_for(2**18, 4096, 4096)
    (512, 512)
    """
    columns = min(max(1, round(math.sqrt(batch * width / height))), batch)
    return columns, max(1, batch // columns)

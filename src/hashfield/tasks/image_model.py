"""A trained picture: its numbers as the fused ops take them, its pixels at any size, its checkpoint read back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hashfield.data.pictures import Picture
from hashfield.errors import CheckpointError, ConfigError, HashfieldError
from hashfield.geometry.fixed_point import to_fixed_point
from hashfield.geometry.srgb import linear_from_srgb
from hashfield.nn.encodings import table_of
from hashfield.nn.frozen import frozen_view
from hashfield.nn.networks import NetworkWithEncoding, encoded_network
from hashfield.ops.eval_points import eval_points
from hashfield.steps.state import restore_module
from hashfield.tasks.frames import Color, Frame, PictureView, Quality, Region, part_of_picture
from hashfield.tasks.image_config import ImageConfig, make_module
from hashfield.tasks.shared import CPU, stored_info
from hashfield.train.checkpoint import (
    OpenCheckpoint,
    config_from_dict,
    open_checkpoint,
)


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
    background: Color = (1.0, 1.0, 1.0)
    quality: Quality = "exact"

    def __init__(
        self, module: NetworkWithEncoding, config: ImageConfig, shape: ImageShape, info: dict[str, Any] | None = None
    ) -> None:
        """Args:
        module: Encoding and network.
        config: Configuration, fitted to the picture.
        shape: Size and channels of the picture.
        info: Names and figures, free-form.
        """
        super().__init__()
        self.field = frozen_view(module)
        self.config, self.shape, self.info = config, shape, info or {}
        self.register_buffer("table_bf16", table_of(module.encoding).detach().to(torch.bfloat16))

    def forward(self, positions_unit: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch n_channels"]:
        """Values at positions (x / width, y / height), y down: sRGB, multiplied by alpha where there is one.

        In HDR pictures the sRGB curve goes on beyond 1; `geometry.srgb.linear_from_srgb` undoes it.
        """
        network = encoded_network(self.field, self.table_bf16, self.config.precision)
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
            width: Pixels in a row of the result; None: as many as the crop has, or what keeps the shape.
            height: Rows of the result; None: as many as the crop has, or what keeps the shape.
            most_per_axis: Points that a coarser pixel averages, at most, along each axis.
            points_at_once: Bounds memory.

        Raises:
            ConfigError: the crop is empty or not inside the picture, or the size is not positive.
        """
        x0, y0, w, h = self.crop_of(crop)
        width, height = self.size_of(crop, width, height)
        per_x, per_y = (min(most_per_axis, max(1, math.ceil(a / b - 1e-9))) for a, b in ((w, width), (h, height)))
        column = (x0 + (np.arange(width * per_x) + 0.5) * (w / (width * per_x))) / self.shape.width
        rows_at_once = max(1, points_at_once // (width * per_x * per_y))
        network = encoded_network(self.field, self.table_bf16, self.config.precision)
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

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a frame can show: see `hashfield.tasks.frames.HasFrames`."""
        return "color", "opacity"

    @property
    def views(self) -> dict[str, list[PictureView]]:
        """The picture as it was, pixel for pixel."""
        return {"whole": [self.view()]}

    def view(
        self,
        crop: tuple[float, float, float, float] | None = None,
        width: int | None = None,
        height: int | None = None,
        *,
        most_per_axis: int = 8,
    ) -> PictureView:
        """The picture, or a part of it, at any size: what `frame` and `frame_strips` show.

        Args:
            crop: Left, top, width and height in pixels of the picture; None: all of it.
            width: Pixels of the frame in a row; None: as many as the crop has, or what keeps the shape.
            height: Rows of the frame; None: as many as the crop has, or what keeps the shape.
            most_per_axis: Points that a coarser pixel averages, at most, along each axis.

        Raises:
            ConfigError: the crop is empty or not inside the picture, or the size is not positive.
        """
        return PictureView(self.crop_of(crop), *self.size_of(crop, width, height), most_per_axis)

    def frame(
        self,
        view: PictureView,
        outputs: Sequence[str] = ("color",),
        background: Color | None = None,
        region: Region | None = None,
    ) -> Frame:
        """One picture: see `hashfield.tasks.frames.HasFrames`."""
        part = view if region is None else part_of_picture(view, region)
        strips = list(self.frame_strips(part, outputs, background))
        return {name: np.concatenate([strip[name] for strip in strips]) for name in strips[0]}

    def frame_strips(
        self, view: PictureView, outputs: Sequence[str] = ("color",), background: Color | None = None
    ) -> Iterator[Frame]:
        """The picture in strips: see `hashfield.tasks.frames.HasFrames`."""
        unknown = sorted(set(outputs) - set(self.outputs))
        if unknown:
            raise ConfigError(f"outputs: expected {', '.join(self.outputs)}; got {unknown[0]!r}")
        for values in self.strips(view.crop, view.width, view.height, most_per_axis=view.most_per_axis):
            color, opacity = values, np.ones(values.shape[:2], np.float32)
            if self.shape.has_alpha:
                color, opacity = values[..., :-1], np.clip(values[..., -1], 0.0, 1.0)
            if background is not None and self.shape.has_alpha:
                color = color + (1.0 - opacity[..., None]) * np.asarray(background, np.float32)
            yield {name: {"color": color, "opacity": opacity}[name] for name in outputs}

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
        """Width and height of the result of `strips`.

        Args:
            crop: Left, top, width and height in pixels of the picture; None: all of it.
            width: Pixels in a row; None: as many as the crop has, or what keeps the shape.
            height: Rows; None: as many as the crop has, or what keeps the shape.
        """
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

    Args:
        model: The trained model.
        picture: What it was trained on.
        points_at_once: Bounds memory.

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


def load_model(source: Path | OpenCheckpoint, device: torch.device = CPU) -> ImageModel:
    """The model in a checkpoint, exported or not, on a device.

    Args:
        source: The checkpoint, opened or not.
        device: Where the model answers.

    Raises:
        CheckpointError: the file is missing, broken or does not describe an image; the text names what.
    """
    checkpoint = open_checkpoint(source)
    path, metadata = checkpoint.path, checkpoint.of_task("image")
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
    tensors = checkpoint.tensors(expected)
    module = make_module(config, shape.n_channels)
    restore_module(module, tensors, path)
    return ImageModel(module.to(device), config, shape, stored_info(metadata))

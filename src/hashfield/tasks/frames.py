"""Pictures of any kind of model through one face: of a whole view, of a region of it, or in strips from top to bottom.

A view is what a model can be asked to show: a `Camera` in the world for a radiance field or a distance, a `PictureView`
for a picture. Whoever shows, judges or writes frames (evaluation, `hashfield render`, reports) asks this protocol only.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.geometry.cameras import Camera

Color = tuple[float, float, float]
"""Red, green and blue in sRGB, 0 to 1."""

Frame = dict[str, Float32[np.ndarray, "..."]]
"""Arrays by the name of the output, rows first: color [h, w, 3] in sRGB (one channel for a grey picture), opacity and
depth [h, w], normals [h, w, 3]."""

PIXELS_PER_STRIP: Final = 2**18
"""Pixels of a strip, about: enough to keep every core or a GPU busy, and a few megabytes."""


Quality = Literal["exact", "fine", "fast"]
"""How faithful pictures of a radiance field are, against their speed: see `QUALITIES`."""


@dataclass(frozen=True)
class FrameEconomy:
    """What pictures of a radiance field may leave out."""

    min_transmittance: float
    """A ray ends once less light than this passes."""
    min_weight: float
    """Samples get a colour once they and those passed over since the last one weigh this much together."""
    tolerance: float
    """A pixel is interpolated where its neighbours differ by no more than this in each channel, of 1; the distance
    relative to itself. See `render.between_pixels`."""


QUALITIES: Final[Mapping[Quality, FrameEconomy]] = MappingProxyType(
    {
        "exact": FrameEconomy(1e-4, 0.0, 0.0),
        "fine": FrameEconomy(1e-2, 4e-3, 0.04),
        "fast": FrameEconomy(3e-2, 2e-2, 0.08),
    }
)
"""What each quality leaves out.

exact: nothing, every pixel and every sample that light reaches. fine: no more than 0.1 dB worse against photos, mostly
not at all (benchmarks/README.md has the figures). fast: for moving pictures and for looking around.

On GPUs every picture is exact: there, colours cost little, and few pixels cost as much as many."""

DEFAULT_QUALITY: Final[Quality] = "fine"


@dataclass(frozen=True)
class PictureView:
    """A part of a trained picture, shown in any number of pixels."""

    crop: tuple[float, float, float, float]
    """Left, top, width and height in pixels of the picture that was trained on."""
    width: int
    """Pixels of the frame in a row."""
    height: int
    """Rows of the frame."""
    most_per_axis: int = 8
    """Points of the model that a frame coarser than the picture averages in a pixel, at most, along each axis."""


View = Camera | PictureView


@dataclass(frozen=True)
class Region:
    """A rectangle of whole pixels in a frame."""

    left: int
    top: int
    width: int
    height: int


@runtime_checkable
class HasFrames(Protocol):
    """A trained model of any kind, as whoever wants pictures of it sees it."""

    background: Color
    """What the model was meant to be seen on."""

    @property
    def quality(self) -> Quality:
        """Quality of frames against their speed, where the model has a choice; may be set at any time."""
        ...

    @quality.setter
    def quality(self, quality: Quality) -> None: ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what a frame can show, of "color", "opacity", "depth" and "normals"."""
        ...

    @property
    def views(self) -> Mapping[str, Sequence[Any]]:
        """The views that the model knows of, by name ("test", "train", "orbit", "whole"); others may be asked for."""
        ...

    def frame(
        self,
        view: Any,
        outputs: Sequence[str] = ("color",),
        background: Color | None = None,
        region: Region | None = None,
    ) -> Frame:
        """One picture.

        Args:
            view: What to show, of the type that `views` holds.
            outputs: What to show of it.
            background: sRGB colour behind what is not opaque; None leaves the colour multiplied by opacity.
            region: The pixels of the view that are wanted; None: all of them.

        Returns:
            Float32 arrays on the host, of the region's size, or of the view's.

        Raises:
            ConfigError: an output is not known, or the region is not inside the view.
        """
        ...

    def frame_strips(
        self, view: Any, outputs: Sequence[str] = ("color",), background: Color | None = None
    ) -> Iterator[Frame]:
        """One picture, as `frame` gives it, in strips of whole rows from top to bottom, for pictures that are too large
        to hold.

        Args:
            view: What to show, of the type that `views` holds.
            outputs: What to show of it.
            background: sRGB colour behind what is not opaque; None leaves the colour multiplied by opacity.

        Raises:
            ConfigError: an output is not known.
        """
        ...


Corners = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Lowest and highest corner of a box along the world's axes, in world units."""


@runtime_checkable
class HasBox(HasFrames, Protocol):
    """A model of something in space, which can be cut open."""

    @property
    def box_world(self) -> Float64[Tensor, "2 3"]:
        """Lowest and highest corner, in the world, of the box that holds all there is to see."""
        ...

    def within(self, corners: Corners) -> "HasFrames":
        """A view of the model in which only what lies in a box is seen. Shares all memory.

        Raises:
            ConfigError: nothing of the model lies in the box.
        """
        ...


def common_box(a: Float64[Tensor, "2 3"], b: Float64[Tensor, "2 3"]) -> Float64[Tensor, "2 3"]:
    """Lowest and highest corner of what two boxes share.

    Args:
        a: Lowest and highest corner of a box.
        b: Those of the other, in the same space.

    Raises:
        ConfigError: they share nothing.
    """
    low, high = torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])
    if not bool((low < high).all()):
        raise ConfigError("box: nothing of the model lies in it")
    return torch.stack([low, high])


class CameraFrames(ABC):
    """`HasFrames` for models that render cameras: all of it follows from their `render`."""

    cameras: dict[str, list[Camera]]
    background: Color
    quality: Quality = "exact"
    outputs: tuple[str, ...] = ("color", "opacity", "depth", "normals")

    @property
    def views(self) -> Mapping[str, Sequence[Camera]]:
        """The cameras that the model knows of, by name."""
        return self.cameras

    @abstractmethod
    def render(self, camera: Camera, outputs: Sequence[str], background: Color | None) -> Frame:
        """Pictures of what a camera sees: see `HasFrames.frame`."""

    def frame(
        self,
        view: Camera,
        outputs: Sequence[str] = ("color",),
        background: Color | None = None,
        region: Region | None = None,
    ) -> Frame:
        """One picture: see `HasFrames.frame`."""
        return self.render(view if region is None else part_of_camera(view, region), outputs, background)

    def frame_strips(
        self, view: Camera, outputs: Sequence[str] = ("color",), background: Color | None = None
    ) -> Iterator[Frame]:
        """The picture in strips: see `HasFrames.frame_strips`."""
        for region in strips_of(view.width, view.height):
            yield self.frame(view, outputs, background, region)


def strips_of(width: int, height: int, n_pixels: int = PIXELS_PER_STRIP) -> Iterator[Region]:
    """Regions of whole rows that cover a frame from top to bottom.

    Args:
        width: Pixels of the frame in a row.
        height: Rows of the frame.
        n_pixels: Pixels of a strip, at most, unless a row has more.

    >>> [(strip.top, strip.height) for strip in strips_of(100, 5, 200)]
    [(0, 2), (2, 2), (4, 1)]
    """
    rows = max(1, n_pixels // width)
    for top in range(0, height, rows):
        yield Region(0, top, width, min(rows, height - top))


def check_region(region: Region, width: int, height: int) -> None:
    """Raise unless a region lies in a frame of this size.

    Args:
        region: What is asked for.
        width: Pixels of the frame in a row.
        height: Rows of the frame.

    Raises:
        ConfigError: it is empty, or not inside.
    """
    r = region
    if min(r.left, r.top) < 0 or min(r.width, r.height) < 1 or r.left + r.width > width or r.top + r.height > height:
        raise ConfigError(f"region: expected a part of {width}x{height} pixels, got {r}")


def part_of_camera(camera: Camera, region: Region) -> Camera:
    """The camera that sees a region of another one's picture, pixel for pixel.

    Lenses are described around the principal point, which is all that moves.

    Raises:
        ConfigError: the region is not inside the picture.
    """
    check_region(region, camera.width, camera.height)
    return replace(
        camera, width=region.width, height=region.height, cx=camera.cx - region.left, cy=camera.cy - region.top
    )


def part_of_picture(view: PictureView, region: Region) -> PictureView:
    """The view that shows a region of another one, pixel for pixel.

    Raises:
        ConfigError: the region is not inside the frame.
    """
    check_region(region, view.width, view.height)
    x, y, w, h = view.crop
    across, down = w / view.width, h / view.height
    # Rounding must not lead out of the crop, and so out of the picture.
    width = min(region.width * across, w - region.left * across)
    height = min(region.height * down, h - region.top * down)
    crop = (x + region.left * across, y + region.top * down, width, height)
    return replace(view, crop=crop, width=region.width, height=region.height)

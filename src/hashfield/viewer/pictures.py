"""From a model and what is asked of it to the bytes of a picture, some rows at a time. No server, no threads."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.export.images import (
    colorize_depth,
    colorize_normals,
    colorize_opacity,
    depth_range,
    error_picture,
    over,
    to_uint8,
)
from hashfield.geometry.cameras import Camera, look_at
from hashfield.geometry.paths import focus_point, up_axis
from hashfield.tasks.frames import Color, Corners, Frame, HasBox, HasFrames, PictureView, Region

SURROUND: Final = 48
"""Grey level of what lies around a picture that does not fill the window."""
DRAFT_POINTS: Final = 2
"""Points of a trained picture that a pixel of a quick picture averages along each axis, at most."""
TYPICAL_DISTANCE: Final = 3.0
"""Distance from the eye to what it looks at, in the page's units, whatever the world's units are: the page's own speeds
and limits are made for that."""
LARGEST_SIDE: Final = 8192
"""Pixels of a picture's side, at most."""


# --- what is asked for


@dataclass(frozen=True, eq=False)
class Eye:
    """Where someone stands and looks, whatever the size of the picture: a pinhole."""

    camera_to_world: Float64[Tensor, "3 4"]
    """Axes of OpenCV, in the world; as in `Camera`."""
    fov_y: float
    """Vertical field of view in radians."""

    def camera(self, width: int, height: int, aspect: float | None = None) -> Camera:
        """The camera that sees this in a picture of some size.

        Args:
            width: Pixels in a row.
            height: Rows.
            aspect: Width over height of the window that the picture is stretched to; None: that of the pixels.
        """
        fy = 0.5 * height / math.tan(0.5 * self.fov_y)
        fx = fy * width / (height * (aspect or width / height))
        return Camera(self.camera_to_world, width, height, fx, fy, 0.5 * width, 0.5 * height)


def eye_of(camera: Camera) -> Eye:
    """The pinhole that sees about what a camera sees from top to bottom."""
    fov = 2 * math.atan(0.5 * camera.height / camera.fy)
    return Eye(camera.camera_to_world, min(max(fov, math.radians(1)), math.radians(150)))


@dataclass(frozen=True)
class Pan:
    """The part of a trained picture that fills the window."""

    center: tuple[float, float]
    """Pixels from the picture's top left corner, right and down."""
    rows_shown: float
    """Rows of the picture from the window's top to its bottom: the smaller, the nearer."""


View = Eye | Pan


@dataclass(frozen=True)
class Look:
    """How what is seen is shown."""

    output: str = "color"
    """One of `outputs_of`."""
    background: Color = (1.0, 1.0, 1.0)
    crop: Corners | None = None
    """Only what lies in this box of the world is shown; None: everything."""
    slice_axis: int = 2
    """Axis of the world that a slice is perpendicular to."""
    slice_at: float = 0.5
    """Where the slice cuts the model's box along that axis, 0 to 1."""
    has_single_pixels: bool = False
    """Whether a trained picture seen from near shows each of its pixels as a square of one colour."""


@dataclass(frozen=True)
class Wish:
    """All that a picture depends on, but for the model."""

    view: View
    look: Look
    aspect: float
    """Width of the window over its height."""
    rows: int
    """Rows of the picture once it is finished."""


@dataclass
class Photos:
    """What a model was learned from, to compare it with."""

    cameras: Sequence[Camera]
    names: Sequence[str]
    images: Sequence[UInt8[np.ndarray, "h w 4"]]
    """RGBA with straight alpha."""
    _kept: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict)

    def nearest(self, eye: Eye) -> int:
        """The photo whose camera stands and looks most nearly as the eye does: its distance in units of the cameras'
        spread, and the angle in radians, count alike."""
        position = torch.stack([camera.position for camera in self.cameras])
        forward = torch.stack([camera.forward for camera in self.cameras])
        spread = float((position - position.mean(0)).norm(dim=1).mean()) or 1.0
        cosine = (forward @ eye.camera_to_world[:, 2]).clamp(-1, 1)
        apart = (position - eye.camera_to_world[:, 3]).norm(dim=1) / spread + torch.arccos(cosine)
        return int(apart.argmin())

    def scaled(self, index: int, width: int, height: int) -> UInt8[np.ndarray, "h w 4"]:
        """A photo at another size.

        Args:
            index: Which photo.
            width: Pixels in a row.
            height: Rows.
        """
        image = self.images[index]
        if image.shape[:2] == (height, width):
            return image
        key = index, width, height
        if key not in self._kept:
            while len(self._kept) >= 8:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = _resized(image, width, height)
        return self._kept[key]


def _resized(image: UInt8[np.ndarray, "h w c"], width: int, height: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(values, (height, width), mode="bilinear", antialias=True)
    return scaled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


Reference = Photos | Any
"""What a model is compared with: photos, or for a trained picture the picture itself, whose
`region(left, top, width, height)` gives its values."""


@runtime_checkable
class HasDistance(Protocol):
    """A model of a signed distance."""

    def distance(self, positions_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Signed distance in world units, negative inside."""
        ...


@runtime_checkable
class HasDensity(Protocol):
    """A model of a density in space."""

    def density(self, positions_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Density per world unit of length."""
        ...


def is_picture(model: HasFrames) -> bool:
    """Whether a model shows parts of a picture, not what cameras see."""
    return any(isinstance(view, PictureView) for views in model.views.values() for view in views)


def cameras_of(model: HasFrames) -> list[Camera]:
    """All cameras that a model knows of."""
    return [view for views in model.views.values() for view in views if isinstance(view, Camera)]


def outputs_of(model: HasFrames) -> tuple[str, ...]:
    """What a model can be shown as; "difference" and "photo" need what it was learned from."""
    found = list(model.outputs)
    if isinstance(model, HasDistance | HasDensity) and isinstance(model, HasBox):
        found.append("slice")
    if is_picture(model):
        return (*found, "difference")
    return (*found, "difference", "photo") if cameras_of(model) else tuple(found)


# --- pictures in the making


class Canvas(ABC):
    """A picture that is made some rows at a time."""

    width: int
    height: int
    note: str = ""
    """What is to be said of it, such as the name of the photo that it is compared with."""

    @abstractmethod
    def rows(self, top: int, n_rows: int) -> UInt8[np.ndarray, "n_rows width 3"]:
        """Some rows of the picture.

        Args:
            top: The first of them.
            n_rows: How many.
        """


def canvas_of(
    model: HasFrames, wish: Wish, rows: int, *, reference: Reference | None = None, like: Canvas | None = None,
    is_draft: bool = False,
) -> Canvas:  # fmt: skip
    """The picture that is asked for, to be made.

    Args:
        model: What is shown.
        wish: What is asked for; its own number of rows is not read.
        rows: Rows of the picture; fewer where its shape is not the window's.
        reference: What the model was learned from.
        like: A finished picture of the same wish, whose scale of colours is kept.
        is_draft: Whether the picture may be rough.

    Raises:
        ConfigError: it cannot be shown; the text says why.
    """
    width = min(max(2, round(rows * wish.aspect)), LARGEST_SIDE)
    if isinstance(wish.view, Pan):
        return _PictureCanvas(model, wish.view, wish.look, (width, rows), reference, is_draft)
    if wish.look.output in ("difference", "photo"):
        if not isinstance(reference, Photos) or not reference.cameras:
            raise ConfigError("the photos are not read")
        return _PhotoCanvas(model, wish.view, wish.look, (width, rows), reference)
    return _CameraCanvas(model, wish, (width, rows), like.scale if isinstance(like, _CameraCanvas) else None)


_NEEDS: Final = {
    "color": ("color",), "depth": ("depth", "opacity"), "normals": ("normals", "opacity"), "opacity": ("opacity",),
    "slice": ("color", "depth", "opacity"),
}  # fmt: skip


class _CameraCanvas(Canvas):
    def __init__(self, model: HasFrames, wish: Wish, size: tuple[int, int], scale: tuple[float, float] | None) -> None:
        assert isinstance(wish.view, Eye)
        self.look, self.scale = wish.look, scale
        if self.look.output not in _NEEDS or not set(_NEEDS[self.look.output]) <= set(model.outputs):
            raise ConfigError(f"this model cannot be shown as {self.look.output!r}")
        self.whole = model
        self.model = model.within(self.look.crop) if self.look.crop and isinstance(model, HasBox) else model
        self.width, self.height = size
        self.camera = wish.view.camera(self.width, self.height, wish.aspect)
        if self.look.output == "slice":
            assert isinstance(self.model, HasBox) and isinstance(model, HasBox)
            self.box = self.model.box_world.double().cpu()
            axis = self.look.slice_axis
            self.plane = float(self.box[0, axis] + self.look.slice_at * (self.box[1, axis] - self.box[0, axis]))
            if isinstance(model, HasDistance):  # nobody would see the inside of a closed surface
                self.model = model.within(_beyond(self.box, axis, self.plane, self.camera.position))

    def rows(self, top: int, n_rows: int) -> UInt8[np.ndarray, "n_rows width 3"]:
        look = self.look
        region = Region(0, top, self.width, n_rows)
        found = self.model.frame(self.camera, _NEEDS[look.output], look.background, region)
        if look.output == "color":
            return to_uint8(found["color"])
        if look.output == "opacity":
            return colorize_opacity(found["opacity"])
        if look.output == "normals":
            return colorize_normals(found["normals"], found["opacity"], empty=look.background)
        if look.output == "depth":
            self.scale = self.scale or depth_range([found["depth"]], [found["opacity"]])
            near, far = self.scale
            return colorize_depth(found["depth"], found["opacity"], near=near, far=far, empty=look.background)
        return self._sliced(found, region)

    def _sliced(self, found: Frame, region: Region) -> UInt8[np.ndarray, "n_rows width 3"]:
        """The scene with a plane through it, on which the model's values are shown."""
        model, box, axis = self.whole, self.box, self.look.slice_axis
        assert isinstance(model, HasBox)
        diagonal = float((model.box_world[1] - model.box_world[0]).norm())
        point, t = self._on_plane(region)
        others = [k for k in range(3) if k != axis]
        inside = ((point >= box[0]) & (point <= box[1]))[..., others].all(-1) & (t > 0)
        # where a surface is cut open, the cut lies in the plane
        behind = torch.from_numpy(found["opacity"] > 0.5) & (torch.from_numpy(found["depth"]) < t - 1e-3 * diagonal)
        shown = (inside & ~behind).numpy()
        picture = to_uint8(found["color"])
        if shown.any():
            beside = [self._on_plane(region, *shift)[0] for shift in ((1, 0), (0, 1))]
            points = torch.stack([point, *beside])[:, torch.from_numpy(shown)].float()
            with torch.no_grad():
                picture[shown] = _slice_colors(model, points, diagonal)
        return picture

    def _on_plane(self, region: Region, across: int = 0, down: int = 0) -> tuple[Tensor, Tensor]:
        """Where the rays of pixels meet the plane, in the world, and how far along them.

        Args:
            region: The pixels.
            across: So many pixels to the right of them.
            down: So many pixels below them.
        """
        axis, moved = self.look.slice_axis, replace(region, left=region.left + across, top=region.top + down)
        origin, direction = _rays(self.camera, moved)
        speed = direction[..., axis]
        t = (self.plane - float(origin[axis])) / torch.where(speed.abs() > 1e-12, speed, torch.full_like(speed, 1e-12))
        return origin + t[..., None] * direction, t


def _beyond(box: Float64[Tensor, "2 3"], axis: int, plane: float, eye: Float64[Tensor, " 3"]) -> Corners:
    """Corners of the part of a box that lies beyond a plane, as an eye sees it: a thousandth of the box at least.

    Args:
        box: Lowest and highest corner.
        axis: The axis that the plane is perpendicular to.
        plane: Where it cuts that axis.
        eye: Where one looks from.
    """
    low, high = box.clone()
    least = 1e-3 * (high[axis] - low[axis])
    if eye[axis] > plane:
        high[axis] = max(plane, float(low[axis] + least))
    else:
        low[axis] = min(plane, float(high[axis] - least))
    (x0, y0, z0), (x1, y1, z1) = low.tolist(), high.tolist()
    return (x0, y0, z0), (x1, y1, z1)


def _rays(camera: Camera, region: Region) -> tuple[Float64[Tensor, " 3"], Float64[Tensor, "h w 3"]]:
    """Where a pinhole's rays begin, and their unit directions."""
    x = (torch.arange(region.width, dtype=torch.float64) + region.left + 0.5 - camera.cx) / camera.fx
    y = (torch.arange(region.height, dtype=torch.float64) + region.top + 0.5 - camera.cy) / camera.fy
    down, across = torch.meshgrid(y, x, indexing="ij")
    local = torch.stack([across, down, torch.ones_like(across)], -1)
    local = local / local.norm(dim=-1, keepdim=True)
    return camera.position, local @ camera.camera_to_world[:, :3].T


def _slice_colors(model: Any, points: Float[Tensor, "3 n 3"], diagonal: float) -> UInt8[np.ndarray, "n 3"]:
    """Colours of a model's values: a signed distance as bands, blue inside and orange outside, with a black line where
    it is 0; a density from dark (nothing) to light (solid). Lines are a pixel wide or more, however the plane is seen.

    Args:
        model: Has a distance, or a density.
        points: In the world: of the pixels, and of those to the right of and below them.
        diagonal: Length of the diagonal of the model's box, in world units.
    """
    if isinstance(model, HasDistance):
        share, *beside = (model.distance(part).cpu().numpy() / diagonal for part in points)
        change = np.hypot(*(other - share for other in beside))  # from a pixel to the next one
        fade = np.clip(np.abs(share) / 0.25, 0.0, 1.0)[:, None] ** 0.5
        near, far = np.array([0.95, 0.97, 1.0]), np.where((share < 0)[:, None], [0.10, 0.25, 0.65], [0.80, 0.35, 0.10])
        color = near * (1 - fade) + far * fade
        band = np.abs(share - 0.02 * np.round(share / 0.02)) < np.maximum(8e-4, 0.5 * change)
        band &= change < 8e-3  # from far, bands would be all there is
        color = np.where(band[:, None], 0.75 * color, color)
        is_zero = np.abs(share) < np.clip(0.6 * change, 1.2e-3, 0.02)
        return to_uint8(np.where(is_zero[:, None], 0.0, color))
    points = points[0]
    density = model.density(points.to(_device_of(model))).float().cpu().numpy()
    # How opaque a layer of a hundredth of the box is: what counts for a picture.
    solid = 1 - np.exp(-np.clip(density, 0, 1e9) * 0.01 * diagonal)
    return colorize_depth((1 - solid)[None], np.ones_like(solid)[None], near=0.0, far=1.0)[0]


def _device_of(model: Any) -> torch.device:
    return next(iter(model.buffers())).device if hasattr(model, "buffers") else torch.device("cpu")


class _PhotoCanvas(Canvas):
    """The photo that was taken nearest to the eye, or how far the model is from it, through that photo's own lens."""

    def __init__(self, model: HasFrames, eye: Eye, look: Look, size: tuple[int, int], photos: Photos) -> None:
        self.model, self.look, self.photos = model, look, photos
        self.index = photos.nearest(eye)
        camera = photos.cameras[self.index]
        scale = min(1.0, size[0] / camera.width, size[1] / camera.height)
        self.width, self.height = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
        self.camera = camera.resized(self.width, self.height)
        self.note = photos.names[self.index]
        self._error, self._n_rows = 0.0, 0

    def rows(self, top: int, n_rows: int) -> UInt8[np.ndarray, "n_rows width 3"]:
        photo = over(self.photos.scaled(self.index, self.width, self.height)[top : top + n_rows], self.look.background)
        if self.look.output == "photo":
            return to_uint8(photo)
        found = self.model.frame(self.camera, ("color",), self.look.background, Region(0, top, self.width, n_rows))
        self._error += float(np.square(np.clip(found["color"], 0.0, 1.0) - photo, dtype=np.float64).sum())
        self._n_rows += n_rows
        if self._n_rows == self.height and self._error > 0:
            decibels = -10 * math.log10(self._error / (3 * self.width * self.height))
            self.note = f"{self.photos.names[self.index]}, PSNR {decibels:.1f} dB"
        return error_picture(found["color"], photo)


class _PictureCanvas(Canvas):
    """A part of a trained picture, with grey around it where the window shows more."""

    def __init__(
        self, model: HasFrames, pan: Pan, look: Look, size: tuple[int, int], reference: Any, is_draft: bool
    ) -> None:
        self.model, self.pan, self.look, self.reference = model, pan, look, reference
        self.width, self.height = size
        self.most_per_axis = DRAFT_POINTS if is_draft else PictureView.most_per_axis
        whole = next(view for views in model.views.values() for view in views if isinstance(view, PictureView))
        self.picture_width, self.picture_height = whole.crop[2], whole.crop[3]
        if look.output == "difference" and reference is None:
            raise ConfigError("the picture is not read")

    def rows(self, top: int, n_rows: int) -> UInt8[np.ndarray, "n_rows width 3"]:
        shown = np.full((n_rows, self.width, 3), SURROUND, np.uint8)
        step = self.pan.rows_shown / self.height
        x = self.pan.center[0] + (np.arange(self.width) + 0.5 - 0.5 * self.width) * step
        y = self.pan.center[1] + (np.arange(top, top + n_rows) + 0.5 - 0.5 * self.height) * step
        columns, lines = _within(x, self.picture_width), _within(y, self.picture_height)
        if not columns.any() or not lines.any():
            return shown
        x, y = x[columns], y[lines]
        if self.look.output == "difference":
            part = self._difference(x, y)
        elif self.look.has_single_pixels and step < 1:
            part = self._pixels(x, y)
        else:
            part = self._smooth(x, y, step)
        shown[np.ix_(lines, columns)] = part
        return shown

    def _smooth(self, x: np.ndarray, y: np.ndarray, step: float) -> UInt8[np.ndarray, "h w 3"]:
        left, top = max(0.0, x[0] - 0.5 * step), max(0.0, y[0] - 0.5 * step)
        width = min(len(x) * step, self.picture_width - left)
        height = min(len(y) * step, self.picture_height - top)
        return self._frame(PictureView((left, top, width, height), len(x), len(y), self.most_per_axis))

    def _pixels(self, x: np.ndarray, y: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        column, row = x.astype(np.int64), y.astype(np.int64)
        left, top = int(column[0]), int(row[0])
        width, height = int(column[-1]) - left + 1, int(row[-1]) - top + 1
        found = self._frame(PictureView((left, top, width, height), width, height))
        return found[np.ix_(row - top, column - left)]

    def _frame(self, view: PictureView) -> UInt8[np.ndarray, "h w 3"]:
        found = self.model.frame(view, (self.look.output,), self.look.background)[self.look.output]
        if found.ndim == 2:
            return colorize_opacity(found)
        return to_uint8(np.repeat(found, 3, axis=2) if found.shape[2] == 1 else found)

    def _difference(self, x: np.ndarray, y: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """The model's error at the middle of the pixels that the window's pixels fall in."""
        column, row = x.astype(np.int64), y.astype(np.int64)
        left, width = int(column[0]), int(column[-1] - column[0]) + 1
        wanted = np.stack([self.reference.region(left, int(line), width, 1)[0][column - left] for line in row])
        middle = np.meshgrid((column + 0.5) / self.picture_width, (row + 0.5) / self.picture_height)
        model: Any = self.model
        with torch.no_grad():
            found = model(torch.from_numpy(np.stack(middle, -1))).cpu().numpy()
        n = 1 if found.shape[2] < 3 else 3
        shown, right = (np.repeat(values[..., :n], 3 // n, axis=2) for values in (found, wanted))
        return error_picture(shown, right)


def _within(place: np.ndarray, size: float) -> Bool[np.ndarray, " n"]:
    return (place >= 0) & (place < size)


def fitted(picture: UInt8[np.ndarray, "h w 3"], aspect: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture in the middle of a window of another shape: bars make up for the difference, nothing is stretched."""
    height, width = picture.shape[:2]
    wide, high = max(width, round(height * aspect)), max(height, round(width / aspect))
    if (wide - width) <= 1 and (high - height) <= 1:
        return picture
    shown = np.full((high, wide, 3), SURROUND, np.uint8)
    top, left = (high - height) // 2, (wide - width) // 2
    shown[top : top + height, left : left + width] = picture
    return shown


# --- where the model lies on the page


@dataclass(frozen=True, eq=False)
class Stage:
    """How the page's space lies to the world's: the page's units are such that its own speeds and limits suit."""

    center: Float64[np.ndarray, " 3"]
    """Point of the world that is the page's origin: what there is to look at."""
    scale: float
    """Units of the page per unit of the world."""
    up: Float64[np.ndarray, " 3"]
    """Unit vector, the same in both."""
    home: Eye
    """Where a new visitor stands."""

    def to_page(self, points_world: np.ndarray) -> np.ndarray:
        """Points of the world on the page."""
        return (np.asarray(points_world, np.float64) - self.center) * self.scale

    def to_world(self, points_page: np.ndarray) -> np.ndarray:
        """Points of the page in the world."""
        return np.asarray(points_page, np.float64) / self.scale + self.center

    def eye(self, rotation: np.ndarray, position_page: np.ndarray, fov_y: float) -> Eye:
        """An eye from a camera of the page.

        Args:
            rotation: [3, 3]; columns are the camera's right, down and forward.
            position_page: [3].
            fov_y: Vertical field of view in radians.

        Raises:
            ConfigError: some number is not finite, or no field of view.
        """
        numbers = np.concatenate([np.ravel(rotation), np.ravel(position_page), [fov_y]])
        if not np.isfinite(numbers).all() or not 0 < fov_y < math.pi:
            raise ConfigError("camera: not finite, or without a field of view")
        pose = np.concatenate([rotation, self.to_world(position_page)[:, None]], 1)
        return Eye(torch.from_numpy(pose), float(fov_y))


def stage_of(model: HasFrames) -> Stage:
    """The stage of what cameras see: around what they look at, or around the box of a model without any."""
    cameras = cameras_of(model)
    if cameras:
        center, up = focus_point(cameras), up_axis(cameras)
        distance = float(torch.stack([(camera.position - center).norm() for camera in cameras]).median())
        home = eye_of(cameras[0])
        if math.isfinite(distance) and distance > 0 and bool(torch.isfinite(center).all()):
            return Stage(center.numpy(), TYPICAL_DISTANCE / distance, up.numpy(), home)
    corners = model.box_world.double().cpu() if isinstance(model, HasBox) else torch.tensor([[-1.0] * 3, [1.0] * 3])
    center, reach = corners.double().mean(0), float((corners[1] - corners[0]).norm())
    toward = torch.tensor([0.55, -0.75, 0.45], dtype=torch.float64)
    pose = look_at(center + reach * toward / toward.norm(), center)
    return Stage(center.numpy(), TYPICAL_DISTANCE / reach, np.array([0.0, 0.0, 1.0]), Eye(pose, math.radians(50)))


@dataclass(frozen=True)
class PictureStage:
    """How a page's camera pans and zooms a picture that stands upright before it, two units high, in the plane y = 0.

    The page turns its camera when it is dragged by the left button. Here that pans, just as the other button does: a
    turn by an angle is a drag by as much of the window's height as it is of a full turn. Going forward zooms in.
    """

    width: float
    """Pixels of the picture in a row."""
    height: float
    fov_y: float = math.radians(50)

    @property
    def whole(self) -> Pan:
        """All of the picture, with a margin."""
        return Pan((0.5 * self.width, 0.5 * self.height), 1.05 * self.height)

    def pan(self, position: np.ndarray, target: np.ndarray) -> Pan:
        """What a camera of the page shows.

        Args:
            position: [3], where it stands.
            target: [3], what it turns around.

        Raises:
            ConfigError: some number is not finite, or the camera stands on its target.
        """
        forward = np.asarray(target, np.float64) - position
        distance = float(np.linalg.norm(forward))
        if not (np.isfinite(forward).all() and distance > 0 and np.isfinite(target).all()):
            raise ConfigError("camera: not finite")
        high = 2 * distance * math.tan(0.5 * self.fov_y) * 2.0 ** float(np.clip(-target[1], -60, 60))
        turned = math.atan2(forward[0], forward[1]), math.asin(max(-1.0, min(1.0, forward[2] / distance)))
        x, z = (float(target[k]) - angle / (2 * math.pi) * high for k, angle in ((0, turned[0]), (2, turned[1])))
        unit = self.height / 2
        rows = min(max(high * unit, 0.5), 16 * max(self.height, self.width))
        x, y = 0.5 * self.width + x * unit, 0.5 * self.height - z * unit
        return Pan((min(max(x, 0.0), self.width), min(max(y, 0.0), self.height)), rows)

    def place(self, pan: Pan) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Position and target of the camera that looks straight at this."""
        unit = self.height / 2
        x, z = (pan.center[0] - 0.5 * self.width) / unit, (0.5 * self.height - pan.center[1]) / unit
        return (x, -pan.rows_shown / unit / (2 * math.tan(0.5 * self.fov_y)), z), (x, 0.0, z)

    def zoomed_to(self, pan: Pan, corners: Sequence[tuple[float, float]], aspect: float) -> Pan:
        """What a rectangle in the window shows, as large as it fits.

        Args:
            pan: What the window shows now.
            corners: Two opposite corners, in shares of the window, right and down.
            aspect: Width of the window over its height.
        """
        (x0, y0), (x1, y1) = corners
        high = max(abs(y1 - y0), abs(x1 - x0), 1e-3)
        x = pan.center[0] + (0.5 * (x0 + x1) - 0.5) * aspect * pan.rows_shown
        y = pan.center[1] + (0.5 * (y0 + y1) - 0.5) * pan.rows_shown
        return replace(pan, center=(x, y), rows_shown=max(high * pan.rows_shown, 0.5))

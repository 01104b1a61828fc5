"""What a reader of posed photos hands over: views as the data state them, nothing decoded yet.

`hashfield.data.assemble` makes a `Scene` out of it, in the same way for all forms of data.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.data.images import ImageHeader, exif_orientation
from hashfield.data.json_fields import one_line
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import DEFAULT_OFFSET, DEFAULT_SCALE

SPLITS = ("train", "val", "test")
LARGEST = 1e15
"""Numbers of a data file beyond this are no measurements, and their squares would swamp everything else."""


@dataclass
class Tally:
    """What was mended while cameras were made, gathered so that it is said once. Each list holds the names of
    views."""

    scaled: list[str] = field(default_factory=list)
    """Rotations that held a uniform scale."""
    resized: list[tuple[str, str]] = field(default_factory=list)
    """Photos of another size than stated, and both sizes in words."""
    r8: list[str] = field(default_factory=list)
    """Lenses with a k4 that are no fisheye."""
    fitted: dict[str, float] = field(default_factory=dict)
    """Lenses that are read as the nearest of ours, in words -> the most that these differ, in pixels."""
    doubtful: dict[str, list[str]] = field(default_factory=dict)
    """What contradicts itself or is unusual in the data about a view, in words -> views."""
    reduced: dict[str, list[str]] = field(default_factory=dict)
    """What was lost in decoding -> photos."""
    damaged: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong with a photo's file although it was decoded -> photos."""


@dataclass(frozen=True)
class StatedMask:
    """A picture of a photo's size that tells which of its pixels show the scene."""

    path: Path
    field: str
    """The field that leads to it, for errors."""
    keeps_black: bool
    """Whether black pixels are those to learn from (instant-ngp's dynamic masks) or all others (nerfstudio's)."""


@dataclass(frozen=True)
class StatedDepth:
    """A picture that tells how far away is what a photo shows, along the camera's axis."""

    path: Path | None
    """None where the file that is stated does not exist."""
    stated: str
    """The file as the data name it."""
    field: str
    """The field that leads to it, for errors."""
    scale: float
    """World units of 1 in a picture of whole numbers; floats are world units."""
    is_metric: bool
    """Whether the data's convention says that world units are metres."""


@dataclass(frozen=True, eq=False)
class StatedView:
    """One photo and its camera, as the data state them."""

    name: str
    """How the data name the photo, for messages."""
    place: str
    """Where the data state the view, as the beginning of an error: "transforms.json: frame 3 (images/a.png)"."""
    image: Path | None
    """The photo's file, None where it is missing."""
    make_camera: Callable[[ImageHeader, Tally], Camera]
    """The camera for the photo at its stored size, in the world and with OpenCV axes. It is called only for
    views that are read, so that errors in other views do not matter."""
    splits: frozenset[str] = frozenset()
    """Splits among train, val and test that list the view; empty where the data leave that open."""
    masks: tuple[StatedMask, ...] = ()
    """Pixels must pass all of them."""
    matte: Path | None = None
    """A grey picture of the photo's size that is its alpha: white where the object is, black where nothing is."""
    make_depth: Callable[[], StatedDepth | None] = lambda: None
    """What the data say of depth; None: nothing. Called only where depth is asked for, as it may raise."""
    image_field: str = "file_path"
    """The field that names the photo, for errors about the file."""

    @property
    def path(self) -> Path:
        """The file of a photo that exists."""
        assert self.image is not None
        return self.image

    def fail(self, message: str, name: str | None = None) -> DataError:
        """The error to raise about the view: about its file, or about the field with this name."""
        return DataError(one_line(f"{self.place}: '{name or self.image_field}': {message}"))


@dataclass(frozen=True)
class StatedSpaces:
    """What the data say about the training box. None is left to `assemble`."""

    scale: float | None = DEFAULT_SCALE
    """Scene units per world unit."""
    offset: tuple[float, float, float] | None = DEFAULT_OFFSET
    """See `Spaces`; None together with `scale`."""
    aabb_scale: int | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    """For "scale", "offset" and "aabb_scale": where the value comes from, in words."""


@dataclass(frozen=True)
class StatedScene:
    """A data set as its files state it."""

    name: str
    path: Path
    """What the user named."""
    data_file: Path
    """The file that errors about the whole are about."""
    folder: Path
    """Names of photos are relative to it."""
    form: str
    """The form of the data, e.g. "instant-ngp"."""
    views: tuple[StatedView, ...]
    """All views, in the order in which every eighth is held out where the data have no splits. A view of several splits
    may be there once with all of them or once for each."""
    spaces: StatedSpaces
    split_rule: str = ""
    """What decides the splits where views state them, e.g. "by file"."""
    order: str = "natural order"
    """The order of the views, in words for messages."""
    view_noun: str = "frames"
    """What the data call their views, for messages."""
    points: Float64[np.ndarray, "n_points 3"] | None = None
    """Points of the world between which the scene lies, among them some that are wrong."""
    points_origin: str = ""
    """What the points are, in words, e.g. "5000 points of points3D.bin"."""
    has_surface_points: bool = False
    """Whether the points lie on surfaces that photos show, as those of structure from motion; else they only tell where
    the scene begins and ends."""
    sparse_model: Path | None = None
    """Folder of a COLMAP model of these views, which tells what points each of them shows."""
    has_fixed_axes: bool = False
    """Whether the form leaves no doubt about camera axes, so that no other ones are suggested."""
    notes: tuple[str, ...] = ()
    """Lines for the user about the reading."""
    final_notes: Callable[[list[StatedView], Tally], list[str]] = lambda views, tally: []
    """More lines, for the views that were read, once their cameras are made."""

    def name_of(self, view: StatedView) -> str:
        """How a view's photo is called in a scene: its file relative to the data's folder."""
        return Path(os.path.relpath(view.path, self.folder)).as_posix()


# --- checks that several readers need

_SHEAR = 0.02  # cosine between two axes, or difference of their lengths: 1 degree, 2 %
_SCALE_SAID = 0.01  # a determinant this far from 1 is said to be scaled, as instant-ngp does
_EXACT = 1e-5  # rotations nearer to orthonormal than this are taken as they are


def rigid_pose(
    pose: Float64[Tensor, "3 4"], convention: str, fail: Callable[[str], DataError]
) -> tuple[Float64[Tensor, "3 4"], bool]:
    """The pose with a uniform scale and rounding removed from its rotation, and whether a scale was removed.

    Args:
        pose: finite camera-to-world matrix with any camera axes of a right-handed frame.
        convention: what the matrix should be, for the error about a mirror image.
        fail: makes the error to raise from its text.

    Raises:
        DataError: the rotation is singular, sheared, scaled unevenly or mirrored.
    """
    axes, identity = pose[:, :3], torch.eye(3, dtype=torch.float64)
    lengths = axes.norm(dim=0)
    if not float(lengths.min()) > 1e-9:
        raise fail("the rotation is singular: an axis has length 0")
    cosine = float(((axes / lengths).T @ (axes / lengths) - identity).abs().max())
    shown = " ".join(f"{length:.4g}" for length in lengths.tolist())
    if cosine > _SHEAR:
        angle = float(np.degrees(np.arcsin(min(1.0, cosine))))
        raise fail(f"the rotation is sheared: its axes are {angle:.3g} degrees off right angles")
    if float(lengths.max() / lengths.min()) - 1 > _SHEAR:
        raise fail(f"the rotation is scaled unevenly: its axes are {shown} long")
    determinant = float(torch.linalg.det(axes))
    if determinant < 0:
        raise fail(f"the rotation is mirrored (determinant < 0): expected {convention}")
    if float((axes.T @ axes - identity).abs().max()) > _EXACT:
        # the nearest rotation: the orthogonal factor of the polar decomposition, exact for a uniform scale
        left, _, right = torch.linalg.svd(axes)
        pose = torch.cat([left @ right, pose[:, 3:]], dim=1)
    return pose, abs(determinant - 1) > _SCALE_SAID


def check_magnitude(values: np.ndarray, place: str) -> None:
    """Raise DataError that begins with `place` where one of the numbers is not finite or beyond `LARGEST`."""
    if not bool((np.abs(values) < LARGEST).all()):  # NaN too
        fault = "out of all proportion" if bool(np.isfinite(values).all()) else "not finite"
        raise DataError(f"{place}: {fault}")


def check_size(
    view: StatedView, stated: tuple[float | None, float | None], header: ImageHeader, tally: Tally, name: str = "w, h"
) -> None:
    """Raise where the photo is not the stated one at another resolution; tally where it is.

    Args:
        view: whose photo it is.
        stated: width and height in pixels that the data state; None is not checked.
        header: what the photo's file says.
        tally: gets the view if the photo has another resolution.
        name: the field that states the size.

    Raises:
        DataError: the photo has another shape than stated.
    """
    width, height = stated
    real = (header.width, header.height)
    if width is None or height is None or (width, height) == real:
        return
    sizes = f"{width:g}x{height:g} stated, {header.width}x{header.height} found"
    if has_same_aspect(real, (width, height)):
        tally.resized.append((view.name, sizes))
        return
    cause = ""
    if has_same_aspect(real, (height, width)):
        tag = exif_orientation(view.path)
        cause = "; width and height are swapped, probably by a rotation that only the EXIF tag asks for"
        cause += f" (it is {tag} here)" if tag > 1 else ""
    raise view.fail(f"another shape than the image: {sizes}{cause}", name)


def has_same_aspect(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one size is the other scaled by one factor, its sides rounded down, up or to the nearest."""
    small, large = sorted((size, other), key=lambda sides: sides[0] * sides[1])
    shape = large[1] / large[0]
    return abs(small[0] * shape - small[1]) < max(1.0, shape)

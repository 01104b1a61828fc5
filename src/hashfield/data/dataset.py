"""Posed images in memory, and the table of readers that make them from a folder or file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float64

from hashfield.data.depth import DepthSource, PhotoDepth
from hashfield.data.foreign import foreign_hint
from hashfield.data.stated import StatedScene
from hashfield.data.video_frames import is_video
from hashfield.errors import ConfigError, DataError, ShapeError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import Spaces, is_aabb_scale

GIB: Final = 1024**3


@dataclass(frozen=True)
class PosedImages:
    """Views with their cameras.

    Raises:
        ShapeError: counts differ, an image is not uint8 RGBA of its camera's size, or a mask not bool of that size.
    """

    cameras: tuple[Camera, ...]
    """Cameras in the world; width and height are those of the image."""
    images: Sequence[np.ndarray]
    """Photos, uint8 [height, width, 4]: RGBA in sRGB with straight alpha; sizes may differ. Where they lie in `files`,
    each is read whenever it is asked for: ask for one at a time."""
    names: tuple[str, ...]
    """File names relative to the data file, with forward slashes."""
    masks: list[np.ndarray] | None = None
    """A mask for each view, bool [height, width]: True where the pixel shows the scene and may be learned from. None:
    True everywhere."""
    files: tuple[Path, ...] | None = None
    """Where images are not in memory: the file of each one's bytes, see `hashfield.steps.stored_photos`."""
    depths: tuple[PhotoDepth, ...] | None = None
    """What is known of depth in each view, where it was asked for and anything is known."""
    gains: Float64[np.ndarray, "n_views 3"] | None = None
    """What renderings' channels (sRGB) are multiplied by to be as bright as the photos; None: 1."""

    def __post_init__(self) -> None:
        if not len(self.cameras) == len(self.images) == len(self.names):
            counts = f"{len(self.cameras)} cameras, {len(self.images)} images, {len(self.names)} names"
            raise ShapeError(f"PosedImages: {counts}")
        if self.masks is not None and len(self.masks) != len(self.cameras):
            raise ShapeError(f"PosedImages: {len(self.cameras)} cameras, {len(self.masks)} masks")
        if self.depths is not None and len(self.depths) != len(self.cameras):
            raise ShapeError(f"PosedImages: {len(self.cameras)} cameras, {len(self.depths)} depths")
        if self.gains is not None and self.gains.shape != (len(self.cameras), 3):
            raise ShapeError(f"PosedImages: {len(self.cameras)} cameras, gains {self.gains.shape}")
        # those in files have the size that they were read with
        in_memory = self.images if self.files is None else ()
        for camera, image, name in zip(self.cameras, in_memory, self.names, strict=self.files is None):
            if image.dtype != np.uint8 or image.shape != (camera.height, camera.width, 4):
                raise ShapeError(
                    f"PosedImages: {name}: expected uint8 ({camera.height}, {camera.width}, 4), "
                    f"got {image.dtype} {image.shape}"
                )

        for camera, mask, name in zip(self.cameras, self.masks or (), self.names, strict=self.masks is not None):
            if mask.dtype != np.bool_ or mask.shape != (camera.height, camera.width):
                raise ShapeError(
                    f"PosedImages: mask of {name}: expected bool ({camera.height}, {camera.width}), "
                    f"got {mask.dtype} {mask.shape}"
                )

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def n_pixels(self) -> int:
        """Pixels of all images together."""
        return sum(camera.width * camera.height for camera in self.cameras)


@dataclass(frozen=True)
class Scene:
    """A data set, read."""

    name: str
    path: Path
    """What the user named, as an absolute path; a link to a file keeps its own name."""
    form: str
    """The form of the data that were read, e.g. "instant-ngp"."""
    spaces: Spaces
    has_alpha: bool
    """Whether any image that was read has a pixel with alpha below 255: then empty space is known, not
    guessed."""
    splits: Mapping[str, PosedImages]
    """"train" and "test" (never trained on), "val" where the data has one; only those asked for."""
    camera_axes: str = "opengl"
    """Axes of the cameras in the file, by which the poses were read; see ReadOptions."""
    notes: tuple[str, ...] = ()
    """Lines for the user: what was found, chosen, skipped. Those that begin with "warning: " need a look."""
    folder: Path | None = None
    """What the names of photos are relative to; None where there are no files."""
    unit: str | None = None
    """What a world unit is, e.g. "metres", where the data say it."""
    resident_bytes: int | None = None
    """Where images are not in memory: how much of them training may hold at a time."""
    reading: Mapping[str, str | None] = field(default_factory=dict)
    """How pixels were read: "alpha", "masks" and "masks_keep" of ReadOptions, for whoever reads the photos again."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read a data set.

    Raises:
        ConfigError: a value is out of range.
    """

    downscale: int = 1
    """Whole number that divides widths and heights."""
    max_image_memory: int = 4 * GIB
    """Bytes that decoded images may take, 4 a pixel. Where they take more they lie in files, and half of this is in
    memory while a model is trained. Depth maps have what the photos leave of it."""
    image_cache: Path | None = None
    """Folder of these files; None: in the user's cache."""
    say: Callable[[str], object] = field(default=lambda text: None, compare=False)
    """Told about reading that takes long, while it goes on."""
    aabb_scale: int | None = None
    """Replaces the side of the training box, a power of two in 1..128; None: the file's, or chosen."""
    aabb_scale_origin: str = "--aabb-scale"
    """Where `aabb_scale` comes from, in words for the note about the box."""
    camera_axes: Literal["opengl", "opencv"] = "opengl"
    """Axes of the cameras in the file: "opengl" (x right, y up, looking along -z), as the format has it, or "opencv"
    (x right, y down, looking along +z), as files of some exporters have it."""
    splits: tuple[str, ...] = field(default=("train", "test"))
    """Which of train, val and test to decode."""
    alpha: Literal["auto", "matte", "mask"] = "auto"
    """What it means where photos are not opaque: "matte" cuts an object out, nothing is there where it is 0; "mask"
    leaves pixels out, something unknown is there; "auto" is a matte where many pixels are clear, as around objects."""
    masks: Path | None = None
    """Folder of a mask for each photo, besides those that the data state."""
    masks_keep: Literal["white", "black"] = "white"
    """Which pixels of these masks are learned from: those that are not black, or the black ones."""
    least_side: int = 1
    """Pixels that every side of a photo must have as it will lie in memory, e.g. what a measure of quality needs."""

    longest_side: int | None = None
    """Divide widths and heights of all photos by the smallest whole number that makes no side longer than this, where
    that is more than `downscale`."""
    depth: tuple[DepthSource, ...] = ()
    """What is read of depth for the training views: "files", the depth maps that the data name; "points", the points of
    structure from motion that each photo shows."""

    def __post_init__(self) -> None:
        for name in ("downscale", "max_image_memory", "least_side"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number >= 1, got {value!r}")
        if self.aabb_scale is not None and not is_aabb_scale(self.aabb_scale):
            raise ConfigError(f"aabb_scale: expected a power of two in 1..128, got {self.aabb_scale!r}")
        if self.camera_axes not in ("opengl", "opencv"):
            raise ConfigError(f"camera_axes: expected opengl or opencv, got {self.camera_axes!r}")
        if self.alpha not in ("auto", "matte", "mask"):
            raise ConfigError(f"alpha: expected auto, matte or mask, got {self.alpha!r}")
        if self.masks_keep not in ("white", "black"):
            raise ConfigError(f"masks_keep: expected white or black, got {self.masks_keep!r}")
        unknown = [name for name in self.splits if name not in ("train", "val", "test")]
        if unknown or not self.splits:
            raise ConfigError(f"splits: expected some of train, val, test, got {self.splits!r}")


def stored_reading(scene: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `ReadOptions` about alpha and masks, from what a checkpoint tells of its scene; the defaults for those
    that it does not tell, as checkpoints of earlier versions."""
    reading = scene.get("reading")
    reading = reading if isinstance(reading, dict) else {}
    masks = reading.get("masks")
    return {
        "alpha": reading.get("alpha", "auto"),
        "masks": None if masks is None else Path(str(masks)),
        "masks_keep": reading.get("masks_keep", "white"),
    }


@dataclass(frozen=True)
class Reader:
    """One form of data on disk."""

    name: str
    looks_for: str
    """What `matches` wants to see, in words for the error message."""
    matches: Callable[[Path], bool]
    """Whether a folder or file is of this form, from what lies there; cheap."""
    read: Callable[[Path, ReadOptions], Scene]
    state: Callable[[Path, ReadOptions], StatedScene] | None = None
    """What the files say, no pixel decoded; None where a reader cannot tell."""


READERS: list[Reader] = []
"""Tried in order; the first that matches reads. `hashfield.data` fills it, others may append."""


def load_scene(path: Path, options: ReadOptions | None = None) -> Scene:
    """The data set in a folder or file, read by the first of `READERS` that knows the form.

    Args:
        path: folder or data file.
        options: default `ReadOptions()`.

    Raises:
        DataError: nothing there, no reader knows it, or the data are wrong; one line naming file, frame and
        field.
    """
    reader, resolved = find_reader(path)
    return reader.read(resolved, ReadOptions() if options is None else options)


def find_reader(path: Path) -> tuple[Reader, Path]:
    """The first of `READERS` that knows the form of what lies at a path, and the path as it takes it.

    Raises:
        DataError: nothing there, or no reader knows it.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise DataError(f"{path}: no such file or folder")
    # a file's own name counts, not that of what it links to: download caches link transforms.json to blobs
    resolved = given.resolve() if given.is_dir() else given.parent.resolve() / given.name
    for reader in READERS:
        if reader.matches(resolved):
            return reader, resolved
    wanted = "; ".join(f"{reader.looks_for} ({reader.name})" for reader in READERS)
    raise DataError(
        f"{path}: no data set that can be read here; looked for {wanted}{foreign_hint(resolved) or _hint(resolved)}"
    )


_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic")
_ENDS: Final = (".bin", ".txt")


def _hint(path: Path) -> str:
    """What lies there instead, where that explains the failure."""
    if not path.is_dir():
        return f"; find the cameras of a video with `hashfield prepare {path}`" if is_video(path) else ""
    below = sorted(path.glob("*/transforms*.json"))
    if below:
        return f"; {below[0].parent.name}/{below[0].name} lies one folder deeper"
    for model in ("", "sparse/0", "sparse", "colmap/sparse/0"):
        lists = [
            name for name in ("cameras", "images") if any((path / model / f"{name}{end}").exists() for end in _ENDS)
        ]
        if len(lists) == 1:
            return f"; a COLMAP model needs cameras and images, {model or 'the folder'} holds {lists[0]} only"
    pictures = sum(entry.suffix.lower() in _PICTURES for entry in (*path.glob("*"), *path.glob("images/*")))
    if pictures:
        found = f"it holds pictures ({pictures}) but no camera poses"
        return f"; {found}: find them with `hashfield prepare {path}`, or train with --prepare"
    return ""

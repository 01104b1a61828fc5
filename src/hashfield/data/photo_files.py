"""Photos as cameras write them: which there are, who took them, turned upright, as small copies."""

import hashlib
import math
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageOps

from hashfield.data.files import natural_key
from hashfield.data.images import EXTENSIONS, decode_rgba, read_header
from hashfield.data.raw_photos import ENDINGS as RAW_ENDINGS
from hashfield.data.raw_photos import raw_photo
from hashfield.data.video_frames import ENDINGS as VIDEO_ENDINGS
from hashfield.data.video_frames import encoded
from hashfield.errors import DataError

HEIC_ENDINGS: Final = (".heic", ".heif", ".hif")
_NOT_PHOTOS: Final = (".exr", ".hdr", ".gif", ".psd", ".pic")
_ORIENTATION: Final = 0x0112
_EXIF: Final = 0x8769
_MAKE, _MODEL, _FOCAL, _FOCAL_35 = 271, 272, 37386, 41989
_DIAGONAL_35: Final = math.hypot(36, 24)  # mm
_COPY_QUALITY: Final = 95


@dataclass(frozen=True)
class Photo:
    """One photo, as its file states it."""

    path: Path
    name: str
    """Relative to the folder that the user named, with forward slashes."""
    key: str
    """A digest of the file's bytes."""
    width: int
    """Pixels once it is turned upright."""
    height: int
    is_turned: bool
    """Whether upright is not how the pixels are stored."""
    camera: str
    """Make, model and focal length in words; empty where the file does not say."""
    focal: float | None
    """Focal length in pixels, roughly; None where the file does not say."""

    @property
    def is_rewritten(self) -> bool:
        """Whether a new file is needed, since other programs and the poses refer to stored pixels."""
        return self.is_turned or self.path.suffix.lower() in HEIC_ENDINGS

    @property
    def group(self) -> tuple[str, int, int]:
        """Photos of one group share a lens."""
        return self.camera, self.width, self.height


def list_photos(root: Path) -> tuple[list[Path], list[str]]:
    """The photos in a folder, or in `images` of it, or below it, in natural order; and notes.

    Raises:
        DataError: there is none; or raw photos without developed ones.
    """
    endings = (*(e for e in EXTENSIONS if e not in _NOT_PHOTOS), *HEIC_ENDINGS)

    def found(paths: Sequence[Path], wanted: tuple[str, ...]) -> list[Path]:
        kept = [p for p in paths if p.suffix.lower() in wanted and not p.name.startswith(".") and p.is_file()]
        return sorted(kept, key=lambda path: natural_key(path.relative_to(root).as_posix()))

    here = list(root.iterdir())
    images = list((root / "images").iterdir()) if (root / "images").is_dir() else []
    below = [path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts)]
    for paths in (here, images, below):
        photos, raw = found(paths, endings), found(paths, RAW_ENDINGS)
        developed = {path.with_suffix("") for path in photos}
        alone = [path for path in raw if path.with_suffix("") not in developed]
        if alone:
            kind = raw_photo(alone[0]) or "is a raw photo by its name, which is not read; develop it first"
            more = f" ({len(alone)} such files)" if len(alone) > 1 else ""
            raise DataError(f"{alone[0]}: {kind}{more}")
        if photos:
            notes = [f"{len(raw)} raw photos are left out: their developed ones are used"] if raw else []
            return photos, notes
    videos = found(below, VIDEO_ENDINGS)
    hint = (
        f"; {videos[0].name} is a video: name the file itself"
        if videos
        else ": name the folder that holds them, or a video"
    )
    raise DataError(f"{root}: there are no photos in it{hint}")


def read_photo(path: Path, name: str) -> Photo:
    """What a photo's file states; pixels are not decoded.

    Raises:
        DataError: not a photo that can be read.
    """
    is_heic = path.suffix.lower() in HEIC_ENDINGS
    if is_heic:
        register_heif()
    read_header(path)
    with Image.open(path) as image:
        tags: Any = image.getexif()
        turn = int(tags.get(_ORIENTATION, 1) or 1)
        details = {**tags, **tags.get_ifd(_EXIF)}
        width, height = image.size if turn < 5 else image.size[::-1]
    make, model = (str(details.get(tag) or "").strip(" \0") for tag in (_MAKE, _MODEL))
    focal, focal_35 = (_number(details.get(tag)) for tag in (_FOCAL, _FOCAL_35))
    words = [make, model, f"{focal:g} mm" if focal else ""]
    return Photo(
        path, name, _digest(path), width, height,
        is_turned=2 <= turn <= 8,
        camera=" ".join(word for word in words if word),
        focal=focal_35 / _DIAGONAL_35 * math.hypot(width, height) if focal_35 else None,
    )  # fmt: skip


def register_heif() -> None:
    """Let Pillow read HEIC; raises ModuleNotFoundError, which the command line explains, without the extra."""
    import pillow_heif

    pillow_heif.register_heif_opener()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()[:20]


def upright(path: Path) -> Image.Image:
    """The whole photo, turned as its file asks for, as RGB or RGBA.

    Raises:
        DataError: it cannot be decoded.
    """
    pixels = decode_rgba(path)
    picture = Image.fromarray(pixels if pixels[..., 3].min() < 255 else np.ascontiguousarray(pixels[..., :3]))
    with Image.open(path) as image:
        turn = image.getexif().get(_ORIENTATION, 1)
    picture.getexif()[_ORIENTATION] = turn
    return ImageOps.exif_transpose(picture)


def write_upright(photo: Photo, target: Path) -> None:
    """Write the photo as its file asks for it to be seen: PNG of PNG, JPEG of everything else."""
    picture = upright(photo.path)
    if target.suffix == ".png":
        target.write_bytes(encoded(picture, "PNG"))
    else:
        target.write_bytes(encoded(picture.convert("RGB"), "JPEG", quality=97))


def small_copy(photo: Photo, longest_side: int) -> Image.Image:
    """The photo upright, its longer side at most so many pixels, as RGB with transparent parts white.

    Raises:
        DataError: it cannot be decoded.
    """
    small: Image.Image | None = None
    with Image.open(photo.path) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            turn = image.getexif().get(_ORIENTATION, 1)
            image.draft("RGB", (longest_side, longest_side))  # decodes a half, quarter or eighth where that is enough
            try:
                small = image.convert("RGB")
            except OSError:
                small = None  # the careful way below tells what is wrong, or reads it all the same
            else:
                small.getexif()[_ORIENTATION] = turn
                small = ImageOps.exif_transpose(small)
    if small is None:
        small = upright(photo.path)
        if small.mode == "RGBA":
            white = Image.new("RGB", small.size, "white")
            small = Image.composite(small.convert("RGB"), white, small.getchannel("A"))
    size = copy_size(photo.width, photo.height, longest_side)
    return small if small.size == size else small.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def copy_size(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """Width and height of the small copy of a photo. It may be a little smaller than allowed, so that both sides shrink
    by the same factor and square pixels stay square.

    Args:
        width: Pixels of the photo.
        height: Pixels of the photo.
        longest_side: The most pixels of the longer side of the copy.
    """
    longer, shorter = max(width, height), min(width, height)
    if longer <= longest_side:
        return width, height

    def off(side: int) -> float:
        exact = side * shorter / longer
        return abs(exact - max(1, round(exact)))

    side = min(range(longest_side, longest_side - longest_side // 30, -1), key=off)
    other = max(1, round(side * shorter / longer))
    return (side, other) if width >= height else (other, side)


def share_transparent(photos: Sequence[Photo], n_tried: int = 8) -> float:
    """Mean share of transparent pixels, of a few photos of those whose format may have any."""
    able = [photo for photo in photos if photo.path.suffix.lower() not in (".jpg", ".jpeg", *HEIC_ENDINGS)]
    if 2 * len(able) < len(photos):
        return 0.0
    tried = able[:: max(1, len(able) // n_tried)]
    return float(np.mean([(decode_rgba(photo.path)[..., 3] < 128).mean() for photo in tried]))


def write_copies(
    photos: Sequence[Photo], folder: Path, longest_side: int, report: Callable[[int, int], object]
) -> None:
    """Write small copies of photos that have none yet, named by their digest.

    Args:
        photos: What to copy.
        folder: Is made where missing.
        longest_side: Pixels.
        report: Sees the progress.

    Raises:
        DataError: a photo cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def copied(photo: Photo) -> None:
        aside = folder / f".{photo.key}.part"
        aside.write_bytes(encoded(small_copy(photo, longest_side), "JPEG", quality=_COPY_QUALITY))
        aside.replace(folder / copy_name(photo))

    missing = [photo for photo in photos if not (folder / copy_name(photo)).is_file()]
    pool = ThreadPoolExecutor(4, thread_name_prefix="copy")
    try:
        for done, future in enumerate([pool.submit(copied, photo) for photo in missing]):
            future.result()
            report(len(photos) - len(missing) + done + 1, len(photos))
    finally:
        pool.shutdown(cancel_futures=True)


def copy_name(photo: Photo) -> str:
    """The file name of the photo's small copy."""
    return f"{photo.key}.jpg"


def grey_copy(copy: Path) -> Float32[np.ndarray, "h w"]:
    """A small copy's brightness, 0 to 255."""
    with Image.open(copy) as image:
        return np.asarray(image.convert("L"), np.float32)


def upright_name(photo: Photo) -> str:
    """The file name of the photo where it is written anew."""
    stem, ending = posixpath.splitext(photo.name.replace("/", "_"))
    return f"{stem}{'.png' if ending.lower() == '.png' else '.jpg'}"

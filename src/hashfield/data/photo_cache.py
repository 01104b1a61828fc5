"""Decoded photos in files, for data sets that are larger than the memory they may take.

Each photo is a file of its bytes in the user's cache, row by row, 3 a pixel where it is opaque and else 4 (see
`hashfield.steps.stored_photos`), with a small JSON file beside it. Its name comes from the photo's path, size and time
of change, and from how it was decoded; so the next run finds it again, and a photo that was changed is decoded anew.
Files are written aside and renamed. What nobody asked for in two weeks is removed.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from hashfield.aside import remove_left_behind, write_aside
from hashfield.data.images import decode_rgb, decode_rgba
from hashfield.errors import DataError
from hashfield.steps.stored_photos import OPAQUE, TRANSLUCENT, bytes_per_pixel, stored_rows
from hashfield.user_cache import user_cache

_FORM: Final = 2  # of the files and of the decoding: another number makes all old files strangers
_KEPT_DAYS: Final = 14
_SPARE: Final = 1 << 30  # bytes that the disk keeps free
_SAID_EVERY: Final = 5.0


@dataclass(frozen=True)
class PhotoStats:
    """What is asked about the pixels of a photo as a whole, so that they need not be read again for it."""

    n_pixels: int
    n_clear: int
    """Pixels with alpha below 128."""
    n_translucent: int
    """Pixels that are not opaque."""
    mean: float
    """Mean of the colours, 0 to 255, over some of the pixels."""

    @classmethod
    def of(cls, image: UInt8[np.ndarray, "h w channels"]) -> "PhotoStats":
        """Those of a decoded photo, RGBA or RGB."""
        alpha = image[..., 3:]
        is_opaque = bool(alpha.min(initial=255) == 255)
        n_clear, n_translucent = (0, 0) if is_opaque else (int((alpha < 128).sum()), int((alpha < 255).sum()))
        # every hundredth row and column or so tells a mean well enough
        step = max(1, min(image.shape[:2]) // 100)
        return cls(image.shape[0] * image.shape[1], n_clear, n_translucent, float(image[::step, ::step, :3].mean()))


def cache_root() -> Path:
    """The user's folder of decoded photos: beside that of compiled kernels."""
    return user_cache() / "photos"


class LazyPhotos(Sequence[np.ndarray]):
    """Photos, uint8 [height, width, 4], each of which is made whenever it is asked for: all together they may be more
    than fits into memory."""

    def __init__(self, makers: Sequence[Callable[[], np.ndarray]]) -> None:
        """Args:
        makers: What makes each photo.
        """
        self._makers = list(makers)

    @classmethod
    def of(cls, parts: Iterable[Sequence[np.ndarray]]) -> "LazyPhotos":
        """The photos of several sequences, one after another."""
        return cls([partial(part.__getitem__, k) for part in parts for k in range(len(part))])

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "LazyPhotos": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | LazyPhotos":
        return LazyPhotos(self._makers[index]) if isinstance(index, slice) else self._makers[index]()

    def chosen(self, indices: Iterable[int]) -> "LazyPhotos":
        """Those with these numbers."""
        return LazyPhotos([self._makers[index] for index in indices])


@dataclass(frozen=True)
class CachedPhotos:
    """The photos of a data set as they lie in the cache."""

    images: Sequence[np.ndarray]
    """Pixels of each photo, uint8 [height, width, 4]; of those in files, each is read when it is asked for."""
    files: list[Path]
    """The file of each image's bytes."""
    stats: list[PhotoStats]


@dataclass(frozen=True)
class Wanted:
    """A photo that is to lie in the cache."""

    path: Path
    width: int
    """Pixels of the decoded photo."""
    height: int
    matte: Path | None = None
    """See `decode_rgba`."""
    may_have_alpha: bool = True
    """Whether it may not be opaque."""

    @property
    def n_bytes(self) -> int:
        """Bytes of its file, at most."""
        return (4 if self.may_have_alpha or self.matte is not None else 3) * self.width * self.height


class PhotoCache:
    """A folder of decoded photos."""

    def __init__(self, root: Path) -> None:
        """Args:
        root: Made where missing.

        Raises:
            DataError: it cannot be made.
        """
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DataError(f"{root}: the cache of photos cannot be made: {error.strerror or error}") from error
        remove_left_behind(root)
        self._forget(lambda meta: time.time() - meta.stat().st_mtime > _KEPT_DAYS * 86400)

    def _forget(self, is_old: Callable[[Path], bool]) -> None:
        for meta in self.root.glob("*.json"):
            with suppress(OSError):
                if is_old(meta):
                    self._remove(meta)

    def _remove(self, meta: Path) -> None:
        meta.unlink(missing_ok=True)  # first: without it the rest is nothing
        for ending in (OPAQUE, TRANSLUCENT, ".mask"):
            meta.with_suffix(ending).unlink(missing_ok=True)

    def key(self, photo: Wanted, downscale: int) -> str:
        """The name of a photo's files."""

        def identity(path: Path) -> list[Any]:
            state = path.stat()
            return [str(path.resolve()), state.st_size, state.st_mtime_ns]

        told = [_FORM, downscale, identity(photo.path), *([] if photo.matte is None else [identity(photo.matte)])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def make_room(self, photos: Sequence[Wanted], downscale: int) -> int:
        """Check that the disk has room for these photos, of which some may be here; the bytes that are still missing.
        Photos of other data sets make way, those first that were not asked for longest, but none of the last day:
        another run may be training on them.

        Raises:
            DataError: there is too little room.
        """
        keys = {self.key(photo, downscale): photo for photo in photos}
        missing = sum(photo.n_bytes for key, photo in keys.items() if self._stored(key, photo) is None)
        others = sorted(
            (meta for meta in self.root.glob("*.json") if meta.stem not in keys), key=lambda meta: meta.stat().st_mtime
        )
        for meta in others:
            if time.time() - meta.stat().st_mtime < 86400:
                break
            if shutil.disk_usage(self.root).free >= missing + _SPARE:
                break
            self._remove(meta)
        free = shutil.disk_usage(self.root).free
        if missing and free < missing + _SPARE:
            raise DataError(
                f"{self.root}: no room for decoded photos: {missing / 2**30:.1f} GiB more are needed, "
                f"{free / 2**30:.1f} GiB are free: name a folder on another disk by --image-cache"
            )
        return missing

    def _stored(self, key: str, photo: Wanted) -> dict[str, Any] | None:
        """What is noted of a photo that is here as a whole."""
        try:
            noted = json.loads((self.root / f"{key}.json").read_text(encoding="utf-8"))
            file = self._file(key, PhotoStats(**noted["stats"]))
            is_whole = file.stat().st_size == bytes_per_pixel(file) * photo.width * photo.height
        except (OSError, ValueError, TypeError, KeyError):
            return None
        is_same = [noted.get("width"), noted.get("height")] == [photo.width, photo.height]
        return noted if is_whole and is_same else None

    def _file(self, key: str, stats: PhotoStats) -> Path:
        return self.root / f"{key}{TRANSLUCENT if stats.n_translucent else OPAQUE}"

    def photos(
        self,
        wanted: Sequence[Wanted],
        downscale: int,
        explain: Callable[[int, DataError], DataError],
        warn: Callable[[int, str], object],
        n_threads: int,
        say: Callable[[str], object],
    ) -> CachedPhotos:
        """The photos, decoded where they are not here yet.

        Args:
            wanted: Which.
            downscale: See `decode_rgba`.
            explain: Turns the error of the photo with this index into the one to raise.
            warn: Called with the index of a photo and what is wrong with it although it could be decoded.
            n_threads: At most so many are decoded at once.
            say: Told how far it is, every few seconds.

        Raises:
            DataError: a photo cannot be decoded, or the disk is full.
        """
        progress = _Progress(len(wanted), say)

        def one(index: int) -> tuple[Path, PhotoStats]:
            photo = wanted[index]
            key = self.key(photo, downscale)
            noted = self._stored(key, photo)
            if noted is None:
                noted = self._decode(photo, downscale, key)
                progress.add()
            else:
                with suppress(OSError):
                    os.utime(self.root / f"{key}.json")
            for text in noted["warnings"]:
                warn(index, text)
            stats = PhotoStats(**noted["stats"])
            return self._file(key, stats), stats

        pool = ThreadPoolExecutor(max(1, min(n_threads, os.cpu_count() or 1, len(wanted))), "decode")
        try:
            pending = [pool.submit(one, index) for index in range(len(wanted))]
            found = []
            for index, future in enumerate(pending):
                try:
                    found.append(future.result())
                except DataError as error:
                    raise explain(index, error) from error
        finally:
            pool.shutdown(cancel_futures=True)
        pairs = zip(found, wanted, strict=True)
        images = LazyPhotos([partial(stored_photo, file, photo.width, photo.height) for (file, _), photo in pairs])
        return CachedPhotos(images, [file for file, _ in found], [stats for _, stats in found])

    def _decode(self, photo: Wanted, downscale: int, key: str) -> dict[str, Any]:
        warnings: list[str] = []
        if photo.may_have_alpha or photo.matte is not None or downscale > 1:
            pixels = decode_rgba(photo.path, downscale, warnings.append, photo.matte)
        else:
            pixels = decode_rgb(photo.path, warnings.append)
        if pixels.shape[:2] != (photo.height, photo.width):
            raise DataError(f"{photo.path}: was changed while it was read")
        stats = PhotoStats.of(pixels)
        noted = {
            "photo": str(photo.path), "width": photo.width, "height": photo.height, "warnings": warnings,
            "stats": asdict(stats),
        }  # fmt: skip
        file = self._file(key, stats)
        stored = np.ascontiguousarray(pixels[..., : bytes_per_pixel(file)])
        self._write(file, lambda aside: aside.write_bytes(stored.data))
        self._write(self.root / f"{key}.json", lambda aside: aside.write_text(json.dumps(noted), encoding="utf-8"))
        return noted

    def keep_mask(self, file: Path, mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
        """A photo's mask, in a file beside the photo's; where all pixels are held, no memory and no file at all.

        Args:
            file: The file of the photo.
            mask: True where the photo may be learned from.
        """
        if mask.all():
            return np.broadcast_to(np.ones((), np.bool_), mask.shape)
        target = file.with_suffix(".mask")
        self._write(target, lambda aside: aside.write_bytes(np.ascontiguousarray(mask).data))
        return mapped(target, mask.shape).view(np.bool_)

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            write_aside(path, write)
        except OSError as error:
            raise DataError(f"{self.root}: a decoded photo cannot be kept: {error.strerror or error}") from error


def stored_photo(file: Path, width: int, height: int) -> UInt8[np.ndarray, "height width 4"]:
    """A photo of the cache. Where it is not opaque, its pages are read from the file when they are looked at.

    Args:
        file: Its file.
        width: Its size in pixels.
        height: Likewise.

    Raises:
        DataError: the file is gone.
    """
    try:
        if bytes_per_pixel(file) == 4:
            return mapped(file, (height, width, 4))
        return stored_rows(file, width, 0, height)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{file}: a decoded photo is gone: run the same command again") from error


def mapped(file: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """A file's bytes as an array, read when they are looked at. It may be written to; the file stays as it is.

    By torch, which gives the file back at once: numpy would keep it open, and a system allows only so many open files.
    """
    return torch.from_file(str(file), shared=False, size=int(np.prod(shape)), dtype=torch.uint8).numpy().reshape(shape)


class _Progress:
    """Says how far the decoding is, from several threads."""

    def __init__(self, total: int, say: Callable[[str], object]) -> None:
        self._total, self._say, self._n = total, say, 0
        self._started = self._said = time.perf_counter()
        self._lock = threading.Lock()

    def add(self) -> None:
        """One more is decoded."""
        with self._lock:
            self._n += 1
            now = time.perf_counter()
            if now - self._said >= _SAID_EVERY:
                self._said = now
                left = (now - self._started) / self._n * (self._total - self._n)
                self._say(f"{self._n} of up to {self._total} photos decoded into the cache, at most {left:.0f} s left")

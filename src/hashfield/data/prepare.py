"""From photos or a video to a data set that trains: cameras, a box, and transforms.json, by structure from motion.

The data set's folder holds, when all is done, `transforms.json`, COLMAP's model and its points in `sparse/0`, and
photos in `images` only where they had to be written anew: frames of a video, photos that only a tag turns upright,
HEIC. All other photos stay where they are. What was computed lies in `.prepare` and is found there by the next run.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hashfield.data.assemble import some
from hashfield.data.dataset import READERS
from hashfield.data.lost_photos import PLACED, LostPhoto, lost_photos, solution_notes, why_no_scene
from hashfield.data.photo_files import (
    Photo,
    copy_name,
    copy_size,
    list_photos,
    read_photo,
    write_copies,
)
from hashfield.data.prepared_set import write_data_set
from hashfield.data.structure_from_motion import (
    Workshop,
    appearance_pairs,
    read_matches,
    require_pycolmap,
)
from hashfield.data.video_frames import extract_frames, is_video
from hashfield.errors import ConfigError, DataError

Matching = Literal["auto", "sequential", "exhaustive"]
WORK: Final = ".prepare"
"""Folder of a prepared data set that holds what was computed on the way."""


@dataclass(frozen=True)
class PrepareOptions:
    """How cameras are found.

    Raises:
        ConfigError: a value is out of range.
    """

    matching: Matching = "auto"
    """Which photos are compared: "sequential" (each with the next ten, as of a video), "exhaustive" (all with all), or
    "auto": by the number and kind of photos."""
    longest_side: int = 1000
    """Features are found on copies whose longer side has this many pixels."""
    features: int = 4096
    """The most features of a photo."""
    frames: int | None = None
    """How many frames of a video are taken; None: by its motion, 60 to 150."""
    threads: int = -1
    """Threads; -1: one for each CPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("longest_side", 200), ("features", 100), ("frames", 3)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")


@dataclass(frozen=True)
class Prepared:
    """A data set that was made, or was there already."""

    path: Path
    n_photos: int
    n_placed: int
    lost: tuple[LostPhoto, ...]
    notes: tuple[str, ...]
    """Lines for the user; those that begin with "warning: " need a look."""
    was_there: bool = False


Progress = Callable[[str, int, int], object]
"""Is called with the stage in words, what is done and what there is to do."""

EXHAUSTIVE: Final = 80
"""Up to so many photos, all are compared with all."""
_OVERLAP: Final = 10  # in a row, each photo is compared with so many after it
_LOOKALIKES: Final = 20  # of many photos, each is compared with so many that look like it
_COARSE: Final = 24  # of a row, so many photos are compared with each other, which closes loops
_MOST_PAIRS: Final = 8000  # that a retry adds
_FULL_LENS: Final = (
    10  # photos from which on a camera's lens may have more terms than one, and a principal point of its own
)
_PROBED: Final = 6  # photos by which it is seen how many features there are
_ENOUGH: Final = 1000  # features of a photo, with which photos hold together


def default_out(source: Path) -> Path:
    """Where the data set of a folder of photos, or of a video, goes: beside it."""
    source = source.resolve()
    return source.with_name(f"{source.stem if source.is_file() else source.name}-prepared")


def has_poses(path: Path) -> bool:
    """Whether a folder or file is a data set already."""
    return any(reader.matches(path) for reader in READERS)


def prepare(source: Path, out: Path, options: PrepareOptions, progress: Progress) -> Prepared:
    """Make a data set of a folder of photos or a video; or go on where an earlier run was stopped.

    Args:
        source: Folder of photos, or a video.
        out: Folder of the data set, made where missing.
        options: How cameras are found.
        progress: Sees the stages.

    Raises:
        DataError: there is too little to go by; one line that says what to do.
    """
    require_pycolmap()
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    try:
        return _prepare(source, out, options, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        again = "make room and run the same command again, it goes on where it stopped"
        raise DataError(f"{out}: the disk is full: {again}") from error


def _prepare(source: Path, out: Path, options: PrepareOptions, progress: Progress) -> Prepared:
    work, is_new = out / WORK, not out.exists()
    _check_free(source, out)
    work.mkdir(parents=True, exist_ok=True)
    _write_json(work / "source.json", {"source": str(source.resolve())})
    shop = Workshop(work, options.threads, options.seed)
    _forget_other_settings(shop, options)
    try:
        photos, notes = _photos(source, out, options, progress)
    except DataError:
        if is_new:  # nothing was computed
            shutil.rmtree(out, ignore_errors=True)
        raise
    print_of = _fingerprint(photos, options)
    done = _read_json(work / "done.json")
    if done.get("fingerprint") == print_of and (out / "transforms.json").is_file():
        return _prepared(out, done, was_there=True)
    write_copies(photos, shop.photos, options.longest_side, lambda a, b: progress("small copies", a, b))
    shop.run(
        "features",
        lambda a, b: progress("features", a, b),
        groups=_groups(photos, options.longest_side),
        features=options.features,
        longest_side=options.longest_side,
        first_octave=first_octave(shop, photos, options),
    )
    solved = _solved(shop, photos, is_video(source), options, progress, print_of)
    matches = read_matches(shop.database)
    lost = lost_photos(photos, solved, matches, shop)
    best = [photo for photo in photos if copy_name(photo) in solved["images"]]
    if len(best) < max(3, 0.2 * len(photos)):
        raise DataError(why_no_scene(source, photos, len(best), matches))
    progress("writing", 0, 1)
    notes += solution_notes(len(photos), len(best), solved, matches)
    notes.append(write_data_set(shop, out, photos, solved))
    done = {
        "fingerprint": print_of, "n_photos": len(photos), "n_placed": len(best),
        "lost": [asdict(photo) for photo in lost], "notes": notes,
    }  # fmt: skip
    _write_json(work / "done.json", done)
    progress("writing", 1, 1)
    return _prepared(out, done)


def _check_free(source: Path, out: Path) -> None:
    """Raise where the folder holds a data set of other photos, or of another program."""
    before = _read_json(out / WORK / "source.json").get("source")
    if not (out / "transforms.json").exists():
        return
    if before is None:
        raise ConfigError(f"{out}: holds a transforms.json that was not made here: name another folder by --out")
    if before != str(source.resolve()) and Path(before).exists():
        raise ConfigError(f"{out}: holds what was prepared of {before}: name another folder by --out")


def _prepared(out: Path, done: dict[str, Any], was_there: bool = False) -> Prepared:
    lost = tuple(LostPhoto(**photo) for photo in done["lost"])
    return Prepared(out, done["n_photos"], done["n_placed"], lost, tuple(done["notes"]), was_there)


# --- photos


def _photos(source: Path, out: Path, options: PrepareOptions, progress: Progress) -> tuple[list[Photo], list[str]]:
    """The photos to find cameras of, each once, and notes."""
    if source.is_file():
        if not is_video(source):
            raise DataError(f"{source}: expected a folder of photos or a video")
        root, notes = _frames(source, out, options, progress)
        paths = list_photos(root)[0]
    else:
        root = source
        paths, notes = list_photos(source)
        inside = out.resolve()
        if inside != source.resolve():  # a data set below the photos is none of them
            paths = [path for path in paths if not path.resolve().is_relative_to(inside)]
    photos: list[Photo] = []
    for path in paths:
        photos.append(read_photo(path, path.relative_to(root).as_posix()))
        progress("reading", len(photos), len(paths))
    first: dict[str, Photo] = {}
    for photo in photos:
        first.setdefault(photo.key, photo)
    once = list(first.values())
    twice = [photo.name for photo in photos if first[photo.key] is not photo]
    if len(once) < 3:
        same = f", and {len(twice)} of them are copies of another one" if twice else ""
        raise DataError(
            f"{source}: has {len(photos)} photos{same}: at least 3 different ones are needed, and 30 to 150 all around "
            "the subject make a good scene"
        )
    if twice:
        notes.append(f"warning: {len(twice)} of {len(photos)} photos are exact copies and are left out: {some(twice)}")
    return once, notes


def _frames(video: Path, out: Path, options: PrepareOptions, progress: Progress) -> tuple[Path, list[str]]:
    """The folder of a video's frames, and notes; made where it is not there yet."""
    folder, mark = out / "images", out / WORK / "frames.json"
    stamp = {"video": str(video.resolve()), "size": video.stat().st_size, "frames": options.frames}
    known = _read_json(mark)
    if folder.is_dir() and known.get("stamp") == stamp:
        return folder, known["notes"]
    if folder.exists() and not known:
        raise ConfigError(f"{folder}: is there already: name another folder by --out")
    aside = out / WORK / "images"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _, notes = extract_frames(video, aside, options.frames, lambda a, b: progress("frames of the video", a, b))
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
    _write_json(mark, {"stamp": stamp, "notes": notes})
    return folder, notes


def first_octave(shop: Workshop, photos: Sequence[Photo], options: PrepareOptions) -> int:
    """Where the search for features begins: at the copies' own size, 0, or, where that finds too few, at twice it, -1,
    which takes four times as long.

    Args:
        shop: Where that is tried, and kept for the next run.
        photos: All of them; a few are looked at.
        options: See `prepare`.
    """
    kept = shop.folder / "octave.json"
    known = _read_json(kept).get("first_octave")
    if known in (-1, 0):
        return known
    names = [copy_name(photos[k]) for k in np.unique(np.linspace(0, len(photos) - 1, _PROBED).round().astype(int))]
    found = shop.run("probe", names=names, features=options.features, longest_side=options.longest_side)
    octave = -1 if float(np.median(found["counts"] or [0])) < min(_ENOUGH, options.features) else 0
    _write_json(kept, {"first_octave": octave})
    return octave


def _groups(photos: Sequence[Photo], longest_side: int) -> list[dict[str, Any]]:
    """The photos of each camera. All begin with square pixels, the principal point in the middle and one radial term: a
    richer lens can bend a turntable so far that no adjustment straightens it again."""
    groups: dict[tuple[str, int, int], list[Photo]] = {}
    for photo in photos:
        groups.setdefault(photo.group, []).append(photo)
    listed = []
    for members in groups.values():
        first, parameters = members[0], ""
        if first.focal is not None:
            width, height = copy_size(first.width, first.height, longest_side)
            lens = (first.focal * width / first.width, width / 2, height / 2, 0)
            parameters = ",".join(f"{x:.6g}" for x in lens)
        listed.append(
            {
                "names": [copy_name(photo) for photo in members],
                "model": "SIMPLE_RADIAL",
                "params": parameters,
            }
        )
    return listed


# --- matching and mapping


def _in_a_row(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each photo with the next ones, with some farther away, and a few of all with each other."""
    n = len(names)
    pairs: set[tuple[int, int]] = set()
    for k in range(n):
        pairs.update((k, k + step) for step in (*range(1, _OVERLAP + 1), 16, 32) if k + step < n)
    coarse = sorted({round(k * (n - 1) / max(1, _COARSE - 1)) for k in range(_COARSE)})
    pairs.update((a, b) for i, a in enumerate(coarse) for b in coarse[i + 1 :])
    return [(names[a], names[b]) for a, b in sorted(pairs)]


def _all_with_all(names: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for k, a in enumerate(names) for b in names[k + 1 :]]


def _solved(
    shop: Workshop, photos: list[Photo], is_film: bool, options: PrepareOptions, progress: Progress, print_of: str
) -> dict[str, Any]:
    """The result of structure from motion: matched, mapped, and both once more where too few photos got a place."""
    kept = _read_json(shop.folder / "solved.json")
    if kept.get("fingerprint") == print_of and (shop.folder / "model" / "images.bin").is_file():
        return kept
    names = [copy_name(photo) for photo in photos]

    def match(pairs: Sequence[tuple[str, str]]) -> None:
        shop.run("match", lambda a, b: progress("matching", a, b), pairs=list(pairs))

    def solve() -> dict[str, Any]:
        shutil.rmtree(shop.folder / "model", ignore_errors=True)
        return shop.run(
            "solve",
            lambda a, b: progress("cameras", a, b),
            n_photos=len(names),
            out=str(shop.folder / "model"),
            least_photos=_FULL_LENS,
        )

    are_few = len(names) <= EXHAUSTIVE and not is_film
    is_all = options.matching == "exhaustive" or (options.matching == "auto" and are_few)
    if is_all:
        match(_all_with_all(names))
    else:
        match(_in_a_row(names))
        if options.matching == "auto" and not is_film:  # their order may mean nothing
            match(appearance_pairs(shop.database, _LOOKALIKES))
    found = solve()
    if not is_all and options.matching == "auto" and len(found.get("images", {})) < PLACED * len(names):
        lost = [name for name in names if name not in found.get("images", {})]
        everything = {(min(a, b), max(a, b)) for a in lost for b in names if a != b}
        if len(everything) > _MOST_PAIRS:
            everything = set(appearance_pairs(shop.database, 2 * _LOOKALIKES))
        match(sorted(everything))
        again = solve()
        if len(again.get("images", {})) >= len(found.get("images", {})):
            found = again
    result = {"images": {}, "pieces": [], **found, "fingerprint": print_of}
    if result["images"]:
        _write_json(shop.folder / "solved.json", result)
    return result


# --- what is kept between runs


_VERSION: Final = 3  # of the stages: what another one computed is computed again


def _fingerprint(photos: list[Photo], options: PrepareOptions) -> str:
    """Changes with the photos and whatever changes the result."""
    chosen = asdict(replace(options, threads=-1))
    text = json.dumps([_VERSION, chosen, [(photo.name, photo.key) for photo in photos]])
    return hashlib.sha1(text.encode()).hexdigest()


def _forget_other_settings(shop: Workshop, options: PrepareOptions) -> None:
    """Delete features that were found by other settings."""
    now = {"longest_side": options.longest_side, "features": options.features, "version": _VERSION}
    kept = shop.folder / "settings.json"
    if _read_json(kept) not in ({}, now):
        for path in (*shop.folder.glob("database.db*"), shop.folder / "solved.json", shop.folder / "octave.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(shop.photos, ignore_errors=True)
    _write_json(kept, now)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write aside and rename, so that a file is there whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)

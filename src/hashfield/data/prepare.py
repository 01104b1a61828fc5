"""From photos or a video to a data set that trains: cameras, a box, and transforms.json, by structure from motion.

The data set's folder holds, when all is done, `transforms.json`, COLMAP's model and its points in `sparse/0`, and
photos in `images` only where they had to be written anew: frames of a video, photos that only a tag turns upright,
HEIC. All other photos stay where they are. What was computed lies in `.prepare` and is found there by the next run.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image

from hashfield.data.assemble import SILHOUETTE, some
from hashfield.data.dataset import READERS
from hashfield.data.photo_checks import sharpness
from hashfield.data.photo_files import (
    Photo,
    copy_name,
    copy_size,
    list_photos,
    read_photo,
    share_transparent,
    upright_name,
    write_copies,
    write_upright,
)
from hashfield.data.structure_from_motion import (
    Matches,
    Workshop,
    appearance_pairs,
    read_matches,
    require_pycolmap,
)
from hashfield.data.training_box import ChosenBox, choose_box
from hashfield.data.video_frames import extract_frames, is_video, laplacian
from hashfield.data.write_cameras import write_transforms
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.paths import up_axis
from hashfield.geometry.spaces import DEFAULT_OFFSET, DEFAULT_SCALE, Spaces

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
class LostPhoto:
    """A photo that got no place, and why."""

    name: str
    reason: str


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
_RETRY: Final = 0.9  # a smaller share of photos with a place calls for more comparisons
_MOST_PAIRS: Final = 8000  # that a retry adds
_FULL_LENS: Final = (
    10  # photos from which on a camera's lens may have more terms than one, and a principal point of its own
)
_PROBED: Final = 6  # photos by which it is seen how many features there are
_ENOUGH: Final = 1000  # features of a photo, with which photos hold together
_LEAST_PIECE: Final = 3  # photos that make a piece of their own
_BLURRED: Final = 0.6  # of the usual sharpness, of a photo that found no place
_FEW_FEATURES: Final = 60  # a photo with fewer shows no texture


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
    lost = _lost(photos, solved, matches, shop)
    best = [photo for photo in photos if copy_name(photo) in solved["images"]]
    if len(best) < max(3, 0.2 * len(photos)):
        raise DataError(_too_few(source, photos, best, matches))
    progress("writing", 0, 1)
    notes += _solution_notes(photos, best, solved, matches)
    notes.append(_write(shop, source, out, photos, solved))
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
    if not is_all and options.matching == "auto" and len(found.get("images", {})) < _RETRY * len(names):
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


def _lost(photos: list[Photo], solved: dict[str, Any], matches: Matches, shop: Workshop) -> list[LostPhoto]:
    """The photos without a place, with the reason."""
    placed, partners = solved["images"], matches.partners()
    name_of = {copy_name(photo): photo.name for photo in photos}
    pieces = [[name for name in piece if name not in placed] for piece in solved["pieces"][1:]]
    sharp = {copy_name(photo): sharpness(_grey(shop.photos / copy_name(photo))) for photo in photos}
    usual = float(np.median(list(sharp.values())))
    lost = []
    for photo in photos:
        copy = copy_name(photo)
        if copy in placed:
            continue
        n_features = len(matches.keypoints.get(copy, ()))
        n_common, other = next(iter(partners.get(copy, [])), (0, ""))
        piece = next((piece for piece in pieces if copy in piece and len(piece) >= _LEAST_PIECE), None)
        if n_features < _FEW_FEATURES:
            reason = f"it shows almost no texture ({n_features} features)"
        elif piece is not None:
            reason = (
                f"it hangs together with {len(piece) - 1} others, but not with the main piece: take photos in between"
            )
        elif sharp[copy] < _BLURRED * usual:
            reason = f"it is blurred (sharpness {sharp[copy] / usual:.2f} of the usual)"
        elif n_common < 30:
            shared = f"it has at most {n_common}" if n_common else "it has no"
            reason = f"{shared} points in common with any other photo: take photos in between"
        else:
            reason = (
                f"its {n_common} points in common with {name_of.get(other, other)} fit no place: something in it moves "
                "or repeats"
            )
        lost.append(LostPhoto(photo.name, reason))
    return lost


def _grey(copy: Path) -> np.ndarray:
    with Image.open(copy) as image:
        return np.asarray(image.convert("L"), np.float32)


def _too_few(source: Path, photos: list[Photo], placed: list[Photo], matches: Matches) -> str:
    """Why there is no scene in the photos, and what to do."""
    counts = [len(matches.keypoints.get(copy_name(photo), ())) for photo in photos]
    if float(np.median(counts)) < _FEW_FEATURES:
        return (
            f"{source}: the photos show almost no texture ({int(np.median(counts))} features each, hundreds are "
            "usual): photograph something with structure, or put patterned things around a plain one"
        )
    hold = {name for pair in matches.pairs for name in (pair.first, pair.second) if len(pair.matches) >= 30}
    if len(hold) < 0.3 * len(photos):
        return (
            f"{source}: of {len(photos)} photos, {len(hold)} have enough in common with another: take photos of one "
            "scene that overlap by two thirds and more"
        )
    return (
        f"{source}: only {len(placed)} of {len(photos)} photos fit together, although neighbours have points in "
        "common: walk around the subject in small steps; turning on the spot tells nothing of depth"
    )


def _solution_notes(photos: list[Photo], placed: list[Photo], solved: dict[str, Any], matches: Matches) -> list[str]:
    cameras = {image["camera"] for image in solved["images"].values()}
    share = f"{len(placed)} of {len(photos)} photos have a place"
    notes = [
        f"{'warning: ' if len(placed) < _RETRY * len(photos) else ''}{share}: {len(solved['points'])} points, "
        f"{solved['error']:.2f} pixels of the copies off on average, {len(cameras)} "
        f"camera{'s' if len(cameras) > 1 else ''}; {len(matches.pairs)} of {matches.n_tried} compared pairs have "
        "points in common"
    ]
    # COLMAP tries to place lost photos together with placed ones: pieces are what has photos of its own
    own = [set(piece) - set(solved["images"]) for piece in solved["pieces"][1:]]
    own = [piece for piece in own if len(piece) >= _LEAST_PIECE]
    if own:
        sizes = ", ".join(str(size) for size in (len(placed), *map(len, own)))
        notes.append(
            f"warning: the photos fall into pieces that do not connect, of {sizes} photos: the largest is kept"
        )
    return notes


# --- the data set


def _write(shop: Workshop, source: Path, out: Path, photos: list[Photo], solved: dict[str, Any]) -> str:
    """Write photos that need it, the COLMAP model and transforms.json; the last is what makes a data set of it. Returns
    a note about the training box."""
    placed = [photo for photo in photos if copy_name(photo) in solved["images"]]
    files = _final_photos(out, placed)
    sizes = {str(solved["images"][copy_name(photo)]["camera"]): (photo.width, photo.height) for photo in placed}
    for camera_id, camera in solved["cameras"].items():
        sizes.setdefault(camera_id, (camera["width"], camera["height"]))
    raw = [_camera(solved["images"][copy_name(p)], solved["cameras"]) for p in placed]
    points = np.array(solved["points"], np.float64).reshape(-1, 3)
    has_alpha = share_transparent(placed) >= SILHOUETTE
    rotation, center, scale, box = _world(raw, points, has_alpha)
    names = _model_names(placed, files, out)
    result = shop.folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    written = shop.run(
        "write",
        model=str(shop.folder / "model"),
        out=str(result),
        world={"scale": scale, "rotation": rotation.tolist(), "translation": (-scale * rotation @ center).tolist()},
        sizes=sizes,
        names={copy_name(photo): name for photo, name in zip(placed, names, strict=True)},
    )
    images = [written["images"][name] for name in names]
    sharp = [float(laplacian(_grey(shop.photos / copy_name(photo))).var()) for photo in placed]
    (out / "sparse").mkdir(exist_ok=True)
    shutil.rmtree(out / "sparse" / "0", ignore_errors=True)
    result.replace(out / "sparse" / "0")
    write_transforms(
        out / "transforms.json",
        [_camera(image, written["cameras"]) for image in images],
        [_relative(file, out) for file in files],
        spaces=Spaces(DEFAULT_SCALE, DEFAULT_OFFSET, box.spaces.aabb_scale),
        extra={"ply_file_path": "sparse/0/sparse.ply"},
        frame_extra=[
            {"sharpness": round(value, 3), "colmap_im_id": image["id"]}
            for value, image in zip(sharp, images, strict=True)
        ],
    )
    return f"training box: around {box.center_reason}; aabb_scale {box.spaces.aabb_scale}, {box.size_reason}"


def _relative(file: Path, folder: Path) -> str:
    """The path of a file from a folder, with forward slashes; the whole path where they lie on different drives."""
    try:
        return Path(os.path.relpath(file, folder.resolve())).as_posix()
    except ValueError:
        return file.as_posix()


def _final_photos(out: Path, placed: list[Photo]) -> list[Path]:
    """Where each photo lies for good: where it is, or in `images`, written anew."""
    files = []
    used = {photo.path.name.casefold() for photo in placed if not photo.is_rewritten}
    for photo in placed:
        if not photo.is_rewritten:
            files.append(photo.path.resolve())
            continue
        name = upright_name(photo)
        while name.casefold() in used:
            name = f"_{name}"
        used.add(name.casefold())
        target = out / "images" / name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            aside = target.with_name(f".part-{name}")
            write_upright(photo, aside)
            aside.replace(target)
        files.append(target.resolve())
    return files


def _model_names(placed: list[Photo], files: list[Path], out: Path) -> list[str]:
    """Names in the COLMAP model: relative to the folder of photos."""
    return [
        file.name if file.parent == (out / "images").resolve() else photo.name
        for photo, file in zip(placed, files, strict=True)
    ]


_LENS_OF: Final = {"OPENCV": "fx fy cx cy k1 k2 p1 p2", "RADIAL": "f cx cy k1 k2", "SIMPLE_RADIAL": "f cx cy k1"}


def _camera(image: dict[str, Any], cameras: dict[str, Any]) -> Camera:
    """The camera of one photo of a result."""
    stated = cameras[str(image["camera"])]
    values = dict(zip(_LENS_OF[stated["model"]].split(), stated["params"], strict=True))
    pose = torch.tensor(image["camera_to_world"], dtype=torch.float64)
    return Camera(
        pose, stated["width"], stated["height"],
        fx=values.get("fx", values.get("f", 0.0)), fy=values.get("fy", values.get("f", 0.0)),
        cx=values["cx"], cy=values["cy"], lens="opencv",
        distortion=tuple(values.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2")),
    )  # fmt: skip


def _world(
    cameras: list[Camera], points: np.ndarray, has_alpha: bool
) -> tuple[np.ndarray, np.ndarray, float, ChosenBox]:
    """Rotation, centre, scale and box of the data set's world: p' = scale * rotation @ (p - centre). Up is +z, and the
    training box is the one that instant-ngp's default scale and offset mean."""
    up = up_axis(cameras).numpy()
    rotation = rotation_between(up, np.array([0.0, 0.0, 1.0]))
    turned = [
        camera.moved(torch.from_numpy(np.column_stack([rotation @ p[:, :3], rotation @ p[:, 3]])))
        for camera in cameras
        for p in (camera.camera_to_world.numpy(),)
    ]
    box = choose_box(turned, points @ rotation.T, f"{len(points)} sparse points", has_alpha)
    center = (0.5 - np.array(box.spaces.offset)) / box.spaces.scale
    return rotation, rotation.T @ center, box.spaces.scale / DEFAULT_SCALE, box


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation [3, 3] that takes unit vector a to b."""
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    v = np.cross(a, b)
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


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

"""The doctor: what is wrong with a capture before it is trained on, photo by photo, with a remedy for each finding.

`examine` looks at a scene that was read. With the sparse points of structure from motion beside it, or with matches of
features (`match_photos`), it also knows what photos have in common; without, it has pixels and poses only.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from hashfield.data import colmap
from hashfield.data.assemble import some
from hashfield.data.dataset import ReadOptions, Scene
from hashfield.data.files import natural_key, photo_folders
from hashfield.data.photo_checks import SIDE, Pixels, copies, gains, measure, relative
from hashfield.data.pose_checks import (
    Link,
    agreement,
    convergence,
    explains_better,
    inverted,
    links_of,
    neighbours,
    other_axes,
    photo_agreement,
    reprojection,
    square_pixels,
)
from hashfield.data.prepare import WORK
from hashfield.data.sparse_tracks import Tracks, names_in_model, read_tracks, sparse_model_of
from hashfield.data.structure_from_motion import (
    Matches,
    Report,
    Workshop,
    appearance_pairs,
    connected,
    has_pycolmap,
    read_matches,
)
from hashfield.data.training_box import stray_cameras
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera, camera_table, project
from hashfield.geometry.paths import focus_point, up_axis
from hashfield.geometry.spaces import MAX_AABB_SCALE, Spaces, share_of_rays_meeting_box


@dataclass(frozen=True)
class Finding:
    """Something that will make the result worse."""

    kind: str
    """One word, the same for all findings of the kind."""
    text: str
    """What is wrong."""
    remedy: str
    """What to do about it."""
    photos: tuple[str, ...] = ()
    """Names of the photos that it is about; empty where it is about all."""

    def line(self) -> str:
        """The finding in one line, for the console."""
        about = f"{some(self.photos)}: " if self.photos else ""
        return f"{about}{self.text}: {self.remedy}"


@dataclass(frozen=True)
class PhotoFigures:
    """What is known of one photo."""

    name: str
    split: str
    small: np.ndarray
    """The photo, reduced: uint8 [h, w, 3]."""
    sharpness: float
    """Over its neighbours' median."""
    stops: float
    """How much brighter it is than its neighbours, in stops."""
    n_points: int | None
    """Points of the sparse model, or matched features, that it shows; None: unknown."""
    error: float | None
    """Median distance in pixels of a picture of 1000 between what it shows and where its camera says; None: unknown."""
    agreement: float | None
    """Share of what it has in common with others that the poses explain; None: unknown."""
    share_in_box: float
    """Share of its view rays that meet the training box."""
    nearest: tuple[str, ...]
    """Names of the photos taken nearest to it."""


@dataclass
class Diagnosis:
    """All that the doctor has to say."""

    photos: list[PhotoFigures] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    spaces: Spaces | None = None
    points: np.ndarray | None = None
    """Sparse points in the cameras' world, [n, 3]."""


@dataclass
class _Case:
    """A scene under examination."""

    scene: Scene
    names: list[str]
    splits: list[str]
    cameras: list[Camera]
    pixels: list[Pixels]
    near: list[np.ndarray]
    tracks: Tracks | None = None
    name_of: dict[int, str] = field(default_factory=dict)
    """Number of a photo -> its name in the sparse model."""
    points: np.ndarray | None = None
    links: list[Link] = field(default_factory=list)
    are_matched: bool = False
    """Whether the links come from features found here, not from the sparse model."""
    findings: list[Finding] = field(default_factory=list)
    span: float | None = None
    """Stops between the darkest and the brightest exposure, without the outermost twentieths; None: unknown."""

    def say(self, kind: str, text: str, remedy: str, photos: Iterable[int] = ()) -> None:
        self.findings.append(Finding(kind, text, remedy, tuple(self.names[k] for k in photos)))


# --- the examination

_NEAR: Final = 6


def examine(
    scene: Scene, is_thorough: bool = False, report: Report = lambda done, total: None, threads: int = -1
) -> Diagnosis:
    """Examine a scene.

    Args:
        scene: As it was read; all its views are examined.
        is_thorough: Also find and match features where pycolmap is installed, which takes about a quarter of a second a
            photo.
        report: Sees the progress of that, in photos and pairs.
        threads: For that; -1: one for each CPU.
    """
    case = _open(scene)
    if case.links:
        _check_pictures(case)
    if is_thorough and has_pycolmap() and len(case.cameras) > 2:
        _match(case, report, threads)
    _check_copies(case)
    sharpness = _check_sharpness(case)
    stops = _check_exposure(case)
    _check_strays(case)
    whole = _check_all_poses(case)
    error, n_points, shares = _check_each_pose(case, whole)
    _check_focal_lengths(case)
    _check_box(case)
    if whole:
        _check_up(case)
    if is_thorough:
        _check_without_place(case)
        _check_pieces(case)
    photos = [
        PhotoFigures(
            name=name,
            split=case.splits[k],
            small=case.pixels[k].small,
            sharpness=float(sharpness[k]),
            stops=float(stops[k]),
            n_points=n_points[k],
            error=None if math.isnan(error[k]) else float(error[k]),
            agreement=None if math.isnan(shares[k]) else float(shares[k]),
            share_in_box=share_of_rays_meeting_box([case.cameras[k]], scene.spaces),
            nearest=tuple(case.names[j] for j in case.near[k][:3]),
        )
        for k, name in enumerate(case.names)
    ]
    return Diagnosis(photos, case.findings, _facts(case), case.cameras, scene.spaces, case.points)


def _open(scene: Scene) -> _Case:
    names, splits, cameras, images = [], [], [], []
    for split, views in scene.splits.items():
        for name, camera, image in zip(views.names, views.cameras, views.images, strict=True):
            if name not in names:  # val may serve as test
                names.append(name)
                splits.append(split)
                cameras.append(camera)
                images.append(image)
    order = sorted(range(len(names)), key=lambda k: natural_key(names[k]))
    names, splits, cameras, images = ([part[k] for k in order] for part in (names, splits, cameras, images))
    case = _Case(scene, names, splits, cameras, measure(images), neighbours(cameras, _NEAR))
    model = model_of(scene)
    case.tracks = None if model is None else read_tracks(model)
    if case.tracks is not None:
        case.name_of = names_in_model(names, list(case.tracks.sightings))
        error, _ = reprojection(cameras, case.tracks, case.name_of)
        known = error[~np.isnan(error)]
        # a model in another world, as of a data set whose poses were moved, tells only what photos have in common
        if len(known) and float(np.median(known)) < _WRONG_POSE:
            case.points = case.tracks.points
        case.links = _links_of_tracks(case)
    return case


def model_of(scene: Scene) -> Path | None:
    """The folder of the sparse model that belongs to a scene."""
    root = scene.path if scene.path.is_dir() else scene.path.parent
    if scene.form == "COLMAP":
        return colmap.state(scene.path, ReadOptions()).data_file.parent
    return sparse_model_of(root)


_PARTNERS: Final = 8  # photos that each photo is compared with, of those that show most of the same points
_COUNTED: Final = 20_000  # points by which that is found out


def _links_of_tracks(case: _Case) -> list[Link]:
    """What photos have in common by the sparse model, whatever their cameras in the scene."""
    assert case.tracks is not None
    known = sorted(case.name_of)
    seen = [case.tracks.sightings[case.name_of[k]] for k in known]
    step = max(1, len(case.tracks.points) // _COUNTED)
    shows = np.zeros((len(known), len(case.tracks.points) // step + 1), np.float32)
    for row, sighting in zip(shows, seen, strict=True):
        row[sighting.points[sighting.points % step == 0] // step] = 1
    common = shows @ shows.T
    np.fill_diagonal(common, 0)
    pairs = set()
    for a, row in enumerate(common):
        pairs.update((min(a, b), max(a, b)) for b in np.argsort(-row)[:_PARTNERS].tolist() if row[b] > 0)
    found = []
    for a, b in sorted(pairs):
        one, two = seen[a], seen[b]
        _, rows_a, rows_b = np.intersect1d(one.points, two.points, return_indices=True)
        if len(rows_a) >= _FEWEST_COMMON:
            sizes = [np.array([case.cameras[known[k]].width, case.cameras[known[k]].height]) for k in (a, b)]
            xy = (
                one.pixels[rows_a] * sizes[0] / np.array(one.size),
                two.pixels[rows_b] * sizes[1] / np.array(two.size),
            )
            found.append(Link(known[a], known[b], xy))
    return found


_FEWEST_COMMON: Final = 12


def _check_pictures(case: _Case) -> None:
    """Photos that do not show what the sparse model saw in them: mirrored ones, and other pictures of the same name."""
    assert case.tracks is not None
    grey = [np.asarray(Image.fromarray(p.small).convert("L").reduce(2), np.float64) for p in case.pixels]

    def sampled(k: int, xy: np.ndarray, is_mirrored: bool) -> np.ndarray:
        picture, factor = grey[k], 2 * case.pixels[k].factor
        column = np.clip((xy[:, 0] / factor).astype(int), 0, picture.shape[1] - 1)
        row = np.clip((xy[:, 1] / factor).astype(int), 0, picture.shape[0] - 1)
        return picture[row, picture.shape[1] - 1 - column if is_mirrored else column]

    def likeness(which: int | None = None) -> np.ndarray:
        """For each photo, the median of its correlations with others, photo `which` mirrored."""
        of: list[list[float]] = [[] for _ in case.names]
        for link in case.links:
            if which is None or which in (link.first, link.second):
                ends = zip((link.first, link.second), link.pixels, strict=True)
                a, b = (sampled(k, xy, k == which) for k, xy in ends)
                if a.std() > 4 and b.std() > 4:
                    value = float(np.corrcoef(a, b)[0, 1])
                    of[link.first].append(value)
                    of[link.second].append(value)
        return np.array([float(np.median(values)) if len(values) > 1 else math.nan for values in of])

    alike = likeness()
    if np.isnan(alike).all() or not float(np.nanmedian(alike)) > _ALIKE:
        return
    for k in np.flatnonzero(alike < _UNLIKE).tolist():
        if likeness(k)[k] > max(_ALIKE, alike[k] + 0.3):
            case.say("mirrored", "shows what the sparse model saw in it only when it is mirrored", _MIRROR_BACK, [k])
        elif len(case.tracks.sightings[case.name_of[k]].points) >= _MANY and alike[k] < _UNLIKE / 2:
            text = f"does not show what the sparse model saw in it (correlation {alike[k]:.2f} with other photos)"
            case.say("other picture", text, "put the photo back that the model was made from, or leave it out", [k])


_ALIKE: Final = 0.6  # correlation of grey levels at the same points of two photos, usually
_UNLIKE: Final = 0.3
_MANY: Final = 100  # points of a photo; fewer may lie on one plain or shiny thing
_MIRROR_BACK: Final = "mirror the file back, or leave it out"


# --- features, where pycolmap is installed

_FEATURES: Final = 2000
_BY_POSE: Final = 4
_BY_LOOK: Final = 6


def _match(case: _Case, report: Report, threads: int) -> None:
    """Find features in all photos and match those of photos that are near or look alike."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder), threads)
        shop.photos.mkdir()
        copy = [f"{k:06d}.jpg" for k in range(len(case.names))]
        for name, pixels in zip(copy, case.pixels, strict=True):
            Image.fromarray(pixels.small).save(shop.photos / name, quality=95)
        sizes: dict[tuple[int, ...], list[str]] = {}
        for name, pixels in zip(copy, case.pixels, strict=True):
            sizes.setdefault(pixels.small.shape, []).append(name)
        find_features(shop, list(sizes.values()), report)
        near = {(copy[min(a, b)], copy[max(a, b)]) for a, row in enumerate(case.near) for b in row[:_BY_POSE].tolist()}
        shop.run("match", report, pairs=sorted(near | set(appearance_pairs(shop.database, _BY_LOOK))))
        matches = read_matches(shop.database)
        factor = np.array([[pixels.factor] * 2 for pixels in case.pixels], np.float64)
        number = {name: k for k, name in enumerate(copy)}
        _join(case, shop, copy, matches)
        matches = read_matches(shop.database)
        case.links += links_of(matches, number, case.cameras, factor)
        case.are_matched = True
        _check_mirrored(case, shop, copy, matches)


_MOST_JOINS: Final = 800  # pairs


def _join(case: _Case, shop: Workshop, copy: list[str], matches: Matches) -> None:
    """Match more pairs where what was matched falls into pieces, so that these are not of the choice of pairs."""
    groups = connected(copy, [(pair.first, pair.second) for pair in matches.pairs])
    largest, rest = groups[0], [name for group in groups[1:] for name in group]
    number = {name: k for k, name in enumerate(copy)}
    pairs = []
    for name in rest:
        order = np.argsort([_apart(case.cameras[number[name]], case.cameras[number[other]]) for other in largest])
        pairs += [(name, largest[j]) for j in order[: max(1, _MOST_JOINS // len(rest))].tolist()]
    if pairs:
        shop.run("match", pairs=pairs)


def _apart(camera: Camera, other: Camera) -> float:
    return float((camera.position - other.position).norm())


def find_features(shop: Workshop, groups: Sequence[list[str]], report: Report) -> None:
    """Find features in the small copies of a workshop.

    Args:
        shop: Where the copies lie.
        groups: Names of copies, those of one size together.
        report: Sees the progress.
    """
    listed = [{"names": names, "model": "SIMPLE_RADIAL", "params": ""} for names in groups]
    shop.run("features", report, groups=listed, features=_FEATURES, longest_side=SIDE)


def _check_mirrored(case: _Case, shop: Workshop, copy: list[str], matches: Matches) -> None:
    """Photos that match hardly any other, but do when they are mirrored."""
    partners = matches.partners()
    most = np.array([partners.get(name, [(0, "")])[0][0] if partners.get(name) else 0 for name in copy])
    usual = float(np.median(most))
    told = {name for finding in case.findings for name in finding.photos if finding.kind == "mirrored"}
    lonely = [k for k in range(len(copy)) if most[k] < 0.35 * usual and len(matches.keypoints.get(copy[k], ())) > 100]
    lonely = [k for k in lonely if case.names[k] not in told]
    if not lonely or usual < 40:
        return
    flipped = {}
    for k in lonely[:20]:
        flipped[k] = f"mirrored_{copy[k]}"
        Image.fromarray(case.pixels[k].small[:, ::-1]).save(shop.photos / flipped[k], quality=95)
    sizes: dict[tuple[int, ...], list[str]] = {}
    for k, name in flipped.items():
        sizes.setdefault(case.pixels[k].small.shape, []).append(name)
    find_features(shop, list(sizes.values()), lambda done, total: None)
    pairs = [(name, copy[j]) for k, name in flipped.items() for j in case.near[k].tolist() if j not in flipped]
    alike = appearance_pairs(shop.database, _BY_LOOK)
    pairs += [(a, b) for a, b in alike if ("mirrored_" in a) != ("mirrored_" in b)]
    shop.run("match", pairs=pairs)
    found = read_matches(shop.database).partners()
    for k, name in flipped.items():
        best = max((n for n, other in found.get(name, []) if "mirrored_" not in other), default=0)
        if best > max(30, 2.5 * most[k]):
            case.say(
                "mirrored",
                f"fits the others only when it is mirrored ({best} points in common, {most[k]} as it is)",
                _MIRROR_BACK,
                [k],
            )


# --- pixels


def _check_copies(case: _Case) -> None:
    for a, b, _ in copies(case.pixels):
        if torch.allclose(case.cameras[a].camera_to_world, case.cameras[b].camera_to_world, atol=1e-6):
            case.say("duplicate", "are the same photo with the same pose", "leave one of them out", (a, b))
        else:
            case.say(
                "duplicate",
                "are the same photo at two places, at least one of which is wrong",
                "leave out the one that does not fit",
                (a, b),
            )


_BLURRED: Final = 0.55  # of the neighbours' sharpness
_BLURRED_OF_ALL: Final = 0.7


def _check_sharpness(case: _Case) -> np.ndarray:
    value = np.log2(np.maximum([p.sharpness for p in case.pixels], 1e-3))
    value = np.maximum(value, np.median(value) - 6)
    beside = relative(value, case.near)
    over_all = value - np.median(value)
    for k in np.flatnonzero((beside < math.log2(_BLURRED)) & (over_all < math.log2(_BLURRED_OF_ALL))).tolist():
        case.say(
            "blurred",
            f"is blurred (sharpness {2 ** beside[k]:.2f} of its neighbours')",
            "leave it out, or take it again with a steady hand",
            [k],
        )
    return 2**beside


_STOPS: Final = 0.8
_STOPS_UNLINKED: Final = 1.2
_BALANCE: Final = 0.4
_SPAN: Final = 1.5


def _check_exposure(case: _Case) -> np.ndarray:
    """Says which photos are exposed differently from their neighbours, and by how many stops each is."""
    value, limit = np.array([p.brightness for p in case.pixels]), _STOPS_UNLINKED
    balance, near = np.array([p.balance for p in case.pixels]), case.near
    linked = _linked_exposure(case)
    if linked is not None:
        value, balance, limit = linked[:, 0], linked[:, 1:], _STOPS
        # what has nothing in common cannot be compared
        groups = connected(range(len(case.names)), [(link.first, link.second) for link in case.links])
        group = {k: g for g, members in enumerate(groups) for k in members}
        near = [np.array([j for j in row.tolist() if group[j] == group[k]], int) for k, row in enumerate(near)]
        case.span = float(np.subtract(*np.quantile(value, (0.95, 0.05))))
        if case.span > _SPAN:
            case.say(
                "exposure span",
                f"the exposure changes by {case.span:.1f} stops over the capture",
                "train with --refine exposure, or haze and floating blobs make up for it; lock it while taking photos",
            )
    stops = relative(value, near)
    usual = float(np.median(np.abs(stops))) * 1.48
    off = np.flatnonzero(np.abs(stops) > max(limit, 4 * usual)).tolist()
    for k in off:
        word = "brighter" if stops[k] > 0 else "darker"
        case.say(
            "exposure",
            f"is {abs(stops[k]):.1f} stops {word} than its neighbours",
            "leave it out or train with --refine exposure; lock the exposure while taking photos",
            [k],
        )
    tint = np.stack([relative(balance[:, k], near) for k in range(2)], axis=1)
    limit = _BALANCE if linked is not None else 2 * _BALANCE
    jumps = [k for k in np.flatnonzero(np.abs(tint).max(axis=1) > limit).tolist() if k not in off]
    if jumps and linked is not None:
        case.say(
            "white balance",
            f"{'have' if len(jumps) > 1 else 'has'} another white balance than the neighbours (up to "
            f"{np.abs(tint[jumps]).max():.1f} stops between colours)",
            "train with --refine exposure; lock the white balance while taking photos",
            jumps,
        )
    return stops


def _linked_exposure(case: _Case) -> np.ndarray | None:
    """Logarithms (base 2) of luminance, red over green and blue over green of each photo, by what it has in common with
    others; None where that is too little."""
    pairs: list[list[tuple[int, int, float]]] = [[], [], []]
    for link in case.links:
        colors = []
        for k, xy in zip((link.first, link.second), link.pixels, strict=True):
            small, factor = case.pixels[k].small, case.pixels[k].factor
            column = np.clip((xy[:, 0] / factor).astype(int), 0, small.shape[1] - 1)
            row = np.clip((xy[:, 1] / factor).astype(int), 0, small.shape[0] - 1)
            colors.append(small[row, column].astype(np.float64))
        usable = np.all([((c > 6) & (c < 249)).all(axis=1) for c in colors], axis=0)
        if usable.sum() < 10:
            continue
        log = [2.2 * np.log2(c[usable] / 255) for c in colors]
        off = log[1] - log[0]
        for kind, value in enumerate((off[:, 1], off[:, 0] - off[:, 1], off[:, 2] - off[:, 1])):
            pairs[kind].append((link.first, link.second, float(np.median(value))))
    found = [gains(len(case.names), part) for part in pairs]
    if any(part is None for part in found):
        return None
    return np.stack([part for part in found if part is not None], axis=1)


# --- poses

_GOOD: Final = 0.6  # share of matches that good poses explain
_BAD: Final = 0.2
_WRONG_POSE: Final = 12.0  # pixels of a picture of 1000


def _check_all_poses(case: _Case) -> bool:
    """Say what is wrong with all poses at once, if anything is; and whether they are right as a whole."""
    axes = case.scene.camera_axes
    changes: list[tuple[str, Callable[[Sequence[Camera]], list[Camera]], str, str]] = [
        (
            "inverted",
            lambda cameras: inverted(cameras, axes),
            "the matrices are world-to-camera, not camera-to-world",
            "invert each matrix in the data file",
        ),
        (
            "axes",
            other_axes,
            "the camera axes are the other convention's",
            f"use --camera-axes {'opencv' if axes == 'opengl' else 'opengl'}",
        ),
        (
            "aspect",
            square_pixels,
            "the focal length along y does not fit the photos, the one along x fits both ways",
            "set fl_y to fl_x in the data file: it seems to be scaled by the picture's width to height",
        ),
    ]
    if len(case.cameras) < 4:
        return True
    if len(case.links) < 3:
        turned = inverted(case.cameras, axes)
        as_is, other = convergence(case.cameras), convergence(turned)
        if other > 0.5 and as_is < 0.5 * other and not _same_poses(case.cameras, turned):
            kind, _, text, remedy = changes[0]
            case.say(
                kind,
                f"{text}, it seems: the cameras look at nothing in common, and would if each matrix were inverted",
                remedy,
            )
            return False
        return True
    now = float(agreement(case.cameras, case.links).mean())
    for kind, change, text, remedy in changes:
        if kind == "aspect" and all(abs(math.log(c.fy / c.fx)) < 0.02 for c in case.cameras):
            continue
        _, then = explains_better(case.cameras, case.links, change)
        # an aspect that is off leaves much explained; matrices that are wrong leave next to nothing
        if then > _GOOD and (now < 0.5 * then or (kind == "aspect" and now < then - 0.1)):
            case.say(
                kind,
                f"{text}: {100 * now:.0f} % of what photos have in common fits, and {100 * then:.0f} % would",
                remedy,
            )
            return False
    if now < _BAD:
        case.say(
            "poses",
            f"only {100 * now:.0f} % of what photos have in common fits their poses",
            "find the cameras anew with hashfield prepare, or check which world and axes the poses are in",
        )
        return False
    return True


def _same_poses(cameras: Sequence[Camera], others: Sequence[Camera]) -> bool:
    return all(torch.allclose(a.camera_to_world, b.camera_to_world) for a, b in zip(cameras, others, strict=True))


def _check_each_pose(case: _Case, are_right: bool) -> tuple[np.ndarray, list[int | None], np.ndarray]:
    """Error, points and agreement of each photo; and says which poses are wrong where the rest is right."""
    n = len(case.cameras)
    error = np.full(n, math.nan)
    n_points: list[int | None] = [None] * n
    if case.tracks is not None:
        off, seen = reprojection(case.cameras, case.tracks, case.name_of)
        n_points = [*seen]
        error = off if case.points is not None else error
    shares = photo_agreement(n, case.links, agreement(case.cameras, case.links))
    if case.are_matched and case.tracks is None:
        n_points = [0] * n
        for link in case.links:
            for k in (link.first, link.second):
                n_points[k] = max(n_points[k] or 0, len(link.pixels[0]))
    if are_right:
        usual = float(np.nanmedian(shares)) if not np.isnan(shares).all() else 0.0
        wrong = [k for k in range(n) if shares[k] < min(_BAD, 0.5 * usual)] if usual > _GOOD * 0.75 else []
        wrong += [k for k in range(n) if error[k] > _WRONG_POSE and k not in wrong]
        _say_wrong_poses(case, sorted(wrong), error, shares)
    return error, n_points, shares


_EXPLAINED: Final = ("mirrored", "other picture", "duplicate", "stray")
"""Kinds of findings that explain why a pose does not fit."""


def _say_wrong_poses(case: _Case, wrong: list[int], error: np.ndarray, shares: np.ndarray) -> None:
    explained = {name for f in case.findings if f.kind in _EXPLAINED for name in f.photos}
    wrong = [k for k in wrong if case.names[k] not in explained]
    if len(wrong) > 0.4 * len(case.cameras):
        case.say(
            "poses",
            f"{len(wrong)} of {len(case.cameras)} poses do not fit their photos",
            "find the cameras anew with hashfield prepare",
            wrong,
        )
        return
    told: set[int] = set()
    for a in wrong:
        for b in wrong:
            if b <= a or a in told or b in told:
                continue
            exchanged = list(case.cameras)
            exchanged[a] = exchanged[a].moved(case.cameras[b].camera_to_world)
            exchanged[b] = exchanged[b].moved(case.cameras[a].camera_to_world)
            if _fits(case, exchanged, (a, b)):
                told |= {a, b}
                case.say("swapped", "have each other's poses", "exchange their matrices in the data file", (a, b))
    for k in wrong:
        if k not in told:
            why = f"{100 * shares[k]:.0f} % of what it has in common with others fits" if shares[k] < _BAD else ""
            why = why or f"points lie {error[k]:.0f} pixels from where it shows them, in a picture of 1000"
            case.say("pose", f"its pose does not fit it ({why})", "leave it out, or find its pose anew", [k])


def _fits(case: _Case, cameras: list[Camera], which: tuple[int, int]) -> bool:
    """Whether these cameras explain what the photos `which` have in common with others."""
    links = [link for link in case.links if link.first in which or link.second in which]
    if links:
        return float(agreement(cameras, links).mean()) > _GOOD
    if case.tracks is None or case.points is None:
        return False
    off, _ = reprojection(cameras, case.tracks, {k: case.name_of[k] for k in which if k in case.name_of})
    return bool((off[list(which)] < _WRONG_POSE).all())


_FOCAL_RATIO: Final = 1.3


def _check_focal_lengths(case: _Case) -> None:
    """Photos of one size were most likely taken through one lens."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, camera in enumerate(case.cameras):
        groups.setdefault(tuple(sorted((camera.width, camera.height))), []).append(k)
    for size, members in groups.items():
        focal = np.array([case.cameras[k].fx for k in members])
        ratio = float(focal.max() / focal.min())
        if len(members) > 2 and ratio > _FOCAL_RATIO:
            middle = float(np.median(focal))
            far = [k for k, f in zip(members, focal, strict=True) if abs(math.log(f / middle)) > math.log(1.15)]
            case.say(
                "focal",
                f"focal lengths of photos of {size[1]}x{size[0]} pixels contradict each other: {focal.min():.0f} to "
                f"{focal.max():.0f} pixels, {middle:.0f} in the middle",
                "unless you zoomed, give all photos one camera: hashfield prepare does",
                far,
            )
    slips = [k for k, c in enumerate(case.cameras) if abs(math.log(c.fy / c.fx)) > 0.1]
    if slips and not any(finding.kind == "aspect" for finding in case.findings):
        camera = case.cameras[slips[0]]
        case.say(
            "aspect",
            f"focal lengths along x and y ({camera.fx:.0f} and {camera.fy:.0f}) mean pixels that are not square, in "
            f"{len(slips)} of {len(case.cameras)} photos",
            "check fl_y in the data file: no real camera differs so much",
            slips[:1],
        )


def _check_strays(case: _Case) -> None:
    strays, distance = stray_cameras(case.cameras)
    for k in strays:
        rest = float(np.delete(distance, strays).max())
        case.say(
            "stray",
            f"stands {distance[k]:.3g} units from the middle of all cameras, the others within {rest:.3g}",
            "leave it out: its pose is most likely wrong",
            [k],
        )


# --- the whole


def _check_box(case: _Case) -> None:
    spaces = case.scene.spaces
    share = share_of_rays_meeting_box(case.cameras, spaces)
    if share < 0.5:
        case.say(
            "box",
            f"only {100 * share:.0f} % of the view rays meet the training box",
            "state scale and offset in the data file so that the subject lies inside, or use --aabb-scale",
        )
    if case.points is not None and len(case.points) >= 50:
        inside = share_inside(case.points, spaces, 1.0)
        if inside < 0.8:
            text = f"only {100 * inside:.0f} % of the sparse points lie in the training box"
            case.say("box", text, f"use --aabb-scale {min(MAX_AABB_SCALE, 2 * spaces.aabb_scale)}")


def share_inside(points: np.ndarray, spaces: Spaces, factor: float) -> float:
    """Share of points in a box around the training box's centre.

    Args:
        points: Points of the world, [n, 3].
        spaces: Give the training box.
        factor: How many times larger than it the box is.
    """
    half = 0.5 * factor * spaces.aabb_scale / spaces.scale
    return float((np.abs(points - spaces.box_center_world.numpy()).max(axis=1) <= half).mean())


_TILTED: Final = 30.0  # degrees
_ANY_UP: Final = ("COLMAP", "LLFF")  # forms whose worlds have any up


def _check_up(case: _Case) -> None:
    tilt = _tilt(case.cameras)
    if tilt > _TILTED and case.scene.form not in _ANY_UP:
        case.say(
            "up",
            f"the cameras' up is {tilt:.0f} degrees from the world's (+z)",
            "turntables turn around the cameras' own up, so nothing need be done; other programs may show it tilted",
        )


def _tilt(cameras: Sequence[Camera]) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, float(up_axis(cameras)[2])))))


def _check_without_place(case: _Case) -> None:
    """Photos that lie there but have no pose, and why, as far as it is known."""
    root = case.scene.folder or (case.scene.path if case.scene.path.is_dir() else case.scene.path.parent)
    done = root / WORK / "done.json"
    if done.is_file():
        try:
            for photo in json.loads(done.read_text("utf-8"))["lost"]:
                case.findings.append(
                    Finding(
                        "no place", f"has no place: {photo['reason']}", "take it again, or do without", (photo["name"],)
                    )
                )
        except (OSError, ValueError, KeyError):
            pass
        return
    if case.scene.form != "COLMAP":
        return
    folders = {str(Path(name).parent) for name in case.names}
    known = {(root / name).resolve() for name in case.names}
    for folder in photo_folders(root):
        if folder.root.name not in {Path(f).name for f in folders}:
            continue
        lost = [folder.root / name for name in folder.names if (folder.root / name).resolve() not in known]
        if lost:
            _say_lost(case, lost)


def _say_lost(case: _Case, lost: list[Path]) -> None:
    reasons: dict[str, list[str]] = {}
    for path, reason in zip(lost, _why_lost(case, lost), strict=True):
        reasons.setdefault(reason, []).append(path.name)
    for reason, names in reasons.items():
        remedy = "find the cameras anew with hashfield prepare"
        case.findings.append(Finding("no place", f"has no pose: {reason}", remedy, tuple(names)))


def _why_lost(case: _Case, lost: list[Path]) -> list[str]:
    from hashfield.data.images import decode_rgba

    usual = float(np.median([p.sharpness for p in case.pixels]))
    try:
        found = measure([decode_rgba(path) for path in lost])
    except DataError:
        return ["the structure from motion did not place it"] * len(lost)
    common = _common_points(case, found) if has_pycolmap() else [(0, "")] * len(lost)
    reasons = []
    for pixels, (n, other) in zip(found, common, strict=True):
        if pixels.sharpness < 0.6 * usual:
            reasons.append(f"it is blurred (sharpness {pixels.sharpness / usual:.2f} of the usual)")
        elif not has_pycolmap():
            reasons.append("unknown (pip install 'hashfield[photos]' to know more)")
        elif n < 30:
            reasons.append(f"it has {f'at most {n}' if n else 'no'} points in common with any other photo")
        else:
            reasons.append(f"it was not placed although it has {n} points in common with {other}, which may be enough")
    return reasons


def _common_points(case: _Case, found: list[Pixels]) -> list[tuple[int, str]]:
    """For each photo without a place, the most points that it has in common with one that has."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        shop.photos.mkdir()
        sizes: dict[tuple[int, ...], list[str]] = {}
        for kind, listed in (("a", case.pixels), ("b", found)):
            for k, pixels in enumerate(listed):
                name = f"{kind}{k:06d}.jpg"
                Image.fromarray(pixels.small).save(shop.photos / name, quality=95)
                sizes.setdefault(pixels.small.shape, []).append(name)
        find_features(shop, list(sizes.values()), lambda done, total: None)
        pairs = [(f"b{k:06d}.jpg", f"a{j:06d}.jpg") for k in range(len(found)) for j in range(len(case.pixels))]
        shop.run("match", pairs=pairs)
        partners = read_matches(shop.database).partners()
    best = []
    for k in range(len(found)):
        n, other = next(iter(partners.get(f"b{k:06d}.jpg", [])), (0, ""))
        best.append((n, case.names[int(other[1:7])] if other else ""))
    return best


def _check_pieces(case: _Case) -> None:
    """Groups of photos that have nothing in common."""
    if not case.links:
        return
    linked = {k for link in case.links for k in (link.first, link.second)}
    if len(linked) < 0.8 * len(case.names):  # too little texture for the features to tell
        return
    groups = connected(case.names, [(case.names[link.first], case.names[link.second]) for link in case.links])
    pieces = [group for group in groups if len(group) > 1]
    if len(pieces) > 1:
        sizes = ", ".join(str(len(group)) for group in pieces)
        case.findings.append(
            Finding(
                "pieces",
                f"the photos fall into pieces of {sizes} that show nothing in common",
                "check whether they belong to one scene; take photos in between",
                tuple(pieces[1]),
            )
        )


def seen_by(cameras: Sequence[Camera], points: np.ndarray) -> np.ndarray:
    """How many cameras have each point of the world in their picture, whatever stands before it; [n]."""
    count = np.zeros(len(points), np.int64)
    table, given = camera_table(cameras), torch.from_numpy(np.ascontiguousarray(points))
    for k, camera in enumerate(cameras):
        pixel, is_valid = project(table, torch.full((len(points),), k), given)
        x, y = pixel.unbind(1)
        count += (is_valid & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)).numpy()
    return count


def _lattice(spaces: Spaces, n: int = 16) -> np.ndarray:
    """Points of the world in the middle of the box: the cube of one scene unit, in which the subject lies."""
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    scene = torch.cartesian_prod(axis, axis, axis)
    return spaces.scene_to_world(scene).numpy()


def _facts(case: _Case) -> list[tuple[str, str]]:
    spaces, cameras = case.scene.spaces, case.cameras
    position = torch.stack([camera.position for camera in cameras]).numpy()
    center, half = spaces.box_center_world.numpy(), 0.5 * spaces.aabb_scale / spaces.scale
    distance = np.linalg.norm(position - center, axis=1)
    inside = float((np.abs(position - center).max(axis=1) <= half).mean())
    focus = focus_point(cameras).numpy()
    few = seen_by(cameras, _lattice(spaces))
    facts = [
        ("photos", ", ".join(f"{case.splits.count(s)} {s}" for s in dict.fromkeys(case.splits))),
        ("form", case.scene.form),
        (
            "training box",
            f"half side {half:.3g} units around ({', '.join(f'{x:.3g}' for x in center)}), "
            f"aabb_scale {spaces.aabb_scale}",
        ),
        (
            "cameras",
            f"{distance.min():.3g} to {distance.max():.3g} units from the box's centre, "
            f"{distance.mean() * spaces.scale:.2f} scene units on average (1.32 is usual); "
            f"{100 * inside:.0f} % inside the box; they look at a point "
            f"{max(0.0, np.linalg.norm(focus - center) - 1e-9):.3g} units from its centre",
        ),
        ("up", f"{_tilt(cameras):.0f} degrees from +z"),
        (
            "seen by fewer than three cameras",
            f"{100 * float((few < 3).mean()):.0f} % of the cube of one scene unit in the middle of the box",
        ),
    ]
    if case.points is not None:
        shares = [f"{100 * share_inside(case.points, spaces, f):.1f} % at {w}" for f, w in _BOXES]
        facts.append((f"sparse points inside the box, {len(case.points)} in all", ", ".join(shares)))
        few = seen_by(cameras, case.points)
        facts.append(
            ("sparse points in the picture of fewer than three cameras", f"{100 * float((few < 3).mean()):.1f} %")
        )
    rays = []
    for factor, words in _BOXES:
        scale = spaces.aabb_scale * factor
        if 1 <= scale <= MAX_AABB_SCALE:
            box = Spaces(spaces.scale, spaces.offset, int(scale))
            rays.append(f"{100 * share_of_rays_meeting_box(cameras, box):.0f} % at {words}")
    facts.append(("view rays that meet the box", ", ".join(rays)))
    if case.span is not None:
        facts.append(("exposure", f"spans {case.span:.1f} stops over the capture, by what photos have in common"))
    if case.links:
        shares = agreement(cameras, case.links)
        source = "points of the sparse model" if case.tracks is not None else "matched features"
        facts.append((f"{source} that the poses explain", f"{100 * float(shares.mean()):.0f} % of {len(shares)} pairs"))
    return facts


_BOXES: Final = ((0.5, "half its size"), (1.0, "its size"), (2.0, "twice its size"))

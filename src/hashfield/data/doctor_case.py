"""A scene under examination by the doctor: its views in one order, and what they share by the sparse model."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from hashfield.data import colmap
from hashfield.data.assemble import some
from hashfield.data.dataset import ReadOptions, Scene
from hashfield.data.files import natural_key
from hashfield.data.photo_cache import LazyPhotos
from hashfield.data.photo_checks import Pixels, measure
from hashfield.data.pose_checks import Link, neighbours, reprojection
from hashfield.data.sparse_tracks import Tracks, names_in_model, read_tracks, sparse_model_of
from hashfield.geometry.cameras import Camera


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


@dataclass
class Case:
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
        """Add a finding.

        Args:
            kind: One word, the same for all findings of the kind.
            text: What is wrong.
            remedy: What to do about it.
            photos: Numbers of the photos that it is about.
        """
        self.findings.append(Finding(kind, text, remedy, tuple(self.names[k] for k in photos)))


NEAR: Final = 6
"""Neighbours that a photo is compared with."""


def open_case(scene: Scene) -> Case:
    """Measure all views of a scene, and find what they share by the sparse model beside it, if there is one."""
    names, splits, cameras, places = [], [], [], []
    images = LazyPhotos.of(views.images for views in scene.splits.values())  # photos in files do not fit all at once
    place = 0
    for split, views in scene.splits.items():
        for name, camera in zip(views.names, views.cameras, strict=True):
            if name not in names:  # val may serve as test
                names.append(name)
                splits.append(split)
                cameras.append(camera)
                places.append(place)
            place += 1
    order = sorted(range(len(names)), key=lambda k: natural_key(names[k]))
    names, splits, cameras, places = ([part[k] for k in order] for part in (names, splits, cameras, places))
    case = Case(scene, names, splits, cameras, measure(images.chosen(places)), neighbours(cameras, NEAR))
    model = model_of(scene)
    case.tracks = None if model is None else read_tracks(model)
    if case.tracks is not None:
        case.name_of = names_in_model(names, list(case.tracks.sightings))
        error, _ = reprojection(cameras, case.tracks, case.name_of)
        known = error[~np.isnan(error)]
        # a model in another world, as of a data set whose poses were moved, tells only what photos have in common
        if len(known) and float(np.median(known)) < WRONG_POSE:
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


def _links_of_tracks(case: Case) -> list[Link]:
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
MIRROR_BACK: Final = "mirror the file back, or leave it out"
"""The remedy for a mirrored photo, which both pixels and features can tell."""
WRONG_POSE: Final = 12.0
"""Pixels of a picture of 1000 by which points lie off where the pose is wrong."""

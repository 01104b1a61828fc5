"""The doctor: what is wrong with a capture before it is trained on, photo by photo, with a remedy for each finding.

`examine` looks at a scene that was read. With the sparse points of structure from motion beside it, or with matches of
features (`doctor_features.py`), it also knows what photos have in common; without, it has pixels and poses only.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from hashfield.data.dataset import Scene
from hashfield.data.doctor_case import Case, Finding, open_case
from hashfield.data.doctor_features import common_points, match_features
from hashfield.data.doctor_pixels import check_copies, check_exposure, check_pictures, check_sharpness
from hashfield.data.doctor_poses import check_all_poses, check_each_pose, check_focal_lengths, check_strays
from hashfield.data.files import photo_folders
from hashfield.data.photo_checks import measure
from hashfield.data.pose_checks import agreement
from hashfield.data.prepare import WORK
from hashfield.data.structure_from_motion import Report, connected, has_pycolmap
from hashfield.data.training_box import stray_cameras
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera, camera_table, project
from hashfield.geometry.paths import focus_point, up_axis
from hashfield.geometry.spaces import MAX_AABB_SCALE, Spaces, share_of_rays_meeting_box


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
    case = open_case(scene)
    if case.links:
        check_pictures(case)
    if is_thorough and has_pycolmap() and len(case.cameras) > 2:
        match_features(case, report, threads)
    check_copies(case)
    whole = check_all_poses(case)
    sharpness = check_sharpness(case)
    stops = check_exposure(case)
    if whole:
        check_strays(case)
    error, n_points, shares = check_each_pose(case, whole)
    check_focal_lengths(case)
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


def _check_box(case: Case) -> None:
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


def _check_up(case: Case) -> None:
    tilt = _tilt(case.cameras)
    if tilt > _TILTED and case.scene.form not in _ANY_UP:
        case.say(
            "up",
            f"the cameras' up is {tilt:.0f} degrees from the world's (+z)",
            "turntables turn around the cameras' own up, so nothing need be done; other programs may show it tilted",
        )


def _tilt(cameras: Sequence[Camera]) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, float(up_axis(cameras)[2])))))


def _check_without_place(case: Case) -> None:
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


def _say_lost(case: Case, lost: list[Path]) -> None:
    reasons: dict[str, list[str]] = {}
    for path, reason in zip(lost, _why_lost(case, lost), strict=True):
        reasons.setdefault(reason, []).append(path.name)
    for reason, names in reasons.items():
        remedy = "find the cameras anew with hashfield prepare"
        case.findings.append(Finding("no place", f"has no pose: {reason}", remedy, tuple(names)))


def _why_lost(case: Case, lost: list[Path]) -> list[str]:
    from hashfield.data.images import decode_rgba

    usual = float(np.median([p.sharpness for p in case.pixels]))
    try:
        found = measure([decode_rgba(path) for path in lost])
    except DataError:
        return ["the structure from motion did not place it"] * len(lost)
    common = common_points(case, found) if has_pycolmap() else [(0, "")] * len(lost)
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


def _check_pieces(case: Case) -> None:
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


def _facts(case: Case) -> list[tuple[str, str]]:
    spaces, cameras = case.scene.spaces, case.cameras
    position = torch.stack([camera.position for camera in cameras]).numpy()
    center, half = spaces.box_center_world.numpy(), 0.5 * spaces.aabb_scale / spaces.scale
    distance = np.linalg.norm(position - center, axis=1)
    inside = float((np.abs(position - center).max(axis=1) <= half).mean())
    strays = set(stray_cameras(cameras)[0])
    focus = focus_point([camera for k, camera in enumerate(cameras) if k not in strays]).numpy()
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
            f"{np.median(distance) * spaces.scale:.2f} scene units in the median (1.32 is usual); "
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

"""What the doctor says of cameras: all poses at once, each one, focal lengths, strays."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from hashfield.data.doctor_case import NEAR, WRONG_POSE, Case
from hashfield.data.pose_checks import (
    agreement,
    convergence,
    explains_better,
    inverted,
    neighbours,
    other_axes,
    photo_agreement,
    reprojection,
    square_pixels,
)
from hashfield.data.training_box import stray_cameras
from hashfield.geometry.cameras import Camera

_GOOD: Final = 0.6  # share of matches that good poses explain
_BAD: Final = 0.2


def check_all_poses(case: Case) -> bool:
    """Say what is wrong with all poses at once, if anything is; and return whether they are right as a whole.

    Where it is known what is wrong, photos are compared with their neighbours by the mended poses from then on."""
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
            case.near = neighbours(turned, NEAR)
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
            case.near = neighbours(change(case.cameras), NEAR)
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


def check_each_pose(case: Case, are_right: bool) -> tuple[np.ndarray, list[int | None], np.ndarray]:
    """Error, points and agreement of each photo; say which poses are wrong where the rest is right."""
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
        wrong += [k for k in range(n) if error[k] > WRONG_POSE and k not in wrong]
        _say_wrong_poses(case, sorted(wrong), error, shares)
    return error, n_points, shares


_EXPLAINED: Final = ("mirrored", "other picture", "duplicate", "stray")
"""Kinds of findings that explain why a pose does not fit."""


def _say_wrong_poses(case: Case, wrong: list[int], error: np.ndarray, shares: np.ndarray) -> None:
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


def _fits(case: Case, cameras: list[Camera], which: tuple[int, int]) -> bool:
    """Whether these cameras explain what the photos `which` have in common with others."""
    links = [link for link in case.links if link.first in which or link.second in which]
    if links:
        return float(agreement(cameras, links).mean()) > _GOOD
    if case.tracks is None or case.points is None:
        return False
    off, _ = reprojection(cameras, case.tracks, {k: case.name_of[k] for k in which if k in case.name_of})
    return bool((off[list(which)] < WRONG_POSE).all())


_FOCAL_RATIO: Final = 1.3


def check_focal_lengths(case: Case) -> None:
    """Say where focal lengths contradict each other: photos of one size were most likely taken through one lens."""
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
                # the photos may have been reduced for this, so pixels would tell little
                f"focal lengths of photos of one size contradict each other by a factor of {ratio:.1f}: "
                f"{focal.min() / size[1]:.2f} to {focal.max() / size[1]:.2f} of the longer side, "
                f"{middle / size[1]:.2f} in the middle",
                "unless you zoomed, give all photos one camera, as hashfield prepare does, or train with "
                "--refine poses lens exposure",
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


def check_strays(case: Case) -> None:
    """Say which cameras stand far from all others."""
    strays, distance = stray_cameras(case.cameras)
    for k in strays:
        rest = float(np.delete(distance, strays).max())
        case.say(
            "stray",
            f"stands {distance[k]:.3g} units from the middle of all cameras, the others within {rest:.3g}",
            "leave it out: its pose is most likely wrong",
            [k],
        )

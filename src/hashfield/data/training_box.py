"""The choice of the training box where the data do not state it."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.focus import gaze
from hashfield.geometry.paths import focus_point
from hashfield.geometry.spaces import DEFAULT_SCALE, MAX_AABB_SCALE, REACH_INWARD, Spaces, choose_aabb_scale

_CAMERA_DISTANCE: Final = 4 * DEFAULT_SCALE
"""Distance of an ordinary camera from the box centre in scene units: instant-ngp's colmap2nerf makes it 4 units of
its file, which its default scale multiplies."""
_INSIDE: Final = 0.98
"""Share of the points, and of the cameras, that the box holds: a few points of every model are wrong."""
_MARGIN: Final = 1.1
"""How much farther the box reaches: the points of a wall are many, and it must not lie in the box's own side."""
_AROUND: Final = 4.0
"""How many times farther than cameras that look outwards are from their middle is what they see, about."""

_FAR: Final = 10.0
"""A camera is a stray if it is this many times farther from the middle than three quarters of the others."""
_MOST_STRAYS: Final = 0.1
"""Share of cameras that can be strays, of few cameras one: more of them are a part of the scene."""


class ChosenBox(NamedTuple):
    """Spaces, and why."""

    spaces: Spaces
    center_reason: str
    size_reason: str


def choose_box(
    cameras: Sequence[Camera], points: Float64[np.ndarray, "n_points 3"] | None, points_origin: str, has_alpha: bool
) -> ChosenBox:
    """The training box of a capture in arbitrary units.

    Its centre is the point that the cameras look at. Where they look outwards, it is the middle of the cameras; where
    they look one way and no common point is told, the middle of the points, or a place before them. It reaches farther
    than 98 % of the points, whatever else lies beyond, and, unless the pictures are cut out by alpha, twice as far as
    the cameras: people walk around a subject inside a room, and its plain walls give no points. The scale is such that
    an ordinary camera, or what is seen by cameras that look outwards, is 1.32 scene units from the centre, give or take
    a factor of 1.42 by which the box fits exactly.

    Args:
        cameras: in the world; without strays.
        points: of the world, see `StatedScene`; None: the box is made from the cameras alone.
        points_origin: what the points are, for the reason.
        has_alpha: whether the pictures show an object without its background.
    """
    position = torch.stack([camera.position for camera in cameras]).numpy()
    look = gaze(camera_table(cameras))
    if look.kind == "inward":
        center, center_reason = focus_point(cameras).numpy(), "what the cameras look at"
        distance = _usual_distance(position, center)
    elif look.kind == "one way":
        center = position.mean(axis=0) + look.depth * look.axis.numpy() if points is None else np.median(points, axis=0)
        center_reason = f"{'before the cameras' if points is None else f'middle of the {points_origin}'}, as they look "
        center_reason += "one way"
        distance = _usual_distance(position, center)
    else:
        center, center_reason = np.median(position, axis=0), "middle of the cameras, as they look outwards"
        distance = _AROUND * _usual_distance(position, center) if points is None else _usual_distance(points, center)
    scale = DEFAULT_SCALE if _is_nothing(distance, center) else _CAMERA_DISTANCE / distance

    def spaces_of(scale: float, aabb_scale: int) -> Spaces:
        x, y, z = (0.5 - center * scale).tolist()
        return Spaces(scale, (x, y, z), aabb_scale)

    if points is None:
        aabb_scale, words = choose_aabb_scale(cameras, spaces_of(scale, 1))
        words = "images have alpha" if has_alpha else f"from the cameras, {words}"
        return ChosenBox(spaces_of(scale, 1 if has_alpha else aabb_scale), center_reason, words)
    reach, size_reason = _MARGIN * _reach(points, center), f"holds {100 * _INSIDE:g} % of {points_origin}"
    around_cameras = REACH_INWARD * _reach(position, center)
    if not has_alpha and around_cameras > reach:
        reach, size_reason = around_cameras, f"twice as far as the cameras; {points_origin} reach less far"
    if not reach > 0:
        return ChosenBox(spaces_of(scale, 1), center_reason, "all is at one place")
    size = float(np.log2(2 * reach * scale))
    if not size < np.log2(MAX_AABB_SCALE) + 0.5:
        return ChosenBox(spaces_of(scale, MAX_AABB_SCALE), center_reason, f"the largest; {points_origin} reach farther")
    aabb_scale = 2 ** max(0, round(size))
    return ChosenBox(spaces_of(aabb_scale / (2 * reach), aabb_scale), center_reason, size_reason)


def doubt_of_size(cameras: Sequence[Camera]) -> str | None:
    """What to say of a box that was chosen from these cameras alone, if its size is hardly more than a guess."""
    table = camera_table(cameras)
    position = table[:, [3, 7, 11]].numpy()
    center = np.median(position, axis=0)
    if _is_nothing(_usual_distance(position, center), center):
        return (
            "warning: all cameras stand at one place, which does not tell how far away things are: pictures from there "
            "can be right, others cannot, and the size of the box is a guess"
        )
    if gaze(table).kind == "outward":
        return (
            "the size of the box is a guess, since cameras that look outwards do not tell how far away things are: for "
            "photos turned on the spot it is too small, and a larger --aabb-scale, or a model with points, mends that"
        )
    return None


def _is_nothing(distance: float, center: Float64[np.ndarray, " 3"]) -> bool:
    """Whether a distance is only what rounding makes of none."""
    return distance <= 1e-9 * max(1.0, float(np.abs(center).max()))


def _usual_distance(places: Float64[np.ndarray, "n 3"], center: Float64[np.ndarray, " 3"]) -> float:
    return float(np.median(np.linalg.norm(places - center, axis=1)))


def _reach(points: Float64[np.ndarray, "n_points 3"], center: Float64[np.ndarray, " 3"]) -> float:
    """Half the side of the cube around the centre that holds all but a few points."""
    return float(np.quantile(np.abs(points - center).max(axis=1), _INSIDE))


def stray_cameras(cameras: Sequence[Camera]) -> tuple[list[int], Float64[np.ndarray, " n_cameras"]]:
    """Which cameras stand so far from all others that they must be wrong, and every camera's distance from the middle.

    Structure from motion places a photo it does not understand anywhere.
    """
    position = torch.stack([camera.position for camera in cameras]).numpy()
    distance = np.linalg.norm(position - np.median(position, axis=0), axis=1)
    far = np.flatnonzero(distance > _FAR * np.quantile(distance, 0.75))
    return (far.tolist() if len(far) <= max(1, _MOST_STRAYS * len(cameras)) else []), distance

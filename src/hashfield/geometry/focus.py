"""Where a set of cameras looks: at a common point, one way, or outwards."""

from typing import Final, Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.geometry.lenses import LENSES

_IN_FRONT: Final = 0.9
"""Share of the cameras that must have the common point before them."""
_SHARPNESS: Final = 2.0
"""How many times more the axes must differ in direction than they miss the common point by, both as angles: else where
they cross is chance, as it is for the nearly parallel axes of a flight along a street."""

_MOST_IN_FRONT: Final = 0.75
"""Share of the cameras that have the point nearest to all axes before them, where not by chance: then half have."""
_ONE_WAY: Final = 0.87
"""Length of the mean of the axes, above which the cameras look one way: within about 30 degrees of each other."""
_BEFORE_THEM: Final = 8.0
"""How many times farther than cameras that look one way are from their middle is what they see. From photos that face a
scene it is four to thirty times as far."""
_ALONG: Final = 2.0
"""Distance of what cameras see that move the way they look, as along a street, in mean distances of theirs from their
middle: they come to what they see."""

_PANORAMA = LENSES.index("equirectangular")


def distances_to_focus(table: Float64[Tensor, "n_cameras 24"]) -> Float64[Tensor, " n_cameras"] | None:
    """How far each camera is from the point that all of them look at; None where they look at no common point.

    Args:
        table: Cameras, see `geometry.cameras.camera_table`; distances are in its space.
    """
    offset = _ways_to_focus(table)
    return None if offset is None else offset.norm(dim=1).clamp(min=1e-12)


def focus_point(table: Float64[Tensor, "n_cameras 24"]) -> Float64[Tensor, " 3"] | None:
    """The point that all cameras look at; None where they look at no common point.

    That point is the one whose squared distances to the axes have the least sum. Photos taken around an object have
    one, and so have those taken while facing a scene; a walk through rooms, a panorama and a flight straight on have
    none.

    Args:
        table: Cameras, see `geometry.cameras.camera_table`; the point is in its space, on the host.
    """
    offset = _ways_to_focus(table)
    return None if offset is None else (table.to(offset)[:, [3, 7, 11]] + offset).mean(0)


def _ways_to_focus(table: Float64[Tensor, "n_cameras 24"]) -> Float64[Tensor, "n_cameras 3"] | None:
    """The way from each camera to the point that all of them look at, if there is one."""
    found = _axes_and_focus(table)
    if found is None:
        return None
    axis, offset, spread = found
    distance = offset.norm(dim=1).clamp(min=1e-12)
    along = (offset * axis).sum(1)
    miss = (offset - along[:, None] * axis).norm(dim=1) / distance
    is_common = (along > 0).double().mean() >= _IN_FRONT and _SHARPNESS * miss.median() <= spread
    return offset if is_common else None


def _axes_and_focus(table: Float64[Tensor, "n_cameras 24"]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Axes of the cameras, the way from each to the point nearest to all axes, and the sine of the angle by which the
    axes differ; None where there is no such point."""
    if len(table) < 2:
        return None
    table = table.to("cpu", torch.float64)
    if bool((table[:, 16] == _PANORAMA).any()):  # its axis is only the middle of its picture
        return None
    position, axis = table[:, [3, 7, 11]], torch.nn.functional.normalize(table[:, [2, 6, 10]], dim=1)
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    mean = across.mean(0)
    spread = torch.linalg.eigvalsh(mean)[0].clamp(min=0.0).sqrt()
    if spread < 1e-3:
        return None
    offset = torch.linalg.solve(mean, (across @ position[:, :, None]).mean(0))[:, 0] - position
    return axis, offset, spread


class Gaze(NamedTuple):
    """How a set of cameras looks."""

    kind: Literal["inward", "one way", "outward"]
    """At a common point; all in nearly the same direction, where no such point is told by the axes; or in different
    directions, as in a walk through rooms and in panoramas."""
    axis: Float64[Tensor, " 3"]
    """Mean direction of the axes, of unit length where they look one way."""
    depth: float
    """Where they look one way: about how far before their middle what they see may be, by how far they are apart."""


def gaze(table: Float64[Tensor, "n_cameras 24"]) -> Gaze:
    """How a set of cameras looks.

    Args:
        table: At least one camera, see `geometry.cameras.camera_table`.
    """
    table = table.to("cpu", torch.float64)
    one_sided = table[table[:, 16] != _PANORAMA]
    axis = torch.zeros(3, dtype=torch.float64)
    if 2 * len(one_sided) < len(table):
        return Gaze("outward", axis, 0.0)
    if distances_to_focus(one_sided) is not None:
        return Gaze("inward", axis, 0.0)
    axes = torch.nn.functional.normalize(one_sided[:, [2, 6, 10]], dim=1)
    axis = axes.mean(0)
    length = float(axis.norm())
    if length > _ONE_WAY:
        axis = axis / length
        apart = one_sided[:, [3, 7, 11]] - one_sided[:, [3, 7, 11]].mean(0)
        spread = float(apart.norm(dim=1).mean())
        is_along = float((apart @ axis).abs().mean()) > 0.5 * spread
        return Gaze("one way", axis, (_ALONG if is_along else _BEFORE_THEM) * spread)
    found = _axes_and_focus(one_sided)
    in_front = 0.0 if found is None else float(((found[0] * found[1]).sum(1) > 0).double().mean())
    return Gaze("inward" if in_front >= _MOST_IN_FRONT else "outward", axis, 0.0)

"""Where a set of cameras looks: the point that their axes pass nearest, if there is one."""

from typing import Final

import torch
from jaxtyping import Float64
from torch import Tensor

from hashfield.geometry.lenses import LENSES

_IN_FRONT: Final = 0.9
"""Share of the cameras that must have the common point before them."""
_SHARPNESS: Final = 2.0
"""How many times more the axes must differ in direction than they miss the common point by, both as angles: else where
they cross is chance, as it is for the nearly parallel axes of a flight along a street."""

_PANORAMA = LENSES.index("equirectangular")


def distances_to_focus(table: Float64[Tensor, "n_cameras 24"]) -> Float64[Tensor, " n_cameras"] | None:
    """How far each camera is from the point that all of them look at; None where they look at no common point.

    Args:
        table: Cameras, see `geometry.cameras.camera_table`; distances are in its space.
    """
    point = focus_point(table)
    if point is None:
        return None
    return (point - table.to(point)[:, [3, 7, 11]]).norm(dim=1).clamp(min=1e-12)


def focus_point(table: Float64[Tensor, "n_cameras 24"]) -> Float64[Tensor, " 3"] | None:
    """The point that all cameras look at; None where they look at no common point.

    That point is the one whose squared distances to the axes have the least sum. Photos taken around an object have
    one, and so have those taken while facing a scene; a walk through rooms, a panorama and a flight straight on have
    none.

    Args:
        table: Cameras, see `geometry.cameras.camera_table`; the point is in its space, on the host.
    """
    if len(table) < 2:
        return None
    table = table.to("cpu", torch.float64)
    if bool((table[:, 16] == _PANORAMA).any()):  # its axis is only the middle of its picture
        return None
    position, axis = table[:, [3, 7, 11]], torch.nn.functional.normalize(table[:, [2, 6, 10]], dim=1)
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    mean = across.mean(0)
    spread = torch.linalg.eigvalsh(mean)[0].clamp(min=0.0).sqrt()  # sine of the angle by which the axes differ
    if spread < 1e-3:
        return None
    point = torch.linalg.solve(mean, (across @ position[:, :, None]).mean(0))[:, 0]
    offset = point - position
    distance = offset.norm(dim=1).clamp(min=1e-12)
    along = (offset * axis).sum(1)
    miss = (offset - along[:, None] * axis).norm(dim=1) / distance
    is_common = (along > 0).double().mean() >= _IN_FRONT and _SHARPNESS * miss.median() <= spread
    return point if is_common else None

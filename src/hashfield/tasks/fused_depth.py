"""The surface that the depth pictures of many cameras agree on: averages of truncated signed distances.

Density alone tells badly where a capture's surfaces are: where few photos look, or light passes through, it is spread
thin, and any level of it leaves holes there and floaters elsewhere. Depth as cameras render it is where each of them
sees something, and what one of them sees through, several others outvote.

Source: Curless and Levoy, "A Volumetric Method for Building Complex Models from Range Images", 1996.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import max_pool2d

from hashfield.geometry.cameras import Camera, camera_table, project

EDGE = 0.05
"""Relative spread of depth among a pixel and its neighbours from which on it lies at an edge, where depth is a mixture
of both sides and says only what is empty in front of both."""


class FusedDepth:
    """Signed distance to the surface that cameras agree on, world units, cut off at `reach`; below 0 inside."""

    def __init__(self, cameras: Sequence[Camera], depths: Sequence[Float[Tensor, "h w"]], reach: float) -> None:
        """Args:
        cameras: World.
        depths: A picture for each: world units along the unit ray, infinite where a ray meets nothing.
        reach: A camera says nothing of what lies farther than this behind the depth that it sees, world units.
        """
        self.reach, self.cameras = reach, list(cameras)
        self.pictures: list[Float[Tensor, "h w 2"]] = []
        """Depth, and the distance from which on the camera says nothing."""
        for depth in depths:
            farthest = max_pool2d(depth[None, None], 3, 1, 1)[0, 0]
            nearest = -max_pool2d(-depth[None, None], 3, 1, 1)[0, 0]
            is_edge = ~(farthest - nearest <= EDGE * nearest) & ~torch.isinf(nearest)
            surface = torch.where(is_edge, nearest, depth)
            self.pictures.append(torch.stack([surface, surface + torch.where(is_edge, -reach, reach)], -1))

    def __call__(self, positions_world: Float64[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """The distance at points. Where no camera says anything it is `reach`, so that what is hidden meets empty space
        without a surface; behind a surface it changes sign once more, at `reach`."""
        n, reach = len(positions_world), self.reach
        total, weight = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for camera, picture in zip(self.cameras, self.pictures, strict=True):
            pixel, valid = project(camera_table([camera]), torch.zeros(n, dtype=torch.int64), positions_world)
            column, row = pixel.nan_to_num(-1.0).floor().long().unbind(1)
            valid &= (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
            index = valid.nonzero()[:, 0]
            distance = (positions_world[index] - camera.position).norm(dim=1)
            depth, end = picture[row[index], column[index]].double().unbind(1)
            # A camera knows as much as it has pixels there.
            power = torch.where(distance <= end, (camera.fx / distance.clamp(min=1e-9)).square(), 0.0)
            total.index_add_(0, index, power * (depth - distance).clamp(-reach, reach))
            weight.index_add_(0, index, power)
        return torch.where(weight > 0, total / weight.clamp(min=1e-300), reach).float()

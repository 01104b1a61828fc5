"""The texture of a radiance field's mesh: the photos where they saw it, the field's own colours elsewhere."""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d

from hashfield.data.dataset import PosedImages
from hashfield.export.meshes import Mesh, unit_vectors
from hashfield.export.textures import Atlas, at_texels, rasterize, spread_colors
from hashfield.geometry.cameras import Camera, camera_table, project
from hashfield.tasks.mesh import Surface, in_parts

MOST_PHOTOS: Final = 40
"""Photos that a texture is taken from, evenly chosen."""
DEPTH_SIZE_PX: Final = 400
"""Longest side of the depth pictures that tell what a photo sees."""
LEAST_COSINE: Final = 0.2
"""A photo that looks at the surface more obliquely is not asked."""
FACING_POWER: Final = 8
"""Photos count by this power of the cosine between the surface's normal and the way to the camera: the one that faces
it best nearly alone."""
LEAST_ALPHA: Final = 0.98
"""Pixels of photos that are less opaque show something else too."""
POINTS_AT_ONCE: Final = 2**18


class DepthModel(Protocol):
    """What this file needs of a trained field."""

    def render(self, camera: Camera, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Float32 pictures by name."""
        ...


@torch.no_grad()
def bake_texture(
    model: DepthModel, surface: Surface, mesh: Mesh, atlas: Atlas, size: int, cell: float, photos: PosedImages | None
) -> tuple[UInt8[np.ndarray, "size size 3"], tuple[str, ...]]:
    """(texture in sRGB, lines that say where its colours come from).

    Args:
        model: Rendered for the depth that each photo sees.
        surface: Has the field's colours.
        mesh: With normals.
        atlas: The mesh's atlas.
        size: Texels along each side.
        cell: Side of a cell that the mesh was made with, world units: how exact its surface is.
        photos: To take colours from, without what `PosedImages.gains` say of their exposure; None takes all from the
            field.
    """
    assert surface.colors is not None and mesh.normals is not None
    texels = rasterize(atlas, size)
    filled = texels.face >= 0
    points = torch.from_numpy(at_texels(mesh.vertices, mesh.faces, texels))
    normals = torch.from_numpy(unit_vectors(at_texels(mesh.normals, mesh.faces, texels).astype(np.float32)))
    total = torch.zeros(len(points), 3)
    weight = torch.zeros(len(points))
    n_photos = 0
    if photos is not None:
        chosen = np.unique(np.linspace(0, len(photos) - 1, min(len(photos), MOST_PHOTOS)).round().astype(int))
        n_photos = len(chosen)
        for k in chosen.tolist():
            mask = None if photos.masks is None else photos.masks[k]
            gain = None if photos.gains is None else photos.gains[k]
            add_photo(model, photos.cameras[k], photos.images[k], mask, gain, points, normals, cell, total, weight)
    color = total / weight.clamp(min=1e-12)[:, None]
    unseen = (weight <= 1e-9).nonzero()[:, 0].numpy()
    if len(unseen):
        field = in_parts(surface.colors, points.numpy()[unseen], normals.numpy()[unseen])
        color[torch.from_numpy(unseen)] = torch.from_numpy(field).float()
    texture = np.zeros((size, size, 3), np.uint8)
    texture[filled] = (255 * color.clamp(0, 1)).round().byte().numpy()
    share = 1 - len(unseen) / max(len(points), 1)
    notes = (
        f"texture: {size} x {size}, sRGB; {filled.mean():.0%} of it used by {atlas.n_charts:,} charts; "
        + (f"{share:.0%} of that from {n_photos} photos, the rest" if n_photos else "all of that")
        + " the field's own colours along minus the normal",
    )
    return spread_colors(texture, filled), notes


def add_photo(
    model: DepthModel, camera: Camera, image: UInt8[np.ndarray, "h w 4"], mask: np.ndarray | None,
    gain: Float64[np.ndarray, " 3"] | None,
    points: Float64[Tensor, "n 3"], normals: Float[Tensor, "n 3"], cell: float,
    total: Float[Tensor, "n 3"], weight: Float[Tensor, " n"],
) -> None:  # fmt: skip
    """Add the colours that one photo has of points on a surface to `total`, and their weights to `weight`.

    Args:
        model: Rendered for the depth that the photo sees: farther points are hidden.
        camera: Camera of the photo, in the world.
        image: The photo, straight alpha.
        mask: Which of its pixels show the scene; None: all.
        gain: By how much its channels are brighter than the scene; None: not at all.
        points: World.
        normals: Outward unit normals there.
        cell: How far behind the depth a point may lie, about, world units.
        total: Sum of weighted colours so far.
        weight: Sum of weights so far.
    """
    scale = min(1.0, DEPTH_SIZE_PX / max(camera.width, camera.height))
    small = camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
    found = model.render(small, ("depth", "opacity"))
    depth = torch.from_numpy(np.where(found["opacity"] > 0.5, found["depth"], np.inf).astype(np.float32))
    # the nearest of a pixel's neighbours: along an edge the photo may show what is before it
    nearest = -max_pool2d(-depth[None], 3, 1, 1)[0]
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    if mask is not None:
        picture[0, 3] *= torch.from_numpy(mask).float()
    if gain is not None:
        picture[0, :3] /= torch.from_numpy(gain).float()[:, None, None]
    for begin in range(0, len(points), POINTS_AT_ONCE):
        place, normal = points[begin : begin + POINTS_AT_ONCE], normals[begin : begin + POINTS_AT_ONCE]
        toward = camera.position - place
        distance = toward.norm(dim=1)
        cosine = (normal * toward).sum(1) / distance
        some = (cosine > LEAST_COSINE).nonzero()[:, 0]
        if not len(some):
            continue
        pixel, valid = project(camera_table([camera]), torch.zeros(len(some), dtype=torch.int64), place[some])
        x, y = pixel.nan_to_num(-1.0).unbind(1)
        valid = valid & (x >= 0.5) & (y >= 0.5) & (x <= camera.width - 0.5) & (y <= camera.height - 0.5)
        some, x, y = some[valid], x[valid], y[valid]
        column = (x * small.width / camera.width).long().clamp(max=small.width - 1)
        row = (y * small.height / camera.height).long().clamp(max=small.height - 1)
        slack = (2 / small.fx * distance[some] / cosine[some]).clamp(min=2 * cell)
        is_seen = distance[some] <= nearest[row, column] + slack
        some, x, y = some[is_seen], x[is_seen], y[is_seen]
        at = torch.stack([2 * x / camera.width - 1, 2 * y / camera.height - 1], -1).float()[None, None]
        red_to_alpha = grid_sample(picture, at, align_corners=False, padding_mode="border")[0, :, 0].T
        sharpness = camera.fx * cell / distance[some]
        share = (cosine[some] ** FACING_POWER * sharpness * (red_to_alpha[:, 3] > LEAST_ALPHA)).float()
        total[begin + some] += share[:, None] * red_to_alpha[:, :3]
        weight[begin + some] += share

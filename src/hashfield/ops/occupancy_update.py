"""Upkeep of the occupancy grid: which cells can hold anything, how dense they are, which bits are set."""

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from hashfield.geometry.spaces import n_cells_of
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker
from hashfield.ops.render_rays import FieldParameters


@torch.no_grad()
def refresh_cells(
    values: Float[Tensor, " n_cells"],
    cells: Int64[Tensor, " n"],
    noise: Float[Tensor, "n 3"],
    field: FieldParameters,
    *,
    aabb_scale: int,
    backend: Backend | None = None,
) -> None:
    """Raise the values of some cells, in place, to what is there now.

    values[c] = max(values[c], optical thickness of the finest step at a point of cell c).

    Args:
        values: Values of all cells, cascade by cascade in Morton order; changed in place.
        cells: Numbers of the cells to ask, each at most once.
        noise: Where in its cell each point lies, [0, 1)^3.
        field: Asked for density.
        aabb_scale: Side of the box; log2 + 1 cascades.
        backend: Implementation; chosen by device if None.

    Source: instant-ngp src/testbed_nerf.cu (update_density_grid_nerf); the step is always the finest, s.
    """
    check = Checker("refresh_cells")
    check("values", values, (n_cells_of(aabb_scale),))
    check("cells", cells, ("n",), "int64")
    check("noise", noise, ("n", 3))
    if not field.is_fused:
        kernels = choose("occupancy_update", "reference", values).kernels
        kernels.refresh_with(field.density, values, cells, noise, aabb_scale)
        return
    choice = choose("occupancy_update", backend, field.table, values, noise, limit=field.limit)
    choice.kernels.refresh_cells(values, cells, noise, field, aabb_scale)


@torch.no_grad()
def occupied_bits(
    values: Float[Tensor, " n_cells"], threshold: float, *, aabb_scale: int, backend: Backend | None = None
) -> UInt8[Tensor, " n_bytes"]:
    """The bit field of the cells above a threshold, each coarser cascade covering the finer ones.

    The fast twin of `ops.occupancy.pack_bits`.

    Args:
        values: Density times the finest step of every cell, cascade by cascade in Morton order.
        threshold: A cell above it is occupied.
        aabb_scale: Side of the training box in scene units; log2 + 1 cascades.
        backend: Implementation; chosen by device if None.
    """
    Checker("occupied_bits")("values", values, (n_cells_of(aabb_scale),))
    choice = choose("occupancy_update", backend, values)
    return choice.kernels.occupied_bits(values, float(threshold), aabb_scale)


@torch.no_grad()
def silhouettes(
    pixels: UInt8[Tensor, "n_pixels 4"],
    starts: Int64[Tensor, " n_images"],
    widths: Int64[Tensor, " n_images"],
    heights: Int64[Tensor, " n_images"],
    radius: int,
    *,
    backend: Backend | None = None,
) -> UInt8[Tensor, " n_pixels"]:
    """1 where a pixel with alpha > 0 lies within the square of `radius` pixels around, else 0.

    Args:
        pixels: All images, one after another, row by row, RGBA.
        starts: First pixel of each image.
        widths, heights: Size of each image.
        radius: How far the square reaches from the pixel, in pixels.
        backend: Implementation; chosen by device if None.
    """
    choice = choose("occupancy_update", backend, pixels)
    return choice.kernels.silhouettes(pixels, starts, widths, heights, int(radius))


@torch.no_grad()
def carve(
    table: Float64[Tensor, "n_cameras 24"],
    starts: Int64[Tensor, " n_cameras"],
    widths: Int64[Tensor, " n_cameras"],
    heights: Int64[Tensor, " n_cameras"],
    masks: UInt8[Tensor, " n_pixels"] | None,
    *,
    aabb_scale: int,
    fewest: int = 1,
    near: Float64[Tensor, " n_cameras"] | None = None,
    backend: Backend | None = None,
) -> Bool[Tensor, " n_cells"]:
    """Which cells can hold anything: seen by enough cameras, not too near to any, and, with masks, inside every
    silhouette that sees them.

    With masks a cell is judged by its centre (the visual hull); they must therefore be grown by about half a cell's
    projected diagonal. Without masks a camera sees a cell if the cell's centre or a corner is in its picture.

    Args:
        table: Cameras in scene space, see `geometry.cameras.camera_table`.
        starts, widths, heights: First pixel, width and height of each camera's mask.
        masks: As `silhouettes` makes them, or None.
        aabb_scale: Side of the box; log2 + 1 cascades.
        fewest: Cameras that must see a cell, at least 1.
        near: For each camera the distance, in scene units, that the centres of living cells have from it at least;
            None: 0.
        backend: Implementation; chosen by device if None.
    """
    choice = choose("occupancy_update", backend, starts)
    near = torch.zeros(len(table), dtype=torch.float64) if near is None else near
    Checker("carve")("near", near, (len(table),))
    return choice.kernels.carve(table, starts, widths, heights, masks, aabb_scale, fewest, near)

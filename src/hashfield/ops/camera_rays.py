"""Rays through pixels of posed cameras."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker


def camera_rays(
    table: Float[Tensor, "n_cameras 24"],
    camera_index: Int[Tensor, " n_rays"],
    pixel: Float[Tensor, "n_rays 2"],
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> tuple[Float[Tensor, "n_rays 3"], Float[Tensor, "n_rays 3"]]:
    """Origin and unit direction of the ray through each pixel, in the space of the cameras' poses.

    Args:
        table: One row per camera, as `geometry.cameras.camera_table` makes it (poses, focal lengths, lens);
            map it with `Spaces.camera_table_to_scene` to get rays in scene space. Lenses are inverted in
            float64 by the fast backends, in the table's own dtype by the reference.
        camera_index: Row of the table for each ray.
        pixel: (x, y); the centre of the first pixel is (0.5, 0.5).
        dtype: Of the results.
        backend: Implementation; chosen by device if None. Fast ones give float32 and no gradient.

    Raises:
        ShapeError: an argument has the wrong shape, dtype or range.
        BackendError: the backend asked for cannot take the call.

    Gradient:
        The reference has autograd's, to the table (poses, lens) and pixels.
    """
    check = Checker("camera_rays")
    check("table", table, ("n_cameras", 24))
    check("camera_index", camera_index, ("n_rays",), "integer")
    check("pixel", pixel, ("n_rays", 2))
    if camera_index.numel():
        # A kernel reads whatever row it is told to.
        low, high = (int(x) for x in torch.aminmax(camera_index))
        if low < 0 or high >= len(table):
            raise ShapeError(
                f"camera_rays: camera_index: expected 0 to {len(table) - 1}, got {low if low < 0 else high}"
            )

    def limit(name: Backend) -> str | None:
        if name == "reference":
            return None
        if dtype != torch.float32:
            return f"dtype {str(dtype).removeprefix('torch.')}, it gives float32"
        if torch.is_grad_enabled() and (table.requires_grad or pixel.requires_grad):
            return "a gradient is asked for"
        if bool(((table[:, 16] != 0) & (table[:, 23] == 0)).any()):
            return "a lens lacks its limit (column 23 of the table)"
        return None

    # Only the index decides the device: cameras are float64 for every backend.
    choice = choose("camera_rays", backend, camera_index, limit=limit)
    if choice.is_reference:
        origin, direction = choice.kernels.camera_rays(table, camera_index, pixel)
        return origin.to(dtype), direction.to(dtype)
    return choice.kernels.camera_rays_forward(table.detach(), camera_index, pixel.detach())

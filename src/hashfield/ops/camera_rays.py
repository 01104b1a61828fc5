"""Rays through pixels of posed cameras."""

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.rays import Rays
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker
from hashfield.ops.ray_box import ray_box


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
        dtype: Type of the results.
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


@torch.no_grad()
def view_rays(
    table: Float64[Tensor, "1 24"],
    width: int,
    height: int,
    box: Float64[Tensor, " 6"],
    *,
    first: int = 0,
    n_rays: int | None = None,
    numbers: Int64[Tensor, " n"] | None = None,
    backend: Backend | None = None,
) -> Rays:
    """The rays through a picture's pixel centres, row by row, clipped to a box: `camera_rays` and `ray_box` in one.

    Args:
        table: The camera, in the space of the box; on the CPU.
        width, height: Size of the picture, pixels.
        box: (x0, y0, z0, x1, y1, z1); its device is that of the rays.
        first: Number of the first pixel wanted.
        n_rays: How many pixels; None: all that follow.
        numbers: Which of those pixels, counted from `first`, in any order; None: each.
        backend: Implementation; chosen by the box's device if None.

    Raises:
        ShapeError: an argument has the wrong shape or range.
        BackendError: the backend asked for cannot take the call.
    """
    check = Checker("view_rays")
    check("table", table, (1, 24))
    left = width * height - first
    n = left if n_rays is None else n_rays
    if box.shape != (6,) or first < 0 or not 0 <= n <= left:
        raise ShapeError(f"view_rays: expected a box of 6 numbers and pixels within {width}x{height}, got {first}, {n}")
    choice = choose("camera_rays", backend, torch.empty(0, device=box.device))
    has_limits = not bool(((table[:, 16] != 0) & (table[:, 23] == 0)).any())
    if has_limits and choice.name == "numba":
        return Rays(*choice.kernels.view_rays(table, width, first, n, box, numbers))
    if has_limits and choice.name == "triton" and numbers is None:
        return Rays(*choice.kernels.view_rays(table, width, first, n, box))
    index = torch.arange(first, first + n, device=box.device) if numbers is None else numbers + first
    pixel = torch.stack([index % width, index // width], 1).double() + 0.5
    origin, direction = camera_rays(table.to(box.device), torch.zeros_like(index), pixel, backend=backend)
    origin, direction, box = origin.float(), direction.float(), box.float()
    return Rays(origin, direction, *ray_box(origin, direction, box[:3], box[3:]))

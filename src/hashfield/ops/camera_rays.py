"""Rays through pixels of posed cameras."""

from jaxtyping import Float, Int
from torch import Tensor

from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker


def camera_rays(
    table: Float[Tensor, "n_cameras 24"],
    camera_index: Int[Tensor, " n_rays"],
    pixel: Float[Tensor, "n_rays 2"],
    *,
    backend: Backend | None = None,
) -> tuple[Float[Tensor, "n_rays 3"], Float[Tensor, "n_rays 3"]]:
    """Origin and unit direction of the ray through each pixel, in the space of the cameras' poses.

    Args:
        table: One row per camera, as `geometry.cameras.camera_table` makes it (poses, focal lengths, lens);
            map it with `Spaces.camera_table_to_scene` to get rays in scene space.
        camera_index: Row of the table for each ray.
        pixel: (x, y); the centre of the first pixel is (0.5, 0.5).
        backend: Only the reference exists.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.

    Gradient:
        Autograd's, to the table (poses, lens) and pixels.
    """
    check = Checker("camera_rays")
    check("table", table, ("n_cameras", 24))
    check("camera_index", camera_index, ("n_rays",), "integer")
    check("pixel", pixel, ("n_rays", 2))
    choice = choose("camera_rays", backend, table, camera_index, pixel)
    return choice.kernels.camera_rays(table, camera_index, pixel)

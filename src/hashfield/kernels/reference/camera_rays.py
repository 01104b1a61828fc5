"""Reference of rays through pixels; the formulas live with the cameras."""

from jaxtyping import Float, Int
from torch import Tensor


def camera_rays(
    table: Float[Tensor, "n_cameras 24"],
    camera_index: Int[Tensor, " n_rays"],
    pixel: Float[Tensor, "n_rays 2"],
) -> tuple[Float[Tensor, "n_rays 3"], Float[Tensor, "n_rays 3"]]:
    """Origin and unit direction of the ray through each pixel, in the space of the table's poses."""
    from hashfield.geometry.cameras import rays_from_pixels

    return rays_from_pixels(table, camera_index, pixel)

"""Pictures from coarse to fine: pixels between neighbours that agree are interpolated, all others rendered."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_DIRECT = ((-1, 0), (1, 0), (0, -1), (0, 1))


@torch.no_grad()
def picture_between_pixels(
    width: int,
    height: int,
    render: Callable[[Int64[Tensor, " n"]], Float[Tensor, "n n_channels"]],
    tolerance: float,
    n_relative: int = 0,
) -> Float[Tensor, "n_pixels n_channels"]:
    """All pixels of a picture, row by row, of which `render` was asked for as few as the tolerance allows.

    Every second pixel of every second row is rendered first, then the pixels in the middle of four of those, then
    the rest, each between four direct neighbours. Where the four differ by no more than the tolerance in every
    channel (for the middles, which lie further from their neighbours: half of it), the pixel is their mean. Pixels of
    the border are always rendered. What is thinner than two pixels and meets none of the four can be missed.

    Args:
        width, height: Size of the picture, in pixels.
        render: Float32 values, on the CPU, of the pixels with these numbers, y * width + x.
        tolerance: Largest difference of neighbours between which a pixel is interpolated, in units of the channel.
        n_relative: So many of the last channels (distances) are compared relative to their size.
    """
    # numpy, since a torch operation of this size ends with its threads spinning for each other: where the cores are not
    # all ours, that takes longer than the operation.
    numbers = np.arange(width * height).reshape(height, width)
    is_border = np.ones((height, width), bool)
    is_border[1:-1, 1:-1] = False
    border = numbers[is_border]
    y, x = border // width, border % width

    def rendered(chosen: np.ndarray) -> np.ndarray:
        return render(torch.from_numpy(chosen)).numpy()

    first = numbers[::2, ::2].reshape(-1)
    found = rendered(first)
    flat = np.empty((width * height, found.shape[1]), found.dtype)
    values = flat.reshape(height, width, -1)
    flat[first] = found

    def refused(top: int, left: int, around: tuple[tuple[int, int], ...], limit: float) -> np.ndarray:
        """Interpolate every second pixel from (top, left) on; numbers of those whose neighbours differ."""
        at = (slice(top, height - 1, 2), slice(left, width - 1, 2))
        n_rows, n_columns = numbers[at].shape
        if not n_rows * n_columns:
            return border[:0]
        four = [
            values[top + dy : top + dy + 2 * n_rows - 1 : 2, left + dx : left + dx + 2 * n_columns - 1 : 2]
            for dy, dx in around
        ]
        low = np.minimum(np.minimum(four[0], four[1]), np.minimum(four[2], four[3]))
        spread = np.maximum(np.maximum(four[0], four[1]), np.maximum(four[2], four[3])) - low
        if n_relative:
            # Nothing, at distance 0, agrees with nothing.
            spread[..., -n_relative:] /= np.maximum(np.abs(low[..., -n_relative:]), 1e-9)
        values[at] = (four[0] + four[1] + four[2] + four[3]) * 0.25
        return numbers[at][(spread > limit).any(-1)]

    middles = np.concatenate([refused(1, 1, _DIAGONAL, 0.5 * tolerance), border[(x % 2 == 1) & (y % 2 == 1)]])
    flat[middles] = rendered(middles)
    rest = [refused(1, 2, _DIRECT, tolerance), refused(2, 1, _DIRECT, tolerance), border[(x + y) % 2 == 1]]
    others = np.concatenate(rest)
    flat[others] = rendered(others)
    return torch.from_numpy(flat)

"""Reference of an image's training batch: lattice, look-up, positions."""

import torch
from torch import Tensor


def pixel_batch(
    pixels: Tensor, random: Tensor, lattice: tuple[int, int], values: Tensor, n_channels: int, has_alpha: bool,
    is_premultiplied: bool, first: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `hashfield.ops.pixel_batch`. The pixel of a cell is floor((cell + u) * size / cells), u in [0, 1)."""
    height, width, _ = pixels.shape
    cell = first + torch.arange(len(random), device=random.device)
    place = []
    for size, cells, index, u in (
        (width, lattice[0], cell % lattice[0], random & 0xFFFF),
        (height, lattice[1], cell // lattice[0], (random >> 16) & 0xFFFF),
    ):
        place.append(((index << 16) + u) * size // (cells << 16))
    x, y = place
    stored = pixels[y, x, :n_channels]
    if pixels.dtype == torch.float32:
        target = stored.clone()
    else:
        code = stored.long() & (values.shape[1] - 1)
        target = values[0][code]
        if has_alpha:
            target[:, -1] = values[1][code[:, -1]]
    if has_alpha and not is_premultiplied:
        target[:, :-1] *= target[:, -1:]
    fixed = torch.stack([(2 * x + 1) * 2**31 // width, (2 * y + 1) * 2**31 // height], 1)
    return fixed.to(torch.int32), target

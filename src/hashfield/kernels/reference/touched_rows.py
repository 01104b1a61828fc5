"""Reference of what is taken out of a sparse array: masks, in plain torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def take_rows(array: Tensor, room: Any, numbers: Sequence[int], scale: float) -> list[int]:
    """See `hashfield.ops.touched_rows`."""
    powers = 2 ** torch.arange(8, device=array.device)
    counts = []
    for k in numbers:
        rows = array[room.parts[k]]
        values = (rows * scale).to(room.wire)
        is_touched = (values != 0).any(1)
        counts.append(int(is_touched.sum()))
        own = room.rows(k, counts[-1])
        padded = torch.nn.functional.pad(is_touched, (0, -len(rows) % 8)).view(-1, 8)
        own.bits.copy_((padded * powers).sum(1))
        own.values.copy_(values[is_touched])
        rows.zero_()
    return counts

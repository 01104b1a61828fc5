"""Reference of what is taken out of a sparse array, and of what is added to one: masks, in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take_rows(
    array: Tensor, parts: Sequence[slice], scale: float, wire: torch.dtype, keeps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `hashfield.ops.touched_rows`."""
    powers = 2 ** torch.arange(8, device=array.device)
    bits, counts, values = [], [], []
    for part in parts:
        rows = array[part]
        is_touched = (rows != 0).any(1)
        padded = torch.nn.functional.pad(is_touched, (0, -len(rows) % 8)).view(-1, 8)
        bits.append((padded * powers).sum(1).to(torch.uint8))
        counts.append(is_touched.sum())
        values.append((rows[is_touched] * scale).to(wire))
        rows[is_touched] = values[-1].to(rows.dtype) if keeps else 0.0
    if not parts:
        return torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), array[:0].to(wire)
    return torch.cat(bits), torch.stack(counts), torch.cat(values)


def add_rows(array: Tensor, parts: Sequence[slice], bits: Tensor, counts: Tensor, values: Tensor) -> None:
    """See `hashfield.ops.touched_rows`."""
    first = byte = 0
    for part, count in zip(parts, counts.tolist(), strict=True):
        rows = array[part]
        n_bytes = -(-len(rows) // 8)
        shifts = torch.arange(8, device=array.device, dtype=torch.uint8)
        is_touched = ((bits[byte : byte + n_bytes, None] >> shifts) & 1).bool().reshape(-1)[: len(rows)]
        rows[is_touched] += values[first : first + count].to(array.dtype)
        first, byte = first + count, byte + n_bytes

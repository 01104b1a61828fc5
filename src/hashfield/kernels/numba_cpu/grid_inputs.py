"""What the grid's kernels read, made of tensors: levels as numbers, positions as planes, tables as bfloat16."""

import numpy as np
import torch

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.numba_cpu.common import as_array, kernel, launch, round_up, share
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.simd import LANES, load, store_bf16, to_bf16


def level_table(layout: GridLayout) -> np.ndarray:
    """The layout as the kernels read it: per level resolution, entries, is_hashed, first entry (int64)."""
    columns = (layout.resolutions, layout.entries, layout.is_hashed, layout.level_offsets[:-1])
    return np.stack([np.asarray(c).astype(np.int64) for c in columns], axis=1)


def level_scales(layout: GridLayout) -> np.ndarray:
    """The layout's scales, in an array that may be written to. That of a layout may not be, but that of its copy may, as
    a model has one; to the compiler these are two types, and every kernel would be compiled for both."""
    return np.array(layout.scales)


def plane_length(n: int) -> int:
    """Points for which a plane of n positions has room: kernels read whole blocks, and one block ahead."""
    return round_up(n, BLOCK) + 2 * BLOCK


def to_planes(positions: torch.Tensor) -> np.ndarray:
    """Positions [n, D] as one padded plane per axis, flat: the kernels read whole vectors. int32 positions are in fixed
    point, and go on as uint32. No copy of what `empty_positions` made."""
    n, n_dims = positions.shape
    length = plane_length(n)
    room = positions.untyped_storage().nbytes() // positions.element_size() - positions.storage_offset()
    if positions.stride() == (1, length) and room >= n_dims * length:
        planes = as_array(positions.as_strided((n_dims * length,), (1,)))
        return planes.view(np.uint32) if planes.dtype == np.int32 else planes
    array = as_array(positions)
    array = array.view(np.uint32) if array.dtype == np.int32 else array
    planes = np.empty((n_dims, length), array.dtype)
    launch(_fill_planes, array, planes)
    return planes.reshape(-1)


def empty_positions(n: int, n_dims: int, dtype: torch.dtype) -> torch.Tensor:
    """Positions [n, D] to be filled in, which lie in memory as the padded planes that kernels read."""
    return torch.zeros((n_dims, plane_length(n)), dtype=dtype)[:, :n].T


@kernel
def _fill_planes(positions, planes, thread, threads):
    n, n_dims = positions.shape
    for i in range(share(n, thread, threads), share(n, thread + 1, threads)):
        for d in range(n_dims):
            planes[d, i] = positions[i, d]
    if thread == threads - 1:
        for d in range(n_dims):
            for i in range(n, planes.shape[1]):
                planes[d, i] = 0


@kernel
def _round_table(table, words, thread, threads):
    n_vectors = table.size // LANES
    first, last = share(n_vectors, thread, threads), share(n_vectors, thread + 1, threads)
    for i in range(first * LANES, last * LANES, LANES):
        store_bf16(words, i, load(table, i))
    if thread == threads - 1:
        for i in range(n_vectors * LANES, table.size):
            words[i] = to_bf16(table[i])


def bf16_words(table: torch.Tensor) -> np.ndarray:
    """The table rounded to bfloat16 (nearest even), flat, as the uint16 the kernels read; no copy if it is so."""
    if table.dtype == torch.bfloat16:
        return table.detach().reshape(-1).view(torch.int16).numpy().view(np.uint16)
    words = np.empty(table.numel(), np.uint16)
    launch(_round_table, as_array(table).reshape(-1), words)
    return words


def lookup_table(field) -> np.ndarray:
    """The table, flat, that a field's lookups read: its bfloat16 copy where there is one."""
    if field.table_bf16 is not None or field.precision == "bfloat16":
        return bf16_words(field.table if field.table_bf16 is None else field.table_bf16)
    return as_array(field.table).reshape(-1)

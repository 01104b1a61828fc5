"""Multiresolution grid encoding."""

from typing import Any, Literal

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hashfield.errors import ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend, Choice, choose
from hashfield.ops.checks import Checker, one_of

Interpolation = Literal["linear", "smoothstep", "nearest"]
Precision = Literal["float32", "bfloat16"]


def grid_encode(
    positions_unit: Float[Tensor, "n n_dims"],
    table: Float[Tensor, "n_entries n_features"],
    layout: GridLayout,
    *,
    interpolation: Interpolation = "linear",
    precision: Precision = "float32",
    table_bf16: BFloat16[Tensor, "n_entries n_features"] | None = None,
    backend: Backend | None = None,
) -> Float[Tensor, "n n_output"]:
    """Features of each position: per level, the table interpolated over the corners of the position's cell.

    Level l has q = scale_l * x + 0.5 as position in cells; the corners of cell floor(q) are weighted by the
    fraction of q. Levels that fit their share of the table are stored densely, finer ones through a spatial
    hash.

    Args:
        positions_unit: Unit space, [0, 1]^D. Anything else is safe, never out of bounds: vertex numbers wrap
            in 32 bits, and a coordinate that is not finite or lies 2^31 cells out counts as cell 0, fraction
            0.
        table: Features of all levels, `layout.n_entries` rows.
        layout: Sizes of the levels.
        interpolation: "linear"; "smoothstep", whose result has continuous first derivatives; or "nearest".
        precision: "bfloat16" looks up table values rounded to the nearest bfloat16; sums stay in the table's
            dtype.
        table_bf16: The table already rounded, for precision "bfloat16", which otherwise rounds all of it at every
            call; `adam_table` keeps such a copy. Gradients are the table's.
        backend: Implementation; chosen by device if None.

    Returns:
        Features, level-major: level l owns columns l*F to l*F + F - 1.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take the call.

    Gradient:
        To table and positions. First order everywhere, second order with backend="reference" (the fast
        backends raise). With linear interpolation the position gradient jumps at cell faces and is that of
        the upper cell on them. "nearest" has none to positions. Rounding to bfloat16 passes gradients
        unchanged.

    Source: paper section 3, appendix A; tiny-cuda-nn include/tiny-cuda-nn/encodings/grid.h, whose numbers
    these are (in float32 with a fused multiply-add for q).

    >>> layout = GridLayout(n_dims=2, n_levels=1, n_features_per_level=1, base_resolution=3)
    >>> table = torch.arange(16.0)[:, None]  # 3 x 3 vertices, padded to a multiple of 8; x is fastest
    >>> grid_encode(torch.tensor([[0.5, 0.25]]), table, layout, backend="reference")  # q = (1.5, 1)
    tensor([[4.5000]])
    """
    check = Checker("grid_encode")
    check("positions_unit", positions_unit, ("n", layout.n_dims))
    check("table", table, (layout.n_entries, layout.n_features_per_level))
    one_of("grid_encode", "interpolation", interpolation, ("linear", "smoothstep", "nearest"))
    one_of("grid_encode", "precision", precision, ("float32", "bfloat16"))
    if table_bf16 is not None:
        if precision != "bfloat16":
            raise ShapeError("grid_encode: table_bf16: is read with precision 'bfloat16' only")
        check("table_bf16", table_bf16, tuple(table.shape), "bfloat16")

    def limit(name: Backend) -> str | None:
        if name == "reference":
            return None
        if layout.n_dims not in (2, 3):
            return f"{layout.n_dims} dimensions, it covers 2 and 3"
        return None

    choice = choose("grid_encode", backend, positions_unit, table, limit=limit)
    if choice.is_reference:
        return choice.kernels.grid_encode(
            positions_unit, table, layout, interpolation, precision, table_bf16
        )  # fmt: skip
    if interpolation == "nearest":
        positions_unit = positions_unit.detach()  # constant between the middles of the vertices
    options = (layout, interpolation, precision, table_bf16, choice)
    return _GridEncode.apply(positions_unit, table, *options)  # pyright: ignore[reportReturnType]


class _GridEncode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        positions: Tensor,
        table: Tensor,
        layout: GridLayout,
        interpolation: str,
        precision: str,
        table_bf16: Tensor | None,
        choice: Choice,
    ) -> Tensor:
        positions, table = positions.contiguous(), table.contiguous()
        lookup = table if table_bf16 is None else table_bf16.contiguous()
        ctx.save_for_backward(positions, lookup)
        ctx.options = (layout, interpolation, precision)
        ctx.kernels = choice.kernels
        return choice.kernels.grid_encode_forward(positions, lookup, layout, interpolation, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        positions, lookup = ctx.saved_tensors
        needs_positions, needs_table = ctx.needs_input_grad[:2]
        grad_table, grad_positions = ctx.kernels.grid_encode_backward(
            positions, lookup, *ctx.options, grads[0].contiguous(), needs_table, needs_positions
        )
        return grad_positions, grad_table, None, None, None, None, None

"""Multiresolution grid encoding."""

from typing import Any, Literal

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.grid_encode_second import position_gradient
from hashfield.ops.backend import Backend, Choice, choose, fused_choice
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.second_order import differentiable_gradients, wanted_gradients

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
        To table and positions, of any order. The second one has kernels on CPUs; beyond that, and on GPUs, it is
        computed by the reference. With linear interpolation the position gradient jumps at cell faces and is that of
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
        return None if name == "reference" else layout.beyond_kernels

    choice = choose("grid_encode", backend, positions_unit, table, limit=limit)
    if choice.is_reference:
        return choice.kernels.grid_encode(
            positions_unit, table, layout, interpolation, precision, table_bf16
        )  # fmt: skip
    if interpolation == "nearest":
        positions_unit = positions_unit.detach()  # constant between the middles of the vertices
    options = (layout, interpolation, precision, table_bf16, choice)
    # The view keeps a leaf apart from the op, so that the backward pass can tell whether its gradient is wanted.
    table = table.contiguous().view_as(table)
    return _GridEncode.apply(positions_unit.contiguous(), table, *options)  # pyright: ignore[reportReturnType]


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
        lookup = table if table_bf16 is None else table_bf16.contiguous()
        # The table itself is needed only for second derivatives, and costs nothing to keep.
        ctx.save_for_backward(positions, table, lookup)
        ctx.options, ctx.choice = (layout, interpolation, precision), choice
        return choice.kernels.grid_encode_forward(positions, lookup, *ctx.options)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        positions, table, lookup = ctx.saved_tensors
        needs_positions, needs_table = wanted_gradients(ctx)[:2]
        cotangent = grads[0].contiguous()
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            options = (*ctx.options, ctx.choice)
            grad_positions = _PositionGradient.apply(cotangent, positions, table, *options) if needs_positions else None
            grad_table = _TableGradient.apply(cotangent, positions, table, *options) if needs_table else None
        else:
            # A table that is the end of a longer vector gets its gradient as the end of one too: whoever cut the vector
            # then need not copy it.
            front = table.storage_offset()
            room = {"room": front} if 0 < front < table.numel() and ctx.choice.name == "numba" else {}
            grad_table, grad_positions = ctx.choice.kernels.grid_encode_backward(
                positions, lookup, *ctx.options, cotangent, needs_table, needs_positions, **room
            )
        return grad_positions, grad_table, None, None, None, None, None


class _PositionGradient(torch.autograd.Function):
    """The gradient to positions as a function of the features' cotangent, the positions and the table."""

    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, positions: Tensor, table: Tensor, layout: GridLayout, interpolation: str,
        precision: str, choice: Choice,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(cotangent, positions, table)
        ctx.options, ctx.choice = (layout, interpolation, precision), choice
        return choice.kernels.grid_encode_backward(positions, table, *ctx.options, cotangent, False, True)[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cotangent, positions, table = ctx.saved_tensors
        needs = wanted_gradients(ctx)[:3]
        kernels = fused_choice("grid_encode_second", ctx.choice.name, positions, table)
        if kernels is None or torch.is_grad_enabled():
            gradients = differentiable_gradients(
                lambda u, x, t: position_gradient(u, x, t, *ctx.options), (cotangent, positions, table), needs, grads[0]
            )
            return *gradients, None, None, None, None
        to_cotangent, to_positions, to_table = kernels.kernels.grid_encode_second(
            positions, table, *ctx.options, cotangent, grads[0].contiguous(), needs[1], needs[2]
        )
        return to_cotangent, to_positions, to_table, None, None, None, None


class _TableGradient(torch.autograd.Function):
    """The gradient to the table as a function of the features' cotangent and the positions."""

    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, positions: Tensor, table: Tensor, layout: GridLayout, interpolation: str,
        precision: str, choice: Choice,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(cotangent, positions)
        ctx.options, ctx.choice = (layout, interpolation, precision), choice
        return choice.kernels.grid_encode_backward(positions, table, *ctx.options, cotangent, True, False)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cotangent, positions = ctx.saved_tensors
        layout, interpolation, _ = ctx.options
        # Linear in the cotangent: its adjoint is the encoding of the same positions in another table.
        table = grads[0].contiguous()
        needs_cotangent, needs_positions = wanted_gradients(ctx)[:2]
        options = (layout, interpolation, "float32")
        encoded = to_positions = None
        if needs_cotangent:
            encoded = _GridEncode.apply(positions, table, *options, None, ctx.choice)
        if needs_positions and interpolation != "nearest":
            to_positions = _PositionGradient.apply(cotangent, positions, table, *options, ctx.choice)
        return encoded, to_positions, None, None, None, None, None

"""A grid-encoded network asked at points: positions in, outputs out, nothing in between leaves the cache."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.fixed_point import from_fixed_point
from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend, choose, fast_precision, runs_on_triton
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.grid_encode import Interpolation
from hashfield.ops.mlp import mlp, too_wide

PointsPrecision = Literal["float32", "bfloat16", "float16"]
"""Number types in which a network can run in the fused ops on points."""


@dataclass(frozen=True)
class EncodedNetwork:
    """The numbers of a network behind a grid encoding, as the fused ops take them: images, distances.

    output = matrices with ReLU between them, of the grid's features; nothing after the last matrix. With another
    encoding than a grid (`encode`) the ops run the small ones, in float32: slower.
    """

    layout: GridLayout
    """Two or three dimensions."""
    table: Float[Tensor, "n_entries n_features"]
    """The encoding's table, float32."""
    weights: tuple[Tensor, ...]
    """[width, L*F], [width, width] for each further hidden layer, [n_outputs, width]."""
    table_bf16: Tensor | None = None
    """The table rounded to bfloat16; where given, lookups read it (half the memory traffic)."""
    precision: PointsPrecision = "float32"
    """Number type of the network: "bfloat16" rounds matrices and layer inputs, and in training the gradients that
    layers pass on; sums and outputs stay float32. Lookups then are bfloat16 too. "float16" is the same with that type;
    GPUs only."""
    interpolation: Interpolation = "linear"
    """How features lie between the grid's vertices."""
    encode: Callable[[Tensor], Tensor] | None = None
    """Features of positions in unit space where they are not the grid's: an encoding without parameters. The table then
    has no entries, and of the layout only the dimensions count."""
    table_fp16: Tensor | None = None
    """The table rounded to float16, for lookups in precision "float16"; rounded at each call where not given."""

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels are made for such an encoding."""
        return self.encode is None

    def unfused(self, positions_unit: Tensor) -> Tensor:
        """Outputs by the small ops, where `encode` is given; differentiable in the matrices."""
        assert self.encode is not None
        if positions_unit.dtype == torch.int32:
            positions_unit = from_fixed_point(positions_unit).to(self.table.dtype)
        return mlp(self.encode(positions_unit), self.weights)

    @property
    def n_outputs(self) -> int:
        """C, numbers that the network answers with."""
        return self.weights[-1].shape[0]

    def check(self, op: str) -> None:
        """Raise a ShapeError that names the field where the shapes do not fit each other."""
        one_of(op, "precision", self.precision, ("float32", "bfloat16", "float16"))
        one_of(op, "interpolation", self.interpolation, ("linear", "smoothstep", "nearest"))
        layout = self.layout
        n_in: int | None = layout.n_output
        wanted = {"table": (self.table, (layout.n_entries, layout.n_features_per_level))}
        if not self.is_fused:
            n_in, wanted["table"] = None, (self.table, (0, self.table.shape[-1]))
        if not self.is_fused and (self.precision != "float32" or self.table_bf16 is not None):
            raise ShapeError(f"{op}: precision: a network behind another encoding than a grid takes float32 only")
        if self.table_bf16 is not None:
            wanted["table_bf16"] = (self.table_bf16, wanted["table"][1])
        if self.table_fp16 is not None:
            wanted["table_fp16"] = (self.table_fp16, wanted["table"][1])
        if not self.weights:
            raise ShapeError(f"{op}: weights: expected at least one matrix, got none")
        for k, weight in enumerate(self.weights):
            wanted[f"weights[{k}]"] = (weight, (weight.shape[0], weight.shape[1] if n_in is None else n_in))
            n_in = weight.shape[0]
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ShapeError(f"{op}: {name}: expected shape {shape}, got {tuple(tensor.shape)}")

    def limit(self, backend: Backend) -> str | None:
        """Why a backend cannot take this network, or None."""
        if self.precision == "float16" and backend != "triton":
            return "float16 networks run on GPUs only"
        if backend == "reference":
            return None
        if self.layout.beyond_kernels is not None:
            return f"the grid has {self.layout.beyond_kernels}"
        if self.interpolation == "nearest":
            return "interpolation 'nearest'"
        for weight in self.weights[:-1]:
            if weight.shape[0] % 16:
                return f"a hidden layer has {weight.shape[0]} neurons, it needs a multiple of 16"
        return too_wide(self.weights) if backend == "triton" else None


Positions = Float[Tensor, "n n_dims"] | Int32[Tensor, "n n_dims"]
"""Unit space, [0, 1]^D: floats as `grid_encode` takes them, or int32 in fixed point (`geometry.fixed_point`)."""


UNFUSED_POINTS = 2**16  # asked at once, which bounds memory


def check_positions(op: str, network: EncodedNetwork, positions_unit: Tensor) -> None:
    """Raise a ShapeError unless these are positions for the network.

    Args:
        op: The op's name, for the error.
        network: Tells the number of dimensions.
        positions_unit: In unit space: floats, or int32 in fixed point.
    """
    check = Checker(op)
    check("table", network.table, ("n_entries", "n_features"))
    kind = "integer" if positions_unit.dtype == torch.int32 else "float"
    check("positions_unit", positions_unit, ("n", network.layout.n_dims), kind)


def compute_precision(
    precision: Literal["auto", "float32", "bfloat16", "float16"], device: torch.device
) -> PointsPrecision:
    """The precision of such a network on a device. Where the GPU's kernels run: as asked for, "auto" being float16.
    Elsewhere both of these are bfloat16 where a CPU has instructions for it, or float32."""
    if precision in ("float32", "bfloat16"):
        return precision
    return "float16" if runs_on_triton(device) else fast_precision(device)


def with_rounded_table(network: EncodedNetwork) -> EncodedNetwork:
    """The network as its device takes it best. float16: with the table rounded once for all calls; in float32 where it
    does not suit a GPU's kernels, since the reference then runs."""
    if network.precision != "float16":
        return network
    if network.limit("triton") is not None:
        return replace(network, precision="float32")
    return replace(network, table_fp16=network.table.half())


@torch.no_grad()
def eval_points(
    network: EncodedNetwork, positions_unit: Positions, *, backend: Backend | None = None
) -> Float[Tensor, "n n_outputs"]:
    """Outputs of the network at each position.

    Args:
        network: What is asked.
        positions_unit: Unit space. float32 as for `grid_encode`: positions and cells share 24 bits, so that on a level
            of N vertices per axis a fraction is off by up to N * 2^-24 of a cell. int32 in fixed point, of
            `to_fixed_point`: off by at most 2^-22 of a cell plus N * 2^-33.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take the call.

    Gradient: none; see `train_points` and, for positions, `encoded_mlp`.

    >>> layout = GridLayout(n_dims=2, n_levels=1, n_features_per_level=1, base_resolution=3)
    >>> network = EncodedNetwork(layout, torch.arange(16.0)[:, None], (torch.tensor([[2.0]]),))
    >>> eval_points(network, torch.tensor([[0.5, 0.25]]), backend="reference")
    tensor([[9.]])
    """
    network.check("eval_points")
    check_positions("eval_points", network, positions_unit)
    if not network.is_fused:
        parts = [network.unfused(part) for part in positions_unit.split(UNFUSED_POINTS)]
        return torch.cat(parts) if parts else network.table.new_zeros(0, network.n_outputs)
    choice = choose("eval_points", backend, network.table, positions_unit, limit=network.limit)
    return choice.kernels.eval_points(network, positions_unit)

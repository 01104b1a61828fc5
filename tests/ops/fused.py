"""Random fields, rays, networks and points for the tests of the fused ops, and one training step on them."""

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hashfield.geometry.fixed_point import to_fixed_point
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import RayBatch, Rays
from hashfield.ops.backend import INTERPRETER_VARIABLE
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.ops.grid_encode import grid_encode
from hashfield.ops.ray_box import ray_box
from hashfield.ops.render_rays import FieldParameters, MarchOptions
from hashfield.ops.train_points import PointsWorkspace, TrainPointsResult, train_points
from hashfield.ops.train_rays import TrainRaysResult, TrainWorkspace, train_rays

INTERPRETED = os.environ.get(INTERPRETER_VARIABLE) == "1"
"""Whether Triton's kernels run in its interpreter, some thousand times slower than compiled."""

LAYOUTS = {
    "L8F4": GridLayout(n_levels=8, n_features_per_level=4, log2_hashmap_size=10, per_level_scale=1.5),
    "L16F2": GridLayout(n_levels=16, n_features_per_level=2, log2_hashmap_size=9, per_level_scale=1.3),
    "L5F2": GridLayout(n_levels=5, n_features_per_level=2, log2_hashmap_size=10, per_level_scale=1.6),
    "2d_f4": GridLayout(n_dims=2, n_levels=6, n_features_per_level=4, log2_hashmap_size=10, per_level_scale=1.7),
    "2d_f2": GridLayout(n_dims=2, n_levels=16, n_features_per_level=2, log2_hashmap_size=9, per_level_scale=1.3),
    "2d_f1": GridLayout(n_dims=2, n_levels=3, n_features_per_level=1, log2_hashmap_size=8),
    "2d_f8": GridLayout(n_dims=2, n_levels=3, n_features_per_level=8, log2_hashmap_size=8),
}
RELU: dict[str, Any] = {"activation": "relu", "bias": 8.0}
"""Arguments of `field` for a density by ReLU that is as thick as the usual one."""
CONE = MarchOptions(4, 1 / 256, 4.0, 1e-2)
"""Three nested boxes, and steps that grow with the distance."""


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run kernels on n threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(backend: Any) -> torch.device:
    """Where a backend's tensors lie."""
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


# --- fields and rays

Batch = tuple[Rays, Tensor, Tensor, Tensor, Tensor]
"""Rays, bits, targets, backgrounds, jitter."""


def field(
    layout: GridLayout, width: int = 64, bias: float = 1.0, bf16: bool = False, seed: int = 0, activation: Any = "exp"
) -> FieldParameters:
    """A random field whose density varies enough that some rays are cut and others are not.

    Args:
        layout: Of its grid.
        width: Neurons of each hidden layer.
        bias: Of the density.
        bf16: Whether it has a bfloat16 copy of its table, from which kernels then read.
        seed: Decides all of its numbers.
        activation: Of the density.
    """
    g = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.rand(rows, columns, generator=g) * 2 - 1) * math.sqrt(6 / (rows + columns))

    table = torch.rand(layout.n_entries, layout.n_features_per_level, generator=g) * 2 - 1
    return FieldParameters(
        layout=layout,
        table=table,
        density_weights=(matrix(width, layout.n_output), matrix(16, width)),
        color_weights=(matrix(width, 32), matrix(width, width), matrix(3, width)),
        density_bias=bias,
        table_bf16=table.to(torch.bfloat16) if bf16 else None,
        density_activation=activation,
    )


def batch(n: int, aabb_scale: int = 1, seed: int = 1) -> Batch:
    """Rays through the box, some of which miss it; bits; targets; backgrounds; jitter."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    origin = 0.5 - 0.6 * aabb_scale * direction + 0.2 * torch.randn(n, 3, generator=g)
    half = aabb_scale / 2
    t_min, t_max = ray_box(origin, direction, torch.full((3,), 0.5 - half), torch.full((3,), 0.5 + half))
    n_bytes = aabb_scale.bit_length() * 128**3 // 8
    bits = torch.randint(0, 256, (n_bytes,), generator=g).to(torch.uint8)
    bits &= torch.randint(0, 256, (n_bytes,), generator=g).to(torch.uint8)
    rays = Rays(origin, direction, t_min, t_max)
    target, background = torch.rand(n, 4, generator=g), torch.rand(n, 3, generator=g)
    return rays, bits, target, background, torch.rand(n, generator=g)


def unfused_twin(parameters: FieldParameters) -> FieldParameters:
    """The same field in a form that the fused kernels do not take: its grid as an encoding of its own."""

    def encode(positions: Tensor) -> Tensor:
        return grid_encode(positions, parameters.table, parameters.layout)

    return replace(parameters, encode=encode)


def some(case: Batch, chosen: Tensor) -> Batch:
    """Some rays of a batch."""
    rays, bits, target, background, jitter = case
    fewer = Rays(*(x[chosen] for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
    return fewer, bits, target[chosen], background[chosen], jitter[chosen]


def in_double(parameters: FieldParameters, case: Batch) -> tuple[FieldParameters, Batch]:
    """The same field and rays in float64."""
    rays, bits, *rest = case
    wide = replace(
        parameters,
        table=parameters.table.double(),
        density_weights=tuple(w.double() for w in parameters.density_weights),
        color_weights=tuple(w.double() for w in parameters.color_weights),
    )
    target, background, jitter = (x.double() for x in rest)
    double = Rays(rays.origin.double(), rays.direction.double(), rays.t_min.double(), rays.t_max.double())
    return wide, (double, bits, target, background, jitter)


def step(
    parameters: FieldParameters,
    case: Batch,
    options: MarchOptions,
    workspace: TrainWorkspace,
    huber: float = 0.0,
    sparsity: float = 0.0,
    distortion: float = 0.0,
    nearness: float = 0.0,
) -> tuple[TrainRaysResult, list[Tensor]]:
    """One step from a cleared gradient: what it found, and every gradient."""
    rays, bits, target, background, jitter = case
    workspace.grad_table.zero_()
    found = train_rays(
        parameters,
        RayBatch(rays, target, background, jitter),
        bits,
        options,
        workspace,
        huber_delta=huber,
        sparsity=sparsity,
        distortion=distortion,
        nearness=nearness,
    )
    return found, [workspace.grad_table.clone(), *found.grad_density_weights, *found.grad_color_weights]


# --- networks and points


def network(layout: str, hidden: tuple[int, ...] = (64, 64), n_outputs: int = 3, seed: int = 0) -> EncodedNetwork:
    """A random network."""
    g, grid = torch.Generator().manual_seed(seed), LAYOUTS[layout]
    widths = [grid.n_output, *hidden, n_outputs]
    weights = tuple(
        (torch.rand(n_out, n_in, generator=g) * 2 - 1) * math.sqrt(6 / (n_in + n_out))
        for n_in, n_out in itertools.pairwise(widths)
    )
    table = torch.rand(grid.n_entries, grid.n_features_per_level, generator=g) * 2 - 1
    return EncodedNetwork(grid, table, weights)


def points(net: EncodedNetwork, n: int, fixed: bool = False, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Positions, as 32-bit fixed point if so asked, and targets."""
    g = torch.Generator().manual_seed(seed)
    positions = torch.rand(n, net.layout.n_dims, generator=g)
    target = torch.rand(n, net.n_outputs, generator=g) * 2 - 1
    return to_fixed_point(positions) if fixed else positions, target


def few(n: int) -> int:
    """So many points, or what an interpreter manages in a second: 65, and 133 for a thousand (one tile, and two)."""
    return n if not INTERPRETED else 133 if n == 1000 else min(n, 65)


def doubled(net: EncodedNetwork) -> EncodedNetwork:
    """The same network in float64."""
    return replace(net, table=net.table.double(), weights=tuple(w.double() for w in net.weights))


def moved(net: EncodedNetwork, backend: Any) -> EncodedNetwork:
    """The network where a backend takes it."""
    device = device_of(backend)
    if device.type == "cpu":
        return net  # strides and all

    def there(table: Tensor | None) -> Tensor | None:
        return None if table is None else table.to(device)

    return replace(
        net, table=net.table.to(device), table_bf16=there(net.table_bf16), table_fp16=there(net.table_fp16),
        weights=tuple(w.to(device) for w in net.weights),
    )  # fmt: skip


def points_step(
    net: EncodedNetwork, positions: Tensor, target: Tensor, backend: Any, **options: Any
) -> tuple[TrainPointsResult, list[Tensor]]:
    """One step in a fresh workspace: what it found, and every gradient."""
    net, device = moved(net, backend), device_of(backend)
    workspace = PointsWorkspace(net, max(1, len(positions)), backend)
    found = train_points(net, positions.to(device), target.to(device), workspace, **options)
    return found, [grad.cpu() for grad in (workspace.grad_table, *found.grad_weights)]


def ask(net: EncodedNetwork, positions: Tensor, backend: Any) -> Tensor:
    """What a backend answers."""
    return eval_points(moved(net, backend), positions.to(device_of(backend)), backend=backend).cpu()

"""Training a grid-encoded network at points on a GPU without waiting for it: images, distances.

As `on_device` does for radiance fields: fixed buffers, a step captured once in a CUDA graph, the learning rate read
from memory. Points are drawn within the step where the picture lies on the device; else each step is given its batch,
which is copied into the step's buffers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.triton_gpu.common import count_of
from hashfield.kernels.triton_gpu.encoded_mlp import DeviceNetwork
from hashfield.kernels.triton_gpu.mlp import shape_of
from hashfield.kernels.triton_gpu.pixel_batch import draw_pixels
from hashfield.kernels.triton_gpu.train_points import POINT_GRADIENT, Buffers, enqueue
from hashfield.train.on_device import DeviceOptimizer, DeviceSteps


@dataclass(frozen=True)
class PixelSource:
    """A picture on the device, as `ops.pixel_batch` takes it."""

    pixels: Tensor
    """[height, width, stored channels]."""
    lattice: tuple[int, int]
    """Cells in x and in y; their product is the points of a step."""
    values: Float[Tensor, "2 n_codes"]
    """What stored codes mean."""
    has_alpha: bool
    """Whether the last channel learned is alpha."""
    is_premultiplied: bool
    """Whether colours are multiplied by it already."""


def n_bytes_of(layout: GridLayout, n_weights: int, n_points: int, n_outputs: int, n_pool_bytes: int) -> int:
    """GPU memory that a run takes, nearly: what `PointsTraining` and PyTorch allocate, without the CUDA context.

    Args:
        layout: Of the grid.
        n_weights: Numbers in the matrices.
        n_points: Of a step.
        n_outputs: Of the network.
        n_pool_bytes: Of what points are drawn from: a picture, or the points kept.
    """
    parameters = (layout.n_parameters + n_weights) * (4 * 4 + 2)  # value, gradient, two moments; the short copy
    # Features and their cotangents in half precision, position, target, random bits.
    points = n_points * (2 * 2 * layout.n_output + 4 * (layout.n_dims + n_outputs) + 8)
    return parameters + points + n_pool_bytes


class PointsTraining(DeviceSteps):
    """Buffers, random numbers and the captured step of one run."""

    def __init__(
        self, layout: GridLayout, interpolation: str, optimizer: DeviceOptimizer, n_points: int, loss: str, seed: int,
        *, is_fixed_point: bool, source: PixelSource | None = None, huber_delta: float = 0.1,
    ) -> None:  # fmt: skip
        """Args:
        layout: Of the grid.
        interpolation: Of the grid.
        optimizer: Holds the parameters.
        n_points: Of every step.
        loss: As `train_points` has it.
        seed: Of every random choice.
        is_fixed_point: Whether positions are int32 in fixed point; else float32.
        source: Where points are drawn from; None where every step is given its own.
        huber_delta: As `train_points` has it.
        """
        super().__init__(optimizer.table.device, seed)
        device, self.optimizer, self.source = self.device, optimizer, source
        self.loss, self.huber_delta = loss, huber_delta
        self.network = DeviceNetwork(
            layout, optimizer.short_table, optimizer.short_flat, shape_of(optimizer.matrices), interpolation
        )
        n_outputs = self.network.n_outputs
        self.buffers = Buffers(self.network, n_points, optimizer.short_flat.dtype)
        self.buffers.stats[2:] = n_points
        self.positions = torch.zeros(
            (n_points, layout.n_dims), dtype=torch.int32 if is_fixed_point else torch.float32, device=device
        )
        self.target = torch.zeros((n_points, n_outputs), device=device)
        self.random = torch.zeros(n_points if source is not None else 0, dtype=torch.int64, device=device)
        self.n_live = count_of(n_points, device)
        self.gradient_scale = 1.0 / (POINT_GRADIENT * n_points * n_outputs)
        """What the gradients that the optimiser is handed must be multiplied by."""
        # A row for each interval of the optimiser, 16 bytes apart, as all that kernels get.
        self.hyper = torch.zeros((len(optimizer.intervals), 4), device=device)
        self.hyper[:, 1] = self.gradient_scale
        self.waiting = dict(zip(optimizer.intervals, self.hyper, strict=True))

    def warm_up(self) -> None:
        """Compile every kernel of a step, by running it on no points."""
        random = self.generator.get_state()
        self.n_live.zero_()
        self.hyper.zero_()
        self._enqueue(max(self.optimizer.intervals))
        # A rate of zero leaves parameters as they are, but not the matrices' moments.
        for moment in self.optimizer.moments.values():
            moment.zero_()
        self.hyper[:, 1] = self.gradient_scale
        self.n_live.fill_(len(self.positions))
        self.generator.set_state(random)

    def step(self, learning_rate: float, batch: tuple[Tensor, Tensor] | None = None) -> Float[Tensor, " n_stats"]:
        """Launch one step; its figures (see `train_points.N_STATS`), on the device.

        Args:
            learning_rate: Of the optimiser.
            batch: Positions and targets, where there is no source to draw them from; on any device.
        """
        if batch is not None:
            self.positions.copy_(batch[0])
            self.target.copy_(batch[1])
        self.hyper[0, :1].fill_(self.optimizer.rate(learning_rate))
        turn = self.optimizer.turn
        for interval, hyper in self.waiting.items():
            if 1 < interval <= turn:
                hyper[:1].fill_(self.optimizer.rate_of(learning_rate, interval))
        self.run(turn)
        return self.buffers.stats.clone()

    def pending_gradient(self) -> Tensor:
        """The gradient of the parts of the table that wait for their update, as `train_points` has it."""
        return self.optimizer.grad_table * self.gradient_scale

    def restore_gradient(self, gradient: Tensor) -> None:
        """Take back what `pending_gradient` gave."""
        self.optimizer.grad_table.copy_(gradient).mul_(1.0 / self.gradient_scale)

    def _enqueue(self, turn: int = 1) -> None:
        source = self.source
        if source is not None:
            self.random.random_(0, 2**32, generator=self.generator)
            draw_pixels(
                source.pixels, self.random, source.lattice, source.values, self.positions, self.target,
                has_alpha=source.has_alpha, is_premultiplied=source.is_premultiplied,
            )  # fmt: skip
        enqueue(
            self.network, self.positions, self.target, self.n_live, self.buffers, self.optimizer.grad_table,
            loss=self.loss, huber_delta=self.huber_delta, unscale=1.0,
        )  # fmt: skip
        self.optimizer.enqueue(self.buffers.grad_weights, self.hyper[0], self.waiting, turn)

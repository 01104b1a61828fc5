"""Encodings that exist only for tinycudann's sake, beside those of `hashfield.nn`."""

import math
from typing import Any

import torch
from torch import Tensor

from hashfield.geometry.pcg32 import pcg32_jump, pcg32_start, pcg32_uniform
from hashfield.nn.encodings import Encoding, GridEncoding, SphericalHarmonicsEncoding
from hashfield.ops.stochastic_grid import corner_encode

_BATCH = 256  # tiny-cuda-nn rounds batches up to this, which shifts the random numbers of a level


class UnitHarmonicsEncoding(Encoding):
    """Spherical harmonics of directions given as (d + 1) / 2."""

    def __init__(self, degree: int) -> None:
        """Args: degree: bands, 1 to 8."""
        super().__init__()
        self.harmonics = SphericalHarmonicsEncoding(degree)
        self.is_padded_in_front = True
        self.n_dims, self.n_output = 3, degree**2

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        """Harmonics of 2 x - 1."""
        return self.harmonics(x * 2 - 1)


class EmptyEncoding(Encoding):
    """No features at all; before a network, the ones that fill it up."""

    def __init__(self, n_dims: int) -> None:
        """Args: n_dims: components of an input, none of which is read."""
        super().__init__()
        self.n_dims, self.n_output = n_dims, 0

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        """[n, 0]."""
        return x[:, :0]


class StochasticGridEncoding(Encoding):
    """A grid whose gradient goes to one corner of a cell, drawn by the corners' weights, instead of to all of them.

    Features and the gradient to positions are those of the grid. The draws depend on a point's place in the
    batch alone.
    """

    def __init__(self, n_dims: int, **options: Any) -> None:
        """Args: n_dims: D. options: As for `GridEncoding`."""
        super().__init__()
        self.grid = GridEncoding(n_dims, **options)
        self.alignment, self.padding = self.grid.alignment, self.grid.padding
        self.table_shapes = self.grid.table_shapes
        self.n_dims, self.n_output = n_dims, self.grid.n_output

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        """Features; the table's gradient is that of single corners."""
        table = self.grid.table_for(tables)
        features = self.grid(x, table.detach())
        if not (torch.is_grad_enabled() and table.requires_grad):
            return features
        draws = corner_draws(len(x), self.grid.layout.n_levels).to(x)
        single = corner_encode(x.detach(), table, draws, self.grid.layout, interpolation=self.grid.config.interpolation)
        return features + (single - single.detach())  # zero, but for the gradient


def corner_draws(n: int, n_levels: int) -> Tensor:
    """The uniform number of each point and level [n, n_levels] by which a corner is drawn."""
    padded = math.ceil(n / _BATCH) * _BATCH
    rows = []
    state = pcg32_start(1337)
    for _ in range(n_levels):
        rows.append(torch.from_numpy(pcg32_uniform(state, n)))
        state = pcg32_jump(state, padded)
    return torch.stack(rows, 1)

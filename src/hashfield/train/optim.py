"""The optimiser of a radiance field: Adam on the table and on the networks, and the learning-rate schedule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hashfield.errors import CheckpointError, ConfigError
from hashfield.ops.adam import adam, adam_table


def learning_rate_at(fraction: float, rate: float, final_rate: float, flat_until: float) -> float:
    """`rate` until `flat_until` of the run, then half a cosine down to `final_rate`.

    A function of the fraction of the planned run, so that one recipe serves thirty seconds and thirty minutes.
    """
    if fraction <= flat_until:
        return rate
    left = min(1.0, (fraction - flat_until) / max(1.0 - flat_until, 1e-9))
    return final_rate + (rate - final_rate) * 0.5 * (1 + math.cos(math.pi * left))


def table_parts(parts: Sequence[tuple[int, int]] | None, n_rows: int) -> list[tuple[slice, int]]:
    """(rows, interval) of the parts of a table, as few as can be; one of interval 1 where none are given.

    Raises:
        ConfigError: they are not the table's, or an interval is below 1.

    >>> table_parts([(3, 1), (4, 1), (5, 2)], 12)
    [(slice(0, 7, None), 1), (slice(7, 12, None), 2)]
    """
    found: list[tuple[slice, int]] = []
    first = 0
    for rows, interval in parts or [(n_rows, 1)]:
        if found and found[-1][1] == interval:  # one launch instead of two
            found[-1] = slice(found[-1][0].start, first + rows), interval
        else:
            found.append((slice(first, first + rows), interval))
        first += rows
    if first != n_rows or any(interval < 1 for _, interval in found):
        raise ConfigError(f"parts: expected {n_rows} rows and intervals of at least 1, got {parts}")
    return found


class TableOptimizer:
    """Adam for one grid table and some matrices, with one global step count.

    Table entries whose gradient is exactly zero are skipped; matrices always step and get L2 (paper section 4).

    Parts of the table may be updated every n-th step only, by the sum of the gradients since: a level with more entries
    than a batch touches gains little from a step, and all of its memory is walked through for one.
    """

    def __init__(
        self, table: Tensor, matrices: Sequence[Tensor], *, beta1: float = 0.9, beta2: float = 0.99,
        epsilon: float = 1e-15, l2: float = 1e-6, parts: Sequence[tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        """Args:
        table, matrices: Changed in place by `step`.
        beta1, beta2, epsilon: Of Adam.
        l2: On the matrices.
        parts: (rows, interval) of consecutive parts of the table, which are updated every interval-th step; None
            updates all of it at every step.
        """
        self.table, self.matrices = table, list(matrices)
        self.table_bf16 = table.detach().to(torch.bfloat16)
        self.options: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        self.l2 = l2
        self.n_steps = 0
        self.parts = table_parts(parts, len(table))
        self.moments = {
            name: torch.zeros_like(value)
            for k, value in enumerate([table, *self.matrices])
            for name in (f"{k}.moment1", f"{k}.moment2")
        }

    def step(self, grad_table: Tensor, grad_matrices: Sequence[Tensor], learning_rate: float) -> None:
        """Take one step; `grad_table` is cleared and `table_bf16` refreshed, in the parts whose turn it is."""
        self.n_steps += 1
        m = self.moments
        for rows, interval in self.parts:
            if self.n_steps % interval == 0:
                adam_table(
                    self.table.detach()[rows], grad_table[rows], m["0.moment1"][rows], m["0.moment2"][rows],
                    self.table_bf16[rows], step=self.n_steps // interval, learning_rate=learning_rate, **self.options,
                )  # fmt: skip
        for k, (matrix, grad) in enumerate(zip(self.matrices, grad_matrices, strict=True), start=1):
            adam(
                matrix.detach(), grad, m[f"{k}.moment1"], m[f"{k}.moment2"], step=self.n_steps,
                learning_rate=learning_rate, l2=self.l2, skip_zero_gradient=False, **self.options,
            )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """The moments by name; `n_steps` is saved by the task."""
        return dict(self.moments)

    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take back the moments; the table and the matrices must have been restored before."""
        for name, value in self.moments.items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise CheckpointError(f"optimizer.{name}: missing or of the wrong shape")
            value.copy_(tensors[name])
        self.n_steps = n_steps
        self.table_bf16.copy_(self.table.detach())

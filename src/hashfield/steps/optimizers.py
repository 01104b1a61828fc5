"""Adam over named groups of parameters, on hosts and on devices, with one hook between gradient and update.

A run's groups are "table" (a grid's entries) and "matrices" (of the networks); whatever else is learned (exposures,
poses, a lens) is one more `Group`, with its own rate and decay. `reduce`, if given, is handed all gradients of a step,
by the groups' names, just before they are used: that is where several machines take the mean of theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hashfield.errors import CheckpointError, ConfigError
from hashfield.ops.adam import adam, adam_table
from hashfield.ops.touched_rows import TouchedRows

RowsOf = Callable[[], Sequence[TouchedRows]]
"""Gives the gradient of some rows of a table, as touched rows to be added up in order; may wait for them to arrive."""
Touched = Sequence[tuple[slice, RowsOf]]
"""Parts of a table, in order, whose gradient is not in the gradient's own array, which is zero there."""
Reduce = Callable[[Mapping[str, Sequence[Tensor]], Sequence[slice]], Touched | None]
"""(gradients of a step by the groups' names, rows of the table that are used now): changes the gradients in place, and
returns the parts of the table for which it has them elsewhere."""


@dataclass(frozen=True, kw_only=True)
class AdamOptions:
    """Adam's constants, the same for every group. Source: paper section 4."""

    beta1: float = 0.9
    """Memory of the gradient's mean."""
    beta2: float = 0.99
    """Memory of the mean of its square."""
    epsilon: float = 1e-15
    """Lets entries move at full speed that are rarely touched."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are trained alike."""

    name: str
    """What gradients and `reduce` call it."""
    tensors: Sequence[Tensor]
    """Changed in place."""
    l2: float = 0.0
    """Weight decay, inside the gradient."""
    rate: float = 1.0
    """What the schedule's learning rate is multiplied by."""
    is_table: bool = False
    """Whether this is a grid's table (one tensor [n_entries, n_features]): values with a gradient of exactly zero are
    skipped, and kernels read a rounded copy."""
    parts: Sequence[tuple[int, int]] | None = None
    """(rows, interval) of consecutive parts of a table, which are updated every interval-th step by the sum of the
    gradients since: a level with more entries than a batch touches gains little from a step, and all of its memory is
    walked through for one. None updates all of it at every step."""


def network_groups(
    table: Tensor, matrices: Sequence[Tensor], *, l2: float = 1e-6, parts: Sequence[tuple[int, int]] | None = None
) -> list[Group]:
    """The groups of an encoding and its networks.

    Args:
        table: [n_entries, n_features]; without entries where the encoding has none.
        matrices: Matrices of the networks, which always step and decay (paper section 4).
        l2: Decay of the matrices.
        parts: As `Group` has them, of the table.
    """
    return [
        Group(name="table", tensors=[table], is_table=True, parts=parts),
        Group(name="matrices", tensors=list(matrices), l2=l2),
    ]


class Optimizer(Protocol):
    """What steps and checkpoints know of an optimiser."""

    n_steps: int
    """Steps taken so far."""

    @property
    def is_waiting(self) -> bool:
        """Whether parts of the table wait for an update, so that their gradient is part of the state."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The moments by name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take back the moments; what is optimised must have been restored before."""
        ...


def restore_moments(moments: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy an optimiser's moments from tensors of the same names.

    Raises:
        CheckpointError: one is missing or of another shape.
    """
    for name, value in moments.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise CheckpointError(f"optimizer.{name}: missing or of the wrong shape")
        value.copy_(tensors[name])


def table_parts(parts: Sequence[tuple[int, int]] | None, n_rows: int) -> list[tuple[slice, int]]:
    """(rows, interval) of the parts of a table, as few as can be; one of interval 1 where none are given.

    Raises:
        ConfigError: they are not the table's, or an interval is below 1.

    >>> table_parts([(3, 1), (4, 1), (5, 2)], 12)
    [(slice(0, 7, None), 1), (slice(7, 12, None), 2)]
    """
    merged: list[tuple[slice, int]] = []
    first = 0
    for rows, interval in parts or [(n_rows, 1)]:
        if merged and merged[-1][1] == interval:  # one launch instead of two
            merged[-1] = slice(merged[-1][0].start, first + rows), interval
        else:
            merged.append((slice(first, first + rows), interval))
        first += rows
    if first != n_rows or any(interval < 1 for _, interval in merged):
        raise ConfigError(f"parts: expected {n_rows} rows and intervals of at least 1, got {parts}")
    return merged


def pieces_of(rows: slice, touched: Touched) -> list[tuple[slice, RowsOf | None]]:
    """A range of rows, cut where the gradient of some of them is elsewhere.

    >>> [part for part, _ in pieces_of(slice(0, 24), [(slice(8, 16), list), (slice(32, 40), list)])]
    [slice(0, 8, None), slice(8, 16, None), slice(16, 24, None)]
    """
    found: list[tuple[slice, RowsOf | None]] = []
    at = rows.start
    for part, rows_of in touched:
        if rows.start <= part.start and part.stop <= rows.stop:
            if at < part.start:
                found.append((slice(at, part.start), None))
            found.append((part, rows_of))
            at = part.stop
    if at < rows.stop:
        found.append((slice(at, rows.stop), None))
    return found


def moment_names(groups: Sequence[Group]) -> list[list[str]]:
    """How checkpoints call each tensor of each group: table and matrices are numbered through, as they always were,
    and other groups carry their name."""
    names, number = [], 0
    for group in groups:
        if group.name in ("table", "matrices"):
            names.append([str(number + k) for k in range(len(group.tensors))])
            number += len(group.tensors)
        else:
            names.append([f"{group.name}.{k}" for k in range(len(group.tensors))])
    return names


def _check(groups: Sequence[Group]) -> None:
    names = [group.name for group in groups]
    if len(set(names)) != len(names) or sum(group.is_table for group in groups) != 1 or not groups[0].is_table:
        raise ConfigError(f"groups: expected one table, which comes first, and names that differ; got {names}")
    if len(groups[0].tensors) != 1:
        raise ConfigError(f"groups: a table is one tensor, got {len(groups[0].tensors)}")


class HostOptimizer:
    """Adam on the host, with one global step count."""

    def __init__(
        self, groups: Sequence[Group], *, adam: AdamOptions | None = None, reduce: Reduce | None = None
    ) -> None:
        """Args:
        groups: What is trained, the table first.
        adam: Constants; the paper's if None.
        reduce: Is handed the gradients of a step just before they are used.

        Raises:
            ConfigError: the groups have no table or share a name, or its parts do not fit.
        """
        _check(groups)
        self.groups, self.adam, self.reduce = list(groups), adam or AdamOptions(), reduce
        self.table = groups[0].tensors[0].detach()
        self.table_bf16 = self.table.to(torch.bfloat16)
        """The table rounded, as lookups read it."""
        self.parts = table_parts(groups[0].parts, len(self.table))
        self.live_rows = len(self.table)
        """Rows of the table that are stepped; the gradients of others wait, and whoever lets them in clears them."""
        self.n_steps = 0
        self._touched: Touched = ()
        self.names = moment_names(groups)
        self.moments = {
            f"{name}.moment{moment}": torch.zeros_like(tensor)
            for group, names in zip(groups, self.names, strict=True)
            for name, tensor in zip(names, group.tensors, strict=True)
            for moment in (1, 2)
        }

    def step(self, gradients: Mapping[str, Sequence[Tensor]], learning_rate: float) -> None:
        """Take one step. The table's gradient is cleared and `table_bf16` refreshed, in the parts whose turn it is.

        Args:
            gradients: By the groups' names, like the groups' tensors; groups that are left out stay as they are.
            learning_rate: The learning rate of the schedule.
        """
        self._touched = (self.reduce(gradients, self.rows_due()) if self.reduce is not None else None) or ()
        self.n_steps += 1
        for group, names in zip(self.groups, self.names, strict=True):
            if group.name not in gradients:
                continue
            step = self._step_table if group.is_table else self._step_dense
            for name, tensor, gradient in zip(names, group.tensors, gradients[group.name], strict=True):
                step(group, name, tensor.detach(), gradient, learning_rate * group.rate)

    def rows_due(self) -> list[slice]:
        """Rows of the table that the next step updates."""
        live = [(slice(rows.start, min(rows.stop, self.live_rows)), interval) for rows, interval in self.parts]
        return [rows for rows, interval in live if (self.n_steps + 1) % interval == 0 and rows.start < rows.stop]

    def _step_table(self, group: Group, name: str, table: Tensor, gradient: Tensor, rate: float) -> None:
        first, second = self.moments[f"{name}.moment1"], self.moments[f"{name}.moment2"]
        for part, interval in self.parts:
            rows = slice(part.start, min(part.stop, self.live_rows))
            is_due = self.n_steps % interval == 0 and rows.start < rows.stop
            for own, rows_of in pieces_of(rows, self._touched) if is_due else ():
                adam_table(
                    table[own], gradient[own], first[own], second[own], self.table_bf16[own],
                    step=self.n_steps // interval, learning_rate=rate, beta1=self.adam.beta1, beta2=self.adam.beta2,
                    epsilon=self.adam.epsilon, rows=None if rows_of is None else rows_of(),
                )  # fmt: skip

    def _step_dense(self, group: Group, name: str, tensor: Tensor, gradient: Tensor, rate: float) -> None:
        adam(
            tensor, gradient, self.moments[f"{name}.moment1"], self.moments[f"{name}.moment2"], step=self.n_steps,
            learning_rate=rate, l2=group.l2, skip_zero_gradient=False, beta1=self.adam.beta1, beta2=self.adam.beta2,
            epsilon=self.adam.epsilon,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """The moments by name; `n_steps` is saved by `steps.state`."""
        return dict(self.moments)

    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take back the moments; the parameters must have been restored before."""
        restore_moments(self.moments, tensors)
        self.n_steps = n_steps
        self.table_bf16.copy_(self.table)

    @property
    def is_waiting(self) -> bool:
        """See `Optimizer`."""
        return any(self.n_steps % interval for _, interval in self.parts)


class DeviceOptimizer:
    """Adam on a device that is not waited for: the twin of `HostOptimizer`.

    The tensors of every group but the table become views of one flat array, so that one kernel steps all of them. Rates
    are read from the device's memory: `hyper` holds a row (rate, what gradients are multiplied by) for the table and
    each other interval of it, and for each other group.
    """

    def __init__(
        self, groups: Sequence[Group], compute: torch.dtype, *, adam: AdamOptions | None = None,
        reduce: Reduce | None = None,
    ) -> None:  # fmt: skip
        """Args:
        groups: What is trained, the table first; its intervals are powers of two.
        compute: Type of the copies that kernels read.
        adam: Constants; the paper's if None.
        reduce: Is handed the gradients of a step just before they are used. It becomes part of the captured graph.

        Raises:
            ConfigError: as `HostOptimizer`.
        """
        _check(groups)
        self.groups, self.adam, self.reduce = list(groups), adam or AdamOptions(), reduce
        self.table = groups[0].tensors[0].detach()
        self.parts = table_parts(groups[0].parts, len(self.table))
        self.intervals = sorted({1, *(interval for _, interval in self.parts)})
        self.is_short = compute != torch.float32
        """Whether kernels read copies; else the parameters themselves."""
        self.short_table = self.table.to(compute)
        self.grad_table = torch.zeros_like(self.table)
        self.n_steps = 0
        first, second = torch.zeros_like(self.table), torch.zeros_like(self.table)
        self.moments = {"0.moment1": first, "0.moment2": second}
        self.flats = [_Flat(group, names, compute) for group, names in
                      zip(groups[1:], moment_names(groups)[1:], strict=True)]  # fmt: skip
        for flat in self.flats:
            self.moments |= flat.moments
        device = self.table.device
        # Rows 16 bytes apart, as all that kernels get. The first is the step's; the others are made of it.
        self.hyper = torch.zeros((len(self.intervals) + len(self.flats), 4), device=device)

    @property
    def short_flat(self) -> Tensor:
        """The matrices, one after another, as kernels read them."""
        return self.flats[0].short

    def begin_step(self, learning_rate: float, hyper: Tensor) -> None:
        """Count a step and write its bias-corrected rates to the device.

        Args:
            learning_rate: The learning rate of the schedule.
            hyper: [2] or more, on the device: the row whose second number the step's kernels write.
        """
        from hashfield.kernels.triton_gpu.adam import bias_corrected

        self.n_steps += 1
        beta1, beta2 = self.adam.beta1, self.adam.beta2
        hyper[:1].fill_(bias_corrected(learning_rate, beta1, beta2, self.n_steps))
        for row, interval in enumerate(self.intervals[1:], start=1):
            if self.n_steps % interval == 0:
                self.hyper[row, :1].fill_(bias_corrected(learning_rate, beta1, beta2, self.n_steps // interval))

    @property
    def due_interval(self) -> int:
        """The longest interval whose parts are due in the step counted last."""
        return max(interval for interval in self.intervals if self.n_steps % interval == 0)

    def enqueue(self, gradients: Mapping[str, Tensor], hyper: Tensor, due_interval: int = 1) -> None:
        """Launch one step: the table's gradient is cleared and the short copies are brought up to date, where due.

        Args:
            gradients: Gradients of every group but the table, flat, by name.
            hyper: [2] or more on the device: the rate, and what gradients are multiplied by.
            due_interval: The longest interval whose parts are updated.
        """
        from hashfield.kernels.triton_gpu.adam import adam_device

        if self.reduce is not None:
            due = [rows for rows, interval in self.parts if interval <= due_interval]
            self.reduce({"table": [self.grad_table], **{name: [x] for name, x in gradients.items()}}, due)
        shared = {"beta1": self.adam.beta1, "beta2": self.adam.beta2, "epsilon": self.adam.epsilon, "guard": True}
        first, second = self.moments["0.moment1"], self.moments["0.moment2"]
        for rows, interval in self.parts:
            if interval <= due_interval:
                row = hyper
                if interval > 1:
                    row = self.hyper[self.intervals.index(interval)]
                    row[1:2].copy_(hyper[1:2])
                adam_device(
                    self.table[rows], self.grad_table[rows], first[rows], second[rows],
                    self.short_table[rows] if self.is_short else None, row, l2=0.0, skip_zero=True, clear=True,
                    **shared,
                )  # fmt: skip
        for k, flat in enumerate(self.flats):
            row, gradient = hyper, gradients[flat.group.name]
            if flat.group.rate != 1.0:
                row = self.hyper[len(self.intervals) + k]
                torch.mul(hyper[:1], flat.group.rate, out=row[:1])
                row[1:2].copy_(hyper[1:2])
            adam_device(
                flat.values, gradient, flat.first, flat.second, flat.short if self.is_short else None, row,
                l2=flat.group.l2, skip_zero=False, clear=False, **shared,
            )  # fmt: skip

    def forget_moments(self) -> None:
        """Put all moments to zero, in place."""
        for moment in self.moments.values():
            moment.zero_()

    def refresh_copies(self) -> None:
        """Bring the short copies up to date with the parameters."""
        if self.is_short:
            self.short_table.copy_(self.table)
            for flat in self.flats:
                flat.short.copy_(flat.values)

    def state(self) -> dict[str, Tensor]:
        """The moments by name; `n_steps` is saved by `steps.state`."""
        return dict(self.moments)

    def restore(self, tensors: Mapping[str, Tensor], n_steps: int) -> None:
        """Take back the moments; the parameters must have been restored before."""
        restore_moments(self.moments, tensors)
        self.n_steps = n_steps
        self.refresh_copies()

    @property
    def is_waiting(self) -> bool:
        """See `Optimizer`."""
        return any(self.n_steps % interval for interval in self.intervals)


class _Flat:
    """The tensors of a group as views of one array, with their moments."""

    def __init__(self, group: Group, names: Sequence[str], compute: torch.dtype) -> None:
        self.group = group
        self.values = torch.cat([tensor.detach().reshape(-1) for tensor in group.tensors])
        sizes = [tensor.numel() for tensor in group.tensors]
        for tensor, part in zip(group.tensors, self.values.split(sizes), strict=True):
            tensor.data = part.view(tensor.shape)
        self.short = self.values.to(compute)  # the values themselves in float32
        self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.moments: dict[str, Any] = {}
        for moment, flat in (("moment1", self.first), ("moment2", self.second)):
            for name, tensor, part in zip(names, group.tensors, flat.split(sizes), strict=True):
                self.moments[f"{name}.{moment}"] = part.view(tensor.shape)

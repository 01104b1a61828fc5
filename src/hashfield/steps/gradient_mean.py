"""The gradient of all ranks' batches together: what `optimizers` calls `reduce`.

A rank's gradient is a mean over its own rays or points. With its share of the whole batch as weight, the sum over ranks
is the gradient that one process would have found of the whole batch. That ranks keep different numbers of samples does
not matter: what counts is by how many rays or points each of them divided.

Matrices, and whatever else is small, are summed whole (all-reduce, float32). A grid's table is summed level by level: a
coarse level whole too, a level of which a batch touches a part as its touched entries (`ops.touched_rows`), which every
rank sends to all others. The optimiser adds them up itself, in the order of the ranks, so that all get the same bits,
and begins with a level as soon as it is there. Which of the two ways a level takes follows from the numbers touched,
which all ranks know of each other.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from hashfield.nn.encodings import Encoding, GridEncoding
from hashfield.ops.touched_rows import Plan, RowRoom, TouchedRows, take_rows
from hashfield.steps.optimizers import Touched
from hashfield.steps.ranks import Ranks

LEAST_SPARSE: Final = 2**14
"""Entries below which a level is always summed whole."""
PROBE_STEPS: Final = 64
"""Steps after which levels that are summed whole are tried as touched entries again."""


def table_levels(encoding: Encoding) -> list[slice]:
    """Rows of the table of each level of an encoding; none where it has no table."""
    if not isinstance(encoding, GridEncoding):
        return []
    ends = encoding.layout.entries.cumsum().tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


class GradientMean:
    """Makes each rank's gradients those of all. At each step `plan` comes first, then `offer`, once the gradients are
    there, then the call by the optimiser."""

    def __init__(self, ranks: Ranks, levels: Sequence[slice]) -> None:
        """Args:
        ranks: Two or more.
        levels: Rows of the table's levels, see `table_levels`.
        """
        self.ranks, self.levels = ranks, list(levels)
        self.wire = getattr(torch, ranks.wire)
        self.is_whole = [rows.stop - rows.start < LEAST_SPARSE for rows in self.levels]
        """Whether each level is summed whole at the next step."""
        self.bytes_of_levels = [0] * len(self.levels)
        """Bytes that this rank handed over for each level at the last step."""
        self._n_steps = 0
        self.weight = 1.0
        """This rank's share of the last step's batch."""
        self._plan: Plan | None = None
        self._sparse: list[int] = []
        self._counts: list[list[int]] = []
        """Touched entries of each rank, of each of the levels that travel so."""
        self._rooms: list[RowRoom] = []
        """Each rank's touched entries."""
        self._waits: list[Callable[[], None]] = []

    def plan(self, gradient: Tensor, due: Sequence[slice], own: int, total: int) -> Plan:
        """What of the table's gradient will be sent as touched entries, for whoever can take it out on the way.

        Args:
            gradient: Gradient of the table [n_entries, n_features].
            due: Rows of the table that the optimiser will use.
            own: Rays or points by whose number this rank's gradients are divided, or another number by which they are
                to count.
            total: Those of all ranks together.
        """
        if self._n_steps % PROBE_STEPS == 0:
            self.is_whole = [rows.stop - rows.start < LEAST_SPARSE for rows in self.levels]
        self._n_steps += 1
        self.weight = own / total
        for wait in self._waits:  # normally over, since the optimiser has used what was waited for
            wait()
        if not self._rooms:
            self._rooms = [RowRoom(self.levels, gradient.shape[1], self.wire) for _ in range(self.ranks.n)]
        sparse = [k for k, rows in enumerate(self.levels) if not self.is_whole[k] and _is_in(rows, due)]
        self._plan = Plan(self._rooms[self.ranks.rank], sparse, self.weight)
        return self._plan

    def offer(self, figures: Sequence[float], gradient: Tensor) -> list[float]:
        """Take out of the table's gradient what was planned, and add up some figures over the ranks.

        Args:
            figures: Any numbers of this step.
            gradient: Gradient of the table; what is taken out is given to the optimiser by the call.

        Returns:
            The figures' sums.
        """
        plan = self._plan
        assert plan is not None, "plan() comes first"
        if plan.counts is None:
            plan.counts = take_rows(gradient, plan.room, plan.numbers, plan.scale)
        self._sparse, self._plan = plan.numbers, None
        told = self.ranks.gather([*figures, *plan.counts])
        self._counts = told[:, len(figures) :].long().tolist()
        return told[:, : len(figures)].sum(0).tolist()

    def __call__(self, gradients: Mapping[str, Sequence[Tensor]], due: Sequence[slice]) -> Touched:
        """Make the gradients those of all ranks' batches, in place; see `optimizers.Reduce`."""
        (table,) = gradients["table"]
        whole = [k for k, rows in enumerate(self.levels) if k not in self._sparse and _is_in(rows, due)]
        dense = [table[self.levels[k]] for k in whole]
        dense += [gradient for name, group in gradients.items() if name != "table" for gradient in group]
        flat = torch.cat([gradient.reshape(-1) for gradient in dense]).mul_(self.weight)
        wait = self.ranks.sum_later(flat)
        touched = self._swap()
        wait()
        for gradient, found in zip(dense, flat.split([x.numel() for x in dense]), strict=True):
            gradient.copy_(found.view(gradient.shape))
        self._note(table, whole)
        return touched

    def _swap(self) -> Touched:
        """Begin to exchange the touched entries; each level with what waits for it and gives all ranks' entries."""
        ranks, touched = self.ranks, []
        self._waits = []
        for i, k in enumerate(self._sparse):
            counts = [count[i] for count in self._counts]
            messages = [room.message(k, count) for room, count in zip(self._rooms, counts, strict=True)]
            self._waits.append(ranks.swap_later(messages[ranks.rank], messages, tag=k))
            touched.append((self.levels[k], partial(self._arrived, k, counts, self._waits[-1])))
        return touched

    def _arrived(self, level: int, counts: Sequence[int], wait: Callable[[], None]) -> list[TouchedRows]:
        """A level's touched entries of all ranks, once they are here.

        Args:
            level: Number of the level.
            counts: Entries that each rank touched.
            wait: Waits for them.
        """
        wait()
        return [room.rows(level, count) for room, count in zip(self._rooms, counts, strict=True)]

    def _note(self, table: Tensor, whole: Sequence[int]) -> None:
        """Note what each level took, and choose for the next step; from numbers that all ranks know."""
        n, row, room = self.ranks.n, table.shape[1], self._rooms[self.ranks.rank]
        self.bytes_of_levels = [0] * len(self.levels)
        for k in whole:
            self.bytes_of_levels[k] = 4 * row * (self.levels[k].stop - self.levels[k].start)
        for i, k in enumerate(self._sparse):
            counts, rows = [count[i] for count in self._counts], self.levels[k]
            self.bytes_of_levels[k] = room.message_bytes(k, counts[self.ranks.rank])
            # Bytes that a rank receives: every other rank's touched entries, or 2 (n - 1) / n of the level, which is
            # what a sum around a ring takes.
            most = room.message_bytes(k, max(counts))
            self.is_whole[k] = (n - 1) * most > 2 * (n - 1) / n * 4 * row * (rows.stop - rows.start)


def _is_in(rows: slice, ranges: Sequence[slice]) -> bool:
    return any(part.start <= rows.start and rows.stop <= part.stop for part in ranges)

"""The gradient of all ranks' batches together: what `optimizers` calls `reduce`.

A rank's gradient is a mean over its own rays or points. With its share of the whole batch as weight, the sum over ranks
is the gradient that one process would have found of the whole batch. That ranks keep different numbers of samples does
not matter: what counts is by how many rays or points each of them divided.

Matrices, and whatever else is small, are summed whole (all-reduce, float32). A grid's table is summed level by level: a
coarse level whole too, a level of which a batch touches a part as its touched entries (`ops.touched_rows`), which every
rank sends to all others and adds in the order of the ranks, so that all get the same bits. Which of the two a level
takes follows from the numbers touched, which all ranks know of each other.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from hashfield.nn.encodings import Encoding, GridEncoding
from hashfield.ops.touched_rows import TouchedRows, add_rows, bitmap_bytes, take_rows
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
    """Makes each rank's gradients those of all. At each step `offer` comes first, then the call by the optimiser."""

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
        self._weight = 1.0
        self._sparse: list[int] = []
        self._rows: TouchedRows | None = None
        self._counts = torch.zeros(0, 0, dtype=torch.int64)

    def offer(
        self, figures: Sequence[float], gradient: Tensor, due: Sequence[slice], own: int, total: int
    ) -> list[float]:
        """Take out of the table's gradient what is sent as touched entries, and add up some figures over the ranks.

        Args:
            figures: Any numbers of this step.
            gradient: Gradient of the table [n_entries, n_features]; what is taken out comes back in the call.
            due: Rows of the table that the optimiser will use.
            own: Rays or points by whose number this rank's gradients were divided.
            total: Those of all ranks together.

        Returns:
            The figures' sums.
        """
        ranks = self.ranks
        self._weight = own / total
        if self._n_steps % PROBE_STEPS == 0:
            self.is_whole = [rows.stop - rows.start < LEAST_SPARSE for rows in self.levels]
        self._n_steps += 1
        self._sparse = [k for k, rows in enumerate(self.levels) if not self.is_whole[k] and _is_in(rows, due)]
        parts = [self.levels[k] for k in self._sparse]
        # A sum of two numbers does not depend on their order: with two ranks, each one's own rows may stay in place.
        self._rows = take_rows(gradient, parts, self._weight, self.wire, keeps=ranks.n == 2)
        told = ranks.gather([*figures, *self._rows.counts.tolist()])
        self._counts = told[:, len(figures) :].long()
        return told[:, : len(figures)].sum(0).tolist()

    def __call__(self, gradients: Mapping[str, Sequence[Tensor]], due: Sequence[slice]) -> Touched:
        """Make the gradients those of all ranks' batches, in place; see `optimizers.Reduce`."""
        (table,) = gradients["table"]
        whole = [k for k, rows in enumerate(self.levels) if k not in self._sparse and _is_in(rows, due)]
        dense = [table[self.levels[k]] for k in whole]
        dense += [gradient for name, group in gradients.items() if name != "table" for gradient in group]
        flat = torch.cat([gradient.reshape(-1) for gradient in dense]).mul_(self._weight)
        wait = self.ranks.sum_later(flat)
        touched = self._add_touched(table)
        wait()
        for gradient, found in zip(dense, flat.split([x.numel() for x in dense]), strict=True):
            gradient.copy_(found.view(gradient.shape))
        self._note(table, whole)
        return touched

    def _add_touched(self, table: Tensor) -> Touched:
        """Exchange the touched entries, add them, and return which they are."""
        assert self._rows is not None, "offer() comes first"
        ranks, rows, parts = self.ranks, self._rows, [self.levels[k] for k in self._sparse]
        self._rows = None
        if not parts:
            return ()
        n_bits, totals = bitmap_bytes(parts), self._counts.sum(1).tolist()
        row_bytes = rows.values.shape[1] * self.wire.itemsize
        start = -(-n_bits // 4) * 4  # where numbers may begin
        own = torch.zeros(start + max(totals) * row_bytes, dtype=torch.uint8)
        own[:n_bits] = rows.bits
        own[start : start + rows.values.nbytes] = rows.values.reshape(-1).view(torch.uint8)
        found = ranks.gather_tensor(own)
        for k, sent in enumerate(found):
            if k == ranks.rank and ranks.n == 2:
                continue
            values = sent[start : start + totals[k] * row_bytes].view(self.wire).view(totals[k], -1)
            if totals[k]:
                add_rows(table, parts, TouchedRows(sent[:n_bits], self._counts[k].contiguous(), values))
        bits = found[0][:n_bits]
        for sent in found[1:]:
            bits |= sent[:n_bits]
        return list(zip(parts, bits.split([bitmap_bytes([part]) for part in parts]), strict=True))

    def _note(self, table: Tensor, whole: Sequence[int]) -> None:
        """Note what each level took, and choose for the next step; from numbers that all ranks know."""
        n, row = self.ranks.n, table.shape[1]
        most = self._counts.amax(0).tolist()
        self.bytes_of_levels = [0] * len(self.levels)
        for k in whole:
            self.bytes_of_levels[k] = 4 * row * (self.levels[k].stop - self.levels[k].start)
        for k, count, own in zip(self._sparse, most, self._counts[self.ranks.rank].tolist(), strict=True):
            rows = self.levels[k]
            bits, each = bitmap_bytes([rows]), row * self.wire.itemsize
            self.bytes_of_levels[k] = bits + own * each
            # Bytes that a rank receives: every other rank's touched entries, or 2 (n - 1) / n of the level, which is
            # what a sum around a ring takes.
            self.is_whole[k] = (n - 1) * (bits + count * each) > 2 * (n - 1) / n * 4 * row * (rows.stop - rows.start)


def _is_in(rows: slice, ranges: Sequence[slice]) -> bool:
    return any(part.start <= rows.start and rows.stop <= part.stop for part in ranges)

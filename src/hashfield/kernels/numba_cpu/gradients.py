"""What the training kernels leave behind: every thread's gradients of the matrices, and the features' gradients of all
points, from which a second kernel makes the table's gradient.

There every level of the table, or a piece of it, is added to by one thread: no atomics, no dependence on timing. What
goes to other machines is taken out of a level right after, while it is still in cache.
"""

import numpy as np

from hashfield.kernels.numba_cpu.common import (
    as_array,
    flush_denormals,
    inline,
    kernel,
    launch,
    restore_denormals,
    task_at,
)
from hashfield.kernels.numba_cpu.encoders import add_gradient, encoder_scratch
from hashfield.kernels.numba_cpu.simd import FEATURES, cycles, peek, poke
from hashfield.kernels.numba_cpu.touched_rows import take_part, taking_of

load2, _, _, store2 = FEATURES[2]
load4, _, _, store4 = FEATURES[4]


@inline
def by_level(source, row, n, encoder, target, first):
    """Sort the features' gradients of n points, source [n, row], by level: target [level, point, feature], from point
    `first` on."""
    n_features, n_levels = encoder.n_features, encoder.n_levels
    step = target.size // n_levels
    for level in range(n_levels):
        to, come = level * step + first * n_features, level * n_features
        if n_features == 4:
            for s in range(n):
                store4(target, to + 4 * s, load4(source, s * row + come))
        elif n_features == 2:
            for s in range(n):
                store2(target, to + 2 * s, load2(source, s * row + come))
        else:
            for s in range(n):
                for f in range(n_features):
                    poke(target, to + s * n_features + f, peek(source, s * row + come + f))


@kernel
def _add_to_table(encoder, positions, features, counts, grad, parts, taking, spent, thread, threads):
    """Add to grad what all points contribute; each level, or one of `parts` pieces of it, has one writer. Where there is
    something to take out of each level, levels are not in pieces."""
    n_levels, n_features = encoder.n_levels, encoder.n_features
    step = features.shape[1] // n_levels
    mode = flush_denormals()
    clock = cycles()
    scratch = encoder_scratch(encoder)
    n_tasks = n_levels * parts
    for turn in range((n_tasks + threads - 1) // threads):
        task = task_at(turn, n_tasks, thread, threads)
        if task < 0:
            break
        level, piece = task % n_levels, task // n_levels
        for segment in range(counts.size):
            add_gradient(
                encoder, positions[segment], counts[segment], grad, level, piece, parts,
                features[segment], level * step, n_features, scratch,
            )  # fmt: skip
        if taking is not None:
            take_part(grad, n_features, taking, level)
    spent[thread, spent.shape[1] - 1] += cycles() - clock
    restore_denormals(mode)


class Gradients:
    """Gradients of one step, in memory that is kept from step to step."""

    def __init__(self, threads: int, n_weights: int, n_output: int, segments: int, capacity: int):
        """Make room.

        Args:
            threads: Threads of the training kernel.
            n_weights: Values of all matrices, as they are packed.
            n_output: Features of a point.
            segments: Lists of points, each with positions of its own: one to a thread, or one for all.
            capacity: Points to a list.
        """
        self.threads = threads
        self.weights = np.zeros((threads, n_weights), np.float32)
        """[thread, weight]: each thread's sums."""
        self.features = np.zeros((segments, n_output * capacity), np.float32)
        """[segment, level, point, feature]."""
        self.counts = np.zeros(segments, np.int64)
        """[segment]: points that there are."""

    def add_to_table(self, encoder, positions: np.ndarray, grad_table, spent: np.ndarray, plan=None) -> None:
        """Add the table's gradient to grad_table.

        Args:
            encoder: Whose table it is.
            positions: [segment, D * plane]: planes of the points.
            grad_table: Tensor that is added to.
            spent: [thread, stage]: time stamps, of which the last stage's are added to.
            plan: `ops.touched_rows.Plan` of what is then taken out of it again, level by level; None: nothing.
        """
        parts = -(-self.threads // encoder.n_levels)
        taking = None if plan is None or parts > 1 else taking_of(plan.room, plan.numbers, plan.scale)
        grad = as_array(grad_table).reshape(-1)
        # In place of the table, which is not read, so that no second kernel is compiled for tables in bfloat16.
        encoder = encoder._replace(table=grad)
        launch(
            _add_to_table, encoder, positions, self.features, self.counts, grad, parts, taking, spent,
            threads=self.threads,
        )  # fmt: skip
        if plan is not None and taking is not None:
            plan.counts = taking.counts[plan.numbers].tolist()

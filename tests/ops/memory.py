"""Bounds of memory in Triton's interpreter: an access outside the tensors of a launch is an error, as on a card.

The interpreter reads and writes any address of the process. Within `checked_memory()` every unmasked address of every
load, store and atomic must lie inside one of the tensors passed to the kernel at hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class OutOfBoundsError(Exception):
    """A kernel touched memory that is none of its arguments'."""


class _Checked:
    """Stands in for the interpreter's memory functions."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.begins, self.ends = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.kernel = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def enter(self, kernel: str, values: list[Any]) -> None:
        """Note a launch's tensors."""
        spans = sorted(
            (x.data_ptr(), x.data_ptr() + _span(x)) for x in values if isinstance(x, torch.Tensor) and x.numel()
        )
        merged: list[list[int]] = []
        for begin, end in spans:  # views of one tensor may touch or overlap
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([begin, end])
        self.kernel = kernel
        self.begins = np.array([b for b, _ in merged], np.int64)
        self.ends = np.array([e for _, e in merged], np.int64)

    def _check(self, what: str, pointers: Any, mask: Any, size: int) -> None:
        address = np.asarray(pointers).astype(np.int64).reshape(-1)
        address = address[np.broadcast_to(np.asarray(mask).astype(bool), np.shape(pointers)).reshape(-1)]
        if not address.size:
            return
        at = np.searchsorted(self.begins, address, side="right") - 1
        ok = at >= 0
        ok[ok] = address[ok] + size <= self.ends[at[ok]]
        if not ok.all():
            raise OutOfBoundsError(f"{self.kernel}: {what} of {int((~ok).sum())} addresses outside its tensors")

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        """Checked load."""
        self._check("load", pointers, mask, np.dtype(dtype).itemsize)
        return self.real.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        """Checked store."""
        self._check("store", pointers, mask, np.asarray(value).dtype.itemsize)
        return self.real.store(pointers, value, mask)

    def atomic_rmw(self, op: Any, pointers: Any, value: Any, mask: Any, sem: Any) -> Any:
        """Checked atomic."""
        self._check("atomic", pointers, mask, np.asarray(value).dtype.itemsize)
        return self.real.atomic_rmw(op, pointers, value, mask, sem)


def _span(x: torch.Tensor) -> int:
    return (sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1) * x.element_size()


@contextmanager
def checked_memory() -> Iterator[None]:
    """Within the block, interpreted kernels touch only their own tensors, or raise (wrapped in InterpreterError)."""
    from triton.runtime import interpreter

    checked = _Checked(interpreter._interpreter)
    start = interpreter.GridExecutor._init_args_hst

    def noted(self: Any, args: Any, kwargs: Any) -> Any:
        host, host_kwargs = start(self, args, kwargs)
        checked.enter(self.fn.__name__, [*host, *host_kwargs.values()])
        return host, host_kwargs

    interpreter._interpreter, interpreter.GridExecutor._init_args_hst = checked, noted
    try:
        yield
    finally:
        interpreter._interpreter, interpreter.GridExecutor._init_args_hst = checked.real, start

"""Bounds of memory in Triton's interpreter: an access outside the tensors of a launch is an error, as on a card.

The interpreter reads and writes any address of the process. Within `checked_memory()` every unmasked address of every
load, store and atomic must lie inside one of the tensors passed to the kernel at hand.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
        spans = sorted((x.data_ptr(), x.data_ptr() + _span(x)) for x in _tensors(values) if x.numel())
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


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among values and in records among them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


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


class Guarded:
    """Arrays of kernels' records replaced by poisoned ones with guards behind them, which must stay as they are."""

    def __init__(self, fill: Callable[[np.ndarray], Any]) -> None:
        """`fill` says what an array is poisoned with."""
        self.fill = fill
        self.guards: list[tuple[np.ndarray, Any]] = []
        self.parents: list[tuple[np.ndarray, np.ndarray]] = []

    def array(self, array: np.ndarray) -> np.ndarray:
        """The poisoned twin of an array; of a row of an array that was replaced before, that row of its twin."""
        for parent, twin in self.parents:
            if np.shares_memory(array, parent):
                start = array.__array_interface__["data"][0] - parent.__array_interface__["data"][0]
                return twin.reshape(-1)[start // array.itemsize :][: array.size].reshape(array.shape)
        value = self.fill(array)
        longer = np.full(array.size + 64, value, array.dtype)
        self.guards.append((longer[array.size :], value))
        twin = longer[: array.size].reshape(array.shape)
        self.parents.append((array, twin))
        return twin

    def record(self, value: Any, *, keep: Sequence[str] = ()) -> Any:
        """A record, or a list of them, with every array replaced but those called like `keep`."""
        if isinstance(value, np.ndarray):
            return self.array(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = {name: getattr(value, name) for name in value._fields}
            return type(value)(**{n: x if n in keep else self.record(x, keep=keep) for n, x in fields.items()})
        if isinstance(value, list | tuple):
            return type(value)(self.record(x, keep=keep) for x in value)
        return value

    def check(self) -> None:
        """Assert that nothing was written behind an array."""
        for guard, value in self.guards:
            assert np.array_equal(guard, np.full_like(guard, value), equal_nan=guard.dtype.kind == "f")

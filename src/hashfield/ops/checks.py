"""Checks of tensor arguments: one clear line naming argument, expected and got."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from hashfield.errors import ShapeError

_FLOATS = (torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)
_KINDS: dict[str, tuple[torch.dtype, ...]] = {
    "float": _FLOATS,
    "integer": _INTEGERS,
    "int64": (torch.int64,),
    "uint8": (torch.uint8,),
    "bfloat16": (torch.bfloat16,),
}
_KIND_NAMES = {"float": "float32 or float64", "integer": "int32 or int64"}

_Value = TypeVar("_Value")


class Checker:
    """Checks the tensor arguments of one call, binding axis names as it goes.

    >>> check = Checker("op")
    >>> check("a", torch.zeros(3, 2), ("n", 2))
    >>> check("b", torch.zeros(4), ("n",))
    Traceback (most recent call last):
    ...
    hashfield.errors.ShapeError: op: b: expected shape [n=3], got [4]
    """

    def __init__(self, op: str) -> None:
        """Args: op: name that begins every message."""
        self.op = op
        self.sizes: dict[str, int] = {}
        self.like: tuple[str, Tensor] | None = None

    def __call__(self, name: str, tensor: Tensor, shape: tuple[int | str, ...], kind: str = "float") -> None:
        """Check one argument.

        Args:
            name: Name of the argument.
            tensor: The argument itself.
            shape: Sizes, or names of axes that must agree between arguments.
            kind: "float", "integer", "int64", "uint8" or "bfloat16". Floats must share one dtype, all tensors one
                device.

        Raises:
            ShapeError: it does not fit.
        """
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"{self.op}: {name}: expected a tensor, got {type(tensor).__name__}")
        fits = tensor.ndim == len(shape) and all(
            size == (self.sizes.get(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(
                f"{axis}={self.sizes[axis]}" if isinstance(axis, str) and axis in self.sizes else str(axis)
                for axis in shape
            )
            raise ShapeError(f"{self.op}: {name}: expected shape [{wanted}], got {list(tensor.shape)}")
        for axis, size in zip(shape, tensor.shape, strict=True):
            if isinstance(axis, str):
                self.sizes[axis] = size
        if tensor.dtype not in _KINDS[kind]:
            raise ShapeError(f"{self.op}: {name}: expected {_KIND_NAMES.get(kind, kind)}, got {_dtype(tensor)}")
        if self.like is None:
            if kind == "float":
                self.like = (name, tensor)
            return
        first_name, first = self.like
        if kind == "float" and tensor.dtype != first.dtype:
            raise ShapeError(f"{self.op}: {name}: expected {_dtype(first)} like {first_name}, got {_dtype(tensor)}")
        if tensor.device != first.device:
            raise ShapeError(
                f"{self.op}: {name}: expected device {first.device} like {first_name}, got {tensor.device}"
            )


def one_of(op: str, name: str, value: str, options: Mapping[str, _Value] | tuple[str, ...]) -> None:
    """Check that an option is one of a few words.

    Args:
        op: The op's name, for the error.
        name: The argument's name.
        value: What was given.
        options: The words that are allowed.

    Raises:
        ShapeError: it is not. (An option of an op is an argument like its tensors.)
    """
    if value not in options:
        raise ShapeError(f"{op}: {name}: expected one of {', '.join(map(repr, options))}, got {value!r}")


def at_least(op: str, name: str, value: float, low: float, *, strictly: bool = False) -> None:
    """Check that a number is finite and not below (or, strictly, above) a bound.

    Args:
        op: The op's name, for the error.
        name: The argument's name.
        value: What was given.
        low: The bound.
        strictly: Whether the bound itself is refused.

    Raises:
        ShapeError: it is not.
    """
    if not (value > low if strictly else value >= low) or value == float("inf"):
        relation = "more than" if strictly else "at least"
        raise ShapeError(f"{op}: {name}: expected a finite number of {relation} {low:g}, got {value!r}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

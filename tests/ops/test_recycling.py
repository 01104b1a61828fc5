"""Large outputs of the grid reuse memory that nobody holds any more, and only such memory."""

from typing import Any

import numpy as np
import pytest
import torch

from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout
from tests import tolerances

common: Any = pytest.importorskip("hashfield.kernels.numba_cpu.common")

LARGE = 2**19


def test_memory_is_reused_once_nobody_holds_it() -> None:
    first = common.recycled("test", LARGE)
    address = first.ctypes.data
    second = common.recycled("test", LARGE)
    assert second.ctypes.data != address
    held = torch.from_numpy(second.reshape(2, -1))[1:, 5:]  # a view of a view holds it too
    address = second.ctypes.data
    del first, second
    assert common.recycled("test", LARGE).ctypes.data != address
    del held
    third = common.recycled("test", LARGE)
    address = third.ctypes.data
    del third
    assert common.recycled("test", LARGE - 1).ctypes.data == address


def test_outputs_and_gradients_that_are_kept_stay_as_they_are(generator: torch.Generator) -> None:
    layout = GridLayout(2, 8, 4, 15, 64, 1.5)
    assert layout.n_entries * 4 >= LARGE  # else nothing is reused and nothing is tested
    table = torch.rand(layout.n_entries, 4, generator=generator, requires_grad=True)
    kept = []
    for _ in range(3):
        x = torch.rand(2**14, 2, generator=generator)
        out = ops.grid_encode(x, table, layout, backend="numba")
        (grad,) = torch.autograd.grad(out.square().sum(), table)
        out = out.detach()
        kept.append((x, out, out.clone(), grad, grad.clone()))
        del out, grad
    for x, out, out_then, grad, grad_then in kept:
        assert torch.equal(out, out_then)
        assert torch.equal(grad, grad_then)
        expected = ops.grid_encode(x, table.detach(), layout, backend="reference")
        np.testing.assert_allclose(
            out.numpy(), expected.numpy(), rtol=tolerances.FAST_OUTPUT, atol=tolerances.SAME_NUMBER
        )


def test_reused_memory_holds_nothing_of_before(generator: torch.Generator) -> None:
    layout = GridLayout(2, 8, 4, 15, 64, 1.5)
    table = torch.rand(layout.n_entries, 4, generator=generator, requires_grad=True)
    x = torch.rand(2**14, 2, generator=generator)

    def gradient() -> torch.Tensor:
        out = ops.grid_encode(x[:100], table, layout, backend="numba")
        return torch.autograd.grad(out.sum(), table)[0]

    expected = gradient().clone()
    ops.grid_encode(x, table, layout, backend="numba").sum().backward()
    table.grad = None  # full of numbers, and free now
    assert torch.equal(gradient(), expected)

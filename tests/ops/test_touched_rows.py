"""Rows taken out of a sparse array and added to one: every backend is the reference bit for bit."""

import pytest
import torch

from hashfield.errors import ShapeError
from hashfield.ops.touched_rows import TouchedRows, add_rows, take_rows
from tests.conftest import backend_params

PARTS = [slice(8, 24), slice(24, 401), slice(500, 501), slice(600, 803)]


def sparse(n_features: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(n_features)
    array = torch.randn(810, n_features, generator=g)
    array[torch.rand(810, generator=g) < 0.8] = 0.0
    array[30, 0] = float("nan")
    return array


@pytest.mark.parametrize("backend", backend_params("touched_rows", ("numba",)))
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeps", [False, True])
def test_agrees_with_the_reference(n_features, wire, keeps, backend) -> None:
    own, other = sparse(n_features), sparse(n_features)
    found = take_rows(own, PARTS, 0.3, wire, keeps=keeps, backend=backend)
    wanted = take_rows(other, PARTS, 0.3, wire, keeps=keeps, backend="reference")
    for x, y in zip((own, *found), (other, *wanted), strict=True):
        torch.testing.assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)
    add_rows(own, PARTS, found, backend=backend)
    add_rows(other, PARTS, wanted, backend="reference")
    torch.testing.assert_close(own, other, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("backend", backend_params("touched_rows"))
def test_what_is_taken_and_added_again_is_what_was_there(backend) -> None:
    if backend == "triton":
        pytest.skip("several processes train on CPUs only")
    before = sparse(4).nan_to_num()
    array = before.clone()
    rows = take_rows(array, PARTS, 1.0, torch.float32, backend=backend)
    assert not any(bool(array[part].any()) for part in PARTS)
    assert torch.equal(array[:8], before[:8]) and torch.equal(array[803:], before[803:])
    add_rows(array, PARTS, rows, backend=backend)
    assert torch.equal(array, before)


def test_wrong_arguments_are_named() -> None:
    array = torch.zeros(16, 2)
    with pytest.raises(ShapeError, match="take_rows: parts: expected ranges within 16 rows"):
        take_rows(array, [slice(0, 17)], 1.0, torch.float32)
    with pytest.raises(ShapeError, match="take_rows: wire: expected float32 or bfloat16"):
        take_rows(array, [slice(0, 8)], 1.0, torch.float16)
    with pytest.raises(ShapeError, match="array: expected a contiguous tensor"):
        take_rows(array.T, [slice(0, 2)], 1.0, torch.float32)
    rows = TouchedRows(torch.zeros(1, dtype=torch.uint8), torch.tensor([2]), torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r"rows.values: expected \(2, 2\) numbers, got \(1, 2\)"):
        add_rows(array, [slice(0, 8)], rows)

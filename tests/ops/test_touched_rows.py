"""Rows taken out of a sparse array: every backend is the reference bit for bit."""

import pytest
import torch

from hashfield.errors import ShapeError
from hashfield.ops.touched_rows import RowRoom, TouchedRows, summed_rows, take_rows
from tests.conftest import backend_params

PARTS = [slice(8, 24), slice(24, 401), slice(500, 501), slice(600, 803)]
CHOSEN = [0, 1, 3]


def sparse(n_features: int, share: float = 0.2) -> torch.Tensor:
    g = torch.Generator().manual_seed(n_features)
    array = torch.randn(810, n_features, generator=g)
    array[torch.rand(810, generator=g) >= share] = 0.0
    array[30, 0] = float("nan")
    array[31] = -0.0
    return array


@pytest.mark.parametrize("backend", backend_params("touched_rows", ("numba",)))
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_agrees_with_the_reference(n_features, wire, share, backend) -> None:
    own, other = sparse(n_features, share), sparse(n_features, share)
    rooms = [RowRoom(PARTS, n_features, wire) for _ in range(2)]
    found = take_rows(own, rooms[0], CHOSEN, 0.3, backend=backend)
    wanted = take_rows(other, rooms[1], CHOSEN, 0.3, backend="reference")
    assert found == wanted and sum(wanted) > 0
    torch.testing.assert_close(own, other, rtol=0.0, atol=0.0, equal_nan=True)
    for k, count in zip(CHOSEN, found, strict=True):
        for x, y in zip(*(room.rows(k, count) for room in rooms), strict=True):
            torch.testing.assert_close(x, y, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("backend", backend_params("touched_rows"))
def test_what_is_taken_is_what_was_there(backend) -> None:
    if backend == "triton":
        pytest.skip("several processes train on CPUs only")
    before = sparse(4).nan_to_num()
    array, room = before.clone(), RowRoom(PARTS, 4, torch.float32)
    counts = take_rows(array, room, CHOSEN, 1.0, backend=backend)
    for k, part in enumerate(PARTS):
        if k not in CHOSEN:
            assert torch.equal(array[part], before[part])
            continue
        assert not bool(array[part].any())
        count = counts[CHOSEN.index(k)]
        assert torch.equal(summed_rows([room.rows(k, count)], (part.stop - part.start, 4)), before[part])
        assert len(room.message(k, count)) == room.message_bytes(k, count)
    assert torch.equal(array[:8], before[:8]) and torch.equal(array[803:], before[803:])


def test_a_message_brings_the_rows_to_another_room() -> None:
    here, there = (RowRoom(PARTS, 2, torch.bfloat16) for _ in range(2))
    (count,) = take_rows(sparse(2), here, [3], 1.0)
    there.message(3, count).copy_(here.message(3, count))
    for x, y in zip(there.rows(3, count), here.rows(3, count), strict=True):
        assert torch.equal(x, y)


def test_wrong_arguments_are_named() -> None:
    array = torch.zeros(16, 2)
    with pytest.raises(ShapeError, match="take_rows: room: expected parts within 16 rows"):
        take_rows(array, RowRoom([slice(0, 17)], 2, torch.float32), [0], 1.0)
    with pytest.raises(ShapeError, match="RowRoom: wire: expected float32 or bfloat16"):
        RowRoom([slice(0, 8)], 2, torch.float16)
    with pytest.raises(ShapeError, match="array: expected a contiguous tensor"):
        take_rows(array.T, RowRoom([slice(0, 2)], 16, torch.float32), [0], 1.0)
    with pytest.raises(ShapeError, match="array"):
        take_rows(array, RowRoom([slice(0, 8)], 4, torch.float32), [0], 1.0)


def test_rows_are_those_of_an_array() -> None:
    rows = TouchedRows(torch.tensor([0b101], dtype=torch.uint8), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    more = TouchedRows(torch.tensor([0b001], dtype=torch.uint8), torch.tensor([[0.5, 0.5]], dtype=torch.bfloat16))
    assert summed_rows([rows, more], (3, 2)).tolist() == [[1.5, 2.5], [0.0, 0.0], [3.0, 4.0]]

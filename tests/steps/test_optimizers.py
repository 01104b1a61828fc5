"""The optimiser of a host: parts of a table that are updated at intervals get the sum of the gradients since."""

import pytest
import torch

from hashfield.errors import ConfigError, ShapeError
from hashfield.ops.adam import adam_table
from hashfield.ops.backend import Backend
from hashfield.ops.touched_rows import RowRoom, take_rows
from hashfield.steps.optimizers import HostOptimizer, network_groups
from tests.conftest import backend_params


def test_a_part_is_updated_at_its_interval_by_the_sum_of_its_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    start, matrix = torch.randn(300, 4, generator=g), torch.randn(3, 5, generator=g)
    grads = torch.randn(8, 300, 4, generator=g)
    table, grad = start.clone(), torch.zeros(300, 4)
    optimizer = HostOptimizer(network_groups(table, [matrix.clone()], parts=[(64, 1), (36, 1), (100, 2), (100, 4)]))
    assert [(rows.start, rows.stop, interval) for rows, interval in optimizer.parts] == [
        (0, 100, 1), (100, 200, 2), (200, 300, 4),
    ]  # fmt: skip
    for k in range(8):
        grad += grads[k]
        optimizer.step({"table": [grad], "matrices": [torch.zeros(3, 5)]}, 1e-2)
        assert bool((grad[:100] == 0).all()) and bool((grad[200:] == 0).all()) == (k % 4 == 3)
    for rows, interval in ((slice(0, 100), 1), (slice(100, 200), 2), (slice(200, 300), 4)):
        own, m, v = start[rows].clone(), torch.zeros(100, 4), torch.zeros(100, 4)
        copy = own.to(torch.bfloat16)
        for step, total in enumerate(grads[:, rows].reshape(8 // interval, interval, 100, 4).sum(1), start=1):
            adam_table(own, total.clone(), m, v, copy, step=step, learning_rate=1e-2)
        assert torch.allclose(table[rows], own, atol=1e-6)
        assert torch.equal(optimizer.table_bf16[rows], table[rows].to(torch.bfloat16))


@pytest.mark.parametrize("parts", [[(10, 1)], [(10, 1), (20, 0), (270, 1)]])
def test_parts_that_do_not_fit_are_refused(parts: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="parts"):
        HostOptimizer(network_groups(torch.zeros(300, 4), [], parts=parts))


@pytest.mark.parametrize("backend", backend_params("adam"))
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_a_gradient_may_come_as_touched_rows_of_several_arrays(
    n_features: int, wire: torch.dtype, backend: Backend
) -> None:
    if backend == "triton":
        pytest.skip("several processes train on CPUs only")
    n, g = 1003, torch.Generator().manual_seed(n_features)  # more than one block of the kernel, and a byte in part
    total, rows = torch.zeros(n, n_features), []
    for _ in range(3):
        array = torch.randn(n, n_features, generator=g) * (torch.rand(n, 1, generator=g) < 0.1)
        room = RowRoom([slice(0, n)], n_features, wire)
        (count,) = take_rows(array.clone(), room, [0], 1.0)
        rows.append(room.rows(0, count))
        total += array.to(wire).float()
    found = []
    for sent in (None, rows):
        own, m, v = torch.ones(n, n_features), torch.zeros(n, n_features), torch.zeros(n, n_features)
        copy, grad = own.to(torch.bfloat16), torch.full_like(own, 7.0) if sent else total.clone()
        adam_table(own, grad, m, v, copy, step=3, learning_rate=1e-2, rows=sent, backend=backend)
        assert torch.equal(copy, own.to(torch.bfloat16)) and bool((grad == (7.0 if sent else 0.0)).all())
        found.append(torch.stack([own, m, v]))
    torch.testing.assert_close(found[1], found[0], rtol=0.0, atol=0.0)
    assert torch.equal((found[0][0] != 1).any(1), (total != 0).any(1))
    with pytest.raises(ShapeError, match=r"rows\[0\].bits"):
        adam_table(own[:8], grad[:8], m[:8], v[:8], copy[:8], step=3, learning_rate=1e-2, rows=rows)

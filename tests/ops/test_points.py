"""The fused ops on points, training and asking a network, against the composition of the small references."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.errors import BackendError, ShapeError
from hashfield.geometry.fixed_point import from_fixed_point, to_fixed_point
from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.eval_points import EncodedNetwork, eval_points
from hashfield.ops.train_points import LOSSES, PointsWorkspace, train_points
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.cases import POINTS
from tests.ops.compare import relative_error
from tests.ops.fused import (
    INTERPRETED,
    LAYOUTS,
    ask,
    device_of,
    doubled,
    few,
    moved,
    network,
    points,
    points_step,
    threads,
)
from tests.ops.memory import Guarded, checked_memory

# Numpy, which Triton's interpreter computes with, warns of infinities that kernels meet and handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
on_every_fast_backend = pytest.mark.parametrize("backend", backend_params("train_points", ("numba", "triton")))
on_every_backend = pytest.mark.parametrize("backend", backend_params("train_points"))
on_triton = pytest.mark.parametrize("backend", backend_params("train_points", ("triton",)))


@pytest.fixture(autouse=True)
def within_bounds() -> Iterator[None]:
    """No interpreted kernel may touch memory that is not its own."""
    with checked_memory() if INTERPRETED else nullcontext():
        yield


@on_every_fast_backend
@pytest.mark.parametrize("name", list(POINTS))
def test_outputs_in_bfloat16_agree_with_the_reference(name: str, backend: Any) -> None:
    net, positions, _ = POINTS[name].make()
    rounded = replace(net, precision="bfloat16")
    found, expected = (ask(rounded, positions, b) for b in (backend, "reference"))
    assert relative_error(found, expected) < tolerances.BFLOAT16_FLIP


@on_every_fast_backend
@pytest.mark.parametrize("name", ["image", "grey", "distance", "four_layers", "no_hidden_layer"])
def test_step_in_bfloat16_errs_no_more_than_the_reference_does(name: str, backend: Any) -> None:
    net, positions, target = POINTS[name].make()
    net, options = replace(net, table_bf16=net.table.to(torch.bfloat16)), POINTS[name].options
    rounded = replace(net, precision="bfloat16")
    right, right_grads = points_step(net, positions, target, "reference", **options)
    same, same_grads = points_step(rounded, positions, target, "reference", **options)
    mine, my_grads = points_step(rounded, positions, target, backend, **options)
    allowed = abs(same.loss - right.loss) + tolerances.BFLOAT16_LOSS_FLOOR * right.loss
    assert abs(mine.loss - right.loss) < tolerances.BFLOAT16_OVER_REFERENCE * allowed
    for grad, reference, target_grad in zip(my_grads, same_grads, right_grads, strict=True):
        allowed = relative_error(reference, target_grad)
        assert 0 < relative_error(grad, target_grad) < 1.5 * tolerances.BFLOAT16_OVER_REFERENCE * allowed
        assert relative_error(grad, reference) < 1.5 * allowed


@on_triton
@pytest.mark.parametrize("name", ["image", "grey", "distance"])
def test_step_in_float16_stays_close(name: str, backend: Any) -> None:
    """As exact as its type: 2^-11 for every table entry, matrix and layer; of some thousand hidden units a few pass on
    one side only, which is most of the gradients' error."""
    (net, positions, target), options = POINTS[name].make(), POINTS[name].options
    right, right_grads = points_step(net, positions, target, "reference", **options)
    halves = replace(net, precision="float16", table_fp16=net.table.half())
    found, grads = points_step(halves, positions, target, backend, **options)
    assert found.loss == pytest.approx(right.loss, rel=tolerances.FLOAT16_LOSS)
    for mine, theirs in zip(grads, right_grads, strict=True):
        assert 0 < relative_error(mine, theirs) < tolerances.FLOAT16_GRADIENT
    outputs = [ask(own, positions, b) for own, b in ((halves, backend), (net, "reference"))]
    assert 0 < relative_error(*outputs) < tolerances.FLOAT16_OUTPUT
    again = ask(replace(halves, table_fp16=None), positions, backend)  # rounded there
    torch.testing.assert_close(again, outputs[0])
    with pytest.raises(BackendError, match="GPUs only"):
        eval_points(halves, positions, backend="reference")


@pytest.mark.parametrize("loss", LOSSES)
@on_every_backend
def test_losses_are_what_they_say(loss: Any, backend: Any) -> None:
    """A network of one matrix on a constant table is a constant; loss and gradient then are known by hand."""
    grid = LAYOUTS["2d_f1"]
    weights = (torch.tensor([[2.0, 1.0, 1.0]]),)
    net = EncodedNetwork(grid, torch.full((grid.n_entries, 1), 0.25), weights)  # outputs 1 everywhere
    target = torch.tensor([[1.5], [0.98], [-3.0]])
    d = torch.tensor([-0.5, 0.02, 4.0])
    values, slopes = {
        "l2": (d**2, 2 * d),
        "relative_l2": (d**2 / 1.01, 2 * d / 1.01),
        "l1": (d.abs(), d.sign()),
        "mape": (d.abs() / (target[:, 0].abs() + 0.01), d.sign() / (target[:, 0].abs() + 0.01)),
        "huber": (torch.tensor([0.2 * 0.45, 0.1 * 0.02**2 / 0.1, 0.2 * 3.95]), torch.tensor([-0.2, 0.04, 0.2])),
    }[loss]
    found, grads = points_step(net, torch.rand(3, 2), target, backend, loss=loss)
    assert found.loss == pytest.approx(float(values.mean()), rel=tolerances.FAST_OUTPUT)
    assert found.squared_error == pytest.approx(float(d.square().mean()), rel=tolerances.FAST_OUTPUT)
    assert grads[1].tolist()[0] == pytest.approx([0.25 * float(slopes.mean())] * 3, rel=tolerances.FAST_OUTPUT)


@on_every_fast_backend
def test_fixed_point_keeps_the_fraction_where_float32_loses_it(backend: Any) -> None:
    """Levels as of an image of 2^18 pixels a side: a pixel is two cells, and its fraction must survive."""
    grid = GridLayout(
        n_dims=2, n_levels=2, n_features_per_level=2, log2_hashmap_size=12, base_resolution=2**15, per_level_scale=4.0
    )
    g = torch.Generator().manual_seed(0)
    net = EncodedNetwork(
        grid, torch.rand(grid.n_entries, 2, generator=g) * 2 - 1, (torch.rand(3, 4, generator=g) * 2 - 1,)
    )
    n = 2 * few(2000)
    pixels = torch.randint(2**18 - 2**12, 2**18, (n, 2), generator=g)  # the far corner, where float32 is coarsest
    exact = (pixels.double() + 0.5) / 2**18
    right = eval_points(doubled(net), exact, backend="reference")
    fixed, rounded = to_fixed_point(exact), exact.float()
    assert torch.equal(from_fixed_point(fixed), exact)
    for name in (backend, "reference"):
        assert relative_error(ask(net, fixed, name), right) < tolerances.FIXED_POINT
    assert relative_error(ask(net, rounded, backend), right) > 1000 * tolerances.FIXED_POINT
    # and so do the gradients of a step
    target = torch.zeros(n, 3)
    _, mine = points_step(net, fixed, target, backend)
    _, theirs = points_step(doubled(net), exact, target.double(), "reference")
    assert all(relative_error(a, b) < tolerances.FUSED_STEP for a, b in zip(mine, theirs, strict=True))


@on_every_fast_backend
def test_fixed_point_over_the_whole_range(backend: Any) -> None:
    """Every cell boundary included: the fraction stays in [0, 1) and the cell is that of exact arithmetic."""
    g = torch.Generator().manual_seed(0)
    net = network("2d_f2")
    ends = torch.tensor([0, 1, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 2**16, 2**32 - 1])
    steps = torch.cat([ends, torch.randint(0, 2**32, (few(2000),), generator=g)])
    positions = torch.stack([steps, steps.flip(0)], 1).double() / 2**32
    found = ask(net, to_fixed_point(positions), backend)
    right = eval_points(doubled(net), positions, backend="reference")
    assert float((found - right).abs().max()) < tolerances.FAST_OUTPUT * float(right.abs().max())
    beyond = to_fixed_point(torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64))
    assert from_fixed_point(beyond).tolist() == [0.0, 1 - 2**-32, 1 - 2**-32]


@on_every_fast_backend
@pytest.mark.parametrize("layout", ["2d_f4", "L8F4"])
def test_positions_outside_the_unit_box_are_safe(layout: str, backend: Any) -> None:
    net = network(layout)
    odd = torch.tensor([-0.3, 1.0, 1.5, -1e6, 1e30, torch.inf, -torch.inf, torch.nan])
    positions = torch.stack([odd.roll(k) for k in range(net.layout.n_dims)], 1)
    target = torch.zeros(len(odd), 3)
    found, expected = (ask(net, positions, b) for b in (backend, "reference"))
    assert bool(torch.isfinite(found).all()) and relative_error(found, expected) < tolerances.FAST_OUTPUT
    (a, mine), (b, theirs) = (points_step(net, positions, target, name) for name in (backend, "reference"))
    assert a.loss == pytest.approx(b.loss, rel=tolerances.FAST_OUTPUT)
    assert all(relative_error(x, y) < tolerances.FUSED_STEP for x, y in zip(mine, theirs, strict=True))


@on_every_backend
def test_no_points(backend: Any) -> None:
    net = network("2d_f4")
    positions, target = points(net, 0)
    found, grads = points_step(net, positions, target, backend)
    assert found.loss == found.squared_error == 0.0
    assert all(float(g.abs().sum()) == 0.0 for g in grads)
    assert ask(net, positions, backend).shape == (0, 3)


def test_same_bits_for_the_same_threads_and_close_for_others() -> None:
    net = replace(network("2d_f4"), precision="bfloat16")
    positions, target = points(net, 3000, True)
    results = []
    for n in (2, 2, 1, 3, 11):  # 11 threads are more than levels: these are then cut into address ranges
        with threads(n):
            results.append(
                (*points_step(net, positions, target, "numba"), eval_points(net, positions, backend="numba"))
            )
    first, again, *others = results
    assert first[0].loss == again[0].loss
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    for found, grads, outputs in others:
        assert found.loss == pytest.approx(first[0].loss, rel=tolerances.SAME_NUMBER)
        assert all(relative_error(a, b) < tolerances.FAST_OUTPUT for a, b in zip(grads, first[1], strict=True))
        assert torch.equal(outputs, first[2])


@on_every_fast_backend
def test_a_workspace_serves_step_after_step(backend: Any) -> None:
    """Nothing of a step is left for the next one but the table's gradient, which is added to."""
    net, device = moved(network("L5F2"), backend), device_of(backend)
    used, fresh = (PointsWorkspace(net, 500, backend) for _ in range(2))
    large, small = ([x.to(device) for x in points(net, n, seed=n)] for n in (few(500), 77))
    train_points(net, *large, used)
    used.grad_table.zero_()
    a, b = train_points(net, *small, used), train_points(net, *small, fresh)
    assert a.loss == b.loss and torch.equal(used.grad_table, fresh.grad_table)
    assert all(torch.equal(x, y) for x, y in zip(a.grad_weights, b.grad_weights, strict=True))
    train_points(net, *small, fresh)
    assert relative_error(fresh.grad_table, 2 * used.grad_table) < tolerances.FAST_OUTPUT


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_buffers_are_written_before_they_are_read_and_not_past_their_end(precision: Any) -> None:
    net = replace(network("L5F2", (16, 32), 5), precision=precision)
    positions, target = points(net, 130)
    with threads(1):
        clean, clean_grads = points_step(net, positions, target, "numba")
        workspace = PointsWorkspace(net, 130, "numba")

        def fill(array: np.ndarray) -> Any:
            return np.nan if array.dtype.kind == "f" else 0x7FC0  # as bfloat16 not a number either

        buffers, guarded = workspace.buffers, Guarded(fill)
        for name in ("weights", "features"):
            setattr(buffers.gradients, name, guarded.array(getattr(buffers.gradients, name)))
        buffers.sums = guarded.array(buffers.sums)
        # The features' padding is zero from the start and stays so: it is not written.
        buffers.own = guarded.record(buffers.own, keep=("features",))
        found = train_points(net, positions, target, workspace)
    assert found.loss == clean.loss
    for mine, right in zip([workspace.grad_table, *found.grad_weights], clean_grads, strict=True):
        assert torch.equal(mine, right)
    guarded.check()


@on_triton
def test_no_number_of_a_step_before_is_read(backend: Any) -> None:
    net = moved(replace(network("L5F2", (16, 32), 5), precision="float16"), backend)
    positions, target = (x.to(device_of(backend)) for x in points(net, 70))
    right, right_grads = points_step(net, positions, target, backend)
    workspace = PointsWorkspace(net, 100, backend)
    for buffer in vars(workspace.buffers).values():
        if isinstance(buffer, Tensor):
            buffer.fill_(torch.nan)
    found = train_points(net, positions, target, workspace)
    assert found.loss == pytest.approx(right.loss, rel=tolerances.SAME_NUMBER)
    for mine, theirs in zip([workspace.grad_table, *found.grad_weights], right_grads, strict=True):
        torch.testing.assert_close(
            mine.cpu(), theirs, rtol=tolerances.UNORDERED_SUM, atol=tolerances.UNORDERED_SUM * float(theirs.abs().max())
        )


@on_every_fast_backend
def test_inputs_need_not_be_contiguous(backend: Any) -> None:
    net = network("2d_f4")
    positions, target = points(net, 100, True)
    odd = replace(net, weights=tuple(w.T.contiguous().T for w in net.weights), table=net.table.T.contiguous().T)
    a, mine = points_step(net, positions, target, backend)
    b, theirs = points_step(odd, positions.T.contiguous().T, target.T.contiguous().T, backend)
    if device_of(backend).type == "cpu":
        assert a.loss == b.loss and all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    else:  # a card adds in no fixed order
        assert a.loss == pytest.approx(b.loss, rel=tolerances.SAME_NUMBER)
        assert all(relative_error(x, y) < tolerances.FAST_OUTPUT for x, y in zip(mine, theirs, strict=True))


@on_every_fast_backend
def test_smoothstep_agrees_with_the_reference(backend: Any) -> None:
    net = replace(network("2d_f4"), interpolation="smoothstep")
    positions, _ = points(net, 200)
    found, expected = (ask(net, positions, name) for name in (backend, "reference"))
    assert relative_error(found, expected) < tolerances.FAST_OUTPUT


def test_wrong_arguments_are_named() -> None:
    net = network("2d_f4")
    positions, target = points(net, 10)
    workspace = PointsWorkspace(net, 10)
    with pytest.raises(ShapeError, match="positions_unit"):
        eval_points(net, positions[:, :1])
    with pytest.raises(ShapeError, match=r"weights\[1\]"):
        eval_points(replace(net, weights=(net.weights[0], torch.zeros(3, 7))), positions)
    with pytest.raises(ShapeError, match="target"):
        train_points(net, positions, target[:5], workspace)
    with pytest.raises(ShapeError, match="at most 10 points"):
        train_points(net, *points(net, 11), workspace)
    with pytest.raises(ShapeError, match="loss"):
        train_points(net, positions, target, workspace, loss="l3")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="workspace"):
        train_points(replace(net, precision="bfloat16"), positions, target, workspace)
    with pytest.raises(BackendError, match="neurons"):
        eval_points(network("2d_f4", (24,)), positions, backend="numba")
    with pytest.raises(ShapeError, match="to_fixed_point"):
        to_fixed_point(torch.zeros(3, dtype=torch.int32))


# --- other encodings than grids


def test_unfused_network_is_the_same_function(generator: torch.Generator) -> None:
    layout = GridLayout(2, 4, 2, 10, 5, 1.7)
    table = torch.rand(layout.n_entries, 2, generator=generator) - 0.5
    weights = tuple(torch.randn(s, generator=generator) * 0.3 for s in ((16, 8), (16, 16), (3, 16)))
    fused = EncodedNetwork(layout, table, weights)
    twin = replace(fused, table=torch.zeros(0, 1), encode=lambda x: ops.grid_encode(x, table, layout))
    assert fused.is_fused and not twin.is_fused
    x, target = torch.rand(500, 2, generator=generator), torch.rand(500, 3, generator=generator)
    for positions in (x, to_fixed_point(x)):
        torch.testing.assert_close(
            eval_points(twin, positions),
            eval_points(fused, positions),
            rtol=tolerances.FAST_OUTPUT,
            atol=tolerances.FAST_OUTPUT,
        )
    for loss in LOSSES:
        found = [train_points(n, x, target, PointsWorkspace(n, 500), loss=loss) for n in (twin, fused)]
        assert found[0].loss == pytest.approx(found[1].loss, rel=tolerances.FAST_OUTPUT)
        assert found[0].squared_error == pytest.approx(found[1].squared_error, rel=tolerances.FAST_OUTPUT)
        for a, b in zip(found[0].grad_weights, found[1].grad_weights, strict=True):
            assert relative_error(a, b) < tolerances.FUSED_STEP


def test_unfused_network_in_parts_and_of_no_points(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tuple(torch.randn(s, generator=generator) for s in ((16, 12), (1, 16)))
    network = EncodedNetwork(
        GridLayout(2, 1, 2, 8, 4, 1.0), torch.zeros(0, 1), weights,
        encode=lambda x: ops.frequency_encode(x, n_frequencies=3),
    )  # fmt: skip
    x, target = torch.rand(90, 2, generator=generator), torch.rand(90, 1, generator=generator)
    workspace = PointsWorkspace(network, 100)
    whole = train_points(network, x, target, workspace), eval_points(network, x)
    for module in ("eval_points", "train_points"):
        monkeypatch.setattr(f"hashfield.ops.{module}.UNFUSED_POINTS", 32)
    parts = train_points(network, x, target, workspace), eval_points(network, x)
    assert parts[0].loss == pytest.approx(whole[0].loss, rel=tolerances.FAST_OUTPUT)
    torch.testing.assert_close(parts[0].grad_weights, whole[0].grad_weights)
    torch.testing.assert_close(parts[1], whole[1])
    assert eval_points(network, x[:0]).shape == (0, 1)
    assert train_points(network, x[:0], target[:0], workspace).loss == 0.0
    with pytest.raises(ShapeError, match="float32 only"):
        eval_points(replace(network, precision="bfloat16"), x)
    with pytest.raises(ShapeError, match=r"weights\[1\]"):
        eval_points(replace(network, weights=(weights[0], weights[0])), x)

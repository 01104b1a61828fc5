"""The training step against float64, and its buffers: full, poisoned, shared by threads, or too many of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield.geometry.rays import RayBatch, Rays
from hashfield.ops.render_rays import FieldParameters, MarchOptions, render_rays
from hashfield.ops.train_rays import TrainWorkspace, train_rays
from tests import tolerances
from tests.ops.cases import TRAIN_RAYS
from tests.ops.compare import relative_error
from tests.ops.fused import CONE, LAYOUTS, Batch, batch, field, some, step, threads
from tests.ops.memory import Guarded


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of gradients are equal to the last bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["bf16", "cone_odd_bf16", "faint", "cone_huber"])
def test_step_in_bfloat16_errs_no_more_than_the_reference_does(name: str) -> None:
    one = TRAIN_RAYS[name]
    options, huber = one.options, one.huber
    exact, case = one.field(bf16=True), one.rays()
    rounded = replace(exact, precision="bfloat16")
    right, right_grads = step(exact, case, options, TrainWorkspace(exact, 2**15, "reference"), huber)
    same, same_grads = step(rounded, case, options, TrainWorkspace(rounded, 2**15, "reference"), huber)
    mine, my_grads = step(rounded, case, options, TrainWorkspace(rounded, 2**15, "numba"), huber)
    allowed = abs(same.loss - right.loss) + tolerances.BFLOAT16_LOSS_FLOOR * right.loss
    assert abs(mine.loss - right.loss) < tolerances.BFLOAT16_OVER_REFERENCE * allowed
    for grad, reference, target in zip(my_grads, same_grads, right_grads, strict=True):
        allowed = relative_error(reference, target)
        assert 0 < relative_error(grad, target) < 1.5 * tolerances.BFLOAT16_OVER_REFERENCE * allowed
        assert relative_error(grad, reference) < 1.5 * allowed


def test_rendering_in_bfloat16_agrees_with_its_reference() -> None:
    parameters, case = replace(field(LAYOUTS["L5F2"], 32), precision="bfloat16"), batch(65, 4)
    found, expected = (
        render_rays(parameters, case[0], case[1], CONE, jitter=case[4], backend=b) for b in ("numba", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < tolerances.BFLOAT16_FLIP


# --- full buffers


def fog(n: int) -> tuple[FieldParameters, Batch, MarchOptions]:
    """Rays that all keep every one of their some 200 samples, among them rays that miss."""
    rays, bits, target, background, jitter = batch(n)
    full = torch.full_like(bits, 255)
    return field(LAYOUTS["L8F4"], bias=-4.0), (rays, full, target, background, jitter), MarchOptions(1, 0.0, 4.0, 1e-4)


def took_part(parameters: FieldParameters, case: Batch, options: MarchOptions, room: int, expected: float) -> Tensor:
    """Which rays a step used: those whose wanted colour matters to the loss."""
    rays, bits, target, background, jitter = case

    def loss(wanted: Tensor) -> float:
        workspace.samples_per_ray = expected
        return step(parameters, (rays, bits, wanted, background, jitter), options, workspace)[0].loss

    workspace = TrainWorkspace(parameters, room, "numba")
    base, used = loss(target), []
    for i in range(rays.n_rays):
        other = target.clone()
        other[i, :3] = (1.0 - target[i, :3]).round()
        other[i, 3] = 1.0
        used.append(loss(other) != base)
    return torch.tensor(used)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    ("room", "expected"),
    [
        pytest.param(2800, 64.0, id="overflows within a chunk"),
        pytest.param(3500, 200.0, id="ends between chunks"),
        pytest.param(20, 64.0, id="room for no ray"),
        pytest.param(2**14, 64.0, id="room for all"),
    ],
)
def test_rays_without_room_take_no_part(room: int, expected: float, n_threads: int) -> None:
    """Rays are used whole or not at all, and the others' loss and gradients are the reference's.

    The gradient is that of the sum over the rays used, divided by the number of rays given.
    """
    n = 48
    everything, nothing = room == 2**14, room == 20
    room *= n_threads
    parameters, case, options = fog(n)
    with threads(n_threads):
        workspace = TrainWorkspace(parameters, room, "numba")
        workspace.samples_per_ray = expected
        found, grads = step(parameters, case, options, workspace)
        used = took_part(parameters, case, options, room, expected)
    assert found.n_rays == int(used.sum())
    assert found.n_kept <= workspace.buffers.capacity * n_threads
    if everything:
        assert found.n_rays == n
    elif not nothing:
        assert 0 < found.n_rays < n
    reference = TrainWorkspace(parameters, 2**15, "reference")
    expected_step, expected_grads = step(parameters, some(case, used), options, reference)
    assert found.loss == pytest.approx(expected_step.loss, rel=tolerances.FAST_OUTPUT)
    for mine, right in zip(grads, expected_grads, strict=True):
        assert bool(torch.isfinite(mine).all())
        error = relative_error(mine * (n / max(found.n_rays, 1)), right)
        assert error < tolerances.FLIPPED_UNIT or float(right.abs().max()) == 0.0


def _fill(dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return np.nan
    return True if dtype.kind == "b" else np.iinfo(dtype).max


@pytest.mark.parametrize("layout", ["L8F4", "L5F2"])
@pytest.mark.parametrize("room", [2800, 2**15])
def test_buffers_are_written_before_they_are_read_and_not_past_their_end(layout: str, room: int) -> None:
    _, case, options = fog(48)
    parameters = field(LAYOUTS[layout], 32, bias=-4.0)
    with threads(1):
        clean = step(parameters, case, options, TrainWorkspace(parameters, room, "numba"))
        workspace = TrainWorkspace(parameters, room, "numba")
        buffers, guarded = workspace.buffers, Guarded(lambda array: _fill(array.dtype))
        for name in ("weights", "features", "counts"):
            setattr(buffers.gradients, name, guarded.array(getattr(buffers.gradients, name)))
        buffers.positions, buffers.sums = guarded.array(buffers.positions), guarded.array(buffers.sums)
        buffers.own = guarded.record(buffers.own)
        poisoned = step(parameters, case, options, workspace)
    guarded.check()
    assert poisoned[0].loss == clean[0].loss and poisoned[0].n_kept == clean[0].n_kept
    assert same_bits(poisoned[1], clean[1])


# --- threads, repetition, odd batches


def test_more_threads_than_levels_and_than_rays() -> None:
    """Levels are then cut into address ranges, and some threads have no ray."""
    parameters, case = field(LAYOUTS["L5F2"], 32), batch(7)
    options = MarchOptions(1, 0.0, 4.0, 1e-2)
    found = []
    for n in (1, 2, 11, 11):
        with threads(n):
            found.append(step(parameters, case, options, TrainWorkspace(parameters, 2**15, "numba")))
    assert same_bits(found[2][1], found[3][1]) and found[2][0].loss == found[3][0].loss
    for result, grads in found[1:]:
        assert (result.n_rays, result.n_kept) == (found[0][0].n_rays, found[0][0].n_kept)
        assert all(relative_error(a, b) < tolerances.FAST_OUTPUT for a, b in zip(grads, found[0][1], strict=True))


def test_a_workspace_serves_step_after_step() -> None:
    """Nothing of a step is left behind for the next one but the gradient, which is added to."""
    parameters, options = field(LAYOUTS["L8F4"]), MarchOptions(1, 0.0, 4.0, 1e-2)
    first, second = batch(65), batch(33, seed=5)
    used, fresh = (TrainWorkspace(parameters, 2**15, "numba") for _ in range(2))
    step(parameters, first, options, used)
    used.samples_per_ray = fresh.samples_per_ray
    a, b = step(parameters, second, options, used), step(parameters, second, options, fresh)
    assert a[0].loss == b[0].loss and same_bits(a[1], b[1])
    rays, bits, target, background, jitter = second
    fresh.samples_per_ray = 64.0
    train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, fresh)
    assert relative_error(fresh.grad_table, 2 * b[1][0]) < tolerances.FAST_OUTPUT


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_no_rays_to_train(backend: Any) -> None:
    parameters = field(LAYOUTS["L8F4"])
    none = some(batch(3), torch.zeros(0, dtype=torch.int64))
    result, grads = step(parameters, none, MarchOptions(1), TrainWorkspace(parameters, 4096, backend))
    assert (result.n_rays, result.n_kept, result.n_marched) == (0, 0, 0)
    assert result.loss == 0.0 and result.squared_error == 0.0
    assert all(float(g.abs().sum()) == 0.0 for g in grads)


def test_rays_that_miss_change_nothing_for_the_others() -> None:
    parameters, case, options = field(LAYOUTS["L8F4"]), batch(65), MarchOptions(1, 0.0, 4.0, 1e-2)
    hit = case[0].t_max > case[0].t_min
    assert 0 < int(hit.sum()) < 65
    everything, grads = step(parameters, case, options, TrainWorkspace(parameters, 2**15, "numba"))
    alone, alone_grads = step(parameters, some(case, hit), options, TrainWorkspace(parameters, 2**15, "numba"))
    assert everything.n_kept == alone.n_kept
    for a, b in zip(grads, alone_grads, strict=True):
        assert relative_error(a * (65 / int(hit.sum())), b) < tolerances.FAST_OUTPUT


def test_inputs_need_not_be_contiguous() -> None:
    parameters, case, options = field(LAYOUTS["L8F4"]), batch(65), MarchOptions(1, 0.0, 4.0, 1e-2)
    rays, bits, target, background, jitter = case

    def strided(x: Tensor) -> Tensor:
        return x.T.contiguous().T if x.ndim == 2 else torch.stack([x, x], 1)[:, 0]

    odd_rays = Rays(strided(rays.origin), strided(rays.direction), strided(rays.t_min), strided(rays.t_max))
    odd = replace(
        parameters,
        density_weights=tuple(strided(w) for w in parameters.density_weights),
        color_weights=tuple(strided(w) for w in parameters.color_weights),
    )
    a = step(parameters, case, options, TrainWorkspace(parameters, 2**15, "numba"))
    b = step(
        odd,
        (odd_rays, strided(bits), strided(target), strided(background), strided(jitter)),
        options,
        TrainWorkspace(odd, 2**15, "numba"),
    )
    assert a[0].loss == b[0].loss and same_bits(a[1], b[1])


def test_a_table_that_is_not_contiguous_gets_its_gradient() -> None:
    parameters, case, options = field(LAYOUTS["L8F4"]), batch(9), MarchOptions(1, 0.0, 4.0, 1e-2)
    odd = replace(parameters, table=parameters.table.T.contiguous().T)
    a = step(parameters, case, options, TrainWorkspace(parameters, 2**14, "numba"))
    b = step(odd, case, options, TrainWorkspace(odd, 2**14, "numba"))
    assert same_bits(a[1], b[1])

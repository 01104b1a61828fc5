"""Weights and gradients of rays on CPUs beyond `test_ray_gradients`: threads, wide grids, no room, equal bits."""

from dataclasses import replace

import pytest
import torch

from hashfield.kernels.numba_cpu import train_rays as cpu
from hashfield.kernels.numba_cpu.gradients import _add_to_table
from hashfield.ops.backend import why_not
from hashfield.ops.render_rays import MarchOptions
from hashfield.ops.train_rays import TrainWorkspace, train_rays
from tests import tolerances
from tests.ops.compare import relative_error
from tests.ops.fused import LAYOUTS, field, threads
from tests.ops.test_fused_exact import same_bits
from tests.ops.test_ray_gradients import PLAIN, make, run, some, wide

REASON = why_not("train_rays", "numba", torch.zeros(0))
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"numba: {REASON}")


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("layout", ["L8F4", "L16F2"])
def test_agrees_with_float64_on_any_number_of_threads(layout: str, n_threads: int) -> None:
    parameters = field(LAYOUTS[layout], 64)
    given, bits = make(PLAIN, "random", n=33, seed=2)
    more = {"huber": 0.1, "sparsity": 0.05, "distortion": 0.1, "nearness": 0.2}
    with threads(n_threads):
        mine, grads, own = run(parameters, given, bits, PLAIN, "numba", **more)
    exact, exact_grads, right = run(*wide(parameters, given), bits, PLAIN, "reference", **more)
    assert (mine.n_rays, mine.n_kept) == (exact.n_rays, exact.n_kept) and mine.n_rays < given.n_rays
    assert mine.loss == pytest.approx(exact.loss, rel=tolerances.FAST_OUTPUT)
    assert mine.squared_error == pytest.approx(exact.squared_error, rel=tolerances.FAST_OUTPUT)
    for a, b in zip(grads, exact_grads, strict=True):
        assert relative_error(a, b) < tolerances.FUSED_STEP
    assert relative_error(own.color, right.color) < tolerances.FAST_OUTPUT
    assert relative_error(own.grad_color, right.grad_color) < tolerances.FUSED_STEP
    for a, b in ((own.grad_origin, right.grad_origin), (own.grad_direction, right.grad_direction)):
        assert float(b.abs().max()) > 0 and relative_error(a, b) < tolerances.FAST_POSITION_GRADIENT


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_ones_and_asking_change_no_bit(sparsity: float) -> None:
    """Weights of 1 are as no weights, and the field's gradients are the same whether or not the rays' are asked for."""
    parameters = field(LAYOUTS["L8F4"], 64)
    given, bits = make(PLAIN, "ones", n=33)
    asked, grads, own = run(parameters, given, bits, PLAIN, "numba", sparsity=sparsity)
    plain, plain_grads, plain_own = run(
        parameters, replace(given, weight=None), bits, PLAIN, "numba", sparsity=sparsity
    )
    workspace = TrainWorkspace(parameters, 2**13, "numba")
    quiet = train_rays(parameters, replace(given, weight=None), bits, PLAIN, workspace, sparsity=sparsity)
    assert quiet.ray_gradients is None
    quiet_grads = [workspace.grad_table, *quiet.grad_density_weights, *quiet.grad_color_weights]
    assert asked.loss == plain.loss == quiet.loss and asked.squared_error == plain.squared_error == quiet.squared_error
    assert same_bits(grads, plain_grads) and same_bits(grads, quiet_grads) and same_bits([*own], [*plain_own])


def test_rays_of_weight_zero_are_not_looked_at() -> None:
    """Not even their targets, which may be anything; and nothing of them is marched."""
    parameters = field(LAYOUTS["L8F4"], 64)
    given, bits = make(PLAIN, "some", n=33)
    assert given.weight is not None
    without = given.weight == 0
    chosen = given.weight.nonzero()[:, 0]
    target = torch.where(without[:, None], torch.nan, given.target)
    found, grads, own = run(parameters, replace(given, target=target), bits, PLAIN, "numba", sparsity=0.1)
    right, right_grads, theirs = run(parameters, some(given, chosen), bits, PLAIN, "numba", sparsity=0.1)
    assert (found.n_rays, found.n_kept, found.n_marched) == (right.n_rays, right.n_kept, right.n_marched)
    share = len(chosen) / given.n_rays
    for a, b in zip(grads, right_grads, strict=True):
        torch.testing.assert_close(a, share * b, rtol=1e-4, atol=1e-7)
    for a, b in zip(own, theirs, strict=True):
        assert bool((a[without] == 0).all())
        torch.testing.assert_close(a[chosen], b if b is theirs.color else share * b, rtol=1e-4, atol=1e-7)


def test_rays_without_room_get_zeros() -> None:
    """Every ray either has its place in the sums and its gradients, or none of them."""
    parameters = field(LAYOUTS["L5F2"], 32, bias=-4.0)  # fog: nothing is cut
    options = MarchOptions(1, 0.0, 16.0, 1e-4)
    given, bits = make(options, "random", n=24)
    bits = torch.full_like(bits, 255)
    assert given.weight is not None
    with threads(2):
        found, _, own = run(parameters, given, bits, options, "numba", room=256)
    part = (own.color != 0).any(1)
    assert 0 < found.n_rays == int(part.sum()) < int((given.weight > 0).sum())
    assert not bool((part & (given.weight == 0)).any())
    for x in own:
        assert bool((x[~part] == 0).all())


def test_rounded_networks_stay_near() -> None:
    """bfloat16 activations move a ray's gradients by per cents, not by their direction."""
    parameters = field(LAYOUTS["L8F4"], 64)
    given, bits = make(PLAIN, "random", n=65)
    _, _, right = run(parameters, given, bits, PLAIN, "numba")
    rounded = replace(parameters, precision="bfloat16", table_bf16=parameters.table.to(torch.bfloat16))
    if reason := rounded.limit("numba"):
        pytest.skip(reason)
    _, _, own = run(rounded, given, bits, PLAIN, "numba")
    for a, b in zip(own, right, strict=True):
        cosine = torch.nn.functional.cosine_similarity(a.reshape(1, -1), b.reshape(1, -1))
        assert float(cosine) > 0.98 and 0.9 < float(a.norm() / b.norm()) < 1.1


def test_steps_of_one_precision_share_their_kernels() -> None:
    """Gradients of rays, and one thread, need no other kernel; nor do rounded tables to add to their gradients."""
    given, bits = make(PLAIN, "random", n=33)
    kernels = (cpu._train, _add_to_table)
    with threads(2):
        run(field(LAYOUTS["L8F4"], 64), given, bits, PLAIN, "numba")
        run(field(LAYOUTS["L8F4"], 64, bf16=True), given, bits, PLAIN, "numba")
    before = [len(kernel.signatures) for kernel in kernels]
    for bf16 in (False, True):
        for n_threads in (1, 2):
            parameters = field(LAYOUTS["L5F2"], 32, bf16=bf16)
            with threads(n_threads):
                train_rays(parameters, given, bits, PLAIN, TrainWorkspace(parameters, 2**13, "numba"))
    assert before == [len(kernel.signatures) for kernel in kernels]
    encoders = {str(signature[0]) for signature in _add_to_table.signatures}
    assert not any("uint16" in kind for kind in encoders), encoders

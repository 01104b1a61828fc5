"""Weights of rays and the gradients a step returns for each ray: finite differences, float64, and the fast backends."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.rays import RayBatch, Rays
from hashfield.ops.backend import Backend, why_not
from hashfield.ops.composite import composite
from hashfield.ops.march import march
from hashfield.ops.radiance_field import radiance_field
from hashfield.ops.render_rays import FieldParameters, MarchOptions
from hashfield.ops.train_rays import RayGradients, TrainRaysResult, TrainWorkspace, train_rays
from tests import tolerances
from tests.ops.compare import relative_error
from tests.ops.fused import LAYOUTS, batch, field, unfused_twin

PLAIN = MarchOptions(1, 0.0, 16.0, 1e-2)
CASES: dict[str, tuple[str, MarchOptions, float, dict[str, Any]]] = {
    # layout, options, Huber's delta, the field's other arguments
    "plain": ("L5F2", PLAIN, 0.0, {}),
    "huber": ("L5F2", MarchOptions(1, 0.0, 16.0, 1e-4), 0.1, {}),
    "cone": ("L5F2", MarchOptions(4, 1 / 256, 8.0, 1e-2), 0.0, {}),
    "faint": ("L5F2", MarchOptions(1, 0.0, 8.0, 1e-2, 1e-2), 0.0, {}),
    "bf16 table": ("L5F2", PLAIN, 0.0, {"bf16": True}),
}


def make(options: MarchOptions, weights: str | None, n: int = 17, seed: int = 1) -> tuple[RayBatch, Tensor]:
    """A batch of rays, some of which miss, with weights of a kind; and the occupied bits."""
    rays, bits, target, background, jitter = batch(n, options.aabb_scale, seed)
    g = torch.Generator().manual_seed(seed + 100)
    weight = {
        None: None,
        "zeros": torch.zeros(n),
        "ones": torch.ones(n),
        "some": (torch.arange(n) % 3 > 0).float(),
        "random": torch.rand(n, generator=g) * 2 * (torch.arange(n) % 4 > 0),
    }[weights]
    return RayBatch(rays, target, background, jitter, weight), bits


def wide(parameters: FieldParameters, given: RayBatch) -> tuple[FieldParameters, RayBatch]:
    """The same in float64."""
    r = given.rays
    rays = Rays(r.origin.double(), r.direction.double(), r.t_min.double(), r.t_max.double())
    weight = None if given.weight is None else given.weight.double()
    parameters = replace(
        parameters,
        table=parameters.table.double(),
        density_weights=tuple(w.double() for w in parameters.density_weights),
        color_weights=tuple(w.double() for w in parameters.color_weights),
    )
    double = RayBatch(rays, given.target.double(), given.background.double(), given.jitter.double(), weight)
    return parameters, double


def some(given: RayBatch, chosen: Tensor) -> RayBatch:
    """Some rays of a batch, without weights."""
    r = given.rays
    rays = Rays(r.origin[chosen], r.direction[chosen], r.t_min[chosen], r.t_max[chosen])
    return RayBatch(rays, given.target[chosen], given.background[chosen], given.jitter[chosen])


def run(
    parameters: FieldParameters, given: RayBatch, bits: Tensor, options: MarchOptions, backend: Backend | None,
    huber: float = 0.0, sparsity: float = 0.0, distortion: float = 0.0, nearness: float = 0.0,
    room: int = 2**13,
) -> tuple[TrainRaysResult, list[Tensor], RayGradients]:  # fmt: skip
    """A step that returns gradients of its rays: what it found, the field's gradients, the rays'."""
    workspace = TrainWorkspace(parameters, room, backend)
    found = train_rays(
        parameters, given, bits, options, workspace, huber_delta=huber, sparsity=sparsity, distortion=distortion,
        nearness=nearness, ray_gradients=True,
    )  # fmt: skip
    assert found.ray_gradients is not None
    grads = [workspace.grad_table.clone(), *found.grad_density_weights, *found.grad_color_weights]
    return found, grads, found.ray_gradients


def loss_at_fixed_samples(
    parameters: FieldParameters, given: RayBatch, bits: Tensor, options: MarchOptions
) -> tuple[Any, Any]:
    """The loss as a function of origins, directions and an exposure of the colours, put together from small ops.

    Returns:
        The function, of (origin, direction, gain [n, 3] on the colours), and the rays that are smooth there: none of
        their samples is refused, so that no cut moves.
    """
    samples = march(
        given.rays, bits, aabb_scale=options.aabb_scale, cone_angle=options.cone_angle, step_scale=options.step_scale,
        jitter=given.jitter, backend="reference",
    )  # fmt: skip
    ray = samples.ray_index()
    weight = torch.ones_like(given.rays.t_min) if given.weight is None else given.weight

    def loss(origin: Tensor, direction: Tensor, gain: Tensor) -> Tensor:
        position = origin[ray] + samples.t[:, None] * direction[ray]
        unit = (position - (0.5 - 0.5 * options.aabb_scale)) / options.aabb_scale
        seen = radiance_field(
            unit, direction[ray], parameters.table, parameters.density_weights, parameters.color_weights,
            parameters.layout, density_bias=parameters.density_bias, backend="reference",
        )  # fmt: skip
        color = composite(seen.color, seen.density, samples, given.background, backend="reference").color * gain
        alpha = given.target[:, 3:]
        wanted = given.target[:, :3] * alpha + given.background * (1 - alpha)
        return (weight * (color - wanted).square().sum(1)).sum() / given.n_rays

    return loss, samples


@pytest.mark.parametrize("weights", [None, "random"])
@pytest.mark.parametrize("aabb_scale", [1, 2])
def test_reference_agrees_with_finite_differences(aabb_scale: int, weights: str | None) -> None:
    """Samples are held fixed, and nothing is cut: then the loss is a smooth function of each ray's six numbers."""
    options = MarchOptions(aabb_scale, 0.0, 16.0, 0.0)
    given, bits = make(options, weights, n=9)
    parameters, given = wide(field(LAYOUTS["L5F2"], 32, bias=-1.0), given)
    _, _, found = run(parameters, given, bits, options, "reference")
    loss, samples = loss_at_fixed_samples(parameters, given, bits, options)
    assert samples.n_samples > 50
    origin, direction, ones = given.rays.origin, given.rays.direction, torch.ones_like(given.rays.origin)
    step = 1e-7
    for index, mine in enumerate((found.grad_origin, found.grad_direction, found.grad_color)):
        exact = torch.zeros_like(origin)
        for i in range(given.n_rays):
            for axis in range(3):
                sides = []
                for sign in (1, -1):
                    inputs = [origin.clone(), direction.clone(), ones.clone()]
                    inputs[index][i, axis] += sign * step
                    sides.append(loss(*inputs))
                exact[i, axis] = (sides[0] - sides[1]) / (2 * step)
        if index == 2:  # d loss / d gain = d loss / d color * color
            mine = mine * found.color
        takes_part = torch.ones(given.n_rays, dtype=torch.bool) if given.weight is None else given.weight > 0
        assert bool((mine[~takes_part] == 0).all()) and bool((exact[~takes_part].abs() < 1e-9).all())
        # No sample of these rays has a cell's face or a hidden unit at the brink of zero within the step.
        error = (mine - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=1e-12)
        error = error[takes_part & (exact.norm(dim=1) > 0)]
        assert len(error) >= 4 and float(error.max()) < 1e-4, error


WEIGHTS = {
    # For another type of table other kernels are compiled: they are asked for once.
    case: ("random",) if case == "bf16 table" else (None, "zeros", "ones", "some", "random")
    for case in CASES
}


@pytest.mark.parametrize("backend", ["numba", "triton"])
@pytest.mark.parametrize(("case", "weights"), [(case, w) for case, kinds in WEIGHTS.items() for w in kinds])
def test_fast_backends_agree_with_float64(case: str, weights: str | None, backend: Backend) -> None:
    layout, options, huber, more = CASES[case]
    parameters = field(LAYOUTS[layout], 32, **more)
    given, bits = make(options, weights)
    mine, grads, own = run_on(backend, parameters, given, bits, options, huber)
    double, wide_batch = wide(parameters, given)
    exact, exact_grads, right = run(double, wide_batch, bits, options, "reference", huber)
    assert (mine.n_rays, mine.n_kept) == (exact.n_rays, exact.n_kept)
    assert mine.loss == pytest.approx(exact.loss, rel=tolerances.FAST_OUTPUT, abs=1e-12)
    assert mine.squared_error == pytest.approx(exact.squared_error, rel=tolerances.FAST_OUTPUT, abs=1e-12)
    for a, b in zip(grads, exact_grads, strict=True):
        assert relative_error(a.cpu(), b) < tolerances.FUSED_STEP
    assert relative_error(own.color.cpu(), right.color) < tolerances.FAST_OUTPUT
    assert relative_error(own.grad_color.cpu(), right.grad_color) < tolerances.FUSED_STEP
    assert relative_error(own.grad_origin.cpu(), right.grad_origin) < tolerances.FAST_POSITION_GRADIENT
    assert relative_error(own.grad_direction.cpu(), right.grad_direction) < tolerances.FAST_POSITION_GRADIENT
    if given.weight is not None:
        without = given.weight == 0
        assert all(bool((x.cpu()[without] == 0).all()) for x in own)


def run_on(
    backend: Backend, parameters: FieldParameters, given: RayBatch, bits: Tensor, options: MarchOptions, huber: float
) -> tuple[TrainRaysResult, list[Tensor], RayGradients]:
    """`run` on a backend and its device, or a skip with the reason why it cannot."""
    there = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    reason = why_not("train_rays", backend, torch.zeros(0, device=there))
    if reason:
        pytest.skip(f"{backend}: {reason}")
    parameters = replace(
        parameters,
        table=parameters.table.to(there),
        table_bf16=None if parameters.table_bf16 is None else parameters.table_bf16.to(there),
        density_weights=tuple(w.to(there) for w in parameters.density_weights),
        color_weights=tuple(w.to(there) for w in parameters.color_weights),
    )
    return run(parameters, given.to(there), bits.to(there), options, backend, huber)


@pytest.mark.parametrize("unfused", [False, True], ids=["fused", "unfused"])
def test_weight_zero_is_as_if_the_ray_were_not_there(unfused: bool) -> None:
    """But for the number that gradients are divided by, which is that of all rays given."""
    given, bits = make(PLAIN, "some")
    parameters = field(LAYOUTS["L5F2"], 32)
    parameters = unfused_twin(parameters) if unfused else parameters
    backend = None if unfused else "reference"
    assert given.weight is not None
    chosen = given.weight.nonzero()[:, 0]
    found, grads, own = run(parameters, given, bits, PLAIN, backend, sparsity=0.1)
    right, right_grads, theirs = run(parameters, some(given, chosen), bits, PLAIN, backend, sparsity=0.1)
    assert (found.n_rays, found.n_kept, found.n_marched) == (right.n_rays, right.n_kept, right.n_marched)
    assert found.loss == pytest.approx(right.loss, rel=1e-6)
    assert found.squared_error == pytest.approx(right.squared_error, rel=1e-6)
    share = len(chosen) / given.n_rays
    for a, b in zip(grads, right_grads, strict=True):
        torch.testing.assert_close(a, share * b, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(own.color[chosen], theirs.color)
    for a, b in zip(own[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a[chosen], share * b, rtol=1e-4, atol=1e-8)


def test_weights_multiply_loss_error_sparsity_and_distortion() -> None:
    given, bits = make(PLAIN, "ones")
    parameters, double = wide(field(LAYOUTS["L5F2"], 32), given)
    more_losses = {"huber": 0.1, "sparsity": 0.3, "distortion": 0.4, "nearness": 0.2}
    one, grads, own = run(parameters, double, bits, PLAIN, "reference", **more_losses)
    assert double.weight is not None
    thrice = replace(double, weight=3 * double.weight)
    three, more_grads, more = run(parameters, thrice, bits, PLAIN, "reference", **more_losses)
    assert three.loss == pytest.approx(3 * one.loss) and three.squared_error == pytest.approx(3 * one.squared_error)
    assert three.n_rays == one.n_rays
    for a, b in zip([*more_grads, *more[1:]], [*grads, *own[1:]], strict=True):
        torch.testing.assert_close(a, 3 * b)
    torch.testing.assert_close(more.color, own.color)


def test_unfused_field_has_the_same_ray_gradients() -> None:
    for options in (PLAIN, CASES["faint"][1], CASES["cone"][1]):
        given, bits = make(options, "random")
        parameters = field(LAYOUTS["L5F2"], 32)
        _, _, right = run(parameters, given, bits, options, "reference", huber=0.1, sparsity=0.1)
        _, _, found = run(unfused_twin(parameters), given, bits, options, None, huber=0.1, sparsity=0.1)
        assert relative_error(found.color, right.color) < tolerances.FAST_OUTPUT
        for a, b in zip(found[1:], right[1:], strict=True):
            assert relative_error(a, b) < 1e-3  # two float32 computations of positions: hidden units may flip


@pytest.mark.parametrize("backend", ["reference", "numba", "triton"])
def test_nothing_to_see(backend: Backend) -> None:
    """No rays at all, rays that all miss, and rays none of which has room: shapes stand, gradients are zero."""
    parameters, (given, bits) = field(LAYOUTS["L5F2"], 32), make(PLAIN, "random")
    empty = some(given, torch.zeros(0, dtype=torch.int64))
    result, _, own = run_on(backend, parameters, empty, bits, PLAIN, 0.0)
    assert result.n_rays == 0 and all(x.shape == (0, 3) for x in own)
    missing = replace(given, rays=replace(given.rays, t_min=torch.zeros(17), t_max=torch.zeros(17)))
    result, _, own = run_on(backend, parameters, missing, bits, PLAIN, 0.0)
    assert given.weight is not None
    takes_part = (given.weight > 0)[:, None]
    torch.testing.assert_close(own.color.cpu(), given.background * takes_part)
    assert float(own.grad_origin.abs().max()) == 0.0 == float(own.grad_direction.abs().max())
    assert result.n_rays == int(takes_part.sum()) and float(own.grad_color.abs().max()) > 0


@pytest.mark.parametrize("backend", ["reference", "numba", "triton"])
def test_rays_without_room_get_zeros(backend: Backend) -> None:
    parameters = field(LAYOUTS["L5F2"], 32, bias=-4.0)  # fog: nothing is cut
    options = MarchOptions(1, 0.0, 16.0, 1e-4)
    given, bits = make(options, "random", n=24)
    if backend == "numba":
        pytest.skip("numba: threads share the room, so that which rays fit is theirs to say")
    there = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    reason = why_not("train_rays", backend, torch.zeros(0, device=there))
    if reason:
        pytest.skip(f"{backend}: {reason}")
    own = replace(
        parameters,
        table=parameters.table.to(there),
        density_weights=tuple(w.to(there) for w in parameters.density_weights),
        color_weights=tuple(w.to(there) for w in parameters.color_weights),
    )
    bits = torch.full_like(bits, 255)
    found, _, gradients = run(own, given.to(there), bits.to(there), options, backend, room=256)
    assert given.weight is not None
    part = (given.weight > 0).nonzero()[:, 0]
    assert 0 < found.n_rays < len(part)
    dropped = part[found.n_rays :]
    for x in gradients:
        assert bool((x.cpu()[dropped] == 0).all()) and bool((x.cpu()[part[: found.n_rays]] != 0).any())


def test_wrong_weights_are_named() -> None:
    parameters, (given, bits) = field(LAYOUTS["L5F2"], 32), make(PLAIN, "ones")
    assert given.weight is not None
    for wrong, text in (
        (given.weight - 1.5, "at least 0"),
        (given.weight * torch.nan, "finite"),
    ):
        with pytest.raises(ShapeError, match=text):
            run(parameters, replace(given, weight=wrong), bits, PLAIN, "reference")

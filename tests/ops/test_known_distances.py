"""Known distances of rays as a part of the loss: its formula, finite differences, and the fast backends."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.rays import RayBatch
from hashfield.kernels.reference.render_rays import all_densities, lit_samples, shade_rays, small_references
from hashfield.ops.backend import Backend
from hashfield.ops.render_rays import FieldParameters, MarchOptions
from hashfield.ops.train_rays import TrainRaysResult, TrainWorkspace, train_rays
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.compare import relative_error
from tests.ops.fused import LAYOUTS, device_of, field
from tests.ops.test_fused_exact import same_bits
from tests.ops.test_ray_gradients import make, wide

UNCUT = MarchOptions(1, 0.0, 16.0, 0.0)
PLAIN = MarchOptions(1, 0.0, 16.0, 1e-2)
TOLERANCE = 0.05


def knowing(given: RayBatch, seed: int = 5) -> RayBatch:
    """The batch with a distance for two rays in three."""
    g = torch.Generator().manual_seed(seed)
    n, like = given.n_rays, given.rays.t_min
    distance = (0.3 + 2 * torch.rand(n, generator=g)).to(like)
    trust = (torch.rand(n, generator=g) * (torch.arange(n) % 3 > 0)).to(like)
    return replace(given, distance=distance, trust=trust)


def run(
    parameters: FieldParameters, given: RayBatch, bits: Tensor, options: MarchOptions, backend: Backend,
    distortion: float = 0.0, nearness: float = 0.0,
) -> tuple[TrainRaysResult, list[Tensor]]:  # fmt: skip
    """A step, and the field's gradients, on the device of the backend."""
    there = device_of(backend)
    parameters = replace(
        parameters, table=parameters.table.to(there),
        density_weights=tuple(w.to(there) for w in parameters.density_weights),
        color_weights=tuple(w.to(there) for w in parameters.color_weights),
    )  # fmt: skip
    workspace = TrainWorkspace(parameters, 2**13, backend)
    found = train_rays(
        parameters, given.to(there), bits.to(there), options, workspace, distortion=distortion, nearness=nearness,
        tolerance=TOLERANCE,
    )  # fmt: skip
    grads = [workspace.grad_table, *found.grad_density_weights, *found.grad_color_weights]
    return found, [g.cpu() for g in grads]


def test_the_loss_is_what_moving_the_weights_costs() -> None:
    """Against the formula over the samples' weights, ray by ray."""
    given, bits = make(PLAIN, "random")
    parameters, given = wide(field(LAYOUTS["L5F2"], 32), given)
    taught = knowing(given)
    with_it, _ = run(parameters, taught, bits, PLAIN, "reference")
    without, _ = run(parameters, given, bits, PLAIN, "reference")
    functions = small_references(parameters)
    samples = lit_samples(functions, given.rays, bits, PLAIN, given.jitter, all_densities)
    weight = shade_rays(functions, given.rays, samples, given.background, PLAIN).weight
    assert taught.distance is not None and taught.trust is not None and given.weight is not None
    cost = 0.0
    for ray in range(given.n_rays):
        for k in range(int(samples.ray_offsets[ray]), int(samples.ray_offsets[ray + 1])):
            off = abs(torch.log(samples.t[k] / taught.distance[ray])) - TOLERANCE
            cost += float(given.weight[ray] * taught.trust[ray] * weight[k] * max(off, 0.0))
    assert cost > 0.1
    assert (with_it.loss - without.loss) * with_it.n_rays == pytest.approx(cost, rel=1e-9)


def test_reference_agrees_with_finite_differences() -> None:
    """Of the density network's matrices, and of the table along its gradient; nothing is cut, so the loss is smooth."""
    given, bits = make(UNCUT, None, n=9)
    parameters, given = wide(field(LAYOUTS["L5F2"], 32, bias=-1.0), given)
    taught = knowing(given)
    _, grads = run(parameters, taught, bits, UNCUT, "reference")
    _, others = run(parameters, given, bits, UNCUT, "reference")

    def loss(changed: FieldParameters) -> float:
        with_it, _ = run(changed, taught, bits, UNCUT, "reference")
        without, _ = run(changed, given, bits, UNCUT, "reference")
        return (with_it.loss - without.loss) * with_it.n_rays / given.n_rays

    own = [a - b for a, b in zip(grads, others, strict=True)]
    assert float(own[3].abs().max()) < 1e-12, "colours have no part in it"
    for k, values in enumerate((parameters.table, *parameters.density_weights)):
        way = own[k] / own[k].norm()
        sides = []
        for sign in (1, -1):
            moved = values + sign * 1e-6 * way
            weights = list(parameters.density_weights)
            if k:
                weights[k - 1] = moved
            sides.append(
                loss(replace(parameters, table=parameters.table if k else moved, density_weights=tuple(weights)))
            )
        assert float(own[k].norm()) > 1e-4
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(own[k].norm()), rel=1e-4)


@pytest.mark.parametrize(("backend",), backend_params("train_rays", ("numba", "triton")))
@pytest.mark.parametrize("others", [0.0, 0.3])
def test_fast_backends_agree_with_float64(backend: Backend, others: float) -> None:
    parameters = field(LAYOUTS["L8F4"], 64) if backend == "numba" else field(LAYOUTS["L5F2"], 32)
    given, bits = make(PLAIN, None, n=33 if backend == "numba" else 9)
    taught = knowing(given)
    mine, grads = run(parameters, taught, bits, PLAIN, backend, others, others)
    double, wide_batch = wide(parameters, given)
    exact, right = run(double, knowing(wide_batch), bits, PLAIN, "reference", others, others)
    plain, _ = run(double, wide_batch, bits, PLAIN, "reference", others, others)
    assert (mine.n_rays, mine.n_kept) == (exact.n_rays, exact.n_kept) and exact.loss > 1.05 * plain.loss
    assert mine.loss == pytest.approx(exact.loss, rel=tolerances.FAST_OUTPUT)
    assert mine.squared_error == pytest.approx(exact.squared_error, rel=tolerances.FAST_OUTPUT)
    for a, b in zip(grads, right, strict=True):
        assert relative_error(a, b) < tolerances.FUSED_STEP


@pytest.mark.parametrize(("backend",), backend_params("train_rays", ("numba",)))
def test_no_trust_is_no_known_distance(backend: Backend) -> None:
    """To the bit, so that fading to nothing is the step that knows nothing."""
    parameters, (given, bits) = field(LAYOUTS["L8F4"], 64), make(PLAIN, None, n=33)
    nothing = replace(given, distance=torch.ones(33), trust=torch.zeros(33))
    mine, grads = run(parameters, nothing, bits, PLAIN, backend, 0.1, 0.1)
    plain, right = run(parameters, given, bits, PLAIN, backend, 0.1, 0.1)
    assert mine.loss == plain.loss and same_bits(grads, right)


def test_wrong_distances_are_named() -> None:
    parameters, (given, bits) = field(LAYOUTS["L5F2"], 32), make(PLAIN, None)
    taught = knowing(given)
    assert taught.trust is not None and taught.distance is not None
    for wrong, text in (
        (replace(taught, trust=None), "both or none"),
        (replace(taught, trust=taught.trust - 2), "trust: expected finite numbers of at least 0"),
        (replace(taught, distance=0 * taught.distance), "distance: expected finite numbers above 0"),
    ):
        with pytest.raises(ShapeError, match=text):
            run(parameters, wrong, bits, PLAIN, "reference")

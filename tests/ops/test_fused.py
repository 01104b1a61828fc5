"""The fused ops, a whole training step and volume rendering, against the composition of the small references."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from hashfield.errors import BackendError, ShapeError
from hashfield.geometry.rays import RayBatch, Rays
from hashfield.kernels.reference.train_rays import NEAREST, distortion_of
from hashfield.ops.backend import Backend
from hashfield.ops.elementwise_encode import frequency_encode
from hashfield.ops.occupancy_update import refresh_cells
from hashfield.ops.render_rays import FieldParameters, MarchOptions, RenderResult, render_rays
from hashfield.ops.train_rays import TrainWorkspace, train_rays
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.compare import check_close, relative_error
from tests.ops.fused import LAYOUTS, RELU, batch, field, unfused_twin


def test_sparsity_is_seen_by_loss_and_densities():
    parameters = field(LAYOUTS["L8F4"])
    rays, bits, target, background, jitter = batch(65)
    results = []
    for sparsity in (0.0, 0.3):
        workspace = TrainWorkspace(parameters, 2**15)
        results.append(
            train_rays(
                parameters, RayBatch(rays, target, background, jitter), bits, MarchOptions(1, 0.0, 4.0, 1e-2),
                workspace, sparsity=sparsity,
            )
        )  # fmt: skip
    without, with_entropy = results
    # Entropies of some twenty weights and what is left: between 0 and log 21.
    assert 0.05 < (with_entropy.loss - without.loss) / 0.3 < math.log(200)
    assert with_entropy.squared_error == without.squared_error
    assert relative_error(with_entropy.grad_density_weights[0], without.grad_density_weights[0]) > 0.05
    assert torch.equal(with_entropy.grad_color_weights[2], without.grad_color_weights[2])


def test_distortion_is_the_sum_over_pairs_and_draws_weight_together() -> None:
    g = torch.Generator().manual_seed(0)
    counts = torch.tensor([0, 5, 1, 0, 12])
    offsets = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))
    weight = torch.rand(18, generator=g, dtype=torch.float64)
    t = torch.rand(18, generator=g, dtype=torch.float64) * 3
    for first, last in itertools.pairwise(offsets.tolist()):
        t[first:last] = t[first:last].sort().values
    t[0] = 0.0  # nearer than is told apart
    depth = t.clamp(min=NEAREST).log()
    right = [
        sum(float(weight[i] * weight[j] * (depth[i] - depth[j]).abs()) for i in range(a, b) for j in range(a, b))
        for a, b in itertools.pairwise(offsets.tolist())
    ]
    found = distortion_of(weight, t, offsets)
    torch.testing.assert_close(found, torch.tensor(right, dtype=torch.float64))
    assert distortion_of(weight[:0], t[:0], offsets[:1]).shape == (0,)
    assert torch.autograd.gradcheck(lambda w: distortion_of(w, t, offsets), weight.requires_grad_())
    # By the gradient of the last ray's, the sample in the middle of the weight gains most.
    (pull,) = torch.autograd.grad(distortion_of(weight, t, offsets)[4], weight)
    middle = int((weight[6:].cumsum(0) < 0.5 * weight[6:].sum()).sum())
    assert int(pull[6:].argmin()) == middle


@pytest.mark.parametrize("backend", backend_params("render_rays"))
def test_rays_that_miss_see_nothing(backend: Backend):
    rays, bits, _, _, jitter = batch(130)
    missed = rays.t_max <= rays.t_min
    assert 0 < int(missed.sum()) < 130
    seen = render_rays(
        field(LAYOUTS["L5F2"], 32), rays, bits, MarchOptions(1, 0.0, 8.0, 1e-4), jitter=jitter, backend=backend
    )
    for value in seen:
        assert bool((value[missed] == 0).all())
    assert float(seen.opacity[~missed].max()) > 0.5


def test_twice_the_same_bits_and_threads_change_little():
    parameters = field(LAYOUTS["L8F4"], bf16=True)
    rays, bits, target, background, jitter = batch(200)
    options, results = MarchOptions(1, 0.0, 4.0, 1e-2, 4e-3), []
    before = torch.get_num_threads()
    try:
        for threads in (2, 2, 1, 3):
            torch.set_num_threads(threads)
            workspace = TrainWorkspace(parameters, 2**16)
            train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, workspace)
            workspace.grad_table.zero_()
            workspace.samples_per_ray = 64.0
            result = train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, workspace)
            results.append((result, workspace.grad_table))
    finally:
        torch.set_num_threads(before)
    (a, table_a), (b, table_b) = results[:2]
    assert a.loss == b.loss and torch.equal(table_a, table_b)
    assert all(torch.equal(x, y) for x, y in zip(a.grad_color_weights, b.grad_color_weights, strict=True))
    for other, table in results[2:]:
        assert other.n_kept == a.n_kept
        assert relative_error(table, table_a) < tolerances.FAST_OUTPUT


def test_full_buffers_drop_whole_rays():
    """A workspace too small for the batch trains the rays that fit, and only those."""
    parameters = field(LAYOUTS["L8F4"], bias=-4.0)  # thin fog: every ray keeps all of its samples
    rays, _, target, background, jitter = batch(300)
    bits = torch.full((128**3 // 8,), 255, dtype=torch.uint8)
    options = MarchOptions(1, 0.0, 2.0, 1e-4)
    workspace = TrainWorkspace(parameters, 20000)
    result = train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, workspace)
    assert 0 < result.n_rays < 300 and result.n_kept <= 20000
    assert math.isfinite(result.loss) and bool(torch.isfinite(workspace.grad_table).all())


def test_no_rays_and_rays_that_all_miss():
    parameters = field(LAYOUTS["L8F4"])
    rays, bits, target, background, jitter = batch(20)
    options = MarchOptions(1)
    none = Rays(rays.origin[:0], rays.direction[:0], rays.t_min[:0], rays.t_max[:0])
    assert render_rays(parameters, none, bits, options).color.shape == (0, 3)
    miss = Rays(rays.origin, rays.direction, torch.zeros(20), torch.zeros(20))
    workspace = TrainWorkspace(parameters, 4096)
    result = train_rays(parameters, RayBatch(miss, target, background, jitter), bits, options, workspace)
    assert result.n_kept == 0 and bool((workspace.grad_table == 0).all())
    wanted = target[:, :3] * target[:, 3:] + background * (1 - target[:, 3:])
    assert result.loss == pytest.approx(float((background - wanted).square().sum(1).mean()), rel=tolerances.FAST_OUTPUT)


def test_wrong_arguments_are_named():
    parameters = field(LAYOUTS["L8F4"])
    rays, bits, *_ = batch(4)
    with pytest.raises(ShapeError, match="bits"):
        render_rays(parameters, rays, bits[:10], MarchOptions(1))
    with pytest.raises(ShapeError, match=r"color_weights\[2\]"):
        wrong = replace(parameters, color_weights=(*parameters.color_weights[:2], torch.zeros(4, 64)))
        render_rays(wrong, rays, bits, MarchOptions(1))
    endless = replace(rays, t_max=torch.full_like(rays.t_max, torch.inf))
    with pytest.raises(ShapeError, match="t_max"):
        render_rays(parameters, endless, bits, MarchOptions(1))
    with pytest.raises(BackendError, match="neurons"):
        render_rays(field(LAYOUTS["L8F4"], 24), rays, bits, MarchOptions(1), backend="numba")


@pytest.mark.parametrize("options", [MarchOptions(1, 0.0, 4.0, 1e-2), MarchOptions(4, 1 / 256, 4.0, 1e-3)])
@pytest.mark.parametrize("activation", ["exp", "relu"])
def test_unfused_field_is_the_same_function(options: MarchOptions, activation: str):
    more: dict[str, Any] = RELU if activation == "relu" else {}
    parameters = field(LAYOUTS["L8F4"], **more)
    twin = unfused_twin(parameters)
    assert parameters.is_fused and not twin.is_fused
    rays, bits, target, background, jitter = batch(150, options.aabb_scale)
    for mine, theirs in zip(
        render_rays(twin, rays, bits, options, jitter=jitter),
        render_rays(parameters, rays, bits, options, jitter=jitter),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=tolerances.RENDER_ELEMENT, rtol=0)
    results, options = [], replace(options, min_weight=1e-2)
    for one in (twin, parameters):
        workspace = TrainWorkspace(one, 2**16)
        results.append(
            train_rays(
                one,
                RayBatch(rays, target, background, jitter),
                bits,
                options,
                workspace,
                huber_delta=0.1,
                sparsity=0.05,
                distortion=0.1,
                nearness=0.2,
            )
        )
    unfused, fused = results
    assert unfused.n_rays == fused.n_rays
    assert abs(unfused.n_kept - fused.n_kept) <= 3 and 100 < unfused.n_kept < unfused.n_marched
    assert unfused.loss == pytest.approx(fused.loss, rel=tolerances.FAST_OUTPUT)
    assert unfused.squared_error == pytest.approx(fused.squared_error, rel=tolerances.FAST_OUTPUT)
    pairs = zip(
        [*unfused.grad_density_weights, *unfused.grad_color_weights],
        [*fused.grad_density_weights, *fused.grad_color_weights],
        strict=True,
    )
    for mine, theirs in pairs:
        assert relative_error(mine, theirs) < tolerances.FLIPPED_UNIT


def test_unfused_field_trains_its_table_and_rays_that_fit():
    parameters = replace(field(LAYOUTS["L8F4"], bias=-4.0), interpolation="smoothstep")
    assert not parameters.is_fused
    rays, bits, target, background, jitter = batch(300)
    workspace = TrainWorkspace(parameters, 3000)
    options = MarchOptions(1, 0.0, 2.0, 1e-4)
    result = train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, workspace)
    assert 0 < result.n_rays < 300 and 0 < result.n_kept <= 3000 <= result.n_marched
    assert bool((workspace.grad_table != 0).any()) and bool(torch.isfinite(workspace.grad_table).all())
    first = Rays(*(x[: result.n_rays] for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
    workspace = TrainWorkspace(parameters, 3000)
    n = result.n_rays
    fewer = RayBatch(first, target[:n], background[:n], jitter[:n])
    again = train_rays(parameters, fewer, bits, options, workspace)
    assert again.loss == pytest.approx(result.loss, rel=tolerances.FAST_OUTPUT)


def test_deep_networks_behind_any_encoding():
    g = torch.Generator().manual_seed(3)
    widths = [(48, 24), (48, 48), (16, 48)], [(32, 32), (3, 32)]
    density, color = (tuple(torch.randn(s, generator=g) * (2 / s[1]) ** 0.5 for s in shapes) for shapes in widths)
    layout = LAYOUTS["L8F4"]
    parameters = FieldParameters(
        layout, torch.zeros(0, 1), density, color, 1.0, encode=lambda x: frequency_encode(x, n_frequencies=4)
    )
    rays, bits, target, background, jitter = batch(100)
    workspace = TrainWorkspace(parameters, 2**15)
    options = MarchOptions(1, 0.0, 4.0, 1e-2)
    result = train_rays(parameters, RayBatch(rays, target, background, jitter), bits, options, workspace)
    assert [tuple(w.shape) for w in result.grad_density_weights] == widths[0]
    assert [tuple(w.shape) for w in result.grad_color_weights] == widths[1]
    assert all(bool(w.abs().max() > 0) for w in (*result.grad_density_weights, *result.grad_color_weights))
    # A step against the gradient lessens the loss.
    better = replace(
        parameters,
        density_weights=tuple(w - 1e-3 * d for w, d in zip(density, result.grad_density_weights, strict=True)),
        color_weights=tuple(w - 1e-3 * d for w, d in zip(color, result.grad_color_weights, strict=True)),
    )
    after = train_rays(better, RayBatch(rays, target, background, jitter), bits, options, workspace)
    assert after.loss < result.loss
    with pytest.raises(ShapeError, match=r"density_weights\[1\]: expected 48 inputs, got 24"):
        wrong = replace(parameters, density_weights=(density[0], density[0], density[2]))
        render_rays(wrong, rays, bits, options)


@pytest.mark.parametrize("backend", backend_params("occupancy_update", ("numba", "reference")))
@pytest.mark.parametrize("activation", ["exp", "relu"])
def test_cells_of_a_field_are_those_of_its_unfused_twin(activation: str, backend: Backend):
    more: dict[str, Any] = RELU if activation == "relu" else {}
    parameters = field(LAYOUTS["L8F4"], **more)
    g = torch.Generator().manual_seed(5)
    cells = torch.randperm(3 * 128**3, generator=g)[:3000]
    noise = torch.rand(3000, 3, generator=g)
    found = []
    for one, name in ((unfused_twin(parameters), None), (parameters, backend)):
        values = torch.zeros(3 * 128**3)
        refresh_cells(values, cells, noise, one, aabb_scale=4, backend=name)
        found.append(values[cells])
    assert found[0].max() > 1e-3
    check_close("cells", *found, tolerances.FAST_OUTPUT)


# --- colours of few samples


@pytest.mark.parametrize("backend", backend_params("render_rays"))
@pytest.mark.parametrize("case", ["plain", "relu", "cone_odd_bf16", "unfused", "fog"])
def test_passing_over_faint_samples_is_the_references_and_close_to_exact(backend: Backend, case: str):
    """One colour for every hundredth of the light: as the reference passes over, and near to what all samples show."""
    wide = case.startswith("cone")
    options = MarchOptions(4, 1 / 256, 4.0, 1e-2) if wide else MarchOptions(1, 0.0, 2.0, 1e-2)
    parameters = {
        "plain": lambda: field(LAYOUTS["L8F4"]), "relu": lambda: field(LAYOUTS["L8F4"], **RELU),
        "cone_odd_bf16": lambda: field(LAYOUTS["L5F2"], 32, bf16=True),
        "unfused": lambda: unfused_twin(field(LAYOUTS["L8F4"])), "fog": lambda: field(LAYOUTS["L8F4"], bias=-1.0),
    }[case]()  # fmt: skip
    if backend == "triton" and case in ("relu", "unfused"):
        pytest.skip("the GPU backend takes no such field")
    rays, bits, _, _, jitter = batch(131 if backend != "triton" else 21, options.aabb_scale)

    def seen(some: MarchOptions, name: Backend) -> RenderResult:
        return render_rays(parameters, rays, bits, some, jitter=jitter, backend=name)

    few = replace(options, min_weight=1e-2)
    found = seen(few, backend)
    exact = seen(replace(options, min_transmittance=1e-5), "reference")
    missed = rays.t_max <= rays.t_min
    assert all(bool((x[missed] == 0).all() and torch.isfinite(x).all()) for x in found)
    # What is passed over at a ray's end without any colour before it is less than a hundredth; so is what a cut hides.
    assert float((found.opacity - exact.opacity).abs().max()) <= 1e-2 + tolerances.RENDER_ELEMENT
    # Colours of neighbouring samples of a random field are as different as can be: far more than those of a scene.
    assert float((found.color - exact.color).abs().max()) < 0.06
    assert relative_error(found.color, exact.color) < 0.02
    if backend != "triton":
        same = seen(few, "reference")
        differs = torch.stack([(a - b).abs().reshape(len(a), -1).amax(1) for a, b in zip(found, same, strict=True)])
        # A sum within a rounding of the bound may fall on either side of it: another sample then stands for the group.
        assert float((differs.amax(0) > 10 * tolerances.RENDER_ELEMENT).float().mean()) < 0.05
        if case == "fog":
            assert float((seen(few, backend).color - seen(options, backend).color).abs().max()) > 1e-4  # it does save


def test_passing_over_takes_no_rays_and_no_cells():
    parameters = field(LAYOUTS["L8F4"])
    rays, bits, _, _, jitter = batch(65)
    few = MarchOptions(1, 0.0, 4.0, 1e-2, 1e-2)
    none = Rays(rays.origin[:0], rays.direction[:0], rays.t_min[:0], rays.t_max[:0])
    assert render_rays(parameters, none, bits, few).color.shape == (0, 3)
    for backend in ("numba", "reference"):
        seen = render_rays(parameters, rays, torch.zeros_like(bits), few, jitter=jitter, backend=backend)
        assert all(bool((x == 0).all()) for x in seen)


def test_rays_do_not_see_which_others_are_rendered_with_them():
    """How many samples a wave takes of a ray depends on that ray alone, and changes nothing of what it sees."""
    parameters = field(LAYOUTS["L8F4"], bias=-1.0)
    rays, bits, _, _, jitter = batch(300)
    for options in (MarchOptions(1, 0.0, 2.0, 1e-4), MarchOptions(1, 0.0, 2.0, 1e-2, 4e-3)):
        whole = render_rays(parameters, rays, bits, options, jitter=jitter, backend="numba")
        chosen = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:77]
        some = Rays(*(x[chosen] for x in (rays.origin, rays.direction, rays.t_min, rays.t_max)))
        part = render_rays(parameters, some, bits, options, jitter=jitter[chosen], backend="numba")
        for a, b in zip(part, whole, strict=True):
            assert torch.allclose(a, b[chosen], atol=1e-6, rtol=0)

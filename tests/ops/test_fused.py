"""The fused ops, a whole training step and volume rendering, against the composition of the small references."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from hashfield.errors import BackendError, ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import RayBatch, Rays
from hashfield.ops.elementwise_encode import frequency_encode
from hashfield.ops.grid_encode import grid_encode
from hashfield.ops.occupancy_update import refresh_cells
from hashfield.ops.ray_box import ray_box
from hashfield.ops.render_rays import FieldParameters, MarchOptions, render_rays
from hashfield.ops.train_rays import TrainWorkspace, train_rays

LAYOUTS = {
    "L8F4": GridLayout(n_levels=8, n_features_per_level=4, log2_hashmap_size=10, per_level_scale=1.5),
    "L16F2": GridLayout(n_levels=16, n_features_per_level=2, log2_hashmap_size=9, per_level_scale=1.3),
    "L5F2": GridLayout(n_levels=5, n_features_per_level=2, log2_hashmap_size=10, per_level_scale=1.6),
}


def field(
    layout: GridLayout, width: int = 64, bias: float = 1.0, bf16: bool = False, seed: int = 0, activation: Any = "exp"
) -> FieldParameters:
    """A random field whose density varies enough that some rays are cut and others are not."""
    g = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.rand(rows, columns, generator=g) * 2 - 1) * math.sqrt(6 / (rows + columns))

    table = torch.rand(layout.n_entries, layout.n_features_per_level, generator=g) * 2 - 1
    return FieldParameters(
        layout=layout,
        table=table,
        density_weights=(matrix(width, layout.n_output), matrix(16, width)),
        color_weights=(matrix(width, 32), matrix(width, width), matrix(3, width)),
        density_bias=bias,
        table_bf16=table.to(torch.bfloat16) if bf16 else None,
        density_activation=activation,
    )


def batch(n: int, aabb_scale: int = 1, seed: int = 1):
    """Rays through the box, some of which miss it; bits; targets; backgrounds; jitter."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    origin = 0.5 - 0.6 * aabb_scale * direction + 0.2 * torch.randn(n, 3, generator=g)
    half = aabb_scale / 2
    t_min, t_max = ray_box(origin, direction, torch.full((3,), 0.5 - half), torch.full((3,), 0.5 + half))
    n_bytes = aabb_scale.bit_length() * 128**3 // 8
    bits = torch.randint(0, 256, (n_bytes,), generator=g).to(torch.uint8)
    bits &= torch.randint(0, 256, (n_bytes,), generator=g).to(torch.uint8)
    rays = Rays(origin, direction, t_min, t_max)
    target, background = torch.rand(n, 4, generator=g), torch.rand(n, 3, generator=g)
    return rays, bits, target, background, torch.rand(n, generator=g)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """RMS(a - b) / RMS(b)."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


CASES = {
    "plain": ("L8F4", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2), 0.0, False),
    "bf16 table": ("L8F4", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2), 0.0, True),
    "L16F2": ("L16F2", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2), 0.0, False),
    "odd features": ("L5F2", 32, 1, MarchOptions(1, 0.0, 8.0, 1e-2), 0.0, False),
    "cascades and cone": ("L8F4", 64, 4, MarchOptions(4, 1 / 256, 4.0, 1e-2), 0.0, False),
    "huber": ("L8F4", 64, 1, MarchOptions(1, 0.0, 8.0, 1e-4), 0.1, False),
    "faint samples": ("L8F4", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2, 1e-2), 0.0, False),
    "relu": ("L16F2", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2), 0.0, False),
    "relu, faint samples": ("L8F4", 64, 4, MarchOptions(4, 1 / 256, 4.0, 1e-2, 1e-2), 0.0, True),
    "sparsity": ("L8F4", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2), 0.0, False),
    "sparsity, relu, faint samples": ("L8F4", 64, 1, MarchOptions(1, 0.0, 4.0, 1e-2, 1e-2), 0.1, False),
}
RELU = {"activation": "relu", "bias": 8.0}
MORE = {"relu": RELU, "relu, faint samples": RELU, "sparsity, relu, faint samples": RELU}
SPARSITY = {"sparsity": 0.3, "sparsity, relu, faint samples": 0.5}


@pytest.mark.parametrize("case", list(CASES))
def test_training_step_agrees_with_reference(case: str):
    name, width, aabb_scale, options, huber, bf16 = CASES[case]
    parameters = field(LAYOUTS[name], width, bf16=bf16, **MORE.get(case, {}))
    sparsity = SPARSITY.get(case, 0.0)
    rays, bits, target, background, jitter = batch(65, aabb_scale)
    found = {}
    for backend in ("numba", "reference"):
        workspace = TrainWorkspace(parameters, 2**15, backend=backend)
        result = train_rays(
            parameters, RayBatch(rays, target, background, jitter), bits, options, workspace, huber_delta=huber,
            sparsity=sparsity,
        )  # fmt: skip
        found[backend] = (result, workspace.grad_table)
    (fast, fast_table), (slow, slow_table) = found["numba"], found["reference"]
    assert fast.n_rays == slow.n_rays == 65
    # a sample at the edge of being cut or of being faint may fall on either side
    assert abs(fast.n_kept - slow.n_kept) <= 3 and fast.n_kept > 100
    assert fast.loss == pytest.approx(slow.loss, rel=1e-4)
    assert fast.squared_error == pytest.approx(slow.squared_error, rel=1e-4)
    # Hidden units near zero flip between the two sides, which float32 references do among themselves too (1e-3 to
    # 7e-3 seen; 6e-6 where none flips). `test_fused_exact.py` compares with the float64 reference, much closer.
    assert relative(fast_table, slow_table) < 1e-2
    pairs = zip(
        [*fast.grad_density_weights, *fast.grad_color_weights],
        [*slow.grad_density_weights, *slow.grad_color_weights],
        strict=True,
    )
    for mine, theirs in pairs:
        assert mine.shape == theirs.shape
        assert relative(mine, theirs) < 1e-2
    assert bool(((fast_table != 0).any(1) == (slow_table != 0).any(1)).float().mean() > 0.99)


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
    assert relative(with_entropy.grad_density_weights[0], without.grad_density_weights[0]) > 0.05
    assert torch.equal(with_entropy.grad_color_weights[2], without.grad_color_weights[2])


@pytest.mark.parametrize("aabb_scale", [1, 4])
@pytest.mark.parametrize("name", [*LAYOUTS, "relu"])
def test_rendering_agrees_with_reference(name: str, aabb_scale: int):
    parameters = field(LAYOUTS["L8F4"], **RELU) if name == "relu" else field(LAYOUTS[name])
    rays, bits, _, _, jitter = batch(130, aabb_scale)
    options = MarchOptions(aabb_scale, 0.0 if aabb_scale == 1 else 1 / 256, 2.0, 1e-4)
    fast, slow = (
        render_rays(parameters, rays, bits, options, jitter=jitter, backend=b) for b in ("numba", "reference")
    )
    for mine, theirs in zip(fast, slow, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-3, rtol=1e-3)
    missed = rays.t_max <= rays.t_min
    assert aabb_scale > 1 or bool(missed.any())
    assert bool((fast.opacity[missed] == 0).all())


def test_a_planted_fault_is_found():
    """The comparison is worth something: a wrong bias, step or weight does not pass it."""
    parameters = field(LAYOUTS["L8F4"])
    rays, bits, _, _, jitter = batch(130)
    options = MarchOptions(1, 0.0, 2.0, 1e-4)
    right = render_rays(parameters, rays, bits, options, jitter=jitter, backend="reference")
    worse = [
        (replace(parameters, density_bias=1.1), options),
        (parameters, replace(options, step_scale=2.2)),
        (
            replace(parameters, color_weights=(*parameters.color_weights[:2], parameters.color_weights[2].flip(0))),
            options,
        ),
    ]
    for wrong, how in worse:
        found = render_rays(wrong, rays, bits, how, jitter=jitter, backend="numba")
        assert not torch.allclose(found.color, right.color, atol=2e-3, rtol=1e-3)


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
        assert relative(table, table_a) < 1e-5


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
    assert result.loss == pytest.approx(float((background - wanted).square().sum(1).mean()), rel=1e-5)


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


def unfused_twin(parameters: FieldParameters) -> FieldParameters:
    """The same field in a form that the fused kernels do not take: its grid as an encoding of its own."""

    def encode(positions: torch.Tensor) -> torch.Tensor:
        return grid_encode(positions, parameters.table, parameters.layout)

    return replace(parameters, encode=encode)


@pytest.mark.parametrize("options", [MarchOptions(1, 0.0, 4.0, 1e-2), MarchOptions(4, 1 / 256, 4.0, 1e-3)])
@pytest.mark.parametrize("activation", ["exp", "relu"])
def test_unfused_field_is_the_same_function(options: MarchOptions, activation: str):
    more: dict[str, Any] = RELU if activation == "relu" else {}
    parameters = field(LAYOUTS["L8F4"], **more)
    twin = unfused_twin(parameters)
    assert parameters.is_fused and not twin.is_fused
    rays, bits, target, background, jitter = batch(150, options.aabb_scale)
    options = replace(options, min_weight=1e-2)
    for mine, theirs in zip(
        render_rays(twin, rays, bits, options, jitter=jitter),
        render_rays(parameters, rays, bits, options, jitter=jitter),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=2e-3, rtol=1e-3)
    results = []
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
            )
        )
    unfused, fused = results
    assert unfused.n_rays == fused.n_rays
    assert abs(unfused.n_kept - fused.n_kept) <= 3 and 100 < unfused.n_kept < unfused.n_marched
    assert unfused.loss == pytest.approx(fused.loss, rel=1e-4)
    assert unfused.squared_error == pytest.approx(fused.squared_error, rel=1e-4)
    pairs = zip(
        [*unfused.grad_density_weights, *unfused.grad_color_weights],
        [*fused.grad_density_weights, *fused.grad_color_weights],
        strict=True,
    )
    for mine, theirs in pairs:
        assert relative(mine, theirs) < 1e-2


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
    assert again.loss == pytest.approx(result.loss, rel=1e-5)


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


@pytest.mark.parametrize("activation", ["exp", "relu"])
def test_cells_of_an_unfused_field_are_those_of_its_twin(activation: str):
    more: dict[str, Any] = RELU if activation == "relu" else {}
    parameters = field(LAYOUTS["L8F4"], **more)
    g = torch.Generator().manual_seed(5)
    cells = torch.randperm(3 * 128**3, generator=g)[:3000]
    noise = torch.rand(3000, 3, generator=g)
    found = []
    for one, backend in ((unfused_twin(parameters), None), (parameters, "numba"), (parameters, "reference")):
        values = torch.zeros(3 * 128**3)
        refresh_cells(values, cells, noise, one, aabb_scale=4, backend=backend)
        found.append(values)
    assert found[0].max() > 1e-3
    assert torch.allclose(found[0], found[2], rtol=1e-3, atol=1e-5)
    assert torch.allclose(found[1], found[2], rtol=1e-3, atol=1e-5)

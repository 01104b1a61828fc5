"""The fused radiance field of the Triton kernels, against the reference: on a GPU or in the interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference.radiance_field import radiance_field
from tests import tolerances
from tests.ops.cases import not_numbers, outside, uniform, unit_vectors
from tests.ops.compare import check_close, check_rows, relative_error

pytestmark = pytest.mark.triton

F4 = GridLayout(n_levels=8, n_features_per_level=4, log2_hashmap_size=9, base_resolution=4, per_level_scale=1.5)
F2 = GridLayout(n_levels=16, n_features_per_level=2, log2_hashmap_size=8, base_resolution=3, per_level_scale=1.3)
FEW = GridLayout(n_levels=5, n_features_per_level=2, log2_hashmap_size=8, base_resolution=4, per_level_scale=1.6)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Worst relative error per compute type: outputs, gradients. Layer inputs and cotangents are rounded to 2^-11 or 2^-8;
# measured at most 1.1e-3 and 1.3e-2 (float16), 9e-3 and 7e-2 (bfloat16, where ReLU of a rounded zero flips).
BOUNDS = {torch.float16: (4e-3, 4e-2), torch.bfloat16: (3e-2, 0.2)}


class Problem:
    """A field with random numbers, n live samples in buffers that hold more, and cotangents."""

    def __init__(
        self, layout: GridLayout, n: int, dtype: torch.dtype, *, width: int = 64, color_width: int = 64,
        positions: Any = None, interpolation: str = "linear",
    ) -> None:  # fmt: skip
        from hashfield.kernels.triton_gpu.common import count_of
        from hashfield.kernels.triton_gpu.field import DeviceField
        from hashfield.kernels.triton_gpu.mlp import flat

        generator = torch.Generator().manual_seed(5)
        self.n, self.capacity, self.layout = n, n + 37, layout
        table = uniform(generator, layout.n_entries, layout.n_features_per_level, low=-1.0).to(dtype)
        shapes = DeviceField(layout, table, table, width, color_width).shapes()
        # Rounded beforehand, so that the reference sees the numbers that the kernels see.
        self.matrices = [
            (uniform(generator, *s, low=-1.0) * (6 / sum(s)) ** 0.5).to(dtype).float().to(DEVICE) for s in shapes
        ]
        self.table = table.to(DEVICE)
        self.field = DeviceField(layout, self.table, flat(self.matrices, dtype), width, color_width, 0.5, interpolation)
        x = positions(generator, self.capacity, layout) if positions else uniform(generator, self.capacity, 3)
        self.positions = x.to(DEVICE)
        self.directions = unit_vectors(generator, self.capacity).to(DEVICE)
        self.grad_log_density = torch.randn(self.capacity, generator=generator).to(DEVICE)
        self.grad_rgb = torch.randn(self.capacity, 3, generator=generator).to(DEVICE)
        # What lies beyond the live samples must not be read.
        for buffer in (self.positions, self.directions, self.grad_log_density, self.grad_rgb):
            buffer[n:] = torch.nan
        self.n_live = count_of(n, DEVICE)

    def forward(self, **options: Any) -> tuple[Tensor, Tensor]:
        from hashfield.kernels.triton_gpu.field import field_forward

        log_density = torch.full((self.capacity,), 7.0, device=DEVICE)
        rgb = torch.full((self.capacity, 3), 7.0, device=DEVICE)
        field_forward(self.field, self.positions, self.directions, self.n_live, log_density, rgb, **options)
        assert bool((log_density[self.n :] == 7.0).all() and (rgb[self.n :] == 7.0).all()), "dead samples were written"
        return log_density[: self.n], rgb[: self.n]

    def backward(self, table_dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Tensor, list[Tensor]]:
        from hashfield.kernels.triton_gpu.field import field_backward
        from hashfield.kernels.triton_gpu.mlp import unflat

        # Gradients are added to what is there.
        grad_table = torch.ones(self.table.shape, dtype=table_dtype, device=DEVICE)
        grad_weights = torch.ones(self.field.n_weights, device=DEVICE)
        field_backward(
            self.field, self.positions, self.directions, self.n_live, self.grad_log_density, self.grad_rgb, grad_table,
            grad_weights, **options,
        )  # fmt: skip
        return grad_table.float() - 1, [g - 1 for g in unflat(grad_weights, self.matrices)]

    def reference(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Log-density, colour, and the gradients to the table and the matrices."""
        n = self.n
        table = self.table.detach().to(dtype).requires_grad_()
        matrices = [m.detach().to(dtype).requires_grad_() for m in self.matrices]
        color, density = radiance_field(
            self.positions[:n].to(dtype), self.directions[:n].to(dtype), table, matrices[:2], matrices[2:], self.layout,
            self.field.density_bias, interpolation=self.field.interpolation,
        )  # fmt: skip
        log_density = density.log()
        scalar = (log_density * self.grad_log_density[:n]).sum() + (color * self.grad_rgb[:n]).sum()
        grads = torch.autograd.grad(scalar, [table, *matrices])
        return log_density.detach(), color.detach(), [g.float() for g in grads]


def check_exact(problem: Problem, **options: Any) -> None:
    expected_log_density, expected_color, expected = problem.reference(torch.float32)
    features = torch.zeros(problem.capacity, problem.layout.n_output, device=DEVICE)
    for in_place in (True, False):
        log_density, rgb = problem.forward(features=features, encode_in_place=in_place)
        check_close("log-density", log_density, expected_log_density, tolerances.FAST_OUTPUT)
        check_close("colour", rgb, expected_color, tolerances.FAST_OUTPUT)
    for kept in (features, None):
        grad_table, grad_matrices = problem.backward(features=kept, **options)
        for name, actual, wanted in zip("t01234", [grad_table, *grad_matrices], expected, strict=True):
            # The ones that the gradients were added to cost their last digits.
            check_close(f"gradient {name}", actual, wanted, 10 * tolerances.FAST_OUTPUT)
            check_rows(f"gradient {name}", actual, wanted)


@pytest.mark.parametrize("n", [1, 64, 65, 130])
def test_float32_agrees_with_the_reference(n: int) -> None:
    check_exact(Problem(F4, n, torch.float32))


@pytest.mark.parametrize(("layout", "width", "color_width"), [(F2, 32, 16), (FEW, 48, 64), (F4, 128, 32)])
def test_other_sizes_agree_with_the_reference(layout: GridLayout, width: int, color_width: int) -> None:
    check_exact(Problem(layout, 100, torch.float32, width=width, color_width=color_width))


@pytest.mark.parametrize("positions", [outside, not_numbers])
def test_positions_outside_the_cube_agree_with_the_reference(positions: Any) -> None:
    check_exact(Problem(F4, 100, torch.float32, positions=positions))


def test_smoothstep_agrees_with_the_reference() -> None:
    check_exact(Problem(F4, 100, torch.float32, interpolation="smoothstep"))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("layout", [F4, F2], ids=["f4", "f2"])
def test_half_precision_stays_near_float64(layout: GridLayout, dtype: torch.dtype) -> None:
    problem = Problem(layout, 300, dtype)
    expected_log_density, expected_color, expected = problem.reference(torch.float64)
    for_outputs, for_gradients = BOUNDS[dtype]
    log_density, rgb = problem.forward(encode_in_place=True)
    assert relative_error(log_density, expected_log_density) <= for_outputs
    assert relative_error(rgb, expected_color) <= for_outputs
    grad_table, grad_matrices = problem.backward()
    for actual, wanted in zip([grad_table, *grad_matrices], expected, strict=True):
        assert relative_error(actual, wanted) <= for_gradients


def test_half_precision_gradients_of_the_table() -> None:
    # Sums of float16 lose digits where many samples meet, but none of them.
    problem = Problem(F4, 100, torch.float16)
    _, _, expected = problem.reference(torch.float64)
    grad_table, _ = problem.backward(torch.float16)
    assert relative_error(grad_table, expected[0]) <= 0.05


def test_no_live_samples() -> None:
    problem = Problem(F4, 0, torch.float32)
    problem.forward(encode_in_place=True)
    grad_table, grad_matrices = problem.backward()
    assert all(bool((g == 0).all()) for g in (grad_table, *grad_matrices))


def test_density_alone_is_that_of_the_field() -> None:
    from hashfield.kernels.triton_gpu.field import field_density

    problem = Problem(F4, 65, torch.float16)
    alone = torch.full((problem.capacity,), 7.0, device=DEVICE)
    field_density(problem.field, problem.positions, problem.n_live, alone)
    assert torch.equal(alone[:65], problem.forward(encode_in_place=False)[0])
    assert bool((alone[65:] == 7.0).all())


def test_a_wrong_hash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The comparison above can fail: one factor of the spatial hash changed.
    from hashfield.kernels.triton_gpu import field, grid_encode

    right = grid_encode.levels_of

    def wrong(layout: GridLayout) -> tuple[float | int, ...]:
        return tuple(2654435763 if value == 2654435761 else value for value in right(layout))

    for module in (field, grid_encode):
        monkeypatch.setattr(module, "levels_of", wrong)
    with pytest.raises(AssertionError, match="relative error"):
        check_exact(Problem(F4, 65, torch.float32))


def test_encoding_and_network_are_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the two small ops one after the other, which would agree as well.
    from hashfield import ops
    from hashfield.kernels.triton_gpu import mlp

    monkeypatch.setattr(mlp, "mlp_forward", None)
    table = torch.zeros(F4.n_entries, 4, device=DEVICE)
    weights = [torch.ones(16, 32, device=DEVICE), torch.ones(1, 16, device=DEVICE)]
    out = ops.encoded_mlp(torch.zeros(3, 3, device=DEVICE), table, weights, F4, backend="triton")
    assert torch.equal(out, torch.zeros(3, 1, device=DEVICE))
    with pytest.raises(TypeError, match="not callable"):
        ops.mlp(torch.zeros(3, 32, device=DEVICE), weights, backend="triton")


@pytest.mark.parametrize("op", ["mlp", "encoded_mlp"])
def test_networks_in_bfloat16_are_as_near_as_the_reference(op: str) -> None:
    from hashfield import ops

    generator = torch.Generator().manual_seed(3)
    table = uniform(generator, F4.n_entries, 4, low=-1.0)
    positions = uniform(generator, 130, 3)
    weights = [uniform(generator, a, b, low=-1.0) * (6 / (a + b)) ** 0.5 for a, b in ((64, 32), (64, 64), (3, 64))]
    x = uniform(generator, 130, 32, low=-1.0)
    results = {}
    for name, backend, dtype, precision in (
        ("exact", "reference", torch.float64, "float32"),
        ("reference", "reference", torch.float32, "bfloat16"),
        ("triton", "triton", torch.float32, "bfloat16"),
    ):
        leaves = [t.to(DEVICE, dtype).requires_grad_() for t in (table, x, *weights)]
        options: dict[str, Any] = {"output_activation": "sigmoid", "precision": precision, "backend": backend}
        if op == "mlp":
            out = ops.mlp(leaves[1], leaves[2:], **options)
        else:
            out = ops.encoded_mlp(positions.to(DEVICE, dtype), leaves[0], leaves[2:], F4, **options)
        first = leaves[1] if op == "mlp" else leaves[0]
        results[name] = [out.detach(), *torch.autograd.grad(out.square().sum(), [first, *leaves[2:]])]
    for actual, reference, exact in zip(results["triton"], results["reference"], results["exact"], strict=True):
        allowed = relative_error(reference, exact)
        assert relative_error(actual, exact) <= 3 * allowed, "further from the truth than rounding explains"

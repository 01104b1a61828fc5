"""Gradients of gradients through the fast backends, against the float64 reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend
from tests.ops.compare import relative_error

BOUND = 3e-4
"""float32 against float64: second derivatives of a grid grow with the square of its resolution, and so do the
roundings of positions within a cell (measured at most 6e-5)."""

LAYOUTS = {
    "3d": GridLayout(3, 3, 2, 9, 4, 1.7),
    "2d": GridLayout(2, 3, 4, 6, 4, 1.7),
    "3d-tiled": GridLayout(3, 2, 1, 9, 4, 1.7, "Tiled"),
    "2d-dense": GridLayout(2, 2, 8, 9, 4, 1.7, "Dense"),
}


def inputs(layout: GridLayout, generator: torch.Generator, n: int = 65) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, some of them outside the unit box, a table and a cotangent of features."""
    x = torch.rand(n, layout.n_dims, generator=generator) * 1.4 - 0.2
    table = torch.randn(layout.n_entries, layout.n_features_per_level, generator=generator)
    return x, table, torch.randn(n, layout.n_output, generator=generator)


def eikonal(x: Tensor, table: Tensor, u: Tensor, layout: GridLayout, **options: Any) -> tuple[Tensor, ...]:
    """Gradients of an eikonal term and of the features to positions, table and cotangent."""
    x, table, u = (v.detach().clone().requires_grad_() for v in (x, table, u))
    features = ops.grid_encode(x, table, layout, **options)
    (gradient,) = torch.autograd.grad(features, x, u, create_graph=True)
    loss = (gradient.norm(dim=1) - 1).square().sum() + (features * u.detach()).sin().sum()
    return torch.autograd.grad(loss, (x, table, u))


@pytest.mark.op("grid_encode")
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_eikonal_term_of_a_grid(
    name: str, interpolation: ops.Interpolation, backend: Backend, generator: torch.Generator
) -> None:
    layout = LAYOUTS[name]
    values = inputs(layout, generator)
    exact = eikonal(*(v.double() for v in values), layout, interpolation=interpolation, backend="reference")
    found = eikonal(*values, layout, interpolation=interpolation, backend=backend)
    for a, b in zip(found, exact, strict=True):
        assert relative_error(a, b) < BOUND


@pytest.mark.op("grid_encode")
def test_gradient_of_the_tables_gradient(backend: Backend, generator: torch.Generator) -> None:
    # Upstream drops it. The table's gradient is linear in the cotangent and depends on positions too.
    layout = LAYOUTS["3d"]
    x, table, u = inputs(layout, generator)
    weight = torch.randn(table.shape, generator=generator)

    def gradients(dtype: torch.dtype, backend: Backend) -> tuple[Tensor, ...]:
        own_x, own_table, own_u = (v.to(dtype).requires_grad_() for v in (x, table, u))
        features = ops.grid_encode(own_x, own_table, layout, interpolation="smoothstep", backend=backend)
        (gradient,) = torch.autograd.grad(features, own_table, own_u, create_graph=True)
        return torch.autograd.grad((gradient * weight.to(dtype)).sum(), (own_x, own_u))

    for a, b in zip(gradients(torch.float32, backend), gradients(torch.float64, "reference"), strict=True):
        assert relative_error(a, b) < BOUND


@pytest.mark.op("grid_encode")
def test_third_derivative(backend: Backend, generator: torch.Generator) -> None:
    layout = LAYOUTS["2d"]
    x, table, u = inputs(layout, generator, 9)

    def gradients(dtype: torch.dtype, backend: Backend) -> tuple[Tensor, ...]:
        own_x, own_table = x.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()
        out = (ops.grid_encode(own_x, own_table, layout, interpolation="smoothstep", backend=backend) * u).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(out, own_x, create_graph=True)
            out = gradient.square().sum()
        return torch.autograd.grad(out, (own_x, own_table))

    for a, b in zip(gradients(torch.float32, backend), gradients(torch.float64, "reference"), strict=True):
        assert relative_error(a, b) < 10 * BOUND


@pytest.mark.op("grid_encode")
def test_a_table_that_depends_on_the_positions(backend: Backend, generator: torch.Generator) -> None:
    # Each input's gradient is its direct share alone, also where one is a function of the other.
    layout = LAYOUTS["2d"]
    x, table, u = inputs(layout, generator, 5)

    def gradient(dtype: torch.dtype, backend: Backend) -> Tensor:
        own = x.to(dtype).requires_grad_()
        features = ops.grid_encode(own, table.to(dtype) * own.mean(), layout, backend=backend)
        (first,) = torch.autograd.grad((features * u.to(dtype)).sum(), own, create_graph=True)
        return torch.autograd.grad(first.square().sum(), own)[0]

    assert relative_error(gradient(torch.float32, backend), gradient(torch.float64, "reference")) < BOUND


@pytest.mark.op("mlp")
@pytest.mark.parametrize("output_activation", ["none", "sigmoid", "exp"])
def test_second_derivatives_of_a_network(
    output_activation: ops.Activation, backend: Backend, generator: torch.Generator
) -> None:
    x = torch.randn(33, 5, generator=generator)
    weights = [torch.randn(s, generator=generator) / 3 for s in ((16, 5), (16, 16), (3, 16))]

    def gradients(dtype: torch.dtype, backend: Backend) -> tuple[Tensor, ...]:
        own = [v.detach().to(dtype).requires_grad_() for v in (x, *weights)]
        out = ops.mlp(own[0], own[1:], output_activation=output_activation, backend=backend)
        (gradient,) = torch.autograd.grad(out.square().sum(), own[0], create_graph=True)
        return torch.autograd.grad((gradient.norm(dim=1) - 1).square().sum(), own)

    for a, b in zip(gradients(torch.float32, backend), gradients(torch.float64, "reference"), strict=True):
        assert relative_error(a, b) < BOUND


@pytest.mark.op("grid_encode")
def test_second_derivatives_of_a_grid_with_a_network(backend: Backend, generator: torch.Generator) -> None:
    layout = LAYOUTS["3d"]
    x, table, _ = inputs(layout, generator)
    weights = [torch.randn(s, generator=generator) / 3 for s in ((16, 6), (1, 16))]

    def gradients(dtype: torch.dtype, backend: Backend) -> tuple[Tensor, ...]:
        own = [v.detach().to(dtype).requires_grad_() for v in (x, table, *weights)]
        out = ops.encoded_mlp(own[0], own[1], own[2:], layout, interpolation="smoothstep", backend=backend)
        (gradient,) = torch.autograd.grad(out.sum(), own[0], create_graph=True)
        return torch.autograd.grad((gradient.norm(dim=1) - 1).square().sum() + out.square().sum(), own)

    for a, b in zip(gradients(torch.float32, backend), gradients(torch.float64, "reference"), strict=True):
        assert relative_error(a, b) < BOUND


@pytest.mark.op("spherical_harmonics")
def test_second_derivatives_of_harmonics(backend: Backend, generator: torch.Generator) -> None:
    x = torch.randn(9, 3, generator=generator)

    def gradients(dtype: torch.dtype, backend: Backend) -> Tensor:
        own = x.to(dtype).requires_grad_()
        out = ops.spherical_harmonics(own, degree=4, backend=backend)
        (gradient,) = torch.autograd.grad(out.square().sum(), own, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), own)[0]

    assert relative_error(gradients(torch.float32, backend), gradients(torch.float64, "reference")) < BOUND


def test_what_no_gradient_is_wanted_of_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A gradient to positions alone must not cost a pass over the table.
    from hashfield.kernels.numba_cpu import grid_encode as kernels

    asked: list[tuple[bool, bool]] = []
    real = kernels.grid_encode_backward

    def spy(*arguments: Any) -> Any:
        asked.append(arguments[-2:])
        return real(*arguments)

    monkeypatch.setattr(kernels, "grid_encode_backward", spy)
    layout = LAYOUTS["3d"]
    x, table, _ = inputs(layout, torch.Generator().manual_seed(1), 5)
    x.requires_grad_()
    table.requires_grad_()
    out = ops.grid_encode(x, table, layout, backend="numba").sum()
    torch.autograd.grad(out, x, create_graph=True)
    assert asked == [(False, True)]

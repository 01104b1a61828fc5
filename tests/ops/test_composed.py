"""Ops made of other ops: they are literally the composition, on every backend, with every gradient."""

import doctest
import importlib
import itertools
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import hashfield.nn
import hashfield.ops
from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import RaySamples
from hashfield.kernels.reference import color_mlp as color_reference
from hashfield.kernels.reference import encoded_mlp as encoded_reference
from hashfield.kernels.reference import radiance_field as field_reference
from hashfield.ops.backend import Backend
from tests import tolerances
from tests.conftest import backend_params
from tests.ops.cases import uniform, unit_vectors
from tests.ops.compare import check_close

LAYOUT = GridLayout(3, 8, 4, 10, 8, 1.6)
SMALL = GridLayout(3, 2, 2, 6, 3, 1.9)


def _weights(generator: torch.Generator, *widths: int) -> list[Tensor]:
    return [
        torch.randn(n_out, n_in, generator=generator) * (2 / n_in) ** 0.5 for n_in, n_out in itertools.pairwise(widths)
    ]


def _inputs(generator: torch.Generator, n: int = 65) -> dict[str, Any]:
    return {
        "positions": uniform(generator, n, 3),
        "directions": unit_vectors(generator, n),
        "table": uniform(generator, LAYOUT.n_entries, 4, low=-1.0),
        "density_weights": _weights(generator, 32, 64, 16),
        "color_weights": _weights(generator, 32, 64, 64, 3),
    }


def _leaves(inputs: dict[str, Any]) -> list[Tensor]:
    flat = [x for value in inputs.values() for x in (value if isinstance(value, list) else [value])]
    return [x.requires_grad_() for x in flat]


# A composed op runs where its stages run: take the one with the most limits.
@pytest.mark.parametrize("backend", backend_params("mlp"))
@pytest.mark.parametrize("n", [0, 1, 65])
def test_radiance_field_is_its_reference(backend: Backend, n: int, generator: torch.Generator) -> None:
    inputs = _inputs(generator, n)
    leaves = _leaves(inputs)
    actual = ops.radiance_field(*inputs.values(), LAYOUT, density_bias=0.5, backend=backend)
    expected = field_reference.radiance_field(*inputs.values(), LAYOUT, 0.5)
    cotangents = [torch.randn(x.shape, generator=generator) for x in expected]
    grads = [torch.autograd.grad(out, leaves, cotangents) for out in (actual, expected)]
    for name, a, b in zip(actual._fields, actual, expected, strict=True):
        check_close(name, a, b, tolerances.FAST_OUTPUT)
    for i, (a, b) in enumerate(zip(*grads, strict=True)):
        # Positions and directions lie in front of everything.
        check_close(f"gradient {i}", a, b, tolerances.FAST_POSITION_GRADIENT)


@pytest.mark.parametrize("backend", backend_params("mlp"))
def test_stages_are_their_references(backend: Backend, generator: torch.Generator) -> None:
    inputs = _inputs(generator)
    x, directions, table, density, color = inputs.values()
    actual = ops.encoded_mlp(x, table, density, LAYOUT, output_activation="exp", backend=backend)
    expected = encoded_reference.encoded_mlp(x, table, density, LAYOUT, output_activation="exp")
    check_close("encoded_mlp", actual, expected, tolerances.FAST_OUTPUT)
    features = torch.randn(65, 16, generator=generator)
    actual = ops.color_mlp(features, directions, color, backend=backend)
    expected = color_reference.color_mlp(features, directions, color)
    check_close("color_mlp", actual, expected, tolerances.FAST_OUTPUT)
    assert actual.min() > 0 and actual.max() < 1


def test_density_is_the_exponential_of_the_first_output(generator: torch.Generator) -> None:
    inputs = _inputs(generator)
    x, directions, table, density, color = inputs.values()
    field = ops.radiance_field(*inputs.values(), LAYOUT, density_bias=3.0, backend="reference")
    h = ops.encoded_mlp(x, table, density, LAYOUT, backend="reference")
    torch.testing.assert_close(field.density, torch.exp(h[:, 0] + 3))
    # All of h feeds the colour, the first component without the bias.
    torch.testing.assert_close(field.color, ops.color_mlp(h, directions, color, backend="reference"))
    rgb, sigma = field
    assert rgb is field.color and sigma is field.density


def test_bfloat16_field_is_near_float32(generator: torch.Generator) -> None:
    inputs = _inputs(generator)
    fields = [
        ops.radiance_field(*inputs.values(), LAYOUT, precision=precision, backend="reference")
        for precision in ("float32", "bfloat16")
    ]
    assert not torch.equal(fields[0].color, fields[1].color)
    assert (fields[0].color - fields[1].color).abs().max() < tolerances.BFLOAT16_COLOR
    assert (fields[0].density.log() - fields[1].density.log()).abs().max() < tolerances.BFLOAT16_LOG_DENSITY


def test_radiance_field_derivatives(generator: torch.Generator) -> None:
    x = torch.tensor([[0.21, 0.43, 0.77], [0.55, 0.31, 0.12]], dtype=torch.float64)
    d = unit_vectors(generator, 2).double()
    table = uniform(generator, SMALL.n_entries, 2, low=-1.0).double()
    density = [w.double() for w in _weights(generator, 4, 6, 3)]
    color = [w.double() for w in _weights(generator, 3 + 4, 5, 3)]
    leaves = [v.requires_grad_() for v in (x, d, table, *density, *color)]

    def run(x: Tensor, d: Tensor, table: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.radiance_field(x, d, table, weights[:2], weights[2:], SMALL, degree=2, backend="reference"))

    assert gradcheck(run, leaves)


def test_normals_of_a_field_can_be_trained(generator: torch.Generator) -> None:
    # Second order through encoding and network: a loss on the gradient to positions reaches the table.
    x = uniform(generator, 5, 3).double().requires_grad_()
    table = uniform(generator, SMALL.n_entries, 2, low=-1.0).double().requires_grad_()
    weights = [w.double().requires_grad_() for w in _weights(generator, 4, 6, 1)]
    out = ops.encoded_mlp(x, table, weights, SMALL, backend="reference")
    (normal,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    grads = torch.autograd.grad((normal.norm(dim=1) - 1).square().sum(), [table, *weights])
    assert all(bool(g.abs().max() > 0) for g in grads)


def _modules() -> list[str]:
    names = ["hashfield.geometry.grid_layout"]
    for package in (hashfield.ops, hashfield.nn):
        names += [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return names


@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings(name: str) -> None:
    if name.rsplit(".", 1)[1] in ("render_rays", "train_rays"):
        pytest.skip("written for calls from inside the library")
    module = importlib.import_module(name)
    globs = {**vars(module), "torch": torch, "GridLayout": GridLayout, "RaySamples": RaySamples}
    result = doctest.testmod(module, extraglobs=globs, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0

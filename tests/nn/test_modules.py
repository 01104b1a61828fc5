"""Encodings, networks and fields as modules: sizes, initial values, training, saving."""

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hashfield import ops
from hashfield.errors import ConfigError, ShapeError
from hashfield.nn import (
    MLP,
    CompositeEncoding,
    EncodingConfig,
    FrequencyEncoding,
    GridConfig,
    GridEncoding,
    IdentityEncoding,
    MLPConfig,
    NetworkWithEncoding,
    OneBlobEncoding,
    RadianceField,
    RadianceFieldConfig,
    SphericalHarmonicsEncoding,
    TriangleWaveEncoding,
    encoding_from_config,
)
from tests.ops.cases import unit_vectors

SMALL = GridConfig(n_levels=4, n_features_per_level=2, log2_hashmap_size=10, base_resolution=4)
SMALL_FIELD = RadianceFieldConfig(encoding=SMALL, density_network=MLPConfig(16, 1), color_network=MLPConfig(16, 1))


def test_grid_encoding_is_the_op(generator: torch.Generator) -> None:
    encoding = GridEncoding(2, n_levels=4, n_features_per_level=2, log2_hashmap_size=8, base_resolution=4)
    x = torch.rand(10, 2, generator=generator)
    assert (encoding.n_dims, encoding.n_output) == (2, 8)
    assert encoding.config.type == "Hash"
    assert torch.equal(encoding(x), ops.grid_encode(x, encoding.table, encoding.layout))
    assert [name for name, _ in encoding.named_parameters()] == ["table"]
    assert "n_parameters=1184" in repr(encoding)


def test_grid_encoding_from_config_is_the_same(generator: torch.Generator) -> None:
    state = generator.get_state()
    a = GridEncoding.from_config(SMALL, 3, generator=generator)
    generator.set_state(state)
    b = GridEncoding(
        3, n_levels=4, n_features_per_level=2, log2_hashmap_size=10, base_resolution=4, generator=generator
    )
    assert a.config == b.config == SMALL
    assert torch.equal(a.table, b.table)


def test_initial_values(generator: torch.Generator) -> None:
    table = GridEncoding(generator=generator, log2_hashmap_size=14).table.detach()
    assert table.abs().max() <= 1e-4
    assert abs(table.mean()) < 1e-6
    assert table.std().item() == pytest.approx(1e-4 / math.sqrt(3), rel=0.01)
    # tiny-cuda-nn's limits; the last matrix counts 16 outputs whatever it has.
    limits = {(32, 16): (0.25, 0.273861), (32, 3): (0.25, 0.273861)}
    for (n_in, n_out), expected in limits.items():
        weights = MLP(n_in, n_out, generator=generator).weights
        for weight, limit in zip(weights, expected, strict=True):
            assert 0.97 * limit < weight.abs().max().item() <= limit * (1 + 1e-5)
    deep = MLP(32, 3, MLPConfig(64, 2), generator=generator)
    assert [tuple(w.shape) for w in deep.weights] == [(64, 32), (64, 64), (3, 64)]
    assert deep.weights[1].abs().max().item() == pytest.approx(0.216506, rel=0.01)


@pytest.mark.parametrize("make", [GridEncoding, lambda **kw: MLP(4, 3, **kw), RadianceField])
def test_generator_decides_the_values_whatever_the_dtype(make: Any) -> None:
    def values(seed: int, dtype: torch.dtype) -> Tensor:
        module = make(generator=torch.Generator().manual_seed(seed), dtype=dtype)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    single = values(1, torch.float32)
    assert torch.equal(single, values(1, torch.float32))
    assert not torch.equal(single, values(2, torch.float32))
    torch.testing.assert_close(values(1, torch.float64).float(), single, rtol=1e-6, atol=0)


def test_frequency_encoding_order() -> None:
    x = torch.tensor([[0.25, 1 / 3]], dtype=torch.float64)
    out = FrequencyEncoding(2, 3)(x)[0]
    expected = [f(math.pi * 2**k * v) for v in x[0].tolist() for k in range(3) for f in (math.sin, math.cos)]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_identity_and_harmonics(generator: torch.Generator) -> None:
    x = unit_vectors(generator, 7)
    assert torch.equal(IdentityEncoding(3, scale=2.0, offset=1.0)(x), x * 2 + 1)
    encoding = SphericalHarmonicsEncoding(3)
    assert (encoding.n_dims, encoding.n_output) == (3, 9)
    assert torch.equal(encoding(x), ops.spherical_harmonics(x, degree=3))


def test_composite_encoding_splits_and_joins(generator: torch.Generator) -> None:
    parts = [GridEncoding.from_config(SMALL, 2), SphericalHarmonicsEncoding(2), IdentityEncoding(1)]
    encoding = CompositeEncoding(parts)
    assert (encoding.n_dims, encoding.n_output) == (6, 8 + 4 + 1)
    x = torch.rand(5, 6, generator=generator)
    expected = torch.cat([parts[0](x[:, :2]), parts[1](x[:, 2:5]), parts[2](x[:, 5:])], 1)
    assert torch.equal(encoding(x), expected)
    assert len(list(encoding.parameters())) == 1


def test_composite_fills_up_before_a_grid(generator: torch.Generator) -> None:
    # A grid's features begin at a multiple of its F: ones after an identity, in front of harmonics, zeros after a grid.
    grid = GridEncoding.from_config(GridConfig(n_levels=3, n_features_per_level=4, log2_hashmap_size=8), 2)
    fine = GridEncoding.from_config(GridConfig(n_levels=1, n_features_per_level=8, log2_hashmap_size=8), 2)
    encoding = CompositeEncoding([IdentityEncoding(3), grid, fine, SphericalHarmonicsEncoding(3), grid])
    x = torch.rand(5, 12, generator=generator)
    ones, zeros = torch.ones(5, 1), torch.zeros(5, 8)
    expected = [
        *(x[:, :3], ones),  # 4
        *(grid(x[:, 3:5]), zeros[:, :0]),  # 16, a multiple of 8 already
        *(fine(x[:, 5:7]),),  # 24
        *(ones.expand(5, 3), ops.spherical_harmonics(x[:, 7:10], degree=3)),  # 36
        grid(x[:, 10:]),
    ]
    assert torch.equal(encoding(x), torch.cat(expected, 1))
    assert (encoding.n_dims, encoding.n_output, encoding.alignment) == (12, 48, 8)
    padded = CompositeEncoding([grid, IdentityEncoding(2), fine])
    assert padded.padded_widths == [12, 4, 8]
    nested = CompositeEncoding([GridEncoding.from_config(SMALL, 2), fine])(x[:, :4])
    assert nested.shape == (5, 16) and torch.equal(nested[:, 8:], fine(x[:, 2:4]))
    gap = CompositeEncoding([GridEncoding(2, n_levels=1, n_features_per_level=2, log2_hashmap_size=8), fine])(x[:, :4])
    assert torch.equal(gap[:, 2:8], zeros[:, :6])


@pytest.mark.parametrize("reduction", ["sum", "product"])
def test_composite_of_overlapping_shares(reduction: Any, generator: torch.Generator) -> None:
    encoding = CompositeEncoding([FrequencyEncoding(2, 3), OneBlobEncoding(2, 6)], begins=[0, 1], reduction=reduction)
    assert (encoding.n_dims, encoding.n_output) == (3, 12)
    x = torch.rand(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    a, b = ops.frequency_encode(x[:, :2], n_frequencies=3), ops.one_blob_encode(x[:, 1:], n_bins=6)
    expected = a + b if reduction == "sum" else a * b
    out = encoding(x)
    torch.testing.assert_close(out, expected)
    # The component that both see gets both gradients.
    grads = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (out, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].abs().min() > 0


def test_small_encodings_are_the_ops(generator: torch.Generator) -> None:
    x = torch.rand(5, 2, generator=generator)
    for encoding, expected in (
        (FrequencyEncoding(2, 3), ops.frequency_encode(x, n_frequencies=3)),
        (TriangleWaveEncoding(2, 5), ops.triangle_wave_encode(x, n_frequencies=5)),
        (OneBlobEncoding(2, 8), ops.one_blob_encode(x, n_bins=8)),
    ):
        assert torch.equal(encoding(x), expected)
        assert (encoding.n_dims, encoding.n_output) == (2, expected.shape[1])


@pytest.mark.parametrize(
    "config",
    [
        EncodingConfig(n_levels=3, n_features_per_level=2, log2_hashmap_size=9, base_resolution=5),
        EncodingConfig(type="Tiled", n_levels=2, n_features_per_level=8, base_resolution=6, interpolation="nearest"),
        EncodingConfig(otype="Frequency", n_frequencies=4),
        EncodingConfig(otype="TriangleWave", n_frequencies=4),
        EncodingConfig(otype="OneBlob", n_bins=6),
        EncodingConfig(otype="Identity"),
    ],
)
@pytest.mark.parametrize("n_dims", [2, 3])
def test_one_configuration_describes_any_encoding(config: EncodingConfig, n_dims: int) -> None:
    encoding = encoding_from_config(config, n_dims)
    assert type(encoding).__name__ == f"{config.otype}Encoding"
    assert (encoding.n_dims, encoding.n_output) == (n_dims, config.n_output(n_dims))
    assert sum(p.numel() for p in encoding.parameters()) == config.n_parameters(n_dims)
    assert encoding(torch.rand(7, n_dims)).shape == (7, encoding.n_output)
    if isinstance(encoding, GridEncoding):
        assert encoding.layout == config.layout(n_dims)
        assert encoding.config.interpolation == config.interpolation


@pytest.mark.parametrize(
    "encoding",
    [
        FrequencyEncoding(2), TriangleWaveEncoding(2), OneBlobEncoding(2), IdentityEncoding(2),
        CompositeEncoding([IdentityEncoding(2)]),
    ],
)  # fmt: skip
def test_wrong_width_is_named(encoding: nn.Module) -> None:
    with pytest.raises(ShapeError, match=r"x: expected shape \[n, 2\], got \[5, 3\]"):
        encoding(torch.zeros(5, 3))


def test_network_with_encoding_fuses_grids_only(generator: torch.Generator) -> None:
    x = torch.rand(6, 3, generator=generator)
    for encoding in (GridEncoding.from_config(SMALL, 3), FrequencyEncoding(3, 2)):
        field = NetworkWithEncoding(encoding, 3, MLPConfig(16, 1), output_activation="sigmoid")
        torch.testing.assert_close(field(x), field.network(field.encoding(x)))


def test_radiance_field_sizes_and_names() -> None:
    field = RadianceField()
    shapes = {name: tuple(p.shape) for name, p in field.named_parameters()}
    assert shapes == {
        "density_network.weights.0": (64, 32),
        "density_network.weights.1": (16, 64),
        "color_network.weights.0": (64, 32),
        "color_network.weights.1": (64, 64),
        "color_network.weights.2": (3, 64),
        "encoding.table": (2_920_448, 4),
    }
    assert isinstance(field.density_network.weights, nn.ParameterList)
    # The paper's "10 k" of network weights count 16 colour outputs, of which 13 are padding.
    n_network = sum(p.numel() for n, p in field.named_parameters() if "network" in n)
    assert n_network + 13 * 64 == 10_240


def test_hashnerf_network_sizes_and_what_it_sees(generator: torch.Generator) -> None:
    config = replace(SMALL_FIELD, density_activation="relu", color_sees_density=False, density_bias=0.1)
    field = RadianceField(config, generator=generator)
    assert field.color_network.weights[0].shape == (16, 15 + 16)
    x, d = torch.rand(50, 3, generator=generator), unit_vectors(generator, 50)
    with torch.no_grad():
        field.encoding.table.mul_(3e4)
        h = field.density_network(field.encoding(x))
        color, density = field(x, d)
        expected = field.color_network(torch.cat([h[:, 1:], ops.spherical_harmonics(d)], 1))
    torch.testing.assert_close(density, (h[:, 0] + 0.1).clamp(min=0))
    assert 2 < int((density == 0).sum()) < 48
    torch.testing.assert_close(color, expected)
    torch.testing.assert_close(field.density(x), density)
    full = RadianceFieldConfig(
        encoding=GridConfig(n_levels=16, n_features_per_level=2), density_activation="relu", color_sees_density=False
    )
    assert full.network_shapes() == ([(64, 32), (16, 64)], [(64, 31), (64, 64), (3, 64)])
    assert sum(a * b for shapes in full.network_shapes() for a, b in shapes) == 9344


@pytest.mark.parametrize("otype", ["Frequency", "TriangleWave", "OneBlob", "Identity"])
def test_radiance_field_behind_any_encoding(otype: Any, generator: torch.Generator) -> None:
    encoding = EncodingConfig(otype=otype, n_frequencies=3, n_bins=4)
    config = replace(SMALL_FIELD, encoding=encoding, density_network=MLPConfig(16, 3))
    field = RadianceField(config, generator=generator)
    x, d = torch.rand(20, 3, generator=generator), unit_vectors(generator, 20)
    color, density = field(x, d)
    assert color.shape == (20, 3) and config.n_grid_parameters == 0
    shapes = [tuple(p.shape) for p in field.parameters()]
    assert shapes == [shape for network in config.network_shapes() for shape in network]
    (color.sum() + density.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in field.parameters())
    torch.testing.assert_close(field.density(x), density)


def test_radiance_field_starts_as_fog_of_the_biased_density(generator: torch.Generator) -> None:
    config = replace(SMALL_FIELD, density_bias=3.0)
    field = RadianceField(config, generator=generator)
    x, d = torch.rand(50, 3, generator=generator), unit_vectors(generator, 50)
    color, density = field(x, d)
    torch.testing.assert_close(density, torch.full_like(density, math.exp(3)), rtol=1e-2, atol=0)
    assert color.min() > 0 and color.max() < 1
    torch.testing.assert_close(field.density(x), density)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_of_a_field_learns(dtype: torch.dtype, generator: torch.Generator) -> None:
    field = RadianceField(SMALL_FIELD, generator=generator, dtype=dtype, backend="reference")
    x, d = torch.rand(200, 3, generator=generator).to(dtype), unit_vectors(generator, 200).to(dtype)
    before = [p.detach().clone() for p in field.parameters()]
    optimiser = torch.optim.Adam(field.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    losses = []
    for _ in range(40):
        color, density = field(x, d)
        assert color.dtype == density.dtype == dtype
        loss = (color - x).square().mean() + (density - 2 * x[:, 0]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(not torch.equal(p, b) for p, b in zip(field.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, None)]
)
def test_image_is_learnt(dtype: torch.dtype, backend: ops.Backend | None, generator: torch.Generator) -> None:
    # The smallest task: an image by formula, a grid and a network, torch's own Adam.
    config = GridConfig(n_levels=5, n_features_per_level=2, log2_hashmap_size=11, base_resolution=8)
    encoding = GridEncoding.from_config(config, 2, generator=generator, dtype=dtype, backend=backend)
    field = NetworkWithEncoding(encoding, 3, MLPConfig(32, 1), generator=generator, dtype=dtype, backend=backend)
    optimiser = torch.optim.Adam(field.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15)

    def image(x: Tensor) -> Tensor:
        u, v = x[:, 0], x[:, 1]
        disc = ((u - 0.5).hypot(v - 0.5) < 0.3).to(x.dtype)
        return torch.stack([disc, torch.sin(12 * u) / 2 + 0.5, torch.cos(9 * v + 5 * u) / 2 + 0.5], 1)

    for _ in range(150):
        x = torch.rand(2048, 2, generator=generator).to(dtype)
        loss = (field(x) - image(x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    side = (torch.arange(100).to(dtype) + 0.5) / 100
    x = torch.cartesian_prod(side, side)
    with torch.no_grad():
        psnr = -10 * math.log10((field(x).clamp(0, 1) - image(x)).square().mean().item())
    assert psnr > 27


def test_modules_save_and_load(generator: torch.Generator) -> None:
    a = RadianceField(SMALL_FIELD, generator=generator)
    b = RadianceField(SMALL_FIELD, generator=generator)
    x, d = torch.rand(5, 3, generator=generator), unit_vectors(generator, 5)
    assert not torch.equal(a(x, d).color, b(x, d).color)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x, d).color, b(x, d).color)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridConfig(n_levels=0), "n_levels: expected an integer from 1 to 128, got 0"),
        (
            lambda: GridConfig(interpolation="cubic"),  # pyright: ignore[reportArgumentType]
            "interpolation: expected 'linear', 'smoothstep' or 'nearest', got 'cubic'",
        ),
        (lambda: MLPConfig(n_neurons=0), "n_neurons: expected at least 1, got 0"),
        (lambda: MLPConfig(n_hidden_layers=-1), "n_hidden_layers: expected at least 0, got -1"),
        (lambda: RadianceFieldConfig(n_features=0), "n_features: expected at least 1, got 0"),
        (lambda: RadianceFieldConfig(direction_degree=5), "direction_degree: expected 1, 2, 3 or 4, got 5"),
        (lambda: RadianceFieldConfig(density_bias=math.nan), "density_bias: expected -80 to 80, got nan"),
        (
            lambda: RadianceFieldConfig(density_activation="tanh"),  # pyright: ignore[reportArgumentType]
            "density_activation: expected 'exp' or 'relu', got 'tanh'",
        ),
        (
            lambda: RadianceFieldConfig(n_features=1, color_sees_density=False),
            "n_features: expected at least 2 where the colour network does not see the first",
        ),
        (lambda: SphericalHarmonicsEncoding(0), "degree: expected an integer from 1 to 8, got 0"),
        (lambda: FrequencyEncoding(0), "n_dims, n_frequencies: expected at least 1 each, got 0 and 12"),
        (lambda: IdentityEncoding(0), "n_dims: expected at least 1, got 0"),
        (lambda: TriangleWaveEncoding(2, 0), "n_dims, n_frequencies: expected at least 1 each, got 2 and 0"),
        (lambda: OneBlobEncoding(2, 0), "n_dims, n_bins: expected at least 1 each, got 2 and 0"),
        (
            lambda: CompositeEncoding([IdentityEncoding(2)], begins=[-1]),
            "begins: expected 1 numbers of at least 0, got [-1]",
        ),
        (
            lambda: CompositeEncoding([IdentityEncoding(2), IdentityEncoding(3)], reduction="sum"),
            "reduction 'sum': expected equal widths, got [2, 3]",
        ),
        (
            lambda: EncodingConfig(otype="Hash"),  # pyright: ignore[reportArgumentType]
            "otype: expected Grid, Frequency, TriangleWave, OneBlob or Identity, got 'Hash'",
        ),
        (lambda: EncodingConfig(n_bins=0), "n_bins: expected at least 1, got 0"),
        (lambda: CompositeEncoding([]), "encodings: expected at least one, got none"),
        (lambda: MLP(0, 3), "n_input, n_output: expected at least 1 each, got 0 and 3"),
    ],
)
def test_wrong_configurations_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_configurations_are_frozen_values() -> None:
    config = GridConfig()
    assert config.reaching(2048 * 4).per_level_scale == pytest.approx(2.43802738)
    assert config == GridConfig() and hash(config) == hash(GridConfig())
    with pytest.raises(FrozenInstanceError):
        config.n_levels = 3  # pyright: ignore[reportAttributeAccessIssue]
    # Fine for an image, too fine for a volume.
    dense = GridConfig(type="Dense", n_levels=8)
    assert dense.layout(2).n_entries > 0
    with pytest.raises(ConfigError, match="3-D index"):
        RadianceFieldConfig(encoding=dense)


def test_network_of_one_matrix() -> None:
    network = MLP(4, 3, MLPConfig(n_hidden_layers=0))
    x = torch.rand(5, 4)
    torch.testing.assert_close(network(x), x @ network.weights[0].T)
    assert "4 -> 3" in repr(network)


def test_a_table_from_outside(generator: torch.Generator) -> None:
    own = GridEncoding.from_config(SMALL, 3, generator=generator)
    free = GridEncoding(3, n_levels=4, n_features_per_level=2, log2_hashmap_size=10, base_resolution=4, has_table=False)
    assert list(free.parameters()) == []
    assert free.table_shapes == (tuple(own.table.shape),)
    x = torch.rand(5, 3, generator=generator)
    assert torch.equal(free(x, own.table), own(x))
    shared = torch.nn.Parameter(torch.zeros_like(own.table))
    assert not own(x, shared).any()  # instead of its own
    free(x, shared).sum().backward()
    assert shared.grad is not None and own.table.grad is None
    with pytest.raises(ShapeError, match="no table of its own"):
        free(x)
    composite = CompositeEncoding([free, IdentityEncoding(1), free])
    assert len(composite.table_shapes) == 2
    y = torch.rand(5, 7, generator=generator)
    expected = torch.cat([own(y[:, :3]), y[:, 3:4], torch.ones(5, 1), torch.zeros(5, 8)], 1)
    assert torch.equal(composite(y, own.table, shared), expected)
    with pytest.raises(ShapeError, match="expected 2, got 1"):
        composite(y, shared)

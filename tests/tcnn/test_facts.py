"""Numbers of tinycudann: sizes, initial values, and what its modules compute, from formulas checked twice elsewhere."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hashfield import tcnn
from tests.tcnn.callers import CALLERS, Caller, grid, mlp

SMALL_GRID = grid(4, 12, 16, 1.5)
FIRST = (0.137, 0.523, 0.891)


def with_sines(module: tcnn.Module, factor: float) -> tcnn.Module:
    """The module with params[i] = factor * sin(i)."""
    values = factor * torch.sin(torch.arange(module.params.numel(), dtype=torch.float64))
    with torch.no_grad():
        module.params.copy_(values)
    return module


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)
def test_real_callers_build_and_step(caller: Caller, generator: torch.Generator) -> None:
    module = caller.make()
    assert module.params.numel() == caller.n_params == module.native_tcnn_module.n_params()
    assert module.n_output_dims == (caller.n_output or caller.n_encoded)
    x = torch.rand(300, caller.n_input, generator=generator, requires_grad=True)
    out = module(x)
    assert out.shape == (300, module.n_output_dims)
    assert out.dtype == module.dtype
    out.float().square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    if caller.n_params:
        assert module.params.grad is not None and bool(module.params.grad.isfinite().all())
        torch.optim.Adam(module.parameters(), lr=1e-2, eps=1e-15).step()
        assert bool(module(x).isfinite().all())


@pytest.mark.parametrize(
    ("n_input", "config", "n_params"),
    [
        (3, grid(20, 16, 32, 1.5), 2_555_904),
        (3, {"otype": "HashGrid"}, 14_229_504),
        (2, {"otype": "HashGrid"}, 11_184_640),
        (4, {"otype": "HashGrid"}, 15_859_712),
        (3, {"otype": "TiledGrid", "per_level_scale": 1.3}, 131_072),
        (3, {"otype": "DenseGrid"}, 79_202_224),
        (2, {"otype": "DenseGrid", "n_levels": 8, "n_features_per_level": 8, "base_resolution": 2}, 699_072),
        (3, {"otype": "HashGrid", "n_features_per_level": 1}, 7_114_752),
        (3, {"otype": "HashGrid", "n_levels": 4, "n_features_per_level": 8}, 6_586_368),
        (2, grid(16, 15, 16, 1.5), 708_368),
        (3, grid(16, 19, 16, 1.3195079108), 11_445_040),
    ],
)
def test_sizes_of_grids(n_input: int, config: dict[str, Any], n_params: int) -> None:
    assert tcnn.modules._C.create_encoding(n_input, config).n_params() == n_params


def test_tiles_too_fine_for_an_index_are_refused() -> None:
    # Upstream sends every vertex of such a level to entry 0; so it does with the default scale of 2.
    with pytest.raises(RuntimeError, match="more than the"):
        tcnn.Encoding(3, {"otype": "TiledGrid"})


def test_initial_values_are_upstreams_bit_by_bit() -> None:
    network = tcnn.Network(3, 1, {"n_neurons": 16, "n_hidden_layers": 1}).params.detach()
    expected = (-0.30510131, -0.02508926, -0.28233758, -0.32119346)
    torch.testing.assert_close(network[:4], torch.tensor(expected), rtol=0, atol=5e-9)
    torch.testing.assert_close(network[256:258], torch.tensor((-0.21974297, -0.23680991)), rtol=0, atol=5e-9)
    values = tcnn.Encoding(3, grid(16, 19, 16, 1.3819128800)).params.detach()
    assert len(values) == 12_196_240
    for index, value in {
        0: -7.0460126e-5, 1: -3.4031153e-5, 2: 3.8013266e-5, 3: -8.2787010e-5, 1000: -1.5660165e-5,
        3_049_088: -5.7941197e-6, -1: 4.8858044e-5,
    }.items():  # fmt: skip
        assert values[index].item() == pytest.approx(value, rel=3e-7)
    base = CALLERS[0].make().params.detach()
    found = base[3_072:3_075].tolist()
    assert found == pytest.approx([7.7797675e-5, -8.9122484e-5, -3.9288519e-5], rel=3e-7)


def test_sines_have_initial_values_of_their_own() -> None:
    config = {"otype": "CutlassMLP", "n_neurons": 32, "n_hidden_layers": 2, "activation": "Sine"}
    first, second, last = tcnn.Network(16, 1, config).matrices()
    for matrix, limit in ((first, 30 / 16), (second, math.sqrt(6 / 32)), (last, math.sqrt(6 / 32))):
        assert 0.97 * limit < matrix.abs().max().item() <= limit * (1 + 1e-6)


@pytest.mark.parametrize(
    ("depth", "n_params", "expected"),
    [(1, 512, (-0.0062981, 0.0053545)), (2, 768, (-0.0005213, 0.0005663))],
)
def test_layout_of_a_network(depth: int, n_params: int, expected: tuple[float, float]) -> None:
    module = with_sines(tcnn.Network(3, 2, mlp(16, depth)), 0.1)
    assert module.params.numel() == n_params
    found = module(torch.tensor([[0.1, 0.2, 0.3]]))[0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-7)


def test_layout_of_a_grid_with_a_network() -> None:
    module = with_sines(tcnn.NetworkWithInputEncoding(3, 2, SMALL_GRID, mlp(16, 1)), 0.1)
    assert module.params.numel() == 33_280
    found = module(torch.tensor([FIRST]))[0]
    torch.testing.assert_close(found, torch.tensor((-0.0003151, 0.0001287)), rtol=0, atol=2e-7)


def encoded(n_input: int, config: Any, x: tuple[float, ...]) -> torch.Tensor:
    """Features of one point, with params[i] = sin(i)."""
    return with_sines(tcnn.Encoding(n_input, config), 1.0)(torch.tensor([x]))[0].detach()


GRIDS = [
    (3, SMALL_GRID, FIRST, ".188877 -.180397 -.037053 .464802 .087475 .234504 -.285328 -.688356"),
    (3, SMALL_GRID | {"interpolation": "Smoothstep"}, FIRST,
     ".216776 -.248358 -.043101 .494518 .264288 .427997 -.268537 -.787772"),
    (3, SMALL_GRID | {"interpolation": "Nearest"}, FIRST,
     "-.976714 -.708255 .380416 .983745 -.010479 -.847087 -.999875 -.526907"),
    (3, SMALL_GRID, (1.0, 0.0, 0.25), "-.10161 .14586 -.05767 -.42990 .10623 -.15938 .44669 -.07682"),
    (3, SMALL_GRID, (-0.213, 1.307, 0.611), "-.16989 .00723 -.48385 -.24212 -.36535 -.13628 -.32447 -.21812"),
    (2, grid(4, 8, 8, 1.6), (0.37, 0.81), ".58434 .35587 .71096 .06933 .08084 .24809 .50622 .43039"),
    (4, grid(3, 10, 4, 1.5, 1), (0.37, 0.81, 0.25, 0.61), ".25305 -.12559 -.35453"),
    (3, grid(3, 19, 6, 1.7, otype="TiledGrid"), FIRST, ".50258 -.11256 -.20153 -.08205 -.32538 -.57471"),
    (3, grid(3, 19, 6, 1.7, otype="DenseGrid"), FIRST, ".50258 -.11256 .00130 -.08685 .13253 -.44443"),
]  # fmt: skip


@pytest.mark.parametrize(("n_input", "config", "x", "expected"), GRIDS)
def test_computed_values_of_grids(n_input: int, config: Any, x: tuple[float, ...], expected: str) -> None:
    wanted = torch.tensor([float(v) for v in expected.split()])
    torch.testing.assert_close(encoded(n_input, config, x), wanted, rtol=0, atol=1.5e-5)


@pytest.mark.parametrize(
    ("interpolation", "first", "second"),
    [
        ("Linear", (-78.03566, 90.18058, 38.65031), (-8355.9, -602.2, 5117.8)),
        ("Smoothstep", (-132.57652, 92.57884, 56.45132), (-22394.3, 6725.5, 3950.0)),
    ],
)
def test_computed_derivatives_of_a_grid(
    interpolation: str, first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    module = with_sines(tcnn.Encoding(3, SMALL_GRID | {"interpolation": interpolation}), 1.0)
    x = torch.tensor([FIRST], requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient[0].detach(), torch.tensor(first), rtol=1e-4, atol=0)
    (again,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(again[0], torch.tensor(second), rtol=1e-3, atol=0)


ELEMENTWISE = [
    ({"otype": "Frequency", "n_frequencies": 3}, (0.3, 0.7),
     ".8090170 .5877853 .9510565 -.3090170 -.5877853 -.8090170 "
     ".8090170 -.5877853 -.9510565 -.3090170 .5877853 -.8090170"),
    ({"otype": "TriangleWave", "n_frequencies": 4}, (0.3, 0.7), "0.4 -0.8 0.6 0.8 -0.4 0.8 0.6 -0.8"),
    ({"otype": "OneBlob", "n_bins": 8}, (0.3,), "0 .16308 .77900 .05792 0 0 0 0"),
    ({"otype": "OneBlob", "n_bins": 4}, (0.02,), ".5740784 .0006022 0 .4253194"),
    ({"otype": "Identity", "scale": 2.0, "offset": -1.0}, (0.3, 0.7), "-0.4 0.4"),
    ({"otype": "SphericalHarmonics", "degree": 8}, (0.1, 0.7, 0.9), """
 .28209479 -.19544100 .39088201 .39088201 -.34961550 -.34961550 .29016024 .69923100 .26221162 -.41539069 -.73999653
 -.40220030 .05970821 .80440061 .55499740 .07552558 -.38451348 -.99693765 -1.05366014 -.31686044 -.19718426 .63372089
 .79024511 .18126139 -.11214976 -.27557544 -1.02022954 -1.63945711 -1.12897378 -.11624423 -.37379194 .23248846
 .84673034 .29808311 -.29756695 -.25541139 -.12312617 -.79488111 -1.87242824 -2.09604412 -.88341373 .12737501 -.39849855
 -.25475003 .66256030 .38109893 -.54612490 -.73671908 -.32740369 .03359985 -.38149249 -1.59474630 -2.71381058
 -2.12945165 -.35944134 .32129956 -.26183054 -.64259911 .26958100 .38717303 -.79152809 -1.47805755
 -1.01442322 -.32209509"""),
]  # fmt: skip


@pytest.mark.parametrize(("config", "x", "expected"), ELEMENTWISE, ids=lambda v: str(v)[:30])
def test_computed_values_of_other_encodings(config: Any, x: tuple[float, ...], expected: str) -> None:
    wanted = torch.tensor([float(v) for v in expected.split()])
    torch.testing.assert_close(
        encoded(len(x), config, x), wanted, rtol=1e-5, atol=2e-5 if "OneBlob" in str(config) else 2e-6
    )


@pytest.mark.parametrize("degree", range(1, 9))
def test_harmonics_of_every_degree_begin_alike(degree: int) -> None:
    full = encoded(3, {"otype": "SphericalHarmonics", "degree": 8}, (0.1, 0.7, 0.9))
    found = encoded(3, {"otype": "SphericalHarmonics", "degree": degree}, (0.1, 0.7, 0.9))
    torch.testing.assert_close(found, full[: degree**2], rtol=1e-6, atol=1e-7)


def test_stochastic_interpolation_moves_one_corner_of_each_level(generator: torch.Generator) -> None:
    config = SMALL_GRID | {"n_levels": 2}
    plain, stochastic = tcnn.Encoding(3, config), tcnn.Encoding(3, config | {"stochastic_interpolation": True})
    x = torch.rand(500, 3, generator=generator, requires_grad=True)
    assert torch.equal(plain(x), stochastic(x))
    weight = torch.randn(500, 4, generator=generator)
    slopes = [torch.autograd.grad((m(x) * weight).sum(), x, retain_graph=True)[0] for m in (plain, stochastic)]
    torch.testing.assert_close(slopes[0], slopes[1])
    one = torch.tensor([FIRST])
    stochastic(one).sum().backward()
    assert stochastic.params.grad is not None
    moved = stochastic.params.grad.nonzero()[:, 0]
    assert len(moved) == 2 * 2  # a corner of each level, two features
    # The first draw of seed 1337 decides level 0: the upper corner along each axis whose weight is above it.
    scale, u = 15.0, np.float32(0.14769936)
    position = [v * scale + 0.5 for v in FIRST]
    corner = [math.floor(p) + (u < p - math.floor(p)) for p in position]
    assert moved[0].item() == 2 * (corner[0] + 16 * corner[1] + 256 * corner[2])
    assert torch.equal(stochastic.params.grad[moved], torch.ones(4))


@pytest.mark.parametrize("name", ["Prime", "ReversedPrime", "Rng", "BaseConvert"])
def test_other_hashes_are_what_their_formulas_say(name: str) -> None:
    # One level, all of it hashed, its vertices computed here with Python's own integers.
    config = grid(1, 8, 16, 1.0, 1, hash=name, interpolation="Nearest")
    vertex = [math.floor(v * 15 + 0.5) for v in FIRST]
    primes = [1958374283, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737]
    if name == "BaseConvert":
        index = 0
        for v in vertex:
            index = (index + v) * 2531011 % 2**32
    elif name == "Rng":
        steps, state = vertex[0] ^ vertex[1] << 21 ^ vertex[2] << 42, 0
        from hashfield.geometry.pcg32 import pcg32_jump, pcg32_start

        state = pcg32_jump(pcg32_start(1337), steps)
        shifted, turn = ((state >> 18 ^ state) >> 27) % 2**32, state >> 59
        index = (shifted >> turn | shifted << (-turn % 32)) % 2**32
    else:
        factors = primes if name == "Prime" else [*primes[::-1]]
        index = 0
        for v, factor in zip(vertex, factors, strict=False):
            index ^= v * factor % 2**32
    assert encoded(3, config, FIRST).item() == pytest.approx(math.sin(index % 256), abs=1e-6)


def test_composite_layout_and_padding() -> None:
    config = {"otype": "Composite", "nested": [{"n_dims_to_encode": 3, "otype": "Identity"}, SMALL_GRID]}
    module = tcnn.Encoding(6, config)
    x = torch.rand(4, 6)
    out = module(x)
    assert module.n_output_dims == 3 + 1 + 8
    assert torch.equal(out[:, :3], x[:, :3])
    assert torch.equal(out[:, 3], torch.ones(4))
    own = tcnn.Encoding(3, SMALL_GRID)
    assert torch.equal(own.params, module.params)
    assert torch.equal(out[:, 4:], own(x[:, 3:]))
    assert tcnn.Encoding(8, {"otype": "NRC"}).n_output_dims == 56
    assert tcnn.Encoding(10, {"otype": "OneBlobFrequency"}).n_output_dims == 58


def test_two_grids_in_a_composite_are_drawn_one_after_the_other() -> None:
    config = {"otype": "Composite", "nested": [{"n_dims_to_encode": 2, **grid(1, 8, 8, 1.0)}, grid(1, 8, 8, 1.0)]}
    module = tcnn.Encoding(4, config)
    single = tcnn.Encoding(2, grid(1, 8, 8, 1.0))
    n = single.params.numel()
    assert module.params.numel() == 2 * n
    assert torch.equal(module.params[:n], single.params)
    assert not torch.equal(module.params[n:], single.params)


@pytest.mark.parametrize(
    ("encoding", "n_input", "column", "value"),
    [
        ({"otype": "Identity"}, 3, 5, 1.0),
        ({"otype": "Frequency", "n_frequencies": 1}, 3, 10, 1.0),
        ({"otype": "SphericalHarmonics", "degree": 2}, 3, 0, 1.0),
        (grid(1, 8, 8, 1.0), 3, 9, 0.0),
        ({"otype": "Composite", "nested": [{"n_dims_to_encode": 3, "otype": "SphericalHarmonics", "degree": 2},
                                           {"otype": "Identity"}]}, 5, 12, 1.0),
        ({"otype": "Empty"}, 2, 7, 1.0),
    ],
)  # fmt: skip
def test_what_fills_up_the_input_of_a_network(encoding: Any, n_input: int, column: int, value: float) -> None:
    # A network of one matrix whose only number that is not 0 multiplies one column of padding.
    module = tcnn.NetworkWithInputEncoding(n_input, 1, encoding, mlp(16, 0, otype="CutlassMLP"))
    with torch.no_grad():
        module.params.zero_()
        module.matrices()[0][0, column] = 3.0
    assert torch.equal(module(torch.rand(5, n_input)), torch.full((5, 1), 3.0 * value))

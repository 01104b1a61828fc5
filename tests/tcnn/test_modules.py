"""How modules behave in programs: shapes, errors, saving, copying, autocast, compilation, two processes."""

import copy
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hashfield import tcnn
from hashfield.ops.backend import use_backend
from hashfield.tcnn.coverage import coverage
from tests.forked import script
from tests.tcnn.callers import HARMONICS, grid, mlp

GRID = grid(4, 10, 8, 1.5)
ENCODINGS: dict[str, tuple[int, Any]] = {
    "identity": (3, {"otype": "Identity", "scale": 2.0, "offset": 0.5}),
    "frequency": (3, {"otype": "Frequency", "n_frequencies": 3}),
    "triangle": (2, {"otype": "TriangleWave", "n_frequencies": 3}),
    "oneblob": (2, {"otype": "OneBlob", "n_bins": 4}),
    "harmonics": (3, {"otype": "SphericalHarmonics", "degree": 6}),
    "grid": (3, grid(2, 6, 3, 1.5)),
    "smoothstep": (3, grid(2, 6, 3, 1.5, interpolation="Smoothstep")),
    "tiled": (2, grid(2, 6, 3, 1.5, otype="TiledGrid", interpolation="Smoothstep")),
    "dense-1d": (1, grid(2, 6, 3, 1.5, otype="DenseGrid", interpolation="Smoothstep")),
    "hash-4d": (4, grid(2, 4, 3, 1.5, 1, interpolation="Smoothstep")),
    "hash-7d": (7, grid(1, 4, 2, 1.5, 1, interpolation="Smoothstep")),
    "composite": (6, {"otype": "Composite", "nested": [
        {"n_dims_to_encode": 3, "otype": "SphericalHarmonics", "degree": 3}, grid(1, 5, 3, 1.5, 4)]}),
    "product": (4, {"otype": "Composite", "reduction": "Product", "nested": [
        {"n_dims_to_encode": 2, **grid(1, 5, 3, 1.5, interpolation="Smoothstep")}, {"otype": "Identity"}]}),
    "overlap": (3, {"otype": "Composite", "nested": [
        {"n_dims_to_encode": 2, "dims_to_encode_begin": 0, "otype": "Frequency", "n_frequencies": 2},
        {"n_dims_to_encode": 2, "dims_to_encode_begin": 1, "otype": "Identity"}]}),
}  # fmt: skip
ACTIVATIONS = ("None", "ReLU", "LeakyReLU", "SiLU", "Exponential", "Sine", "Sigmoid", "Squareplus", "Softplus", "Tanh")


def check_derivatives(module: tcnn.Module, generator: torch.Generator) -> None:
    """First and second derivatives of a module, float64, against differences."""
    params = (torch.randn(module.params.shape, generator=generator, dtype=torch.float64) / 3).requires_grad_()
    x = torch.rand(3, module.n_input_dims, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    x = (x + 0.0123).requires_grad_()
    inputs = (x, params) if params.numel() else (x,)

    def function(x: Tensor, p: Tensor = params) -> Tensor:
        return module.native_tcnn_module.compute(x, p)

    fast = params.numel() > 50  # then along random directions instead of number by number
    with use_backend("reference"):
        assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-5, fast_mode=fast)
        assert torch.autograd.gradgradcheck(function, inputs, eps=1e-7, atol=1e-4, fast_mode=fast)


@pytest.mark.parametrize("name", ENCODINGS)
def test_derivatives_of_encodings(name: str, generator: torch.Generator) -> None:
    n_input, config = ENCODINGS[name]
    check_derivatives(tcnn.Encoding(n_input, config), generator)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_networks(activation: str, generator: torch.Generator) -> None:
    config = {"otype": "CutlassMLP", "n_neurons": 5, "n_hidden_layers": 2, "activation": activation,
              "output_activation": activation}  # fmt: skip
    check_derivatives(tcnn.Network(2, 2, config), generator)


@pytest.mark.parametrize("name", ["grid", "smoothstep", "harmonics", "composite", "hash-4d"])
def test_derivatives_of_encodings_with_networks(name: str, generator: torch.Generator) -> None:
    n_input, config = ENCODINGS[name]
    network = mlp(8, 1, "Sigmoid", "CutlassMLP") | {"activation": "Softplus"}
    check_derivatives(tcnn.NetworkWithInputEncoding(n_input, 2, config, network), generator)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("has_network", [False, True])
def test_kernels_agree_with_plain_torch(name: str, has_network: bool, generator: torch.Generator) -> None:
    n_input, config = ENCODINGS[name]
    module = (
        tcnn.NetworkWithInputEncoding(n_input, 5, config, mlp(32, 2, "Tanh")) if has_network
        else tcnn.Encoding(n_input, config)
    )  # fmt: skip
    with torch.no_grad():
        module.params.uniform_(-0.4, 0.4, generator=generator)
    x = torch.rand(77, n_input, generator=generator) * 1.2 - 0.1

    def results() -> list[Tensor]:
        own = x.clone().requires_grad_()
        out = module(own)
        (slope,) = torch.autograd.grad(out.sum(), own, create_graph=True)
        loss = slope.square().sum() + out.sum() if slope.requires_grad else out.sum()
        grads = torch.autograd.grad(loss, [own, *module.parameters()], materialize_grads=True)
        return [out.detach(), slope.detach(), *grads]

    fast = results()
    with use_backend("reference"):
        plain = results()
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4 * max(1.0, b.abs().max().item() if b.numel() else 0.0))


@pytest.mark.triton
@pytest.mark.parametrize("has_network", [False, True])
@pytest.mark.parametrize("name", ["grid", "smoothstep"])
def test_modules_on_triton_agree_with_plain_torch(name: str, has_network: bool, generator: torch.Generator) -> None:
    n_input, config = ENCODINGS[name]
    module = (
        tcnn.NetworkWithInputEncoding(n_input, 5, config, mlp(16, 1, "Sigmoid")) if has_network
        else tcnn.Encoding(n_input, config)
    )  # fmt: skip
    with torch.no_grad():
        module.params.uniform_(-0.4, 0.4, generator=generator)
    x = torch.rand(33, n_input, generator=generator)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            own = x.clone().requires_grad_()
            out = module(own)
            (slope,) = torch.autograd.grad(out.sum(), own, create_graph=True)
            grads = torch.autograd.grad(slope.square().sum() + out.sum(), module.params)
            results.append((out.detach(), slope.detach(), *grads))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4 * max(1.0, b.abs().max().item()))


def test_what_runs_where_is_told() -> None:
    lines = dict(coverage(torch.device("cpu")))
    assert lines["Grid, 2-D and 3-D"] == lines["network, ReLU"] == "numba"
    assert "4 dimensions" in lines["Grid, 1-D and 4-D to 7-D"]
    assert "Tanh" in lines["network, other activations"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tcnn.Encoding(3, {"otype": "Nothing"}), "Encoding 'Nothing' not found"),
        (lambda: tcnn.Encoding(2, HARMONICS), "can only encode 3D directions"),
        (lambda: tcnn.Encoding(3, {"otype": "SphericalHarmonics", "degree": 9}), "degree"),
        (lambda: tcnn.Encoding(3, {"otype": "OneBlob", "n_bins": 6}), "power of two"),
        (lambda: tcnn.Encoding(3, {"otype": "HashGrid", "n_features_per_level": 3}), "must be 1, 2, 4, or 8"),
        (lambda: tcnn.Encoding(3, {"otype": "HashGrid", "n_features": 8, "n_levels": 4}), "cannot specify both"),
        (lambda: tcnn.Encoding(3, {"otype": "HashGrid", "interpolation": "Cubic"}), "Invalid interpolation type"),
        (lambda: tcnn.Encoding(9, {"otype": "HashGrid"}), "n_dims"),
        (lambda: tcnn.Encoding(3, {"otype": "Composite"}), "nested"),
        (lambda: tcnn.Encoding(3, {"otype": "Composite", "nested": [{"otype": "Identity"}] * 2}), "single nested"),
        (lambda: tcnn.Encoding(3, "HashGrid"), "expected a dictionary"),
        (lambda: tcnn.Encoding(3, {"otype": "HashGrid", "n_levels": "many"}), "n_levels: expected a number"),
        (lambda: tcnn.Network(3, 1, {"otype": "ResNet"}), "Invalid network type: ResNet"),
        (lambda: tcnn.Network(3, 1, mlp(48, 1)), "16, 32, 64, and 128"),
        (lambda: tcnn.Network(3, 1, mlp(64, 0)), "hidden layer"),
        (lambda: tcnn.Network(3, 1, {"activation": "Cube"}), "Invalid activation name: Cube"),
        (lambda: tcnn.Network(3, 0, {}), "n_output_dims"),
    ],
)
def test_wrong_configurations_are_runtime_errors(make: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        make()


def test_configurations_are_read_as_upstream_does() -> None:
    config = OrderedDict(otype="hashgrid", n_levels=4.9, per_level_scale=np.float64(1.5),
                         log2_hashmap_size=np.int64(10), interpolation="SMOOTHSTEP", n_masking_step=7)  # fmt: skip
    module = tcnn.Encoding(np.int64(3), config)
    assert module.native_tcnn_module.hyperparams() == {
        "base_resolution": 16, "hash": "CoherentPrime", "interpolation": "Smoothstep", "log2_hashmap_size": 10,
        "n_features_per_level": 2, "n_levels": 4, "otype": "Grid", "per_level_scale": 1.5, "type": "Hash",
    }  # fmt: skip
    assert list(module.native_tcnn_module.hyperparams()) == sorted(module.native_tcnn_module.hyperparams())
    assert tcnn.Encoding(2, {}).native_tcnn_module.name() == "OneBlob"
    network = tcnn.Network(3, 2, {"activation": "Leaky ReLU"})
    assert network.native_tcnn_module.hyperparams()["network"] == {
        "activation": "LeakyReLU", "n_hidden_layers": 5, "n_neurons": 128, "otype": "CutlassMLP",
        "output_activation": "None",
    }  # fmt: skip
    assert network.native_tcnn_module.n_output_dims() == 16
    assert "n_input_dims=3, n_output_dims=2, seed=1337" in repr(network)
    assert tcnn.Encoding(3, {"otype": "HashGrid", "n_features": 8}).n_output_dims == 8
    for wrong in (3.0, "3"):
        with pytest.raises(TypeError):
            tcnn.Encoding(wrong, GRID)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="only supports fp32 or fp16"):
        tcnn.Encoding(3, GRID, dtype=torch.bfloat16)


def test_the_public_names() -> None:
    assert tcnn.supports_jit_fusion() is False
    assert tcnn.free_temporary_memory() is None
    native = tcnn.modules._C
    assert (native.batch_size_granularity(), native.has_networks()) == (256, True)
    assert native.default_loss_scale(native.Precision.Fp16) == 128.0
    module = tcnn.Encoding(3, GRID)
    assert (module.dtype, module.loss_scale, module.precision) == (torch.float32, 1.0, native.Precision.Fp32)
    module.jit_fusion = True
    assert module.jit_fusion is False
    with pytest.raises(OSError):
        tcnn.modules.rtc_set_cache_dir("/nowhere/at/all")
    with pytest.raises(AttributeError):
        del module.jit_fusion


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.bool])
def test_inputs_of_any_type(dtype: torch.dtype) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    x = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert torch.equal(module(x.to(dtype)), module(x))
    if dtype.is_floating_point:
        own = x.to(dtype).requires_grad_()
        module(own).sum().backward()
        assert own.grad is not None and own.grad.dtype == dtype


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257])
def test_any_batch(n: int, generator: torch.Generator) -> None:
    for module in (
        tcnn.NetworkWithInputEncoding(3, 33, GRID, mlp(16, 1)),
        tcnn.Network(3, 2, mlp(16, 2)),
        tcnn.Encoding(3, GRID),
        tcnn.Encoding(3, HARMONICS),
    ):
        x = torch.rand(300, 3, generator=generator)
        own = x[:n].clone().requires_grad_()
        out = module(own)
        assert out.shape == (n, module.n_output_dims)
        torch.testing.assert_close(out, module(x)[:n])
        out.sum().backward()
        assert own.grad is not None and own.grad.shape == (n, 3)
        if n == 0 and module.params.numel():
            assert module.params.grad is not None and not module.params.grad.any()


def test_strides_and_leading_axes(generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    x = torch.rand(3, 40, generator=generator)
    expected = module(x.T.contiguous())
    assert torch.equal(module(x.T), expected)
    assert torch.equal(module(x.T.reshape(4, 10, 3)), expected.view(4, 10, 2))
    own = x.clone().requires_grad_()
    module(own.T).T.sum().backward()  # the cotangent is not contiguous either
    assert own.grad is not None and own.grad.shape == (3, 40)
    for wrong in (x, x[0], torch.rand(4, 2)):
        with pytest.raises(RuntimeError, match="check failed"):
            module(wrong)


def test_large_batches_come_in_pieces(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    from hashfield.tcnn import native

    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    x = torch.rand(1000, 3, generator=generator)
    with torch.no_grad():
        whole = module(x)
        monkeypatch.setattr(native, "_FAST_PIECE", 64)
        torch.testing.assert_close(module(x), whole)


def test_grad_mode_and_frozen_parameters(generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 1, GRID | {"interpolation": "Smoothstep"}, mlp(16, 1))
    x = torch.rand(20, 3, generator=generator, requires_grad=True)
    with torch.no_grad():
        assert not module(x).requires_grad
    (expected,) = torch.autograd.grad(module(x).sum(), x)
    module.params.requires_grad_(False)
    (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, expected)  # upstream gives zeros
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert bool(second.isfinite().all()) and bool(second.any())
    assert module.params.grad is None


def test_several_calls_before_one_backward(generator: torch.Generator) -> None:
    module = tcnn.Encoding(3, GRID)
    x, y = torch.rand(20, 3, generator=generator), torch.rand(30, 3, generator=generator)
    (module(x).sum() + module(y).sum()).backward()
    together = module.params.grad
    module.params.grad = None
    module(torch.cat([x, y])).sum().backward()
    assert together is not None and module.params.grad is not None
    torch.testing.assert_close(together, module.params.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies(copied: Any, generator: torch.Generator) -> None:
    for module in (tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1), seed=5), tcnn.Encoding(3, GRID)):
        if copied == "torch.save":
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = copied(module)
        x = torch.rand(9, 3, generator=generator)
        assert torch.equal(other(x), module(x))
        with torch.no_grad():
            other.params.zero_()
        assert not torch.equal(other(x), module(x))


def test_state_dict_round_trip() -> None:
    a, b = tcnn.Encoding(3, GRID, seed=1), tcnn.Encoding(3, GRID, seed=2)
    assert list(a.state_dict()) == ["params"]
    assert not torch.equal(a.params, b.params)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.params, b.params)
    empty = tcnn.Encoding(3, HARMONICS)
    assert empty.state_dict()["params"].shape == (0,)
    empty.load_state_dict(tcnn.Encoding(3, HARMONICS).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        a.load_state_dict({"params": torch.zeros(3)})


def test_a_checkpoint_of_nerfacto_fits() -> None:
    # The keys and sizes of a nerfacto run; the hash tables are made smaller nowhere.
    class Holder(nn.Module):
        def __init__(self, **children: nn.Module) -> None:
            super().__init__()
            for name, child in children.items():
                self.add_module(name, child)

    def base() -> tcnn.Module:
        return tcnn.NetworkWithInputEncoding(3, 16, grid(16, 19, 16, 1.3819128800), mlp(64, 1))

    proposal = tcnn.Encoding(3, grid(5, 17, 16, 1.6817928305))
    field = Holder(
        mlp_base=Holder(model=base()),
        mlp_head=Holder(tcnn_encoding=tcnn.Network(63, 3, mlp(64, 2, "Sigmoid"))),
        direction_encoding=Holder(tcnn_encoding=tcnn.Encoding(3, HARMONICS)),
        position_encoding=Holder(tcnn_encoding=tcnn.Encoding(3, {"otype": "Frequency", "n_frequencies": 2})),
    )
    networks = nn.ModuleList([
        Holder(
            encoding=Holder(tcnn_encoding=proposal),
            mlp_base=nn.Sequential(
                Holder(tcnn_encoding=proposal), Holder(tcnn_encoding=tcnn.Network(10, 1, mlp(16, 1)))
            ),
        )
    ])  # fmt: skip
    sizes = {
        "field.mlp_base.model.params": 12_199_312,
        "field.mlp_head.tcnn_encoding.params": 9_216,
        "field.direction_encoding.tcnn_encoding.params": 0,
        "field.position_encoding.tcnn_encoding.params": 0,
        "proposal_networks.0.encoding.tcnn_encoding.params": 766_528,
        "proposal_networks.0.mlp_base.0.tcnn_encoding.params": 766_528,
        "proposal_networks.0.mlp_base.1.tcnn_encoding.params": 512,
    }
    model = Holder(field=field, proposal_networks=networks)
    model.load_state_dict({name: torch.full((size,), 0.25) for name, size in sizes.items()})
    assert all(bool((p == 0.25).all()) for p in model.parameters())


def test_autocast_changes_nothing(generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1) | {"activation": "Tanh"})
    x = torch.rand(50, 3, generator=generator, requires_grad=True)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        slope.square().sum().backward()
    assert module.params.grad is not None and bool(module.params.grad.isfinite().all())


def test_half_precision_is_honoured(generator: torch.Generator) -> None:
    full = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    half = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1), dtype=torch.float16)
    assert (half.dtype, half.loss_scale, half.params.dtype) == (torch.float16, 128.0, torch.float32)
    x = torch.rand(50, 3, generator=generator)
    with torch.no_grad():
        rounded = copy.deepcopy(full)
        rounded.params.copy_(full.params.half())
        assert torch.equal(half(x), rounded(x).half())
    # A gradient far below half's smallest number arrives, though it must travel as half where the output is half.
    (half(x).float() * 1e-7).sum().backward()
    assert half.params.grad is not None and bool(half.params.grad.any())
    wide = tcnn.Encoding(3, GRID, dtype=torch.float64)
    assert wide(x).dtype == torch.float64
    tcnn.set_default_dtype(torch.float16)
    try:
        assert tcnn.Network(3, 1, mlp(16, 1)).dtype == torch.float16
    finally:
        tcnn.set_default_dtype(None)


@pytest.mark.parametrize("n", [40, 0])
def test_compiled_without_a_break(n: int, generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))

    def loss(x: Tensor) -> Tensor:
        return (module(x * 0.5).sin() + 1).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for function in (loss, compiled):
        x = torch.rand(n, 3, generator=torch.Generator().manual_seed(3)).requires_grad_()
        module.params.grad = None
        value = function(x)
        value.backward()
        assert module.params.grad is not None
        results.append((value.detach(), x.grad, module.params.grad.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_functional_calls(generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    x = torch.rand(7, 3, generator=generator)
    other = torch.randn(module.params.shape, generator=generator)
    expected = module.evaluate(x, other)
    assert torch.equal(torch.func.functional_call(module, {"params": other}, (x,)), expected)
    with torch.no_grad():
        module.params.copy_(other)
    assert torch.equal(module(x), expected)


def test_views_of_parameters(generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 2))
    assert [tuple(m.shape) for m in module.matrices()] == [(16, 16), (16, 16), (16, 16)]
    assert [tuple(module.level(i).shape) for i in range(4)] == [(512, 2), (1024, 2), (1024, 2), (1024, 2)]
    assert torch.equal(torch.cat([m.flatten() for m in module.matrices()]), module.params[:768])
    assert torch.equal(module.level(1), module.params[768 + 1024 :][:2048].view(1024, 2))
    with torch.no_grad():
        module.level(-1).zero_()
    assert not module.params[-2048:].any()
    with pytest.raises(IndexError):
        module.level(4)
    assert tcnn.Encoding(3, GRID).matrices() == []


def test_weights_to_and_from_linear_layers(generator: torch.Generator) -> None:
    x = torch.rand(20, 3, generator=generator)
    module = tcnn.Network(3, 2, mlp(16, 2))
    layers = tcnn.to_linear(module)
    assert [layer.bias is not None for layer in layers] == [True, False, False]
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    torch.testing.assert_close(plain(x), module(x))
    other = tcnn.Network(3, 2, mlp(16, 2), seed=9)
    tcnn.from_linear(other, layers)
    torch.testing.assert_close(other(x), module(x))
    with pytest.raises(RuntimeError, match="expected 3, got 2"):
        tcnn.from_linear(other, layers[:2])
    with pytest.raises(RuntimeError, match="has a bias"):
        tcnn.from_linear(other, [layers[0], nn.Linear(16, 16), layers[2]])
    with pytest.raises(RuntimeError, match="expected a weight of shape"):
        tcnn.from_linear(other, [layers[1], layers[0], layers[2]])
    # Behind harmonics the ones come first, behind a grid there are zeros and no bias.
    harmonics = tcnn.NetworkWithInputEncoding(3, 2, HARMONICS | {"degree": 3}, mlp(16, 1))
    first, last = tcnn.to_linear(harmonics)
    encoded = tcnn.Encoding(3, HARMONICS | {"degree": 3})(x)
    torch.testing.assert_close(last(first(encoded).relu()), harmonics(x))
    with_grid = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    assert [layer.bias is None for layer in tcnn.to_linear(with_grid)] == [True, True]


def test_native_calls_forward_and_back(generator: torch.Generator) -> None:
    module = tcnn.NetworkWithInputEncoding(3, 2, GRID, mlp(16, 1))
    native, params = module.native_tcnn_module, module.params.detach()
    x = torch.rand(10, 3, generator=generator)
    context, out = native.fwd(x, params)
    assert out.shape == (10, 16)
    dout = torch.zeros(10, 16)
    dout[:, :2] = 1.0
    din, dparams = native.bwd(context, x, params, out, dout)
    own = x.clone().requires_grad_()
    module(own).sum().backward()
    torch.testing.assert_close(din, own.grad)
    torch.testing.assert_close(dparams, module.params.grad)
    ddout, _, _ = native.bwd_bwd_input(context, x, params, torch.ones(10, 3), dout)
    assert ddout.shape == (10, 16)


def test_install_gives_the_name(tmp_path: Path) -> None:
    code = (
        "import sys, hashfield.tcnn\n"
        "hashfield.tcnn.install()\n"
        "import tinycudann as tcnn\n"
        "from tinycudann.modules import Module\n"
        "import tinycudann.modules\n"
        "assert issubclass(tcnn.Encoding, Module) and tcnn is hashfield.tcnn\n"
        "hashfield.tcnn.install()\n"
        "print('fine')\n"
    )
    assert run_python(code, tmp_path) == "fine\n"


def test_install_refuses_beside_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "tinycudann.py").write_text("REAL = True\n")
    code = (
        "import hashfield.tcnn\n"
        "try:\n"
        "    hashfield.tcnn.install()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
        "import tinycudann\n"
        "assert tinycudann.REAL\n"
        "hashfield.tcnn.install(force=True)\n"
        "import tinycudann\n"
        "assert tinycudann.Encoding\n"
    )
    assert "is there already" in run_python(code, tmp_path)


def test_the_distribution_of_the_name(tmp_path: Path) -> None:
    code = (
        "import tinycudann as tcnn, tinycudann.modules, hashfield.tcnn\n"
        "assert tcnn.Network is hashfield.tcnn.Network and tcnn.modules is hashfield.tcnn.modules\n"
        "assert tinycudann.modules._C.has_networks()\n"
    )
    source = Path(__file__).parents[2] / "compat" / "tinycudann" / "src"
    run_python(code, tmp_path, source)


def run_python(code: str, folder: Path, *paths: Path) -> str:
    """What a script writes, in a process of its own that sees the modules of a folder; it must succeed."""
    process = script(code, folder, *paths)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_two_processes_share_gradients(tmp_path: Path) -> None:
    code = f"""
import torch
import torch.distributed as dist
from hashfield import tcnn
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=RANK, world_size=2)
model = tcnn.NetworkWithInputEncoding(3, 2, {GRID!r}, {mlp(16, 1)!r})
parallel = torch.nn.parallel.DistributedDataParallel(model)
x = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
parallel(x[RANK * 32 : RANK * 32 + 32]).mean().backward()
alone = tcnn.NetworkWithInputEncoding(3, 2, {GRID!r}, {mlp(16, 1)!r})
alone(x).mean().backward()
torch.testing.assert_close(model.params.grad, alone.params.grad)
dist.destroy_process_group()
"""
    running = [script(code.replace("RANK", str(rank)), tmp_path) for rank in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]

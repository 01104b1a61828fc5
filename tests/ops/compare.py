"""Comparison of a backend with the reference: values, every gradient, in float32 and against float64."""

from typing import Any

import torch
from torch import Tensor

from hashfield.ops.backend import Backend
from tests import tolerances
from tests.ops.cases import OpCase, mapped
from tests.ops.fused import device_of

Results = dict[str, Tensor]


def compare(case: OpCase, backend: Backend, seed: int = 0) -> None:
    """Check a backend on one case.

    Raises:
        AssertionError: a value or gradient is wrong, missing, not finite where the reference is, or of
            another shape or dtype.
    """
    inputs = case.make(torch.Generator().manual_seed(seed))
    exact, exact_grads = evaluate(case, "reference", _double(inputs), seed)
    actual, actual_grads = evaluate(case, backend, inputs, seed)
    if case.is_against_float64:
        for what, found, wanted in (("output", actual, exact), ("gradient to", actual_grads, exact_grads)):
            _check_against_float64(case, what, found, wanted)
        return
    expected, expected_grads = evaluate(case, "reference", inputs, seed)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        bound = case.bound_of(name, tolerances.FAST_OUTPUT)
        check_close(f"output {name}", actual[name], value, bound, case.n_integers_may_differ)
        check_accuracy(f"output {name}", actual[name], value, exact[name])
        if case.each_element is not None:
            check_elements(f"output {name}", actual[name], value, case.each_element)
    assert actual_grads.keys() == expected_grads.keys()
    for name, value in expected_grads.items():
        is_position = name in case.position_like
        bound = tolerances.FAST_POSITION_GRADIENT if is_position else tolerances.FAST_OUTPUT
        check_close(f"gradient to {name}", actual_grads[name], value, case.bound_of(name, bound))
        check_rows(f"gradient to {name}", actual_grads[name], value)
        check_accuracy(f"gradient to {name}", actual_grads[name], value, exact_grads[name])


def check_reference(case: OpCase, seed: int = 0) -> None:
    """Check that the float32 reference stays near the float64 one: that a case is fit to judge a backend by.

    Raises:
        AssertionError: a value or gradient is farther off than rounding explains.
    """
    inputs = case.make(torch.Generator().manual_seed(seed))
    found, exact = evaluate(case, "reference", inputs, seed), evaluate(case, "reference", _double(inputs), seed)
    # A position's rounding grows with the number of cells.
    finest = float(inputs["layout"].resolutions[-1]) if "layout" in inputs else 0.0
    rounding = max(tolerances.REFERENCE_FLOAT32, finest * tolerances.FLOAT32_ENCODING_PER_CELL)
    for what, float32, float64 in zip(("output", "gradient to"), found, exact, strict=True):
        assert float32.keys() == float64.keys()
        for name, value in float64.items():
            bound = 2 * rounding if name in case.position_like else case.bound_of(name, rounding)
            check_close(f"{what} {name}", float32[name].to(value.dtype), value, bound)


def _check_against_float64(case: OpCase, what: str, found: Results, exact: Results) -> None:
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        got = found[name]
        if value.dtype == torch.float64:
            assert got.dtype == torch.float32, f"{what} {name}: {got.dtype}, not float32"
            got = got.double()
        check_close(
            f"{what} {name}", got, value, case.bound_of(name, tolerances.FAST_OUTPUT), case.n_integers_may_differ
        )
        if value.dtype == torch.float64:
            check_rows(f"{what} {name}", got, value)
            if case.each_element is not None:
                check_elements(f"{what} {name}", got, value, case.each_element)


def evaluate(case: OpCase, backend: Backend, inputs: dict[str, Any], seed: int) -> tuple[Results, Results]:
    """Outputs of a case, and the gradient of each differentiable input under random cotangents."""
    device = device_of(backend)
    if device.type != "cpu":
        inputs = {name: mapped(value, lambda x: x.to(device)) for name, value in inputs.items()}
    inputs = {name: _leaf(value, name in case.grads) for name, value in inputs.items()}
    outputs = {name: value.cpu() for name, value in case.call(backend=backend, **inputs).items()}
    leaves = {
        f"{name}[{i}]" if isinstance(inputs[name], list) else name: leaf
        for name in case.grads
        for i, leaf in enumerate(inputs[name] if isinstance(inputs[name], list) else [inputs[name]])
    }
    if not leaves:
        return outputs, {}
    # One generator for all backends, drawn in float32 so that dtypes see the same cotangents.
    generator = torch.Generator().manual_seed(seed + 1)
    scalar = sum(
        (out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum()
        for out in outputs.values()
        if out.requires_grad
    )
    assert isinstance(scalar, Tensor), f"{case.id}: no output of {backend} requires a gradient"
    grads = torch.autograd.grad(scalar, list(leaves.values()))
    return {k: v.detach() for k, v in outputs.items()}, dict(zip(leaves, [g.cpu() for g in grads], strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS(actual - expected) / RMS(expected), with slack for flushed subnormals; 0 for empty tensors."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).square().mean().sqrt()
    scale = expected.square().mean().sqrt()
    return float((difference - tolerances.SUBNORMAL).clamp(min=0) / scale.clamp(min=1e-300))


def check_close(what: str, actual: Tensor, expected: Tensor, bound: float, n_may_differ: int = 0) -> None:
    """Check shape, dtype, finiteness and relative error; of integers all but `n_may_differ` must be equal."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, not {list(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, not {expected.dtype}"
    if not expected.dtype.is_floating_point:
        n_wrong = int((actual != expected).sum())
        assert n_wrong <= n_may_differ, f"{what}: {n_wrong} of {expected.numel()} integers differ"
        return
    finite = torch.isfinite(expected)
    wrong = int((torch.isfinite(actual) != finite).sum())
    assert wrong == 0, f"{what}: {wrong} of {finite.numel()} elements are finite on one side only"
    error = relative_error(actual[finite], expected[finite])
    assert error <= bound, f"{what}: relative error {error:.3g}, bound {bound:g}"


def check_elements(what: str, actual: Tensor, expected: Tensor, bound: float) -> None:
    """Check every element by itself: within `bound` of it, relatively, or absolutely where it is below 1."""
    off = (actual.double() - expected.double()).abs() / expected.double().abs().clamp(min=1.0)
    worst = float(off.max()) if off.numel() else 0.0
    assert worst <= bound, f"{what}: an element is off by {worst:.3g}, bound {bound:g}"


def check_rows(what: str, actual: Tensor, expected: Tensor) -> None:
    """Check that no row of a gradient is zero on one side only."""
    if expected.ndim == 0 or expected.numel() == 0:
        return
    size = expected.flatten(1).abs().amax(1) if expected.ndim > 1 else expected.abs()
    got = actual.flatten(1).abs().amax(1) if actual.ndim > 1 else actual.abs()
    # As in reading a table of figures: rows far below the largest may vanish by rounding.
    large = size >= tolerances.ROW_PRESENCE * size.max()
    dropped = large & (size > tolerances.SUBNORMAL) & (got == 0)
    invented = (size == 0) & (got > tolerances.ROW_PRESENCE * size.max() + tolerances.SUBNORMAL)
    assert not dropped.any(), f"{what}: {int(dropped.sum())} rows are zero that should not be"
    assert not invented.any(), f"{what}: {int(invented.sum())} rows are not zero that should be"


def check_accuracy(what: str, actual: Tensor, float32: Tensor, float64: Tensor) -> None:
    """Check that a backend is not much farther from float64 than the float32 reference is."""
    if not float64.dtype.is_floating_point:
        return
    finite = torch.isfinite(float64) & torch.isfinite(float32)
    own, allowed = (
        relative_error(actual[finite], float64[finite]),
        relative_error(float32[finite], float64[finite]),
    )
    bound = tolerances.FAST_OVER_FLOAT32 * allowed + tolerances.FLOAT64_FLOOR
    assert own <= bound, f"{what}: error against float64 {own:.3g}, the float32 reference has {allowed:.3g}"


def _leaf(value: Any, requires_grad: bool) -> Any:
    def leaf(tensor: Tensor) -> Tensor:
        # detach keeps the strides: a case may hand in what is not contiguous.
        return tensor.detach().requires_grad_(requires_grad) if tensor.dtype.is_floating_point else tensor

    return mapped(value, leaf)


def _double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: mapped(value, lambda x: x.double() if x.dtype == torch.float32 else x) for name, value in inputs.items()
    }

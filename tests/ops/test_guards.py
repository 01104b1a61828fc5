"""The comparison finds planted faults, and the ops' autograd glue is right: shown with fake fast backends.

A fake's honest form is the reference behind the fast backends' interface; each fault changes one thing in it.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference import adam as adam_reference
from hashfield.kernels.reference import composite as composite_reference
from hashfield.kernels.reference import grid_encode as grid_reference
from hashfield.kernels.reference import mlp as mlp_reference
from hashfield.kernels.reference import spherical_harmonics as sh_reference
from hashfield.ops import backend as backend_module
from tests.conftest import poison
from tests.ops.cases import CASES, OpCase
from tests.ops.compare import compare

Fake = dict[str, Callable[..., Any]]


def _vjp(function: Callable[..., Any], inputs: list[Tensor], cotangents: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = function(*leaves)
        grads = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]


def _grid_fake() -> Fake:
    def forward(positions: Tensor, table: Tensor, *options: Any) -> Tensor:
        assert positions.is_contiguous() and table.is_contiguous()
        return grid_reference.grid_encode(positions, table, *options)

    def backward(
        positions: Tensor,
        table: Tensor,
        layout: GridLayout,
        interpolation: str,
        precision: str,
        grad: Tensor,
        needs_table: bool,
        needs_positions: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        def run(p: Tensor, t: Tensor) -> Tensor:
            return grid_reference.grid_encode(p, t, layout, interpolation, precision)

        grad_positions, grad_table = _vjp(run, [positions, table], grad)
        return grad_table if needs_table else None, grad_positions if needs_positions else None

    return {"grid_encode_forward": forward, "grid_encode_backward": backward}


def _sh_fake() -> Fake:
    def backward(directions: Tensor, degree: int, grad: Tensor) -> Tensor:
        return _vjp(lambda d: sh_reference.spherical_harmonics(d, degree), [directions], grad)[0]

    return {
        "spherical_harmonics_forward": sh_reference.spherical_harmonics,
        "spherical_harmonics_backward": backward,
    }


def _mlp_fake() -> Fake:
    def backward(
        x: Tensor, weights: list[Tensor], activation: str, output: str, grad: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        def run(x: Tensor, *weights: Tensor) -> Tensor:
            return mlp_reference.mlp(x, weights, activation, output)

        grad_x, *grad_weights = _vjp(run, [x, *weights], grad)
        return grad_x if needs_x else None, grad_weights

    return {"mlp_forward": mlp_reference.mlp, "mlp_backward": backward}


def _composite_fake() -> Fake:
    def backward(
        color: Tensor,
        density: Tensor,
        t: Tensor,
        dt: Tensor,
        offsets: Tensor,
        background: Tensor,
        cut: float,
        *grads: Tensor,
    ) -> tuple[Tensor, ...]:
        def run(c: Tensor, d: Tensor, b: Tensor) -> Any:
            return composite_reference.composite(c, d, t, dt, offsets, b, cut)

        return tuple(_vjp(run, [color, density, background], grads))

    return {"composite_forward": composite_reference.composite, "composite_backward": backward}


def _adam_fake() -> Fake:
    def step(*args: Any) -> None:
        adam_reference.adam_step(*args[:4], None, *args[4:])

    return {"adam_step": step}


FAKES: dict[str, Callable[[], Fake]] = {
    "grid_encode": _grid_fake,
    "spherical_harmonics": _sh_fake,
    "mlp": _mlp_fake,
    "composite": _composite_fake,
    "adam": _adam_fake,
}


def _plant(monkeypatch: pytest.MonkeyPatch, op: str, fake: Fake) -> None:
    monkeypatch.setitem(backend_module._modules, (op, "numba"), SimpleNamespace(**fake))


def _case(case_id: str) -> OpCase:
    return next(case for case in CASES if case.id == case_id)


# The fakes stand for Numba: of ops that it has a kernel for.
_COVERED = [c for c in CASES if c.id != "grid_encode-4d_hash" and c.op in FAKES]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in _COVERED])
def test_honest_fake_passes(case: OpCase, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, case.op, FAKES[case.op]())
    compare(case, "numba")


def _after(name: str, change: Callable[..., Any]) -> Callable[[Fake], Fake]:
    """A fault that changes what a function returns; `change` sees the result, then the arguments."""

    def plant(fake: Fake) -> Fake:
        honest = fake[name]
        return {**fake, name: lambda *args: change(honest(*args), *args)}

    return plant


def _first_row_unwritten(result: Tensor, *_: Any) -> Tensor:
    result = result.clone()
    poison(result[0])
    return result


def _last_entry_dropped(result: Any, *_: Any) -> Any:
    table, positions = result
    table = table.clone()
    # The smallest of the entries that were reached: invisible in an RMS over the whole table.
    size = table.abs().amax(1)
    reached = torch.nonzero(size > 2e-3 * size.max()).squeeze(1)
    table[reached[size[reached].argmin()]] = 0.0
    return table, positions


def _faces_flipped(result: Tensor, positions: Tensor, table: Tensor, *options: Any) -> Tensor:
    # As if the half-cell shift were missing.
    return grid_reference.grid_encode(positions - 0.5 / float(options[0].scales[-1]), table, *options)


def _clamped(_: Tensor, positions: Tensor, table: Tensor, *options: Any) -> Tensor:
    return grid_reference.grid_encode(positions.clamp(0, 1), table, *options)


def _rounded(_: Tensor, positions: Tensor, table: Tensor, layout: Any, interpolation: str, __: str) -> Tensor:
    truncated = (table.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)
    return grid_reference.grid_encode(positions, truncated, layout, interpolation, "float32")


def _never_cut(_: Any, *args: Any) -> Any:
    return composite_reference.composite(*args[:6], 0.0)


def _background_always(result: Any, *args: Any) -> Any:
    color, opacity, *rest = result
    full = composite_reference.composite(*args[:6], 0.0)
    return torch.where((opacity < full[1])[:, None], full[0], color), opacity, *rest


def _step_before_skip(fake: Fake) -> Fake:
    return {"adam_step": lambda *args: fake["adam_step"](*args[:-1], False)}


FAULTS: list[tuple[str, str, Callable[[Fake], Fake]]] = [
    (
        "grid_encode-3d_hash_n65",
        "output row never written",
        _after("grid_encode_forward", _first_row_unwritten),
    ),
    (
        "grid_encode-3d_hash_n65",
        "small table gradient dropped",
        _after("grid_encode_backward", _last_entry_dropped),
    ),
    (
        "grid_encode-3d_hash_n65",
        "position gradient of the wrong sign",
        _after("grid_encode_backward", lambda r, *_: (r[0], -r[1])),
    ),
    ("grid_encode-3d_hash_n65", "positions shifted", _after("grid_encode_forward", _faces_flipped)),
    ("grid_encode-3d_outside", "positions clamped to the cube", _after("grid_encode_forward", _clamped)),
    ("grid_encode-3d_bfloat16", "bfloat16 by truncation", _after("grid_encode_forward", _rounded)),
    (
        "spherical_harmonics-degree4_n65",
        "one coefficient of the wrong sign",
        _after("spherical_harmonics_forward", lambda r, *_: r * torch.where(torch.arange(16) == 9, -1, 1)),
    ),
    (
        "mlp-density_n65",
        "first matrix without gradient",
        _after("mlp_backward", lambda r, *_: (r[0], [torch.zeros_like(r[1][0]), *r[1][1:]])),
    ),
    (
        "mlp-color_n64",
        "gradient without the sigmoid's slope",
        _after("mlp_backward", lambda r, *_: (r[0] * 4, [w * 4 for w in r[1]])),
    ),
    ("composite-cut_n65", "rays never cut", _after("composite_forward", _never_cut)),
    ("composite-cut_n65", "background behind cut rays", _after("composite_forward", _background_always)),
    (
        "composite-n65",
        "depth divided by opacity",
        _after("composite_forward", lambda r, *_: (r[0], r[1], r[2] / r[1].clamp(min=1e-6), r[3])),
    ),
    (
        "composite-n65",
        "gradient of the background lost",
        _after("composite_backward", lambda r, *_: (r[0], r[1], torch.zeros_like(r[2]))),
    ),
    ("adam-table", "zero gradients not skipped", _step_before_skip),
]


@pytest.mark.parametrize(("case_id", "plant"), [pytest.param(c, plant, id=f"{c}: {what}") for c, what, plant in FAULTS])
def test_planted_fault_is_found(case_id: str, plant: Callable[[Fake], Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(case_id)
    _plant(monkeypatch, case.op, plant(FAKES[case.op]()))
    with pytest.raises(AssertionError):
        compare(case, "numba")


def test_error_inside_a_kernel_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    _plant(monkeypatch, "spherical_harmonics", {"spherical_harmonics_forward": broken})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        ops.spherical_harmonics(torch.zeros(1, 3))


def test_only_needed_gradients_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    fake = _grid_fake()
    honest = fake["grid_encode_backward"]

    def backward(*args: Any) -> Any:
        asked.append((args[-2], args[-1]))
        return honest(*args)

    _plant(monkeypatch, "grid_encode", {**fake, "grid_encode_backward": backward})
    layout = GridLayout(2, 2, 2, 6, 4, 2.0)
    table = torch.zeros(layout.n_entries, 2, requires_grad=True)
    ops.grid_encode(torch.rand(3, 2), table, layout, backend="numba").sum().backward()
    positions = torch.rand(3, 2, requires_grad=True)
    ops.grid_encode(positions, table.detach(), layout, backend="numba").sum().backward()
    assert asked == [(True, False), (False, True)]


def test_fast_backends_refuse_a_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    # Refused, not wrong: the reference has it.
    _plant(monkeypatch, "grid_encode", _grid_fake())
    layout = GridLayout(2, 2, 2, 6, 4, 2.0)
    table = torch.rand(layout.n_entries, 2, requires_grad=True)
    positions = torch.rand(3, 2, requires_grad=True)
    out = ops.grid_encode(positions, table, layout, backend="numba").square().sum()
    (gradient,) = torch.autograd.grad(out, positions, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_poisoned_buffers_show() -> None:
    names: dict[str, Any] = {"__name__": "hashfield.kernels.example", "torch": torch}
    exec(
        "def unwritten():\n"
        "    x = torch.empty(3)\n"
        "    return x, torch.empty_like(x), x.new_empty(2), torch.empty(2, dtype=torch.int64)\n",
        names,
    )
    *floats, integers = names["unwritten"]()
    assert all(bool(x.isnan().all()) for x in floats)
    assert integers.tolist() == [torch.iinfo(torch.int64).max] * 2
    assert not torch.isnan(torch.empty(3).fill_(0)).any()

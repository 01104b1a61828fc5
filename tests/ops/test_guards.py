"""The guards find planted faults, and the ops' autograd glue is right: shown with fake fast backends.

A fake's honest form is the reference behind the fast backends' interface; each fault changes one thing in it. The last
part plants faults in the Triton kernels themselves: for the comparison of values and of gradients, and for the guard of
memory's bounds. The guards of what they are compiled to (registers, spills, shared memory, form of the atomics) have
theirs in test_triton_compile.py.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hashfield import ops
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import PixelPool, RayBatch
from hashfield.kernels.reference import adam as adam_reference
from hashfield.kernels.reference import composite as composite_reference
from hashfield.kernels.reference import grid_encode as grid_reference
from hashfield.kernels.reference import mlp as mlp_reference
from hashfield.kernels.reference import spherical_harmonics as sh_reference
from hashfield.kernels.reference import training_rays as training_rays_reference
from hashfield.ops import backend as backend_module
from tests.conftest import backend_params, poison
from tests.ops.cases import CASES, OpCase
from tests.ops.compare import compare
from tests.ops.fused import INTERPRETED
from tests.ops.memory import checked_memory

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


def _training_rays_fake() -> Fake:
    return {"training_rays": training_rays_reference.training_rays}


FAKES: dict[str, Callable[[], Fake]] = {
    "training_rays": _training_rays_fake,
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


def _pool(change: Callable[[PixelPool], dict[str, Tensor]]) -> Callable[[Fake], Fake]:
    """A fault that reads another pool."""

    def plant(fake: Fake) -> Fake:
        honest = fake["training_rays"]
        return {"training_rays": lambda chosen, pool, box: honest(chosen, replace(pool, **change(pool)), box)}

    return plant


def _batch(**changes: Callable[[Tensor], Tensor]) -> Callable[[Fake], Fake]:
    """A fault that changes some of a batch's tensors, by name."""
    names = ("origin", "direction", "t_min", "t_max", "target", "image_index")

    def change(result: Any, *_: Any) -> Any:
        return tuple(changes.get(name, torch.clone)(x) for name, x in zip(names, result, strict=True))

    return _after("training_rays", change)


def _pixel_moved(columns: float) -> Callable[[Fake], Fake]:
    """A fault that looks through a place of each pixel other than its centre."""

    def moved(pool: PixelPool) -> dict[str, Tensor]:
        table = pool.table.clone()
        table[:, 14] -= columns  # the principal point
        return {"table": table}

    return _pool(moved)


def _one_pixel_late(pool: PixelPool) -> dict[str, Tensor]:
    # As if the last pixel of the hole before each run were trained on, and the run's own last one were not.
    spans = pool.spans.clone()
    spans[1:, 1] -= 1
    return {"spans": spans}


def _without_distortion(pool: PixelPool) -> dict[str, Tensor]:
    table = pool.table.clone()
    table[:, 21:23] = 0.0
    return {"table": table}


FAULTS: list[tuple[str, str, Callable[[Fake], Fake]]] = [
    ("training_rays-n65", "a run begins one pixel early", _pool(_one_pixel_late)),
    ("training_rays-n65", "all photos of one width", _pool(lambda p: {"widths": torch.full_like(p.widths, 80)})),
    ("training_rays-n65", "through the pixels' corners", _pixel_moved(0.5)),
    ("training_rays-n1000", "tangential distortion left out", _pool(_without_distortion)),
    ("training_rays-n65", "a colour of another row", _batch(target=lambda x: x.roll(1, 0))),
    (
        "training_rays-n65",
        "alpha multiplied in",
        _batch(target=lambda x: torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)),
    ),
    ("training_rays-n65", "three units in the last place", _batch(direction=lambda x: x + 3 * 2.0**-24)),
    ("training_rays-from_within", "entry behind the camera", _batch(t_min=lambda x: x - 1e-3)),
    ("training_rays-parallel", "rays on a face miss", _batch(t_max=lambda x: x * (torch.arange(len(x)) % 7 != 3))),
    ("training_rays-n65", "the photo's number lost", _batch(image_index=torch.zeros_like)),
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


# --- the fused ops: kernels as they are, given something a little different from what the reference is given

Inputs = dict[str, Any]


def _given(**changes: Callable[[Any], Any]) -> Callable[[Inputs], Inputs]:
    return lambda inputs: {**inputs, **{name: change(inputs[name]) for name, change in changes.items()}}


def _with(**values: Any) -> Callable[[Any], Any]:
    return lambda record: replace(record, **values)


def _first_target_darker(batch: RayBatch) -> RayBatch:
    target = batch.target.clone()
    target[torch.nonzero(batch.rays.t_max > batch.rays.t_min)[0, 0], 1] *= 0.9
    return replace(batch, target=target)


def _rows_swapped(record: Any) -> Any:
    name = "color_weights" if hasattr(record, "color_weights") else "weights"
    weights = getattr(record, name)
    return replace(record, **{name: (*weights[:-1], weights[-1].flip(0))})


FUSED_FAULTS: list[tuple[str, str, Callable[[Inputs], Inputs]]] = [
    ("train_rays-plain", "bias off by a thousandth", _given(field=_with(density_bias=1.001))),
    ("train_rays-plain", "one channel of one ray", _given(batch=_first_target_darker)),
    ("train_rays-odd", "outputs of the last matrix swapped", _given(field=_rows_swapped)),
    ("train_rays-cone", "other cone", _given(options=_with(cone_angle=1 / 255))),
    ("train_rays-bf16", "table not rounded", _given(field=_with(table_bf16=None))),
    ("train_rays-huber_uncut", "other loss", _given(huber_delta=lambda delta: 1.01 * delta)),
    ("train_rays-sparsity", "entropy counted for more", _given(sparsity=lambda weight: 1.001 * weight)),
    ("train_rays-distortion", "distortion counted for more", _given(distortion=lambda weight: 1.001 * weight)),
    ("train_rays-nearness", "nearness counted for more", _given(nearness=lambda weight: 1.001 * weight)),
    ("train_rays-faint", "faint samples kept", _given(options=_with(min_weight=0.0))),
    ("train_rays-relu", "other activation", _given(field=_with(density_activation="exp", density_bias=1.0))),
    ("render_rays-f4_box1", "longer steps", _given(options=_with(step_scale=2.002))),
    ("render_rays-f4_box1", "bias off by a thousandth", _given(field=_with(density_bias=1.001))),
    ("render_rays-f2_box4", "no jitter", _given(batch=lambda b: replace(b, jitter=torch.zeros_like(b.jitter)))),
    ("render_rays-odd_box1", "outputs of the last matrix swapped", _given(field=_rows_swapped)),
    ("train_points-image", "entries of the table moved", _given(net=lambda n: replace(n, table=n.table.roll(1, 0)))),
    ("train_points-huber", "other loss", _given(huber_delta=lambda delta: 1.01 * delta)),
    ("train_points-grey", "one target", _given(target=lambda t: t + 0.1 * (torch.arange(len(t)) == 3)[:, None])),
    ("eval_points-image", "smoothstep", _given(net=_with(interpolation="smoothstep"))),
    ("eval_points-distance", "bfloat16", _given(net=_with(precision="bfloat16"))),
    ("eval_points-grey", "positions moved by 2^-20", _given(positions=lambda x: x + 2**12)),
    ("eval_points-image_float", "outputs of the last matrix swapped", _given(net=_rows_swapped)),
]


def _fused_params() -> list[Any]:
    params = []
    for case_id, what, change in FUSED_FAULTS:
        op = case_id.split("-")[0]
        for param in backend_params(op, ("numba", "triton")):
            marks = list(param.marks)
            if INTERPRETED and op.endswith("rays"):
                marks = [pytest.mark.skip(reason="too many rays for the interpreter")]
            params.append(pytest.param(case_id, change, *param.values, id=f"{case_id}: {what}-{param.id}", marks=marks))
    return params


@pytest.mark.parametrize(("case_id", "change", "backend"), _fused_params())
def test_fault_in_what_a_fused_op_is_given_is_found(
    case_id: str, change: Callable[[Inputs], Inputs], backend: Any
) -> None:
    case = _case(case_id)

    def call(backend: Any, **inputs: Any) -> dict[str, Tensor]:
        return case.call(backend=backend, **(inputs if backend == "reference" else change(inputs)))

    with pytest.raises(AssertionError, match=r"^(output|gradient)"):
        compare(replace(case, call=call), backend)


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


# --- the Triton kernels

on_triton = pytest.mark.parametrize("backend", backend_params("grid_encode", ("triton",)))
Change = Callable[[tuple[int, ...], list[Any], dict[str, Any]], tuple[tuple[int, ...], list[Any], dict[str, Any]]]
"""What a launch becomes: of its grid, arguments and constants."""


def _constant(name: str, value: Any) -> Change:
    return lambda grid, args, constants: (grid, args, {**constants, name: value})


def _fewer_programs(axis: int) -> Change:
    return lambda grid, args, constants: (
        tuple(g - (k == axis and g > 1) for k, g in enumerate(grid)), args, constants,
    )  # fmt: skip


def _argument(at: int, change: Callable[[Any], Any]) -> Change:
    return lambda grid, args, constants: (grid, [*args[:at], change(args[at]), *args[at + 1 :]], constants)


TRITON_FAULTS: list[tuple[str, str, str, str, Change]] = [
    # case, what, file and kernel whose launches change, how, and which part of the comparison must find it
    ("grid_encode-3d_hash_n65", "last level not looked up", "grid_encode._forward", "output", _fewer_programs(1)),
    ("grid_encode-2d_tiled_odd", "last tile not run", "grid_encode._forward", "output", _fewer_programs(0)),
    ("grid_encode-2d_f2", "positions rounded", "grid_encode._forward", "output",
     _argument(0, lambda x: x.bfloat16().float())),
    ("grid_encode-3d_bfloat16", "not rounded", "grid_encode._forward", "output", _constant("ROUND", False)),
    ("grid_encode-3d_hash_n65", "last level not scattered", "grid_encode.scatter", "gradient", _fewer_programs(1)),
    ("grid_encode-3d_smoothstep", "weights not eased", "grid_encode.scatter", "gradient",
     _constant("INTERPOLATION", "linear")),
    ("grid_encode-3d_smoothstep", "slope of another function", "grid_encode._backward_positions", "gradient",
     _constant("INTERPOLATION", "linear")),
    ("spherical_harmonics-degree4_n65", "degree 4 left out", "spherical_harmonics._backward", "gradient",
     _argument(2, lambda g: g * (torch.arange(16) < 9))),
    ("mlp-density_n65", "last tile not run", "mlp._forward", "output", _fewer_programs(0)),
    ("mlp-color_n64", "gradient without the sigmoid's slope", "mlp._backward", "gradient",
     _constant("OUTPUT_ACTIVATION", "none")),
    ("mlp-density_n65", "one live sample too few", "mlp._backward", "gradient", _argument(1, lambda n: n - 1)),
    ("encoded_mlp-distance", "other corners", "encoded_mlp._forward", "output",
     _constant("INTERPOLATION", "smoothstep")),
    ("composite-cut_n65", "rays never cut", "composite._forward", "output", _argument(1, lambda _: 0.0)),
    ("composite-cut_n65", "gradient of rays never cut", "composite._backward", "gradient", _argument(1, lambda _: 0.0)),
    ("adam-table", "zero gradients not skipped", "adam._adam", "output", _constant("SKIP_ZERO", False)),
]  # fmt: skip


def _change_launches(monkeypatch: pytest.MonkeyPatch, kernel: str, change: Change) -> list[str]:
    """Change the launches of a kernel, named `file.kernel`; the list fills with its launches."""
    file, name = kernel.split(".")
    module = importlib.import_module(f"hashfield.kernels.triton_gpu.{file}")
    launch, wrong, seen = module.launch, getattr(module, name), []

    def changed(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> Any:
        if kernel is wrong:
            seen.append(name)
            grid, args, constants = change(grid, list(args), constants)  # type: ignore[assignment]
        return launch(kernel, grid, *args, **constants)

    monkeypatch.setattr(module, "launch", changed)
    return seen


@on_triton
@pytest.mark.parametrize(
    ("case_id", "kernel", "part", "change"),
    [pytest.param(c, k, part, change, id=f"{c}: {what}") for c, what, k, part, change in TRITON_FAULTS],
)
def test_fault_in_a_triton_kernel_is_found(
    case_id: str, kernel: str, part: str, change: Change, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _change_launches(monkeypatch, kernel, change)
    with pytest.raises(AssertionError, match=f"^{part}"):
        compare(_case(case_id), backend)
    assert seen


@on_triton
def test_the_way_of_planting_does_no_harm(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _change_launches(monkeypatch, "mlp._backward", lambda *launch: launch)
    compare(_case("mlp-color_n64"), backend)
    assert seen == ["_backward"]


def _short(x: Tensor) -> Tensor:
    """Most of a tensor, in memory of its own."""
    return x[: len(x) - len(x) // 4].clone()


@on_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the guard is the interpreter's")
@pytest.mark.parametrize(
    ("case_id", "kernel", "change", "message"),
    [
        ("grid_encode-3d_hash_n65", "grid_encode._forward", _argument(2, _short), "_forward: load of"),
        ("grid_encode-3d_hash_n65", "grid_encode._forward", _argument(3, _short), "_forward: store of"),
        ("grid_encode-3d_hash_n65", "grid_encode.scatter", _argument(3, _short), "scatter: atomic of"),
        ("mlp-density_n65", "mlp._backward", _argument(5, _short), "_backward: atomic of"),
        ("adam-n65", "adam._adam", _argument(1, _short), "_adam: load of"),
    ],
)  # fmt: skip
def test_access_outside_a_launchs_tensors_is_found(
    case_id: str, kernel: str, change: Change, message: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_launches(monkeypatch, kernel, change)
    with checked_memory(), pytest.raises(Exception, match=f"{message} [0-9]+ addresses outside its tensors"):
        compare(_case(case_id), backend)

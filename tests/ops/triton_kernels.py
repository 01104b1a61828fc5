"""Cross-compiles the Triton kernels for cards that are not here, and reads what each needs.

python -m tests.ops.triton_kernels [--target cuda:90 ...] [--only PATTERN] prints one JSON object per kernel,
configuration and target: registers, bytes spilled, shared memory, and how the gradient kernels add. Without a
GPU and without Triton's interpreter. --write-budget records the figures in triton_budget.json, after each kernel, so
that what is interrupted can go on with --missing; --table prints docs/gpu_budget.md, which is made of them.

A configuration is a call of the kernels' own entry points: what they would launch is caught and compiled, so that
nothing here repeats their arguments.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from hashfield.geometry.grid_layout import GridLayout, per_level_scale_between
from hashfield.kernels import triton_gpu

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:89": GPUTarget("cuda", 89, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:120": GPUTarget("cuda", 120, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
BUDGET = Path(__file__).with_name("triton_budget.json")
BUDGETED = ("registers", "stack", "shared")

_TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64", torch.uint8: "u8",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1",
}  # fmt: skip

L8_F4 = GridLayout()
L16_F2 = GridLayout(n_levels=16, n_features_per_level=2, per_level_scale=per_level_scale_between(16, 2048, 16))
IMAGE = GridLayout(2, 16, 2, 15, 16, 1.5)
PICTURE = GridLayout(2, 6, 4, 22, 16, per_level_scale_between(16, 4096, 6))
"""Of the preset for pictures, at 4096 pixels a side."""


# --- configurations ----------------------------------------------------------------------------------------


def _field(layout: GridLayout, dtype: torch.dtype, width: int = 64, table: torch.dtype | None = None) -> Any:
    from hashfield.kernels.triton_gpu.field import DeviceField

    shape = (layout.n_entries, layout.n_features_per_level)
    empty = DeviceField(layout, torch.empty(shape, dtype=table or dtype), torch.empty(0), width, width)
    return DeviceField(layout, empty.table, torch.empty(empty.n_weights, dtype=dtype), width, width)


def _field_step(layout: GridLayout, dtype: torch.dtype, width: int = 64, grad: torch.dtype = torch.float32) -> None:
    from hashfield.kernels.triton_gpu.field import field_backward, field_density, field_forward, scratch_width

    field, n = _field(layout, dtype, width), 256
    positions, vectors, scalars = torch.empty(n, 3), torch.empty(n, 3), torch.empty(n)
    live, features = torch.empty(1, dtype=torch.int32), torch.empty(n, layout.n_output, dtype=dtype)
    field_density(field, positions, live, scalars)
    for in_place in (True, False):
        field_forward(field, positions, vectors, live, scalars, vectors, features=features, encode_in_place=in_place)
    grad_table = torch.empty(field.table.shape, dtype=grad)
    field_backward(
        field, positions, vectors, live, scalars, vectors, grad_table, torch.empty(field.n_weights),
        features=features, grad_features=torch.empty(n, scratch_width(layout), dtype=dtype),
    )  # fmt: skip


def _grid(layout: GridLayout, interpolation: str = "linear", precision: str = "float32") -> None:
    from hashfield.kernels.triton_gpu.grid_encode import grid_encode_backward, grid_encode_forward

    positions = torch.empty(256, layout.n_dims)
    table = torch.empty(layout.n_entries, layout.n_features_per_level)
    grad = torch.empty(256, layout.n_output)
    grid_encode_forward(positions, table, layout, interpolation, precision)
    grid_encode_backward(positions, table, layout, interpolation, precision, grad, True, True)


def _mlp(*widths: int, output: str = "none", precision: str = "float32", needs_x: bool = True) -> None:
    from hashfield.kernels.triton_gpu.mlp import mlp_backward, mlp_forward

    weights = [torch.empty(b, a) for a, b in itertools.pairwise(widths)]
    x, grad = torch.empty(256, widths[0]), torch.empty(256, widths[-1])
    mlp_forward(x, weights, "relu", output, precision)
    mlp_backward(x, weights, "relu", output, grad, needs_x, precision)


def _encoded(layout: GridLayout, *hidden: int, output: str = "none", precision: str = "bfloat16") -> None:
    # The backward pass is the grid's and the network's.
    from hashfield.kernels.triton_gpu.encoded_mlp import encoded_mlp_forward

    widths = (layout.n_output, *hidden)
    weights = [torch.empty(b, a) for a, b in itertools.pairwise(widths)]
    table = torch.empty(layout.n_entries, layout.n_features_per_level)
    encoded_mlp_forward(torch.empty(256, layout.n_dims), table, weights, layout, "linear", output, precision)


def _trace(layout: GridLayout, *hidden: int, precision: str = "float32") -> None:
    from hashfield.geometry.rays import Rays
    from hashfield.kernels.triton_gpu.sphere_trace import sphere_trace
    from hashfield.ops.eval_points import EncodedNetwork

    weights = tuple(torch.empty(b, a) for a, b in itertools.pairwise((layout.n_output, *hidden, 1)))
    table, scalars = torch.empty(layout.n_entries, layout.n_features_per_level), torch.empty(256)
    halves = {"bfloat16": {"table_bf16": table.bfloat16()}, "float16": {"table_fp16": table.half()}}.get(precision, {})
    network = EncodedNetwork(layout, table, weights, precision=precision, **halves)  # type: ignore[arg-type]
    rays = Rays(torch.empty(256, 3), torch.empty(256, 3), scalars, scalars)
    sphere_trace(network, torch.empty(2, 3), rays, 160, 1e-4, 0.95)


def _points(
    layout: GridLayout, *hidden: int, dtype: torch.dtype = torch.float16, loss: str = "l2", fixed: bool = False
) -> None:  # fmt: skip
    from hashfield.kernels.triton_gpu import train_points
    from hashfield.kernels.triton_gpu.encoded_mlp import DeviceNetwork, evaluate
    from hashfield.kernels.triton_gpu.mlp import shape_of

    weights = [torch.empty(b, a) for a, b in itertools.pairwise((layout.n_output, *hidden))]
    n, entries = 256, (layout.n_entries, layout.n_features_per_level)
    flat = torch.empty(sum(w.numel() for w in weights), dtype=dtype)
    network = DeviceNetwork(layout, torch.empty(entries, dtype=dtype), flat, shape_of(weights))
    positions = torch.zeros(n, layout.n_dims, dtype=torch.int32 if fixed else torch.float32)
    live, target = torch.zeros(1, dtype=torch.int32), torch.zeros(n, hidden[-1])
    evaluate(network, positions, live, target)
    train_points.enqueue(
        network, positions, target, live, train_points.Buffers(network, n, dtype), torch.empty(entries), loss=loss,
        huber_delta=0.1, unscale=0.5,
    )  # fmt: skip


def _pixels(dtype: torch.dtype, has_alpha: bool) -> None:
    from hashfield.kernels.triton_gpu.pixel_batch import draw_pixels

    n_channels, n = 4 if has_alpha else 3, 256
    draw_pixels(
        torch.zeros(32, 32, 4, dtype=dtype), torch.zeros(n, dtype=torch.int64), (16, 16), torch.zeros(2, 256),
        torch.zeros(n, 2, dtype=torch.int32), torch.zeros(n, n_channels), has_alpha=has_alpha, is_premultiplied=False,
    )  # fmt: skip


def _harmonics() -> None:
    from hashfield.kernels.triton_gpu.spherical_harmonics import (
        spherical_harmonics_backward,
        spherical_harmonics_forward,
    )

    spherical_harmonics_forward(torch.empty(256, 3), 4)
    spherical_harmonics_backward(torch.empty(256, 3), 4, torch.empty(256, 16))


def _march(aabb_scale: int, has_cone: bool) -> None:
    from hashfield.kernels.triton_gpu import march
    from hashfield.kernels.triton_gpu.common import launch

    n, cascades = 256, aabb_scale.bit_length()
    a, v = torch.zeros(n), torch.zeros(n, 3)
    words = march.as_words(torch.zeros(cascades * 128**3 // 8, dtype=torch.uint8))
    counts, offsets = torch.zeros(n, dtype=torch.int32), torch.zeros(n + 1, dtype=torch.int64)
    for write in (False, True):
        launch(
            march._march, (1,), march.MarchedRays(v, v, a, a, a), words, torch.zeros(9), n, 1024, counts, offsets, a, a,
            WRITE=write, N_CASCADES=cascades, HAS_CONE=has_cone, BLOCK=32, num_warps=1,
        )  # fmt: skip


def _composite() -> None:
    from hashfield.kernels.triton_gpu.composite import composite_backward, composite_forward

    a, v, offsets = torch.zeros(256), torch.zeros(256, 3), torch.zeros(257, dtype=torch.int64)
    composite_forward(v, a, a, a, offsets, v, 0.1)
    composite_backward(v, a, a, a, offsets, v, 0.1, v, a, a, a)


def _adam(short: torch.dtype | None) -> None:
    from hashfield.kernels.triton_gpu.adam import adam_device

    table, options = torch.zeros(1024, 4), {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-15, "l2": 1e-6}
    copy = None if short is None else table.to(short)
    for skip_zero, clear in ((True, True), (False, False)):
        adam_device(
            table, table, table, table, copy, torch.zeros(2), **options, skip_zero=skip_zero, clear=clear, guard=True
        )


def _train_rays(aabb_scale: int, has_cone: bool, huber_delta: float, per_ray: bool = False) -> None:
    from hashfield.kernels.triton_gpu import train_rays
    from hashfield.kernels.triton_gpu.march import as_words

    field, n = _field(L8_F4, HALF), 1024
    a, v = torch.zeros(n), torch.zeros(n, 3)
    batch = train_rays.Batch(
        v, v, a, a, a, torch.zeros(n, 4), v, torch.zeros(1, dtype=torch.int32), a if per_ray else None,
        *((a, a) if has_cone else ()),  # known distances
    )  # fmt: skip
    room = train_rays.RayGradientBuffers.of(a.device, n, n) if per_ray else None
    depth = (0.01, 0.005, 0.0, 0.0) if has_cone else (0.0, 0.0, 0.0, 0.0)
    train_rays.enqueue(
        field, batch, as_words(torch.zeros(aabb_scale.bit_length() * 128**3 // 8, dtype=torch.uint8)), aabb_scale,
        has_cone, train_rays.Buffers(field, n, n), torch.zeros(field.table.shape),
        train_rays.Losses(1e-3, huber_delta, 4.0, *depth), min_weight=1e-3,
        budget=train_rays.RayBudget(float(n), 16.0, 2.0, float(n)), per_ray=room,
    )  # fmt: skip


def _lenses() -> torch.Tensor:
    table = torch.zeros(2, 24, dtype=torch.float64)
    table[:, 16] = torch.tensor([1.0, 2.0])  # both kinds, each of which is code of its own
    return table


def _rays() -> None:
    from hashfield.geometry.rays import PixelPool
    from hashfield.kernels.triton_gpu.camera_rays import camera_rays_forward, view_rays
    from hashfield.kernels.triton_gpu.training_rays import training_rays

    chosen, box = torch.zeros(256, dtype=torch.int64), torch.zeros(6, dtype=torch.float64)
    camera_rays_forward(_lenses(), chosen, torch.zeros(256, 2))
    view_rays(_lenses()[:1], 800, 0, 256, box)
    pixels = torch.zeros(256, 4, dtype=torch.uint8)
    spans = torch.zeros(8, 3, dtype=torch.int64)
    training_rays(chosen, PixelPool(pixels, chosen[:2], chosen[:2], chosen[:2], _lenses(), spans, chosen[:8]), box)


def _render(aabb_scale: int, cone_angle: float) -> None:
    from hashfield.kernels.triton_gpu.render_rays import Frame
    from hashfield.ops.render_rays import MarchOptions

    n_bytes = aabb_scale.bit_length() * 128**3 // 8
    Frame(_field(L8_F4, HALF), 256, MarchOptions(aabb_scale, cone_angle, 1.0), n_bytes)._enqueue()


def _occupancy() -> None:
    from hashfield.kernels.triton_gpu import occupancy_update

    field, n, values = _field(L8_F4, HALF), 256, torch.zeros(2 * 128**3)
    cells, vectors, scalars = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 3), torch.zeros(n)
    live = torch.zeros(1, dtype=torch.int32)
    occupancy_update.refresh_cells_device(values, cells, live, vectors, vectors, scalars, field, 2)
    occupancy_update.occupied_bits(values, 0.01, 2)
    sizes, mask = cells[:2], torch.zeros(n, dtype=torch.uint8)
    for masks in (mask, None):
        occupancy_update.carve(_lenses(), sizes, sizes, sizes, masks, 1, 1, _lenses()[:, 0])


HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
SHIPPED: dict[str, Callable[[], None]] = {
    "field-l8f4-float16": lambda: _field_step(L8_F4, HALF),
    "field-l16f2-float16": lambda: _field_step(L16_F2, HALF),
    "field-l8f4-float16-half_gradients": lambda: _field_step(L8_F4, HALF, grad=HALF),
    "field-l16f2-float16-half_gradients": lambda: _field_step(L16_F2, HALF, grad=HALF),
    "field-l8f4-bfloat16": lambda: _field_step(L8_F4, BFLOAT),
    "field-l16f2-bfloat16": lambda: _field_step(L16_F2, BFLOAT),
    "field-l8f4-float32": lambda: _field_step(L8_F4, FLOAT),
    "field-l8f4-float16-width32": lambda: _field_step(L8_F4, HALF, 32),
    "field-l8f4-float16-width128": lambda: _field_step(L8_F4, HALF, 128),
    "grid-l8f4": lambda: _grid(L8_F4),
    "grid-l16f2": lambda: _grid(L16_F2),
    "grid-l16f2-bfloat16": lambda: _grid(L16_F2, precision="bfloat16"),
    "grid-image": lambda: _grid(IMAGE),
    "grid-l8f4-smoothstep": lambda: _grid(L8_F4, "smoothstep"),
    "grid-l8f4-nearest": lambda: _grid(L8_F4, "nearest"),
    "grid-f1": lambda: _grid(GridLayout(n_levels=4, n_features_per_level=1)),
    "grid-f8": lambda: _grid(GridLayout(n_levels=4, n_features_per_level=8)),
    "mlp-density": lambda: _mlp(32, 64, 16),
    "mlp-color": lambda: _mlp(32, 64, 64, 3, output="sigmoid"),
    "mlp-density-bfloat16": lambda: _mlp(32, 64, 16, precision="bfloat16"),
    "mlp-color-bfloat16": lambda: _mlp(32, 64, 64, 3, output="sigmoid", precision="bfloat16"),
    "mlp-color-bfloat16-width16": lambda: _mlp(32, 16, 16, 3, output="sigmoid", precision="bfloat16"),
    "mlp-color-bfloat16-width128": lambda: _mlp(32, 128, 128, 3, output="sigmoid", precision="bfloat16"),
    "mlp-deep-bfloat16": lambda: _mlp(32, 64, 64, 64, 64, 64, 1, precision="bfloat16"),
    "encoded-image-bfloat16": lambda: _encoded(IMAGE, 64, 64, 3, output="sigmoid"),
    "encoded-distance-bfloat16": lambda: _encoded(L16_F2, 64, 64, 1),
    "encoded-distance-float32": lambda: _encoded(L16_F2, 64, 64, 1, precision="float32"),
    "trace-distance-float16": lambda: _trace(L8_F4, 64, 64, precision="float16"),
    "trace-distance-bfloat16": lambda: _trace(L16_F2, 64, 64, precision="bfloat16"),
    "trace-distance-float32": lambda: _trace(L8_F4, 64, 64),
    "points-picture-float16": lambda: _points(PICTURE, 32, 3, fixed=True),
    "points-picture-float16-width64": lambda: _points(IMAGE, 64, 64, 3, fixed=True),
    "points-picture-bfloat16-width64": lambda: _points(IMAGE, 64, 64, 3, dtype=BFLOAT, fixed=True),
    "points-picture-float32": lambda: _points(PICTURE, 32, 3, dtype=FLOAT, fixed=True),
    "points-distance-float16": lambda: _points(L8_F4, 64, 64, 1, loss="mape"),
    "points-distance-float16-l16f2": lambda: _points(L16_F2, 64, 64, 1, loss="mape"),
    "points-distance-bfloat16": lambda: _points(L8_F4, 64, 64, 1, dtype=BFLOAT, loss="mape"),
    "points-distance-float32": lambda: _points(L8_F4, 64, 64, 1, dtype=FLOAT, loss="mape"),
    "points-distance-float16-width128": lambda: _points(L8_F4, 128, 128, 1, loss="mape"),
    "pixels-uint8": lambda: _pixels(torch.uint8, False),
    "pixels-int16-alpha": lambda: _pixels(torch.int16, True),
    "pixels-float32": lambda: _pixels(FLOAT, False),
    "harmonics": _harmonics,
    "rays": _rays,
    "occupancy": _occupancy,
    "render-object": lambda: _render(1, 0.0),
    "render-capture": lambda: _render(4, 1 / 256),
    "march-object": lambda: _march(1, False),
    "march-capture": lambda: _march(4, True),
    "composite": _composite,
    "adam-float16": lambda: _adam(HALF),
    "adam-bfloat16": lambda: _adam(BFLOAT),
    "adam-float32": lambda: _adam(None),
    "train-object": lambda: _train_rays(1, False, 0.0),
    "train-capture": lambda: _train_rays(4, True, 0.1),
    "train-capture-per_ray": lambda: _train_rays(4, True, 0.1, per_ray=True),
}


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@triton.jit
def scatter_one_by_one(grad_table, index, values, F: tl.constexpr, BLOCK: tl.constexpr):
    """What must not be: the features of an entry added by an atomic each."""
    rows = tl.arange(0, BLOCK)
    start = grad_table + tl.load(index + rows) * F
    for f in tl.static_range(F):
        tl.atomic_add(start + f, tl.load(values + rows * F + f), sem="relaxed")


def _planted_scalar_atomics(dtype: torch.dtype) -> None:
    table, index = torch.empty(100, 4, dtype=dtype), torch.empty(128, dtype=torch.int32)
    scatter_one_by_one[(1,)](table, index, torch.empty(128, 4, dtype=dtype), F=4, BLOCK=128)


def _planted_repetition() -> None:
    from hashfield.kernels.triton_gpu import grid_encode

    right = grid_encode.launch
    with _patched(grid_encode, "launch", lambda *args, **options: right(*args, **options, num_warps=8)):
        _grid(L8_F4)


def _planted_spill() -> None:
    from hashfield.kernels.triton_gpu import field

    with _patched(field, "BACKWARD_TILE", {HALF: (256, 4)}):
        _field_step(L8_F4, HALF)


PLANTED: dict[str, Callable[[], None]] = {
    "planted-scalar_atomics-float16": lambda: _planted_scalar_atomics(HALF),
    "planted-scalar_floats": lambda: _planted_scalar_atomics(FLOAT),
    "planted-repetition": _planted_repetition,
    "planted-spill-float16": _planted_spill,
}
"""Faults that the guards must find: the tests of the tests."""

Launch = tuple[str, JITFunction, dict[str, Any], dict[str, Any]]
"""Name of a kernel, the kernel, its arguments by name, its options."""


# --- compiling ---------------------------------------------------------------------------------------------


def launches(
    call: Callable[[], None], target: str
) -> Iterator[tuple[str, JITFunction, dict[str, Any], dict[str, Any]]]:
    """What a call of entry points would launch on a card: (kernel's name, kernel, arguments, options)."""
    caught: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: Any = None, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages", "enable_fp_fusion") if k in kwargs}
        names = [p.name for p in self.params]
        module = self.fn.__module__.rsplit(".", 1)[-1]
        caught.append((f"{module}.{self.fn.__name__}", self, dict(zip(names, args, strict=False)) | kwargs, options))

    arch = TARGETS[target].arch
    changed: list[tuple[Any, str, Any]] = [(JITFunction, "run", JITFunction.run)]
    JITFunction.run = run  # type: ignore[method-assign]
    for info in pkgutil.iter_modules(triton_gpu.__path__):
        module = importlib.import_module(f"{triton_gpu.__name__}.{info.name}")
        for name, value in (
            ("capability", lambda device: arch if isinstance(arch, int) else 0),
            ("dot_precision", lambda t: "tf32x3" if t == FLOAT and isinstance(arch, int) else "ieee"),
        ):
            if hasattr(module, name):
                changed.append((module, name, getattr(module, name)))
                setattr(module, name, value)
    try:
        call()
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
    seen = set()
    for name, kernel, arguments, options in caught:
        key = (name, str([_shape(p, arguments[p.name]) for p in kernel.params]))
        if key not in seen:
            seen.add(key)
            yield name, kernel, arguments, options


def _shape(parameter: Any, value: Any) -> Any:
    """What a compilation depends on of an argument."""
    if isinstance(value, tuple):
        return [_shape(parameter, part) for part in value]
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return type(value) if parameter.do_not_specialize else value


def source_of(kernel: JITFunction, arguments: dict[str, Any]) -> ASTSource:
    """The kernel specialised as a launch with these arguments would specialise it."""
    signature, constants, attributes = {}, {}, {}

    def kind(path: tuple[int, ...], value: Any, plain: bool, is_constant: bool) -> Any:
        if isinstance(value, tuple) and not is_constant:
            return type(value)(*(kind((*path, k), part, plain, False) for k, part in enumerate(value)))  # a record
        if is_constant or value is None or (isinstance(value, int) and value == 1 and not plain):
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return "*" + _TYPES[value.dtype]
        if isinstance(value, int):
            if value % 16 == 0 and not plain:
                attributes[path] = [["tt.divisibility", 16]]
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        return "fp32"

    for i, parameter in enumerate(kernel.params):
        value, plain = arguments[parameter.name], parameter.do_not_specialize
        signature[parameter.name] = kind((i,), value, plain, parameter.is_constexpr)
    return ASTSource(kernel, signature, constants, attributes)


def launched_as(kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any], target: str) -> ASTSource:
    """The same by Triton's own launch, which needs a card to go further; private to it, so only a test asks."""
    backend = make_backend(TARGETS[target])
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**arguments, **options)
    _, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    return ASTSource(kernel, signature, constants, {path: found for path, found in attributes.items() if found})


_PARTS = ("signature", "constants", "attrs")


def differences(target: str, only: str) -> Iterator[str]:
    """Kernels of the configurations that `source_of` specialises in another way than a launch."""
    for name, call in SHIPPED.items():
        if re.search(only, name):
            for kernel_name, kernel, arguments, options in launches(call, target):
                ours, theirs = source_of(kernel, arguments), launched_as(kernel, arguments, options, target)
                if any(str(getattr(ours, part)) != str(getattr(theirs, part)) for part in _PARTS):
                    yield f"{name} {kernel_name}"


def compile_kernel(
    kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any], target: str
) -> dict[str, Any]:
    """Registers, bytes on the stack (spills), shared memory and atomics of one kernel on one target."""
    compiled = triton.compile(source_of(kernel, arguments), target=TARGETS[target], options=options)
    result: dict[str, Any] = {"warps": options.get("num_warps", 4), "shared": compiled.metadata.shared}
    if target.startswith("cuda"):
        result |= _cubin_usage(compiled.asm["cubin"])
        result["atomics"] = atomics_in(compiled.asm["ptx"])
        result["repeated"] = repeated_assembly(compiled.asm["ttgir"])
    else:
        text = compiled.asm["amdgcn"]
        result["registers"] = int(_only(r"\.vgpr_count:\s+(\d+)", text))
        result["stack"] = int(_only(r"\.private_segment_fixed_size:\s+(\d+)", text))
    return result


def atomics_in(ptx: str) -> dict[str, int]:
    """The atomic instructions of a PTX text, counted by form."""
    counts: dict[str, int] = {}
    for form in re.findall(r"\b((?:red|atom)\.[\w.]+)", ptx):
        counts[form] = counts.get(form, 0) + 1
    return counts


def repeated_assembly(ttgir: str) -> int:
    """How many pieces of inline assembly run in more threads than there are elements: those would add twice."""
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{(.*)\}>", ttgir, re.M))
    count = 0
    for size, layout in re.findall(r"elementwise_inline_asm.*-> tensor<(\d+)xi32, (#\w+)>", ttgir):
        spread = re.findall(r"(?:sizePerThread|threadsPerWarp|warpsPerCTA) = \[(\d+)\]", layouts.get(layout, ""))
        count += len(spread) != 3 or math.prod(map(int, spread)) > int(size)
    return count


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(_only(r"\bREG:(\d+)", text)),
        "stack": int(_only(r"\bSTACK:(\d+)", text)) + int(_only(r"\bLOCAL:(\d+)", text)),
    }


def _only(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} not found in what the compiler reports"
    return found.group(1)


def resources(
    target: str, only: str = "", kernel_only: str = "", skip: Callable[[str], bool] = lambda key: False
) -> Iterator[dict[str, Any]]:
    """One record per kernel of every configuration (planted ones by full name) whose names match the patterns; of those
    to skip only the key."""
    for name, call in (SHIPPED | PLANTED).items():
        if only == name or (name in SHIPPED and re.search(only, name)):
            numbers: dict[str, int] = {}
            for kernel_name, kernel, arguments, options in launches(call, target):
                if not re.search(kernel_only, kernel_name):
                    continue
                k = numbers[kernel_name] = numbers.get(kernel_name, 0) + 1
                label = kernel_name if k == 1 else f"{kernel_name}#{k}"
                key = f"{name} {label} {target}"
                yield {"key": key} | ({} if skip(key) else compile_kernel(kernel, arguments, options, target))


# --- the budget --------------------------------------------------------------------------------------------


def read_budget() -> dict[str, dict[str, int]]:
    """What was recorded."""
    return json.loads(BUDGET.read_text()) if BUDGET.exists() else {}


def write_budget(budget: dict[str, dict[str, int]]) -> None:
    """A line for each record; written aside and renamed, so that no interruption costs any."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(budget[key])}" for key in sorted(budget))
    aside = BUDGET.with_suffix(f".{os.getpid()}")
    aside.write_text("{\n" + lines + "\n}\n")
    aside.replace(BUDGET)


def table_of(budget: dict[str, dict[str, int]]) -> str:
    """The page docs/gpu_budget.md: a row for each configuration and kernel, a column for each target."""
    rows: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for key, record in budget.items():
        configuration, kernel, target = key.split()
        rows.setdefault((configuration, kernel), {})[target] = record
    lines = [PAGE, f"| configuration | kernel | {' | '.join(TARGETS)} |", "|---|---|" + "---|" * len(TARGETS)]
    before = ""
    for configuration, kernel in sorted(rows):
        cells = [_cell(rows[configuration, kernel].get(target)) for target in TARGETS]
        lines.append(f"| {'' if configuration == before else configuration} | {kernel} | {' | '.join(cells)} |")
        before = configuration
    return "\n".join(lines) + "\n"


def _cell(record: dict[str, int] | None) -> str:
    if record is None:
        return ""
    spilled = f", **{record['stack']} B spilled**" if record["stack"] else ""
    return f"{record['registers']} / {record['shared']}{spilled}"


PAGE = """# What the GPU kernels need

Made by `python -m tests.ops.triton_kernels --table > docs/gpu_budget.md` from `tests/ops/triton_budget.json`: registers
of a thread / bytes of shared memory of a program, and what a thread spills. They are the largest that any tested
version of the compiler gave (Triton 3.6 and 3.9); `tests/ops/test_triton_compile.py` holds every compilation to them. A
thread has at most 255 registers on NVIDIA's cards (of 65,536 a multiprocessor), 512 on gfx942. A configuration is a
call of the kernels' own entry points, see `tests/ops/triton_kernels.py`; `#2` is a kernel's second form within it.
"""


def main() -> None:
    """Print the records, and write the budget where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--only", default="", help="pattern of the configurations' names")
    parser.add_argument("--kernel", default="", help="pattern of the kernels' names")
    parser.add_argument("--write-budget", action="store_true", help="record what is larger than what is recorded")
    parser.add_argument(
        "--missing", action="store_true", help="compile only what has no record, and forget what is gone"
    )
    parser.add_argument(
        "--differences", action="store_true", help="only print kernels that a launch specialises otherwise"
    )
    parser.add_argument("--table", action="store_true", help="only print the budget as the page docs/gpu_budget.md")
    args = parser.parse_args()
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", "kernels must be compiled, not interpreted"
    budget = read_budget()
    if args.table:
        sys.stdout.write(table_of(budget))
        return

    if args.differences:
        for target in args.target:
            sys.stdout.writelines(f"{line}\n" for line in differences(target, args.only))
        return

    def is_done(key: str) -> bool:
        return args.missing and key in budget

    for target in args.target:
        seen = set()
        for record in resources(target, args.only, args.kernel, is_done):
            key = record["key"]
            seen.add(key)
            if len(record) == 1:
                continue
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()
            if args.write_budget:
                now = read_budget()  # another target may be at work beside this one
                # Compilers of several versions are in use: the largest figure counts.
                write_budget(now | {key: {k: max(record[k], now.get(key, record)[k]) for k in BUDGETED}})
        if args.write_budget and args.missing and not (args.only or args.kernel):
            now = read_budget()
            write_budget({key: now[key] for key in now if not key.endswith(target) or key in seen})


if __name__ == "__main__":
    main()

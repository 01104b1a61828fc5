"""Every case on every fast backend, against the reference; and the reference itself against float64."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from hashfield.ops.backend import BACKENDS, Backend
from tests.conftest import backend_params
from tests.ops.cases import CASES, OpCase
from tests.ops.compare import check_reference, compare
from tests.ops.fused import INTERPRETED
from tests.ops.memory import checked_memory

# Numpy, which Triton's interpreter computes with, warns of infinities that kernels meet and handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

_FAST = tuple(backend for backend in BACKENDS if backend != "reference")

# What a fast backend leaves to the reference by design.
_REFERENCE_ONLY = {"grid_encode-4d_hash"}


@pytest.fixture(autouse=True)
def within_bounds() -> Iterator[None]:
    """No interpreted kernel may touch memory that is not its own."""
    with checked_memory() if INTERPRETED else nullcontext():
        yield


def _reason_to_skip(case: OpCase, backend: Backend) -> str | None:
    if case.id in _REFERENCE_ONLY:
        return "left to the reference by design"
    if INTERPRETED and backend == "triton" and case.op in ("train_rays", "render_rays"):
        return "too many rays for the interpreter; test_triton_step.py has fewer"
    return None


def _params() -> list[Any]:
    params = []
    for case in CASES:
        for param in backend_params(case.op, _FAST):
            (backend,), marks = param.values, list(param.marks)
            reason = _reason_to_skip(case, backend)
            if reason is not None:
                marks = [pytest.mark.skip(reason=reason)]
            params.append(pytest.param(case, backend, id=f"{case.id}-{backend}", marks=marks))
    return params


@pytest.mark.parametrize(("case", "backend"), _params())
def test_agrees_with_reference(case: OpCase, backend: Backend) -> None:
    compare(case, backend)


_CONTINUOUS = [case for case in CASES if not case.is_at_jumps and not case.is_against_float64]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in _CONTINUOUS])
def test_float32_reference_stays_near_float64(case: OpCase) -> None:
    """A case whose float32 reference is far from float64 allows a backend to be wrong by three times as much."""
    check_reference(case)


def test_a_reference_that_loses_digits_is_found() -> None:
    """With every value rounded to 16 bits no case passes but those without values."""
    passed = []
    for case in (c for c in CASES if c.op in ("composite", "spherical_harmonics", "mlp", "adam")):

        def call(backend: Backend, case: OpCase = case, **inputs: Any) -> dict[str, torch.Tensor]:
            outputs = case.call(backend=backend, **inputs)
            coarse = {name: value.bfloat16().float() for name, value in outputs.items() if value.dtype == torch.float32}
            return {**outputs, **coarse}

        try:
            check_reference(replace(case, call=call))
            passed.append(case.id)
        except AssertionError:
            continue
    assert all(name.endswith(("_n0", "-n0", "no_samples", "degree1")) for name in passed), passed

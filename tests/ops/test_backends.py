"""Every case on every fast backend, against the reference."""

from typing import Any

import pytest

from hashfield.ops.backend import BACKENDS, Backend
from tests.conftest import backend_params
from tests.ops.cases import CASES, OpCase
from tests.ops.compare import compare

_FAST = tuple(backend for backend in BACKENDS if backend != "reference")

# What a fast backend leaves to the reference by design.
_REFERENCE_ONLY = {"grid_encode-4d_hash"}


def _params() -> list[Any]:
    params = []
    for case in CASES:
        for param in backend_params(case.op, _FAST):
            marks = list(param.marks)
            if case.id in _REFERENCE_ONLY:
                marks = [pytest.mark.skip(reason="left to the reference by design")]
            params.append(pytest.param(case, *param.values, id=f"{case.id}-{param.id}", marks=marks))
    return params


@pytest.mark.parametrize(("case", "backend"), _params())
def test_agrees_with_reference(case: OpCase, backend: Backend) -> None:
    compare(case, backend)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_reference_agrees_with_itself(case: OpCase) -> None:
    # The cases and the comparison are sound: float32 stays near float64 and nothing is left unwritten.
    compare(case, "reference")

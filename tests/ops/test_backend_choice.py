"""Which backend runs, and what is said when one cannot."""

import logging
from types import SimpleNamespace

import pytest
import torch

from hashfield import log, ops
from hashfield.errors import BackendError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.kernels.reference import spherical_harmonics as sh_reference
from hashfield.ops import backend as backend_module
from hashfield.ops.backend import BACKENDS, ENVIRONMENT_VARIABLE, choose, requested_backend, use_backend

OP = "spherical_harmonics"
X = torch.zeros(2, 3)


@pytest.fixture
def numba_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake Numba kernel whose answer is told apart from the reference's."""
    fake = SimpleNamespace(spherical_harmonics_forward=lambda d, degree: torch.full((len(d), degree**2), 7.0))
    monkeypatch.setitem(backend_module._modules, (OP, "numba"), fake)


def _ran_numba(backend: ops.Backend | None = None) -> bool:
    return bool((ops.spherical_harmonics(X, backend=backend) == 7).all())


@pytest.mark.usefixtures("numba_marker")
def test_automatic_choice_on_cpu_is_numba() -> None:
    assert _ran_numba()


@pytest.mark.usefixtures("numba_marker")
def test_argument_beats_context_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert not _ran_numba()
    with use_backend("numba"):
        assert _ran_numba()
        with use_backend("reference"):
            assert not _ran_numba()
            assert _ran_numba("numba")
        assert _ran_numba()
    assert requested_backend() == "reference"


@pytest.mark.usefixtures("numba_marker")
def test_automatic_choice_falls_back_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_said", set())
    with caplog.at_level(logging.WARNING, logger="hashfield"):
        for _ in range(2):
            out = ops.spherical_harmonics(X.double())
    torch.testing.assert_close(out, sh_reference.spherical_harmonics(X.double()))
    assert [record.message for record in caplog.records] == [
        "spherical_harmonics: numba does not take this call (a tensor is float64, it needs float32); "
        "using the torch reference, which is slower"
    ]


def test_ops_of_plain_torch_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hashfield"), use_backend("numba"):
        ops.morton3(torch.zeros(1, 3, dtype=torch.int64))
        ops.ray_box(X, X, X[0], X[0] + 1)
    assert caplog.records == []


def test_backend_asked_for_that_cannot_is_an_error() -> None:
    with pytest.raises(
        BackendError,
        match=r"^spherical_harmonics: backend 'numba' cannot take this call: "
        r"a tensor is float64, it needs float32$",
    ):
        ops.spherical_harmonics(X.double(), backend="numba")
    with use_backend("numba"), pytest.raises(BackendError, match="it needs float32"):
        ops.spherical_harmonics(X.double())
    with pytest.raises(BackendError, match=r"ray_box: .* not built"):
        ops.ray_box(X, X, X[0], X[0], backend="numba")


def test_limits_of_an_op_are_named() -> None:
    layout = GridLayout(4, 2, 2, 6, 3, 1.5)
    table = torch.zeros(layout.n_entries, 2)
    with pytest.raises(BackendError, match="4 dimensions, it covers 2 and 3"):
        ops.grid_encode(torch.zeros(1, 4), table, layout, backend="numba")


def test_limits_of_networks_and_adam_are_named() -> None:
    weights = [torch.zeros(4, 3), torch.zeros(2, 4)]
    with pytest.raises(BackendError, match="activation 'sigmoid', it covers 'relu'"):
        ops.mlp(X, weights, activation="sigmoid", backend="numba")
    with pytest.raises(BackendError, match="precision 'bfloat16', it covers 'float32'"):
        ops.mlp(X, weights, precision="bfloat16", backend="numba")
    counts = torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(BackendError, match="counts per scalar"):
        ops.adam(X.clone(), X, X.clone(), X.clone(), counts, learning_rate=0.1, backend="numba")


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "expected one of reference, numba, triton, got 'cuda'"
    with pytest.raises(BackendError, match=f"^backend: {expected}$"):
        ops.spherical_harmonics(X, backend="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BackendError, match=f"^use_backend: {expected}$"), use_backend("cuda"):  # pyright: ignore
        pass
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(BackendError, match=f"^HASHFIELD_BACKEND: {expected}$"):
        ops.spherical_harmonics(X)


def test_reasons_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backend_module.importlib.util.find_spec
    monkeypatch.setattr(backend_module, "_modules", {})

    def without(missing: str) -> None:
        monkeypatch.setattr(
            backend_module.importlib.util, "find_spec", lambda name: None if name == missing else found(name)
        )

    without("numba")
    assert ops.why_not(OP, "numba") == "numba is not installed"
    without("hashfield.kernels.numba_cpu.spherical_harmonics")
    assert ops.why_not(OP, "numba") == "not built"
    assert ops.why_not(OP, "reference", X.double()) is None
    assert ops.why_not("ray_box", "numba") == "not built (this op runs in plain torch)"


def test_tensor_on_the_wrong_device_is_the_reason() -> None:
    monkey = torch.zeros(2, 3, device="meta")
    reason = backend_module._unfit("numba", (monkey,))
    assert reason == "a tensor is on meta, it needs cpu"
    assert backend_module._unfit("triton", (X,)) == "a tensor is on cpu, it needs cuda"


@pytest.mark.parametrize("op", backend_module.ops())
def test_every_op_of_the_table_has_a_reference(op: str) -> None:
    assert choose(op, "reference", X).is_reference
    reasons = ops.available_backends(op)
    assert tuple(reasons) == BACKENDS
    assert reasons["reference"] is None

"""What all tests share: shape checks at run time, poisoned buffers, seeds, the backends, real data."""

import ctypes
import gc
import hashlib
import importlib.util
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: threads of its loops that wait then sleep. Spinning, those of one test process take the
# cores from the other's, which made some trainings two and a half times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Processes that tests start find the package compiled by the one before, whatever the shell says: to compile it anew
# costs each of them half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts jobs in the background deaf to Ctrl-C, and so would be all that tests start to try it on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  the hook finds it as an attribute of `tests`

# What torch, Numba and pytest keep are millions of objects: to look through them for garbage as often as usual takes an
# eighth of the suite's time.
gc.set_threshold(50_000, 20, 20)

# Let glibc keep what is freed: it gives large arrays back to the system, which clears every page of the next one, and
# that took as long as to compute with them. Its numbers are M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
if platform.libc_ver()[0] == "glibc":
    for option, size in ((-3, 2**30), (-1, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(option, size)

# No test asserts on time: where others use the machine, any example may take long.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

TEST_BACKENDS = "HASHFIELD_TEST_BACKENDS"
INSISTED = tuple(filter(None, os.environ.get(TEST_BACKENDS, "").split(",")))
if "triton" in INSISTED and not torch.cuda.is_available():
    # Before Triton is imported: its kernels then run on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"

# Before the first import of the modules named. Left out are those that check their arguments themselves, with
# messages that tests read (ops, configurations), and compiled kernels: the hook would decorate functions that
# Numba and Triton must see bare.
install_import_hook(
    [
        "hashfield.geometry.rays",
        "hashfield.kernels.reference",
        "hashfield.nn.encodings",
        "hashfield.nn.fields",
        "hashfield.nn.networks",
    ],
    "tests.typecheck.checked",
)

from hashfield.ops.backend import BACKENDS, ENVIRONMENT_VARIABLE, Backend, requested_backend, why_not  # noqa: E402

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real data sets is not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def generator() -> torch.Generator:
    """A generator with a fixed seed, for this test alone."""
    return torch.Generator().manual_seed(20220715)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same start of the global generators."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def automatic_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that name no backend see the automatic choice, whatever the shell says."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture(autouse=True, scope="session")
def poisoned_empty() -> Iterator[None]:
    """Fill what the library gets from torch.empty and its kin with NaN or huge integers.

    An element that a kernel forgets to write then shows. (numpy.empty is left alone: Numba must recognise
    it.)
    """
    patch = pytest.MonkeyPatch()
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        patch.setattr(owner, name, _poisoned(getattr(owner, name)))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def carved_once() -> Iterator[None]:
    """Let radiance fields that are trained on the same photos share their carved cells.

    To carve takes as long as a hundred of their steps, and dozens of tests train on one small scene.
    """
    from hashfield.tasks import nerf

    kept: dict[str, torch.Tensor] = {}
    lock = threading.Lock()
    real = nerf.carve

    def carve(*tensors: torch.Tensor | None, **options: Any) -> torch.Tensor:
        given = [*tensors, options.get("near")]
        key = hashlib.sha256(f"{requested_backend()} {options.get('aabb_scale')} {options.get('fewest')}".encode())
        for tensor in given:
            key.update(b"None" if tensor is None else f"{tensor.device} {tensor.shape}".encode())
            key.update(b"" if tensor is None else tensor.cpu().numpy().tobytes())
        with lock:
            if key.hexdigest() not in kept:
                kept[key.hexdigest()] = real(*tensors, **options)
            return kept[key.hexdigest()].clone()

    patch = pytest.MonkeyPatch()
    patch.setattr(nerf, "carve", carve)
    yield
    patch.undo()


def _poisoned(function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        tensor = function(*args, **kwargs)
        if sys._getframe(1).f_globals.get("__name__", "").startswith("hashfield."):
            with torch.no_grad():
                poison(tensor)
        return tensor

    return wrapper


def poison(tensor: torch.Tensor) -> None:
    """Overwrite a tensor with NaN, or with the largest integer of its type."""
    if tensor.dtype.is_floating_point:
        tensor.fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).max)


def backend_params(op: str, backends: tuple[Backend, ...] = BACKENDS) -> list[Any]:
    """One pytest parameter per backend of an op; those that cannot run here are skipped with the reason.

    A backend named in the environment variable HASHFIELD_TEST_BACKENDS (comma-separated) is never skipped.
    """
    params = []
    for backend in backends:
        reason = why_not(op, backend)
        if reason is None and backend == "triton":
            reason = why_no_triton()
        skip = reason is not None and backend not in INSISTED
        marks = [pytest.mark.skip(reason=f"{op}, {backend}: {reason}")] if skip else []
        params.append(pytest.param(backend, id=backend, marks=marks))
    return params


def why_no_triton() -> str | None:
    """Why Triton's kernels cannot run here, or None. Without a GPU they run where the interpreter is asked for."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'hashfield[gpu]')"
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"no CUDA device; {TEST_BACKENDS}=triton runs these in Triton's interpreter"


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers below."""
    config.addinivalue_line("markers", "op(name): run once per backend of this op, given as `backend`")
    config.addinivalue_line("markers", "triton: needs Triton's kernels to run, on a GPU or in the interpreter")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process of `pytest -n` one stretch of the tests, and to one that is done the end of another's.

    A module's trainings and its kernels are then made by one process; dealt out in turn, both would make them.
    """
    if config.getoption("dist") != "load":  # asked for by name
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs Triton where it cannot run; with HASHFIELD_TEST_BACKENDS=triton run nothing else."""
    # Those of the ops last: they compile kernels in float32, all others in bfloat16 where the processor has it. Of two
    # processes, which begin at the start and in the middle, each then compiles its own kind.
    items.sort(key=lambda item: "ops" in item.path.parts)
    reason = why_no_triton()
    for item in items:
        if reason is not None and "triton" not in INSISTED and item.get_closest_marker("triton"):
            item.add_marker(pytest.mark.skip(reason=reason))
    if INSISTED == ("triton",):
        chosen = [item for item in items if _is_about_triton(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _is_about_triton(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    is_case = callspec is not None and callspec.params.get("backend") == "triton"
    return is_case or item.get_closest_marker("triton") is not None or "triton" in item.path.name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `backend` to tests marked with @pytest.mark.op."""
    marker = metafunc.definition.get_closest_marker("op")
    if marker is not None and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backend_params(marker.args[0]))

"""Which implementation of an op runs: names, choice, reasons, loading.

Order of choice: the `backend=` argument, `with use_backend(...)`, the environment variable HASHFIELD_BACKEND,
then automatically by the device of the first tensor (cuda: triton, cpu: numba, else reference). A backend
asked for by name that cannot take the call is an error; an automatic choice that cannot falls back to the
reference and says so once. Errors inside a kernel always reach the caller.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from hashfield.errors import BackendError
from hashfield.log import warn_once

Backend = Literal["reference", "numba", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

ENVIRONMENT_VARIABLE = "HASHFIELD_BACKEND"
INTERPRETER_VARIABLE = "TRITON_INTERPRET"
"""Triton's own: with 1, set before the first op runs, its kernels are interpreted on CPU tensors. For tests."""

Limit = Callable[[Backend], str | None]
"""Tells for a backend why it cannot take this very call (an option, a number of dimensions), or None."""

_FOLDERS: dict[Backend, str] = {
    "reference": "hashfield.kernels.reference",
    "numba": "hashfield.kernels.numba_cpu",
    "triton": "hashfield.kernels.triton_gpu",
}
_LIBRARIES: dict[Backend, str] = {"numba": "numba", "triton": "triton"}
_DEVICES: dict[Backend, str] = {"numba": "cpu", "triton": "cuda"}
_AUTOMATIC: dict[str, Backend] = {"cpu": "numba", "cuda": "triton"}

# Ops that have, or are meant to get, a fast implementation under the op's own name. For every other op plain
# torch is the intended path on every device, and nothing is logged when it runs.
_FAST: dict[str, tuple[Backend, ...]] = {
    "grid_encode": ("numba", "triton"),
    "grid_encode_second": ("numba",),
    "spherical_harmonics": ("numba", "triton"),
    "mlp": ("numba", "triton"),
    "encoded_mlp": ("triton",),
    "march": ("numba", "triton"),
    "composite": ("numba", "triton"),
    "adam": ("numba", "triton"),
    "render_rays": ("numba", "triton"),
    "train_rays": ("numba", "triton"),
    "eval_points": ("numba", "triton"),
    "train_points": ("numba", "triton"),
    "sphere_trace": ("triton",),
    "occupancy_update": ("numba", "triton"),
    "training_rays": ("numba", "triton"),
    "camera_rays": ("numba", "triton"),
    "elementwise_encode": (),
    "total_variation": (),
    "pixel_batch": ("numba", "triton"),
    "touched_rows": ("numba",),
    "ray_box": (),
    "occupancy": (),
}

_forced: ContextVar[Backend | None] = ContextVar("hashfield_backend", default=None)
_modules: dict[tuple[str, Backend], ModuleType] = {}


@dataclass(frozen=True)
class Choice:
    """The implementation chosen for one call."""

    name: Backend
    """Name of the chosen backend."""
    kernels: ModuleType
    """The module that holds its functions."""

    @property
    def is_reference(self) -> bool:
        """Whether the plain torch function runs, with autograd's own gradient."""
        return self.name == "reference"


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Within the block, ops called without `backend=` use this one, or raise if they cannot.

    Ops that have no implementation of their own for it (such as `ray_box`) run in plain torch as always.

    >>> with use_backend("reference"):
    ...     requested_backend()
    'reference'
    """
    token = _forced.set(_known(backend, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def requested_backend() -> Backend | None:
    """The backend that the context or the environment asks for, or None where the choice is automatic."""
    forced = _forced.get()
    if forced is not None:
        return forced
    named = os.environ.get(ENVIRONMENT_VARIABLE, "")
    return _known(named, ENVIRONMENT_VARIABLE) if named else None


def why_not(op: str, backend: Backend, *tensors: Tensor, limit: Limit | None = None) -> str | None:
    """The reason a backend cannot take a call, or None if it can.

    Args:
        op: Name of the op, as its file.
        backend: The backend in question.
        tensors: The call's tensors, judged by device and dtype; without any, only availability is judged.
        limit: The op's own reasons.
    """
    _known(backend, "backend")
    if backend != "reference":
        reason = _unavailable(op, backend) or _unfit(backend, tensors)
        if reason:
            return reason
    return limit(backend) if limit else None


def choose(op: str, backend: Backend | None, *tensors: Tensor, limit: Limit | None = None) -> Choice:
    """The implementation that takes this call.

    Args:
        op: Name of the op, as its file.
        backend: What the caller asked for, or None.
        tensors: The call's tensors; the first decides the device where the choice is automatic.
        limit: The op's own reasons against a backend.

    Raises:
        BackendError: a backend asked for by name cannot take the call; the text says why.
    """
    if backend is not None:
        return _require_support(op, _known(backend, "backend"), tensors, limit)
    requested = requested_backend()
    if requested is not None:
        # A whole program run under one backend must still get through the ops that exist in torch only.
        name: Backend = requested if _FAST[op] else "reference"
        return _require_support(op, name, tensors, limit)
    name = _AUTOMATIC.get(tensors[0].device.type, "reference")
    if name not in _FAST[op]:
        name = "reference"
    if name == "reference":
        return _require_support(op, name, tensors, limit)
    reason = why_not(op, name, *tensors, limit=limit)
    if reason is not None:
        warn_once(f"{op}: {name} does not take this call ({reason}); using the torch reference, which is slower")
        return _require_support(op, "reference", tensors, limit)
    return Choice(name, _load(op, name))


def fused_choice(op: str, backend: Backend | None, *tensors: Tensor, limit: Limit | None = None) -> Choice | None:
    """The implementation that takes all stages of a composed op at once, or None where the stages run one by one.

    Args:
        op: Name of the op, as its file.
        backend: What the caller asked for, or None.
        tensors: The call's tensors; the first decides the device where the choice is automatic.
        limit: The op's own reasons against a backend.
    """
    name = backend or requested_backend() or _AUTOMATIC.get(tensors[0].device.type, "reference")
    if name not in _FAST[op] or why_not(op, name, *tensors, limit=limit) is not None:
        return None
    return Choice(name, _load(op, name))


def available_backends(op: str) -> dict[Backend, str | None]:
    """Every backend of an op with the reason it cannot run on this machine, or None where it can."""
    return {backend: why_not(op, backend) for backend in BACKENDS}


def fast_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision in which networks run fastest on a device: "bfloat16" on CPUs that multiply pairs of them."""
    if device.type != "cpu" or _unavailable("train_rays", "numba"):
        return "float32"
    from hashfield.kernels.numba_cpu.target import HAS_BF16_DOT, HAS_TILES

    return "bfloat16" if HAS_BF16_DOT or HAS_TILES else "float32"


def runs_on_triton(device: torch.device) -> bool:
    """Whether what lies on this device is trained and rendered by the Triton kernels: on CUDA devices, and on the CPU
    where their interpreter is asked for by name."""
    wanted = requested_backend() or _AUTOMATIC.get(device.type)
    return wanted == "triton" and why_not("train_rays", "triton", torch.empty(0, device=device)) is None


def kernel_path() -> str:
    """What the CPU kernels are compiled for, e.g. "avx512_bf16"; "no kernels" where Numba is missing."""
    if _unavailable("grid_encode", "numba"):
        return "no kernels"
    from hashfield.kernels.numba_cpu.target import PATH

    return PATH


def ops() -> tuple[str, ...]:
    """Names of all ops in the table."""
    return tuple(_FAST)


def _require_support(op: str, name: Backend, tensors: tuple[Tensor, ...], limit: Limit | None) -> Choice:
    reason = why_not(op, name, *tensors, limit=limit)
    if reason is not None:
        raise BackendError(f"{op}: backend {name!r} cannot take this call: {reason}")
    return Choice(name, _load(op, name))


def _known(name: str, source: str) -> Backend:
    if name not in BACKENDS:
        raise BackendError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return cast(Backend, name)


def _unavailable(op: str, backend: Backend) -> str | None:
    if (op, backend) in _modules:
        return None
    if backend not in _FAST[op]:
        return "its stages run one by one" if _FAST[op] else "not built (this op runs in plain torch)"
    library = _LIBRARIES[backend]
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed"
    # Looked for, not tried: an ImportError inside an existing kernel module is a bug and must show.
    if importlib.util.find_spec(f"{_FOLDERS[backend]}.{op}") is None:
        return "not built"
    return None


def _unfit(backend: Backend, tensors: tuple[Tensor, ...]) -> str | None:
    device = _DEVICES[backend]
    if backend == "triton" and os.environ.get(INTERPRETER_VARIABLE) == "1":
        device = "cpu"  # its interpreter runs on the host, for tests
    for tensor in tensors:
        if tensor.device.type != device:
            return f"a tensor is on {tensor.device}, it needs {device}"
        if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
            return f"a tensor is {str(tensor.dtype).removeprefix('torch.')}, it needs float32"
    return None


def _load(op: str, backend: Backend) -> ModuleType:
    key = (op, backend)
    if key not in _modules:
        _modules[key] = importlib.import_module(f"{_FOLDERS[backend]}.{op}")
    return _modules[key]

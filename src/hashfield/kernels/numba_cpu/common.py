"""What every CPU kernel shares: compile cache, threads, denormals, small vector functions."""

import hashlib
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import llvmlite
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import intrinsic, overload

from hashfield.kernels.numba_cpu import simd
from hashfield.kernels.numba_cpu.simd import LANES, floor, fma, maximum, minimum, splat, to_int_fast
from hashfield.kernels.numba_cpu.target import ARE_TILES_EMULATED, PATH, host_features
from hashfield.user_cache import user_cache

# --- compile cache -----------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The user's folder of compiled kernels, named by everything that decides what the machine code is.

    Numba's own cache looks only at the file of the compiled function, so a change in a file that generates
    vector code would go unnoticed; hence one folder per hash of all kernel sources.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    features = ",".join(name for name, on in sorted(host_features().items()) if on)
    digest.update(f"{numba.__version__} {llvmlite.__version__} {PATH} {ARE_TILES_EMULATED} {LANES} {features}".encode())
    digest.update(f"{sys.version_info[:2]} {platform.machine()}".encode())
    return user_cache() / f"kernels-{digest.hexdigest()[:16]}"


_CACHE = cache_folder()


def _forget_old_caches(root: Path, days: float = 60.0) -> None:
    """Remove the folders of other versions that nobody has used for so long; each is some 20 MB."""
    for folder in root.glob("kernels-*"):
        try:
            if folder.is_dir() and not folder.is_symlink() and time.time() - folder.stat().st_mtime > days * 86400:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # it went, or is not ours to judge


def _usable_cache() -> bool:
    try:
        if not _CACHE.exists():
            _forget_old_caches(_CACHE.parent)
        _CACHE.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(_CACHE)  # used today
        if os.name == "posix":
            if _CACHE.stat().st_uid != os.getuid():
                return False  # someone else's machine code is never loaded
            _CACHE.chmod(0o700)
        return os.access(_CACHE, os.W_OK)
    except OSError:
        return False


_CACHE_USABLE = _usable_cache()


def is_cache_warm() -> bool:
    """Whether compiled kernels of this very version lie in the cache (all of them or only some)."""
    return _CACHE_USABLE and next(_CACHE.rglob("*.nbc"), None) is not None


def kernel(function):
    """`@njit` with the cache in the user's own folder, without changing the process's Numba settings.

    A kernel's last two parameters are `thread` and `threads`: it does that share of the work. See `launch`.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_CACHE)
    try:
        compiled = njit(function, cache=_CACHE_USABLE, nogil=True, error_model="numpy")
    finally:
        config.CACHE_DIR = before
    _name_apart(compiled)
    return compiled


def _name_apart(compiled) -> None:
    """Give every entry of a kernel's cache a file name that no other process will choose.

    Numba numbers the files of a function's machine code and writes the index before the code. Two processes that compile
    for different types at the same time choose the same number, and the index of one may then name the code of the other:
    whoever loads it computes nonsense. With names apart, the worst is an entry that is lost and compiled again.
    """
    file = getattr(compiled._cache, "_cache_file", None)  # none where nothing is cached
    if file is not None:
        stem = file._index_name.removesuffix(".nbi")
        file._data_name = lambda number: f"{stem}.{uuid.uuid4().hex[:16]}.nbc"


# --- what kernels call -------------------------------------------------------------------------------------
# Numba optimises a function and makes machine code of it, then does both again for each function or kernel that calls
# it, whose module holds a copy. Of what only kernels call, that machine code never runs, and what optimising it finds is
# found again when the kernel is optimised as a whole. Both are left out, which is half of the time of compiling; the
# kernels compute the same bits, as fast.


class _CalledLibrary(JITCodeLibrary):
    """Code that waits to become part of a kernel: neither optimised nor made into machine code by itself."""

    def _optimize_functions(self, ll_module):
        pass

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        """No address: nothing here can be called from outside."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """What is asked to enter a function's environment, which is for errors of Python objects, in its machine code."""
        return _NoMachineCode


class _NoMachineCode:
    @staticmethod
    def set_env(env_name, env):
        """Do nothing."""


class _CalledCompiler(Compiler):
    """Numba's compiler with such a library."""

    def define_pipelines(self):
        """The usual stages. One of them would make a library, were there none."""
        self.state.library = _CalledLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


_CALLED = {
    "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _CalledCompiler,
}  # fmt: skip
inline = njit(forceinline=True, **_CALLED)  # part of the kernel that calls it


def overloaded(function):
    """Turn a function that picks an implementation from Numba types into one that kernels can call."""

    def stub(*args):
        raise NotImplementedError(f"{function.__name__} runs only inside compiled code")

    options = {"forceinline": True, "pipeline_class": _CalledCompiler}
    overload(stub, strict=False, inline="never", jit_options=options)(function)
    return stub


# Its own machine code within the kernel that calls it. Said outright, since the flag is inherited from a caller.
part = njit(nogil=True, forceinline=False, **_CALLED)


@overloaded
def paired(array):
    """Values to an operand of a product: 2 in uint16 arrays, which hold pairs of bfloat16, else 1."""
    return (lambda array: 2) if array.dtype == types.uint16 else (lambda array: 1)


# --- threads -----------------------------------------------------------------------------------------------
# Kernels release the interpreter lock, so ordinary Python threads run them side by side. Against Numba's own
# parallel loops this costs some 30 us a launch, nothing for kernels of milliseconds, and gains: half the compile
# time, no OpenMP runtime that dies after a fork, no threading layer that aborts when two threads enter it.

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    # A forked child has none of its parent's threads, and the lock may have been held by one of them.
    global _pool, _pool_size, _pool_lock
    _pool, _pool_size, _pool_lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def n_threads() -> int:
    """Threads that a kernel uses: torch's number (`torch.set_num_threads`, OMP_NUM_THREADS)."""
    return torch.get_num_threads()


class PerThread(list):
    """An argument of a kernel that differs from thread to thread: `launch` hands element k to thread k."""


def launch(function, *arguments, threads: int | None = None) -> None:
    """Run a kernel's shares side by side; the caller's thread takes the first. Errors reach the caller."""
    global _pool, _pool_size
    threads = threads or n_threads()

    def own(k: int) -> list:
        return [x[k] if isinstance(x, PerThread) else x for x in arguments]

    if threads == 1:
        function(*own(0), 0, 1)
        return
    with _pool_lock:
        if _pool is None or _pool_size < threads - 1:
            _pool, _pool_size = ThreadPoolExecutor(threads - 1, "hashfield"), threads - 1
        others = [_pool.submit(function, *own(k), k, threads) for k in range(1, threads)]
    try:
        function(*own(0), 0, threads)
    finally:
        wait(others)
    for other in others:
        other.result()


# --- denormals ---------------------------------------------------------------------------------------------

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "i386")


@intrinsic
def flush_denormals(typingctx):
    """Switch this thread to flush-to-zero and denormals-are-zero; returns the setting to restore.

    A table with subnormal numbers in it made the encoder ten times slower. x86 only; elsewhere nothing.
    """

    def codegen(context, builder, sig, args):
        if not _IS_X86:
            return ir.Constant(simd.I32, 0)
        slot = builder.alloca(simd.I32)
        pointer = builder.bitcast(slot, ir.PointerType())
        simd._call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [pointer])
        old = builder.load(slot, typ=simd.I32)
        builder.store(builder.or_(old, ir.Constant(simd.I32, 0x8040)), slot)
        simd._call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [pointer])
        return old

    return types.uint32(), codegen


@intrinsic
def restore_denormals(typingctx, old):
    """Undo `flush_denormals`."""

    def codegen(context, builder, sig, args):
        if _IS_X86:
            slot = builder.alloca(simd.I32)
            builder.store(args[0], slot)
            simd._call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [builder.bitcast(slot, ir.PointerType())])
        return context.get_dummy_value()

    return types.void(types.uint32), codegen


# --- vector functions --------------------------------------------------------------------------------------


@inline
def exp(x):
    """The exponential e^x to about 2 units in the last place; below -87 it is 0 or tiny, above 88 it is about 1.7e38.

    Range reduction x = n ln 2 + r, then a polynomial in r of degree 6 (Taylor coefficients suffice for
    abs(r) <= 0.347).
    """
    x = maximum(minimum(x, splat(88.0)), splat(-87.3))
    n = floor(fma(x, splat(1.44269504), splat(0.5)))
    r = fma(n, splat(-0.693359375), x)
    r = fma(n, splat(2.12194440e-4), r)
    p = splat(1.9875691500e-4)
    p = fma(p, r, splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = fma(p, r * r, r + splat(1.0))
    two_to_n = simd.bits_to_float((to_int_fast(n) + simd.splat_int(127)) << simd.splat_int(23))
    return p * two_to_n


@inline
def sigmoid(x):
    """1 / (1 + e^-x)."""
    one = splat(1.0)
    return one / (one + exp(splat(0.0) - x))


@inline
def share(n, part_index, parts):
    """First element of one of `parts` contiguous shares of n elements."""
    return part_index * n // parts


@inline
def task_at(turn, n_tasks, thread, threads):
    """Number of the task that a thread does at its turn, negative if there is none left: dealt out from the last one
    on, there and back. Levels grow, and one after another would always give the larger of two to the same thread."""
    back = threads - 1 - thread if turn % 2 else thread
    return n_tasks - 1 - (turn * threads + back)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is not below n."""
    return -(-n // multiple) * multiple


_spare: dict[str, np.ndarray] = {}
_spare_lock = threading.Lock()
LARGEST_SPARE = 2**26
"""Numbers (256 MB) above which memory is not kept."""


def recycled(name: str, size: int) -> np.ndarray:
    """A float32 array of unspecified content, in the memory of the one before of this name if nobody holds that.

    A large fresh array costs a page fault and a clearing by the system for every page: a quarter of the time of a
    forward pass of the grid.
    """
    if not 2**18 <= size <= LARGEST_SPARE:
        return np.empty(size, np.float32)
    with _spare_lock:
        spare = _spare.pop(name, None)
        # Views, and the tensors made of them, hold a reference each: two are ours, here and the call's.
        if spare is None or not size <= spare.size <= 4 * size or sys.getrefcount(spare) > 2:
            spare = np.empty(size, np.float32)  # numpy asks for huge pages
        _spare[name] = spare
        return spare[:size]


def as_array(tensor) -> np.ndarray:
    """The tensor's memory as a numpy array, detached."""
    return tensor.detach().numpy()

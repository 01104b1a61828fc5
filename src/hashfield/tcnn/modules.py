"""The modules of tinycudann, on any device.

An independent implementation of its interface: same names, configurations, order and initial values of parameters, and
the same functions. It differs where that helps: it runs on CPUs, gives true second derivatives, takes any batch.
"""

import gc
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hashfield.tcnn import compiled
from hashfield.tcnn import native as _C  # noqa: F401  the name under which scripts look for it
from hashfield.tcnn.config import EncodingSpec, TcnnError, read_encoding, read_network
from hashfield.tcnn.native import NativeModule, Precision

_PRECISIONS = {torch.float16: Precision.Fp16, torch.float32: Precision.Fp32, torch.float64: Precision.Fp32}
_default_dtype: torch.dtype | None = None


def preferred_dtype() -> torch.dtype:
    """The dtype of modules that are not told one: float16 where torch has a CUDA device, else float32."""
    if _default_dtype is not None:
        return _default_dtype
    return torch.float16 if torch.cuda.is_available() else torch.float32


def set_default_dtype(dtype: torch.dtype | None) -> None:
    """Choose the dtype of modules made from now on; None goes back to the device's.

    >>> set_default_dtype(torch.float32)  # also on GPUs
    >>> set_default_dtype(None)
    """
    global _default_dtype
    if dtype is not None and dtype not in _PRECISIONS:
        raise TcnnError(f"set_default_dtype: expected float16, float32 or float64, got {dtype}")
    _default_dtype = dtype


def free_temporary_memory() -> None:
    """Collect garbage. (tinycudann also drops its own scratch memory; torch keeps that here.)"""
    gc.collect()


def supports_jit_fusion(device: int = -1) -> bool:
    """False: nothing is generated at run time as tinycudann does."""
    return False


def rtc_set_cache_dir(path: str | Path | None) -> None:
    """Check the folder as tinycudann does; nothing is written to it."""
    if path and not (os.path.isdir(path) and os.access(path, os.W_OK)):
        raise OSError(f"rtc_set_cache_dir: {path} is not a folder that can be written to")


def null_tensor_like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same dtype and device."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def null_tensor_to_none(tensor: Tensor) -> Tensor | None:
    """None for an empty tensor."""
    return tensor if tensor.numel() else None


class Module(torch.nn.Module):
    """A function with all its parameters in one flat float32 vector, `params`.

    Subclasses supply `_native_tcnn_module`.
    """

    n_input_dims: int
    """Components of an input."""
    n_output_dims: int
    """Numbers of an output, without padding."""
    dtype: torch.dtype
    """Number type of the output, and what parameters are rounded to; `params` stays float32."""
    loss_scale: float
    """128 for float16, else 1, as tinycudann's. Gradients are computed in float32 here, so nothing reads it."""

    def __init__(self, seed: int = 1337) -> None:
        """Args: seed: of the initial values."""
        super().__init__()
        self.native_tcnn_module = self._native_tcnn_module()
        self.dtype = self._requested_dtype() or preferred_dtype()
        self.native_tcnn_module.precision = _PRECISIONS[self.dtype]
        self.seed = seed
        self.loss_scale = 128.0 if self.dtype == torch.float16 else 1.0
        values = self.native_tcnn_module.initial_params(seed)
        self.params = torch.nn.Parameter(values.to(_birth_device()))
        self.number = compiled.register(self)

    def _native_tcnn_module(self) -> NativeModule:
        raise NotImplementedError

    def _requested_dtype(self) -> torch.dtype | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [n, n_output_dims] of inputs [n, n_input_dims], on the inputs' device.

        Args:
            x: Any dtype and strides, any n; more leading axes are kept.

        Raises:
            TcnnError: the last axis is not n_input_dims long, or the input lies on another device than `params`.
        """
        if x.ndim < 2 or x.shape[-1] != self.n_input_dims:
            raise TcnnError(f"{type(self).__name__}: check failed: expected input of shape [n, {self.n_input_dims}], "
                            f"got {list(x.shape)}")  # fmt: skip
        if x.device != self.params.device:
            raise TcnnError(f"{type(self).__name__}: check failed: the input is on {x.device}, "
                            f"params on {self.params.device}")  # fmt: skip
        rows = x.reshape(-1, self.n_input_dims)
        out = compiled.call(self, rows) if torch.compiler.is_compiling() else self.evaluate(rows, self.params)
        return out if x.ndim == 2 else out.view(*x.shape[:-1], self.n_output_dims)

    def evaluate(self, x: Tensor, params: Tensor) -> Tensor:
        """Outputs for other parameters than the module's own: the module as a function, for `torch.func` and the like.

        Args:
            x: [n, n_input_dims].
            params: Flat, as many as `self.params`.
        """
        compute_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        values = params.to(compute_dtype)
        if self.dtype == torch.float16:
            # Rounded to half, with a gradient that is not: the difference of close numbers is exact.
            values = values + (values.detach().half().to(compute_dtype) - values.detach())
        return self.native_tcnn_module.compute(x.to(compute_dtype), values).to(self.dtype)

    @property
    def jit_fusion(self) -> bool:
        """Always False; setting it is harmless."""
        return False

    @jit_fusion.setter
    def jit_fusion(self, value: bool) -> None:
        return

    def matrices(self) -> list[Tensor]:
        """Views of `params`: the network's matrices [n_out, n_in], first layer first, with padding; empty without one.

        Writing to them under `torch.no_grad()` changes the parameters.
        """
        return self.native_tcnn_module.parts(self.params)[0]

    def level(self, i: int) -> Tensor:
        """A view of `params`: the table [n_entries, n_features_per_level] of a grid's level; levels of several grids
        count on."""
        tables = self.native_tcnn_module.parts(self.params)[1]
        levels = [
            level
            for table, layout in zip(tables, self.native_tcnn_module.layouts, strict=True)
            for level in table.split(layout.entries.tolist())
        ]
        if not -len(levels) <= i < len(levels):
            raise IndexError(f"level: expected 0 to {len(levels) - 1}, got {i}")
        return levels[i]

    def __getstate__(self) -> dict[str, Any]:
        """The state without the native object, which is made anew from the configurations."""
        state = self.__dict__.copy()
        del state["native_tcnn_module"], state["number"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state and the native object."""
        super().__setstate__(state)
        self.native_tcnn_module = self._native_tcnn_module()
        self.native_tcnn_module.precision = _PRECISIONS[self.dtype]
        self.number = compiled.register(self)

    def extra_repr(self) -> str:
        """Sizes and the configuration, for print."""
        hyperparams = self.native_tcnn_module.hyperparams()
        return (f"n_input_dims={self.n_input_dims}, n_output_dims={self.n_output_dims}, seed={self.seed}, "
                f"dtype={self.dtype}, hyperparams={hyperparams}")  # fmt: skip


class Encoding(Module):
    """An encoding by itself.

    >>> encoding = Encoding(3, {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 12})
    >>> encoding(torch.rand(10, 3)).shape
    torch.Size([10, 8])
    """

    def __init__(
        self, n_input_dims: int, encoding_config: Any, seed: int = 1337, dtype: torch.dtype | None = None
    ) -> None:
        """Make the encoding that a configuration describes.

        Args:
            n_input_dims: Components of an input.
            encoding_config: As tiny-cuda-nn's JSON.
            seed: Seed of the initial values.
            dtype: Number type of the output: torch.float32, torch.float16, or, other than in tinycudann,
                torch.float64; None: float16 on CUDA devices, else float32.

        Raises:
            TcnnError: the configuration is not one.
            ValueError: another dtype.
        """
        if dtype is not None and dtype not in _PRECISIONS:
            raise ValueError(f"Encoding only supports fp32 or fp16 precision (and fp64), but got {dtype}")
        self.n_input_dims = _dims("n_input_dims", n_input_dims)
        self.encoding_config = encoding_config
        self._dtype = dtype
        super().__init__(seed=seed)
        self.n_output_dims = self.native_tcnn_module.n_output_dims()
        self.precision = _PRECISIONS[self.dtype]

    def _requested_dtype(self) -> torch.dtype | None:
        return self._dtype

    def _native_tcnn_module(self) -> NativeModule:
        spec = read_encoding(self.n_input_dims, self.encoding_config)
        return NativeModule(self.n_input_dims, spec, None, spec.module.n_output, is_network=False)


class NetworkWithInputEncoding(Module):
    """An encoding followed by a network.

    >>> grid = {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 12}
    >>> model = NetworkWithInputEncoding(3, 2, grid, {"otype": "FullyFusedMLP", "n_neurons": 16, "n_hidden_layers": 1})
    >>> model(torch.rand(10, 3)).shape
    torch.Size([10, 2])
    """

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: Any,
        network_config: Any,
        seed: int = 1337,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make the encoding and the network that configurations describe.

        Args:
            n_input_dims: Components of an input.
            n_output_dims: Numbers of an output.
            encoding_config: As tiny-cuda-nn's JSON.
            network_config: As tiny-cuda-nn's JSON.
            seed: Seed of the initial values.
            dtype: As for `Encoding`; tinycudann has no such argument.

        Raises:
            TcnnError: a configuration is not one.
        """
        self._set_dims(n_input_dims, n_output_dims, dtype)
        self.encoding_config, self.network_config = encoding_config, network_config
        super().__init__(seed=seed)

    def _set_dims(self, n_input_dims: int, n_output_dims: int, dtype: torch.dtype | None) -> None:
        if dtype is not None and dtype not in _PRECISIONS:
            raise ValueError(f"dtype: expected float16, float32 or float64, got {dtype}")
        self.n_input_dims = _dims("n_input_dims", n_input_dims)
        self.n_output_dims = _dims("n_output_dims", n_output_dims)
        self._dtype = dtype

    def _requested_dtype(self) -> torch.dtype | None:
        return self._dtype

    def _encoding(self) -> EncodingSpec:
        return read_encoding(self.n_input_dims, self.encoding_config)

    def _native_tcnn_module(self) -> NativeModule:
        encoding = self._encoding()
        network = read_network(encoding.module.n_output, self.n_output_dims, self.network_config)
        return NativeModule(self.n_input_dims, encoding, network, self.n_output_dims, is_network=True)


class Network(NetworkWithInputEncoding):
    """A network without biases; ones that fill its input up to a multiple of 16 act as biases of the first layer."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        network_config: Any,
        seed: int = 1337,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make the network that a configuration describes.

        Args:
            n_input_dims: Components of an input.
            n_output_dims: Numbers of an output.
            network_config: As tiny-cuda-nn's JSON.
            seed: Seed of the initial values.
            dtype: As for `Encoding`; tinycudann has no such argument.

        Raises:
            TcnnError: the configuration is not one.
        """
        self._set_dims(n_input_dims, n_output_dims, dtype)
        self.network_config = network_config
        Module.__init__(self, seed=seed)

    def _encoding(self) -> EncodingSpec:
        return read_encoding(self.n_input_dims, {"otype": "Identity"})


def _dims(name: str, value: Any) -> int:
    try:
        number = value.__index__()
    except AttributeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if number < 1:
        raise TcnnError(f"{name}: expected at least 1, got {number}")
    return number


def _birth_device() -> torch.device:
    # A script may never move its modules: they are born on the current CUDA device where there is one, or on the device
    # that torch was told to use.
    chosen = torch.get_default_device()
    if chosen.type == "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return chosen

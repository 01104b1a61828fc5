"""What stands behind a module: the function of input and parameters, its sizes and initial values.

The counterpart of tinycudann's compiled extension, under the names that its users' scripts reach for.
"""

from contextlib import nullcontext
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashfield.nn.encodings import GridEncoding
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.mlp import Activation, mlp
from hashfield.tcnn.config import EncodingSpec, NetworkSpec, layouts_of, padded, read_encoding, read_network
from hashfield.tcnn.encodings import StochasticGridEncoding
from hashfield.tcnn.initial import Draws

_KERNEL_OUTPUTS: tuple[Activation, ...] = ("none", "sigmoid", "exp")
_FAST_PIECE = 2**20
"""Rows computed at once without a gradient where kernels take them."""
_SLOW_PIECE = 2**16
"""As many where plain torch does, whose intermediate results are large."""


class Precision(Enum):
    """Number types of a module's computation and output, under tinycudann's names."""

    Fp32 = 0
    Fp16 = 1


class LogSeverity(Enum):
    """Kinds of log lines, under tinycudann's names."""

    Info = 0
    Debug = 1
    Warning = 2
    Error = 3
    Success = 4


def batch_size_granularity() -> int:
    """What tinycudann rounds batches up to; here they are taken as they are."""
    return 256


def default_loss_scale(precision: Precision) -> float:
    """128 for Fp16, else 1."""
    return 128.0 if precision is Precision.Fp16 else 1.0


def has_networks() -> bool:
    """True."""
    return True


def create_encoding(n_input: int, config: Any, precision: Precision = Precision.Fp32) -> "NativeModule":
    """A module that is an encoding alone.

    Args:
        n_input: Components of an input.
        config: As tiny-cuda-nn's JSON.
        precision: Number type of the output.
    """
    spec = read_encoding(n_input, config)
    module = NativeModule(n_input, spec, None, spec.module.n_output, is_network=False)
    module.precision = precision
    return module


def create_network(n_input: int, n_output: int, config: Any) -> "NativeModule":
    """A module that is a network alone.

    Args:
        n_input: Components of an input.
        n_output: Outputs, without padding.
        config: As tiny-cuda-nn's JSON.
    """
    return create_network_with_input_encoding(n_input, n_output, {"otype": "Identity"}, config)


def create_network_with_input_encoding(
    n_input: int, n_output: int, encoding_config: Any, network_config: Any
) -> "NativeModule":
    """An encoding followed by a network.

    Args:
        n_input: Components of an input.
        n_output: Outputs, without padding.
        encoding_config, network_config: As tiny-cuda-nn's JSON.
    """
    encoding = read_encoding(n_input, encoding_config)
    network = read_network(encoding.module.n_output, n_output, network_config)
    return NativeModule(n_input, encoding, network, n_output, is_network=True)


class Context:
    """What a call of `fwd` keeps for `bwd`."""

    def __init__(self, output: Tensor | None, x: Tensor, params: Tensor) -> None:
        """Args: output: with its graph. x, params: the leaves of that graph."""
        self.output, self.x, self.params = output, x, params


class _Pieces(torch.autograd.Function):
    """A vector cut into pieces. A table's gradient, tens of megabytes, is not copied on its way back where its kernel
    left room for the other pieces in front of it."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.like = sizes, params.detach()[:0]
        ctx.set_materialize_grads(False)
        return params.split(sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        sizes, last = ctx.sizes, grads[-1]
        front = sum(sizes[:-1])
        if (
            last is None
            or torch.is_grad_enabled()
            or not last.is_contiguous()
            or last.storage_offset() != front
            or last.untyped_storage().nbytes() < (front + sizes[-1]) * last.element_size()
        ):
            zero = ctx.like.new_zeros(())
            return torch.cat([zero.expand(n) if g is None else g for g, n in zip(grads, sizes, strict=True)]), None
        whole = last.as_strided((front + sizes[-1],), (1,), 0)
        for piece, g in zip(whole[:front].split(sizes[:-1]), grads, strict=False):
            if g is None:
                piece.zero_()
            else:
                piece.copy_(g)
        return whole, None


class NativeModule:
    """An encoding, a network, or both, as a function of an input and one flat vector of parameters.

    The vector holds the network's matrices, first layer first, row by row, then the encoding's tables.
    """

    def __init__(
        self, n_input: int, encoding: EncodingSpec, network: NetworkSpec | None, n_output: int, *, is_network: bool
    ) -> None:
        """Args: n_input: components of an input. encoding, network: what is computed. n_output: what of it is given
        back. is_network: whether outputs are padded to 16."""
        self._n_input, self.n_output = n_input, n_output
        self.encoding, self.network, self.is_network = encoding, network, is_network
        self.layouts = layouts_of(encoding.module)
        self.sizes = [rows * columns for rows, columns in network.shapes] if network else []
        self.sizes += [layout.n_parameters for layout in self.layouts]
        self.precision = Precision.Fp32
        self.jit_fusion = False

    # --- what tinycudann's own has -------------------------------------------------------------------------

    def n_input_dims(self) -> int:
        """Components of an input."""
        return self._n_input

    def n_output_dims(self) -> int:
        """Outputs, padded to 16 for networks."""
        return padded(self.n_output) if self.is_network else self.n_output

    def n_params(self) -> int:
        """Numbers in the vector of parameters."""
        return sum(self.sizes)

    def initial_params(self, seed: int, *_: Any) -> Tensor:
        """Start values, float32 on the CPU, the same for a seed as tinycudann's."""
        draws = Draws(seed)
        parts = [draws.matrices(self.network.shapes, self.network.activation)] if self.network else []
        parts += [draws.grid(layout.n_parameters) for layout in self.layouts]
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.float32))

    def param_precision(self) -> Precision:
        """Precision that parameters are rounded to in a call."""
        return self.precision

    def output_precision(self) -> Precision:
        """Precision of the output."""
        return self.precision

    def hyperparams(self) -> dict[str, Any]:
        """The configuration in canonical spelling, keys in alphabetical order."""
        if self.network is None:
            return dict(self.encoding.hyperparams)
        return {"encoding": dict(self.encoding.hyperparams), "network": dict(self.network.hyperparams),
                "otype": "NetworkWithInputEncoding"}  # fmt: skip

    def name(self) -> str:
        """The otype."""
        return self.hyperparams()["otype"]

    def fwd(self, x: Tensor, params: Tensor) -> tuple[Context, Tensor]:
        """Outputs, padded, with what `bwd` needs."""
        with torch.enable_grad():
            x, params = x.detach().float().requires_grad_(), params.detach().requires_grad_()
            out = self.compute(x, params, all_outputs=True)
        return Context(out, x, params), out.detach()

    def bwd(
        self, ctx: Context, x: Tensor, params: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients to the input and the parameters; zeros where there is none.

        Args:
            ctx: What `fwd` left.
            x: Its input; ctx has it.
            params: Its parameters; ctx has them.
            out: Its output; ctx has it.
            dout: Gradient to the output, padded.
        """
        assert ctx.output is not None
        if not ctx.output.requires_grad:
            return torch.zeros_like(ctx.x), torch.zeros_like(ctx.params)
        grads = torch.autograd.grad(
            ctx.output, (ctx.x, ctx.params), dout.to(ctx.output), retain_graph=True, materialize_grads=True
        )
        return grads[0], grads[1]

    def bwd_bwd_input(
        self, ctx: Context, x: Tensor, params: Tensor, ddin: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ddin . (gradient to the input) to dout, the parameters and the input.

        Args:
            ctx: What `fwd` left.
            x: Its input; ctx has it.
            params: Its parameters; ctx has them.
            ddin: What the gradient to the input is multiplied by.
            dout: Gradient to the output, padded.
        """
        with torch.enable_grad():
            dout = dout.detach().requires_grad_()
            out = self.compute(ctx.x, ctx.params, all_outputs=True)
            (din,) = torch.autograd.grad(out, ctx.x, dout.to(out), create_graph=True, materialize_grads=True)
            wanted = (dout, ctx.params, ctx.x)
            if not din.requires_grad:
                return tuple(torch.zeros_like(each) for each in wanted)  # pyright: ignore[reportReturnType]
            grads = torch.autograd.grad(din, wanted, ddin.to(din), materialize_grads=True)
        return grads[0], grads[1], grads[2]

    # --- the function itself -------------------------------------------------------------------------------

    def parts(self, params: Tensor, *, for_compute: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Views of a vector of parameters: the network's matrices, padded, and the encoding's tables.

        Args:
            params: The vector.
            for_compute: Views that are only read, with a cheaper way back for gradients.
        """
        pieces = []
        if len(self.sizes) == 1:
            pieces = [params]
        elif self.sizes:
            pieces = list(_Pieces.apply(params, self.sizes) if for_compute else params.split(self.sizes))  # pyright: ignore
        shapes = list(self.network.shapes) if self.network else []
        matrices = [pieces.pop(0).view(shape) for shape in shapes]
        tables = [piece.view(-1, lay.n_features_per_level) for piece, lay in zip(pieces, self.layouts, strict=True)]
        return matrices, tables

    def compute(self, x: Tensor, params: Tensor, *, all_outputs: bool = False) -> Tensor:
        """Outputs of inputs, differentiable to any order in both.

        Args:
            x: [n, n_input_dims], float32 or float64.
            params: Flat, of the same dtype.
            all_outputs: Also those that only pad the network's width.
        """
        is_autocast = torch.is_autocast_enabled(x.device.type)
        # Casts of autocast would change the results; tinycudann, too, stays out of it.
        with torch.autocast(x.device.type, enabled=False) if is_autocast else nullcontext():
            wants_gradient = torch.is_grad_enabled() and (x.requires_grad or params.requires_grad)
            piece = _FAST_PIECE if self.slow_part() is None else _SLOW_PIECE
            if len(x) <= piece or wants_gradient:
                return self._compute(x, params, all_outputs)
            return torch.cat([self._compute(rows, params, all_outputs) for rows in x.split(piece)])

    def _compute(self, x: Tensor, params: Tensor, all_outputs: bool) -> Tensor:
        matrices, tables = self.parts(params, for_compute=True)
        encode = self.encoding.module
        x = x[:, : encode.n_dims]
        if self.network is None:
            return encode(x, *tables)
        if not all_outputs:
            matrices[-1] = matrices[-1][: self.n_output]
        network = self.network
        # Kernels end in few functions; any other is applied to what they give.
        last = network.output_activation if network.output_activation in _KERNEL_OUTPUTS else "none"
        if isinstance(encode, GridEncoding):
            matrices[0] = matrices[0][:, : encode.n_output]  # the rest is filled up with zeros
            out = encoded_mlp(
                x,
                tables[0],
                matrices,
                encode.layout,
                interpolation=encode.config.interpolation,
                activation=network.activation,
                output_activation=last,
            )
        else:
            features = encode.filled(x, matrices[0].shape[1], *tables)
            out = mlp(features, matrices, activation=network.activation, output_activation=last)
        if last == network.output_activation:
            return out
        identity = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
        return mlp(out, [identity], output_activation=network.output_activation, backend="reference")

    def slow_part(self) -> str | None:
        """Why some of this module runs in plain torch instead of kernels, or None."""
        for layout in self.layouts:
            if layout.beyond_kernels is not None:
                return f"grid: {layout.beyond_kernels}"
        name = self.encoding.hyperparams["otype"]
        if isinstance(self.encoding.module, StochasticGridEncoding):
            return "grid: stochastic_interpolation draws its corners in torch"
        if name == "SphericalHarmonics" and self.encoding.hyperparams["degree"] > 4:
            return "SphericalHarmonics: kernels cover degrees 1 to 4"
        if self.network and self.network.activation != "relu" and len(self.network.shapes) > 1:
            return f"network: activation {self.network.hyperparams['activation']}, kernels cover ReLU"
        return None

"""Networks as modules."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.errors import ConfigError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.nn.config import MLPConfig, RunPrecision
from hashfield.nn.encodings import Encoding, GridEncoding, table_of
from hashfield.ops.backend import Backend
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.eval_points import EncodedNetwork, compute_precision, with_rounded_table
from hashfield.ops.grid_encode import Precision
from hashfield.ops.mlp import Activation, mlp

_DEFAULT = MLPConfig()
_OUTPUT_ALIGNMENT = 16  # tiny-cuda-nn's; enters the initial range of the last matrix


class MLP(nn.Module):
    """Fully connected network without biases.

    `weights` holds the matrices [n_out, n_in], first layer first.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        config: MLPConfig = _DEFAULT,
        *,
        activation: Activation = "relu",
        output_activation: Activation = "none",
        precision: Precision = "float32",
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make the matrices with Glorot-uniform values.

        Args:
            n_input: Features of an input.
            n_output: Length of an output.
            config: Width and depth of what lies between.
            activation: Between the layers.
            output_activation: After the last.
            precision: "bfloat16" rounds matrices and layer inputs.
            backend: Implementation; chosen at each call if None.
            generator: Source of the initial values; torch's default if None.
            dtype: Type of the matrices; float64 runs on the reference.

        Raises:
            ConfigError: a width is below 1.
        """
        super().__init__()
        if n_input < 1 or n_output < 1:
            raise ConfigError(f"n_input, n_output: expected at least 1 each, got {n_input} and {n_output}")
        self.config = config
        self.activation: Activation = activation
        self.output_activation: Activation = output_activation
        self.precision: Precision = precision
        self.backend: Backend | None = backend
        self.n_input, self.n_output = n_input, n_output
        self.weights = nn.ParameterList(torch.empty(s, dtype=dtype) for s in config.shapes(n_input, n_output))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the matrices anew: uniform in +-sqrt(6 / (n_in + n_out)), the same whatever the dtype.

        The last matrix counts its outputs rounded up to 16, as tiny-cuda-nn, whose networks are padded.
        """
        for i, weight in enumerate(self.weights):
            n_out, n_in = weight.shape
            if i + 1 == len(self.weights):
                n_out = math.ceil(n_out / _OUTPUT_ALIGNMENT) * _OUTPUT_ALIGNMENT
            values = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
            with torch.no_grad():
                weight.copy_((2 * values - 1) * math.sqrt(6 / (n_in + n_out)))

    def forward(self, x: Float[Tensor, "n n_input"]) -> Float[Tensor, "n n_output"]:
        """Output of each input."""
        return mlp(
            x,
            list(self.weights),
            activation=self.activation,
            output_activation=self.output_activation,
            precision=self.precision,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Sizes and activations, for print."""
        return f"{self.n_input} -> {self.n_output}, {self.config}, output_activation={self.output_activation}"


class NetworkWithEncoding(nn.Module):
    """An encoding followed by a network: positions to densities, colours of an image, distances.

    >>> field = NetworkWithEncoding(GridEncoding(n_dims=2), n_output=3)
    >>> field(torch.rand(10, 2)).shape
    torch.Size([10, 3])
    """

    def __init__(
        self,
        encoding: Encoding,
        n_output: int,
        config: MLPConfig = _DEFAULT,
        *,
        output_activation: Activation = "none",
        precision: Precision = "float32",
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Put a network behind an encoding.

        Args:
            encoding: Encoding of the input.
            n_output: Length of an output of the network.
            config: Width and depth of the network.
            output_activation: After its last layer.
            precision: Number type of the network, and of a grid encoding's lookup.
            backend: Implementation; chosen at each call if None.
            generator: Source of the network's initial values; the encoding has its own.
            dtype: Type of the network's matrices; that of the encoding's table.
        """
        super().__init__()
        self.encoding = encoding
        self.network = MLP(
            encoding.n_output,
            n_output,
            config,
            output_activation=output_activation,
            precision=precision,
            backend=backend,
            generator=generator,
            dtype=dtype,
        )
        self.precision: Precision = precision
        self.backend: Backend | None = backend

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Output of each input; a grid and its network run as one op."""
        if not isinstance(self.encoding, GridEncoding):
            return self.network(self.encoding(x))
        return encoded_mlp(
            x,
            self.encoding.table_for(()),
            list(self.network.weights),
            self.encoding.layout,
            interpolation=self.encoding.config.interpolation,
            activation=self.network.activation,
            output_activation=self.network.output_activation,
            precision=self.precision,
            backend=self.backend,
        )


def encoded_network(field: NetworkWithEncoding, table_bf16: Tensor | None, precision: RunPrecision) -> EncodedNetwork:
    """An encoded network's numbers as the fused ops take them, sharing its memory.

    Args:
        field: Encoding and network.
        table_bf16: The encoding's table rounded, where lookups are to read that.
        precision: Number type of lookups and network. auto: on GPUs float16; on CPUs bfloat16 where they have
            instructions for it.
    """
    encoding, weights = field.encoding, tuple(w.detach() for w in field.network.weights)
    if not isinstance(encoding, GridEncoding):
        return EncodedNetwork(GridLayout(n_dims=encoding.n_dims), table_of(encoding), weights, encode=encoding)
    return with_rounded_table(
        EncodedNetwork(
            layout=encoding.layout,
            table=encoding.table.detach(),
            weights=weights,
            table_bf16=None if precision == "float32" else table_bf16,
            precision=compute_precision(precision, encoding.table.device),
            interpolation=encoding.config.interpolation,
        )
    )

"""Weights to and from plain `torch.nn.Linear` layers."""

from collections.abc import Sequence

import torch
from torch import nn

from hashfield.tcnn.config import TcnnError
from hashfield.tcnn.modules import NetworkWithInputEncoding


def to_linear(network: NetworkWithInputEncoding) -> list[nn.Linear]:
    """A network's matrices as linear layers, without the columns and rows that only pad.

    The columns fed with ones become the bias of the first layer; the others have none. Between the layers and after the
    last stand the network's activations. For a `NetworkWithInputEncoding` the layers follow its encoding.

    Args:
        network: Any; it is copied from, not changed.
    """
    n_input, begin, is_bias = _inputs(network)
    matrices = [matrix.detach() for matrix in network.matrices()]
    layers = []
    for k, matrix in enumerate(matrices):
        if k + 1 == len(matrices):
            matrix = matrix[: network.n_output_dims]
        bias = None
        if k == 0:
            own = matrix[:, begin : begin + n_input]
            if is_bias and matrix.shape[1] > n_input:
                bias = matrix.sum(1) - own.sum(1)
            matrix = own
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device=matrix.device)
        with torch.no_grad():
            layer.weight.copy_(matrix)
            if bias is not None:
                layer.bias.copy_(bias)
        layers.append(layer)
    return layers


def from_linear(network: NetworkWithInputEncoding, layers: Sequence[nn.Linear]) -> None:
    """Copy linear layers into a network of the same widths.

    A bias of the first layer goes into the first padding column, which is fed with ones; the other padding becomes 0.

    Args:
        network: Changed in place.
        layers: As many as the network has matrices.

    Raises:
        TcnnError: the layers do not fit, or have a bias that the network has no place for.
    """
    n_input, begin, is_bias = _inputs(network)
    matrices = network.matrices()
    if len(layers) != len(matrices):
        raise TcnnError(f"from_linear: layers: expected {len(matrices)}, got {len(layers)}")
    with torch.no_grad():
        for k, (matrix, layer) in enumerate(zip(matrices, layers, strict=True)):
            n_in = n_input if k == 0 else matrix.shape[1]
            n_out = network.n_output_dims if k + 1 == len(matrices) else matrix.shape[0]
            if tuple(layer.weight.shape) != (n_out, n_in):
                raise TcnnError(f"from_linear: layers[{k}]: expected a weight of shape {[n_out, n_in]}, "
                                f"got {list(layer.weight.shape)}")  # fmt: skip
            if layer.bias is not None and (k > 0 or not is_bias or matrix.shape[1] == n_input):
                raise TcnnError(f"from_linear: layers[{k}]: has a bias; only a first layer whose input is filled "
                                "up with ones has room for one")  # fmt: skip
            matrix.zero_()
            at = begin if k == 0 else 0
            matrix[:n_out, at : at + n_in] = layer.weight
            if layer.bias is not None:
                matrix[:n_out, 0 if begin else n_input] = layer.bias


def _inputs(network: NetworkWithInputEncoding) -> tuple[int, int, bool]:
    # Width of what is encoded, the first column it is multiplied with, and whether the other columns are fed with ones.
    encoding = network.native_tcnn_module.encoding.module
    width = encoding.n_output
    begin = network.matrices()[0].shape[1] - width if encoding.is_padded_in_front else 0
    return width, begin, encoding.padding == 1.0

"""A grid-encoded network asked at points on GPUs: the kernel of `encoded_mlp`, which takes positions in fixed point too."""

from typing import Any

import torch

from hashfield.kernels.triton_gpu.common import count_of
from hashfield.kernels.triton_gpu.encoded_mlp import device_network, evaluate


def eval_points(network: Any, positions_unit: torch.Tensor) -> torch.Tensor:
    """Outputs [n, C]; see `hashfield.ops.eval_points`."""
    n, device = positions_unit.shape[0], positions_unit.device
    out = torch.empty((n, network.n_outputs), dtype=torch.float32, device=device)
    evaluate(device_network(network), positions_unit.contiguous(), count_of(n, device), out)
    return out

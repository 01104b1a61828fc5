"""Fit a picture with a 2-D hash grid and a small network: the encoding as an ordinary nn.Module.

python examples/01_image_with_a_hash_grid.py
"""

import math
import os

import torch

from hashfield.nn.config import GridConfig, MLPConfig
from hashfield.nn.encodings import GridEncoding
from hashfield.nn.networks import MLP

n_steps = 60 if os.environ.get("HASHFIELD_QUICK") else 500
generator = torch.Generator().manual_seed(0)


def picture(x: torch.Tensor) -> torch.Tensor:
    """Rings and stripes: [n, 2] in [0, 1] -> [n, 3]."""
    r = (x - 0.5).norm(dim=1)
    return torch.stack(
        [0.5 + 0.5 * torch.sin(60 * r), (x[:, 0] * 8).floor() % 2, 0.5 + 0.5 * torch.cos(30 * x[:, 1])], 1
    )


config = GridConfig(n_levels=8, n_features_per_level=2, log2_hashmap_size=14).reaching(256)
encoding = GridEncoding.from_config(config, 2, generator=generator)
network = MLP(encoding.layout.n_output, 3, MLPConfig(n_neurons=32, n_hidden_layers=1), generator=generator)
optimizer = torch.optim.Adam([*encoding.parameters(), *network.parameters()], lr=1e-2, eps=1e-15)
for step in range(n_steps):
    x = torch.rand(2**13, 2, generator=generator)
    loss = (network(encoding(x)) - picture(x)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == n_steps - 1:
        print(f"step {step:4d}  PSNR {-10 * math.log10(loss.item()):.1f} dB")

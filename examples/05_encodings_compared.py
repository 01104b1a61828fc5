"""The same picture and the same number of points for every encoding: why a hash grid, in half a minute.

python examples/05_encodings_compared.py
"""

import math
import os
import time

import torch

from hashfield.nn.config import EncodingConfig, MLPConfig
from hashfield.nn.encodings import encoding_from_config
from hashfield.nn.networks import NetworkWithEncoding

n_steps = 20 if os.environ.get("HASHFIELD_QUICK") else 300


def picture(x: torch.Tensor) -> torch.Tensor:
    """Rings that grow finer outwards, and hard-edged squares: [n, 2] in [0, 1] -> [n, 3]."""
    r = (x - 0.5).norm(dim=1)
    squares = ((x * 12).floor().sum(1) % 2) * ((x * 40).floor()[:, 0] % 2)
    return torch.stack([0.5 + 0.5 * torch.sin(250 * r * r), squares, 0.5 + 0.5 * torch.cos(40 * x[:, 1])], 1)


grid = EncodingConfig(n_levels=8, n_features_per_level=2, log2_hashmap_size=12).reaching(128)
encodings = {
    "none": EncodingConfig(otype="Identity"),
    "frequency": EncodingConfig(otype="Frequency", n_frequencies=8),
    "triangle wave": EncodingConfig(otype="TriangleWave", n_frequencies=8),
    "one-blob": EncodingConfig(otype="OneBlob", n_bins=32),
    "dense grid, one level": EncodingConfig(type="Dense", n_levels=1, n_features_per_level=2, base_resolution=128),
    "hash grid": grid,
    "hash grid, nearest": EncodingConfig(**{**vars(grid), "interpolation": "nearest"}),
}
side = (torch.arange(256) + 0.5) / 256
pixels = torch.cartesian_prod(side, side)
for name, config in encodings.items():
    generator = torch.Generator().manual_seed(0)
    encoding = encoding_from_config(config, 2, generator=generator)
    field = NetworkWithEncoding(encoding, 3, MLPConfig(n_neurons=64, n_hidden_layers=2), generator=generator)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2 if config.n_parameters(2) else 2e-3, eps=1e-15)
    before = time.perf_counter()
    for _ in range(n_steps):
        x = torch.rand(2**13, 2, generator=generator)
        loss = (field(x) - picture(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - before
    with torch.no_grad():
        error = (field(pixels).clamp(0, 1) - picture(pixels)).square().mean().item()
    size = sum(p.numel() for p in field.parameters())
    print(f"{name:22s} {size:7,d} numbers  {seconds:5.1f} s  PSNR {-10 * math.log10(error):5.2f} dB")

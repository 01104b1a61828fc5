"""A script written for tinycudann, with one line changed: it learns a picture on any machine.

python examples/07_tinycudann_port.py

The line was `import tinycudann as tcnn`. Nothing else knows; `.to(device)` takes the place of `.cuda()`.
"""

import math
import os

import torch

from hashfield import tcnn

device = "cuda" if torch.cuda.is_available() else "cpu"
n_steps = 60 if os.environ.get("HASHFIELD_QUICK") else 500
config = {
    "encoding": {"otype": "HashGrid", "n_levels": 8, "n_features_per_level": 2, "log2_hashmap_size": 14,
                 "base_resolution": 16, "per_level_scale": 1.5},
    "network": {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 64,
                "n_hidden_layers": 2},
}  # fmt: skip

model = tcnn.NetworkWithInputEncoding(
    n_input_dims=2, n_output_dims=3, encoding_config=config["encoding"], network_config=config["network"]
).to(device)
print(model)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-15)
for step in range(n_steps):
    x = torch.rand(2**13, 2, device=device)
    r = (x - 0.5).norm(dim=1)
    target = torch.stack([0.5 + 0.5 * torch.sin(60 * r), x[:, 0], (x[:, 1] * 8).floor() % 2], 1)
    loss = (model(x).float() - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == n_steps - 1:
        print(f"step {step:4d}  PSNR {-10 * math.log10(loss.item()):.1f} dB")
tcnn.free_temporary_memory()

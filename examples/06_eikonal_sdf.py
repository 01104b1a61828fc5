"""Learn a signed distance from points on a surface alone, by an eikonal loss on a hash grid.

python examples/06_eikonal_sdf.py

The loss asks for 0 on the surface and for gradients of length 1 everywhere. The latter differentiates the network's own
gradient, so training needs second derivatives: they run through kernels on CPUs.
"""

import os

import torch

from hashfield import tcnn

n_steps = 100 if os.environ.get("HASHFIELD_QUICK") else 600
generator = torch.Generator().manual_seed(0)
radius = 0.3

grid = {"otype": "HashGrid", "n_levels": 6, "n_features_per_level": 4, "log2_hashmap_size": 14, "base_resolution": 4,
        "per_level_scale": 1.6, "interpolation": "Smoothstep"}  # fmt: skip
network = {"otype": "CutlassMLP", "activation": "Softplus", "n_neurons": 32, "n_hidden_layers": 1}
model = tcnn.NetworkWithInputEncoding(3, 1, grid, network)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)


def surface(n: int) -> torch.Tensor:
    """Points of a sphere in the middle of the unit cube, with their outward normals: [n, 6]."""
    normal = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    return torch.cat([0.5 + radius * normal, normal], 1)


def gradient_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and their gradients, which can be differentiated again."""
    x = x.requires_grad_()
    distance = model(x)
    (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=True)
    return distance, gradient


for step in range(n_steps):
    on_surface, normals = surface(1024).split(3, dim=1)
    distance, gradient = gradient_of(on_surface)
    _, elsewhere = gradient_of(torch.rand(1024, 3, generator=generator))
    eikonal = (elsewhere.norm(dim=1) - 1).square().mean()
    loss = distance.abs().mean() * 10 + (gradient - normals).square().sum(1).mean() + 0.1 * eikonal
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == n_steps - 1:
        print(f"step {step:4d}  loss {loss.item():.4f}  eikonal {eikonal.item():.4f}")

with torch.no_grad():
    x = torch.rand(4096, 3, generator=generator) * 0.8 + 0.1
    truth = (x - 0.5).norm(dim=1) - radius
    print(f"mean error of the distance: {(model(x)[:, 0] - truth).abs().mean().item():.4f} (the cube's side is 1)")

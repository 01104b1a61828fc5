"""March and composite any field of your own: here a fuzzy ball given by a formula, differentiated by autograd.

python examples/04_your_own_field.py
"""

import torch

from hashfield.geometry.rays import Rays
from hashfield.ops.composite import composite
from hashfield.ops.march import march

n = 64
u, v = torch.meshgrid(torch.linspace(-0.4, 0.4, n), torch.linspace(-0.4, 0.4, n), indexing="ij")
direction = torch.nn.functional.normalize(torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 3), dim=1)
origin = torch.tensor([0.5, 0.5, -0.7]).expand_as(direction).contiguous()
rays = Rays(origin, direction, torch.zeros(n * n), torch.full((n * n,), 3.0))
everywhere = torch.full((128**3 // 8,), 255, dtype=torch.uint8)  # every cell may hold something

samples = march(rays, everywhere, aabb_scale=1, cone_angle=0.0, step_scale=8.0)
index = samples.ray_index()
position = origin[index] + samples.t[:, None] * direction[index]

radius = torch.tensor(0.2, requires_grad=True)
density = 60 * torch.sigmoid(60 * (radius - (position - 0.5).norm(dim=1)))
color = position.clamp(0, 1)
image = composite(color, density, samples, torch.zeros(3)).color.reshape(n, n, 3)
image.mean().backward()
print(f"{samples.n_samples} samples; mean colour {image.mean():.4f}; it grows with the radius by {radius.grad:.4f}")

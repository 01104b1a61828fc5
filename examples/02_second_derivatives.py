"""Differentiate a grid encoding twice, in float64, on the reference backend.

python examples/02_second_derivatives.py
"""

import torch

from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.grid_encode import grid_encode

layout = GridLayout(n_levels=4, n_features_per_level=2, log2_hashmap_size=10)
table = torch.randn(layout.n_entries, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
table.requires_grad_()
x = torch.tensor([[0.2, 0.5, 0.7]], dtype=torch.float64, requires_grad=True)

value = grid_encode(x, table, layout, interpolation="smoothstep", backend="reference").sum()
(gradient,) = torch.autograd.grad(value, x, create_graph=True)
print("gradient to the position:", gradient.detach().numpy())

# An eikonal-like term: how far the gradient's length is from 1, differentiated through the first derivative.
eikonal = (gradient.norm() - 1).square()
to_table, to_position = torch.autograd.grad(eikonal, (table, x))
print("entries of the table it moves:", int((to_table != 0).any(1).sum()))
print("its gradient to the position:", to_position.numpy())

"""Colour and density of points in a radiance field."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.geometry.grid_layout import GridLayout
from hashfield.ops.backend import Backend
from hashfield.ops.checks import one_of
from hashfield.ops.color_mlp import color_mlp
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.grid_encode import Interpolation, Precision

DensityActivation = Literal["exp", "relu"]


class RadianceFieldResult(NamedTuple):
    """What a radiance field says about a batch of points."""

    color: Float[Tensor, "n n_channels"]
    """In (0, 1), in the space of the photos (sRGB)."""
    density: Float[Tensor, " n"]
    """At least 0, per scene unit of length."""


def radiance_field(
    positions_unit: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    table: Float[Tensor, "n_entries n_features"],
    density_weights: Sequence[Tensor],
    color_weights: Sequence[Tensor],
    layout: GridLayout,
    *,
    density_bias: float = 0.0,
    density_activation: DensityActivation = "exp",
    degree: int = 4,
    interpolation: Interpolation = "linear",
    precision: Precision = "float32",
    backend: Backend | None = None,
) -> RadianceFieldResult:
    """Colour and density of each point seen from a direction.

    h = density network of the grid's features; density = exp(h_0 + density_bias), or max(0, h_0 + density_bias) with
    density_activation "relu"; colour = colour network of
    [h | spherical harmonics of the direction]. h_0 feeds the colour network like the rest, without the bias.

    Args:
        positions_unit: As for `grid_encode`.
        directions: Unit length, from the camera to the point.
        table: As for `grid_encode`.
        density_weights: Matrices of the density network; `layout.n_output` inputs.
        color_weights: Matrices of the colour network; n_out of the density network + degree^2 inputs.
        layout: Sizes of the levels.
        density_activation: "exp" is instant-ngp's, "relu" HashNeRF's.
        density_bias: Added to h_0; with "exp", 3 starts an object's hull opaque, 0 is instant-ngp's start.
        degree: Degree of the spherical harmonics, 1 to 4.
        interpolation: How features lie between the grid's vertices.
        precision: Number type of lookup and networks. The log-density is never rounded.
        backend: Implementation of every stage; each is chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take one of the stages.

    Gradient:
        To positions, directions, table and every matrix; second order with backend="reference". The density's
        is that of exp, not clamped.

    Source: instant-ngp nerf_network.h; the bias is ours.
    """
    one_of("radiance_field", "density_activation", density_activation, ("exp", "relu"))
    h = encoded_mlp(
        positions_unit,
        table,
        density_weights,
        layout,
        interpolation=interpolation,
        precision=precision,
        backend=backend,
    )
    color = color_mlp(h, directions, color_weights, degree=degree, precision=precision, backend=backend)
    return RadianceFieldResult(color, density_of(h, density_bias, density_activation))


def density_of(
    h: Float[Tensor, "n n_features"], density_bias: float, density_activation: DensityActivation
) -> Float[Tensor, " n"]:
    """Density from the density network's output: exp(h_0 + density_bias), or max(0, h_0 + density_bias).

    Args:
        h: Outputs of the density network; only the first counts.
        density_bias: Added to it.
        density_activation: "exp" or "relu".
    """
    raw = h[:, 0] + density_bias
    return torch.relu(raw) if density_activation == "relu" else torch.exp(raw)

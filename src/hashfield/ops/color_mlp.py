"""View-dependent colour: features and direction through a network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hashfield.ops.backend import Backend
from hashfield.ops.checks import Checker
from hashfield.ops.grid_encode import Precision
from hashfield.ops.mlp import check_mlp, mlp
from hashfield.ops.spherical_harmonics import spherical_harmonics


def color_mlp(
    features: Float[Tensor, "n n_features"],
    directions: Float[Tensor, "n 3"],
    weights: Sequence[Tensor],
    *,
    degree: int = 4,
    precision: Precision = "float32",
    backend: Backend | None = None,
) -> Float[Tensor, "n n_channels"]:
    """Colour in (0, 1): sigmoid of a ReLU network on [features | spherical harmonics of the direction].

    Args:
        features: Features of the position, 16 in a radiance field.
        directions: Unit length, from the camera to the point.
        weights: As for `mlp`; the first matrix takes n_features + degree^2 inputs, features first.
        degree: Degree of the spherical harmonics, 1 to 4.
        precision: Number type of the network, as for `mlp`.
        backend: Implementation of both stages; each is chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take one of the stages.

    Gradient:
        To features, directions and every matrix; second order with backend="reference".

    Source: instant-ngp nerf_network.h, configs/nerf/base.json.
    """
    check = Checker("color_mlp")
    check("features", features, ("n", "n_features"))
    check("directions", directions, ("n", 3))
    check_mlp("color_mlp", "weights", weights, features.shape[1] + degree**2, like=("features", features))
    x = torch.cat([features, spherical_harmonics(directions, degree=degree, backend=backend)], 1)
    return mlp(x, weights, output_activation="sigmoid", precision=precision, backend=backend)

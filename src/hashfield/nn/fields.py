"""Fields as modules: functions over space with trainable parameters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.nn.config import RadianceFieldConfig
from hashfield.nn.encodings import GridEncoding
from hashfield.nn.networks import MLP
from hashfield.ops.backend import Backend
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.grid_encode import Precision
from hashfield.ops.radiance_field import RadianceFieldResult, radiance_field

_DEFAULT = RadianceFieldConfig()


class RadianceField(nn.Module):
    """Colour and density of points seen from a direction: hash grid, density network, colour network.

    Parameters: `encoding.table`, `density_network.weights`, `color_network.weights`.

    Source: instant-ngp nerf_network.h, configs/nerf/base.json.
    """

    def __init__(
        self,
        config: RadianceFieldConfig = _DEFAULT,
        *,
        precision: Precision = "float32",
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make a field whose density is exp(density_bias) nearly everywhere.

        Args:
            config: Sizes.
            precision: "bfloat16" rounds lookups, matrices and layer inputs.
            backend: Implementation; chosen at each call if None.
            generator: Of the initial values: density network, colour network, table, in this order.
            dtype: Of the parameters; float64 runs on the reference.
        """
        super().__init__()
        self.config = config
        self.precision: Precision = precision
        self.backend: Backend | None = backend
        shared = {"precision": precision, "backend": backend, "generator": generator, "dtype": dtype}
        n_grid = config.encoding.layout(3).n_output
        n_color_input = config.n_features + config.direction_degree**2
        self.density_network = MLP(n_grid, config.n_features, config.density_network, **shared)
        self.color_network = MLP(n_color_input, 3, config.color_network, output_activation="sigmoid", **shared)
        self.encoding = GridEncoding.from_config(config.encoding, 3, **shared)

    def forward(self, positions_unit: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> RadianceFieldResult:
        """(color, density) of each point: colour in (0, 1), density per scene unit.

        Args:
            positions_unit: Unit space, [0, 1]^3.
            directions: Unit length, from the camera to the point, in the axes of scene space.
        """
        return radiance_field(
            positions_unit,
            directions,
            self.encoding.table,
            list(self.density_network.weights),
            list(self.color_network.weights),
            self.encoding.layout,
            density_bias=self.config.density_bias,
            degree=self.config.direction_degree,
            interpolation=self.config.encoding.interpolation,
            precision=self.precision,
            backend=self.backend,
        )

    def density(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density of each point, per scene unit, without the cost of its colour."""
        h = encoded_mlp(
            positions_unit,
            self.encoding.table,
            list(self.density_network.weights),
            self.encoding.layout,
            interpolation=self.config.encoding.interpolation,
            precision=self.precision,
            backend=self.backend,
        )
        return torch.exp(h[:, 0] + self.config.density_bias)

"""Fields as modules: functions over space with trainable parameters."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.geometry.grid_layout import GridLayout
from hashfield.nn.config import RadianceFieldConfig, RunPrecision
from hashfield.nn.encodings import GridEncoding, encoding_from_config, table_of
from hashfield.nn.networks import MLP
from hashfield.ops.backend import Backend
from hashfield.ops.color_mlp import color_mlp
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.eval_points import compute_precision
from hashfield.ops.grid_encode import Precision
from hashfield.ops.mlp import mlp
from hashfield.ops.radiance_field import RadianceFieldResult, density_of, radiance_field
from hashfield.ops.render_rays import FieldParameters

_DEFAULT = RadianceFieldConfig()


class RadianceField(nn.Module):
    """Colour and density of points seen from a direction: hash grid, density network, colour network.

    Parameters: `encoding.table`, `density_network.weights`, `color_network.weights`. Encodings other than grids have no
    table.

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
            config: Sizes and encoding.
            precision: "bfloat16" rounds lookups, matrices and layer inputs.
            backend: Implementation; chosen at each call if None.
            generator: Source of the initial values: density network, colour network, table, in this order.
            dtype: Type of the parameters; float64 runs on the reference.
        """
        super().__init__()
        self.config = config
        self.precision: Precision = precision
        self.backend: Backend | None = backend
        shared = {"precision": precision, "backend": backend, "generator": generator, "dtype": dtype}
        (_, n_encoded), *_ = config.network_shapes()[0]
        (_, n_color_input), *_ = config.network_shapes()[1]
        self.density_network = MLP(n_encoded, config.n_features, config.density_network, **shared)
        self.color_network = MLP(n_color_input, 3, config.color_network, output_activation="sigmoid", **shared)
        self.encoding = encoding_from_config(config.encoding, 3, **shared)

    def forward(self, positions_unit: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> RadianceFieldResult:
        """(color, density) of each point: colour in (0, 1), density per scene unit.

        Args:
            positions_unit: Unit space, [0, 1]^3.
            directions: Unit length, from the camera to the point, in the axes of scene space.
        """
        config, shared = self.config, {"precision": self.precision, "backend": self.backend}
        weights = list(self.color_network.weights)
        if isinstance(self.encoding, GridEncoding) and config.color_sees_density:
            return radiance_field(
                positions_unit,
                directions,
                self.encoding.table,
                list(self.density_network.weights),
                weights,
                self.encoding.layout,
                density_bias=config.density_bias,
                density_activation=config.density_activation,
                degree=config.direction_degree,
                interpolation=config.encoding.interpolation,
                **shared,
            )
        h = self._geometry(positions_unit)
        seen = h if config.color_sees_density else h[:, 1:]
        color = color_mlp(seen, directions, weights, degree=config.direction_degree, **shared)
        return RadianceFieldResult(color, density_of(h, self.config.density_bias, self.config.density_activation))

    def density(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density of each point, per scene unit, without the cost of its colour."""
        h = self._geometry(positions_unit)
        return density_of(h, self.config.density_bias, self.config.density_activation)

    def _geometry(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, "n n_features"]:
        """The density network's output; a grid and its network run as one op."""
        weights, shared = list(self.density_network.weights), {"precision": self.precision, "backend": self.backend}
        if not isinstance(self.encoding, GridEncoding):
            return mlp(self.encoding(positions_unit), weights, **shared)
        interpolation = self.config.encoding.interpolation
        return encoded_mlp(
            positions_unit, self.encoding.table, weights, self.encoding.layout, interpolation=interpolation, **shared
        )


def field_parameters(
    module: RadianceField, table_bf16: Tensor | None, precision: RunPrecision = "auto"
) -> FieldParameters:
    """A field module's numbers as the fused ops take them, sharing its memory.

    Args:
        module: The field.
        table_bf16: Its table rounded, where lookups are to read that.
        precision: Number type of lookups and networks. auto: on GPUs float16; on CPUs bfloat16 lookups, and bfloat16
            networks where the CPU has instructions for them.
    """
    first, *others = (w.detach() for w in module.color_network.weights)
    if not module.config.color_sees_density:
        first = nn.functional.pad(first, (1, 0))  # the kernels hand it that output too, here with weight 0
    encoding = module.encoding
    found = FieldParameters(
        layout=module.config.encoding.layout(3) if isinstance(encoding, GridEncoding) else GridLayout(),
        table=table_of(module.encoding).detach(),
        density_weights=tuple(w.detach() for w in module.density_network.weights),
        color_weights=(first, *others),
        density_bias=module.config.density_bias,
        density_activation=module.config.density_activation,
        interpolation=module.config.encoding.interpolation,
        encode=None if isinstance(encoding, GridEncoding) else encoding,
    )
    if not found.is_fused:
        return found
    networks = compute_precision(precision, found.table.device)
    if networks == "float16" and found.limit("triton") is not None:
        networks = "float32"  # the reference then runs
    return replace(
        found,
        table_bf16=None if precision == "float32" or networks == "float16" else table_bf16,
        precision=networks,
        table_fp16=found.table.to(torch.float16) if networks == "float16" else None,
    )

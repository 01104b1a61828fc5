"""Configurations of encodings, networks and fields: frozen, checked when made."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Self

from hashfield.errors import ConfigError
from hashfield.geometry.grid_layout import GridLayout, GridType, per_level_scale_between
from hashfield.ops.render_rays import fused_kernels_cover

RunPrecision = Literal["auto", "float32", "bfloat16", "float16"]
"""What may be asked of a run's networks; each task's `precision` says what it makes of it."""


@dataclass(frozen=True)
class GridConfig:
    """A multiresolution grid encoding, under tiny-cuda-nn's names. Any number of dimensions."""

    type: GridType = "Hash"
    """How levels are stored. Hash: levels above 2^log2_hashmap_size entries share them; Dense: none does; Tiled: they
    repeat."""
    n_levels: int = 8
    """Number of resolutions, the paper's L."""
    n_features_per_level: int = 4
    """Numbers of an entry, the paper's F: 1, 2, 4 or 8."""
    log2_hashmap_size: int = 19
    """Logarithm to base 2 of the most entries of a level, the paper's T."""
    base_resolution: int = 16
    """Vertices per axis of the coarsest level, the paper's N_min."""
    per_level_scale: float = 2.0
    """Growth of the resolution from level to level, the paper's b."""
    interpolation: Literal["linear", "smoothstep", "nearest"] = "linear"
    """How a value follows from the corners of its cell; smoothstep has continuous first derivatives."""

    def __post_init__(self) -> None:
        if self.interpolation not in ("linear", "smoothstep", "nearest"):
            raise ConfigError(
                f"interpolation: expected 'linear', 'smoothstep' or 'nearest', got {self.interpolation!r}"
            )
        # The sizes depend on the dimensions; two are the mildest case and check every field by itself.
        self.layout(2)

    def layout(self, n_dims: int) -> GridLayout:
        """The sizes of this grid's levels over positions of n_dims components.

        Raises:
            ConfigError: a level is too fine for so many dimensions.
        """
        return GridLayout(
            n_dims=n_dims,
            n_levels=self.n_levels,
            n_features_per_level=self.n_features_per_level,
            log2_hashmap_size=self.log2_hashmap_size,
            base_resolution=self.base_resolution,
            per_level_scale=self.per_level_scale,
            type=self.type,
        )

    def reaching(self, finest_resolution: float) -> Self:
        """This grid with the per-level scale that ends at about finest_resolution vertices per axis."""
        scale = per_level_scale_between(self.base_resolution, finest_resolution, self.n_levels)
        return replace(self, per_level_scale=scale)


@dataclass(frozen=True)
class EncodingConfig(GridConfig):
    """Any encoding of positions: a grid, whose numbers these are, or one without parameters.

    Fields of the other kinds are not read. `hashfield.nn.encoding_from_config` makes the module.
    """

    otype: Literal["Grid", "Frequency", "TriangleWave", "OneBlob", "Identity"] = "Grid"
    """Which encoding, by tiny-cuda-nn's name. Identity is none at all."""
    n_frequencies: int = 12
    """Octaves of Frequency (sine and cosine each) and TriangleWave, per dimension."""
    n_bins: int = 16
    """Bins of OneBlob, per dimension."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.otype not in ("Grid", "Frequency", "TriangleWave", "OneBlob", "Identity"):
            raise ConfigError(f"otype: expected Grid, Frequency, TriangleWave, OneBlob or Identity, got {self.otype!r}")
        for name in ("n_frequencies", "n_bins"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @classmethod
    def of(cls, config: GridConfig) -> "EncodingConfig":
        """A grid's configuration as one of any encoding; one that is it already, as it is."""
        return config if isinstance(config, cls) else cls(**vars(config))

    def n_output(self, n_dims: int) -> int:
        """Features of an encoded position of n_dims components."""
        return {
            "Grid": self.n_levels * self.n_features_per_level,
            "Frequency": 2 * n_dims * self.n_frequencies,
            "TriangleWave": n_dims * self.n_frequencies,
            "OneBlob": n_dims * self.n_bins,
            "Identity": n_dims,
        }[self.otype]

    def n_parameters(self, n_dims: int) -> int:
        """Numbers that the encoding learns."""
        return self.layout(n_dims).n_parameters if self.otype == "Grid" else 0


@dataclass(frozen=True)
class MLPConfig:
    """A fully connected network without biases, ReLU between the layers."""

    n_neurons: int = 64
    """Width of the hidden layers."""
    n_hidden_layers: int = 1
    """Hidden layers; 0 makes the network one matrix."""

    def __post_init__(self) -> None:
        if self.n_neurons < 1:
            raise ConfigError(f"n_neurons: expected at least 1, got {self.n_neurons}")
        if self.n_hidden_layers < 0:
            raise ConfigError(f"n_hidden_layers: expected at least 0, got {self.n_hidden_layers}")

    def shapes(self, n_input: int, n_output: int) -> list[tuple[int, int]]:
        """[n_out, n_in] of each matrix between so many inputs and outputs."""
        widths = [n_input, *[self.n_neurons] * self.n_hidden_layers, n_output]
        return [(n_out, n_in) for n_in, n_out in pairwise(widths)]


@dataclass(frozen=True)
class RadianceFieldConfig:
    """Position and direction to density and colour: a grid, a density network and a colour network."""

    encoding: GridConfig = field(default_factory=GridConfig)
    """Encoding of the position: a grid, or any encoding, as an `EncodingConfig`."""
    density_network: MLPConfig = MLPConfig(n_neurons=64, n_hidden_layers=1)
    """Network from the grid's features to n_features outputs, the first of which is the log-density."""
    color_network: MLPConfig = MLPConfig(n_neurons=64, n_hidden_layers=2)
    """Network from those outputs and the direction to colour."""
    n_features: int = 16
    """Outputs of the density network, all of which feed the colour network."""
    direction_degree: int = 4
    """Degree of the direction's spherical harmonics, 1 to 4."""
    density_bias: float = 0.0
    """Added to the log-density: exp(density_bias) is the density everywhere before training."""
    density_activation: Literal["exp", "relu"] = "exp"
    """Function behind the density network. exp: density = exp(raw + density_bias); relu: max(0, raw + density_bias), as
    HashNeRF."""
    color_sees_density: bool = True
    """Whether the density network's first output feeds the colour network like the others; HashNeRF's does not."""

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels are made for such a field."""
        encoding = EncodingConfig.of(self.encoding)
        return fused_kernels_cover(
            has_grid=encoding.otype == "Grid",
            interpolation=encoding.interpolation,
            density_layers=self.density_network.n_hidden_layers,
            color_layers=self.color_network.n_hidden_layers,
        )

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ConfigError(f"n_features: expected at least 1, got {self.n_features}")
        if self.direction_degree not in (1, 2, 3, 4):
            raise ConfigError(f"direction_degree: expected 1, 2, 3 or 4, got {self.direction_degree}")
        if self.density_activation not in ("exp", "relu"):
            raise ConfigError(f"density_activation: expected 'exp' or 'relu', got {self.density_activation!r}")
        if self.n_features < 2 and not self.color_sees_density:
            raise ConfigError("n_features: expected at least 2 where the colour network does not see the first")
        # Written so that NaN fails too. Beyond 80 the density leaves float32.
        if not -80.0 <= self.density_bias <= 80.0:
            raise ConfigError(f"density_bias: expected -80 to 80, got {self.density_bias!r}")
        if self.n_grid_parameters:
            self.encoding.layout(3)

    @property
    def n_encoded(self) -> int:
        """Features of an encoded position."""
        if isinstance(self.encoding, EncodingConfig):
            return self.encoding.n_output(3)
        return self.encoding.layout(3).n_output

    @property
    def n_grid_parameters(self) -> int:
        """Numbers that the encoding learns; 0 where it is not a grid."""
        if isinstance(self.encoding, EncodingConfig):
            return self.encoding.n_parameters(3)
        return self.encoding.layout(3).n_parameters

    def network_shapes(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Shapes [n_out, n_in] of the density network's matrices and of the colour network's, first layer first."""
        n_color = self.n_features - (not self.color_sees_density) + self.direction_degree**2
        return (
            self.density_network.shapes(self.n_encoded, self.n_features),
            self.color_network.shapes(n_color, 3),
        )

"""Encodings of positions and directions as modules. Each has `n_dims` inputs and `n_output` features."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.errors import ConfigError, ShapeError
from hashfield.geometry.grid_layout import GridType
from hashfield.nn.config import GridConfig
from hashfield.ops.backend import Backend
from hashfield.ops.grid_encode import Interpolation, Precision, grid_encode
from hashfield.ops.spherical_harmonics import spherical_harmonics

_TABLE_LIMIT = 1e-4  # paper section 4: entries start uniform in +-1e-4


class Encoding(nn.Module):
    """Base of the encodings: a function from n_dims numbers to n_output features."""

    n_dims: int
    """Components of an input."""
    n_output: int
    """Features of an input."""

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Features of each input."""
        raise NotImplementedError


class GridEncoding(Encoding):
    """Multiresolution hash grid: trainable features of positions in [0, 1]^D.

    >>> encoding = GridEncoding(n_dims=2, n_levels=4, n_features_per_level=2)
    >>> encoding(torch.rand(10, 2)).shape
    torch.Size([10, 8])
    """

    def __init__(
        self,
        n_dims: int = 3,
        *,
        type: GridType = "Hash",
        n_levels: int = 8,
        n_features_per_level: int = 4,
        log2_hashmap_size: int = 19,
        base_resolution: int = 16,
        per_level_scale: float = 2.0,
        interpolation: Interpolation = "linear",
        precision: Precision = "float32",
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make a table with entries uniform in +-1e-4.

        Args:
            n_dims: D, 2 to 4.
            type: As the grid's other numbers, see `GridConfig`.
            n_levels: L.
            n_features_per_level: F.
            log2_hashmap_size: log2 T.
            base_resolution: N_min.
            per_level_scale: b.
            interpolation: Between the corners of a cell.
            precision: "bfloat16" looks up rounded table values.
            backend: Implementation; chosen at each call if None.
            generator: Of the initial values; torch's default if None.
            dtype: Of the table; float64 runs on the reference.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__()
        self.config = GridConfig(
            type=type,
            n_levels=n_levels,
            n_features_per_level=n_features_per_level,
            log2_hashmap_size=log2_hashmap_size,
            base_resolution=base_resolution,
            per_level_scale=per_level_scale,
            interpolation=interpolation,
        )
        self.layout = self.config.layout(n_dims)
        self.precision: Precision = precision
        self.backend: Backend | None = backend
        self.n_dims, self.n_output = n_dims, self.layout.n_output
        self.table = nn.Parameter(torch.empty(self.layout.n_entries, self.layout.n_features_per_level, dtype=dtype))
        self.reset_parameters(generator)

    @classmethod
    def from_config(
        cls,
        config: GridConfig,
        n_dims: int = 3,
        *,
        precision: Precision = "float32",
        backend: Backend | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "GridEncoding":
        """The encoding a configuration describes."""
        return cls(
            n_dims,
            **vars(config),
            precision=precision,
            backend=backend,
            generator=generator,
            dtype=dtype,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the table anew; the same numbers whatever the dtype."""
        values = torch.rand(self.table.shape, generator=generator, dtype=torch.float32)
        with torch.no_grad():
            self.table.copy_((2 * values - 1) * _TABLE_LIMIT)

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Features of each position in unit space, level-major."""
        return grid_encode(
            x,
            self.table,
            self.layout,
            interpolation=self.config.interpolation,
            precision=self.precision,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The configuration, for print."""
        return f"n_dims={self.n_dims}, n_parameters={self.table.numel()}, {self.config}"


class SphericalHarmonicsEncoding(Encoding):
    """Real spherical harmonics of unit directions with components in [-1, 1]."""

    def __init__(self, degree: int = 4, *, backend: Backend | None = None) -> None:
        """Args: degree: 1 to 4, gives degree^2 features. backend: chosen at each call if None."""
        super().__init__()
        if degree not in (1, 2, 3, 4):
            raise ConfigError(f"degree: expected 1, 2, 3 or 4, got {degree!r}")
        self.degree = degree
        self.backend: Backend | None = backend
        self.n_dims, self.n_output = 3, degree**2

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Harmonics of each direction."""
        return spherical_harmonics(x, degree=self.degree, backend=self.backend)


class FrequencyEncoding(Encoding):
    """Sines and cosines of 2^k pi x: per input dimension and frequency k the sine, then the cosine.

    Source: tiny-cuda-nn encodings/frequency.h.
    """

    def __init__(self, n_dims: int = 3, n_frequencies: int = 12) -> None:
        """Args: n_dims: components of an input. n_frequencies: k runs from 0 to n_frequencies - 1."""
        super().__init__()
        if n_dims < 1 or n_frequencies < 1:
            raise ConfigError(f"n_dims, n_frequencies: expected at least 1 each, got {n_dims} and {n_frequencies}")
        self.n_frequencies = n_frequencies
        self.n_dims, self.n_output = n_dims, n_dims * n_frequencies * 2

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Features of each input."""
        _check_width(self, x)
        k = torch.arange(self.n_frequencies, dtype=x.dtype, device=x.device)
        angle = x[:, :, None] * (math.pi * torch.exp2(k))
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class IdentityEncoding(Encoding):
    """The input itself, scaled and shifted."""

    def __init__(self, n_dims: int = 3, *, scale: float = 1.0, offset: float = 0.0) -> None:
        """Args: n_dims: components of an input. scale, offset: the output is x * scale + offset."""
        super().__init__()
        if n_dims < 1:
            raise ConfigError(f"n_dims: expected at least 1, got {n_dims}")
        self.scale, self.offset = scale, offset
        self.n_dims, self.n_output = n_dims, n_dims

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Scaled and shifted inputs."""
        _check_width(self, x)
        return x * self.scale + self.offset


class CompositeEncoding(Encoding):
    """Several encodings side by side: each takes the next n_dims components, features are concatenated."""

    def __init__(self, encodings: Sequence[Encoding]) -> None:
        """Args: encodings: in the order of the input's components."""
        super().__init__()
        if not encodings:
            raise ConfigError("encodings: expected at least one, got none")
        self.encodings = nn.ModuleList(encodings)
        self.widths = [encoding.n_dims for encoding in encodings]
        self.n_dims = sum(self.widths)
        self.n_output = sum(encoding.n_output for encoding in encodings)

    def forward(self, x: Float[Tensor, "n n_dims"]) -> Float[Tensor, "n n_output"]:
        """Concatenated features."""
        _check_width(self, x)
        parts = x.split(self.widths, 1)
        return torch.cat([encode(part) for encode, part in zip(self.encodings, parts, strict=True)], 1)


def _check_width(encoding: Encoding, x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != encoding.n_dims:
        raise ShapeError(f"{type(encoding).__name__}: x: expected shape [n, {encoding.n_dims}], got {list(x.shape)}")

"""Encodings of positions and directions as modules. Each has `n_dims` inputs and `n_output` features."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashfield.errors import ConfigError, ShapeError
from hashfield.geometry.grid_layout import GridType, HashType
from hashfield.nn.config import EncodingConfig, GridConfig
from hashfield.ops.backend import Backend
from hashfield.ops.elementwise_encode import frequency_encode, identity_encode, one_blob_encode, triangle_wave_encode
from hashfield.ops.grid_encode import Interpolation, Precision, grid_encode
from hashfield.ops.spherical_harmonics import spherical_harmonics

_TABLE_LIMIT = 1e-4  # paper section 4: entries start uniform in +-1e-4


class Encoding(nn.Module):
    """Base of the encodings: a function from n_dims numbers to n_output features."""

    n_dims: int
    """Components of an input."""
    n_output: int
    """Features of an input."""
    alignment: int = 1
    """In a composite, the features of this encoding start at a multiple of this number."""
    padding: float = 1.0
    """What fills up its features where those of the next encoding must be aligned."""
    is_padded_in_front: bool = False
    """Whether the filling comes before the features."""
    table_shapes: tuple[tuple[int, int], ...] = ()
    """Shapes of the tables that a call can be given, in order; none where nothing is learned."""

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Features of each input.

        Args:
            x: Inputs.
            tables: Parameters to use instead of the module's own, one of each of `table_shapes`: anybody can own them,
                share, prune or quantise them. None: its own.
        """
        raise NotImplementedError

    def filled(self, x: Float[Tensor, "n n_dims"], width: int, *tables: Tensor) -> Float[Tensor, "n width"]:
        """Features of each input, filled up to a width by this encoding's rule: ones or zeros, behind or in front.

        Args:
            x: Inputs.
            width: At least `n_output`.
            tables: As for a call.
        """
        features = self(x, *tables)
        missing = width - features.shape[1]
        if not missing:
            return features
        place = (missing, 0) if self.is_padded_in_front else (0, missing)
        return nn.functional.pad(features, place, value=self.padding)


class GridEncoding(Encoding):
    """Multiresolution grid, hashed, tiled or dense: trainable features of positions in [0, 1]^D.

    >>> encoding = GridEncoding(n_dims=2, n_levels=4, n_features_per_level=2)
    >>> encoding(torch.rand(10, 2)).shape
    torch.Size([10, 8])
    """

    table: nn.Parameter
    """[n_entries, F]; None where the module was made without."""

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
        hash: HashType = "CoherentPrime",
        has_table: bool = True,
    ) -> None:
        """Make a table with entries uniform in +-1e-4.

        Args:
            n_dims: D, 1 to 7; other numbers than 2 and 3 run on the reference.
            type: How levels are stored: "Hash", "Tiled" or "Dense"; see `GridConfig`.
            n_levels: L, number of levels.
            n_features_per_level: F, features of each level.
            log2_hashmap_size: log2 T, where T is the most entries that a level has if its type is Hash.
            base_resolution: N_min, vertices per axis of the coarsest level.
            per_level_scale: b, growth of the resolution from level to level.
            interpolation: Between the corners of a cell.
            precision: "bfloat16" looks up rounded table values.
            backend: Implementation; chosen at each call if None.
            generator: Source of the initial values; torch's default if None.
            dtype: Type of the table; float64 runs on the reference.
            hash: Function that spreads vertices over hashed levels; others than the first run on the reference.
            has_table: Whether the module owns a table. Without, every call must be given one.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__()
        self.alignment, self.padding = n_features_per_level, 0.0
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
        if hash != "CoherentPrime":
            self.layout = replace(self.layout, hash=hash)
        self.precision: Precision = precision
        self.backend: Backend | None = backend
        self.n_dims, self.n_output = n_dims, self.layout.n_output
        self.table_shapes = ((self.layout.n_entries, self.layout.n_features_per_level),)
        self.register_parameter("table", None)
        if has_table:
            self.table = nn.Parameter(torch.empty(self.table_shapes[0], dtype=dtype))
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
        """The encoding a configuration describes.

        Args:
            config: Levels, features, table size and resolutions.
            n_dims: Dimensions of a position, 1 to 7; other numbers than 2 and 3 run on the reference.
            precision: "bfloat16" looks up rounded table values.
            backend: Implementation; chosen at each call if None.
            generator: Source of the initial values; torch's default if None.
            dtype: Type of the table; float64 runs on the reference.
        """
        return cls(
            n_dims,
            **{f.name: getattr(config, f.name) for f in fields(GridConfig)},
            precision=precision,
            backend=backend,
            generator=generator,
            dtype=dtype,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the table anew; the same numbers whatever the dtype."""
        if self.table is None:
            return
        values = torch.rand(self.table.shape, generator=generator, dtype=torch.float32)
        with torch.no_grad():
            self.table.copy_((2 * values - 1) * _TABLE_LIMIT)

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Features of each position in unit space, level-major; with a table given, of that instead of the own one."""
        return grid_encode(
            x,
            self.table_for(tables),
            self.layout,
            interpolation=self.config.interpolation,
            precision=self.precision,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The configuration, for print."""
        return f"n_dims={self.n_dims}, n_parameters={self.layout.n_parameters}, {self.config}"

    def table_for(self, tables: Sequence[Tensor]) -> Tensor:
        """The table that a call reads: the one given, or the module's own."""
        if len(tables) > 1 or (not tables and self.table is None):
            own = "has" if self.table is not None else "has no table of its own and"
            raise ShapeError(f"GridEncoding: tables: this one {own} takes one table, got {len(tables)}")
        return tables[0] if tables else self.table


class SphericalHarmonicsEncoding(Encoding):
    """Real spherical harmonics of unit directions with components in [-1, 1]."""

    def __init__(self, degree: int = 4, *, backend: Backend | None = None) -> None:
        """Args: degree: 1 to 8, gives degree^2 features. backend: chosen at each call if None."""
        super().__init__()
        self.is_padded_in_front = True
        if degree not in range(1, 9):
            raise ConfigError(f"degree: expected an integer from 1 to 8, got {degree!r}")
        self.degree = degree
        self.backend: Backend | None = backend
        self.n_dims, self.n_output = 3, degree**2

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Harmonics of each direction."""
        return spherical_harmonics(x, degree=self.degree, backend=self.backend)


class FrequencyEncoding(Encoding):
    """Sines and cosines of 2^k pi x: per input dimension and frequency k the sine, then the cosine.

    Source: tiny-cuda-nn encodings/frequency.h.
    """

    def __init__(self, n_dims: int = 3, n_frequencies: int = 12) -> None:
        """Args: n_dims: components of an input. n_frequencies: k runs from 0 to n_frequencies - 1."""
        super().__init__()
        _check_counts(n_dims=n_dims, n_frequencies=n_frequencies)
        self.n_frequencies = n_frequencies
        self.n_dims, self.n_output = n_dims, n_dims * n_frequencies * 2

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Features of each input."""
        _check_width(self, x)
        return frequency_encode(x, n_frequencies=self.n_frequencies)


class TriangleWaveEncoding(Encoding):
    """Triangle waves of x in octaves, each shifted by a quarter period from the one below: cheaper than sines.

    Source: tiny-cuda-nn encodings/triangle_wave.h.
    """

    def __init__(self, n_dims: int = 3, n_frequencies: int = 12) -> None:
        """Args: n_dims: components of an input. n_frequencies: octaves of each."""
        super().__init__()
        _check_counts(n_dims=n_dims, n_frequencies=n_frequencies)
        self.n_frequencies = n_frequencies
        self.n_dims, self.n_output = n_dims, n_dims * n_frequencies

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Features of each input."""
        _check_width(self, x)
        return triangle_wave_encode(x, n_frequencies=self.n_frequencies)


class OneBlobEncoding(Encoding):
    """Which of n_bins bins of [0, 1] each component lies in, softened: the share of a small blob in every bin.

    Source: tiny-cuda-nn encodings/oneblob.h.
    """

    def __init__(self, n_dims: int = 3, n_bins: int = 16) -> None:
        """Args: n_dims: components of an input. n_bins: bins of each."""
        super().__init__()
        _check_counts(n_dims=n_dims, n_bins=n_bins)
        self.n_bins = n_bins
        self.n_dims, self.n_output = n_dims, n_dims * n_bins

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Features of each input."""
        _check_width(self, x)
        return one_blob_encode(x, n_bins=self.n_bins)


class IdentityEncoding(Encoding):
    """The input itself, scaled and shifted."""

    def __init__(self, n_dims: int = 3, *, scale: float = 1.0, offset: float = 0.0) -> None:
        """Args: n_dims: components of an input. scale, offset: the output is x * scale + offset."""
        super().__init__()
        _check_counts(n_dims=n_dims)
        self.scale, self.offset = scale, offset
        self.n_dims, self.n_output = n_dims, n_dims

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Scaled and shifted inputs."""
        _check_width(self, x)
        return identity_encode(x, scale=self.scale, offset=self.offset)


Reduction = Literal["concatenation", "sum", "product"]


class CompositeEncoding(Encoding):
    """Several encodings side by side: each takes its share of the components; features are joined.

    Concatenated features follow each other in the order of the encodings. Where the next one must start at a multiple
    of its features per level (a grid), the one before is filled up, each in its own way: with zeros (a grid) or ones,
    the harmonics in front. Summed or multiplied encodings must be equally wide, filling included.

    Source: tiny-cuda-nn encodings/composite.h. Unlike there, overlapping shares add up in the input's gradient.
    """

    def __init__(
        self,
        encodings: Sequence[Encoding],
        *,
        begins: Sequence[int] | None = None,
        reduction: Reduction = "concatenation",
    ) -> None:
        """Put encodings side by side.

        Args:
            encodings: Each takes its n_dims components of the input.
            begins: First component of each; they may overlap and leave gaps. None: one after another.
            reduction: How features are joined.

        Raises:
            ConfigError: there is none, the begins do not fit, or the widths do not.
        """
        super().__init__()
        if not encodings:
            raise ConfigError("encodings: expected at least one, got none")
        if reduction not in ("concatenation", "sum", "product"):
            raise ConfigError(f"reduction: expected 'concatenation', 'sum' or 'product', got {reduction!r}")
        self.encodings = nn.ModuleList(encodings)
        self.reduction: Reduction = reduction
        widths = [encoding.n_dims for encoding in encodings]
        self.begins = list(begins) if begins is not None else [sum(widths[:k]) for k in range(len(widths))]
        if len(self.begins) != len(widths) or min(self.begins) < 0:
            raise ConfigError(f"begins: expected {len(widths)} numbers of at least 0, got {begins}")
        self.n_dims = max(begin + width for begin, width in zip(self.begins, widths, strict=True))
        self.table_shapes = tuple(shape for encoding in encodings for shape in encoding.table_shapes)
        alignments = [encoding.alignment for encoding in encodings]
        self.alignment = math.lcm(*alignments)
        self.padded_widths: list[int] = []
        """Features of each encoding with its filling."""
        if reduction == "concatenation":
            for encoding, following in zip(encodings, [*alignments[1:], 1], strict=True):
                end = sum(self.padded_widths) + encoding.n_output
                self.padded_widths.append(encoding.n_output + -end % following)
            self.n_output = sum(self.padded_widths)
        else:
            self.padded_widths = [e.n_output + -e.n_output % self.alignment for e in encodings]
            self.n_output = self.padded_widths[0]
            if len(set(self.padded_widths)) > 1:
                raise ConfigError(f"reduction {reduction!r}: expected equal widths, got {self.padded_widths}")

    def forward(self, x: Float[Tensor, "n n_dims"], *tables: Tensor) -> Float[Tensor, "n n_output"]:
        """Joined features; the tables given go to the nested grids in order."""
        return self.filled(x, self.n_output, *tables)

    def filled(self, x: Float[Tensor, "n n_dims"], width: int, *tables: Tensor) -> Float[Tensor, "n width"]:
        """Joined features up to a width: the last encoding is filled up by its rule, or, where features are summed or
        multiplied, every one is."""
        _check_width(self, x)
        if tables and len(tables) != len(self.table_shapes):
            raise ShapeError(f"CompositeEncoding: tables: expected {len(self.table_shapes)}, got {len(tables)}")
        widths = [*self.padded_widths[:-1], self.padded_widths[-1] + width - self.n_output]
        if self.reduction != "concatenation":
            widths = [width] * len(widths)
        parts: list[Tensor] = []
        left = list(tables)
        for encode, begin, each in zip(self.encodings, self.begins, widths, strict=True):
            assert isinstance(encode, Encoding)
            own = [left.pop(0) for _ in encode.table_shapes] if tables else []
            parts.append(encode.filled(x[:, begin : begin + encode.n_dims], each, *own))
        if self.reduction == "concatenation":
            return torch.cat(parts, 1)
        return torch.stack(parts).sum(0) if self.reduction == "sum" else math.prod(parts[1:], start=parts[0])


def encoding_from_config(
    config: GridConfig,
    n_dims: int = 3,
    *,
    precision: Precision = "float32",
    backend: Backend | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Encoding:
    """The encoding that a configuration describes.

    Args:
        config: What to make: a `GridConfig`, or an `EncodingConfig` for any other.
        n_dims: Components of a position.
        precision, backend, generator, dtype: As for `GridEncoding`; the others have no parameters.
    """
    if not isinstance(config, EncodingConfig) or config.otype == "Grid":
        return GridEncoding.from_config(
            config, n_dims, precision=precision, backend=backend, generator=generator, dtype=dtype
        )
    if config.otype == "Frequency":
        return FrequencyEncoding(n_dims, config.n_frequencies)
    if config.otype == "TriangleWave":
        return TriangleWaveEncoding(n_dims, config.n_frequencies)
    if config.otype == "OneBlob":
        return OneBlobEncoding(n_dims, config.n_bins)
    return IdentityEncoding(n_dims)


def table_of(encoding: Encoding) -> Tensor:
    """A grid's table; a tensor without entries where the encoding has none."""
    return encoding.table_for(()) if isinstance(encoding, GridEncoding) else torch.zeros(0, 1)


def _check_counts(**counts: int) -> None:
    if min(counts.values()) < 1:
        names, values = ", ".join(counts), " and ".join(map(str, counts.values()))
        each = " each" if len(counts) > 1 else ""
        raise ConfigError(f"{names}: expected at least 1{each}, got {values}")


def _check_width(encoding: Encoding, x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != encoding.n_dims:
        raise ShapeError(f"{type(encoding).__name__}: x: expected shape [n, {encoding.n_dims}], got {list(x.shape)}")

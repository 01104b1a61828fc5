"""Volume rendering of a radiance field along rays: march, evaluate, composite, without leaving the chip."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import Rays
from hashfield.geometry.spaces import n_cells_of
from hashfield.kernels.reference.render_rays import POINTS_AT_ONCE, FieldFunctions, unit_positions
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.color_mlp import color_mlp
from hashfield.ops.grid_encode import Interpolation, grid_encode
from hashfield.ops.march import march
from hashfield.ops.mlp import mlp
from hashfield.ops.radiance_field import DensityActivation, RadianceFieldResult, density_of

FieldPrecision = Literal["float32", "bfloat16", "float16"]
"""Number types in which a field's networks can run in the fused ops."""


def fused_kernels_cover(*, has_grid: bool, interpolation: str, density_layers: int, color_layers: int) -> bool:
    """Whether the fused kernels are made for a field of this shape: the one rule, for configurations and for numbers.

    Args:
        has_grid: Whether its encoding is a grid.
        interpolation: How the grid is interpolated.
        density_layers, color_layers: Hidden layers of its networks.
    """
    return has_grid and interpolation == "linear" and (density_layers, color_layers) == (1, 2)


@dataclass(frozen=True)
class FieldParameters:
    """The numbers of a radiance field as the fused ops take them: grid, density network, colour network.

    h = density network of the grid's features, 16 values; density = exp(h_0 + density_bias); colour = sigmoid of
    the colour network of [h | 16 spherical harmonics of the direction].

    The fused kernels take a linearly interpolated grid and the shapes below. Any other field (`is_fused` tells) goes
    through the small ops, one after another, put together as the reference is: slower, and the same function of its
    numbers, min_weight and the cut of rays included.
    """

    layout: GridLayout
    """Three dimensions. Not read where `encode` is given."""
    table: Float[Tensor, "n_entries n_features"]
    """The encoding's table, float32; without entries where `encode` is given."""
    density_weights: tuple[Tensor, ...]
    """[width, L*F] and [16, width]; unfused any number of matrices that fit each other."""
    color_weights: tuple[Tensor, ...]
    """[width, 32], [width, width] and [3, width]; unfused likewise."""
    density_bias: float = 0.0
    """Added to the log-density."""
    table_bf16: Tensor | None = None
    """The table rounded to bfloat16; where given, lookups read it (half the memory traffic)."""
    precision: FieldPrecision = "float32"
    """Number type of both networks: "bfloat16" rounds matrices and layer inputs, and in training the gradients that
    layers pass on; sums stay float32 and the log-density is not rounded. Lookups then are bfloat16 too. "float16" is
    the same with that type; GPUs only. Unfused: float32 only."""
    table_fp16: Tensor | None = None
    """The table rounded to float16, for lookups in precision "float16"."""
    density_activation: DensityActivation = "exp"
    """How h_0 becomes density; "relu": density = max(0, h_0 + density_bias)."""
    interpolation: Interpolation = "linear"
    """How features lie between the grid's vertices."""
    encode: Callable[[Tensor], Tensor] | None = None
    """Features of positions in unit space where they are not a grid's: an encoding without parameters."""

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels are made for such a field."""
        return fused_kernels_cover(
            has_grid=self.encode is None, interpolation=self.interpolation,
            density_layers=len(self.density_weights) - 1, color_layers=len(self.color_weights) - 1,
        )  # fmt: skip

    def density(self, positions_unit: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density per scene unit, by the small ops."""
        return density_of(self._geometry(positions_unit), self.density_bias, self.density_activation)

    def color_and_density(
        self, positions_unit: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]
    ) -> RadianceFieldResult:
        """Colour and density, by the small ops; differentiable in every tensor."""
        h = self._geometry(positions_unit)
        color = color_mlp(h, directions, self.color_weights)
        return RadianceFieldResult(color, density_of(h, self.density_bias, self.density_activation))

    def _geometry(self, positions_unit: Tensor) -> Tensor:
        if self.encode is not None:
            features = self.encode(positions_unit)
        else:
            features = grid_encode(positions_unit, self.table, self.layout, interpolation=self.interpolation)
        return mlp(features, self.density_weights)

    def check(self, op: str) -> None:
        """Raise a ShapeError that names the field where the shapes do not fit each other."""
        one_of(op, "precision", self.precision, ("float32", "bfloat16", "float16"))
        one_of(op, "density_activation", self.density_activation, ("exp", "relu"))
        layout = self.layout
        if not self.is_fused:
            self._check_unfused(op)
            return
        wanted = {"table": (self.table, (layout.n_entries, layout.n_features_per_level))}
        if self.table_bf16 is not None:
            wanted["table_bf16"] = (self.table_bf16, wanted["table"][1])
        if self.table_fp16 is not None:
            wanted["table_fp16"] = (self.table_fp16, wanted["table"][1])
        inner, width = self.density_weights[0].shape[0], self.color_weights[0].shape[0]
        shapes = ((inner, layout.n_output), (16, inner), (width, 32), (width, width), (3, width))
        for k, (weight, shape) in enumerate(zip((*self.density_weights, *self.color_weights), shapes, strict=True)):
            wanted[f"density_weights[{k}]" if k < 2 else f"color_weights[{k - 2}]"] = (weight, shape)
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise ShapeError(f"{op}: {name}: expected shape {shape}, got {tuple(tensor.shape)}")

    def _check_unfused(self, op: str) -> None:
        if self.precision != "float32" or self.table_bf16 is not None:
            raise ShapeError(f"{op}: precision: a field that is not fused takes float32 only")
        for name, matrices in (("density_weights", self.density_weights), ("color_weights", self.color_weights)):
            if not matrices:
                raise ShapeError(f"{op}: {name}: expected at least one matrix, got none")
            for k, (a, b) in enumerate(pairwise(matrices), start=1):
                if b.shape[1] != a.shape[0]:
                    raise ShapeError(f"{op}: {name}[{k}]: expected {a.shape[0]} inputs, got {b.shape[1]}")

    def limit(self, backend: Backend) -> str | None:
        """Why a backend cannot take this field, or None."""
        if self.precision == "float16" and backend != "triton":
            return "float16 networks run on GPUs only"
        if backend == "reference":
            return None
        if self.layout.n_dims != 3:
            return f"the grid has {self.layout.n_dims} dimensions, it needs 3"
        for weight in (self.density_weights[0], self.color_weights[0]):
            if weight.shape[0] % 16:
                return f"a hidden layer has {weight.shape[0]} neurons, it needs a multiple of 16"
            if backend == "triton" and self.density_activation != "exp":
                return f"density {self.density_activation!r}, it takes 'exp'"
            if backend == "triton" and weight.shape[0] > 128:
                return f"a hidden layer has {weight.shape[0]} neurons, it takes 128 at most"
        return None


@dataclass(frozen=True)
class MarchOptions:
    """Where and how finely rays are sampled."""

    aabb_scale: int
    """Side of the box, a power of two."""
    cone_angle: float = 0.0
    """Growth of the step with distance; 1/256 where aabb_scale > 1, as instant-ngp."""
    step_scale: float = 1.0
    """Makes every step this much longer than sqrt(3)/1024."""
    min_transmittance: float = 1e-4
    """A ray ends once less light than this passes; the background is then not added."""
    min_weight: float = 0.0
    """In training, samples that weigh less in their pixel add no colour and get no gradient, though they still shade
    what lies behind them. Near a surface half of the samples are of this kind. Rendering may save their colours: a
    sample is passed over while it and those passed over before it weigh less than this together, and the next one that
    is not stands for them; what is left at a ray's end, the light below min_transmittance included, is made up for by
    scaling what was seen."""


class RenderResult(NamedTuple):
    """What rays see."""

    color: Float[Tensor, "n_rays 3"]
    """Sum of weight * colour: premultiplied, without background."""
    opacity: Float[Tensor, " n_rays"]
    """Sum of weights, 0 to 1."""
    depth: Float[Tensor, " n_rays"]
    """Sum of weight * t, scene units; divide by opacity for the mean distance."""


@torch.no_grad()
def render_rays(
    field: FieldParameters,
    rays: Rays,
    bits: UInt8[Tensor, " n_bytes"],
    options: MarchOptions,
    *,
    jitter: Float[Tensor, " n_rays"] | None = None,
    backend: Backend | None = None,
) -> RenderResult:
    """Colour, opacity and depth of each ray.

    Args:
        field: What is rendered.
        rays: Scene space, t_min and t_max within the box.
        bits: Occupied cells, as `pack_bits` makes them.
        options: Where and how finely rays are sampled.
        jitter: Fraction of a step by which each ray's lattice is shifted; None means 0.5.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take the call.

    Gradient: none; see `train_rays`.

    The GPU backend gives every sample its colour, whatever options.min_weight: it would save little there.

    Source: instant-ngp src/testbed_nerf.cu; marching in waves is ours (few samples first, so that none are spent
    behind a surface).
    """
    field.check("render_rays")
    jitter = check_rays("render_rays", rays, bits, options, jitter)
    if not field.is_fused:
        return _render_unfused(field, rays, bits, options, jitter)
    choice = choose("render_rays", backend, field.table, rays.origin, bits, limit=field.limit)
    if choice.name != "triton" or not options.min_weight:
        return RenderResult(*choice.kernels.render_rays(field, rays, bits, options, jitter))
    color, opacity, depth = choice.kernels.render_rays(field, rays, bits, replace(options, min_weight=0.0), jitter)
    scale = torch.where(1 - opacity < options.min_transmittance, 1 / opacity.clamp(min=0.5), 1.0)
    return RenderResult(color * scale[:, None], opacity * scale, depth * scale)


def small_ops(field: FieldParameters) -> FieldFunctions:
    """How a field that is not fused is asked: by the small ops."""

    def marched(
        origin: Tensor, direction: Tensor, t_min: Tensor, t_max: Tensor, bits: Tensor, aabb_scale: int,
        cone_angle: float, step_scale: float, jitter: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        samples = march(
            Rays(origin, direction, t_min, t_max), bits, aabb_scale=aabb_scale, cone_angle=cone_angle,
            step_scale=step_scale, jitter=jitter,
        )  # fmt: skip
        return samples.t, samples.dt, samples.ray_offsets

    return FieldFunctions(marched, field.density, field.color_and_density)


_UNFUSED_WAVES = (8, 16, 32, 64)
"""Samples of each ray that still sees light whose density is asked at a time; the last one repeats."""
_UNFUSED_RAYS = 2**16
"""Rays rendered together: bounds the memory of their samples."""


def densities_in_waves(
    functions: FieldFunctions, rays: Rays, t: Tensor, dt: Tensor, ray_offsets: Tensor, options: MarchOptions
) -> tuple[Tensor, int]:
    """Densities of marched samples, asked wave after wave, so that few are spent behind a surface.

    Args:
        functions: How to ask.
        rays: Scene space.
        t, dt: [n_samples] of the samples, sorted by ray.
        ray_offsets: [n_rays + 1] where each ray's samples begin.
        options: Sampling; a ray is asked no further once less than its min_transmittance is left.

    Returns:
        The density of each sample, 0 where it was not asked, and how many were.
    """
    density, depth, n_asked = torch.zeros_like(t), torch.zeros_like(rays.t_min), 0
    darkest = -math.log(options.min_transmittance) if options.min_transmittance > 0 else math.inf
    first, last, wave = ray_offsets[:-1].clone(), ray_offsets[1:], 0
    alive = torch.nonzero(last > first)[:, 0]
    while len(alive):
        quota = _UNFUSED_WAVES[min(wave, len(_UNFUSED_WAVES) - 1)]
        counts = torch.minimum(last[alive] - first[alive], torch.full_like(alive, quota))
        ray = torch.repeat_interleave(alive, counts)
        starts = torch.repeat_interleave(first[alive] - (torch.cumsum(counts, 0) - counts), counts)
        at = starts + torch.arange(len(starts), device=starts.device)
        for few, own in zip(at.split(POINTS_AT_ONCE), ray.split(POINTS_AT_ONCE), strict=True):
            density[few] = functions.density(unit_positions(rays, t[few], own, options.aabb_scale))
        depth.index_add_(0, ray, density[at] * dt[at])
        n_asked += len(at)
        first[alive] += counts
        alive, wave = alive[(first[alive] < last[alive]) & (depth[alive] <= darkest)], wave + 1
    return density, n_asked


def _render_unfused(
    field: FieldParameters, rays: Rays, bits: Tensor, options: MarchOptions, jitter: Tensor
) -> RenderResult:
    kernels, functions = choose("render_rays", "reference", rays.origin).kernels, small_ops(field)
    parts: list[tuple[Tensor, ...]] = []
    for begin in range(0, max(rays.n_rays, 1), _UNFUSED_RAYS):
        part = slice(begin, begin + _UNFUSED_RAYS)
        some = Rays(rays.origin[part], rays.direction[part], rays.t_min[part], rays.t_max[part])
        parts.append(kernels.composed_rendering(functions, some, bits, options, jitter[part], densities_in_waves))
    return RenderResult(*(torch.cat(values) for values in zip(*parts, strict=True)))


def check_rays(op: str, rays: Rays, bits: Tensor, options: MarchOptions, jitter: Tensor | None) -> Tensor:
    """Check the shapes of rays, bits and jitter, and return the jitter to use.

    Args:
        op: The op's name, for the error.
        rays: In scene space; t_max must be finite.
        bits: Occupied cells of all cascades, one bit each, uint8.
        options: Tell the number of cascades.
        jitter: Shift of each ray's first sample, in steps; None: 0.5 for all.
    """
    check = Checker(op)
    check("rays.origin", rays.origin, ("n_rays", 3))
    check("rays.direction", rays.direction, ("n_rays", 3))
    check("rays.t_min", rays.t_min, ("n_rays",))
    check("rays.t_max", rays.t_max, ("n_rays",))
    check("bits", bits, (n_cells_of(options.aabb_scale) // 8,), "uint8")
    if not bool(torch.isfinite(rays.t_max).all()):  # a kernel would walk such a ray for ever
        raise ShapeError(f"{op}: rays.t_max: expected finite distances; clip the rays to the box with ray_box")
    if jitter is None:
        jitter = torch.full_like(rays.t_min, 0.5)
    check("jitter", jitter, ("n_rays",))
    return jitter

"""Volume rendering of a radiance field along rays: march, evaluate, composite, without leaving the chip."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hashfield.errors import ShapeError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import Rays
from hashfield.ops.backend import Backend, choose
from hashfield.ops.checks import Checker, one_of
from hashfield.ops.color_mlp import color_mlp
from hashfield.ops.composite import composite
from hashfield.ops.grid_encode import Interpolation, grid_encode
from hashfield.ops.march import march
from hashfield.ops.mlp import mlp
from hashfield.ops.radiance_field import DensityActivation, RadianceFieldResult, density_of

FieldPrecision = Literal["float32", "bfloat16", "float16"]
"""Of a field's networks in the fused ops."""


@dataclass(frozen=True)
class FieldParameters:
    """The numbers of a radiance field as the fused ops take them: grid, density network, colour network.

    h = density network of the grid's features, 16 values; density = exp(h_0 + density_bias); colour = sigmoid of
    the colour network of [h | 16 spherical harmonics of the direction].

    The fused kernels take a linearly interpolated grid and the shapes below. Any other field (`is_fused` tells) goes
    through the small ops, one after another: slower, and the same function of its numbers.
    """

    layout: GridLayout
    """Three dimensions. Not read where `encode` is given."""
    table: Float[Tensor, "n_entries n_features"]
    """float32; without entries where `encode` is given."""
    density_weights: tuple[Tensor, ...]
    """[width, L*F] and [16, width]; unfused any number of matrices that fit each other."""
    color_weights: tuple[Tensor, ...]
    """[width, 32], [width, width] and [3, width]; unfused likewise."""
    density_bias: float = 0.0
    """Added to the log-density."""
    table_bf16: Tensor | None = None
    """The table rounded to bfloat16; where given, lookups read it (half the memory traffic)."""
    precision: FieldPrecision = "float32"
    """Of both networks: "bfloat16" rounds matrices and layer inputs, and in training the gradients that layers pass
    on; sums stay float32 and the log-density is not rounded. Lookups then are bfloat16 too. "float16" is the same
    with that type; GPUs only. Unfused: float32 only."""
    table_fp16: Tensor | None = None
    """The table rounded to float16, for lookups in precision "float16"."""
    density_activation: DensityActivation = "exp"
    """Or "relu": density = max(0, h_0 + density_bias)."""
    interpolation: Interpolation = "linear"
    """Of the grid."""
    encode: Callable[[Tensor], Tensor] | None = None
    """Features of positions in unit space where they are not a grid's: an encoding without parameters."""

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels are made for such a field."""
        usual = len(self.density_weights) == 2 and len(self.color_weights) == 3
        return usual and self.encode is None and self.interpolation == "linear"

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
    """Training only: samples that weigh less in their pixel add no colour and get no gradient, though they still
    shade what lies behind them. Near a surface half of the samples are of this kind."""


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
        options: Sampling.
        jitter: Fraction of a step by which each ray's lattice is shifted; None means 0.5.
        backend: Implementation; chosen by device if None.

    Raises:
        ShapeError: an argument has the wrong shape or dtype.
        BackendError: the backend asked for cannot take the call.

    Gradient: none; see `train_rays`.

    Source: instant-ngp src/testbed_nerf.cu; marching in waves is ours (few samples first, so that none are spent
    behind a surface).
    """
    field.check("render_rays")
    jitter = check_rays("render_rays", rays, bits, options, jitter)
    if not field.is_fused:
        return _render_unfused(field, rays, bits, options, jitter)
    choice = choose("render_rays", backend, field.table, rays.origin, bits, limit=field.limit)
    return RenderResult(*choice.kernels.render_rays(field, rays, bits, options, jitter))


_UNFUSED_WAVES = (8, 16, 32, 64)  # samples that each living ray is given at a time


def unit_positions(rays: Rays, t: Tensor, ray: Tensor, aabb_scale: int) -> Tensor:
    """Samples' positions in unit space, [n, 3]; `ray` is the ray of each."""
    position = rays.origin[ray] + t[:, None] * rays.direction[ray]
    return (position - (0.5 - 0.5 * aabb_scale)) / aabb_scale


def _render_unfused(
    field: FieldParameters, rays: Rays, bits: Tensor, options: MarchOptions, jitter: Tensor
) -> RenderResult:
    """Wave after wave of samples, so that none are spent behind a surface."""
    color, light, depth = torch.zeros_like(rays.origin), torch.ones_like(rays.t_min), torch.zeros_like(rays.t_min)
    black = torch.zeros_like(rays.origin[:1]).squeeze(0)
    alive, start, wave = torch.nonzero(rays.t_max > rays.t_min)[:, 0], rays.t_min.clone(), 0
    while len(alive):
        quota = _UNFUSED_WAVES[min(wave, len(_UNFUSED_WAVES) - 1)]
        part = Rays(rays.origin[alive], rays.direction[alive], start[alive], rays.t_max[alive])
        samples = march(
            part, bits, aabb_scale=options.aabb_scale, cone_angle=options.cone_angle, step_scale=options.step_scale,
            jitter=jitter[alive] if wave == 0 else torch.zeros_like(part.t_min), max_samples_per_ray=quota,
        )  # fmt: skip
        counts = samples.ray_offsets[1:] - samples.ray_offsets[:-1]
        ray = torch.repeat_interleave(torch.arange(len(alive), device=counts.device), counts)
        positions = unit_positions(part, samples.t, ray, options.aabb_scale)
        seen = field.color_and_density(positions, part.direction[ray])
        found = composite(seen.color, seen.density, samples, black)
        color[alive] += light[alive, None] * found.color
        depth[alive] += light[alive] * found.depth
        light[alive] *= 1 - found.opacity
        last = (samples.ray_offsets[1:] - 1).clamp(min=0)
        goes_on = (counts == quota) & (light[alive] >= options.min_transmittance)
        # The lattice goes on at the point after the last sample.
        start[alive[goes_on]] = (samples.t + samples.dt)[last[goes_on]]
        alive, wave = alive[goes_on], wave + 1
    return RenderResult(color, 1 - light, depth)


def check_rays(op: str, rays: Rays, bits: Tensor, options: MarchOptions, jitter: Tensor | None) -> Tensor:
    """The jitter to use, after the shapes of rays, bits and jitter were checked."""
    check = Checker(op)
    check("rays.origin", rays.origin, ("n_rays", 3))
    check("rays.direction", rays.direction, ("n_rays", 3))
    check("rays.t_min", rays.t_min, ("n_rays",))
    check("rays.t_max", rays.t_max, ("n_rays",))
    check("bits", bits, (options.aabb_scale.bit_length() * 128**3 // 8,), "uint8")
    if not bool(torch.isfinite(rays.t_max).all()):  # a kernel would walk such a ray for ever
        raise ShapeError(f"{op}: rays.t_max: expected finite distances; clip the rays to the box with ray_box")
    if jitter is None:
        jitter = torch.full_like(rays.t_min, 0.5)
    check("jitter", jitter, ("n_rays",))
    return jitter

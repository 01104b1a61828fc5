"""Inputs on which every backend of an op must agree with the reference. A mended bug adds its input here."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from hashfield import ops
from hashfield.geometry.cameras import Camera, camera_table, look_at, panorama
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.rays import PixelPool, RayBatch, RaySamples
from hashfield.geometry.spaces import n_cells_of
from hashfield.ops.eval_points import EncodedNetwork
from hashfield.ops.occupancy import CELLS_PER_CASCADE
from hashfield.ops.occupancy_update import carve, occupied_bits, refresh_cells, silhouettes
from hashfield.ops.pixel_batch import pixel_batch
from hashfield.ops.render_rays import FieldParameters, MarchOptions, render_rays
from hashfield.ops.train_rays import TrainWorkspace, train_rays
from hashfield.ops.training_rays import training_rays
from tests import tolerances
from tests.ops import fused
from tests.ops.fused import CONE, RELU

SIZES = (0, 1, 63, 64, 65, 1000)


@dataclass(frozen=True)
class OpCase:
    """One input of one op."""

    op: str
    """Name of the op, as its file."""
    name: str
    """Name of the case, unique within the op."""
    make: Callable[[Generator], dict[str, Any]]
    """Arguments of `call`: float32 tensors, lists of them, options."""
    call: Callable[..., dict[str, Tensor]]
    """Runs the op with `backend=` and those arguments."""
    grads: tuple[str, ...] = ()
    """Arguments whose gradients are compared."""
    position_like: tuple[str, ...] = ()
    """Those among them whose gradient loses digits to cancellation."""
    bounds: Mapping[str, float] | None = None
    """Bounds on the relative error by name of the output or gradient, or by the name's beginning; see `bound_of`."""
    is_against_float64: bool = False
    """Whether only the float64 reference is compared with. For whole training steps: of thousands of hidden units one
    or two lie so close to zero that the float32 reference and a kernel may see them on different sides, which costs a
    gradient 1e-3. Inputs of such cases are chosen so that none lies closer than rounding reaches."""
    is_at_jumps: bool = False
    """Whether the op jumps at some of these inputs, or they lie so far out that float32 finds another cell. The float32
    reference then is what a backend must equal, and may be far from float64."""
    each_element: float | None = None
    """Where given, also a bound on every single element's error: relative, or absolute for elements below 1."""

    n_integers_may_differ: int = 0
    """Elements of an integer or boolean output that rounding may decide either way."""

    @property
    def id(self) -> str:
        """For the test's name."""
        return f"{self.op}-{self.name}"

    def bound_of(self, name: str, default: float) -> float:
        """Bound on the relative error of an output or a gradient."""
        return next((bound for key, bound in (self.bounds or {}).items() if name.startswith(key)), default)


def uniform(generator: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform float32 numbers."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with every tensor in it changed: in lists, tuples and dataclasses too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        made = [mapped(item, change) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if is_dataclass(value) and not isinstance(value, type) and not isinstance(value, GridLayout):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value


def every_other(value: Any) -> Any:
    """The same values, every tensor as every other element of its last axis: not contiguous."""
    return mapped(value, lambda x: torch.stack([x, torch.zeros_like(x)], -1)[..., 0])


def unit_vectors(generator: Generator, n: int) -> Tensor:
    """Uniform directions."""
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)


def _grid_call(backend: Any, positions: Tensor, table: Tensor, **options: Any) -> dict[str, Tensor]:
    return {"features": ops.grid_encode(positions, table, backend=backend, **options)}


def _grid(
    name: str,
    layout: GridLayout,
    n: int = 200,
    positions: Callable[[Generator, int, GridLayout], Tensor] | None = None,
    table: Callable[[Generator, GridLayout], Tensor] | None = None,
    position_gradient: bool = True,
    **options: Any,
) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        x = positions(generator, n, layout) if positions else uniform(generator, n, layout.n_dims)
        shape = (layout.n_entries, layout.n_features_per_level)
        values = table(generator, layout) if table else uniform(generator, *shape, low=-1.0)
        return {"positions": x, "table": values, "layout": layout, **options}

    grads = ("positions", "table") if position_gradient else ("table",)
    is_at_jumps = positions in (on_faces, outside)
    return OpCase(
        "grid_encode", name, make, _grid_call, grads, position_like=("positions",), is_at_jumps=is_at_jumps
    )  # fmt: skip


def on_faces(generator: Generator, n: int, layout: GridLayout) -> Tensor:
    """Positions on cell faces of some level, on 0 and on 1."""
    level = torch.randint(layout.n_levels, (n, layout.n_dims), generator=generator)
    scale = torch.from_numpy(layout.scales.copy())[level]
    vertex = torch.floor(torch.rand(n, layout.n_dims, generator=generator) * (scale + 1))
    x = ((vertex - 0.5) / scale.clamp(min=1)).clamp(0, 1)
    x[: n // 4] = torch.randint(2, (n // 4, layout.n_dims), generator=generator).float()
    return x


def outside(generator: Generator, n: int, layout: GridLayout) -> Tensor:
    """Positions around the unit cube, negative ones included, and far from it."""
    x = torch.randn(n, layout.n_dims, generator=generator) * 3
    x[::7] *= 1e4
    x[::11] = -x[::11].abs()
    return x


def not_numbers(generator: Generator, n: int, layout: GridLayout) -> Tensor:
    """Positions of which some coordinates are NaN, infinite or too large for any cell."""
    x = uniform(generator, n, layout.n_dims)
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e12, -1e10)):
        x[i::9, i % layout.n_dims] = value
    return x


def _every_other_column(generator: Generator, n: int, layout: GridLayout) -> Tensor:
    return uniform(generator, n, 2 * layout.n_dims)[:, ::2]


def _transposed_table(generator: Generator, layout: GridLayout) -> Tensor:
    return uniform(generator, layout.n_features_per_level, layout.n_entries, low=-1.0).T


def _subnormal_table(generator: Generator, layout: GridLayout) -> Tensor:
    return uniform(generator, layout.n_entries, layout.n_features_per_level, low=-1.0) * 1e-40


HASH_3D = GridLayout(
    n_dims=3, n_levels=6, n_features_per_level=4, log2_hashmap_size=10, base_resolution=5, per_level_scale=1.7
)
HASH_3D_F2 = GridLayout(
    n_dims=3, n_levels=5, n_features_per_level=2, log2_hashmap_size=9, base_resolution=4, per_level_scale=2.0
)
HASH_2D = GridLayout(
    n_dims=2, n_levels=6, n_features_per_level=2, log2_hashmap_size=8, base_resolution=4, per_level_scale=1.8
)
FINE = GridLayout(n_dims=3, n_levels=8, n_features_per_level=4, log2_hashmap_size=12)


def _features(n_features: int, n_dims: int = 3) -> GridLayout:
    return GridLayout(
        n_dims=n_dims,
        n_levels=3,
        n_features_per_level=n_features,
        log2_hashmap_size=8,
        base_resolution=4,
        per_level_scale=2.5,
    )


def _typed(kind: Any, n_dims: int) -> GridLayout:
    return GridLayout(n_dims, 3, 2, 8, 5, 1.6, kind)


GRID_CASES = [
    *(_grid(f"3d_hash_n{n}", HASH_3D, n) for n in SIZES),
    _grid("3d_hash_f2", HASH_3D_F2),
    *(_grid(f"2d_hash_n{n}", HASH_2D, n) for n in (1, 65, 1000)),
    *(_grid(f"3d_f{f}", _features(f)) for f in (1, 2, 4, 8)),
    *(_grid(f"2d_f{f}", _features(f, 2)) for f in (1, 2, 4, 8)),
    *(_grid(f"3d_{k.lower()}", _typed(k, 3)) for k in ("Dense", "Tiled")),
    *(_grid(f"2d_{k.lower()}", _typed(k, 2)) for k in ("Dense", "Tiled")),
    _grid("4d_hash", GridLayout(4, 3, 2, 9, 4, 1.6), 65),
    _grid("3d_base_json", FINE, 500),
    _grid("3d_one_level", GridLayout(3, 1, 4, 10, 7, 1.0)),
    _grid("3d_one_vertex", GridLayout(3, 2, 2, 6, 1, 2.0)),
    _grid("3d_smoothstep", HASH_3D, interpolation="smoothstep"),
    _grid("2d_smoothstep", HASH_2D, interpolation="smoothstep"),
    *(
        _grid(f"{d}d_nearest_n{n}", layout, n, interpolation="nearest", position_gradient=False)
        for d, layout in ((3, HASH_3D), (2, HASH_2D))
        for n in (0, 1, 65, 1000)
    ),
    *(
        _grid(f"{d}d_nearest_f{f}", _features(f, d), interpolation="nearest", position_gradient=False)
        for d in (2, 3)
        for f in (1, 2, 4, 8)
    ),
    *(
        _grid(
            f"{d}d_nearest_{k.lower()}",
            _typed(k, d),
            positions=outside,
            interpolation="nearest",
            position_gradient=False,
        )
        for d in (2, 3)
        for k in ("Dense", "Tiled")
    ),
    _grid("3d_nearest_bfloat16", HASH_3D, precision="bfloat16", interpolation="nearest", position_gradient=False),
    _grid("3d_nearest_on_faces", HASH_3D, positions=on_faces, interpolation="nearest", position_gradient=False),
    _grid("3d_nearest_outside", HASH_3D, positions=outside, interpolation="nearest", position_gradient=False),
    _grid("3d_nearest_not_numbers", HASH_3D, positions=not_numbers, interpolation="nearest", position_gradient=False),
    # Entries that are and are not a power of two, several times fewer than vertices.
    _grid("3d_tiled_power", GridLayout(3, 4, 4, 8, 4, 1.9, "Tiled"), 500),
    _grid("2d_tiled_odd", GridLayout(2, 5, 2, 8, 7, 1.7, "Tiled"), 500),
    _grid("3d_bfloat16", HASH_3D, precision="bfloat16"),
    _grid("3d_bfloat16_f2", HASH_3D_F2, precision="bfloat16"),
    _grid("2d_bfloat16_smoothstep", HASH_2D, precision="bfloat16", interpolation="smoothstep"),
    _grid("3d_on_faces", HASH_3D, positions=on_faces),
    _grid("2d_on_faces", HASH_2D, positions=on_faces),
    _grid("3d_outside", HASH_3D, positions=outside),
    _grid("2d_outside", HASH_2D, positions=outside),
    _grid("3d_dense_outside", _typed("Dense", 3), positions=outside),
    _grid("3d_tiled_outside", _typed("Tiled", 3), positions=outside),
    _grid("3d_not_numbers", HASH_3D, positions=not_numbers),
    _grid("2d_not_numbers", HASH_2D, positions=not_numbers),
    _grid("3d_not_contiguous", HASH_3D, positions=_every_other_column, table=_transposed_table),
    # Differences of subnormals times the scale lie on both sides of the smallest normal number.
    _grid("3d_subnormal_table", HASH_3D, table=_subnormal_table, position_gradient=False),
]


def _sh_call(backend: Any, directions: Tensor, degree: int) -> dict[str, Tensor]:
    return {"values": ops.spherical_harmonics(directions, degree=degree, backend=backend)}


def _sh(name: str, n: int, degree: int, *, strided: bool = False) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        directions = unit_vectors(generator, n)
        if n >= 6:
            directions[:6] = torch.cat([torch.eye(3), -torch.eye(3)])
        return {"directions": directions.T.contiguous().T if strided else directions, "degree": degree}

    # Degree 1 is a constant and has no gradient.
    return OpCase("spherical_harmonics", name, make, _sh_call, ("directions",) if degree > 1 else ())


SH_CASES = [
    *(_sh(f"degree4_n{n}", n, 4) for n in SIZES),
    *(_sh(f"degree{d}", 65, d) for d in (1, 2, 3)),
    _sh("not_contiguous", 65, 4, strided=True),
]


def _mlp_call(backend: Any, x: Tensor, weights: list[Tensor], **options: Any) -> dict[str, Tensor]:
    return {"out": ops.mlp(x, weights, backend=backend, **options)}


def _mlp(
    name: str,
    widths: tuple[int, ...],
    n: int = 65,
    *,
    x_gradient: bool = True,
    strided: bool = False,
    **options: Any,
) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        x = uniform(generator, n, widths[0], low=-1.0)
        weights = []
        for n_in, n_out in itertools.pairwise(widths):
            weight = uniform(generator, n_out, n_in, low=-1.0) * (6 / (n_in + n_out)) ** 0.5
            weights.append(weight.T.contiguous().T if strided else weight)
        return {"x": x.T.contiguous().T if strided else x, "weights": weights, **options}

    return OpCase("mlp", name, make, _mlp_call, ("x", "weights") if x_gradient else ("weights",))


DENSITY, COLOR = (32, 64, 16), (32, 64, 64, 3)
MLP_CASES = [
    *(_mlp(f"density_n{n}", DENSITY, n) for n in SIZES),
    *(_mlp(f"color_n{n}", COLOR, n, output_activation="sigmoid") for n in (1, 64, 1000)),
    _mlp("density_exp", (32, 64, 1), output_activation="exp"),
    _mlp("no_input_gradient", DENSITY, x_gradient=False),
    _mlp("one_matrix", (32, 16)),
    _mlp("odd_widths", (5, 7, 2), output_activation="sigmoid"),
    _mlp("narrow", (32, 16, 16, 3)),
    _mlp("wide", (64, 128, 128, 16)),
    _mlp("deep", (16, 32, 32, 32, 32, 4)),
    _mlp("not_contiguous", DENSITY, strided=True),
]


def _encoded_call(
    backend: Any, positions: Tensor, table: Tensor, weights: list[Tensor], layout: GridLayout, **options: Any
) -> dict[str, Tensor]:
    return {"out": ops.encoded_mlp(positions, table, weights, layout, backend=backend, **options)}


def _encoded(name: str, layout: GridLayout, hidden: tuple[int, ...], n: int = 65, **options: Any) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        table = uniform(generator, layout.n_entries, layout.n_features_per_level, low=-1.0)
        weights = [
            uniform(generator, n_out, n_in, low=-1.0) * (6 / (n_in + n_out)) ** 0.5
            for n_in, n_out in itertools.pairwise((layout.n_output, *hidden))
        ]
        positions = uniform(generator, n, layout.n_dims)
        return {"positions": positions, "table": table, "weights": weights, "layout": layout, **options}

    grads = ("positions", "table", "weights")
    return OpCase("encoded_mlp", name, make, _encoded_call, grads, position_like=("positions",))


# Levels stay coarse: where float32 rounds a position, a hidden unit near zero may flip.
ENCODED_CASES = [
    *(_encoded(f"image_n{n}", HASH_2D, (64, 64, 3), n, output_activation="sigmoid") for n in (0, 1, 65)),
    _encoded("distance", HASH_3D_F2, (64, 64, 1)),
    _encoded("density", HASH_3D, (64, 16), output_activation="exp"),
    _encoded("smoothstep", HASH_3D_F2, (32, 1), interpolation="smoothstep"),
]


def random_samples(
    generator: Generator, n_rays: int, longest: int = 12, dt: float = 0.05
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed t, dt and ray offsets; about every fifth ray has no samples."""
    counts = torch.randint(0, longest + 1, (n_rays,), generator=generator)
    counts[torch.rand(n_rays, generator=generator) < 0.2] = 0
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64)
    offsets[1:] = counts.cumsum(0)
    place = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], counts)
    step = uniform(generator, n_rays, low=0.5 * dt, high=dt)
    start = uniform(generator, n_rays, low=0.1, high=1.0)
    ray = torch.repeat_interleave(torch.arange(n_rays), counts)
    return start[ray] + place * step[ray], step[ray].contiguous(), offsets


def _composite_call(
    backend: Any,
    color: Tensor,
    density: Tensor,
    t: Tensor,
    dt: Tensor,
    ray_offsets: Tensor,
    background: Tensor,
    min_transmittance: float,
) -> dict[str, Tensor]:
    samples = RaySamples(t, dt, ray_offsets)
    result = ops.composite(color, density, samples, background, min_transmittance=min_transmittance, backend=backend)
    return result._asdict()


def _composite(
    name: str,
    n_rays: int = 65,
    *,
    longest: int = 12,
    min_transmittance: float = 0.0,
    density: Callable[[Generator, int], Tensor] | None = None,
    shared_background: bool = False,
    strided: bool = False,
) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        t, dt, offsets = random_samples(generator, n_rays, longest)
        n = t.shape[0]
        color = uniform(generator, 3, n).T if strided else uniform(generator, n, 3)
        sigma = density(generator, n) if density else torch.exp(uniform(generator, n, low=-2.0, high=4.0))
        background = uniform(generator, 3) if shared_background else uniform(generator, n_rays, 3)
        return {
            "color": color,
            "density": sigma,
            "t": t,
            "dt": dt,
            "ray_offsets": offsets,
            "background": background,
            "min_transmittance": min_transmittance,
        }

    return OpCase("composite", name, make, _composite_call, ("color", "density", "background"))


def _extreme_density(generator: Generator, n: int) -> Tensor:
    choice = torch.randint(4, (n,), generator=generator)
    return torch.tensor([0.0, 1e-6, 1.0, 1e8])[choice]


COMPOSITE_CASES = [
    *(_composite(f"n{n}", n) for n in SIZES),
    *(_composite(f"cut_n{n}", n, min_transmittance=0.05) for n in (1, 65, 1000)),
    _composite("cut_long", 33, longest=300, min_transmittance=1e-4),
    _composite("long", 33, longest=300),
    _composite("no_samples", 7, longest=0),
    _composite("zero_density", density=lambda generator, n: torch.zeros(n)),
    _composite("extreme_density", density=_extreme_density),
    _composite("extreme_density_cut", density=_extreme_density, min_transmittance=1e-4),
    _composite("shared_background", shared_background=True),
    _composite("not_contiguous", strided=True),
]


def _adam_call(
    backend: Any, param: Tensor, grad: Tensor, moment1: Tensor, moment2: Tensor, **options: Any
) -> dict[str, Tensor]:
    param, moment1, moment2 = param.clone(), moment1.clone(), moment2.clone()
    kept = grad.clone()
    ops.adam(param, grad, moment1, moment2, backend=backend, **options)
    assert torch.equal(grad, kept), "the gradient was changed"
    return {"param": param, "moment1": moment1, "moment2": moment2}


def _adam(name: str, shape: tuple[int, ...] = (65, 4), *, strided: bool = False, **options: Any) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        grad = torch.randn(shape, generator=generator) * 1e-3
        grad[torch.rand(shape, generator=generator) < 0.5] = 0.0
        if strided:
            grad = grad.T.contiguous().T
        return {
            "param": torch.randn(shape, generator=generator),
            "grad": grad,
            "moment1": torch.randn(shape, generator=generator) * 1e-3,
            "moment2": uniform(generator, *shape) * 1e-6,
            "learning_rate": 1e-2,
            **{"step": 3, **options},
        }

    return OpCase("adam", name, make, _adam_call)


ADAM_CASES = [
    *(_adam(f"n{n}", (n,)) for n in SIZES),
    _adam("table", (1000, 4)),
    _adam("first_step", step=1),
    _adam("late_step", step=100_000),
    _adam("all_scalars", skip_zero_gradient=False),
    _adam("l2", skip_zero_gradient=False, l2=1e-2),
    _adam("other_memory", beta1=0.5, beta2=0.999, epsilon=1e-8),
    _adam("gradient_not_contiguous", strided=True),
]


def one_of_each_lens() -> list[Camera]:
    """Cameras around the origin, their lenses strong enough that an inversion that stops early shows."""
    lenses = (
        ("pinhole", ()),
        ("opencv", (0.12, -0.05, 0.01, 0.002, 0.003, -0.002)),
        ("opencv", (-0.3, 0.1, 0.0, 0.0, 0.0, 0.0)),
        ("fisheye", (0.05, -0.01, 0.002, -0.0005, 0.0, 0.0)),
    )
    made = []
    for k, (lens, distortion) in enumerate(lenses):
        eye = torch.tensor([2.0 + k, -1.0, 0.5 * k], dtype=torch.float64)
        pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        made.append(Camera(pose, 80, 60, 50.0 + k, 52.0, 41.0, 29.5, lens, distortion))  # pyright: ignore
    return [*made, panorama(look_at([-1.5, 0.3, 0.4], [0.0, 0.0, 0.0]), 80, 60)]


def facing_cameras() -> list[Camera]:
    """Cameras that look along z with an odd number of pixels: the middle one's ray is parallel to two planes of faces.

    They stand within the box of `BOX`, exactly on one of its faces, and outside.
    """
    poses = [torch.eye(4, dtype=torch.float64)[:3].clone() for _ in range(3)]
    for pose, x in zip(poses, (0.25, 0.8, 0.9), strict=True):
        pose[:, 3] = torch.tensor([x, 0.0, -2.0])
    return [Camera(pose, 7, 5, 6.0, 6.0, 3.5, 2.5) for pose in poses]


BOX = (-0.9, -1.0, -0.7, 0.8, 1.0, 1.0)
"""A box in scene space that some rays of `one_of_each_lens` miss."""


def runs_of_rows(mask: Tensor) -> list[tuple[int, int]]:
    """(first pixel, length) of every run of held pixels in each row of one image's mask [height, width]."""
    width, runs = mask.shape[1], []
    for row, held in enumerate(mask.tolist()):
        column = 0
        for is_held, run in itertools.groupby(held):
            length = len(list(run))
            if is_held:
                runs.append((row * width + column, length))
            column += length
    return runs


def random_pool(generator: Generator, cameras: list[Camera], held: float) -> PixelPool:
    """Photos of noise, and a pool of each of their pixels with probability `held`: several runs in most rows."""
    widths, heights = (torch.tensor([getattr(c, side) for c in cameras]) for side in ("width", "height"))
    ends = torch.cumsum(widths * heights, 0)
    spans = [
        (image, first, length)
        for image, c in enumerate(cameras)
        for first, length in runs_of_rows(torch.rand(c.height, c.width, generator=generator) < held)
    ]
    table = torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)
    pixels = torch.randint(0, 256, (int(ends[-1]), 4), generator=generator).to(torch.uint8)
    return PixelPool(
        pixels, ends - widths * heights, widths, heights, camera_table(cameras), table, torch.cumsum(table[:, 2], 0)
    )


def _training_rays_call(backend: Any, chosen: Tensor, pool: PixelPool, box: Tensor, **passed_on: Tensor) -> Any:
    batch = training_rays(chosen, pool, box, backend=backend, **passed_on)
    rays = {name: getattr(batch.rays, name) for name in ("origin", "direction", "t_min", "t_max", "image_index")}
    return {**rays, "target": batch.target, "background": batch.background, "jitter": batch.jitter}


def _training_rays(
    name: str,
    n: int = 65,
    cameras: Callable[[], list[Camera]] = one_of_each_lens,
    sizes: tuple[tuple[int, int], ...] = ((80, 60), (13, 17), (1, 9), (33, 2)),
    held: float = 0.6,
    box: tuple[float, ...] = BOX,
    *,
    strided: bool = False,
) -> OpCase:
    """Pixels drawn from a random pool; where n allows, the first and the last of it are among them."""

    def make(generator: Generator) -> dict[str, Any]:
        views = [c.resized(*size) for c, size in zip(cameras(), sizes, strict=False)]
        pool = random_pool(generator, views, held)
        chosen = torch.randint(0, max(1, pool.n_pool), (n,), generator=generator)
        chosen[:2] = torch.tensor([0, pool.n_pool - 1])[:n]
        made = {
            "chosen": chosen,
            "pool": pool,
            "box": torch.tensor(box, dtype=torch.float64),
            "jitter": uniform(generator, n),
            "background": uniform(generator, n, 3),
        }
        return {key: every_other(value) for key, value in made.items()} if strided else made

    return OpCase("training_rays", name, make, _training_rays_call, each_element=tolerances.TWO_ROUNDINGS)


TRAINING_RAYS_CASES = [
    *(_training_rays(f"n{n}", n) for n in SIZES),
    _training_rays("every_pixel", 3000, held=1.0),
    _training_rays("one_pixel_runs", 300, held=0.1),
    _training_rays("one_image", 200, sizes=((31, 23),)),
    _training_rays("from_within", 300, box=(-9.0, -9.0, -9.0, 9.0, 9.0, 9.0)),
    _training_rays("all_miss", 100, box=(40.0, 40.0, 40.0, 41.0, 41.0, 41.0)),
    _training_rays("parallel", 105, facing_cameras, ((7, 5),) * 3, held=1.0),
    _training_rays("no_pixels", 0, held=0.0),
    _training_rays("not_contiguous", strided=True),
]


def _train_rays_call(backend: Any, field: FieldParameters, options: MarchOptions, **more: Any) -> dict[str, Tensor]:
    batch, bits = more.pop("batch"), more.pop("bits")
    workspace = TrainWorkspace(field, 2**15, backend)
    found = train_rays(field, batch, bits, options, workspace, **more)
    matrices = {"density": found.grad_density_weights, "color": found.grad_color_weights}
    return {
        "n_rays": torch.tensor(found.n_rays),
        "n_kept": torch.tensor(found.n_kept),
        "loss": torch.tensor(found.loss, dtype=field.table.dtype),
        "squared_error": torch.tensor(found.squared_error, dtype=field.table.dtype),
        "grad_table": workspace.grad_table,
        **{f"grad_{name}_weights[{k}]": grad for name, grads in matrices.items() for k, grad in enumerate(grads)},
    }


def _render_rays_call(
    backend: Any, field: FieldParameters, options: MarchOptions, batch: RayBatch, bits: Tensor
) -> dict[str, Tensor]:
    return render_rays(field, batch.rays, bits, options, jitter=batch.jitter, backend=backend)._asdict()


@dataclass(frozen=True)
class FieldCase:
    """A field and rays to train it on."""

    layout: str
    width: int
    options: MarchOptions
    n_rays: int = 65
    huber: float = 0.0
    sparsity: float = 0.0
    distortion: float = 0.0
    nearness: float = 0.0
    seed: int = 0
    field_options: Mapping[str, Any] = field(default_factory=dict)
    """As `fused.field` takes them."""

    def field(self, **changes: Any) -> FieldParameters:
        """The field."""
        return fused.field(fused.LAYOUTS[self.layout], self.width, seed=self.seed, **{**self.field_options, **changes})

    def rays(self, n_rays: int | None = None) -> fused.Batch:
        """Its rays, or another number of them."""
        return fused.batch(self.n_rays if n_rays is None else n_rays, self.options.aabb_scale)


def _on_rays(op: str, name: str, case: FieldCase) -> OpCase:
    """A step on rays, or what they see."""

    def make(generator: Generator) -> dict[str, Any]:
        rays, bits, target, background, jitter = case.rays()
        made = {
            "field": case.field(),
            "batch": RayBatch(rays, target, background, jitter),
            "bits": bits,
            "options": case.options,
        }
        return made if op == "render_rays" else {
            **made, "huber_delta": case.huber, "sparsity": case.sparsity, "distortion": case.distortion,
            "nearness": case.nearness,
        }  # fmt: skip

    if op == "render_rays":
        return OpCase(
            op, name, make, _render_rays_call, is_against_float64=True, each_element=tolerances.RENDER_ELEMENT,
        )  # fmt: skip
    bounds = {"grad": tolerances.FUSED_STEP}
    return OpCase(op, name, make, _train_rays_call, bounds=bounds, is_against_float64=True)


BF16 = {"bf16": True}
NEAR, FAR, LONG = MarchOptions(1, 0.0, 4.0, 1e-2), MarchOptions(1, 0.0, 8.0, 1e-4), MarchOptions(1, 0.0, 8.0, 1e-2)
FAINT, FAINT_CONE = replace(NEAR, min_weight=1e-2), replace(CONE, min_weight=1e-2)
TRAIN_RAYS = {
    # Numbers of rays and seeds are those without a hidden unit at the brink of zero, see OpCase.is_against_float64.
    "plain": FieldCase("L8F4", 64, NEAR),
    "bf16": FieldCase("L8F4", 64, NEAR, 33, field_options=BF16),
    "f2": FieldCase("L16F2", 64, NEAR, seed=1),
    "f2_long": FieldCase("L16F2", 64, LONG, 9),
    "odd": FieldCase("L5F2", 32, LONG),
    "cone": FieldCase("L8F4", 64, CONE, 33, seed=1),
    "cone_odd_bf16": FieldCase("L5F2", 32, CONE, 33, field_options=BF16),
    "cone_huber": FieldCase("L5F2", 32, CONE, 33, huber=0.1),
    "huber_uncut": FieldCase("L8F4", 64, FAR, huber=0.1),
    "faint": FieldCase("L8F4", 64, FAINT),
    "relu": FieldCase("L16F2", 64, NEAR, seed=1, field_options=RELU),
    "relu_faint": FieldCase("L8F4", 64, FAINT_CONE, field_options={**RELU, **BF16}),
    "sparsity": FieldCase("L8F4", 64, NEAR, sparsity=0.3),
    "distortion": FieldCase("L8F4", 64, NEAR, distortion=0.5),
    "nearness": FieldCase("L8F4", 64, NEAR, nearness=0.5),
    "distortion_cone": FieldCase("L5F2", 32, CONE, 33, huber=0.1, distortion=2.0, nearness=0.3, field_options=BF16),
    "sparsity_relu_faint": FieldCase("L8F4", 64, FAINT, huber=0.1, sparsity=0.5, distortion=0.2, field_options=RELU),
}
TRAIN_RAYS_CASES = [_on_rays("train_rays", name, case) for name, case in TRAIN_RAYS.items()]
_SEEN = (MarchOptions(1, 0.0, 2.0, 1e-4), MarchOptions(4, 1 / 256, 2.0, 1e-4))
RENDER_RAYS_CASES = [
    _on_rays("render_rays", f"{name}_box{options.aabb_scale}", FieldCase(layout, 64, options, 130, field_options=more))
    for name, layout, more in (("f4", "L8F4", {}), ("f2", "L16F2", {}), ("odd", "L5F2", {}), ("relu", "L8F4", RELU))
    for options in _SEEN
]
RENDER_RAYS_CASES.append(
    _on_rays("render_rays", "narrow", FieldCase("L5F2", 32, replace(CONE, min_transmittance=1e-4)))
)


def _train_points_call(
    backend: Any, net: EncodedNetwork, positions: Tensor, target: Tensor, **options: Any
) -> dict[str, Tensor]:
    found, grads = fused.points_step(net, positions, target, backend, **options)
    values = {name: torch.tensor(getattr(found, name), dtype=target.dtype) for name in ("loss", "squared_error")}
    return {**values, **{f"grad[{k}]": grad for k, grad in enumerate(grads)}}


def _eval_points_call(backend: Any, net: EncodedNetwork, positions: Tensor) -> dict[str, Tensor]:
    return {"out": fused.ask(net, positions, backend)}


@dataclass(frozen=True)
class PointsCase:
    """A network and points to train it on; both its step and its answers are compared."""

    layout: str
    hidden: tuple[int, ...]
    n_outputs: int
    n: int
    is_fixed: bool
    """Whether positions are 32-bit fixed point."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the step."""

    def make(self) -> tuple[EncodedNetwork, Tensor, Tensor]:
        """Network, positions, targets."""
        net = fused.network(self.layout, self.hidden, self.n_outputs)
        return net, *fused.points(net, fused.few(self.n), self.is_fixed)


POINTS = {
    # Seeds without a hidden unit at the brink of zero, see OpCase.is_against_float64.
    "image": PointsCase("2d_f4", (64, 64), 3, 1000, True),
    "image_float": PointsCase("2d_f4", (64, 64), 3, 999, False),
    "grey": PointsCase("2d_f2", (16,), 1, 65, True, {"loss": "l1"}),
    "rgba_hdr": PointsCase("2d_f2", (32, 32), 4, 97, True, {"loss": "relative_l2"}),
    "distance": PointsCase("L8F4", (64, 64), 1, 999, False, {"loss": "mape"}),
    "distance_fixed": PointsCase("L8F4", (64, 64), 1, 300, True, {"loss": "mape"}),
    "huber": PointsCase("L5F2", (32,), 2, 63, False, {"loss": "huber", "huber_delta": 0.3}),
    "four_layers": PointsCase("L5F2", (16, 48, 32, 128), 5, 200, False),
    "no_hidden_layer": PointsCase("2d_f1", (), 3, 64, False),
    "one_point": PointsCase("2d_f8", (128,), 17, 1, True),
}


def _train_points(name: str, case: PointsCase) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        net, positions, target = case.make()
        return {"net": net, "positions": positions, "target": target, **case.options}

    return OpCase("train_points", name, make, _train_points_call, is_against_float64=True,
                  bounds={"grad": tolerances.FUSED_STEP})  # fmt: skip


def _eval_points(name: str, case: PointsCase) -> OpCase:
    def make(generator: Generator) -> dict[str, Any]:
        net, positions, _ = case.make()
        return {"net": net, "positions": positions}

    return OpCase("eval_points", name, make, _eval_points_call)


POINTS_CASES = [make(name, case) for make in (_train_points, _eval_points) for name, case in POINTS.items()]


def looking_in(
    position: tuple[float, float, float], lens: Any = "pinhole", fov: float = 60.0, size: int = 40
) -> Camera:
    """A camera at a place in scene space that looks at the middle of the box; for a grid, scene space is the world."""
    eye = torch.tensor(position, dtype=torch.float64)
    forward = torch.nn.functional.normalize(0.5 - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.1, 0.9, 0.3]).double()), dim=0)
    pose = torch.cat([torch.stack([right, torch.linalg.cross(forward, right), forward, eye], 1)])
    distortion = {
        "pinhole": (),
        "opencv": (0.05, -0.02, 0.0, 0.0, 0.001, 0.002),
        "fisheye": (0.02, 0.0, 0.0, 0.0, 0.0, 0.0),
        "equirectangular": (),
    }
    focal = 0.5 * size / math.tan(math.radians(fov) / 2)
    center = (size / 2, (size - 7) / 2)
    return Camera(pose, size, size - 7, focal, focal, *center, lens=lens, distortion=distortion[lens])


CARVING_CAMERAS = {
    "pinhole": [looking_in((1.9, 0.4, 0.6))],
    "inside": [looking_in((0.6, 0.45, 0.8), fov=90)],
    "fisheye": [looking_in((0.1, 0.5, 1.8), "fisheye", 70)],
    "two": [looking_in((1.4, 0.2, 0.3), "opencv"), looking_in((0.3, -0.9, 0.7), fov=25)],
    "panorama": [panorama(looking_in((0.6, 0.45, 0.8)).camera_to_world, 40, 20)],
}


N_CELLS = CELLS_PER_CASCADE


def _refresh_call(backend: Any, values: Tensor, cells: Tensor, noise: Tensor, **more: Any) -> dict[str, Tensor]:
    values, kept = values.clone(), values
    refresh_cells(values, cells, noise, more["field"], aabb_scale=more["aabb_scale"], backend=backend)
    untouched = torch.ones(len(values), dtype=torch.bool, device=values.device)
    untouched[cells] = False
    assert torch.equal(values[untouched], kept[untouched]), "a cell was changed that is not asked for"
    return {"values": values[cells]}


def _refresh(name: str, aabb_scale: int, n: int) -> OpCase:
    """Cells from all cascades, each at most once."""

    def make(generator: Generator) -> dict[str, Any]:
        return {
            "values": torch.full((n_cells_of(aabb_scale),), 1e-3),
            "cells": torch.randperm(n_cells_of(aabb_scale), generator=generator)[:n],
            "noise": uniform(generator, n, 3),
            "field": fused.field(fused.LAYOUTS["L5F2"], 32),
            "aabb_scale": aabb_scale,
        }

    return OpCase("occupancy_update", f"refresh_{name}", make, _refresh_call)


def _bits_call(backend: Any, values: Tensor, threshold: float, aabb_scale: int) -> dict[str, Tensor]:
    return {"bits": occupied_bits(values.float(), threshold, aabb_scale=aabb_scale, backend=backend)}


def _bits(name: str, aabb_scale: int, threshold: float) -> OpCase:
    """Most values far below the threshold, and every seventh cell declared dead."""

    def make(generator: Generator) -> dict[str, Any]:
        values = uniform(generator, n_cells_of(aabb_scale)) ** 8
        values[::7] = -math.inf
        return {"values": values, "threshold": threshold, "aabb_scale": aabb_scale}

    return OpCase("occupancy_update", f"bits_{name}", make, _bits_call)


def _starts(widths: Tensor, heights: Tensor) -> Tensor:
    return torch.cumsum(widths * heights, 0) - widths * heights


def _silhouettes_call(backend: Any, pixels: Tensor, widths: Tensor, heights: Tensor, radius: int) -> dict[str, Tensor]:
    found = silhouettes(pixels, _starts(widths, heights), widths, heights, radius, backend=backend)
    return {"is_near": found > 0}


def _silhouettes(radius: int) -> OpCase:
    """Images of odd sizes, one of a single pixel, with a dozen pixels that are not transparent."""

    def make(generator: Generator) -> dict[str, Any]:
        widths, heights = torch.tensor([9, 1, 17]), torch.tensor([5, 1, 30])
        pixels = torch.zeros(int((widths * heights).sum()), 4, dtype=torch.uint8)
        pixels[torch.randint(0, len(pixels), (12,), generator=generator), 3] = 1
        return {"pixels": pixels, "widths": widths, "heights": heights, "radius": radius}

    return OpCase("occupancy_update", f"silhouettes_{radius}", make, _silhouettes_call)


def _carve_call(
    backend: Any, table: Tensor, widths: Tensor, heights: Tensor, masks: Tensor | None, **options: Any
) -> dict[str, Tensor]:
    alive = carve(table, _starts(widths, heights), widths, heights, masks, backend=backend, **options)
    assert 0 < int(alive.sum()) < len(alive)
    return {"alive": alive}


def _carve(
    cameras: str, aabb_scale: int, held: float | None = None, fewest: int = 1, near: tuple[float, ...] | None = None
) -> OpCase:
    """What one or two cameras see, with noise for masks where a share of pixels `held` is given."""

    def make(generator: Generator) -> dict[str, Any]:
        views = CARVING_CAMERAS[cameras]
        n_pixels = sum(c.width * c.height for c in views)
        widths, heights = (torch.tensor([getattr(c, side) for c in views]) for side in ("width", "height"))
        return {
            "table": camera_table(views),
            "widths": widths,
            "heights": heights,
            "masks": None if held is None else (uniform(generator, n_pixels) < held).byte(),
            "aabb_scale": aabb_scale,
            "fewest": fewest,
            "near": None if near is None else torch.tensor(near, dtype=torch.float64),
        }

    name = f"carve_{cameras}" if near is None else f"carve_{cameras}_fewest{fewest}_near"
    # All of it is float64 in the reference. Rounding decides about a cell whose projection lies on a pixel's very edge.
    return OpCase("occupancy_update", name, make, _carve_call, is_against_float64=True, n_integers_may_differ=2)


OCCUPANCY_CASES = [
    *(_refresh(f"box{box}_n{n}", box, n) for box in (1, 4) for n in (0, 1, 2049)),
    _bits("box1", 1, 0.2),
    _bits("box4", 4, 0.5),
    *(_silhouettes(radius) for radius in (0, 1, 4, 40)),
    _carve("pinhole", 1),
    _carve("fisheye", 1),
    _carve("inside", 2, 0.7),
    _carve("two", 1, 0.7),
    _carve("two", 1, 0.7, 1, (1.0, 1.2)),
    _carve("two", 1, None, 2, (1.0, 1.2)),
    _carve("inside", 2, 0.7, 1, (0.3,)),
    _carve("panorama", 2, 0.7),
]


def _pixel_batch_call(
    backend: Any, pixels: Tensor, random: Tensor, values: Tensor, lattice: tuple[int, int], **options: Any
) -> dict[str, Tensor]:
    n_channels = options.pop("n_channels")
    pixels = pixels.float() if pixels.dtype == torch.float64 else pixels  # float32 is what is stored
    return pixel_batch(pixels, random, lattice, values, n_channels, backend=backend, **options)._asdict()


def _pixel_batch(
    name: str,
    size: tuple[int, int],
    lattice: tuple[int, int],
    stored: torch.dtype,
    n_channels: int = 3,
    **options: Any,
) -> OpCase:
    """Pixels of noise with four stored channels; `size` is (width, height)."""

    def make(generator: Generator) -> dict[str, Any]:
        shape = (size[1], size[0], 4)
        if stored == torch.float32:
            pixels, values = uniform(generator, *shape), torch.zeros(2, 0)
        else:
            codes = 256 if stored == torch.uint8 else 65536
            pixels = torch.randint(0, codes, shape, generator=generator).to(stored)
            values = uniform(generator, 2, codes)
        random = torch.randint(0, 2**32, (lattice[0] * lattice[1],), generator=generator)
        return {
            "pixels": pixels, "random": random, "values": values, "lattice": lattice, "n_channels": n_channels,
            **options,
        }  # fmt: skip

    # The position is fixed point and what a pixel shows is read from a table: nothing is left to rounding.
    return OpCase("pixel_batch", name, make, _pixel_batch_call, each_element=0.0)


_STORED = {"uint8": torch.uint8, "int16": torch.int16, "float32": torch.float32}
PIXEL_BATCH_CASES = [
    _pixel_batch(f"{kind}_{content}_{place}", size, lattice, stored, **options)
    for kind, stored in _STORED.items()
    for content, options in (
        ("grey", {"n_channels": 1}),
        ("rgb", {"n_channels": 3}),
        ("rgba", {"n_channels": 4, "has_alpha": True}),
        ("premultiplied", {"n_channels": 2, "has_alpha": True, "is_premultiplied": True}),
    )
    for place, size, lattice in (
        ("odd", (37, 23), (8, 5)),
        ("narrow", (3, 200), (16, 4)),
        ("one_pixel", (1, 1), (1, 1)),
    )
]


def _camera_rays_call(backend: Any, table: Tensor, index: Tensor, pixel: Tensor) -> dict[str, Tensor]:
    exact = {"dtype": torch.float64} if backend == "reference" else {}
    origin, direction = ops.camera_rays(table, index, pixel, backend=backend, **exact)
    return {"origin": origin, "direction": direction}


def _camera_rays(name: str, n: int, index_type: torch.dtype = torch.int64, *, strided: bool = False) -> OpCase:
    """Positions around the pictures of every lens, some outside them, some exactly on the axis."""

    def make(generator: Generator) -> dict[str, Any]:
        pixel = uniform(generator, n, 2).double() * torch.tensor([100.0, 80.0]) - 10.0
        pixel[::7] = torch.tensor([41.0, 29.5], dtype=torch.float64)
        cameras = one_of_each_lens()
        index = torch.randint(len(cameras), (n,), generator=generator).to(index_type)
        made = {"table": camera_table(cameras), "index": index, "pixel": pixel}
        return {key: every_other(value) for key, value in made.items()} if strided else made

    return OpCase(
        "camera_rays", name, make, _camera_rays_call, is_against_float64=True, each_element=tolerances.TWO_ROUNDINGS
    )


CAMERA_RAYS_CASES = [
    *(_camera_rays(f"n{n}", n) for n in SIZES),
    _camera_rays("int32_index", 65, torch.int32),
    _camera_rays("not_contiguous", 65, strided=True),
]


CASES = [
    *GRID_CASES,
    *SH_CASES,
    *MLP_CASES,
    *ENCODED_CASES,
    *COMPOSITE_CASES,
    *ADAM_CASES,
    *CAMERA_RAYS_CASES,
    *OCCUPANCY_CASES,
    *PIXEL_BATCH_CASES,
    *TRAINING_RAYS_CASES,
    *TRAIN_RAYS_CASES,
    *RENDER_RAYS_CASES,
    *POINTS_CASES,
]

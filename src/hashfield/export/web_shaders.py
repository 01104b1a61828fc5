"""The shader text of a web page: grid, networks and march of one model, as WGSL that also reads as GLSL.

Functions talk through arrays that are private to a pixel (`features`, `seen`, ...), and every declaration states its
type: `web/gpu.js` makes GLSL of the text by replacing a few words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Final

import numpy as np
from jaxtyping import Float32

from hashfield.errors import ConfigError
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.spaces import Spaces, box_low_of
from hashfield.ops.sphere_trace import HIT_DISTANCE, STEP

FINEST_STEP: Final = math.sqrt(3) / 1024
"""Length of the march's finest step at step_scale 1, as in `kernels.reference.march`."""
COARSEST_STEP: Final = math.sqrt(3)
SHADOW_START: Final = 4e-3
"""Start of a shadow's ray off the surface, as in `render.surface`."""
BLOCK: Final = 1024
"""Vectors of four numbers in a uniform block: 16 KiB, which every WebGL2 has."""
MOST_BLOCKS: Final = 11
"""Uniform blocks of a shader: WebGL2 and WebGPU promise twelve, one is the camera's."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a transposed matrix in a uniform block."""

    block: int
    first: int
    """Vector of the block at which it begins."""
    n_inputs: int
    """Inputs of the layer in vectors of four, of which it has the rows."""


class Matrices:
    """The matrices of a page's networks, transposed and padded to fours, packed into uniform blocks."""

    def __init__(self) -> None:
        self.pieces: list[list[Piece]] = []
        self.blocks: list[list[np.ndarray]] = []
        self.used: list[int] = []

    def add(self, weight: Float32[np.ndarray, "n_out n_in"]) -> int:
        """Take a matrix [outputs, inputs]; returns its number.

        Raises:
            ConfigError: the networks are larger than a shader's uniform blocks.
        """
        n_out, n_in = weight.shape
        padded = np.zeros((-(-n_in // 4) * 4, -(-n_out // 4) * 4), np.float32)
        padded[:n_in, :n_out] = weight.T
        across = padded.shape[1] // 4
        at_once = BLOCK // (4 * across)  # vectors of inputs that a block holds
        if not at_once:
            raise ConfigError(f"a layer has {n_out} outputs, more than a web page takes")
        pieces = []
        for begin in range(0, len(padded) // 4, at_once):
            rows = padded[4 * begin : 4 * (begin + at_once)]
            n = rows.size // 4
            block = next((k for k, used in enumerate(self.used) if used + n <= BLOCK), len(self.used))
            if block == len(self.used):
                self.used.append(0)
                self.blocks.append([])
            pieces.append(Piece(block, self.used[block], len(rows) // 4))
            self.blocks[block].append(rows.reshape(-1))
            self.used[block] += n
        if len(self.blocks) > MOST_BLOCKS:
            raise ConfigError(f"the networks take more than the {MOST_BLOCKS * 16} KiB that a web page has for them")
        self.pieces.append(pieces)
        return len(self.pieces) - 1

    def data(self) -> list[Float32[np.ndarray, " n"]]:
        """The numbers of each block."""
        return [np.concatenate(parts) for parts in self.blocks]

    def layer(self, number: int, weight_shape: tuple[int, int], source: str, target: str, activation: str) -> str:
        """Text that multiplies by a matrix.

        Args:
            number: The matrix, as `add` gave it.
            weight_shape: Its outputs and inputs.
            source: Array of vectors that holds the inputs.
            target: Array of vectors that gets the outputs.
            activation: Template of what is stored, with {} for the sum.
        """
        across = -(-weight_shape[0] // 4)
        sums = [f"s{number}_{j}" for j in range(across)]
        lines = [f"  var {s}: vec4f = vec4f(0.0);" for s in sums]
        begin = 0
        for piece in self.pieces[number]:
            w, end = f"w{piece.block}", begin + piece.n_inputs
            lines += [
                f"  for (var i: u32 = {begin}u; i < {end}u + zero; i++) {{",
                f"    let v: vec4f = {source}[i];",
                f"    let b: u32 = {piece.first}u + (i - {begin}u) * {4 * across}u;",
            ]
            for j, s in enumerate(sums):
                rows = " + ".join(f"v.{c} * {w}[b + {k * across + j}u]" for k, c in enumerate("xyzw"))
                lines.append(f"    {s} += {rows};")
            lines.append("  }")
            begin = end
        lines += [f"  {target}[{j}] = {activation.format(s)};" for j, s in enumerate(sums)]
        return "\n".join(lines)


RELU: Final = "max({}, vec4f(0.0))"


def network(matrices: Matrices, weights: Sequence[np.ndarray], name: str, source: str, target: str) -> str:
    """Text of a function `name(zero)`: a network with ReLU between its layers, from one array to another.

    Args:
        matrices: Gets the weights.
        weights: [n_out, n_in] of each layer.
        name: Name of the function; its arrays' names begin with it.
        source: Array of the inputs.
        target: Array of the outputs.
    """
    lines, body, last = [], [], len(weights) - 1
    for k, weight in enumerate(weights):
        to = target if k == last else f"{name}_{k}"
        if k < last:
            lines.append(f"var<private> {to}: array<vec4f, {-(-weight.shape[0] // 4)}>;")
        body.append(matrices.layer(matrices.add(weight), weight.shape, source, to, "{}" if k == last else RELU))
        source = to
    return "\n".join([*lines, f"fn {name}(zero: u32) {{", *body, "}"])


def number(value: float) -> str:
    """A float32 as both shader languages write it."""
    text = repr(float(np.float32(value)))
    return f"({text})" if text[0] == "-" else text


def grid(
    layout: GridLayout, scales: Float32[np.ndarray, "n_levels n_features"], interpolation: str, has_rest: bool = False
) -> str:
    """Text of `encode(x)`, which fills the array `features` with what a grid has at a position in [0, 1]^D.

    Args:
        layout: Two or three dimensions; one, two, four or eight features.
        scales: What the bytes of each level's features, as numbers from -1 to 1, are multiplied by.
        interpolation: "linear" or "smoothstep".
        has_rest: Whether the table is followed by one as large, of what the first has left in parts of a step.

    Raises:
        ConfigError: the grid is of another kind.
    """
    limit = layout.beyond_kernels
    if limit is not None or layout.n_features_per_level == 1:
        raise ConfigError(f"a web page cannot show this grid: {limit or 'one feature a level'}")
    f, n_dims = layout.n_features_per_level, layout.n_dims
    kind = {2: "vec2f", 4: "vec4f", 8: "mat2x4f"}[f]
    place = f"vec{n_dims}f"
    entry = {
        2: "let v: vec4f = vector(i >> 1u);\n  if ((i & 1u) == 1u) { return v.zw; }\n  return v.xy;",
        4: "return vector(i);",
        8: "return mat2x4f(vector(2u * i), vector(2u * i + 1u));",
    }[f]
    smooth = f"  f = f * f * (vec{n_dims}f(3.0) - 2.0 * f);\n" if interpolation == "smoothstep" else ""
    vector = "fn vector(i: u32) -> vec4f { return texel(i)"
    vector += f" + texel(i + {layout.n_parameters // 4}u) / 254.0; }}" if has_rest else "; }"
    text = [
        vector,
        f"var<private> features: array<vec4f, {-(-layout.n_output // 4)}>;",
        f"fn entry(i: u32) -> {kind} {{\n  {entry}\n}}",
    ]
    for hashed in (False, True):
        if hashed not in layout.is_hashed:
            continue
        terms = [["a.x", "(a.x + 1u)"]]
        for axis, c in enumerate("yz"[: n_dims - 1], start=1):
            stride = "stride." + "xyz"[axis]
            terms.append([f"(a.{c} * {stride})", f"((a.{c} + 1u) * {stride})"])
        sign = " ^ " if hashed else " + "
        end = " & (entries - 1u)" if hashed else " % entries"
        corners = [
            "entry(first + ((" + sign.join(terms[d][(k >> d) & 1] for d in range(n_dims)) + f"){end}))"
            for k in range(2**n_dims)
        ]
        lines = [f"  let c{k}: {kind} = {c};" for k, c in enumerate(corners)]
        names, n = [f"c{k}" for k in range(2**n_dims)], 0
        for axis in "xyz"[:n_dims]:
            merged = []
            for low, high in zip(names[::2], names[1::2], strict=True):
                lines.append(f"  let m{n}: {kind} = {low} + ({high} - {low}) * f.{axis};")
                merged.append(f"m{n}")
                n += 1
            names = merged
        name = f"{'hashed' if hashed else 'dense'}_level"
        text.append(
            f"fn {name}(x: {place}, scale: f32, entries: u32, first: u32, stride: vec3u) -> {kind} {{\n"
            f"  let q: {place} = fma({place}(scale), x, {place}(0.5));\n"
            f"  let a: vec{n_dims}u = vec{n_dims}u(floor(q));\n  var f: {place} = fract(q);\n{smooth}"
            + "\n".join(lines)
            + f"\n  return {names[0]};\n}}"
        )
    calls = []
    for level in range(layout.n_levels):
        stride = ", ".join(f"{s}u" for s in [*layout.strides[level].tolist(), 0][:3])
        name = "hashed" if layout.is_hashed[level] else "dense"
        calls.append(
            f"{name}_level(x, {number(layout.scales[level])}, {layout.entries[level]}u, "
            f"{layout.level_offsets[level]}u, vec3u({stride}))"
        )
    flat = [*scales.reshape(-1).tolist(), 0.0, 0.0]
    factor = [f" * vec4f({', '.join(map(number, flat[4 * k : 4 * k + 4]))})" for k in range(-(-layout.n_output // 4))]
    body = []
    if f == 2:
        calls += ["vec2f(0.0)"] * (len(calls) % 2)
        pairs = zip(calls[::2], calls[1::2], strict=True)
        body = [f"  features[{k}] = vec4f({a}, {b}){factor[k]};" for k, (a, b) in enumerate(pairs)]
    elif f == 4:
        body = [f"  features[{k}] = {call}{factor[k]};" for k, call in enumerate(calls)]
    else:
        for k, call in enumerate(calls):
            body += [f"  let level{k}: mat2x4f = {call};"]
            body += [f"  features[{2 * k + h}] = level{k}[{h}]{factor[2 * k + h]};" for h in (0, 1)]
    return "\n".join([*text, f"fn encode(x: {place}) {{", *body, "}"])


HARMONICS: Final = """
fn harmonics(d: vec3f) {
  let s: vec3f = d * d;
  seen[4] = vec4f(0.282094792, -0.488602512 * d.y, 0.488602512 * d.z, -0.488602512 * d.x);
  seen[5] = vec4f(1.09254843 * d.x * d.y, -1.09254843 * d.y * d.z,
    0.946174696 * s.z - 0.315391565, -1.09254843 * d.x * d.z);
  seen[6] = vec4f(0.546274215 * (s.x - s.y), 0.59004359 * d.y * (s.y - 3.0 * s.x),
    2.89061144 * d.x * d.y * d.z, 0.457045799 * d.y * (1.0 - 5.0 * s.z));
  seen[7] = vec4f(0.373176333 * d.z * (5.0 * s.z - 3.0), 0.457045799 * d.x * (1.0 - 5.0 * s.z),
    1.44530572 * d.z * (s.x - s.y), 0.59004359 * d.x * (3.0 * s.y - s.x));
}
"""


def lattice(cone_angle: float, step_scale: float) -> str:
    """Text of the march's steps: distances at stepping coordinates, which count from the ray's start where they are
    all equal. Formulas: `kernels.reference.march`."""
    s, m, rate = FINEST_STEP * step_scale, COARSEST_STEP * step_scale, math.log1p(cone_angle * step_scale)
    if not rate:
        return f"""fn steps_at(t: f32, t_start: f32) -> f32 {{ return (t - t_start) / {number(s)}; }}
fn distance_at(n: f32, t_start: f32) -> f32 {{ return t_start + n * {number(s)}; }}
fn step_length(n: f32, t: f32) -> f32 {{ return {number(s)}; }}"""
    t_a, t_b = s / rate, m / rate
    n_a, n_b = math.log(t_a) / rate, math.log(t_b) / rate
    fine, coarse, grow = number(s), number(m), number(rate)
    return f"""fn steps_at(t: f32, t_start: f32) -> f32 {{
  if (t <= {number(t_a)}) {{ return (t - {number(t_a)}) / {fine} + {number(n_a)}; }}
  if (t <= {number(t_b)}) {{ return log(t) / {grow}; }}
  return (t - {number(t_b)}) / {coarse} + {number(n_b)};
}}
fn distance_at(n: f32, t_start: f32) -> f32 {{
  if (n <= {number(n_a)}) {{ return (n - {number(n_a)}) * {fine} + {number(t_a)}; }}
  if (n <= {number(n_b)}) {{ return exp(n * {grow}); }}
  return (n - {number(n_b)}) * {coarse} + {number(t_b)};
}}
fn step_length(n: f32, t: f32) -> f32 {{
  if (n >= {number(n_a)} && n + 1.0 <= {number(n_b)}) {{ return t * {number(math.expm1(rate))}; }}
  if (n + 1.0 <= {number(n_a)}) {{ return {fine}; }}
  if (n >= {number(n_b)}) {{ return {coarse}; }}
  return distance_at(n + 1.0, 0.0) - t;
}}"""


def template(name: str) -> Template:
    """A file of the folder `web`."""
    return Template(resources.files("hashfield.export").joinpath("web", name).read_text("utf-8"))


def nerf_shader(
    layout: GridLayout, scales: Float32[np.ndarray, "n_levels n_features"], density: Sequence[np.ndarray],
    color: Sequence[np.ndarray], matrices: Matrices, *, spaces: Spaces, box: Sequence[float], step_scale: float,
    density_bias: float, density_activation: str,
) -> str:  # fmt: skip
    """Text of `pixel(at)` for a radiance field.

    Args:
        layout: Layout of its grid.
        scales: What the bytes of each level's features are multiplied by.
        density: Matrices of the density network, whose outputs are 16.
        color: Matrices of the colour network, which sees those and 16 spherical harmonics.
        matrices: Gets them.
        spaces: Spaces of the scene.
        box: Scene space; nothing lies outside it.
        step_scale: Length of the march's step.
        density_bias: Added to the log-density.
        density_activation: "exp" or "relu".
    """
    encoding = [
        grid(layout, scales, "linear"),
        "var<private> seen: array<vec4f, 8>;  // what the colour network sees: the other's output, harmonics",
        "var<private> rgb: array<vec4f, 1>;",
        network(matrices, density, "density_net", "features", "seen"),
        network(matrices, color, "color_net", "seen", "rgb"),
        HARMONICS,
        "fn geometry(x: vec3f, zero: u32) {\n  encode(x);\n  density_net(zero);\n}",
        "fn radiance(zero: u32) -> vec3f {\n  color_net(zero);\n"
        "  return vec3f(1.0) / (vec3f(1.0) + exp(-rgb[0].xyz));\n}",
    ]
    last = spaces.n_cascades - 1
    growth = math.expm1(math.log1p(spaces.cone_angle * step_scale))
    check = (
        f"if (size > 1.0 && mip < {last} && exponent((t + leave) * {number(256 * growth)}) > mip) "
        "{  // longer steps ask a coarser cascade, which need not be empty\n"
        "        leave = to_exit(q, cell, 1.0, inverse) * side / 128.0;\n      }"
    )
    return template("nerf.wgsl").substitute(
        encoding="\n".join(encoding),
        lattice=lattice(spaces.cone_angle, step_scale),
        last_cascade=last,
        box_low=", ".join(map(number, box[:3])),
        box_high=", ".join(map(number, box[3:])),
        scene_low=number(box_low_of(spaces.aabb_scale)),
        inverse_side=number(1 / spaces.aabb_scale),
        density_bias=number(density_bias),
        density="max(raw, 0.0)" if density_activation == "relu" else "exp(raw)",
        block_check=check if growth else "",
    )


def image_shader(
    layout: GridLayout, scales: Float32[np.ndarray, "n_levels n_features"], weights: Sequence[np.ndarray],
    matrices: Matrices, *, interpolation: str, width: int, height: int,
) -> str:  # fmt: skip
    """Text of `pixel(at)` for a picture.

    Args:
        layout: Layout of its grid.
        scales: What the bytes of each level's features are multiplied by.
        weights: Matrices of its network, whose outputs are 1 to 4: grey, grey and alpha, RGB, RGBA.
        matrices: Gets them.
        interpolation: "linear" or "smoothstep".
        width, height: Pixels of the picture.
    """
    n_channels = weights[-1].shape[0]
    color = {1: "c.xxx, 1.0", 2: "c.xxx, clamp(c.y, 0.0, 1.0)", 3: "c.xyz, 1.0", 4: "c.xyz, clamp(c.w, 0.0, 1.0)"}
    return template("image.wgsl").substitute(
        encoding=_encoded_network(layout, scales, weights, matrices, interpolation),
        width=number(width),
        height=number(height),
        color=f"vec4f({color[n_channels]})",
    )


def sdf_shader(
    layout: GridLayout, scales: Float32[np.ndarray, "n_levels n_features"], weights: Sequence[np.ndarray],
    matrices: Matrices, *, interpolation: str, has_rest: bool, box: Sequence[float], reach: float,
) -> str:  # fmt: skip
    """Text of `pixel(at)` for a signed distance.

    Args:
        layout: Layout of its grid.
        scales: What the bytes of each level's features are multiplied by.
        weights: Matrices of its network, which has one output.
        matrices: Gets them.
        interpolation: "linear" or "smoothstep".
        has_rest: Whether the table has more than bytes: see `grid`.
        box: Unit space, lowest and highest corner; beyond, nothing is known.
        reach: Half the distance of the differences that normals are, unit space.
    """
    return template("sdf.wgsl").substitute(
        encoding=_encoded_network(layout, scales, weights, matrices, interpolation, has_rest),
        box_low=", ".join(map(number, box[:3])),
        box_high=", ".join(map(number, box[3:])),
        reach=number(reach),
        most_steps="160u",
        hit=number(HIT_DISTANCE),
        step=number(STEP),
        shadow_start=number(SHADOW_START),
    )


def _encoded_network(
    layout: GridLayout, scales: np.ndarray, weights: Sequence[np.ndarray], matrices: Matrices, interpolation: str,
    has_rest: bool = False,
) -> str:  # fmt: skip
    """Text of `encode(x)` and `net(zero)`, whose outputs are in `channels[0]`."""
    return "\n".join(
        [
            grid(layout, scales, interpolation, has_rest),
            "var<private> channels: array<vec4f, 1>;",
            network(matrices, weights, "net", "features", "channels"),
        ]
    )


def compute_module(body: str, n_vectors: Sequence[int]) -> str:
    """The WGSL module that fills a picture: bindings, body, entry point.

    Args:
        body: With `pixel(at)`.
        n_vectors: Length of each uniform block.
    """
    blocks = "\n".join(
        f"@group(0) @binding({4 + k}) var<uniform> w{k}: array<vec4f, {n}>;" for k, n in enumerate(n_vectors)
    )
    return template("compute.wgsl").substitute(blocks=blocks, body=body)

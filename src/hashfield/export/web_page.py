"""One HTML file that shows a trained model in any browser: the table in few bits, the networks, the shaders.

`quantise` makes bytes of a table and says what they stand for; `write_page` puts everything into the template. Nothing
is loaded from anywhere when the page is opened. The scripts and shaders are in the folder `web`.
"""

import base64
import html
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32, Int8, UInt8
from PIL import Image

from hashfield.export.web_shaders import template
from hashfield.geometry.grid_layout import GridLayout

WebSize = Literal["small", "medium", "large"]
WebKind = Literal["nerf", "image", "sdf"]

BITS: Final[dict[WebKind, dict[WebSize, tuple[int, int]]]] = {
    "nerf": {"small": (6, 3), "medium": (8, 4), "large": (8, 8)},
    "image": {"small": (6, 3), "medium": (8, 4), "large": (8, 8)},
    # shading shows the slope of a distance, and so its last digits
    "sdf": {"small": (12, 6), "medium": (16, 8), "large": (16, 16)},
}
"""Bits of a number in the coarse levels and in the finest three octaves, by kind and size."""
FINE_OCTAVES: Final = 3
CLIPS: Final = (1.0, 0.9999, 0.999, 0.995, 0.99, 0.98, 0.96, 0.93, 0.9)
"""Shares of a level's numbers that its range may hold whole; the one of the least squared error is taken."""
LEAST_TEXTURE: Final = 4096
"""Side of a texture that practically every WebGL2 takes."""


@dataclass(frozen=True)
class QuantisedTable:
    """A grid's table in bytes: value = (code + rest / 254) / 127 * the scale of the level's feature."""

    codes: Int8[np.ndarray, "n_entries n_features"]
    """Whole numbers of steps, few of them where a level has few bits."""
    rest: Int8[np.ndarray, "n_entries n_features"] | None
    """What is left, in parts of a step; None where no level has more than 8 bits."""
    scales: Float32[np.ndarray, "n_levels n_features"]
    layout: GridLayout

    def bytes(self) -> Int8[np.ndarray, " n"]:
        """The codes as the page holds them, and behind them what is left."""
        parts = [self.codes.reshape(-1)] + ([] if self.rest is None else [self.rest.reshape(-1)])
        found = np.concatenate(parts)
        return np.append(found, np.zeros(-len(found) % 4, np.int8))

    def values(self) -> Float32[np.ndarray, "n_entries n_features"]:
        """The table as the page reads it."""
        codes = self.codes.astype(np.float32)
        if self.rest is not None:
            codes += self.rest.astype(np.float32) / np.float32(254)
        return codes * np.repeat(self.scales / np.float32(127), self.layout.entries, axis=0)


def quantise(
    table: Float32[np.ndarray, "n_entries n_features"], layout: GridLayout, bits: tuple[int, int]
) -> QuantisedTable:
    """A grid's table in few bits.

    Args:
        table: The numbers.
        layout: Which of them belong to which level.
        bits: Bits of a number in the coarse levels and in the finest three octaves, 2 to 16.
    """
    codes = np.zeros(table.shape, np.int8)
    rest = np.zeros(table.shape, np.int8) if max(bits) > 8 else None
    scales = np.zeros((layout.n_levels, table.shape[1]), np.float32)
    finest = int(layout.resolutions[-1])
    for level in range(layout.n_levels):
        n_bits = bits[int(layout.resolutions[level]) * 2**FINE_OCTAVES > finest]
        most = 2 ** (min(n_bits, 8) - 1) - 1
        part = slice(int(layout.level_offsets[level]), int(layout.level_offsets[level + 1]))
        values = table[part]
        if rest is None or n_bits <= 8:
            steps = np.array([best_step(feature, most) for feature in values.T], np.float32)
        else:
            steps = np.maximum(np.abs(values).max(0), 1e-30).astype(np.float32) / np.float32(most)
        codes[part] = np.clip(np.rint(values / steps), -most, most)
        scales[level] = steps * 127
        if rest is not None and n_bits > 8:
            grain = 2.0 ** (16 - n_bits)
            rest[part] = np.clip(np.rint((values / steps - codes[part]) * 254 / grain) * grain, -127, 127)
    return QuantisedTable(codes, rest, scales, layout)


def best_step(values: np.ndarray, most: int) -> float:
    """The step whose multiples, up to `most` of them either way, come nearest to values in the mean square."""
    magnitude = np.abs(values)
    if magnitude.size > 2**18:  # evenly chosen ones will do to judge by
        magnitude = np.append(magnitude[:: -(-magnitude.size // 2**18)], magnitude.max())
    found, least = 1.0, np.inf
    for top in np.quantile(magnitude, CLIPS).tolist():
        if top <= 0:
            continue
        step = top / most
        error = float(np.square(np.minimum(np.rint(magnitude / step), most) * step - magnitude).sum())
        if error < least:
            found, least = step, error
    return float(np.float32(found))


@dataclass
class WebScene:
    """What a page shows."""

    kind: WebKind
    shader: str
    """WGSL module that fills a picture: see `web_shaders.compute_module`."""
    body: str
    """The part of it that GLSL is made of."""
    table: QuantisedTable
    blocks: list[Float32[np.ndarray, " n"]]
    """Numbers of the networks' uniform blocks."""
    cells: UInt8[np.ndarray, " n"]
    """Occupied cells, or nothing."""
    still: UInt8[np.ndarray, "h w 4"]
    """The start view with straight alpha, for browsers that cannot draw."""
    title: str
    credits: str = ""
    background: tuple[float, float, float] | None = None
    """Colour behind the scene; None: the page's own, light or dark."""
    view: dict[str, Any] = field(default_factory=dict)
    """What the kind's controls begin with: cameras, pivot, ... as JSON values."""


def write_page(scene: WebScene) -> str:
    """The page as one HTML text."""
    parts = {"table": scene.table.bytes(), "cells": scene.cells}
    parts |= {f"w{k}": block.astype("<f4") for k, block in enumerate(scene.blocks)}
    blob, places = bytearray(), {}
    for name, array in parts.items():
        data = np.ascontiguousarray(array).tobytes()
        places[name] = [len(blob), len(data)]
        blob += data + bytes(-len(data) % 4)
    facts = {
        "kind": scene.kind, "title": scene.title, "parts": places, "blocks": [len(b) // 4 for b in scene.blocks],
        "background": scene.background, "view": scene.view, "wgsl": scene.shader, "body": scene.body,
        "present": template("present.wgsl").template,
    }  # fmt: skip
    return template("page.html").substitute(
        title=html.escape(scene.title),
        credits=html.escape(scene.credits),
        still=_base64(encode_webp(scene.still)),
        kind=scene.kind,
        facts=json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c"),
        data=_base64(zlib.compress(bytes(blob), 9)),
        gpu=template("gpu.js").template,
        script=template("page.js").template,
    )


def encode_webp(image: UInt8[np.ndarray, "h w 4"], quality: int = 85) -> bytes:
    """A WebP file of a picture with straight alpha: small, and without a background of its own."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=quality)
    return file.getvalue()


def table_note(table: QuantisedTable) -> str | None:
    """A line where the table is larger than some browsers take, or None."""
    texels = len(table.bytes()) // 4
    if texels > LEAST_TEXTURE**2:
        return (
            f"the table has {texels:,} vectors, more than {LEAST_TEXTURE}^2: browsers without WebGPU may refuse it; "
            "train with a smaller log2_hashmap_size for those"
        )
    return None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def chosen(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly chosen."""
    return [items[k] for k in np.unique(np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int))]

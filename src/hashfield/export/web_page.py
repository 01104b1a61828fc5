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

BITS: Final[dict[WebSize, tuple[int, int]]] = {"small": (6, 3), "medium": (8, 4), "large": (8, 8)}
"""Bits of a number in the coarse levels and in the finest three octaves."""
FINE_OCTAVES: Final = 3
CLIPS: Final = (1.0, 0.9999, 0.999, 0.995, 0.99, 0.98, 0.96, 0.93, 0.9)
"""Shares of a level's numbers that its range may hold whole; the one of the least squared error is taken."""
LEAST_TEXTURE: Final = 4096
"""Side of a texture that practically every WebGL2 takes."""


@dataclass(frozen=True)
class QuantisedTable:
    """A grid's table in bytes: value = code / 127 * the scale of the level's feature."""

    codes: Int8[np.ndarray, "n_entries n_features"]
    """Whole numbers of steps, few of them where a level has few bits."""
    scales: Float32[np.ndarray, "n_levels n_features"]
    layout: GridLayout

    def values(self) -> Float32[np.ndarray, "n_entries n_features"]:
        """The table as the page reads it."""
        return self.codes.astype(np.float32) * np.repeat(self.scales / np.float32(127), self.layout.entries, axis=0)


def quantise(table: Float32[np.ndarray, "n_entries n_features"], layout: GridLayout, size: WebSize) -> QuantisedTable:
    """A grid's table in as many bits as a size has for each level.

    Args:
        table: The numbers.
        layout: Which of them belong to which level.
        size: Key of BITS.
    """
    codes = np.zeros(table.shape, np.int8)
    scales = np.zeros((layout.n_levels, table.shape[1]), np.float32)
    finest = int(layout.resolutions[-1])
    for level in range(layout.n_levels):
        is_fine = int(layout.resolutions[level]) * 2**FINE_OCTAVES > finest
        most = 2 ** (BITS[size][is_fine] - 1) - 1
        part = slice(int(layout.level_offsets[level]), int(layout.level_offsets[level + 1]))
        steps = np.array([best_step(feature, most) for feature in table[part].T], np.float32)
        codes[part] = np.clip(np.rint(table[part] / steps), -most, most)
        scales[level] = steps * 127
    return QuantisedTable(codes, scales, layout)


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

    kind: Literal["nerf", "image", "sdf"]
    shader: str
    """WGSL module that fills a picture: see `web_shaders.compute_module`."""
    body: str
    """The part of it that GLSL is made of."""
    table: QuantisedTable
    blocks: list[Float32[np.ndarray, " n"]]
    """Numbers of the networks' uniform blocks."""
    cells: UInt8[np.ndarray, " n"]
    """Occupied cells, or nothing."""
    still: UInt8[np.ndarray, "h w 3"]
    """The start view, for browsers that cannot draw."""
    title: str
    credits: str = ""
    background: tuple[float, float, float] | None = None
    """Colour behind the scene; None: the page's own, light or dark."""
    view: dict[str, Any] = field(default_factory=dict)
    """What the kind's controls begin with: cameras, pivot, ... as JSON values."""


def write_page(scene: WebScene) -> str:
    """The page as one HTML text."""
    parts = {"table": scene.table.codes, "cells": scene.cells}
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
        still=_base64(encode_jpeg(scene.still)),
        kind=scene.kind,
        facts=json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c"),
        data=_base64(zlib.compress(bytes(blob), 9)),
        gpu=template("gpu.js").template,
        script=template("page.js").template,
    )


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 80) -> bytes:
    """A JPEG file of a picture."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def table_note(layout: GridLayout) -> str | None:
    """A line where the table is larger than some browsers take, or None."""
    texels = -(-layout.n_parameters // 4)
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

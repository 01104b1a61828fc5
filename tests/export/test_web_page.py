"""The parts of a web page that need no browser: bytes of a table, packing of matrices, the HTML around them."""

import base64
import io
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hashfield.errors import ConfigError
from hashfield.export.web_page import QuantisedTable, WebScene, encode_webp, quantise, table_note, write_page
from hashfield.export.web_shaders import BLOCK, MOST_BLOCKS, Matrices, grid, network, template
from hashfield.geometry.grid_layout import GridLayout

LAYOUT = GridLayout(n_levels=6, n_features_per_level=4, log2_hashmap_size=12, base_resolution=4, per_level_scale=2.0)


def random_table(layout: GridLayout = LAYOUT) -> np.ndarray:
    """A table whose features have ranges of their own."""
    values = np.random.default_rng(0).normal(size=(layout.n_entries, layout.n_features_per_level))
    return (values * 10.0 ** -np.arange(layout.n_features_per_level)).astype(np.float32)


@pytest.mark.parametrize("bits", [(6, 3), (8, 4), (8, 8), (12, 6), (16, 8), (16, 16)])
def test_a_quantised_table_is_near_its_numbers_and_has_as_many_bits_as_said(bits: tuple[int, int]):
    table, n_coarse = random_table(), 3  # resolutions 4, 8, 16 of 4 to 128
    found = quantise(table, LAYOUT, bits)
    values, offsets = found.values(), LAYOUT.level_offsets
    for level in range(LAYOUT.n_levels):
        part = slice(offsets[level], offsets[level + 1])
        n_bits = bits[level >= n_coarse]
        most = 2 ** (min(n_bits, 8) - 1) - 1
        assert np.abs(found.codes[part].astype(int)).max() <= most
        step = found.scales[level] / 127
        error = np.abs(values[part] - table[part]) / step
        inside = np.abs(table[part]) <= step * most
        assert error[inside].max() <= (0.501 if n_bits <= 8 else 0.6 * 2.0 ** (8 - n_bits)) and inside.mean() > 0.85
        if found.rest is not None:
            assert (len(np.unique(found.rest[part])) > 1) == (n_bits > 8)
    assert (found.rest is None) == (max(bits) <= 8)
    held = found.bytes()
    assert held.dtype == np.int8 and len(held) % 4 == 0 and np.array_equal(held[: table.size], found.codes.reshape(-1))


def test_a_table_of_zeros_stays_zero():
    found = quantise(np.zeros((LAYOUT.n_entries, 4), np.float32), LAYOUT, (16, 4))
    assert not found.values().any() and np.isfinite(found.scales).all()


def test_matrices_are_packed_whole_and_split_only_between_rows_of_inputs():
    rng, matrices = np.random.default_rng(1), Matrices()
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((128, 33), (128, 128), (3, 128))]
    for k, weight in enumerate(weights):
        assert matrices.add(weight) == k
    blocks = matrices.data()
    assert all(len(block) <= 4 * BLOCK for block in blocks)
    for weight, pieces in zip(weights, matrices.pieces, strict=True):
        across = -(-weight.shape[0] // 4) * 4
        rows = [blocks[p.block][4 * p.first :][: 4 * p.n_inputs * across].reshape(-1, across) for p in pieces]
        stored = np.concatenate(rows)
        assert np.array_equal(stored[: weight.shape[1], : weight.shape[0]], weight.T)
        assert not stored[weight.shape[1] :].any() and not stored[:, weight.shape[0] :].any()
    with pytest.raises(ConfigError, match=f"{MOST_BLOCKS * 16} KiB"):
        network(Matrices(), [rng.normal(size=(256, 256)).astype(np.float32)] * 2, "net", "a", "b")


def test_grids_that_a_page_cannot_draw_are_refused():
    scales = np.ones((8, 1), np.float32)
    with pytest.raises(ConfigError, match="one feature a level"):
        grid(GridLayout(n_features_per_level=1), scales, "linear")
    with pytest.raises(ConfigError, match="4 dimensions"):
        grid(GridLayout(n_dims=4, per_level_scale=1.3, n_features_per_level=2), scales, "linear")


def test_large_tables_are_announced():
    assert table_note(small_scene("").table) is None
    layout = GridLayout(log2_hashmap_size=22)
    codes = np.broadcast_to(np.int8(0), (layout.n_entries, 4))
    assert "WebGPU" in (table_note(QuantisedTable(codes, None, np.ones((8, 4), np.float32), layout)) or "")


class _Page(HTMLParser):
    """Tags, addresses and scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: dict[str, str] = {}
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = dict(attrs).get("id") or tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.texts[self.inside] = self.texts.get(self.inside, "") + data


def small_scene(title: str) -> WebScene:
    """Any scene."""
    table = quantise(random_table(), LAYOUT, (8, 4))
    return WebScene(
        "nerf", "wgsl", "body </script>", table, [np.arange(8, dtype=np.float32)], np.arange(16, dtype=np.uint8),
        np.zeros((4, 4, 4), np.uint8), title, credits=title,
    )  # fmt: skip


def test_a_page_holds_its_numbers_escapes_its_texts_and_loads_nothing():
    title = '</script><img src=x onerror="alert(1)">&'
    scene, page = small_scene(title), _Page()
    text = write_page(scene)
    page.feed(text)
    assert page.tags.count("img") == 1 and page.tags.count("script") == 3
    assert all(address.startswith("data:image/webp;base64,") for address in page.addresses) and page.addresses
    assert not re.search(r"https?://|@import|url\(", text)
    facts = json.loads(page.texts["described"])
    assert facts["title"] == title and facts["body"] == "body </script>" and page.texts["h1"].strip() == title
    blob = zlib.decompress(base64.b64decode(page.texts["data"]))
    for name, array in {"table": scene.table.codes, "cells": scene.cells, "w0": scene.blocks[0]}.items():
        begin, length = facts["parts"][name]
        assert blob[begin : begin + length] == array.tobytes() and begin % 4 == 0


def test_the_pages_own_script_stays_small():
    assert len(template("gpu.js").template) + len(template("page.js").template) < 30_000


def test_the_still_picture_keeps_what_is_clear():
    image = np.zeros((16, 32, 4), np.uint8)
    image[:, 16:] = [200, 100, 50, 255]
    found = np.asarray(Image.open(io.BytesIO(encode_webp(image))))
    assert not found[:, :15, 3].any() and np.abs(found[:, 18:].astype(int) - [200, 100, 50, 255]).max() < 12

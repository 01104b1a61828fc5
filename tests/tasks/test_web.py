"""Web pages drawn for real: the same shader through wgpu without a browser, and in Chromium by both of its ways."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hashfield.errors import ConfigError
from hashfield.export.web_page import WebSize
from hashfield.geometry.cameras import Camera, look_at
from hashfield.geometry.spaces import Spaces
from hashfield.nn.config import EncodingConfig, MLPConfig, RadianceFieldConfig
from hashfield.nn.fields import RadianceField
from hashfield.ops.occupancy import GRID_SIZE, pack_bits
from hashfield.tasks.image_config import ImageConfig, make_module
from hashfield.tasks.image_model import ImageModel, ImageShape
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.sdf_config import SdfConfig
from hashfield.tasks.sdf_model import SdfModel
from hashfield.tasks.web import camera_row, image_scene, nerf_scene, sdf_scene, web_page
from tests.tasks.web_tools import FLAGS, NO_GPU_FLAGS, PLAIN_FLAGS, OpenPage, Way, chromium_path, drawn, vulkan

SIZE = 48


def toy(n_features: int, aabb_scale: int, *, activation: str = "exp", n_neurons: int = 32) -> NerfModel:
    """An untrained field of random numbers in a ball of occupied cells, and in some cells around: sharp and colourful,
    so that a wrong entry, weight or step shows.

    Args:
        n_features: Features of a level; there are 16 in all.
        aabb_scale: Side of the box.
        activation: Of the density.
        n_neurons: Width of the networks.
    """
    random = torch.Generator().manual_seed(aabb_scale)
    layers = MLPConfig(n_neurons, 1), MLPConfig(n_neurons, 2)
    encoding = EncodingConfig(n_levels=16 // n_features, n_features_per_level=n_features, log2_hashmap_size=12)
    config = RadianceFieldConfig(
        encoding=encoding.reaching(64 * aabb_scale), density_network=layers[0], color_network=layers[1],
        density_bias=2.0, density_activation=activation,
    )  # fmt: skip
    module = RadianceField(config, generator=random)
    with torch.no_grad():
        module.encoding.table.uniform_(-3, 3, generator=random)
    spaces = Spaces(scale=0.5, aabb_scale=aabb_scale)
    axis = (torch.arange(GRID_SIZE) + 0.5) / GRID_SIZE - 0.5
    values = []
    for cascade in range(spaces.n_cascades):
        at = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3) * 2.0**cascade
        values.append((at.norm(dim=1) < 0.3) | (torch.rand(len(at), generator=random) < 0.002))
    # any order of cells will do, as long as they come from one seed: Morton order by numbers of rows
    bits = pack_bits(torch.cat([_in_morton_order(v) for v in values]).float(), torch.tensor(0.5))
    half = 0.5 * aabb_scale
    pose = look_at([1.3, 0.4, 0.7], [0.02, 0.01, 0.0])
    camera = Camera(pose, 64, 64, 70.0, 75.0, 30.0, 33.0).resized(SIZE, SIZE)
    return NerfModel(
        module, spaces, bits, torch.tensor([0.5 - half] * 3 + [0.5 + half] * 3, dtype=torch.float64),
        cameras={"test": [camera]}, step_scale=2.0, precision="float32", quality="exact",
    )  # fmt: skip


def _in_morton_order(values: torch.Tensor) -> torch.Tensor:
    from hashfield.ops.occupancy import morton3_inverse

    cell = morton3_inverse(torch.arange(len(values)))
    return values.reshape([GRID_SIZE] * 3)[tuple(cell.T)]


def seen(model: NerfModel) -> np.ndarray:
    """Premultiplied RGBA of the model's first view."""
    found = model.render(model.cameras["test"][0], ("color", "opacity"))
    return np.concatenate([found["color"], found["opacity"][..., None]], -1)


def check_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    """At least 60 dB, and at most 0.05 % of the pixels off by more than 1/255."""
    assert 0.02 < wanted[..., 3].mean() < 0.98 and wanted[..., :3].std() > 0.02  # there is something to compare
    off = np.abs(found - wanted).max(-1) > 1 / 255
    assert off.mean() <= 5e-4, f"{off.sum()} pixels differ, the worst by {np.abs(found - wanted).max():.3f}"
    assert -10 * np.log10(np.square(found - wanted).mean()) >= 60


# --- the shader alone


@pytest.mark.parametrize(
    ("n_features", "aabb_scale", "activation", "n_neurons"),
    [(4, 1, "exp", 64), (2, 4, "exp", 16), (8, 16, "relu", 16)],
    ids=["four", "two in cascades", "eight in many cascades, relu"],
)
def test_the_shader_draws_what_the_model_renders(n_features: int, aabb_scale: int, activation: str, n_neurons: int):
    if isinstance(vulkan(), str):
        pytest.skip(vulkan())
    model = toy(n_features, aabb_scale, activation=activation, n_neurons=n_neurons)
    scene, shown, _ = nerf_scene(model, "medium")
    check_equal(drawn(scene, camera_row(model.cameras["test"][0], model.spaces)), seen(shown))


def toy_picture(n_channels: int) -> ImageModel:
    """An untrained picture of 96 x 64 pixels, of random numbers."""
    encoding = EncodingConfig(n_levels=5, n_features_per_level=2, log2_hashmap_size=9, interpolation="smoothstep")
    config = ImageConfig(encoding=encoding, finest_resolution=64, n_neurons=16, n_hidden_layers=2, precision="float32")
    module = make_module(config, n_channels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        module.encoding.table.uniform_(-3, 3, generator=torch.Generator().manual_seed(1))
    return ImageModel(module, config, ImageShape(96, 64, n_channels, False))


CROP = 10.0, 5.0, 32.0, 48.0
"""A part of the toy picture: in a square, it is enlarged two times across, and four thirds down."""


def crop_row() -> list[float]:
    """The part as a page takes it: left, top, steps across and down, ..., width and height."""
    left, top, width, height = CROP
    return [left, top, width / SIZE, height / SIZE, *[0.0] * 12, float(SIZE), float(SIZE)]


@pytest.mark.parametrize("n_channels", [2, 3])
def test_the_shader_draws_a_picture(n_channels: int):
    if isinstance(vulkan(), str):
        pytest.skip(vulkan())
    scene, shown, _ = image_scene(toy_picture(n_channels), "large")
    found = drawn(scene, crop_row())
    wanted = shown.frame(shown.view(CROP, SIZE, SIZE), ("color", "opacity"))
    color = np.broadcast_to(wanted["color"], (SIZE, SIZE, 3))
    assert np.abs(found[..., :3] - color).max() < 1e-3 * max(1.0, np.abs(color).max())
    assert np.abs(found[..., 3] - wanted["opacity"]).max() < 1e-3
    outside = drawn(scene, [-70.0, 5.0, 1.0, 1.0, *[0.0] * 12, SIZE, SIZE])
    assert not outside.any()


def toy_ball() -> SdfModel:
    """A distance to a ball, made by hand: the coarse level holds it, the network hands it through."""
    encoding = EncodingConfig(n_levels=2, n_features_per_level=4, log2_hashmap_size=14, base_resolution=24)
    config = SdfConfig(encoding=encoding, finest_resolution=25, n_neurons=16, n_hidden_layers=1)
    module = config.make_field(torch.Generator().manual_seed(0))
    layout = module.encoding.layout
    n = int(layout.resolutions[0])
    axis = (torch.arange(n) - 0.5) / float(layout.scales[0])
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    with torch.no_grad():
        module.encoding.table.zero_()
        module.encoding.table[: n**3, 0] = ((torch.stack([x, y, z], -1) - 0.5).norm(dim=-1) - 0.3).reshape(-1)
        first, last = module.network.weights
        first.zero_()
        last.zero_()
        first[0, 0], first[1, 0], last[0, 0], last[0, 1] = 1.0, -1.0, 1.0, -1.0
    box = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]], dtype=torch.float64)
    camera = Camera(look_at([1.3, 0.4, 0.7], [0.0, 0.0, 0.0]), 64, 64, 70.0, 75.0, 30.0, 33.0).resized(SIZE, SIZE)
    return SdfModel(module, Spaces(scale=0.5), box, cameras={"orbit": [camera]})


def test_the_shader_draws_a_distance():
    if isinstance(vulkan(), str):
        pytest.skip(vulkan())
    model = toy_ball()
    scene, shown, _ = sdf_scene(model, "large")
    found = shown.render(model.cameras["orbit"][0], ("color", "opacity"), oversample=1)
    wanted = np.concatenate([found["color"], found["opacity"][..., None]], -1)
    check_equal(drawn(scene, camera_row(model.cameras["orbit"][0], model.spaces)), wanted)


# --- the page in a browser

KINDS = "nerf", "image", "sdf"


@dataclass
class Toy:
    """The page of a small model, and what it must show."""

    file: Path
    row: list[float]
    """A camera, or a part of a picture."""
    wanted: np.ndarray
    """Premultiplied RGBA of it, by the model with the page's table."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Toy]:
    """A field with cascades, a picture with alpha, and a distance."""
    folder = tmp_path_factory.mktemp("web")
    field, picture, ball = toy(4, 4), toy_picture(4), toy_ball()
    _, shown_field, _ = nerf_scene(field, "medium")
    _, shown_picture, _ = image_scene(picture, "large")
    _, shown_ball, _ = sdf_scene(ball, "large")
    part = shown_picture.frame(shown_picture.view(CROP, SIZE, SIZE), ("color", "opacity"))
    found = shown_ball.render(ball.cameras["orbit"][0], ("color", "opacity"), oversample=1)
    wanted: dict[str, tuple[Any, WebSize, list[float], np.ndarray]] = {
        "nerf": (field, "medium", camera_row(field.cameras["test"][0], field.spaces), seen(shown_field)),
        "image": (picture, "large", crop_row(), np.concatenate([part["color"], part["opacity"][..., None]], -1)),
        "sdf": (ball, "large", camera_row(ball.cameras["orbit"][0], ball.spaces),
                np.concatenate([found["color"], found["opacity"][..., None]], -1)),
    }  # fmt: skip
    pages = {}
    for kind, (model, size, row, picture_of_it) in wanted.items():
        file = folder / f"{kind}.html"
        file.write_text(web_page(model, size, 'A "toy" <b>', "nobody's photos").html)
        pages[kind] = Toy(file, row, picture_of_it)
    return pages


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Gives Chromium with some flags; one is kept for each."""
    api = pytest.importorskip("playwright.sync_api")
    path = chromium_path()
    kept: dict[tuple[str, ...], Any] = {}
    with api.sync_playwright() as play:

        def launched(flags: tuple[str, ...]) -> Any:
            if flags not in kept:
                kept[flags] = play.chromium.launch(executable_path=path, args=list(flags))
            return kept[flags]

        yield launched
        for chromium in kept.values():
            chromium.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["webgpu", "webgl2"])
def test_both_ways_of_a_page_draw_what_the_model_renders(browser: Any, toys: dict[str, Toy], way: Way, kind: str):
    wanted = toys[kind]
    # WebGL2 as most machines without a GPU meet it: no flags, and as a part of another page
    address = wanted.file.as_uri()
    if way == "webgl2":
        around = wanted.file.with_name("around.html")
        around.write_text(f'<iframe src="{wanted.file.name}" width="48" height="48"></iframe>')
        address = around.as_uri()
    page = OpenPage(browser(FLAGS if way == "webgpu" else PLAIN_FLAGS), address)
    assert (page.facts["state"], page.facts["backend"]) == ("ready", way), (page.facts, page.said)
    found, _ = page.drawn(wanted.row)
    check_equal(found, wanted.wanted)
    assert page.frame.locator("canvas").get_attribute("aria-label").startswith('A "toy" <b>')
    assert page.frame.locator("h1").text_content() == 'A "toy" <b>'
    assert not page.errors, page.said
    page.tab.close()


def test_a_lost_device_is_replaced_or_said(browser: Any, toys: dict[str, Toy]):
    page = OpenPage(browser(FLAGS), toys["image"].file.as_uri())
    assert page.facts["backend"] == "webgpu"
    page.frame.evaluate("hashfield.lose()")  # the other way takes over
    page.frame.wait_for_function("document.documentElement.dataset.backend === 'webgl2'")
    page.frame.evaluate("hashfield.lose()")
    page.frame.wait_for_function("document.documentElement.dataset.state.startsWith('error: The graphics device')")
    assert page.frame.locator("#message").is_visible() and page.frame.locator("#still").is_visible()
    page.tab.close()


@pytest.mark.parametrize("way", ["webgpu", "webgl2"])
def test_a_picture_is_moved_and_enlarged_where_the_pointer_is(browser: Any, toys: dict[str, Toy], way: Way):
    page = OpenPage(browser(FLAGS if way == "webgpu" else PLAIN_FLAGS), toys["image"].file.as_uri(), (384, 256))
    at = "hashfield.seen().slice(0, 4)"  # left, top, and the step from a pixel of the screen to the next
    assert page.frame.evaluate(at) == pytest.approx([0, 0, 0.25, 0.25], abs=1e-5)
    # the window itself shows it, on the page's white
    page.frame.wait_for_function("document.documentElement.dataset.passes >= 1")
    shot = page.tab.screenshot(clip={"x": 100, "y": 80, "width": 200, "height": 100})
    shown = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) / 255
    _, model, _ = image_scene(toy_picture(4), "large")
    part = model.frame(model.view((25.0, 20.0, 50.0, 25.0), 200, 100), ("color", "opacity"))
    wanted = np.clip(part["color"] + (1 - part["opacity"][..., None]), 0, 1)
    assert wanted.std() > 0.1 and np.abs(shown - wanted).mean() < 0.01
    page.tab.mouse.move(240, 120)
    page.tab.mouse.wheel(0, -1000)  # the picture's point below the pointer stays there
    page.frame.wait_for_function("hashfield.seen()[2] < 0.2")
    left, top, across, down = page.frame.evaluate(at)
    assert (across, down) == pytest.approx((0.25 / np.e, 0.25 / np.e), rel=1e-3)
    assert (left + 240 * across, top + 120 * down) == pytest.approx((60, 30), abs=1e-3)
    page.tab.mouse.down()
    page.tab.mouse.move(280, 140, steps=2)
    page.tab.mouse.up()
    page.frame.wait_for_function(f"hashfield.seen()[0] < {left - 39 * across}")
    moved = page.frame.evaluate(at)
    assert (left - moved[0], top - moved[1]) == pytest.approx((40 * across, 20 * down), abs=1e-3)
    for _ in range(20):
        page.tab.mouse.wheel(0, -1000)
    page.frame.wait_for_function("hashfield.seen()[2] === 1 / 256")  # so many of the screen's pixels for one of its own
    page.tab.keyboard.press("Home")
    page.frame.wait_for_function("hashfield.seen()[2] === 0.25")
    assert not page.errors, page.said
    page.tab.close()


LITTLE_MEMORY = """
const get = WebGL2RenderingContext.prototype.getParameter;
WebGL2RenderingContext.prototype.getParameter = function (name) {
  return name === this.MAX_TEXTURE_SIZE ? 1 : get.call(this, name);
};"""
NO_FLOATS = """
const get = WebGL2RenderingContext.prototype.getExtension;
WebGL2RenderingContext.prototype.getExtension = function (name) {
  return name.startsWith("EXT_") ? null : get.call(this, name);
};"""


def test_a_table_that_outgrows_webgl2_ends_in_a_line_and_a_picture(browser: Any, toys: dict[str, Toy]):
    page = OpenPage(browser(PLAIN_FLAGS), toys["nerf"].file.as_uri(), script=LITTLE_MEMORY)
    assert "larger than this browser's WebGL2 takes" in page.facts["state"] and page.facts["state"].startswith("error")
    assert page.tab.locator("#message").is_visible() and page.tab.locator("#still").is_visible()
    assert not page.errors, page.said
    page.tab.close()


def test_a_device_without_float_textures_draws_in_bytes(browser: Any, toys: dict[str, Toy]):
    page = OpenPage(browser(PLAIN_FLAGS), toys["sdf"].file.as_uri(), script=NO_FLOATS)
    found, _ = page.drawn(toys["sdf"].row)
    assert np.allclose(found * 255, np.rint(found * 255), atol=1e-3)
    off = np.abs(found - toys["sdf"].wanted).max(-1) > 1.5 / 255  # rounded, and what any way may be off by
    assert off.mean() <= 5e-4
    assert not page.errors, page.said
    page.tab.close()


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_gpu_a_page_says_so_and_shows_a_picture(browser: Any, toys: dict[str, Toy], kind: str):
    page = OpenPage(browser(NO_GPU_FLAGS), toys[kind].file.as_uri())
    assert page.facts["state"].startswith("error: This browser offers neither")
    assert page.tab.locator("#message").is_visible() and page.tab.locator("#still").is_visible()
    assert page.tab.evaluate("document.getElementById('still').naturalWidth") == (96 if kind == "image" else SIZE)
    assert not page.errors, page.said
    page.tab.close()


# --- runs without cameras, and what cannot be drawn


def test_a_run_without_cameras_begins_before_its_box():
    whole = toy(4, 1)
    model = NerfModel(whole.field, whole.spaces, whole.bits, whole.box, step_scale=2.0, precision="float32")
    scene, _, notes = nerf_scene(model, "medium")
    assert len(scene.view["cameras"]) == 1 and any("no cameras" in note for note in notes)
    assert 0.02 < (scene.still[..., 3] > 128).mean() < 0.9


def test_fields_that_a_page_cannot_draw_are_refused_in_one_line():
    deep = RadianceField(RadianceFieldConfig(density_network=MLPConfig(16, 2)))
    bits, box = (
        torch.zeros(GRID_SIZE**3 // 8, dtype=torch.uint8),
        torch.tensor([0.0] * 3 + [1.0] * 3, dtype=torch.float64),
    )
    with pytest.raises(ConfigError, match="one hidden density layer"):
        web_page(NerfModel(deep, Spaces(), bits, box))

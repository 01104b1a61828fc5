"""Web pages drawn for real: the same shader through wgpu without a browser, and in Chromium by both of its ways."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashfield.errors import ConfigError
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

FLAGS = (
    "--headless=new", "--no-sandbox", "--enable-unsafe-webgpu", "--enable-features=Vulkan",
    "--use-vulkan=swiftshader", "--use-angle=swiftshader", "--ignore-gpu-blocklist",
)  # fmt: skip
SIZE = 64


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
    camera = Camera(pose, SIZE, SIZE, 70.0, 75.0, 30.0, 33.0)
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
    assert 0.1 < wanted[..., 3].mean() < 0.9 and wanted[..., :3].std() > 0.02  # there is something to compare
    off = np.abs(found - wanted).max(-1) > 1 / 255
    assert off.mean() <= 5e-4, f"{off.sum()} pixels differ, the worst by {np.abs(found - wanted).max():.3f}"
    assert -10 * np.log10(np.square(found - wanted).mean()) >= 60


# --- the shader alone


@cache
def vulkan() -> Any:
    """A device, or the reason why there is none."""
    try:
        import wgpu
    except ImportError as error:
        return str(error)
    try:
        return wgpu.gpu.request_adapter_sync().request_device_sync()
    except Exception as error:
        return f"no Vulkan adapter: {error}"


def drawn(scene: Any, row: list[float]) -> np.ndarray:
    """Premultiplied RGBA of a camera, by the page's compute shader."""
    import wgpu

    device, usage = vulkan(), wgpu.BufferUsage
    view = np.zeros(32, np.float32)
    width, height = int(row[16]), int(row[17])
    view[:16] = row[:16]
    view[16:26] = [0.5, 0.5, 1.0, 0.0, width, height, 0, height, 1e-4, 1e-5]
    arrays = [view, scene.table.bytes(), scene.cells, np.zeros((height, width, 4), np.float32), *scene.blocks]
    kinds = [
        usage.UNIFORM,
        usage.STORAGE,
        usage.STORAGE,
        usage.STORAGE | usage.COPY_SRC,
        *[usage.UNIFORM] * len(scene.blocks),
    ]
    buffers = [
        device.create_buffer_with_data(data=np.ascontiguousarray(a).tobytes(), usage=kind)
        for a, kind in zip(arrays, kinds, strict=True)
    ]
    types = ["uniform", "read-only-storage", "read-only-storage", "storage", *["uniform"] * len(scene.blocks)]
    stage = wgpu.ShaderStage.COMPUTE
    layout = device.create_bind_group_layout(
        entries=[{"binding": k, "visibility": stage, "buffer": {"type": kind}} for k, kind in enumerate(types)]
    )
    pipeline = device.create_compute_pipeline(
        layout=device.create_pipeline_layout(bind_group_layouts=[layout]),
        compute={"module": device.create_shader_module(code=scene.shader), "entry_point": "main"},
    )
    group = device.create_bind_group(
        layout=layout,
        entries=[{"binding": k, "resource": {"buffer": b, "offset": 0, "size": b.size}} for k, b in enumerate(buffers)],
    )
    encoder = device.create_command_encoder()
    compute = encoder.begin_compute_pass()
    compute.set_pipeline(pipeline)
    compute.set_bind_group(0, group)
    compute.dispatch_workgroups(-(-width // 8), -(-height // 8))
    compute.end()
    device.queue.submit([encoder.finish()])
    return np.frombuffer(device.queue.read_buffer(buffers[3]), np.float32).reshape(height, width, 4)


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


@pytest.mark.parametrize("n_channels", [2, 3])
def test_the_shader_draws_a_picture(n_channels: int):
    if isinstance(vulkan(), str):
        pytest.skip(vulkan())
    scene, shown, _ = image_scene(toy_picture(n_channels), "large")
    crop = (10.0, 5.0, 32.0, 48.0)  # enlarged two times across, and four thirds down
    found = drawn(scene, [10.0, 5.0, 0.5, 0.75, *[0.0] * 12, 64, 64])
    wanted = shown.frame(shown.view(crop, 64, 64), ("color", "opacity"))
    color = np.broadcast_to(wanted["color"], (64, 64, 3))
    assert np.abs(found[..., :3] - color).max() < 1e-3 * max(1.0, np.abs(color).max())
    assert np.abs(found[..., 3] - wanted["opacity"]).max() < 1e-3
    outside = drawn(scene, [-70.0, 5.0, 1.0, 1.0, *[0.0] * 12, 64, 64])
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
    camera = Camera(look_at([1.3, 0.4, 0.7], [0.0, 0.0, 0.0]), SIZE, SIZE, 70.0, 75.0, 30.0, 33.0)
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Starts Chromium with flags."""
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the path")
    with api.sync_playwright() as play:
        yield lambda flags: play.chromium.launch(executable_path=path, args=list(flags))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a toy with cascades."""
    path = tmp_path_factory.mktemp("web") / "toy.html"
    path.write_text(web_page(toy(4, 4), "medium", 'A "toy" <b>', "nobody's photos").html)
    return path


def opened(browser: Any, address: str) -> tuple[Any, Any, list[str]]:
    """(a tab, the page in it, which has finished loading, what the console said)."""
    tab, said = browser.new_page(viewport={"width": 48, "height": 48}), []
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    tab.goto(address)
    page = tab.frames[-1]
    page.wait_for_function("document.documentElement.dataset.state !== 'loading'")
    return tab, page, said


@pytest.mark.parametrize("way", ["webgpu", "webgl2"])
def test_both_ways_of_the_page_draw_what_the_model_renders(browser: Any, page_file: Path, way: str):
    model = toy(4, 4)
    _, shown, _ = nerf_scene(model, "medium")
    camera = {"numbers": camera_row(model.cameras["test"][0], model.spaces)[:16], "width": SIZE, "height": SIZE}
    # WebGL2 as most machines without a GPU meet it: no flags, and as a part of another page
    chromium = browser(FLAGS if way == "webgpu" else FLAGS[:2])
    around = page_file.with_name("around.html")
    around.write_text(f'<iframe src="{page_file.name}" width="48" height="48"></iframe>')
    _, frame, said = opened(chromium, page_file.as_uri() if way == "webgpu" else around.as_uri())
    facts = frame.evaluate("({...document.documentElement.dataset})")
    assert (facts["state"], facts["backend"]) == ("ready", way), (facts, said)
    frame.evaluate("hashfield.hold = true")
    frame.evaluate("camera => hashfield.render(camera)", camera)
    found = np.array(frame.evaluate("hashfield.read()"), np.float32).reshape(SIZE, SIZE, 4)
    check_equal(found, seen(shown))
    assert frame.locator("canvas").get_attribute("aria-label").startswith('A "toy" <b>')
    assert frame.locator("h1").text_content() == 'A "toy" <b>'
    assert not [line for line in said if line.startswith("error")], said
    frame.evaluate("hashfield.lose()")
    if way == "webgpu":  # the device is gone: the other way takes over
        frame.wait_for_function("document.documentElement.dataset.backend === 'webgl2'")
    else:
        frame.wait_for_function("document.documentElement.dataset.state.startsWith('error: The graphics device')")
        assert frame.locator("#message").is_visible() and frame.locator("#still").is_visible()
    chromium.close()


def test_without_any_gpu_the_page_says_so_and_shows_a_picture(browser: Any, page_file: Path):
    chromium = browser(("--headless=new", "--no-sandbox", "--disable-3d-apis"))
    tab, _, said = opened(chromium, page_file.as_uri())
    assert tab.evaluate("document.documentElement.dataset.state").startswith("error: This browser offers neither")
    assert tab.locator("#message").is_visible() and tab.locator("#still").is_visible()
    assert tab.evaluate("document.getElementById('still').naturalWidth") == SIZE
    assert not [line for line in said if line.startswith("error")], said
    chromium.close()


# --- what cannot be drawn


def test_fields_that_a_page_cannot_draw_are_refused_in_one_line():
    deep = RadianceField(RadianceFieldConfig(density_network=MLPConfig(16, 2)))
    bits, box = (
        torch.zeros(GRID_SIZE**3 // 8, dtype=torch.uint8),
        torch.tensor([0.0] * 3 + [1.0] * 3, dtype=torch.float64),
    )
    with pytest.raises(ConfigError, match="one hidden density layer"):
        web_page(NerfModel(deep, Spaces(), bits, box))

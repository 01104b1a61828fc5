"""What draws a web page for tests and benchmarks: its compute shader alone through wgpu, or Chromium."""

import importlib.util
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pytest
from jaxtyping import Float32

from hashfield.export.web_page import WebScene

Way = Literal["webgpu", "webgl2"]

FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--enable-unsafe-webgpu", "--enable-features=Vulkan",
    "--use-vulkan=swiftshader", "--use-angle=swiftshader", "--ignore-gpu-blocklist",
)  # fmt: skip
"""Chromium with WebGPU on a software GPU."""
PLAIN_FLAGS: Final = FLAGS[:2]
"""Chromium as most machines without a GPU have it: WebGL2 in software, no WebGPU."""
NO_GPU_FLAGS: Final = (*PLAIN_FLAGS, "--disable-3d-apis")
FULL: Final = (1e-4, 1e-5)
"""Light and weight at which a ray stops and a colour is left out, in a finished picture, as in `page.js`."""


@cache
def vulkan() -> Any:
    """A device, or the reason why there is none."""
    if importlib.util.find_spec("triton") is not None:
        # Before the driver, which brings another LLVM: imported after that, Triton's crashes the process.
        importlib.import_module("triton")
    try:
        import wgpu
    except ImportError as error:
        return str(error)
    try:
        return wgpu.gpu.request_adapter_sync().request_device_sync()
    except Exception as error:
        return f"no Vulkan adapter: {error}"


def drawn(
    scene: WebScene, row: list[float], bounds: tuple[float, float] = FULL, shader: str | None = None
) -> Float32[np.ndarray, "h w 4"]:
    """Premultiplied RGBA of a camera, by the page's compute shader.

    Args:
        scene: What the page holds.
        row: The camera's numbers, width and height, as `camera_row` gives them.
        bounds: Light at which a ray stops, and weight below which a colour is left out.
        shader: Other text than the scene's.
    """
    import wgpu

    device, usage = vulkan(), wgpu.BufferUsage
    view = np.zeros(32, np.float32)
    width, height = int(row[16]), int(row[17])
    view[:16] = row[:16]
    view[16:26] = [0.5, 0.5, 1.0, 0.0, width, height, 0, height, *bounds]
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
        compute={"module": device.create_shader_module(code=shader or scene.shader), "entry_point": "main"},
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


def chromium_path() -> str:
    """Where Chromium is; skips the test where it is not."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the path")
    return path


class OpenPage:
    """A page that a browser has opened, once it is no longer loading."""

    def __init__(
        self, browser: Any, address: str, size: tuple[int, int] = (48, 48), script: str = "", **options: Any
    ) -> None:
        """Args:
        browser: Chromium.
        address: Of the page.
        size: Pixels of the window.
        script: Run before the page's own.
        options: Of the tab, such as `color_scheme`.
        """
        self.said: list[str] = []
        """What the console said."""
        self.tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
        self.tab.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        if script:
            self.tab.add_init_script(script)
        self.tab.goto(address)
        self.frame = self.tab.frames[-1]
        """The page, which may lie in another one."""
        self.frame.wait_for_function("document.documentElement.dataset.state !== 'loading'", timeout=120_000)

    @property
    def facts(self) -> dict[str, str]:
        """What the page says of itself."""
        return self.frame.evaluate("({...document.documentElement.dataset})")

    @property
    def errors(self) -> list[str]:
        """Errors in the console."""
        return [line for line in self.said if line.startswith("error")]

    def drawn(self, row: list[float]) -> tuple[Float32[np.ndarray, "h w 4"], float]:
        """(premultiplied RGBA of a camera, seconds that it took).

        Args:
            row: The camera's numbers, width and height, as `camera_row` gives them.
        """
        width, height = int(row[16]), int(row[17])
        self.frame.evaluate("hashfield.hold = true")
        camera = {"numbers": row[:16], "width": width, "height": height}
        milliseconds = self.frame.evaluate("camera => hashfield.render(camera)", camera)
        found = np.array(self.frame.evaluate("hashfield.read()"), np.float32).reshape(height, width, 4)
        return found, milliseconds / 1000


def address_of(path: Path, way: Way) -> str:
    """Address of a page's file that is drawn in one of the two ways."""
    return path.resolve().as_uri() + ("#webgl2" if way == "webgl2" else "")

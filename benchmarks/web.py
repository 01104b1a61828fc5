"""Web pages of runs, in Chromium on a software GPU: bytes and loss of each size, whether the page draws what the model
renders, seconds until it is ready, seconds of a picture; screenshots; what a pixel asks of a GPU, by counting.

    python benchmarks/web.py RUN [RUN ...] [--sizes small medium large] [--write]
    python benchmarks/web.py RUN [RUN ...] --pictures DIR      both ways, light and dark, as they look in a window
    python benchmarks/web.py RUN [RUN ...] --count             samples and colours of a pixel, and times by arithmetic

Needs playwright, Chromium, wgpu with a Vulkan driver.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import append, other_load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tasks.web_tools import FLAGS, FULL, PLAIN_FLAGS, OpenPage, address_of, chromium_path, drawn

from hashfield.api import load
from hashfield.tasks.image_model import ImageModel
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.sdf_model import SdfModel
from hashfield.tasks.web import LOSS_VIEWS, SCENES, camera_row, fitted, page_cameras, web_page

SIZE = 64
"""Pixels of a side of the pictures that are compared."""
COUNTED = 256
"""Pixels of the longer side of the views that samples are counted in."""
QUICK = (1e-2, 4e-3)
"""The bounds of pictures while something moves, as in `page.js`."""
TERAFLOPS = 1.5, 3.6, 12.7
"""Float32 peaks of a small integrated GPU, a larger one, a graphics card."""
SHARE_OF_PEAK = 0.25


def views(model: Any, n: int) -> list[tuple[list[float], Any]]:
    """(the numbers by which a page draws it, the view) of a few squares.

    Args:
        model: Of any kind.
        n: How many.
    """
    if isinstance(model, ImageModel):
        w, h = model.shape.width, model.shape.height
        side = min(w, h) / 4
        found = []
        for share in np.linspace(0.2, 0.8, n):
            left, top = (w - side) * share, (h - side) * share
            row = [left, top, side / SIZE, side / SIZE, *[0.0] * 12, SIZE, SIZE]
            found.append((row, model.view((left, top, side, side), SIZE, SIZE, most_per_axis=1)))
        return found
    known = model.cameras.get("test") or page_cameras(model.cameras, model.spaces)[0]
    chosen = [known[k] for k in np.linspace(0, len(known) - 1, n).round().astype(int)]
    squares = [fitted(camera, 10**6).resized(SIZE, SIZE) for camera in chosen]
    return [(camera_row(camera, model.spaces), camera) for camera in squares]


def seen(model: Any, view: Any) -> np.ndarray:
    """Premultiplied RGBA of what a model renders, one ray a pixel."""
    outputs = ("color", "opacity")
    if isinstance(model, SdfModel):
        found = model.render(view, outputs, oversample=1)
    else:
        found = model.frame(view, outputs) if isinstance(model, ImageModel) else model.render(view, outputs)
    color = np.broadcast_to(found["color"], (SIZE, SIZE, 3))
    return np.concatenate([color, found["opacity"][..., None]], -1)


def compared(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """PSNR and the share of pixels that differ by more than 1/255, over pictures that should be equal."""
    error = np.stack([np.clip(a, 0, 1) - np.clip(b, 0, 1) for a, b in pairs])
    return {
        "same_db": round(float(-10 * np.log10(max(np.square(error).mean(), 1e-20))), 1),
        "off_percent": round(100 * float((np.abs(error).max(-1) > 1 / 255).mean()), 3),
    }


def pages(run: Path, sizes: list[str], play: Any) -> list[dict[str, Any]]:
    """A row for each size and way of drawing.

    Args:
        run: The run's folder.
        sizes: Of the page's table.
        play: Playwright.
    """
    model, rows = load(run), []
    make = SCENES[type(model)]
    for size in sizes:
        page = web_page(model, size, run.name)  # type: ignore[arg-type]
        scene, shown, _ = make(model, size)
        shared = {"run": run.name, "kind": scene.kind, "size": size, "MB": round(len(page.html.encode()) / 1e6, 2),
                  "loss_db": round(page.loss_db, 2)}  # fmt: skip
        wanted = [(row, seen(shown, view)) for row, view in views(model, LOSS_VIEWS)]
        rows.append({**shared, "way": "wgpu", **compared([(drawn(scene, row), right) for row, right in wanted])})
        for way, flags in (("webgpu", FLAGS), ("webgl2", PLAIN_FLAGS)):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "page.html"
                file.write_text(page.html)
                browser = play.chromium.launch(executable_path=chromium_path(), args=list(flags))
                begun = time.perf_counter()
                opened = OpenPage(browser, address_of(file, way))
                ready = time.perf_counter() - begun
                if opened.facts["backend"] != way:
                    sys.exit(f"{run}: {way} is not offered here: {opened.facts}")
                pictures = [opened.drawn(row) for row, _ in wanted]
                rows.append({
                    **shared, "way": way,
                    **compared([(found, right) for (found, _), (_, right) in zip(pictures, wanted, strict=True)]),
                    "ready_s": round(ready, 2), "frame_64_s": round(float(np.median([s for _, s in pictures])), 2),
                    "console_errors": len(opened.errors),
                })  # fmt: skip
                browser.close()
        for row in rows[-3:]:
            print(row, flush=True)
    return rows


def screenshots(run: Path, folder: Path, play: Any, size: tuple[int, int], patience: float) -> None:
    """How a run's page looks: by WebGPU in light, by WebGL2 in dark with its help open.

    Args:
        run: The run's folder.
        folder: Gets the pictures.
        play: Playwright.
        size: Pixels of the window.
        patience: Seconds to wait for the whole picture; then it is taken as far as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{run.name}.html"
    file.write_text(web_page(load(run), "medium", run.name, "benchmarks/web.py").html)
    for way, flags, scheme in (("webgpu", FLAGS, "light"), ("webgl2", PLAIN_FLAGS, "dark")):
        browser = play.chromium.launch(executable_path=chromium_path(), args=list(flags))
        begun = time.perf_counter()
        page = OpenPage(browser, address_of(file, way), size, color_scheme=scheme)
        ready = time.perf_counter() - begun
        while page.facts.get("passes", "0") == "0" and time.perf_counter() - begun - ready < patience:
            time.sleep(0.2)
        waited, is_whole = time.perf_counter() - begun, page.facts.get("passes", "0") != "0"
        page.frame.evaluate("hashfield.hold = true")
        page.tab.screenshot(path=folder / f"{run.name}_{way}.png")
        if way == "webgl2":
            page.tab.click("#ask")
            page.tab.screenshot(path=folder / f"{run.name}_{way}_help.png")
        print(f"{run.name}, {way}, {size[0]} x {size[1]}: ready after {ready:.1f} s, "
              f"{'whole' if is_whole else 'not yet whole'} after {waited:.1f} s; "
              f"{page.said or 'nothing in the console'}", flush=True)  # fmt: skip
        browser.close()


COUNTING = {
    "  var light: f32 = 1.0;": "  var light: f32 = 1.0;\n  var n_samples: f32 = 0.0;\n  var n_colors: f32 = 0.0;",
    "    let raw: f32 =": "    n_samples += 1.0;\n    let raw: f32 =",
    "{ color += weight * radiance(zero); }": "{ n_colors += 1.0; }",
    "  return vec4f(color, 1.0 - light);": "  return vec4f(n_samples, n_colors, 1.0 - light, 1.0);",
}
"""What of the shader's text is replaced so that it counts."""


def counts(run: Path) -> list[dict[str, Any]]:
    """What a pixel of a radiance field asks, counted by the page's own shader, and what that means by arithmetic."""
    model, rows = load(run), []
    if not isinstance(model, NerfModel):
        sys.exit(f"{run}: samples are counted of radiance fields")
    field = model.parameters_of_field()
    scene, _, _ = SCENES[NerfModel](model, "medium")
    shader = scene.shader
    for before, after in COUNTING.items():
        if shader.count(before) != 1:
            sys.exit(f"the shader has changed, it cannot count any more: {before}")
        shader = shader.replace(before, after)
    per_density = sum(w.numel() for w in field.density_weights)
    per_color = sum(w.numel() for w in field.color_weights)
    per_grid = field.layout.n_levels * field.layout.n_features_per_level * 7 * 2  # seven lerps, two operations each
    known = model.cameras.get("test") or page_cameras(model.cameras, model.spaces)[0]
    cameras = [fitted(known[k], COUNTED) for k in np.linspace(0, len(known) - 1, LOSS_VIEWS).round().astype(int)]
    for what, bounds in (("whole", FULL), ("moving", QUICK)):
        asked, waited, found = [], [], []
        for camera in cameras:
            counted = drawn(scene, camera_row(camera, model.spaces), bounds, shader)
            operations = counted[..., 0] * (2 * per_density + per_grid) + counted[..., 1] * 2 * per_color
            h, w = (side // 8 * 8 for side in operations.shape)
            tiles = operations[:h, :w].reshape(h // 8, 8, w // 8, 8)
            asked.append(float(operations.mean()))
            waited.append(float(tiles.max((1, 3)).mean() / tiles.mean()))
            found.append(counted.reshape(-1, 4))
        flat = np.concatenate(found)
        row = {
            "run": run.name, "what": what, "samples": round(float(flat[:, 0].mean()), 2),
            "colors": round(float(flat[:, 1].mean()), 2), "hit_percent": round(100 * float((flat[:, 2] > 0.01).mean()), 1),
            "kFLOP": round(float(np.mean(asked)) / 1e3, 1), "waiting": round(float(np.mean(waited)), 2),
        }  # fmt: skip
        height, width = model.cameras["test"][0].height, model.cameras["test"][0].width
        for peak in TERAFLOPS:
            per_second = peak * 1e12 * SHARE_OF_PEAK / float(np.mean(waited)) / float(np.mean(asked))
            if what == "whole":
                row[f"{width}x{height}_s_at_{peak}"] = round(width * height / per_second, 3)
            else:
                row[f"pixels_in_1/30_s_at_{peak}"] = round(per_second / 30)
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["small", "medium", "large"])
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--window", nargs=2, type=int, default=(480, 360))
    parser.add_argument("--patience", type=float, default=600.0)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true", help="append to results/web.csv")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"others keep {other_load():.2f} cores busy")
    rows: list[dict[str, Any]] = []
    if options.count:
        for run in options.runs:
            rows += counts(run)
    else:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as play:
            for run in options.runs:
                if options.pictures is not None:
                    screenshots(run, options.pictures, play, tuple(options.window), options.patience)
                else:
                    rows += pages(run, options.sizes, play)
    if options.write:
        append("web", rows)


if __name__ == "__main__":
    main()

"""Web pages of runs, in Chromium on a software GPU: bytes and loss of each size, whether the page draws what the model
renders, seconds until it is ready, seconds of a picture.

    python benchmarks/web.py RUN [RUN ...] [--sizes small medium large] [--write]

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

from tests.tasks.web_tools import FLAGS, PLAIN_FLAGS, OpenPage, address_of, chromium_path, drawn

from hashfield.api import load
from hashfield.tasks.image_model import ImageModel
from hashfield.tasks.sdf_model import SdfModel
from hashfield.tasks.web import LOSS_VIEWS, SCENES, camera_row, fitted, page_cameras, web_page

SIZE = 64
"""Pixels of a side of the pictures that are compared."""


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


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["small", "medium", "large"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true", help="append to results/web.csv")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"others keep {other_load():.2f} cores busy")
    rows: list[dict[str, Any]] = []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        for run in options.runs:
            rows += pages(run, options.sizes, play)
    if options.write:
        append("web", rows)


if __name__ == "__main__":
    main()

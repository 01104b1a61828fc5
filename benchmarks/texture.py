"""How well exported meshes show a scene: each GLB is rendered by three.js in Chromium at held-out cameras, and compared
with the photos there.

    python benchmarks/texture.py RUN FILE.glb [FILE.glb ...] --three node_modules/three [--views 4] [--downscale 2]

Nothing of hashfield renders the meshes: three's GLTFLoader reads the files as they are, at twice the photo's resolution.
PSNR over the whole view has the run's background where a mesh shows nothing; PSNR over the mesh counts the pixels that all
the meshes cover. The model's own pictures are judged on the same pixels. Needs playwright, Chromium, and npm's `three`.
"""

import argparse
import base64
import io
import mimetypes
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import append
from PIL import Image
from torch.nn.functional import grid_sample

import hashfield
from hashfield.data import ReadOptions, load_scene
from hashfield.data.dataset import stored_reading
from hashfield.export.images import over, write_png
from hashfield.geometry.cameras import Camera, camera_table, rays_from_pixels

SITE = "http://meshes.invalid/"
"""Requests below it are answered from files; nothing goes to the network."""
SAMPLES = 2
"""Points along each side of a pixel that are rendered."""
MARGIN = 1.15
"""How much wider than the photo's the rendered frustum is, since lenses bend."""
PAGE = """<!doctype html><script type="importmap">{"imports": {"three": "/three/build/three.module.js"}}</script>
<script type="module">
import * as THREE from "three";
import {GLTFLoader} from "/three/examples/jsm/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({alpha: true, preserveDrawingBuffer: true});
renderer.setClearColor(0, 0);
let scene;
window.load = async name => {
  scene = new THREE.Scene();
  scene.add((await new GLTFLoader().loadAsync("/file/" + name)).scene);
  let triangles = 0;
  scene.traverse(o => { if (o.isMesh) triangles += o.geometry.index.count / 3; });
  return triangles;
};
window.draw = (pose, [left, right, top, bottom], near, far, width, height) => {
  const camera = new THREE.PerspectiveCamera();
  camera.projectionMatrix.makePerspective(left * near, right * near, top * near, bottom * near, near, far);
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  camera.matrixAutoUpdate = false;
  camera.matrix.set(...pose, 0, 0, 0, 1);
  camera.updateMatrixWorld(true);
  renderer.setSize(width, height, false);
  renderer.render(scene, camera);
  return renderer.domElement.toDataURL("image/png").split(",")[1];
};
window.ready = true;
</script>"""


class Three:
    """three.js in a headless browser, as a renderer of GLB files."""

    def __init__(self, play: Any, three: Path) -> None:
        self.files: dict[str, Path] = {}
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        self.browser = play.chromium.launch(
            executable_path=path, args=["--headless=new", "--no-sandbox", "--ignore-gpu-blocklist"]
        )
        self.page = self.browser.new_page()
        self.page.on("pageerror", lambda error: sys.exit(f"three.js: {error}"))

        def answer(route: Any) -> None:
            kind, _, name = route.request.url.removeprefix(SITE).partition("/")
            if not name:
                route.fulfill(body=PAGE, content_type="text/html")
                return
            file = self.files[name] if kind == "file" else three / name
            route.fulfill(body=file.read_bytes(), content_type=mimetypes.guess_type(name)[0] or "model/gltf-binary")

        self.page.route("**/*", answer)
        self.page.goto(SITE)
        self.page.wait_for_function("window.ready")

    def load(self, file: Path) -> int:
        """Show a file from now on: how many triangles it has."""
        self.files[file.name] = file
        return self.page.evaluate("name => load(name)", file.name)

    def render(self, camera: Camera) -> np.ndarray:
        """[h, w, 4] in 0..1, premultiplied, of what a camera sees through its lens."""
        n, width, height = SAMPLES, camera.width, camera.height
        half = MARGIN * 0.5 * width / camera.fx, MARGIN * 0.5 * height / camera.fy
        middle = (0.5 * width - camera.cx) / camera.fx, (camera.cy - 0.5 * height) / camera.fy
        sides = [middle[0] - half[0], middle[0] + half[0], middle[1] + half[1], middle[1] - half[1]]
        pose = camera.camera_to_world.numpy() * [1, -1, -1, 1]  # glTF's cameras look along -z, y upwards
        size = [round(MARGIN * n * width), round(MARGIN * n * height)]
        text = self.page.evaluate("a => draw(...a)", [pose.flatten().tolist(), sides, 0.01, 1000.0, *size])
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA"), np.float32) / 255
        picture[..., :3] *= picture[..., 3:]
        # where in that picture the photo's pixels lie
        at = torch.stack(torch.meshgrid(torch.arange(n * width), torch.arange(n * height), indexing="xy"), -1)
        pixels = ((at + 0.5) / n).reshape(-1, 2).double()
        _, directions = rays_from_pixels(camera_table([camera]), torch.zeros(len(pixels), dtype=torch.int64), pixels)
        ahead = directions @ camera.camera_to_world[:, :3]
        x, y = ahead[:, 0] / ahead[:, 2], -ahead[:, 1] / ahead[:, 2]
        place = torch.stack([(x - middle[0]) / half[0], -(y - middle[1]) / half[1]], -1).float()
        source = torch.from_numpy(picture).permute(2, 0, 1)[None]
        found = grid_sample(source, place.reshape(1, n * height, n * width, 2), align_corners=False)[0]
        return found.reshape(4, height, n, width, n).mean((2, 4)).permute(1, 2, 0).numpy()


def decibels(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """PSNR over some pixels."""
    return -10 * float(np.log10(np.square(a[where] - b[where], dtype=np.float64).mean()))


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--three", type=Path, required=True, help="folder of the npm package")
    parser.add_argument("--data", type=Path, help="the photos; default: where they lay during training")
    parser.add_argument("--views", type=int, default=4, help="held-out views, spread over all")
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--save", type=Path, help="folder for photo, model and meshes side by side")
    parser.add_argument("--write", action="store_true", help="append to results/texture.csv")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    model = hashfield.load(options.run)
    stored = model.info["scene"]
    read = ReadOptions(
        downscale=options.downscale, aabb_scale=model.spaces.aabb_scale, splits=("test",),
        camera_axes=stored.get("camera_axes", "opengl"), **stored_reading(stored),
    )  # fmt: skip
    views = load_scene(options.data or Path(stored["path"]), read).splits["test"]
    chosen = np.unique(np.linspace(0, len(views) - 1, options.views).round().astype(int)).tolist()
    shown: dict[str, list[np.ndarray]] = {}
    with sync_playwright() as play:
        three = Three(play, options.three.resolve())
        for file in options.files:
            print(f"{file.name}: {three.load(file):,} triangles in three.js")
            shown[file.name] = [three.render(views.cameras[k]) for k in chosen]
        three.browser.close()
    covered = [np.min([pictures[i][..., 3] for pictures in shown.values()], 0) > 0.999 for i in range(len(chosen))]
    background = np.array(model.background, np.float32)
    photos = [over(views.images[k], model.background) for k in chosen]
    pictures = {"the model": [
        np.clip(model.frame(views.cameras[k], ("color",), model.background)["color"], 0, 1) for k in chosen
    ]}  # fmt: skip
    pictures |= {name: [p[..., :3] + (1 - p[..., 3:]) * background for p in some] for name, some in shown.items()}
    rows = []
    for name, some in pictures.items():
        everywhere = [decibels(p, photo, np.ones_like(c)) for p, photo, c in zip(some, photos, covered, strict=True)]
        on_mesh = [decibels(p, photo, c) for p, photo, c in zip(some, photos, covered, strict=True)]
        rows.append({
            "run": stored["name"], "file": name, "views": len(chosen), "size": "{1}x{0}".format(*photos[0].shape),
            "covered": round(float(np.mean([c.mean() for c in covered])), 3),
            "psnr": round(float(np.mean(everywhere)), 2), "psnr_on_mesh": round(float(np.mean(on_mesh)), 2),
        })  # fmt: skip
        print(rows[-1])
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        for i, k in enumerate(chosen):
            row = np.concatenate([photos[i], *(some[i] for some in pictures.values())], 1)
            write_png(options.save / f"{stored['name']}_{k:03d}.png", (255 * row.clip(0, 1)).round().astype(np.uint8))
    if options.write:
        append("texture", rows)


if __name__ == "__main__":
    main()

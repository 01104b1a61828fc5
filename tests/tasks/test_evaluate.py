"""Views judged whole, or in as many bands of rows as time allows."""

import time
from dataclasses import replace

import numpy as np
import pytest

from hashfield.errors import ConfigError, ShapeError
from hashfield.tasks.evaluate import BAND_ROWS, affordable_pixels, evaluate_views, parts_in_time
from hashfield.tasks.frames import Frame, Region

from .scenes import small_scene


def test_bands_lie_in_their_views_apart_and_are_as_many_as_asked_for():
    sizes = [(40, 500), (30, 20), (50, 300), (40, 500)]
    total = sum(width * height for width, height in sizes)
    for share in (0.01, 0.1, 0.3, 0.7):
        parts = parts_in_time(sizes, share * total)
        rows: dict[int, list[int]] = {}
        for part in parts:
            region = part.region
            assert region is not None and (region.left, region.width) == (0, sizes[part.view][0])
            assert region.top >= 0 and region.top + region.height <= sizes[part.view][1]
            rows.setdefault(part.view, []).extend(range(region.top, region.top + region.height))
        assert all(len(set(found)) == len(found) for found in rows.values())
        judged = sum(len(found) * sizes[view][0] for view, found in rows.items())
        assert 0 < judged <= max(share * total, 64 * 50) + 64 * 50
    whole = parts_in_time(sizes, 2 * total)
    assert [(part.view, part.region) for part in whole] == [(k, None) for k in range(4)]


class OffByRows:
    """Shows the photos on white, each pixel brighter by a little more from row to row."""

    background = (1.0, 1.0, 1.0)
    quality = "fast"

    def __init__(self, views) -> None:
        self.shown = dict(zip(map(id, views.cameras), views.images, strict=True))
        self.n_pixels = 0

    def frame(self, camera, outputs=(), background=None, region: Region | None = None) -> Frame:
        """The photo, or a region of it."""
        image = self.shown[id(camera)].astype(np.float32) / 255
        color = 0.5 * (image[..., :3] * image[..., 3:] + 1 - image[..., 3:])
        color = color + np.linspace(0, 0.1, len(image), dtype=np.float32)[:, None, None]
        if region is not None:
            color = color[region.top : region.top + region.height, region.left : region.left + region.width]
        self.n_pixels += color.shape[0] * color.shape[1]
        return {"color": color}


def test_renderings_are_as_bright_as_the_views_gains_say():
    views = small_scene().splits["test"]

    class Half:
        """Shows half of the photos' light, before whatever lies behind."""

        background = (1.0, 1.0, 1.0)

        def frame(self, camera, outputs=(), background=None, region: Region | None = None) -> Frame:
            image = views.images[views.cameras.index(camera)].astype(np.float32) / 255
            scene, opacity = 0.5 * image[..., :3] * image[..., 3:], image[..., 3]
            if background is not None:
                scene = scene + (1 - opacity)[..., None] * np.array(background, np.float32)
            return {"color": scene, "opacity": opacity}

    dim = evaluate_views(Half(), views)  # type: ignore[arg-type]
    bright = evaluate_views(Half(), replace(views, gains=np.full((len(views), 3), 2.0)))  # type: ignore[arg-type]
    assert dim["psnr"] < 30 and bright["psnr"] > 100
    assert dim["exposure"] == "as rendered" != bright["exposure"]
    with pytest.raises(ShapeError, match="gains"):
        replace(views, gains=np.ones((1, 3)))


def tall_views():
    """Two views of 256 rows: those of the small scene, four above each other."""
    views = small_scene().splits["test"]
    images = tuple(np.concatenate([image] * (256 // len(image) + 1))[:256] for image in views.images[:2])
    cameras = tuple(replace(camera, height=256) for camera in views.cameras[:2])
    return replace(views, cameras=cameras, images=images, names=views.names[:2])


def test_what_is_judged_is_said_and_close_to_all(monkeypatch: pytest.MonkeyPatch):
    views = tall_views()
    model = OffByRows(views)
    whole = evaluate_views(model, views)  # type: ignore[arg-type]
    assert whole["pixels"] == "all" and whole["quality"] == "fast"
    width = views.cameras[0].width
    assert model.n_pixels == 2 * 256 * width
    # Half of the pixels: two of the four bands of each view.
    monkeypatch.setattr("hashfield.tasks.evaluate.affordable_pixels", lambda *arguments: 256.0 * width)
    model.n_pixels, seen = 0, []
    some = evaluate_views(
        model, views, max_seconds=1.0, watch=lambda parts, total: seen.append(total) or parts,  # type: ignore[arg-type]
        on_view=lambda *view: pytest.fail("no view is whole"),
    )  # fmt: skip
    assert seen == [4] and model.n_pixels == 4 * BAND_ROWS * width
    assert some["pixels"] == "50 %" and some["n_views"] == 2 and "bands" in some["psnr_of"]
    assert some["psnr"] == pytest.approx(whole["psnr"], abs=0.7) and some["psnr"] != whole["psnr"]
    assert some["ssim"] == pytest.approx(whole["ssim"], abs=0.1)


def test_bands_that_masks_leave_empty_do_not_count(monkeypatch: pytest.MonkeyPatch):
    views = tall_views()
    masks = [np.zeros(image.shape[:2], bool) for image in views.images]
    masks[0][:64] = True
    monkeypatch.setattr("hashfield.tasks.evaluate.affordable_pixels", lambda *a: 256.0 * views.cameras[0].width)
    model = OffByRows(views)
    figures = evaluate_views(model, replace(views, masks=tuple(masks)), max_seconds=1.0)  # type: ignore[arg-type]
    assert figures["n_views"] == 1 and figures["views"][0]["pixels"] == 64 * views.cameras[0].width
    with pytest.raises(ConfigError, match="max_seconds"):
        evaluate_views(model, views, max_seconds=0.0)  # type: ignore[arg-type]


def test_what_the_first_picture_of_a_process_takes_is_not_taken_for_its_pace():
    views = tall_views()

    class SlowAtFirst(OffByRows):
        def frame(self, camera, outputs=(), background=None, region: Region | None = None) -> Frame:
            time.sleep(0.01 if self.n_pixels else 0.3)
            return super().frame(camera, outputs, background, region)

    band = BAND_ROWS * views.cameras[0].width
    n_pixels = affordable_pixels(SlowAtFirst(views), views, (1.0, 1.0, 1.0), 1.0)  # type: ignore[arg-type]
    assert 10 * band < n_pixels <= 100 * band

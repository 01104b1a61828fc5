"""How close a model comes to views it has not seen: PSNR and SSIM of each, and their means.

Where time is short, bands of rows of the views are judged instead of whole views, as many as fit.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from hashfield.data.dataset import PosedImages
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import over
from hashfield.steps.ranks import current
from hashfield.tasks.frames import HasFrames, Region
from hashfield.train.metrics import psnr, ssim

BAND_ROWS: Final = 64
"""Rows of a band: many more than SSIM's window has."""
WHOLE_FROM: Final = 0.8
"""Share of the pixels from which on whole views are judged: bands would save little."""


@dataclass(frozen=True)
class JudgedPart:
    """A view, or a band of its rows."""

    view: int
    """Number of the view."""
    region: Region | None
    """The band; None: all of it."""


Watch = Callable[[Iterable[dict[str, Any]], int], Iterable[dict[str, Any]]]
"""(figures of parts, how many) -> the same, one after another, while someone is shown how many are done."""


def evaluate_views(
    model: HasFrames,
    views: PosedImages,
    background: tuple[float, float, float] | None = None,
    on_view: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    *,
    max_seconds: float | None = None,
    watch: Watch = lambda parts, total: parts,
) -> dict[str, Any]:
    """Figures of all views and their means, as JSON values.

    Several ranks share the views out: the first one gets the figures, the others none.

    Args:
        model: What is judged.
        views: Photos it is compared with: every pixel, or those that their masks hold; with gains, renderings are made
            as bright.
        background: Behind photo and rendering alike; the model's own if None.
        on_view: Called with the number, the rendering and the photo, both float32 [h, w, 3], of each view that is
            judged whole; not for several ranks.
        max_seconds: About how long rendering may take; only so many bands of rows are judged. None: whole views.
        watch: Sees the parts' figures pass.

    Raises:
        DataError: there is no view.
        ConfigError: max_seconds is not positive.
    """
    if not len(views):
        raise DataError("nothing to evaluate: the split holds no view")
    if max_seconds is not None and not max_seconds > 0:
        raise ConfigError(f"max_seconds: expected more than 0, got {max_seconds}")
    behind = model.background if background is None else background
    ranks = current()
    assert ranks.n == 1 or on_view is None, "pictures stay where they were made"
    sizes = [(camera.width, camera.height) for camera in views.cameras]
    parts = [JudgedPart(k, None) for k in range(len(views))]
    if max_seconds is not None:
        n_pixels = ranks.from_first(lambda: affordable_pixels(model, views, behind, max_seconds))
        parts = parts_in_time(sizes, n_pixels * ranks.n)

    def judge(part: int) -> dict[str, Any]:
        k, region = parts[part].view, parts[part].region
        rows = slice(None) if region is None else slice(region.top, region.top + region.height)
        before = time.perf_counter()
        rendering = np.clip(_as_bright(model, views, k, behind, region), 0.0, 1.0)
        seconds = time.perf_counter() - before
        photo = over(views.images[k][rows], behind)
        mask = None if views.masks is None else views.masks[k][rows]
        if region is not None and mask is not None and not mask.any():
            return {"view": k}
        if on_view is not None and region is None:
            on_view(k, rendering, photo)
        rendered = rendering.shape[0] * rendering.shape[1]
        n_pixels = rendered if mask is None else int(mask.sum())
        spent = {"seconds": seconds, "pixels": n_pixels, "rendered_pixels": rendered}
        return {"view": k, "figures": {**_figures(rendering, photo, mask), **spent}}

    found: dict[int, list[dict[str, float]]] = {}
    for judged in watch(
        ranks.deal(len(parts), judge, lambda figures: json.dumps(figures).encode(), json.loads), len(parts)
    ):
        if "figures" in judged:
            found.setdefault(judged["view"], []).append(judged["figures"])
    if not ranks.is_first:
        return {}
    if not found:
        raise DataError("nothing to evaluate: the masks leave no pixel of what was looked at")
    is_whole = all(part.region is None for part in parts)
    return _summary(found, views, is_whole, getattr(model, "quality", "exact"), behind)


def _as_bright(
    model: HasFrames, views: PosedImages, k: int, background: tuple[float, float, float], region: Region | None
) -> Float32[np.ndarray, "h w 3"]:
    """What the model shows in a view, or in a part of it, as bright as `PosedImages.gains` say."""
    if views.gains is None:
        return model.frame(views.cameras[k], ("color",), background, region)["color"]
    # The scene alone, without a background, which no camera's exposure changes.
    found = model.frame(views.cameras[k], ("color", "opacity"), None, region)
    behind = (1.0 - found["opacity"])[..., None] * np.array(background, dtype=np.float32)
    return found["color"] * views.gains[k].astype(np.float32) + behind


def _summary(
    found: dict[int, list[dict[str, float]]],
    views: PosedImages,
    is_whole: bool,
    quality: str,
    background: tuple[float, float, float],
) -> dict[str, Any]:
    """Figures of all views and their means, and in words what they are of, as JSON values.

    Args:
        found: Figures of what was judged of each view, by its number.
        views: The photos.
        is_whole: Whether whole views were judged.
        quality: Quality of the renderings.
        background: Behind photo and rendering.
    """
    figures = [{"name": views.names[k], **_together(bands)} for k, bands in sorted(found.items())]
    share = sum(f["pixels"] for f in figures) / sum(camera.width * camera.height for camera in views.cameras)
    of_mask = "" if views.masks is None else " that the photo's mask holds"
    of_band = "" if is_whole else f" of bands of {BAND_ROWS} rows"
    return {
        "psnr": float(np.mean([f["psnr"] for f in figures])),
        "ssim": float(np.nanmean([f["ssim"] for f in figures])),
        "n_views": len(figures),
        "exposure": "as rendered" if views.gains is None else "as learned of each photo, or of those near it",
        "pixels": "all" if is_whole else f"{100 * share:.2g} %",
        "quality": quality,
        "background": list(background),
        "color": "sRGB; alpha blended in sRGB; renderings clipped to [0, 1], not quantised",
        "psnr_of": f"mean over views of the PSNR over all pixels{of_band}{of_mask} and channels of a view, in dB",
        "ssim_of": f"mean over views; 11x11 Gaussian around each pixel{of_band}{of_mask}, sigma 1.5, RGB, data range 1",
        "views": figures,
    }


def affordable_pixels(
    model: HasFrames, views: PosedImages, background: tuple[float, float, float], seconds: float
) -> float:
    """Pixels that can be rendered in so many seconds, judged by a band in the middle of one view.

    Args:
        model: What renders.
        views: Whose cameras are looked through.
        background: Behind the rendering.
        seconds: How long it may take.
    """
    camera = views.cameras[len(views) // 2]
    rows = min(BAND_ROWS, camera.height)
    top = (camera.height - rows) // 2
    # Two rows first, which are not counted: the first picture of a process loads or compiles its kernels.
    model.frame(camera, ("color",), background, Region(0, top, camera.width, min(2, rows)))
    before = time.perf_counter()
    model.frame(camera, ("color",), background, Region(0, top, camera.width, rows))
    return seconds * camera.width * rows / max(time.perf_counter() - before, 1e-6)


def parts_in_time(sizes: list[tuple[int, int]], n_pixels: float) -> list[JudgedPart]:
    """Whole views, or bands of rows spread over all views and heights, of about so many pixels together.

    Args:
        sizes: Width and height of each view.
        n_pixels: Pixels that may be judged; at least one band is.

    >>> parts_in_time([(100, 256)], 1e9)
    [JudgedPart(view=0, region=None)]
    >>> [part.region for part in parts_in_time([(100, 256)], 12800)]
    [Region(left=0, top=0, width=100, height=64), Region(left=0, top=96, width=100, height=64)]
    """
    total = sum(width * height for width, height in sizes)
    share = n_pixels / total
    if share >= WHOLE_FROM:
        return [JudgedPart(k, None) for k in range(len(sizes))]
    parts, owed = [], 0.0
    for k, (width, height) in enumerate(sizes):
        rows = min(BAND_ROWS, height)
        owed += share * height / rows
        n_bands = min(int(owed + 1e-9), height // rows)
        owed -= n_bands
        # Where bands lie differs from view to view, so that all heights are judged alike.
        phase = 0.618 * k % 1
        tops = [int((i + phase) * (height - rows) / n_bands) for i in range(n_bands)]
        parts += [JudgedPart(k, Region(0, top, width, rows)) for top in tops]
    if not parts:
        width, height = sizes[len(sizes) // 2]
        rows = min(BAND_ROWS, height)
        parts = [JudgedPart(len(sizes) // 2, Region(0, (height - rows) // 2, width, rows))]
    return parts


def _together(bands: list[dict[str, float]]) -> dict[str, float]:
    """The figures of a view from those of its parts: errors and similarities weighted by pixels, seconds added."""
    pixels = np.array([band["pixels"] for band in bands])
    errors = np.array([10 ** (-band["psnr"] / 10) for band in bands])
    error = float((errors * pixels).sum() / pixels.sum())
    similar = np.array([band["ssim"] for band in bands])
    known = ~np.isnan(similar)
    return {
        "psnr": bands[0]["psnr"] if len(bands) == 1 else float("inf") if error == 0 else -10 * float(np.log10(error)),
        "ssim": float(np.average(similar[known], weights=pixels[known])) if known.any() else float("nan"),
        "seconds": sum(band["seconds"] for band in bands),
        "pixels": int(pixels.sum()),
        "rendered_pixels": int(sum(band["rendered_pixels"] for band in bands)),
    }


def _figures(rendering: np.ndarray, photo: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    """PSNR and SSIM of a view, where its mask holds it."""
    if mask is None:
        return {"psnr": psnr(rendering, photo), "ssim": ssim(rendering, photo)}
    if not mask.any():
        raise DataError("nothing to evaluate: a held-out view's mask leaves no pixel")
    return {"psnr": psnr(rendering[mask], photo[mask]), "ssim": ssim(rendering, photo, mask)}

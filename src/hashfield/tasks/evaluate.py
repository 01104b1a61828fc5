"""How close a model comes to views it has not seen: PSNR and SSIM of each, and their means."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hashfield.data.dataset import PosedImages
from hashfield.errors import DataError
from hashfield.export.images import over
from hashfield.steps.ranks import current
from hashfield.tasks.frames import HasFrames
from hashfield.train.metrics import psnr, ssim


def evaluate_views(
    model: HasFrames,
    views: PosedImages,
    background: tuple[float, float, float] | None = None,
    on_view: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """Figures of all views and their means, as JSON values.

    Several ranks share the views out: the first one gets the figures, the others none.

    Args:
        model: What is judged.
        views: Photos it is compared with: every pixel, or those that their masks hold.
        background: Behind photo and rendering alike; the model's own if None.
        on_view: Called with the view's number, the rendering and the photo, both float32 [h, w, 3]; not for several
            ranks.

    Raises:
        DataError: there is no view.
    """
    if not len(views):
        raise DataError("nothing to evaluate: the split holds no view")
    behind = model.background if background is None else background
    ranks = current()
    assert ranks.n == 1 or on_view is None, "pictures stay where they were made"

    def judge(k: int) -> dict[str, Any]:
        before = time.perf_counter()
        rendering = np.clip(model.frame(views.cameras[k], ("color",), behind)["color"], 0.0, 1.0)
        seconds = time.perf_counter() - before
        photo = over(views.images[k], behind)
        if on_view is not None:
            on_view(k, rendering, photo)
        found = _figures(rendering, photo, None if views.masks is None else views.masks[k])
        return {"name": views.names[k], **found, "seconds": seconds}

    figures = list(ranks.deal(len(views), judge, lambda found: json.dumps(found).encode(), json.loads))
    if not ranks.is_first:
        return {}
    of_mask = "" if views.masks is None else " that the photo's mask holds"
    return {
        "psnr": float(np.mean([f["psnr"] for f in figures])),
        "ssim": float(np.nanmean([f["ssim"] for f in figures])),
        "n_views": len(figures),
        "background": list(behind),
        "color": "sRGB; alpha blended in sRGB; renderings clipped to [0, 1], not quantised",
        "psnr_of": f"mean over views of the PSNR over all pixels{of_mask} and channels of a view, in dB",
        "ssim_of": f"mean over views; 11x11 Gaussian around each pixel{of_mask}, sigma 1.5, RGB, data range 1",
        "views": figures,
    }


def _figures(rendering: np.ndarray, photo: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    """PSNR and SSIM of a view, where its mask holds it."""
    if mask is None:
        return {"psnr": psnr(rendering, photo), "ssim": ssim(rendering, photo)}
    if not mask.any():
        raise DataError("nothing to evaluate: a held-out view's mask leaves no pixel")
    return {"psnr": psnr(rendering[mask], photo[mask]), "ssim": ssim(rendering, photo, mask)}

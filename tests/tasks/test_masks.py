"""Pixels that a photo's mask leaves out are never drawn, carve nothing away and are not judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hashfield.data.dataset import PosedImages, Scene
from hashfield.geometry.cameras import Camera
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.train.metrics import psnr, ssim
from tests.tasks.scenes import small_scene, tiny_config


def with_hole(views: PosedImages) -> PosedImages:
    """The same photos, each with a bright rectangle in its middle, which its mask leaves out."""
    images, masks = [], []
    for image in views.images:
        h, w, _ = image.shape
        rows, columns = slice(h // 3, h // 2), slice(w // 3, w // 2)
        image, mask = image.copy(), np.ones((h, w), bool)
        image[rows, columns] = (255, 0, 255, 0)
        mask[rows, columns] = False
        images.append(image)
        masks.append(mask)
    return replace(views, images=tuple(images), masks=masks)


def scene(has_alpha: bool) -> Scene:
    whole = small_scene()
    return replace(whole, splits={name: with_hole(views) for name, views in whole.splits.items()}, has_alpha=has_alpha)


@pytest.mark.parametrize("has_alpha", [False, True])
def test_masked_pixels_are_never_drawn(has_alpha: bool) -> None:
    given = scene(has_alpha)
    task = NerfTask(tiny_config(), given)
    task.begin()
    pool = task.steps.pool
    masks = np.concatenate([mask.reshape(-1) for mask in given.splits["train"].masks or []])
    drawn = np.concatenate(
        [int(pool.starts[k]) + first + np.arange(length) for k, first, length in pool.spans.tolist()]
    )  # fmt: skip
    assert len(drawn) == len(set(drawn.tolist())) and masks[drawn].all()
    assert has_alpha or len(drawn) == masks.sum()  # every other pixel is
    assert float(task.step(0, 0.0).loss) < 10


def test_masks_and_silhouettes_that_share_no_pixel_leave_what_the_masks_hold() -> None:
    """Photos of which the masks hide every silhouette are learned from where the masks allow it, not everywhere."""
    whole = small_scene()
    views = whole.splits["train"]
    masks = [np.zeros(image.shape[:2], bool) for image in views.images]
    images = [image.copy() for image in views.images]
    for image, mask in zip(images, masks, strict=True):
        image[:, 40:, 3] = 0
        mask[:, 60:] = True  # farther from what is left of the silhouette than its margin
    views = replace(views, images=tuple(images), masks=masks)
    task = NerfTask(tiny_config(), replace(whole, splits={**whole.splits, "train": views}))
    task.begin()
    assert task.steps.pool.n_pool == sum(int(mask.sum()) for mask in masks)


def test_masked_pixels_carve_nothing_away() -> None:
    """Where the mask hides a part of the silhouette, transparent pixels there do not empty the cells behind them."""
    given, whole = scene(True), small_scene()
    hidden, seen = NerfTask(tiny_config(), given), NerfTask(tiny_config(), whole)
    bare = NerfTask(tiny_config(), replace(given, splits={
        name: replace(views, masks=None) for name, views in given.splits.items()
    }))  # fmt: skip
    for task in (hidden, seen, bare):
        task.begin()
    living = [len(task.steps.grid.living) for task in (hidden, seen, bare) if task.steps.grid is not None]
    assert living[0] >= living[1] > living[2]  # without the masks the rectangle would have been taken for empty space


class Rendering:
    """A model that shows the photos as they were before."""

    outputs = ("color",)
    background = (1.0, 1.0, 1.0)

    def __init__(self, views: PosedImages) -> None:
        self.shown = {id(camera): image for camera, image in zip(views.cameras, views.images, strict=True)}

    def frame(
        self, camera: Camera, outputs: object = None, background: object = None, region: object = None
    ) -> dict[str, np.ndarray]:
        """The photo on white."""
        image = self.shown[id(camera)].astype(np.float32) / 255
        return {"color": image[..., :3] * image[..., 3:] + 1 - image[..., 3:]}


def test_masked_pixels_are_not_judged() -> None:
    whole = small_scene().splits["test"]
    masked, model = with_hole(whole), Rendering(small_scene().splits["test"])
    opaque = replace(
        masked, images=tuple(np.maximum(image, [0, 0, 0, 255]).astype(np.uint8) for image in masked.images)
    )
    figures = evaluate_views(model, replace(opaque, masks=None), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    assert figures["psnr"] < 25
    figures = evaluate_views(model, masked, (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    assert figures["psnr"] > 100 and "mask" in figures["psnr_of"]


def test_ssim_where_a_mask_holds(generator: torch.Generator) -> None:
    a, b = torch.rand(60, 40, 3, generator=generator), torch.rand(60, 40, 3, generator=generator)
    b[:, 20:] = a[:, 20:]
    whole = np.ones((60, 40), bool)
    assert ssim(a, b, whole) == pytest.approx(ssim(a, b), rel=1e-9)
    right, none = whole.copy(), np.zeros((60, 40), bool)
    right[:, :26] = False  # windows reach five pixels beyond
    assert ssim(a, b, right) == pytest.approx(1.0, abs=1e-6) and ssim(a, b) < 0.9
    assert np.isnan(ssim(a, b, none)) and psnr(a, a) == np.inf

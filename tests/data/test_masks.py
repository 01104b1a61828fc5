"""Which pixels masks keep, in the ways of nerfstudio and of instant-ngp."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hashfield.data import PosedImages, ReadOptions, load_scene
from hashfield.data.images import decode_mask, downscale_mask
from hashfield.errors import ShapeError
from tests.data.broken_cases import names
from tests.data.small_scenes import HEIGHT, WIDTH, picture, save, write_scene

LEFT = np.zeros((HEIGHT, WIDTH), np.bool_)
LEFT[:, : WIDTH // 2] = True


def write_mask(path: Path, mask: np.ndarray, mode: str = "L", value: int = 255) -> None:
    """A picture with this value where the mask is set, black elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(value)).convert(mode).save(path)


def masks_of(folder: Path, **options: Any) -> dict[str, np.ndarray] | None:
    """The masks by the photos' names."""
    scene = load_scene(folder, ReadOptions(**options))
    views = scene.splits.values()
    if all(split.masks is None for split in views):
        return None
    assert all(split.masks is not None for split in views), "all splits or none"
    return {name: mask for split in views for name, mask in zip(split.names, split.masks or [], strict=True)}


def test_without_masks_there_are_none(tmp_path: Path) -> None:
    assert masks_of(write_scene(tmp_path)) is None


def test_mask_path_leaves_out_black_pixels(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["frames"][3]["mask_path"] = "masks\\\\A.PNG"

    folder = write_scene(tmp_path, change=change)
    write_mask(folder / "masks/a.png", LEFT, value=1)
    masks = masks_of(folder)
    assert masks is not None
    assert np.array_equal(masks.pop(names(3)[0]), LEFT)
    assert len(masks) == 8 and all(mask.all() and mask.dtype == np.bool_ for mask in masks.values())
    notes = load_scene(folder).notes
    assert "masks leave out 7.1 % of the training pixels, in 1 of 7 views" in notes


def test_mask_path_at_the_top_level_is_for_all_frames(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, mask_path="hood.png")
    write_mask(folder / "hood.png", LEFT)
    masks = masks_of(folder)
    assert masks is not None and all(np.array_equal(mask, LEFT) for mask in masks.values())


def test_dynamic_masks_leave_out_what_is_not_black(tmp_path: Path) -> None:
    folder = write_scene(tmp_path)
    write_mask(folder / "images/dynamic_mask_0003.png", LEFT, "RGB")
    masks = masks_of(folder)
    assert masks is not None
    assert np.array_equal(masks[names(3)[0]], ~LEFT)
    assert masks[names(4)[0]].all()


def test_both_kinds_count(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, mask_path="m.png")
    top = np.zeros((HEIGHT, WIDTH), np.bool_)
    top[:3] = True
    write_mask(folder / "m.png", LEFT)
    write_mask(folder / "images/dynamic_mask_0003.png", top)
    masks = masks_of(folder)
    assert masks is not None and np.array_equal(masks[names(3)[0]], LEFT & ~top)


def test_masks_are_downscaled_with_the_photos(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, mask_path="m.png")
    mask = np.ones((HEIGHT, WIDTH), np.bool_)
    mask[3, 7] = False
    write_mask(folder / "m.png", mask)
    masks = masks_of(folder, downscale=2)
    assert masks is not None
    expected = np.ones((HEIGHT // 2, WIDTH // 2), np.bool_)
    expected[1, 3] = False
    assert np.array_equal(masks[names(0)[0]], expected)
    assert downscale_mask(mask, 5).tolist() == [[True, False]], "what is left over is dropped"


def test_masks_that_leave_little_are_doubted(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, mask_path="m.png")
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[0, :4] = True
    write_mask(folder / "m.png", mask)
    notes = load_scene(folder).notes
    assert any(note.startswith("warning: masks leave out 96 % of the training pixels, in 7 of 7") for note in notes)
    assert load_scene(folder, ReadOptions(splits=("test",))).splits["test"].masks is not None


def test_pixels_that_are_not_opaque_are_left_out_of_ordinary_photos(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, alpha=False)
    pixels = picture(4, alpha=False)
    pixels[2, 3, 3] = 254
    save(folder / names(4)[0], pixels)
    masks = masks_of(folder)
    assert masks is not None
    assert np.argwhere(~masks[names(4)[0]]).tolist() == [[2, 3]]
    assert masks_of(write_scene(tmp_path / "cut_out")) is None, "there alpha says what is empty"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "F"])
def test_modes_of_mask_pictures(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("m.tiff" if mode in ("I", "F") else "m.png")
    write_mask(path, LEFT, mode)
    assert np.array_equal(decode_mask(path), LEFT)


def test_one_channel_is_enough(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0, 2], pixels[1, 1, 3] = 1, 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert np.argwhere(decode_mask(tmp_path / "m.png")).tolist() == [[0, 0]], "transparency is no colour"


def test_a_jpeg_is_never_quite_black(tmp_path: Path) -> None:
    large = LEFT.repeat(8, 0).repeat(8, 1)
    Image.fromarray(large.astype(np.uint8) * np.uint8(255)).save(tmp_path / "m.jpg", quality=60)
    assert (decode_mask(tmp_path / "m.jpg") != large).mean() < 0.02


def test_posed_images_check_their_masks(tmp_path: Path) -> None:
    views = load_scene(write_scene(tmp_path)).splits["test"]
    for masks, message in (
        ([LEFT], "2 cameras, 1 masks"),
        ([LEFT, LEFT.T], r"mask of images/0008\.png: expected bool \(8, 12\), got bool \(12, 8\)"),
        ([LEFT, LEFT.astype(np.uint8)], "expected bool .* got uint8"),
    ):
        with pytest.raises(ShapeError, match=message):
            PosedImages(views.cameras, views.images, views.names, masks)

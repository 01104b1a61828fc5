"""Which pixels masks keep, in the ways of nerfstudio and of instant-ngp."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hashfield.data import PosedImages, ReadOptions, load_scene
from hashfield.data.dataset import stored_reading
from hashfield.data.images import decode_mask, downscale_mask
from hashfield.errors import DataError, ShapeError
from tests.data.broken_cases import names
from tests.data.colmap_files import ring, write_binary, write_photos
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


# --- folders of masks, alpha


@pytest.mark.parametrize("name", ["{:04d}.png", "{:04d}.jpg.png", "images/{:04d}.png", "images/{:04d}.png.png"])
def test_a_folder_of_masks_by_the_names_of_photos(tmp_path: Path, name: str) -> None:
    folder = write_scene(tmp_path / "data", name="images/{:04d}.png", alpha=False)
    for index in range(9):
        stated = name.format(index).replace("jpg.png", "png.png")
        write_mask(tmp_path / "elsewhere" / stated, LEFT)
    masks = masks_of(folder, masks=tmp_path / "elsewhere")
    assert masks is not None and all(np.array_equal(mask, LEFT) for mask in masks.values())
    masks = masks_of(folder, masks=tmp_path / "elsewhere", masks_keep="black")
    assert masks is not None and all(np.array_equal(mask, ~LEFT) for mask in masks.values())
    notes = load_scene(folder, ReadOptions(masks=tmp_path / "elsewhere", masks_keep="black")).notes
    assert any("what is black is learned from" in note for note in notes)


def test_photos_without_a_mask_are_named_and_folders_without_any_refused(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "data", alpha=False)
    write_mask(tmp_path / "masks/0003.png", LEFT)
    options = ReadOptions(masks=tmp_path / "masks")
    scene = load_scene(folder, options)
    assert any("warning: no mask" in note and "3 more" in note for note in scene.notes), scene.notes
    assert scene.reading == {"alpha": "auto", "masks": str(tmp_path / "masks"), "masks_keep": "white"}
    assert ReadOptions(**stored_reading({"reading": scene.reading})) == options
    (tmp_path / "masks/0003.png").rename(tmp_path / "masks/other.png")
    for wrong, reason in ((tmp_path / "masks", "no mask has the name of a photo"), (tmp_path / "no", "no such folder")):
        with pytest.raises(DataError, match=reason):
            load_scene(folder, ReadOptions(masks=wrong))


def test_photos_of_the_same_name_take_masks_of_their_own_folder(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "data", 8, name="{}.png", alpha=False)
    values = json.loads((folder / "transforms.json").read_text())
    for index, frame in enumerate(values["frames"]):
        name = f"cam{index % 2}/{index // 2}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / frame["file_path"]).rename(folder / name)
        frame["file_path"] = name
        write_mask(tmp_path / "masks" / name, LEFT if index % 2 else ~LEFT)
    (folder / "transforms.json").write_text(json.dumps(values))
    masks = masks_of(folder, masks=tmp_path / "masks")
    assert masks is not None and len(masks) == 8
    for name, mask in masks.items():
        assert np.array_equal(mask, LEFT if name.startswith("cam1") else ~LEFT)


@pytest.mark.parametrize("photos", ["images", "images_2"])
def test_masks_beside_a_colmap_model(tmp_path: Path, photos: str) -> None:
    model = ring()
    write_binary(tmp_path / "sparse/0", model)
    factor = 2 if photos == "images_2" else 1
    write_photos(tmp_path / photos, model, WIDTH // factor, HEIGHT // factor)
    for index in range(0, 9, 2):  # COLMAP's own way to call them; masks of the whole photos
        write_mask(tmp_path / f"masks/{index:04d}.png.png", LEFT)
    masks = masks_of(tmp_path)
    assert masks is not None
    half = LEFT[::factor, ::factor]
    for index, (_, mask) in enumerate(sorted(masks.items())):
        assert np.array_equal(mask, half if index % 2 == 0 else np.ones_like(half))
    assert any("masks of 5 of 9 photos from masks" in note for note in load_scene(tmp_path).notes)


def test_alpha_as_matte_and_as_mask(tmp_path: Path) -> None:
    """A tenth of the pixels is clear: by itself too little for a silhouette, until the user says what it is."""

    def clear(index: int, n_rows: int) -> np.ndarray:
        pixels = picture(index, alpha=False)
        pixels[:n_rows, :, 3] = 0
        return pixels

    for n_rows, by_itself in ((1, False), (4, True)):
        folder = write_scene(tmp_path / str(n_rows))
        for index in range(9):
            save(folder / f"images/{index:04d}.png", clear(index, n_rows))
        kept = np.ones((HEIGHT, WIDTH), bool)
        kept[:n_rows] = False
        for alpha, has_alpha in (("auto", by_itself), ("matte", True), ("mask", False)):
            scene = load_scene(folder, ReadOptions(alpha=alpha))  # type: ignore[arg-type]
            masks = scene.splits["train"].masks
            assert scene.has_alpha == has_alpha
            assert masks is None if has_alpha else masks is not None and all(np.array_equal(m, kept) for m in masks)
            assert alpha == "auto" or any(f"--alpha {alpha}" in note for note in scene.notes)
    opaque = load_scene(write_scene(tmp_path / "opaque", alpha=False), ReadOptions(alpha="matte"))
    assert not opaque.has_alpha and any("--alpha matte has no effect" in note for note in opaque.notes)

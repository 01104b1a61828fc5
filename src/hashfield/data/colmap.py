"""Reader of COLMAP models with a folder of photos.

Poses are world-to-camera with OpenCV camera axes; pixel quantities refer to the size that the camera states and are
rescaled to the photo's. Views are in plain string order of their names, by which LLFF and mip-NeRF 360 hold out every
eighth. `colmap_files` reads the model's files, `colmap_folders` finds them and the photos, `colmap_lenses` has the
lenses.
"""

from pathlib import Path
from typing import Final

from hashfield.data.assemble import assemble
from hashfield.data.colmap_files import ModelImage, read_cameras, read_images, read_points
from hashfield.data.colmap_folders import Capture, largest_model, locate, photos_of
from hashfield.data.colmap_lenses import ModelLens
from hashfield.data.dataset import Reader, ReadOptions, Scene
from hashfield.data.files import MaskFolder, escapes, normalized
from hashfield.data.images import ImageHeader
from hashfield.data.json_fields import one_line
from hashfield.data.stated import StatedMask, StatedScene, StatedSpaces, StatedView, Tally, check_size
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera


def _mask_folders(photos: list[Path | None]) -> list[str]:
    """Names of folders of masks for these photos, the likeliest first: of images_4, masks_4 and masks."""
    used = {part for photo in photos if photo is not None for part in photo.parts if part.startswith("images_")}
    return [*(f"masks_{name.partition('_')[2]}" for name in sorted(used)), "masks"]


def _views(
    images: list[ModelImage], files: list[Path | None], lenses: dict[int, ModelLens], cameras_file: Path, root: Path
) -> list[StatedView]:
    # COLMAP's own convention, and nerfstudio's: masks of images_4 in masks_4, black is left out
    places = [base / name for name in _mask_folders(files) for base in (root, root / "colmap")]
    folder = next((MaskFolder(place) for place in places if place.is_dir()), None)

    def view_of(image: ModelImage, file: Path | None) -> StatedView:
        if image.camera_id not in lenses:
            raise DataError(f"{image.place}: 'camera_id': {image.camera_id} is not in {cameras_file.name}")
        lens = lenses[image.camera_id]

        def make_camera(header: ImageHeader, tally: Tally) -> Camera:
            check_size(view, (lens.width, lens.height), header, tally, "width, height")
            return lens.camera(image.pose(), header)

        mask = None if folder is None else folder.find([normalized(image.name)])
        masks = () if mask is None else (StatedMask(mask, "mask of name", keeps_black=False),)
        view = StatedView(image.name, image.place, file, make_camera, masks=masks, image_field="name")
        return view

    return [view_of(image, file) for image, file in zip(images, files, strict=True)]


def state(path: Path, options: ReadOptions) -> StatedScene:
    """What a COLMAP model and its folder say; pixels are not read.

    Raises:
        DataError: one line that names file, record and field.
    """
    capture = locate(path)
    assert capture is not None
    try:
        return _state(path, capture, options)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


def _state(path: Path, capture: Capture, options: ReadOptions) -> StatedScene:
    model, notes = largest_model(capture)
    lenses = read_cameras(model.cameras)
    images = sorted(read_images(model.images), key=lambda image: image.name)
    if not images:
        raise DataError(f"{model.images}: no photo has a pose: COLMAP found none")
    for image, following in zip(images, [*images[1:], None], strict=True):
        if not image.name or escapes(image.name):
            raise DataError(f"{image.place}: 'name': expected the name of a photo in the folder of photos")
        if following is not None and following.name == image.name:
            raise DataError(f"{following.place}: 'name': {one_line(image.name)} is there twice")
    points = None if model.points is None else read_points(model.points).positions
    files, photo_notes = photos_of(capture, images, model.images)
    views = _views(images, files, lenses, model.cameras, capture.root)
    masked = [view for view in views if view.masks]
    if masked:
        folder = masked[0].masks[0].path.relative_to(capture.root).parts[0]
        notes.append(f"masks of {len(masked)} of {len(views)} photos from {folder}: what is black is left out")
    used = [lens for number, lens in lenses.items() if any(image.camera_id == number for image in images)]
    return StatedScene(
        name=capture.root.name or "scene",
        path=path,
        data_file=model.images,
        folder=capture.root,
        form="COLMAP",
        views=tuple(views),
        spaces=StatedSpaces(None, None, None, {}),
        order="string order",
        view_noun="photos",
        points=points if points is not None and len(points) else None,
        points_origin=f"{len(points)} points of {model.points.name}" if points is not None and model.points else "",
        has_surface_points=True,
        sparse_model=model.folder,
        has_fixed_axes=True,
        notes=(*photo_notes, *notes, *_lens_notes(used)),
    )


def _lens_notes(lenses: list[ModelLens]) -> list[str]:
    """Lenses that are read as others, and how well these fit."""
    fitted: dict[tuple[str, str], float] = {}
    for lens in lenses:
        if lens.model.lens != "equirectangular" and lens.ours.error > 0:
            key = lens.model.name, lens.ours.lens
            fitted[key] = max(fitted.get(key, 0.0), lens.ours.error)
    return [
        f"lenses of COLMAP's model {name} are read as {lens} with other parameters, which differ by at most "
        f"{error:.2g} pixels"
        for (name, lens), error in fitted.items()
    ]


def read(path: Path, options: ReadOptions) -> Scene:
    """The scene of a COLMAP model: a folder that holds one and its photos, the model's own folder, one of its files, or
    the folder of photos that is to be taken, e.g. images_4.

    Raises:
        DataError: one line that names file, record and field.
    """
    return assemble(state(path, options), options)


READER: Final = Reader(
    name="COLMAP",
    looks_for="cameras.bin or cameras.txt in sparse/0",
    matches=lambda path: locate(path) is not None,
    read=read,
    state=state,
)

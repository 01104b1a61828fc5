"""Where a COLMAP model and its photos lie: data sets of many programs have them in folders of other names."""

from pathlib import Path
from typing import Final, NamedTuple

from hashfield.data.colmap_files import ModelFiles, ModelImage, count_images, model_in
from hashfield.data.files import PhotoFolder, is_photo_folder, normalized, photo_folders
from hashfield.data.json_fields import one_line, some
from hashfield.errors import DataError

_PLACES: Final = ("sparse", "colmap/sparse", ".", "colmap")


class Capture(NamedTuple):
    """What lies where, for what the user named."""

    root: Path
    """The folder that holds models and photos; names of photos are relative to it."""
    models: list[ModelFiles]
    photos: Path | None
    """The folder of photos that the user named, None where that is left open."""


def locate(path: Path) -> Capture | None:
    """The capture that a user means by a folder of models and photos, a model's own folder, one of its files, or the
    folder of photos to take; None where there is no COLMAP model."""
    if path.is_file():
        is_part = path.stem in ("cameras", "images", "points3D") and path.suffix in (".bin", ".txt")
        return locate(path.parent) if is_part and model_in(path.parent) else None
    own = model_in(path)
    if own is not None:
        # a model's own folder: its photos lie beside it or above it
        above = [path, *path.parents][:4]
        root = next(
            (
                folder
                for folder in above
                if any((folder / name).is_dir() for name in ("images", "images_2", "images_4", "images_8"))
            ),
            path,
        )
        return Capture(root, [own], None)
    for root in (path, path.parent) if is_photo_folder(path) else (path,):
        for place in _PLACES:
            below = sorted(entry for entry in (root / place).glob("*") if entry.is_dir()) if place != "." else []
            models = [model for folder in (root / place, *below) if (model := model_in(folder))]
            if models:
                return Capture(root, models, None if root == path else path)
    return None


def largest_model(capture: Capture) -> tuple[ModelFiles, list[str]]:
    """The model with the most photos, and a note where there are several: COLMAP's first one may be a fragment."""
    if len(capture.models) == 1:
        return capture.models[0], []
    sizes = {model: count_images(model.images) for model in capture.models}
    largest = max(capture.models, key=lambda model: sizes[model])
    names = {model: model.folder.relative_to(capture.root).as_posix() for model in capture.models}
    listed = ", ".join(f"{names[model]} ({size})" for model, size in sizes.items())
    return largest, [f"{len(sizes)} COLMAP models, by photos: {listed}; {names[largest]} is read"]


def photos_of(capture: Capture, images: list[ModelImage], images_file: Path) -> tuple[list[Path | None], list[str]]:
    """The file of each image, and notes: from the folder that has the most of them, the largest photos first.

    Args:
        capture: Where photos may lie.
        images: The model's images; at least one.
        images_file: The file that states them, for errors.

    Raises:
        DataError: none of the photos exists.
    """
    folders = [PhotoFolder(capture.photos)] if capture.photos else photo_folders(capture.root)
    if capture.photos is None and (capture.root / "colmap").is_dir():
        folders += photo_folders(capture.root / "colmap")
    found = {folder: [folder.find(normalized(image.name)) for image in images] for folder in folders}
    best = max(folders, key=lambda folder: sum(path is not None for path in found[folder]))
    files, notes = found[best], []
    if not any(files):
        files, best, notes = _by_order(folders, capture, images)
    if not any(files):
        places = [folder.root.relative_to(capture.root).as_posix() for folder in folders]
        where = " or ".join(place for place in places if place.rsplit("/", 1)[-1].startswith("images")) or "images"
        name = images[0].name
        raise DataError(
            one_line(
                f"{images_file}: none of the {len(images)} photos exists in {where} of {capture.root}; the first is "
                f"{name}"
            )
        )
    used = {path for path in files if path is not None}
    lost = [name for name in best.names if best.root / name not in used]
    if best.root != capture.root and lost:
        notes.append(
            f"warning: {len(lost)} of {len(best.names)} photos in {best.root.name} have no pose in the COLMAP model "
            f"and are left out: {some(lost)}"
        )
    return files, [f"photos: {best.root.relative_to(capture.root).as_posix()}", *notes]


def _by_order(
    folders: list[PhotoFolder], capture: Capture, images: list[ModelImage]
) -> tuple[list[Path | None], PhotoFolder, list[str]]:
    """Photos with other names than the model's, as in LLFF's folders, where as many lie there as the model has."""
    for folder in folders:
        if len(folder.names) == len(images):
            note = f"warning: the photos in {folder.root.name} have other names than in the COLMAP model and are taken "
            return [folder.root / name for name in folder.names], folder, [f"{note}in string order"]
    return [None] * len(images), folders[0], []

"""`hashfield export --cameras`: the cameras of a run or of a data set for other programs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from hashfield.cli.shared import say
from hashfield.data.assemble import CameraSet, assemble_cameras, mask_files, surface_points
from hashfield.data.dataset import ReadOptions, find_reader
from hashfield.data.images import read_header
from hashfield.data.write_cameras import common_folder, write_colmap, write_transforms
from hashfield.errors import CheckpointError, ConfigError, DataError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import Spaces
from hashfield.tasks.shared import stored, stored_cameras
from hashfield.train.checkpoint import read_metadata
from hashfield.train.run_folder import CHECKPOINT_NAME, RunFolder

CameraForm = Literal["transforms", "colmap", "colmap-text"]


def export_cameras(source: Path, out: Path, form: CameraForm, read: ReadOptions, *, overwrite: bool) -> None:
    """Write the cameras of a run or data set for other programs.

    Args:
        source: Run folder, checkpoint file, or data set.
        out: Folder to write transforms.json or sparse/0 into, or a name that ends in .json.
        form: What to write.
        read: How a data set is read.
        overwrite: Whether files that are there may be replaced.
    """
    found = cameras_of(source, read)
    if form == "transforms":
        target = out if out.suffix.lower() == ".json" else out / "transforms.json"
        check_free([target], overwrite)
        as_transforms(found, target)
        if found.masks:
            say(f"masks of {len(found.masks)} photos are named as mask_path: black pixels are not learned from")
        say(f"{target}: {len(found.cameras)} cameras")
        return
    text = form == "colmap-text"
    model = out / "sparse" / "0"
    check_free([model / f"{name}{'.txt' if text else '.bin'}" for name in ("cameras", "images")], overwrite)
    shared = common_folder(list(found.cameras))
    names = [name[len(shared) :].lstrip("/") for name in found.cameras]
    write_colmap(model, list(found.cameras.values()), names, points=found.points, text=text)
    say(f"{model}: COLMAP model of {len(names)} cameras")
    photos, link = (found.folder / shared).resolve(), out / "images"
    with suppress(OSError):  # not every file system has links; then the user has to say where the photos are
        if not link.exists() and photos not in (out.resolve(), link.resolve()):
            link.symlink_to(photos, target_is_directory=True)
    say(f"its photos: {photos}" + (f", which {link} leads to" if link.is_symlink() else ""))


def check_free(targets: Sequence[Path], overwrite: bool) -> None:
    """Raise where one of the files is there and may not be replaced."""
    there = next((target for target in targets if target.exists()), None)
    if there is not None and not overwrite:
        raise ConfigError(f"{there}: is there already; choose another --cameras, or --overwrite")


def as_transforms(found: CameraSet, target: Path) -> None:
    """Write cameras with their splits, box and masks as a transforms.json whose photos stay where they are."""
    folder = target.parent.resolve()

    def relative(path: Path) -> str:
        try:
            return Path(os.path.relpath(path, folder)).as_posix()
        except ValueError:  # another drive
            return path.as_posix()

    file_of = {name: relative((found.folder / name).resolve()) for name in found.cameras}
    write_transforms(
        target,
        list(found.cameras.values()),
        list(file_of.values()),
        spaces=found.spaces,
        splits={split: [file_of[name] for name in names] for split, names in found.splits.items()},
        masks={file_of[name]: relative(mask.resolve()) for name, mask in found.masks.items()},
    )


def cameras_of(path: Path, options: ReadOptions) -> CameraSet:
    """The cameras of a run, which may have refined them, or of a data set.

    Raises:
        CheckpointError: a run that does not know its photos' names.
        DataError: neither a run nor a data set, or what is wrong with the data.
    """
    if path.suffix != ".safetensors" and not (path / CHECKPOINT_NAME).is_file():
        reader, resolved = find_reader(path)
        if reader.state is None:
            raise DataError(f"{path}: cameras of the form {reader.name} cannot be exported")
        return assemble_cameras(reader.state(resolved, options), options)
    run = RunFolder.open(path)
    metadata = read_metadata(run.checkpoint)
    scene = stored(metadata, "scene", dict, run.checkpoint)
    photos, folder = scene.get("photos"), scene.get("folder")
    if not isinstance(photos, Mapping) or not isinstance(folder, str):
        raise CheckpointError(
            f"{run.checkpoint}: does not tell which photos its cameras belong to (a demo, or written by an earlier "
            "version): export the cameras of the data set instead"
        )
    cameras: dict[str, Camera] = {}
    splits: dict[str, tuple[str, ...]] = {}
    for split, views in stored_cameras(metadata, run.checkpoint).items():
        names = photos.get(split)
        if not isinstance(names, list) or len(names) != len(views) or not all(isinstance(n, str) for n in names):
            raise CheckpointError(f"{run.checkpoint}: metadata: scene.photos.{split}: expected {len(views)} names")
        splits[split] = tuple(names)
        cameras |= {name: at_full_size(camera, Path(folder) / name) for name, camera in zip(names, views, strict=True)}
    spaces = Spaces.from_dict(stored(metadata, "spaces", dict, run.checkpoint))
    masks, points = masks_and_points(Path(str(scene.get("path"))), options)
    return CameraSet(Path(folder), cameras, splits, spaces, masks, points)


def masks_and_points(data: Path, options: ReadOptions) -> tuple[dict[str, Path], np.ndarray | None]:
    """What a run does not keep of its data, mask files by photo and points; it is said where the data are gone."""
    try:
        reader, resolved = find_reader(data)
        stated = None if reader.state is None else reader.state(resolved, options)
    except DataError as error:
        say(f"warning: the run's data cannot be read again, so that masks and points are not exported: {error}")
        return {}, None
    return ({}, None) if stated is None else (mask_files(stated), surface_points(stated))


def at_full_size(camera: Camera, photo: Path) -> Camera:
    """The camera for the whole photo, of which the run may have seen a downscaled one; itself where the photo is gone.

    Downscaling divides by a whole number and drops what is left over at the edges, so that sizes alone do not say it.
    """
    try:
        header = read_header(photo)
    except DataError:
        return camera
    factor = header.width // camera.width
    if factor < 1 or (header.width // factor, header.height // factor) != (camera.width, camera.height):
        return camera
    return replace(
        camera,
        width=header.width,
        height=header.height,
        fx=camera.fx * factor,
        fy=camera.fy * factor,
        cx=camera.cx * factor,
        cy=camera.cy * factor,
    )

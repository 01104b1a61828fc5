"""Reader of LLFF captures: poses_bounds.npy with a folder of photos.

A row of the array is a 3x5 matrix, row by row, and two depths. The matrix's columns are the camera's down, right and
backward axes, its position, and height, width and focal length of the full-size photos: one focal length, no lens
distortion, the principal point in the middle. The depths are those between which the photo's points lie along the view
axis. Rows follow the photos' names in plain string order (10.jpg before 2.jpg), and every eighth is held out in that
order, as bmild/nerf and LLFF do.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64

from hashfield.data.assemble import assemble
from hashfield.data.dataset import Reader, ReadOptions, Scene
from hashfield.data.files import PhotoFolder, is_photo_folder, photo_folders
from hashfield.data.images import ImageHeader
from hashfield.data.stated import (
    StatedScene,
    StatedSpaces,
    StatedView,
    Tally,
    check_magnitude,
    check_size,
    rigid_pose,
)
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera

FILE: Final = "poses_bounds.npy"

_Rows = Float64[np.ndarray, "n_views 17"]


def _data_file(path: Path) -> Path | None:
    """The file of poses for what the user named: it, its folder, or a folder of photos beside it."""
    if path.is_file():
        return path if path.name == FILE else None
    folders = (path, path.parent) if is_photo_folder(path) else (path,)
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def _rows(data_file: Path) -> _Rows:
    try:
        # mapped, so that a header that states more than there is does not reserve memory for it
        stored = np.load(data_file, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # numpy reads headers by Python's own parser, which raises nearly every type there is
        raise DataError(f"{data_file}: not a NumPy array that can be read: {' '.join(str(error).split())}") from error
    if (
        not isinstance(stored, np.ndarray)
        or stored.ndim != 2
        or stored.shape[1] != 17
        or stored.dtype.kind not in "fiu"
    ):
        got = f"{stored.dtype} {stored.shape}" if isinstance(stored, np.ndarray) else "an archive"
        raise DataError(f"{data_file}: expected 17 numbers for each photo, got {got}")
    if not len(stored):
        raise DataError(f"{data_file}: no rows, so no photo has a pose")
    return np.array(stored, np.float64)


def _check_row(row: Float64[np.ndarray, " 17"], place: str) -> None:
    matrix = row[:15].reshape(3, 5)
    for name, values in (("pose", matrix[:, :4]), ("height, width, focal", matrix[:, 4]), ("near, far", row[15:])):
        check_magnitude(values, f"{place}: '{name}'")
    if not bool((matrix[:, 4] > 0).all()):
        raise DataError(f"{place}: 'height, width, focal': expected numbers above 0, got {matrix[:, 4].tolist()}")
    if not 0 < row[15] <= row[16]:
        raise DataError(f"{place}: 'near, far': expected 0 < near <= far, got {row[15]:g} and {row[16]:g}")


def _photos(path: Path, root: Path, n_rows: int) -> PhotoFolder:
    """The first folder of photos that holds as many as there are rows, the largest photos first."""
    folders = [PhotoFolder(path)] if path != root and path.is_dir() else photo_folders(root)
    for folder in folders:
        if len(folder.names) == n_rows:
            return folder
    counts = ", ".join(f"{len(folder.names)} in {folder.root.name}" for folder in folders if folder.root != root)
    raise DataError(
        f"{root / FILE}: {n_rows} rows, but there are other numbers of photos ({counts or 'no folder images'}); rows "
        "belong to the photos in string order of their names, so there must be as many: remove photos without a pose"
    )


def _view(row: Float64[np.ndarray, " 17"], photo: Path, name: str, place: str) -> StatedView:
    matrix = row[:15].reshape(3, 5)
    height, width, focal = matrix[:, 4].tolist()
    down, right, backward, position = matrix[:, :4].T

    def make_camera(header: ImageHeader, tally: Tally) -> Camera:
        pose, is_scaled = rigid_pose(
            torch.from_numpy(np.column_stack([right, down, -backward, position])),
            "a right-handed matrix with the camera's down, right and backward axes",
            lambda message: view.fail(message, "pose"),
        )
        if is_scaled:
            tally.scaled.append(name)
        check_size(view, (width, height), header, tally, "height, width")
        return Camera(
            pose,
            header.width,
            header.height,
            fx=focal * header.width / width,
            fy=focal * header.height / height,
            cx=0.5 * header.width,
            cy=0.5 * header.height,
        )

    view = StatedView(name, place, photo, make_camera, image_field="photo")
    return view


def _points(rows: _Rows) -> Float64[np.ndarray, "n_points 3"]:
    """Where the photos' content may begin and end: the middle, corners and edges of every view at its near and far
    depth."""
    matrix = rows[:, :15].reshape(-1, 3, 5)
    down, right, backward, position = (matrix[:, :, column] for column in range(4))
    height, width, focal = matrix[:, :, 4].T
    points = []
    for depth in rows[:, 15:].T:
        for x in (-0.5, 0.0, 0.5):
            for y in (-0.5, 0.0, 0.5):
                across = (x * width / focal)[:, None] * right + (y * height / focal)[:, None] * down
                points.append(position + depth[:, None] * (across - backward))
    return np.concatenate(points)


def state(path: Path, options: ReadOptions) -> StatedScene:
    """What an LLFF folder says; pixels are not read.

    Raises:
        DataError: one line that names file, row and field.
    """
    data_file = _data_file(path)
    assert data_file is not None
    root = data_file.parent
    rows = _rows(data_file)
    folder = _photos(path, root, len(rows))
    places = [f"{data_file}: row {index} ({name})" for index, name in enumerate(folder.names)]
    for row, place in zip(rows, places, strict=True):
        _check_row(row, place)
    views = [
        _view(row, folder.root / name, (folder.root / name).relative_to(root).as_posix(), place)
        for row, name, place in zip(rows, folder.names, places, strict=True)
    ]
    return StatedScene(
        name=root.name or "scene",
        path=path,
        data_file=data_file,
        folder=root,
        form="LLFF",
        views=tuple(views),
        spaces=StatedSpaces(None, None, None, {}),
        order="string order",
        view_noun="photos",
        points=_points(rows),
        points_origin=f"near and far depths of {FILE}",
        has_fixed_axes=True,
        notes=(f"photos: {folder.root.relative_to(root).as_posix()}",),
    )


def read(path: Path, options: ReadOptions) -> Scene:
    """The scene of an LLFF folder, of its poses_bounds.npy, or of the folder of photos to be taken, e.g. images_8.

    Raises:
        DataError: one line that names file, row and field.
    """
    return assemble(state(path, options), options)


READER: Final = Reader(
    name="LLFF",
    looks_for=FILE,
    matches=lambda path: _data_file(path) is not None,
    read=read,
    state=state,
)

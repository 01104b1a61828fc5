"""Reader of NeuS and IDR captures, the form in which DTU and BlendedMVS objects are passed on: cameras_sphere.npz or
cameras.npz with the folders image and mask.

For photo i in string order, `world_mat_i` is the projection from the world to its pixels, whose centres are at whole
numbers (half a pixel from ours), and `scale_mat_i`, the same for all, maps the unit sphere around the object into the
world. Masks are white on the object. They cut it out, so that nothing is where they are black, unless the user says
that they only leave pixels out (`--alpha mask`).
"""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64

from hashfield.data.assemble import assemble
from hashfield.data.dataset import Reader, ReadOptions, Scene
from hashfield.data.files import MaskFolder, PhotoFolder
from hashfield.data.images import ImageHeader
from hashfield.data.json_fields import one_line, some
from hashfield.data.stated import StatedScene, StatedSpaces, StatedView, Tally, check_magnitude
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera

FILES: Final = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")
_PHOTOS: Final = ("image", "images", "rgb")
_MASKS: Final = ("mask", "masks")
_LARGEST_ENTRY: Final = 4096  # bytes of a 4 x 4 matrix with its header, and room to spare
_SKEW: Final = 1e-3  # of the focal length; DTU's calibrations have 1e-6 and less

_Matrix = Float64[np.ndarray, "4 4"]


def _data_file(path: Path) -> Path | None:
    """The file of cameras for what the user named: it or its folder."""
    if path.is_file():
        return path if path.name in FILES else None
    return next((path / name for name in FILES if (path / name).is_file()), None)


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # numpy reads headers by Python's own parser, which raises nearly every type there is
        raise DataError(one_line(f"{path}: not a NumPy archive that can be read: {error}")) from error


def _matrices(path: Path) -> dict[str, _Matrix]:
    """All matrices of the file whose names the format knows."""
    with _as_data_error(path), zipfile.ZipFile(path) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = [name for name in entries if re.fullmatch(r"(world|scale)_mat_[0-9]+", name)]
        for name in wanted:
            # before it is decompressed: an archive may claim any size
            if entries[name].file_size > _LARGEST_ENTRY:
                raise DataError(f"{path}: '{name}': {entries[name].file_size} bytes are more than a 4x4 matrix has")
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in wanted}
    for name, matrix in found.items():
        if matrix.shape not in ((4, 4), (3, 4)) or matrix.dtype.kind not in "fiu":
            raise DataError(f"{path}: '{name}': expected 4x4 numbers, got {matrix.dtype} {matrix.shape}")
        matrix = matrix.astype(np.float64)
        check_magnitude(matrix, f"{path}: '{name}'")
        found[name] = matrix if len(matrix) == 4 else np.vstack([matrix, [0.0, 0.0, 0.0, 1.0]])
    return found


def _camera(world_mat: _Matrix, view: StatedView, header: ImageHeader) -> Camera:
    """The camera of a projection matrix, by RQ decomposition."""
    projection = world_mat[:3]
    square = projection[:, :3]
    determinant = float(np.linalg.det(square))
    scale = float(np.abs(square).max())
    if not abs(determinant) > 1e-12 * scale**3:
        raise view.fail("the projection is singular", "world_mat")
    if determinant < 0:  # a projection and its negative are the same
        projection, square = -projection, -square
    # of the matrix turned by half a turn, QR gives RQ
    orthogonal, upper = np.linalg.qr(square[::-1].T)
    intrinsics, rotation = upper.T[::-1, ::-1], orthogonal.T[::-1]
    signs = np.sign(np.diag(intrinsics))
    intrinsics, rotation = intrinsics * signs, signs[:, None] * rotation
    intrinsics = intrinsics / intrinsics[2, 2]
    fx, fy = intrinsics[0, 0], intrinsics[1, 1]
    if abs(intrinsics[0, 1]) > _SKEW * fx:
        raise view.fail(f"skewed pixels are not supported (skew {intrinsics[0, 1]:.3g}, focal {fx:.4g})", "world_mat")
    position = -np.linalg.solve(square, projection[:, 3])
    return Camera(
        torch.from_numpy(np.column_stack([rotation.T, position])),
        header.width,
        header.height,
        fx=float(fx),
        fy=float(fy),
        cx=float(intrinsics[0, 2]) + 0.5,
        cy=float(intrinsics[1, 2]) + 0.5,
    )


def _spaces(matrices: dict[str, _Matrix], data_file: Path, has_masks: bool) -> StatedSpaces:
    """The training box around the unit sphere of `scale_mat`; where photos show a background, only its inner part."""
    name = min((name for name in matrices if name.startswith("scale")), default=None)
    if name is None:
        return StatedSpaces(None, None, None, {})
    matrix = matrices[name]
    radius = float(np.cbrt(abs(np.linalg.det(matrix[:3, :3]))))
    if not radius > 1e-9:
        raise DataError(f"{data_file}: '{name}': a sphere of radius 0")
    x, y, z = (0.5 - matrix[:3, 3] / (2 * radius)).tolist()
    told = f"{name} of {data_file.name}"
    return StatedSpaces(1 / (2 * radius), (x, y, z), 1 if has_masks else None, dict.fromkeys(
        ("scale", "offset", "aabb_scale"), told
    ))  # fmt: skip


def state(path: Path, options: ReadOptions) -> StatedScene:
    """What the files say; pixels are not read.

    Raises:
        DataError: one line that names file and field.
    """
    data_file = _data_file(path)
    assert data_file is not None
    root = data_file.parent
    matrices = _matrices(data_file)
    folders = [PhotoFolder(root / name) for name in _PHOTOS if (root / name).is_dir()]
    n_cameras = sum(name.startswith("world") for name in matrices)
    photos = next((folder for folder in folders if len(folder.names) == n_cameras), None)
    if not n_cameras:
        raise DataError(f"{data_file}: 'world_mat_0': missing, so no photo has a camera")
    if photos is None:
        counts = ", ".join(f"{len(folder.names)} in {folder.root.name}" for folder in folders) or "no folder image"
        raise DataError(
            f"{data_file}: {n_cameras} cameras, but there are other numbers of photos ({counts}); cameras belong to "
            "the photos in string order of their names, so there must be as many"
        )
    masks = next((MaskFolder(root / name) for name in _MASKS if (root / name).is_dir()), None)
    mattes = [None if masks is None else masks.find([name]) for name in photos.names]
    if masks is not None and None in mattes:
        lost = [name for name, matte in zip(photos.names, mattes, strict=True) if matte is None]
        raise DataError(f"{root}: no mask in {masks.root.name} for {some(lost)}: all photos need one, or none")
    views = []
    for index, (name, matte) in enumerate(zip(photos.names, mattes, strict=True)):
        key = f"world_mat_{index}"
        place = one_line(f"{data_file}: camera {index} ({name})")
        if key not in matrices:
            raise DataError(f"{place}: '{key}': missing")
        views.append(_view(matrices[key], photos.root / name, place, matte))
    return StatedScene(
        name=root.name or "scene",
        path=path,
        data_file=data_file,
        folder=root,
        form="NeuS",
        views=tuple(views),
        spaces=_spaces(matrices, data_file, masks is not None and options.alpha != "mask"),
        order="string order",
        view_noun="photos",
        has_fixed_axes=True,
        notes=(f"photos: {photos.root.name}",),
    )


def _view(world_mat: _Matrix, photo: Path, place: str, matte: Path | None) -> StatedView:
    def make_camera(header: ImageHeader, tally: Tally) -> Camera:
        return _camera(world_mat, view, header)

    view = StatedView(photo.name, place, photo, make_camera, image_field="photo", matte=matte)
    return view


def read(path: Path, options: ReadOptions) -> Scene:
    """The scene of a NeuS or IDR folder, or of its file of cameras.

    Raises:
        DataError: one line that names file and field.
    """
    return assemble(state(path, options), options)


READER: Final = Reader(
    name="NeuS",
    looks_for="cameras_sphere.npz or cameras.npz",
    matches=lambda path: _data_file(path) is not None,
    read=read,
    state=state,
)

"""What is known of depth before training: depth maps beside photos, and points of structure from motion in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8

from hashfield.data.images import ImageHeader, decode_depth, depth_shape
from hashfield.data.json_fields import one_line
from hashfield.data.sparse_tracks import names_in_model, read_tracks
from hashfield.data.stated import StatedDepth, StatedScene, StatedView, has_same_aspect
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera, camera_table, project, rays_from_pixels
from hashfield.geometry.spaces import Spaces

DepthSource = Literal["files", "points"]

_FEWEST_SIGHTINGS: Final = 3  # two photos agree about a wrong point too easily
_OFF: Final = 2e-3  # of the longer side: how far from its point a photo may show it, but never less than a pixel
_OTHER_WORLD: Final = 2e-2  # of the longer side: photos show the points elsewhere altogether
_ASKED: Final = 1000  # pixels of a photo by which its depth map is judged
_BYTES: Final = 6  # of a depth map's pixel: up to 4 as it was read, and 2 as training holds it
_COARSEST: Final = 16  # pixels along an axis of which one is kept where memory is short; fewer say too little


@dataclass(frozen=True)
class PhotoDepth:
    """What is known of how far away is what one photo shows, in world units: those of the data's file."""

    z: Shaped[np.ndarray, "rows columns"] | None = None
    """Depth map of the photo's shape, as large as the photo or smaller: how far along the camera's axis (in a panorama:
    along the ray), whole numbers or floats, in units of `scale`. What is not a finite number above 0 is not known."""
    scale: float = 1.0
    """World units of 1 in `z`."""
    pixels: Int64[np.ndarray, "n_points 2"] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """Column and row of the pixels that show points of structure from motion."""
    distance: Float32[np.ndarray, " n_points"] = field(default_factory=lambda: np.zeros(0, np.float32))
    """How far these points are from the camera."""


@dataclass(frozen=True)
class KnownDepths:
    """What is known of depth in the training photos."""

    of_photos: tuple[PhotoDepth, ...] | None = None
    """None: nothing."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    unit: str | None = None
    """What a world unit is, where the depth maps' convention says it."""


def known_depths(
    stated: StatedScene,
    views: Sequence[StatedView],
    names: Sequence[str],
    cameras: Sequence[Camera],
    images: Sequence[UInt8[np.ndarray, "h w 4"]],
    masks: Sequence[Bool[np.ndarray, "h w"]] | None,
    headers: Sequence[ImageHeader],
    spaces: Spaces,
    sources: Sequence[DepthSource],
    downscale: int,
    max_bytes: int,
) -> KnownDepths:
    """What the data know of depth in some views.

    Args:
        stated: The data set.
        views: The views.
        names: Their photos, relative to the data's folder.
        cameras: Their cameras in the world, for the photos as they are in memory.
        images: These photos.
        masks: Which of their pixels show the scene; None: all.
        headers: The photos as they are stored.
        spaces: The training box.
        sources: What to read.
        downscale: What the photos' sides were divided by.
        max_bytes: Memory that depth maps may take; larger ones are read coarser, or not at all.

    Raises:
        DataError: a depth map cannot be read or is of another shape than its photo, none of those that are stated
            exists, or a field about depth is wrong; one line that names file, view and field.
    """
    if not views or not sources:
        return KnownDepths()
    depths, notes, unit = [PhotoDepth() for _ in views], [], None
    if "files" in sources:
        depths, notes, unit = _maps(views, cameras, headers, spaces, max_bytes)
    if "points" in sources and stated.sparse_model is not None:
        points, more = _sightings(stated, names, cameras, images, masks, headers, downscale)
        pairs = zip(depths, points, strict=True)
        depths = [PhotoDepth(known.z, known.scale, pixels, distance) for known, (pixels, distance) in pairs]
        notes = [*notes, *more]
    is_any = any(known.z is not None or len(known.pixels) for known in depths)
    return KnownDepths(tuple(depths) if is_any else None, tuple(map(one_line, notes)), unit)


# --- depth maps


def _maps(
    views: Sequence[StatedView],
    cameras: Sequence[Camera],
    headers: Sequence[ImageHeader],
    spaces: Spaces,
    max_bytes: int,
) -> tuple[list[PhotoDepth], list[str], str | None]:
    """The depth map of each view, notes, and the unit of the world if they tell it. See `known_depths`."""
    stated = [view.make_depth() for view in views]
    named = [one for one in stated if one is not None]
    if not named:
        return [PhotoDepth() for _ in views], [], None
    lost = [one.stated for one in named if one.path is None]
    if len(lost) == len(named):
        view, one = next((view, one) for view, one in zip(views, stated, strict=True) if one is not None)
        raise view.fail(
            f"{one.stated}: none of the {len(named)} depth files exists (--train.depth 0 does without)", one.field
        )
    shapes = [
        (0, 0) if one is None or one.path is None else _map_shape(view, one, camera, header)
        for view, one, camera, header in zip(views, stated, cameras, headers, strict=True)
    ]
    n_bytes, step = _BYTES * sum(height * width for height, width in shapes), 1
    while step <= _COARSEST and n_bytes > max_bytes * step**2:
        step += 1
    too_much = f"depth maps take {n_bytes / 2**20:.0f} MiB, more than the photos leave of --max-image-memory"
    if step > _COARSEST:
        return [PhotoDepth() for _ in views], [f"warning: {too_much}: they are not read"], None
    depths = [
        PhotoDepth() if one is None or one.path is None else _map(view, one, (height // step, width // step))
        for view, one, (height, width) in zip(views, stated, shapes, strict=True)
    ]
    unit = "metres" if all(one.is_metric for one in named) else None
    notes = _map_notes(depths, cameras, spaces, unit)
    if step > 1:
        notes.append(f"{too_much}: one of {step} rows and columns is read")
    if lost:
        some = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        notes.append(f"warning: {len(lost)} of {len(named)} depth files do not exist: {some}")
    return depths, notes, unit


def _map_shape(view: StatedView, stated: StatedDepth, camera: Camera, header: ImageHeader) -> tuple[int, int]:
    """Height and width of a depth map as it will lie in memory; raises where it is of another shape than its photo."""
    assert stated.path is not None
    try:
        height, width = depth_shape(stated.path)
    except DataError as error:
        raise view.fail(str(error), stated.field) from error
    if not has_same_aspect((width, height), (header.width, header.height)):
        raise view.fail(
            f"{stated.path}: the depth map is {width}x{height}, of another shape than the image, "
            f"{header.width}x{header.height}", stated.field,
        )  # fmt: skip
    # no pixel of the photo looks at more than one of the map
    return (camera.height, camera.width) if width > camera.width else (height, width)


def _map(view: StatedView, stated: StatedDepth, shape: tuple[int, int]) -> PhotoDepth:
    """A depth map with so many rows and columns, the nearest of those that it has."""
    assert stated.path is not None
    try:
        z = decode_depth(stated.path)
    except DataError as error:
        raise view.fail(str(error), stated.field) from error
    shape = max(1, shape[0]), max(1, shape[1])
    if shape != z.shape:
        rows, columns = (
            ((np.arange(n) + 0.5) * n_stored / n).astype(np.int64) for n, n_stored in zip(shape, z.shape, strict=True)
        )
        z = np.ascontiguousarray(z[rows[:, None], columns])
    return PhotoDepth(z, 1.0 if z.dtype == np.float32 else stated.scale)


def _map_notes(depths: Sequence[PhotoDepth], cameras: Sequence[Camera], spaces: Spaces, unit: str | None) -> list[str]:
    """How many photos have depth maps, and whether what they show lies in the training box."""
    distances, n_inside, n_asked, generator = [], 0, 0, np.random.default_rng(0)
    for known, camera in zip(depths, cameras, strict=True):
        if known.z is None:
            continue
        rows, columns = (generator.integers(0, side, _ASKED) for side in known.z.shape)
        z = known.z[rows, columns].astype(np.float64) * known.scale
        n_asked += len(z)
        is_known = np.isfinite(z) & (z > 0)
        place = np.column_stack([columns, rows])[is_known] + 0.5
        place *= np.array([camera.width, camera.height]) / np.array(known.z.shape[::-1])
        origin, direction = _rays(camera, place)
        distance = z[is_known] / _share_along_axis(camera, direction)
        point = spaces.world_to_scene(torch.from_numpy(origin + distance[:, None] * direction)).numpy()
        low, high = np.array(spaces.box_min), np.array(spaces.box_max)
        n_inside += int(((point > low) & (point < high)).all(axis=1).sum())
        distances.append(distance)
    every = np.concatenate(distances)
    if not len(every):
        return ["warning: depth maps were read, but they hold no number above 0: nothing is known of depth"]
    near, middle, far = np.quantile(every, (0.01, 0.5, 0.99))
    words = unit or "units of the file"
    text = f"depth maps of {sum(known.z is not None for known in depths)} of {len(depths)} training photos: "
    text += f"{100 * len(every) / n_asked:.0f} % of their pixels are known, {near:.3g} to {far:.3g} {words} away, "
    text += f"{middle:.3g} in the middle"
    if n_inside < 0.5 * len(every):
        share = 100 * n_inside / len(every)
        return [f"warning: {text}; only {share:.0f} % of that lies in the training box: is integer_depth_scale right?"]
    return [text]


def _rays(camera: Camera, place: Float64[np.ndarray, "n 2"]) -> tuple[np.ndarray, np.ndarray]:
    index = torch.zeros(len(place), dtype=torch.int64)
    origin, direction = rays_from_pixels(camera_table([camera]), index, torch.from_numpy(place))
    return origin.numpy(), direction.numpy()


def _share_along_axis(camera: Camera, direction: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
    """What part of the way along a ray lies along the camera's axis; depth maps of panoramas tell the way itself."""
    if camera.lens == "equirectangular":
        return np.ones(len(direction))
    return np.maximum(direction @ camera.forward.numpy(), 1e-3)


# --- points


def _sightings(
    stated: StatedScene,
    names: Sequence[str],
    cameras: Sequence[Camera],
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray] | None,
    headers: Sequence[ImageHeader],
    downscale: int,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """For each view the pixels that show points of the sparse model, their distances, and notes. See `known_depths`."""
    nothing = [(np.zeros((0, 2), np.int64), np.zeros(0, np.float32)) for _ in cameras]
    assert stated.sparse_model is not None
    tracks = read_tracks(stated.sparse_model)
    name_of = {} if tracks is None else names_in_model(names, list(tracks.sightings))
    if tracks is None or not name_of:
        return nothing, []
    seen_by = np.bincount(
        np.concatenate([np.unique(seen.points) for seen in tracks.sightings.values()]), minlength=len(tracks.points)
    )
    table, found, n_all, every_off = camera_table(cameras), nothing, 0, []
    for k, name in name_of.items():
        seen, camera = tracks.sightings[name], cameras[k]
        n_all += len(seen.points)
        point = tracks.points[seen.points]
        shown, is_valid = project(table, torch.full((len(point),), k), torch.from_numpy(point))
        place = seen.pixels * (np.array([headers[k].width, headers[k].height]) / np.array(seen.size)) / downscale
        longest = max(camera.width, camera.height)
        off = np.where(is_valid.numpy(), np.linalg.norm(shown.numpy() - place, axis=1), np.inf)
        every_off.append(off / longest)
        pixel = np.floor(place).astype(np.int64)
        is_good = (off < max(1.0, _OFF * longest)) & (seen_by[seen.points] >= _FEWEST_SIGHTINGS)
        is_good &= (pixel >= 0).all(axis=1) & (pixel < [camera.width, camera.height]).all(axis=1)
        pixel, point = pixel[is_good], point[is_good]
        # what a mask leaves out, or alpha, is not drawn
        is_drawn = images[k][pixel[:, 1], pixel[:, 0], 3] > 0
        if masks is not None:
            is_drawn &= masks[k][pixel[:, 1], pixel[:, 0]]
        distance = np.linalg.norm(point - camera.position.numpy(), axis=1)
        found[k] = (pixel[is_drawn], distance[is_drawn].astype(np.float32))
    where = stated.sparse_model.relative_to(stated.folder).as_posix()
    off = np.concatenate(every_off)
    if not len(off) or float(np.median(off)) > _OTHER_WORLD:
        return [(x[:0], y[:0]) for x, y in found], [
            f"the points of {where} teach no depth: photos show them elsewhere than the cameras do"
        ]
    n, n_photos = sum(len(distance) for _, distance in found), sum(len(distance) > 0 for _, distance in found)
    return found, [
        f"points of {where} in {n_photos} of {len(cameras)} training photos: {n} sightings, {n_all - n} left out (seen "
        f"by fewer than {_FEWEST_SIGHTINGS} photos, far from where they should be, or masked)"
    ]

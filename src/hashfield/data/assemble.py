"""The scene out of what a reader states: splits, cameras, the training box, and notes. `scene_pixels` has its pixels.

Nothing here knows in which form the data lay on the disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from hashfield.data.dataset import PosedImages, ReadOptions, Scene
from hashfield.data.depth import known_depths
from hashfield.data.images import ImageHeader, decode_rgba
from hashfield.data.json_fields import one_line, some
from hashfield.data.photo_cache import LazyPhotos
from hashfield.data.scene_pixels import (
    SILHOUETTE,
    alpha_of,
    brightness_notes,
    check_decoding,
    decode_photos,
    describe_masks,
    in_words,
    masks_of,
    masks_of_folder,
    read_headers,
)
from hashfield.data.stated import LARGEST, SPLITS, StatedScene, StatedView, Tally
from hashfield.data.training_box import choose_box, doubt_of_size, stray_cameras
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.paths import focus_point
from hashfield.geometry.spaces import (
    Spaces,
    check_rays_meet_box,
    choose_aabb_scale,
    share_of_rays_meeting_box,
)

HOLD_OUT_EVERY: Final = 8
"""Without splits in the data, views whose index is a multiple of this are held out."""


def assemble(stated: StatedScene, options: ReadOptions) -> Scene:
    """The scene that a reader's statement describes, decoded.

    Raises:
        DataError: one line that names file, view and field.
    """
    missing = _missing_notes(stated)
    splits, split_notes = _complete_splits(stated)
    splits = {split: splits[split] for split in SPLITS if split in options.splits and split in splits}
    if not splits:
        raise DataError(f"{stated.data_file}: this data set has no {' or '.join(options.splits)} views")
    # val may serve as test: each view is read once
    views = list({view: None for chosen in splits.values() for view in chosen})
    place = {view: index for index, view in enumerate(views)}
    tally = Tally()
    headers = read_headers(views, tally)
    if options.longest_side is not None:
        longest = max(max(header.width, header.height) for header in headers)
        options = replace(options, downscale=max(options.downscale, -(-longest // options.longest_side)))
    largest = check_decoding(views, headers, options)
    cameras = [_camera(view, header, options, tally) for view, header in zip(views, headers, strict=True)]
    photos, memory_notes = decode_photos(
        views, cameras, headers, options, tally, max(1, options.max_image_memory // largest)
    )
    images, stats = photos.images, photos.stats
    has_alpha, alpha_notes = alpha_of(stats, any(view.matte for view in views), options)
    named, folder_notes = masks_of_folder(views, stated, options)
    masks = masks_of(views, headers, photos, has_alpha, named, options)
    training = [place[view] for view in splits.get("train", [])]
    mask_notes = folder_notes + describe_masks(masks, training, stated, options)
    strays, stray_notes = _strays(views, cameras, stated.view_noun)
    near = [camera for index, camera in enumerate(cameras) if index not in strays]
    spaces, origin = _choose_spaces(stated, options, has_alpha, near)
    if "train" in splits:
        check_rays_meet_box(cameras, spaces, str(stated.data_file))

    depths = known_depths(
        stated, [views[k] for k in training], [stated.name_of(views[k]) for k in training],
        [cameras[k] for k in training], _chosen(images, training),
        None if masks is None else [masks[k] for k in training], [headers[k] for k in training], spaces,
        () if photos.files else options.depth, options.downscale,
        max_bytes=options.max_image_memory - sum(image.nbytes for image in ([] if photos.files else images)),
    )  # fmt: skip
    if photos.files and options.depth:
        memory_notes.append("what is known of depth is not used where photos are trained on from files")

    def posed(split: str, chosen: list[StatedView]) -> PosedImages:
        indices = [place[view] for view in chosen]
        return PosedImages(
            tuple(cameras[index] for index in indices),
            _chosen(images, indices),
            tuple(stated.name_of(view) for view in chosen),
            None if masks is None else [masks[index] for index in indices],
            tuple(photos.files[index] for index in indices) if photos.files else None,
            depths.of_photos if split == "train" else None,
        )

    counts = " and ".join(f"{len(chosen)} {split}" for split, chosen in splits.items())
    return Scene(
        name=stated.name,
        path=stated.path,
        form=stated.form,
        spaces=spaces,
        has_alpha=has_alpha,
        camera_axes=options.camera_axes,
        splits={split: posed(split, chosen) for split, chosen in splits.items()},
        notes=(
            f"{stated.form} form: {counts} views, {_describe(cameras, has_alpha, options)}",
            *split_notes,
            *missing,
            *stated.notes,
            *_axes_notes(stated, options),
            *_tally_notes(tally, len(views), stated.view_noun),
            *map(one_line, stated.final_notes(views, tally)),
            *memory_notes,
            *([] if has_alpha else brightness_notes(stats)),
            *alpha_notes,
            *mask_notes,
            *stray_notes,
            *_space_notes(spaces, origin, near, _other_axes(stated, options)),
            *_size_notes(stated, options, has_alpha, near),
            *depths.notes,
        ),
        unit=depths.unit,
        folder=stated.folder,
        reading={
            "alpha": options.alpha,
            "masks": None if options.masks is None else str(options.masks.expanduser().resolve()),
            "masks_keep": options.masks_keep,
        },
        resident_bytes=options.max_image_memory // 2 if photos.files else None,
    )


def _chosen(images: Sequence[np.ndarray], indices: Sequence[int]) -> Sequence[np.ndarray]:
    """The photos with these numbers; those in files stay there."""
    return images.chosen(indices) if isinstance(images, LazyPhotos) else tuple(images[index] for index in indices)


def _axes_notes(stated: StatedScene, options: ReadOptions) -> list[str]:
    if not stated.has_fixed_axes or options.camera_axes == "opengl":
        return []
    return [f"--camera-axes has no effect: the axes of {stated.form} are known"]


@dataclass(frozen=True)
class CameraSet:
    """The cameras of a data set, without its pixels."""

    folder: Path
    """What the names of photos are relative to."""
    cameras: Mapping[str, Camera]
    """Name of each photo -> its camera in the world, for the whole photo."""
    splits: Mapping[str, tuple[str, ...]]
    """Names of photos by "train", "test" and, where there is one, "val"."""
    spaces: Spaces
    masks: Mapping[str, Path]
    """Name of a photo -> the file of its mask, in which black is not learned from."""
    points: np.ndarray | None
    """Points on surfaces, world."""


def assemble_cameras(stated: StatedScene, options: ReadOptions) -> CameraSet:
    """The cameras that a reader's statement describes, with the splits and the training box that training would take.
    Pixels are decoded only where it depends on them whether an object is cut out by alpha, one photo at a time.

    Args:
        stated: What a reader states.
        options: How to read; `downscale` must be 1.

    Raises:
        DataError: one line that names file, view and field.
    """
    splits, _ = _complete_splits(stated)
    views = list({view: None for chosen in splits.values() for view in chosen})
    tally = Tally()
    headers = read_headers(views, tally)
    cameras = [_camera(view, header, options, tally) for view, header in zip(views, headers, strict=True)]
    strays, _ = _strays(views, cameras, stated.view_noun)
    has_alpha = False
    if stated.spaces.scale is None or stated.spaces.aabb_scale is None:
        n_pixels = sum(header.width * header.height for header in headers)
        pairs = zip(views, headers, strict=True)
        translucent = [view for view, header in pairs if header.may_have_alpha and view.matte is None]
        n_clear = sum(int((decode_rgba(view.path)[..., 3] < 128).sum()) for view in translucent)
        has_alpha = n_clear >= SILHOUETTE * n_pixels or any(view.matte for view in views)
    near = [camera for index, camera in enumerate(cameras) if index not in strays]
    spaces, _ = _choose_spaces(stated, options, has_alpha, near)
    names = {view: stated.name_of(view) for view in views}
    return CameraSet(
        folder=stated.folder,
        cameras={names[view]: camera for view, camera in zip(views, cameras, strict=True)},
        splits={split: tuple(names[view] for view in chosen) for split, chosen in splits.items()},
        spaces=spaces,
        masks=mask_files(stated),
        points=surface_points(stated),
    )


def surface_points(stated: StatedScene) -> np.ndarray | None:
    """The points that lie on surfaces, which other programs may want to begin with."""
    return stated.points if stated.has_surface_points else None


def mask_files(stated: StatedScene) -> dict[str, Path]:
    """Name of a photo -> the file of its mask in which black is not learned from, or nothing is. Masks of the other
    kind lie beside the photos, where every reader of transforms.json that knows them looks by itself."""
    views = [view for view in stated.views if view.image is not None]
    found = {stated.name_of(view): view.matte for view in views if view.matte is not None}
    return found | {stated.name_of(view): mask.path for view in views for mask in view.masks if not mask.keeps_black}


# --- splits


def _missing_notes(stated: StatedScene) -> list[str]:
    missing = [view.name for view in stated.views if view.image is None]
    if not missing:
        return []
    if len(missing) == len(stated.views):
        first = (stated.folder / missing[0]).as_posix()
        raise DataError(one_line(f"{stated.data_file}: none of the {len(missing)} images exists; the first is {first}"))
    return [
        f"warning: {len(missing)} of {len(stated.views)} {stated.view_noun} have no image file and are skipped: "
        f"{some(missing)}"
    ]


def _complete_splits(stated: StatedScene) -> tuple[dict[str, list[StatedView]], list[str]]:
    """Views with an image: a train and a test set that share none, val where there is one; and notes.

    Without test views, those of val are taken; without these, every 8th training view is held out.
    """
    listed = {split: [view for view in stated.views if split in (view.splits or {"train"})] for split in SPLITS}
    train, val, test = ([view for view in listed[split] if view.image is not None] for split in SPLITS)
    notes = []
    if test:
        notes.append(f"splits: {stated.split_rule}")
    elif val:
        test = val
        notes.append(f"splits: {stated.split_rule}; there are no test views, those of val are taken")
    else:
        if listed["test"] or listed["val"]:
            notes.append("warning: none of the test images exists, so some training views are held out")
        if len(train) < 2:
            raise DataError(
                f"{stated.data_file}: {len(train)} usable view, but at least two are needed: one is held out for "
                "testing"
            )
        test = train[::HOLD_OUT_EVERY]
        notes.append(
            f"splits: every {HOLD_OUT_EVERY}th view in {stated.order} is held out for testing, {len(test)} of "
            f"{len(train)}"
        )
        train = [view for index, view in enumerate(train) if index % HOLD_OUT_EVERY]
    held_out = {view.path for view in test}
    kept = [view for view in train if view.path not in held_out]
    both = [view.name for view in train if view.path in held_out]
    if both:
        notes.append(f"warning: listed for training and for testing, used for testing only: {some(both)}")
    if not kept:
        raise DataError(f"{stated.data_file}: no view is left for training")
    return {"train": kept, "test": test, **({"val": val} if val else {})}, notes


# --- cameras


def _camera(view: StatedView, header: ImageHeader, options: ReadOptions, tally: Tally) -> Camera:
    """The view's camera for its photo as it will lie in memory, divided by options.downscale."""
    try:
        camera = view.make_camera(header, tally)
        if float(camera.position.abs().max()) > LARGEST:
            shown = ", ".join(f"{value:.3g}" for value in camera.position.tolist())
            raise DataError(one_line(f"{view.place}: the camera's position ({shown}) is out of all proportion"))
        factor = options.downscale
        width, height = header.width // factor, header.height // factor
        if min(width, height) < 1:
            raise view.fail(f"{header.width}x{header.height} is too small for --downscale {factor}")
        if min(width, height) < options.least_side:
            shrunk = f" after --downscale {factor}" if factor > 1 else ""
            raise view.fail(
                f"{width}x{height}{shrunk} is too small: every side must have {options.least_side} pixels for the "
                "figures of quality (SSIM)"
            )
        _check_principal_point(view, camera, tally)
        return Camera(
            camera.camera_to_world,
            width,
            height,
            fx=camera.fx / factor,
            fy=camera.fy / factor,
            cx=camera.cx / factor,
            cy=camera.cy / factor,
            lens=camera.lens,
            distortion=camera.distortion,
        )
    except ConfigError as error:
        raise DataError(one_line(f"{view.place}: {error}")) from error


_MIDDLE: Final = (0.25, 0.75)  # where principal points lie, in fractions of the picture; beyond, it is cropped or wrong


def _check_principal_point(view: StatedView, camera: Camera, tally: Tally) -> None:
    """Raise where the principal point lies outside the picture, tally where it is far from the middle."""
    shares = (camera.cx / camera.width, camera.cy / camera.height)
    told = f"({camera.cx:.4g}, {camera.cy:.4g}) of {camera.width}x{camera.height} pixels"
    if not all(0 < share < 1 for share in shares):
        raise view.fail(f"the principal point {told} is not inside the picture: it is measured in pixels", "cx, cy")
    if not all(_MIDDLE[0] <= share <= _MIDDLE[1] for share in shares):
        tally.doubtful.setdefault("the principal point is far from the middle of the picture", []).append(
            f"{view.name} {told}"
        )


# --- spaces


def _strays(views: list[StatedView], cameras: list[Camera], noun: str) -> tuple[set[int], list[str]]:
    """Cameras that are left out of the choice of the box, and a note about them."""
    strays, distance = stray_cameras(cameras)
    if not strays:
        return set(), []
    rest = np.delete(distance, strays).max()
    listed = some([f"{views[index].name} ({distance[index]:.3g} units)" for index in strays])
    return set(strays), [
        f"warning: {len(strays)} of {len(cameras)} {noun} stand far from the middle of all others (within "
        f"{rest:.3g} units): {listed}; probably wrong poses, left out of the choice of the box"
    ]


def _choose_spaces(
    stated: StatedScene, options: ReadOptions, has_alpha: bool, cameras: list[Camera]
) -> tuple[Spaces, dict[str, str]]:
    """The spaces, and where each of their values comes from; the cameras are those without strays."""
    scale, offset, aabb_scale, origin = (
        stated.spaces.scale,
        stated.spaces.offset,
        stated.spaces.aabb_scale,
        dict(stated.spaces.origin),
    )
    if scale is None or offset is None:
        try:
            box = choose_box(cameras, stated.points, stated.points_origin, has_alpha)
        except ConfigError as error:
            raise DataError(f"{stated.data_file}: no training box for these cameras and points: {error}") from error
        scale, offset, aabb_scale = box.spaces.scale, box.spaces.offset, box.spaces.aabb_scale
        origin = {"scale": "fits the box", "offset": box.center_reason, "aabb_scale": box.size_reason}
    if options.aabb_scale is not None:
        aabb_scale, origin["aabb_scale"] = options.aabb_scale, options.aabb_scale_origin
    elif aabb_scale is None and has_alpha:
        aabb_scale, origin["aabb_scale"] = 1, "images have alpha"
    elif aabb_scale is None:
        aabb_scale, words = choose_aabb_scale(cameras, Spaces(scale, offset))
        origin["aabb_scale"] = f"from the cameras, {words}, as images have no alpha"
    return Spaces(scale, offset, aabb_scale), origin


# --- notes


def _describe(cameras: list[Camera], has_alpha: bool, options: ReadOptions) -> str:
    sizes = sorted({(camera.width, camera.height) for camera in cameras})
    first, last = ("x".join(map(str, size)) for size in (sizes[0], sizes[-1]))
    size = first if len(sizes) == 1 else f"{len(sizes)} sizes from {first} to {last}"
    shrunk = f" after --downscale {options.downscale}" if options.downscale > 1 else ""
    lenses = " and ".join(sorted({camera.lens for camera in cameras}))
    memory = in_words(sum(4 * camera.width * camera.height for camera in cameras))
    return f"{size}{shrunk}, {'with' if has_alpha else 'without'} alpha, lens {lenses}, {memory} decoded"


def _tally_notes(tally: Tally, n_views: int, noun: str) -> list[str]:
    notes = []
    if tally.scaled:
        notes.append(
            f"warning: a uniform scale was removed from the rotation of {len(tally.scaled)} of {n_views} "
            f"{noun}: {some(tally.scaled, 3)}"
        )
    for text, names in tally.doubtful.items():
        notes.append(f"warning: {text} in {len(names)} of {n_views} {noun}: {some(names, 3)}")
    for text, names in tally.damaged.items():
        notes.append(f"warning: {text} in {len(names)} of {n_views} images: {some(sorted(names), 3)}")
    if tally.resized:
        name, sizes = tally.resized[0]
        notes.append(
            f"intrinsics rescaled to the image's real size in {len(tally.resized)} of {n_views} {noun} "
            f"({name}: {sizes})"
        )
    for reduction, reduced in tally.reduced.items():
        notes.append(f"{reduction} in {len(reduced)} of {n_views} images")
    return [one_line(note) for note in notes]


def _other_axes(stated: StatedScene, options: ReadOptions) -> str | None:
    """Camera axes that the poses may have instead of those they were read with."""
    if stated.has_fixed_axes:
        return None
    return "opencv" if options.camera_axes == "opengl" else "opengl"


def _size_notes(stated: StatedScene, options: ReadOptions, has_alpha: bool, cameras: list[Camera]) -> list[str]:
    """What to say of the box's size where it was chosen from the cameras alone, which are those without strays."""
    is_known = stated.points is not None or has_alpha
    if is_known or options.aabb_scale is not None or stated.spaces.aabb_scale is not None:
        return []
    doubt = doubt_of_size(cameras)
    return [] if doubt is None else [doubt]


def _space_notes(spaces: Spaces, origin: Mapping[str, str], cameras: list[Camera], other_axes: str | None) -> list[str]:
    offset = " ".join(f"{value:.6g}" for value in spaces.offset)
    position = torch.stack([camera.position for camera in cameras])
    distance = float((position - spaces.box_center_world).norm(dim=1).mean())
    half = spaces.distance_scene_to_world(0.5 * spaces.aabb_scale)
    share = share_of_rays_meeting_box(cameras, spaces)
    notes = [
        f"spaces: scale {spaces.scale:.6g} ({origin['scale']}), offset {offset} ({origin['offset']}), "
        f"aabb_scale {spaces.aabb_scale} ({origin['aabb_scale']})",
        f"box: half side {half:.3g} in the file's units; cameras {distance:.3g} from its centre on average; "
        f"{100 * share:.0f} % of view rays meet it",
    ]
    if share < 0.5:
        notes.append(
            f"warning: only {100 * share:.0f} % of view rays meet the training box; if the scene does not "
            "lie inside it, state scale and offset in the data file or use --aabb-scale"
        )
    to_focus = focus_point(cameras) - position
    forward = torch.stack([camera.forward for camera in cameras])
    # behind a camera counts only where it lies clearly along the axis
    is_behind = (to_focus * forward).sum(dim=1) < -0.5 * to_focus.norm(dim=1)
    away = float(is_behind.double().mean())
    sees_one_side = any(camera.lens != "equirectangular" for camera in cameras)
    if len(cameras) > 2 and away > 0.8 and other_axes and sees_one_side:
        notes.append(
            f"warning: {100 * away:.0f} % of the cameras look away from the point their axes share; right "
            "for views outwards from one place, else the poses may have the other camera axes: --camera-axes "
            f"{other_axes}"
        )
    return notes

"""The scene out of what a reader states: splits, sizes, memory, cameras, pixels, the training box, and notes.

Nothing here knows in which form the data lay on the disk.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from hashfield.data.dataset import GIB, PosedImages, ReadOptions, Scene
from hashfield.data.depth import known_depths
from hashfield.data.files import MaskFolder
from hashfield.data.images import (
    ImageHeader,
    decode_all,
    decode_mask,
    decode_rgba,
    decoding_bytes,
    downscale_mask,
    read_header,
)
from hashfield.data.json_fields import one_line
from hashfield.data.photo_cache import CachedPhotos, LazyPhotos, PhotoCache, PhotoStats, Wanted, cache_root
from hashfield.data.stated import LARGEST, SPLITS, StatedMask, StatedScene, StatedView, Tally
from hashfield.data.training_box import choose_box, stray_cameras
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
    headers = _headers(views, tally)
    if options.longest_side is not None:
        longest = max(max(header.width, header.height) for header in headers)
        options = replace(options, downscale=max(options.downscale, -(-longest // options.longest_side)))
    largest = _check_decoding(views, headers, options)
    cameras = [_camera(view, header, options, tally) for view, header in zip(views, headers, strict=True)]
    photos, memory_notes = _decoded(
        views, cameras, headers, options, tally, max(1, options.max_image_memory // largest)
    )
    images, stats = photos.images, photos.stats
    has_alpha, alpha_notes = _alpha(stats, any(view.matte for view in views), options)
    named, folder_notes = _masks_of_folder(views, stated, options)
    masks = _masks(views, headers, photos, has_alpha, named, options)
    mask_notes = folder_notes + _mask_notes(masks, [place[view] for view in splits.get("train", [])], stated, options)
    strays, stray_notes = _strays(views, cameras, stated.view_noun)
    near = [camera for index, camera in enumerate(cameras) if index not in strays]
    spaces, origin = _choose_spaces(stated, options, has_alpha, near)
    if "train" in splits:
        check_rays_meet_box(cameras, spaces, str(stated.data_file))

    training = [place[view] for view in splits.get("train", [])]
    depths = known_depths(
        stated, [views[k] for k in training], [_name(views[k], stated) for k in training],
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
            tuple(_name(view, stated) for view in chosen),
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
            *([] if has_alpha else _brightness_notes(stats)),
            *alpha_notes,
            *mask_notes,
            *stray_notes,
            *_space_notes(spaces, origin, near, _other_axes(stated, options)),
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


def _name(view: StatedView, stated: StatedScene) -> str:
    """How the photo is called in a scene: its file relative to the data's folder."""
    return Path(os.path.relpath(view.path, stated.folder)).as_posix()


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
    headers = _headers(views, tally)
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
    names = {view: _name(view, stated) for view in views}
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
    found = {_name(view, stated): view.matte for view in views if view.matte is not None}
    return found | {_name(view, stated): mask.path for view in views for mask in view.masks if not mask.keeps_black}


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


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list and how many more there are, in one line."""
    shown = ", ".join(names[:most])
    return one_line(shown if len(names) <= most else f"{shown} and {len(names) - most} more")


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


# --- sizes, memory, cameras


def _headers(views: Iterable[StatedView], tally: Tally) -> list[ImageHeader]:
    headers = []
    for view in views:
        try:
            headers.append(read_header(view.path))
        except DataError as error:
            raise view.fail(str(error)) from error
        reduction = headers[-1].reduction
        if reduction:
            tally.reduced.setdefault(reduction, []).append(view.name)
    return headers


def _decoded(
    views: list[StatedView],
    cameras: list[Camera],
    headers: list[ImageHeader],
    options: ReadOptions,
    tally: Tally,
    n_threads: int,
) -> tuple[CachedPhotos, list[str]]:
    """The photos: in memory if they fit the budget, else in files of the cache; and a note about these."""

    def explain(index: int, error: DataError) -> DataError:
        return views[index].fail(str(error))

    def warn(index: int, text: str) -> None:
        tally.damaged.setdefault(text, []).append(views[index].name)

    needed, budget = sum(4 * camera.width * camera.height for camera in cameras), options.max_image_memory
    if needed <= budget:
        paths, mattes = [view.path for view in views], [view.matte for view in views]
        images = decode_all(paths, options.downscale, explain, warn, n_threads, mattes)
        return CachedPhotos(images, [], [PhotoStats.of(image) for image in images]), []
    cache = PhotoCache(cache_root() if options.image_cache is None else options.image_cache.expanduser())
    wanted = [
        Wanted(view.path, camera.width, camera.height, view.matte, header.may_have_alpha)
        for view, camera, header in zip(views, cameras, headers, strict=True)
    ]
    try:
        missing = cache.make_room(wanted, options.downscale)
    except DataError as error:
        raise DataError(f"{error}, or {_smaller(headers, options)}") from error
    held = f"{_memory(budget // 2)} of them are in memory at a time"
    options.say(
        f"{len(views)} photos take {_memory(needed)} decoded, more than --max-image-memory ({_memory(budget)}): they "
        f"are kept in files ({_memory(missing)} are missing); {_smaller(headers, options)} does without them"
    )
    found = cache.photos(wanted, options.downscale, explain, warn, n_threads, options.say)
    return found, [f"photos are trained on from files in {cache.root}, {held}"]


def _smaller(headers: list[ImageHeader], options: ReadOptions) -> str:
    """What makes the photos fit the memory that they may take, in words: the least downscaling, or more memory."""

    def size_bytes(factor: int) -> int:
        return sum(4 * (header.width // factor) * (header.height // factor) for header in headers)

    budget, largest = options.max_image_memory, min(min(header.width, header.height) for header in headers)
    factor = options.downscale + 1
    while factor < largest and size_bytes(factor) > budget:
        factor += 1
    more = f"--max-image-memory {-(-size_bytes(options.downscale) // GIB)}"
    if factor > largest or size_bytes(factor) > budget:
        return more
    return f"--downscale {factor} ({_memory(size_bytes(factor))}) or {more}"


def _check_decoding(views: list[StatedView], headers: list[ImageHeader], options: ReadOptions) -> int:
    """Memory that the largest photo takes while it is decoded; raises where that alone is more than the budget."""
    sizes = [decoding_bytes(header, options.downscale) for header in headers]
    largest = int(np.argmax(sizes))
    if sizes[largest] > options.max_image_memory:
        raise views[largest].fail(
            f"{headers[largest].width}x{headers[largest].height} takes {_memory(sizes[largest])} while it is decoded, "
            f"more than --max-image-memory ({_memory(options.max_image_memory)}), which can be raised"
        )
    return max(1, sizes[largest])


def _memory(size_bytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (1024**2, "MiB")):
        if size_bytes >= unit / 10:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes / 1024:.2f} KiB"


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


SILHOUETTE: Final = 0.25
"""Share of transparent pixels from which on photos are cut-outs of an object. NeRF-synthetic's have 0.6 and more;
corners that undistortion left empty have some hundredths."""


def _alpha(stats: Sequence[PhotoStats], has_mattes: bool, options: ReadOptions) -> tuple[bool, list[str]]:
    """Whether the photos are cut-outs of an object by their alpha, and a note where they have some alpha but are
    not, where the data bring it in files of their own, or where the user says what it is."""
    n_pixels = sum(photo.n_pixels for photo in stats)
    n_translucent = sum(photo.n_translucent for photo in stats)
    if not n_translucent:
        return False, [f"--alpha {options.alpha} has no effect: all pixels are opaque"] * (options.alpha != "auto")
    if options.alpha == "matte":
        return True, ["alpha is a matte: it cuts the object out, and nothing is where it is 0 (--alpha matte)"]
    if options.alpha == "auto" and has_mattes:
        return True, ["masks cut the object out: nothing is where they are black; --alpha mask only leaves that out"]
    if options.alpha == "mask":
        return False, ["alpha is a mask: pixels that are not opaque are left out (--alpha mask)"]
    if sum(photo.n_clear for photo in stats) >= SILHOUETTE * n_pixels:
        return True, []
    return False, [
        f"warning: {n_translucent} of {n_pixels} pixels ({100 * n_translucent / n_pixels:.2g} %) are not opaque, too "
        "few to be the background of a cut-out object: the photos are read as ordinary ones, without these pixels; "
        "--alpha matte or --alpha mask says what they are"
    ]


def _masks_of_folder(
    views: list[StatedView], stated: StatedScene, options: ReadOptions
) -> tuple[list[StatedMask | None], list[str]]:
    """The mask of each photo in the folder that the user named, and a note."""
    if options.masks is None:
        return [None] * len(views), []
    root = options.masks.expanduser()
    if not root.is_dir():
        raise DataError(f"--masks {options.masks}: no such folder")
    folder, found = MaskFolder(root), []
    stems = Counter(view.path.stem for view in views)
    for view in views:
        file = view.path.name
        names = [view.name, _name(view, stated)]
        # below the folder of photos, if there is one
        names += [name.partition("/")[2] for name in names if name.startswith("images")]
        path = folder.find([*names, *([file] if stems[view.path.stem] == 1 else [])])
        found.append(None if path is None else StatedMask(path, "--masks", options.masks_keep == "black"))
    missing = [view.name for view, mask in zip(views, found, strict=True) if mask is None]
    if len(missing) == len(views):
        raise DataError(
            one_line(
                f"--masks {options.masks}: no mask has the name of a photo; of {missing[0]} it would be called "
                f"{missing[0]}.png, or have its name with another ending"
            )
        )
    kept = "what is not black" if options.masks_keep == "white" else "what is black"
    told = f"{kept} is learned from (--masks-keep {options.masks_keep})"
    note = f"masks of {len(views) - len(missing)} of {len(views)} photos from {root}: {told}"
    lost = f"warning: no mask in {root} for {some(missing)}: all of their pixels are learned from"
    return found, [note, *[lost] * bool(missing)]


def _masks(
    views: list[StatedView],
    headers: list[ImageHeader],
    photos: CachedPhotos,
    has_alpha: bool,
    named: Sequence[StatedMask | None],
    options: ReadOptions,
) -> list[np.ndarray] | None:
    """Which pixels of each photo show the scene, None where all of them do.

    Where alpha does not cut an object out, a pixel that is not opaque says nothing about the scene either.
    """
    is_alpha_mask = [not has_alpha and photo.n_translucent > 0 for photo in photos.stats]
    if not any(is_alpha_mask) and not any(view.masks for view in views) and not any(named):
        return None
    cache = PhotoCache(photos.files[0].parent) if photos.files else None
    masks = []
    for k, (view, header, own) in enumerate(zip(views, headers, named, strict=True)):
        shape = header.height // options.downscale, header.width // options.downscale
        mask = photos.images[k][..., 3] == 255 if is_alpha_mask[k] else np.ones(shape, np.bool_)
        for stated in (*view.masks, *([] if own is None else [own])):
            try:
                is_set = decode_mask(stated.path)
            except DataError as error:
                raise view.fail(str(error), stated.field) from error
            keeps = is_set != stated.keeps_black
            # masks of the whole photos fit those of images_4, too
            larger = max(1, keeps.shape[1] // header.width)
            if (keeps.shape[0] // larger, keeps.shape[1] // larger) != (header.height, header.width):
                size = f"{keeps.shape[1]}x{keeps.shape[0]}"
                raise view.fail(
                    f"{stated.path}: the mask is {size}, the image {header.width}x{header.height}", stated.field
                )
            mask &= downscale_mask(downscale_mask(keeps, larger), options.downscale)
        masks.append(mask if cache is None else cache.keep_mask(photos.files[k], mask))
    return None if all(bool(mask.all()) for mask in masks) else masks


_MOST_MASKED: Final = 0.9
"""Share of the pixels beyond which a mask may have black and white exchanged."""


def _mask_notes(
    masks: list[np.ndarray] | None, training: list[int], stated: StatedScene, options: ReadOptions
) -> list[str]:
    """What the masks leave; raises where nothing is left to learn from."""
    if masks is None or not training:
        return []
    n_views = sum(1 for index in training if not masks[index].all())
    n_pixels = sum(masks[index].size for index in training)
    n_left = sum(int(masks[index].sum()) for index in training)
    polarity = "mask_path leaves out what is black, as masks/ does, dynamic_mask_* what is not"
    polarity += "" if options.masks is None else f", --masks what is not {options.masks_keep}"
    if not n_left:
        raise DataError(f"{stated.data_file}: the masks leave no pixel to learn from ({polarity})")
    share = 1 - n_left / n_pixels
    text = f"masks leave out {100 * share:.2g} % of the training pixels, in {n_views} of {len(training)} views"
    return [f"warning: {text} ({polarity})" if share > _MOST_MASKED else text]


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
        aabb_scale, origin["aabb_scale"] = options.aabb_scale, "--aabb-scale"
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
    memory = _memory(sum(4 * camera.width * camera.height for camera in cameras))
    return f"{size}{shrunk}, {'with' if has_alpha else 'without'} alpha, lens {lenses}, {memory}"


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


_UNEVEN_BRIGHTNESS: Final = 2.0  # ratio of the 90 % to the 10 % image's mean; instant-ngp's fox has 1.3


def _brightness_notes(stats: Sequence[PhotoStats]) -> list[str]:
    """A warning where photos differ so much in brightness that exposure must have changed between them."""
    means = [photo.mean for photo in stats]
    dark, bright = np.quantile(means, (0.1, 0.9))
    if bright <= _UNEVEN_BRIGHTNESS * max(dark, 1.0):
        return []
    return [
        f"warning: brightness differs between images (means {dark:.0f} to {bright:.0f} of 255): varying "
        "exposure or white balance leaves haze and floating blobs"
    ]


def _other_axes(stated: StatedScene, options: ReadOptions) -> str | None:
    """Camera axes that the poses may have instead of those they were read with."""
    if stated.has_fixed_axes:
        return None
    return "opencv" if options.camera_axes == "opengl" else "opengl"


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

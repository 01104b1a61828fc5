"""The pixels of a scene's photos: their sizes, the memory they take, what cuts them out, and what masks leave of them.

Nothing here knows of cameras or spaces, nor in which form the data lay on the disk.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from hashfield.data.dataset import GIB, ReadOptions
from hashfield.data.files import MaskFolder
from hashfield.data.images import (
    ImageHeader,
    decode_all,
    decode_mask,
    decoding_bytes,
    downscale_mask,
    read_header,
)
from hashfield.data.json_fields import one_line, some
from hashfield.data.photo_cache import CachedPhotos, PhotoCache, PhotoStats, Wanted, cache_root
from hashfield.data.stated import StatedMask, StatedScene, StatedView, Tally
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera


def read_headers(views: Iterable[StatedView], tally: Tally) -> list[ImageHeader]:
    """What the files say of the photos before anything is decoded."""
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


def check_decoding(views: list[StatedView], headers: list[ImageHeader], options: ReadOptions) -> int:
    """Memory that the largest photo takes while it is decoded; raises where that alone is more than the budget.

    Args:
        views: The photos' views, for the error.
        headers: What the photos' files say.
        options: How to read; `max_image_memory` is the budget.
    """
    sizes = [decoding_bytes(header, options.downscale) for header in headers]
    largest = int(np.argmax(sizes))
    if sizes[largest] > options.max_image_memory:
        raise views[largest].fail(
            f"{headers[largest].width}x{headers[largest].height} takes {in_words(sizes[largest])} while it is decoded, "
            f"more than --max-image-memory ({in_words(options.max_image_memory)}), which can be raised"
        )
    return max(1, sizes[largest])


def decode_photos(
    views: list[StatedView],
    cameras: list[Camera],
    headers: list[ImageHeader],
    options: ReadOptions,
    tally: Tally,
    n_threads: int,
) -> tuple[CachedPhotos, list[str]]:
    """The photos: in memory if they fit the budget, else in files of the cache; and a note about these.

    Args:
        views: Whose photos are decoded.
        cameras: The views' cameras, with the sizes that the photos will have.
        headers: What the photos' files say.
        options: How to read; `max_image_memory` is the budget.
        tally: Gets what is wrong with photos that can be decoded all the same.
        n_threads: Photos decoded at a time.

    Raises:
        DataError: a photo cannot be decoded, or the cache has no room for the photos.
    """

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
    held = f"{in_words(budget // 2)} of them are in memory at a time"
    options.say(
        f"{len(views)} photos take {in_words(needed)} decoded, more than --max-image-memory ({in_words(budget)}): they "
        f"are kept in files ({in_words(missing)} are missing); {_smaller(headers, options)} does without them"
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
    return f"--downscale {factor} ({in_words(size_bytes(factor))}) or {more}"


def in_words(size_bytes: int) -> str:
    """Memory as messages show it."""
    for unit, name in ((GIB, "GiB"), (1024**2, "MiB")):
        if size_bytes >= unit / 10:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes / 1024:.2f} KiB"


SILHOUETTE: Final = 0.25
"""Share of transparent pixels from which on photos are cut-outs of an object. NeRF-synthetic's have 0.6 and more;
corners that undistortion left empty have some hundredths."""


def alpha_of(stats: Sequence[PhotoStats], has_mattes: bool, options: ReadOptions) -> tuple[bool, list[str]]:
    """Whether the photos are cut-outs of an object by their alpha, and a note where they have some alpha but are
    not, where the data bring it in files of their own, or where the user says what it is.

    Args:
        stats: What was counted in each photo of the scene.
        has_mattes: Whether files of the data's own are the photos' alpha.
        options: How to read.
    """
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


_UNEVEN_BRIGHTNESS: Final = 2.0  # ratio of the 90 % to the 10 % image's mean; instant-ngp's fox has 1.3


def brightness_notes(stats: Sequence[PhotoStats]) -> list[str]:
    """A warning where photos differ so much in brightness that exposure must have changed between them."""
    means = [photo.mean for photo in stats]
    dark, bright = np.quantile(means, (0.1, 0.9))
    if bright <= _UNEVEN_BRIGHTNESS * max(dark, 1.0):
        return []
    return [
        f"warning: brightness differs between images (means {dark:.0f} to {bright:.0f} of 255): varying "
        "exposure or white balance leaves haze and floating blobs"
    ]


def masks_of_folder(
    views: list[StatedView], stated: StatedScene, options: ReadOptions
) -> tuple[list[StatedMask | None], list[str]]:
    """The mask of each photo in the folder that the user named, and a note.

    Args:
        views: The photos' views.
        stated: What the reader states; names of photos are relative to its folder.
        options: How to read; `masks` is the folder.

    Raises:
        DataError: there is no such folder, or no mask in it has the name of a photo.
    """
    if options.masks is None:
        return [None] * len(views), []
    root = options.masks.expanduser()
    if not root.is_dir():
        raise DataError(f"--masks {options.masks}: no such folder")
    folder, found = MaskFolder(root), []
    stems = Counter(view.path.stem for view in views)
    for view in views:
        file = view.path.name
        names = [view.name, stated.name_of(view)]
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


def masks_of(
    views: list[StatedView],
    headers: list[ImageHeader],
    photos: CachedPhotos,
    has_alpha: bool,
    named: Sequence[StatedMask | None],
    options: ReadOptions,
) -> list[np.ndarray] | None:
    """Which pixels of each photo show the scene, None where all of them do.

    Where alpha does not cut an object out, a pixel that is not opaque says nothing about the scene either.

    Args:
        views: Their own masks count.
        headers: What their photos' files say.
        photos: Decoded.
        has_alpha: Whether alpha cuts an object out.
        named: The mask of each photo in the folder that the user named.
        options: How to read.

    Raises:
        DataError: a mask cannot be read, or has another shape than its photo.
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


def describe_masks(
    masks: list[np.ndarray] | None, training: list[int], stated: StatedScene, options: ReadOptions
) -> list[str]:
    """What the masks leave, as a note.

    Args:
        masks: The mask of each photo of the scene, None where all of their pixels show it.
        training: Numbers of the photos to train on.
        stated: What the reader states.
        options: How to read.

    Raises:
        DataError: nothing is left to learn from.
    """
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

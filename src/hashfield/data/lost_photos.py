"""What is said about how photos fit together: why some got no place, and why there is no scene in them at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hashfield.data.photo_checks import sharpness
from hashfield.data.photo_files import Photo, copy_name, grey_copy
from hashfield.data.structure_from_motion import Matches, Workshop

PLACED: Final = 0.9
"""A smaller share of photos with a place calls for more comparisons, and for a warning."""
_LEAST_PIECE: Final = 3  # photos that make a piece of their own
_BLURRED: Final = 0.6  # of the usual sharpness, of a photo that found no place
_FEW_FEATURES: Final = 60  # a photo with fewer shows no texture


@dataclass(frozen=True)
class LostPhoto:
    """A photo that got no place, and why."""

    name: str
    reason: str


def lost_photos(photos: Sequence[Photo], solved: dict[str, Any], matches: Matches, shop: Workshop) -> list[LostPhoto]:
    """The photos without a place, with the reason.

    Args:
        photos: All of them.
        solved: What the stage "solve" of `structure_worker.py` gave.
        matches: What photos have in common.
        shop: Where their small copies are.
    """
    placed, partners = solved["images"], matches.partners()
    name_of = {copy_name(photo): photo.name for photo in photos}
    pieces = [[name for name in piece if name not in placed] for piece in solved["pieces"][1:]]
    sharp = {copy_name(photo): sharpness(grey_copy(shop.photos / copy_name(photo))) for photo in photos}
    usual = float(np.median(list(sharp.values())))
    lost = []
    for photo in photos:
        copy = copy_name(photo)
        if copy in placed:
            continue
        n_features = len(matches.keypoints.get(copy, ()))
        n_common, other = next(iter(partners.get(copy, [])), (0, ""))
        piece = next((piece for piece in pieces if copy in piece and len(piece) >= _LEAST_PIECE), None)
        if n_features < _FEW_FEATURES:
            reason = f"it shows almost no texture ({n_features} features)"
        elif piece is not None:
            reason = (
                f"it hangs together with {len(piece) - 1} others, but not with the main piece: take photos in between"
            )
        elif sharp[copy] < _BLURRED * usual:
            reason = f"it is blurred (sharpness {sharp[copy] / usual:.2f} of the usual)"
        elif n_common < 30:
            shared = f"it has at most {n_common}" if n_common else "it has no"
            reason = f"{shared} points in common with any other photo: take photos in between"
        else:
            reason = (
                f"its {n_common} points in common with {name_of.get(other, other)} fit no place: something in it moves "
                "or repeats"
            )
        lost.append(LostPhoto(photo.name, reason))
    return lost


def why_no_scene(source: Path, photos: Sequence[Photo], n_placed: int, matches: Matches) -> str:
    """Why there is no scene in the photos, and what to do.

    Args:
        source: Folder of the photos, or the video.
        photos: All of them.
        n_placed: How many got a place.
        matches: What photos have in common.
    """
    counts = [len(matches.keypoints.get(copy_name(photo), ())) for photo in photos]
    if float(np.median(counts)) < _FEW_FEATURES:
        return (
            f"{source}: the photos show almost no texture ({int(np.median(counts))} features each, hundreds are "
            "usual): photograph something with structure, or put patterned things around a plain one"
        )
    hold = {name for pair in matches.pairs for name in (pair.first, pair.second) if len(pair.matches) >= 30}
    if len(hold) < 0.3 * len(photos):
        return (
            f"{source}: of {len(photos)} photos, {len(hold)} have enough in common with another: take photos of one "
            "scene that overlap by two thirds and more"
        )
    return (
        f"{source}: only {n_placed} of {len(photos)} photos fit together, although neighbours have points in "
        "common: walk around the subject in small steps; turning on the spot tells nothing of depth"
    )


def solution_notes(n_photos: int, n_placed: int, solved: dict[str, Any], matches: Matches) -> list[str]:
    """What came out, in lines for the user.

    Args:
        n_photos: Photos that were given.
        n_placed: Those of them that got a place.
        solved: What the stage "solve" of `structure_worker.py` gave.
        matches: What photos have in common.
    """
    cameras = {image["camera"] for image in solved["images"].values()}
    n_lenses = f"{len(cameras)} lens{'es' if len(cameras) > 1 else ''}"
    few = "warning: " if n_placed < PLACED * n_photos else ""
    notes = [
        f"{few}{n_placed} of {n_photos} photos have a place: {n_lenses}, {len(solved['points'])} points, which the "
        f"small copies show {solved['error']:.2f} pixels from where the cameras put them; {len(matches.pairs)} of "
        f"{matches.n_tried} compared pairs of photos have points in common"
    ]
    # COLMAP tries to place lost photos together with placed ones: pieces are what has photos of its own
    own = [set(piece) - set(solved["images"]) for piece in solved["pieces"][1:]]
    own = [piece for piece in own if len(piece) >= _LEAST_PIECE]
    if own:
        sizes = ", ".join(str(size) for size in (n_placed, *map(len, own)))
        notes.append(
            f"warning: the photos fall into pieces that do not connect, of {sizes} photos: the largest is kept"
        )
    return notes

"""What the pixels of photos tell the doctor: other pictures, copies, blur, exposure."""

import math
from typing import Final

import numpy as np
import torch
from PIL import Image

from hashfield.data.doctor_case import MIRROR_BACK, Case
from hashfield.data.photo_checks import copies, gains, relative
from hashfield.data.structure_from_motion import connected


def check_pictures(case: Case) -> None:
    """Say which photos do not show what the sparse model saw in them: mirrored ones, and other pictures of their
    names."""
    assert case.tracks is not None
    grey = [np.asarray(Image.fromarray(p.small).convert("L").reduce(2), np.float64) for p in case.pixels]

    def sampled(k: int, xy: np.ndarray, is_mirrored: bool) -> np.ndarray:
        picture, factor = grey[k], 2 * case.pixels[k].factor
        column = np.clip((xy[:, 0] / factor).astype(int), 0, picture.shape[1] - 1)
        row = np.clip((xy[:, 1] / factor).astype(int), 0, picture.shape[0] - 1)
        return picture[row, picture.shape[1] - 1 - column if is_mirrored else column]

    def likeness(which: int | None = None) -> np.ndarray:
        """For each photo, the median of its correlations with others, photo `which` mirrored."""
        of: list[list[float]] = [[] for _ in case.names]
        for link in case.links:
            if which is None or which in (link.first, link.second):
                ends = zip((link.first, link.second), link.pixels, strict=True)
                a, b = (sampled(k, xy, k == which) for k, xy in ends)
                if a.std() > 4 and b.std() > 4:
                    value = float(np.corrcoef(a, b)[0, 1])
                    of[link.first].append(value)
                    of[link.second].append(value)
        return np.array([float(np.median(values)) if len(values) > 1 else math.nan for values in of])

    alike = likeness()
    if np.isnan(alike).all() or not float(np.nanmedian(alike)) > _ALIKE:
        return
    for k in np.flatnonzero(alike < _UNLIKE).tolist():
        if likeness(k)[k] > max(_ALIKE, alike[k] + 0.3):
            case.say("mirrored", "shows what the sparse model saw in it only when it is mirrored", MIRROR_BACK, [k])
        elif len(case.tracks.sightings[case.name_of[k]].points) >= _MANY and alike[k] < _UNLIKE / 2:
            text = f"does not show what the sparse model saw in it (correlation {alike[k]:.2f} with other photos)"
            case.say("other picture", text, "put the photo back that the model was made from, or leave it out", [k])


_ALIKE: Final = 0.6  # correlation of grey levels at the same points of two photos, usually
_UNLIKE: Final = 0.3
_MANY: Final = 100  # points of a photo; fewer may lie on one plain or shiny thing


def check_copies(case: Case) -> None:
    """Say which photos are there twice, with one pose or with two."""
    for a, b, _ in copies(case.pixels):
        if torch.allclose(case.cameras[a].camera_to_world, case.cameras[b].camera_to_world, atol=1e-6):
            case.say("duplicate", "are the same photo with the same pose", "leave one of them out", (a, b))
        else:
            case.say(
                "duplicate",
                "are the same photo at two places, at least one of which is wrong",
                "leave out the one that does not fit",
                (a, b),
            )


_BLURRED: Final = 0.55  # of the neighbours' sharpness
_BLURRED_OF_ALL: Final = 0.7


def check_sharpness(case: Case) -> np.ndarray:
    """Say which photos are blurred, and return the sharpness of each over its neighbours'."""
    value = np.log2(np.maximum([p.sharpness for p in case.pixels], 1e-3))
    value = np.maximum(value, np.median(value) - 6)
    beside = relative(value, case.near)
    over_all = value - np.median(value)
    for k in np.flatnonzero((beside < math.log2(_BLURRED)) & (over_all < math.log2(_BLURRED_OF_ALL))).tolist():
        case.say(
            "blurred",
            f"is blurred (sharpness {2 ** beside[k]:.2f} of its neighbours')",
            "leave it out, or take it again with a steady hand",
            [k],
        )
    return 2**beside


_STOPS: Final = 0.8
_STOPS_UNLINKED: Final = 1.2
_BALANCE: Final = 0.4
_SPAN: Final = 1.5


def check_exposure(case: Case) -> np.ndarray:
    """Say which photos are exposed differently from their neighbours, and return by how many stops each is."""
    value, limit = np.array([p.brightness for p in case.pixels]), _STOPS_UNLINKED
    balance, near = np.array([p.balance for p in case.pixels]), case.near
    linked = _linked_exposure(case)
    if linked is not None:
        value, balance, limit = linked[:, 0], linked[:, 1:], _STOPS
        # what has nothing in common cannot be compared
        groups = connected(range(len(case.names)), [(link.first, link.second) for link in case.links])
        group = {k: g for g, members in enumerate(groups) for k in members}
        near = [np.array([j for j in row.tolist() if group[j] == group[k]], int) for k, row in enumerate(near)]
        case.span = float(np.subtract(*np.quantile(value, (0.95, 0.05))))
        if case.span > _SPAN:
            case.say(
                "exposure span",
                f"the exposure changes by {case.span:.1f} stops over the capture",
                "train with --refine exposure, or haze and floating blobs make up for it; lock it while taking photos",
            )
    stops = relative(value, near)
    usual = float(np.median(np.abs(stops))) * 1.48
    off = np.flatnonzero(np.abs(stops) > max(limit, 4 * usual)).tolist()
    for k in off:
        word = "brighter" if stops[k] > 0 else "darker"
        case.say(
            "exposure",
            f"is {abs(stops[k]):.1f} stops {word} than its neighbours",
            "leave it out or train with --refine exposure; lock the exposure while taking photos",
            [k],
        )
    tint = np.stack([relative(balance[:, k], near) for k in range(2)], axis=1)
    limit = _BALANCE if linked is not None else 2 * _BALANCE
    jumps = [k for k in np.flatnonzero(np.abs(tint).max(axis=1) > limit).tolist() if k not in off]
    if jumps and linked is not None:
        case.say(
            "white balance",
            f"{'have' if len(jumps) > 1 else 'has'} another white balance than the neighbours (up to "
            f"{np.abs(tint[jumps]).max():.1f} stops between colours)",
            "train with --refine exposure; lock the white balance while taking photos",
            jumps,
        )
    return stops


def _linked_exposure(case: Case) -> np.ndarray | None:
    """Logarithms (base 2) of luminance, red over green and blue over green of each photo, by what it has in common with
    others; None where that is too little."""
    pairs: list[list[tuple[int, int, float]]] = [[], [], []]
    for link in case.links:
        colors = []
        for k, xy in zip((link.first, link.second), link.pixels, strict=True):
            small, factor = case.pixels[k].small, case.pixels[k].factor
            column = np.clip((xy[:, 0] / factor).astype(int), 0, small.shape[1] - 1)
            row = np.clip((xy[:, 1] / factor).astype(int), 0, small.shape[0] - 1)
            colors.append(small[row, column].astype(np.float64))
        usable = np.all([((c > 6) & (c < 249)).all(axis=1) for c in colors], axis=0)
        if usable.sum() < 10:
            continue
        log = [2.2 * np.log2(c[usable] / 255) for c in colors]
        off = log[1] - log[0]
        for kind, value in enumerate((off[:, 1], off[:, 0] - off[:, 1], off[:, 2] - off[:, 1])):
            pairs[kind].append((link.first, link.second, float(np.median(value))))
    found = [gains(len(case.names), part) for part in pairs]
    if any(part is None for part in found):
        return None
    return np.stack([part for part in found if part is not None], axis=1)

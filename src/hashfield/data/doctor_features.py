"""What photos have in common by features that the doctor finds itself, where pycolmap is installed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from hashfield.data.doctor_case import MIRROR_BACK, Case
from hashfield.data.photo_checks import READ_SIDE, Pixels
from hashfield.data.pose_checks import links_of
from hashfield.data.structure_from_motion import Matches, Report, Workshop, appearance_pairs, connected, read_matches
from hashfield.geometry.cameras import Camera

_FEATURES: Final = 2000
_BY_POSE: Final = 4
_BY_LOOK: Final = 6


def match_features(case: Case, report: Report, threads: int) -> None:
    """Find features in all photos and match those of photos that are near or look alike.

    Args:
        case: Gets what photos have in common, and findings about mirrored ones.
        report: Sees the progress, in photos and pairs.
        threads: Threads; -1: one for each CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder), threads)
        shop.photos.mkdir()
        copy = [f"{k:06d}.jpg" for k in range(len(case.names))]
        for name, pixels in zip(copy, case.pixels, strict=True):
            Image.fromarray(pixels.small).save(shop.photos / name, quality=95)
        sizes: dict[tuple[int, ...], list[str]] = {}
        for name, pixels in zip(copy, case.pixels, strict=True):
            sizes.setdefault(pixels.small.shape, []).append(name)
        find_features(shop, list(sizes.values()), report)
        near = {(copy[min(a, b)], copy[max(a, b)]) for a, row in enumerate(case.near) for b in row[:_BY_POSE].tolist()}
        shop.run("match", report, pairs=sorted(near | set(appearance_pairs(shop.database, _BY_LOOK))))
        matches = read_matches(shop.database)
        factor = np.array([[pixels.factor] * 2 for pixels in case.pixels], np.float64)
        number = {name: k for k, name in enumerate(copy)}
        _join(case, shop, copy, matches)
        matches = read_matches(shop.database)
        case.links += links_of(matches, number, case.cameras, factor)
        case.are_matched = True
        _check_mirrored(case, shop, copy, matches)


_MOST_JOINS: Final = 800  # pairs


def _join(case: Case, shop: Workshop, copy: list[str], matches: Matches) -> None:
    """Match more pairs where what was matched falls into pieces, so that these are not of the choice of pairs."""
    groups = connected(copy, [(pair.first, pair.second) for pair in matches.pairs])
    largest, rest = groups[0], [name for group in groups[1:] for name in group]
    number = {name: k for k, name in enumerate(copy)}
    pairs = []
    for name in rest:
        order = np.argsort([_apart(case.cameras[number[name]], case.cameras[number[other]]) for other in largest])
        pairs += [(name, largest[j]) for j in order[: max(1, _MOST_JOINS // len(rest))].tolist()]
    if pairs:
        shop.run("match", pairs=pairs)


def _apart(camera: Camera, other: Camera) -> float:
    return float((camera.position - other.position).norm())


def find_features(shop: Workshop, groups: Sequence[list[str]], report: Report) -> None:
    """Find features in the small copies of a workshop.

    Args:
        shop: Where the copies lie.
        groups: Names of copies, those of one size together.
        report: Sees the progress.
    """
    listed = [{"names": names, "model": "SIMPLE_RADIAL", "params": ""} for names in groups]
    shop.run("features", report, groups=listed, features=_FEATURES, longest_side=READ_SIDE, first_octave=0)


def _check_mirrored(case: Case, shop: Workshop, copy: list[str], matches: Matches) -> None:
    """Photos that match hardly any other, but do when they are mirrored."""
    partners = matches.partners()
    most = np.array([partners.get(name, [(0, "")])[0][0] if partners.get(name) else 0 for name in copy])
    usual = float(np.median(most))
    told = {name for finding in case.findings for name in finding.photos if finding.kind == "mirrored"}
    lonely = [k for k in range(len(copy)) if most[k] < 0.35 * usual and len(matches.keypoints.get(copy[k], ())) > 100]
    lonely = [k for k in lonely if case.names[k] not in told]
    if not lonely or usual < 40:
        return
    flipped = {}
    for k in lonely[:20]:
        flipped[k] = f"mirrored_{copy[k]}"
        Image.fromarray(case.pixels[k].small[:, ::-1]).save(shop.photos / flipped[k], quality=95)
    sizes: dict[tuple[int, ...], list[str]] = {}
    for k, name in flipped.items():
        sizes.setdefault(case.pixels[k].small.shape, []).append(name)
    find_features(shop, list(sizes.values()), lambda done, total: None)
    pairs = [(name, copy[j]) for k, name in flipped.items() for j in case.near[k].tolist() if j not in flipped]
    alike = appearance_pairs(shop.database, _BY_LOOK)
    pairs += [(a, b) for a, b in alike if ("mirrored_" in a) != ("mirrored_" in b)]
    shop.run("match", pairs=pairs)
    found = read_matches(shop.database).partners()
    for k, name in flipped.items():
        best = max((n for n, other in found.get(name, []) if "mirrored_" not in other), default=0)
        if best > max(30, 2.5 * most[k]):
            case.say(
                "mirrored",
                f"fits the others only when it is mirrored ({best} points in common, {most[k]} as it is)",
                MIRROR_BACK,
                [k],
            )


def common_points(case: Case, found: list[Pixels]) -> list[tuple[int, str]]:
    """For each photo without a place, the most points that it has in common with one that has."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        shop.photos.mkdir()
        sizes: dict[tuple[int, ...], list[str]] = {}
        for kind, listed in (("a", case.pixels), ("b", found)):
            for k, pixels in enumerate(listed):
                name = f"{kind}{k:06d}.jpg"
                Image.fromarray(pixels.small).save(shop.photos / name, quality=95)
                sizes.setdefault(pixels.small.shape, []).append(name)
        find_features(shop, list(sizes.values()), lambda done, total: None)
        pairs = [(f"b{k:06d}.jpg", f"a{j:06d}.jpg") for k in range(len(found)) for j in range(len(case.pixels))]
        shop.run("match", pairs=pairs)
        partners = read_matches(shop.database).partners()
    best = []
    for k in range(len(found)):
        n, other = next(iter(partners.get(f"b{k:06d}.jpg", [])), (0, ""))
        best.append((n, case.names[int(other[1:7])] if other else ""))
    return best

"""Whether cameras agree with what photos have in common, and what else would."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64

from hashfield.data.sparse_tracks import Tracks
from hashfield.data.structure_from_motion import Matches
from hashfield.geometry.cameras import Camera, camera_table, project, rays_from_pixels
from hashfield.geometry.paths import focus_point

_TOLERANCE: Final = 4.0
"""Pixels of a picture of 1000 that a ray may pass the other one by."""
_LEAST_MATCHES: Final = 16


@dataclass(frozen=True)
class Link:
    """Two photos and the pixels at which both show the same things."""

    first: int
    second: int
    pixels: tuple[np.ndarray, np.ndarray]
    """In pixels of the photos, [n, 2] each."""


def links_of(matches: Matches, copies: Mapping[str, int], cameras: Sequence[Camera], factor: np.ndarray) -> list[Link]:
    """Matches between photos with cameras.

    Args:
        matches: Between small copies.
        copies: Name of a copy -> number of its camera.
        cameras: One for each photo.
        factor: Pixels of the photo for each pixel of its copy, [n_cameras, 2].
    """
    found = []
    for pair in matches.pairs:
        if pair.first not in copies or pair.second not in copies or len(pair.matches) < _LEAST_MATCHES:
            continue
        a, b = copies[pair.first], copies[pair.second]
        xy = (
            matches.keypoints[pair.first][pair.matches[:, 0]] * factor[a],
            matches.keypoints[pair.second][pair.matches[:, 1]] * factor[b],
        )
        found.append(Link(a, b, (xy[0].astype(np.float64), xy[1].astype(np.float64))))
    return found


def agreement(cameras: Sequence[Camera], links: Sequence[Link]) -> Float64[np.ndarray, " n_links"]:
    """For each link, the share of its matches that the two cameras explain: their rays meet, in front of both."""
    if not links:
        return np.zeros(0)
    table = camera_table(cameras)
    count = torch.tensor([len(link.pixels[0]) for link in links])
    sides = []
    for side, number in enumerate((lambda link: link.first, lambda link: link.second)):
        index = torch.tensor([number(link) for link in links]).repeat_interleave(count)
        pixel = torch.from_numpy(np.concatenate([link.pixels[side] for link in links]))
        sides.append(rays_from_pixels(table, index, pixel))
    (o1, d1), (o2, d2) = ((o.numpy(), d.numpy()) for o, d in sides)
    between = o2 - o1
    normal = np.cross(between, d1)
    length = np.linalg.norm(normal, axis=1)
    # where one camera nearly looks along the line to the other, or both stand in one place, the rays' angle counts
    flat = length < 1e-6 * (1 + np.linalg.norm(between, axis=1))
    off = np.abs((normal * d2).sum(axis=1)) / np.maximum(length, 1e-12)
    off = np.where(flat, np.linalg.norm(np.cross(d1, d2), axis=1), off)
    # distances along both rays to where they are nearest
    cosine = (d1 * d2).sum(axis=1)
    sine2 = np.maximum(1 - cosine**2, 1e-12)
    along1 = ((between * d1).sum(axis=1) - cosine * (between * d2).sum(axis=1)) / sine2
    along2 = (cosine * (between * d1).sum(axis=1) - (between * d2).sum(axis=1)) / sine2
    in_front = ((along1 > 0) & (along2 > 0)) | (sine2 < 1e-5)
    reach = np.repeat(
        [
            _TOLERANCE * max(max(c.width, c.height) / c.fx for c in (cameras[link.first], cameras[link.second])) / 1000
            for link in links
        ],
        count.numpy(),
    )
    good = (off < reach) & in_front
    ends = np.cumsum(count.numpy())[:-1]
    return np.array([part.mean() for part in np.split(good, ends)])


def photo_agreement(n: int, links: Sequence[Link], shares: np.ndarray) -> Float64[np.ndarray, " n"]:
    """For each photo, the median of its links' shares; NaN where it has none.

    Args:
        n: How many photos there are.
        links: Between photos.
        shares: What `agreement` says of each link.
    """
    of: list[list[float]] = [[] for _ in range(n)]
    for link, share in zip(links, shares, strict=True):
        of[link.first].append(float(share))
        of[link.second].append(float(share))
    return np.array([float(np.median(shares)) if shares else math.nan for shares in of])


# --- what the poses could be instead


def inverted(cameras: Sequence[Camera], camera_axes: str) -> list[Camera]:
    """The cameras if the file's matrices were world-to-camera: each matrix inverted, in the file's own axes."""
    sign = np.array([1.0, -1.0, -1.0]) if camera_axes == "opengl" else np.ones(3)
    found = []
    for camera in cameras:
        pose = camera.camera_to_world.numpy()
        stored = pose[:, :3] * sign
        pose = np.column_stack([stored.T * sign, -stored.T @ pose[:, 3]])
        found.append(camera.moved(torch.from_numpy(np.ascontiguousarray(pose))))
    return found


def other_axes(cameras: Sequence[Camera]) -> list[Camera]:
    """The cameras if the file's poses had OpenCV's axes where OpenGL's were read, or the reverse."""
    turn = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    return [camera.moved(camera.camera_to_world * turn) for camera in cameras]


def square_pixels(cameras: Sequence[Camera]) -> list[Camera]:
    """The cameras with the focal length along x for both axes."""
    return [Camera(**{**_fields(camera), "fy": camera.fx}) for camera in cameras]


def _fields(camera: Camera) -> dict[str, object]:
    return {name: getattr(camera, name) for name in camera.__dataclass_fields__}


def convergence(cameras: Sequence[Camera]) -> float:
    """How well the cameras look at one point from around it, 0 to 1: the mean cosine between their axes and the
    direction to it, times how far apart the directions are."""
    position = torch.stack([camera.position for camera in cameras]).numpy()
    forward = torch.stack([camera.forward for camera in cameras]).numpy()
    arms = focus_point(cameras).numpy() - position
    length = np.linalg.norm(arms, axis=1)
    spread = np.linalg.norm(position - position.mean(axis=0), axis=1).mean()
    if not spread > 0.02 * max(float(length.mean()), 1e-12):
        return 0.0  # all stand in one place
    cosine = (arms * forward).sum(axis=1) / np.maximum(length, 1e-12)
    return float(np.clip(cosine, -1, 1).mean() * (1 - np.linalg.norm(forward.mean(axis=0))))


# --- sparse points


def reprojection(
    cameras: Sequence[Camera], sightings: Tracks, name_of: Mapping[int, str]
) -> tuple[Float64[np.ndarray, " n"], list[int]]:
    """For each camera, the median distance in pixels of a picture of 1000 between where a photo shows the points of the
    model and where its camera would, NaN where the model does not have the photo; and how many points it shows.

    Args:
        cameras: In the world of the points.
        sightings: What the model's photos show.
        name_of: Number of a camera -> name of its photo in the model.
    """
    table = camera_table(cameras)
    off, n_seen = np.full(len(cameras), math.nan), [0] * len(cameras)
    for index, name in name_of.items():
        seen, camera = sightings.sightings[name], cameras[index]
        n_seen[index] = len(seen.points)
        if not len(seen.points):
            continue
        points = torch.from_numpy(sightings.points[seen.points])
        pixel, is_valid = project(table, torch.full((len(points),), index), points)
        there = seen.pixels * (np.array([camera.width, camera.height]) / np.array(seen.size))
        distance = np.linalg.norm(pixel.numpy() - there, axis=1)
        distance = np.where(is_valid.numpy(), distance, np.inf)
        off[index] = float(np.median(distance)) * 1000 / max(camera.width, camera.height)
    return off, n_seen


def neighbours(cameras: Sequence[Camera], n: int) -> list[np.ndarray]:
    """For each camera the numbers of its nearest ones, by position and direction, nearest first."""
    position = torch.stack([camera.position for camera in cameras]).numpy()
    forward = torch.stack([camera.forward for camera in cameras]).numpy()
    away = np.linalg.norm(position - focus_point(cameras).numpy(), axis=1)
    unit = max(float(np.median(away)), 1e-9)
    apart = np.linalg.norm(position[:, None] - position, axis=2) / unit
    apart = apart + 2 * (1 - np.clip(forward @ forward.T, -1, 1))
    np.fill_diagonal(apart, np.inf)
    return [row[: min(n, len(cameras) - 1)] for row in np.argsort(apart, axis=1)]


def explains_better(
    cameras: Sequence[Camera], links: Sequence[Link], change: Callable[[Sequence[Camera]], list[Camera]]
) -> tuple[float, float]:
    """The mean share of matches explained by the cameras as they are, and as changed.

    Args:
        cameras: As they were read.
        links: What photos have in common.
        change: Makes other cameras of them.
    """
    return float(agreement(cameras, links).mean()), float(agreement(change(cameras), links).mean())

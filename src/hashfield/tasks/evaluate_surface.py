"""How close a learned distance comes to its mesh: IoU, distance error, and two figures of the extracted surface."""

import math
from typing import Any, Final

import numpy as np
import torch

from hashfield.data.mesh_distance import INSIDE, DistanceQuery
from hashfield.data.mesh_samples import HALF_DIAGONAL, SurfaceSampler
from hashfield.errors import ConfigError
from hashfield.tasks.sdf import MeshInUnitSpace
from hashfield.tasks.sdf_model import SdfModel

CLOSE: Final = 1e-3
"""F-score: a point is met if the other surface is nearer than this share of the mesh's diagonal."""
_NEAR: Final = HALF_DIAGONAL / 1024
_AT_ONCE: Final = 2**20


def evaluate_distance(
    model: SdfModel,
    truth: MeshInUnitSpace,
    *,
    n_points: int = 2**20,
    n_surface: int = 2**17,
    seed: int = 1,
    surface: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Figures as JSON values, world units; None where one is not defined.

    Args:
        model: What is judged.
        truth: The mesh it was made from.
        n_points: Uniform points for the IoU.
        n_surface: Points near the surface, and points drawn on each of the two surfaces.
        seed: Seed of the draws.
        surface: Vertices (world) and faces of the model's extracted surface; None leaves out Chamfer and F-score.

    Raises:
        ConfigError: a count or the seed is out of range.
    """
    for name, value in (("n_points", n_points), ("n_surface", n_surface)):
        if not 1 <= value <= 2**31:
            raise ConfigError(f"{name}: expected 1 to {2**31}, got {value}")
    if seed < 0:
        raise ConfigError(f"seed: expected a whole number >= 0, got {seed}")
    uniform, near, drawn = (np.random.Generator(np.random.SFC64(s)) for s in np.random.SeedSequence(seed).spawn(3))
    both = either = n_inside = 0
    for first in range(0, n_points, _AT_ONCE):
        points = truth.box[0] + uniform.random((min(_AT_ONCE, n_points - first), 3)) * (truth.box[1] - truth.box[0])
        is_inside = truth.query.signed(points) <= 0
        found = _learned(model, points) <= 0
        both, either = both + int((is_inside & found).sum()), either + int((is_inside | found).sum())
        n_inside += int(is_inside.sum())
    sampler = SurfaceSampler(truth.query.vertices, truth.query.faces)
    draws = near.random((n_surface, 3)).clip(1e-9, 1 - 1e-9)
    noise = np.log(draws / (1 - draws)) * (_NEAR * math.sqrt(3) / math.pi)
    points = (sampler.draw(n_surface, near) + noise).clip(truth.box[0], truth.box[1])
    error = np.abs(_learned(model, points) - truth.query.signed(points))
    to_world = truth.spaces.distance_scene_to_world(1.0)
    diagonal = float(np.linalg.norm(truth.query.vertices.max(0) - truth.query.vertices.min(0)))
    figures: dict[str, Any] = {
        "iou": both / either if either else None,
        "mean_distance": float(error.mean() * to_world),
        "mean_distance_of_diagonal": float(error.mean() / diagonal),
        "chamfer": None, "f_score": None, "precision": None, "recall": None,
        "seed": seed, "n_points": n_points, "n_inside": n_inside, "n_surface": n_surface,
        "diagonal": diagonal * to_world, "inside": INSIDE[truth.query.rule],
        "iou_of": "uniform points of the mesh's box grown by 0.005 of its diagonal: both inside / either inside",
        "mean_distance_of": f"points of the surface moved by logistic noise of standard deviation {_NEAR:.3e} of the "
                            "unit cube: mean |learned - exact|, world units",
        "chamfer_of": "mean of both directions: points drawn on one surface, mean distance to the other, world units",
        "f_score_of": f"share of those points nearer than {CLOSE:g} of the diagonal, harmonic mean of both directions",
    }  # fmt: skip
    if surface is not None and len(surface[1]):
        vertices = truth.spaces.world_to_unit(torch.from_numpy(np.asarray(surface[0], np.float64))).numpy()
        other = DistanceQuery(vertices, np.asarray(surface[1], np.int64), "winding")
        there = truth.query.unsigned(SurfaceSampler(other.vertices, other.faces).draw(n_surface, drawn))
        back = other.unsigned(sampler.draw(n_surface, drawn))
        precision, recall = (float(np.mean(d < CLOSE * diagonal)) for d in (there, back))
        figures["chamfer"] = float(0.5 * (there.mean() + back.mean()) * to_world)
        figures["precision"], figures["recall"] = precision, recall
        figures["f_score"] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return figures


def _learned(model: SdfModel, points: np.ndarray) -> np.ndarray:
    """Signed distances in unit space."""
    return model.distance_unit(torch.from_numpy(points).to(model.box.device)).cpu().numpy()

"""Held-out views judged after they were aligned: fitted on the left half of each view, judged on the right half.

A scene that was learned with refined poses lies where the photos' own errors put it, and one with refined exposures is
as bright as the photos' mean: a held-out view, whose pose and exposure nobody refined, misses it by that. So pose and
exposure are fitted on one half of the photo, with the model as it is, and the other half, which no fit has seen, is
judged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from hashfield.data.dataset import PosedImages
from hashfield.errors import DataError
from hashfield.export.images import over
from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.rays import PixelPool, RayBatch
from hashfield.ops.render_rays import MarchOptions
from hashfield.ops.train_rays import RayGradients, TrainWorkspace, train_rays
from hashfield.ops.training_rays import training_rays
from hashfield.steps.correction_units import inverse_root, pose_effects, rotation_of
from hashfield.steps.pixel_source import flat_masks, masked_pool, pixel_pool
from hashfield.steps.refinement import SATURATED, Part
from hashfield.tasks.frames import Region
from hashfield.tasks.nerf_model import NerfModel
from hashfield.train.metrics import psnr, ssim

GOLDEN: Final = 0.6180339887
"""Views are judged in the order of the fractions of its multiples, so that the first few are spread over all."""
N_NEAR: Final = 4
"""Photos whose gains tell how bright a view should be."""
N_RAYS: Final = 4096
"""Rays of the left half that a view is fitted on."""
N_STEPS: Final = 20
"""Steps of the fit of a pose, at most."""
LEAST_STEP: Final = 1e-5
"""Radians by which rays move in a step that is the last."""
LONGEST_STEP: Final = 0.01
"""Radians by which they move in a step, at most: farther, a ray's colour tells little of another place's."""
MOST_DAMPING: Final = 10.0
"""Damping at which no step is better than none."""


@dataclass(frozen=True)
class Alignment:
    """What was fitted to a view."""

    camera: Camera
    """The camera where the model agrees best with the photo's left half."""
    gain: Float64[np.ndarray, " 3"]
    """What the rendering's channels are multiplied by."""
    degrees: float
    """How far the camera was turned."""
    world_units: float
    """How far it was moved."""


def evaluate_aligned(
    model: NerfModel,
    views: PosedImages,
    parts: Sequence[Part],
    background: tuple[float, float, float] | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """Figures of the views' right halves after each view was aligned by its left half, as JSON values.

    Args:
        model: What is judged; it is not changed.
        views: Photos it is compared with.
        parts: "poses" fits each view's pose, "exposure" a gain of each channel; "lens" changes nothing here.
        background: Behind photo and rendering alike; the model's own if None.
        seed: Chooses the pixels that are fitted.
        max_seconds: About how long it may take: then fewer views are judged, spread over all. None: every view.

    Raises:
        DataError: there is no view.
    """
    if not len(views):
        raise DataError("nothing to evaluate: the split holds no view")
    background = model.background if background is None else background
    fit = Fit(model, parts, background)
    figures = []
    start, n = time.perf_counter(), len(views)
    for k in sorted(range(n), key=lambda k: k * GOLDEN % 1.0):
        if figures and max_seconds is not None and time.perf_counter() - start > max_seconds:
            break
        camera, image, name = views.cameras[k], views.images[k], views.names[k]
        mask = None if views.masks is None else views.masks[k]
        found = fit.align(camera, image, mask, seed)
        left = camera.width // 2
        region = Region(left, 0, camera.width - left, camera.height)
        frame = model.frame(found.camera, ("color", "opacity"), None, region)
        color = frame["color"] * found.gain + (1 - frame["opacity"])[..., None] * np.array(background)
        rendering, photo = np.clip(color, 0.0, 1.0).astype(np.float32), over(image, background)[:, left:]
        right = None if mask is None else mask[:, left:]
        if right is not None and not right.any():
            continue
        where = slice(None) if right is None else right
        figures.append({
            "name": name, "psnr": psnr(rendering[where], photo[where]), "ssim": ssim(rendering, photo, right),
            "gain": found.gain.tolist(), "degrees": found.degrees, "world_units": found.world_units,
        })  # fmt: skip
    if not figures:
        raise DataError("nothing to evaluate: no held-out view's mask holds a pixel of its right half")
    return {
        "psnr": float(np.mean([f["psnr"] for f in figures])),
        "ssim": float(np.nanmean([f["ssim"] for f in figures])),
        "n_views": len(figures),
        "n_given": n,
        "alignment": alignment_text(parts),
        "views": figures,
    }


def as_refined(views: PosedImages, cameras: Sequence[Camera]) -> PosedImages:
    """Views with the cameras that a model knows them by, such as those that training has refined.

    Args:
        views: Photos as they were read now, at any size.
        cameras: The model's cameras of this split; where they are not as many, the views stay as they are.
    """
    if len(cameras) != len(views):
        return views
    sized = (_at_size_of(own, known) for known, own in zip(cameras, views.cameras, strict=True))
    return replace(views, cameras=tuple(sized))


def as_known(views: PosedImages, model: NerfModel, split: str) -> PosedImages:
    """Views as a model that has refined its photos knows them: with its cameras, and, where it learned exposures, to be
    rendered as bright as the training photos nearest to each, whose exposure is the best guess at a view's own that
    does not look at the view. Of other models the views stay as they are.

    Args:
        views: Photos as they were read now, at any size.
        model: What they are compared with.
        split: Which of the model's splits they are.
    """
    report = model.info.get("refinement")
    if report is None:
        return views
    views = as_refined(views, model.cameras.get(split, []))
    photos, gains = model.cameras.get("train", []), np.array(report.get("gains", ()))
    if split == "train" or gains.shape != (len(photos), 3):
        return views if gains.shape != (len(views), 3) else replace(views, gains=gains)
    return replace(views, gains=gains_nearby(views.cameras, photos, gains))


def gains_nearby(
    views: Sequence[Camera], photos: Sequence[Camera], gains: Float64[np.ndarray, "n_photos 3"]
) -> Float64[np.ndarray, "n_views 3"]:
    """The gains that views should have by those of the `N_NEAR` photos that were taken most like each.

    How much the neighbours' mean tells is learned from the photos, each of which has neighbours too: its logarithm is
    multiplied by the slope with which it predicts theirs. So where exposure jumps from photo to photo, gains are 1.

    Args:
        views: Cameras of the views, world.
        photos: Cameras of the photos, world.
        gains: Gains of the photos.
    """
    own = np.log(gains)
    among = _mean_of_near(_apart(photos, photos) + np.diag(np.full(len(photos), np.inf)), own)
    slope = float((among * own).sum() / max(float((among * among).sum()), 1e-30))
    return np.exp(min(max(slope, 0.0), 1.0) * _mean_of_near(_apart(views, photos), own))


def _apart(views: Sequence[Camera], photos: Sequence[Camera]) -> Float64[np.ndarray, "n_views n_photos"]:
    """How differently views and photos were taken: their distance by that of photos from their middle, and the angle
    between their directions in radians."""
    (place, gaze), (known, known_gaze) = (
        (np.stack([camera.position.numpy() for camera in cameras]),
         np.stack([camera.camera_to_world[:, 2].numpy() for camera in cameras]))
        for cameras in (views, photos)
    )  # fmt: skip
    reach = np.median(np.linalg.norm(known - known.mean(0), axis=1))
    apart = np.linalg.norm(place[:, None] - known, axis=2) / max(float(reach), 1e-12)
    return apart + np.arccos(np.clip(gaze @ known_gaze.T, -1.0, 1.0))


def _mean_of_near(
    apart: Float64[np.ndarray, "n_views n_photos"], values: Float64[np.ndarray, "n_photos 3"]
) -> Float64[np.ndarray, "n_views 3"]:
    """The mean of the nearest photos' values, the nearer the more."""
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :N_NEAR]
    weight = 1 / np.maximum(np.take_along_axis(apart, nearest, 1), 1e-3) ** 2
    weight /= weight.sum(1, keepdims=True)
    return (values[nearest] * weight[:, :, None]).sum(1)


def _at_size_of(own: Camera, known: Camera) -> Camera:
    """A camera that is known for another size of its photo than `own`, at the size of `own`.

    Photos are divided by whole numbers, and what is left over at their right and lower edges is dropped.
    """
    small, large = (known, own) if known.width <= own.width else (own, known)
    factor = large.width // small.width
    if (large.width // factor, large.height // factor) != (small.width, small.height):
        return known.resized(own.width, own.height)
    scale = float(factor) if large is own else 1 / factor
    return replace(
        known, width=own.width, height=own.height, fx=known.fx * scale, fy=known.fy * scale, cx=known.cx * scale,
        cy=known.cy * scale,
    )  # fmt: skip


def alignment_text(parts: Sequence[str]) -> str:
    """How `evaluate_aligned` treats a view, in words.

    >>> alignment_text(["exposure"])
    'exposure fitted on the left half of each view, judged on the right half'
    """
    fitted = " and ".join(name for part, name in (("poses", "pose"), ("exposure", "exposure")) if part in parts)
    return f"{fitted or 'nothing'} fitted on the left half of each view, judged on the right half"


class Fit:
    """Fits views to a model, one after another."""

    def __init__(
        self, model: NerfModel, parts: Sequence[Part], background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> None:
        """Args:
        model: What views are fitted to.
        parts: "poses" and "exposure" are fitted where named.
        background: Behind photos with alpha.
        """
        self.model, self.spaces = model, model.spaces
        self.fits_pose, self.fits_gain = "poses" in parts, "exposure" in parts
        self.field = model.parameters_of_field()
        self.device = model.bits.device
        # A gain is not that of what lies behind the scene: with black there, only the scene is seen.
        self.background = (0.0, 0.0, 0.0) if self.fits_gain else background
        self.options = MarchOptions(self.spaces.aabb_scale, self.spaces.cone_angle, model.step_scale, 1e-3)
        self.workspace: TrainWorkspace | None = None

    def align(
        self, camera: Camera, image: np.ndarray, mask: Bool[np.ndarray, "h w"] | None = None, seed: int = 0
    ) -> Alignment:
        """The camera and the gain with which the model agrees best with the left half of a photo.

        Args:
            camera: Where the photo's file puts it, world.
            image: The photo, uint8 [h, w, 4].
            mask: Pixels that may be fitted.
            seed: Chooses among them.
        """
        gain = np.ones(3)
        if not (self.fits_pose or self.fits_gain):
            return Alignment(camera, gain, 0.0, 0.0)
        left = np.zeros((camera.height, camera.width), bool)
        left[:, : camera.width // 2] = True
        if mask is not None:
            left &= mask
        if not left.any():
            return Alignment(camera, gain, 0.0, 0.0)
        given = self.spaces.camera_table_to_scene(camera_table([camera]))
        pool = masked_pool(pixel_pool([image], given, self.device), flat_masks([left], self.device))
        random = np.random.default_rng(seed)
        chosen = torch.from_numpy(random.integers(0, pool.n_pool, min(N_RAYS, 4 * pool.n_pool))).to(self.device)
        table = given.clone()
        if self.fits_pose:
            table = self._fitted(pool, chosen, given)
        if self.fits_gain:
            gain = self._gain(*self._look(pool, chosen, table, gain), gain)
        moved = self.spaces.camera_table_to_world(table)[0, :12].reshape(3, 4)
        left_turn, _, right_turn = torch.linalg.svd(moved[:, :3])
        moved = torch.cat([left_turn @ right_turn, moved[:, 3:]], 1)
        before = camera.camera_to_world
        trace = float((moved[:, :3] * before[:, :3]).sum())
        degrees = float(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))))
        return Alignment(camera.moved(moved), gain, degrees, float((moved[:, 3] - before[:, 3]).norm()))

    def _look(
        self, pool: PixelPool, chosen: Tensor, table: Tensor, gain: Float64[np.ndarray, " 3"]
    ) -> tuple[RayBatch, RayGradients]:
        """What the model says of some pixels of a camera, with what would make it agree with the photo over a gain."""
        n = len(chosen)
        jitter = torch.full((n,), 0.5, device=self.device)
        background = torch.tensor(self.background, device=self.device).expand(n, 3).contiguous()
        batch = training_rays(
            chosen, replace(pool, table=table.to(self.device)), self.model.box, jitter=jitter, background=background
        )
        channels = torch.from_numpy(np.append(1 / gain, 1.0)).to(batch.target)
        batch = replace(batch, target=batch.target * channels)
        if self.workspace is None:
            self.workspace = TrainWorkspace(self.field, 128 * N_RAYS)
        found = train_rays(
            self.field, batch, self.model.bits, self.options, self.workspace, ray_gradients=True
        ).ray_gradients  # fmt: skip
        assert found is not None
        return batch, found

    def _gain(self, batch: RayBatch, found: RayGradients, gain: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, " 3"]:
        """The gain of each channel with which the rendering comes closest to the photo, by least squares.

        Args:
            batch, found: What `_look` gave.
            gain: The earlier gain that it was given.
        """
        rgb = batch.target[:, :3].double()
        counts = ((rgb * torch.from_numpy(gain).to(rgb)).amax(1) <= SATURATED)[:, None]
        photo = rgb * batch.target[:, 3:]
        color = torch.where(counts, found.color, 0.0).double()
        ratio = (color * photo).sum(0) / color.square().sum(0).clamp(min=1e-6)
        return (gain * ratio.cpu().numpy()).clip(0.05, 20.0)

    def _fitted(self, pool: PixelPool, chosen: Tensor, given: Float64[Tensor, "1 24"]) -> Float64[Tensor, "1 24"]:
        """The camera whose rays agree best, by damped Gauss-Newton on each ray's distance in colour."""
        sizes = torch.stack([pool.widths, pool.heights], 1).double().cpu()
        reach = max(0.25, float((given[0, [3, 7, 11]] - 0.5).norm()))
        unit = inverse_root(pose_effects(given, sizes))[0]
        best, best_error, table, damping = given, np.inf, given, 1e-2
        hessian, slope = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        gain = np.ones(3)
        if self.fits_gain:
            gain = self._gain(*self._look(pool, chosen, table, gain), gain)
        for _ in range(N_STEPS):
            batch, found = self._look(pool, chosen, table, gain)
            error, new_hessian, new_slope = self._normal_equations(batch, found, unit, reach)
            if error < best_error:
                best, best_error, hessian, slope, damping = table, error, new_hessian, new_slope, damping / 3
                gain = self._gain(batch, found, gain) if self.fits_gain else gain
            else:
                damping *= 4
            step = -torch.linalg.solve(hessian + damping * torch.diag(hessian.diagonal() + 1e-9), slope)
            length = float(step.norm())
            if length < LEAST_STEP or damping > MOST_DAMPING:
                break
            by = unit @ (step * min(1.0, LONGEST_STEP / length))
            pose = best[:, :12].reshape(3, 4)
            turned = rotation_of(by[None, :3])[0] @ pose[:, :3]
            table = torch.cat([torch.cat([turned, (pose[:, 3] + reach * by[3:])[:, None]], 1).reshape(1, 12),
                               best[:, 12:]], 1)  # fmt: skip
        return best

    def _normal_equations(
        self, batch: RayBatch, found: RayGradients, unit: Tensor, reach: float
    ) -> tuple[float, Tensor, Tensor]:
        """(mean squared distance, Gauss-Newton's matrix, slope) of the rays' distances in colour to the photo."""
        wish = batch.target[:, :3] * batch.target[:, 3:] + batch.background * (1 - batch.target[:, 3:])
        difference = (found.color - wish).double()
        by_origin, by_direction = (x.double() * batch.n_rays for x in (found.grad_origin, found.grad_direction))
        distance = torch.sqrt(difference.square().sum(1) + 1e-6)
        direction = batch.rays.direction.double()
        slope = torch.cat([torch.linalg.cross(direction, by_direction), reach * by_origin], 1).cpu() @ unit
        slope = slope / (2 * distance.cpu()[:, None])
        distance = distance.cpu()
        n = len(distance)
        return float(distance.square().mean()), slope.T @ slope / n, slope.T @ distance / n

"""What is learned besides the field: each photo's pose and exposure, and the lenses, from the gradients of rays.

Three small parts, each on its own and each a group of the optimiser: "poses" turns and moves every camera, "lens"
changes the focal length, principal point and first distortion terms that photos share, "exposure" is a gain for each
photo and channel. A step's kernels know none of it: rays come from moved cameras, targets are divided by gains, and
what the kernels say about each ray (`ops.train_rays`, ray_gradients) is carried on from there to these numbers.

Poses and lenses are learned in units in which every number moves rays about as far as any other, and none does what
others do already (camera preconditioning): a shift sideways and a turn are nearly the same to a picture, a roll hardly
shows, and Adam, which gives every number the same step, would otherwise go where noise leads.

What photos cannot tell is held: the cameras' corrections have no common turn, shift or growth, and the logarithms of
the gains have the mean 0, for each channel, and no part that changes smoothly with where a photo was taken from: that
could as well be how surfaces shine, which the field learns and can tell of other views too.

A longer focal length and cameras that stand as much farther away make the same picture but for perspective. So all
cameras follow the focal length, away from the point that they look at or towards it, and the scene that is being
learned stays as large as it is; else all of it would have to be learned anew for every change of the focal length.

A file that is nearly right is trusted more than one that is off: what pulls corrections back is a prior, whose width is
learned from all of them together (empirical Bayes).

Source: preconditioning from CamP (Park et al. 2023), section 4; waiting levels from BARF (Lin et al. 2021), where
frequencies wait.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from hashfield.errors import CheckpointError, ConfigError
from hashfield.geometry.cameras import Camera, camera_table, camera_table_gradient, sums_by_camera
from hashfield.geometry.focus import focus_point
from hashfield.geometry.grid_layout import GridLayout
from hashfield.geometry.lenses import LENSES, lens_limit
from hashfield.geometry.rays import PixelPool, RayBatch
from hashfield.geometry.spaces import Spaces
from hashfield.ops.train_rays import RayGradients
from hashfield.steps.correction_units import (
    inverse_root,
    lens_effects,
    lens_key,
    lens_numbers,
    pose_effects,
    pose_gauge,
    rotation_of,
    smooth_ways,
)
from hashfield.steps.optimizers import Group

Part = Literal["poses", "lens", "exposure"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

SATURATED: Final = 254.5 / 255
"""A channel above this says only that there was at least as much light."""
BRIGHT: Final = 0.02
"""Log gain above which a photo's saturated pixels are taken for clipped."""
CLIPPED_WEIGHT: Final = 1 / 64
"""What such a pixel counts in the loss: next to nothing, but enough to learn from where no darker photo looks."""
RAYS_PER_GAIN: Final = 32
"""Rays of each photo, on average, whose gradients are gathered before gains take a step."""
EXPECTED_POSE: Final = 0.0133
"""Errors of poses, root mean square in radians by which rays move, that `RefineOptions.pose_pull` is meant for: half a
degree and a hundredth of the distance."""
EXPECTED_FOCAL: Final = 0.01
"""A focal length that is off by less than this share is doubted."""
MOST_TRUST: Final = 100.0
"""What a pull is multiplied by at most where corrections turn out to be small."""
COARSE_RESOLUTION: Final = 64
"""Vertices per scene unit of the levels that learn from the start; see `RefineOptions.coarse_until`."""


@dataclass(frozen=True)
class RefineOptions:
    """How fast, and from when on, what is refined follows."""

    pose_rate: float = 0.02
    """What the learning rate is multiplied by for poses; the product is how far a step moves rays, in radians."""
    lens_rate: float = 0.01
    """What the learning rate is multiplied by for lenses; the product is how far a step moves rays, in radians."""
    exposure_rate: float = 1.0
    """What the learning rate is multiplied by for exposures: a step of the logarithms of gains."""
    pose_pull: float = 10.0
    """Weight in the loss of half the squared distance of each pose from the file's, in radians by which rays move, mean
    over photos. It keeps poses of which the photos say little from following chance; photos with detail outweigh it.
    From `every_step_until` on it is the stronger, the smaller all corrections have turned out to be, and holds
    lenses that are hardly off as well."""
    rays_per_update: int = 128
    """Rays of each photo, on average, whose gradients are gathered before poses and lenses take a step. With fewer, a
    step would follow chance: a capture's batch has some ten rays of each photo."""
    start: float = 0.05
    """Fraction of the run at which poses and lenses begin to move; before, the field has nothing to say."""
    coarse_until: float = 0.15
    """Fraction of the run by which all levels of the grid learn. Before, fine ones wait, since their details would
    settle where the uncorrected cameras put them; only where poses or lenses are refined. 0: none waits."""
    distortion_start: float = 0.6
    """Fraction of the run at which distortion terms begin to move: earlier, they would answer for the focal length."""
    every_step_until: float = 0.3
    """Fraction of the run until which every step refines poses and lenses."""
    interval: int = 8
    """Later, only every interval-th step refines: the gradients of rays cost time. Exposures alone, of which a single
    batch says much, are refined no more often from the start."""

    def __post_init__(self) -> None:
        for name in ("pose_rate", "lens_rate", "exposure_rate"):
            if not 0 < getattr(self, name) <= 10:
                raise ConfigError(f"{name}: expected a number in (0, 10], got {getattr(self, name)}")
        if not 0 <= self.pose_pull < math.inf:
            raise ConfigError(f"pose_pull: expected a number of at least 0, got {self.pose_pull}")
        for name in ("start", "coarse_until", "distortion_start", "every_step_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected a fraction, got {getattr(self, name)}")
        for name in ("interval", "rays_per_update"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's loops on one thread. Its other threads would go on spinning for a while, and take the cores from the
    kernels that come next: 6 ms of a step of 26."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)


def check_parts(parts: Sequence[str]) -> None:
    """Raise unless these are different parts that can be refined.

    Raises:
        ConfigError: one is unknown or named twice.
    """
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"refine: expected some of {', '.join(PARTS)}, got {part!r}")
    if len(set(parts)) != len(parts):
        raise ConfigError(f"refine: each part at most once, got {' '.join(parts)}")


class Refinement(nn.Module):
    """The numbers that are learned about photos and lenses. All of them are 0 where nothing is corrected."""

    poses: nn.Parameter | None
    """[n_photos, 6]: in units of `pose_unit`, which makes of them a rotation vector in radians, about the camera's own
    centre, and a shift in units of `reach`; both in scene space."""
    lens: nn.Parameter | None
    """[n_lenses, 5]: in units of `lens_unit`, which makes of them the logarithm of the focal length's factor, the shift
    of the principal point in pictures' widths and heights, and what is added to k1 and k2. The cameras' distances from
    `focus` have the mean of the focal lengths' factors over the photos."""
    exposure: nn.Parameter | None
    """[n_photos, 3]: logarithm of each channel's gain: photo = gain * scene, in sRGB."""
    given: Tensor
    sizes: Tensor
    lens_number: Tensor
    model_number: Tensor
    pose_unit: Tensor
    lens_unit: Tensor
    gauge: Tensor
    gain_gauge: Tensor

    def __init__(
        self, parts: Sequence[Part], cameras: Sequence[Camera], spaces: Spaces, options: RefineOptions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        """Args:
        parts: What is refined; at least one.
        cameras: Cameras of the photos, world.
        spaces: Spaces of the scene.
        options: Rates and schedule.
        device: Where the field is trained.

        Raises:
            ConfigError: a part is unknown.
        """
        super().__init__()
        check_parts(parts)
        self.parts, self.options, self.spaces = tuple(parts), options or RefineOptions(), spaces
        self.cameras = list(cameras)
        self.lens_of = lens_numbers(cameras)
        """Number of each known lens, by `lens_key`."""
        self.fraction = 0.0
        """Where the run is; set before every step."""
        n = len(cameras)
        given = spaces.camera_table_to_scene(camera_table(cameras))
        position = given[:, [3, 7, 11]]
        self.reach = max(0.25, float((position - 0.5).norm(dim=1).median()))
        """Scene units: the median distance of a camera from the box's centre."""
        sizes = torch.tensor([[camera.width, camera.height] for camera in cameras], dtype=torch.float64)
        numbers = torch.tensor([self.lens_of[lens_key(camera)] for camera in cameras])
        self.register_buffer("given", given, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("lens_number", numbers, persistent=False)
        models, model_number = torch.cat([numbers[:, None], given[:, 16:23]], 1).unique(dim=0, return_inverse=True)
        self._models: list[list[float]] = models.tolist()
        """Lens number, kind and coefficients of the lens models that differ in any of these."""
        self.register_buffer("model_number", model_number, persistent=False)
        pose_unit = inverse_root(pose_effects(given, sizes))
        self.register_buffer("pose_unit", pose_unit, persistent=False)
        self.focus = focus_point(given)
        """The point that all cameras look at, scene space; without one (None) cameras follow no lens."""
        # Distortion terms have units of their own, since they begin later.
        effects = lens_effects(given, sizes, numbers, follows=self.focus is not None)
        lens_unit = torch.zeros_like(effects)
        lens_unit[:, :3, :3], lens_unit[:, 3:, 3:] = inverse_root(effects[:, :3, :3]), inverse_root(effects[:, 3:, 3:])
        self.register_buffer("lens_unit", lens_unit, persistent=False)
        off = torch.linalg.inv(lens_unit)[:, :, 0] * EXPECTED_FOCAL
        self._expected_lens = float(off.square().sum(1).mean().sqrt())
        """What EXPECTED_FOCAL is, in radians by which rays move."""
        gauge = pose_gauge(position / self.reach, torch.linalg.inv(pose_unit))
        self.register_buffer("gauge", gauge.float(), persistent=False)
        outward = -given[:, [2, 6, 10]] if self.focus is None else position - self.focus
        self.register_buffer("gain_gauge", smooth_ways(outward).float(), persistent=False)
        shapes = {"poses": (n, 6), "lens": (int(numbers.max()) + 1, 5), "exposure": (n, 3)}
        for part in PARTS:
            setattr(self, part, nn.Parameter(torch.zeros(shapes[part])) if part in parts else None)
        if self.exposure is not None:
            self.register_buffer("gathered_exposure", torch.zeros(n, 3))
        if self.moves_rays:
            self.register_buffer("gathered_table", torch.zeros_like(given))
        names = [
            name
            for name, is_gathered in (("exposure", self.exposure is not None), ("table", self.moves_rays))
            if is_gathered
        ]
        self.n_gathered: dict[str, int] = dict.fromkeys(names, 0)
        """Rays whose gradients wait in `gathered_<name>`: those to gains for the next step of gains, those to the
        corrected cameras for the next one of poses and lenses."""
        self.to(device)
        self._table: Tensor | None = None
        self._pool: PixelPool | None = None

    @property
    def moves_rays(self) -> bool:
        """Whether cameras are corrected, by pose or lens."""
        return self.poses is not None or self.lens is not None

    # --- schedule

    def is_due(self, step: int) -> bool:
        """Whether this step refines."""
        is_early = self.moves_rays and self.fraction < self.options.every_step_until
        return is_early or step % self.options.interval == 0

    def groups(self) -> list[Group]:
        """What the optimiser steps, each with its own rate."""
        rates = {"poses": self.options.pose_rate, "lens": self.options.lens_rate}
        return [
            Group(
                name=name,
                tensors=[parameter],
                rate=rates.get(name, self.options.exposure_rate),
            )
            for name, parameter in self.named_parameters()
        ]

    def live_rows(self, layout: GridLayout, aabb_scale: int) -> int:
        """Entries of the table that learn at this point of the run, from the first on.

        Args:
            layout: The levels.
            aabb_scale: Side of the training box.
        """
        until, n_levels = self.options.coarse_until, layout.n_levels
        if not self.moves_rays or self.fraction >= until:
            return layout.n_entries
        first = int((np.asarray(layout.resolutions) <= COARSE_RESOLUTION * aabb_scale).sum())
        first = min(max(1, first), n_levels)
        # Evenly in time, with the last level's turn where the wait ends.
        n = first + int((n_levels - first) * self.fraction / until)
        return int(layout.level_offsets[n])

    # --- cameras

    def table(self) -> Float64[Tensor, "n_photos 24"]:
        """The corrected cameras in scene space, with autograd's history."""
        if self._table is None:
            with torch.enable_grad():
                self._table = self._corrected()
        return self._table

    def _pose_corrections(self, poses: Tensor) -> Float64[Tensor, "n_photos 6"]:
        """Rotation vectors and shifts, as `poses` describes them."""
        return (self.pose_unit @ poses.double()[:, :, None])[:, :, 0]

    def _lens_corrections(self, lens: Tensor) -> Float64[Tensor, "n_lenses 5"]:
        """Corrections of lenses, as `lens` describes them."""
        return (self.lens_unit @ lens.double()[:, :, None])[:, :, 0]

    def _followed(self, position: Tensor, by: Float64[Tensor, "n_photos 5"]) -> Tensor:
        """Where cameras at these positions stand when the photos' lenses are corrected by so much.

        Args:
            position: Scene space, of the photos or of other cameras.
            by: Corrections of each photo's lens.
        """
        if self.focus is None:
            return position
        focus = self.focus.to(position)
        return focus + torch.exp(by[:, 0].mean()) * (position - focus)

    def _corrected(self) -> Tensor:
        given = self.given
        pose = given[:, :12].reshape(-1, 3, 4)
        intrinsics = given[:, 12:]
        if self.lens is not None:
            by = self._lens_corrections(self.lens)[self.lens_number]
            position = self._followed(pose[:, :, 3], by)
            pose = torch.cat([pose[:, :, :3], position[:, :, None]], 2)
            focal = given[:, 12:14] * torch.exp(by[:, :1])
            center = given[:, 14:16] + by[:, 1:3] * self.sizes
            k = given[:, 17:19] + by[:, 3:]
            kind, limit = self._lens_kinds()
            intrinsics = torch.cat([focal, center, kind[:, None], k, given[:, 19:23], limit[:, None]], 1)
        if self.poses is not None:
            by = self._pose_corrections(self.poses)
            rotation = rotation_of(by[:, :3]) @ pose[:, :, :3]
            position = pose[:, :, 3] + self.reach * by[:, 3:]
            pose = torch.cat([rotation, position[:, :, None]], 2)
        return torch.cat([pose.reshape(-1, 12), intrinsics], 1)

    def _lens_kinds(self) -> tuple[Tensor, Tensor]:
        """Kind and limit of each photo's corrected lens: a pinhole that is given coefficients is none any more."""
        assert self.lens is not None
        added = self._lens_corrections(self.lens.detach()).tolist()
        found = []
        for number, kind, k1, k2, *others in self._models:
            k1, k2 = k1 + added[int(number)][3], k2 + added[int(number)][4]
            kind = 1.0 if kind == 0 and (k1 != 0 or k2 != 0) else kind
            found.append((kind, lens_limit(LENSES[int(kind)], (k1, k2, *others))))
        kinds, limits = self.given.new_tensor(found)[self.model_number].unbind(1)
        return kinds, limits

    def moved(self, pool: PixelPool) -> PixelPool:
        """The pool with the corrected cameras."""
        if not self.moves_rays:
            return pool
        if self._pool is None or self._pool.spans is not pool.spans:
            self._pool = replace(pool, table=self.table().detach().contiguous())
        return self._pool

    def refined_cameras(self) -> list[Camera]:
        """The corrected cameras of the photos, world."""
        table = self.spaces.camera_table_to_world(self.table().detach()).cpu()
        return [_camera_of(row, camera) for row, camera in zip(table, self.cameras, strict=True)]

    def carried(self, camera: Camera) -> Camera:
        """A camera that is no photo's, where it stands among the photos' and with the correction of its lens where a
        photo was taken with it."""
        if self.lens is None:
            return camera
        by = self._lens_corrections(self.lens.detach()).cpu()
        table = self.spaces.camera_table_to_scene(camera_table([camera]))
        table[:, [3, 7, 11]] = self._followed(table[:, [3, 7, 11]], by[self.lens_number.cpu()])
        row = self.spaces.camera_table_to_world(table)[0]
        number = self.lens_of.get(lens_key(camera))
        if number is None:
            return _camera_of(row, camera)
        like = next(k for k, other in enumerate(self.cameras) if self.lens_of[lens_key(other)] == number)
        lens = by[number]
        row[12:14] *= torch.exp(lens[0])
        row[14:16] += lens[1:3] * row.new_tensor([camera.width, camera.height])
        row[17:19] += lens[3:]
        row[16] = self.table().detach()[like, 16]
        return _camera_of(row, camera)

    # --- batches

    @one_thread()
    def seen(self, batch: RayBatch) -> RayBatch:
        """The batch as the scene would have been photographed without gains; clipped pixels count next to nothing."""
        if self.exposure is None:
            return batch
        index = batch.rays.image_index
        assert index is not None
        gain = self.exposure.detach()
        rgb = batch.target[:, :3] * torch.exp(-gain)[index]
        is_clipped = (batch.target[:, :3].amax(1) > SATURATED) & (gain.mean(1) > BRIGHT)[index]
        weight = torch.ones_like(batch.jitter) if batch.weight is None else batch.weight
        return replace(
            batch, target=torch.cat([rgb, batch.target[:, 3:]], 1),
            weight=torch.where(is_clipped, CLIPPED_WEIGHT * weight, weight),
        )  # fmt: skip

    @one_thread()
    def gradients(self, found: RayGradients, batch: RayBatch) -> dict[str, list[Tensor]]:
        """Gather a step's gradients, and return those of the parts for which enough are gathered, by the groups' names.

        Args:
            found: What the step says about its rays.
            batch: The batch that it was given.
        """
        due: dict[str, list[Tensor]] = {}
        for name, sums in self._sums(found, batch).items():
            gathered = self.get_buffer(f"gathered_{name}")
            # A batch's gradients are means over its rays.
            gathered += sums * batch.n_rays
            self.n_gathered[name] += batch.n_rays
            wanted = RAYS_PER_GAIN if name == "exposure" else self.options.rays_per_update
            if self.n_gathered[name] >= wanted * len(self.cameras):
                mean = gathered / self.n_gathered[name]
                due |= {"exposure": [mean]} if name == "exposure" else self._of_table(mean)
                gathered.zero_()
                self.n_gathered[name] = 0
        return due

    def _sums(self, found: RayGradients, batch: RayBatch) -> dict[str, Tensor]:
        """What the rays of a step say together: of gains, and of the cameras' numbers where these move by now."""
        index = batch.rays.image_index
        assert index is not None
        sums: dict[str, Tensor] = {}
        if self.exposure is not None:
            # A larger gain lowers what is asked for. By how much is taken from the rendered scene, not from the photo
            # with all that is not learned yet: else photos that have more of that would seem brighter than they are.
            scene = found.color - batch.background * (1 - batch.target[:, 3:])
            share = found.grad_color * scene * batch.target[:, 3:]
            sums["exposure"] = sums_by_camera(share, index, len(self.cameras))
        if self.moves_rays and self.fraction >= self.options.start:
            told = (found.grad_direction != 0).any(1).nonzero()[:, 0]  # rays through nothing say nothing
            direction, by_origin, by_direction = (
                x[told] for x in (batch.rays.direction, found.grad_origin, found.grad_direction)
            )
            # A ray sees the same from farther back. What is found along it comes from where samples happen to lie, and
            # would add up where all cameras follow a lens.
            by_origin = by_origin - (by_origin * direction).sum(1, keepdim=True) * direction
            sums["table"] = camera_table_gradient(
                self.table().detach(), index[told], direction, by_origin, by_direction, of_lens=self.lens is not None
            )
        return sums

    def _of_table(self, gradient: Float64[Tensor, "n_photos 24"]) -> dict[str, list[Tensor]]:
        """What gradients to the corrected cameras say of poses and lenses."""
        moved = [(name, p) for name, p in self.named_parameters() if name != "exposure"]
        grads = torch.autograd.grad(self.table(), [p for _, p in moved], gradient, retain_graph=True)
        found = {name: [grad] for (name, _), grad in zip(moved, grads, strict=True)}
        pull = self.options.pose_pull
        if self.poses is not None:
            found["poses"][0] += pull * self._trust(self.poses, EXPECTED_POSE) / len(self.cameras) * self.poses.detach()
        if self.lens is not None:  # says something of all its photos, and is pulled only where it is hardly off
            more = pull * (self._trust(self.lens[:, :3], self._expected_lens) - 1)
            share = torch.bincount(self.lens_number, minlength=len(self.lens)) / len(self.cameras)
            found["lens"][0] += more * share[:, None] * self.lens.detach()
        if "lens" in found and self.fraction < self.options.distortion_start:
            found["lens"][0][:, 3:] = 0.0
        return found

    def _trust(self, corrections: Tensor, expected: float) -> float:
        """By how much more the file is trusted than at first: once a run has had time to find out, the more, the
        smaller corrections have turned out to be. Where the file is right they vanish.

        Args:
            corrections: [n, k], in radians by which rays move.
            expected: The root mean square of their lengths from which on the file is trusted no more than at first.
        """
        if self.fraction < self.options.every_step_until:
            return 1.0
        squared = float(corrections.detach().double().square().sum(1).mean())
        return min(max(expected**2 / max(squared, 1e-30), 1.0), MOST_TRUST)

    @torch.no_grad()
    def hold(self, changed: Collection[str] = PARTS) -> None:
        """Take out of the corrections what photos cannot tell, after some of the parts were changed."""
        if self.poses is not None and "poses" in changed:
            flat = self.poses.view(-1)
            flat -= self.gauge @ (self.gauge.T @ flat)
        if self.exposure is not None and "exposure" in changed:
            self.exposure.sub_(self.gain_gauge @ (self.gain_gauge.T @ self.exposure))
        if "poses" in changed or "lens" in changed:
            self._table = self._pool = None

    # --- report and checkpoint

    def report(self) -> dict[str, Any]:
        """How far every camera moved, as JSON values: degrees, world units, shares of focal lengths, gains."""
        found: dict[str, Any] = {"parts": list(self.parts)}
        if self.poses is not None:
            by = self._pose_corrections(self.poses.detach()).cpu()
            found["degrees"] = (by[:, :3].norm(dim=1) * (180 / math.pi)).tolist()
            shift = by[:, 3:].norm(dim=1) * self.reach
            found["world_units"] = self.spaces.distance_scene_to_world(shift).tolist()
        if self.lens is not None:
            by = self._lens_corrections(self.lens.detach()).cpu()
            found["lens"] = [
                {
                    "photos": int((self.lens_number == k).sum()), "focal_percent": 100 * math.expm1(float(row[0])),
                    "center_percent": [100 * float(row[1]), 100 * float(row[2])], "k1": float(row[3]),
                    "k2": float(row[4]),
                }
                for k, row in enumerate(by)
            ]  # fmt: skip
            if self.focus is not None:
                found["distance_percent"] = 100 * math.expm1(float(by[self.lens_number.cpu(), 0].mean()))
        if self.exposure is not None:
            found["gains"] = torch.exp(self.exposure.detach().double().cpu()).tolist()
        return found

    def state(self) -> dict[str, Tensor]:
        """The corrections, and what is gathered for the next ones, as tensors of a checkpoint."""
        found = {f"refinement.{name}": p.detach() for name, p in self.named_parameters()}
        found |= {f"refinement.gathered_{name}": self.get_buffer(f"gathered_{name}") for name in self.n_gathered}
        return {**found, "refinement.n_gathered": torch.tensor(list(self.n_gathered.values()))}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: a tensor is missing, of another shape, or not finite.
        """
        counts = torch.zeros(len(self.n_gathered), dtype=torch.int64)
        mine = {f"refinement.{name}": p for name, p in self.named_parameters()}
        mine |= {f"refinement.gathered_{name}": self.get_buffer(f"gathered_{name}") for name in self.n_gathered}
        for name, tensor in {**mine, "refinement.n_gathered": counts}.items():
            value = tensors.get(name)
            if value is None or value.shape != tensor.shape or not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"checkpoint: tensor {name!r}: missing or wrong")
            tensor.copy_(value)
        self.n_gathered = dict(zip(self.n_gathered, counts.tolist(), strict=True))
        self._table = self._pool = None


def summary(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A report of `Refinement` in words: (what, how far)."""
    rows: list[tuple[str, str]] = []
    if "degrees" in report:
        turn, shift = np.array(report["degrees"]), np.array(report["world_units"])
        rows.append((
            "cameras moved",
            f"{np.median(turn):.3f} degrees and {np.median(shift):.4g} world units (medians of {len(turn)}; at most "
            f"{turn.max():.3f} and {shift.max():.4g}); their common motion is held",
        ))  # fmt: skip
    for lens in report.get("lens", ()):
        x, y = lens["center_percent"]
        rows.append((
            "lens corrected",
            f"focal length {lens['focal_percent']:+.2f} %, principal point {x:+.2f} % and {y:+.2f} % of the picture, "
            f"k1 {lens['k1']:+.4f}, k2 {lens['k2']:+.4f} ({lens['photos']} photos)",
        ))  # fmt: skip
    if "distance_percent" in report:
        rows.append((
            "cameras followed the lens",
            f"distances from what they look at {report['distance_percent']:+.2f} %; the scene keeps its size",
        ))  # fmt: skip
    if "gains" in report:
        gains = np.array(report["gains"])
        rows.append(
            ("exposures", f"gains from {gains.min():.3f} to {gains.max():.3f}; their geometric mean is held at 1")
        )
    return rows


def _camera_of(row: Float64[Tensor, " 24"], like: Camera) -> Camera:
    """The camera that a row of a table describes, with the picture's size of another."""
    values, lens = row.tolist(), LENSES[int(row[16])]
    pose = row[:12].reshape(3, 4)
    # To the last bit a rotation: corrections are products of matrices.
    left, _, right = torch.linalg.svd(pose[:, :3])
    pose = torch.cat([left @ right, pose[:, 3:]], 1)
    fx, fy, cx, cy = values[12:16]
    distortion = tuple(values[17:23]) if lens in ("opencv", "fisheye") else ()
    return Camera(pose, like.width, like.height, fx, fy, cx, cy, lens, distortion)

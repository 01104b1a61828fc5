"""What is learned besides the field: derivatives through cameras and gains, what is held, known errors found again."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield.data.dataset import PosedImages, Scene
from hashfield.data.demo_scene import make_demo_scene
from hashfield.errors import CheckpointError, ConfigError
from hashfield.geometry.cameras import Camera, camera_rays, camera_table, look_at, project, rays_from_pixels
from hashfield.geometry.rays import RayBatch, Rays
from hashfield.geometry.spaces import Spaces
from hashfield.ops.train_rays import RayGradients
from hashfield.steps.correction_units import lens_numbers, rotation_of, smooth_ways
from hashfield.steps.optimizers import Group, HostOptimizer
from hashfield.steps.refinement import EXPECTED_POSE, Refinement, RefineOptions, summary
from hashfield.tasks.align import Fit, as_known, as_refined, evaluate_aligned, gains_nearby
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS, NerfConfig
from hashfield.tasks.nerf_model import NerfModel, load_model
from hashfield.train.checkpoint import export_checkpoint, load_checkpoint
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder
from tests.tasks.scenes import small_scene, tiny_config

EAGER = RefineOptions(start=0.0, distortion_start=0.0, coarse_until=0.0, rays_per_update=1)


def some_cameras(n: int = 5, lens: str = "opencv") -> list[Camera]:
    distortion = () if lens == "pinhole" else (0.05, -0.02, 0.0, 0.0, 0.0, 0.0)
    places = np.random.default_rng(0).normal(size=(n, 3)) * 2 + 3
    return [
        Camera(look_at(place.tolist(), (0.0, 0.1, 0.2)), 60, 40, 50.0, 52.0, 29.0, 21.0, lens, distortion)  # pyright: ignore
        for place in places
    ]


def batch_of(refinement: Refinement, pixel: Tensor, index: Tensor) -> RayBatch:
    n, generator = len(index), torch.Generator().manual_seed(3)
    origin, direction = rays_from_pixels(refinement.table().detach(), index, pixel)
    target = 0.9 * torch.rand(n, 4, generator=generator, dtype=torch.float64)
    zero = torch.zeros(n, dtype=torch.float64)
    return RayBatch(Rays(origin, direction, zero, zero + 1, index), target, target[:, :3], zero)


@pytest.mark.parametrize("lens", ["pinhole", "opencv", "fisheye"])
def test_derivatives_are_those_of_finite_differences(lens: str) -> None:
    """Through units, rotations, lenses, cameras that follow them, and gains, at corrections that are not 0."""
    n, generator = 200, torch.Generator().manual_seed(1)
    cameras = some_cameras(lens=lens)
    refinement = Refinement(("poses", "lens", "exposure"), cameras, Spaces(), EAGER).double()
    with torch.no_grad():
        for parameter in refinement.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    pixel = torch.rand(n, 2, generator=generator, dtype=torch.float64) * torch.tensor([60.0, 40.0])
    index = torch.randint(0, 5, (n,), generator=generator)
    color, by_origin, by_direction = torch.randn(3, n, 3, generator=generator, dtype=torch.float64)
    plain = batch_of(refinement, pixel, index)
    # What a ray sees does not change with where along it its origin lies.
    direction = plain.rays.direction
    by_origin -= (by_origin * direction).sum(1, keepdim=True) * direction
    poses = refinement.poses
    assert poses is not None and refinement.exposure is not None and refinement.focus is not None
    gains = torch.exp(refinement.exposure.detach())[index]
    photo, alpha = plain.target.split([3, 1], 1)

    def loss() -> float:
        refinement._table = None
        origin, direction = rays_from_pixels(refinement.table().detach(), index, pixel)
        # What gains make of the scene is compared with the photo, in units of the gains as they are.
        scene = color - (1 - alpha) * plain.background
        off = (torch.exp(refinement.exposure.detach())[index] * scene - photo * alpha) / gains
        pull = refinement.options.pose_pull / 2 * poses.detach().square().sum(1).mean()
        return float((origin * by_origin + direction * by_direction + alpha * off * off).sum() + pull)

    batch = refinement.seen(plain)
    wish = batch.target[:, :3] * alpha + batch.background * (1 - alpha)
    along = 3.0 * direction  # as samples say it, by chance
    due = refinement.gradients(RayGradients(color, 2 * (color - wish), by_origin + along, by_direction), batch)
    found = {name: gradients[0] for name, gradients in due.items()}
    assert set(found) == {"poses", "lens", "exposure"}
    for name, parameter in refinement.named_parameters():
        flat = parameter.data.view(-1)
        slopes = torch.zeros_like(flat)
        for k in range(len(flat)):
            before = float(flat[k])
            ends = []
            for step in (1e-5, -1e-5):
                flat[k] = before + step
                ends.append(loss())
            flat[k] = before
            slopes[k] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(found[name].view(-1), slopes, rtol=1e-5, atol=1e-4)


def test_a_photo_that_is_not_learned_yet_does_not_seem_brighter() -> None:
    """Gains rest where they are right, however much the field still misses of each photo."""
    n, generator = 4000, torch.Generator().manual_seed(2)
    cameras = some_cameras(2)
    refinement = Refinement(("exposure",), cameras, Spaces(), EAGER).double()
    index = torch.arange(n) % 2
    scene = 0.2 + 0.3 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    missed = 0.2 * torch.randn(n, 3, generator=generator, dtype=torch.float64) * (index == 1)[:, None]
    for k in (0, 1):  # what is missed has nothing in common with what is learned
        own, part = scene[index == k], missed[index == k]
        missed[index == k] = part - own * (part * own).sum(0) / own.square().sum(0)
    target = torch.cat([scene + missed, torch.ones(n, 1, dtype=torch.float64)], 1)
    zero, rays = torch.zeros(n, dtype=torch.float64), torch.ones(n, 3, dtype=torch.float64)
    batch = RayBatch(Rays(rays, rays, zero, zero + 1, index), target, torch.zeros_like(scene), zero)
    slope = 2 * (scene - target[:, :3]) / n
    found = refinement.gradients(RayGradients(scene, slope, rays, rays), batch)["exposure"][0]
    assert float(found.abs().max()) < 1e-12
    # And they move where they are wrong: the scene is too dark for both photos.
    found = refinement.gradients(RayGradients(0.9 * scene, 2 * (0.9 * scene - target[:, :3]) / n, rays, rays), batch)
    assert float(found["exposure"][0].max()) < -1e-3


def test_cameras_follow_the_focal_length() -> None:
    """What they look at stays as large as it was in every photo; only perspective changes."""
    cameras = some_cameras(12)
    refinement = Refinement(("lens",), cameras, Spaces())
    assert refinement.lens is not None and refinement.focus is not None
    with torch.no_grad():
        refinement.lens += torch.linalg.solve(refinement.lens_unit[0], torch.tensor([0.05, 0, 0, 0, 0.0]).double())
    refinement.hold()
    found = refinement.refined_cameras()
    assert found[0].fx == pytest.approx(50.0 * np.exp(0.05))
    middle = refinement.spaces.scene_to_world(refinement.focus)
    for before, after in zip(cameras, found, strict=True):
        np.testing.assert_allclose(after.position - middle, np.exp(0.05) * (before.position - middle), atol=1e-9)
        # At the distance of what they look at, across the camera's axis.
        across = before.camera_to_world[:, :2].T
        forward = before.camera_to_world[:, 2]
        foot = before.position + ((middle - before.position) @ forward) * forward
        points = torch.cat([foot + 0.4 * across, foot - 0.4 * across])
        assert pixels_between(before, after, points) < 0.04
        assert pixels_between(replace(before, fx=after.fx, fy=after.fy), after, points) > 0.1
    # A camera that is no photo's stays where it is among them, whatever its lens.
    other = replace(cameras[3], fx=77.0)
    np.testing.assert_allclose(refinement.carried(other).position, found[3].position, atol=1e-9)
    assert refinement.carried(other).fx == 77.0
    assert refinement.report()["distance_percent"] == pytest.approx(100 * np.expm1(0.05))


def test_gains_do_not_follow_what_could_be_how_surfaces_shine() -> None:
    random = np.random.default_rng(0)
    outward = torch.from_numpy(random.normal(size=(100, 3)))
    ways = smooth_ways(outward)
    assert ways.shape == (100, 9) and smooth_ways(outward[:40]).shape == (40, 4)
    assert smooth_ways(outward[:20]).shape == (20, 1)
    torch.testing.assert_close(ways.T @ ways, torch.eye(9, dtype=torch.float64), atol=1e-12, rtol=0)
    direction = torch.nn.functional.normalize(outward, dim=1)
    shine = 0.3 + direction @ torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64) + 0.2 * direction[:, 0] ** 2
    assert float((shine - ways @ (ways.T @ shine)).abs().max()) < 1e-12
    jumps = torch.from_numpy(random.normal(size=100))
    assert float((ways.T @ jumps).norm() / jumps.norm()) < 0.5
    # Photos from nearly one direction: no field could tell such changes from jumps, and gains keep them.
    narrow = torch.tensor([0.0, 0.0, 10.0]) + 0.3 * outward
    assert smooth_ways(narrow).shape == (100, 1)


def test_what_photos_cannot_tell_is_held() -> None:
    cameras = some_cameras(12)
    refinement = Refinement(("poses", "exposure"), cameras, Spaces())
    assert refinement.poses is not None and refinement.exposure is not None
    with torch.no_grad():
        refinement.poses += 1e-3 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
        refinement.exposure += torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    refinement.hold()
    assert float(refinement.exposure.detach().mean(0).abs().max()) < 1e-6
    # A common turn and shift, given to all cameras, is taken out again.
    before = refinement.poses.detach().clone()
    middle = torch.stack([camera.position for camera in cameras]).mean(0)
    turn = torch.tensor([1e-4, -2e-4, 3e-4], dtype=torch.float64)
    world = refinement.spaces
    scene = world.direction_world_to_scene(turn)
    shift = [world.distance_world_to_scene(torch.linalg.cross(turn, c.position - middle)) for c in cameras]
    shift = world.direction_world_to_scene(torch.stack(shift)) / refinement.reach
    common = torch.cat([scene.expand(12, 3), shift + 1e-4], 1)
    with torch.no_grad():
        refinement.poses += torch.linalg.solve(refinement.pose_unit, common[:, :, None])[:, :, 0].float()
    refinement.hold()
    torch.testing.assert_close(refinement.poses.detach(), before, atol=2e-8, rtol=1e-4)


def silent(refinement: Refinement) -> dict[str, list[Tensor]]:
    """Gradients of a step whose rays say nothing."""
    n = len(refinement.cameras)
    batch = batch_of(refinement, torch.full((n, 2), 20.0, dtype=torch.float64), torch.arange(n))
    nothing = torch.zeros(n, 3, dtype=torch.float64)
    return refinement.gradients(RayGradients(nothing, nothing, nothing, nothing), batch)


def test_poses_of_which_photos_say_nothing_return_to_the_file() -> None:
    refinement = Refinement(("poses", "exposure"), some_cameras(12), Spaces(), EAGER)
    poses = refinement.poses
    assert poses is not None
    optimizer = HostOptimizer([Group(name="table", tensors=[torch.zeros(8, 1)], is_table=True), *refinement.groups()])
    with torch.no_grad():
        poses.add_(0.01 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0)))
    refinement.hold()
    before = float(poses.detach().norm())
    for _ in range(20):
        optimizer.step({"table": [torch.zeros(8, 1)], "poses": silent(refinement)["poses"]}, 0.02)
        refinement.hold()
    assert float(poses.detach().norm()) < 0.5 * before


@pytest.mark.parametrize(
    ("fraction", "error", "factor"),
    # Everyone is given time to move; then files that are off by much keep the pull, those nearly right are trusted.
    [(0.29, 0.0, 1), (0.3, 2.0, 1), (0.3, 1.0, 1), (0.9, 0.5, 4), (0.9, 0.05, 100)],
)
def test_a_file_that_is_nearly_right_is_trusted_more(fraction: float, error: float, factor: float) -> None:
    refinement = Refinement(("poses",), some_cameras(12), Spaces(), EAGER)
    poses = refinement.poses
    assert poses is not None
    with torch.no_grad():
        poses.add_(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)))
        poses.mul_(error * EXPECTED_POSE / poses.square().sum(1).mean().sqrt())
    refinement.hold(())
    refinement.fraction = fraction
    expected = factor * refinement.options.pose_pull / 12 * poses.detach()
    torch.testing.assert_close(silent(refinement)["poses"][0], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("fraction", "percent", "factor"), [(0.2, 0.1, 1), (0.5, 3.0, 1), (0.5, 0.5, 4), (0.5, 1e-3, 100)]
)
def test_a_lens_that_is_nearly_right_is_trusted_more(fraction: float, percent: float, factor: float) -> None:
    refinement = Refinement(("lens",), some_cameras(12), Spaces(), EAGER)
    assert refinement.lens is not None
    with torch.no_grad():
        off = torch.linalg.inv(refinement.lens_unit)[:, :, 0] * percent / 100
        refinement.lens.copy_(off)
    refinement.hold(())
    refinement.fraction = fraction
    assert refinement.report()["lens"][0]["focal_percent"] == pytest.approx(percent, rel=0.02)
    expected = (factor - 1) * refinement.options.pose_pull * refinement.lens.detach()
    torch.testing.assert_close(silent(refinement)["lens"][0], expected, rtol=1e-4, atol=1e-9)


def test_nothing_is_corrected_at_first() -> None:
    cameras = some_cameras()
    refinement = Refinement(("poses", "lens", "exposure"), cameras, Spaces())
    for found, given in zip(refinement.refined_cameras(), cameras, strict=True):
        torch.testing.assert_close(found.camera_to_world, given.camera_to_world, atol=1e-12, rtol=0)
        assert (found.fx, found.lens) == (given.fx, given.lens)
    other = replace(cameras[0], fx=77.0)
    assert refinement.carried(other).fx == 77.0
    assert summary(refinement.report())[0][0] == "cameras moved"


def test_photos_of_one_lens_share_its_correction() -> None:
    cameras = [*some_cameras(8), *some_cameras(8, "pinhole")]
    assert sorted(set(lens_numbers(cameras).values())) == [0, 1]
    each_its_own = [replace(camera, fx=50.0 + k) for k, camera in enumerate(some_cameras(8))]
    assert set(lens_numbers(each_its_own).values()) == {0}
    refinement = Refinement(("lens",), cameras, Spaces())
    assert refinement.lens is not None
    with torch.no_grad():
        refinement.lens[1, 0] += 0.01  # in its units: some percent
    refinement.hold()
    found = refinement.refined_cameras()
    assert found[0].fx == pytest.approx(50.0) and found[8].fx != pytest.approx(50.0, rel=1e-3)
    assert refinement.carried(cameras[8].resized(30, 20)).fx == pytest.approx(found[8].fx / 2)
    assert refinement.carried(cameras[0]).fx == pytest.approx(50.0)


@pytest.mark.parametrize(("trained", "read"), [(3, 1), (1, 3), (2, 2)])
def test_refined_cameras_fit_photos_that_are_read_at_another_size(trained: int, read: int) -> None:
    """Of 62 x 41 pixels divided by 3, two columns and two rows are dropped."""

    def at(factor: int) -> Camera:
        optics = (x / factor for x in (50.0, 52.0, 29.0, 21.0))
        return Camera(look_at((3.0, 2.0, 1.0), (0.0, 0.0, 0.0)), 62 // factor, 41 // factor, *optics)

    own = at(read)
    views = PosedImages((replace(own, fx=77.0),), (np.zeros((own.height, own.width, 4), np.uint8),), ("a.png",))
    (found,) = as_refined(views, [at(trained)]).cameras
    assert (found.width, found.height) == (own.width, own.height)
    assert (found.fx, found.fy, found.cx, found.cy) == pytest.approx((own.fx, own.fy, own.cx, own.cy))


def test_options_that_make_no_sense_are_refused() -> None:
    for changes in (
        {"pose_rate": 0.0},
        {"start": 1.5},
        {"interval": 0},
        {"rays_per_update": 0},
        {"pose_pull": -1.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            RefineOptions(**changes)  # pyright: ignore
    for parts in (("colour",), ("poses", "poses")):
        with pytest.raises(ConfigError, match="refine"):
            NerfConfig(refine=parts)  # pyright: ignore


# --- whole runs


def spoilt(scene: Scene, degrees: float, gains: np.ndarray | None = None) -> Scene:
    """The scene with turned training cameras, and photos multiplied by gains."""
    views, random = scene.splits["train"], np.random.default_rng(5)
    axes = random.normal(size=(len(views), 3))
    axes *= np.radians(degrees) / np.linalg.norm(axes, axis=1, keepdims=True)
    turns = rotation_of(torch.from_numpy(axes))
    poses = [torch.cat([turn @ camera.camera_to_world[:, :3], camera.camera_to_world[:, 3:]], 1)
             for turn, camera in zip(turns, views.cameras, strict=True)]  # fmt: skip
    images = list(views.images)
    if gains is not None:
        for k, gain in enumerate(gains):
            rgb = np.clip(images[k][..., :3] * gain + 0.5, 0, 255).astype(np.uint8)
            images[k] = np.concatenate([rgb, images[k][..., 3:]], 2)
    cameras = tuple(camera.moved(pose) for camera, pose in zip(views.cameras, poses, strict=True))
    train = PosedImages(cameras, tuple(images), views.names)
    return replace(scene, splits={**scene.splits, "train": train})


def ran(scene: Scene, n_steps: int, **changes: object) -> NerfTask:
    task = NerfTask(tiny_config(**changes), scene, seed=1)
    task.warm_up()
    task.begin()
    for step in range(n_steps):
        task.step(step, step / n_steps)
    return task


def turn_between(a: list[Camera], b: tuple[Camera, ...]) -> float:
    """Mean angle between two lists of cameras' axes, degrees, after their common turn is taken out."""
    found = torch.stack([x.camera_to_world[:, :3] @ y.camera_to_world[:, :3].T for x, y in zip(a, b, strict=True)])
    left, _, right = torch.linalg.svd(found.mean(0))
    trace = torch.einsum("nij,ij->n", found, left @ right)
    return float(torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))).mean())


def seen_points(model: NerfModel, camera: Camera) -> Tensor:
    """Points [n, 3] of what a camera sees of a model."""
    frame = model.frame(camera, ("depth", "opacity"), None)
    origin, direction = camera_rays(camera, torch.float64)
    depth, opacity = (torch.from_numpy(frame[name]).double().reshape(-1, 1) for name in ("depth", "opacity"))
    return (origin + depth * direction)[opacity[:, 0] > 0.9]


def pixels_between(a: Camera, b: Camera, points: Tensor) -> float:
    """Mean distance in pixels of where two cameras see points."""
    index = torch.zeros(len(points), dtype=torch.int64)
    (seen, _), (other, _) = (project(camera_table([camera]), index, points) for camera in (a, b))
    return float((seen - other).norm(dim=1).mean())


def ring(n: int, phase: float = 0.0) -> list[Camera]:
    angle = (np.arange(n) + phase) / n * 2 * math.pi
    return [
        Camera(look_at((3 * math.cos(a), 3 * math.sin(a), 1.0), (0.0, 0.0, 0.0)), 60, 40, 50.0, 50.0, 30.0, 20.0)
        for a in angle
    ]


def test_a_view_is_as_bright_as_its_neighbours_where_neighbours_are_alike() -> None:
    photos, views = ring(36), ring(36, 0.5)
    wave = np.exp(0.1 * np.sin(3 * np.arange(36) / 36 * 2 * math.pi)[:, None] * [1.0, 0.5, -1.0])
    truth = np.exp(0.1 * np.sin(3 * (np.arange(36) + 0.5) / 36 * 2 * math.pi)[:, None] * [1.0, 0.5, -1.0])
    np.testing.assert_allclose(gains_nearby(views, photos, wave), truth, rtol=0.01)
    # The order in which photos are listed says nothing.
    order = np.random.default_rng(1).permutation(36)
    shuffled = gains_nearby(views, [photos[k] for k in order], wave[order])
    np.testing.assert_allclose(shuffled, gains_nearby(views, photos, wave))
    jumping = np.exp(0.2 * (-1.0) ** np.arange(36)[:, None] * np.ones(3))
    np.testing.assert_allclose(gains_nearby(views, photos, jumping), 1.0)


@cache
def many(alpha: int = 255, n_train: int = 36) -> Scene:
    """The demo's scene from many sides, on white without silhouettes unless alpha is lower."""
    scene = make_demo_scene(size=48, n_train=n_train, n_test=3)[0]

    def laid(views: PosedImages) -> PosedImages:
        images = [image.copy() for image in views.images]
        for image in images:
            share = image[..., 3:] / 255
            image[..., :3] = (image[..., :3] * share + 255 * (1 - share)).round()
            image[..., 3] = 255
        return replace(views, images=tuple(images))

    if alpha < 255:
        return scene
    return replace(scene, splits={name: laid(views) for name, views in scene.splits.items()}, has_alpha=False)


def test_exposures_are_learned_unasked_where_they_can_be_told() -> None:
    assert NerfTask(tiny_config(), many(), seed=1).config.refine == ("exposure",)
    task = NerfTask(tiny_config(refine=()), many(), seed=1)
    assert task.config.refine == () and task.refinement is None
    assert NerfTask(tiny_config(), many(n_train=31), seed=1).refinement is None  # too few to leave shading alone
    assert NerfTask(tiny_config(), many(alpha=0), seed=1).refinement is None  # carved
    assert PRESETS["paper"].refine == PRESETS["hashnerf"].refine == ()


def test_photos_whose_light_differs_are_learned_from_as_they_are() -> None:
    """Exposures that drift along a walk: held-out views are predicted better, unseen, than without."""
    scene = many(alpha=0)  # carved, so that little is left to learn but light
    order = np.argsort([math.atan2(*camera.position[:2].tolist()) for camera in scene.splits["train"].cameras])
    gains = np.ones(36)
    gains[order] = np.exp(0.15 * np.sin(4 * np.arange(36) / 36 * 2 * math.pi))
    bad = spoilt(scene, 0.0, gains)
    occupancy = replace(tiny_config().occupancy, max_cells=2**19)
    task = ran(bad, 300, refine=("exposure",), refinement=RefineOptions(interval=1), occupancy=occupancy)
    report = task.model().info["refinement"]
    found = np.log(np.array(report["gains"]).mean(1))
    assert np.corrcoef(found, np.log(gains))[0, 1] > 0.7
    views = as_known(bad.splits["train"], task.model(), "train")
    assert views.gains is not None and np.allclose(views.gains, report["gains"])
    ours = evaluate_views(task.model(), views)
    plain = ran(bad, 300, refine=(), occupancy=occupancy)
    theirs = evaluate_views(plain.model(), as_known(bad.splits["train"], plain.model(), "train"))
    assert ours["psnr"] > theirs["psnr"] + 1.0
    assert (ours["exposure"], theirs["exposure"]) == ("as learned of each photo, or of those near it", "as rendered")
    held_out = as_known(bad.splits["test"], task.model(), "test")
    assert held_out.gains is not None and held_out.gains.shape == (3, 3)


def test_known_errors_of_poses_and_exposures_are_found_again() -> None:
    # In no order: what grows with the cameras' height could as well be how surfaces shine.
    gains = np.exp(np.random.default_rng(3).permutation(np.linspace(-0.4, 0.1, 16)))
    clean = small_scene()
    bad = spoilt(clean, 1.5, gains)
    task = ran(bad, 500, refine=("poses", "exposure"), refinement=RefineOptions(pose_rate=0.05, interval=1))
    true = clean.splits["train"].cameras
    before = turn_between(list(bad.splits["train"].cameras), true)
    after = turn_between(task.cameras()["train"], true)
    assert before > 1.3 and after < 0.5 * before
    report = task.refinement.report() if task.refinement is not None else {}
    found = np.log(np.array(report["gains"]).mean(1))
    true_gains = np.log(gains) - np.log(gains).mean()
    assert np.corrcoef(found, true_gains)[0, 1] > 0.9
    # After so few steps gains are still on their way: 0.44 of them is missing, after 1,500 steps 0.19.
    assert np.linalg.norm(found - true_gains) < 0.6 * np.linalg.norm(true_gains)
    assert len(report["degrees"]) == 16 and max(report["degrees"]) > 1.0
    # Held-out views miss a scene that is as bright as the photos' mean until their exposure is fitted.
    model, views = task.model(), clean.splits["test"]
    plain = evaluate_views(model, as_refined(views, model.cameras["test"]))
    aligned = evaluate_aligned(model, views, task.config.refine)
    assert aligned["psnr"] > plain["psnr"] + 1.0
    assert "left half" in aligned["alignment"] and aligned["n_views"] == 2
    # The other views' right halves had no part in the fit; a camera that is turned away is found again.
    fit = Fit(model, ("poses", "exposure"))
    camera, image = views.cameras[0], views.images[0]
    here = fit.align(camera, image).camera
    turned = torch.cat([rotation_of(torch.full((1, 3), 0.006, dtype=torch.float64))[0] @ camera.camera_to_world[:, :3],
                        camera.camera_to_world[:, 3:]], 1)  # fmt: skip
    again = fit.align(camera.moved(turned), image).camera
    # By what is seen where: a turn and a shift sideways look nearly alike, and how much of each is found is chance.
    points = seen_points(model, camera)
    assert pixels_between(camera.moved(turned), camera, points) > 0.8
    assert pixels_between(again, here, points) < 0.15


def test_a_run_goes_on_bit_for_bit_and_its_cameras_are_in_the_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(
        refine=("poses", "lens", "exposure"), refinement=RefineOptions(rays_per_update=100, interval=2)
    )
    scene = spoilt(small_scene(), 1.0)
    whole = RunFolder.create(tmp_path / "whole", "demo")
    train(NerfTask(config, scene, seed=1), whole, TrainOptions(n_steps=40))
    halves = RunFolder.create(tmp_path / "halves", "demo")
    train(NerfTask(config, scene, seed=1), halves, TrainOptions(n_steps=40, stop_after=23))
    task = NerfTask(config, scene, seed=1)
    train(task, halves, TrainOptions(n_steps=40), resume=True)
    (one, about), (other, _) = load_checkpoint(whole.checkpoint), load_checkpoint(halves.checkpoint)
    assert {"refinement.poses", "refinement.gathered_table", "optimizer.poses.0.moment1"} <= one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert float(one["refinement.poses"].abs().max()) > 0
    moved = [camera.to_dict() for camera in task.cameras()["train"]]
    assert about["cameras"]["train"] == moved != [c.to_dict() for c in scene.splits["train"].cameras]
    export_checkpoint(whole.checkpoint, tmp_path / "small.safetensors")
    model = load_model(tmp_path / "small.safetensors")
    assert model.cameras["train"] == task.cameras()["train"]
    assert model.info["refinement"]["parts"] == ["poses", "lens", "exposure"]
    del one["refinement.poses"]
    with pytest.raises(CheckpointError, match=r"refinement\.poses"):
        task.restore(one, about["state"])


def test_fine_levels_wait_where_cameras_move() -> None:
    config = tiny_config(refine=("poses",), refinement=RefineOptions(coarse_until=0.9, rays_per_update=100))
    task = NerfTask(config, small_scene(), seed=1)
    task.begin()
    layout, table = config.field_config(1, 0.0).encoding.layout(3), task.steps.values().table
    before = table.clone()
    for step in range(3):
        task.step(step, step / 100)
    first = int(layout.level_offsets[int((np.asarray(layout.resolutions) <= 64).sum())])
    assert torch.equal(table[first:], before[first:]) and not torch.equal(table[:first], before[:first])
    task.step(3, 0.95)
    assert not torch.equal(table[first:], before[first:])


def test_a_focal_length_that_is_wrong_for_all_photos_is_found_again() -> None:
    clean = small_scene()
    wrong = 1.05
    views = clean.splits["train"]
    cameras = tuple(replace(camera, fx=wrong * camera.fx, fy=wrong * camera.fy) for camera in views.cameras)
    bad = replace(clean, splits={**clean.splits, "train": replace(views, cameras=cameras)})
    options = RefineOptions(interval=1, rays_per_update=64)
    task = ran(bad, 450, refine=("lens",), refinement=options)
    found = task.cameras()["train"][0].fx / views.cameras[0].fx
    assert abs(found - 1) < 0.4 * (wrong - 1)

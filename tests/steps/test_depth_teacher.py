"""Batches that know distances: which rays, which distances, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashfield.cli.nerf import check_same_depth
from hashfield.data.dataset import Scene
from hashfield.data.depth import PhotoDepth
from hashfield.errors import ConfigError
from hashfield.geometry.cameras import camera_rays, panorama
from hashfield.geometry.rays import PixelPool, RayBatch
from hashfield.ops.training_rays import training_rays
from hashfield.steps import ranks
from hashfield.steps.depth_teacher import POINTS_COUNT, DepthOfPhoto, DepthTeacher
from hashfield.steps.pixel_source import masked_pool, pixel_pool
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import DEPTH_WEIGHT, NerfTrainConfig
from hashfield.train.run_folder import RunFolder
from tests.tasks.scenes import small_scene, tiny_config

BOX = torch.tensor([-9.0, -9, -9, 9, 9, 9], dtype=torch.float64)
NO_POINTS: tuple[np.ndarray, np.ndarray] = (np.zeros((0, 2), np.int64), np.zeros(0, np.float32))


def pool_of(scene: Scene) -> PixelPool:
    """The training photos in scene space."""
    return NerfTask(tiny_config(), scene).pool


def batch(teacher: DepthTeacher, pool: PixelPool, chosen: torch.Tensor, seed: int = 0) -> RayBatch:
    g = torch.Generator().manual_seed(1)
    jitter, background = torch.rand(len(chosen), generator=g), torch.rand(len(chosen), 3, generator=g)
    return teacher.batch(chosen, pool, BOX, jitter, background, np.random.default_rng(seed))


def test_maps_tell_the_distance_along_the_ray() -> None:
    """A wall in front of a camera has one depth along the axis, and farther rays to its corners. Half of the rows are
    masked out, one photo has no map, and one map is smaller than its photo."""
    pool = pool_of(small_scene())
    mask = torch.ones(len(pool.pixels), dtype=torch.uint8)
    mask[64 * 32 : 64 * 64] = 0
    pool = masked_pool(pool, mask)
    wall, small = np.full((64, 64), 1500, np.uint16), np.full((16, 16), 3000, np.uint16)
    wall[5, 7] = small[0, 0] = 0
    maps = [DepthOfPhoto(z, 1e-3, *NO_POINTS) for z in (wall, None, small, *[None] * 13)]
    teacher = DepthTeacher(maps, pool)
    teacher.weight = 0.25
    chosen = torch.arange(pool.n_pool)
    found = batch(teacher, pool, chosen)
    assert found.distance is not None and found.trust is not None and found.rays.image_index is not None
    image = found.rays.image_index
    assert bool((found.trust[(image == 1) | (image > 2)] == 0).all())
    first, third = image == 0, image == 2
    assert int(first.sum()) == 64 * 32 and int((found.trust[first] == 0).sum()) == 1
    assert float(found.trust[first][5 * 64 + 7]) == 0.0
    assert int((found.trust[third] == 0).sum()) == 16, "the pixels that look at the unknown one"
    forward = pool.table[:, [2, 6, 10]].float()
    for part, z in ((first, 1.5), (third, 3.0)):
        part &= found.trust > 0
        along = (found.rays.direction[part] * forward[image[part]]).sum(1) * found.distance[part]
        torch.testing.assert_close(along, torch.full_like(along, z), rtol=1e-3, atol=0)
        assert float(found.distance[part].max()) > 1.01 * z and bool((found.trust[part] == 0.25).all())


def test_maps_of_panoramas_tell_the_way_itself() -> None:
    camera = panorama(torch.eye(3, 4, dtype=torch.float64), 32, 16)
    scene = small_scene()
    table = NerfTask(tiny_config(), scene).pool.table[:1].clone()
    table[0, 16] = 3.0
    table[0, 12:16] = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy])
    pool = pixel_pool([np.zeros((16, 32, 4), np.uint8)], table)
    teacher = DepthTeacher([DepthOfPhoto(np.full((16, 32), 2.0, np.float32), 0.5, *NO_POINTS)], pool)
    teacher.weight = 1.0
    found = batch(teacher, pool, torch.arange(512))
    assert found.distance is not None and bool((found.distance == 1.0).all())
    assert len(camera_rays(camera)[0]) == 512


def test_a_share_of_the_rays_goes_through_points() -> None:
    pool = pool_of(small_scene())
    pixels = np.array([[3, 4], [60, 2], [9, 63]])
    photos = [DepthOfPhoto(None, 1.0, *NO_POINTS) for _ in range(16)]
    photos[5] = DepthOfPhoto(None, 1.0, pixels, np.array([0.5, 0.6, 0.7], np.float32))
    teacher = DepthTeacher(photos, pool)
    assert teacher.n_points == 3
    chosen = torch.arange(100, 740)
    plain = batch(teacher, pool, chosen)
    assert plain.distance is not None and plain.trust is not None
    assert float(plain.trust.abs().max()) == 0.0, "the weight is 0"
    teacher.weight = 0.1
    found = batch(teacher, pool, chosen)
    assert found.n_rays == 640 and found.distance is not None and found.trust is not None
    n = 640 - 40
    for one, other in ((found.rays.direction, plain.rays.direction), (found.target, plain.target)):
        assert torch.equal(one[:n], other[:n])
    assert torch.equal(found.jitter, plain.jitter) and torch.equal(found.background, plain.background)
    assert found.rays.image_index is not None and bool((found.rays.image_index[n:] == 5).all())
    torch.testing.assert_close(found.trust[n:], torch.full((40,), POINTS_COUNT * 0.1))
    assert float(found.trust[:n].abs().max()) == 0.0
    for (column, row), distance in zip(pixels, (0.5, 0.6, 0.7), strict=True):
        here = (found.distance[n:] - distance).abs() < 1e-6
        number = pool.starts[5] + row * 64 + column
        right = training_rays(number[None], pool, BOX, jitter=torch.zeros(1), background=torch.zeros(1, 3))
        assert int(here.sum()) > 3
        assert torch.equal(found.rays.direction[n:][here], right.rays.direction.expand(int(here.sum()), 3))
    again = batch(teacher, pool, chosen)
    assert torch.equal(again.rays.direction, found.rays.direction)


# --- the task


def with_depth(scene: Scene, z: float = 1.0, column: int = 32) -> Scene:
    """The scene with a depth map for each photo, a wall, and a point in each."""
    views = scene.splits["train"]
    depths = tuple(
        PhotoDepth(np.full((64, 64), 1000, np.uint16), z / 1000, np.array([[column, 32]]), np.array([z], np.float32))
        for _ in views.cameras
    )
    return replace(scene, splits={**scene.splits, "train": replace(views, depths=depths)})


def trained(scene: Scene, n: int = 3, **changes: Any) -> tuple[NerfTask, list[Any]]:
    """A task after some steps, and what they found."""
    config = tiny_config()
    task = NerfTask(replace(config, train=replace(config.train, **changes)), scene)
    task.begin()
    return task, [task.step(k, k / n) for k in range(n)]


def test_depth_is_part_of_the_loss_until_it_fades() -> None:
    plain, before = trained(small_scene(), 4)
    none, same = trained(with_depth(small_scene()), 4, depth=0.0)
    assert none.teacher is None and before == same
    for mine, theirs in zip(plain.field.parameters(), none.field.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    task, found = trained(with_depth(small_scene()), 4, depth=2.0)
    assert task.teacher is not None and task.teacher.n_points == 16 and task.teacher.weight == 0.0
    assert found[0].loss > 1.2 * before[0].loss and found[0].squared_error == pytest.approx(
        before[0].squared_error, rel=0.5
    )
    default, _ = trained(with_depth(small_scene()), 1)
    assert default.teacher is not None and default.teacher.n_points == 0 and default.teacher.weight == DEPTH_WEIGHT


def test_another_depth_is_other_data(tmp_path: Path) -> None:
    plain, near, far = (
        NerfTask(tiny_config(), scene)
        for scene in (small_scene(), with_depth(small_scene()), with_depth(small_scene(), 1.1))
    )
    points = NerfTask(tiny_config(), with_depth(small_scene(), column=33))
    assert len({task.fingerprint() for task in (plain, near, far)}) == 3
    assert near.fingerprint() == NerfTask(tiny_config(), with_depth(small_scene())).fingerprint()
    assert near.fingerprint() == points.fingerprint(), "points are not learned from unless they are asked for"
    run = RunFolder(tmp_path, tmp_path / "checkpoint.safetensors")
    for begun, now in ((near, near), (plain, plain), (near, plain)):
        check_same_depth(run, begun.describe(), now)
    with pytest.raises(ConfigError, match="depth maps or points were others when the run was begun"):
        check_same_depth(run, near.describe(), far)
    with pytest.raises(ConfigError, match="nothing was known of depth when the run was begun"):
        check_same_depth(run, plain.describe(), near)


def test_a_run_goes_on_where_it_was() -> None:
    """Which pixels with points are drawn follows from seed and step."""
    scene = with_depth(small_scene())
    whole, _ = trained(scene, 4, depth=1.0)
    half, _ = trained(scene, 4, depth=1.0)
    config = replace(half.config, train=half.config.train)
    first = NerfTask(config, scene)
    first.begin()
    for k in range(2):
        first.step(k, k / 4)
    tensors, values = first.state()
    second = NerfTask(config, scene)
    second.restore({name: tensor.clone() for name, tensor in tensors.items()}, values)
    for k in range(2, 4):
        second.step(k, k / 4)
    for mine, theirs in zip(second.field.parameters(), whole.field.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_several_ranks_leave_depth_out_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    two = ranks.Ranks(0, 2, None, None, ["a", "b"])
    monkeypatch.setattr("hashfield.tasks.nerf.current", lambda: two)
    task = NerfTask(tiny_config(), with_depth(small_scene()))
    assert task.teacher is None and task.depth_note is not None and "several ranks" in task.depth_note


def test_settings() -> None:
    assert NerfTrainConfig().depth_sources == ("files",)
    assert NerfTrainConfig(depth=0.0).depth_sources == ()
    own = NerfTrainConfig(depth=0.4, depth_until=0.25)
    assert own.depth_sources == ("files", "points")
    assert [own.depth_weight(f) for f in (0.0, 0.125, 0.25, 1.0)] == [0.4, 0.2, 0.0, 0.0]
    for wrong in ({"depth": -1.0}, {"depth_until": 0.0}, {"depth": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            NerfTrainConfig(**wrong)

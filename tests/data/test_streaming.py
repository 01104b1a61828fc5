"""Photos that do not fit the memory they may take: decoded into files, found again, trained on from there."""

import os
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashfield.data import ReadOptions, Scene, load_scene, photo_cache
from hashfield.data.demo_scene import save_nerf_synthetic
from hashfield.errors import DataError
from hashfield.steps import streamed_pool
from hashfield.steps.ranks import Ranks
from hashfield.steps.rays_host import HostRaySteps
from hashfield.tasks.nerf import NerfTask
from tests.data.colmap_files import write_neus
from tests.data.small_scenes import HEIGHT, WIDTH, picture, save, write_scene
from tests.tasks.scenes import small_scene, tiny_config
from tests.threads_as_ranks import as_ranks

NEED = 9 * 4 * WIDTH * HEIGHT


def streamed(folder: Path, cache: Path, memory: int = NEED - 1, **options: object) -> Scene:
    return load_scene(folder, ReadOptions(max_image_memory=memory, image_cache=cache, **options))  # type: ignore[arg-type]


def assert_same(found: Scene, wanted: Scene) -> None:
    assert (found.has_alpha, found.spaces) == (wanted.has_alpha, wanted.spaces)
    for split, views in wanted.splits.items():
        other = found.splits[split]
        assert views.files is None and other.files is not None and other.cameras == views.cameras
        for image, file, right in zip(other.images, other.files, views.images, strict=True):
            is_opaque = bool((right[..., 3] == 255).all())
            assert np.array_equal(image, right) and file.suffix == (".rgb" if is_opaque else ".rgba")
            assert file.read_bytes() == right[..., : 3 if is_opaque else 4].tobytes()
        assert (other.masks is None) == (views.masks is None)
        for mask, right in zip(other.masks or (), views.masks or (), strict=True):
            assert mask.dtype == np.bool_ and np.array_equal(mask, right)


@pytest.mark.parametrize("kind", ["alpha", "opaque", "translucent", "masked", "matte"])
def test_streamed_photos_are_the_same(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    if kind == "matte":
        write_neus(folder)
    else:
        write_scene(folder, alpha=kind == "alpha", **({"mask_path": "mask.png"} if kind == "masked" else {}))
    if kind == "translucent":
        pixels = picture(3, alpha=False)
        pixels[2, 3, 3] = 100
        save(folder / "images/0003.png", pixels)
    if kind == "masked":
        save(folder / "mask.png", picture(0) * 0 + np.uint8(255) * (np.arange(WIDTH)[None, :, None] > 4), "RGB")
    wanted = load_scene(folder)
    found = streamed(folder, tmp_path / "cache")
    assert_same(found, wanted)
    assert found.resident_bytes == (NEED - 1) // 2 and wanted.resident_bytes is None
    assert any(f"from files in {tmp_path / 'cache'}" in note for note in found.notes)
    small = {"downscale": 2, "memory": NEED // 4 - 1}
    assert_same(streamed(folder, tmp_path / "cache", **small), load_scene(folder, ReadOptions(downscale=2)))


def test_photos_are_decoded_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_scene(tmp_path / "data", alpha=False), tmp_path / "cache"
    decoded: list[str] = []
    real = photo_cache.decode_rgb

    def decode(path: Path, *rest: object) -> np.ndarray:
        decoded.append(path.name)
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(photo_cache, "decode_rgb", decode)
    streamed(folder, cache)
    assert len(decoded) == 9
    streamed(folder, cache)
    assert len(decoded) == 9
    save(folder / "images/0004.png", picture(20, alpha=False), "RGB")
    os.utime(folder / "images/0004.png", (1, 1))
    assert_same(streamed(folder, cache), load_scene(folder))
    assert decoded[9:] == ["0004.png"]
    # what is cut short is not taken; the newest file, since that of the photo before the change is still there too
    victim = max(cache.glob("*.rgb"), key=lambda file: file.stat().st_mtime_ns)
    victim.write_bytes(victim.read_bytes()[:-1])
    assert_same(streamed(folder, cache), load_scene(folder))
    assert len(decoded) == 11


def test_what_nobody_asked_for_in_weeks_is_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    streamed(write_scene(tmp_path / "old", alpha=False), cache)
    assert len(list(cache.iterdir())) == 18
    for file in cache.iterdir():
        os.utime(file, (time.time() - 20 * 86400,) * 2)
    (cache / "notes.txt").write_text("not ours")
    streamed(write_scene(tmp_path / "new", alpha=False), cache)
    assert len(list(cache.iterdir())) == 19


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_scene(tmp_path / "data", alpha=False), tmp_path / "cache"
    usage = namedtuple("usage", "total used free")
    streamed(write_scene(tmp_path / "other", alpha=False), cache)
    monkeypatch.setattr(photo_cache.shutil, "disk_usage", lambda path: usage(0, 0, (1 << 30) + 3 * NEED // 4 - 1))
    for file in sorted(cache.iterdir())[:8]:
        os.utime(file, (time.time() - 2 * 86400,) * 2)
    with pytest.raises(DataError, match=r"no room for .*--image-cache, or --downscale 2 .*--max-image-mem"):
        streamed(folder, cache)
    assert len(list(cache.iterdir())) == 10  # those of other data sets made way, but for those of today


def scene_on_disk(folder: Path) -> Path:
    save_nerf_synthetic(small_scene(), folder)
    return folder


@pytest.mark.parametrize("alpha", ["auto", "mask"])
def test_a_model_learns_from_streamed_photos_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alpha: str
) -> None:
    monkeypatch.setattr(streamed_pool, "STRIP_PIXELS", 256)
    monkeypatch.setattr(streamed_pool, "MOVED_AT_ONCE", 4)
    folder = scene_on_disk(tmp_path / "data")
    scene = streamed(folder, tmp_path / "cache", memory=64 * 1024, alpha=alpha)
    assert scene.splits["train"].files is not None and scene.has_alpha == (alpha == "auto")

    def task() -> NerfTask:
        return NerfTask(tiny_config(), scene)

    whole = task()
    whole.begin()
    losses = [float(whole.step(step, step / 40).loss) for step in range(40)]
    assert whole.streamed is not None and whole.streamed.n_moved >= 16
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    first = task()
    first.begin()
    for step in range(20):
        first.step(step, step / 40)
    tensors, values = first.state()
    second = task()
    second.restore({name: tensor.clone() for name, tensor in tensors.items()}, values)
    assert [float(second.step(step, step / 40).loss) for step in range(20, 40)] == losses[20:]


def test_ranks_learn_from_photos_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_pool, "STRIP_PIXELS", 256)
    monkeypatch.setattr(streamed_pool, "MOVED_AT_ONCE", 4)
    scene = streamed(scene_on_disk(tmp_path / "data"), tmp_path / "cache", memory=64 * 1024)

    def work(ranks: Ranks) -> tuple[list[float], dict[str, torch.Tensor], Any, float, int]:
        task = NerfTask(tiny_config(), scene)
        task.begin()
        losses = [float(task.step(step, step / 40).loss) for step in range(40)]
        assert task.streamed is not None and task.streamed.n_moved >= 8
        assert isinstance(task.steps, HostRaySteps) and task.steps.mean is not None
        tensors, values = task.state()
        same = {name: x.clone() for name, x in tensors.items()}
        return losses, same, values["random"], task.steps.mean.weight, task.streamed.n_drawable

    first, second = as_ranks(2, work)
    assert first[0] == second[0] and np.mean(first[0][-5:]) < 0.8 * np.mean(first[0][:5])
    assert first[2] == second[2] and first[1].keys() == second[1].keys()
    for name, value in first[1].items():
        assert torch.equal(second[1][name], value), name
    # A pixel counts alike whichever rank has it.
    n_pixels = [found[4] for found in (first, second)]
    assert n_pixels[0] != n_pixels[1]
    assert [found[3] for found in (first, second)] == [n / sum(n_pixels) for n in n_pixels]


def test_carving_from_an_overview_loses_nothing(tmp_path: Path) -> None:
    folder = scene_on_disk(tmp_path / "data")
    found = []
    for scene in (load_scene(folder), streamed(folder, tmp_path / "cache", memory=128 * 1024)):
        task = NerfTask(tiny_config(), scene)
        task.begin()
        assert task.steps.grid is not None
        found.append(task.steps.grid.bits.clone())
    exact, shrunk = (np.unpackbits(bits.numpy()) for bits in found)
    assert not (exact & ~shrunk).any() and shrunk.sum() < len(shrunk)

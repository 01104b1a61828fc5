"""Cameras from photos alone, on a scene by formula; and what is said about photos that give none."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hashfield.cli.main import run
from hashfield.data import load_scene, photo_files
from hashfield.data.dataset import ReadOptions
from hashfield.data.doctor import examine
from hashfield.data.photo_files import copy_size, list_photos, read_photo, small_copy
from hashfield.data.prepare import WORK, PrepareOptions, default_out, first_octave, prepare
from hashfield.data.structure_from_motion import connected
from hashfield.data.video_frames import choose_frames, extract_frames
from hashfield.errors import ConfigError, DataError
from tests.data.photographed_scene import cameras, photo

needs_pycolmap = pytest.mark.skipif(
    importlib.util.find_spec("pycolmap") is None, reason="pycolmap is not installed (pip install 'hashfield[photos]')"
)
FEWER = PrepareOptions(features=1500)
"""Enough for the photos below, in two thirds of the time."""


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [photo(camera) for camera in cameras()]


@pytest.fixture(scope="module")
def photos(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos, one of them stored on its side with a tag that says so, one of them a copy of another."""
    folder = tmp_path_factory.mktemp("walk") / "my photos"
    folder.mkdir()
    for k, picture in enumerate(pictures):
        image, tags = Image.fromarray(picture), Image.Exif()
        if k == 3:
            image, tags = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
            tags[0x0112] = 6  # to be turned clockwise by 90 degrees
        image.save(folder / f"p{k}.jpg", quality=95, exif=tags)
    shutil.copy(folder / "p5.jpg", folder / "p5 again.jpg")
    return folder


@pytest.fixture(scope="module")
def prepared(photos: Path) -> SimpleNamespace:
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed (pip install 'hashfield[photos]')")
    stages: list[str] = []
    result = prepare(photos, default_out(photos), FEWER, lambda stage, done, total: stages.append(stage))
    return SimpleNamespace(result=result, stages=stages)


def aligned(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of points from the truth after the best similarity, over the truth's spread."""
    a, b = found - found.mean(axis=0), truth - truth.mean(axis=0)
    left, size, right = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(left @ right))])
    scale = (size * np.diag(sign)).sum() / (a**2).sum()
    return float(
        np.linalg.norm(scale * a @ (left @ sign @ right).T - b, axis=1).mean() / np.linalg.norm(b, axis=1).mean()
    )


def test_photos_become_cameras(prepared: SimpleNamespace, photos: Path):
    result = prepared.result
    assert (result.n_photos, result.n_placed, result.lost) == (10, 10, ())
    assert any("1 of 11 photos are exact copies" in note and "p5" in note for note in result.notes)
    scene = load_scene(result.path, ReadOptions(splits=("train", "test")))
    views = [
        view for split in scene.splits.values() for view in zip(split.names, split.cameras, split.images, strict=True)
    ]
    views.sort(key=lambda view: Path(view[0]).name)
    by_name = {Path(name).name: camera for name, camera, _ in views}
    known = dict(zip((f"p{k}.jpg" for k in range(10)), cameras(), strict=True))
    used = [name for name in known if name in by_name]
    assert len(used) >= 9 and len(by_name) == 10
    found = np.stack([by_name[name].position.numpy() for name in used])
    assert aligned(found, np.stack([known[name].position.numpy() for name in used])) < 0.01
    # the cameras look at the middle of the box, and up is +z
    up = torch.stack([camera.up for camera in by_name.values()]).mean(dim=0)
    assert float(up[2] / up.norm()) > 0.8
    assert all(abs(camera.fx / 360 - 1) < 0.02 for camera in by_name.values())
    assert all(camera.fy == pytest.approx(camera.fx, rel=1e-9) for camera in by_name.values()), "square pixels"
    # the photo on its side was written anew, upright; the others stay where they are
    data = json.loads((result.path / "transforms.json").read_text())
    paths = [frame["file_path"] for frame in data["frames"]]
    assert sorted(path for path in paths if path.startswith("images/")) == ["images/p3.jpg"]
    assert sum(path.startswith("../my photos/") for path in paths) == 9
    assert all((image.shape[1], image.shape[0]) == (400, 300) for _, _, image in views)
    assert sorted(path.name for path in photos.iterdir()) == sorted([*known, "p5 again.jpg"])


def test_the_colmap_model_is_in_the_same_world(prepared: SimpleNamespace):
    from hashfield.data import colmap

    stated = colmap.state(prepared.result.path / "sparse" / "0", ReadOptions())
    frames = json.loads((prepared.result.path / "transforms.json").read_text())["frames"]
    places = {Path(frame["file_path"]).name: np.array(frame["transform_matrix"])[:3, 3] for frame in frames}
    assert stated.points is not None and len(stated.points) > 200
    assert {view.name for view in stated.views} == set(places)
    assert (prepared.result.path / "sparse" / "0" / "sparse.ply").is_file()


def test_a_lens_that_bends_the_scene_is_straightened(prepared: SimpleNamespace):
    from hashfield.data import structure_worker

    model = structure_worker.pycolmap.Reconstruction(prepared.result.path / WORK / "model")
    for camera in model.cameras.values():
        structure_worker.set_lens(camera, "OPENCV")
        camera.params = [0.8 * camera.params[0], 0.6 * camera.params[1], *camera.params[2:]]
    found = structure_worker.adjusted(model, 1, 10)
    assert [camera.model_name for camera in found.cameras.values()] == ["SIMPLE_RADIAL"]
    assert all(camera.focal_length == pytest.approx(360, rel=0.02) for camera in found.cameras.values())
    assert found.compute_mean_reprojection_error() < 1


def test_the_doctor_knows_a_mirrored_and_another_photo_by_the_sparse_model(prepared: SimpleNamespace):
    scene = load_scene(prepared.result.path, ReadOptions(splits=("train", "test")))
    assert examine(scene).findings == []
    views = scene.splits["train"]
    images = list(views.images)
    images[2], images[5] = images[2][:, ::-1], images[3][::-1]
    spoilt = replace(
        scene, splits={**scene.splits, "train": replace(views, images=tuple(map(np.ascontiguousarray, images)))}
    )
    found = {(finding.kind, *finding.photos) for finding in examine(spoilt).findings}
    assert found == {("mirrored", views.names[2]), ("other picture", views.names[5])}


def test_a_second_run_finds_all_done_and_another_photo_reuses_the_work(
    prepared: SimpleNamespace, photos: Path, pictures: list[np.ndarray], tmp_path: Path
):
    stages: list[str] = []
    out = default_out(photos)
    again = prepare(photos, out, FEWER, lambda stage, done, total: stages.append(stage))
    assert again.was_there and set(stages) == {"reading"}
    # a stopped run: the database is there, its result is not
    copy = tmp_path / "half done"
    shutil.copytree(out / ".prepare", copy / ".prepare")
    for name in ("done.json", "solved.json"):
        (copy / ".prepare" / name).unlink()
    stamp = (copy / ".prepare" / "photos").stat().st_mtime_ns
    result = prepare(photos, copy, FEWER, lambda stage, done, total: None)
    assert result.n_placed == 10
    assert (copy / ".prepare" / "photos").stat().st_mtime_ns == stamp, "small copies were written again"


def test_ctrl_c_ends_within_seconds_and_loses_nothing(photos: Path, tmp_path: Path):
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed (pip install 'hashfield[photos]')")
    few, out, options = tmp_path / "few photos", tmp_path / "stopped", replace(FEWER, threads=1)
    few.mkdir()
    for k in range(4, 9):
        shutil.copy(photos / f"p{k}.jpg", few)
    command = [sys.executable, "-m", "hashfield", "prepare", str(few), "--out", str(out)]
    command += ["--features", str(options.features), "--threads", str(options.threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / ".prepare" / "database.db").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 10
    assert "interrupted" in errors and "Traceback" not in errors
    assert not (out / "transforms.json").exists()
    assert prepare(few, out, options, lambda stage, done, total: None).n_placed == 5


@pytest.mark.parametrize(("counts", "features", "octave"), [((900, 999, 5000), 4096, -1), ((1200, 900, 1001), 4096, 0),
                                                             ((300, 300, 300), 300, 0), ((), 4096, -1)])  # fmt: skip
def test_photos_with_few_features_are_looked_at_twice_as_large(
    tmp_path: Path, counts: tuple[int, ...], features: int, octave: int
):
    asked: list[list[str]] = []

    def answer(stage: str, **job: object) -> dict[str, object]:
        asked.append(job["names"])  # type: ignore[arg-type]
        return {"counts": list(counts)}

    shop, photos = SimpleNamespace(folder=tmp_path, run=answer), [SimpleNamespace(key=f"{k}") for k in range(21)]
    for _ in range(2):  # the second time it is known
        assert first_octave(shop, photos, PrepareOptions(features=features)) == octave  # type: ignore[arg-type]
    assert asked == [[f"{k}.jpg" for k in (0, 4, 8, 12, 16, 20)]]


# --- what gives no scene


@needs_pycolmap
def test_a_full_disk_is_said_and_half_a_copy_is_none(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(photo_files, "encoded", fail)
    with pytest.raises(DataError, match=r"out: the disk is full: make room and run the same command again"):
        prepare(photos, tmp_path / "out", PrepareOptions(), lambda stage, done, total: None)
    assert list((tmp_path / "out" / WORK / "photos").glob("*.jpg")) == []


def test_too_few_photos_are_refused(tmp_path: Path, pictures: list[np.ndarray]):
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed (pip install 'hashfield[photos]')")
    two = tmp_path / "two"
    two.mkdir()
    for k in range(2):
        Image.fromarray(pictures[k]).save(two / f"{k}.jpg")
    with pytest.raises(DataError, match="has 2 photos: at least 3 different ones are needed"):
        prepare(two, tmp_path / "out", PrepareOptions(), lambda *args: None)
    same = tmp_path / "same"
    same.mkdir()
    for k in range(20):
        Image.fromarray(pictures[0]).save(same / f"{k}.jpg")
    with pytest.raises(DataError, match="has 20 photos, and 19 of them are copies of another one"):
        prepare(same, tmp_path / "out", PrepareOptions(), lambda *args: None)
    assert not (tmp_path / "out").exists(), "nothing was computed, so nothing is left behind"


@needs_pycolmap
def test_walls_and_unrelated_photos_are_refused_in_one_line(tmp_path: Path):
    random = np.random.default_rng(0)
    wall, mixed = tmp_path / "wall", tmp_path / "mixed"
    for folder in (wall, mixed):
        folder.mkdir()
    for k in range(5):
        grey = np.clip(235 + random.normal(0, 1.5, (240, 320, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(wall / f"{k}.jpg")
        blocks = np.kron(random.integers(0, 255, (30, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(blocks).save(mixed / f"{k}.png")
    with pytest.raises(DataError, match="almost no texture"):
        prepare(wall, tmp_path / "out wall", PrepareOptions(), lambda *args: None)
    with pytest.raises(DataError, match="of 5 photos, 0 have enough in common"):
        prepare(mixed, tmp_path / "out mixed", PrepareOptions(), lambda *args: None)


def test_folders_without_photos_say_what_is_there(tmp_path: Path):
    with pytest.raises(DataError, match="there are no photos"):
        list_photos(tmp_path)
    (tmp_path / "walk.MP4").write_bytes(b"")
    with pytest.raises(DataError, match=r"walk.MP4 is a video: name the file itself"):
        list_photos(tmp_path)
    (tmp_path / "a.NEF").write_bytes(b"MM\0*" + bytes(60))
    with pytest.raises(DataError, match=r"a.NEF: is a raw photo"):
        list_photos(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    found, notes = list_photos(tmp_path)
    assert [path.name for path in found] == ["a.jpg"] and "1 raw photos are left out" in notes[0]


def test_a_foreign_data_set_is_not_overwritten(tmp_path: Path):
    (tmp_path / "transforms.json").write_text("{}")
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed (pip install 'hashfield[photos]')")
    with pytest.raises(ConfigError, match="was not made here"):
        prepare(tmp_path, tmp_path, PrepareOptions(), lambda *args: None)
    assert (tmp_path / "transforms.json").read_text() == "{}"


def test_a_data_set_of_other_photos_is_not_overwritten(prepared: SimpleNamespace, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"holds what was prepared of .*my photos"):
        prepare(tmp_path, prepared.result.path, PrepareOptions(), lambda *args: None)


def test_training_on_photos_without_poses_names_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    assert run(["train", "nerf", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "hashfield prepare" in said and "--prepare" in said


def test_a_missing_pycolmap_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(["prepare", str(tmp_path)]) == 2
    assert "pip install 'hashfield[photos]'" in capsys.readouterr().err


# --- photos and videos


@pytest.mark.parametrize("tag", range(1, 9))
def test_small_copies_are_upright_whatever_the_tag(tmp_path: Path, tag: int):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = (250, 10, 10)  # red at the upper left
    stored = {
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1],
        5: picture.transpose(1, 0, 2), 6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(picture, -1),
    }  # fmt: skip
    tags = Image.Exif()
    tags[0x0112] = tag
    pixels = np.ascontiguousarray(stored[tag])
    for ending in (".jpg", ".png"):
        path = tmp_path / f"a{ending}"
        Image.fromarray(pixels).save(path, exif=tags, **({"quality": 98} if ending == ".jpg" else {}))
        read = read_photo(path, path.name)
        small = np.asarray(small_copy(read, 30))
        assert (read.width, read.height) == (60, 40) and small.shape == (20, 30, 3)
        assert small[4, 6, 0] > 200 and small[16, 6, 0] < 60 and small[4, 24, 0] < 60, tag
        assert read.is_rewritten == (tag != 1)


def test_copies_keep_pixels_square():
    assert copy_size(1080, 1920, 1000) == (558, 992)
    assert copy_size(4032, 3024, 1000) == (1000, 750)
    assert copy_size(605, 806, 1000) == (605, 806)
    assert copy_size(100_000, 7, 1000) == (1000, 1)


def test_of_each_step_of_a_video_the_sharpest_frame_is_taken():
    pairs = [(1, 0), (9, 1), (2, 0.5), (3, 1), (8, 0), (4, 1), (7, 0.5)]  # sharpness and motion; half way is at 2
    measured = [SimpleNamespace(sharpness=sharp, motion=motion) for sharp, motion in pairs]
    assert choose_frames(measured, 2) == [1, 4]
    assert choose_frames(measured, 7) == choose_frames(measured, 30) == list(range(7))
    still = [SimpleNamespace(sharpness=1, motion=0) for _ in range(10)]
    assert choose_frames(still, 5) == [0, 2, 4, 6, 8]


def film(path: Path, n: int = 30) -> None:
    from hashfield.export.video import write_mp4

    wide = photo(cameras(1, (400, 96))[0])
    write_mp4(path, (np.ascontiguousarray(wide[:, 4 * k : 4 * k + 128]) for k in range(n)), fps=10)


def test_frames_of_a_video_and_of_a_truncated_one(tmp_path: Path):
    film(tmp_path / "walk.mp4")
    paths, notes = extract_frames(tmp_path / "walk.mp4", tmp_path, 10)
    assert 8 <= len(paths) <= 10 and "frames of walk.mp4" in notes[0]
    with Image.open(paths[0]) as image:
        assert image.size == (128, 96)
    data = (tmp_path / "walk.mp4").read_bytes()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / "cut.mp4").write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match=r"cut\.mp4.*cut off"):
            extract_frames(tmp_path / "cut.mp4", tmp_path)


def test_names_that_links_hold_together():
    assert connected(["a", "b", "c", "d"], [("a", "c"), ("c", "d")]) == [["a", "c", "d"], ["b"]]
    assert os.path.basename(default_out(Path("/x/walk"))) == "walk-prepared"

"""Camera paths of instant-ngp and nerfstudio, and paths made from a scene's cameras."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.camera_path import CameraPath, write_camera_path
from hashfield.geometry.cameras import Camera, flip_opengl, look_at, panorama, rotation_fault
from hashfield.geometry.path_files import PathPlace, PathWish, nerfstudio_normalisation, read_path_file
from hashfield.geometry.paths import quaternion_of
from hashfield.geometry.spaces import Spaces
from hashfield.geometry.tours import along_path, as_panoramas, spiral_path
from tests.geometry.test_spaces import double, ring

SHIPPED = Path(__file__).parents[3] / "shared/data/camera_paths"
SPACES = Spaces(0.25, (0.4, 0.6, 0.3), 4)
CAMERAS = ring(7, 4.0)


def place(**changes: Any) -> PathPlace:
    return PathPlace(**{"spaces": SPACES, "cameras": CAMERAS, **changes})


def keyframe(camera: Camera, fov: float, **more: Any) -> dict[str, Any]:
    """A camera of the world as instant-ngp stores it: by the rules for matrices of its loader, written anew here."""
    pose = flip_opengl(camera.camera_to_world)  # as in transforms.json
    pose = pose * double([1.0, -1.0, -1.0, 1.0])
    pose[:, 3] = pose[:, 3] * SPACES.scale + double(SPACES.offset)
    pose = pose[[1, 2, 0]]
    w, x, y, z = quaternion_of(pose[:, :3]).tolist()
    return {"R": [x, y, z, w], "T": pose[:, 3].tolist(), "fov": fov, "scale": 1.0, "slice": 0.0, **more}


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def test_instant_ngp_keyframes_lie_where_its_loader_puts_cameras(tmp_path: Path) -> None:
    file = write(tmp_path / "base_cam.json", {"path": [keyframe(CAMERAS[2], 40.0)], "time": 0.0})
    found, _ = read_path_file(file, place(), PathWish(width=60, height=30, n_frames=3, fps=10.0))
    assert len(found.cameras) == 3 and found.fps == 10
    for camera in found.cameras:
        torch.testing.assert_close(camera.camera_to_world, CAMERAS[2].camera_to_world, rtol=0, atol=1e-12)
        assert (camera.width, camera.height, camera.fx) == (60, 30, pytest.approx(15 / math.tan(math.radians(20))))


@pytest.mark.parametrize(
    ("order", "weights"),
    [(1, (0, 0.7, 0.3, 0)), (2, (0.245, 0.71, 0.045, 0)), (3, (0.0571667, 0.5901667, 0.3481667, 0.0045))],
)
def test_instant_ngp_blends_by_b_splines(tmp_path: Path, order: int, weights: tuple[float, ...]) -> None:
    frames = [keyframe(CAMERAS[0], fov) for fov in (20.0, 50.0, 30.0, 90.0)]
    for frame, sign in zip(frames, (1, -1, 1, -1), strict=True):
        frame["R"] = [sign * value for value in frame["R"]]  # the same rotation
    # of four keyframes without a loop the times are (i + 1) / 4, and the path lasts until the third: 13 frames in all
    # of which number k is at 0.75 k / 13; time 1.3 / 4 lies 0.3 of the way from the second keyframe to the third
    moment = 1.3 / 3
    file = write(tmp_path / "a.json", {"path": frames, "spline_order": order})
    found, _ = read_path_file(file, place(), PathWish(n_frames=30))
    camera = found.cameras[round(30 * moment)]
    fov = 2 * math.degrees(math.atan(0.5 * camera.height / camera.fy))
    wanted = sum(weight * frame["fov"] for weight, frame in zip(weights, frames, strict=True))
    assert fov == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(camera.camera_to_world, CAMERAS[0].camera_to_world, rtol=0, atol=1e-12)


def test_instant_ngp_times_and_loops(tmp_path: Path) -> None:
    frames = [keyframe(CAMERAS[0], fov, timestamp=time) for fov, time in ((20.0, 0.5), (40.0, 2.0), (60.0, 3.0))]
    values = {"path": frames, "spline_order": 1, "duration_seconds": 2.0}

    def angles(wish: PathWish) -> list[float]:
        found, _ = read_path_file(write(tmp_path / "a.json", values), place(), wish)
        return [2 * math.degrees(math.atan(0.5 * c.height / c.fy)) for c in found.cameras]

    # without a loop it ends at the time of the last keyframe but one; 2 s at 2 frames a second are 4 frames
    found = angles(PathWish(fps=2.0))
    assert found == pytest.approx([20.0, 20 + 20 * 1.0, 40 + 20 * (0.5 / 1.5), 40 + 20 * (1.0 / 1.5)])
    values["loop"] = True
    found = angles(PathWish(n_frames=6))
    times = [0.5 * k for k in range(6)]
    wanted = [
        20 + 20 * t / 0.5 if t < 0.5 else 40 + 20 * (t - 0.5) / 1.5 if t < 2 else 60 - 40 * (t - 2) for t in times
    ]
    assert found == pytest.approx(wanted)


def test_nerfstudio_frames_are_placed_by_its_transforms_file(tmp_path: Path) -> None:
    # its file says p' = scale * (transform * p) of the data before applied_transform
    turn = look_at([0.3, 0.2, 0.1], [1.0, -2.0, 0.5])
    applied = torch.tensor([[1.0, 0, 0, 0.0], [0, 0, 1, 0.0], [0, -1, 0, 0.0]], dtype=torch.float64)
    original = [Camera(look_at([3.0, k, 1.0], [0.0, 0.0, 0.0]), 80, 40, 50, 50, 40, 20) for k in range(3)]
    entries = []
    for camera in original:
        pose = flip_opengl(camera.camera_to_world)
        pose = torch.cat([turn[:, :3] @ pose[:, :3], 0.2 * (turn[:, :3] @ pose[:, 3] + turn[:, 3])[:, None]], 1)
        matrix = [*pose.flatten().tolist(), 0, 0, 0, 1]
        entries.append({"camera_to_world": matrix, "fov": 60.0, "aspect": 2.0})
    values = {"camera_path": entries, "render_width": 80.0, "render_height": 40, "seconds": 1.5, "fps": 24}
    transforms = write(tmp_path / "dataparser_transforms.json", {"transform": turn.tolist(), "scale": 0.2})
    file = write(tmp_path / "camera_path.json", values)
    found, notes = read_path_file(file, place(dataparser=transforms, applied=applied), PathWish())
    assert found.fps == pytest.approx(2) and not any("warning" in note for note in notes)
    for camera, before in zip(found.cameras, original, strict=True):
        expected = applied[:, :3] @ before.camera_to_world
        torch.testing.assert_close(camera.camera_to_world, expected, rtol=0, atol=1e-12)
        assert (camera.width, camera.height) == (80, 40)
        assert camera.fy == pytest.approx(20 / math.tan(math.radians(30))) and camera.fx == camera.fy


def test_nerfstudio_normalises_by_its_default_rule() -> None:
    matrix = nerfstudio_normalisation(CAMERAS)
    position = torch.stack([camera.position for camera in CAMERAS]) @ matrix[:3, :3].T + matrix[:3, 3]
    torch.testing.assert_close(position.mean(0), double([0, 0, 0]), rtol=0, atol=1e-12)
    assert float(position.abs().max()) == pytest.approx(1)
    scale = float(torch.linalg.det(matrix[:3, :3])) ** (1 / 3)
    up = torch.stack([camera.up for camera in CAMERAS]).mean(0)
    torch.testing.assert_close(matrix[:3, :3] @ up / (scale * up.norm()), double([0, 0, 1]), rtol=0, atol=1e-12)
    upside_down = [camera.moved(camera.camera_to_world * double([-1.0, -1.0, 1.0, 1.0])) for camera in CAMERAS]
    assert rotation_fault(nerfstudio_normalisation(upside_down)[:3, :3] / scale) < 1e-9


def test_nerfstudio_panoramas_and_what_is_not_shown(tmp_path: Path) -> None:
    entry = {"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50, "render_time": 0.5}
    values = {"camera_path": [entry], "render_width": 64, "render_height": 32, "seconds": 1}
    values |= {"camera_type": "equirectangular", "crop": {"crop_center": [0, 0, 0]}}
    found, notes = read_path_file(write(tmp_path / "a.json", values), place(), PathWish(width=32))
    assert found.cameras[0] == panorama(found.cameras[0].camera_to_world, 32, 16)
    assert any("crop" in note for note in notes) and any("render_time" in note for note in notes)


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shared camera paths are not here")
@pytest.mark.parametrize(
    ("name", "n_frames", "fps", "size"),
    [
        ("ngp_base_cam_2022", 60, 30, (32, 24)),
        ("ngp_base_cam_2023", 60, 30, (32, 24)),
        ("nerfstudio_legacy_viewer", 96, 24, (1920, 1080)),
        ("nerfstudio_viser_viewer", 60, 30, (1920, 1080)),
    ],
)
def test_files_that_the_programs_wrote(name: str, n_frames: int, fps: float, size: tuple[int, int]) -> None:
    found, notes = read_path_file(SHIPPED / f"{name}.json", place(), PathWish())
    assert len(found.cameras) == n_frames and found.fps == fps and notes
    assert {(camera.width, camera.height) for camera in found.cameras} == {size}


GOOD_NS = {"camera_path": [{"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50}], "render_width": 4,
           "render_height": 4, "seconds": 1}  # fmt: skip
GOOD_NGP = {"path": [keyframe(CAMERAS[0], 50.0), keyframe(CAMERAS[1], 50.0)]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "ns_empty": ({**GOOD_NS, "camera_path": []}, "'camera_path': expected a list"),
    "ns_size": ({**GOOD_NS, "render_width": 0}, "'render_width'"),
    "ns_stereo": ({**GOOD_NS, "camera_type": "vr180"}, "'camera_type': vr180 is not supported"),
    "ns_text": ({**GOOD_NS, "camera_path": [{"camera_to_world": "[1]", "fov": 50}]}, "frame 0, 'camera_to_world'"),
    "ns_transposed": (
        {**GOOD_NS, "camera_path": [{"camera_to_world": [1.0] * 16, "fov": 50}]}, "frame 0, .*last row must be 0 0 0 1"
    ),
    "ns_fov": ({**GOOD_NS, "camera_path": [{**GOOD_NS["camera_path"][0], "fov": None}]}, "frame 0, 'fov'"),  # type: ignore[index]
    "ngp_empty": ({"path": []}, "'path': expected a list"),
    "ngp_quaternion": ({"path": [{**GOOD_NGP["path"][0], "R": [0, 0, 0, 0]}]}, "keyframe 0, 'R': a quaternion"),
    "ngp_fov": ({"path": [{**GOOD_NGP["path"][0], "fov": 180}]}, "keyframe 0, 'fov'"),
    "ngp_order": ({**GOOD_NGP, "spline_order": 7}, "'spline_order'"),
    "ngp_loop": ({**GOOD_NGP, "loop": 1}, "'loop'"),
    "ngp_long": ({**GOOD_NGP, "duration_seconds": 1e9}, "'duration_seconds'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    values, reason = BAD[case]
    with pytest.raises(DataError, match=reason) as caught:
        read_path_file(write(tmp_path / "a.json", values), place(), PathWish())
    assert "\n" not in str(caught.value)


def test_own_files_are_read_as_before(tmp_path: Path) -> None:
    write_camera_path(tmp_path / "own.json", CameraPath(tuple(CAMERAS), 25.0))
    found, notes = read_path_file(tmp_path / "own.json", place(), PathWish())
    assert found.fps == 25 and not notes and len(found.cameras) == len(CAMERAS)
    with pytest.raises(ConfigError, match="give both"):
        read_path_file(tmp_path / "own.json", place(), PathWish(width=3))


def test_spiral_looks_at_the_scene_from_where_the_cameras_were() -> None:
    cameras = [
        Camera(look_at([x, -5.0, z], [0.0, 0.0, 0.0]), 40, 30, 50, 50, 20, 15) for x in (-1, 0, 1) for z in (-1, 1)
    ]
    path = spiral_path(cameras, 24, width=40, height=30)
    position = torch.stack([camera.position for camera in path])
    assert len(path) == 24 and float(position[:, 1].max()) < -2
    assert float(position[:, 0].abs().max()) == pytest.approx(1, abs=1e-6)
    for camera in path:
        to_focus = torch.nn.functional.normalize(-camera.position, dim=0)
        assert float(to_focus @ camera.forward) > 0.999 and float(camera.up[2]) > 0.8


def test_a_ride_along_the_photos_passes_all_of_them_evenly() -> None:
    cameras = [Camera(look_at([x, -5.0, 0.0], [x, 0.0, 0.0]), 40, 30, 50, 50, 20, 15) for x in (0.0, 1.0, 1.0, 3.0)]
    path = along_path(cameras, 7, width=20, height=15)
    x = torch.stack([camera.position[0] for camera in path])
    torch.testing.assert_close(x, double([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]), rtol=0, atol=0.08)
    assert path[0].fx == pytest.approx(25) and along_path(cameras[:1], 3, width=4, height=3)[2].position[0] == 0


def test_panoramas_stand_upright() -> None:
    tilted = Camera(look_at([1.0, 2.0, 3.0], [2.0, 2.0, 2.5]), 40, 30, 50, 50, 20, 15)
    (found,) = as_panoramas([tilted], CAMERAS, 64)
    assert (found.width, found.height, found.lens) == (64, 32, "equirectangular")
    torch.testing.assert_close(found.up, double([0, 0, 1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.forward, double([1, 0, 0]), rtol=0, atol=1e-9)


def test_makers_check_what_they_are_given() -> None:
    for make in (spiral_path, along_path):
        with pytest.raises(ConfigError, match="no cameras"):
            make([], 3, width=4, height=3)
        with pytest.raises(ConfigError, match="n_frames"):
            make(CAMERAS, 0, width=4, height=3)

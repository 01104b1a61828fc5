"""Turntables, interpolation and the camera-path file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.camera_path import CameraPath, read_camera_path, write_camera_path
from hashfield.geometry.cameras import Camera, flip_opengl, look_at, panorama, rotation_fault
from hashfield.geometry.paths import focus_point, interpolate_path, orbit_path, up_axis
from tests.geometry.test_cameras import FOX_LENS, IDENTITY
from tests.geometry.test_spaces import double, ring


def moved(cameras: list[Camera], shift: tuple[float, float, float]) -> list[Camera]:
    offset = double(shift)[:, None] * double([0, 0, 0, 1])
    return [camera.moved(camera.camera_to_world + offset) for camera in cameras]


def arc(start: float, extent: float, n: int = 12) -> list[Camera]:
    """Cameras on an arc (degrees) around the origin, 4 away, at several heights."""
    cameras = []
    for index in range(n):
        angle = math.radians(start + extent * index / (n - 1))
        position = double([4 * math.cos(angle), 4 * math.sin(angle), 0.5 + 0.1 * (index % 3)])
        cameras.append(Camera(look_at(position, [0.0, 0.0, 0.0]), 40, 30, 50.0, 50.0, 20.0, 15.0))
    return cameras


def azimuths(cameras: tuple[Camera, ...]) -> list[float]:
    return [math.degrees(math.atan2(float(c.position[1]), float(c.position[0]))) for c in cameras]


# --- focus and up


@given(shift=st.tuples(*[st.floats(-10, 10)] * 3))
def test_focus_is_where_the_axes_meet(shift: tuple[float, float, float]) -> None:
    cameras = moved(ring(7, 4.0), shift)
    torch.testing.assert_close(focus_point(cameras), double(shift), rtol=0, atol=1e-4)


def test_focus_of_parallel_axes_lies_ahead() -> None:
    cameras = [Camera(look_at([x, 0.0, 0.0], [x, 1.0, 0.0]), 8, 8, 8.0, 8.0, 4.0, 4.0) for x in (-1.0, 0.0, 1.0)]
    focus = focus_point(cameras)
    torch.testing.assert_close(focus[[0, 2]], double([0.0, 0.0]), rtol=0, atol=1e-5)
    assert float(focus[1]) == pytest.approx(2 * 2 / 3)
    assert float(focus_point(cameras[:1])[1]) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="no cameras"):
        focus_point([])


def test_up_of_a_turntable_is_exact_whatever_the_elevations() -> None:
    uneven = ring(9, 4.0, height=0.2) + ring(3, 1.0, height=4.0)[:2] + arc(0, 60)
    torch.testing.assert_close(up_axis(uneven), double([0.0, 0.0, 1.0]), rtol=0, atol=1e-12)
    upside_down = [camera.moved(camera.camera_to_world * double([-1, -1, 1, 1])) for camera in ring(5, 3.0)]
    torch.testing.assert_close(up_axis(upside_down), double([0.0, 0.0, -1.0]), rtol=0, atol=1e-12)


def test_up_of_one_camera_is_its_own() -> None:
    camera = ring(1, 3.0)[0]
    torch.testing.assert_close(up_axis([camera]), camera.up)
    opposite = [camera.moved(camera.camera_to_world * double([sign, sign, 1, 1])) for sign in (1, -1)]
    assert torch.equal(up_axis(opposite), double([0.0, 0.0, 1.0]))


# --- orbits


def test_orbit_of_a_ring_is_the_ring() -> None:
    cameras = ring(20, 4.0, height=1.5)
    path = orbit_path(cameras, 20)
    assert len(path) == 20
    for frame, camera in zip(path, cameras, strict=True):
        torch.testing.assert_close(frame.camera_to_world, camera.camera_to_world, rtol=0, atol=1e-4)
        assert (frame.width, frame.height, frame.lens) == (32, 24, "pinhole")
        assert frame.fx == frame.fy == pytest.approx(30.0)


def test_orbit_size_keeps_the_shorter_sides_view() -> None:
    frame = orbit_path(ring(8, 4.0), 3, width=100, height=48)[0]
    assert (frame.width, frame.height, frame.cx, frame.cy) == (100, 48, 50.0, 24.0)
    assert frame.fx == frame.fy == pytest.approx(60.0)


def test_orbit_direction_and_turns() -> None:
    cameras = ring(8, 4.0)
    once, back = azimuths(orbit_path(cameras, 8)), azimuths(orbit_path(cameras, 8, turns=-1.0))
    assert once[1] == pytest.approx(45)
    assert back[1] == pytest.approx(-45)
    assert azimuths(orbit_path(cameras, 8, turns=0.5))[4] == pytest.approx(90)


@pytest.mark.parametrize("extent", [30.0, 120.0, 200.0])
def test_orbit_stays_in_a_covered_arc(extent: float) -> None:
    path = orbit_path(arc(-40.0, extent), 40)
    angles = azimuths(path)
    assert min(angles) > -40 - 1e-3
    assert max(angles) < -40 + extent + 1e-3
    assert max(angles) - min(angles) == pytest.approx(0.9 * extent, rel=0.02)
    steps = [abs(b - a) for a, b in zip(angles, [*angles[1:], angles[0]], strict=True)]
    assert max(steps) < 0.1 * extent, "closes without a jump"


def test_orbit_can_be_forced() -> None:
    circle = azimuths(orbit_path(arc(0, 90), 36, full_circle=True))
    assert max(circle) - min(circle) > 300
    swing = azimuths(orbit_path(ring(36, 4.0), 36, full_circle=False))
    steps = [(b - a + 180) % 360 - 180 for a, b in zip(swing, [*swing[1:], swing[0]], strict=True)]
    assert min(steps) < -5 and max(steps) > 5, "to and fro"


def test_orbit_of_one_camera_moves() -> None:
    path = orbit_path(ring(1, 4.0), 16)
    assert len({tuple(camera.position.tolist()) for camera in path}) > 8
    assert all(bool(torch.isfinite(camera.camera_to_world).all()) for camera in path)


def test_orbit_of_a_panorama_turns_on_the_spot() -> None:
    cameras = moved(ring(12, 0.3, outward=True, height=0.0), (5.0, 6.0, 7.0))
    path = orbit_path(cameras, 12)
    positions = torch.stack([camera.position for camera in path])
    assert float((positions - positions[0]).abs().max()) == 0
    assert float((positions[0] - double([5.0, 6.0, 7.0])).norm()) < 0.6
    forward = torch.stack([camera.forward for camera in path])
    assert float(forward.mean(dim=0).norm()) < 0.3, "looks all round"


def test_orbit_from_straight_above() -> None:
    above = [Camera(look_at([0.0, 0.0, 4.0 + x], [x, 0.0, 0.0]), 8, 8, 8.0, 8.0, 4.0, 4.0) for x in (0.0, 0.1)]
    for camera in orbit_path(above, 7):
        assert rotation_fault(camera.camera_to_world[:, :3]) < 1e-9


def test_orbit_checks() -> None:
    with pytest.raises(ConfigError, match="no cameras"):
        orbit_path([], 5)
    with pytest.raises(ConfigError, match="n_frames: expected at least 1, got 0"):
        orbit_path(ring(3, 1.0), 0)
    with pytest.raises(ConfigError, match="height"):
        orbit_path(ring(3, 1.0), 2, height=0)


# --- interpolation


def keyframes(n: int = 5) -> list[Camera]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(n):
        position = torch.randn(3, generator=generator, dtype=torch.float64) * 3
        pose = look_at(position, torch.randn(3, generator=generator, dtype=torch.float64))
        made.append(Camera(pose, 40, 30, 30.0 + index, 31.0 + index, 20.0, 15.0))
    return made


def same(a: Camera, b: Camera) -> None:
    torch.testing.assert_close(a.camera_to_world, b.camera_to_world, rtol=0, atol=1e-9)
    assert (a.fx, a.fy, a.cx, a.cy) == pytest.approx((b.fx, b.fy, b.cx, b.cy))


@pytest.mark.parametrize("closed", [False, True])
def test_path_passes_through_its_keyframes(closed: bool) -> None:
    keys = keyframes()
    n_frames = 50 if closed else 41
    path = interpolate_path(keys, n_frames, closed=closed)
    assert len(path) == n_frames
    for index, key in enumerate(keys):
        same(path[10 * index], key)
    assert all(rotation_fault(camera.camera_to_world[:, :3]) < 1e-9 for camera in path)


def test_closed_path_has_no_jump() -> None:
    path = interpolate_path(keyframes(), 200, closed=True)
    poses = torch.stack([camera.camera_to_world for camera in (*path, path[0])])
    steps = (poses[1:] - poses[:-1]).flatten(1).norm(dim=1)
    assert float(steps.max()) < 5 * float(steps.mean())


def test_times_stretch_the_path() -> None:
    keys = keyframes(3)
    path = interpolate_path(keys, 11, times=[0.0, 1.0, 10.0])
    same(path[1], keys[1])
    same(path[10], keys[2])


def test_straight_even_motion_stays_straight_and_even() -> None:
    keys = [Camera(look_at([x, -4.0, 0.0], [x, 0.0, 0.0]), 8, 8, 8.0, 8.0, 4.0, 4.0) for x in (0.0, 1.0, 2.0, 3.0)]
    path = interpolate_path(keys, 31)
    positions = torch.stack([camera.position for camera in path])
    assert torch.equal(positions[:, 1:], double([[-4.0, 0.0]]).expand(31, 2))
    inner = positions[10:21, 0]
    torch.testing.assert_close(inner, torch.linspace(1, 2, 11, dtype=torch.float64))


def test_path_edges() -> None:
    key = keyframes(1)[0]
    assert interpolate_path([key], 3) == (key, key, key)
    same(interpolate_path(keyframes(), 1)[0], keyframes()[0])
    turned = [key, key.moved(key.camera_to_world * double([-1, -1, 1, 1]))]  # half a turn about the axis
    assert all(rotation_fault(c.camera_to_world[:, :3]) < 1e-9 for c in interpolate_path(turned, 9))


def test_path_checks() -> None:
    keys = keyframes(2)
    with pytest.raises(ConfigError, match="no keyframes"):
        interpolate_path([], 3)
    with pytest.raises(ConfigError, match="n_frames"):
        interpolate_path(keys, 0)
    with pytest.raises(ConfigError, match="growing"):
        interpolate_path(keys, 3, times=[1.0, 1.0])
    with pytest.raises(ConfigError, match="2 finite numbers"):
        interpolate_path(keys, 3, times=[1.0])
    fisheye = Camera(IDENTITY, 8, 8, 8.0, 8.0, 4.0, 4.0, "fisheye")
    with pytest.raises(ConfigError, match="differ in lens"):
        interpolate_path([keys[0], fisheye], 3)


# --- files


@settings(max_examples=20, deadline=None)
@given(
    position=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    fx=st.floats(1.0, 1e4),
    fps=st.floats(0.1, 240),
    lens=st.sampled_from(["pinhole", "opencv", "fisheye", "equirectangular"]),
)
def test_file_round_trip(
    tmp_path_factory: pytest.TempPathFactory, position: tuple[float, ...], fx: float, fps: float, lens: Any
) -> None:
    path = tmp_path_factory.mktemp("path") / "path.json"
    distortion = {"opencv": FOX_LENS, "fisheye": (0.1, 0.2, 0.3, 0.4, 0.0, 0.0)}.get(lens, ())
    pose = look_at(position, (2000.0, 0.0, 0.0))
    camera = Camera(pose, 11, 7, fx, fx + 1, 5.0, 3.3, lens, distortion)
    if lens == "equirectangular":
        camera = panorama(pose, 12, 6)
    wanted = CameraPath((camera, camera.resized(camera.width, camera.height)), fps)
    write_camera_path(path, wanted)
    assert read_camera_path(path) == wanted
    assert [entry.name for entry in path.parent.iterdir()] == ["path.json"]


def test_file_uses_opengl_axes_in_the_world(tmp_path: Path) -> None:
    camera = ring(1, 4.0)[0]
    write_camera_path(tmp_path / "path.json", CameraPath((camera,)))
    entry = json.loads((tmp_path / "path.json").read_text())["frames"][0]
    assert torch.equal(double(entry["camera_to_world"]), flip_opengl(camera.camera_to_world))


IDENTITY_ROWS = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def document(**changes: Any) -> dict[str, Any]:
    """A valid file with two frames; a change to None removes a field."""
    values = {
        "format": "hashfield_camera_path",
        "version": 1,
        "width": 40,
        "height": 30,
        "fov_y": 60.0,
        "frames": [{"camera_to_world": IDENTITY_ROWS}, {"camera_to_world": [*IDENTITY_ROWS, [0, 0, 0, 1]]}],
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def read(tmp_path: Path, values: object) -> CameraPath:
    path = tmp_path / "path.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return read_camera_path(path)


def test_vertical_field_of_view(tmp_path: Path) -> None:
    path = read(tmp_path, document())
    assert len(path.cameras) == 2
    assert path.fps == 30
    camera = path.cameras[0]
    assert camera.fx == camera.fy == pytest.approx(15 / math.tan(math.radians(30)))
    assert (camera.cx, camera.cy) == (20, 15)
    assert torch.equal(camera.forward, double([0.0, 0.0, -1.0]))


def test_a_pose_replaces_the_default_optics(tmp_path: Path) -> None:
    own = {"camera_to_world": IDENTITY_ROWS, "fx": 10, "cy": 3.5}
    camera = read(tmp_path, document(frames=[own], cx=1.0)).cameras[0]
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (10, 10, 20, 3.5)
    default = read(tmp_path, document(cx=1.0, lens="fisheye")).cameras[0]
    assert (default.cx, default.lens) == (1.0, "fisheye")


def test_read_at_another_size(tmp_path: Path) -> None:
    read(tmp_path, document())
    camera = read_camera_path(tmp_path / "path.json", width=80, height=60).cameras[0]
    assert (camera.width, camera.height, camera.cx) == (80, 60, 40)
    with pytest.raises(ConfigError, match="both width and height"):
        read_camera_path(tmp_path / "path.json", width=80)


def keyed(**changes: Any) -> dict[str, Any]:
    poses = [flip_opengl(key.camera_to_world).tolist() for key in keyframes(3)]
    values = {
        "frames": None,
        "keyframes": [{"camera_to_world": pose} for pose in poses],
        "seconds": 2.0,
        "fps": 10,
    }
    return document(**{**values, **changes})


def test_keyframes_are_interpolated(tmp_path: Path) -> None:
    path = read(tmp_path, keyed())
    assert len(path.cameras) == 20
    torch.testing.assert_close(path.cameras[-1].camera_to_world, keyframes(3)[2].camera_to_world)
    timed = keyed(seconds=None)
    for time, entry in zip((0.0, 0.5, 2.0), timed["keyframes"], strict=True):
        entry["time"] = time
    assert len(read(tmp_path, timed).cameras) == 20
    assert len(read(tmp_path, {**timed, "closed": True}).cameras) == 30
    one = keyed(keyframes=keyed()["keyframes"][:1])
    assert len(read(tmp_path, one).cameras) == 20


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [{"camera_to_world": IDENTITY_ROWS, **changes}]


BAD_FILES: dict[str, tuple[object, str]] = {
    "not_json": ("{", "not JSON: line 1 column 2"),
    "not_an_object": ([1], "expected an object, got a list"),
    "ngp": ({"path": []}, "looks like a camera path of instant-ngp's"),
    "nerfstudio": ({"camera_path": [], "keyframes": []}, "looks like a camera path of nerfstudio's"),
    "version": (document(version=2), "'version': this program reads version 1, got 2"),
    "unknown": (document(fov=3), "unknown field 'fov'"),
    "no_frames": (document(frames=None), "expected either 'frames' or 'keyframes'"),
    "both": (keyed(frames=entry()), "expected either 'frames' or 'keyframes'"),
    "empty": (document(frames=[]), "'frames': expected a list with at least one pose"),
    "no_width": (document(width=None), "'width': expected a number, got nothing"),
    "part_width": (document(width=2.5), "'width': expected a whole number of pixels, got 2.5"),
    "huge": (document(width=1e9), "'width': expected a number > 0 and <= 32768"),
    "fps": (document(fps=0), "'fps': expected a number > 0"),
    "fps_text": (document(fps="30"), "'fps': expected a number, got text"),
    "no_pose": (document(frames=[{}]), "frame 0, 'camera_to_world': expected a 3x4 or 4x4 list"),
    "not_a_frame": (document(frames=[3]), "frame 0: expected an object, got the number 3"),
    "typo": (document(frames=entry(fovy=3)), "frame 0: unknown field 'fovy'"),
    "time_in_frames": (document(frames=entry(time=3)), "frame 0: unknown field 'time'"),
    "row": (
        document(frames=[{"camera_to_world": [[1, 2]] * 3}]),
        "frame 0, 'camera_to_world': expected 4 numbers",
    ),
    "nan": (
        document(frames=[{"camera_to_world": [[math.nan, 0, 0, 0], *IDENTITY_ROWS[1:]]}]),
        "frame 0, 'camera_to_world': not finite",
    ),
    "sheared": (
        document(frames=[{"camera_to_world": [[1, 1, 0, 0], *IDENTITY_ROWS[1:]]}]),
        "frame 0, 'camera_to_world': columns 0-2 are not a rotation",
    ),
    "last_row": (
        document(frames=[{"camera_to_world": [*IDENTITY_ROWS, [1, 0, 0, 1]]}]),
        "frame 0, 'camera_to_world': the last row must be 0 0 0 1",
    ),
    "no_focus": (document(fov_y=None), "frame 0: expected either 'fov_y' .* or 'fx'"),
    "two_focuses": (document(frames=entry(fov_y=30, fx=3)), "frame 0: expected either"),
    "fov": (document(fov_y=180), "frame 0, 'fov_y': expected a number > 0 and <= 179.9, got 180"),
    "fy_with_fov": (document(frames=entry(fov_y=30, fy=3)), "frame 0: expected either 'fov_y'"),
    "lens": (
        document(lens="wide"),
        "frame 0: lens: expected one of .*, got 'wide'",
    ),
    "distortion": (document(distortion=[1]), "frame 0, 'distortion': expected 6 numbers, got 1 entries"),
    "seconds_in_frames": (document(seconds=3), "'seconds': belongs to keyframes"),
    "no_seconds": (keyed(seconds=None), "'seconds': missing"),
    "too_long": (keyed(seconds=1e9), "'seconds': .* more than the limit"),
    "closed": (keyed(closed=1), "'closed': expected true or false, got the number 1"),
    "some_times": (keyed(keyframes=[*entry(time=0), *entry()]), "keyframe 1: no 'time'"),
    "back_in_time": (
        keyed(keyframes=[*entry(time=1), *entry(time=0)]),
        "'keyframes': times: expected growing",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    values, message = BAD_FILES[case]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, values)
    assert "path.json: " in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_camera_path(tmp_path / "absent.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_camera_path(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="not JSON in UTF-8"):
        read_camera_path(tmp_path / "latin.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        read_camera_path(tmp_path / "deep.json")


def test_writing_checks(tmp_path: Path) -> None:
    camera = ring(1, 4.0)[0]
    with pytest.raises(ConfigError, match="no frames"):
        write_camera_path(tmp_path / "a.json", CameraPath(()))
    with pytest.raises(ConfigError, match="differ in size"):
        write_camera_path(tmp_path / "a.json", CameraPath((camera, camera.resized(2, 2))))
    assert list(tmp_path.iterdir()) == []

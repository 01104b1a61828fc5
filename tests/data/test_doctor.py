"""The doctor finds planted faults, and says nothing of a good capture."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hashfield.cli.main import run
from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.data.dataset import PosedImages
from hashfield.data.doctor import Diagnosis, examine, seen_by
from hashfield.data.photo_checks import gains
from hashfield.data.pose_checks import inverted
from hashfield.data.sparse_tracks import read_tracks
from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import Spaces
from tests.data.colmap_files import ring, write_binary, write_text
from tests.data.photographed_scene import cameras, photo

needs_pycolmap = pytest.mark.skipif(
    importlib.util.find_spec("pycolmap") is None, reason="pycolmap is not installed (pip install 'hashfield[photos]')"
)
Views = tuple[list[Camera], list[np.ndarray], list[str]]


@pytest.fixture(scope="module")
def good() -> Scene:
    """Twelve good photos and their cameras."""
    taken = cameras(12)
    alpha = np.full((300, 400, 1), 255, np.uint8)
    images = tuple(np.concatenate([photo(camera), alpha], axis=2) for camera in taken)
    views = PosedImages(tuple(taken), images, tuple(f"images/{k:02d}.jpg" for k in range(len(taken))))
    return Scene(
        "walk", Path("/nowhere/walk"), "instant-ngp", Spaces(0.33, (0.5, 0.5, 0.5), 4), False, {"train": views}
    )


def changed(scene: Scene, change: Callable[[list[Camera], list[np.ndarray], list[str]], None]) -> Scene:
    views = scene.splits["train"]
    made = list(views.cameras), [image.copy() for image in views.images], list(views.names)
    change(*made)
    return replace(scene, splits={"train": PosedImages(*map(tuple, made))})


def said(diagnosis: Diagnosis) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for finding in diagnosis.findings:
        kinds.setdefault(finding.kind, set()).update(Path(name).stem for name in finding.photos)
        assert finding.text and finding.remedy and "\n" not in finding.line()
    return kinds


def blur(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    images[3] = np.array(Image.fromarray(images[3]).filter(ImageFilter.GaussianBlur(1.5)))


def darken(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    images[8][..., :3] = (255 * ((images[8][..., :3] / 255) ** 2.2 / 4) ** (1 / 2.2)).round()


def give_twice(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    cameras.append(cameras[5])
    images.append(images[5])
    names.append("images/again.jpg")


def throw_away(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    pose = cameras[6].camera_to_world.clone()
    pose[:, 3] *= 200
    cameras[6] = cameras[6].moved(pose)


def exchange(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    a, b = cameras[2].camera_to_world, cameras[9].camera_to_world
    cameras[2], cameras[9] = cameras[2].moved(b), cameras[9].moved(a)


def mirror(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    images[4] = np.ascontiguousarray(images[4][:, ::-1])


def invert(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    cameras[:] = inverted(cameras, "opengl")


def stretch(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    cameras[:] = [Camera.from_dict({**c.to_dict(), "fy": c.fy * c.width / c.height}) for c in cameras]


def zoom(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
    cameras[7] = Camera.from_dict({**cameras[7].to_dict(), "fx": 600.0, "fy": 600.0})


def test_a_good_capture_gives_no_finding(good: Scene):
    diagnosis = examine(good)
    assert diagnosis.findings == []
    assert len(diagnosis.photos) == 12 and all(photo.share_in_box == 1 for photo in diagnosis.photos)
    assert diagnosis.photos[0].nearest[0] == "images/01.jpg"


@pytest.mark.parametrize(
    ("fault", "kind", "names"),
    [
        (blur, "blurred", {"03"}),
        (darken, "exposure", {"08"}),
        (give_twice, "duplicate", {"05", "again"}),
        (throw_away, "stray", {"06"}),
        (stretch, "aspect", {"00"}),
        (zoom, "focal", {"07"}),
    ],
)
def test_pixels_and_poses_alone_show(good: Scene, fault: Callable[..., None], kind: str, names: set[str]):
    assert said(examine(changed(good, fault))) == {kind: names}


def test_one_stray_camera_does_not_change_what_is_said_of_all(good: Scene):
    def told(scene: Scene) -> list[float]:
        text = dict(examine(scene).facts)["cameras"]
        found = re.search(r"centre, (\S+) scene units .* a point (\S+) units", text)
        assert found, text
        return [float(value) for value in found.groups()]

    assert told(changed(good, throw_away)) == pytest.approx(told(good), abs=0.1)


def test_inverted_matrices_of_a_walk_around_something_show_in_the_poses_alone(good: Scene):
    from hashfield.geometry.cameras import look_at

    def walk_around(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
        for k, angle in enumerate(np.linspace(0, 2 * np.pi, len(cameras), endpoint=False)):
            place = (4 * np.cos(angle), 4 * np.sin(angle), 1.5)
            cameras[k] = cameras[k].moved(look_at(place, (0.0, 0.0, 0.3)))

    scene = changed(good, walk_around)
    assert "inverted" not in said(examine(scene))
    assert "inverted" in said(examine(changed(scene, invert)))


@needs_pycolmap
def test_matched_features_show_what_poses_and_pixels_do_not(good: Scene):
    def plant(cameras: list[Camera], images: list[np.ndarray], names: list[str]) -> None:
        exchange(cameras, images, names)
        mirror(cameras, images, names)
        darken(cameras, images, names)

    found = said(examine(changed(good, plant), is_thorough=True))
    assert found == {"swapped": {"02", "09"}, "mirrored": {"04"}, "exposure": {"08"}}


@needs_pycolmap
@pytest.mark.parametrize(("fault", "kind"), [(None, None), (invert, "inverted"), (stretch, "aspect")])
def test_matched_features_tell_what_is_wrong_with_all_poses(good: Scene, fault: Callable[..., None] | None, kind: str):
    scene = changed(good, fault) if fault else good
    diagnosis = examine(scene, is_thorough=True)
    assert set(said(diagnosis)) == ({kind} if kind else set())
    shares = [photo.agreement for photo in diagnosis.photos]
    assert fault or min(share for share in shares if share is not None) > 0.8


def test_gains_are_those_of_most_pairs():
    truth = np.array([0.0, 0.5, -1.0, 0.2, 0.0])
    pairs = [(a, b, float(truth[b] - truth[a])) for a in range(5) for b in range(a + 1, 5)]
    pairs[3] = (*pairs[3][:2], 7.0)
    found = gains(5, pairs)
    assert found is not None and np.abs(found - found[0] - truth).max() < 0.02
    assert gains(5, pairs[:3]) is None


def test_points_are_seen_by_the_cameras_that_have_them_in_the_picture(good: Scene):
    taken = good.splits["train"].cameras
    count = seen_by(taken, np.array([[-0.5, -0.5, 0.5], [0.0, 0.0, 100.0]]))
    assert count.tolist() == [12, 0]


def test_tracks_are_read_from_binary_and_text_models(tmp_path: Path):
    binary = read_tracks(write_binary(tmp_path / "binary", ring()))
    text = read_tracks(write_text(tmp_path / "text", ring()))
    assert binary is not None and text is not None
    assert binary.sightings.keys() == text.sightings.keys() and len(binary.sightings) == 9
    for k, (name, seen) in enumerate(binary.sightings.items()):
        other = text.sightings[name]  # the text's second image sees nothing, and its points are numbered from 0
        assert seen.pixels.tolist() == [[1.5, 2.5]] and other.pixels.tolist() == ([] if k == 1 else [[1.5, 2.5]])
        assert seen.points.tolist() == [0] and other.points.tolist() == ([] if k == 1 else [1])
        assert seen.size == other.size
    assert np.allclose(binary.points, text.points)
    assert read_tracks(tmp_path) is None
    (tmp_path / "binary" / "images.bin").write_bytes((tmp_path / "binary" / "images.bin").read_bytes()[:100])
    assert read_tracks(tmp_path / "binary") is None


# --- commands


def test_inspect_writes_a_page(tmp_path: Path, good: Scene, capsys: pytest.CaptureFixture[str], monkeypatch):
    from hashfield.data.demo_scene import save_nerf_synthetic

    views = changed(good, darken).splits["train"]
    named = replace(views, names=tuple(f"a b{k}.png" for k in range(len(views))))
    save_nerf_synthetic(replace(good, splits={"train": named}), tmp_path / "data <1>")
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", str(tmp_path / "data <1>"), "--quick", "--out", "page.html"]) == 0
    out = capsys.readouterr().out
    assert "warning: a b8.png: is 2.0 stops darker" in out and "1 finding in" in out
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count('class="photo') >= 12 and page.count("data:image") == 12
    assert "a b8.png" in page and "<h1>data &lt;1&gt;: photos and cameras</h1>" in page and "<script" not in page
    assert run(["inspect", str(tmp_path / "nothing")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_photos_are_reduced_to_the_longest_side(tmp_path: Path, good: Scene):
    from hashfield.data.demo_scene import save_nerf_synthetic

    views = good.splits["train"]
    named = replace(views, names=tuple(f"{k}.png" for k in range(len(views))))
    save_nerf_synthetic(replace(good, splits={"train": named}), tmp_path)
    scene = load_scene(tmp_path, ReadOptions(longest_side=150, splits=("train",)))
    assert {image.shape[:2] for image in scene.splits["train"].images} == {(100, 133)}
    camera = scene.splits["train"].cameras[0]
    assert camera.fx == pytest.approx(views.cameras[0].fx / 3)

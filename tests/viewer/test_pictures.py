"""Pictures of what is asked for, row by row; where the page's space lies."""

import math

import numpy as np
import pytest
import torch

from hashfield.errors import ConfigError
from hashfield.export.images import to_uint8
from hashfield.geometry.cameras import look_at
from hashfield.viewer.pictures import (
    SURROUND,
    Eye,
    Look,
    Pan,
    Photos,
    PictureStage,
    Wish,
    canvas_of,
    eye_of,
    fitted,
    outputs_of,
    stage_of,
)
from tests.viewer.fakes import Ball, Gradient, SlowScene


def whole(canvas) -> np.ndarray:
    """The picture at once."""
    return canvas.rows(0, canvas.height)


def wish_of(view, look: Look | None = None, aspect: float = 2.0, rows: int = 20) -> Wish:
    """Someone's wish."""
    return Wish(view, look or Look(), aspect, rows)


def test_an_eye_stretches_as_the_window_does() -> None:
    eye = Eye(look_at((0.0, -4.0, 0.0), (0.0, 0.0, 0.0)), 0.8)
    camera = eye.camera(30, 20, aspect=2.0)  # the window is wider than the picture's pixels are
    assert math.isclose(camera.height / camera.fy, 2 * math.tan(0.4))
    assert math.isclose(camera.width / camera.fx, 2 * camera.height / camera.fy)
    assert math.isclose(eye_of(camera).fov_y, 0.8)


@pytest.mark.parametrize("output", ["color", "depth", "normals", "opacity"])
def test_rows_put_together_are_the_whole(output: str) -> None:
    scene = SlowScene()
    wish = wish_of(eye_of(scene.cameras["train"][0]), Look(output, background=(0.2, 0.4, 0.6)), rows=31)
    first = canvas_of(scene, wish, 31)
    picture = whole(first)
    again = canvas_of(scene, wish, 31, like=first)
    assert np.array_equal(picture, np.concatenate([again.rows(0, 7), again.rows(7, 20), again.rows(27, 4)]))
    behind = np.zeros(3, np.uint8) if output == "opacity" else to_uint8(np.array([0.2, 0.4, 0.6]))
    assert np.array_equal(picture[0, 0], behind)


def test_the_difference_is_seen_through_the_nearest_photos_own_camera() -> None:
    scene = SlowScene()
    cameras = scene.cameras["train"]
    images = []
    for camera in cameras:
        color = to_uint8(scene.render(camera, ("color",), (1.0, 1.0, 1.0))["color"])
        images.append(np.concatenate([color, np.full((*color.shape[:2], 1), 255, np.uint8)], -1))
    images[2] = images[2].copy()
    images[2][:24, :, 2] = 255  # the upper half is wrong
    photos = Photos(cameras, [f"photo {k}" for k in range(6)], images)
    near = Eye(look_at((-2.1, 3.4, 1.1), (0.0, 0.0, 0.0)), 0.7)
    canvas = canvas_of(scene, wish_of(near, Look("difference"), rows=48), 48, reference=photos)
    picture = whole(canvas)
    right = scene.render(cameras[2], ("color",), (1.0, 1.0, 1.0))["color"]
    error = np.square(right - images[2][..., :3] / np.float32(255)).mean()
    assert canvas.note == f"photo 2, PSNR {-10 * np.log10(error):.1f} dB" and (canvas.width, canvas.height) == (64, 48)
    assert picture[24:].max() <= 5 and picture[23, 32, 2] == 255
    shown = whole(canvas_of(scene, wish_of(near, Look("photo"), rows=48), 48, reference=photos))
    assert np.array_equal(shown, images[2][..., :3])
    assert photos.scaled(2, 32, 24).shape == (24, 32, 4)
    with pytest.raises(ConfigError, match="photos are not read"):
        canvas_of(scene, wish_of(near, Look("difference")), 48)


def test_a_slice_shows_the_distance_in_bands() -> None:
    ball = Ball()
    assert "slice" in outputs_of(ball)
    eye = Eye(look_at((0.0, -6.0, 0.0), (0.0, 0.0, 0.0)), 2 * math.atan(2.5 / 6))

    def picture(axis: int, at: float, crop=None) -> np.ndarray:
        look = Look("slice", slice_axis=axis, slice_at=at, crop=crop)
        return whole(canvas_of(ball, wish_of(eye, look, 1.0, 201), 201)).astype(int)

    plain = whole(canvas_of(ball, wish_of(eye, Look(), 1.0, 201), 201))
    middle = picture(1, 0.5)  # the plane y = 0: five units of it fill the window
    assert tuple(middle[3, 100]) == (255, 255, 255)  # outside the box
    assert middle[100, 100, 2] > middle[100, 100, 0] + 50  # the front half of the ball is cut away: blue inside
    assert middle[100, 30, 0] > middle[100, 30, 2]  # outside the ball: orange
    front = picture(1, 0.25)  # the plane y = -1 touches the ball
    assert not np.array_equal(front[100, 100], plain[100, 100]) and (front[100, 90:111] < 60).all(-1).any()  # its 0
    half = picture(1, 0.5, ((-2.0, -2.0, 0.0), (2.0, 2.0, 2.0)))
    assert tuple(half[160, 30]) == (255, 255, 255) and tuple(half[60, 30]) != (255, 255, 255)
    with pytest.raises(ConfigError, match="nothing of the model"):
        canvas_of(ball, wish_of(eye, Look(crop=((5.0,) * 3, (6.0,) * 3))), 20)


@pytest.mark.parametrize("aside", [0.0, 6.0, 20.0])
def test_the_line_where_a_distance_is_0_has_no_gaps(aside: float) -> None:
    eye = Eye(look_at((aside, -6.0, 0.0), (0.0, 0.0, 0.0)), 2 * math.atan(2.0 / math.hypot(aside, 6.0)))
    picture = whole(canvas_of(Ball(), wish_of(eye, Look("slice", slice_axis=1), 1.0, 101), 101))
    rows = (picture[30:71] == 0).all(-1)  # the circle of radius 1 is 51 rows high
    assert rows[:, :51].any(1).all() and rows[:, 50:].any(1).all()
    assert rows.sum(1).max() <= 8  # and is a thin line


def test_a_picture_is_shown_pixel_by_pixel() -> None:
    model = Gradient()
    pan = Pan((20.5, 10.5), 4.0)  # four rows of the picture fill the window
    picture = whole(canvas_of(model, wish_of(pan, Look(has_single_pixels=True), rows=40), 40))
    assert picture.shape == (40, 80, 3)
    # ten pixels of the window for each of the picture's; the middle is the middle of pixel (20, 10)
    assert tuple(picture[20, 40]) == (20, 20, 0)
    levels, counts = np.unique(picture[20, :, 0], return_counts=True)
    assert list(levels) == [16, 17, 18, 19, 20, 21, 22, 23, 24] and set(counts[1:-1]) == {10}


def test_around_a_picture_it_is_grey() -> None:
    model = Gradient()
    picture = whole(canvas_of(model, wish_of(Pan((20.0, 10.0), 40.0), rows=40), 40))
    assert tuple(picture[0, 0]) == (SURROUND,) * 3 and tuple(picture[39, 79]) == (SURROUND,) * 3
    inside = picture[10:30, 20:60]
    assert tuple(inside[0, 0]) == (0, 0, 0) and tuple(inside[19, 39]) == (39, 38, 0)
    beyond = whole(canvas_of(model, wish_of(Pan((200.0, 10.0), 4.0), rows=40), 40))
    assert (beyond == SURROUND).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (4096, 3000)])
def test_pictures_of_any_size_are_shown_from_far_and_near(size: tuple[int, int]) -> None:
    model = Gradient(*size)
    stage = PictureStage(*size)
    for rows_shown in (stage.whole.rows_shown, size[1] / 3, 1.0, 0.5, 1e4):
        for x in (0.0, 0.5 * size[0], float(size[0])):
            for is_single in (False, True):
                look = Look(has_single_pixels=is_single)
                whole(canvas_of(model, wish_of(Pan((x, 0.7 * size[1]), rows_shown), look), 20))


def test_the_difference_to_a_picture_is_taken_at_its_pixels() -> None:
    class Shifted(Gradient):
        def __call__(self, place):
            place = place.numpy()
            color = np.stack([np.floor(place[..., 0] * 40) / 255, 0 * place[..., 0], 0 * place[..., 0]], -1)
            return torch.from_numpy(color.astype(np.float32)) + 0.1

    class Right:
        def region(self, x, y, w, h):
            values = np.zeros((h, w, 3), np.float32)
            values[..., 0] = np.arange(x, x + w) / 255
            return values

    wish = wish_of(Pan((20.0, 10.0), 20.0), Look("difference"), rows=20)
    picture = whole(canvas_of(Shifted(), wish, 20, reference=Right()))
    assert np.abs(picture.astype(int) - 127).max() <= 1  # 0.1 times five
    with pytest.raises(ConfigError, match="picture is not read"):
        canvas_of(Shifted(), wish, 20)


def test_a_window_of_another_shape_gets_bars() -> None:
    picture = np.full((10, 10, 3), 200, np.uint8)
    shown = fitted(picture, 2.0)
    assert shown.shape == (10, 20, 3) and (shown[:, 5:15] == 200).all() and (shown[:, :5] == SURROUND).all()
    assert fitted(picture, 1.0) is picture


def test_outputs_are_what_the_model_can_show() -> None:
    assert outputs_of(SlowScene()) == ("color", "opacity", "depth", "normals", "difference", "photo")
    assert "photo" not in outputs_of(SlowScene(n_cameras=0))
    assert outputs_of(Gradient()) == ("color", "opacity", "difference")


def test_the_stage_brings_any_world_to_one_size() -> None:
    scene = SlowScene()
    stage = stage_of(scene)
    assert np.allclose(stage.center, 0, atol=1e-6) and np.allclose(np.abs(stage.up), [0, 0, 1])
    camera = scene.cameras["train"][0]
    place = stage.to_page(camera.position.numpy())
    assert np.linalg.norm(place) == pytest.approx(3.0) and np.allclose(stage.to_world(place), camera.position)
    eye = stage.eye(camera.camera_to_world[:, :3].numpy(), place, 0.7)
    assert torch.allclose(eye.camera_to_world, camera.camera_to_world)
    with pytest.raises(ConfigError):
        stage.eye(np.eye(3), np.array([np.nan, 0, 0]), 0.7)
    with pytest.raises(ConfigError):
        stage.eye(np.eye(3), np.zeros(3), 0.0)


def test_without_cameras_one_stands_before_the_box() -> None:
    stage = stage_of(SlowScene(n_cameras=0))
    eye = stage.home
    assert whole(canvas_of(SlowScene(n_cameras=0), wish_of(eye, Look("opacity"), rows=40), 40))[20, 40, 0] == 255


def test_a_picture_is_panned_by_either_button() -> None:
    stage = PictureStage(400, 200)
    start = Pan((100.0, 50.0), 80.0)
    position, target = stage.place(start)
    found = stage.pan(np.array(position), np.array(target))
    assert found.center == pytest.approx(start.center) and found.rows_shown == pytest.approx(80.0)
    # The right button moves camera and target along the picture.
    right, ahead = np.array([0.1, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    moved = stage.pan(np.array(position) + right, np.array(target) + right)
    assert moved.center[0] - start.center[0] == pytest.approx(0.1 * 100)
    # The left one turns the camera around its target: a tenth of a full turn pans a tenth of the window's height.
    distance = -position[1]
    angle = 2 * math.pi / 10
    turned = np.array(target) + distance * np.array([-math.sin(angle), -math.cos(angle), 0.0])
    panned = stage.pan(turned, np.array(target))
    assert panned.center[0] - start.center[0] == pytest.approx(-0.1 * 80) and panned.center[1] == pytest.approx(50)
    # Going forward by a unit zooms by two.
    assert stage.pan(np.array(position) + ahead, np.array(target) + ahead).rows_shown == pytest.approx(40)
    with pytest.raises(ConfigError):
        stage.pan(np.array(target), np.array(target))


def test_a_rectangle_fills_the_window() -> None:
    stage = PictureStage(400, 200)
    found = stage.zoomed_to(Pan((200.0, 100.0), 200.0), ((0.5, 0.5), (0.75, 0.75)), 2.0)
    assert found.center == pytest.approx((250.0, 125.0)) and found.rows_shown == pytest.approx(50.0)

"""Pictures: bytes, alpha, colour maps, sheets and files."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hashfield.errors import DataError, ShapeError
from hashfield.export import images


def test_to_uint8_rounds_clips_and_survives_anything():
    values = np.array([0.0, 1.0, 0.5, 0.4 / 255, 0.6 / 255, -1.0, 7.0, np.nan, np.inf, -np.inf], np.float32)
    assert images.to_uint8(values).tolist() == [0, 255, 128, 0, 1, 0, 255, 0, 255, 0]


@given(st.integers(1, 255), st.integers(0, 255))
def test_straight_alpha_undoes_premultiplication(alpha: int, value: int):
    opacity = np.full((1, 1), alpha / 255, np.float32)
    color = np.full((1, 1, 3), value / 255 * alpha / 255, np.float32)
    assert images.straight_alpha(color, opacity).tolist() == [[[value, value, value, alpha]]]


def test_straight_alpha_of_nothing_is_zero():
    assert not images.straight_alpha(np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.float32)).any()


def test_over_ignores_colour_under_alpha_zero():
    picture = np.array([[[200, 10, 10, 0], [255, 0, 0, 255], [255, 0, 0, 51]]], np.uint8)
    found = images.over(picture, (0.0, 1.0, 0.0))
    assert np.allclose(found, [[[0, 1, 0], [1, 0, 0], [0.2, 0.8, 0]]], atol=1e-6)


def test_depth_grows_darker_with_distance_and_fades_where_nothing_is():
    depth = np.linspace(1.0, 5.0, 50, dtype=np.float32)[None]
    lightness = images.colorize_depth(depth, near=1.0, far=5.0).astype(int).sum(axis=-1)[0]
    assert (np.diff(lightness) < 0).all()
    opacity = np.ones_like(depth)
    opacity[:, :10] = 0.0
    assert (images.colorize_depth(depth, opacity, empty=images.BLACK)[:, :10] == 0).all()
    assert (images.colorize_depth(np.zeros((3, 3), np.float32)) == 255).all()
    assert (images.colorize_depth(np.full((3, 3), np.inf, np.float32)) == 255).all()


def test_depth_range_leaves_out_what_is_not_solid():
    depth = np.array([[2.0, 3.0, 100.0, np.nan]], np.float32)
    opacity = np.array([[1.0, 1.0, 0.1, 1.0]], np.float32)
    near, far = images.depth_range([depth, depth], [opacity, opacity])
    assert 2.0 <= near < far <= 3.0
    assert images.depth_range([depth], [np.zeros_like(depth)]) == (0.0, 1.0)
    near, far = images.depth_range([np.full((2, 2), 4.0)], [None])
    assert near == 4.0 < far


def test_normals_become_colours():
    normals = np.array([[[0, 0, 2.0], [-1, 0, 0], [0, 0, 0]]], np.float32)
    assert images.colorize_normals(normals).tolist() == [[[128, 128, 255], [0, 128, 128], [255, 255, 255]]]


def test_error_picture_is_the_difference_times_five():
    a, b = np.full((1, 1, 3), 0.5, np.float32), np.full((1, 1, 3), 0.6, np.float32)
    assert images.error_picture(a, b).tolist() == [[[128, 128, 128]]]
    assert images.error_picture(a, a).tolist() == [[[0, 0, 0]]]


def test_a_sheet_holds_every_picture_unchanged():
    rng = np.random.default_rng(0)
    wide, small = rng.integers(0, 255, (30, 50, 3), np.uint8), rng.integers(0, 255, (20, 25, 3), np.uint8)
    sheet = images.comparison_sheet([[("one", wide), ("a caption that is much too long", small)], [("three", small)]])
    windows = np.lib.stride_tricks.sliding_window_view(sheet, small.shape)[:, :, 0]
    assert (windows == small).all(axis=(2, 3, 4)).sum() == 2
    windows = np.lib.stride_tricks.sliding_window_view(sheet, wide.shape)[:, :, 0]
    assert (windows == wide).all(axis=(2, 3, 4)).sum() == 1
    grey, clear = np.zeros((20, 20, 1), np.uint8), np.zeros((20, 20, 4), np.uint8)
    assert images.comparison_sheet([[("grey", grey), ("clear", clear)]], max_width=40).shape[1] == 40
    with pytest.raises(ShapeError):
        images.comparison_sheet([])
    with pytest.raises(ShapeError, match="uint8"):
        images.comparison_sheet([[("float", np.zeros((4, 4, 3)))]])


def test_shrunk_keeps_the_shape_and_never_enlarges():
    picture = np.zeros((100, 301, 3), np.uint8)
    assert images.shrunk(picture, 150).shape == (50, 150, 3)
    assert images.shrunk(picture, 400) is picture


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip_leaves_nothing_beside_it(channels: int, tmp_path: Path):
    picture = np.random.default_rng(1).integers(0, 255, (7, 5, channels), np.uint8)
    path = images.write_png(tmp_path / "new folder" / "a.png", picture)
    assert (np.asarray(Image.open(path)).reshape(picture.shape) == picture).all()
    assert os.listdir(path.parent) == ["a.png"]


def test_a_png_that_cannot_be_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = images.write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"a\.png: cannot write the picture: No space left"):
        images.write_png(path, np.full((4, 4, 3), 9, np.uint8))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write"):
        images.write_png(tmp_path / "file" / "a.png", np.zeros((4, 4, 3), np.uint8))

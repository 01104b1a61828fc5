"""`hashfield render` without a trained model: what is asked of the model, and what becomes of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hashfield.cli.kept_frames import DepthScale
from hashfield.cli.render import dealt_pictures, depth_words, pictures
from hashfield.geometry.cameras import Camera

from ..threads_as_ranks import as_ranks

OUTPUTS = ("color", "depth", "normals", "opacity")


def cameras(n: int) -> list[Camera]:
    pose = torch.eye(4, dtype=torch.float64)[:3]
    return [Camera(pose, 4, 3, 4.0, 4.0, 2.0, 1.5) for _ in range(n)]


class FakeModel(SimpleNamespace):
    """Half opaque red, 2 away, facing up; remembers what it was asked."""

    def frame(self, camera, outputs, background):
        self.asked.append((tuple(outputs), background))
        shape = (camera.height, camera.width)
        premultiplied = np.broadcast_to(np.float32([0.5, 0.0, 0.0]), (*shape, 3))
        color = premultiplied if background is None else premultiplied + np.float32(0.5) * np.float32(background)
        normals = np.broadcast_to(np.float32([0.0, 0.0, 1.0]), (*shape, 3))
        full = {
            "color": color, "depth": np.full(shape, 2.0, np.float32), "normals": normals,
            "opacity": np.full(shape, 0.5, np.float32),
        }  # fmt: skip
        return {name: full[name] for name in outputs}


@pytest.mark.parametrize("transparent", [False, True])
def test_a_camera_is_rendered_once_for_all_outputs(transparent: bool):
    model = FakeModel(asked=[])
    found = list(pictures(model, cameras(3), OUTPUTS, (1.0, 1.0, 1.0), transparent))  # type: ignore[arg-type]
    assert len(model.asked) == 3 and [tuple(shown) for shown in found] == [OUTPUTS] * 3
    for shown in found:
        assert all(picture.shape[:2] == (3, 4) and picture.dtype == np.uint8 for picture in shown.values())


def test_colour_alone_asks_for_nothing_else():
    model = FakeModel(asked=[])
    (shown,) = pictures(model, cameras(1), ("color",), (1.0, 1.0, 1.0), False)  # type: ignore[arg-type]
    assert model.asked == [(("color",), (1.0, 1.0, 1.0))]
    assert shown["color"][0, 0].tolist() == [255, 128, 128]


def test_transparent_pictures_hold_straight_alpha():
    (shown,) = pictures(FakeModel(asked=[]), cameras(1), OUTPUTS, (1.0, 1.0, 1.0), True)  # type: ignore[arg-type]
    assert shown["color"][0, 0].tolist() == [255, 0, 0, 128]
    assert shown["normals"][0, 0].tolist() == [128, 128, 255, 128]
    assert shown["depth"].shape[-1] == 4 and shown["opacity"][0, 0].tolist() == [128] * 3


def test_ranks_share_the_frames_and_the_first_gets_all_in_order():
    model = FakeModel(asked=[])
    wanted = list(pictures(model, cameras(7), OUTPUTS, (1.0, 1.0, 1.0), False))  # type: ignore[arg-type]

    def work(ranks):
        return list(
            dealt_pictures(ranks, FakeModel(asked=[]), cameras(7), OUTPUTS, (1.0, 1.0, 1.0), False, DepthScale())
        )  # type: ignore[arg-type]

    first, second = as_ranks(2, work)
    assert second == [] and len(first) == 7
    for found, other in zip(first, wanted, strict=True):
        assert found.keys() == other.keys()
        for name, picture in found.items():
            np.testing.assert_array_equal(picture, other[name])


def test_the_unit_of_depth_is_said():
    plain, metric = SimpleNamespace(), SimpleNamespace(info={"scene": {"unit": "metres"}})
    assert depth_words(plain, 1.25, 30).endswith("1.25 (light) to 30 (dark) units of the data's file")  # type: ignore[arg-type]
    assert depth_words(metric, 1.25, 30).endswith("1.25 (light) to 30 (dark) metres")  # type: ignore[arg-type]

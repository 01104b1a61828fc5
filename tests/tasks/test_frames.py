"""Pictures through the one face of all models: whole, by region and in strips they are the same picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashfield.errors import ConfigError
from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import Spaces
from hashfield.nn.config import EncodingConfig
from hashfield.nn.fields import RadianceField
from hashfield.render.between_pixels import picture_between_pixels
from hashfield.tasks.frames import (
    QUALITIES,
    HasFrames,
    PictureView,
    Region,
    part_of_camera,
    part_of_picture,
    strips_of,
)
from hashfield.tasks.image_config import ImageConfig, make_module
from hashfield.tasks.image_model import ImageModel, ImageShape
from hashfield.tasks.mesh import HasSurface
from hashfield.tasks.nerf_config import NerfConfig
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.sdf_config import SdfConfig
from hashfield.tasks.sdf_model import SdfModel

SMALL = EncodingConfig(n_levels=4, log2_hashmap_size=10)


def camera() -> Camera:
    pose = torch.tensor([[1.0, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, -1.2]], dtype=torch.float64)
    return Camera(pose, 31, 23, 40.0, 42.0, 16.1, 11.3, lens="opencv", distortion=(0.05, 0, 0, 0, 0.001, 0))


def models() -> dict[str, tuple[Any, Any]]:
    """A model with random numbers of each kind, and a view."""
    seeded = torch.Generator().manual_seed(0)
    spaces = Spaces(scale=1.0, offset=(0.0, 0.0, 0.0), aabb_scale=1)
    nerf = NerfConfig(encoding=SMALL, finest_resolution=64, precision="float32")
    bits = torch.full((128**3 // 8,), 255, dtype=torch.uint8)
    box = torch.tensor([0.2, 0.2, 0.2, 0.8, 0.8, 0.8], dtype=torch.float64)
    field = RadianceField(nerf.field_config(1, 1.0), generator=seeded)
    sdf = SdfConfig(encoding=SMALL, finest_resolution=64)
    image = ImageConfig(encoding=SMALL, finest_resolution=64, precision="float32")
    shape = ImageShape(40, 30, 4, False)
    picture = ImageModel(make_module(image, 4, seeded), image, shape)
    return {
        "nerf": (NerfModel(field, spaces, bits, box, precision="float32", quality="exact"), camera()),
        "sdf": (SdfModel(sdf.make_field(seeded), spaces, box.reshape(2, 3)), camera()),
        "image": (picture, picture.view(crop=(3.0, 2.0, 30.0, 25.0), width=31, height=23)),
    }


@pytest.mark.parametrize("kind", ["nerf", "sdf", "image"])
def test_a_region_is_cut_out_of_the_whole_picture(kind: str):
    model, view = models()[kind]
    assert isinstance(model, HasFrames) and isinstance(model, HasSurface) == (kind != "image")
    outputs = model.outputs
    whole = model.frame(view, outputs, (0.2, 0.4, 0.6))
    assert {a.shape[:2] for a in whole.values()} == {(23, 31)} and all(a.dtype == np.float32 for a in whole.values())
    region = Region(5, 7, 20, 9)
    part = model.frame(view, outputs, (0.2, 0.4, 0.6), region)
    for name in ("color", "opacity"):
        # A ray or point is placed by other sums of float64 and rounded once: a difference of some bits.
        np.testing.assert_allclose(part[name], whole[name][7:16, 5:25], atol=2e-4, err_msg=name)
    assert part["color"].std() > 1e-6 or kind == "sdf"
    strips = list(model.frame_strips(view, ("color",), (0.2, 0.4, 0.6)))
    np.testing.assert_allclose(np.concatenate([s["color"] for s in strips]), whole["color"], atol=2e-4)
    with pytest.raises(ConfigError, match="region"):
        model.frame(view, region=Region(30, 0, 2, 1))
    with pytest.raises(ConfigError, match="outputs"):
        model.frame(view, ("smell",))


def test_the_whole_of_a_picture_is_what_render_gives():
    model, _ = models()["image"]
    raw = model.render()
    (view,) = model.views["whole"]
    frame = model.frame(view, ("color", "opacity"))
    np.testing.assert_array_equal(frame["color"], raw[..., :3])
    np.testing.assert_array_equal(frame["opacity"], raw[..., 3].clip(0, 1))


def test_a_task_is_left_trainable_by_its_model(tmp_path: Path):
    from hashfield.tasks.nerf import NerfTask

    from .scenes import small_scene, tiny_config

    task = NerfTask(tiny_config(), small_scene())
    task.begin()
    before = [p.clone() for p in task.field.parameters()]
    model = task.model()
    assert all(p.requires_grad for p in task.field.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    task.step(0, 0.0)
    assert any(not torch.equal(a, b) for a, b in zip(before, task.field.parameters(), strict=True))
    for mine, seen in zip(task.field.parameters(), model.field.parameters(), strict=True):
        assert mine.data_ptr() == seen.data_ptr()


def test_strips_cover_every_row_once():
    for width, height, n in ((7, 5, 20), (100, 3, 10), (1, 1, 1)):
        strips = list(strips_of(width, height, n))
        assert [y for s in strips for y in range(s.top, s.top + s.height)] == list(range(height))


def test_regions_of_views():
    part = part_of_camera(camera(), Region(4, 3, 10, 8))
    assert (part.width, part.height, part.cx, part.cy) == (10, 8, pytest.approx(12.1), pytest.approx(8.3))
    view = PictureView((10.0, 20.0, 40.0, 30.0), 20, 10)
    assert part_of_picture(view, Region(5, 2, 10, 4)).crop == (20.0, 26.0, 20.0, 12.0)


def test_pixels_between_equal_ones_are_not_rendered():
    """A plain picture with one bright block: asked are a quarter, the border and what lies near the block's edges."""
    truth = torch.zeros(40, 50, 2)
    truth[10:20, 20:30] = 1.0
    asked: list[torch.Tensor] = []

    def render(numbers: torch.Tensor) -> torch.Tensor:
        asked.append(numbers)
        return truth.view(-1, 2)[numbers]

    found = picture_between_pixels(50, 40, render, 0.1)
    assert torch.equal(found.view(40, 50, 2), truth)
    all_asked = torch.cat(asked)
    assert len(all_asked.unique()) == len(all_asked) < 0.45 * 40 * 50
    asked.clear()
    noise = torch.rand(40 * 50, 2, generator=torch.Generator().manual_seed(0))
    exact = picture_between_pixels(50, 40, lambda numbers: (asked.append(numbers), noise[numbers])[1], 1e-6)
    assert torch.equal(exact, noise) and torch.equal(torch.cat(asked).sort().values, torch.arange(2000))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 1), (2, 2), (3, 2), (2, 5), (4, 4), (5, 3), (6, 7)])
def test_small_pictures_between_pixels(size: tuple[int, int]):
    """A slope is met exactly, whatever the picture's size: inner pixels are the mean of their neighbours."""
    width, height = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = (0.01 * x + 0.02 * y + 1.0).reshape(-1, 1)
    found = picture_between_pixels(width, height, lambda numbers: truth[numbers], 0.5)
    assert torch.allclose(found, truth, atol=1e-6)
    # The same channel as a distance: 0.09 is more than a relative bound of 0.001 allows anywhere.
    assert torch.equal(picture_between_pixels(width, height, lambda numbers: truth[numbers], 1e-3, 1), truth)


@pytest.mark.parametrize("quality", ["fine", "fast"])
def test_every_quality_shows_nearly_the_same(quality: Any):
    """Of odd and even sizes, in parts and whole; the depth of what is interpolated is a depth of the scene."""
    model, view = models()["nerf"]
    view = view.resized(124, 92)
    outputs = ("color", "opacity", "depth", "normals")
    exact = model.frame(view, outputs, (1.0, 1.0, 1.0))
    model.quality = quality
    found = model.frame(view, outputs, (1.0, 1.0, 1.0))
    bound = {"fine": 0.03, "fast": 0.1}[quality]
    for name in ("color", "opacity"):
        assert 0 < np.abs(found[name] - exact[name]).max() < bound
    seen = exact["opacity"] > 0.5
    np.testing.assert_allclose(found["depth"][seen], exact["depth"][seen], rtol=3 * bound)
    assert np.median((found["normals"][seen] * exact["normals"][seen]).sum(-1)) > 0.9
    parts = [part["color"] for part in model.render_parts(view, ("color",), (1.0, 1.0, 1.0), rays_at_once=1000)]
    assert np.abs(torch.cat(parts).reshape(92, 124, 3).numpy() - found["color"]).max() < bound


def test_triton_and_qualities_by_name():
    model, _ = models()["nerf"]
    model.quality = "fast"
    assert model.economy == QUALITIES["fast"] and QUALITIES["exact"].tolerance == 0
    with pytest.raises(ConfigError, match="quality"):
        model.quality = "best"

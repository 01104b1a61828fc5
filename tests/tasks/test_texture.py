"""Texture baked from photos of a ball whose colour is known everywhere."""

import numpy as np
import pytest
import torch

from hashfield.data.dataset import PosedImages
from hashfield.export.meshes import Mesh, extract_mesh, mesh_normals
from hashfield.export.textures import at_texels, make_atlas, rasterize
from hashfield.geometry.cameras import Camera, camera_table, look_at, rays_from_pixels
from hashfield.tasks.mesh import Surface
from hashfield.tasks.texture import bake_texture

pytest.importorskip("trimesh")
pytest.importorskip("skimage")
pytest.importorskip("xatlas")

SIZE, RADIUS = 128, 0.7


def pattern(place: np.ndarray) -> np.ndarray:
    """The ball's colour."""
    return 0.5 + 0.4 * np.sin(6 * place)


class Ball:
    """What renders depth; in front of it a wall may stand that hides the ball's left half from one camera."""

    def __init__(self, hidden_from: Camera | None = None) -> None:
        self.hidden_from = hidden_from

    def render(self, camera: Camera, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Depth and opacity of the ball."""
        distance, is_hit, _ = seen(camera)
        if self.hidden_from is not None and np.allclose(camera.position, self.hidden_from.position):
            distance[:, : camera.width // 2], is_hit[:, : camera.width // 2] = 0.3, True
        return {"depth": np.where(is_hit, distance, 0).astype(np.float32), "opacity": is_hit.astype(np.float32)}


def seen(camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distance, whether the ball is met, where) for each pixel."""
    row, column = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    pixel = torch.stack([column.reshape(-1), row.reshape(-1)], 1) + 0.5
    origin, direction = rays_from_pixels(camera_table([camera]), torch.zeros(len(pixel), dtype=torch.int64), pixel)
    along = -(origin * direction).sum(1)
    miss = origin.square().sum(1) - along.square()
    is_hit = miss < RADIUS**2
    distance = along - (RADIUS**2 - miss).clamp(min=0).sqrt()
    shape = (camera.height, camera.width)
    place = (origin + distance[:, None] * direction).reshape(*shape, 3)
    return distance.reshape(shape).numpy(), is_hit.reshape(shape).numpy(), place.numpy()


def photo(camera: Camera) -> np.ndarray:
    """RGBA of the ball, black and clear around it."""
    _, is_hit, place = seen(camera)
    rgba = np.concatenate([pattern(place), np.ones((*is_hit.shape, 1))], -1) * is_hit[..., None]
    return np.rint(255 * rgba).astype(np.uint8)


@pytest.fixture(scope="module")
def ball() -> Mesh:
    mesh = extract_mesh(lambda p: p.norm(dim=1) - RADIUS, (-1, -1, -1, 1, 1, 1), 24, 0.0, inside="below")
    return Mesh(mesh.vertices, mesh.faces, mesh_normals(mesh))


def surface() -> Surface:
    """With colours that no photo has: green."""
    green = torch.tensor([0.0, 1.0, 0.0])
    return Surface(
        value=lambda p: p[:, 0], level=0.0, box=(-1, -1, -1, 1, 1, 1), inside="below",
        colors=lambda p, n: green.expand(len(p), 3),
    )  # fmt: skip


def baked(
    ball: Mesh, cameras: list[Camera], hidden_from: Camera | None = None, gains: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """(places of the texels, their colours in 0..1, the note)."""
    names = tuple(map(str, range(len(cameras))))
    photos = PosedImages(tuple(cameras), tuple(map(photo, cameras)), names, gains=gains)
    atlas = make_atlas(ball, SIZE)
    texture, notes = bake_texture(Ball(hidden_from), surface(), ball, atlas, SIZE, 2 / 24, photos if cameras else None)
    texels = rasterize(atlas, SIZE)
    place = at_texels(ball.vertices, ball.faces, texels)
    return place, texture[texels.face >= 0] / 255, notes[0]


def camera_at(x: float, y: float, z: float) -> Camera:
    return Camera(look_at([x, y, z], [0.0, 0.0, 0.0]), 160, 120, 150.0, 150.0, 80.0, 60.0)


def test_colors_come_from_the_photos_where_they_see_and_from_the_field_elsewhere(ball: Mesh):
    place, color, note = baked(ball, [camera_at(2.5, 0, 0.1), camera_at(0, 2.5, 0.1), camera_at(1.8, 1.8, 0)])
    facing = np.maximum(place[:, 0], place[:, 1]) / RADIUS
    is_field = np.abs(color - [0, 1, 0]).max(1) < 0.01
    assert not is_field[facing > 0.65].any() and is_field[facing < -0.2].all()
    assert np.abs(color - pattern(place))[facing > 0.65].mean() < 0.02
    assert "from 3 photos" in note


def test_how_bright_a_photo_was_taken_does_not_color_the_surface(ball: Mesh):
    cameras = [camera_at(2.5, 0, 0.1), camera_at(0, 2.5, 0.1)]
    _, plain, _ = baked(ball, cameras)
    place, color, _ = baked(ball, cameras, gains=np.array([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]))
    from_first = (place[:, 0] > 0.9 * RADIUS) & (np.abs(plain - [0, 1, 0]).max(1) > 0.01)
    from_second = (place[:, 1] > 0.9 * RADIUS) & (np.abs(plain - [0, 1, 0]).max(1) > 0.01)
    assert from_first.any() and from_second.any()
    np.testing.assert_allclose(color[from_first], plain[from_first] / 2, atol=0.01)
    np.testing.assert_allclose(color[from_second], plain[from_second], atol=0.01)


def test_what_is_hidden_from_a_photo_gets_no_color_of_it(ball: Mesh):
    camera = camera_at(2.5, 0.0, 0.0)
    place, color, _ = baked(ball, [camera], hidden_from=camera)
    is_field = np.abs(color - [0, 1, 0]).max(1) < 0.01
    right = camera.camera_to_world[:, 0].numpy()
    front = place[:, 0] > 0.5
    assert is_field[front & (place @ right < -0.1)].all()
    assert not is_field[front & (place @ right > 0.1)].any()


def test_without_photos_all_colors_are_the_fields(ball: Mesh):
    _, color, note = baked(ball, [])
    assert np.abs(color - [0, 1, 0]).max() < 0.01 and "all of that the field's own" in note

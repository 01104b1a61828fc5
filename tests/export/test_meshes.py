"""Marching cubes in blocks against one block and against formulas; clean-up; files read back by trimesh."""

import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.export.meshes import (
    FORMATS,
    Mesh,
    Shortcut,
    Values,
    check_mesh_file,
    encode_mesh,
    extract_mesh,
    keep_faces,
    largest_components,
    mesh_normals,
)

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

BOX = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def sphere(positions: Tensor) -> Tensor:
    return positions.norm(dim=1) - 0.7


def torus(positions: Tensor) -> Tensor:
    return torch.hypot(torch.hypot(positions[:, 0], positions[:, 1]) - 0.6, positions[:, 2]) - 0.25


SHAPES: dict[str, tuple[Values, float]] = {
    "sphere": (sphere, 4 / 3 * math.pi * 0.7**3),
    "torus": (torus, 2 * math.pi**2 * 0.6 * 0.25**2),
}


def far_from(distance: Values) -> Shortcut:
    """Skips balls that an exact distance shows to be empty or solid."""

    def shortcut(centers: Tensor, radius: float) -> Tensor:
        value = distance(centers)
        return torch.where(value.abs() > radius, value, torch.nan)

    return shortcut


def as_trimesh(mesh: Mesh) -> Any:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def triangles(mesh: Mesh) -> np.ndarray:
    """The triangles in an order of their own, each starting at its least corner."""
    first = mesh.faces.argmin(1)[:, None]
    turned = np.take_along_axis(mesh.faces, (first + np.arange(3)) % 3, 1)
    return turned[np.lexsort(turned.T)]


# --- extraction


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resolution", [40, 61])
def test_slabs_and_skipped_bricks_give_the_mesh_of_one_block(shape: str, resolution: int):
    distance, volume = SHAPES[shape]
    whole = extract_mesh(distance, BOX, resolution, 0.0, inside="below", slab=64)
    solid = as_trimesh(whole)
    assert solid.is_watertight and solid.is_winding_consistent
    assert solid.volume == pytest.approx(volume, rel=6 / resolution**1.5)
    # distinct even as float32, the precision of most files
    assert len(np.unique(whole.vertices.astype(np.float32), axis=0)) == len(whole.vertices)
    for slab in (8, 16, 32):
        for shortcut in (None, far_from(distance)):
            counted = []

            def value(positions: Tensor, counted: list[int] = counted) -> Tensor:
                counted.append(len(positions))
                return distance(positions)

            found = extract_mesh(
                value, BOX, resolution, 0.0, inside="below", slab=slab, shortcut=shortcut, points_at_once=5000
            )
            np.testing.assert_array_equal(found.vertices, whole.vertices)
            np.testing.assert_array_equal(triangles(found), triangles(whole))
            assert max(counted) <= 5000
            n = (resolution + 1) ** 3
            assert sum(counted) == n if shortcut is None else sum(counted) < 0.75 * n


def test_vertices_lie_on_the_surface_and_normals_point_outward():
    mesh = extract_mesh(sphere, BOX, 64, 0.0, inside="below")
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.7).max() < 3e-4
    outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (mesh_normals(mesh) * outward).sum(1).min() > 0.999


def test_noise_makes_a_closed_manifold_surface():
    # every one of the 256 cases, the ambiguous ones too, across the faces of blocks
    n = 71
    values = torch.randn(n, n, n, generator=torch.Generator().manual_seed(0))
    for axis in range(3):
        values.transpose(0, axis)[[0, -1]] = -1.0  # the surface must not leave the box

    def noise(positions: Tensor) -> Tensor:
        x, y, z = (positions * (n - 1)).round().long().unbind(1)
        return values[x, y, z]

    solid = as_trimesh(extract_mesh(noise, (0, 0, 0, 1, 1, 1), n - 1, 0.0))
    assert solid.is_watertight and solid.is_winding_consistent and solid.volume > 0


def test_values_on_the_level_itself():
    # a cube whose faces lie on lattice planes, where samples equal the level
    cube = lambda p: 0.5 - p.abs().amax(1)  # noqa: E731
    mesh = extract_mesh(cube, BOX, 32, 0.0)
    solid = as_trimesh(mesh)
    assert solid.is_watertight and solid.volume == pytest.approx(1.0, rel=0.03)  # edges are bevelled
    assert len(np.unique(mesh.vertices.astype(np.float32), axis=0)) == len(mesh.vertices)


def test_density_is_interpolated_in_its_logarithm():
    # density e^(20 (0.7 - r)) reaches 1 at r = 0.7; a straight line between samples would err by far more
    density = lambda p: torch.exp(20 * (0.7 - p.norm(dim=1)))  # noqa: E731
    exact = extract_mesh(density, BOX, 32, 1.0, is_log=True)
    rough = extract_mesh(density, BOX, 32, 1.0)
    error = [np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.7).max() for mesh in (exact, rough)]
    assert error[0] < 2e-3 < error[1]
    hollow = lambda p: torch.where(p.norm(dim=1) < 0.7, 1e9, 0.0)  # noqa: E731
    assert as_trimesh(extract_mesh(hollow, BOX, 32, 1.0, is_log=True)).is_watertight


def test_nan_is_outside():
    part = lambda p: torch.where(p[:, 0] > 0, torch.nan, 0.7 - p.norm(dim=1))  # noqa: E731
    for sign, inside in ((1, "above"), (-1, "below")):
        mesh = extract_mesh(lambda p, s=sign: s * part(p), BOX, 20, 0.0, inside=inside)  # type: ignore[arg-type]
        assert as_trimesh(mesh).is_watertight and 0 < mesh.vertices[:, 0].max() < 0.1


def test_a_crop_box_cuts_exactly_and_keeps_cells_nearly_cubes():
    crop = (-0.31, -1.0, 0.0, 0.2, 1.0, 0.9)
    mesh = extract_mesh(sphere, crop, 40, 0.0, inside="below")
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    assert low[0] == -0.31 and high[0] == 0.2 and low[2] == 0.0  # cut by these faces
    assert high[2] == pytest.approx(0.7, abs=1e-3) and high[1] == pytest.approx(0.7, abs=1e-3)
    assert not as_trimesh(mesh).is_watertight


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": 5.0}, "no surface at level 5: values in the box lie from -0.7 to 1.03205"),
        ({"box": (5, 5, 5, 6, 6, 6)}, "no surface at level 0"),
        ({"box": (1, -1, -1, 1, 1, 1)}, "box: expected finite"),
        ({"box": (0, 0, 0, 1, 1)}, "box: expected finite"),
        ({"box": (0, 0, 0, 1, 1, math.inf)}, "box: expected finite"),
        ({"resolution": 0}, "resolution: expected 1 to"),
        ({"level": math.nan}, "level: expected a finite"),
        ({"level": 0.0, "is_log": True}, "level: expected a finite positive"),
        ({"slab": 12}, "slab: expected a multiple of 8"),
        ({"shortcut": lambda c, r: torch.ones(len(c))}, "nothing that needs sampling"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str):
    arguments = {"box": BOX, "resolution": 16, "level": 0.0, "inside": "below", **changes}
    with pytest.raises(ConfigError) as caught:
        extract_mesh(sphere, **arguments)
    assert words in str(caught.value)


# --- clean-up


def three_balls(positions: Tensor) -> Tensor:
    centers = torch.tensor([[-0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, -0.5, 0.0]], dtype=positions.dtype)
    radius = torch.tensor([0.4, 0.3, 0.2], dtype=positions.dtype)
    return ((positions[:, None] - centers).norm(dim=2) - radius).amin(1)


def test_the_largest_pieces_stay():
    mesh = extract_mesh(three_balls, BOX, 48, 0.0, inside="below")
    one, n_pieces = largest_components(mesh, 1)
    assert n_pieces == 3
    assert as_trimesh(one).volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.02)
    two, _ = largest_components(mesh, 2)
    assert as_trimesh(two).body_count == 2 and two.vertices[:, 1].max() > 0.7 > -0.45 > two.vertices[:, 1].min() - 0.1
    assert largest_components(mesh, 3)[0] is mesh


def test_dropped_triangles_take_their_vertices_along():
    mesh = extract_mesh(sphere, BOX, 20, 0.0, inside="below")
    mesh = Mesh(mesh.vertices, mesh.faces, mesh_normals(mesh), np.zeros((len(mesh.vertices), 3), np.uint8))
    upper = (mesh.vertices[mesh.faces][..., 2] > 0).all(1)
    half = keep_faces(mesh, upper)
    assert len(half.faces) == upper.sum() and half.vertices[:, 2].min() > 0
    np.testing.assert_array_equal(half.vertices[half.faces], mesh.vertices[mesh.faces[upper]])
    assert half.normals is not None and (half.normals[:, 2] > -0.1).all() and len(half.colors) == len(half.vertices)


# --- files


def colored_sphere(scale: float = 1.0) -> Mesh:
    mesh = extract_mesh(lambda p: sphere(p / scale), [scale * x for x in BOX], 24, 0.0, inside="below")
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, mesh.vertices.shape, np.uint8)
    return Mesh(mesh.vertices, mesh.faces, mesh_normals(mesh), colors)


def read_back(content: bytes, kind: str) -> Any:
    scene = trimesh.load_scene(io.BytesIO(content), file_type=kind[1:], process=kind == ".stl")
    (mesh,) = scene.geometry.values()
    return mesh


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e4])
def test_each_format_is_read_back_whole(kind: str, scale: float):
    mesh = colored_sphere(scale)
    found = read_back(encode_mesh(Path(f"x{kind.upper()}"), mesh), kind)
    if kind == ".stl":
        assert len(found.faces) == len(mesh.faces) and found.bounds == pytest.approx(as_trimesh(mesh).bounds, rel=1e-6)
        if scale == 1.0:  # trimesh merges by absolute distance
            assert found.is_watertight
        return
    np.testing.assert_array_equal(found.faces, mesh.faces)
    np.testing.assert_allclose(found.vertices, mesh.vertices, atol=2e-7 * scale)
    np.testing.assert_allclose(found.vertex_normals, mesh.normals, atol=1e-6)
    assert found.is_watertight and found.volume > 0
    if kind == ".glb":
        linear = found.visual.vertex_attributes["color"][:, :3].astype(float) / 255
        srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        bright = mesh.colors > 100  # 8 linear bits are coarse in the dark
        assert np.abs(255 * srgb - mesh.colors)[bright].max() < 2
    else:
        np.testing.assert_array_equal(found.visual.vertex_colors[:, :3], mesh.colors)


@pytest.mark.parametrize("kind", FORMATS)
def test_notes_are_in_the_file(kind: str):
    content = encode_mesh(Path(f"x{kind}"), colored_sphere(), ["units: those of a.json", "axes: z up,\nä"])
    assert b"units: those of a.json" in content and b"axes: z up, ?" in content
    assert read_back(content, kind).volume > 0
    if kind == ".stl":
        long = encode_mesh(Path(f"x{kind}"), colored_sphere(), ["units " * 40])
        assert len(long) == len(content) and not long.startswith(b"solid")


def test_a_bare_mesh_needs_no_colours_or_normals():
    bare = extract_mesh(sphere, BOX, 12, 0.0, inside="below")
    for kind in FORMATS:
        assert len(read_back(encode_mesh(Path(f"x{kind}"), bare), kind).faces) == len(bare.faces)


def test_unknown_endings_and_missing_packages(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"x\.abc: expected a name that ends in \.obj, \.ply, \.glb, \.stl"):
        check_mesh_file(Path("x.abc"))
    for name in ("trimesh", "skimage.measure", "scipy.sparse"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ModuleNotFoundError):
                check_mesh_file(Path("x.ply"))

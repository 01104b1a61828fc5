"""Atlas, texels, files with textures; points and volumes; simplification. Balls, whose surface is known."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hashfield.errors import ConfigError
from hashfield.export.clouds import Cloud, encode_cloud, encode_volume, points_on, sample_volume
from hashfield.export.meshes import Mesh, encode_mesh, extract_mesh, mesh_normals, simplify
from hashfield.export.textures import (
    Atlas,
    at_texels,
    check_textured_file,
    encode_textured,
    make_atlas,
    rasterize,
    smoothed,
    spread_colors,
)

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

SIZE = 256


def _area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Twice the signed area between plane vectors."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def ball(resolution: int = 16) -> Mesh:
    """A ball of radius 0.7 with normals."""
    box = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    mesh = extract_mesh(lambda p: p.norm(dim=1) - 0.7, box, resolution, 0.0, inside="below")
    return Mesh(mesh.vertices, mesh.faces, mesh_normals(mesh))


def test_each_texel_shows_the_triangle_that_holds_its_centre():
    rng = np.random.default_rng(0)
    corner = rng.random((40, 2)) * 0.8
    # triangles of very different size, one of no area, one beyond the edge
    size = 10.0 ** rng.uniform(-2.5, -0.3, 40)
    uv = np.stack([corner, corner + size[:, None] * [1, 0.2], corner + size[:, None] * [0.1, 0.9]], 1).reshape(-1, 2)
    uv[3:6] = uv[3]
    faces = np.arange(120, dtype=np.int32).reshape(-1, 3)
    texels = rasterize(Atlas(np.arange(120, dtype=np.int32), faces, uv.astype(np.float32), 1), 64)
    center = (np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1) + 0.5) / 64  # [row, column, (x, y)]
    inside = np.zeros((40, 64, 64), bool)
    for k in range(40):
        a, b, c = (p for p in uv[faces[k]].astype(np.float32).astype(np.float64))
        area = _area(b - a, c - a)
        if area > 0:
            edges = [_area(q - p, center - p) / area for p, q in ((b, c), (c, a), (a, b))]
            inside[k] = np.min(edges, 0) > 1e-5
    shown = texels.face >= 0
    assert inside.any(0)[shown].mean() > 0.99 and (shown | ~inside.any(0)).all() and shown.mean() > 0.1
    row, column = inside.any(0).nonzero()
    assert inside[texels.face[row, column], row, column].mean() > 0.99
    place = at_texels(np.pad(uv, ((0, 0), (0, 1))), faces, texels)
    assert np.abs(place[:, :2] - center[shown]).max() < 1e-6


def test_an_atlas_covers_the_surface_once_and_texels_lie_on_it():
    pytest.importorskip("xatlas")
    mesh = ball()
    atlas = make_atlas(mesh, SIZE)
    assert np.array_equal(atlas.source[atlas.faces], mesh.faces)
    assert atlas.uv.min() >= 0 and atlas.uv.max() <= 1
    texels = rasterize(atlas, SIZE)
    filled = texels.face >= 0
    assert filled.mean() > 0.3
    assert len(np.unique(texels.face[filled])) > 0.97 * len(mesh.faces)
    a, b, c = (atlas.uv[atlas.faces[:, k]].astype(np.float64) * SIZE for k in range(3))
    # nothing lies over another
    assert np.abs(_area(b - a, c - a)).sum() / 2 == pytest.approx(filled.sum(), rel=0.03)
    assert np.abs(np.linalg.norm(at_texels(mesh.vertices, mesh.faces, texels), axis=1) - 0.7).max() < 0.02


def test_a_rough_surface_is_smoothed_without_shrinking():
    mesh = ball()
    rough = mesh.vertices * (1 + 0.03 * np.random.default_rng(0).standard_normal((len(mesh.vertices), 1)))
    found = np.linalg.norm(smoothed(rough, mesh.faces, 10), axis=1)
    assert found.std() < 0.5 * np.linalg.norm(rough, axis=1).std()
    assert found.mean() == pytest.approx(np.linalg.norm(rough, axis=1).mean(), rel=0.02)


def test_texels_between_charts_get_the_nearest_color():
    texture, filled = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)
    filled[2, 1], filled[2, 6] = True, True
    texture[2, 1], texture[2, 6] = 10, 200
    found = spread_colors(texture, filled)
    assert (found[:, :4] == 10).all() and (found[:, 4:] == 200).all()


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_textured_files_are_read_back(kind: str, tmp_path: Path):
    pytest.importorskip("xatlas")
    mesh = ball()
    atlas = make_atlas(mesh, SIZE)
    texels = rasterize(atlas, SIZE)
    texture = np.zeros((SIZE, SIZE, 3), np.uint8)
    place = at_texels(mesh.vertices, mesh.faces, texels)
    texture[texels.face >= 0] = np.rint(255 * (place + 1) / 2)
    files = encode_textured(tmp_path / f"b.{kind}", mesh, atlas, spread_colors(texture, texels.face >= 0), ["z is up"])
    assert set(files) == ({"b.glb"} if kind == "glb" else {"b.obj", "b.mtl", "b.png"})
    assert b"z is up" in files[f"b.{kind}"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = trimesh.load(tmp_path / f"b.{kind}", force="mesh", process=False)
    assert len(found.faces) == len(mesh.faces)
    # the colour at each vertex says where it is
    colors = found.visual.to_color().vertex_colors[:, :3].astype(float)
    assert np.abs(colors / 255 * 2 - 1 - found.vertices).max() < 0.03
    if kind == "glb":
        check_by_khronos(files["b.glb"])


def check_by_khronos(content: bytes) -> None:
    """No error and no warning from the validator of npm, where node finds it (NODE_PATH)."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('gltf-validator')"], capture_output=True).returncode:
        return
    script = (
        "let parts=[];process.stdin.on('data',d=>parts.push(d)).on('end',()=>require('gltf-validator')"
        ".validateBytes(new Uint8Array(Buffer.concat(parts))).then(r=>console.log(JSON.stringify(r.issues))))"
    )
    report = subprocess.run([node, "-e", script], input=content, capture_output=True, check=True).stdout
    issues = json.loads(report)
    assert issues["numErrors"] == issues["numWarnings"] == 0, issues["messages"][:3]


def test_a_glb_of_vertex_colors_has_unit_normals_even_where_the_mesh_has_none():
    mesh = ball()
    assert mesh.normals is not None
    normals = mesh.normals.copy()
    normals[5] = 0.0
    colored = Mesh(mesh.vertices, mesh.faces, normals, np.full((len(mesh.vertices), 3), 90, np.uint8))
    content = encode_mesh(Path("v.glb"), colored)
    found = trimesh.load(io.BytesIO(content), file_type="glb", force="mesh", process=False)
    assert np.abs(np.linalg.norm(found.vertex_normals, axis=1) - 1).max() < 1e-4
    check_by_khronos(content)


def test_wrong_names_and_sizes_are_refused_before_the_work():
    with pytest.raises(ConfigError, match="textures go into"):
        check_textured_file(Path("a.ply"), 1024)
    with pytest.raises(ConfigError, match="64 to 16384"):
        check_textured_file(Path("a.glb"), 20)


def test_points_lie_evenly_on_the_surface_and_are_read_back(tmp_path: Path):
    mesh = ball()
    place, normals = points_on(mesh, 4000)
    assert np.abs(np.linalg.norm(place, axis=1) - 0.7).max() < 0.02
    assert (np.sum(normals * place, 1) / np.linalg.norm(place, axis=1)).min() > 0.98
    assert np.abs(place.mean(0)).max() < 0.01  # as many on each side
    colors = np.random.default_rng(0).integers(0, 256, (4000, 3)).astype(np.uint8)
    (tmp_path / "p.ply").write_bytes(encode_cloud(Cloud(place, normals, colors), ["units are metres"]))
    found = trimesh.load(tmp_path / "p.ply")
    assert np.allclose(found.vertices, place, atol=1e-6) and np.array_equal(found.colors[:, :3], colors)
    assert b"comment units are metres" in (tmp_path / "p.ply").read_bytes()[:300]
    with pytest.raises(ConfigError, match="points: expected"):
        points_on(mesh, 0)


def test_a_volume_holds_the_function_where_its_file_says():
    box = (-1.0, 0.0, 0.0, 1.0, 1.0, 0.5)
    volume = sample_volume(lambda p: (100 * p[:, 0] + 10 * p[:, 1] + p[:, 2]).float(), box, 20, points_at_once=100)
    files = encode_volume(Path("d.npy"), volume, box, "density", ["z is up"])
    facts = json.loads(files["d.json"])
    assert facts["shape"] == [21, 11, 6] and facts["notes"] == ["z is up"]
    at = np.array(facts["box"][:3]) + np.array([3, 4, 5]) * facts["spacing"]
    assert volume[3, 4, 5] == pytest.approx(at @ [100, 10, 1], rel=1e-6)
    assert files["d.npy"][:6] == b"\x93NUMPY"


def test_simplifying_says_how_far_the_surface_moved():
    pytest.importorskip("fast_simplification")
    pytest.importorskip("igl")
    mesh = ball(32)
    found, mean, most = simplify(mesh, 500)
    assert 400 <= len(found.faces) <= 500
    assert 0 < mean < most < 0.03
    # every old vertex lies between the two balls that the new surface lies between
    away = np.abs(np.linalg.norm(found.vertices, axis=1) - 0.7)
    assert away.max() < 0.03
    assert simplify(mesh, len(mesh.faces))[0] is mesh
    with pytest.raises(ConfigError, match="at least 4"):
        simplify(mesh, 3)

"""Reading meshes: every format, what is done about broken ones, and that signs and distances are right."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trimesh")
pytest.importorskip("igl")

from hashfield.cli import main
from hashfield.data.demo_mesh import demo_mesh
from hashfield.data.mesh_distance import DistanceQuery
from hashfield.data.mesh_samples import MeshSamples, SurfaceSampler
from hashfield.data.meshes import SourceMesh, make_mesh, read_mesh
from hashfield.errors import DataError
from hashfield.tasks.sdf import MeshInUnitSpace
from tests.data.mesh_cases import CASES, MeshCase, sphere, torus, write_obj, write_stl


def mesh_of(vertices: np.ndarray, faces: np.ndarray) -> SourceMesh:
    return make_mesh(vertices, faces, "made", Path("made"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message(case: MeshCase, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    if case.outcome == "error":
        with pytest.raises(DataError, match=case.expected) as error:
            read_mesh(path)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(str(tmp_path)), "names the file"
        return
    mesh = read_mesh(path)
    notes = [*mesh.notes, *MeshInUnitSpace(mesh).notes()]
    assert any(re.search(case.expected, note) for note in notes), notes
    assert all("\n" not in note for note in notes)
    if case.outcome == "silent":
        assert len(notes) == 1, notes


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_format_gives_the_same_closed_mesh(tmp_path: Path) -> None:
    import trimesh

    vertices, faces = torus(12)
    vertices = vertices.astype(np.float32).astype(np.float64)
    write_obj(tmp_path / "a.obj", vertices, faces)
    write_stl(tmp_path / "a.stl", vertices, faces)
    for ending in ("ply", "glb"):
        trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / f"a.{ending}")
    (tmp_path / "gltf").mkdir()
    for name, content in trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.Trimesh(vertices, faces))).items():
        (tmp_path / "gltf" / name).write_bytes(content)
    files = [tmp_path / f"a.{ending}" for ending in ("obj", "ply", "stl", "glb")] + [tmp_path / "gltf" / "model.gltf"]
    meshes = [read_mesh(path) for path in files]
    for path, mesh in zip(files, meshes, strict=True):
        assert mesh.is_closed and not mesh.notes, path
        assert np.array_equal(mesh.vertices, meshes[0].vertices), path  # np.unique sorts them
        assert len(mesh.faces) == len(faces), path


def test_node_transforms_are_applied_and_seams_merged(tmp_path: Path) -> None:
    import trimesh

    vertices, faces = torus(12)
    split = trimesh.Trimesh(vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3), process=False)
    scene = trimesh.Scene()
    place = np.diag([2.0, 2.0, 2.0, 1.0])
    place[:3, 3] = 10, 0, 0
    scene.add_geometry(split, transform=place)
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb"))
    mesh = read_mesh(tmp_path / "a.glb")
    assert mesh.is_closed and len(mesh.vertices) == len(vertices)
    low, high = mesh.box
    assert np.allclose(low, [10 - 2.8, -0.8, -2.8], atol=1e-2) and np.allclose(high, [12.8, 0.8, 2.8], atol=1e-2)


def test_missing_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_obj(tmp_path / "a.obj", *sphere())
    packages = {"trimesh": "trimesh", "igl": "libigl", "skimage": "scikit-image", "scipy": "scipy"}
    for package, name in packages.items():
        monkeypatch.delitem(
            sys.modules, {"skimage": "skimage.measure", "scipy": "scipy.sparse"}.get(package, "-"), False
        )
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # an import of it raises
            assert main.run(["train", "sdf", str(tmp_path / "a.obj"), "--out", str(tmp_path / "run")]) == 2
            line = capsys.readouterr().err
            assert line.count("\n") == 1 and f"need the package {name}: pip install 'hashfield[mesh]'" in line
            assert not (tmp_path / "run").exists()
            assert main.run(["demo", "sdf", "--out", str(tmp_path / "run")]) == 2
            assert f"need the package {name}: pip install 'hashfield[mesh]'" in capsys.readouterr().err


# --- distances


def torus_distance(points: np.ndarray, major: float = 1.0, minor: float = 0.4) -> np.ndarray:
    return np.hypot(np.hypot(points[:, 0], points[:, 2]) - major, points[:, 1]) - minor


@pytest.mark.parametrize("rule", ["normals", "winding"])
def test_distance_of_a_torus(rule) -> None:
    vertices, faces = torus(160)
    points = np.random.default_rng(0).uniform(-1.6, 1.6, (4000, 3))
    query = DistanceQuery(vertices, faces, rule)
    exact = torus_distance(points)
    found = query.signed(points)
    far = np.abs(exact) > 2e-3  # the triangles lie up to 1e-3 inside
    assert np.abs(found - exact).max() < 1.5e-3
    assert np.array_equal(found[far] < 0, exact[far] < 0)
    assert np.allclose(query.unsigned(points), np.abs(found))


def test_sign_next_to_sharp_edges_and_corners() -> None:
    # a wedge with an angle of 5 degrees: the normal of a single face would be wrong beyond the edge
    h = np.tan(np.radians(2.5))
    corners = np.array([[0.0, 0, 0], [1, h, 0], [1, -h, 0], [0, 0, 1], [1, h, 1], [1, -h, 1]])
    faces = np.array([[0, 1, 2], [3, 5, 4], [0, 3, 4], [0, 4, 1], [0, 2, 5], [0, 5, 3], [1, 4, 5], [1, 5, 2]])
    mesh = mesh_of(corners, faces)
    assert mesh.is_closed
    query = DistanceQuery(mesh.vertices, mesh.faces, is_closed=True)
    assert query.rule == "normals"
    points = np.random.default_rng(1).uniform(-1, 2, (20000, 3))
    x, y, z = points.T
    exact = (np.abs(y) < h * x) & (x < 1) & (z > 0) & (z < 1)
    assert np.array_equal(query.signed(points) < 0, exact)


def test_open_mesh_knows_its_inside() -> None:
    vertices, faces = sphere(24)
    mesh = mesh_of(vertices, faces[faces.min(1) > 0])  # the cap at the pole is missing
    assert not mesh.is_closed
    query = DistanceQuery(mesh.vertices, mesh.faces, is_closed=mesh.is_closed)
    assert query.rule == "winding"
    points = np.array([[0.0, 0, 0], [0, -0.9, 0], [0.9, 0, 0], [0, 1.3, 0], [1.2, 0, 0], [0, -1.1, 0]])
    assert (query.signed(points) < 0).tolist() == [True, True, True, False, False, False]


def test_overlapping_shells_are_one_inside() -> None:
    a, b = sphere(24), sphere(24, center=(0.9, 0, 0))
    mesh = mesh_of(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1] + len(a[0])]))
    query = DistanceQuery(mesh.vertices, mesh.faces, is_closed=mesh.is_closed)
    assert mesh.is_closed and query.passes_through_itself and query.rule == "winding"
    assert (query.signed(np.array([[0.45, 0.0, 0.0], [0.45, 0.95, 0], [-0.5, 0, 0]])) < 0).tolist() == [1, 0, 1]


def test_a_cavity_is_outside() -> None:
    a, b = sphere(24), sphere(24, radius=0.5)
    mesh = mesh_of(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1][:, ::-1] + len(a[0])]))
    query = DistanceQuery(mesh.vertices, mesh.faces, is_closed=mesh.is_closed)
    assert query.rule == "normals" and not mesh.notes
    assert (query.signed(np.array([[0.0, 0, 0], [0.75, 0, 0], [1.2, 0, 0]])) < 0).tolist() == [False, True, False]


def test_rays_meet_the_mesh() -> None:
    query = DistanceQuery(*sphere(64))
    origin = np.array([[0.01, 0.02, -3.0], [2.0, 0, -3]])
    t, normal = query.cast(origin, np.array([[0.0, 0, 1], [0, 0, 1]]))
    assert abs(t[0] - 2.0) < 2e-3 and np.isinf(t[1])
    assert normal[0] @ np.array([0, 0, -1]) > 0.99 and not normal[1].any()


# --- samples


def samples(seed: int = 3, **changes) -> MeshSamples:
    truth = MeshInUnitSpace(mesh_of(*torus(64)))
    options = dict(n_points=800, surface_share=0.5, near_share=0.375, noise=1e-2, steps_per_chunk=4, n_chunks=3)
    return MeshSamples(truth.query, truth.box, seed=seed, **{**options, **changes})


def test_samples_have_exact_distances_in_the_stated_mix() -> None:
    made = samples()
    chunk = made.chunk(0)
    assert chunk.positions_unit.shape == (800, 3) and chunk.distance.shape == (800, 1)
    assert bool(((chunk.positions_unit >= 0) & (chunk.positions_unit <= 1)).all())
    on_surface = chunk.distance[:, 0] == 0
    assert int(on_surface.sum()) == 400
    points = chunk.positions_unit.double().numpy()
    assert np.abs(made.query.unsigned(points[on_surface.numpy()])).max() < 1e-6
    exact = made.query.signed(points)
    assert np.abs(exact - chunk.distance[:, 0].double().numpy()).max() < 1e-6


def test_samples_follow_from_seed_and_step() -> None:
    a, b = samples(), samples()
    for step in range(30):
        a.at_step(step)
    late = a.at_step(30)
    assert bool((late.positions_unit == b.at_step(30).positions_unit).all()), "no step needs the ones before"
    assert len(a._made) <= 3
    assert not bool((samples(seed=4).at_step(30).positions_unit == late.positions_unit).all())


def test_chunks_made_ahead_are_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """By another process, whichever steps come; and by this one once that is gone."""
    right, found = samples(), samples(makes_ahead=True)
    found.wait_until_ready()
    for step in (0, 1, 4, 5, 6, 8, 30, 31, 32, 3):
        a, b = found.at_step(step), right.at_step(step)
        assert torch.equal(a.positions_unit, b.positions_unit) and torch.equal(a.distance, b.distance), step
    assert found._maker is not None
    process = found._maker._process
    assert process.poll() is None
    process.kill()
    assert torch.equal(found.at_step(44).distance, right.at_step(44).distance)
    del found
    assert process.returncode is not None
    assert capfd.readouterr().err == ""


def test_surface_points_are_uniform_by_area() -> None:
    # two triangles, areas 1 : 3
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [8, 0, 0], [5, 1, 0]])
    points = SurfaceSampler(vertices, np.array([[0, 1, 2], [3, 4, 5]])).draw(40_000, np.random.default_rng(0))
    assert abs(np.mean(points[:, 0] > 3) - 0.75) < 0.01
    small = points[points[:, 0] < 3]
    assert np.allclose(small.mean(0), [1 / 3, 1 / 3, 0], atol=0.01)


def test_demo_mesh_is_closed() -> None:
    mesh = demo_mesh(120, 16)
    truth = MeshInUnitSpace(mesh)
    assert mesh.is_closed and not mesh.notes
    assert truth.query.rule == "normals"

"""The signed-distance task end to end on a small torus: it learns, stands alone, resumes, refuses what is broken."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trimesh")
pytest.importorskip("igl")

import hashfield
from hashfield.cli import main
from hashfield.data.meshes import SourceMesh, make_mesh
from hashfield.errors import CheckpointError, ConfigError
from hashfield.geometry.cameras import Camera, look_at
from hashfield.nn.config import EncodingConfig, GridConfig
from hashfield.tasks.evaluate_surface import evaluate_distance
from hashfield.tasks.sdf import SdfTask
from hashfield.tasks.sdf_config import PRESETS, SdfConfig, preset_for
from hashfield.tasks.sdf_model import SdfModel, load_model
from hashfield.train.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder
from tests.data.mesh_cases import sphere, torus, write_obj
from tests.data.test_meshes import torus_distance


def torus_mesh() -> SourceMesh:
    return make_mesh(*torus(96), "torus", Path("torus.obj"))


def tiny_config(**changes) -> SdfConfig:
    base = PRESETS["fast"]
    encoding = GridConfig(n_levels=6, n_features_per_level=4, log2_hashmap_size=14)
    train_config = replace(base.train, batch=4096, steps_per_chunk=4, n_chunks=8)
    return replace(base, encoding=encoding, finest_resolution=256, n_neurons=32, train=train_config, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SdfTask, RunFolder]:
    """600 steps on the torus: enough for the field's own gradient."""
    task = SdfTask(tiny_config(), torus_mesh(), seed=1)
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "a", "torus")
    result = train(task, run, TrainOptions(n_steps=600))
    assert result.stopped_by == "done" and result.n_samples == 600 * 4096
    return task, run


def test_learns_the_distance(trained):
    task, _ = trained
    model = task.model()
    points = torch.from_numpy(np.random.default_rng(0).uniform([-1.4, -0.4, -1.4], [1.4, 0.4, 1.4], (20_000, 3)))
    error = np.abs(model.distance(points).numpy() - torus_distance(points.numpy()))
    assert error.mean() < 0.01 and error.max() < 0.08  # world units; the torus is 2.8 wide
    figures = evaluate_distance(model, task.truth, n_points=2**16, n_surface=2**12)
    assert figures["iou"] > 0.985
    assert figures["mean_distance"] < 3e-3
    assert figures["chamfer"] is None and figures["f_score"] is None  # no surface was given
    assert json.loads(json.dumps(figures)) == figures


def test_figures_of_a_surface(trained):
    task, _ = trained
    model = task.model()
    vertices, faces = torus(96)
    same = evaluate_distance(model, task.truth, n_points=256, n_surface=4096, surface=(vertices, faces))
    assert same["chamfer"] < 1e-6 and same["f_score"] == 1.0
    moved = vertices + np.array([0.05, 0, 0])
    other = evaluate_distance(model, task.truth, n_points=256, n_surface=4096, surface=(moved, faces))
    assert 0.01 < other["chamfer"] < 0.05  # the shift, by the mean of |its share along the normal|
    assert other["f_score"] < 0.5
    with pytest.raises(ConfigError, match="n_points"):
        evaluate_distance(model, task.truth, n_points=0)


def test_distance_goes_on_outside_the_box(trained):
    task, _ = trained
    model = task.model()
    far = torch.tensor([[10.0, 0, 0], [0, 5.0, 0]], dtype=torch.float64)
    found, margin = (
        model.distance(far).numpy(),
        float(task.truth.spaces.unit_to_world(torch.from_numpy(task.truth.box[1]))[1]),
    )
    nearest = np.array([0.0, margin, 0.0])  # of the box to the second: from there on the way counts, so rather too much
    assert np.allclose(found, [8.6, torus_distance(nearest[None])[0] + 5.0 - margin], atol=0.1)
    assert (found > [8.5, np.hypot(1.0, 5.0) - 0.4]).all()
    assert model.distance(torch.zeros(2, 3, 3)).shape == (2, 3)


def test_normals_are_those_of_the_torus(trained):
    task, _ = trained
    model = task.model()
    u, v = torch.rand(2, 500, dtype=torch.float64) * 6.28
    exact = torch.stack([v.cos() * u.cos(), v.sin(), v.cos() * u.sin()], 1)
    ring = torch.stack([u.cos(), torch.zeros_like(u), u.sin()], 1)
    normal = model.normals(ring + 0.4 * exact)
    assert torch.allclose(normal.norm(dim=1), torch.ones(500), atol=1e-5)
    assert float((normal.double() * exact).sum(1).mean()) > 0.97


def test_pictures_show_the_torus(trained):
    task, _ = trained
    camera = task.cameras["orbit"][0].resized(64, 64)
    found = task.model().render(camera, ("color", "opacity", "depth", "normals"), (1.0, 1.0, 1.0))
    exact = task.truth.normals_seen(camera)
    is_solid = np.linalg.norm(exact, axis=-1) > 0.5
    assert np.mean(is_solid != (found["opacity"] > 0.5)) < 0.02
    both = is_solid & (found["opacity"] > 0.99)
    assert np.mean((exact * found["normals"]).sum(-1)[both]) > 0.95
    distance = np.linalg.norm(camera.position.numpy())
    assert np.all(np.abs(found["depth"][both] - distance) < 1.5)
    assert found["color"].shape == (64, 64, 3) and found["color"][~is_solid].mean() > 0.97
    assert found["color"][both].std() > 0.05
    with pytest.raises(ConfigError, match="expected color, opacity, depth, normals"):
        task.model().render(camera, ("heat",))


def test_a_cut_is_shown_as_the_face_that_it_is(trained):
    """Half of the torus, seen from the missing half: two discs, lit as flat ones."""
    model = trained[0].model().within(((-2.0, -2.0, 0.0), (2.0, 2.0, 2.0)))
    camera = Camera(look_at((0.0, 0.0, -5.0), (0.0, 0.0, 0.0)), 64, 64, 80.0, 80.0, 32.0, 32.0)
    found = model.render(camera, ("color", "normals", "depth"))
    row, column = (camera.fx * np.array([-1.0, 1.0]) / 5 + 32).astype(int), 32  # z is up, and looked along: x goes down
    assert np.allclose(found["normals"][row, column], [0, 0, -1], atol=1e-3)
    assert np.allclose(found["depth"][row, column], 5.1, atol=0.1)
    around = found["color"][row, column - 2 : column + 3]
    assert around.min() > 0.3 and np.ptp(around, axis=1).max() < 0.1


def test_model_stands_alone_and_export_is_small_and_close(trained, tmp_path: Path):
    task, run = trained
    points = torch.rand(5000, 3) * 2 - 1
    loaded = hashfield.load(run.path)
    assert isinstance(loaded, SdfModel)
    assert torch.equal(loaded.distance(points), task.model().distance(points))
    size = export_checkpoint(run.checkpoint, tmp_path / "small.safetensors")
    assert size < 0.5 * run.checkpoint.stat().st_size
    small = hashfield.load(tmp_path / "small.safetensors")
    assert float((small.distance(points) - loaded.distance(points)).abs().mean()) < 2e-3


def test_resumes_bit_for_bit(tmp_path: Path):
    whole = SdfTask(tiny_config(), torus_mesh(), seed=5)
    train(whole, RunFolder.create(tmp_path / "whole", "t"), TrainOptions(n_steps=30))
    run = RunFolder.create(tmp_path / "parts", "t")
    first = SdfTask(tiny_config(), torus_mesh(), seed=5)
    assert train(first, run, TrainOptions(n_steps=30, stop_after=13)).stopped_by == "interrupted"
    second = SdfTask(tiny_config(), torus_mesh(), seed=5)
    train(second, run, TrainOptions(n_steps=30), resume=True)
    a, b = whole.state()[0], second.state()[0]
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_another_mesh_does_not_fit(trained, tmp_path: Path):
    _, run = trained
    other = SdfTask(tiny_config(), make_mesh(*torus(96, minor=0.3), "t", Path("t.obj")), seed=1)
    with pytest.raises(CheckpointError, match="another box"):
        train(other, run, TrainOptions(n_steps=400), resume=True)


def test_broken_checkpoints_are_named(trained, tmp_path: Path):
    _, run = trained
    tensors, metadata = load_checkpoint(run.checkpoint)
    path = tmp_path / "b.safetensors"
    for change, words in (
        ({"box": tensors["box"].flip(0)}, "tensor 'box'"),
        ({"field.network.weights.0": tensors["field.network.weights.0"][:, :3].clone()}, "expected shape"),
        ({"field.encoding.table": tensors["field.encoding.table"] * float("nan")}, "not finite"),
    ):
        save_checkpoint(path, {**tensors, **change}, metadata)
        with pytest.raises(CheckpointError, match=words):
            load_model(path)
    for change, words in (({"background": [2, 0, 0]}, "background"), ({"task": "nerf"}, "expected 'sdf'")):
        save_checkpoint(path, tensors, {**metadata, **change})
        with pytest.raises(CheckpointError, match=words):
            load_model(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SdfConfig(precision="half"),  # type: ignore[arg-type]
        lambda: SdfConfig(inside="maybe"),  # type: ignore[arg-type]
        lambda: SdfConfig(n_neurons=24),
        lambda: SdfConfig(n_hidden_layers=0),
        lambda: SdfConfig(finest_resolution=8),
        lambda: SdfConfig(encoding=GridConfig(interpolation="nearest")),
        lambda: replace(PRESETS["fast"].train, surface_share=0.8, near_share=0.3),
        lambda: replace(PRESETS["fast"].train, noise=0.0),
        lambda: replace(PRESETS["fast"].train, steps_per_chunk=0),
        lambda: SdfTask(tiny_config(), torus_mesh(), seed=-1),
    ],
)
def test_options_out_of_range(make):
    with pytest.raises(ConfigError):
        make()


def test_presets():
    assert preset_for(60, None) == "fast" and preset_for(200, None) == "default" and preset_for(300, None) == "quality"
    assert preset_for(None, 500) == "fast"
    assert all(config.preset == name for name, config in PRESETS.items())
    paper = PRESETS["paper"].encoding
    assert (paper.n_levels, paper.n_features_per_level, paper.log2_hashmap_size) == (16, 2, 19)


# --- the command line


SMALL = ["--encoding.n-levels", "4", "--encoding.log2-hashmap-size", "12", "--finest-resolution", "128"]


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hashfield.cli.sdf.SHEET_SIDE", 120)
    monkeypatch.setattr("hashfield.cli.sdf.MESHED", 96)
    mesh, run = write_obj(tmp_path / "ball.obj", *sphere(24)), tmp_path / "run"
    command = ["train", "sdf", str(mesh), "--out", str(run), "--n-steps", "600", "--train.batch", "2048", *SMALL]
    assert main.run(command) == 0
    said = capsys.readouterr().out
    assert "inside: angle-weighted normals" in said and "IoU" in said
    assert (run / "report.html").is_file() and list((run / "renders").glob("compare_*.png"))
    assert main.run(["evaluate", str(run), "--json", str(tmp_path / "f.json"), "--n-points", "65536",
                     "--n-surface", "8192", "--resolution", "64"]) == 0  # fmt: skip
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["iou"] > 0.97 and figures["f_score"] is not None and figures["chamfer"] < 0.02
    assert {"mean_distance", "seed", "n_points", "n_surface", "inside"} <= set(figures)
    assert main.run(["render", str(run), "--n-frames", "2", "--width", "48", "--output", "color", "normals"]) == 0
    assert len(list((run / "renders" / "orbit").glob("*.png"))) == 4
    assert main.run(["export", str(run)]) == 0
    assert main.run(["info", str(run)]) == 0
    capsys.readouterr()
    assert main.run(command) == 2 and "holds a run already" in capsys.readouterr().err
    other = write_obj(tmp_path / "other.obj", *sphere(20))
    assert main.run(["train", "sdf", str(other), "--out", str(run), "--resume"]) == 2
    assert "was begun with a mesh of" in capsys.readouterr().err
    assert main.run(["evaluate", str(run), "--data", str(write_obj(tmp_path / "t.obj", *torus(20)))]) == 2
    assert "is not the mesh of this run" in capsys.readouterr().err
    mesh.unlink()
    assert main.run(["evaluate", str(run)]) == 2 and "--data" in capsys.readouterr().err


def test_broken_input_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "bad.ply"
    path.write_text("nothing")
    assert main.run(["train", "sdf", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("otype", "learning_rate", "n_steps"), [("Frequency", 5e-3, 600), ("OneBlob", 3e-3, 900)])
def test_encodings_without_a_table_learn_and_load(otype: str, learning_rate: float, n_steps: int, tmp_path: Path):
    config = tiny_config()
    config = replace(
        config, encoding=EncodingConfig(otype=otype, n_frequencies=2, n_bins=8), n_hidden_layers=3,
        train=replace(config.train, learning_rate=learning_rate, batch=1024),
    )  # fmt: skip
    task = SdfTask(config, torus_mesh(), seed=1)
    run = RunFolder.create(tmp_path / "a", "torus")
    assert train(task, run, TrainOptions(n_steps=n_steps)).stopped_by == "done"
    model = hashfield.load(run.path)
    assert isinstance(model, SdfModel)
    assert evaluate_distance(model, task.truth, n_points=2**15, n_surface=2**11)["iou"] > 0.8  # they learn slowly
    points = torch.tensor([[1.4, 0.0, 0.0], [0.0, 0.4, 1.0]]).double()  # on the surface
    assert torch.equal(model.distance(points), task.model().distance(points))
    normals = model.normals(points)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2, dtype=normals.dtype), rtol=0, atol=1e-4)
    step = 5e-4 * torch.eye(3).double()  # what differences of the distance itself say
    slopes = torch.stack([model.distance(points + e) - model.distance(points - e) for e in step], 1)
    assert float((torch.nn.functional.normalize(slopes.double(), dim=1) * normals).sum(1).min()) > 0.99

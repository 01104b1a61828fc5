"""`hashfield mesh` as a user meets it, on a small run."""

import sys
from pathlib import Path

import numpy as np
import pytest

from hashfield.cli.main import run

from .test_cli import fails

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")


def test_every_format_from_one_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["mesh", str(trained), "--resolution", "48"]) == 0
    printed = capsys.readouterr().out
    assert "units and axes" in printed and "chosen from depth" in printed and "world units" in printed
    whole = trimesh.load(trained / "mesh.ply", process=False)
    assert len(whole.faces) > 500 and whole.visual.kind == "vertex"
    head = (trained / "mesh.ply").read_bytes()[:1500]
    assert b"comment units and axes" in head and b"comment box: " in head and b"comment level: density" in head
    level = printed.split("density ")[1].split(" per")[0]
    for kind in ("obj", "glb", "stl"):
        target = tmp_path / f"m.{kind}"
        assert run(["mesh", str(trained), "--resolution", "48", "--level", level, "--out", str(target)]) == 0
        found = trimesh.load(target, process=False, force="mesh")
        assert len(found.faces) == pytest.approx(len(whole.faces), rel=0.01)  # the level's printed digits are few
        assert np.abs(found.bounds - whole.bounds).max() < 0.05
    assert not list(tmp_path.glob(".*")) and not list(trained.glob(".*"))


def test_crop_and_components(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "a.ply"
    box = ["-0.4", "-0.4", "-0.4", "0.4", "0.4", "0.9"]
    command = ["mesh", str(trained), "--resolution", "40", "--components", "1", "--level", "20", "--out", str(target)]
    assert run([*command, "--box", *box]) == 0
    assert "connected pieces kept" in capsys.readouterr().out
    mesh = trimesh.load(target, process=False)
    assert mesh.bounds[0].min() >= -0.4 - 1e-6 and mesh.bounds[1, :2].max() <= 0.4 + 1e-6
    assert len(trimesh.graph.connected_components(mesh.edges)) == 1
    assert "is there already" in fails(capsys, *command)
    before = target.read_bytes()
    assert run([*command, "--box", *box, "--overwrite"]) == 0
    assert target.read_bytes() == before  # same model, same bytes


def test_texture_points_and_volume_of_a_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("xatlas")
    command = ["mesh", str(trained), "--resolution", "32", "--level", "20", "--out"]
    largest = [*command[:-1], "--components", "1", "--out"]  # without bits so small that 500 points may all miss them
    assert run([*largest, str(tmp_path / "t.obj"), "--texture", "256"]) == 0
    printed = capsys.readouterr().out
    assert "from 10 photos" in printed and "t.obj, t.png, t.mtl" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.mtl", "t.obj", "t.png"]
    textured = trimesh.load(tmp_path / "t.obj", force="mesh")
    assert textured.visual.material.image.size == (256, 256)
    assert run([*largest, str(tmp_path / "p.ply"), "--points", "500"]) == 0
    points = trimesh.load(tmp_path / "p.ply")
    assert len(points.vertices) == 500 and np.ptp(points.colors[:, :3], axis=0).min() > 20
    assert (np.abs(points.bounds - textured.bounds) < 0.2).all()
    assert run([*command, str(tmp_path / "d.npy")]) == 0
    volume = np.load(tmp_path / "d.npy")
    assert (
        max(volume.shape) == 33
        and (volume > 20).any()
        and "density per world unit" in (tmp_path / "d.json").read_text()
    )


def test_a_page_of_a_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "page.html"
    assert run(["export", str(trained), "--web", str(target), "--title", "A <run>"]) == 0
    assert "dB to the model" in capsys.readouterr().out
    assert "<h1>A &lt;run&gt;</h1>" in target.read_text()
    assert "is there already" in fails(capsys, "export", str(trained), "--web", str(target))
    assert "ends in .html" in fails(capsys, "export", str(trained), "--web", str(tmp_path / "page.txt"))
    assert "--out and --web: give only one" in fails(capsys, "export", str(trained), "--web", str(target), "--out", "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a.abc"], "a.abc: expected a name that ends in .obj, .ply, .glb, .stl"),
        (["--level", "1e30"], "no surface at level 1e+30: values in the box lie from"),
        (["--level", "0"], "level: expected a density above 0"),
        (["--box", "50", "50", "50", "51", "51", "51"], "box: holds nothing of this model"),
        (["--box", "1", "1", "1", "0", "0", "0"], "box: "),
        (["--resolution", "0"], "resolution: expected"),
        (["--components", "-1"], "--components: expected"),
        (["--texture", "512", "--out", "a.ply"], "a.ply: textures go into .glb or .obj"),
        (["--points", "-5"], "--points: expected"),
        (["--points", "9", "--out", "a.obj"], "--points: expected a number above 0 and a .ply file"),
        (["--points", "9", "--out", "a.npy"], "a.npy: values in space take no --points"),
        (["--points", "9", "--texture", "512", "--out", "a.glb"], "exclude each other"),
    ],
)
def test_mistakes_end_in_a_line_and_code_2(
    trained: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "m.ply")]
    line = fails(capsys, "mesh", str(trained), *arguments)
    assert words in line and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named_at_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("trimesh", "skimage.measure", "scipy.sparse"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            line = fails(capsys, "mesh", str(trained), "--out", str(tmp_path / "m.ply"))
            assert "hashfield[mesh]" in line and line.count("\n") == 1

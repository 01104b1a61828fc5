"""`hashfield sweep`: both studies on small inputs, what lies in the folder, going on, and what is refused."""

import csv
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashfield.cli.main import run
from hashfield.data.demo_scene import make_demo_scene, save_nerf_synthetic
from hashfield.steps.occupancy import Upkeep
from hashfield.tasks.image import ImageTask
from hashfield.tasks.nerf_config import PRESETS
from hashfield.train.task import StepResult
from tests.data.mesh_cases import sphere, write_obj

PLOTS = ("quality_over_parameters.svg", "quality_over_training_time.svg", "batches_over_time.svg")
GRID = ["--study", "grid", "--features", "2", "--levels", "4", "--log2-hashmap-sizes", "8", "12", "--batch", "1024"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rings, 96x64."""
    y, x = np.mgrid[:64, :96] / 64
    rings = np.sin(40 * np.hypot(x - 0.7, y - 0.5))
    path = tmp_path_factory.mktemp("data") / "rings.png"
    Image.fromarray((127 * (1 + np.stack([rings, -rings, x - 0.5], -1))).astype(np.uint8)).save(path)
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    """cells.csv."""
    with open(folder / "cells.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_grid_study_of_a_picture(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "image", str(picture), *GRID, "--max-samples", "120000", "--out", str(tmp_path)]
    assert run([*command, "--cells", "F2-L4-T8"]) == 0
    assert [row["cell"] for row in rows_of(tmp_path)] == ["F2-L4-T8"]
    first = (tmp_path / "F2-L4-T8" / "row.json").read_text()
    assert run(command) == 0
    small, large = rows_of(tmp_path)
    assert (tmp_path / "F2-L4-T8" / "row.json").read_text() == first  # not trained again
    assert (small["F"], small["L"], small["log2_T"], large["log2_T"]) == ("2", "4", "8", "12")
    assert int(small["encoding_parameters"]) < int(large["encoding_parameters"])
    assert float(small["psnr"]) > 12 and float(large["psnr"]) > float(small["psnr"]) + 2
    assert 120_000 <= int(small["samples"]) < 122_000 and float(small["train_seconds"]) > 0
    assert all((tmp_path / name).read_text().startswith("<svg") for name in PLOTS)
    table = (tmp_path / "table.md").read_text()
    again = "--study grid --max-samples 120000 --features 2 --levels 4 --log2-hashmap-sizes 8 12 --batch 1024"
    assert f"    hashfield sweep image rings.png {again}" in table
    assert "120,000 trained points" in table and "rings" in table and "96x64" in table and "Commit" in table
    assert table.count("| F2-L4-T") == 2 and "paper" not in table
    assert all(f"({name})" in table for name in PLOTS)
    assert "F2-L4-T8" in capsys.readouterr().out
    # Another budget in the same folder is another sweep.
    assert run([*command, "--max-samples", "130000"]) == 2
    assert "was begun with another options" in capsys.readouterr().err
    assert run([*command, "--max-samples", "130000", "--overwrite", "--cells", "F2-L4-T8"]) == 0
    assert len(rows_of(tmp_path)) == 1


def test_a_sweep_that_is_stopped_goes_on_in_the_middle_of_a_cell(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sweep", "image", str(picture), *GRID, "--max-samples", "40000", "--out"]
    assert run([*command, str(tmp_path / "whole")]) == 0
    steps: list[int] = []

    def step(self: ImageTask, number: int, fraction: float) -> StepResult:
        steps.append(number)
        if len(steps) == 60:  # in the second cell
            signal.raise_signal(signal.SIGINT)
        return real_step(self, number, fraction)

    real_step = ImageTask.step
    monkeypatch.setattr(ImageTask, "step", step)
    assert run([*command, str(tmp_path / "parts")]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().out
    stopped = tmp_path / "parts" / "F2-L4-T12"
    assert (stopped / "checkpoint.safetensors").exists() and not (stopped / "row.json").exists()
    for more in (["--resume"], ["--overwrite"], []):
        assert run(["train", "image", str(picture), "--out", str(stopped), *more]) == 2
        assert f"{stopped}: is a cell of a sweep, which goes on with it when" in capsys.readouterr().err
    n_before = len(steps)
    assert run([*command, str(tmp_path / "parts")]) == 0
    assert steps[n_before] == steps[n_before - 1] + 1 > 1  # where it was stopped
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [(r["cell"], r["psnr"], r["steps"]) for r in parts] == [(r["cell"], r["psnr"], r["steps"]) for r in whole]


def test_encodings_study_of_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = PRESETS["fast"]
    # Usual margins would leave nearly all cells of so small a scene alive, for deep networks to be asked about.
    occupancy = replace(fast.occupancy, carve_margin_px=1, pixel_margin_px=3, max_cells=2**14)
    monkeypatch.setitem(PRESETS, "fast", replace(fast, occupancy=occupancy))
    # A sweep over all living cells, as at the start of other trainings, would take most of the time.
    monkeypatch.setattr(Upkeep, "cells_at", lambda upkeep, n_refreshes, n_living: upkeep.max_cells)
    folder = tmp_path / "toy"
    save_nerf_synthetic(make_demo_scene(size=32, n_train=8, n_test=3)[0], folder)
    out = tmp_path / "out"
    command = ["sweep", "nerf", str(folder), "--max-samples", "6000", "--batch", "1024", "--n-views", "2"]
    cells = ["frequency", "hash-14", "none"]
    assert run([*command, "--out", str(out), "--cells", *cells]) == 0
    rows = {row["cell"]: row for row in rows_of(out)}
    assert list(rows) == ["none", "frequency", "hash-14"]  # in the study's order
    assert rows["frequency"]["encoding_parameters"] == "0" and rows["frequency"]["network_parameters"] == "430848"
    assert rows["hash-14"]["encoding_parameters"] == "494592" and rows["hash-14"]["paper_psnr"] == "22.61"
    assert all(int(row["samples"]) >= 6000 and float(row["psnr"]) > 5 for row in rows.values())
    table = (out / "table.md").read_text()
    assert "held-out views 2" in table and "10 k + 494 k" in table
    plan = json.loads((out / "none" / "plan.json").read_text())
    assert plan["input"] == "toy" and plan["options"]["max_samples"] == 6000


def test_what_is_refused(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["sweep", "image", str(picture), "--cells", "hash-20"], "no cell 'hash-20'; there are none, frequency"),
        (["sweep", "image", str(picture), "--max-samples", "5", "--max-seconds", "5"], "give only one of them"),
        (["sweep", "image", str(picture), "--study", "grid", "--levels"], "name no cell"),
        (["sweep", "image", str(picture), "--max-samples", "0"], "max_samples: expected at least 1, got 0"),
        (["sweep", "mesh", str(picture)], "sweep: expected what to sweep"),
        (["sweep", "nerf", str(tmp_path)], str(tmp_path)),
    ]
    for arguments, message in cases:
        capsys.readouterr()
        assert run([*arguments, "--out", str(tmp_path / "never")] if len(arguments) > 3 else arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
    assert run(["sweep", "--help"]) == 0 and "sweep KIND PATH" in capsys.readouterr().out


def test_grid_study_of_a_mesh(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    pytest.importorskip("igl")
    write_obj(tmp_path / "ball.obj", *sphere(24))
    out = tmp_path / "out"
    command = ["sweep", "sdf", str(tmp_path / "ball.obj"), *GRID, "--max-samples", "800000", "--n-points", "20000"]
    assert run([*command, "--out", str(out), "--levels", "8", "--cells", "F2-L8-T12"]) == 0
    (row,) = rows_of(out)
    assert float(row["iou"]) > 0.8 and 0 < float(row["mean_distance_of_diagonal"]) < 0.05
    assert "MAPE of batches" in (out / "batches_over_time.svg").read_text()

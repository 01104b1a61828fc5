"""The command line as a user meets it: what it prints, writes, refuses, and its exit codes."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hashfield.cli import train
from hashfield.cli.main import VERBS, run
from tests.cli.conftest import QUICK


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a wrong command ends in."""
    capsys.readouterr()
    try:
        code = run(list(arguments))
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    return capsys.readouterr().err


def test_help_is_quick_and_lists_every_verb():
    before = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hashfield", "--help"], capture_output=True, text=True)
    seconds = time.perf_counter() - before
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    code = "import sys, hashfield.cli.main; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert seconds < 60  # no limit on speed, only on hanging


def test_train_writes_a_whole_run_folder(trained: Path):
    for name in ("config.json", "metrics.jsonl", "checkpoint.safetensors", "report.html", "renders/compare_000.png"):
        assert (trained / name).exists(), name
    config = json.loads((trained / "config.json").read_text())
    assert config["seed"] == 3 and config["config"]["encoding"]["log2_hashmap_size"] == 13
    report = (trained / "report.html").read_text()
    assert "held-out PSNR" in report and 'src="http' not in report and "<script" not in report
    assert not list(trained.glob(".*.tmp"))


def test_a_run_is_not_overwritten_unasked(trained: Path, photos: Path, capsys):
    before = (trained / "checkpoint.safetensors").read_bytes()
    line = fails(capsys, "train", "nerf", str(photos), "--out", str(trained), "--n-steps", "5", *QUICK)
    assert "holds a run already" in line and line.count("\n") == 1
    # refused before anything is read: the photos need not even be there
    assert "holds a run already" in fails(capsys, "train", "nerf", str(photos / "gone"), "--out", str(trained))
    assert (trained / "checkpoint.safetensors").read_bytes() == before


def test_evaluate_writes_json(trained: Path, photos: Path, tmp_path: Path, capsys):
    target = tmp_path / "figures.json"
    assert run(["evaluate", str(trained), "--json", str(target), "--background", "black"]) == 0
    figures = json.loads(target.read_text())
    assert figures["background"] == [0.0, 0.0, 0.0] and figures["n_views"] == 2
    assert figures["psnr"] == pytest.approx(np.mean([v["psnr"] for v in figures["views"]]))
    assert {"ssim", "color", "split"} <= set(figures)
    assert run(["evaluate", str(trained / "checkpoint.safetensors"), "--data", str(photos), "--split", "train"]) == 0


def test_photos_that_have_gone(trained: Path, tmp_path: Path, capsys):
    line = fails(capsys, "evaluate", str(trained), "--data", str(tmp_path / "gone"))
    assert "--data" in line


def test_render_pictures_of_every_output(trained: Path, tmp_path: Path):
    out = tmp_path / "r"
    command = ["render", str(trained), "--views", "test", "--output", "color", "depth", "normals", "opacity"]
    assert run([*command, "--width", "30", "--out", str(out), "--transparent"]) == 0
    assert len(list(out.glob("*.png"))) == 8
    with Image.open(out / "color_0000.png") as picture:
        assert picture.size == (30, 30) and picture.mode == "RGBA"


def test_render_a_video_of_an_orbit(trained: Path, tmp_path: Path, capsys):
    command = ["render", str(trained), "--views", "orbit", "--n-frames", "4", "--format", "mp4", "--out", str(tmp_path)]
    assert run(command) == 0
    assert (tmp_path / "color.mp4").stat().st_size > 500
    assert "is there already" in fails(capsys, *command)


def test_export_and_info(trained: Path, tmp_path: Path, capsys):
    target = tmp_path / "small.safetensors"
    assert run(["export", str(trained), "--out", str(target)]) == 0
    capsys.readouterr()
    assert run(["info", str(target)]) == 0
    assert "can be resumed: no" in capsys.readouterr().out
    assert run(["info"]) == 0
    assert "grid_encode" in capsys.readouterr().out


def test_resume_goes_on_with_the_plan(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "r"
    arguments = ["train", "nerf", str(photos), "--out", str(out), *QUICK]
    assert run([*arguments, "--n-steps", "20"]) == 0
    assert run([*arguments, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "trained 20 steps" in said
    assert "(as in the resumed run)" in said and "(--aabb-scale)" not in said
    assert run([*arguments, "--resume", "--preset", "paper"]) == 0
    assert "those given here are ignored" in capsys.readouterr().out
    assert "--downscale" in fails(capsys, *arguments, "--resume", "--downscale", "2")


def test_the_command_that_is_shown_goes_on_with_the_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed, it reads the same photos again, at the size that the run was begun with, and so does evaluate."""
    out = tmp_path / "a run"
    plan = train.TrainOptions
    monkeypatch.setattr(train, "TrainOptions", lambda **length: plan(**length, stop_after=5))
    assert run(["train", "nerf", str(photos), "--out", str(out), "--n-steps", "8", "--downscale", "2", *QUICK]) == 130
    shown = capsys.readouterr().out.partition("go on with: hashfield ")[2].strip()
    monkeypatch.undo()
    assert run(shlex.split(shown)) == 0
    assert "trained 8 steps" in capsys.readouterr().out
    for size, more in ((24, []), (48, ["--downscale", "1"])):
        assert run(["evaluate", str(out), "--json", str(tmp_path / "figures.json"), *more]) == 0
        views = json.loads((tmp_path / "figures.json").read_text())["views"]
        assert {view["pixels"] for view in views} == {size * size}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "unknown command 'fly'"),
        (["train"], "expected what to train"),
        (["train", "mesh", "x"], "expected what to train"),
        (["train", "nerf", "/no/such/place"], "no such"),
        (["train", "nerf", ".", "--n-steps", "3", "--max-seconds", "4"], "give only one"),
        (["train", "nerf", ".", "--preset", "best"], "--preset"),
        (["train", "nerf", ".", "--no-such-option"], "no-such-option"),
        (["train", "nerf", ".", "--n-steps", "many"], "n-steps"),
        (["train", "nerf", ".", "--train.batch-samples", "512"], "--train.batch-samples: is called --train.batch now"),
        (["train", "sdf", ".", "--train.batch_points=512"], "--train.batch-points: is called --train.batch now"),
        pytest.param(
            ["train", "nerf", ".", "--device", "cuda"],
            "sees no such device",
            id="cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
        (["train", "nerf", ".", "--max-gpu-memory", "0"], "--max-gpu-memory"),
        (["train", "nerf", ".", "--resume"], "--out"),
        (["train", "nerf", ".", "--background", "pink"], "background: expected"),
        (["train", "nerf", ".", "--encoding.per-level-scale", "1.5"], "finest_resolution"),
        (["train", "nerf", ".", "--max-image-memory", "0"], "--max-image-memory"),
        (["evaluate", "/no/run"], "no such run"),
        (["render", "."], "not a run"),
        (["info", "pyproject-that-is-not"], "no such run"),
        (["demo", "--size", "5"], "--size"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--n-frames", "-1"], "--n-frames"),
        (["demo", "--seconds", "0"], "max_seconds"),
    ],
)
def test_mistakes_end_in_a_line_and_code_2(arguments, words, capsys):
    error = fails(capsys, *arguments)
    assert words in error and "Traceback" not in error


def test_a_missing_extra_is_named_before_the_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = fails(capsys, "train", "nerf", str(photos), "--out", str(tmp_path / "r"), "--tensorboard")
    assert "hashfield[tensorboard]" in line and line.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "hashfield", "evaluate", "/no/run", "--debug"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_bad_values_of_render(trained: Path, capsys):
    assert "--width" in fails(capsys, "render", str(trained), "--width", "0")
    assert "--views" in fails(capsys, "render", str(trained), "--views", "sideways.json")
    assert "transparen" in fails(capsys, "render", str(trained), "--transparent", "--format", "mp4")
    assert "background" in fails(capsys, "render", str(trained), "--background", "blueish")

"""Progress lines: what they say, and when, where no terminal watches."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hashfield.cli.nerf
from hashfield.cli.nerf import held_out_on_the_way
from hashfield.cli.progress import ProgressView, counted, duration, progress_line
from hashfield.tasks.nerf import NerfTask
from hashfield.train.loop import Progress
from hashfield.train.run_folder import RunFolder
from tests.tasks.scenes import small_scene, tiny_config


def progress(phase="training", step=7, fraction=0.5) -> Progress:
    return Progress(phase, step, 14, 3.0, fraction, 0.25, 6.02, 1000.0, 2e6, 3.0)


def test_a_line_holds_every_figure():
    line = progress_line(progress())
    for part in ("50 %", "step 7/14", "loss 0.25", "6.02 dB", "1k rays/s", "2.00M samples/s", "3 s left"):
        assert part in line
    assert progress_line(progress("compiling")).startswith("preparing the kernels")


def test_a_task_without_a_psnr_says_nothing_of_one():
    line = progress_line(replace(progress(), psnr=math.nan))
    assert line == progress_line(progress()).replace("  batch 6.02 dB", "")
    assert "batch" not in line and "-" not in line and "nan" not in line


def test_plain_lines_are_few_and_the_last_one_is_among_them(capsys: pytest.CaptureFixture[str]):
    with ProgressView() as view:
        for step in range(1, 15):
            view.show(progress(step=step, fraction=step / 14))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "step 1/14" in lines[0] and "step 14/14" in lines[1]
    assert not any("\x1b" in line for line in lines)


def test_the_first_autosave_says_how_to_resume(capsys: pytest.CaptureFixture[str]):
    with ProgressView("hashfield train nerf x --out y --resume") as view:
        for step in (3, 9):
            saved = Progress("saving", step, 14, 3.0, 0.5, math.nan, math.nan, 0.0, 0.0, None)
            view.show(saved)
    first, second = capsys.readouterr().out.splitlines()
    assert "saved at step 3" in first and first.endswith("hashfield train nerf x --out y --resume")
    assert second == "saved at step 9"


def test_a_countdown_is_silent_at_first_and_then_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clock = iter([0.0, 1.0, 4.0, 5.0, 12.0, 13.0])
    monkeypatch.setattr("hashfield.cli.progress.time.perf_counter", lambda: next(clock))
    assert list(counted("abcde", 5, "letters")) == list("abcde")
    # After two letters 4 s have passed; the line after three would be too soon; after four 12 s have.
    assert capsys.readouterr().out.splitlines() == ["2 of 5 letters, 6 s left", "4 of 5 letters, 3 s left"]


def test_a_countdown_of_nothing_and_of_a_moment_is_silent(capsys: pytest.CaptureFixture[str]):
    assert list(counted([], 0, "letters")) == [] and list(counted("ab", 2, "letters")) == ["a", "b"]
    assert capsys.readouterr().out == "" and duration(7.2) == "7 s" and duration(200) == "3 min 20 s"


def test_held_out_views_are_seen_through_the_refined_lens_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    looked_through: list[Any] = []

    def judged(model: Any, views: Any, **unused: Any) -> dict[str, Any]:
        looked_through.extend(views.cameras)
        return {"pixels": "all", "n_views": len(views), "psnr": 20.0, "ssim": 0.5, "quality": "fine"}

    monkeypatch.setattr(hashfield.cli.nerf, "evaluate_views", judged)
    task = NerfTask(tiny_config(refine=("lens",)), small_scene(), seed=1)
    task.begin()
    refinement = task.refinement
    assert refinement is not None and refinement.lens is not None
    refinement.lens.data[:, 0] = 0.05
    refinement.hold()
    show = held_out_on_the_way(task, RunFolder(tmp_path, tmp_path / "checkpoint.safetensors"))
    show(progress())
    assert not looked_through
    show(progress("saving"))
    given = small_scene().splits["test"].cameras
    assert looked_through == task.cameras()["test"] and looked_through[0].fx != pytest.approx(given[0].fx, rel=1e-3)
    assert "held-out so far: 2 views, PSNR 20.00 dB" in capsys.readouterr().out

"""The training loop: resuming is exact, files survive, signals and bad losses end a run in order."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hashfield.errors import CheckpointError, ConfigError
from hashfield.tasks.nerf import NerfTask
from hashfield.train import checkpoint as checkpoint_module
from hashfield.train.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from hashfield.train.loop import TrainOptions, planned_length, read_metrics, train
from hashfield.train.run_folder import RunFolder
from hashfield.train.task import StepResult

from ..tasks.scenes import small_scene, tiny_config


def folder(tmp_path: Path, name: str = "run") -> RunFolder:
    return RunFolder.create(tmp_path / name, "demo", overwrite=False)


def same(a: Path, b: Path) -> None:
    tensors_a, meta_a = load_checkpoint(a)
    tensors_b, meta_b = load_checkpoint(b)
    assert set(tensors_a) == set(tensors_b)
    for name, value in tensors_a.items():
        assert torch.equal(value, tensors_b[name]), name
    assert meta_a["state"] == meta_b["state"]


def test_a_run_resumed_in_the_middle_equals_the_unbroken_one_bit_for_bit(tmp_path: Path):
    whole, parts = folder(tmp_path, "whole"), folder(tmp_path, "parts")
    config = tiny_config()
    config = replace(config, train=replace(config.train, touches_per_update=100.0))
    train(NerfTask(config, small_scene(), seed=5), whole, TrainOptions(n_steps=60))
    first = train(NerfTask(config, small_scene(), seed=5), parts, TrainOptions(n_steps=60, stop_after=31))
    assert first.stopped_by == "interrupted" and first.step == 31
    assert load_checkpoint(parts.checkpoint)[0]["optimizer.gradient"].any(), "levels that wait for their update"
    assert planned_length(parts, read_metadata(parts.checkpoint)) == (60, None)
    second = train(NerfTask(config, small_scene(), seed=5), parts, TrainOptions(n_steps=60), resume=True)
    assert second.stopped_by == "done" and second.step == 60
    same(whole.checkpoint, parts.checkpoint)


class FakeTask:
    """Counts steps; its state is one number."""

    name = "fake"

    def __init__(self, losses=None, on_step=None, squared_error=0.1):
        self.value, self.losses, self.on_step, self.squared_error = 0, losses or {}, on_step, squared_error

    def warm_up(self) -> None: ...

    def begin(self) -> None: ...

    def step(self, step: int, fraction: float) -> StepResult:
        if self.on_step:
            self.on_step(step)
        self.value += 1
        return StepResult(self.losses.get(step, 1.0), self.squared_error, 10, 20)

    def state(self):
        return {"value": torch.tensor([self.value])}, {}

    def restore(self, tensors, values) -> None:
        self.value = int(tensors["value"])

    def describe(self):
        return {}


def test_metrics_lines_and_counts(tmp_path: Path):
    run, seen = folder(tmp_path), []
    result = train(FakeTask(), run, TrainOptions(n_steps=7), seen.append)
    assert (result.step, result.n_rays, result.n_samples) == (7, 70, 140)
    lines = [json.loads(line) for line in run.metrics_jsonl.read_text().splitlines()]
    assert lines[-1]["step"] == 7 and lines[-1]["psnr"] == pytest.approx(10.0)
    assert seen[0].phase == "compiling" and seen[-1].fraction == 1.0
    assert read_metrics(run.metrics_jsonl) == lines


def test_metrics_of_a_task_without_a_psnr_are_plain_json(tmp_path: Path):
    run = folder(tmp_path)
    train(FakeTask(squared_error=math.nan), run, TrainOptions(n_steps=5, stop_after=3))
    again = train(FakeTask(squared_error=math.nan), run, TrainOptions(n_steps=5), resume=True)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = [json.loads(row, parse_constant=refuse) for row in run.metrics_jsonl.read_text().splitlines()]
    assert lines[-1]["step"] == 5 and all(line["psnr"] is None and line["loss"] == 1.0 for line in lines)
    assert len(again.history) == len(lines) and all(math.isnan(line["psnr"]) for line in again.history)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path: Path, number: int):
    run = folder(tmp_path)
    task = FakeTask(on_step=lambda step: os.kill(os.getpid(), number) if step == 4 else None)
    before = signal.getsignal(number)
    result = train(task, run, TrainOptions(n_steps=1000))
    assert result.stopped_by == "interrupted" and result.step == 5
    assert signal.getsignal(number) == before
    assert load_checkpoint(run.checkpoint)[1]["loop"]["step"] == 5


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path):
    run = folder(tmp_path)
    result = train(FakeTask(losses={3: float("nan")}), run, TrainOptions(n_steps=10, autosave_seconds=0.0))
    assert result.stopped_by == "non_finite" and result.step == 3
    tensors, metadata = load_checkpoint(run.checkpoint)
    assert int(tensors["value"]) == 3 and metadata["loop"]["step"] == 3


class DeviceTask(FakeTask):
    """Reports tensors, as a task on a device does."""

    def step(self, step: int, fraction: float) -> StepResult:
        result = super().step(step, fraction)
        return StepResult(*torch.tensor([result.loss, result.squared_error, result.n_rays, result.n_samples]))


def test_figures_on_a_device_are_read_at_reports(tmp_path: Path):
    result = train(DeviceTask(), folder(tmp_path), TrainOptions(n_steps=7))
    assert (result.step, result.n_rays, result.n_samples) == (7, 70, 140)
    assert result.history[-1]["loss"] == 1.0 and result.history[-1]["psnr"] == pytest.approx(10.0)
    assert sum(line["step"] == 7 for line in result.history) == 1
    run = folder(tmp_path, "stopped")
    stopped = train(DeviceTask(), run, TrainOptions(n_steps=7, stop_after=5))
    assert (stopped.step, stopped.n_rays) == (5, 50)
    bad = folder(tmp_path, "bad")
    result = train(DeviceTask(losses={3: float("nan")}), bad, TrainOptions(n_steps=10))
    assert result.stopped_by == "non_finite"
    assert load_checkpoint(bad.checkpoint)[1]["loop"]["step"] <= 3


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_checkpoint_is_as_readable_as_any_other_file(tmp_path: Path):
    other, path = tmp_path / "other", tmp_path / "a.safetensors"
    other.touch()
    save_checkpoint(path, {"value": torch.tensor([1])}, {"task": "fake"})
    assert path.stat().st_mode == other.stat().st_mode


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"value": torch.tensor([1])}, {"task": "fake"})

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(CheckpointError, match="previous checkpoint is kept"):
        save_checkpoint(path, {"value": torch.tensor([2])}, {"task": "fake"})
    assert int(load_checkpoint(path)[0]["value"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_autosave_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, calls = folder(tmp_path), []
    from hashfield.train import loop

    real = loop.save_checkpoint

    def sometimes(path, tensors, metadata):
        calls.append(1)
        if len(calls) == 2:
            raise CheckpointError("no room")
        real(path, tensors, metadata)

    monkeypatch.setattr(loop, "save_checkpoint", sometimes)
    result = train(FakeTask(), run, TrainOptions(n_steps=5, autosave_seconds=0.0))
    assert result.stopped_by == "done" and len(calls) > 3


def test_metrics_that_cannot_be_written_do_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = folder(tmp_path)
    run.metrics_jsonl.mkdir()  # neither unlinked nor appended to, as on a disk that is full or read-only
    result = train(FakeTask(), run, TrainOptions(n_steps=5))
    assert result.stopped_by == "done" and len(result.history) > 0
    assert load_checkpoint(run.checkpoint)[1]["loop"]["step"] == 5
    assert sum("metrics.jsonl" in record.message for record in caplog.records) == 1


def test_metrics_go_on_from_the_checkpoint(tmp_path: Path):
    run = folder(tmp_path)
    train(FakeTask(), run, TrainOptions(n_steps=8, stop_after=5))
    line = json.loads(run.metrics_jsonl.read_text().splitlines()[0])
    lost = json.dumps({**line, "step": 7, "loss": 9.0})  # reported after the last checkpoint, then killed
    run.metrics_jsonl.write_text(f"{json.dumps({**line, 'step': 2})}\n{lost}\n{lost[:20]}")
    result = train(FakeTask(), run, TrainOptions(n_steps=8), resume=True)
    lines = [json.loads(row) for row in run.metrics_jsonl.read_text().splitlines()]
    assert lines == result.history
    assert lines[0]["step"] == 2 and lines[-1]["step"] == 8 and 9.0 not in [row["loss"] for row in lines]


def test_every_autosave_is_reported(tmp_path: Path):
    seen = []
    train(FakeTask(), folder(tmp_path), TrainOptions(n_steps=3, autosave_seconds=0.0), seen.append)
    assert [p.step for p in seen if p.phase == "saving"] == [1, 2, 3]


def test_resuming_another_task_or_nothing(tmp_path: Path):
    run = folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train(FakeTask(), run, TrainOptions(n_steps=5), resume=True)
    train(FakeTask(), run, TrainOptions(n_steps=5))
    other = FakeTask()
    other.name = "other"
    with pytest.raises(CheckpointError, match="task: expected 'other'"):
        train(other, run, TrainOptions(n_steps=5), resume=True)


@pytest.mark.parametrize("options", [{}, {"n_steps": 1, "max_seconds": 1.0}, {"n_steps": 0}, {"max_seconds": -1.0}])
def test_lengths(options):
    with pytest.raises(ConfigError):
        TrainOptions(**options)


def test_a_time_budget_ends_the_run(tmp_path: Path):
    result = train(FakeTask(), folder(tmp_path), TrainOptions(max_seconds=0.05))
    assert result.stopped_by == "done" and 0.05 <= result.train_seconds < 1.0

"""The training loop and sweeps on several ranks: one of them writes, all end alike, any number of them goes on."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hashfield.errors import CheckpointError, RanksError
from hashfield.steps.ranks import Ranks
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.train import loop
from hashfield.train.loop import TrainOptions, TrainResult, train
from hashfield.train.run_folder import RunFolder
from hashfield.train.sweep import run_sweep

from ..tasks.scenes import small_scene, tiny_config
from ..threads_as_ranks import as_ranks
from .test_loop import FakeTask
from .test_sweep import SAMPLES, cells_of


def folder(path: Path) -> RunFolder:
    return RunFolder.create(path, "demo", overwrite=True)


def on_ranks(n: int, root: Path, options: TrainOptions, resume: bool = False, **more: Any) -> list[TrainResult]:
    """A training on n ranks, each with a folder of its own, of which the first one's is `root`/run."""

    def work(ranks: Ranks) -> TrainResult:
        run = folder(root / ("run" if ranks.is_first else f"other{ranks.rank}"))
        return train(NerfTask(tiny_config(), small_scene(), seed=5), run, options, resume=resume, **more)

    return as_ranks(n, work)


def test_one_rank_writes_and_any_number_goes_on(tmp_path: Path) -> None:
    two = on_ranks(2, tmp_path, TrainOptions(n_steps=12, stop_after=4))
    assert {(r.stopped_by, r.step, r.n_rays, r.n_samples) for r in two} == {
        ("interrupted", 4, two[0].n_rays, two[0].n_samples)
    }
    three = on_ranks(3, tmp_path, TrainOptions(n_steps=12, stop_after=8), resume=True)
    assert {(r.stopped_by, r.step) for r in three} == {("interrupted", 8)}
    one = train(
        NerfTask(tiny_config(), small_scene(), seed=5), folder(tmp_path / "run"), TrainOptions(n_steps=12), resume=True
    )
    assert (one.stopped_by, one.step) == ("done", 12)
    whole = train(NerfTask(tiny_config(), small_scene(), seed=5), folder(tmp_path / "whole"), TrainOptions(n_steps=12))
    assert one.n_rays == pytest.approx(whole.n_rays, rel=0.02)
    losses = [run.history[-1]["loss"] for run in (one, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)  # of the steps since a report, whose number follows the clock
    assert sorted(p.name for p in (tmp_path / "other1").iterdir()) == []


def test_a_run_by_the_clock_ends_for_all_at_the_same_step(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> TrainResult:
        task: Any = FakeTask(on_step=lambda step: time.sleep(0.01 * (1 + ranks.rank)))  # one is slower
        return train(task, folder(tmp_path / str(ranks.rank)), TrainOptions(max_seconds=0.3))

    found = as_ranks(2, work)
    assert found[0].step == found[1].step > 0 and found[0].stopped_by == found[1].stopped_by == "done"
    assert found[0].train_seconds == found[1].train_seconds >= 0.3


def test_ranks_that_differ_go_on_with_the_numbers_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "SAME_STEPS", 3)
    ends = {}

    def work(ranks: Ranks) -> None:
        task = NerfTask(tiny_config(), small_scene(), seed=5)
        step = task.step

        def drifting(k: int, fraction: float) -> Any:
            if ranks.rank == 1 and k == 1:
                with torch.no_grad():
                    next(task.field.color_network.parameters())[0, 0] += 1e-3
            return step(k, fraction)

        task.step = drifting  # type: ignore[method-assign]
        train(task, folder(tmp_path / f"run{ranks.rank}"), TrainOptions(n_steps=3))
        ends[ranks.rank] = {name: x.clone() for name, x in task.state()[0].items()}

    as_ranks(2, work)
    assert sum("rank 1 no longer hold the numbers of rank 0" in record.message for record in caplog.records) == 1
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name


def test_a_checkpoint_that_cannot_be_written_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*unused: object) -> None:
        raise CheckpointError("run/checkpoint: cannot be written: No space left on device")

    monkeypatch.setattr(loop, "save_checkpoint", full)
    errors: list[Any] = []

    def work(ranks: Ranks) -> None:
        train(
            NerfTask(tiny_config(), small_scene(), seed=5), folder(tmp_path / str(ranks.rank)), TrainOptions(n_steps=3)
        )

    as_ranks(2, work, errors=errors)
    assert [type(e) for e in errors] == [CheckpointError, RanksError]
    assert {str(e) for e in errors} == {"run/checkpoint: cannot be written: No space left on device"}


def test_views_are_judged_by_all_and_the_figures_are_those_of_one() -> None:
    task = NerfTask(tiny_config(), small_scene(), seed=5)
    task.begin()
    views = small_scene().splits["test"]
    alone = evaluate_views(task.model(), views)
    first, second = as_ranks(2, lambda ranks: evaluate_views(task.model(), views))
    assert second == {}
    for figures in (alone, first):
        for view in figures["views"]:
            del view["seconds"]
    assert first == alone


def test_cells_are_dealt_out(tmp_path: Path) -> None:
    whole = run_sweep(cells_of([]), tmp_path / "one", SAMPLES, {})
    first, second = as_ranks(2, lambda ranks: run_sweep(cells_of([]), tmp_path / "two", SAMPLES, {}))
    times = {"train_seconds", "us_per_sample", "cpu_seconds", "cpu_share", "evaluate_seconds"}
    plain = [[{k: v for k, v in row.items() if k not in times} for row in found.rows] for found in (whole, first)]
    assert json.dumps(plain[0]) == json.dumps(plain[1]) and first.is_complete
    assert second.rows == []

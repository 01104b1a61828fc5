"""A sweep: cells in order, what a stop leaves behind, tables."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.train.loop import TrainOptions
from hashfield.train.sweep import Cell, csv_text, discard, machine, markdown_table, pareto_front, run_sweep
from hashfield.train.task import StepResult


class Counting:
    """A task that adds a rate per step; its steps and starts are counted outside."""

    name = "counting"

    def __init__(self, rate: float, log: list[str], fail_at: int | None = None) -> None:
        self.rate, self.log, self.fail_at = rate, log, fail_at
        self.total = torch.zeros(1)
        log.append(f"made {rate}")

    def warm_up(self) -> None:
        """Nothing."""

    def begin(self) -> None:
        """Nothing."""

    def step(self, step: int, fraction: float) -> StepResult:
        """One addition; a KeyboardInterrupt at `fail_at`."""
        if step == self.fail_at:
            raise KeyboardInterrupt
        self.total += self.rate
        self.log.append(f"step {step}")
        return StepResult(1.0, 0.01, 10, 10)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The total."""
        return {"total": self.total}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back the total."""
        self.total = tensors["total"].clone()

    def describe(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def cells_of(log: list[str], rates: tuple[float, ...] = (1.0, 2.0), fail_at: int | None = None) -> list[Cell]:
    """One cell for each rate; the last one fails if asked."""
    return [
        Cell(
            f"rate-{rate:g}", {"rate": rate, "encoding_parameters": 5},
            lambda rate=rate, k=k: Counting(rate, log, fail_at if k + 1 == len(rates) else None),
            lambda task: {"psnr": float(task.total)},
        )
        for k, rate in enumerate(rates)
    ]  # fmt: skip


SAMPLES = TrainOptions(max_samples=95)


def test_every_cell_gets_the_budget_and_a_row(tmp_path: Path) -> None:
    log: list[str] = []
    seen: list[tuple[int, str, bool]] = []
    result = run_sweep(
        cells_of(log), tmp_path, SAMPLES, {"seed": 3}, lambda n, cell, row: seen.append((n, cell.name, row is not None))
    )
    assert result.is_complete
    # Ten points a step: the tenth passes 95.
    assert log == ["made 1.0", *[f"step {k}" for k in range(10)], "made 2.0", *[f"step {k}" for k in range(10)]]
    assert seen == [(0, "rate-1", False), (0, "rate-1", True), (1, "rate-2", False), (1, "rate-2", True)]
    assert [(row["cell"], row["psnr"], row["samples"], row["steps"]) for row in result.rows] == [
        ("rate-1", 10.0, 100, 10),
        ("rate-2", 20.0, 100, 10),
    ]
    assert {"train_seconds", "us_per_sample", "cpu_share", "date", "commit", "machine", "torch"} <= set(result.rows[0])
    assert all(result.histories[name][-1]["step"] == 10 for name in ("rate-1", "rate-2"))
    assert not list(tmp_path.glob("*/checkpoint.safetensors"))


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    log: list[str] = []
    first = run_sweep(cells_of(log), tmp_path, SAMPLES, {})
    log.clear()
    again = run_sweep(cells_of(log, (1.0, 2.0, 3.0)), tmp_path, SAMPLES, {})
    assert log[0] == "made 3.0" and "made 1.0" not in log
    assert again.rows[:2] == first.rows and again.rows[2]["psnr"] == 30.0
    assert again.histories["rate-1"] == first.histories["rate-1"]


def test_a_cell_that_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    log: list[str] = []
    # The first two stop as by Ctrl-C after four steps.
    stopped = run_sweep(cells_of(log), tmp_path, TrainOptions(max_samples=95, stop_after=4), {})
    assert not stopped.is_complete and stopped.rows == []
    assert (tmp_path / "rate-1" / "checkpoint.safetensors").exists()
    plan = tmp_path / "rate-1" / "plan.json"
    plan.write_text(plan.read_text().replace('"stop_after": 4', '"stop_after": null'))
    log.clear()
    result = run_sweep(cells_of(log), tmp_path, SAMPLES, {})
    assert log[:2] == ["made 1.0", "step 4"]
    assert [row["psnr"] for row in result.rows] == [10.0, 20.0] and result.is_complete


def test_an_interrupt_within_a_step_keeps_earlier_rows(tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_sweep(cells_of(log, fail_at=2), tmp_path, SAMPLES, {})
    log.clear()
    result = run_sweep(cells_of(log), tmp_path, SAMPLES, {})
    assert "made 1.0" not in log and [row["psnr"] for row in result.rows] == [10.0, 20.0]


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path) -> None:
    run_sweep(cells_of([]), tmp_path, SAMPLES, {"seed": 0})
    with pytest.raises(ConfigError, match="rate-1: was begun with another seed"):
        run_sweep(cells_of([]), tmp_path, SAMPLES, {"seed": 1})
    with pytest.raises(ConfigError, match="rate-1: was begun with another options"):
        run_sweep(cells_of([]), tmp_path, TrainOptions(max_samples=200), {"seed": 0})
    (tmp_path / "mine").mkdir()
    discard(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert run_sweep(cells_of([]), tmp_path, SAMPLES, {"seed": 1}).is_complete


def test_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names that differ"):
        run_sweep(cells_of([], (1.0, 1.0)), tmp_path, SAMPLES, {})


def test_pareto_front() -> None:
    points = [(1.0, 20.0), (2.0, 19.0), (2.0, 21.0), (3.0, 21.0), (4.0, 30.0), (1.0, 20.0)]
    # Equals stay together; a dearer point of the same quality goes.
    assert pareto_front(points) == {0, 2, 4, 5}
    assert pareto_front([]) == set()


def test_tables() -> None:
    rows = [{"cell": "a|b", "n": 1234567, "q": 23.456, "s": 0.001234}, {"cell": "c", "q": 1.0, "note": "x"}]
    assert list(csv.DictReader(io.StringIO(csv_text(rows))))[1] == {
        "cell": "c", "n": "", "q": "1.0", "s": "", "note": "x",
    }  # fmt: skip
    text = markdown_table(rows, [("cell", "name"), ("n", "numbers"), ("q", "dB"), ("s", "s")])
    assert text.splitlines() == [
        "| name | numbers | dB | s |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 1,234,567 | 23.46 | 0.001234 |",
        "| c |  | 1.00 |  |",
    ]


def test_machine_is_stated() -> None:
    found = machine()
    assert "threads" in found["machine"] and found["torch"] == torch.__version__
    assert found["commit"] and len(found["date"]) == 10

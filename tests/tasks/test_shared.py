"""What the tasks' checkpoints have in common: entries of the metadata by name, field and optimiser, what is said."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hashfield.errors import CheckpointError, ConfigError
from hashfield.steps.optimizers import HostOptimizer, network_groups
from hashfield.steps.state import restore_trained, trained_state, warn_of_other_bits
from hashfield.tasks.shared import (
    background_text,
    check_seed,
    parse_background,
    stored,
    stored_background,
    stored_cameras,
)

PATH = Path("a.safetensors")


def test_a_colour_survives_its_text() -> None:
    for text in ("#000000", "#ffffff", "#0180fe"):
        assert background_text(parse_background(text)) == text


def test_seeds() -> None:
    assert check_seed(0) == 0
    with pytest.raises(ConfigError, match="seed: expected a whole number >= 0, got -1"):
        check_seed(-1)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (None, dict, "expected dict, got None"),
        ("7", int, "expected int, got '7'"),
        (True, int, "expected int, got True"),
        (True, float, "expected float, got True"),
        (math.nan, float, "expected a finite number, got nan"),
    ],
)
def test_an_entry_of_another_kind_is_named(value: Any, kind: type, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: metadata: x: {words}"):
        stored({"x": value}, "x", kind, PATH)


def test_entries_as_they_are() -> None:
    assert stored({"x": 3}, "x", float, PATH) == 3.0 and isinstance(stored({"x": 3}, "x", float, PATH), float)
    assert stored_background({"background": [0, 0.5, 1]}, PATH) == (0, 0.5, 1)
    assert stored_cameras({"cameras": {"train": []}}, PATH) == {"train": []}
    for wrong in ([0, 1], [0, 1, 2], [0, 1, "1"], [0, 1, math.nan]):
        with pytest.raises(CheckpointError, match="background: expected three numbers"):
            stored_background({"background": wrong}, PATH)


def field_and_optimizer(value: float) -> tuple[nn.ParameterDict, HostOptimizer]:
    """A table and a matrix full of a number."""
    field = nn.ParameterDict({"table": torch.full((5, 2), value), "matrix": torch.full((3, 4), value)})
    return field, HostOptimizer(network_groups(field["table"], [field["matrix"]]))


def test_what_was_trained_comes_back() -> None:
    field, optimizer = field_and_optimizer(1.0)
    optimizer.step({"table": [torch.ones(5, 2)], "matrices": [torch.ones(3, 4)]}, 0.1)
    tensors, values = trained_state(field, optimizer, "float32")
    assert {"field.table", "field.matrix", "optimizer.0.moment1", "optimizer.1.moment2"} <= set(tensors)
    assert values == {"optimizer_steps": 1, "threads": torch.get_num_threads(), "precision": "float32"}
    other, again = field_and_optimizer(7.0)
    restore_trained(other, again, tensors, values)
    assert again.n_steps == 1 and all(torch.equal(other[name], field[name]) for name in field)
    assert torch.equal(again.moments["0.moment1"], optimizer.moments["0.moment1"])
    assert torch.equal(again.table_bf16, field["table"].detach().bfloat16())
    for broken, words in (
        (({k: v for k, v in tensors.items() if k != "optimizer.0.moment1"}, values), "optimizer.0.moment1"),
        (({**tensors, "field.matrix": torch.zeros(2, 2)}, values), "field.matrix"),
        ((tensors, {}), "optimizer_steps"),
        ((tensors, {"optimizer_steps": "many"}), "optimizer_steps"),
    ):
        with pytest.raises(CheckpointError, match=words):
            restore_trained(*field_and_optimizer(7.0), *broken)


def test_a_run_that_goes_on_elsewhere_says_so(caplog: pytest.LogCaptureFixture) -> None:
    threads = torch.get_num_threads()
    with caplog.at_level(logging.WARNING, "hashfield"):
        warn_of_other_bits({"threads": threads, "precision": "float32"}, "float32")
        warn_of_other_bits({"threads": threads + 1}, "float32", follows_threads=False)
        warn_of_other_bits({}, "float32")
    assert not caplog.records
    warn_of_other_bits({"threads": threads + 1, "precision": "bfloat16"}, "float32")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"the run was begun on {threads + 1} threads and goes on with {threads}")
    assert second.startswith("the run was begun with bfloat16 networks and goes on with float32")

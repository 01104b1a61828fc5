"""Some of the damaged inputs of benchmarks/fuzz_inputs.py, which has more: none may end in a traceback or hang."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("trimesh")
pytest.importorskip("igl")

ROOT = Path(__file__).parents[2]
N = 300  # about ten seconds


@pytest.fixture(scope="module")
def fuzz_inputs() -> Iterator[ModuleType]:
    path = str(ROOT / "benchmarks")
    sys.path.insert(0, path)  # as the other process finds it
    yield importlib.import_module("fuzz_inputs")
    sys.path.remove(path)


def test_damaged_inputs_end_in_one_line(fuzz_inputs: ModuleType, tmp_path: Path) -> None:
    outcomes = list(fuzz_inputs.fuzz(5000, N, tmp_path))
    bad = [outcome for outcome in outcomes if outcome[3].kind not in fuzz_inputs.GOOD]
    assert not bad, bad
    kinds = [outcome.kind for *_, outcome in outcomes]
    assert kinds.count("refused") > N / 4 and kinds.count("read") > N / 20, "damage is neither nothing nor everything"


def test_what_must_not_happen_is_noticed(fuzz_inputs: ModuleType, tmp_path: Path) -> None:
    """The other process reports a bug, a hang and a half read; here without one, by a reader that has them."""

    class Bad:
        def __init__(self, seconds: float) -> None:
            pass

        def read(self, path: Path) -> tuple[int, list[str]]:
            return 1, []

        def close(self) -> None:
            pass

    original = fuzz_inputs.Reader
    fuzz_inputs.Reader = Bad
    try:
        outcomes = list(fuzz_inputs.fuzz(0, 60, tmp_path))
    finally:
        fuzz_inputs.Reader = original
    half = [(name, damage) for _, name, damage, outcome in outcomes if outcome.kind == "half read"]
    assert half and all(damage == "cut" and name != "a.obj" for name, damage in half)


def test_inputs_follow_from_their_number(fuzz_inputs: ModuleType) -> None:
    data = bytes(range(256)) * 4
    for damage in fuzz_inputs.DAMAGE:
        a, b = (damage(data, np.random.default_rng(7), [data[::-1]]) for _ in range(2))
        assert a == b and a != data

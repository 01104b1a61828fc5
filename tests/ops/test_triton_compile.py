"""The Triton kernels cross-compiled for cards that are not here: they compile, fit the recorded budget, do not spill
where the shipped networks run, and add gradients in packed form. `pytest -m slow` compiles every configuration for
every target, the default a few for each."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
BUDGET = json.loads(Path(__file__).with_name("triton_budget.json").read_text())
TARGETS = ("cuda:80", "cuda:89", "cuda:90", "cuda:120", "hip:gfx942")

# Another version of the compiler places values a little differently.
REGISTER_SLACK = 16
SHARED_SLACK = 4096

# Configurations whose kernels must keep everything in registers: half precision, networks up to 64 wide. In float32
# products go through three TF32 products each, whose operands do not fit; width 128 and six layers do not either. (The
# rays' float64 divisions are calls, with a few bytes of stack each.)
NO_SPILLS = re.compile(
    r"^(field|mlp|encoded|points|trace)-(?!deep)[\w-]*b?float16(?!\S*width128)"
    r"|^(grid|harmonics|march|composite|adam|train|pixels|render|occupancy)"
)


# What one process compiles for the tests below: importing torch and Triton takes longer than most of the kernels.
REPRESENTATIVE = [
    ("cuda:90", "^field-l8f4-float16(-half_gradients)?$", ""),
    ("cuda:80", "^field-l8f4-float16-half_gradients$", "backward|scatter"),
    ("cuda:120", "^field-l16f2-float16$", "backward|scatter"),
    ("cuda:120", "^points-picture-float16$|^pixels-uint8$", ""),
    ("cuda:89", "^mlp-color-bfloat16$|^grid-image$|^trace-distance-float16$", ""),
    ("hip:gfx942", "^grid-l8f4$|^mlp-density-bfloat16$", ""),
]
PLANTED = {
    "scalar_atomics": ("cuda:80", "planted-scalar_atomics-float16", "scatter"),
    "repetition": ("cuda:90", "planted-repetition", "scatter"),
    "spill": ("cuda:80", "planted-spill-float16", "color_backward"),
    "scalar_floats": ("cuda:90", "planted-scalar_floats", "scatter"),
}
SPECIALISED = "^(train|render|march|composite|rays|adam|pixels)"

SCRIPT = """
import json, sys
from tests.ops import triton_kernels as kernels
requests, specialised = json.load(sys.stdin)
answers = {"records": [list(kernels.resources(*request)) for request in requests]}
if specialised:
    answers["page"] = kernels.table_of(kernels.read_budget())
    answers["differences"] = list(kernels.differences("cuda:90", specialised))
    right = kernels.source_of
    def wrong(kernel, arguments):
        source = right(kernel, arguments)
        source.attrs = {}
        return source
    kernels.source_of = wrong
    answers["planted differences"] = list(kernels.differences("cuda:90", specialised))
json.dump(answers, sys.stdout)
"""


def asked(requests: list[tuple[str, str, str]], specialised: str = "") -> dict[str, Any]:
    """What a process in which Triton compiles finds.

    Args:
        requests: Arguments of `tests.ops.triton_kernels.resources`, each answered with a list of records.
        specialised: Configurations whose specialisation is compared with a launch's, "": none.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps([requests, specialised]), capture_output=True, text=True,
        cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """All that the unit suite asks."""
    answers = asked([*REPRESENTATIVE, *PLANTED.values()], SPECIALISED)
    records = answers.pop("records")
    named = dict(zip([*REPRESENTATIVE, *PLANTED], records, strict=True))
    return answers | named


def check_budget(record: dict[str, Any]) -> None:
    """Registers, stack and shared memory are what was recorded."""
    allowed = BUDGET[record["key"]]
    assert record["registers"] <= allowed["registers"] + REGISTER_SLACK, f"{record}: budget {allowed}"
    assert record["stack"] <= allowed["stack"] * 1.25, f"{record}: budget {allowed}"
    assert record["shared"] <= allowed["shared"] + SHARED_SLACK, f"{record}: budget {allowed}"


def check_spills(record: dict[str, Any]) -> None:
    """Nothing that should stay in registers lies in memory."""
    if NO_SPILLS.search(record["key"]):
        assert record["stack"] == 0, f"{record['key']}: {record['stack']} bytes spilled"


def check_atomics(record: dict[str, Any]) -> None:
    """The table's gradient is added in the widest form the card has, never one scalar half at a time."""
    configuration, kernel, target = record["key"].split()
    forms = record.get("atomics", {})
    assert not any(form.endswith((".f16", ".bf16")) for form in forms), f"{record['key']}: scalar halves: {forms}"
    if "scatter" not in kernel or not target.startswith("cuda") or "f1" in configuration.split("-"):
        return
    assert forms, f"{record['key']}: no atomics found"
    if target in ("cuda:90", "cuda:120") or "half_gradients" in configuration:
        scalar = [form for form in forms if not re.search(r"\.v[248]\.|x2$", form)]
        assert not scalar, f"{record['key']}: {scalar} beside {forms}"
    assert record["repeated"] == 0, f"{record['key']}: {record['repeated']} additions are made twice"
    # Before sm_90 no vector form for float32 exists: float16 gradients are the fast choice there.


def check(record: dict[str, Any]) -> None:
    check_spills(record)
    check_atomics(record)
    check_budget(record)


@pytest.mark.parametrize("case", REPRESENTATIVE, ids=[case[0] for case in REPRESENTATIVE])
def test_representative_kernels(found: dict[Any, Any], case: tuple[str, str, str]) -> None:
    assert len(found[case]) >= 3
    for record in found[case]:
        check(record)


def test_kernels_are_compiled_as_a_launch_would_specialise_them(found: dict[Any, Any]) -> None:
    """The records among their arguments above all: Triton takes them apart, and what is None is a constant."""
    assert found["differences"] == []
    assert found["planted differences"], "what differs is not found"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel(target: str) -> None:
    (records,) = asked([(target, "", "")])["records"]
    for record in records:
        check(record)
    assert {r["key"] for r in records} == {key for key in BUDGET if key.endswith(target)}, "budget out of date"


def test_scalar_atomics_are_found(found: dict[Any, Any]) -> None:
    (record,) = found["scalar_atomics"]
    with pytest.raises(AssertionError, match="scalar halves"):
        check_atomics(record | {"key": record["key"].replace("planted-scalar_atomics", "field")})


def test_additions_made_twice_are_found(found: dict[Any, Any]) -> None:
    (record,) = found["repetition"]
    with pytest.raises(AssertionError, match="made twice"):
        check_atomics(record | {"key": record["key"].replace("planted-repetition", "grid-l8f4")})


def test_spills_are_found(found: dict[Any, Any]) -> None:
    (record,) = found["spill"]
    with pytest.raises(AssertionError, match="bytes spilled"):
        check_spills(record | {"key": record["key"].replace("planted-spill", "field-l8f4")})


@pytest.mark.parametrize(("what", "more"), [("registers", REGISTER_SLACK), ("stack", 0), ("shared", SHARED_SLACK)])
def test_growth_is_found(what: str, more: int) -> None:
    key = next(iter(BUDGET))
    within = {"key": key, **BUDGET[key]}
    check_budget(within | {what: BUDGET[key][what] + more})
    with pytest.raises(AssertionError, match="budget"):
        check_budget(within | {what: BUDGET[key][what] + more + 1})


def test_a_kernel_without_a_record_is_found() -> None:
    with pytest.raises(KeyError):
        check_budget({"key": "field-new field._forward cuda:90", "registers": 1, "stack": 0, "shared": 0})


def test_scalar_floats_are_found_where_a_vector_form_exists(found: dict[Any, Any]) -> None:
    (record,) = found["scalar_floats"]
    with pytest.raises(AssertionError, match=r"add\.f32'\] beside"):
        check_atomics(record | {"key": record["key"].replace("planted-scalar_floats", "grid-l8f4")})


def test_every_kernel_is_in_the_matrix() -> None:
    """Whatever the package launches has a record for every target."""
    folder = ROOT / "src" / "hashfield" / "kernels" / "triton_gpu"
    launched = {
        f"{file.stem}.{kernel}"
        for file in folder.glob("*.py")
        for kernel in re.findall(r"\blaunch\(\s*(\w+), [(g]", file.read_text())
    }
    assert len(launched) > 30
    for target in TARGETS:
        recorded = {key.split()[1].partition("#")[0] for key in BUDGET if key.endswith(target)}
        assert launched <= recorded, f"{target}: no configuration launches {sorted(launched - recorded)}"


def test_the_page_shows_what_was_recorded(found: dict[Any, Any]) -> None:
    """docs/gpu_budget.md is the budget: no row of it was forgotten, or written by hand."""
    assert found["page"] == (ROOT / "docs" / "gpu_budget.md").read_text()

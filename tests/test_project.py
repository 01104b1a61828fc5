"""Promises of the project's own files."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import hashfield

ROOT = Path(__file__).parent.parent


def test_the_changelog_is_at_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first and first.group(1) == hashfield.__version__


def test_the_readme_has_exactly_two_set_up_commands():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 -m venv .*$", text, re.M)
    assert len(commands) == 2 and all("-c constraints.txt" in c for c in commands)
    assert commands[0].endswith("hashfield demo") and commands[1].endswith("pytest -n 2")


def test_public_names_resolve():
    for name in hashfield.__all__:
        assert getattr(hashfield, name) is not None


NAMES_A_KIND = re.compile(r"\b(Nerf|Image|Sdf)(Task|Model|Config|TrainConfig)\b|== ?[\"'](nerf|image|sdf)[\"']")


def test_no_task_is_named_outside_tasks_and_cli():
    source = ROOT / "src" / "hashfield"
    for path in source.rglob("*.py"):
        part = path.relative_to(source).parts[0]
        if part in ("tasks", "cli", "api.py", "__init__.py"):
            continue
        assert not NAMES_A_KIND.search(path.read_text()), path


@pytest.mark.parametrize(
    "text", ["NerfTask(", "x: NerfModel", "ImageTask", "SdfConfig", "kind == 'sdf'", 'task=="image"']
)
def test_the_names_of_kinds_are_known(text: str):
    assert NAMES_A_KIND.search(text)


def test_the_page_of_gpu_limits_is_what_its_program_computes():
    name = "gpu_limits"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / f"{name}.md").read_text()
    assert module.with_tables(page) == page
    assert module.with_tables(page.replace("### L8 F4, T", "### L8 F4 T")) == page, "a changed figure is not put right"

"""Run folders: names, refusals, and what opens as a run."""

from pathlib import Path

import pytest

from hashfield.errors import CheckpointError, ConfigError
from hashfield.train.run_folder import RunFolder


def test_default_folders_are_numbered_and_named_after_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = [RunFolder.create(None, "my scene/é:1").path for _ in range(3)]
    assert [p.name for p in found] == [f"my-scene-é-1-{n}" for n in (1, 2, 3)]
    assert all(p.is_dir() and p.parent == Path("runs") for p in found)
    assert RunFolder.create(None, "..").path == Path("runs/run-1")


def test_a_run_is_kept_unless_overwriting_is_allowed(tmp_path: Path):
    run = RunFolder.create(tmp_path / "a", "x")
    assert RunFolder.create(tmp_path / "a", "x").path == run.path  # nothing of a run lies there yet
    run.config_json.write_text("{}")
    with pytest.raises(ConfigError, match="--overwrite"):
        RunFolder.create(tmp_path / "a", "x")
    assert RunFolder.create(tmp_path / "a", "x", overwrite=True).path == run.path


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(tmp_path / "file", "x")
    with pytest.raises(ConfigError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "below", "x")


def test_folder_and_checkpoint_file_open_as_the_same_run(tmp_path: Path):
    run = RunFolder.create(tmp_path / "a", "x")
    with pytest.raises(CheckpointError, match="not a run"):
        RunFolder.open(run.path)
    run.checkpoint.write_bytes(b"x")
    assert RunFolder.open(run.path) == RunFolder.open(run.checkpoint) == run
    with pytest.raises(CheckpointError, match="no such"):
        RunFolder.open(tmp_path / "none")

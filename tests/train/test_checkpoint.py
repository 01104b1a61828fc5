"""Checkpoint files: those of earlier versions are read as if this one had written them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hashfield.tasks.nerf_config import NerfConfig, NerfTrainConfig
from hashfield.tasks.sdf_config import SdfConfig, SdfTrainConfig
from hashfield.train.checkpoint import (
    FORMAT_VERSION,
    config_from_dict,
    config_to_dict,
    export_checkpoint,
    read_metadata,
    save_checkpoint,
)


@pytest.mark.parametrize(
    ("config", "old_name"),
    [
        (NerfConfig(train=NerfTrainConfig(batch=777)), "batch_samples"),
        (SdfConfig(train=SdfTrainConfig(batch=777)), "batch_points"),
    ],
    ids=["nerf", "sdf"],
)
def test_the_batch_of_version_1_is_found_by_its_old_name(config: Any, old_name: str, tmp_path: Path):
    values = config_to_dict(config)
    values["train"] = {{"batch": old_name}.get(name, name): value for name, value in values["train"].items()}
    old = tmp_path / "old.safetensors"
    save_checkpoint(old, {"x": torch.zeros(1)}, {"format_version": 1, "task": "any", "config": values})
    metadata = read_metadata(old)
    assert metadata["format_version"] == 1  # what the file has
    assert config_from_dict(type(config), metadata["config"]) == config
    small = tmp_path / "small.safetensors"
    export_checkpoint(old, small)  # writes today's format
    exported = read_metadata(small)
    assert exported["format_version"] == FORMAT_VERSION
    assert config_from_dict(type(config), exported["config"]) == config


def test_a_configuration_of_this_version_is_left_alone(tmp_path: Path):
    path = tmp_path / "new.safetensors"
    save_checkpoint(path, {"x": torch.zeros(1)}, {"config": {"train": {"batch_samples": 3}}})
    assert read_metadata(path)["config"]["train"] == {"batch_samples": 3}

"""What a run is said to take on a GPU, before it is begun there."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hashfield.geometry.cameras import Camera
from hashfield.geometry.spaces import Spaces
from hashfield.tasks import nerf, nerf_config, sdf, sdf_config

MIB = 2**20
BYTES_PER_PARAMETER = 4 + 4 + 2 * 4 + 2  # value, gradient, two moments, copy in half precision


def scene_of(n_views: int, side: int) -> Any:
    """Square photos around a box of one cascade."""
    camera = Camera(torch.eye(4, dtype=torch.float64)[:3], side, side, side, side, side / 2, side / 2)
    return SimpleNamespace(spaces=Spaces(), splits={"train": SimpleNamespace(cameras=[camera] * n_views, files=None)})


def test_a_radiance_field_is_said_to_take_what_was_measured() -> None:
    """On an H100 lego with the preset `gpu` (100 photos of 800x800) took 0.81 GiB at most: docs/gpu_limits.md."""
    found = nerf.gpu_memory(nerf_config.PRESETS["gpu"], scene_of(100, 800)) / 2**30
    assert found == pytest.approx(0.81, rel=0.15)


def test_photos_table_and_batch_each_add_what_they_hold() -> None:
    config = nerf_config.PRESETS["gpu"]
    base = nerf.gpu_memory(config, scene_of(10, 100))
    assert nerf.gpu_memory(config, scene_of(20, 100)) - base == 10 * 100 * 100 * 4  # RGBA
    larger = replace(config, encoding=replace(config.encoding, log2_hashmap_size=config.encoding.log2_hashmap_size + 1))
    sizes = [c.field_config(1, 0.0).encoding.layout(3).n_parameters for c in (config, larger)]
    grown = nerf.gpu_memory(larger, scene_of(10, 100)) - base
    assert grown == (sizes[1] - sizes[0]) * BYTES_PER_PARAMETER > MIB
    halved = replace(config, train=replace(config.train, batch=config.train.batch // 2))
    assert base - nerf.gpu_memory(halved, scene_of(10, 100)) > 100 * halved.train.batch


def test_a_distance_keeps_table_network_pool_and_a_batch() -> None:
    config = sdf_config.PRESETS["default"]
    encoding = config.encoding.reaching(config.finest_resolution)
    inputs, width = encoding.n_output(3), config.n_neurons
    n_weights = width * (inputs + (config.n_hidden_layers - 1) * width + 1)
    parameters = (encoding.layout(3).n_parameters + n_weights) * BYTES_PER_PARAMETER
    train = config.train
    pool = train.n_chunks * train.batch * 4 * 4  # x, y, z and distance in float32
    found = sdf.gpu_memory(config)
    # The rest is a batch: features and their gradients in half precision, position, target, random bits.
    assert 0 < found - parameters - pool < 2 * train.batch * (2 * 2 * inputs + 4 * 4 + 8)
    more = replace(config, train=replace(train, n_chunks=train.n_chunks + 3))
    assert sdf.gpu_memory(more) - found == 3 * train.batch * 16
    assert found > MIB

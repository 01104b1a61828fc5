"""Small scenes and settings for tests that train."""

from dataclasses import replace
from functools import cache

from hashfield.data.dataset import Scene
from hashfield.data.demo_scene import make_demo_scene
from hashfield.nn.config import GridConfig
from hashfield.tasks.nerf_config import NerfConfig, NerfTrainConfig


@cache
def small_scene() -> Scene:
    """The demo scene at 64x64 with 16 training and 2 test views."""
    return make_demo_scene(size=64, n_train=16, n_test=2)[0]


def tiny_config(**changes: object) -> NerfConfig:
    """A model that trains in seconds."""
    config = NerfConfig(
        encoding=GridConfig(n_levels=8, n_features_per_level=4, log2_hashmap_size=13),
        finest_resolution=256,
        n_neurons=64,
        train=NerfTrainConfig(batch=4096, step_scales=(8.0, 4.0), step_until=(0.2, 1.0)),
    )
    # To ask half a million cells, as usual, would take several times as long as the steps in between.
    occupancy = replace(config.occupancy, carve_margin_px=1, pixel_margin_px=3, max_cells=2**16)
    config = replace(config, occupancy=occupancy)
    return replace(config, **changes)  # type: ignore[arg-type]

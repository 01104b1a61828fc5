"""A small radiance field that several files look at, trained once."""

import pytest

from hashfield.tasks.nerf import NerfTask
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder

from .scenes import small_scene, tiny_config


@pytest.fixture(scope="session")
def trained_nerf(tmp_path_factory: pytest.TempPathFactory) -> tuple[NerfTask, RunFolder]:
    """250 steps on the small scene."""
    task = NerfTask(tiny_config(), small_scene(), seed=1)
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "a", "demo", overwrite=False)
    result = train(task, run, TrainOptions(n_steps=250))
    assert result.stopped_by == "done" and result.step == 250
    return task, run

"""A radiance field trained by the GPU's kernels: in Triton's interpreter at toy size, or on a card."""

from dataclasses import replace

import pytest
import torch

from hashfield.data.demo_scene import make_demo_scene
from hashfield.ops.backend import Backend, use_backend
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import NerfConfig
from hashfield.tasks.nerf_model import load_model
from hashfield.train.checkpoint import load_checkpoint
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder
from tests.conftest import backend_params
from tests.tasks.scenes import tiny_config

# Numpy, which the interpreter computes with, warns of infinities that kernels meet and handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
on_triton = pytest.mark.parametrize("backend", backend_params("train_rays", ("triton",)))


def toy() -> NerfConfig:
    """A field small enough for an interpreter."""
    config = tiny_config(n_neurons=16, precision="float32")
    encoding = replace(config.encoding, n_levels=4, n_features_per_level=2, log2_hashmap_size=10)
    scales = {"step_scales": (32.0,), "step_until": (1.0,)}
    # Uncarved, so that no refresh asks every living cell, of which there are hundreds of thousands.
    occupancy = replace(config.occupancy, use_alpha=False, full_sweeps=0, max_cells=256)
    train = replace(config.train, batch=256, **scales)
    return replace(config, encoding=encoding, train=train, occupancy=occupancy)


@on_triton
def test_trains_saves_and_goes_on_elsewhere(backend: Backend, tmp_path) -> None:
    """A few steps bring the loss down without one that waits; the checkpoint serves the CPU's kernels, and back."""
    scene = make_demo_scene(size=16, n_train=2, n_test=1)[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = RunFolder.create(tmp_path / "run", "demo")
    with use_backend(backend):
        task = NerfTask(toy(), scene, seed=1, device=device)
        assert task.steps.is_captured
        result = train(task, run, TrainOptions(n_steps=4))
        assert result.stopped_by == "done" and result.step == 4
        assert result.n_rays >= 4 * 16 and result.n_samples > 4 * 16
        assert task.steps.n_refreshes >= 1 and task.steps.optimizer.n_steps == 4
        assert int(task.steps.n_rays) >= 16
        camera = scene.splits["test"].cameras[0]
        shown = task.model().render(camera, ("color", "opacity"))
        tensors, metadata = load_checkpoint(run.checkpoint)
        for name, parameter in task.field.named_parameters():
            assert torch.equal(tensors[f"field.{name}"], parameter.detach().cpu()), name
        again = NerfTask(toy(), scene, seed=1, device=device)
        again.restore(tensors, metadata["state"])
        for one in (task, again):  # the same random numbers, the same step
            one.step(4, 1.0)
        assert int(again.steps.n_rays) == int(task.steps.n_rays)
        for mine, theirs in zip(task.field.parameters(), again.field.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    host = load_model(run.checkpoint).render(camera, ("color", "opacity"))
    for name, picture in shown.items():
        assert abs(host[name] - picture).max() < 2e-3, name
    other = NerfTask(toy(), scene, seed=1)
    other.restore(tensors, metadata["state"])
    assert not other.steps.is_captured
    loss = other.step(4, 1.0).loss
    assert isinstance(loss, float) and loss < 1.0


@on_triton
def test_gradients_of_levels_that_wait_go_along(backend: Backend) -> None:
    """After one step of levels that are updated every second: to the device again, and to the host."""
    scene = make_demo_scene(size=16, n_train=2, n_test=1)[0]
    config = replace(toy(), train=replace(toy().train, touches_per_update=100.0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with use_backend(backend):
        task, again = (NerfTask(config, scene, seed=1, device=device) for _ in range(2))
        task.warm_up()
        task.begin()
        before = {name: tensor.clone() for name, tensor in task.field.named_parameters()}
        task.step(0, 0.0)
        assert torch.equal(task.field.encoding.table, before["encoding.table"]), "its turn has not come"
        tensors, values = task.state()
        assert tensors["optimizer.gradient"].any()
        again.restore(tensors, values)
        torch.testing.assert_close(again.state()[0]["optimizer.gradient"], tensors["optimizer.gradient"])
        for one in (task, again):
            one.step(1, 0.5)
        for mine, theirs in zip(task.field.parameters(), again.field.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        assert not torch.equal(task.field.encoding.table, before["encoding.table"])
        assert "optimizer.gradient" not in task.state()[0]
    host = NerfTask(config, scene, seed=1)
    host.restore(tensors, values)
    assert torch.equal(host.steps.workspace.grad_table, tensors["optimizer.gradient"])

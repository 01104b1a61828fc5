"""Pictures and signed distances trained by the GPU's kernels: in Triton's interpreter at toy size, or on a card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hashfield.data.demo_picture import make_demo_picture
from hashfield.data.pictures import Picture, read_picture
from hashfield.nn.config import EncodingConfig, GridConfig
from hashfield.ops.backend import Backend, use_backend
from hashfield.steps.points_host import HostPointSteps
from hashfield.tasks import image_model
from hashfield.tasks.image import ImageTask
from hashfield.tasks.image_config import ImageConfig, ImageTrainConfig
from hashfield.tasks.image_model import compare
from hashfield.train.checkpoint import load_checkpoint
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder
from tests.conftest import backend_params

# Numpy, which the interpreter computes with, warns of infinities that kernels meet and handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
on_triton = pytest.mark.parametrize("backend", backend_params("train_points", ("triton",)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ENCODING = GridConfig(n_levels=3, n_features_per_level=2, log2_hashmap_size=9)


def toy_picture(folder: Path) -> Picture:
    """24x16 pixels with alpha."""
    pixels = np.dstack([make_demo_picture(0, 24, 16), np.full((16, 24), 255, np.uint8)])
    pixels[4:9, 5:11, 3] = 128
    Image.fromarray(pixels).save(folder / "toy.png")
    return read_picture(folder / "toy.png")


def toy_image_config(**changes: Any) -> ImageConfig:
    """A model small enough for an interpreter, trained the same way everywhere."""
    config = ImageConfig(
        encoding=ENCODING,
        n_neurons=16,
        precision="float32",
        train=ImageTrainConfig(batch=256, touches_per_update=3.0, learning_rate=0.08),
    )
    return replace(config, **changes)


@on_triton
def test_picture_is_learned_as_on_the_host(backend: Backend, tmp_path: Path) -> None:
    """Given the same batches, drawn on the host, steps have the losses of Numba's; levels take turns as there."""
    picture, n_steps, config = toy_picture(tmp_path), 6, toy_image_config()
    host = ImageTask(config, picture, seed=1)
    assert [interval for _, interval in host.steps.recipe.parts or ()] == [1, 2, 2]
    right = [float(host.step(k, k / n_steps).loss) for k in range(n_steps)]
    with use_backend(backend):
        task = ImageTask(config, picture, seed=1, device=DEVICE, is_picture_on_device=False)
        assert task.steps.is_captured and not task.steps.draws_there
        task.warm_up()
        found = [task.step(k, k / n_steps) for k in range(n_steps)]
        psnr = compare(task.model(), picture)["psnr"]
    assert [float(step.loss) for step in found] == pytest.approx(right, rel=2e-3)
    assert [float(step.squared_error) for step in found] == pytest.approx(right, rel=2e-3)  # the loss is l2
    assert {int(step.n_samples) for step in found} == {host.steps.recipe.n_points}
    assert right[-1] < 0.6 * right[0]
    assert psnr == pytest.approx(compare(host.model(), picture)["psnr"], abs=0.05)


@on_triton
def test_picture_trains_saves_and_goes_on_elsewhere(backend: Backend, tmp_path: Path) -> None:
    """Pixels drawn on the device bring the loss down without a step that waits; the checkpoint serves the CPU's
    kernels, and theirs the GPU's."""
    picture, run = toy_picture(tmp_path), RunFolder.create(tmp_path / "run", "toy")
    config, n_steps = toy_image_config(precision="float16"), 7
    with use_backend(backend):
        task = ImageTask(config, picture, seed=1, device=DEVICE)
        assert task.steps.is_captured and task.steps.draws_there
        result = train(task, run, TrainOptions(n_steps=n_steps))
        assert result.stopped_by == "done" and result.n_samples == n_steps * task.steps.recipe.n_points
        tensors, metadata = load_checkpoint(run.checkpoint)
        for name, parameter in task.field.named_parameters():
            assert torch.equal(tensors[f"field.{name}"], parameter.detach().cpu()), name
        shown = task.model().render()
        again = ImageTask(config, picture, seed=1, device=DEVICE)
        again.restore(tensors, metadata["state"])
        for one in (task, again):  # the same random numbers, the same step
            one.step(n_steps, 1.0)
        for mine, theirs in zip(task.field.parameters(), again.field.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert abs(image_model.load_model(run.checkpoint).render() - shown).max() < 1e-2
    host = ImageTask(toy_image_config(), picture, seed=1)
    losses = [float(host.step(k, k / n_steps).loss) for k in range(n_steps)]
    assert result.history[-1]["loss"] < 0.9 * losses[0]
    assert compare(image_model.load_model(run.checkpoint), picture)["psnr"] == pytest.approx(
        compare(host.model(), picture)["psnr"],
        abs=1.0,  # other pixels, as many
    )
    host.restore(tensors, metadata["state"])
    assert isinstance(host.steps, HostPointSteps)
    assert float(host.step(n_steps, 1.0).loss) < 0.9 * losses[0]
    # Levels that wait for their update leave a gradient, which goes along.
    assert bool(host.steps.workspace.grad_table.any()) == (host.steps.optimizer.n_steps % 2 == 1)
    host.step(n_steps + 1, 1.0)
    tensors, values = host.state()
    with use_backend(backend):
        again.restore(tensors, values)
        pending = again.state()[0]["optimizer.gradient"]
        assert bool(pending.any())
        torch.testing.assert_close(pending, host.steps.workspace.grad_table)
        assert float(again.step(n_steps + 2, 1.0).loss) < 0.9 * losses[0]


@on_triton
def test_distance_is_learned_as_on_the_host(backend: Backend, tmp_path: Path) -> None:
    """The same points in the same steps: the losses of Numba's, and a checkpoint that goes on there, and back."""
    pytest.importorskip("trimesh")
    pytest.importorskip("igl")
    from hashfield.data.meshes import make_mesh
    from hashfield.tasks.sdf import SdfTask
    from hashfield.tasks.sdf_config import PRESETS
    from hashfield.tasks.sdf_model import load_model
    from tests.data.mesh_cases import torus

    base, n_steps, mesh = PRESETS["fast"], 4, make_mesh(*torus(16), "torus", Path("torus.obj"))
    config = replace(
        base, encoding=EncodingConfig(n_levels=3, n_features_per_level=2, log2_hashmap_size=9), finest_resolution=32,
        n_neurons=16, n_hidden_layers=1,
        train=replace(base.train, batch=256, steps_per_chunk=2, n_chunks=2, learning_rate=0.02),
    )  # fmt: skip
    host = SdfTask(config, mesh, seed=1)
    right = [float(host.step(k, k / n_steps).loss) for k in range(n_steps)]
    run, points = RunFolder.create(tmp_path / "run", "torus"), torch.rand(100, 3) * 2 - 1
    with use_backend(backend):
        task = SdfTask(config, mesh, seed=1, device=DEVICE)
        assert task.steps.is_captured
        result = train(task, run, TrainOptions(n_steps=n_steps))
        assert result.stopped_by == "done" and result.n_samples == n_steps * 256
        found = task.model().distance(points.to(DEVICE)).cpu()
    if len(result.history) == 1:  # all steps in one report
        assert result.history[0]["loss"] == pytest.approx(np.mean(right), rel=2e-3)
    torch.testing.assert_close(found, host.model().distance(points), rtol=1e-3, atol=1e-4)
    tensors, metadata = load_checkpoint(run.checkpoint)
    other = SdfTask(config, mesh, seed=1)
    assert float((found - other.model().distance(points)).abs().mean()) > 2e-3  # it moved, twenty times as far
    other.restore(tensors, metadata["state"])
    torch.testing.assert_close(load_model(run.checkpoint).distance(points), other.model().distance(points))
    torch.testing.assert_close(other.model().distance(points), found, rtol=1e-3, atol=1e-4)
    next_loss = float(other.step(n_steps, 1.0).loss)
    assert float(host.step(n_steps, 1.0).loss) == pytest.approx(next_loss, rel=2e-3)
    tensors, values = other.state()
    next_loss = float(other.step(n_steps + 1, 1.0).loss)
    with use_backend(backend):
        task.restore(tensors, values)
        assert float(task.step(n_steps + 1, 1.0).loss) == pytest.approx(next_loss, rel=2e-3)

"""The image task end to end on small pictures: it learns, resumes exactly, stands alone, and refuses what is broken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hashfield
from hashfield.data.demo_picture import make_demo_picture
from hashfield.data.pictures import Picture, read_picture
from hashfield.errors import CheckpointError, ConfigError
from hashfield.export.images import ExrWriter
from hashfield.nn.config import GridConfig
from hashfield.tasks.image import ImageTask, lattice_for
from hashfield.tasks.image_config import PRESETS, ImageConfig, ImageTrainConfig
from hashfield.tasks.image_model import compare, load_model, to_linear
from hashfield.train.checkpoint import export_checkpoint, exported_size, load_checkpoint, save_checkpoint
from hashfield.train.loop import TrainOptions, train
from hashfield.train.run_folder import RunFolder


def quick(**changes: Any) -> ImageConfig:
    """A model that trains in seconds."""
    config = ImageConfig(
        encoding=GridConfig(n_levels=8, n_features_per_level=2, log2_hashmap_size=14),
        n_neurons=32,
        train=ImageTrainConfig(batch=4096),
    )
    return replace(config, **changes)


def demo(folder: Path, width: int = 96, height: int = 64) -> Picture:
    """A small picture, read from a file."""
    Image.fromarray(make_demo_picture(0, width, height)).save(folder / "demo.png")
    return read_picture(folder / "demo.png")


def trained(picture: Picture, run: RunFolder, n_steps: int = 200, **changes: Any) -> ImageTask:
    """A task after its run."""
    task = ImageTask(quick(**changes), picture, seed=1)
    assert train(task, run, TrainOptions(n_steps=n_steps)).stopped_by == "done"
    return task


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageTask, RunFolder]:
    """200 steps on the demo picture."""
    folder = tmp_path_factory.mktemp("image")
    run = RunFolder.create(folder / "run", "demo")
    return trained(demo(folder), run), run


def test_learns_the_picture(example: tuple[ImageTask, RunFolder]) -> None:
    task, _ = example
    picture, model = task.picture, task.model()
    figures = compare(model, picture)
    wanted = picture.region(0, 0, picture.width, picture.height)
    constant = -10 * np.log10(np.square(wanted - wanted.mean((0, 1))).mean())
    assert figures["psnr"] > constant + 9
    # the figure is what anyone would compute from the rendering
    seen = np.clip(model.render(), 0, 1)
    assert figures["psnr"] == pytest.approx(-10 * np.log10(np.square(seen - wanted).mean()), abs=1e-3)
    # and does not depend on how the picture is cut
    assert compare(model, picture, points_at_once=1000)["psnr"] == pytest.approx(figures["psnr"], abs=1e-6)


@pytest.mark.parametrize("kind", ["grey", "rgba", "wide", "hdr"])
def test_learns_every_kind_of_picture(kind: str, tmp_path: Path) -> None:
    pixels = make_demo_picture(0, 96, 64)
    if kind == "grey":
        Image.fromarray(pixels[..., 0].copy()).save(tmp_path / "a.png")
    elif kind == "rgba":
        alpha = np.broadcast_to(np.linspace(0, 255, 96).astype(np.uint8), (64, 96))[..., None]
        Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / "a.png")
    elif kind == "wide":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    else:
        with ExrWriter(tmp_path / "a.exr", 96, 64, 3) as writer:
            writer.add(np.exp(pixels / 64.0).astype(np.float32))  # up to 54
    picture = read_picture(next(tmp_path.glob("a.*")))
    assert picture.n_channels == {"grey": 1, "rgba": 4, "wide": 1, "hdr": 3}[kind]
    task = trained(picture, RunFolder.create(tmp_path / "run", "a"), 200)
    figures = compare(task.model(), picture)
    wanted = picture.region(0, 0, 96, 64)
    constant = -10 * np.log10(np.square(wanted - wanted.mean((0, 1))).mean())
    assert figures["psnr"] > constant + 7
    assert ("psnr_clipped" in figures) == (kind == "hdr")
    if kind == "hdr":
        assert figures["peak"] > 4 and figures["psnr_of_peak"] > figures["psnr"]
        linear = to_linear(task.model().render(), False)
        right = np.exp(pixels / 64.0)
        assert np.median(np.abs(linear - right) / right) < 0.2


def same(a: Path, b: Path) -> None:
    """Two checkpoints hold the same bits and the same state."""
    tensors, meta = load_checkpoint(a)
    others, other = load_checkpoint(b)
    assert set(tensors) == set(others) and all(torch.equal(v, others[k]) for k, v in tensors.items())
    assert meta["state"] == other["state"]


@pytest.mark.parametrize("touches", [0.0, 8.0])
def test_a_run_resumed_in_the_middle_equals_the_unbroken_one_bit_for_bit(touches: float, tmp_path: Path) -> None:
    picture = demo(tmp_path)
    config = quick(train=ImageTrainConfig(batch=2048, touches_per_update=touches))
    whole, parts = (RunFolder.create(tmp_path / name, "x") for name in ("whole", "parts"))
    train(ImageTask(config, picture, seed=5), whole, TrainOptions(n_steps=30))
    first = train(ImageTask(config, picture, seed=5), parts, TrainOptions(n_steps=30, stop_after=13))
    assert first.stopped_by == "interrupted" and first.step == 13
    resumed = ImageTask(config, picture, seed=5)
    assert (max(interval for _, interval in resumed.steps.recipe.parts) > 1) == (touches > 0)
    second = train(resumed, parts, TrainOptions(n_steps=30), resume=True)
    assert second.step == 30
    same(whole.checkpoint, parts.checkpoint)
    other = RunFolder.create(tmp_path / "other", "x")
    train(ImageTask(config, picture, seed=6), other, TrainOptions(n_steps=30))
    assert not torch.equal(
        load_checkpoint(other.checkpoint)[0]["field.encoding.table"],
        load_checkpoint(whole.checkpoint)[0]["field.encoding.table"],
    )


def test_a_model_stands_alone(example: tuple[ImageTask, RunFolder], tmp_path: Path) -> None:
    task, run = example
    model = hashfield.load(run.path)
    assert np.array_equal(model.render(), task.model().render())
    size = export_checkpoint(run.checkpoint, tmp_path / "small.safetensors")
    assert exported_size(run.checkpoint) == size == exported_size(tmp_path / "small.safetensors")
    small = hashfield.load(tmp_path / "small.safetensors")
    assert np.abs(small.render() - model.render()).max() < 0.02
    assert small.info["scene"]["name"] == "demo"


def test_rendering_at_any_size_and_of_any_part(example: tuple[ImageTask, RunFolder]) -> None:
    model = example[0].model()
    whole = model.render()
    assert whole.shape == (64, 96, 3)
    assert np.allclose(model.render((10, 20, 30, 40)), whole[20:60, 10:40], atol=1e-6)
    # strips change nothing
    assert np.array_equal(np.concatenate(list(model.strips(points_at_once=500))), whole)
    # half the size: the mean over two by two pixels, asked at their centres
    halved = whole.reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.allclose(model.render(width=48), halved, atol=1e-5)
    # larger: between the pixels, agreeing with forward
    large = model.render((0, 0, 8, 4), width=80)
    assert large.shape == (40, 80, 3)
    place = torch.tensor([[(79 + 0.5) / 10 / 96, (39 + 0.5) / 10 / 64]], dtype=torch.float64)
    assert np.allclose(large[39, 79], model(place)[0].numpy(), atol=1e-6)
    assert model.render(width=7, height=9).shape == (9, 7, 3)
    for crop in ((0, 0, 97, 10), (-1, 0, 5, 5), (0, 0, 0, 5)):
        with pytest.raises(ConfigError, match="crop"):
            model.render(crop)
    with pytest.raises(ConfigError, match="width"):
        model.render(width=0)


def test_sizes_follow_the_picture() -> None:
    config = PRESETS["default"]
    small, large, huge = config.fitted(300, 200), config.fitted(3712, 2700), config.fitted(32768, 32768)
    assert (small.finest_resolution, large.finest_resolution, huge.finest_resolution) == (300, 3712, 32768)
    for fitted, pixels in ((small, 300 * 200), (large, 3712 * 2700), (huge, 2**30)):
        layout = fitted.grid().layout(2)
        assert layout.n_parameters <= min(
            config.max_numbers, max(config.least_numbers, config.numbers_per_pixel * pixels)
        )
        # dense wherever a level's vertices fit T
        fits = layout.resolutions.astype(np.int64) ** 2 <= 2**layout.log2_hashmap_size
        assert np.array_equal(layout.is_hashed, ~fits)
    assert huge.grid().layout(2).is_hashed.any()
    tiny = PRESETS["small"].fitted(300, 200)
    assert tiny.finest_resolution == 75 and tiny.grid().layout(2).n_parameters <= 0.5 * 300 * 200
    # what is fitted stays so
    assert large.fitted(3712, 2700) == large
    for width, height in ((512, 512), (4000, 3), (1, 9000), (3712, 2700)):
        columns, rows = lattice_for(2**14, width, height)
        assert 0.4 * 2**14 <= columns * rows <= 2**14


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_neurons": 20}, "n_neurons"),
        ({"n_hidden_layers": 0}, "n_hidden_layers"),
        ({"finest_resolution": 3}, "finest_resolution"),
        ({"precision": "half"}, "precision"),
        ({"numbers_per_pixel": 0.0}, "numbers_per_pixel"),
        ({"max_numbers": 10}, "max_numbers"),
        ({"finest_per_pixel": 0.0}, "finest_per_pixel"),
        ({"least_resolution": 0}, "least_resolution"),
        ({"encoding": GridConfig(per_level_scale=1.5)}, "per_level_scale"),
        ({"encoding": GridConfig(interpolation="nearest")}, "interpolation"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(ImageConfig(), **change)
    with pytest.raises(ConfigError, match="batch"):
        ImageTrainConfig(batch=3)
    with pytest.raises(ConfigError, match="loss"):
        ImageTrainConfig(loss="l3")  # type: ignore[arg-type]


def test_broken_checkpoints_are_refused(example: tuple[ImageTask, RunFolder], tmp_path: Path) -> None:
    tensors, metadata = load_checkpoint(example[1].checkpoint)
    table = "field.encoding.table"

    def saved(change_meta: dict[str, Any], change_tensors: dict[str, Any]) -> Path:
        mine = {k: v for k, v in {**tensors, **change_tensors}.items() if v is not None}
        save_checkpoint(tmp_path / "c.safetensors", mine, {**metadata, **change_meta})
        return tmp_path / "c.safetensors"

    for meta, tensor, words in (
        ({"task": "video"}, {}, "task"),
        ({"image": {"width": 0, "height": 5, "n_channels": 3, "is_hdr": False}}, {}, "image"),
        ({"image": {"width": 9}}, {}, "image"),
        ({"config": {**metadata["config"], "finest_resolution": None}}, {}, "finest_resolution"),
        ({"config": {**metadata["config"], "n_neurons": 48}}, {}, "weights"),
        ({}, {table: None}, "is missing"),
        ({}, {table: torch.full_like(tensors[table], torch.nan)}, "not finite"),
        ({}, {table: tensors[table][:-8]}, "expected shape"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_model(saved(meta, tensor))
    with pytest.raises(ConfigError, match="seed"):
        ImageTask(quick(), example[0].picture, seed=-1)
    with pytest.raises(ConfigError, match="the model is of"):
        compare(example[0].model(), demo(tmp_path, 50, 40))

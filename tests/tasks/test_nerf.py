"""The radiance-field task end to end on a small scene: it learns, stands alone, and refuses what is broken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hashfield
from hashfield.errors import CheckpointError, ConfigError
from hashfield.export.images import over
from hashfield.kernels.reference.occupancy_update import cell_points
from hashfield.nn.config import EncodingConfig
from hashfield.ops.training_rays import training_rays
from hashfield.tasks.evaluate import evaluate_views
from hashfield.tasks.nerf import NerfTask
from hashfield.tasks.nerf_config import PRESETS, NerfConfig, NerfTrainConfig, preset_for
from hashfield.tasks.nerf_model import NerfModel, load_model
from hashfield.tasks.shared import parse_background
from hashfield.train.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from hashfield.train.loop import TrainOptions, train
from hashfield.train.metrics import psnr
from hashfield.train.run_folder import RunFolder

from .scenes import small_scene, tiny_config


@pytest.fixture(scope="module")
def trained(trained_nerf: tuple[NerfTask, RunFolder]) -> tuple[NerfTask, RunFolder]:
    return trained_nerf


def blurred_baseline(views) -> float:
    """PSNR of each view's mean colour: what a model that learnt nothing could reach."""
    found = []
    for image in views.images:
        photo = over(image, (1.0, 1.0, 1.0))
        found.append(psnr(np.broadcast_to(photo.mean((0, 1)), photo.shape).copy(), photo))
    return float(np.mean(found))


def test_learns_views_it_has_not_seen(trained):
    task, _ = trained
    views = small_scene().splits["test"]
    figures = evaluate_views(task.model(), views)
    assert figures["psnr"] > 20.0
    assert figures["psnr"] > blurred_baseline(views) + 5.0
    assert 0.5 < figures["ssim"] <= 1.0
    assert {"background", "color", "views", "n_views"} <= set(figures)


def test_without_alpha_nothing_is_near_cameras_or_seen_by_few():
    """Such cells are dead from the start; silhouettes carve as if there were no such rule."""

    def dead(use_alpha: bool, **rules: float) -> torch.Tensor:
        config = tiny_config()
        occupancy = replace(config.occupancy, use_alpha=use_alpha, **rules)  # type: ignore[arg-type]
        scene = small_scene()
        wide = replace(scene, spaces=replace(scene.spaces, aabb_scale=4))
        task = NerfTask(replace(config, occupancy=occupancy), wide)
        task.begin()
        assert task.steps.grid is not None
        return task.steps.grid.values < 0

    spaces, views = small_scene().spaces, small_scene().splits["train"]
    eyes = torch.stack([spaces.world_to_scene(camera.position) for camera in views.cameras])

    def farthest(cells: torch.Tensor) -> float:
        """The largest distance of a cell to its nearest camera, in distances to the point that cameras look at."""
        points = cell_points(cells, torch.full((len(cells), 3), 0.5, dtype=torch.float64))
        # The demo's cameras all look at the middle of the box, from nearly the same distance.
        return float((points[:, None] - eyes).norm(dim=2).amin(1).max() / (eyes - 0.5).norm(dim=1).median())

    seen, often, near = (dead(False, fewest_views=n, nearest=r) for n, r in ((1, 0.0), (4, 0.0), (1, 0.25)))
    for more, reach in ((often, 1.0), (near, 0.25)):
        cells = torch.nonzero(more & ~seen)[:, 0]
        assert len(cells) and not bool((seen & ~more).any()) and 0.9 * reach < farthest(cells) < 1.05 * reach
    assert torch.equal(dead(True), dead(True, fewest_views=1, nearest=0.0))


def test_learns_without_alpha():
    config = tiny_config()
    config = replace(config, occupancy=replace(config.occupancy, use_alpha=False))
    task = NerfTask(config, small_scene(), seed=1)
    assert not task.is_carved and task.density_bias == 2.0
    task.warm_up()
    task.begin()
    for step in range(200):
        task.step(step, step / 200)
    views = small_scene().splits["test"]
    assert evaluate_views(task.model(), views)["psnr"] > blurred_baseline(views) + 4.0


def test_model_stands_alone_and_export_is_small_and_close(trained, tmp_path: Path):
    task, run = trained
    camera = small_scene().splits["test"].cameras[0]
    outputs = ("color", "opacity", "depth", "normals")
    live = task.model().render(camera, outputs)
    loaded = hashfield.load(run.path)
    assert isinstance(loaded, NerfModel) and set(loaded.cameras) == {"train", "test"}
    saved = loaded.render(camera, outputs)
    for name in outputs:
        assert np.array_equal(live[name], saved[name]), name
    size = export_checkpoint(run.checkpoint, tmp_path / "small.safetensors")
    assert size < 0.5 * run.checkpoint.stat().st_size
    small = hashfield.load(tmp_path / "small.safetensors")
    # Exactly, since two models that differ a little may choose other pixels to interpolate.
    small.quality = loaded.quality = "exact"
    exact, close = (model.render(camera, ("color",))["color"] for model in (loaded, small))
    assert np.abs(close - exact).max() < 0.05
    with pytest.raises(CheckpointError, match="exported checkpoint holds no training state"):
        train(task, _folder_with(tmp_path, tmp_path / "small.safetensors"), TrainOptions(n_steps=5), resume=True)


def _folder_with(tmp_path: Path, checkpoint: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "exported", "demo", overwrite=False)
    run.checkpoint.write_bytes(checkpoint.read_bytes())
    return run


def test_depth_is_that_of_the_scene_in_world_units(trained):
    from hashfield.data.demo_scene import make_demo_scene

    task, _ = trained
    scene, depths = make_demo_scene(size=64, n_train=16, n_test=2)
    camera = scene.splits["test"].cameras[0]
    found = task.model().render(camera, ("depth", "opacity"))
    truth = depths["test"][0]
    both = (truth > 0) & (found["opacity"] > 0.95)
    assert both.mean() > 0.2
    assert np.median(np.abs(found["depth"][both] - truth[both])) < 0.08  # the cameras are about 4 away


def test_normals_face_the_camera(trained):
    task, _ = trained
    camera = small_scene().splits["test"].cameras[0]
    found = task.model().render(camera, ("normals", "opacity", "depth"))
    hit = found["opacity"] > 0.95
    normal = found["normals"][hit]
    assert np.allclose(np.linalg.norm(normal, axis=1), 1.0, atol=1e-4)
    forward = camera.forward.numpy()
    assert np.mean(normal @ forward < 0) > 0.7  # few steps: the surface is still rough


def test_field_in_world_coordinates(trained):
    task, _ = trained
    model = task.model()
    center = model.spaces.box_center_world.float()
    positions = torch.stack([center, center + 100.0])
    density = model.density(positions)
    assert density.shape == (2,) and density[1] == 0.0
    color, same = model(positions, torch.tensor([[0.0, 0.0, 1.0]] * 2))
    assert color.shape == (2, 3) and torch.allclose(same, density, rtol=1e-4)
    batch = model.density(torch.zeros(2, 5, 3))
    assert batch.shape == (2, 5)
    assert model.density(torch.zeros(0, 3)).shape == (0,)


def test_render_background_and_unknown_output(trained):
    model = trained[0].model()
    camera = small_scene().splits["test"].cameras[0].resized(16, 16)
    bare = model.render(camera, ("color", "opacity"))
    white = model.render(camera, ("color",), (1.0, 1.0, 1.0))["color"]
    assert np.allclose(white, bare["color"] + (1 - bare["opacity"])[..., None], atol=1e-6)
    with pytest.raises(ConfigError, match="outputs"):
        model.render(camera, ("colour",))


def test_same_seed_same_bits():
    def run() -> tuple[list[float], torch.Tensor]:
        task = NerfTask(tiny_config(), small_scene(), seed=3)
        task.begin()
        losses = [task.step(k, k / 20).loss for k in range(20)]
        return losses, task.field.encoding.table.detach().clone()

    (losses_a, table_a), (losses_b, table_b) = run(), run()
    assert losses_a == losses_b
    assert torch.equal(table_a, table_b)


def test_carving_needs_silhouettes_that_agree():
    scene = small_scene()
    views = scene.splits["train"]
    empty = tuple(np.zeros_like(image) for image in views.images)
    wrong = replace(scene, splits={"train": replace(views, images=empty)}, has_alpha=True)
    task = NerfTask(tiny_config(), wrong)
    with pytest.raises(ConfigError, match="nothing to train"):
        task.begin()


def test_rays_stay_inside_the_hull(trained):
    task, _ = trained
    pool, box = task.steps.pool, task.steps.box
    chosen = torch.from_numpy(np.random.default_rng(0).integers(0, pool.n_pool, 512))
    batch = training_rays(chosen, pool, box, jitter=torch.zeros(512), background=torch.zeros(512, 3))
    hit = batch.rays.t_max > batch.rays.t_min
    point = batch.rays.origin + (0.5 * (batch.rays.t_min + batch.rays.t_max))[:, None] * batch.rays.direction
    low, high = box[:3].float() - 1e-4, box[3:].float() + 1e-4
    assert bool(((point[hit] >= low) & (point[hit] <= high)).all())


@pytest.mark.parametrize(
    ("text", "message"),
    [("grey", "background"), ("#12345", "background"), ("#gggggg", "background"), ("", "background")],
)
def test_background_text(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_background(text)


def test_background_values():
    assert parse_background("white") == (1.0, 1.0, 1.0)
    assert parse_background("#ff0080") == (1.0, 0.0, 128 / 255)


def test_presets():
    on_gpu = {"gpu-fast", "gpu", "gpu-quality"}
    assert set(PRESETS) == {"fast", "default", "quality", "paper", "hashnerf"} | on_gpu
    assert all(PRESETS[name].trains_on_device and PRESETS[name].preset == name for name in on_gpu)
    assert not PRESETS["hashnerf"].trains_on_device
    assert [preset_for(s, None, on_gpu=True) for s in (1.0, 15.0, 60.0)] == ["gpu-fast", "gpu", "gpu-quality"]
    paper = PRESETS["paper"]
    layout = paper.field_config(1, 0.0).encoding.layout(3)
    assert layout.n_parameters == 12_196_240  # the paper's encoding, algorithm of tiny-cuda-nn
    assert paper.train.huber_delta == 0.1
    # What is compared with other programs has none of our losses on depth, whatever the data.
    for train_config in (PRESETS[name].train for name in ("paper", "hashnerf")):
        assert train_config.distortion == train_config.nearness == train_config.depth == 0.0
    assert preset_for(30.0, None) == "fast" and preset_for(600.0, None) == "quality"


# --- broken checkpoints ------------------------------------------------------------------------------------


def _changed(metadata: dict, **changes) -> dict:
    return {**metadata, **changes}


BROKEN = {
    "task of another kind": (lambda t, m: (t, _changed(m, task="image")), "task: expected 'nerf'"),
    "newer format": (lambda t, m: (t, _changed(m, format_version=99)), "format version 99 is newer"),
    "format is text": (lambda t, m: (t, _changed(m, format_version="x")), "format_version"),
    "unknown config field": (
        lambda t, m: (t, _changed(m, config={**m["config"], "magic": 1})), "config: unknown field 'magic'",
    ),
    "config value of the wrong type": (
        lambda t, m: (t, _changed(m, config={**m["config"], "n_neurons": "wide"})), "config.n_neurons",
    ),
    "config value out of range": (
        lambda t, m: (t, _changed(m, config={**m["config"], "n_neurons": 63})), "n_neurons: expected a multiple of 16",
    ),
    "a march that never ends": (lambda t, m: (t, _changed(m, step_scale=0.0)), "step_scale"),
    "cameras are a number": (lambda t, m: (t, _changed(m, cameras={"test": 5})), "cameras.test"),
    "a camera is a number": (lambda t, m: (t, _changed(m, cameras={"test": [5]})), "cameras.test"),
    "a camera lacks a field": (lambda t, m: (t, _changed(m, cameras={"test": [{}]})), "missing or unknown field"),
    "scene is a number": (lambda t, m: (t, _changed(m, scene=3)), "scene: expected an object"),
    "scene's path is a number": (lambda t, m: (t, _changed(m, scene={"path": 7})), "scene.path"),
    "figures are text": (lambda t, m: (t, _changed(m, figures={"steps": "many"})), "figures.steps"),
    "config is null": (lambda t, m: (t, _changed(m, config=None)), "config: expected an object"),
    "spaces missing": (lambda t, m: (t, {k: v for k, v in m.items() if k != "spaces"}), "spaces"),
    "background of two": (lambda t, m: (t, _changed(m, background=[1.0, 2.0])), "background"),
    "tensor missing": (lambda t, m: ({k: v for k, v in t.items() if k != "bits"}, m), "'bits' is missing"),
    "tensor of the wrong shape": (
        lambda t, m: ({**t, "field.encoding.table": torch.zeros(3, 4)}, m), "field.encoding.table",
    ),
    "numbers that are not finite": (
        lambda t, m: ({**t, "field.color_network.weights.1": torch.full((64, 64), torch.nan)}, m), "not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_checkpoints_are_refused_by_name(trained, tmp_path: Path, case: str):
    change, message = BROKEN[case]
    tensors, metadata = load_checkpoint(trained[1].checkpoint)
    tensors, metadata = change(dict(tensors), metadata)
    path = tmp_path / "broken.safetensors"
    save_checkpoint(path, tensors, metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoints(trained, tmp_path: Path):
    from safetensors.torch import save_file

    missing, text, cut, foreign = (tmp_path / name for name in ("no", "text", "cut", "foreign"))
    text.write_text("hello")
    cut.write_bytes(trained[1].checkpoint.read_bytes()[:5000])
    save_file({"a": torch.zeros(2)}, foreign)
    for path, message in (
        (missing, "no such checkpoint"), (text, "not a readable checkpoint"), (cut, "not a readable checkpoint"),
        (foreign, "not one of hashfield's"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            load_model(path)


# --- other networks and encodings


def small_run(config: NerfConfig, steps: int, tmp_path: Path) -> tuple[NerfTask, RunFolder]:
    """A run of so many steps on the small scene."""
    task = NerfTask(config, small_scene(), seed=1)
    run = RunFolder.create(tmp_path / "run", "demo", overwrite=False)
    assert train(task, run, TrainOptions(n_steps=steps)).stopped_by == "done"
    return task, run


def test_hashnerf_preset_learns_and_stands_alone(tmp_path: Path):
    preset = PRESETS["hashnerf"]
    usual = tiny_config()
    config = replace(
        preset,
        encoding=replace(preset.encoding, log2_hashmap_size=13),
        finest_resolution=128,
        train=replace(usual.train, sparsity=3e-7, total_variation=3e-6, total_variation_until=0.1),
        occupancy=usual.occupancy,
    )
    task, run = small_run(config, 250, tmp_path)
    views = small_scene().splits["test"]
    figures = evaluate_views(task.model(), views)
    assert figures["psnr"] > blurred_baseline(views) + 5.0
    loaded = hashfield.load(run.path)
    assert isinstance(loaded, NerfModel)
    assert loaded.field.color_network.weights[0].shape == (64, 31)
    assert np.array_equal(
        loaded.render(views.cameras[0], ("color",))["color"], task.model().render(views.cameras[0], ("color",))["color"]
    )


def test_losses_of_hashnerf_change_what_is_learnt():
    found = []
    for changes in ({}, {"sparsity": 0.1}, {"total_variation": 1.0, "total_variation_until": 1.0}):
        config = tiny_config()
        config = replace(config, train=replace(config.train, **changes))
        task = NerfTask(config, small_scene(), seed=1)
        task.begin()
        results = [task.step(step, step / 30) for step in range(30)]
        assert all(r.loss > 0 for r in results)
        found.append((results[-1], task.field.encoding.table.detach().clone()))
    (plain, table), (sparse, sparse_table), (smooth, smooth_table) = found
    assert sparse.loss > plain.loss + 1e-3 and not torch.equal(sparse_table, table)
    assert smooth.loss > plain.loss
    # Neighbours on a coarse level differ less.
    level = task.field.encoding.layout.entries[0]
    rough, even = (float(t[:level].diff(dim=0).square().mean()) for t in (table, smooth_table))
    assert even < 0.7 * rough


@pytest.mark.parametrize("otype", ["Frequency", "Identity"])
def test_encodings_without_a_table_learn_resume_and_load(otype, tmp_path: Path):
    config = replace(
        tiny_config(), encoding=EncodingConfig(otype=otype, n_frequencies=6), density_layers=3,
        n_neurons=32, color_layers=1,
    )  # fmt: skip
    assert not config.is_fused
    task, run = small_run(config, 40, tmp_path)
    model = hashfield.load(run.path)
    assert isinstance(model, NerfModel)
    camera = small_scene().splits["test"].cameras[0]
    trained = task.model()
    model.quality = trained.quality = "exact"
    rendered = model.render(camera, ("color", "opacity", "depth", "normals"))
    assert np.array_equal(rendered["color"], trained.render(camera, ("color",))["color"])
    assert 0.05 < rendered["opacity"].mean() < 0.9
    # The same run in two parts gives the same bits.
    halves = NerfTask(config, small_scene(), seed=1)
    again = RunFolder.create(tmp_path / "halves", "demo", overwrite=False)
    assert train(halves, again, TrainOptions(n_steps=40, stop_after=20)).stopped_by == "interrupted"
    resumed = NerfTask(config, small_scene(), seed=1)
    train(resumed, again, TrainOptions(n_steps=40), resume=True)
    for a, b in zip(task.field.parameters(), resumed.field.parameters(), strict=True):
        assert torch.equal(a, b)


def test_wrong_networks_are_refused():
    with pytest.raises(ConfigError, match="density_layers: expected 0 to 16, got 17"):
        NerfConfig(density_layers=17)
    with pytest.raises(ConfigError, match="bfloat16 needs a linear grid"):
        NerfConfig(precision="bfloat16", color_layers=1)
    with pytest.raises(ConfigError, match="total_variation: needs a grid"):
        NerfConfig(encoding=EncodingConfig(otype="Identity"), train=NerfTrainConfig(total_variation=1.0))
    with pytest.raises(ConfigError, match="sparsity: expected a finite number"):
        NerfTrainConfig(sparsity=-1.0)

"""What all browsers share: a checkpoint that is swapped, files that buttons write, the curves, the keyframes."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hashfield.api import load
from hashfield.errors import ConfigError, DataError
from hashfield.geometry.camera_path import read_camera_path
from hashfield.geometry.cameras import look_at
from hashfield.train.loop import Progress
from hashfield.viewer.loop import FixedSource, RenderLoop, TimeShare
from hashfield.viewer.path_editor import PathEditor
from hashfield.viewer.pictures import Eye, Look, Photos, Wish
from hashfield.viewer.session import CURVE_POINTS, FileSource, Session, TaskSource, Training
from tests.viewer.fakes import Clock, Gradient, SlowScene


def eye_at(angle: float) -> Eye:
    """An eye that looks at the middle."""
    return Eye(look_at((4 * np.cos(angle), 4 * np.sin(angle), 1.0), (0.0, 0.0, 0.0)), 0.7)


def make_session(tmp_path: Path, **options) -> Session:
    """A session about the ball."""
    return Session(FixedSource(SlowScene()), tmp_path / "renders", title="ball", **options)


def work_off(session: Session) -> None:
    """Do all jobs."""
    for _ in range(10_000):
        if not session.loop.work():
            return


# --- sources


def test_a_checkpoint_that_is_swapped_is_read_again_or_said(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_text("one")
    models = {"one": SlowScene(), "two": SlowScene(), "other": Gradient()}

    def read(file: Path):
        text = file.read_text()
        if text not in models:
            raise DataError(f"{file}: broken")
        return models[text]

    def swap(text: str) -> str | None:
        aside = tmp_path / "aside"
        aside.write_text(text)
        aside.replace(path)
        return source.check()

    source = FileSource(path, read)
    assert source.current() == (0, models["one"]) and source.check() is None
    assert "read again" in (swap("two") or "")
    assert source.current() == (1, models["two"]) and source.check() is None
    assert "broken" in (swap("half a file") or "") and source.current() == (1, models["two"])
    assert "another kind" in (swap("other") or "") and source.current() == (1, models["two"])
    path.unlink()
    assert "gone" in (source.check() or "") and source.check() is None
    assert "read again" in (swap("one") or "") and source.current() == (2, models["one"])


def test_a_training_has_a_model_from_its_first_step_on() -> None:
    class Counting:
        made = 0

        def model(self):
            self.made += 1
            return SlowScene()

    task = Counting()
    source = TaskSource(task)  # type: ignore[arg-type]
    assert source.current() == (-1, None) and source.known is None
    source.stepped()
    version, model = source.current()
    assert version == 0 and source.current()[1] is model and task.made == 1
    source.stepped()
    assert source.current()[1] is not model and source.known is model and task.made == 2


# --- files


def test_names_of_files_are_made_here(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    first = session.new_file("view", ".png")
    assert first == tmp_path / "renders" / "view_001.png"
    (tmp_path / "renders" / "view_002.png").touch()
    assert session.new_file("view", ".png").name == "view_003.png"
    (tmp_path / "taken").touch()
    other = Session(FixedSource(SlowScene()), tmp_path / "taken", title="x")
    with pytest.raises(DataError, match="taken: cannot be made"):
        other.new_file("view", ".png")


def test_a_still_is_written(tmp_path: Path) -> None:
    from PIL import Image

    session, files, lines = make_session(tmp_path), [], []
    wish = Wish(eye_at(0.3), Look("depth"), 1.0, 100)
    session.loop.start(session.still(wish, 60, 40, files.append, lines.append))
    work_off(session)
    assert not lines and np.asarray(Image.open(files[0])).shape == (40, 60, 3)
    session.loop.start(session.still(Wish(eye_at(0), Look("photo"), 1.0, 9), 60, 40, files.append, lines.append))
    work_off(session)
    assert lines == ["the photos are not read"] and len(files) == 1


def test_a_video_is_rendered_and_can_be_cancelled(tmp_path: Path) -> None:
    pytest.importorskip("av")
    session, files, lines, shares = make_session(tmp_path), [], [], []
    path = PathEditor()
    with pytest.raises(ConfigError, match="no keyframes"):
        session.video(path, Look(), 48, 32, shares.append, files.append, lines.append)
    for angle in (0.0, 0.5):
        path.add(eye_at(angle))
    path.seconds, path.fps = 0.5, 10.0
    session.loop.start(session.video(path, Look(), 48, 32, shares.append, files.append, lines.append))
    work_off(session)
    assert not lines and shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and files[0].name == "video_001.mp4"
    assert files[0].stat().st_size > 500
    job = session.video(path, Look(), 48, 32, shares.append, files.append, lines.append)
    session.loop.start(job)
    session.loop.work()
    session.loop.work()
    session.loop.cancel(job)
    work_off(session)
    assert len(files) == 1 and [file.name for file in (tmp_path / "renders").iterdir()] == ["video_001.mp4"]


def test_photos_are_read_once_and_their_absence_is_said(tmp_path: Path) -> None:
    reads = []

    def read() -> Photos:
        reads.append(1)
        return Photos([], [], [])

    session = make_session(tmp_path, read_reference=read)
    for _ in range(3):
        session.want_reference()
    for thread in __import__("threading").enumerate():
        if thread.name == "hashfield-photos":
            thread.join(5)
    assert session.photos() is not None and reads == [1]

    def gone() -> Photos:
        raise DataError("photos: gone")

    said: list[str] = []
    session = make_session(tmp_path, read_reference=gone)
    session.say = said.append
    session._read_reference()
    assert said == ["photos: gone"] and not session.has_reference


# --- training


def test_curves_stay_short_and_whole() -> None:
    share = TimeShare(RenderLoop(FixedSource(SlowScene()), Clock()))
    training = Training(share, share.loop)
    assert "kernels" in training.status()
    for k in range(3 * CURVE_POINTS):
        share.loop.clock.now += 0.5  # type: ignore[attr-defined]
        training.report(
            Progress("training", 10 * k, None, 0.5 * k, 0.0, 0.1, 20.0 if k else math.nan, 1.0, 1.0, 90.0)
        )  # fmt: skip
    seconds, loss, psnr = training.curves.arrays()
    assert len(seconds) == len(loss) == len(psnr) <= CURVE_POINTS and np.allclose(loss, -1)
    assert seconds[0] == 0 and seconds[-1] == pytest.approx(0.5 * (3 * CURVE_POINTS - 1), abs=4)
    assert "20.0 steps/s" in training.status() and "90 s left" in training.status()
    training.pause(True)
    assert training.status().startswith("paused") and not share.loop.has_resting_limit
    training.pause(False)
    assert share.loop.has_resting_limit
    training.save()
    assert share.wants_save


# --- keyframes


def test_keyframes_are_added_ordered_and_read_again(tmp_path: Path) -> None:
    path = PathEditor()
    path.remove()
    path.replace(eye_at(0))
    path.move(1)
    assert not path.eyes
    eyes = [eye_at(0.3 * k) for k in range(4)]
    for eye in eyes[:3]:
        path.add(eye)
    path.chosen = 0
    path.add(eyes[3])  # behind the first
    assert path.eyes == [eyes[0], eyes[3], eyes[1], eyes[2]] and path.chosen == 1
    path.move(1)
    path.move(5)
    assert path.eyes == [eyes[0], eyes[1], eyes[3], eyes[2]] and path.chosen == 2
    path.remove()
    assert path.eyes == eyes[:3] and path.chosen == 2
    path.seconds, path.fps = 2.0, 12.0
    file = tmp_path / "path.json"
    path.write(file, 320, 180)
    found = read_camera_path(file)
    assert found.fps == 12.0 and len(found.cameras) == 24
    for camera, wanted in zip(found.cameras, path.cameras(320, 180), strict=True):
        assert torch.allclose(camera.camera_to_world, wanted.camera_to_world) and camera.fy == pytest.approx(wanted.fy)
    assert len(json.loads(file.read_text())["keyframes"]) == 3
    path.seconds = 1e9
    with pytest.raises(ConfigError, match="frames"):
        path.write(file, 320, 180)


# --- models of every kind


@pytest.fixture(scope="module")
def nerf_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A radiance field that was trained for a few steps."""
    from hashfield.data.demo_scene import make_demo_scene
    from hashfield.tasks.nerf import NerfTask
    from hashfield.train.loop import TrainOptions, train
    from hashfield.train.run_folder import RunFolder
    from tests.tasks.scenes import tiny_config

    folder = tmp_path_factory.mktemp("nerf")
    scene, _ = make_demo_scene(0, size=48, n_train=8, n_test=2)
    run = RunFolder.create(folder / "run", "demo")
    train(NerfTask(tiny_config(), scene, seed=0), run, TrainOptions(n_steps=30))
    return run.path


@pytest.mark.parametrize("output", ["color", "slice", "depth"])
def test_a_radiance_field_is_cropped_and_sliced(nerf_run: Path, output: str) -> None:
    from hashfield.tasks.frames import HasBox
    from hashfield.viewer.pictures import HasDensity, canvas_of, eye_of, outputs_of, stage_of

    model = load(nerf_run)
    assert isinstance(model, HasBox) and isinstance(model, HasDensity) and "slice" in outputs_of(model)
    eye = eye_of(model.cameras["train"][0])
    low, high = model.box_world.tolist()
    middle = [0.5 * (a + b) for a, b in zip(low, high, strict=True)]

    def picture(crop=None):
        canvas = canvas_of(model, Wish(eye, Look(output, crop=crop), 1.0, 48), 48)
        return canvas.rows(0, 48)

    whole = picture()
    assert np.array_equal(whole, picture((tuple(low), tuple(high)))) and whole.std() > 5
    assert not np.array_equal(whole, picture((tuple(low), (high[0], high[1], middle[2]))))
    with pytest.raises(ConfigError, match="nothing of the model"):
        picture(((1e3, 1e3, 1e3), (2e3, 2e3, 2e3)))
    assert np.linalg.norm(stage_of(model).to_page(eye.camera_to_world[:, 3].numpy())) == pytest.approx(3, rel=0.5)
    model.cameras = {}
    assert stage_of(model).home is not None


def test_occupied_cells_are_where_the_bits_are(nerf_run: Path) -> None:
    from hashfield.ops.occupancy import is_occupied

    model = load(nerf_run)
    centers, sides = model.occupied_cells(10**7)
    scene = model.spaces.world_to_scene(centers).float()
    assert len(centers) and bool(is_occupied(scene, model.bits, model.spaces.n_cascades).all())
    n_bits = int(np.unpackbits(model.bits.numpy()).sum())
    assert len(centers) == n_bits and len(set(sides.tolist())) == 1
    few, larger = model.occupied_cells(500)
    assert 0 < len(few) <= 500 and float(larger[0]) > float(sides[0])
    volume = float((larger**3).sum())
    assert volume >= float((sides**3).sum()) * (1 - 1e-9)


def test_a_run_that_trains_further_is_followed(nerf_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    shutil.copy(nerf_run / "checkpoint.safetensors", file)
    source = FileSource(file, lambda path: load(path))
    data = bytearray(file.read_bytes())
    aside = tmp_path / "half"
    aside.write_bytes(data[: len(data) // 2])
    aside.replace(file)
    said = source.check()
    assert said is not None and str(file) in said and "before" in said
    shutil.copy(nerf_run / "checkpoint.safetensors", aside)
    aside.replace(file)
    assert "step 30" in (source.check() or "")

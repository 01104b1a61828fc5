"""`hashfield render` of paths and panoramas, interrupted and begun again, with a model that counts what it renders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashfield.cli import render as verb
from hashfield.cli.kept_frames import FOLDER
from hashfield.cli.main import run
from hashfield.cli.progress import duration
from hashfield.geometry.cameras import Camera, panorama
from hashfield.geometry.spaces import Spaces
from tests.geometry.test_spaces import ring


class CountingModel:
    """Every frame has another colour and depth; it fails, as a user who presses Ctrl-C, after so many frames."""

    background = (1.0, 1.0, 1.0)
    spaces = Spaces()

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}
        self.views = {"train": ring(5, 4.0)[:5], "test": ring(5, 4.0)[:2]}
        self.asked: list[Camera] = []
        self.fails_after = 10**6

    def frame(self, camera: Camera, outputs: Any, background: Any) -> dict[str, np.ndarray]:
        if len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(camera)
        shape, value = (camera.height, camera.width), float(camera.position[0]) / 20 + 0.5
        full = {"color": np.full((*shape, 3), value), "depth": np.full(shape, 2 + value), "opacity": np.ones(shape)}
        return {name: full[name].astype(np.float32) for name in outputs}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CountingModel:
    found = CountingModel()
    monkeypatch.setattr(verb, "load", lambda path, device: found)
    monkeypatch.setattr("hashfield.cli.main.VERBS", {"render": ("tests.cli.test_render_again", "")})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.safetensors").write_bytes(b"stands for a checkpoint")
    return found


def main(arguments: list[str]) -> int:
    return verb.render_nerf(arguments)


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("form", ["png", "mp4"])
def test_an_interrupted_rendering_goes_on_and_equals_an_unbroken_one(
    model: CountingModel, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["render", str(tmp_path / "run"), "--views", "orbit", "--n-frames", "7", "--width", "16", "--format", form]
    wanted += ["--output", "color", "depth"]
    assert run([*wanted, "--out", str(tmp_path / "whole")]) == 0 and len(model.asked) == 7
    broken = [*wanted, "--out", str(tmp_path / "broken")]
    model.asked, model.fails_after = [], 3
    assert run(broken) == 130 and len(model.asked) == 3
    model.asked, model.fails_after = [], 10**6
    capsys.readouterr()
    assert run(broken) == 0 and len(model.asked) == 4
    assert "3 of 7 frames are there from before" in capsys.readouterr().out
    assert pixels(tmp_path / "broken") == pixels(tmp_path / "whole")
    assert not (tmp_path / "broken" / FOLDER).exists()
    assert run(broken) == 2  # done: the files are there
    model.asked = []
    assert run([*broken, "--overwrite"]) == 0 and len(model.asked) == 7


def test_another_rendering_does_not_take_the_frames_of_the_first(model: CountingModel, tmp_path: Path) -> None:
    wanted = ["render", str(tmp_path / "run"), "--views", "orbit", "--n-frames", "5", "--out", str(tmp_path / "out")]
    model.fails_after = 2
    assert run([*wanted, "--width", "16"]) == 130
    model.asked, model.fails_after = [], 10**6
    assert run([*wanted, "--width", "8"]) == 2  # pictures of the first are there
    assert run([*wanted, "--width", "8", "--overwrite"]) == 0 and len(model.asked) == 5
    (tmp_path / "run/checkpoint.safetensors").write_bytes(b"the run was trained on")
    model.asked, model.fails_after = [], 2
    assert run([*wanted, "--width", "8", "--overwrite"]) == 130
    (tmp_path / "run/checkpoint.safetensors").write_bytes(b"and on")
    model.asked, model.fails_after = [], 10**6
    assert run([*wanted, "--width", "8"]) == 2
    assert run([*wanted, "--width", "8", "--overwrite"]) == 0 and len(model.asked) == 5


@pytest.mark.parametrize("views", ["spiral", "along"])
def test_made_paths(model: CountingModel, tmp_path: Path, views: str) -> None:
    assert run(["render", str(tmp_path / "run"), "--views", views, "--n-frames", "4", "--width", "16"]) == 0
    assert len(pixels(tmp_path / "run/renders" / views)) == 4


def test_panoramas(model: CountingModel, tmp_path: Path) -> None:
    assert run(["render", str(tmp_path / "run"), "--panorama", "--width", "24"]) == 0
    assert [camera == panorama(camera.camera_to_world, 24, 12) for camera in model.asked] == [True, True]
    for camera, known in zip(model.asked, model.views["test"], strict=True):
        torch.testing.assert_close(camera.position, known.position)
    assert run(["render", str(tmp_path / "run"), "--panorama", "--height", "24"]) == 2


def test_durations() -> None:
    assert [duration(seconds) for seconds in (4.4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 5 min"]

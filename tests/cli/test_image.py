"""The verbs for pictures as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hashfield.cli.image import place_picture
from hashfield.cli.main import run
from hashfield.data.demo_picture import save_demo_picture
from hashfield.data.pictures import Picture, read_picture
from hashfield.errors import ConfigError
from hashfield.export.images import ExrWriter
from hashfield.tasks.image_config import PRESETS
from tests.cli.test_cli import fails

QUICK = ["--encoding.log2-hashmap-size", "13", "--encoding.n-levels", "6", "--train.batch", "2048"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small picture on disk."""
    return save_demo_picture(tmp_path_factory.mktemp("data") / "toy picture.png", 0, 96, 64)


@pytest.fixture(scope="module")
def trained(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 80 steps."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    assert run(["train", "image", str(picture), "--out", str(out), "--n-steps", "80", "--seed", "3", *QUICK]) == 0
    return out


def test_train_writes_a_whole_run_folder(trained: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "checkpoint.safetensors", "report.html"):
        assert (trained / name).exists(), name
    assert list((trained / "renders").glob("progress_*.png")) and list((trained / "renders").glob("compare_*.png"))
    config = json.loads((trained / "config.json").read_text())
    assert config["task"] == "image" and config["seed"] == 3 and config["config"]["encoding"]["log2_hashmap_size"] <= 13
    report = (trained / "report.html").read_text()
    assert "bits a pixel" in report and 'src="http' not in report and "<script" not in report
    assert not list(trained.glob(".*"))  # no scratch file, no half-written one


def test_evaluate_writes_json(trained: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "figures.json"
    assert run(["evaluate", str(trained), "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert figures["psnr"] > 15 and figures["n_pixels"] == 96 * 64
    assert figures["bits_per_pixel"] == pytest.approx(8 * figures["exported_bytes"] / (96 * 64))
    small = tmp_path / "small.safetensors"
    assert run(["export", str(trained), "--out", str(small)]) == 0
    assert small.stat().st_size == figures["exported_bytes"]
    assert run(["evaluate", str(small), "--data", str(picture)]) == 0
    capsys.readouterr()
    assert run(["info", str(small)]) == 0
    shown = capsys.readouterr().out
    assert "image" in shown and "'width': 96" in shown and "cameras" not in shown
    assert "--data" in fails(capsys, "evaluate", str(trained), "--data", str(tmp_path / "gone.png"))


def test_render(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", str(trained)]) == 0
    with Image.open(trained / "renders" / "image.png") as found:
        assert found.size == (96, 64) and found.mode == "RGB"
    assert "is there already" in fails(capsys, "render", str(trained))
    part = tmp_path / "part.png"
    crop = ["--crop", "10", "20", "30", "40", "--width", "60", "--bits", "16", "--out", str(part)]
    assert run(["render", str(trained), *crop]) == 0
    with read_picture(part) as found:
        assert (found.width, found.height, found.header.dtype) == (60, 80, "uint16")
    linear = tmp_path / "a.exr"
    assert run(["render", str(trained), "--format", "exr", "--out", str(linear)]) == 0
    with read_picture(linear) as found, read_picture(trained / "renders" / "image.png") as whole:
        assert found.is_hdr
        assert np.abs(found.region(0, 0, 96, 64).clip(0, 1) - whole.region(0, 0, 96, 64)).max() < 4e-3
    assert "crop" in fails(
        capsys, "render", str(trained), "--crop", "90", "0", "30", "10", "--out", str(tmp_path / "x")
    )
    assert "is a folder" in fails(capsys, "render", str(trained), "--out", str(tmp_path))


def test_alpha_and_background(tmp_path: Path) -> None:
    alpha = np.zeros((40, 60, 4), np.uint8)
    alpha[:, 30:] = (200, 100, 50, 255)
    Image.fromarray(alpha).save(tmp_path / "a.png")
    out = tmp_path / "r"
    assert run(["train", "image", str(tmp_path / "a.png"), "--out", str(out), "--n-steps", "150", *QUICK]) == 0
    assert run(["render", str(out), "--out", str(tmp_path / "b.png")]) == 0
    assert run(["render", str(out), "--out", str(tmp_path / "c.png"), "--background", "white"]) == 0
    with Image.open(tmp_path / "b.png") as straight, Image.open(tmp_path / "c.png") as white:
        assert straight.mode == "RGBA" and white.mode == "RGB"
        seen, flat = np.asarray(straight).astype(int), np.asarray(white).astype(int)
    assert seen[20, 5, 3] < 30 and seen[20, 55, 3] > 225
    assert np.abs(seen[20, 55, :3] - [200, 100, 50]).max() < 30  # straight again, not multiplied
    assert flat[20, 5].min() > 225 and np.abs(flat[20, 55] - [200, 100, 50]).max() < 30


def test_hdr_says_how_it_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExrWriter(tmp_path / "a.exr", 48, 32, 3) as writer:
        writer.add(np.random.default_rng(0).random((32, 48, 3)).astype(np.float32) * 20)
    out = tmp_path / "r"
    assert run(["train", "image", str(tmp_path / "a.exr"), "--out", str(out), "--n-steps", "30", *QUICK]) == 0
    assert run(["evaluate", str(out), "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert {"psnr", "psnr_clipped", "psnr_of_peak", "peak", "psnr_of", "bits_per_pixel"} <= set(figures)
    assert "not clipped" in capsys.readouterr().out


def test_a_broken_picture_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken, out = tmp_path / "whole.jpg", tmp_path / "broken.jpg", tmp_path / "run"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    broken.write_bytes(whole.read_bytes()[:2000])
    command = ["train", "image", str(broken), "--out", str(out)]
    assert "broken.jpg: the picture cannot be decoded" in fails(capsys, *command)
    assert not out.exists()
    (out / "kept").mkdir(parents=True)
    fails(capsys, *command)
    assert (out / "kept").exists()


def test_resume_goes_on_with_the_plan(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    arguments = ["train", "image", str(picture), "--out", str(out), *QUICK]
    assert run([*arguments, "--n-steps", "20", "--seed", "7"]) == 0
    assert run([*arguments, "--resume"]) == 0
    assert "trained 20 steps" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["seed"] == 7
    assert run([*arguments, "--resume", "--preset", "paper"]) == 0
    assert "those given here are ignored" in capsys.readouterr().out
    other = save_demo_picture(tmp_path / "other.png", 1, 80, 60)
    arguments[2] = str(other)
    assert "was begun with" in fails(capsys, *arguments, "--resume")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_saves_and_leaves_no_scratch_file(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    code = (
        "import sys; from hashfield.data import pictures; pictures.IN_MEMORY = 100\n"
        "from hashfield.cli.main import main; main(sys.argv[1:])"
    )
    arguments = ["train", "image", str(picture), "--out", str(out), "--max-seconds", "300", *QUICK]
    started = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and started.poll() is None:
        lines = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
        if lines >= 1:
            os.kill(started.pid, signal.SIGINT)
            break
        time.sleep(0.1)
    text, _ = started.communicate(timeout=120)
    assert started.returncode == 130, text
    assert "--resume" in text and (out / "checkpoint.safetensors").exists()
    assert not list(out.glob(".*"))


def test_a_picture_without_room_on_the_gpu_stays_on_the_host(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some card")
    device = torch.device("cuda")
    with read_picture(picture) as read:
        assert place_picture(PRESETS["gpu"], read, device, None)
        said = capsys.readouterr().out
        assert "on some card: about 0." in said and "8.0 GiB are free" in said and "host" not in said
        # A little more than the run without the picture.
        needed = float(said.partition("about ")[2].partition(" GiB")[0])
        large = Large(read)
        assert not place_picture(PRESETS["gpu"], large, device, needed + 0.2)  # type: ignore[arg-type]
        assert "the picture's 20.0 GiB do not fit beside that" in capsys.readouterr().out
        with pytest.raises(ConfigError, match=r"--max-gpu-memory allows 0.01: raise .*--max-numbers"):
            place_picture(PRESETS["gpu"], read, device, 0.01)


class Large:
    """A picture whose stored numbers take 20 GiB."""

    def __init__(self, picture: Picture) -> None:
        self.width, self.height, self.n_channels = picture.width, picture.height, picture.n_channels
        self.pixels = np.broadcast_to(np.uint8(0), (20 * 2**10, 2**20))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "image"], "Required options"),
        (["train", "image", "/no/such.png"], "no such file"),
        (["train", "image", "."], "is a folder"),
        (["train", "image", "PICTURE", "--max-pixels", "100"], "more than --max-pixels 100"),
        (["train", "image", "PICTURE", "--preset", "best"], "--preset"),
        (["train", "image", "PICTURE", "--n-neurons", "20"], "n_neurons"),
        (["train", "image", "PICTURE", "--resume"], "--out"),
        pytest.param(
            ["train", "image", "PICTURE", "--device", "cuda"],
            "sees no such device",
            id="cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
        (["train", "image", "PICTURE", "--max-gpu-memory", "0"], "--max-gpu-memory"),
        (["train", "image", "PICTURE", "--scratch", "/no/such/folder", "--seed", "-1"], "seed"),
        (["demo", "image", "--size", "5"], "--size"),
        (["demo", "image", "--seed", "-1"], "--seed"),
        (["demo", "film"], "expected what to demo"),
    ],
)
def test_mistakes_end_in_a_line_and_code_2(
    arguments: list[str], words: str, picture: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = fails(capsys, *(str(picture) if a == "PICTURE" else a for a in arguments))
    assert words in error and "Traceback" not in error


@pytest.mark.parametrize(("width", "height"), [(700, 1), (1, 700), (1, 1), (1300, 3)])
def test_thin_pictures_are_trained_reported_and_evaluated(
    width: int, height: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "thin.png")
    out = tmp_path / "run"
    assert run(["train", "image", str(tmp_path / "thin.png"), "--out", str(out), "--n-steps", "20", *QUICK]) == 0
    assert (out / "report.html").exists()
    assert run(["evaluate", str(out), "--json", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["n_pixels"] == width * height
    assert run(["render", str(out), "--out", str(tmp_path / "frames")]) == 0

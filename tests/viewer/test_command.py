"""`hashfield train ... --view` and `hashfield view`, as they are typed."""

import re
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashfield.cli import main, view
from hashfield.train.loop import StepResult, TrainOptions, train
from hashfield.train.run_folder import RunFolder
from tests.forked import command

PORT = 18400


def test_a_picture_is_watched_while_it_is_learned_and_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("viser", reason="viser is not installed (pip install 'hashfield[view]')")
    from tests.viewer.tab import Tab

    monkeypatch.setattr(view, "LAST_LOOK_SECONDS", 0.3)
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    Image.fromarray(np.stack([4 * across, 5 * down, 0 * down + 90], -1).astype(np.uint8)).save(tmp_path / "p.png")
    run, codes = tmp_path / "run", []
    words = [
        "train",
        "image",
        str(tmp_path / "p.png"),
        "--out",
        str(run),
        "--max-seconds",
        "4",
        "--train.batch",
        "4096",
    ]
    thread = threading.Thread(target=lambda: codes.append(main.run([*words, "--view", "--view-port", str(PORT)])))
    thread.start()
    tab = None
    end = time.monotonic() + 120
    while tab is None and time.monotonic() < end:
        try:
            tab = Tab(PORT)
        except OSError:
            time.sleep(0.05)
    assert tab is not None
    tab.move((0.0, -2.5, 0.0), fov=0.87)
    tab.wait(lambda: "training: step" in str(tab.controls), 120.0)
    tab.wait(lambda: tab.n_pictures > 3, 60.0)
    tab.wait(lambda: "trained: step" in str(tab.controls), 60.0)
    time.sleep(0.5)
    assert thread.is_alive()  # as long as someone looks
    tab.set("Show", "difference")
    tab.wait(lambda: tab.shown().mean() < 60, 20.0)
    tab.close()
    thread.join(30)
    assert codes == [0]
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:{PORT}" in said and "at most 33%" in said and "warning" not in said

    server = command(["view", str(run), "--port", str(PORT)], tmp_path)
    try:
        end = time.monotonic() + 60
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", server.said())) is None and time.monotonic() < end:
            time.sleep(0.05)
        assert found is not None, server.said()
        tab = Tab(int(found[1]))
        tab.move((0.0, -2.5, 0.0), fov=0.87)
        tab.wait(lambda: "drawn in" in str(tab.controls), 60.0)
        picture = tab.shown()
        middle = picture[picture.shape[0] // 2, picture.shape[1] // 2]
        assert middle.tolist() == pytest.approx([128, 120, 90], abs=25)
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=20)
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGKILL)
    assert server.returncode == 0 and "Traceback" not in err, err


@pytest.mark.parametrize("words", [["view", "RUN"], ["train", "image", "PICTURE", "--view"]])
def test_a_missing_viser_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "p.png")
    words = [{"RUN": str(tmp_path), "PICTURE": str(tmp_path / "p.png")}.get(word, word) for word in words]
    assert main.run(words) == 2
    assert capsys.readouterr().err == "hashfield: this needs the package viser: pip install 'hashfield[view]'\n"


class Counting:
    """A task that only counts its steps."""

    name = "counting"
    n = 0

    def warm_up(self) -> None:
        """Do nothing."""

    begin = warm_up

    def step(self, step: int, fraction: float) -> StepResult:
        """Count."""
        self.n += 1
        return StepResult(0.5, 0.01, 1, 1)

    def state(self):
        """The count."""
        return {}, {"n": self.n}

    def describe(self):
        """Nothing more."""
        return {}


def test_the_loop_goes_on_waits_and_saves_between_steps(tmp_path: Path) -> None:
    from hashfield.train.checkpoint import read_metadata

    task, asked, saved = Counting(), [], []
    run = RunFolder.create(tmp_path / "run", "run")

    def between():
        asked.append(task.n)
        if len(asked) == 3:
            return "save"
        if len(asked) in (4, 5):
            if len(asked) == 4:
                saved.append(read_metadata(run.checkpoint)["loop"]["step"])
            return "wait"
        return "go"

    result = train(task, run, TrainOptions(n_steps=10), between_steps=between)  # type: ignore[arg-type]
    assert result.step == 10 and saved == [3]
    assert asked == [1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 8, 9]  # not after the last

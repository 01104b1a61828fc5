"""The command line on several ranks, as torchrun starts them: said once, written once, ended in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hashfield.data.demo_scene import make_demo_scene, save_nerf_synthetic
from hashfield.train.checkpoint import read_metadata
from tests.forked import Forked, command, script

TRAIN = ("--preset", "fast", "--train.batch", "4096", "--encoding.log2-hashmap-size", "13", "--seed", "3")
TRAIN += ("--occupancy.max-cells", "65536")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    save_nerf_synthetic(make_demo_scene(size=32, n_train=8, n_test=2)[0], path)
    return path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(n: int, words: list[str], folder: Path) -> list[Forked]:
    """n ranks, without torchrun between them and the test."""
    meeting = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [command(words, folder, RANK=str(k), **meeting) for k in range(n)]


ENDS_AT_FIRST = """
import os, sys
from hashfield.cli.main import run
from hashfield.steps.joining import joined
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    with joined() as ranks:
        ranks.gather([0.0])
        os._exit(1)  # as if all had been killed
sys.exit(run(sys.argv[1:]))
"""


def test_torchrun_starts_ranks_again_and_everything_is_said_once(photos: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "ends_at_first.py"
    file.write_text(ENDS_AT_FIRST)
    words = [str(file), "train", "nerf", str(photos), "--n-steps", "6", "--out", str(run), *TRAIN]
    torchrun = ["--nproc-per-node=2", f"--master-port={free_port()}", "--max-restarts=1", *words]
    found = script(f"from torch.distributed.run import main\nmain({torchrun!r})", tmp_path)
    out, err = found.communicate(timeout=300)
    assert found.returncode == 0, err
    assert out.count("2 ranks of 1 threads each: rank 0 (") == 1
    assert out.count("trained 6 steps") == out.count("held-out: 2 views") == 1
    metadata = read_metadata(run / "checkpoint.safetensors")
    assert metadata["loop"]["step"] == 6 and len((run / "metrics.jsonl").read_text().splitlines()) >= 1


def test_a_killed_rank_is_named_in_one_line_and_an_interrupt_of_one_saves_for_all(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = started(2, ["train", "nerf", str(photos), "--max-seconds", "100", "--out", str(run), *TRAIN], tmp_path)
    wait_for(run / "metrics.jsonl")
    ranks[1].send_signal(signal.SIGINT)  # to the one that writes nothing
    texts = [p.communicate(timeout=60) for p in ranks]
    assert [p.returncode for p in ranks] == [130, 130], texts
    assert "interrupted after step" in texts[0][0] and texts[1] == ("", "")
    step = read_metadata(run / "checkpoint.safetensors")["loop"]["step"]
    assert f"interrupted after step {step}, saved" in texts[0][0]

    ranks = started(2, ["train", "nerf", str(photos), "--out", str(run), "--resume", *TRAIN], tmp_path)
    before = run.joinpath("metrics.jsonl").stat().st_size
    deadline = time.monotonic() + 60
    while run.joinpath("metrics.jsonl").stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks[1].send_signal(signal.SIGKILL)
    ranks[1].communicate(timeout=60)
    text = ranks[0].communicate(timeout=60)[1]
    assert ranks[0].returncode == 2
    lines = [line for line in text.splitlines() if line.startswith("hashfield: ")]
    assert len(lines) == 1 and "rank 1 (" in lines[0] and "is gone" in lines[0], text
    assert "Traceback" not in text


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_an_environment_that_makes_no_sense_ends_in_one_line() -> None:
    from hashfield.errors import ConfigError
    from hashfield.steps.joining import joined

    def told(**more: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                patch.delenv(name, raising=False)
            for name, value in more.items():
                patch.setenv(name, value)
            with pytest.raises(ConfigError) as caught, joined():
                pass
            return str(caught.value)

    assert told(WORLD_SIZE="2") == (
        "WORLD_SIZE says that there are several ranks, but RANK, MASTER_ADDR, MASTER_PORT is not set: use torchrun"
    )
    assert "expected a rank below the number of ranks, got '2' and '2'" in told(
        WORLD_SIZE="2", RANK="2", MASTER_ADDR="x", MASTER_PORT="1"
    )


def test_of_a_meeting_point_that_does_not_answer_one_line_is_said() -> None:
    port = str(free_port())
    own = environment(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    code = (
        "from hashfield.cli import main; main._among_ranks('train')\n"
        "from hashfield.steps.joining import joined\n"
        "try:\n  joined(patience=0.5).__enter__()\n"
        "except main.HashfieldError as error:\n  main._fail(str(error))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, check=False)
    assert found.stderr.startswith(f"hashfield: rank 1 cannot reach 127.0.0.1:{port}, where the ranks meet: ")
    assert found.stderr.count("\n") == 1 and not found.stdout


def test_verbs_that_are_not_shared_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hashfield.cli.main import run

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run(["demo"]) == 2
    assert capsys.readouterr().err == "hashfield: demo: is not shared among processes; start it without torchrun\n"

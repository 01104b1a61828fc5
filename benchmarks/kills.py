"""Kills trainings at random moments, and looks whether the newest or the previous checkpoint loads and resumes.

python benchmarks/kills.py                # 200 kills of a small picture's and a small radiance field's training
python benchmarks/kills.py --n 20 --seed 7

Each training goes on from where the one before was killed (SIGKILL), and saves every few hundredths of a second, so that
many kills fall into a save. After each, the checkpoint must load, whole, at the step that was last known or a later one;
and when the next training has started, nothing may be left of the saves that were killed. The last training of each kind
ends by itself. The exit code is 1 where anything of this fails.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

AUTOSAVE = 0.03
"""Seconds between saves."""
LONGEST = 1.2
"""Seconds of training, at most, before a kill."""


def task_of(kind: str, folder: Path):
    """The task that is trained, of a few megabytes: saving takes about as long as what lies between saves."""
    if kind == "image":
        import numpy as np
        from PIL import Image

        from hashfield.data.pictures import read_picture
        from hashfield.tasks.image import ImageTask
        from hashfield.tasks.image_config import PRESETS

        path = folder / "picture.png"
        if not path.exists():
            y, x = np.mgrid[:128, :192]
            Image.fromarray(np.stack([x, y, x * y % 256], -1).astype(np.uint8)).save(path)
        return ImageTask(PRESETS["default"], read_picture(path))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.tasks.scenes import small_scene, tiny_config

    from hashfield.tasks.nerf import NerfTask

    return NerfTask(tiny_config(), small_scene())


def serve(kind: str, folder: Path, resume: bool, n_steps: int, connection: Connection) -> None:
    """What the other process does: train, and tell when training has begun and how it ended."""
    import torch

    from hashfield.train.loop import Progress, TrainOptions, train
    from hashfield.train.run_folder import RunFolder

    torch.set_num_threads(1)
    run = RunFolder.open(folder) if resume else RunFolder.create(folder, kind, overwrite=True)
    is_first = True

    def show(progress: Progress) -> None:
        nonlocal is_first
        if is_first and progress.phase == "training":
            is_first = False
            connection.send(sorted(entry.name for entry in folder.iterdir()))

    result = train(
        task_of(kind, folder), run, TrainOptions(n_steps=n_steps, autosave_seconds=AUTOSAVE), show, resume=resume
    )
    connection.send(result.step)


def left_behind(names: list[str]) -> list[str]:
    """Files of saves that were not finished."""
    return [name for name in names if name.startswith(".")]


def kill_all(kind: str, n: int, folder: Path, draw: random.Random) -> tuple[Counter[str], list[str]]:
    """(what was counted, what was wrong) of n kills of one kind's trainings, and of a last one that ends by itself."""
    from hashfield.errors import HashfieldError
    from hashfield.train.checkpoint import load_checkpoint

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hashfield.tasks.nerf", "hashfield.tasks.image", "hashfield.train.loop"])
    counts: Counter[str] = Counter()
    wrong = []
    known, checkpoint = 0, folder / "checkpoint.safetensors"
    for k in range(n + 1):
        is_last = k == n
        ours, theirs = context.Pipe(duplex=False)
        n_steps = known + 5 if is_last else 10**6
        process = context.Process(target=serve, args=(kind, folder, checkpoint.exists(), n_steps, theirs))
        process.start()
        theirs.close()
        try:
            names = ours.recv()
        except EOFError:
            wrong.append(f"{kind} {k}: ended before its first step, exit code {process.exitcode}")
            break
        if k and left_behind(names):
            # one of them may be a save of this very training
            strange = [name for name in left_behind(names) if f".{process.pid}-" not in name]
            wrong += [f"{kind} {k}: {strange} is left of a killed save"] if strange else []
        if is_last:
            process.join()
            counts["ended"] += process.exitcode == 0
            break
        time.sleep(draw.uniform(0, LONGEST) if draw.random() < 0.5 else draw.uniform(0, 4 * AUTOSAVE))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        counts["killed"] += 1
        left = left_behind(os.listdir(folder))
        counts["in a save"] += bool(left)
        try:
            _, metadata = load_checkpoint(checkpoint)
        except HashfieldError as error:
            wrong.append(f"{kind} {k}: {error}")
            break
        step = metadata["loop"]["step"]
        if step < known:
            wrong.append(f"{kind} {k}: step {step} after step {known} had been saved")
        counts["loaded"] += 1
        known = step
    counts["steps"] = known
    left = left_behind(os.listdir(folder))
    wrong += [f"{kind}: {left} is left in the end"] if left else []
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=200, help="kills, of both kinds together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, bad = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        for kind, n in (("image", options.n - options.n // 4), ("nerf", options.n // 4)):
            folder = Path(temporary) / kind
            folder.mkdir()
            counts, wrong = kill_all(kind, n, folder, draw)
            size = (folder / "checkpoint.safetensors").stat().st_size / 1e6
            print(json.dumps({"kind": kind, **counts, "checkpoint MB": round(size, 1), "wrong": wrong}), flush=True)
            bad += wrong
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

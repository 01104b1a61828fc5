"""Files that are written aside, and what is left of them when their writer is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hashfield import aside
from hashfield.aside import aside_of, remove_left_behind, write_aside
from hashfield.train.checkpoint import load_checkpoint, save_checkpoint


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder/a.txt"
    write_aside(path, lambda file: file.write_text("old"))

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_aside(path, fail)
    assert path.read_text() == "old" and [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_writers_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        kept, removed = [], []
        for pid, names in ((living.pid, kept), (dead_pid(), removed)):
            monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
            names += [aside_of(tmp_path / "a.bin"), aside_of(tmp_path / "b.mp4", "part.mp4")]
            monkeypatch.setattr(aside, "_HOST", "elsewhere")
            kept.append(aside_of(tmp_path / "c.bin"))
            monkeypatch.undo()
        kept += [tmp_path / name for name in (".tmpAbC123", "a.bin", ".notes.tmp", ".x.12.tmp", ".tmp", ".a.b.part")]
        for path in (*kept, *removed):
            path.write_bytes(b"12345")
        inside = removed[0].with_name(removed[0].name.replace("a.bin", "d.bin"))
        inside.mkdir()
        (inside / "part").write_bytes(b"1234567")
        n, n_bytes = remove_left_behind(tmp_path)
        assert n == len(removed) + 1 and n_bytes >= 5 * len(removed) + 7
        assert {entry.name for entry in tmp_path.iterdir()} == {path.name for path in kept}
        # after a day nobody writes any more, whoever it was; what is not ours stays
        for path in kept:
            os.utime(path, (time.time() - 2 * 86400,) * 2)
        remove_left_behind(tmp_path)
        assert {entry.name for entry in tmp_path.iterdir()} == {"a.bin", ".notes.tmp", ".tmp", ".a.b.part"}
    finally:
        living.communicate(b"\n")


def test_a_file_of_an_earlier_process_with_our_number_is_removed(tmp_path: Path) -> None:
    ours = [aside_of(tmp_path / name) for name in ("old.bin", "new.bin")]
    for path in ours:
        path.write_bytes(b"1")
    os.utime(ours[0], (time.time() - 7200,) * 2)
    assert remove_left_behind(tmp_path)[0] == 1 and [entry for entry in tmp_path.iterdir()] == ours[1:]
    assert remove_left_behind(tmp_path / "nothing") == (0, 0)


def test_a_checkpoint_whose_writer_was_killed_is_still_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1})
    writes_half = (
        "import os, sys, pathlib\nfrom hashfield.aside import write_aside\n"
        "def write(file):\n    file.write_bytes(b'half'); (file.parent / '.tmpAbCdEf').write_bytes(b'more')\n"
        "    os.kill(os.getpid(), 9)\nwrite_aside(pathlib.Path(sys.argv[1]), write)\n"
    )
    subprocess.run([sys.executable, "-c", writes_half, str(path)])
    assert len(list(tmp_path.iterdir())) == 2 and load_checkpoint(path)[1]["step"] == 1
    assert remove_left_behind(tmp_path)[0] == 1 and [entry.name for entry in tmp_path.iterdir()] == [path.name]

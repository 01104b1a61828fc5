"""Files that are written aside and renamed, so that nobody ever reads half of one, and what is left of them when their
writer is killed."""

import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_HOST: Final = re.sub(r"[^A-Za-z0-9]+", "_", platform.node()) or "host"
_STARTED: Final = time.time()
_ASIDE: Final = re.compile(r"\..+\.(?P<pid>[0-9]+)-(?P<host>\w+)\.(tmp|part(\.\w+)?)")
_OLDER: Final = re.compile(r"\..+\.[0-9]+\.(tmp|part(\.\w+)?)|\.tmp[A-Za-z0-9]{6}")
"""Names of earlier versions, which do not tell the machine, and of safetensors' own temporary files."""
_SURELY_DEAD: Final = 86400.0
"""Seconds after which a file that its writer has not touched is taken for left behind, whoever wrote it."""


def aside_of(path: Path, ending: str = "tmp") -> Path:
    """A name beside `path` for what this process writes before it renames it.

    Args:
        path: The file that shall appear in the end.
        ending: "tmp", "part" or, for writers that go by the ending, "part.mp4" and the like.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{_HOST}.{ending}")


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, sync it, and rename it over `path`.

    A reader sees the old file or the new one, never half of one; when anything fails the old one stays.

    Args:
        path: The file; its folder is made where missing.
        write: Called with the path of the temporary file, which it has to fill. The file lies in a folder of its own,
            so that temporary files which `write` makes beside it are found again as well.
    """
    folder = aside_of(path)
    aside = folder / path.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside.touch()
        mode = aside.stat().st_mode & 0o777  # the user's own habit; some writers make files that nobody else may read
        write(aside)
        aside.chmod(mode)
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
        if os.name == "posix":
            parent = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_behind(folder: Path) -> tuple[int, int]:
    """Remove what killed processes left in a folder while they wrote aside; how many there were and their bytes.

    Only names of our own are looked at. What a living process of this machine may still write is left alone; so is, for
    a day, what a process of another machine may write into a shared folder.
    """
    n_removed, n_bytes = 0, 0
    try:
        entries = list(folder.iterdir())
    except OSError:
        return 0, 0
    for entry in entries:
        with suppress(OSError):  # another process may have removed it meanwhile
            if entry.is_symlink() or not _is_left_behind(entry):
                continue
            size = sum(part.stat().st_size for part in ([*entry.rglob("*")] if entry.is_dir() else [entry]))
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            n_removed, n_bytes = n_removed + 1, n_bytes + size
    return n_removed, n_bytes


def _is_left_behind(entry: Path) -> bool:
    found = _ASIDE.fullmatch(entry.name)
    if found is None and _OLDER.fullmatch(entry.name) is None:
        return False
    touched = max(part.stat().st_mtime for part in [entry, *(entry.rglob("*") if entry.is_dir() else ())])
    if time.time() - touched > _SURELY_DEAD:
        return True
    return found is not None and found["host"] == _HOST and not _may_live(int(found["pid"]), touched)


def _may_live(pid: int, touched: float) -> bool:
    """Whether the process that last touched a file at this time may still run; by its number alone, which a new process
    may have got, so that False is sure and True is not."""
    if pid == os.getpid():
        return touched >= _STARTED - 1  # an earlier process had our number, as in containers
    if os.name != "posix":
        return True  # there a signal of number 0 would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True

"""Files that are written aside and renamed, so that nobody ever reads half of one."""

import os
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it over `path`.

    A reader sees the old file or the new one, never half of one; when anything fails the old one stays.

    Args:
        path: The file; its folder is made where missing.
        write: Called with the path of the temporary file, which it has to fill.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        mode = aside.stat().st_mode & 0o777  # the user's own habit; some writers make files that nobody else may read
        write(aside)
        aside.chmod(mode)
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        aside.unlink(missing_ok=True)

"""Where the user's cache lies: compiled kernels and decoded photos."""

import os
import sys
from pathlib import Path


def user_cache() -> Path:
    """The folder that `HASHFIELD_CACHE` names, else `hashfield` in the folder that the system has for caches."""
    base = os.environ.get("HASHFIELD_CACHE")
    if base:
        return Path(base)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "hashfield"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hashfield"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hashfield"

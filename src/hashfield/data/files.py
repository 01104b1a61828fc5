"""Finding the files that a data file names, although it may have been written elsewhere."""

import os
import posixpath
import re
import unicodedata
from pathlib import Path

from hashfield.data.images import EXTENSIONS


class Folder:
    """Looks files up from a folder on whatever the case of their names, listing each folder once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, relative: str) -> Path | None:
        """The file at a path from `normalized`, or None. The exact name wins over other cases of it."""
        if posixpath.isabs(relative):
            path = Path(relative)
            return path if path.is_file() else None
        path = self.root
        for part in relative.split("/"):
            if part == "..":
                path = path.parent
                continue
            names = self._names(path).get(_fold(part), ())
            if not names:
                return None
            path = path / (part if part in names else names[0])
        return path if path.is_file() else None

    def find_image(self, file_path: str) -> tuple[Path | None, bool]:
        """The image that `file_path` names, and whether it lies in images/ instead of where it is said to.

        A name without a known ending is tried as it stands, then with each of `EXTENSIONS`. Where nothing
        is found, the last part of the name is looked for in images/ (data files that were written from
        another folder or on another computer).
        """
        for place, is_elsewhere in ((file_path, False), (f"images/{posixpath.basename(file_path)}", True)):
            has_ending = posixpath.splitext(place)[1].lower() in EXTENSIONS
            for ending in ("",) if has_ending else ("", *EXTENSIONS):
                found = self.find(place + ending)
                if found is not None:
                    return found, is_elsewhere
        return None, False

    def has_beside(self, path: Path, name: str) -> bool:
        """Whether a file of exactly this name lies in the folder of `path`."""
        return name in self._names(path.parent).get(_fold(name), ())

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listings:
            listing: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(folder)):
                    listing.setdefault(_fold(name), []).append(name)
            except OSError:
                pass  # not a folder, or not ours to read: nothing is found in it
            self._listings[folder] = listing
        return self._listings[folder]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def normalized(file_path: str) -> str:
    """A path with forward slashes and without "./", "//" and the like; Windows' backslashes are
    understood."""
    return posixpath.normpath(file_path.replace("\\", "/"))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key by which img2 comes before img10."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text

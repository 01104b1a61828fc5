"""Finding the files that a data file names, although it may have been written elsewhere."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final

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
        is found, the data file may have been written from another folder or on another computer: then images/ is
        looked into if the name says images/ in the end, leads out of the data's folder, or names no folder at all.
        A folder beside images/ is another one, e.g. that of another camera.
        """
        *folders, name = file_path.split("/")
        places = [(file_path, False)]
        if not folders or folders[-1].casefold() == "images" or escapes(file_path):
            places.append((f"images/{name}", True))
        for place, is_elsewhere in places:
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


class PhotoFolder:
    """The photos of one folder, by their names relative to it."""

    def __init__(self, root: Path, *, recursive: bool = True) -> None:
        self.root = root
        paths = root.rglob("*") if recursive else root.iterdir()
        names = [path.relative_to(root).as_posix() for path in paths if path.suffix.lower() in EXTENSIONS]
        self.names: list[str] = sorted(name for name in names if not posixpath.basename(name).startswith("."))
        """In plain string order (img10 before img2), as COLMAP and LLFF count them; with forward slashes."""
        self._files = Folder(root)
        self._by_stem: dict[str, str] = {}
        for name in reversed(self.names):
            self._by_stem[_fold(posixpath.splitext(name)[0])] = name

    def find_exactly(self, name: str) -> Path | None:
        """The photo of this name, whatever the case of its letters; None without one."""
        return self._files.find(name)

    def find(self, name: str) -> Path | None:
        """The photo of this name, whatever the case of its letters, or with another ending; None without one.

        Folders of smaller photos often hold another format than the one the data name.
        """
        found = self._files.find(name)
        other = self._by_stem.get(_fold(posixpath.splitext(name)[0]))
        return found or (None if other is None else self.root / other)


class MaskFolder:
    """The masks of one folder, found by the names of photos."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = PhotoFolder(root)

    def find(self, names: Sequence[str]) -> Path | None:
        """The mask of a photo that goes by any of these names, relative to some folder of photos; None without one.

        Of a/b.jpg that is a/b.jpg.png, as COLMAP has it, a/b.png or another picture a/b; and then the same without the
        folder a, which is only unambiguous where no two photos share a name: the caller sees to that.
        """
        for name in names:
            for ending in EXTENSIONS:
                found = self._folder.find_exactly(name + ending)
                if found is not None:
                    return found
            found = self._folder.find(name)
            if found is not None:
                return found
        return None


def photo_folders(root: Path) -> list[PhotoFolder]:
    """The folders in which the photos of a capture usually lie that exist: images, images_2, images_4 and so on, with
    growing number, and the capture's own folder."""
    named = [path for path in _entries(root) if path.is_dir() and _PHOTO_FOLDER.fullmatch(path.name)]
    named.sort(key=lambda path: natural_key(path.name))
    return [*map(PhotoFolder, named), PhotoFolder(root, recursive=False)]


def is_photo_folder(path: Path) -> bool:
    """Whether a path is named like one of the folders of a capture's photos."""
    return path.is_dir() and _PHOTO_FOLDER.fullmatch(path.name) is not None


_PHOTO_FOLDER: Final = re.compile(r"images(_[0-9]+)?")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not ours to read: nothing is found in it
        return []


def escapes(name: str) -> bool:
    """Whether a name, as data state it, would lead out of the folder that it is relative to."""
    path = name.replace("\\", "/")
    return posixpath.isabs(path) or ":" in path.split("/")[0] or ".." in path.split("/") or "\0" in path


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

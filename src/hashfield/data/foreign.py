"""Captures of other programs that are not read, told apart by what lies there, each with what to do instead."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple


class _Foreign(NamedTuple):
    what: str
    """What lies there, in words."""
    remedy: str
    """What to do, in words; {photos} stands for the folder of photos, if one is found."""


_PREPARE: Final = "find the cameras anew with `hashfield prepare {photos}`"
_METASHAPE: Final = _Foreign(
    "an Agisoft Metashape project or its exported cameras",
    "export the cameras from Metashape in COLMAP form (File > Export > Export Cameras) and name that folder, or "
    f"{_PREPARE}",
)
_REALITY: Final = _Foreign(
    "a RealityCapture or RealityScan project or its exported cameras",
    f"export the registration from there in COLMAP form and name that folder, or {_PREPARE}",
)
_POLYCAM: Final = _Foreign(
    "a raw Polycam capture",
    f"make transforms.json of it with nerfstudio's `ns-process-data polycam`, or {_PREPARE}",
)
_RECORD3D: Final = _Foreign(
    "a Record3D capture",
    "make transforms.json of it with instant-ngp's record3d2nerf.py or nerfstudio's `ns-process-data record3d`, or "
    f"{_PREPARE}",
)
_OPENSFM: Final = _Foreign(
    "an OpenSfM or ODM reconstruction", f"export it in COLMAP form with `opensfm export_colmap`, or {_PREPARE}"
)
_MESHROOM: Final = _Foreign(
    "a Meshroom (AliceVision) project",
    f"export it in COLMAP form with Meshroom's node ExportColmap, or {_PREPARE}",
)
_VIDEO: Final = _Foreign("a video", "find the cameras of its frames with `hashfield prepare {path}`")
_ARCHIVE: Final = _Foreign("an archive", "unpack it and name the folder that comes out")

_BY_ENDING: Final = {
    **dict.fromkeys((".psx", ".psz"), _METASHAPE),
    **dict.fromkeys((".rcproj", ".rspj"), _REALITY),
    **dict.fromkeys((".sfm", ".mg"), _MESHROOM),
    ".r3d": _RECORD3D,
    **dict.fromkeys((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".3gp", ".insv", ".360"), _VIDEO),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"), _ARCHIVE),
}
_TELLING: Final = (".psx", ".psz", ".rcproj", ".rspj", ".mg", ".sfm", ".r3d", ".xml", ".csv", ".xmp")
"""Endings of files by which a folder is known."""
_RC_HEADER: Final = b"#name,"  # of the table that RealityCapture exports


def foreign_hint(path: Path) -> str:
    """What lies at a path that no reader knows and what to do, in words that go on a sentence; "" where it is nothing
    that is known."""
    found = _of_file(path) if path.is_file() else _of_folder(path)
    if found is None:
        return ""
    folder = path if path.is_dir() else path.parent
    remedy = found.remedy.format(path=path, photos=_photos(folder) or "PHOTOS")
    return f"; it is {found.what}, which is not read: {remedy}"


def _of_file(path: Path) -> _Foreign | None:
    ending = path.suffix.lower()
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    if ending in (".xml", ".csv", ".xmp"):
        start = _start(path)
        if ending == ".xml" and b"<document" in start and b"<chunk" in start:
            return _METASHAPE
        if b"xcr:" in start or start.startswith(_RC_HEADER):
            return _REALITY
    return _OPENSFM if path.name == "reconstruction.json" else None


def _of_folder(path: Path) -> _Foreign | None:
    names = _names(path)
    has: Callable[[str], bool] = lambda place: (path / place).exists()  # noqa: E731
    if has("keyframes/cameras") or has("keyframes/corrected_cameras") or (has("cameras") and has("mesh_info.json")):
        return _POLYCAM
    if has("rgbd") and has("metadata"):
        return _RECORD3D
    if has("reconstruction.json") or has("opensfm/reconstruction.json"):
        return _OPENSFM
    for name in names[:2000]:
        if Path(name).suffix.lower() in _TELLING:
            found = _of_file(path / name)
            if found is not None:
                return found
    # only where nothing else lies there
    files = [name for name in names if not name.startswith(".")]
    only = _BY_ENDING.get(Path(files[0]).suffix.lower()) if len(files) == 1 else None
    if only is not None and only in (_VIDEO, _ARCHIVE):
        remedy = only.remedy.replace("{path}", str(path / files[0]).replace("{", "{{").replace("}", "}}"))
        return _Foreign(f"a folder with {only.what} ({files[0]})", remedy)
    return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _photos(folder: Path) -> Path | None:
    """The folder of photos of a capture."""
    places = ("keyframes/corrected_images", "keyframes/images", "rgbd", "images", ".")
    endings = (".jpg", ".jpeg", ".png", ".heic", ".tif", ".tiff", ".webp")
    for place in places:
        if any(Path(name).suffix.lower() in endings for name in _names(folder / place)):
            return folder / place
    return None

"""Telling raw photos of cameras from pictures.

Raw files are not read. Most are TIFF files whose first picture is a small preview, so a reader of TIFF would take that
for the photo without a word.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

ENDINGS: Final = (
    *(".3fr", ".ari", ".arw", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng", ".drf", ".eip", ".erf", ".fff"),
    *(".gpr", ".iiq", ".k25", ".kdc", ".mdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".raf"),
    *(".rw2", ".rwl", ".rwz", ".sr2", ".srf", ".srw", ".x3f"),
)
"""Endings that cameras give to the names of their raw files."""

_STARTS: Final = {
    b"II*\0\x10\0\0\0CR": "CR2", b"II\x1a\0\0\0HEAPCCDR": "CRW", b"FUJIFILMCCD-RAW": "RAF", b"FOVb": "X3F",
    b"\0MRM": "MRW", b"IIRO": "ORF", b"IIRS": "ORF", b"MMOR": "ORF", b"IIU\0": "RW2",
}  # fmt: skip
_ORDINARY: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"\x76\x2f\x31\x01")

_SUBDIRECTORIES: Final = 330
_PHOTOMETRIC: Final = 262
_DNG_VERSION: Final = 50706
_SENSOR: Final = (32803, 34892)
"""What TIFF calls numbers of a sensor: behind a mosaic of colour filters, or freed of it but not yet colours."""
_MOST_DIRECTORIES: Final = 64


def raw_photo(path: Path) -> str | None:
    """Why a file is refused, in words, where it is a raw photo; None for everything else, broken files included."""
    try:
        with open(path, "rb") as handle:
            kind = _kind(handle, path.suffix.lower())
    except OSError:
        return None
    if kind is None:
        return None
    return f"is a raw photo ({kind}), which is not read; develop it to a TIFF, PNG or JPEG file first"


def _kind(handle: BinaryIO, ending: str) -> str | None:
    start = handle.read(16)
    for beginning, kind in _STARTS.items():
        if start.startswith(beginning):
            return kind
    if start[4:12] == b"ftypcrx ":
        return "CR3"
    if start[:4] in (b"II*\0", b"MM\0*"):
        for number, tags in enumerate(_directories(handle)):
            if number == 0 and _DNG_VERSION in tags:
                return "DNG"
            if tags.get(_PHOTOMETRIC) in _SENSOR:
                return ending[1:].upper() if ending in ENDINGS else "TIFF with the numbers of a sensor"
    if ending in ENDINGS and start and not start.startswith(_ORDINARY):
        return ending[1:].upper()
    return None


def _directories(handle: BinaryIO) -> Iterator[dict[int, int]]:
    """The first value of each tag, of a TIFF's directories and those below them; ends where the file makes no sense."""
    handle.seek(0)
    order = "<" if handle.read(2) == b"II" else ">"
    handle.seek(4)
    coming, seen = list(struct.unpack(order + "I", handle.read(4).ljust(4, b"\0"))), set()
    while coming and len(seen) < _MOST_DIRECTORIES:
        place = coming.pop(0)
        if place == 0 or place in seen:
            continue
        seen.add(place)
        handle.seek(place)
        try:
            (n_tags,) = struct.unpack(order + "H", handle.read(2))
            entries = [struct.unpack(order + "HHI4s", handle.read(12)) for _ in range(n_tags)]
            (following,) = struct.unpack(order + "I", handle.read(4).ljust(4, b"\0"))
        except struct.error:
            continue
        tags = {}
        for tag, form, count, value in entries:
            tags[tag] = struct.unpack(order + ("H2x" if form == 3 else "I"), value)[0]
            if tag == _SUBDIRECTORIES and form in (4, 13) and 0 < count <= _MOST_DIRECTORIES:
                below = value
                if count > 1:
                    handle.seek(tags[tag])
                    below = handle.read(4 * count)
                coming += [x for (x,) in struct.iter_unpack(order + "I", below[: len(below) // 4 * 4])]
        yield tags
        coming.append(following)

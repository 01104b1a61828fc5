"""What mesh files hold, as vertices and triangles, before anything is cleaned.

OBJ, PLY and STL in text are read here, and the rest by trimesh. Its OBJ reader counts relative indices from the end of
the file instead of from where they stand, its PLY reader knows neither triangle strips nor binary files in which
polygons differ in size, and both cut polygons as fans, whatever their shape; of STL in text it passes over a solid that
is cut short.
"""

import io
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np

from hashfield.data.polygons import triangulate
from hashfield.errors import DataError


@dataclass(frozen=True)
class MeshContent:
    """The triangles of a file, as it has them."""

    vertices: np.ndarray
    """[n_vertices, 3] float64."""
    faces: np.ndarray
    """[n_faces, 3] int64; may name vertices that do not exist."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""


class FormatError(Exception):
    """A file that breaks the rules of its format; the text says where."""


def read_content(path: Path, trimesh: Any) -> MeshContent:
    """The triangles in a file, chosen by its ending.

    Args:
        path: An existing file that ends in .obj, .ply, .stl, .glb or .gltf.
        trimesh: The module.

    Raises:
        FormatError, or whatever trimesh stumbles over: the file is broken.
        DataError: the file is well-formed but needs something that is not read; the text names the file.
    """
    ending = path.suffix.lower()
    if ending == ".obj":
        return _from_obj(path.read_bytes())
    if ending == ".ply":
        return read_ply(path)
    if ending == ".stl":
        return _from_stl(path.read_bytes(), trimesh)
    return _from_gltf(path, trimesh)


def _from_trimesh(loaded: Any, trimesh: Any, notes: tuple[str, ...] = ()) -> MeshContent:
    """Scenes become one mesh, each node's transform applied."""
    if isinstance(loaded, trimesh.Scene):
        loaded = loaded.to_mesh() if loaded.geometry else None
    faces = np.asarray(getattr(loaded, "faces", ()), np.int64).reshape(-1, 3)
    vertices = np.asarray(getattr(loaded, "vertices", ()), np.float64).reshape(-1, 3)
    return MeshContent(vertices, faces, notes)


def _from_polygons(vertices: np.ndarray, corners: np.ndarray, counts: np.ndarray, notes: list[str]) -> MeshContent:
    is_whole = counts >= 3
    if not is_whole.all():
        n_lost = int((~is_whole).sum())
        notes = [
            *notes,
            f"warning: {n_lost} of {len(counts)} polygons have fewer than three corners; they are left out",
        ]
        corners, counts = corners[np.repeat(is_whole, counts)], counts[is_whole]
    return MeshContent(vertices, triangulate(vertices, corners, counts), tuple(notes))


# --- OBJ -------------------------------------------------------------------------------------------------------


def _from_obj(data: bytes) -> MeshContent:
    """Vertices and faces; everything else in a file (groups, materials, normals, lines, curves) is passed over."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # some editors on Windows
        data = data.decode("utf-16").encode()
    positions: list[bytes] = []
    corners: list[int] = []
    counts: list[int] = []
    n_vertices, begun = 0, []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        words = line.partition(b"#")[0].split() if b"#" in line else line.split()
        if begun:
            words, begun = begun + words, []
        if not words or words[0] not in (b"v", b"f", b"fo"):
            continue
        if words[-1].endswith(b"\\"):  # goes on in the next line
            begun = [*words[:-1], words[-1][:-1]] if len(words[-1]) > 1 else words[:-1]
            continue
        if words[0] == b"v":
            if len(words) < 4:
                raise FormatError(f"line {number}: a vertex of {len(words) - 1} numbers, expected 3")
            positions += words[1:4]
            n_vertices += 1
            continue
        for word in words[1:]:
            try:
                index = int(word.partition(b"/")[0])
            except ValueError:
                raise FormatError(f"line {number}: {_shown(word)} is not a corner of a face") from None
            if index == 0:
                raise FormatError(f"line {number}: vertices count from 1, got 0")
            # Relative to the vertices so far; one before the first stays negative, and is found to be missing.
            corners.append(index - 1 if index > 0 else n_vertices + index)
        counts.append(len(words) - 1)
    return _from_polygons(_numbers(positions), _int64(corners), _int64(counts), [])


def _shown(word: bytes) -> str:
    return repr(word[:30].decode("ascii", "replace"))


def _int64(values: list[int]) -> np.ndarray:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        raise FormatError(f"{max(values, key=abs)} is not the number of a vertex") from None


def _numbers(words: list[bytes]) -> np.ndarray:
    """[n, 3] float64."""
    try:
        return np.array([float(word) for word in words], np.float64).reshape(-1, 3)
    except ValueError as error:
        raise FormatError(
            str(error).removeprefix("could not convert string to float: b") + " is not a number"
        ) from None


# --- PLY -------------------------------------------------------------------------------------------------------

_PLY_TYPES: Final = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_CORNER_LISTS: Final = ("vertex_indices", "vertex_index")


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    count_kind: str | None
    """Type of the length if this is a list; None if it is a single number."""


@dataclass(frozen=True)
class _Element:
    name: str
    n_rows: int
    properties: tuple[_Property, ...]


_Lists = tuple[np.ndarray, np.ndarray]
"""(values of all rows, length of each row) of a list."""


def read_ply(path: Path) -> MeshContent:
    """The vertices and triangles of a PLY file; one of points has no triangles.

    Raises:
        FormatError: the file is broken.
        OSError: it cannot be read.
    """
    return _from_ply(path.read_bytes())


def _from_ply(data: bytes) -> MeshContent:
    kind, elements, at = _ply_header(data)
    source = _PlyText(data[at:]) if kind == "ascii" else _PlyBinary(data, at, ">" if "big" in kind else "<")
    vertices, corners, counts = np.zeros((0, 3)), [], []
    strips: list[np.ndarray] = []
    for element in elements:
        rows = source.rows(element)
        if element.name == "vertex":
            missing = [name for name in "xyz" if not isinstance(rows.get(name), np.ndarray)]
            if missing:
                raise FormatError(f"its vertices have no {missing[0]}")
            vertices = np.stack([np.asarray(rows[name], np.float64) for name in "xyz"], 1)
        elif element.name in ("face", "tristrips"):
            lists = {name: value for name, value in rows.items() if isinstance(value, tuple)}
            name = next((name for name in _CORNER_LISTS if name in lists), None)
            if name is None and len(lists) == 1:
                name = next(iter(lists))
            if name is None:
                continue
            values, lengths = lists[name]
            values = _indices(values)
            if element.name == "face":
                corners.append(values)
                counts.append(lengths)
            else:
                strips += [part for row in np.split(values, np.cumsum(lengths)[:-1]) for part in _runs(row)]
    for strip in strips:
        faces = np.stack([strip[:-2], strip[1:-1], strip[2:]], 1)
        faces[1::2] = faces[1::2][:, [1, 0, 2]]  # every second triangle of a strip is wound the other way
        a, b, c = faces.T
        faces = faces[(a != b) & (b != c) & (c != a)]  # stitches between strips
        corners.append(faces.reshape(-1))
        counts.append(np.full(len(faces), 3))
    n_after = source.n_left()
    notes = [f"warning: {n_after} bytes after its last element are not read"] if n_after else []
    empty = np.zeros(0, np.int64)
    return _from_polygons(vertices, np.concatenate([empty, *corners]), np.concatenate([empty, *counts]), notes)


def _runs(row: np.ndarray) -> list[np.ndarray]:
    """The strips in a list in which -1 begins a new one."""
    return [part[part >= 0] for part in np.split(row, np.flatnonzero(row < 0)) if (part >= 0).sum() >= 3]


def _indices(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise FormatError("corners of faces are not whole numbers")
    return values.astype(np.int64)


def _ply_header(data: bytes) -> tuple[str, list[_Element], int]:
    """(format, elements in order, where their rows begin)."""
    end = re.search(rb"(?:^|[\r\n])end_header[ \t]*(\r\n|\n|\r)?", data[: 1 << 20])
    if not re.match(rb"ply\s", data) or end is None:
        raise FormatError("it has no header of a PLY file")
    kind, elements = "", []
    for line in data[: end.start()].splitlines()[1:]:
        words = line.decode("latin-1").split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        try:
            if words[0] == "format":
                kind = words[1]
            elif words[0] == "element":
                n_rows = int(words[2])
                if n_rows < 0:
                    raise ValueError
                elements.append((words[1], n_rows, []))
            elif words[0] == "property" and words[1] == "list":
                elements[-1][2].append(_Property(words[4], _PLY_TYPES[words[3]], _PLY_TYPES[words[2]]))
            elif words[0] == "property":
                elements[-1][2].append(_Property(words[2], _PLY_TYPES[words[1]], None))
            else:
                raise ValueError
        except (ValueError, IndexError, KeyError):
            raise FormatError(f"its header has a line that is not understood: {' '.join(words)[:60]!r}") from None
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise FormatError(f"its format is {kind!r}, expected ascii, binary_little_endian or binary_big_endian")
    return kind, [_Element(name, n_rows, tuple(properties)) for name, n_rows, properties in elements], end.end()


def _cut_short(element: _Element) -> FormatError:
    return FormatError(f"it ends before its {element.n_rows} rows of the element {element.name} do")


class _PlyBinary:
    """Rows of binary elements, one element after the other."""

    def __init__(self, data: bytes, at: int, order: str) -> None:
        self._data, self._at, self._order = data, at, order

    def n_left(self) -> int:
        return len(self._data) - self._at

    def rows(self, element: _Element) -> dict[str, np.ndarray | _Lists]:
        """Each property's values, and for lists their lengths."""
        lengths = self._lengths_of_first(element)
        fields = []
        for k, one in enumerate(element.properties):
            if one.count_kind is not None:
                fields.append((f"n{k}", self._order + one.count_kind))
            shape = (lengths[k],) if one.count_kind is not None else ()
            fields.append((f"v{k}", self._order + one.kind, shape))
        row = np.dtype(fields)
        n_bytes = row.itemsize * element.n_rows
        if n_bytes <= self.n_left():
            found = (
                np.frombuffer(self._data, row, element.n_rows, self._at) if n_bytes else np.zeros(element.n_rows, row)
            )
            if all((found[f"n{k}"] == n).all() for k, n in lengths.items()):
                self._at += n_bytes
                values: dict[str, np.ndarray | _Lists] = {}
                for k, one in enumerate(element.properties):
                    column = found[f"v{k}"]
                    is_list = one.count_kind is not None
                    values[one.name] = (column.reshape(-1), np.full(element.n_rows, lengths[k])) if is_list else column
                return values
        elif not lengths:
            raise _cut_short(element)
        return self._row_by_row(element)

    def _lengths_of_first(self, element: _Element) -> dict[int, int]:
        """Length of each list in the first row (0 without rows), by the number of its property."""
        at, found = self._at, {}
        for k, one in enumerate(element.properties):
            if one.count_kind is None:
                at += np.dtype(one.kind).itemsize
                continue
            found[k] = self._length(element, one, at) if element.n_rows else 0
            at += np.dtype(one.count_kind).itemsize + found[k] * np.dtype(one.kind).itemsize
        return found

    def _length(self, element: _Element, one: _Property, at: int) -> int:
        kind = np.dtype(self._order + (one.count_kind or ""))
        if at + kind.itemsize > len(self._data):
            raise _cut_short(element)
        length = int(np.frombuffer(self._data, kind, 1, at)[0])
        if length < 0:
            raise FormatError(f"a list of the element {element.name} has {length} values")
        if at + kind.itemsize + length * np.dtype(one.kind).itemsize > len(self._data):
            raise _cut_short(element)
        return length

    def _row_by_row(self, element: _Element) -> dict[str, np.ndarray | _Lists]:
        parts: list[list[np.ndarray]] = [[] for _ in element.properties]
        lengths: list[list[int]] = [[] for _ in element.properties]
        kinds = [np.dtype(self._order + one.kind) for one in element.properties]
        counts = [np.dtype(one.count_kind).itemsize if one.count_kind else 0 for one in element.properties]
        for _ in range(element.n_rows):
            for k, one in enumerate(element.properties):
                n = self._length(element, one, self._at) if one.count_kind else 1
                begin = self._at + counts[k]
                self._at = begin + n * kinds[k].itemsize
                if self._at > len(self._data):
                    raise _cut_short(element)
                parts[k].append(np.frombuffer(self._data, kinds[k], n, begin))
                lengths[k].append(n)
        return _joined(element, parts, lengths, kinds)


class _PlyText:
    """Rows of elements in text, one element after the other."""

    def __init__(self, data: bytes) -> None:
        self._words, self._at = data.split(), 0

    def n_left(self) -> int:
        return sum(map(len, self._words[self._at :]))

    def rows(self, element: _Element) -> dict[str, np.ndarray | _Lists]:
        """Each property's values, and for lists their lengths."""
        lists = [k for k, one in enumerate(element.properties) if one.count_kind is not None]
        if not lists:
            n = len(element.properties)
            table = self._take(element, n * element.n_rows).reshape(element.n_rows, n)
            return {one.name: table[:, k] for k, one in enumerate(element.properties)}
        parts: list[list[np.ndarray]] = [[] for _ in element.properties]
        lengths: list[list[int]] = [[] for _ in element.properties]
        for _ in range(element.n_rows):
            for k, one in enumerate(element.properties):
                n = 1
                if one.count_kind is not None:
                    (length,) = self._take(element, 1)
                    if not (length >= 0 and length == int(length)):
                        raise FormatError(f"a list of the element {element.name} has {length:g} values")
                    n = int(length)
                parts[k].append(self._take(element, n))
                lengths[k].append(n)
        return _joined(element, parts, lengths, [np.dtype("f8")] * len(parts))

    def _take(self, element: _Element, n: int) -> np.ndarray:
        words = self._words[self._at : self._at + n]
        if len(words) < n:
            raise _cut_short(element)
        self._at += n
        try:
            return np.array([float(word) for word in words])
        except ValueError:
            wrong = next(word for word in words if not _is_number(word))
            raise FormatError(f"{_shown(wrong)} in the element {element.name} is not a number") from None


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _joined(
    element: _Element, parts: list[list[np.ndarray]], lengths: list[list[int]], kinds: list[np.dtype]
) -> dict[str, np.ndarray | _Lists]:
    found: dict[str, np.ndarray | _Lists] = {}
    for k, one in enumerate(element.properties):
        values = np.concatenate([np.zeros(0, kinds[k]), *parts[k]])
        found[one.name] = values if one.count_kind is None else (values, np.array(lengths[k], np.int64))
    return found


# --- STL -------------------------------------------------------------------------------------------------------

_STL_TRIANGLE: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])
_STL_HEADER: Final = 84


def _from_stl(data: bytes, trimesh: Any) -> MeshContent:
    is_text = data[:1000].lstrip()[:5].lower() == b"solid" and re.search(rb"\bfacet\b", data[:4000].lower()) is not None
    notes: tuple[str, ...] = ()
    if len(data) > _STL_HEADER:
        (n_faces,) = struct.unpack("<I", data[_STL_HEADER - 4 : _STL_HEADER])
        end = _STL_HEADER + n_faces * _STL_TRIANGLE.itemsize
        if n_faces > 0 and end < len(data) and not is_text:
            notes = (f"warning: {len(data) - end} bytes after its last triangle are not read",)
            data = data[:end]
        is_text = is_text and end != len(data)
    if is_text:
        return _from_stl_text(data.lower())
    return _from_trimesh(trimesh.load(io.BytesIO(data), file_type="stl", process=False), trimesh, notes)


def _from_stl_text(text: bytes) -> MeshContent:
    """All solids of a text, which trimesh would read up to the last one that ends; nothing where none ends."""
    begun, ended = (len(re.findall(rb"^\s*" + word + rb"\b", text, re.MULTILINE)) for word in (b"solid", b"endsolid"))
    if 0 < ended < begun:
        raise FormatError(f"{begun} solids begin and {ended} end: it is cut short")
    facets = re.sub(rb"^\s*(end)?solid\b.*$", b"", text, flags=re.MULTILINE)  # without names, which may say anything
    n_loops, words = len(re.findall(rb"\bendloop\b", facets)), re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", facets)
    if not ended:
        return MeshContent(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    if len(words) != 3 * n_loops:
        raise FormatError(f"{n_loops} triangles end, of {len(words)} corners")
    vertices = _numbers([word for corner in words for word in corner])
    return MeshContent(vertices, np.arange(len(vertices)).reshape(-1, 3))


# --- glTF ------------------------------------------------------------------------------------------------------

_APPEARANCE: Final = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "EXT_lights_", "KHR_xmp")
"""Beginnings of the names of extensions that do not move a triangle."""
_READ: Final = ("KHR_mesh_quantization",)
_DRACO: Final = "KHR_draco_mesh_compression"
_MESHOPT: Final = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_INSTANCES: Final = "EXT_mesh_gpu_instancing"
_TRIANGLES, _STRIP, _FAN = 4, 5, 6


def _from_gltf(path: Path, trimesh: Any) -> MeshContent:
    data = path.read_bytes()
    is_binary = data[:4] == b"glTF"
    if path.suffix.lower() == ".glb" or is_binary:
        if not is_binary:
            raise FormatError("it has no header of a GLB file")
        version, length, n_json = struct.unpack("<III", data[4:16].ljust(12, b"\0"))
        if version == 2 and length > len(data):
            raise FormatError(f"it says it has {length} bytes, and has {len(data)}: it is cut short")
        text = data[20 : 20 + n_json]
    else:
        text = data
    refusal = _refusal(json.loads(text), is_binary)
    if refusal is not None:
        raise DataError(f"{path}: {refusal}")

    class Resolver(trimesh.resolvers.FilePathResolver):
        """Files beside the mesh, whose names glTF writes as parts of an URI: %20 for a space."""

        def get(self, name: str) -> Any:
            try:
                return super().get(name)
            except (OSError, ValueError):
                if unquote(name) == name:
                    raise
                return super().get(unquote(name))

    file_type = "glb" if is_binary else "gltf"
    loaded = trimesh.load(io.BytesIO(data), file_type=file_type, resolver=Resolver(str(path)), process=False)
    return _from_trimesh(loaded, trimesh)


def _refusal(tree: dict[str, Any], is_binary: bool) -> str | None:
    """What a glTF file needs that is not read, in words; None where there is no such thing.

    A file of which only a part is compressed is refused too: the rest alone would be half a mesh.
    """
    for name in tree.get("extensionsRequired", ()):
        if name == _DRACO or "compression" in name:
            return f"compressed with {name}, which is not read"
        if name not in _READ and not name.startswith(_APPEARANCE):
            return f"needs the extension {name}, which is not read"
    views, accessors = tree.get("bufferViews", ()), tree.get("accessors", ())
    for view in views:
        buffer = tree["buffers"][view["buffer"]]
        has_plain_bytes = "uri" in buffer or (is_binary and view["buffer"] == 0)
        for name in _MESHOPT:
            if name in view.get("extensions", ()) and not has_plain_bytes:
                return f"compressed with {name}, which is not read"
    if any(_INSTANCES in node.get("extensions", ()) for node in tree.get("nodes", ())):
        return f"needs the extension {_INSTANCES}, which is not read"
    for mesh in tree.get("meshes", ()):
        for primitive in mesh["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            if mode == _FAN:
                return "has triangle fans, which are not read"
            if mode not in (_TRIANGLES, _STRIP):
                continue
            position = primitive.get("attributes", {}).get("POSITION")
            for number, what in ((position, "positions"), (primitive.get("indices"), "corners")):
                if number is None:
                    continue
                accessor = accessors[number]
                if "sparse" in accessor:
                    return f"has {what} in a sparse accessor, which is not read"
                if "bufferView" not in accessor:
                    used = sorted(primitive.get("extensions", ()))
                    if used:
                        return f"compressed with {used[0]}, which is not read"
                    return f"has {what} without any bytes"
                if what == "positions" and accessor.get("normalized"):
                    return "has positions as normalized integers, which are not read"
    return None

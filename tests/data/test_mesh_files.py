"""Mesh files of the odd kinds that people have, judged by distances that are computed without a mesh."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trimesh")
pytest.importorskip("igl")

from hashfield.data.mesh_distance import DistanceQuery
from hashfield.data.meshes import SourceMesh, make_mesh, read_mesh
from hashfield.data.polygons import triangulate
from hashfield.errors import DataError
from tests.data.mesh_cases import sphere, torus, turned, write_obj, write_stl

CUBE = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
CUBE_QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
CUBE_FACES = np.concatenate([CUBE_QUADS[:, [0, 1, 2]], CUBE_QUADS[:, [0, 2, 3]]])

Triangles = tuple[np.ndarray, np.ndarray]


def cube(half: float = 1.0, center: Sequence[float] = (0.0, 0.0, 0.0), *, is_turned: bool = False) -> Triangles:
    """A cube of 12 triangles."""
    return CUBE * half + np.asarray(center), CUBE_FACES[:, ::-1] if is_turned else CUBE_FACES


def together(*parts: Triangles) -> Triangles:
    """All of these as one list of vertices and one of triangles."""
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    faces = [faces + start for (_, faces), start in zip(parts, starts[:-1], strict=True)]
    return np.concatenate([vertices for vertices, _ in parts]), np.concatenate(faces)


def cube_distance(points: np.ndarray, half: float = 1.0, center: Sequence[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Exact signed distance to a cube, by formula."""
    q = np.abs(points - np.asarray(center)) - half
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def signed(mesh: SourceMesh, points: np.ndarray) -> np.ndarray:
    """As a run asks it."""
    return DistanceQuery(mesh.vertices, mesh.faces, is_closed=mesh.is_closed).signed(points)


def made(*parts: Triangles) -> SourceMesh:
    return make_mesh(*together(*parts), "made", Path("made"))


def around(mesh: SourceMesh, n: int = 6000) -> np.ndarray:
    """Random points in and around the box of a mesh."""
    low, high = mesh.box
    return np.random.default_rng(5).uniform(low - 0.3, high + 0.3, (n, 3))


# --- polygons


def shoelace(outline: np.ndarray) -> float:
    x, y = outline.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def star(n: int, rng: np.random.Generator) -> np.ndarray:
    """A polygon around the origin with a random radius at each angle."""
    angle = 2 * np.pi * (np.arange(n) + rng.uniform(0, 0.8, n)) / n
    return rng.uniform(0.1, 1, (n, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)


def comb(n: int) -> np.ndarray:
    """A base with teeth."""
    teeth = [(k, 1.0 if k % 2 else 5.0) for k in range(2 * n)]
    return np.array([(0.0, 0.0), (2 * n - 1, 0.0), *teeth[::-1]])


def spiral(n: int) -> np.ndarray:
    t = np.linspace(0.5, 6 * np.pi, n)[:, None]
    ray = np.concatenate([np.cos(t), np.sin(t)], 1)
    return np.concatenate([t * ray, ((t - 0.4) * ray)[::-1]])


SQUARE = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)]
HOLES = [(1.0, 1.0), (1.0, 2.0), (2.0, 2.0), (2.0, 1.0), (2.5, 2.5), (2.5, 3.5), (3.5, 3.5), (3.5, 2.5)]
OUTLINES: dict[str, tuple[np.ndarray, list[int]]] = {
    **{f"star {n} {k}": (star(n, np.random.default_rng(k)), list(range(n))) for n in (5, 9, 30) for k in range(6)},
    "comb": (comb(12), list(range(26))),
    "spiral": (spiral(40), list(range(80))),
    "corners on lines": (np.array([(x, 0.0) for x in range(5)] + [(4.0, 2.0), (2.0, 2.0), (0.0, 2.0)]), list(range(8))),
    "quad with a dent": (np.array([(0.0, 0.0), (4.0, 1.0), (0.0, 2.0), (1.0, 1.0)]), [1, 2, 3, 0]),
    "one hole": (np.array(SQUARE + HOLES), [0, 1, 2, 3, 0, 4, 5, 6, 7, 4]),
    "two holes": (np.array(SQUARE + HOLES), [0, 1, 2, 10, 9, 8, 11, 10, 2, 3, 0, 4, 5, 6, 7, 4]),
    "one hole, its cut as vertices of its own": (np.array([*SQUARE, SQUARE[0], *HOLES[:4], HOLES[0]]),
                                                 [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("way", [1, -1])
def test_triangles_cover_a_polygon_once(name: str, start: int, way: int) -> None:
    outline, corners = OUTLINES[name]
    corners = np.roll(corners, -start)[::way]
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    vertices = np.pad(outline, ((0, 0), (0, 1))) @ rotation * 30 + 7
    faces = triangulate(vertices, corners, np.array([len(corners)]))
    areas = np.array([shoelace(outline[face]) for face in faces])
    area = shoelace(outline[corners])
    # All wound as the polygon is, and of its area together: so none overlap and nothing is left out.
    assert (areas * np.sign(area) > -1e-9).all()
    assert areas.sum() == pytest.approx(area, rel=1e-9)
    assert set(faces.ravel().tolist()) <= set(corners.tolist())


def test_convex_polygons_are_fans_and_polygons_keep_their_order() -> None:
    angle = 2 * np.pi * np.arange(7) / 7
    vertices = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    corners = np.array([0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4, 1, 2, 3])
    faces = triangulate(vertices, corners, np.array([3, 4, 5, 3]))
    expected = [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 2, 3], [0, 3, 4], [1, 2, 3]]
    assert faces.tolist() == expected


def test_a_polygon_that_is_not_planar_closes_with_its_neighbours(tmp_path: Path) -> None:
    """A prism over a star whose caps are bent: one polygon each."""
    rng = np.random.default_rng(3)
    outline = star(15, rng)
    bottom = np.c_[outline, rng.uniform(-0.05, 0.05, 15)]
    lines = [f"v {x} {y} {z}" for x, y, z in np.concatenate([bottom, bottom + np.array([0, 0, 1])])]
    lines += ["f " + " ".join(str(k) for k in range(15, 0, -1)), "f " + " ".join(str(k) for k in range(16, 31))]
    lines += [f"f {k + 1} {(k + 1) % 15 + 1} {(k + 1) % 15 + 16} {k + 16}" for k in range(15)]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    mesh = read_mesh(tmp_path / "a.obj")
    assert mesh.is_closed and not mesh.notes
    points = np.c_[rng.uniform(-1.2, 1.2, (4000, 2)), rng.uniform(0.1, 0.9, 4000)]
    assert np.array_equal(signed(mesh, points) < 0, in_polygon(points[:, :2], outline))


def in_polygon(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """By the even-odd rule."""
    (ax, ay), (bx, by) = outline.T, np.roll(outline, -1, axis=0).T
    x, y = points[:, :1], points[:, 1:]
    crosses = ((ay > y) != (by > y)) & (x < ax + (bx - ax) * (y - ay) / np.where(by == ay, 1, by - ay))
    return crosses.sum(1) % 2 == 1


# --- OBJ


CORNERS = {"v": "{0}", "v/vt": "{0}/{0}", "v//vn": "{0}//{0}", "v/vt/vn": "{0}/{0}/{0}"}


@pytest.mark.parametrize("form", CORNERS)
@pytest.mark.parametrize("gap", [" ", "\t", " \t "], ids=["space", "tab", "both"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("is_continued", [False, True])
def test_relative_indices_count_from_where_they_stand(
    form: str, gap: str, end: str, is_continued: bool, tmp_path: Path
) -> None:
    centers = [(0.0, 0, 0), (3.0, 0, 0), (0.0, 3, 0)]
    lines = ["# C:\\models\\", "o cubes"]
    for center in centers:
        for vertex in CUBE * 0.5 + center:
            lines += [gap.join(["v", *map(str, vertex)]), gap.join(["vt", "0", "0"]), gap.join(["vn", "0", "0", "1"])]
        for k, quad in enumerate(CUBE_QUADS):
            # Relative and absolute ones may stand side by side.
            corners = [CORNERS[form].format(int(i) - 8) for i in quad]
            middle = gap + "\\" + end if is_continued and k % 2 else gap
            lines.append("f" + gap + gap.join(corners[:2]) + middle + gap.join(corners[2:]) + gap + "# a side")
    (tmp_path / "a.obj").write_bytes(end.join(lines).encode())
    mesh = read_mesh(tmp_path / "a.obj")
    assert mesh.is_closed and not mesh.notes and len(mesh.faces) == 36
    points = around(mesh)
    exact = np.min([cube_distance(points, 0.5, center) for center in centers], axis=0)
    assert np.abs(signed(mesh, points) - exact).max() < 1e-9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -4\n", "1 of 1 triangles name vertices that the file does not hold"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "line 4: vertices count from 1, got 0"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 x\n", "line 4: 'x' is not a corner of a face"),
        ("v 0 0\nv 1 0 0\n", "line 1: a vertex of 2 numbers, expected 3"),
        ("v 0 0 0\nv 1,5 0 0\nv 0 1 0\nf 1 2 3\n", "'1,5' is not a number"),
        (f"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 {10**30}\n", "is not the number of a vertex"),
        ("v 0 0 0\nv 1e308 -1e308 0\nv 0 1e308 0\nv 1 1 1\nf 1 2 3 4\n", "has a diagonal of inf"),
    ],
)
def test_a_broken_obj_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(text)
    with pytest.raises(DataError) as error:
        read_mesh(tmp_path / "a.obj")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_obj_of_other_programs(tmp_path: Path) -> None:
    """Colours behind positions, a byte order mark, UTF-16, faces before their vertices, two corners."""
    vertices, faces = cube()
    lines = ["v " + " ".join(map(str, vertex)) + " 0.5 0.5 0.5" for vertex in vertices]
    faces_first = ["f " + " ".join(str(k + 1) for k in face) for face in faces] + ["g sides", "usemtl none", "l 1 2"]
    text = "\n".join(faces_first + lines)
    for name, data in {"a": text.encode("utf-8-sig"), "b": text.encode("utf-16")}.items():
        (tmp_path / f"{name}.obj").write_bytes(data)
        mesh = read_mesh(tmp_path / f"{name}.obj")
        assert mesh.is_closed and not mesh.notes and len(mesh.faces) == 12
    (tmp_path / "c.obj").write_text(text + "\nf 1 2\n")
    assert read_mesh(tmp_path / "c.obj").notes == (
        "warning: 1 of 13 polygons have fewer than three corners; they are left out",
    )


# --- PLY


def ply(path: Path, vertices: np.ndarray, lists: Sequence[Sequence[int]], kind: str, element: str = "face") -> Path:
    """A PLY file with lists of corners.

    Args:
        path: Where to write it.
        vertices: [n, 3].
        lists: Of each row of the element.
        kind: ascii, binary_little_endian or binary_big_endian.
        element: face or tristrips.
    """
    head = [
        "ply", f"format {kind} 1.0", "comment made for a test", f"element vertex {len(vertices)}",
        "property uchar red", *(f"property double {axis}" for axis in "xyz"),
        f"element {element} {len(lists)}",
        f"property list {'uchar' if element == 'face' else 'int'} int vertex_indices",
        "property float quality", "end_header",
    ]  # fmt: skip
    if kind == "ascii":
        body = [" ".join(map(str, [7, *vertex])) for vertex in vertices]
        body += [" ".join(map(str, [len(row), *row, 0.5])) for row in lists]
        path.write_text("\n".join([*head, *body, ""]))
        return path
    order, count = ">" if "big" in kind else "<", "B" if element == "face" else "i"
    data = b"".join(struct.pack(order + "B3d", 7, *vertex) for vertex in vertices)
    data += b"".join(struct.pack(f"{order}{count}{len(row)}if", len(row), *row, 0.5) for row in lists)
    path.write_bytes("\n".join([*head, ""]).encode() + data)
    return path


KINDS = ["ascii", "binary_little_endian", "binary_big_endian"]
L_OUTLINE = np.array([(0.0, 0.0), (2.0, 0.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (0.0, 2.0)])


def l_prism(start: int) -> tuple[np.ndarray, list[list[int]]]:
    """Vertices and polygons of a prism of height 1 over an L, whose caps begin at a corner of choice."""
    vertices = np.concatenate([np.c_[L_OUTLINE, np.zeros(6)], np.c_[L_OUTLINE, np.ones(6)]])
    cap = np.roll(np.arange(6), -start)
    sides = [[k, (k + 1) % 6, (k + 1) % 6 + 6, k + 6] for k in range(6)]
    return vertices, [cap[::-1].tolist(), (cap + 6).tolist(), *sides]


def l_distance(points: np.ndarray) -> np.ndarray:
    """Exact signed distance to that prism: of a point to an L, then to a prism over it."""
    a, b = L_OUTLINE, np.roll(L_OUTLINE, -1, axis=0)
    along = b - a
    t = (((points[:, None, :2] - a) * along).sum(2) / (along**2).sum(1)).clip(0, 1)
    flat = np.linalg.norm(points[:, None, :2] - a - t[..., None] * along, axis=2).min(1)
    flat = np.where(in_polygon(points[:, :2], L_OUTLINE), -flat, flat)
    up = np.abs(points[:, 2] - 0.5) - 0.5
    return np.minimum(np.maximum(flat, up), 0) + np.hypot(np.maximum(flat, 0), np.maximum(up, 0))


@pytest.mark.parametrize("start", range(6))
@pytest.mark.parametrize("form", ["obj", *KINDS])
def test_concave_polygons_leave_their_notch_open(start: int, form: str, tmp_path: Path) -> None:
    vertices, polygons = l_prism(start)
    if form == "obj":
        lines = ["v " + " ".join(map(str, vertex)) for vertex in vertices]
        lines += ["f " + " ".join(str(k + 1) for k in polygon) for polygon in polygons]
        path = tmp_path / "a.obj"
        path.write_text("\n".join(lines))
    else:
        path = ply(tmp_path / "a.ply", vertices, polygons, form)
    mesh = read_mesh(path)
    assert mesh.is_closed and not mesh.notes
    points = np.concatenate([around(mesh), [[1.3, 1.3, 1.02], [1.3, 1.3, -0.02], [1.01, 1.01, 0.5]]])
    assert np.abs(signed(mesh, points) - l_distance(points)).max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_triangle_strips(kind: str, tmp_path: Path) -> None:
    """A cube as two strips in one list with -1 between them, and as one strip with stitches; the rest as a third."""
    sides, caps = [0, 4, 1, 5, 3, 7, 2, 6, 0, 4], [[0, 1, 2, 3], [4, 6, 5, 7]]
    stitched = [*caps[0], 3, 4, *caps[1]]
    for name, rows in (("a", [[*sides, -1, *caps[0]], caps[1]]), ("b", [sides, stitched])):
        path = ply(tmp_path / f"{name}.ply", CUBE, rows, kind, "tristrips")
        mesh = read_mesh(path)
        assert len(mesh.faces) == 12 and mesh.is_closed, mesh.notes
        points = around(mesh)
        assert np.abs(signed(mesh, points) - cube_distance(points)).max() < 1e-9
        if name == "a":
            assert not mesh.notes, "every second triangle of a strip is wound the other way"


@pytest.mark.parametrize("kind", KINDS)
def test_a_ply_that_is_cut_short_is_an_error(kind: str, tmp_path: Path) -> None:
    data = ply(tmp_path / "a.ply", *l_prism(0), kind).read_bytes()
    for n in range(5, len(data) - data.index(b"end_header") - 12, 37):
        (tmp_path / "a.ply").write_bytes(data[:-n])
        with pytest.raises(DataError, match="ends before its"):
            read_mesh(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_bytes(data + b"1 2 3\n")
    assert read_mesh(tmp_path / "a.ply").notes[0].endswith("bytes after its last element are not read")


# --- STL


@pytest.mark.parametrize("header", [b"made", b"solid made"])
def test_stl_with_bytes_after_its_last_triangle(header: bytes, tmp_path: Path) -> None:
    data = write_stl(tmp_path / "a.stl", *cube()).read_bytes()
    (tmp_path / "a.stl").write_bytes(header.ljust(80) + data[80:] + b"\r\n" + bytes(11))
    mesh = read_mesh(tmp_path / "a.stl")
    assert mesh.notes == ("warning: 13 bytes after its last triangle are not read",)
    points = around(mesh)
    assert np.abs(signed(mesh, points) - cube_distance(points)).max() < 1e-6


def stl_text(vertices: np.ndarray, faces: np.ndarray, name: str) -> str:
    lines = [f"solid {name}"]
    for face in faces:
        lines += ["facet normal 0 0 0", "outer loop", *("vertex {} {} {}".format(*vertices[k]) for k in face)]
        lines += ["endloop", "endfacet"]
    return "\n".join([*lines, f"endsolid {name}", ""])


def test_an_stl_text_whose_second_solid_is_cut_short_is_an_error(tmp_path: Path) -> None:
    text = stl_text(*cube(), "solid a") + stl_text(*cube(1.0, (5.0, 0, 0)), "b")
    (tmp_path / "a.stl").write_text(text)
    assert len(read_mesh(tmp_path / "a.stl").faces) == 24
    (tmp_path / "a.stl").write_text(text[:-300])
    with pytest.raises(DataError, match="2 solids begin and 1 end"):
        read_mesh(tmp_path / "a.stl")
    (tmp_path / "a.stl").write_text(text.replace("vertex", "ver", 1))
    with pytest.raises(DataError, match="24 triangles end, of 71 corners"):
        read_mesh(tmp_path / "a.stl")
    one_line = stl_text(*cube(), "a vertex of my solid").replace("loop\n", "loop ").replace("\nendloop", " endloop")
    (tmp_path / "a.stl").write_text(one_line)
    assert len(read_mesh(tmp_path / "a.stl").faces) == 12


# --- glTF


def gltf(parts: Sequence[Triangles]) -> tuple[dict, bytes]:
    """(tree, buffer) of a scene with a mesh of one primitive for each part; float positions and 32-bit corners."""
    tree: dict = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": list(range(len(parts)))}],
                  "nodes": [], "meshes": [], "accessors": [], "bufferViews": []}  # fmt: skip
    data = b""
    for k, (vertices, faces) in enumerate(parts):
        primitive = {"attributes": {"POSITION": 2 * k}, "indices": 2 * k + 1}
        tree["nodes"].append({"mesh": k})
        tree["meshes"].append({"primitives": [primitive]})
        for array, kind, form in (
            (vertices.astype("<f4"), 5126, "VEC3"),
            (faces.astype("<u4").reshape(-1), 5125, "SCALAR"),
        ):
            tree["accessors"].append(
                {"bufferView": len(tree["bufferViews"]), "componentType": kind, "count": len(array), "type": form}
            )
            tree["bufferViews"].append({"buffer": 0, "byteOffset": len(data), "byteLength": array.nbytes})
            data += array.tobytes()
    tree["buffers"] = [{"byteLength": len(data)}]
    return tree, data


def glb(path: Path, tree: dict, data: bytes) -> Path:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    data += bytes(-len(data) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(data), 0x004E4942) + data
    path.write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks)
    return path


PARTS = [cube(), cube(1.0, (5.0, 0, 0))]


@pytest.mark.parametrize("name", ["my mesh.bin", "größe.bin", "a%20b.bin"])
@pytest.mark.parametrize("is_quoted", [True, False])
def test_gltf_buffers_are_found_by_their_uri(name: str, is_quoted: bool, tmp_path: Path) -> None:
    from urllib.parse import quote

    tree, data = gltf(PARTS)
    tree["buffers"][0]["uri"] = "parts/" + (quote(name) if is_quoted else name)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / name).write_bytes(data)
    (tmp_path / "a.gltf").write_text(json.dumps(tree), encoding="utf-8")
    mesh = read_mesh(tmp_path / "a.gltf")
    assert len(mesh.faces) == 24 and mesh.is_closed and not mesh.notes


def draco_part(tree: dict) -> None:
    """The second mesh is compressed, the first is not."""
    tree["extensionsUsed"] = ["KHR_draco_mesh_compression"]
    tree["meshes"][1]["primitives"][0]["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 2}}
    for accessor in tree["accessors"][2:]:
        del accessor["bufferView"]


def meshopt(tree: dict) -> None:
    tree["extensionsUsed"] = ["EXT_meshopt_compression"]
    tree["buffers"].append({"byteLength": 1000, "extensions": {"EXT_meshopt_compression": {"fallback": True}}})
    tree["bufferViews"][2]["buffer"] = 1
    tree["bufferViews"][2]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0}}


def required(name: str) -> Callable[[dict], None]:
    return lambda tree: tree.update(extensionsRequired=["KHR_materials_unlit", name], extensionsUsed=[name])


def sparse(tree: dict) -> None:
    tree["accessors"][2]["sparse"] = {"count": 1}


def normalized(tree: dict) -> None:
    tree["accessors"][0]["normalized"] = True


def fan(tree: dict) -> None:
    tree["meshes"][1]["primitives"][0]["mode"] = 6


def instances(tree: dict) -> None:
    tree["nodes"][1]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {}}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (required("KHR_draco_mesh_compression"), "compressed with KHR_draco_mesh_compression, which is not read"),
        (required("EXT_meshopt_compression"), "compressed with EXT_meshopt_compression, which is not read"),
        (required("MPEG_mesh_linking"), "needs the extension MPEG_mesh_linking, which is not read"),
        (draco_part, "compressed with KHR_draco_mesh_compression, which is not read"),
        (meshopt, "compressed with EXT_meshopt_compression, which is not read"),
        (sparse, "has positions in a sparse accessor, which is not read"),
        (normalized, "has positions as normalized integers, which are not read"),
        (fan, "has triangle fans, which are not read"),
        (instances, "needs the extension EXT_mesh_gpu_instancing, which is not read"),
    ],
)
@pytest.mark.parametrize("form", ["glb", "gltf"])
def test_gltf_that_cannot_be_read_as_a_whole_is_refused(
    change: Callable[[dict], None], expected: str, form: str, tmp_path: Path
) -> None:
    tree, data = gltf(PARTS)
    change(tree)
    path = tmp_path / f"a.{form}"
    if form == "glb":
        glb(path, tree, data)
    else:
        tree["buffers"][0]["uri"] = "a.bin"
        (tmp_path / "a.bin").write_bytes(data)
        path.write_text(json.dumps(tree))
    with pytest.raises(DataError) as error:
        read_mesh(path)
    assert str(error.value) == f"{path}: {expected}"


def test_gltf_whose_extensions_do_not_move_triangles_is_read(tmp_path: Path) -> None:
    tree, data = gltf(PARTS)
    tree["extensionsRequired"] = ["KHR_texture_transform", "EXT_texture_webp", "KHR_materials_unlit"]
    assert len(read_mesh(glb(tmp_path / "a.glb", tree, data)).faces) == 24
    whole = (tmp_path / "a.glb").read_bytes()
    (tmp_path / "a.glb").write_bytes(whole[:-40])
    with pytest.raises(DataError, match="cut short"):
        read_mesh(tmp_path / "a.glb")


# --- bodies and cavities


def shells_distance(points: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Signed distance to cubes in each other: solid between the first and the second, empty to the third, ..."""
    found = cube_distance(points, radii[0])
    for k, radius in enumerate(radii[1:]):
        inner = cube_distance(points, radius)
        found = np.maximum(found, -inner) if k % 2 == 0 else np.minimum(found, inner)
    return found


def test_two_bodies_of_which_one_is_inside_out_are_both_solid() -> None:
    mesh = made(cube(), cube(0.3, (3.0, 0, 0), is_turned=True))
    points = around(mesh)
    exact = np.minimum(cube_distance(points), cube_distance(points, 0.3, (3, 0, 0)))
    assert np.abs(signed(mesh, points) - exact).max() < 1e-9
    assert mesh.notes == ("warning: 1 of 2 bodies were inside out (12 triangles); turned",)


@pytest.mark.parametrize("n_shells", [2, 3, 4])
@pytest.mark.parametrize("wrong", ["nothing", "a triangle of each", "a triangle of the second", "all", "last of three"])
def test_shells_in_each_other_stay_what_they_are(n_shells: int, wrong: str) -> None:
    radii = [2.0, 1.5, 1.0, 0.5][:n_shells]
    shells = [cube(radius, is_turned=k % 2 == 1) for k, radius in enumerate(radii)]
    if wrong == "a triangle of each":
        shells = [(vertices, turned(faces, slice(3, 4))) for vertices, faces in shells]
    elif wrong == "a triangle of the second":
        shells[1] = (shells[1][0], turned(shells[1][1], slice(7, 8)))
    elif wrong == "all":
        shells = [(vertices, faces[:, ::-1]) for vertices, faces in shells]
    elif wrong == "last of three":
        if n_shells < 3:
            pytest.skip("needs a body in a cavity")
        shells[2] = (shells[2][0], shells[2][1][:, ::-1])
    mesh = made(*shells)
    assert mesh.is_closed
    points = around(mesh)
    assert np.abs(signed(mesh, points) - shells_distance(points, radii)).max() < 1e-9
    assert len(mesh.notes) == (wrong != "nothing"), mesh.notes


def test_an_outer_wall_that_is_inside_out_keeps_its_cavity() -> None:
    mesh = made(cube(2.0, is_turned=True), cube(1.0, is_turned=True), cube(1.0, (9.0, 0, 0)))
    points = around(mesh, 20_000)
    exact = np.minimum(shells_distance(points, (2.0, 1.0)), cube_distance(points, 1.0, (9, 0, 0)))
    assert np.abs(signed(mesh, points) - exact).max() < 1e-9


def test_a_small_body_in_another_that_faces_outwards_is_part_of_it() -> None:
    """As the file says; around it, normals alone would call the solid empty."""
    mesh = made(sphere(40, 10.0), cube(0.1, (3.0, 0, 0)))
    query = DistanceQuery(mesh.vertices, mesh.faces, is_closed=mesh.is_closed)
    assert not mesh.notes and query.rule == "winding" and query.passes_through_itself
    assert (query.signed(np.array([[3.11, 0, 0], [3.0, 0, 0], [0, 0, 0]])) < 0).all()


def test_one_turned_triangle_turns_no_wall_of_an_open_mesh() -> None:
    """A hollow cube whose walls both have a hole: the inner one stays a wall of a cavity."""
    outer, inner = sphere(40, 2.0), sphere(40, 1.0)
    parts = [(outer[0], outer[1][1:]), (inner[0], turned(inner[1][1:, ::-1], slice(50, 51)))]
    mesh = made(*parts)
    assert not mesh.is_closed
    points = np.random.default_rng(0).uniform(-2.2, 2.2, (4000, 3))
    radius = np.linalg.norm(points, axis=1)
    clear = (np.abs(radius - 1) > 0.05) & (np.abs(radius - 2) > 0.05)
    assert np.array_equal((signed(mesh, points) < 0)[clear], ((radius > 1) & (radius < 2))[clear])


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("side", [1, -1])
def test_a_far_body_with_a_hole_is_solid(is_turned: bool, side: int) -> None:
    """Seen from afar, what is missing would count for more than what is there."""
    vertices, faces = sphere(24)
    faces = faces[(side * vertices[faces][..., 1]).min(1) < 0.88]  # a pole is missing
    if is_turned:
        faces = faces[:, ::-1]
    mesh = made(cube(), (vertices + np.array([0.0, 60, 0]), faces))
    assert not mesh.is_closed
    inside = np.array([[0.0, 60, 0], [0.5, 60, 0.3], [0, 60 - side * 0.5, 0], [0.5, 0.5, 0.5]])
    assert (signed(mesh, inside) < 0).all()
    assert (signed(mesh, np.array([[0.0, 62, 0], [0, 58, 0], [0, 30, 0]])) > 0).all()


@pytest.mark.parametrize("touch", ["corner", "edge", "side"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_bodies_that_touch(touch: str, is_turned: bool) -> None:
    center = {"corner": (2.0, 2.0, 2.0), "edge": (2.0, 2.0, 0.0), "side": (2.0, 0.0, 0.0)}[touch]
    # The same diagonal in the common side, seen from both.
    second = cube(1.0, center)
    if touch == "side":
        second = (second[0] * [-1, 1, 1] + np.array([4.0, 0, 0]), second[1][:, ::-1])
    if is_turned:
        second = (second[0], second[1][:, ::-1])
    mesh = made(cube(), second)
    points = around(mesh)
    if touch == "side":
        q = np.abs(points - [1.0, 0, 0]) - [2.0, 1.0, 1.0]
        exact = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)
    else:
        exact = np.minimum(cube_distance(points), cube_distance(points, 1.0, center))
    assert np.abs(signed(mesh, points) - exact).max() < 1e-9


def test_a_sheet_that_is_drawn_from_both_sides_stays() -> None:
    vertices, faces = torus(12)
    mesh = made((vertices, np.concatenate([faces, faces[:, ::-1]])))
    assert len(mesh.faces) == len(faces) and mesh.is_closed
    sheet = np.array([[0, 1, 2], [0, 2, 3]])
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    mesh = made(cube(), (square + np.array([5.0, 0, 0]), np.concatenate([sheet, sheet[:, ::-1]])))
    assert len(mesh.faces) == 14


# --- what was reported elsewhere

REPORTED = Path(__file__).parents[3] / "shared" / "cases"


@pytest.mark.skipif(not REPORTED.is_dir(), reason="the reported files are not beside this project")
def test_reported_meshes() -> None:
    cubes = read_mesh(REPORTED / "40-obj-relative-indices-between-corners" / "three_cubes.obj")
    assert signed(cubes, np.array([[0.0, 0, 0], [3, 0, 0], [0, 3, 0]])) == pytest.approx([-0.5] * 3)
    for ending in ("obj", "ply"):
        prism = read_mesh(REPORTED / "41-obj-concave-polygons" / f"prism_from_corner_1.{ending}")
        assert signed(prism, np.array([[1.3, 1.3, 1.02]]))[0] == pytest.approx(0.3007, abs=1e-4)
    two = read_mesh(REPORTED / "43-two-bodies-one-inside-out" / "small_turned.obj")
    assert "1 of 2 bodies were inside out" in two.notes[0]
    with pytest.raises(DataError, match="compressed with KHR_draco_mesh_compression, which is not read"):
        read_mesh(REPORTED / "44-glb-compressed" / "draco.glb")
    assert read_mesh(REPORTED / "48-obj-text-variants" / "crlf_tabs.obj").is_closed


def test_an_obj_of_triangles_is_what_it_was(tmp_path: Path) -> None:
    vertices, faces = torus(12)
    mesh = read_mesh(write_obj(tmp_path / "a.obj", vertices, faces))
    assert len(mesh.faces) == len(faces) and not mesh.notes

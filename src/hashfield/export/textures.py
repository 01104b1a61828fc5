"""Textures of meshes: an atlas of the surface, where each texel lies on it, and the files of a textured mesh.

The packages behind it (xatlas, and those of the extra `mesh`) are the extra `texture` and are imported when needed.
"""

import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, UInt8

from hashfield.errors import ConfigError
from hashfield.export.meshes import Mesh, ascii_lines, obj_digits, unit_vectors

TEXTURED_FORMATS: Final = (".glb", ".obj")
PADDING: Final = 2
"""Texels between the charts of an atlas, at least about one in the end: the packer's estimate of its size is rough."""
CHART_COST: Final = 8.0
"""How unevenly a chart may lie, xatlas's `max_cost`. Its own 2 cuts rough surfaces of radiance fields into charts of
three triangles, with more padding than picture."""
SMOOTHING: Final = 10
"""Passes of smoothing before the surface is cut into charts: a rough surface needs many small ones."""
TEXELS_AT_ONCE: Final = 2**21


@dataclass(frozen=True)
class Atlas:
    """A mesh's surface cut into charts and laid out in the unit square."""

    source: Int32[np.ndarray, " n"]
    """Which of the mesh's vertices each vertex of the atlas is: those on seams are there more than once."""
    faces: Int32[np.ndarray, "n_faces 3"]
    """The mesh's triangles in their order, by vertices of the atlas."""
    uv: Float32[np.ndarray, "n 2"]
    """Across and down from the top left corner of the texture, 0 to 1."""
    n_charts: int


@dataclass(frozen=True)
class Texels:
    """Which triangle each texel shows, and where in it."""

    face: Int32[np.ndarray, "size size"]
    """Number of the triangle; -1 between the charts."""
    share: Float32[np.ndarray, "size size 3"]
    """Barycentric coordinates: shares of the triangle's corners."""


def check_textured_file(path: Path, size: int) -> None:
    """Check before minutes of work that such a file and texture can be made.

    Raises:
        ConfigError: the format has no textures, or the size is out of range.
        ModuleNotFoundError: a package of the extra `texture` is missing.
    """
    if path.suffix.lower() not in TEXTURED_FORMATS:
        raise ConfigError(f"{path}: textures go into {' or '.join(TEXTURED_FORMATS)}")
    if not 64 <= size <= 16384:
        raise ConfigError(f"texture: expected a side of 64 to 16384 pixels, got {size}")
    importlib.import_module("xatlas")


def make_atlas(mesh: Mesh, size: int) -> Atlas:
    """Charts of a mesh, packed into a square of so many texels a side."""
    import xatlas

    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    # On a smoothed copy: charts do not know where the surface lies, only how its triangles hang together.
    scaled = smoothed((mesh.vertices - low) / (high - low).max(), mesh.faces, SMOOTHING).astype(np.float32)
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_iterations, charts.max_cost, charts.normal_deviation_weight = 1, CHART_COST, 1.0
    packing.resolution, packing.padding, packing.bilinear, packing.create_image = size, PADDING, True, False
    atlas = xatlas.Atlas()
    atlas.add_mesh(scaled, mesh.faces.astype(np.uint32))
    atlas.generate(charts, packing)
    source, faces, uv = atlas.get_mesh(0)
    return Atlas(source.astype(np.int32), faces.astype(np.int32), uv.astype(np.float32), atlas.chart_count)


def smoothed(
    vertices: Float[np.ndarray, "n 3"], faces: Int32[np.ndarray, "n_faces 3"], n_passes: int
) -> Float64[np.ndarray, "n 3"]:
    """Vertices of a mesh, moved towards the means of their neighbours and, nearly as far, back again in every pass, so
    that bumps go and the whole does not shrink.

    Args:
        vertices: Positions.
        faces: The mesh's triangles.
        n_passes: How often.

    Source: Taubin 1995.
    """
    from scipy.sparse import csr_array

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.unique(np.concatenate([ends, ends[:, ::-1]]), axis=0)
    links = csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(vertices),) * 2)
    n_neighbours = np.maximum(links.sum(1), 1)[:, None]
    found = np.asarray(vertices, np.float64)
    for _ in range(n_passes):
        for share in (0.5, -0.53):
            found = found + share * ((links @ found) / n_neighbours - found)
    return found


def rasterize(atlas: Atlas, size: int) -> Texels:
    """The triangle that each texel's centre lies in.

    Triangles are drawn in groups of like extent, each over a square of texels around it.

    Args:
        atlas: The mesh's atlas.
        size: Texels along each side of the texture.
    """
    face = np.full((size, size), -1, np.int32)
    share = np.zeros((size, size, 3), np.float32)
    corners = atlas.uv[atlas.faces].astype(np.float64) * size  # [n_faces, 3, 2]
    low = np.floor(corners.min(1) - 0.5).astype(np.int64)
    extent = (np.ceil(corners.max(1) - 0.5).astype(np.int64) - low + 1).max(1)
    group = np.ceil(np.log2(np.maximum(extent, 1))).astype(int)
    for k in np.unique(group):
        side = 2 ** int(k)
        inside_square = np.arange(side)
        members = np.flatnonzero(group == k)
        for some in np.split(members, range(0, len(members), max(1, TEXELS_AT_ONCE // side**2))[1:]):
            column = low[some, 0, None, None] + inside_square  # [n, 1, side]
            row = low[some, 1, None, None] + inside_square[:, None]  # [n, side, 1]
            a, b, c = (corners[some, j][:, :, None, None] for j in range(3))  # [n, 2, 1, 1]
            x, y = column + 0.5 - a[:, 0], row + 0.5 - a[:, 1]
            (bx, by), (cx, cy) = ((p - a).transpose(1, 0, 2, 3) for p in (b, c))
            area = bx * cy - by * cx
            area = np.where(np.abs(area) < 1e-12, np.inf, area)  # triangles without area show nowhere
            of_b, of_c = (x * cy - y * cx) / area, (bx * y - by * x) / area
            of_a = 1 - of_b - of_c
            least = np.minimum(np.minimum(of_a, of_b), of_c)
            shown = (least >= -1e-6) & np.isfinite(area) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
            at, i, j = shown.nonzero()
            to = (low[some, 1][at] + i, low[some, 0][at] + j)
            face[to] = some[at]
            share[to] = np.stack([of_a[shown], of_b[shown], of_c[shown]], -1)
    return Texels(face, share)


def spread_colors(
    texture: UInt8[np.ndarray, "size size 3"], is_filled: Bool[np.ndarray, "size size"]
) -> UInt8[np.ndarray, "size size 3"]:
    """The texture with the nearest colour in every texel that has none, so that no seam shows when it is filtered."""
    from scipy.ndimage import distance_transform_edt

    row, column = np.asarray(distance_transform_edt(~is_filled, return_distances=False, return_indices=True))
    return texture[row, column]


def at_texels(
    values: Float[np.ndarray, "n_vertices 3"], faces: Int32[np.ndarray, "n_faces 3"], texels: Texels
) -> Float[np.ndarray, "n_filled 3"]:
    """What the mesh's vertices hold, interpolated at the texels that show a triangle, row by row.

    Args:
        values: What each of the mesh's vertices holds.
        faces: The mesh's own.
        texels: Where they lie.
    """
    filled = texels.face >= 0
    corners = faces[texels.face[filled]]
    shares = texels.share[filled].astype(np.float64)
    return sum(shares[:, k, None] * values[corners[:, k]] for k in range(3))  # type: ignore[return-value]


def encode_textured(
    path: Path, mesh: Mesh, atlas: Atlas, texture: UInt8[np.ndarray, "size size 3"], notes: Sequence[str] = ()
) -> dict[str, bytes]:
    """Contents of the files of a textured mesh by name, in the format of the path's ending.

    GLB is one file, with a material that is not shaded, since the colours have light in them. OBJ comes with an MTL and
    a PNG file of the same name.

    Args:
        path: Its ending chooses the format; nothing is written.
        mesh: World units, with normals.
        atlas: The atlas of this mesh.
        texture: Its colours in sRGB.
        notes: Lines about units, axes and origin.
    """
    check_textured_file(path, len(texture))
    import trimesh
    from PIL import Image
    from trimesh.exchange.gltf import export_glb
    from trimesh.exchange.obj import export_obj
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    lines = ascii_lines(notes)
    uv = np.stack([atlas.uv[:, 0], 1 - atlas.uv[:, 1]], 1)  # trimesh counts from the bottom
    image = Image.fromarray(texture)
    normals = None if mesh.normals is None else unit_vectors(mesh.normals[atlas.source])

    def model(material: Any) -> Any:
        return trimesh.Trimesh(
            mesh.vertices[atlas.source], atlas.faces, vertex_normals=normals,
            visual=TextureVisuals(uv=uv, material=material), process=False, validate=False,
        )  # fmt: skip

    if path.suffix.lower() == ".glb":

        def annotate(tree: dict[str, Any]) -> None:
            tree["asset"]["extras"] = {"notes": lines}
            tree["materials"][0].setdefault("extensions", {})["KHR_materials_unlit"] = {}
            tree["extensionsUsed"] = sorted({*tree.get("extensionsUsed", []), "KHR_materials_unlit"})

        material = PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
        return {
            path.name: export_glb(model(material), include_normals=normals is not None, tree_postprocessor=annotate)
        }
    text, others = export_obj(
        model(SimpleMaterial(image=image, name=path.stem)), include_normals=normals is not None, return_texture=True,
        mtl_name=f"{path.stem}.mtl", digits=obj_digits(mesh), header="\n# ".join(lines or ["hashfield"]),
    )  # fmt: skip
    found = {path.name: text.encode()}
    for name, content in others.items():
        found[name] = content if isinstance(content, bytes) else content.encode()
    if not any(name.endswith(".png") for name in found):
        file = io.BytesIO()
        image.save(file, "PNG")
        found[f"{path.stem}.png"] = file.getvalue()
    return found

"""Upkeep of the occupancy grid on GPUs: refresh from densities, bits with mips, carving from silhouettes.

`refresh_cells_device` and `bits_device` work on buffers and numbers that stay on the device, for a training that is
never waited for.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hashfield.geometry.spaces import CELLS_PER_CASCADE, n_cascades_of, n_cells_of
from hashfield.kernels.triton_gpu.camera_rays import length2, lenses_of, radial
from hashfield.kernels.triton_gpu.common import INTERPRETED, count_of, launch
from hashfield.kernels.triton_gpu.field import DeviceField, field_density
from hashfield.kernels.triton_gpu.render_rays import device_field

CELLS = tl.constexpr(CELLS_PER_CASCADE)
_PI = tl.constexpr(math.pi)
FINEST_STEP = math.sqrt(3) / 1024


@triton.jit
def compact_bits(v):
    """Every third bit of a Morton number, packed."""
    v = v & 0x09249249
    v = (v ^ (v >> 2)) & 0x030C30C3
    v = (v ^ (v >> 4)) & 0x0300F00F
    v = (v ^ (v >> 8)) & 0x030000FF
    return (v ^ (v >> 16)) & 0x3FF


def _block(n: int, most: int = 65536) -> dict[str, int]:
    if INTERPRETED.value:
        return {"BLOCK": min(most, triton.next_power_of_2(n)), "num_warps": 1}
    return {"BLOCK": 128, "num_warps": 4}


@triton.jit
def _points(cells, noise, n_live, positions, n_cascades, BLOCK: tl.constexpr):
    """Unit positions of points within cells."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < tl.load(n_live)
    cell = tl.load(cells + i, mask=mask, other=0).to(tl.int32)
    code, cascade = cell & (CELLS - 1), cell // CELLS
    scale = ((127 + cascade - (n_cascades - 1)) << 23).to(tl.float32, bitcast=True)  # 2^(cascade - last)
    for axis in tl.static_range(3):
        x = compact_bits(code >> axis).to(tl.float32) + tl.load(noise + 3 * i + axis, mask=mask, other=0.0)
        tl.store(positions + 3 * i + axis, (x * 0.0078125 - 0.5) * scale + 0.5, mask=mask)


@triton.jit
def _raise(values, cells, log_density, n_live, step, BLOCK: tl.constexpr):
    """Set values[c] = max(values[c], density * step); a cell may come twice."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < tl.load(n_live)
    cell = tl.load(cells + i, mask=mask, other=0)
    thickness = tl.exp(tl.load(log_density + i, mask=mask, other=0.0)) * step
    tl.atomic_max(values + cell, thickness, mask=mask)


def refresh_cells_device(
    values: Tensor, cells: Tensor, n_live: Tensor, noise: Tensor, positions: Tensor, log_density: Tensor,
    field: DeviceField, aabb_scale: int,
) -> None:  # fmt: skip
    """`refresh_cells` for the first n_live (int32 [1], on the device) of the cells; positions [n, 3] and
    log_density [n] are room to work in."""
    n = cells.shape[0]
    if not n:
        return
    block = _block(n)
    grid = (triton.cdiv(n, block["BLOCK"]),)
    launch(_points, grid, cells, noise, n_live, positions, n_cascades_of(aabb_scale), **block)
    field_density(field, positions, n_live, log_density)
    launch(_raise, grid, values, cells, log_density, n_live, FINEST_STEP, **block)


def refresh_cells(values: Tensor, cells: Tensor, noise: Tensor, field: Any, aabb_scale: int) -> None:
    """See `hashfield.ops.occupancy_update`."""
    n, device = cells.shape[0], values.device
    positions, log_density = torch.empty((n, 3), device=device), torch.empty(n, device=device)
    refresh_cells_device(
        values, cells.contiguous(), count_of(n, device), noise.contiguous(), positions, log_density,
        device_field(field), aabb_scale,
    )  # fmt: skip


@triton.jit
def _pack(values, threshold, bits, n_bytes, BLOCK: tl.constexpr):
    """One byte for eight cells: bit k of a byte is the cell at address 8*byte + k."""
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = byte < n_bytes
    k = tl.arange(0, 8)
    value = tl.load(values + 8 * byte[:, None] + k[None, :], mask=mask[:, None], other=0.0)
    on = (value > tl.load(threshold)).to(tl.int32)
    tl.store(bits + byte, tl.sum(on << k[None, :], axis=1).to(tl.uint8), mask=mask)


@triton.jit
def _cover(words, bits, n_words, BLOCK: tl.constexpr):
    """Set the coarser cascade's central cells wherever one of their 2x2x2 finer cells is set: a byte of the finer
    cascade is such a cell, and eight of them, a word, are a byte of the coarser one."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = word < n_words
    value = tl.load(words + word, mask=mask, other=0)
    byte = tl.zeros_like(word)
    for k in tl.static_range(8):
        byte |= (((value >> (8 * k)) & 0xFF) != 0).to(tl.int32) << k
    # Blocks of 2x2x2 coarser cells: the central half of 64 is 16 to 47.
    code = tl.zeros_like(word)
    for axis in tl.static_range(3):
        at = compact_bits(word >> axis) + 16
        for b in tl.static_range(6):
            code |= ((at >> b) & 1) << (3 * b + axis)
    old = tl.load(bits + code, mask=mask, other=0)
    tl.store(bits + code, (old.to(tl.int32) | byte).to(tl.uint8), mask=mask)


def bits_device(values: Tensor, threshold: Tensor, bits: Tensor, aabb_scale: int) -> None:
    """Fill `bits` with the cells above a threshold (float32 [1], on the device), coarser cascades covering finer."""
    n_bytes = bits.shape[0]
    block = _block(n_bytes, 16384)
    launch(_pack, (triton.cdiv(n_bytes, block["BLOCK"]),), values, threshold, bits, n_bytes, **block)
    cascades = bits.view(n_cascades_of(aabb_scale), -1)
    for k in range(n_cascades_of(aabb_scale) - 1):
        words = cascades[k].view(torch.int64)
        block = _block(words.shape[0])
        grid = (triton.cdiv(words.shape[0], block["BLOCK"]),)
        launch(_cover, grid, words, cascades[k + 1], words.shape[0], **block)


def occupied_bits(values: Tensor, threshold: float, aabb_scale: int) -> Tensor:
    """See `hashfield.ops.occupancy_update`."""
    bits = torch.empty(values.shape[0] // 8, dtype=torch.uint8, device=values.device)
    level = torch.full((1,), threshold, dtype=torch.float32, device=values.device)
    bits_device(values.contiguous(), level, bits, aabb_scale)
    return bits


def silhouettes(pixels: Tensor, starts: Tensor, widths: Tensor, heights: Tensor, radius: int) -> Tensor:
    """Dilation by a square, image by image: a pass along rows, then one along columns. Once a run, so plain torch."""
    out = torch.empty(pixels.shape[0], dtype=torch.uint8, device=pixels.device)
    pool = torch.nn.functional.max_pool2d
    for start, w, h in zip(starts.tolist(), widths.tolist(), heights.tolist(), strict=True):
        alpha = (pixels[start : start + w * h, 3] > 0).view(1, 1, h, w).float()
        rows = pool(alpha, (1, 2 * radius + 1), stride=1, padding=(0, radius))
        grown = pool(rows, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
        out[start : start + w * h] = grown.view(-1).to(torch.uint8)
    return out


@triton.jit
def project(row, x, y, z, HAS_OPENCV: tl.constexpr, HAS_FISHEYE: tl.constexpr):
    """Pixel position (float64) of points in the space of a camera's pose; (-1, -1) where the lens sees nothing."""
    x, y, z = x - tl.load(row + 3), y - tl.load(row + 7), z - tl.load(row + 11)
    u = tl.load(row) * x + tl.load(row + 4) * y + tl.load(row + 8) * z
    v = tl.load(row + 1) * x + tl.load(row + 5) * y + tl.load(row + 9) * z
    w = tl.load(row + 2) * x + tl.load(row + 6) * y + tl.load(row + 10) * z
    lens, limit = tl.load(row + 16) + 0.0 * x, tl.load(row + 23) + 0.0 * x  # of every lane, for comparisons
    k1, k2, k3, k4 = tl.load(row + 17), tl.load(row + 18), tl.load(row + 19), tl.load(row + 20)
    seen = w > 1e-6
    safe = tl.where(seen, w, 1.0)
    px, py = u / safe, v / safe
    if HAS_OPENCV:
        p1, p2 = tl.load(row + 21), tl.load(row + 22)
        r2 = px * px + py * py
        is_opencv = (lens == 1.0) & seen
        within = (limit <= 0.0) | (r2 <= limit * limit)
        scale = 1.0 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        bent_x = px * scale + 2.0 * p1 * px * py + p2 * (r2 + 2.0 * px * px)
        bent_y = py * scale + 2.0 * p2 * px * py + p1 * (r2 + 2.0 * py * py)
        px, py = tl.where(is_opencv, bent_x, px), tl.where(is_opencv, bent_y, py)
        seen = seen & (within | (lens != 1.0))
    if HAS_FISHEYE:
        r = length2(u, v)
        theta = _angle(r, w)
        value, _ = radial(theta, k1, k2, k3, k4)
        ratio = tl.where(r > 0.0, value / tl.where(r > 0.0, r, 1.0), 1.0 / safe)
        is_fisheye = lens == 2.0
        within = (limit <= 0.0) | (theta <= limit)
        px, py = tl.where(is_fisheye, u * ratio, px), tl.where(is_fisheye, v * ratio, py)
        seen = tl.where(is_fisheye, within, seen)
        is_panorama = lens == 3.0
        level = length2(u, w)
        around = _angle(tl.abs(u), w)
        px = tl.where(is_panorama, tl.where(u < 0.0, -around, around), px)
        up = _angle(tl.abs(v), level)
        py = tl.where(is_panorama, tl.where(v < 0.0, -up, up), py)
        seen = tl.where(is_panorama, (level > 0.0) | (v != 0.0), seen)
    px = tl.where(seen, tl.load(row + 12) * px + tl.load(row + 14), -1.0)
    py = tl.where(seen, tl.load(row + 13) * py + tl.load(row + 15), -1.0)
    return px, py


@triton.jit
def _angle(r, w):
    """The angle atan2(r, w) for r >= 0, in float64: the angle is halved twice, then the series of the arctangent."""
    half = r / tl.maximum(length2(r, w) + w, 1e-30 + 1e-9 * r)  # tan(a/2)
    quarter = half / (1.0 + tl.sqrt(1.0 + half * half))
    eighth = quarter / (1.0 + tl.sqrt(1.0 + quarter * quarter))
    s = eighth * eighth
    series = tl.zeros_like(s)
    for k in tl.static_range(14):
        series = 1.0 / (27.0 - 2.0 * k) - s * series
    return tl.where((r == 0.0) & (w < 0.0), _PI, 8.0 * eighth * series)


@triton.jit
def _carve(
    table, n_cameras, widths, heights, starts, masks, alive, n_cells, fewest, near, HAS_MASKS: tl.constexpr,
    HAS_OPENCV: tl.constexpr, HAS_FISHEYE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A cell lives if enough cameras see it, none of them is too near, and none that sees it finds its centre outside
    the mask. Without masks it is seen if its centre or one of its corners is."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = cell < n_cells
    code, cascade = cell & (CELLS - 1), cell // CELLS
    scale = ((127 + cascade) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    side = scale * 0.0078125
    x = ((compact_bits(code).to(tl.float64) + 0.5) * 0.0078125 - 0.5) * scale + 0.5
    y = ((compact_bits(code >> 1).to(tl.float64) + 0.5) * 0.0078125 - 0.5) * scale + 0.5
    z = ((compact_bits(code >> 2).to(tl.float64) + 0.5) * 0.0078125 - 0.5) * scale + 0.5
    n_seen, outside = tl.zeros_like(cell), tl.zeros_like(valid)
    for k in range(n_cameras):
        row = table + 24 * k
        off_x, off_y, off_z = x - tl.load(row + 3), y - tl.load(row + 7), z - tl.load(row + 11)
        reach = tl.load(near + k)
        outside = outside | (off_x * off_x + off_y * off_y + off_z * off_z < reach * reach)
        open_ones = valid & (outside == 0)
        if not HAS_MASKS:  # a cell that was seen often enough is done with, unless a later camera is too near
            open_ones = open_ones & (n_seen < fewest)
        if tl.max(open_ones.to(tl.int32), axis=0) > 0:
            width, height = tl.load(widths + k), tl.load(heights + k)
            seen = tl.zeros_like(valid)
            for corner in tl.static_range(1 if HAS_MASKS else 9):  # 0 is the centre
                a, b, c = 0.0, 0.0, 0.0
                if corner > 0:
                    a = ((corner - 1) & 1) - 0.5
                    b = (((corner - 1) >> 1) & 1) - 0.5
                    c = (((corner - 1) >> 2) & 1) - 0.5
                px, py = project(row, x + a * side, y + b * side, z + c * side, HAS_OPENCV, HAS_FISHEYE)
                inside = open_ones & (px >= 0.0) & (py >= 0.0) & (px < width) & (py < height)
                seen = seen | inside
                if HAS_MASKS:
                    at = tl.load(starts + k) + py.to(tl.int64) * width + px.to(tl.int64)
                    outside = outside | (inside & (tl.load(masks + at, mask=inside, other=1) == 0))
            n_seen += seen.to(tl.int32)
    tl.store(alive + cell, ((n_seen >= fewest) & (outside == 0)).to(tl.uint8), mask=valid)


def carve(
    table: Tensor, starts: Tensor, widths: Tensor, heights: Tensor, masks: Tensor | None, aabb_scale: int, fewest: int,
    near: Tensor,
) -> Tensor:  # fmt: skip
    """See `hashfield.ops.occupancy_update`."""
    device = starts.device
    n_cells = n_cells_of(aabb_scale)
    alive = torch.empty(n_cells, dtype=torch.uint8, device=device)
    lenses = lenses_of(table)
    block = _block(n_cells)
    launch(
        _carve, (triton.cdiv(n_cells, block["BLOCK"]),), table.to(device).double().contiguous(), len(table), widths,
        heights, starts, alive if masks is None else masks, alive, n_cells, fewest, near.to(device).double().contiguous(),
        HAS_MASKS=masks is not None, **lenses, **block,
    )  # fmt: skip
    return alive.bool()

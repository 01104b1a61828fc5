"""Upkeep of the occupancy grid on CPUs: refresh from densities, bits with mips, carving from silhouettes."""

import math

import numpy as np
import torch

from hashfield.geometry.spaces import n_cascades_of
from hashfield.kernels.numba_cpu.amx import begin_tiles, end_tiles
from hashfield.kernels.numba_cpu.camera_rays import camera_rays_forward
from hashfield.kernels.numba_cpu.common import (
    as_array,
    exp,
    flush_denormals,
    inline,
    kernel,
    launch,
    part,
    restore_denormals,
    share,
)
from hashfield.kernels.numba_cpu.encoders import encoder_scratch
from hashfield.kernels.numba_cpu.field import N_GEOMETRY, Scratch, log_density
from hashfield.kernels.numba_cpu.grid_corners import BLOCK
from hashfield.kernels.numba_cpu.grid_encode import field_encoder
from hashfield.kernels.numba_cpu.march import GRID_SIZE
from hashfield.kernels.numba_cpu.mlp import ROWS, pack_networks
from hashfield.kernels.numba_cpu.simd import LANES, load, maximum, splat, store

CELLS = GRID_SIZE**3
CHUNK = 2048  # positions encoded at once


@inline
def compact_bits(v):
    """Every third bit of a Morton number, packed."""
    v &= 0x09249249
    v = (v ^ (v >> 2)) & 0x030C30C3
    v = (v ^ (v >> 4)) & 0x0300F00F
    v = (v ^ (v >> 8)) & 0xFF0000FF
    return (v ^ (v >> 16)) & 0x3FF


@kernel
def _refresh(values, cells, noise, n_cascades, encoder, density, bias, is_relu, step, thread, threads):
    """Set values[c] = max(values[c], density at one point of cell c, times the finest step)."""
    n = cells.size
    side = float(1 << (n_cascades - 1))
    mode = flush_denormals()
    begin_tiles()
    stride = CHUNK + 2 * BLOCK
    positions = np.zeros(3 * stride, np.float32)
    storage = density.w1.dtype  # float32, or uint16 for bfloat16
    features, thickness = np.zeros(CHUNK * density.row, storage), np.zeros(CHUNK + LANES, np.float32)
    hidden, sums = np.empty(ROWS * density.width, storage), np.empty(ROWS * N_GEOMETRY, np.float32)
    scratch = Scratch(encoder_scratch(encoder), hidden, sums)
    last = share(n, thread + 1, threads)
    for first in range(share(n, thread, threads), last, CHUNK):
        m = min(CHUNK, last - first)
        for i in range(m):
            cell = cells[first + i]
            code = cell & (CELLS - 1)
            scale = float(1 << (cell // CELLS)) / side
            for axis in range(3):
                x = (compact_bits(code >> axis) + noise[first + i, axis]) / GRID_SIZE
                positions[axis * stride + i] = (x - 0.5) * scale + 0.5
        for i in range(m, m + 2 * BLOCK):
            for axis in range(3):
                positions[axis * stride + i] = np.float32(0.0)
        log_density(encoder, density, positions, m, features, features[:0], scratch, thickness)
        for i in range(0, m, LANES):
            raw_density = load(thickness, i) + splat(bias)
            sigma = maximum(raw_density, splat(0.0)) if is_relu else exp(raw_density)
            store(thickness, i, sigma * splat(step))
        for i in range(m):
            cell = cells[first + i]
            values[cell] = max(values[cell], thickness[i])
    end_tiles()
    restore_denormals(mode)


@kernel
def _pack(values, threshold, bits, thread, threads):
    """One byte for eight cells: bit k of a byte is the cell at address 8*byte + k."""
    for byte in range(share(bits.size, thread, threads), share(bits.size, thread + 1, threads)):
        word = 0
        for k in range(8):
            if values[8 * byte + k] > threshold:
                word |= 1 << k
        bits[byte] = word


@kernel
def _cover(bits, n_cascades):
    """Set the coarser cascade's central cells wherever one of their 2x2x2 finer cells is set."""
    bytes_per_cascade = CELLS // 8
    for cascade in range(n_cascades - 1):
        for byte in range(bytes_per_cascade):
            if bits[cascade * bytes_per_cascade + byte]:
                x, y, z = compact_bits(byte) + 32, compact_bits(byte >> 1) + 32, compact_bits(byte >> 2) + 32
                code = 0
                for b in range(7):
                    code |= ((x >> b) & 1) << (3 * b) | ((y >> b) & 1) << (3 * b + 1) | ((z >> b) & 1) << (3 * b + 2)
                bits[(cascade + 1) * bytes_per_cascade + (code >> 3)] |= np.uint8(1 << (code & 7))


@part
def project(camera, x, y, z):
    """Pixel position of a point in the space of the camera's pose; (-1, -1) behind the camera."""
    x, y, z = x - camera[3], y - camera[7], z - camera[11]
    u = camera[0] * x + camera[4] * y + camera[8] * z
    v = camera[1] * x + camera[5] * y + camera[9] * z
    w = camera[2] * x + camera[6] * y + camera[10] * z
    k1, k2, k3, k4 = camera[17], camera[18], camera[19], camera[20]
    if camera[16] == 2.0:
        r = math.hypot(u, v)
        theta = math.atan2(r, w)
        if camera[23] > 0.0 and theta > camera[23]:
            return -1.0, -1.0
        s = theta * theta
        ratio = theta * (1.0 + s * (k1 + s * (k2 + s * (k3 + s * k4)))) / r if r > 0.0 else 1.0 / w
        return camera[12] * u * ratio + camera[14], camera[13] * v * ratio + camera[15]
    if camera[16] == 3.0:
        level = math.hypot(u, w)
        if level == 0.0 and v == 0.0:
            return -1.0, -1.0
        return camera[12] * math.atan2(u, w) + camera[14], camera[13] * math.atan2(v, level) + camera[15]
    if w <= 1e-6:
        return -1.0, -1.0
    u, v = u / w, v / w
    if camera[16] == 1.0:
        r2 = u * u + v * v
        if camera[23] > 0.0 and r2 > camera[23] * camera[23]:
            return -1.0, -1.0
        scale = 1.0 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        p1, p2 = camera[21], camera[22]
        u, v = (
            u * scale + 2.0 * p1 * u * v + p2 * (r2 + 2.0 * u * u),
            v * scale + 2.0 * p2 * u * v + p1 * (r2 + 2.0 * v * v),
        )
    return camera[12] * u + camera[14], camera[13] * v + camera[15]


@inline
def is_beyond(camera, cone, x, y, z, radius):
    """Whether a sphere lies wholly outside a camera's cone of view, given as (cos, sin) of its half angle."""
    x, y, z = x - camera[3], y - camera[7], z - camera[11]
    u = camera[0] * x + camera[4] * y + camera[8] * z
    v = camera[1] * x + camera[5] * y + camera[9] * z
    w = camera[2] * x + camera[6] * y + camera[10] * z
    return math.sqrt(u * u + v * v) * cone[0] - w * cone[1] > radius


@part
def pixel_of_cell(camera, cone, width, height, x, y, z, side, has_corners):
    """Where a camera sees a cell's centre or, if asked for, else one of its corners; (-1, -1) where it sees none."""
    if is_beyond(camera, cone, x, y, z, side):  # the cell's own radius is sqrt(3)/2 of its side
        return -1.0, -1.0
    for corner in range(9 if has_corners else 1):  # 0 is the centre
        a, b, c = 0.0, 0.0, 0.0
        if corner > 0:
            a, b, c = (corner - 1 & 1) - 0.5, (corner - 1 >> 1 & 1) - 0.5, (corner - 1 >> 2 & 1) - 0.5
        px, py = project(camera, x + a * side, y + b * side, z + c * side)
        if 0.0 <= px < width and 0.0 <= py < height:
            return px, py
    return -1.0, -1.0


@inline
def distance_to(camera, x, y, z):
    """From a camera to a point."""
    x, y, z = x - camera[3], y - camera[7], z - camera[11]
    return math.sqrt(x * x + y * y + z * z)


@kernel
def _carve(
    table, cones, widths, heights, mask_starts, masks, has_masks, n_cascades, fewest, near, alive, thread, threads
):  # fmt: skip
    """A cell lives if enough cameras see it, none of them is too near, and none that sees it finds its centre outside
    the mask. Without masks it is seen if its centre or one of its corners is."""
    n_cameras = table.shape[0]
    able, close = np.empty(n_cameras, np.int64), np.empty(n_cameras, np.int64)
    for block in range(thread, n_cascades * CELLS // 512, threads):
        # The block is a cube of 8 x 8 x 8 cells: the cameras that may see one of them, or be too near to one.
        first, scale = block * 512, float(1 << (block * 512 // CELLS))
        code, side = first & (CELLS - 1), scale / GRID_SIZE
        x = ((compact_bits(code) + 4.0) / GRID_SIZE - 0.5) * scale + 0.5
        y = ((compact_bits(code >> 1) + 4.0) / GRID_SIZE - 0.5) * scale + 0.5
        z = ((compact_bits(code >> 2) + 4.0) / GRID_SIZE - 0.5) * scale + 0.5
        n_able, n_close = 0, 0
        for camera in range(n_cameras):
            if not is_beyond(table[camera], cones[camera], x, y, z, 7.0 * side):  # 4 sqrt(3) to a corner of the block
                able[n_able] = camera
                n_able += 1
            if distance_to(table[camera], x, y, z) < near[camera] + 7.0 * side:
                close[n_close] = camera
                n_close += 1
        remembered = 0  # neighbours are mostly refused, or seen, by the same camera: ask it first
        for cell in range(first, first + 512):
            alive[cell] = False
            if n_able < fewest:
                continue
            code = cell & (CELLS - 1)
            i, j, l = compact_bits(code), compact_bits(code >> 1), compact_bits(code >> 2)
            x = ((i + 0.5) / GRID_SIZE - 0.5) * scale + 0.5
            y = ((j + 0.5) / GRID_SIZE - 0.5) * scale + 0.5
            z = ((l + 0.5) / GRID_SIZE - 0.5) * scale + 0.5
            n_seen, is_outside, asked_first = 0, False, remembered
            for k in range(n_close):
                is_outside = is_outside or distance_to(table[close[k]], x, y, z) < near[close[k]]
            if is_outside:
                continue
            for k in range(n_able):
                if n_seen + n_able - k < fewest:
                    break  # too few are left
                at = (remembered + k) % n_able
                camera = able[at]
                px, py = pixel_of_cell(
                    table[camera], cones[camera], widths[camera], heights[camera], x, y, z, side, not has_masks
                )
                if px < 0.0:
                    continue
                n_seen += 1
                if n_seen == 1:
                    asked_first = at
                if has_masks:
                    is_outside = masks[mask_starts[camera] + int(py) * widths[camera] + int(px)] == 0
                    if is_outside:
                        asked_first = at
                        break
                elif n_seen >= fewest:
                    break
            remembered = asked_first
            alive[cell] = n_seen >= fewest and not is_outside


@kernel
def _silhouettes(pixels, starts, widths, heights, radius, out, thread, threads):
    """Write into out whether a pixel with alpha > 0 lies within the square of this radius; one image at a time."""
    for image in range(thread, starts.size, threads):
        w, h, start = widths[image], heights[image], starts[image]
        reach = np.empty(max(w, h) + 1, np.int64)
        across = np.empty(w * h, np.uint8)
        for y in range(h):
            row = start + y * w
            reach[0] = 0
            for x in range(w):
                reach[x + 1] = reach[x] + (pixels[row + x, 3] > 0)
            for x in range(w):
                across[y * w + x] = reach[min(w, x + radius + 1)] > reach[max(0, x - radius)]
        column = np.zeros(w, np.int64)
        for y in range(min(radius, h)):
            for x in range(w):
                column[x] += across[y * w + x]
        for y in range(h):
            if y + radius < h:
                for x in range(w):
                    column[x] += across[(y + radius) * w + x]
            if y - radius - 1 >= 0:
                for x in range(w):
                    column[x] -= across[(y - radius - 1) * w + x]
            for x in range(w):
                out[start + y * w + x] = column[x] > 0


def refresh_cells(values, cells, noise, field, aabb_scale: int) -> None:
    """See `hashfield.ops.occupancy_update`."""
    density, _, _, _ = pack_networks(field)
    if len(cells):
        launch(
            _refresh, as_array(values), as_array(cells.contiguous()), as_array(noise.contiguous()),
            n_cascades_of(aabb_scale), field_encoder(field), density, np.float32(field.density_bias),
            field.density_activation == "relu", np.float32(math.sqrt(3) / 1024),
        )  # fmt: skip


def occupied_bits(values, threshold: float, aabb_scale: int) -> torch.Tensor:
    """See `hashfield.ops.occupancy_update`."""
    bits = np.empty(values.shape[0] // 8, np.uint8)
    launch(_pack, as_array(values.contiguous()), np.float32(threshold), bits)
    if aabb_scale > 1:
        _cover(bits, n_cascades_of(aabb_scale))
    return torch.from_numpy(bits)


def silhouettes(pixels, starts, widths, heights, radius: int) -> torch.Tensor:
    """See `hashfield.ops.occupancy_update`."""
    out = np.empty(pixels.shape[0], np.uint8)
    launch(_silhouettes, *map(as_array, (pixels, starts, widths, heights)), radius, out)
    return torch.from_numpy(out)


def cones_of_view(table: torch.Tensor, widths: torch.Tensor, heights: torch.Tensor) -> np.ndarray:
    """(cos, sin) [n, 2] of each camera's widest angle to its axis, a little enlarged. Lenses are radial but for a few
    per cent, so the widest angle is at the picture's border."""
    u, v = torch.meshgrid(torch.linspace(0, 1, 9), torch.linspace(0, 1, 9), indexing="ij")
    border = torch.stack([u, v], -1).reshape(-1, 2)[((u * (1 - u) * v * (1 - v)) == 0).reshape(-1)].double()
    n, m = table.shape[0], border.shape[0]
    pixel = border.repeat(n, 1) * torch.stack([widths, heights], 1).double().repeat_interleave(m, 0)
    _, direction = camera_rays_forward(table, torch.arange(n).repeat_interleave(m), pixel)
    axis = torch.nn.functional.normalize(table[:, [2, 6, 10]].double(), dim=1).repeat_interleave(m, 0)
    angle = torch.acos((direction.double() * axis).sum(1).clamp(-1, 1)).reshape(n, m).amax(1)
    angle = (1.02 * angle + 0.01).clamp(max=math.pi)
    return torch.stack([angle.cos(), angle.sin()], 1).numpy()


def carve(table, starts, widths, heights, masks, aabb_scale: int, fewest: int, near) -> torch.Tensor:
    """See `hashfield.ops.occupancy_update`."""
    n_cascades = n_cascades_of(aabb_scale)
    alive = np.empty(n_cascades * CELLS, np.bool_)
    launch(
        _carve, as_array(table.contiguous()), cones_of_view(table, widths, heights), *map(as_array, (widths, heights, starts)),
        np.zeros(1, np.uint8) if masks is None else as_array(masks), masks is not None, n_cascades, fewest,
        as_array(near.double().contiguous()), alive,
    )  # fmt: skip
    return torch.from_numpy(alive)

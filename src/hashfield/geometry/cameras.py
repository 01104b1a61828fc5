"""Cameras: pixel -> ray and point -> pixel, in plain torch. What their lenses do is in `lenses`.

Camera axes are OpenCV's (x right, y down, z forward). Pixel (i, j) has its centre at (i + 0.5, j + 0.5), so
an image spans [0, width] x [0, height] and principal points are measured from its top left corner.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from hashfield.errors import ConfigError, ShapeError
from hashfield.geometry.lenses import (
    LENSES,
    Lens,
    LensRows,
    distort,
    fisheye_direction,
    lens_limit,
    lens_rows,
    radial,
    undistort,
)

TABLE_COLUMNS: Final = 24

MAX_RATIO: Final = 1e6
"""How many times a focal length may be larger or smaller than the image's side; 1e6 is beyond any optics."""
MAX_COEFFICIENT: Final = 1e6
"""Largest lens coefficient that is taken for one."""

_ORTHONORMAL: Final = 1e-3  # a rotation may be this far from orthonormal: rounding in files, not shear


@dataclass(frozen=True, eq=False)
class Camera:
    """One posed camera with its lens.

    Lens models act on plane coordinates (u, v) = (x/z, y/z); r2 = u^2 + v^2.
    "opencv": rad = k1 r2 + k2 r2^2 + k3 r2^3 + k4 r2^4, u_d = u (1 + rad) + 2 p1 u v + p2 (r2 + 2 u^2),
    v_d = v (1 + rad) + 2 p2 u v + p1 (r2 + 2 v^2). "fisheye": theta = angle to the axis,
    |(u_d, v_d)| = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), good beyond 90 degrees.
    "equirectangular": u_d = longitude, rightwards from the axis, v_d = latitude, downwards, in radians; `panorama`
    makes one of the whole sphere. The pixel is (fx u_d + cx, fy v_d + cy).

    Raises:
        ShapeError: `camera_to_world` is not a 3x4 float64 tensor.
        ConfigError: any other field is out of range.
    """

    camera_to_world: Float64[Tensor, "3 4"]
    """Rotation columns are the camera's right, down and forward axes; the last column is its position."""
    width: int
    height: int
    fx: float
    """Focal lengths in pixels."""
    fy: float
    cx: float
    """Principal point in pixels from the top left corner of the image."""
    cy: float
    lens: Lens = "pinhole"
    distortion: tuple[float, ...] = ()
    """Coefficients k1, k2, k3, k4, p1, p2; empty for a pinhole and a panorama. A fisheye has no p1, p2: they must be
    0."""

    def __post_init__(self) -> None:
        pose = self.camera_to_world
        if not isinstance(pose, Tensor) or pose.shape != (3, 4) or pose.dtype != torch.float64:
            got = f"{pose.dtype} {tuple(pose.shape)}" if isinstance(pose, Tensor) else type(pose).__name__
            raise ShapeError(f"camera_to_world: expected a float64 tensor of shape (3, 4), got {got}")
        pose = pose.detach().cpu().contiguous()
        if not bool(torch.isfinite(pose).all()):
            raise ConfigError("camera_to_world: not finite")
        if rotation_fault(pose[:, :3]) > _ORTHONORMAL:
            raise ConfigError(
                "camera_to_world: columns 0-2 are not a rotation (orthonormal, determinant +1, OpenCV axes)"
            )
        for name in ("width", "height"):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < 1:
                raise ConfigError(f"{name}: expected a whole number of pixels >= 1, got {value!r}")
            object.__setattr__(self, name, int(value))
        for name, size in (("fx", self.width), ("fy", self.height), ("cx", self.width), ("cy", self.height)):
            value = float(getattr(self, name))
            is_focal = name[0] == "f"
            if not math.isfinite(value) or (is_focal and value <= 0):
                raise ConfigError(f"{name}: expected a finite{' positive' * is_focal} number, got {value}")
            if abs(value) > MAX_RATIO * size or (is_focal and value * MAX_RATIO < size):
                raise ConfigError(f"{name}: {value:g} is out of all proportion to an image side of {size} pixels")
            object.__setattr__(self, name, value)
        if self.lens not in LENSES:
            raise ConfigError(f"lens: expected one of {', '.join(LENSES)}, got {self.lens!r}")
        object.__setattr__(self, "camera_to_world", pose)
        object.__setattr__(self, "distortion", _checked_distortion(self.lens, self.distortion))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Camera) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.width, self.height, self.fx, self.fy, tuple(self.camera_to_world.flatten().tolist())))

    @property
    def position(self) -> Float64[Tensor, " 3"]:
        """Camera centre, world units."""
        return self.camera_to_world[:, 3]

    @property
    def forward(self) -> Float64[Tensor, " 3"]:
        """Unit direction of the optical axis in the world."""
        return self.camera_to_world[:, 2]

    @property
    def up(self) -> Float64[Tensor, " 3"]:
        """Unit direction of the image's upward axis in the world."""
        return -self.camera_to_world[:, 1]

    def resized(self, width: int, height: int) -> "Camera":
        """This camera with another number of pixels: the view stays, intrinsics scale per axis."""
        return self._replaced(
            width=width,
            height=height,
            fx=self.fx * width / self.width,
            cx=self.cx * width / self.width,
            fy=self.fy * height / self.height,
            cy=self.cy * height / self.height,
        )

    def moved(self, camera_to_world: Float64[Tensor, "3 4"]) -> "Camera":
        """This camera at another pose."""
        return self._replaced(camera_to_world=camera_to_world)

    def _replaced(self, **changes: Any) -> "Camera":
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Camera(**{**fields, **changes})

    def to_dict(self) -> dict[str, Any]:
        """The camera as plain JSON values; exact, `from_dict` gives an equal camera."""
        return {
            "camera_to_world": self.camera_to_world.tolist(),
            "width": self.width,
            "height": self.height,
            "fx": self.fx,
            "fy": self.fy,
            "cx": self.cx,
            "cy": self.cy,
            "lens": self.lens,
            "distortion": list(self.distortion),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Camera":
        """The camera written by `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown or of the wrong type.
        """
        names = set(cls.__dataclass_fields__)
        wrong = sorted(names ^ set(values))
        if wrong:
            raise ConfigError(f"camera: missing or unknown field {', '.join(map(repr, wrong))}")
        try:
            pose = torch.tensor(values["camera_to_world"], dtype=torch.float64)
            distortion = tuple(float(value) for value in values["distortion"])
            return cls(**{**values, "camera_to_world": pose, "distortion": distortion})
        except (TypeError, ValueError) as error:
            # ShapeError and ConfigError are ValueErrors too: their text already names the field
            raise ConfigError(f"camera: {error}") from error


def _checked_distortion(lens: Lens, distortion: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in distortion)
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"distortion: not finite: {values}")
    if any(abs(value) > MAX_COEFFICIENT for value in values):
        raise ConfigError(f"distortion: beyond {MAX_COEFFICIENT:g}: {values}")
    if lens in ("pinhole", "equirectangular"):
        if any(values):
            name = "a pinhole" if lens == "pinhole" else "a panorama"
            raise ConfigError(f"distortion: {name} has none, got {values}")
        return ()
    if len(values) not in (0, 6):
        raise ConfigError(f"distortion: expected 6 values k1 k2 k3 k4 p1 p2, got {len(values)}")
    if lens == "fisheye" and any(values[4:]):
        raise ConfigError("distortion: a fisheye has no p1, p2")
    return values or (0.0,) * 6


def panorama(camera_to_world: Float64[Tensor, "3 4"], width: int, height: int) -> Camera:
    """The equirectangular camera whose picture shows the whole sphere: longitude -pi to pi, latitude -pi/2 to pi/2.

    Args:
        camera_to_world: OpenCV axes; the middle of the picture looks forward.
        width: Pixels.
        height: Pixels; half the width for square ones.
    """
    fx, fy = width / (2 * math.pi), height / math.pi
    return Camera(camera_to_world, width, height, fx, fy, width / 2, height / 2, "equirectangular")


def is_whole_panorama(camera: Camera) -> bool:
    """Whether the camera is one that `panorama` makes, but for rounding: not a part of a panorama."""
    if camera.lens != "equirectangular":
        return False
    whole = panorama(camera.camera_to_world, camera.width, camera.height)
    return all(
        math.isclose(getattr(camera, name), getattr(whole, name), rel_tol=1e-6) for name in ("fx", "fy", "cx", "cy")
    )


def rotation_fault(rotation: Float64[Tensor, "3 3"]) -> float:
    """How far a matrix is from a rotation: largest entry of |R^T R - 1|, or infinity for a mirror image."""
    if not float(torch.linalg.det(rotation)) > 0:
        return math.inf
    return float((rotation.T @ rotation - torch.eye(3, dtype=rotation.dtype)).abs().max())


def flip_opengl(pose: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """A camera-to-world matrix (3x4 or 4x4) with its camera axes turned from OpenGL's (x right, y up, z
    backward) to OpenCV's, or back: columns 1 and 2 change sign, the world stays."""
    sign = pose.new_tensor([1.0, -1.0, -1.0, 1.0])
    return pose * sign[: pose.shape[-1]]


def look_at(
    position: Sequence[float] | Tensor,
    target: Sequence[float] | Tensor,
    up: Sequence[float] | Tensor = (0.0, 0.0, 1.0),
) -> Float64[Tensor, "3 4"]:
    """Camera-to-world (OpenCV axes) of a camera at `position` that looks at `target` with `up` upward in the
    image.

    Args:
        position: camera centre, world units.
        target: point in the middle of the image; must differ from `position`.
        up: need not be unit length or orthogonal; where it is parallel to the view, another axis is taken.

    Raises:
        ConfigError: `position` and `target` coincide.
    """
    origin = torch.as_tensor(position, dtype=torch.float64)
    forward = torch.as_tensor(target, dtype=torch.float64) - origin
    length = float(forward.norm())
    if not length > 0:
        raise ConfigError(f"look_at: position and target coincide at {origin.tolist()}")
    forward = forward / length
    upward = torch.as_tensor(up, dtype=torch.float64)
    right = torch.linalg.cross(forward, upward)
    if float(right.norm()) <= 1e-9 * max(float(upward.norm()), 1e-300):
        upward = torch.eye(3, dtype=torch.float64)[int(forward.abs().argmin())]
        right = torch.linalg.cross(forward, upward)
    right = right / right.norm()
    down = torch.linalg.cross(forward, right)
    return torch.stack([right, down / down.norm(), forward, origin], dim=1)


# --- camera table


def camera_table(cameras: Sequence[Camera]) -> Float64[Tensor, "n_cameras 24"]:
    """Cameras as rows of numbers, the form that kernels take.

    Columns: 0-11 camera_to_world row by row (3x4), 12-15 fx fy cx cy, 16 lens (0 pinhole, 1 opencv, 2
    fisheye, 3 equirectangular), 17-20 k1..k4, 21-22 p1 p2, 23 `lens_limit`, which belongs to k1..k4: whoever changes
    them sets it anew, or to 0.
    """
    rows = torch.zeros(len(cameras), TABLE_COLUMNS, dtype=torch.float64)
    for row, camera in zip(rows, cameras, strict=True):
        row[:12] = camera.camera_to_world.reshape(12)
        row[12:16] = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], dtype=torch.float64)
        row[16] = LENSES.index(camera.lens)
        if camera.distortion:
            row[17:23] = torch.tensor(camera.distortion, dtype=torch.float64)
        row[23] = lens_limit(camera.lens, camera.distortion)
    return rows


def _checked_table(table: Tensor) -> Tensor:
    """The table, with the limits of its lenses filled in where it was made without them."""
    if table.ndim != 2 or table.shape[1] != TABLE_COLUMNS or not table.is_floating_point():
        raise ShapeError(f"table: expected floats of shape (n_cameras, 24), got {table.dtype} {tuple(table.shape)}")
    lacks = (table[:, 16] != 0) & (table[:, 23] == 0)
    if not bool(lacks.any()):
        return table
    table = table.clone()
    for index in lacks.nonzero()[:, 0].tolist():
        lens, k = LENSES[int(table[index, 16])], table[index, 17:23].tolist()
        table[index, 23] = lens_limit(lens, k)
    return table


# --- rays and pixels


def _pixels_to_camera(rows: LensRows, pixel: Tensor) -> Tensor:
    """Unit directions in the camera's own axes, [n, 3]."""
    u_d = (pixel[:, 0] - rows.cx) / rows.fx
    v_d = (pixel[:, 1] - rows.cy) / rows.fy
    lens = rows.lens.expand_as(u_d)
    is_opencv, is_fisheye = lens == 1, lens == 2
    u, v = u_d, v_d
    if bool(is_opencv.any()):
        undistorted = undistort(u_d, v_d, rows)
        u, v = (torch.where(is_opencv, new, old) for new, old in zip(undistorted, (u, v), strict=True))
    plane = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    direction = plane / plane.norm(dim=-1, keepdim=True)
    if bool(is_fisheye.any()):
        direction = torch.where(is_fisheye[:, None], fisheye_direction(u_d, v_d, rows), direction)
    is_panorama = lens == 3
    if bool(is_panorama.any()):
        latitude = v_d.clamp(-math.pi / 2, math.pi / 2)
        level = torch.cos(latitude)
        around = torch.stack([torch.sin(u_d) * level, torch.sin(latitude), torch.cos(u_d) * level], dim=-1)
        direction = torch.where(is_panorama[:, None], around, direction)
    return direction


def _rays(rows: LensRows, pixel: Tensor) -> tuple[Tensor, Tensor]:
    direction = _pixels_to_camera(rows, pixel)
    direction = (rows.rotation @ direction[:, :, None])[:, :, 0]
    return rows.position.expand_as(direction), direction / direction.norm(dim=-1, keepdim=True)


def rays_from_pixels(
    table: Float[Tensor, "n_cameras 24"],
    camera_index: Int[Tensor, " n_rays"],
    pixel: Float[Tensor, "n_rays 2"],
) -> tuple[Float[Tensor, "n_rays 3"], Float[Tensor, "n_rays 3"]]:
    """Origin and unit direction of the ray through each pixel position, in the space of the table's poses.

    This is the reference: float64 in, errors near 1e-15 for ordinary lenses. Pixels that no direction maps to
    (beyond `lens_limit`) get the ray at the limit.

    Args:
        table: from `camera_table`, or that moved into scene space.
        camera_index: row of the table, 0 .. n_cameras - 1.
        pixel: x right, y down in pixels; the first pixel's centre is (0.5, 0.5). Cast to the table's dtype.

    Returns:
        (origin, direction), of the table's dtype.

    Gradient: first order in the table (poses, intrinsics, distortion) and in `pixel`.

    Source: lens models of OpenCV (calib3d); inverse by Newton with the analytic Jacobian.
    """
    table = _checked_table(table)
    if pixel.ndim != 2 or pixel.shape[1] != 2 or camera_index.shape != pixel.shape[:1]:
        raise ShapeError(
            f"expected pixel (n_rays, 2) and camera_index (n_rays), got {tuple(pixel.shape)} and "
            f"{tuple(camera_index.shape)}"
        )
    return _rays(lens_rows(table[camera_index.long()]), pixel.to(table.dtype))


def camera_table_gradient(
    table: Float[Tensor, "n_cameras 24"],
    camera_index: Int[Tensor, " n_rays"],
    direction: Float[Tensor, "n_rays 3"],
    grad_origin: Float[Tensor, "n_rays 3"],
    grad_direction: Float[Tensor, "n_rays 3"],
    *,
    of_lens: bool = True,
) -> Float[Tensor, "n_cameras 24"]:
    """What a loss's derivatives with respect to rays say about the cameras that the rays come from.

    The same as autograd's through `rays_from_pixels`, without inverting a lens again: a direction and its camera tell
    where in the picture the ray passes, and there the lens model is differentiated implicitly. The lens's number and
    limit get 0, as do all lens columns of a panorama, and rays at or beyond the limit say nothing of lenses. A
    pinhole's coefficients get what a radial-tangential lens without distortion would, so that it can become one.

    Args:
        table: The cameras that the rays were made with, limits included; rotations are orthonormal. Its dtype is that
            of the sums; a ray's own share has the dtype of `direction`.
        camera_index: Row of the table for each ray.
        direction: Unit directions of the rays, in the space of the table's poses.
        grad_origin: Derivative of the loss with respect to each ray's origin.
        grad_direction: Derivative with respect to each ray's direction, its three numbers free of each other.
        of_lens: Whether the columns from the 12th on are wanted; else they are 0, and a third of the work is saved.
    """
    index = camera_index.long()
    rows = lens_rows(table.to(direction.dtype)[index])
    n_cameras = len(table)
    # Rays are normalised: only what is across the direction counts.
    across = grad_direction - (grad_direction * direction).sum(1, keepdim=True) * direction
    local = (rows.rotation * direction[:, :, None]).sum(1)
    rotation = across[:, :, None] * local[:, None, :]
    pose = torch.cat([rotation, grad_origin[:, :, None]], 2).reshape(-1, 12)
    found = sums_by_camera(pose.to(table.dtype), index, n_cameras)
    if not of_lens:
        return torch.cat([found, torch.zeros_like(table[:, 12:])], 1)
    lens = _lens_gradient(rows, local, (rows.rotation * across[:, :, None]).sum(1))
    return torch.cat([found, sums_by_camera(lens.to(table.dtype), index, n_cameras)], 1)


def sums_by_camera(
    values: Float[Tensor, "n_rays k"], camera_index: Int[Tensor, " n_rays"], n_cameras: int
) -> Float[Tensor, "n_cameras k"]:
    """Sums of what rays say over the rays of each camera.

    Args:
        values: What each ray says.
        camera_index: Camera of each ray.
        n_cameras: Number of cameras.
    """
    # Column by column: `index_add_` would take a tensor's whole machinery to each ray's row.
    index = camera_index.long()
    columns = [torch.bincount(index, weights=column, minlength=n_cameras) for column in values.unbind(1)]
    return torch.stack(columns, 1).to(values.dtype)  # without rays these are whole numbers


def _lens_gradient(rows: LensRows, local: Tensor, grad: Tensor) -> Tensor:
    """Columns 12 to 23 of `camera_table_gradient` for each ray: direction and gradient are in the camera's axes, the
    gradient across the direction."""
    x, y, z = local.unbind(1)
    lateral = torch.hypot(x, y)
    # Radial-tangential, and a pinhole as one without distortion: n = (u, v, 1) / |(u, v, 1)|.
    depth = torch.where(z > 1e-6, z, 1.0)
    u, v = x / depth, y / depth
    r2 = u * u + v * v
    u_d, v_d, (j_uu, j_uv, j_vv) = distort(u, v, rows)
    determinant = j_uu * j_vv - j_uv * j_uv
    is_within = (determinant > 1e-3) & (torch.sqrt(r2) < rows.limit * (1 - 1e-6))
    is_usable = (z > 1e-6) & (rows.lens != 3) & ((rows.lens == 0) | is_within)
    inverse = torch.where(is_usable, 1 / torch.where(is_usable, determinant, 1.0), 0.0)
    g_u, g_v = grad[:, 0] * depth, grad[:, 1] * depth
    a, b = (j_vv * g_u - j_uv * g_v) * inverse, (j_uu * g_v - j_uv * g_u) * inverse  # to (u_d, v_d)
    along = -(a * u + b * v)
    k = [along * r2 ** (n + 1) for n in range(4)]
    p1 = -(2 * a * u * v + b * (r2 + 2 * v * v))
    p2 = -(a * (r2 + 2 * u * u) + 2 * b * u * v)
    is_fisheye, zero = rows.lens == 2, torch.zeros_like(a)
    if bool(is_fisheye.any()):
        off_axis = lateral > 1e-12
        across = torch.where(off_axis, lateral, 1.0)
        cosine, sine = torch.where(off_axis, x / across, 1.0), torch.where(off_axis, y / across, 0.0)
        theta = torch.atan2(lateral, z)
        rho, slope = radial(theta, rows.k)
        is_within = (theta < rows.limit * (1 - 1e-6)) & (slope > 1e-6)
        g_theta = z * (cosine * grad[:, 0] + sine * grad[:, 1]) - lateral * grad[:, 2]
        g_rho = torch.where(is_within, g_theta / torch.where(is_within, slope, 1.0), 0.0)
        ratio = torch.where(off_axis, lateral / torch.where(off_axis, rho, 1.0), 1.0)
        g_phi = torch.where(is_within, ratio * (cosine * grad[:, 1] - sine * grad[:, 0]), 0.0)
        pairs = (
            (a, g_rho * cosine - g_phi * sine), (b, g_rho * sine + g_phi * cosine), (u_d, rho * cosine),
            (v_d, rho * sine), *((k[n], -g_rho * theta ** (2 * n + 3)) for n in range(4)), (p1, zero), (p2, zero),
        )  # fmt: skip
        a, b, u_d, v_d, *k, p1, p2 = (torch.where(is_fisheye, new, old) for old, new in pairs)
    columns = [-a * u_d / rows.fx, -b * v_d / rows.fy, -a / rows.fx, -b / rows.fy, zero, *k, p1, p2, zero]
    return torch.stack(columns, 1)


def pixel_centers(
    width: int, height: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Float[Tensor, "n_pixels 2"]:
    """Centres (i + 0.5, j + 0.5) of all pixels, row by row.

    Args:
        width: Pixels in a row.
        height: Rows.
        dtype: Type of the result.
        device: Where the result lies; None: torch's default.
    """
    rows, columns = (torch.arange(n, dtype=dtype, device=device) + 0.5 for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)


def camera_rays(
    camera: Camera, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "n_pixels 3"], Float[Tensor, "n_pixels 3"]]:
    """Origin and unit direction of the rays through all pixel centres of a camera, row by row, in world
    space.

    The lens is inverted in float64 whatever `dtype` the result has.
    """
    pixel = pixel_centers(camera.width, camera.height)
    origin, direction = _rays(lens_rows(camera_table([camera])), pixel)
    return origin.to(dtype), direction.to(dtype)


def project(
    table: Float[Tensor, "n_cameras 24"],
    camera_index: Int[Tensor, " n_points"],
    points: Float[Tensor, "n_points 3"],
) -> tuple[Float[Tensor, "n_points 2"], Bool[Tensor, " n_points"]]:
    """Pixel position of each point in the image of its camera, and whether the lens model holds there.

    The inverse of `rays_from_pixels`. The flag is False behind a pinhole or radial-tangential lens (z <= 0),
    at the camera centre, and beyond `lens_limit`; it says nothing about the image's border. Such pixels are
    NaN.

    Args:
        table: from `camera_table`; rotations must be orthonormal.
        camera_index: row of the table.
        points: in the space of the table's poses.
    """
    table = _checked_table(table)
    # One camera's numbers are not copied for every point.
    rows = lens_rows(table.expand(len(points), -1) if len(table) == 1 else table[camera_index.long()])
    local = (rows.rotation.mT @ (points.to(table.dtype) - rows.position)[:, :, None])[:, :, 0]
    x, y, z = local.unbind(1)
    is_opencv, is_fisheye, is_panorama = (rows.lens == number for number in (1, 2, 3))
    in_front = z > 0
    depth = torch.where(in_front, z, 1.0)
    u, v = x / depth, y / depth
    is_valid = in_front & ((rows.lens == 0) | (torch.hypot(u, v) <= rows.limit))
    u_d, v_d = u, v
    if bool(is_opencv.any()):
        distorted_u, distorted_v, _ = distort(u, v, rows)
        u_d, v_d = torch.where(is_opencv, distorted_u, u), torch.where(is_opencv, distorted_v, v)
    off_axis = (x != 0) | (y != 0)
    if bool(is_fisheye.any()):
        lateral = torch.hypot(x, y)
        theta = torch.atan2(lateral, z)
        ratio = torch.where(off_axis, radial(theta, rows.k)[0] / torch.where(off_axis, lateral, 1.0), 1 / depth)
        u_d, v_d = torch.where(is_fisheye, x * ratio, u_d), torch.where(is_fisheye, y * ratio, v_d)
        is_valid = torch.where(is_fisheye, (theta <= rows.limit) & (off_axis | in_front), is_valid)
    if bool(is_panorama.any()):
        u_d = torch.where(is_panorama, torch.atan2(x, z), u_d)
        v_d = torch.where(is_panorama, torch.atan2(y, torch.hypot(x, z)), v_d)
        is_valid = torch.where(is_panorama, off_axis | (z != 0), is_valid)
    pixel = torch.stack([u_d * rows.fx + rows.cx, v_d * rows.fy + rows.cy], dim=1)
    return torch.where(is_valid[:, None], pixel, math.nan), is_valid

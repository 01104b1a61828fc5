"""COLMAP's lens models, and the lens of ours for each: the same one, or else the one that comes nearest.

FULL_OPENCV is the rational lens of OpenCV, which files of other programs have too.
A model that is none of ours is evaluated on rays all over the picture, and focal length, principal point and distortion
of ours are fitted to the pixels by least squares. With the ratio of the two focal lengths kept, that is a linear
problem.

Source of the models: COLMAP, src/colmap/sensor/models.h; written from the description of the format.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from hashfield.data.images import ImageHeader
from hashfield.errors import DataError
from hashfield.geometry.cameras import Camera, Lens, camera_table, panorama, project


class LensModel(NamedTuple):
    """One of COLMAP's camera models."""

    name: str
    parameters: str
    """Their names in order."""
    lens: Lens | None
    """Ours that is exactly the same; None where there is none, and `nearest_lens` finds one."""


LENS_MODELS: Final[dict[int, LensModel]] = {
    0: LensModel("SIMPLE_PINHOLE", "f cx cy", "pinhole"),
    1: LensModel("PINHOLE", "fx fy cx cy", "pinhole"),
    2: LensModel("SIMPLE_RADIAL", "f cx cy k1", "opencv"),
    3: LensModel("RADIAL", "f cx cy k1 k2", "opencv"),
    4: LensModel("OPENCV", "fx fy cx cy k1 k2 p1 p2", "opencv"),
    5: LensModel("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4", "fisheye"),
    6: LensModel("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 d4 d5 d6", "opencv"),
    7: LensModel("FOV", "fx fy cx cy omega", None),
    8: LensModel("SIMPLE_RADIAL_FISHEYE", "f cx cy k1", "fisheye"),
    9: LensModel("RADIAL_FISHEYE", "f cx cy k1 k2", "fisheye"),
    10: LensModel("THIN_PRISM_FISHEYE", "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", None),
    11: LensModel("RAD_TAN_THIN_PRISM_FISHEYE", "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3", None),
    12: LensModel("SIMPLE_DIVISION", "f cx cy k", None),
    13: LensModel("DIVISION", "fx fy cx cy k", None),
    14: LensModel("SIMPLE_FISHEYE", "f cx cy", "fisheye"),
    15: LensModel("FISHEYE", "fx fy cx cy", "fisheye"),
    16: LensModel("EUCM", "fx fy cx cy alpha beta", None),
    17: LensModel("EQUIRECTANGULAR", "w h", "equirectangular"),
}
"""COLMAP's camera models by their number. FULL_OPENCV is ours where its denominator d4, d5, d6 is 0."""

LARGEST_ERROR: Final = 0.5
"""By how much the fitted lens may be off anywhere in the picture, in pixels of one whose longer side has 1000."""

_Values = Mapping[str, float]
_Plane = tuple[np.ndarray, np.ndarray]
_RADII: Final = 24
_DIRECTIONS: Final = 32
_WIDEST: Final = 1.5  # radians from the view axis that COLMAP's models, which divide by z, are looked at


def _fov(u: np.ndarray, v: np.ndarray, p: _Values) -> _Plane:
    r, omega = np.hypot(u, v), p["omega"]
    if abs(omega) < 1e-6:
        return u, v
    ratio = np.arctan(2 * r * np.tan(omega / 2)) / np.maximum(r * omega, 1e-12)
    ratio = np.where(r > 1e-9, ratio, 2 * np.tan(omega / 2) / omega)
    return u * ratio, v * ratio


def _division(u: np.ndarray, v: np.ndarray, p: _Values) -> _Plane:
    # the plane's radius is r_d / (1 + k r_d^2) of the picture's
    ratio = 2 / (1 + np.sqrt(1 - 4 * p["k"] * (u * u + v * v)))
    return u * ratio, v * ratio


def _eucm(u: np.ndarray, v: np.ndarray, p: _Values) -> _Plane:
    depth = p["alpha"] * np.sqrt(p["beta"] * (u * u + v * v) + 1) + 1 - p["alpha"]
    return u / depth, v / depth


def _equidistant(u: np.ndarray, v: np.ndarray) -> _Plane:
    r = np.hypot(u, v)
    ratio = np.where(r > 1e-9, np.arctan(r) / np.maximum(r, 1e-12), 1.0)
    return u * ratio, v * ratio


def _thin_prism(u: np.ndarray, v: np.ndarray, p: _Values) -> _Plane:
    u, v = _equidistant(u, v)
    r2 = u * u + v * v
    radial = r2 * (p["k1"] + r2 * (p["k2"] + r2 * (p["k3"] + r2 * p["k4"])))
    du = u * radial + 2 * p["p1"] * u * v + p["p2"] * (r2 + 2 * u * u) + p["sx1"] * r2
    dv = v * radial + 2 * p["p2"] * u * v + p["p1"] * (r2 + 2 * v * v) + p["sy1"] * r2
    return u + du, v + dv


def _rad_tan_thin_prism(u: np.ndarray, v: np.ndarray, p: _Values) -> _Plane:
    u, v = _equidistant(u, v)
    r2 = u * u + v * v
    radial = 1 + sum(p[f"k{k}"] * r2 ** (k + 1) for k in range(6))
    u, v = u * radial, v * radial
    r2 = u * u + v * v
    du = 2 * p["p1"] * u * v + p["p0"] * (r2 + 2 * u * u) + p["s0"] * r2 + p["s1"] * r2 * r2
    dv = 2 * p["p0"] * u * v + p["p1"] * (r2 + 2 * v * v) + p["s2"] * r2 + p["s3"] * r2 * r2
    return u + du, v + dv


def _rational(u: np.ndarray, v: np.ndarray, p: _Values) -> _Plane:
    r2 = u * u + v * v
    ratio = 1 + r2 * (p["k1"] + r2 * (p["k2"] + r2 * p["k3"]))
    ratio = ratio / (1 + r2 * (p["d4"] + r2 * (p["d5"] + r2 * p["d6"])))
    du = 2 * p["p1"] * u * v + p["p2"] * (r2 + 2 * u * u)
    dv = 2 * p["p2"] * u * v + p["p1"] * (r2 + 2 * v * v)
    return u * ratio + du, v * ratio + dv


_DISTORT: Final[dict[str, Callable[[np.ndarray, np.ndarray, _Values], _Plane]]] = {
    "FULL_OPENCV": _rational,
    "FOV": _fov,
    "THIN_PRISM_FISHEYE": _thin_prism,
    "RAD_TAN_THIN_PRISM_FISHEYE": _rad_tan_thin_prism,
    "SIMPLE_DIVISION": _division,
    "DIVISION": _division,
    "EUCM": _eucm,
}


class FittedLens(NamedTuple):
    """A lens of ours in place of another."""

    lens: Lens
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...]
    error: float
    """The most that it is off, in pixels; infinite where nothing fits at all."""

    def is_near(self, width: int, height: int) -> bool:
        """Whether it may stand for the other in pictures of this size."""
        return self.error <= LARGEST_ERROR * max(width, height) / 1000


def nearest_lens(name: str, values: _Values, width: int, height: int) -> FittedLens:
    """The lens that comes nearest to one of COLMAP's.

    Args:
        name: COLMAP's name of the model, one that this module knows.
        values: Its parameters, "fx" and "fy" or "f", "cx", "cy" and those of the distortion.
        width: Pixels of the picture that the parameters are for.
        height: Pixels likewise.
    """
    fx, fy = (values.get(axis, values.get("f", 0.0)) for axis in ("fx", "fy"))
    rays, pixels = _seen(name, values, (fx, fy), width, height)
    fitted = [_fit(lens, rays, pixels, fy / fx, width, height) for lens in ("opencv", "fisheye")]
    return min(fitted, key=lambda lens: lens.error)


def _seen(
    name: str, values: _Values, focal: tuple[float, float], width: int, height: int
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 2"]]:
    """Directions all over the picture, and the pixels that the model has for them."""
    angle = np.linspace(0, 2 * np.pi, _DIRECTIONS, endpoint=False)[:, None]
    widest = _WIDEST
    for _ in range(2):  # once to see how far the picture reaches, and once as far as that
        theta = np.linspace(0, widest, _RADII)[None, 1:]
        u, v = np.tan(theta) * np.cos(angle), np.tan(theta) * np.sin(angle)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            x, y = _DISTORT[name](u, v, values)
        out = np.hypot(x, y)
        x, y = focal[0] * x + values["cx"], focal[1] * y + values["cy"]
        is_inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
        # outwards until it leaves the picture, or the model folds back
        is_inside &= np.diff(out, axis=1, prepend=0) > 0
        is_inside = np.logical_and.accumulate(is_inside, axis=1)
        widest = min(_WIDEST, float(theta[0, is_inside.any(axis=0).sum() - 1]) + widest / _RADII)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1)[is_inside]
    return rays, np.stack([x, y], axis=-1)[is_inside]


def _fit(
    lens: Lens,
    rays: Float64[np.ndarray, "n 3"],
    pixels: Float64[np.ndarray, "n 2"],
    aspect: float,
    width: int,
    height: int,
) -> FittedLens:
    n = len(rays)
    u, v = (rays[:, :2] if lens == "opencv" else np.stack(_equidistant(rays[:, 0], rays[:, 1]), 1)).T
    r2 = u * u + v * v
    # columns: focal length, that times k1 to k4, that times p1 and p2, principal point
    powers = np.stack([np.ones(n), r2, r2**2, r2**3, r2**4], 1)
    one, none = np.ones((n, 1)), np.zeros((n, 1))
    across, down = u[:, None] * powers, v[:, None] * powers
    if lens == "opencv":
        across = np.column_stack([across, 2 * u * v, r2 + 2 * u * u])
        down = np.column_stack([down, r2 + 2 * v * v, 2 * u * v])
    system = np.vstack([np.hstack([across, one, none]), np.hstack([aspect * down, none, one])])
    failed = FittedLens(lens, 0, 0, 0, 0, (), np.inf)
    if n < 2 * system.shape[1] or not np.isfinite(pixels).all():
        return failed
    size = np.abs(system).max(axis=0)
    found = np.linalg.lstsq(system / size, np.concatenate(pixels.T), rcond=None)[0] / size
    focal, terms, (cx, cy) = float(found[0]), found[1:-2] / found[0], found[-2:].tolist()
    distortion = (*terms.tolist(), 0.0, 0.0)[:6]
    if not focal > 0:
        return failed
    pose = torch.eye(3, 4, dtype=torch.float64)
    camera = Camera(pose, width, height, focal, focal * aspect, cx, cy, lens, distortion)
    there, is_valid = project(camera_table([camera]), torch.zeros(n, dtype=torch.int64), torch.from_numpy(rays))
    error = float(np.linalg.norm(there.numpy() - pixels, axis=1).max()) if bool(is_valid.all()) else np.inf
    return FittedLens(lens, focal, focal * aspect, cx, cy, distortion, error)


@dataclass(frozen=True)
class ModelLens:
    """The lens of one camera of a COLMAP model."""

    place: str
    """Where the model states it, as the beginning of an error."""
    model: LensModel
    width: int
    height: int
    parameters: dict[str, float]

    def camera(self, pose: Float64[torch.Tensor, "3 4"], header: ImageHeader) -> Camera:
        """The camera at this pose for a photo of this size."""
        if self.model.lens == "equirectangular":
            return panorama(pose, header.width, header.height)
        ours = self.ours
        if not ours.is_near(self.width, self.height):
            by = f" by up to {ours.error:.2g} pixels" if ours.error < np.inf else ""
            raise DataError(
                f"{self.place}: 'model': {self.model.name} with these parameters differs{by} from every lens that is "
                "supported: undistort the photos with `colmap image_undistorter`"
            )
        x, y = header.width / self.width, header.height / self.height
        return Camera(
            pose,
            header.width,
            header.height,
            fx=ours.fx * x,
            fy=ours.fy * y,
            cx=ours.cx * x,
            cy=ours.cy * y,
            lens=ours.lens,
            distortion=ours.distortion,
        )

    @cached_property
    def ours(self) -> FittedLens:
        """The lens of ours that is the same, or else the one that comes nearest; a panorama has none."""
        values, lens = self.parameters, self.model.lens
        if lens is None or any(values.get(name) for name in ("d4", "d5", "d6")):
            return nearest_lens(self.model.name, values, self.width, self.height)
        fx, fy = (values.get(axis, values.get("f", 0.0)) for axis in ("fx", "fy"))
        names = () if lens == "pinhole" else ("k1", "k2", "k3", "k4", "p1", "p2")
        distortion = tuple(values.get(name, 0.0) for name in names)
        return FittedLens(lens, fx, fy, values["cx"], values["cy"], distortion, 0.0)

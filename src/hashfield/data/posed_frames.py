"""One frame of a transforms.json: its image file, its pose and its intrinsics, checked.

A field that would change rays or what is learned from a pixel, and that is not supported, is an error that names
it (`REFUSED`). Others that some program knows and this one ignores are listed (`IGNORED`); unknown ones are
ignored silently.
"""

import functools
import math
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hashfield.data.colmap_lenses import FittedLens, nearest_lens
from hashfield.data.files import Folder, natural_key, normalized
from hashfield.data.images import ImageHeader
from hashfield.data.json_fields import Fields, kind, one_line
from hashfield.data.stated import StatedDepth, StatedMask, StatedView, Tally, check_size, rigid_pose
from hashfield.errors import DataError
from hashfield.geometry.cameras import MAX_COEFFICIENT, Camera, Lens, flip_opengl, panorama

# --- what is refused, what is ignored


def _is_present(value: object) -> bool:
    return value is not None


def _is_on(value: object) -> bool:
    return value is not None and value is not False and value != 0


def _has_non_zero(value: object) -> bool:
    return any(map(_has_non_zero, value)) if isinstance(value, list) else _is_on(value)


_MOVING: Final = "moving cameras (rolling shutter) are not supported yet"
_MITSUBA: Final = "Mitsuba's axis convention is not supported yet"
_COLOR_KEY: Final = "a colour that stands for transparency is not supported yet"

REFUSED: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    **{f"ftheta_p{power}": (_is_present, "f-theta lenses are not supported yet") for power in range(5)},
    "equirectangular": (
        _is_on,
        "instant-ngp's equal-area panoramas are not supported; ordinary ones are called latlong, or have camera_model "
        "EQUIRECTANGULAR",
    ),
    "orthographic": (_is_on, "orthographic cameras are not supported yet"),
    "rolling_shutter": (_has_non_zero, _MOVING),
    "transform_matrix_start": (_is_present, _MOVING),
    "transform_matrix_end": (_is_present, _MOVING),
    "from_mitsuba": (_is_on, _MITSUBA),
    "normal_mts_args": (_is_present, _MITSUBA),
    "white_transparent": (_is_on, _COLOR_KEY),
    "black_transparent": (_is_on, _COLOR_KEY),
}
"""Field -> (whether its value takes effect, why it cannot be read). At the top level and in frames alike."""

IGNORED: Final = (
    *("driver_parameters", "n_extra_learnable_dims"),
    *("sharpen", "sharpness_discard_threshold", "render_aabb", "orientation_override", "fisheye_crop_radius"),
)
"""Fields that change something in other programs and nothing here."""

DEPTH_FIELDS: Final = ("depth_path", "depth_file_path", "integer_depth_scale")
"""Fields that have an effect only where depth is read."""


def refuse(fields: Fields) -> None:
    """Raise for the first field of `REFUSED` that takes effect."""
    for name, (takes_effect, reason) in REFUSED.items():
        if name in fields.values and takes_effect(fields.values[name]):
            raise fields.fail(name, reason)


# --- frames


@dataclass(frozen=True, eq=False)
class Frame:
    """One entry of `frames`."""

    fields: Fields
    top: Fields
    """The object around it, whose values stand in for missing ones."""
    file_path: str
    """Path of the photo as the file states it, normalised."""
    image: Path | None
    """The image file, None where it is missing."""
    is_elsewhere: bool
    """Whether it was found in images/ by its name only."""


def read_frames(top: Fields, folder: Folder) -> list[Frame]:
    """All frames in natural order of file_path, cut to n_frames; images are looked up, nothing else is read.

    Raises:
        DataError: a frame is no object or names no file; the top level has a refused field.
    """
    refuse(top)
    if isinstance(top.values.get("camera"), list):
        raise top.fail("camera", "the old hdf5 layout of instant-ngp is not supported")
    frames = []
    for index, entry in enumerate(top.values["frames"]):
        place = f"{top.place}: frame {index}"
        if not isinstance(entry, dict):
            raise DataError(f"{place}: expected an object, got {kind(entry)}")
        stated = entry.get("file_path")
        if not isinstance(stated, str) or not stated.strip() or "\0" in stated:
            got = "nothing" if stated is None else kind(stated)
            raise Fields(entry, place).fail("file_path", f"expected the name of an image file, got {got}")
        file_path = normalized(stated)
        image, is_elsewhere = folder.find_image(file_path)
        frames.append(Frame(Fields(entry, f"{place} ({stated})"), top, file_path, image, is_elsewhere))
    frames = _without_shared_guesses(frames)
    frames.sort(key=lambda frame: natural_key(frame.file_path))
    n_frames = top.whole("n_frames")
    if n_frames is not None and n_frames < 1:
        raise top.fail("n_frames", f"expected at least 1, got {n_frames}")
    return frames[:n_frames]


def _without_shared_guesses(frames: list[Frame]) -> list[Frame]:
    """The frames, those without an image whose guessed image another name leads to as well: of cam0/1.png and
    cam1/1.png, images/1.png can be only one."""
    names: dict[Path | None, set[str]] = {}
    for frame in frames:
        names.setdefault(frame.image, set()).add(frame.file_path)
    return [
        replace(frame, image=None, is_elsewhere=False) if frame.is_elsewhere and len(names[frame.image]) > 1 else frame
        for frame in frames
    ]


def view_of(frame: Frame, folder: Folder, camera_axes: str, splits: frozenset[str]) -> StatedView:
    """The frame as a view whose camera is made, and whose fields are checked, once it is asked for.

    Args:
        frame: one of `read_frames`.
        folder: where companions of the image are looked up.
        camera_axes: of the file's poses, see `ReadOptions`.
        splits: see `StatedView`.
    """

    def make_camera(header: ImageHeader, tally: Tally) -> Camera:
        _refuse_companions(frame, view, folder)
        return _camera(frame, view, header, camera_axes, tally)

    masks = () if frame.image is None else _masks(frame, frame.image, folder)
    view = StatedView(
        frame.file_path, frame.fields.place, frame.image, make_camera, splits, masks,
        make_depth=lambda: _depth(frame, folder),
    )  # fmt: skip
    return view


_MILLIMETRE: Final = 1e-3  # nerfstudio's depth_unit_scale_factor, which its files need not state


def _depth(frame: Frame, folder: Folder) -> StatedDepth | None:
    """The depth map of a frame: nerfstudio's `depth_file_path`, or instant-ngp's `depth_path`, which means nothing
    without `integer_depth_scale`."""
    scale = frame.top.number("integer_depth_scale")
    if scale is not None and scale <= 0 and scale != -1:
        raise frame.top.fail("integer_depth_scale", f"expected units above 0, or -1 for no depth, got {scale:g}")
    if scale == -1 or frame.top.boolean("enable_depth_loading") is False:
        return None
    for name, default in (("depth_file_path", _MILLIMETRE), ("depth_path", None)):
        stated, size = frame.fields.values.get(name), default if scale is None else scale
        if stated is None or size is None:
            continue
        if not isinstance(stated, str) or not stated.strip() or "\0" in stated:
            raise frame.fields.fail(name, f"expected the name of a depth file, got {kind(stated)}")
        # nerfstudio's depth is that of the world before its poses were scaled
        applied = (frame.top.number("applied_scale", above=0) or 1.0) if name == "depth_file_path" else 1.0
        is_metric = name == "depth_file_path" and applied == 1.0 and abs(size - _MILLIMETRE) < 1e-9
        return StatedDepth(folder.find(normalized(stated)), stated, name, size * applied, is_metric)
    return None


def _masks(frame: Frame, image: Path, folder: Folder) -> tuple[StatedMask, ...]:
    """Masks of a frame: nerfstudio's `mask_path`, of the frame or of all, and instant-ngp's dynamic mask beside the
    image."""
    scope = frame.fields if frame.fields.has("mask_path") else frame.top
    stated = scope.values.get("mask_path")
    masks = []
    if stated is not None:
        if not isinstance(stated, str) or not stated.strip() or "\0" in stated:
            raise scope.fail("mask_path", f"expected the name of an image file, got {kind(stated)}")
        name = normalized(stated)
        masks.append(StatedMask(folder.find(name) or folder.root / name, "mask_path", keeps_black=False))
    name = f"dynamic_mask_{image.stem}.png"
    if folder.has_beside(image, name):
        masks.append(StatedMask(image.with_name(name), "file_path", keeps_black=True))
    return tuple(masks)


def _refuse_companions(frame: Frame, view: StatedView, folder: Folder) -> None:
    """Raise where files beside the image would change its rays or its alpha."""
    stem, ending = view.path.stem, view.path.suffix
    companions = [
        (
            f"{posixpath.basename(frame.file_path)}.alpha{ending}",
            "separate alpha files are not supported yet",
        ),
    ]
    if frame.top.boolean("enable_ray_loading") is not False:
        companions.append((f"rays_{stem}.dat", "ray files are not supported yet"))
    for name, reason in companions:
        if folder.has_beside(view.path, name):
            raise view.fail(f"{name} lies beside the image: {reason}")


def _camera(frame: Frame, view: StatedView, header: ImageHeader, camera_axes: str, tally: Tally) -> Camera:
    """The camera for the whole image; raises where a field is missing, wrong or refused."""
    refuse(frame.fields)
    pose, is_scaled = _pose(frame)
    if is_scaled:
        tally.scaled.append(view.name)
    if camera_axes == "opengl":
        pose = flip_opengl(pose)
    check_size(view, _stated_size(frame.fields, frame.top), header, tally)
    if _is_panorama(frame):
        return _panorama(frame, pose, header, tally)
    scopes = ((frame.fields, frame.top), (frame.top, frame.fields))
    focal = next((found for scope, other in scopes if (found := _focal(scope, other, header, view, tally))), None)
    if focal is None:
        place = frame.fields.place
        raise DataError(one_line(f"{place}: no focal length: expected one of 'fl_x', 'camera_angle_x', 'x_fov'"))
    center = _principal_point(frame, header)
    model, terms = _lens(frame, tally)
    if isinstance(model, _ForeignLens):
        lens = _nearest(model, focal, center, terms, (header.width, header.height))
        if not lens.is_near(header.width, header.height):
            by = f" by up to {lens.error:.2g} pixels" if lens.error < math.inf else ""
            raise view.fail(
                f"the {model.one} with these coefficients differs{by} from every lens that is supported: undistort the "
                "photos",
                model.fields,
            )
        tally.fitted[model.many] = max(tally.fitted.get(model.many, 0.0), lens.error)
    else:
        lens = FittedLens(model, *focal, *center, terms, 0.0)
    return Camera(
        pose,
        header.width,
        header.height,
        fx=lens.fx,
        fy=lens.fy,
        cx=lens.cx,
        cy=lens.cy,
        lens=lens.lens,
        distortion=lens.distortion,
    )


@dataclass(frozen=True)
class _ForeignLens:
    """A lens that is none of ours, but one of COLMAP's: it is read as the nearest of ours."""

    one: str
    """What it is called in an error."""
    many: str
    """What several are called in a note."""
    fields: str
    """Where a file states its coefficients."""
    colmap: str
    """COLMAP's name for it."""
    terms: tuple[str, ...]
    """COLMAP's names for its coefficients, in the order in which `_lens` gives them."""


_RATIONAL: Final = _ForeignLens(
    "rational lens", "rational lenses (k4, k5, k6 as a denominator)", "k4, k5, k6",
    "FULL_OPENCV", ("k1", "k2", "k3", "d4", "p1", "p2", "d5", "d6"),
)  # fmt: skip
_FISHEYE624: Final = _ForeignLens(
    "lens FISHEYE624", "lenses FISHEYE624", "distortion_params", "RAD_TAN_THIN_PRISM_FISHEYE",
    ("k0", "k1", "k2", "k3", "k4", "k5", "p0", "p1", "s0", "s1", "s2", "s3"),
)  # fmt: skip


@functools.lru_cache(maxsize=64)  # the frames of a file share a few lenses
def _nearest(
    foreign: _ForeignLens,
    focal: tuple[float, float],
    center: tuple[float, float],
    terms: tuple[float, ...],
    size: tuple[int, int],
) -> FittedLens:
    """The lens of ours that comes nearest to one that is not.

    Args:
        foreign: Which it is.
        focal: Focal lengths along x and y in pixels.
        center: Principal point in pixels.
        terms: Its coefficients.
        size: Width and height of the photo.
    """
    values = dict(zip(foreign.terms, terms, strict=True))
    return nearest_lens(
        foreign.colmap, {"fx": focal[0], "fy": focal[1], "cx": center[0], "cy": center[1], **values}, *size
    )


# --- panoramas

_PANORAMA: Final = "EQUIRECTANGULAR"


def _is_panorama(frame: Frame) -> bool:
    """Whether the photo shows the whole sphere: nerfstudio's camera model, or instant-ngp's latlong."""
    model = _model_name(frame.fields) or _model_name(frame.top)
    on = frame.fields.boolean("latlong")
    return model == _PANORAMA or bool(frame.top.boolean("latlong") if on is None else on)


def _panorama(frame: Frame, pose: Tensor, header: ImageHeader, tally: Tally) -> Camera:
    """The camera of a photo of the whole sphere. Focal lengths say nothing: nerfstudio writes w / 2 and h."""
    for scope in (frame.fields, frame.top):
        if any(_coefficients(scope)):
            raise scope.fail("camera_model", "a panorama has no lens distortion, but a coefficient is not 0")
    cx, cy = _principal_point(frame, header)
    if max(abs(cx - 0.5 * header.width), abs(cy - 0.5 * header.height)) > 1:
        raise frame.fields.fail("cx, cy", f"a panorama's middle is ({header.width / 2:g}, {header.height / 2:g})")
    if abs(header.width - 2 * header.height) > 0.02 * header.width:
        told = "a panorama of the whole sphere is twice as wide as high, this one is stretched"
        tally.doubtful.setdefault(told, []).append(f"{frame.file_path} ({header.width}x{header.height})")
    return panorama(pose, header.width, header.height)


# --- pose

_CONVENTION: Final = "a right-handed camera-to-world matrix with OpenGL camera axes (x right, y up, looking along -z)"


def _pose(frame: Frame) -> tuple[Tensor, bool]:
    """Camera-to-world with the file's camera axes, 3x4 float64, and whether a uniform scale was removed."""
    fields, name = frame.fields, "transform_matrix"
    value = fields.values.get(name)
    if not isinstance(value, list) or len(value) not in (3, 4):
        got = "nothing" if name not in fields.values else kind(value)
        got = f"{len(value)} rows" if isinstance(value, list) else got
        raise fields.fail(name, f"expected 3 or 4 rows of 4 numbers, got {got}")
    rows = [fields.row(name, row, 4, f" in row {index}") for index, row in enumerate(value)]
    if len(rows) == 4 and any(abs(got - want) > 1e-4 for got, want in zip(rows[3], (0, 0, 0, 1), strict=True)):
        raise fields.fail(name, f"the last row must be 0 0 0 1, got {rows[3]} (is the matrix transposed?)")
    pose = torch.tensor(rows[:3], dtype=torch.float64)
    return rigid_pose(pose, _CONVENTION, lambda message: fields.fail(name, message))


# --- intrinsics


def _stated_size(first: Fields, second: Fields) -> tuple[float | None, float | None]:
    """Width and height that pixel quantities of `first` refer to: its own, else those of `second`."""

    def stated(name: str) -> float | None:
        own = first.number(name, above=0)
        return own if own is not None else second.number(name, above=0)

    return stated("w"), stated("h")


_SAME_FOCAL: Final = 0.01  # focal lengths that differ by less say the same with other rounding
_NARROWEST: Final = 1e-9  # of fields of view, in any unit: what is below makes no finite focal length
_SQUARE: Final = 0.1  # of fx and fy of any real lens and sensor; instant-ngp's fox has 0.0007


def _focal(
    scope: Fields, other: Fields, header: ImageHeader, view: StatedView, tally: Tally
) -> tuple[float, float] | None:
    """Focal lengths in pixels of the image file, None where this scope states none; one axis serves both. What
    contradicts itself is said."""
    size = _stated_size(scope, other)
    found = []
    for axis, pixels, stated in (("x", header.width, size[0]), ("y", header.height, size[1])):
        degrees = scope.number(f"{axis}_fov", above=_NARROWEST, below=180)
        in_pixels = scope.number(f"fl_{axis}", above=0)
        radians = scope.number(f"camera_angle_{axis}", above=_NARROWEST, below=math.pi)
        ways = {
            f"{axis}_fov": None if degrees is None else 0.5 * pixels / math.tan(math.radians(degrees) / 2),
            f"fl_{axis}": None if in_pixels is None else in_pixels * _ratio(pixels, stated),
            f"camera_angle_{axis}": None if radians is None else 0.5 * pixels / math.tan(radians / 2),
        }
        named = [(name, focal) for name, focal in ways.items() if focal is not None]
        found.append(named[0][1] if named else None)
        for name, focal in named[1:]:
            if abs(focal / named[0][1] - 1) > _SAME_FOCAL:
                told = f"{named[0][0]} and {name} contradict each other and {named[0][0]} is taken"
                values = f"{view.name} (focal lengths of {named[0][1]:.4g} and {focal:.4g} pixels)"
                tally.doubtful.setdefault(told, []).append(values)
    fx, fy = found
    if fx is None:
        return None if fy is None else (fy, fy)
    if fy is not None and abs(math.log(fy) - math.log(fx)) > _SQUARE:
        shape = header.width / header.height
        is_slip = shape != 1 and min(abs(fy / fx / shape - 1), abs(fy / fx * shape - 1)) < _SAME_FOCAL
        told = "the focal lengths along x and y mean pixels that are not square"
        told += ", by just the picture's width to height, probably a mistake of the exporter," if is_slip else ""
        tally.doubtful.setdefault(told, []).append(f"{view.name} ({fx:.4g} and {fy:.4g})")
    return fx, fx if fy is None else fy


def _ratio(real: int, stated: float | None) -> float:
    return 1.0 if stated is None else real / stated


def _principal_point(frame: Frame, header: ImageHeader) -> tuple[float, float]:
    """The principal point in pixels of the image file; its centre where nothing is stated."""
    point = []
    for axis, name in enumerate(("cx", "cy")):
        pixels = (header.width, header.height)[axis]
        scope, other = (frame.fields, frame.top) if frame.fields.has(name) else (frame.top, frame.fields)
        value = scope.number(name)
        ratio = _ratio(pixels, _stated_size(scope, other)[axis])
        point.append(0.5 * pixels if value is None else value * ratio)
    return point[0], point[1]


class _Model(NamedTuple):
    """What a lens model's name says."""

    is_fisheye: bool
    terms: str
    """Coefficients that it has; which of them a file states is told by the coefficients."""


_CAMERA_MODELS: Final[Mapping[str, _Model]] = {
    **dict.fromkeys(("SIMPLE_PINHOLE", "PINHOLE"), _Model(False, "")),
    "PERSPECTIVE": _Model(False, "k1 k2 k3 k4 p1 p2 k5 k6"),
    "SIMPLE_RADIAL": _Model(False, "k1"),
    "RADIAL": _Model(False, "k1 k2"),
    **dict.fromkeys(("OPENCV", "FULL_OPENCV"), _Model(False, "k1 k2 k3 k4 p1 p2 k5 k6")),
    # p1 and p2 mean nothing to a fisheye, and colmap2nerf writes them for all lenses
    "SIMPLE_FISHEYE": _Model(True, "p1 p2"),
    **dict.fromkeys(("FISHEYE", "OPENCV_FISHEYE"), _Model(True, "k1 k2 k3 k4 p1 p2")),
    "SIMPLE_RADIAL_FISHEYE": _Model(True, "k1 p1 p2"),
    "RADIAL_FISHEYE": _Model(True, "k1 k2 p1 p2"),
    "FISHEYE624": _Model(True, "k1 k2 k3 k4 p1 p2 k5 k6"),  # its own twelve stand in distortion_params
    _PANORAMA: _Model(False, ""),
}
_TERMS: Final = ("k1", "k2", "k3", "k4", "p1", "p2", "k5", "k6")


def _coefficients(scope: Fields) -> list[float]:
    """Distortion in the order of `_TERMS` as one scope states it, 0 where absent."""
    listed = scope.values.get("distortion_params")
    if isinstance(listed, list) and len(listed) == len(_FISHEYE624.terms):
        raise scope.fail("distortion_params", "12 numbers are the lens FISHEYE624, but camera_model names another one")
    limits = {"above": -MAX_COEFFICIENT, "below": MAX_COEFFICIENT}
    first = [] if listed is None else scope.row("distortion_params", listed, 6)
    return [*first, *(scope.number(name, **limits) or 0.0 for name in _TERMS[len(first) :])]


def _model_name(scope: Fields) -> str | None:
    model = scope.values.get("camera_model")
    if model is None:
        return None
    if not isinstance(model, str):
        raise scope.fail("camera_model", f"expected a name, got {kind(model)}")
    if model.upper() not in _CAMERA_MODELS:
        raise scope.fail("camera_model", f"{model} is not supported; supported are {', '.join(_CAMERA_MODELS)}")
    return model.upper()


def _fisheye624(frame: Frame) -> tuple[float, ...] | None:
    """The twelve coefficients of nerfstudio's lens FISHEYE624 where it is the frame's: by the model's name, or by their
    number where none is named."""
    own_model, top_model = _model_name(frame.fields), _model_name(frame.top)
    name, n_terms = "distortion_params", len(_FISHEYE624.terms)
    scope = frame.fields if frame.fields.has(name) else frame.top
    listed = scope.values.get(name)
    if own_model is None and top_model is None:
        is_listed = isinstance(listed, list) and len(listed) == n_terms
        if not is_listed or (scope is frame.top and any(_coefficients(frame.fields))):
            return None
    elif (own_model or top_model) != "FISHEYE624":
        return None
    if listed is None:
        raise scope.fail(name, f"the lens FISHEYE624 needs its {n_terms} numbers here")
    return tuple(scope.row(name, listed, n_terms, " of the lens FISHEYE624"))


def _lens(frame: Frame, tally: Tally) -> tuple[Lens | _ForeignLens, tuple[float, ...]]:
    """The lens and its six coefficients, or a lens that is none of ours, and its own coefficients.

    With k5 or k6, k4 is the first term of a denominator; alone it is so in the model FULL_OPENCV, which names it.

    A frame that names a model of its own uses that alone: its own coefficients, not those of another model at the top
    level. Otherwise, as in instant-ngp, a frame's coefficients stand instead of the top level's if any is not 0, so
    that a frame cannot switch distortion off by zeros.
    """
    twelve = _fisheye624(frame)
    if twelve is not None:
        return _FISHEYE624, twelve
    own_model, top_model = _model_name(frame.fields), _model_name(frame.top)
    own = _coefficients(frame.fields)
    is_own = any(own) or (own_model is not None and own_model != top_model and top_model is not None)
    is_own = is_own or own_model in ("PINHOLE", "SIMPLE_PINHOLE")
    values = own if is_own else _coefficients(frame.top)
    model = own_model or top_model
    is_fisheye = frame.fields.boolean("is_fisheye")
    if is_fisheye is None:
        is_fisheye = own_model is None and bool(frame.top.boolean("is_fisheye"))
    if model is not None:
        scope = frame.fields if own_model else frame.top
        is_fisheye = is_fisheye or _CAMERA_MODELS[model].is_fisheye
        for name, value in zip(_TERMS, values, strict=True):
            if value and name not in _CAMERA_MODELS[model].terms.split():
                raise scope.fail(
                    "camera_model", f"{model} has no {name}, but {name} is {value:g}: leave out one of them"
                )
    if is_fisheye:
        if any(values[6:]):
            raise (frame.fields if is_own else frame.top).fail("k5, k6", "a fisheye lens has no such terms")
        return "fisheye", (*values[:4], 0.0, 0.0)
    if not any(values):
        return "pinhole", ()
    if any(values[6:]) or (model == "FULL_OPENCV" and values[3]):
        return _RATIONAL, tuple(values)
    if values[3]:
        tally.r8.append(frame.file_path)
    return "opencv", tuple(values[:6])

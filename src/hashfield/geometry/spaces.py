"""The three spaces and every conversion between them.

*world*: the data file's frame and units. *scene*: instant-ngp's training space,
p_scene = cycle(p_world * scale + offset) with cycle(x, y, z) = (y, z, x); cascades of boxes stand around its
[0, 1]^3. *unit*: [0, 1]^3 over the whole training box, what encodings see.

Source: instant-ngp, nerf_loader.h (`nerf_matrix_to_ngp`, `nerf_position_to_ngp`); the box is 0.5 +-
aabb_scale / 2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.cameras import Camera, camera_table, rays_from_pixels
from hashfield.geometry.focus import distances_to_focus, gaze

DEFAULT_SCALE: Final = 0.33
DEFAULT_OFFSET: Final = (0.5, 0.5, 0.5)
MAX_AABB_SCALE: Final = 128
MAX_SCALE: Final = 1e9
"""Largest scale, and its inverse the smallest: beyond, float32 positions of the scene lose all digits."""
CONE_ANGLE: Final = 1 / 256
GRID_SIZE: Final = 128
"""Cells of an occupancy grid along an axis of each cascade. Source: instant-ngp's NERF_GRIDSIZE."""
CELLS_PER_CASCADE: Final = GRID_SIZE**3

_Number = TypeVar("_Number", float, Tensor)

_CYCLE: Final = [1, 2, 0]  # scene axis i is world axis _CYCLE[i]
_UNCYCLE: Final = [2, 0, 1]


def n_cascades_of(aabb_scale: int) -> int:
    """Nested occupancy grids of a box of this side: one for the unit cube and one for each doubling up to the box.

    >>> [n_cascades_of(side) for side in (1, 2, 16)]
    [1, 2, 5]
    """
    return int(aabb_scale).bit_length()


def n_cells_of(aabb_scale: int) -> int:
    """Cells of the occupancy grid of a box of this side, all cascades together."""
    return n_cascades_of(aabb_scale) * CELLS_PER_CASCADE


def box_low_of(aabb_scale: int) -> float:
    """Lowest coordinate of a box of this side in scene space, along every axis: the box stands around 0.5.

    >>> box_low_of(1), box_low_of(4)
    (0.0, -1.5)
    """
    return 0.5 - 0.5 * aabb_scale


def is_aabb_scale(value: object) -> bool:
    """Whether a value is a power of two in 1..128."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and 1 <= value <= MAX_AABB_SCALE
        and value & (value - 1) == 0
    )


@dataclass(frozen=True)
class Spaces:
    """How a scene's world, scene and unit spaces lie to each other.

    Raises:
        ConfigError: a field is out of range.
    """

    scale: float = DEFAULT_SCALE
    """Scene units per world unit, > 0."""
    offset: tuple[float, float, float] = DEFAULT_OFFSET
    """Added after scaling, along the world's axes (before they are cycled)."""
    aabb_scale: int = 1
    """Side of the training box in scene units, a power of two, 1..128."""

    def __post_init__(self) -> None:
        scale = float(self.scale)
        if not 1 / MAX_SCALE <= scale <= MAX_SCALE:
            raise ConfigError(f"scale: expected a number from {1 / MAX_SCALE:g} to {MAX_SCALE:g}, got {self.scale!r}")
        offset = tuple(float(value) for value in self.offset)
        if len(offset) != 3 or not all(math.isfinite(value) for value in offset):
            raise ConfigError(f"offset: expected three finite numbers, got {self.offset!r}")
        if not is_aabb_scale(self.aabb_scale):
            raise ConfigError(f"aabb_scale: expected a power of two in 1..128, got {self.aabb_scale!r}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "offset", offset)

    # --- the box

    @property
    def box_min(self) -> tuple[float, float, float]:
        """Lower corner of the training box, scene space."""
        low = box_low_of(self.aabb_scale)
        return low, low, low

    @property
    def box_max(self) -> tuple[float, float, float]:
        """Upper corner of the training box, scene space."""
        high = 0.5 + 0.5 * self.aabb_scale
        return high, high, high

    @property
    def box_center_world(self) -> Float64[Tensor, " 3"]:
        """Centre of the box in the world."""
        return self.scene_to_world(torch.full((3,), 0.5, dtype=torch.float64))

    @property
    def n_cascades(self) -> int:
        """Nested occupancy grids: one for the unit cube and one for each doubling up to the box."""
        return n_cascades_of(self.aabb_scale)

    @property
    def n_cells(self) -> int:
        """Cells of the occupancy grid, all cascades together."""
        return n_cells_of(self.aabb_scale)

    @property
    def cone_angle(self) -> float:
        """Growth of the march's step with distance: 0 for a box of side 1, else 1/256."""
        return 0.0 if self.aabb_scale == 1 else CONE_ANGLE

    # --- points

    def world_to_scene(self, points_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of the world in scene space."""
        return (points_world * self.scale + points_world.new_tensor(self.offset))[..., _CYCLE]

    def scene_to_world(self, points_scene: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of scene space in the world."""
        return (points_scene[..., _UNCYCLE] - points_scene.new_tensor(self.offset)) / self.scale

    def scene_to_unit(self, points_scene: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of scene space as fractions of the training box."""
        return (points_scene - self.box_min[0]) / self.aabb_scale

    def unit_to_scene(self, points_unit: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Fractions of the training box as points of scene space."""
        return points_unit * self.aabb_scale + self.box_min[0]

    def world_to_unit(self, points_world: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of the world as fractions of the training box."""
        return self.scene_to_unit(self.world_to_scene(points_world))

    def unit_to_world(self, points_unit: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Fractions of the training box as points of the world."""
        return self.scene_to_world(self.unit_to_scene(points_unit))

    # --- directions, distances, densities

    def direction_world_to_scene(self, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Directions (or normals) of the world in scene space: the axes are cycled, the length stays."""
        return directions[..., _CYCLE]

    def direction_scene_to_world(self, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Directions (or normals) of scene space in the world."""
        return directions[..., _UNCYCLE]

    def distance_world_to_scene(self, distance: _Number) -> _Number:
        """Lengths in scene units."""
        return distance * self.scale

    def distance_scene_to_world(self, distance: _Number) -> _Number:
        """Lengths in world units."""
        return distance / self.scale

    def density_world_to_scene(self, density: _Number) -> _Number:
        """Density per scene unit: density * length is the same in both spaces."""
        return density / self.scale

    def density_scene_to_world(self, density: _Number) -> _Number:
        """Density per world unit."""
        return density * self.scale

    # --- cameras

    def camera_table_to_scene(self, table: Float[Tensor, "n_cameras 24"]) -> Float[Tensor, "n_cameras 24"]:
        """A `camera_table` whose poses lead into scene space: rays made from it are scene rays of unit
        direction.

        Gradient: to the poses.
        """
        pose = table[:, :12].reshape(-1, 3, 4)
        rotation = pose[:, _CYCLE, :3]
        position = self.world_to_scene(pose[:, :, 3])
        pose_scene = torch.cat([rotation, position[:, :, None]], dim=2)
        return torch.cat([pose_scene.reshape(-1, 12), table[:, 12:]], dim=1)

    def camera_table_to_world(self, table: Float[Tensor, "n_cameras 24"]) -> Float[Tensor, "n_cameras 24"]:
        """The inverse of `camera_table_to_scene`."""
        pose = table[:, :12].reshape(-1, 3, 4)
        rotation = pose[:, _UNCYCLE, :3]
        position = self.scene_to_world(pose[:, :, 3])
        pose_world = torch.cat([rotation, position[:, :, None]], dim=2)
        return torch.cat([pose_world.reshape(-1, 12), table[:, 12:]], dim=1)

    # --- files

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"scale": self.scale, "offset": list(self.offset), "aabb_scale": self.aabb_scale}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spaces":
        """The spaces written by `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown or of the wrong type.
        """
        wrong = sorted({"scale", "offset", "aabb_scale"} ^ set(values))
        if wrong:
            raise ConfigError(f"spaces: missing or unknown field {', '.join(map(repr, wrong))}")
        try:
            x, y, z = values["offset"]
            return cls(scale=values["scale"], offset=(x, y, z), aabb_scale=values["aabb_scale"])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"spaces: {error}") from error


# --- choice and checks

REACH_INWARD: Final = 2.0
"""How many times farther than the farthest camera the box reaches where the cameras look inwards."""
REACH_OUTWARD: Final = 8.0
"""How many times farther than the farthest camera it reaches where they look outwards: everything they see lies beyond
them."""
REACH_AHEAD: Final = 4.0
"""How many times farther than `Gaze.depth` it reaches before cameras that look one way."""
MIN_CHOSEN_AABB_SCALE: Final = 2


def choose_aabb_scale(cameras: Sequence[Camera], spaces: Spaces) -> tuple[int, str]:
    """Side of the training box for a capture whose file states none and whose images have no alpha; and how the cameras
    look, which decides it, in words.

    Such pictures show a background, and it lies beyond the cameras: people walk around a subject inside a room. With m
    the largest distance of a camera from the box centre along any scene axis, the half side is at least 2 m; 8 m where
    the cameras look outwards, as in panoramas. It is also large enough for what cameras look at that stand aside of the
    box centre, and where they look one way, for what may be before them. Rounded up to a power of two, at least 2, at
    most 128. instant-ngp's cameras at about 1.3 from the centre give 8.

    Args:
        cameras: in the world; all views, held-out ones too.
        spaces: scale and offset are used.
    """
    if not cameras:
        return MIN_CHOSEN_AABB_SCALE, "of which there are none"
    table = spaces.camera_table_to_scene(camera_table(cameras))
    from_center = table[:, [3, 7, 11]] - 0.5
    farthest = float(from_center.abs().max())
    look = gaze(table)
    if look.kind == "outward":
        half, words = REACH_OUTWARD * farthest, "which look outwards"
    elif look.kind == "one way":
        ahead = from_center + REACH_AHEAD * look.depth * look.axis
        half, words = max(REACH_INWARD * farthest, float(ahead.abs().max())), "which look one way"
    else:
        half, words = REACH_INWARD * farthest, "which look inwards"
        distance = distances_to_focus(table)
        if distance is not None:
            axis = torch.nn.functional.normalize(table[:, [2, 6, 10]], dim=1)
            seen = (from_center + distance[:, None] * axis).median(dim=0).values
            half = max(half, float(seen.abs().max()) + REACH_INWARD * float(distance.median()))
    chosen = MIN_CHOSEN_AABB_SCALE
    while chosen < min(2 * half, MAX_AABB_SCALE):
        chosen *= 2
    return chosen, words


def share_of_rays_meeting_box(cameras: Sequence[Camera], spaces: Spaces, n_per_side: int = 9) -> float:
    """Share (0..1) of view rays that pass through the training box, over a lattice of pixels of every camera.

    Args:
        cameras: in the world.
        spaces: give the box.
        n_per_side: lattice points along each side of an image, its corners included.
    """
    if not cameras:
        return 0.0
    return float(_meets_box(camera_table(cameras), cameras, spaces, n_per_side).double().mean())


def _meets_box(table: Tensor, cameras: Sequence[Camera], spaces: Spaces, n_per_side: int) -> Tensor:
    fraction = torch.linspace(0, 1, n_per_side, dtype=torch.float64)
    lattice = torch.cartesian_prod(fraction, fraction)
    size = torch.tensor([[camera.width, camera.height] for camera in cameras], dtype=torch.float64)
    pixel = (lattice * size[:, None]).reshape(-1, 2)
    index = torch.arange(len(cameras)).repeat_interleave(len(lattice))
    origin, direction = rays_from_pixels(spaces.camera_table_to_scene(table), index, pixel)
    # A tiny denominator stands in for 0: the slab's distances become huge with the right signs
    safe = torch.where(direction.abs() < 1e-12, 1e-12, direction)
    near_plane = (spaces.box_min[0] - origin) / safe
    far_plane = (spaces.box_max[0] - origin) / safe
    enter = torch.minimum(near_plane, far_plane).amax(dim=1)
    leave = torch.maximum(near_plane, far_plane).amin(dim=1)
    return leave > enter.clamp(min=0)


def check_rays_meet_box(cameras: Sequence[Camera], spaces: Spaces, source: str = "cameras") -> None:
    """Check that at least one view ray passes through the training box.

    Args:
        cameras: in the world.
        spaces: give the box.
        source: what the error names, usually the data file.

    Raises:
        DataError: none does, so there is nothing to train on. The text says where the cameras are, in which
            units, and what is the likely cause.
    """
    if not cameras or share_of_rays_meeting_box(cameras, spaces) > 0:
        return
    table = camera_table(cameras)
    position = table[:, [3, 7, 11]]
    center = spaces.box_center_world
    half = spaces.distance_scene_to_world(0.5 * spaces.aabb_scale)
    distance = (position - center).norm(dim=1)
    turned = table.clone()
    turned[:, [1, 2, 5, 6, 9, 10]] *= -1
    if bool(_meets_box(turned, cameras, spaces, 9).any()):
        advice = "they look away from it, as OpenCV poses do when read as OpenGL ones: try --camera-axes opencv"
    elif spaces.aabb_scale < MAX_AABB_SCALE:
        advice = "state scale and offset in the data file, or enlarge the box with --aabb-scale"
    else:
        advice = "state scale and offset in the data file so that the scene lies in the box"
    raise DataError(
        f"{source}: no view ray meets the training box, a cube of half side {half:.3g} around "
        f"({', '.join(f'{value:.3g}' for value in center.tolist())}) in the file's units (scale "
        f"{spaces.scale:g}, aabb_scale {spaces.aabb_scale}); the cameras are {float(distance.min()):.3g} to "
        f"{float(distance.max()):.3g} from its centre; {advice}"
    )

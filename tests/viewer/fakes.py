"""Models made by formula, a clock that only moves when pictures are drawn, and someone who looks."""

import numpy as np
import torch

from hashfield.geometry.cameras import Camera, look_at
from hashfield.tasks.frames import CameraFrames, Frame, PictureView, Region, common_box
from hashfield.viewer.loop import RenderLoop, Shown, Watcher
from hashfield.viewer.pictures import Eye, Look, Wish


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SlowScene(CameraFrames):
    """A ball of radius 1 around the origin, coloured by height, whose pixels each take some time."""

    def __init__(self, clock: Clock | None = None, seconds_per_pixel: float = 0.0, n_cameras: int = 6) -> None:
        self.clock, self.seconds_per_pixel = clock, seconds_per_pixel
        self.background = (1.0, 1.0, 1.0)
        self.value = 0.0
        """Blue of the ball, which a training changes."""
        self.cameras = {}
        if n_cameras:
            angles = np.linspace(0, 2 * np.pi, n_cameras, endpoint=False)
            poses = [look_at((4 * np.cos(a), 4 * np.sin(a), 1.0), (0.0, 0.0, 0.0)) for a in angles]
            self.cameras = {"train": [Camera(pose, 64, 48, 60.0, 60.0, 32.0, 24.0) for pose in poses]}

    def render(self, camera: Camera, outputs, background) -> Frame:
        """See `CameraFrames.render`."""
        if self.clock is not None:
            self.clock.now += self.seconds_per_pixel * camera.width * camera.height
        x = (torch.arange(camera.width, dtype=torch.float64) + 0.5 - camera.cx) / camera.fx
        y = (torch.arange(camera.height, dtype=torch.float64) + 0.5 - camera.cy) / camera.fy
        down, across = torch.meshgrid(y, x, indexing="ij")
        local = torch.nn.functional.normalize(torch.stack([across, down, torch.ones_like(across)], -1), dim=-1)
        direction, origin = local @ camera.camera_to_world[:, :3].T, camera.position
        b = direction @ origin
        inside = b**2 - float(origin @ origin) + 1
        start, end = self._ends(origin, direction)
        half = inside.clamp(min=0).sqrt()
        t = torch.maximum(-b - half, start)
        hit = (inside > 0) & (t > 0) & (t < torch.minimum(-b + half, end))
        point = origin + t[..., None] * direction
        color = torch.stack([0.5 + 0.5 * point[..., 2], 0.5 - 0.4 * point[..., 2], 0 * b + self.value], -1)
        behind = torch.tensor(background or (0.0, 0.0, 0.0), dtype=torch.float64)
        found = {
            "color": torch.where(hit[..., None], color.clamp(0, 1), behind), "opacity": hit.double(),
            "depth": torch.where(hit, t, 0.0), "normals": torch.where(hit[..., None], point, 0.0),
        }  # fmt: skip
        return {name: found[name].float().numpy() for name in outputs}

    def _ends(self, origin: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where rays begin and end."""
        return torch.zeros_like(direction[..., 0]), torch.full_like(direction[..., 0], torch.inf)


class Ball(SlowScene):
    """The ball as a signed distance, within a box of side 4."""

    box_world = torch.tensor([[-2.0] * 3, [2.0] * 3], dtype=torch.float64)

    def within(self, corners):
        """See `hashfield.tasks.frames.HasBox`."""
        other = Ball()
        other.box_world = common_box(self.box_world, torch.tensor(corners, dtype=torch.float64))
        return other

    def _ends(self, origin: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where rays enter and leave the box."""
        to_low, to_high = ((corner - origin) / (direction + 1e-12) for corner in self.box_world)
        return torch.minimum(to_low, to_high).amax(-1), torch.maximum(to_low, to_high).amin(-1)

    def distance(self, positions_world):
        """Signed distance."""
        return positions_world.norm(dim=-1) - 1


class Gradient:
    """A trained picture, 40 x 20 pixels: red grows to the right by one level a pixel, green downwards by two."""

    background = (1.0, 1.0, 1.0)
    outputs = ("color", "opacity")

    def __init__(self, width: int = 40, height: int = 20) -> None:
        self.width, self.height = width, height
        self.views = {"whole": [PictureView((0.0, 0.0, float(width), float(height)), width, height)]}

    def frame(self, view: PictureView, outputs=("color",), background=None, region: Region | None = None) -> Frame:
        """See `hashfield.tasks.frames.HasFrames`."""
        left, top, width, height = view.crop
        assert left >= 0 and top >= 0 and left + width <= self.width + 1e-9 and top + height <= self.height + 1e-9
        x = np.floor(left + (np.arange(view.width) + 0.5) * width / view.width)
        y = np.floor(top + (np.arange(view.height) + 0.5) * height / view.height)
        across, down = np.meshgrid(x, y)
        color = np.stack([across / 255, 2 * down / 255, 0 * across], -1).astype(np.float32)
        return {name: {"color": color, "opacity": np.ones(color.shape[:2], np.float32)}[name] for name in outputs}

    def frame_strips(self, view, outputs=("color",), background=None):
        """See `hashfield.tasks.frames.HasFrames`."""
        yield self.frame(view, outputs, background)


class Looker:
    """Keeps what it is shown."""

    def __init__(self, loop: RenderLoop) -> None:
        self.loop, self.pictures, self.shown, self.lines = loop, [], [], []
        self.times: list[float] = []
        self.watcher = Watcher(self._show, self.lines.append)
        loop.add(self.watcher)

    def _show(self, picture: np.ndarray, shown: Shown) -> None:
        self.pictures.append(picture.copy())
        self.shown.append(shown)
        self.times.append(self.loop.clock())

    def ask(self, angle: float = 0.0, output: str = "color", rows: int = 120, aspect: float = 1.5) -> Wish:
        """Want to see the ball from an angle in radians."""
        pose = look_at((4 * np.cos(angle), 4 * np.sin(angle), 1.0), (0.0, 0.0, 0.0))
        wish = Wish(Eye(pose, 0.8), Look(output), aspect, rows)
        self.loop.ask(self.watcher, wish)
        return wish

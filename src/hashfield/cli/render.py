"""`hashfield render RUN`."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import tyro

from hashfield.api import load
from hashfield.cli.progress import PLAIN_LINE_SECONDS
from hashfield.cli.shared import DeviceName, check_same_model, kind_of_run, parse, run_command, say, set_up
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import (
    colorize_depth,
    colorize_normals,
    colorize_opacity,
    depth_range,
    straight_alpha,
    to_uint8,
    write_png,
)
from hashfield.export.video import Mp4Writer, check_video
from hashfield.geometry.cameras import Camera
from hashfield.geometry.paths import orbit_path, read_camera_path
from hashfield.steps.ranks import Ranks, current
from hashfield.tasks.frames import HasFrames
from hashfield.tasks.shared import parse_background
from hashfield.train.run_folder import RunFolder

Output = Literal["color", "depth", "normals", "opacity"]


@dataclass(frozen=True)
class Render:
    """Pictures or a video of a trained model. Needs no photos."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    views: str = "test"
    """What to show: test, train, orbit, or a camera-path file (docs/camera_path.md)."""
    output: tuple[Output, ...] = ("color",)
    """What to show; several give several files."""
    format: Literal["png", "mp4"] = "png"
    """Write one PNG for each frame, or one video."""
    out: Path | None = None
    """Folder of the files; default: renders/<views> in the run folder."""
    width: int | None = None
    """Width of the pictures in pixels; default: the cameras' own. Given alone, it keeps the shape."""
    height: int | None = None
    """Height of the pictures in pixels; default: the cameras' own. Given alone, it keeps the shape."""
    n_frames: int = 60
    """Frames of an orbit."""
    fps: float = 20.0
    """Frames per second of a video; a camera path brings its own."""
    transparent: bool = False
    """Write PNGs with an alpha channel instead of a background."""
    background: str | None = None
    """Colour behind the scene (white, black or #rrggbb); default: that of the run."""
    overwrite: bool = False
    """Replace files that are there."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to render; auto takes a supported GPU if there is one, else the CPU."""


def main(arguments: list[str]) -> int:
    """Run the verb for whatever kind of run is named."""
    return run_command(kind_of_run("render", arguments), "render", arguments)


def render_nerf(arguments: list[str]) -> int:
    """`render` for a radiance field."""
    return render(parse(Render, arguments, "render"))


def render(options: Render) -> int:
    """`render` for any model whose views are cameras, whatever was learned."""
    device = set_up(options.device, options.threads)
    if options.transparent and options.format == "mp4":
        raise ConfigError("--transparent: a video has no transparency; use --format png")
    if options.format == "mp4":
        check_video()
    ranks = current()
    with ranks.agreed():
        model = load(options.run, device)
        cameras, fps = chosen_cameras(model, options)
    check_same_model(ranks, options.run)
    name = options.views if options.views in ("test", "train", "orbit") else Path(options.views).stem
    if options.format == "mp4" and len({(camera.width, camera.height) for camera in cameras}) > 1:
        raise ConfigError("--format mp4: the views differ in size; give --width and --height, or use --format png")
    folder = options.out or RunFolder.open(options.run).renders / name
    background = model.background if options.background is None else parse_background(options.background)
    outputs = tuple(dict.fromkeys(options.output))
    targets = [folder / f"{output}.mp4" for output in outputs] if options.format == "mp4" else [
        folder / f"{output}_{k:04d}.png" for output in outputs for k in range(len(cameras))
    ]  # fmt: skip
    with ranks.agreed():
        if ranks.is_first:
            there = [target for target in targets if target.exists()]
            if there and not options.overwrite:
                raise ConfigError(f"{there[0]}: is there already; choose another --out, or --overwrite")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
    shown = pictures(model, cameras, outputs, background, options.transparent)
    if ranks.n > 1:
        shown = dealt_pictures(ranks, model, cameras, outputs, background, options.transparent)
    if not ranks.is_first:
        for _ in shown:
            pass  # none comes: what this rank makes goes to the first one
    elif options.format == "mp4":
        with ExitStack() as stack:
            videos = {name: stack.enter_context(Mp4Writer(folder / f"{name}.mp4", fps=fps)) for name in outputs}
            for found in counted(shown, len(cameras)):
                for name, picture in found.items():
                    videos[name].add(picture)
        for video in videos.values():
            say(f"{video.path}: {video.n_frames} frames of {cameras[0].width}x{cameras[0].height}")
    else:
        for k, found in enumerate(counted(shown, len(cameras))):
            for name, picture in found.items():
                write_png(folder / f"{name}_{k:04d}.png", picture)
        say(f"{folder}: {len(targets)} pictures")
    return 0


_Item = TypeVar("_Item")


def counted(items: Iterator[_Item], total: int) -> Iterator[_Item]:
    """The items, with a line every few seconds about how many there were."""
    next_line = time.perf_counter() + PLAIN_LINE_SECONDS
    for k, item in enumerate(items, start=1):
        yield item
        if time.perf_counter() >= next_line and k < total:
            next_line = time.perf_counter() + PLAIN_LINE_SECONDS
            say(f"{k} of {total} frames")


def chosen_cameras(model: HasFrames, options: Render) -> tuple[list[Camera], float]:
    """Cameras of every frame, at the size asked for, and frames per second."""
    for name in ("width", "height"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= 2**15:
            raise ConfigError(f"--{name}: expected 1 to {2**15}, got {value}")
    if options.views in ("test", "train"):
        cameras = model.views.get(options.views) or []
        if not cameras:
            raise DataError(f"{options.run}: holds no {options.views} cameras; try --views orbit")
        return [resized(camera, options) for camera in cameras], options.fps
    if options.views == "orbit":
        if not 1 <= options.n_frames <= 100_000:
            raise ConfigError(f"--n-frames: expected 1 to 100000, got {options.n_frames}")
        known = model.views.get("train") or next(iter(model.views.values()), None)
        if not known:
            raise DataError(f"{options.run}: holds no cameras to build an orbit from; use a camera path")
        like = resized(known[0], options)
        return list(orbit_path(known, options.n_frames, width=like.width, height=like.height)), options.fps
    path = Path(options.views)
    if not path.exists():
        raise DataError(f"--views {options.views}: expected test, train, orbit or a camera-path file that exists")
    if (options.width is None) != (options.height is None):
        raise ConfigError("--width and --height: give both, or none, with a camera path")
    found = read_camera_path(path, width=options.width, height=options.height)
    return list(found.cameras), found.fps


def resized(camera: Camera, options: Render) -> Camera:
    """The camera at the size asked for."""
    width, height = options.width, options.height
    if width is None and height is None:
        return camera
    if width is None:
        width = max(1, round(camera.width * (height or 1) / camera.height))
    if height is None:
        height = max(1, round(camera.height * width / camera.width))
    return camera.resized(width, height)


def dealt_pictures(
    ranks: Ranks,
    model: HasFrames,
    cameras: Sequence[Camera],
    outputs: Sequence[Output],
    background: tuple[float, float, float],
    transparent: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """What `pictures` gives, made by several ranks; on the first one all of it comes, in order.

    Args:
        ranks: Those that share the cameras out.
        model, cameras, outputs, background, transparent: As `pictures` has them.
    """
    scale: tuple[float, float] | None = None
    if "depth" in outputs:

        def first_scale() -> list[float]:
            found = model.frame(cameras[0], ("depth", "opacity"), None if transparent else background)
            return list(depth_range([found["depth"]], [found["opacity"]]))

        low, high = ranks.from_first(first_scale)
        scale = low, high

    def make(k: int) -> dict[str, np.ndarray]:
        return next(pictures(model, cameras[k : k + 1], outputs, background, transparent, scale))

    return ranks.deal(len(cameras), make, _packed, _unpacked)


def _packed(found: dict[str, np.ndarray]) -> bytes:
    with io.BytesIO() as buffer:
        np.savez(buffer, **found)
        return buffer.getvalue()


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)


def pictures(
    model: HasFrames,
    cameras: Sequence[Camera],
    outputs: Sequence[Output],
    background: tuple[float, float, float],
    transparent: bool,
    scale: tuple[float, float] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Each camera's uint8 pictures by output, rendered once for all of them. Depth keeps one colour scale over
    all frames, that of the first.

    Args:
        model: What is shown.
        cameras: One for each picture, in the world.
        outputs: What each camera is to show.
        background: Colour in sRGB, 0 to 1, behind what is not opaque.
        transparent: Whether pictures get an alpha channel instead of the background.
        scale: Nearest and farthest depth of the colour scale; None: those of the first frame.
    """
    needed: list[str] = [*outputs]
    if "opacity" not in needed and (transparent or needed != ["color"]):
        needed.append("opacity")
    for camera in cameras:
        found = model.frame(camera, needed, None if transparent else background)
        shown: dict[str, np.ndarray] = {}
        for output in outputs:
            if output == "color":
                color = found["color"]
                shown[output] = straight_alpha(color, found["opacity"]) if transparent else to_uint8(color)
                continue
            if output == "opacity":
                shown[output] = colorize_opacity(found["opacity"])  # grey; it has no background to leave out
                continue
            fade = None if transparent else found["opacity"]  # straight alpha: what fades is not mixed with white too
            if output == "depth":
                scale = scale or depth_range([found["depth"]], [found["opacity"]])
                picture = colorize_depth(found["depth"], fade, near=scale[0], far=scale[1])
            else:
                picture = colorize_normals(found["normals"], fade)
            if transparent:
                picture = np.concatenate([picture, to_uint8(found["opacity"])[..., None]], axis=-1)
            shown[output] = picture
        yield shown

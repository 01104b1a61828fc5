"""`hashfield render RUN`."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from hashfield.api import load
from hashfield.cli.kept_frames import DepthScale, KeptFrames, plan_of
from hashfield.cli.progress import counted
from hashfield.cli.shared import DeviceName, check_same_model, kind_of_run, parse, run_command, say, set_up
from hashfield.data.json_fields import Fields, load_json
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import (
    colorize_depth,
    colorize_normals,
    colorize_opacity,
    depth_range,
    straight_alpha,
    to_uint8,
)
from hashfield.export.video import check_video, write_mp4
from hashfield.geometry.cameras import Camera
from hashfield.geometry.path_files import PathPlace, PathWish, read_path_file
from hashfield.geometry.paths import orbit_path
from hashfield.geometry.spaces import Spaces
from hashfield.geometry.tours import along_path, as_panoramas, spiral_path
from hashfield.steps.ranks import Ranks, current
from hashfield.tasks.frames import DEFAULT_QUALITY, HasFrames, Quality
from hashfield.tasks.shared import parse_background
from hashfield.train.run_folder import RunFolder

Output = Literal["color", "depth", "normals", "opacity"]

DEFAULT_FRAMES = 60
DEFAULT_FPS = 20.0


@dataclass(frozen=True)
class Render:
    """Pictures or a video of a trained model. Needs no photos."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file."""
    views: str = "test"
    """What to show: test, train, orbit, spiral, along (a ride through the places of the photos), or a camera-path file
    of hashfield, instant-ngp or nerfstudio (docs/camera_path.md)."""
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
    n_frames: int | None = None
    """Frames of an orbit, a spiral or a ride, and of an instant-ngp path that does not tell its length; default: 60."""
    fps: float | None = None
    """Frames per second of a video; default: 20, or what the camera-path file says."""
    panorama: bool = False
    """Show the whole sphere around each view's place, upright: an equirectangular picture of --width (default 2048)."""
    dataparser_transforms: Path | None = None
    """The dataparser_transforms.json of the nerfstudio run that a nerfstudio path was made for."""
    transparent: bool = False
    """Write PNGs with an alpha channel instead of a background."""
    background: str | None = None
    """Colour behind the scene (white, black or #rrggbb); default: that of the run."""
    quality: Quality = DEFAULT_QUALITY
    """Against speed, for radiance fields on CPUs: exact renders every pixel and every sample; fine interpolates pixels
    between neighbours that agree and passes over what cannot be seen; fast does more of that."""
    overwrite: bool = False
    """Replace files that are there. A rendering that was interrupted goes on without it, by the same command."""
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
        model.quality = options.quality
        cameras, fps = chosen_cameras(model, options)
    check_same_model(ranks, options.run)
    name = options.views if options.views in NAMED_VIEWS else Path(options.views).stem
    if options.format == "mp4" and len({(camera.width, camera.height) for camera in cameras}) > 1:
        raise ConfigError("--format mp4: the views differ in size; give --width and --height, or use --format png")
    run = RunFolder.open(options.run)
    folder = options.out or run.renders / name
    background = model.background if options.background is None else parse_background(options.background)
    outputs = tuple(dict.fromkeys(options.output))
    is_video = options.format == "mp4"
    plan = {**plan_of(run, cameras, outputs, background, options.transparent), "quality": options.quality}
    frames = KeptFrames(folder, outputs, len(cameras), plan, of_video=is_video)
    targets = [folder / f"{output}.mp4" for output in outputs] if is_video else frames.paths()
    with ExitStack() as stack:
        with ranks.agreed():
            there = [target for target in targets if target.exists()] if ranks.is_first else []
            if there and not options.overwrite and not frames.are_ours:
                raise ConfigError(f"{there[0]}: is there already; choose another --out, or --overwrite")
            if ranks.is_first:
                stack.enter_context(frames)
        missing = ranks.from_first(frames.missing)
        if len(missing) < len(cameras):
            say(f"{len(cameras) - len(missing)} of {len(cameras)} frames are there from before; going on with the rest")
        some = [cameras[k] for k in missing]
        shown = dealt_pictures(ranks, model, some, outputs, background, options.transparent, frames.scale)
        if not ranks.is_first:
            return sum(0 for _ in shown)  # none comes: what this rank makes goes to the first one
        for k, found in zip(missing, counted(shown, len(missing), "frames"), strict=True):
            frames.keep(k, found)
        if is_video:
            for output in outputs:
                write_mp4(folder / f"{output}.mp4", frames.read(output), fps=fps)
                say(f"{folder / f'{output}.mp4'}: {len(cameras)} frames of {cameras[0].width}x{cameras[0].height}")
        else:
            say(f"{folder}: {len(targets)} pictures")
        if "depth" in outputs and frames.scale.range is not None:
            say(depth_words(model, *frames.scale.range))
    return 0


def depth_words(model: HasFrames, near: float, far: float) -> str:
    """What the colours of depth stand for.

    Args:
        model: Whose depth it is.
        near: The lightest colour.
        far: The darkest.
    """
    scene = getattr(model, "info", {}).get("scene")
    unit = scene.get("unit") if isinstance(scene, dict) else None
    words = unit if isinstance(unit, str) else "units of the data's file"
    return f"depth is the distance along the ray; colours stand for {near:.4g} (light) to {far:.4g} (dark) {words}"


NAMED_VIEWS = ("test", "train", "orbit", "spiral", "along")


def chosen_cameras(model: HasFrames, options: Render) -> tuple[list[Camera], float]:
    """Cameras of every frame, at the size asked for, and frames per second."""
    for name in ("width", "height"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= 2**15:
            raise ConfigError(f"--{name}: expected 1 to {2**15}, got {value}")
    if options.n_frames is not None and not 1 <= options.n_frames <= 100_000:
        raise ConfigError(f"--n-frames: expected 1 to 100000, got {options.n_frames}")
    known = model.views.get("train") or next(iter(model.views.values()), None) or []
    if not options.panorama:
        return views_of(model, options, known)
    if options.height is not None:
        raise ConfigError("--panorama: give --width alone; a panorama is half as high as wide")
    found, fps = views_of(model, replace(options, width=None), known)
    return list(as_panoramas(found, known, options.width or PANORAMA_WIDTH)), fps


PANORAMA_WIDTH = 2048


def views_of(model: HasFrames, options: Render, known: Sequence[Camera]) -> tuple[list[Camera], float]:
    """The cameras that --views names, and frames per second.

    Args:
        model: What is shown.
        options: What the user asks for.
        known: The model's own cameras, which paths are made from.
    """
    fps = DEFAULT_FPS if options.fps is None else options.fps
    if options.views in ("test", "train"):
        cameras = model.views.get(options.views) or []
        if not cameras:
            raise DataError(f"{options.run}: holds no {options.views} cameras; try --views orbit")
        return [resized(camera, options) for camera in cameras], fps
    if options.views in NAMED_VIEWS:
        if not known:
            raise DataError(f"{options.run}: holds no cameras to build a path from; use a camera-path file")
        like, n_frames = resized(known[0], options), options.n_frames or DEFAULT_FRAMES
        make = {"orbit": orbit_path, "spiral": spiral_path, "along": along_path}[options.views]
        return list(make(known, n_frames, width=like.width, height=like.height)), fps
    path = Path(options.views)
    if not path.exists():
        raise DataError(f"--views {options.views}: expected {', '.join(NAMED_VIEWS)} or a camera-path file that exists")
    every = [camera for views in model.views.values() for camera in views]
    place = PathPlace(
        spaces=getattr(model, "spaces", None) or Spaces(),
        cameras=every,
        dataparser=options.dataparser_transforms,
        applied=applied_transform(model, options.dataparser_transforms),
    )
    wish = PathWish(options.width, options.height, options.n_frames, options.fps)
    found, notes = read_path_file(path, place, wish)
    for note in notes:
        say(note)
    return list(found.cameras), found.fps


def applied_transform(model: HasFrames, dataparser: Path | None) -> torch.Tensor | None:
    """What nerfstudio's transforms.json says its coordinates were turned by, if the run's data are such a file and
    still there; only asked for together with a dataparser_transforms.json."""
    data = str(getattr(model, "info", {}).get("scene", {}).get("path", ""))
    if dataparser is None or not data:
        return None
    file = Path(data) if data.endswith(".json") else Path(data) / "transforms.json"
    try:
        top = load_json(file)
        rows = Fields(top, str(file)).values.get("applied_transform") if isinstance(top, dict) else None
        matrix = None if rows is None else torch.tensor(rows[:3], dtype=torch.float64)
    except (DataError, TypeError, ValueError):
        say(f"warning: {file} cannot be read, so that its applied_transform, if it has one, is not taken into account")
        return None
    return matrix if matrix is not None and matrix.shape == (3, 4) else None


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
    depth_scale: DepthScale,
) -> Iterator[dict[str, np.ndarray]]:
    """What `pictures` gives, made by several ranks; on the first one all of it comes, in order.

    Args:
        ranks: Those that share the cameras out.
        model, cameras, outputs, background, transparent, depth_scale: As `pictures` has them.
    """
    if ranks.n == 1:
        return pictures(model, cameras, outputs, background, transparent, depth_scale)
    if "depth" in outputs and cameras:

        def first_scale() -> list[float]:
            if depth_scale.range is None:
                found = model.frame(cameras[0], ("depth", "opacity"), None if transparent else background)
                depth_scale.set(*depth_range([found["depth"]], [found["opacity"]]))
            return list(depth_scale.range or ())

        near, far = ranks.from_first(first_scale)
        depth_scale.range = (near, far)

    def make(k: int) -> dict[str, np.ndarray]:
        return next(pictures(model, cameras[k : k + 1], outputs, background, transparent, depth_scale))

    return ranks.deal(len(cameras), make, _packed, _unpacked)


def _packed(found: dict[str, np.ndarray]) -> bytes:
    arrays: dict[str, Any] = dict(found)
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)
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
    depth_scale: DepthScale | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Each camera's uint8 pictures by output, rendered once for all of them. Depth keeps one colour scale over
    all frames, that of the first.

    Args:
        model: What is shown.
        cameras: One for each picture, in the world.
        outputs: What each camera is to show.
        background: Colour in sRGB, 0 to 1, behind what is not opaque.
        transparent: Whether pictures get an alpha channel instead of the background.
        depth_scale: Keeps the colour scale of depth beyond this call; None: only within it.
    """
    scale = depth_scale or DepthScale()
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
                near, far = scale.range or scale.set(*depth_range([found["depth"]], [found["opacity"]]))
                picture = colorize_depth(found["depth"], fade, near=near, far=far)
            else:
                picture = colorize_normals(found["normals"], fade)
            if transparent:
                picture = np.concatenate([picture, to_uint8(found["opacity"])[..., None]], axis=-1)
            shown[output] = picture
        yield shown

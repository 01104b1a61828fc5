"""Web pages of trained models: what each kind puts into one, and how much of the picture its few bits cost."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.export.images import WHITE, straight_alpha
from hashfield.export.web_page import (
    BITS,
    QuantisedTable,
    WebKind,
    WebScene,
    WebSize,
    chosen,
    quantise,
    table_note,
    write_page,
)
from hashfield.export.web_shaders import Matrices, compute_module, image_shader, nerf_shader, sdf_shader
from hashfield.geometry.cameras import Camera, camera_table, look_at
from hashfield.geometry.spaces import Spaces
from hashfield.nn.networks import NetworkWithEncoding, encoded_network
from hashfield.ops.eval_points import EncodedNetwork
from hashfield.tasks.frames import HasFrames, PictureView
from hashfield.tasks.image_model import ImageModel
from hashfield.tasks.nerf_model import NerfModel
from hashfield.tasks.sdf_model import NORMAL_REACH, SdfModel

MOST_CAMERAS: Final = 48
"""Photos whose view a page offers."""
LOSS_VIEWS: Final = 3
LOSS_SIZE_PX: Final = 200
STILL_SIZE_PX: Final = 720


@dataclass(frozen=True)
class WebPage:
    """A page and what is to be said about it."""

    html: str
    loss_db: float
    """PSNR of what it shows to the model in float32, over a few views."""
    notes: tuple[str, ...]


def web_page(model: Any, size: WebSize = "medium", title: str = "hashfield", credit: str = "") -> WebPage:
    """The page of a trained model.

    Args:
        model: As `hashfield.load` gives it.
        size: How many bits the table gets.
        title: Heading of the page.
        credit: A line below the picture: whose photos these are.

    Raises:
        ConfigError: the model's encoding or networks are none that a page can draw.
    """
    make = next((make for kind, make in SCENES.items() if isinstance(model, kind)), None)
    if make is None:
        raise ConfigError("--web: a page of this kind of model cannot be made")
    scene, shown, notes = make(model, size)
    loss = page_loss(scene, model, shown)
    scene.title, scene.credits = title, credit
    note = table_note(scene.table)
    return WebPage(write_page(scene), loss, notes if note is None else (*notes, note))


def nerf_scene(model: NerfModel, size: WebSize) -> tuple[WebScene, NerfModel, tuple[str, ...]]:
    """(what a page of a radiance field holds, the model as that page shows it, lines to say).

    Args:
        model: The field.
        size: How many bits the table gets.

    Raises:
        ConfigError: a page cannot draw such a field.
    """
    field = model.parameters_of_field()
    if not field.is_fused:
        raise ConfigError(
            "--web: a page shows grids with linear interpolation, one hidden density layer and two hidden colour "
            "layers; this run has another encoding or other networks"
        )
    table = quantise(field.table.cpu().numpy(), field.layout, BITS["nerf"][size])
    density, color = ([w.cpu().numpy() for w in ws] for ws in (field.density_weights, field.color_weights))
    matrices = Matrices()
    body = nerf_shader(
        field.layout, table.scales, density, color, matrices, spaces=model.spaces,
        box=model.box.flatten().tolist(), step_scale=model.step_scale, density_bias=field.density_bias,
        density_activation=field.density_activation,
    )  # fmt: skip
    shown = with_table(model, table)
    cameras, notes = page_cameras(model.cameras, model.spaces)
    still = _still(shown, fitted(cameras[0], STILL_SIZE_PX))
    view = _camera_view(cameras, model.spaces)
    return _scene("nerf", body, table, matrices, still, view, model.bits.cpu().numpy()), shown, notes


def with_table(model: Any, table: QuantisedTable | None) -> Any:
    """A model of any kind in float32 that leaves nothing out of its pictures, with another table where one is given."""
    field = copy.deepcopy(model.field)
    if table is not None:
        old = field.encoding.table
        old.data = torch.from_numpy(table.values()).to(old.device)
    if isinstance(model, ImageModel):
        return ImageModel(field, replace(model.config, precision="float32"), model.shape, model.info)
    shared = {"cameras": model.cameras, "background": model.background, "precision": "float32", "info": model.info}
    if isinstance(model, SdfModel):
        return SdfModel(field, model.spaces, model.box, **shared)
    return NerfModel(field, model.spaces, model.bits, model.box, step_scale=model.step_scale, quality="exact", **shared)


def image_scene(model: ImageModel, size: WebSize) -> tuple[WebScene, ImageModel, tuple[str, ...]]:
    """`nerf_scene` for a picture."""
    network, table, weights = _numbers_of(model.field, BITS["image"][size])
    matrices, (width, height) = Matrices(), (model.shape.width, model.shape.height)
    body = image_shader(
        network.layout, table.scales, weights, matrices, interpolation=network.interpolation, width=width, height=height
    )
    shown = with_table(model, table)
    scale = min(1.0, STILL_SIZE_PX / max(width, height))
    view = shown.view(width=max(1, round(width * scale)), height=max(1, round(height * scale)))
    still = _still(shown, view)
    notes = ["light beyond white is clipped in the page"] if model.shape.is_hdr else []
    scene = _scene("image", body, table, matrices, still, {"width": width, "height": height})
    return scene, shown, tuple(notes)


def sdf_scene(model: SdfModel, size: WebSize) -> tuple[WebScene, SdfModel, tuple[str, ...]]:
    """`nerf_scene` for a signed distance."""
    network, table, weights = _numbers_of(model.field, BITS["sdf"][size])
    matrices = Matrices()
    body = sdf_shader(
        network.layout, table.scales, weights, matrices, interpolation=network.interpolation,
        has_rest=table.rest is not None, box=model.box.flatten().tolist(), reach=NORMAL_REACH,
    )  # fmt: skip
    shown = with_table(model, table)
    cameras, notes = page_cameras(model.cameras, model.spaces)
    still = _still(shown, fitted(cameras[0], STILL_SIZE_PX))
    return _scene("sdf", body, table, matrices, still, _camera_view(cameras, model.spaces)), shown, notes


def _numbers_of(
    field: NetworkWithEncoding, bits: tuple[int, int]
) -> tuple[EncodedNetwork, QuantisedTable, list[np.ndarray]]:
    """A network behind a grid, its table in few bits, its matrices."""
    network = encoded_network(field, None, "float32")
    if network.encode is not None or network.interpolation == "nearest":
        raise ConfigError(
            "--web: a page shows grids with linear or smooth interpolation; this run has another encoding"
        )
    weights = [weight.cpu().numpy() for weight in network.weights]
    return network, quantise(network.table.cpu().numpy(), network.layout, bits), weights


def _still(shown: HasFrames, view: Any) -> np.ndarray:
    """What a model shows of a view, RGBA with straight alpha."""
    found = shown.frame(view, ("color", "opacity"))
    color = found["color"]
    return straight_alpha(np.repeat(color, 3, axis=-1) if color.shape[-1] == 1 else color, found["opacity"])


def _scene(
    kind: WebKind, body: str, table: QuantisedTable, matrices: Matrices,
    still: np.ndarray, view: dict[str, Any], cells: np.ndarray | None = None,
) -> WebScene:  # fmt: skip
    blocks = matrices.data()
    return WebScene(
        kind=kind, body=body, shader=compute_module(body, [len(b) // 4 for b in blocks]), table=table, blocks=blocks,
        cells=np.zeros(16, np.uint8) if cells is None else cells, title="", still=still, view=view,
    )  # fmt: skip


SCENES: Final[dict[type, Callable[..., tuple[WebScene, Any, tuple[str, ...]]]]] = {
    NerfModel: nerf_scene, ImageModel: image_scene, SdfModel: sdf_scene,
}  # fmt: skip


# --- what the few bits cost


def page_loss(scene: WebScene, model: Any, shown: Any) -> float:
    """PSNR between what a model and its page show of a few views, on white.

    Args:
        scene: The page.
        model: The model; taken in float32.
        shown: The model as the page shows it.
    """
    if scene.kind == "image":
        views: list[Any] = _crops(model)
    else:
        known = model.cameras.get("test") or page_cameras(model.cameras, model.spaces)[0]
        views = [fitted(view, LOSS_SIZE_PX) for view in chosen(known, LOSS_VIEWS)]
    exact, errors = with_table(model, None), []
    for view in views:
        a, b = (m.frame(view, ("color",), WHITE)["color"].astype(np.float64).clip(0, 1) for m in (exact, shown))
        errors.append(float(np.square(a - b).mean()))
    mean = sum(errors) / len(errors)
    return math.inf if mean == 0 else -10 * math.log10(mean)


def _crops(model: ImageModel) -> list[PictureView]:
    """Parts of a picture, pixel for pixel, along its diagonal."""
    w, h = model.shape.width, model.shape.height
    a, b = min(w, LOSS_SIZE_PX), min(h, LOSS_SIZE_PX)
    return [
        model.view((float(round((w - a) * s)), float(round((h - b) * s)), float(a), float(b))) for s in (0.2, 0.5, 0.8)
    ]


# --- cameras of a page


def page_cameras(cameras: dict[str, list[Camera]], spaces: Spaces) -> tuple[list[Camera], tuple[str, ...]]:
    """(the views that a page offers, pinholes all, the first one first; lines to say)."""
    known = [c for split in ("test", "train") for c in cameras.get(split, [])]
    known += [c for split, views in cameras.items() if split not in ("test", "train") for c in views]
    views, notes = chosen(known, MOST_CAMERAS), []
    if not views:
        views = [camera_before(spaces)]
        notes.append("the run knows no cameras: the page begins in front of the box")
    if any(view.lens != "pinhole" for view in views):
        notes.append("the page shows the photos' views without the distortion of their lenses")
    return [pinhole(view) for view in views], tuple(notes)


def pinhole(camera: Camera) -> Camera:
    """The camera without its lens's distortion; of a panorama the quarter turn ahead."""
    if camera.lens == "equirectangular":
        side = camera.height
        return Camera(camera.camera_to_world, side, side, side / 2, side / 2, side / 2, side / 2)
    values = camera.to_dict() | {"lens": "pinhole", "distortion": []}
    return Camera.from_dict(values)


def camera_before(spaces: Spaces) -> Camera:
    """A camera that sees the whole box from a corner above."""
    center = spaces.box_center_world
    side = spaces.distance_scene_to_world(float(spaces.aabb_scale))
    pose = look_at(center + side * torch.tensor([1.2, 1.2, 0.9], dtype=torch.float64), center)
    return Camera(pose, 800, 800, 900.0, 900.0, 400.0, 400.0)


def fitted(camera: Camera, longest_px: int) -> Camera:
    """The pinhole of a camera, no side of its picture longer than this."""
    scale = min(1.0, longest_px / max(camera.width, camera.height))
    return pinhole(camera).resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))


def _camera_view(cameras: list[Camera], spaces: Spaces) -> dict[str, Any]:
    """What the page's controls begin with."""
    return {
        "cameras": [camera_row(c, spaces) for c in cameras],
        "pivot": pivot(cameras, spaces).tolist(),
        "up": upward(cameras, spaces).tolist(),
    }


def camera_row(camera: Camera, spaces: Spaces) -> list[float]:
    """Scene pose (12 numbers), focal lengths, principal point and size of a camera, as the page reads them."""
    row = spaces.camera_table_to_scene(camera_table([camera]))[0, :16].tolist()
    return [float(f"{v:.9g}") for v in (*row, camera.width, camera.height)]


def pivot(cameras: list[Camera], spaces: Spaces) -> Tensor:
    """The point nearest to all optical axes, scene space, kept within the box and before the first camera."""
    table = spaces.camera_table_to_scene(camera_table(cameras))[:, :12].reshape(-1, 3, 4)
    forward, place = table[:, :, 2], table[:, :, 3]
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    middle = torch.full((3,), 0.5, dtype=torch.float64)
    # a little pull towards the middle of the scene, for cameras that all look the same way
    pull = 1e-3 * torch.eye(3, dtype=torch.float64)
    point = torch.linalg.solve(across.mean(0) + pull, (across @ place[:, :, None]).mean(0)[:, 0] + pull @ middle)
    half = 0.5 * spaces.aabb_scale
    point = point.clamp(0.5 - half, 0.5 + half)
    ahead = float((point - place[0]) @ forward[0])
    return point if ahead > 1e-2 else place[0] + 0.5 * forward[0]


def upward(cameras: list[Camera], spaces: Spaces) -> Tensor:
    """Mean upward direction of the cameras, scene space, along an axis where it is nearly that."""
    up = spaces.direction_world_to_scene(torch.stack([c.up for c in cameras]).mean(0))
    if float(up.norm()) < 0.1:  # cameras all around: the world's z
        up = spaces.direction_world_to_scene(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    up = torch.nn.functional.normalize(up, dim=0)
    axis = int(up.abs().argmax())
    if float(up.abs()[axis]) > 0.9:
        up = torch.eye(3, dtype=torch.float64)[axis] * up[axis].sign()
    return up

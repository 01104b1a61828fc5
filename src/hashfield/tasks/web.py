"""Web pages of trained models: what each kind puts into one, and how much of the picture its few bits cost."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hashfield.errors import ConfigError
from hashfield.export.images import to_uint8
from hashfield.export.web_page import QuantisedTable, WebScene, WebSize, chosen, quantise, table_note, write_page
from hashfield.export.web_shaders import Matrices, compute_module, nerf_shader
from hashfield.geometry.cameras import Camera, camera_table
from hashfield.geometry.spaces import Spaces
from hashfield.tasks.nerf_model import NerfModel

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
    if isinstance(model, NerfModel):
        scene, shown, notes = nerf_scene(model, size)
        loss = nerf_loss(model, shown)
    else:
        raise ConfigError("--web: a page of this kind of model cannot be made")
    scene.title, scene.credits = title, credit
    note = table_note(scene.table.layout)
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
    table = quantise(field.table.cpu().numpy(), field.layout, size)
    density, color = ([w.cpu().numpy() for w in ws] for ws in (field.density_weights, field.color_weights))
    matrices = Matrices()
    body = nerf_shader(
        field.layout, table.scales, density, color, matrices, spaces=model.spaces,
        box=model.box.flatten().tolist(), step_scale=model.step_scale, density_bias=field.density_bias,
        density_activation=field.density_activation,
    )  # fmt: skip
    shown = with_table(model, table)
    cameras, notes = page_cameras(model.cameras, model.spaces)
    still = shown.render(fitted(cameras[0], STILL_SIZE_PX), ("color",), (1.0, 1.0, 1.0))["color"]
    blocks = matrices.data()
    scene = WebScene(
        kind="nerf", body=body, shader=compute_module(body, [len(b) // 4 for b in blocks]), table=table, blocks=blocks,
        cells=model.bits.cpu().numpy(), title="", still=to_uint8(still),
        view={
            "cameras": [camera_row(c, model.spaces) for c in cameras],
            "pivot": pivot(cameras, model.spaces).tolist(),
            "up": upward(cameras, model.spaces).tolist(),
        },
    )  # fmt: skip
    return scene, shown, notes


def with_table(model: NerfModel, table: QuantisedTable | None) -> NerfModel:
    """The model in float32, with another table where one is given."""
    module = copy.deepcopy(model.field)
    if table is not None:
        module.encoding.table.data = torch.from_numpy(table.values()).to(model.bits.device)  # type: ignore[union-attr]
    return NerfModel(
        module, model.spaces, model.bits, model.box, cameras=model.cameras, background=model.background,
        step_scale=model.step_scale, precision="float32", info=model.info,
    )  # fmt: skip


def nerf_loss(model: NerfModel, shown: NerfModel) -> float:
    """PSNR between what a model and its page show of a few of its own views, in float32, on white."""
    views = chosen(model.cameras.get("test") or page_cameras(model.cameras, model.spaces)[0], LOSS_VIEWS)
    exact, errors = with_table(model, None), []
    for view in views:
        a, b = (m.render(fitted(view, LOSS_SIZE_PX), ("color",), (1.0, 1.0, 1.0))["color"] for m in (exact, shown))
        errors.append(float(np.square(a.astype(np.float64) - b).mean()))
    mean = sum(errors) / len(errors)
    return math.inf if mean == 0 else -10 * math.log10(mean)


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
    """The camera without its lens's distortion."""
    values = camera.to_dict() | {"lens": "pinhole", "distortion": []}
    return Camera.from_dict(values)


def camera_before(spaces: Spaces) -> Camera:
    """A camera that sees the whole box from a corner above."""
    from hashfield.geometry.cameras import look_at

    center = spaces.box_center_world
    side = spaces.distance_scene_to_world(float(spaces.aabb_scale))
    pose = look_at(center + side * torch.tensor([1.2, 1.2, 0.9], dtype=torch.float64), center)
    return Camera(pose, 800, 800, 900.0, 900.0, 400.0, 400.0)


def fitted(camera: Camera, longest_px: int) -> Camera:
    """The pinhole of a camera, no side of its picture longer than this."""
    scale = min(1.0, longest_px / max(camera.width, camera.height))
    return pinhole(camera).resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))


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

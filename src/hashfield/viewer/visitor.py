"""One visitor of the viewer's page: where they stand, what they want to see, and the panel for how it is shown."""

import html
import itertools
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import viser
import viser.transforms as tf
from jaxtyping import UInt8

from hashfield.errors import HashfieldError
from hashfield.log import logger
from hashfield.tasks.frames import Corners, HasBox
from hashfield.viewer.loop import Shown, Watcher
from hashfield.viewer.panels import CamerasTab, Panel, PathTab, TrainingFolder, line, size_of
from hashfield.viewer.pictures import (
    LARGEST_SIDE,
    Eye,
    Look,
    Pan,
    PictureStage,
    Stage,
    View,
    Wish,
    cameras_of,
    outputs_of,
)
from hashfield.viewer.session import Session, Training, figures_of

QUICK_QUALITY: Final = 70
"""JPEG quality of pictures while someone moves."""
FINAL_QUALITY: Final = 93
"""JPEG quality of finished pictures."""
MIN_ROWS: Final = 120
MAX_ROWS: Final = 2160
"""Rows of a finished picture, at most: whatever a browser asks for."""
MOST_CELLS: Final = 3000
FLY_REACH: Final = 0.05
"""How far before the eye the point lies that it turns around when flying, in the page's units."""
LONGEST_DOWNLOAD: Final = 2**28
"""Bytes of a file above which it is not sent to the browser."""


def page_camera(stage: Stage, eye: Eye) -> tuple[np.ndarray, np.ndarray]:
    """Position and target on the page of an eye that orbits what lies in the middle of the stage.

    Args:
        stage: How the page lies to the world.
        eye: In the world.
    """
    position = stage.to_page(eye.camera_to_world[:, 3].numpy())
    forward = eye.camera_to_world[:, 2].numpy()
    return position, position + max(0.5, float(-position @ forward)) * forward


class Visitor:
    """One browser: its panel, what it wants to see, and what it is shown."""

    def __init__(self, session: Session, client: viser.ClientHandle) -> None:
        self.session, self.client = session, client
        self.watcher = Watcher(self._show, self._fail)
        self.lock = threading.RLock()
        """Held while what several of viser's threads use is changed."""
        self.is_gone = False
        self.seen: View | None = None
        """Where the visitor stands now."""
        self.aspect = 1.5
        """Width of the visitor's window over its height."""
        self._is_built = self._is_flying = False
        self._has_stood_straight = False
        """Of a picture: whether the page has got to where it begins, from wherever a browser's camera stands before."""
        self._moved, self._sent = 0.0, ""
        self.nodes: dict[str, list[Any]] = {}
        """What was put into the page's scene, by what it is."""
        self._panels: list[Panel] = []
        self._training: TrainingFolder | None = None

    # --- coming, being there, going

    def begin(self) -> None:
        """Make the panel and ask for the first picture."""
        gui = self.client.gui
        name = html.escape(self.session.title)
        gui.add_html(f"<div style='padding:0 1em;font-weight:600;overflow-wrap:anywhere'>{name}</div>")
        self.status = gui.add_html(line("the model is made ready ..."))
        with self.lock:
            if self.is_gone:
                return
            self.session.loop.add(self.watcher)
        self.client.camera.on_update(self.guarded(lambda _: self._camera_moved()))
        if self.session.training is not None:
            self.guarded(self._build_training)(self.session.training)
        self.tick(is_second=True)

    def _build_training(self, training: Training) -> None:
        self._training = TrainingFolder(self, training)

    def tick(self, *, is_second: bool) -> None:
        """What is to be done from time to time.

        Args:
            is_second: Whether a second has passed since the last such call.
        """
        if not self._is_built and self.session.stage is not None and not self.is_gone:
            with self.lock:
                if not self._is_built:
                    self._is_built = True
                    self.guarded(self._build)()
        if self._is_built and time.monotonic() > self._moved + 0.3:
            self.guarded(self._settle)()
        if is_second and self._training is not None:
            self.guarded(self._training.show)()

    def end(self) -> None:
        """Let go of everything."""
        with self.lock:
            self.is_gone = True
            self.session.loop.remove(self.watcher)
            panels = list(self._panels)
        for panel in panels:
            panel.end()

    def tell(self, text: str) -> None:
        """A notice."""
        if not self.is_gone:
            self.client.add_notification("hashfield", text, auto_close_seconds=8.0)

    def guarded(self, act: Callable[..., Any]) -> Callable[..., None]:
        """What the visitor does, with errors as notices."""

        def done(*arguments: Any) -> None:
            if self.is_gone:
                return
            try:
                act(*arguments)
            except HashfieldError as error:
                self.tell(str(error))
            except Exception as error:
                if not self.is_gone:
                    logger.error("the viewer's page failed", exc_info=error)
                    self.tell(f"that failed: {type(error).__name__}: {error}")

        return done

    # --- pictures

    def _show(self, picture: UInt8[np.ndarray, "h w 3"], shown: Shown) -> None:
        if self.is_gone:
            return
        quality = FINAL_QUALITY if shown.is_final else QUICK_QUALITY
        self.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=quality)
        if shown.is_final or shown.note:
            what = f"{shown.width}x{shown.height}" + (f", {shown.note}" if shown.note else "")
            self._say_status(f"{what}, drawn in {shown.seconds:.2f} s" if shown.is_final else what)

    def _fail(self, text: str) -> None:
        if self.is_gone:
            return
        if self.watcher.picture is None:
            self.client.scene.set_background_image(np.full((2, 2, 3), 96, np.uint8), format="png")
        self._say_status(text)

    def _say_status(self, text: str) -> None:
        if text != self._sent:
            self._sent = text
            self.status.content = line(text)

    def _camera_moved(self) -> None:
        camera = self.client.camera
        aspect = camera.aspect
        if not (math.isfinite(aspect) and aspect > 0):
            return
        with self.lock:
            view = self.view_now()
            if view is None or (_is_same(view, self.seen) and abs(aspect - self.aspect) < 1e-3 * aspect):
                return
            self.seen, self.aspect, self._moved = view, min(max(aspect, 0.1), 10.0), time.monotonic()
            if isinstance(view, Pan):
                self._has_stood_straight |= self._straightened(view) is None
        self.ask()

    def view_now(self) -> View | None:
        """What the page's camera sees; None before a model is there."""
        stage, camera = self.session.stage, self.client.camera
        if stage is None:
            return None
        if isinstance(stage, PictureStage):
            return stage.pan(camera.position, camera.look_at)
        return stage.eye(tf.SO3(camera.wxyz).as_matrix(), camera.position, float(camera.fov))

    def wish(self) -> Wish | None:
        """What the visitor wants to see."""
        if self.seen is None or not self._is_built:
            return None
        return Wish(self.seen, self.look(), self.aspect, min(max(round(float(self.rows.value)), MIN_ROWS), MAX_ROWS))

    def ask(self) -> None:
        """Have what is seen drawn."""
        with self.lock:
            wish = self.wish()
        if wish is None or self.is_gone:
            return
        if wish.look.output in ("difference", "photo") and self.session.loop.reference is None:
            self.session.want_reference()
        self.session.loop.ask(self.watcher, wish)

    def look(self) -> Look:
        """How it is to be shown, by the panel."""
        red, green, blue = (float(v) / 255 for v in self.background.value)
        look: dict[str, Any] = {"output": self.output.value, "background": (red, green, blue)}
        if isinstance(self.session.stage, PictureStage):
            look["has_single_pixels"] = self.single.value
        if "slice" in self.outputs:
            look |= {"slice_axis": "xyz".index(self.slice_axis.value), "slice_at": float(self.slice_at.value)}
        return Look(**look, crop=self._crop())

    def _crop(self) -> Corners | None:
        model = self.session.model
        if not isinstance(model, HasBox) or not self.has_crop.value:
            return None
        low, high = model.box_world.numpy()
        share = np.array([slider.value for slider in self.crop_sliders], np.float64) / 100
        a, b = low + share[:, 0] * (high - low), low + share[:, 1] * (high - low)
        return tuple(a.tolist()), tuple(b.tolist())  # type: ignore[return-value]

    def _settle(self) -> None:
        """What is put straight once the visitor rests."""
        stage, camera = self.session.stage, self.client.camera
        if isinstance(stage, PictureStage):
            with self.lock:
                place = self._straightened(self.seen) if isinstance(self.seen, Pan) else None
            if place is not None and self._has_stood_straight:
                self._place(*place)
        elif self._is_flying:
            ahead = camera.look_at - camera.position
            distance = float(np.linalg.norm(ahead))
            if distance > 1.5 * FLY_REACH:
                camera.look_at = camera.position + ahead * (FLY_REACH / distance)

    def _straightened(self, seen: Pan) -> tuple[np.ndarray, np.ndarray] | None:
        """Position and target of a camera that looks straight at a part of the picture; None where it does already."""
        stage, camera = self.session.stage, self.client.camera
        assert isinstance(stage, PictureStage)
        position, target = (np.array(place) for place in stage.place(seen))
        off = np.abs(np.concatenate([position - camera.position, target - camera.look_at])).max()
        return (position, target) if off > 1e-3 * abs(position[1]) else None

    def _place(self, position: np.ndarray, target: np.ndarray) -> None:
        with self.client.atomic():
            self.client.camera.position = position
            self.client.camera.look_at = target

    def go(self, eye: Eye) -> None:
        """Stand where an eye stands."""
        stage = self.session.stage
        assert isinstance(stage, Stage)
        camera = self.client.camera
        position, target = page_camera(stage, eye)
        if self._is_flying:
            target = position + FLY_REACH * eye.camera_to_world[:, 2].numpy()
        with self.client.atomic():
            camera.up_direction = -eye.camera_to_world[:, 1].numpy()
            camera.position = position
            camera.look_at = target
            if abs(camera.fov - eye.fov_y) > 1e-6:
                camera.fov = eye.fov_y
        if abs(math.degrees(eye.fov_y) - float(self.fov.value)) > 0.5:
            self.fov.value = round(math.degrees(eye.fov_y))

    # --- the panel

    def _build(self) -> None:
        model, stage = self.session.model, self.session.stage
        assert model is not None and stage is not None
        gui = self.client.gui
        self.outputs = outputs_of(model)
        if not self.session.has_reference:
            self.outputs = tuple(name for name in self.outputs if name not in ("difference", "photo"))
        tabs = gui.add_tab_group()
        with tabs.add_tab("View"):
            self._build_view(model)
        cameras = cameras_of(model)
        if cameras and isinstance(stage, Stage):
            with tabs.add_tab("Cameras"):
                self._panels.append(CamerasTab(self, cameras))
        if isinstance(stage, Stage):
            with tabs.add_tab("Path"):
                self._panels.append(PathTab(self))
        told = figures_of(model)
        self._say_status(told or "the first picture is drawn ...")
        if isinstance(stage, PictureStage):
            self.client.camera.min_orbit_distance = 1e-7
            self.client.scene.on_rect_select(modifier="shift")(self.guarded(self._zoom_to))
        if self.session.training is not None:  # the camera was there before the stage was known
            self.go(stage.home) if isinstance(stage, Stage) else self._show_whole()
        self._camera_moved()

    def on(self, handle: Any, act: Callable[[], Any] | None = None) -> Any:
        """Ask for a picture, or do something else, when a control changes."""
        handle.on_update(self.guarded(lambda _: (act or self.ask)()))
        return handle

    def button(self, label: str, act: Callable[[], Any], hint: str | None = None) -> Any:
        """A button.

        Args:
            label: What stands on it.
            act: What it does.
            hint: What it says when the pointer rests on it.
        """
        button = self.client.gui.add_button(label, hint=hint)
        button.on_click(self.guarded(lambda _: act()))
        return button

    def _build_view(self, model: Any) -> None:
        gui, stage = self.client.gui, self.session.stage
        self.output = self.on(gui.add_dropdown("Show", self.outputs), self._output_changed)
        background = tuple(round(255 * v) for v in model.background)
        self.background = self.on(gui.add_rgb("Background", background))  # type: ignore[arg-type]
        self.rows = self.on(
            gui.add_slider("Rows at rest", MIN_ROWS, MAX_ROWS, 20, 540, hint="Height in pixels of a finished picture.")
        )
        if isinstance(stage, PictureStage):
            self.single = self.on(gui.add_checkbox("Single pixels", True, hint="From near, show pixels as squares."))
            self.button("Whole picture", self._show_whole)
            self.button("One to one", self._show_one_to_one, "A pixel of the picture for each of the finished one.")
            gui.add_html(line("Drag pans, the wheel zooms, Shift and a drag zoom into a rectangle."))
        elif isinstance(stage, Stage):
            fov = round(math.degrees(stage.home.fov_y))
            self.fov = gui.add_slider("Field of view", 5, 120, 1, min(max(fov, 5), 120), hint="Vertical, degrees.")
            self.on(self.fov, self._fov_changed)
            self.navigation = gui.add_dropdown("Move", ("orbit", "fly"), hint="W A S D Q E move in both.")
            self.on(self.navigation, self._navigation_changed)
            self.button("Home", lambda: self.go(stage.home))
        if "slice" in self.outputs:
            self.slice_axis = self.on(gui.add_dropdown("Slice across", ("x", "y", "z"), initial_value="z"))
            self.slice_at = self.on(gui.add_slider("Slice at", 0.0, 1.0, 0.005, 0.5))
            self.slice_axis.visible = self.slice_at.visible = False
        if isinstance(model, HasBox) and isinstance(stage, Stage):
            with gui.add_folder("Crop box", expand_by_default=False):
                self.has_crop = self.on(gui.add_checkbox("Only what lies in the box", False), self._crop_changed)
                self.crop_sliders = [
                    self.on(gui.add_multi_slider(f"{axis}, %", 0.0, 100.0, 0.5, (0.0, 100.0)), self._crop_changed)
                    for axis in "xyz"
                ]
        if hasattr(model, "occupied_cells"):
            cells = gui.add_checkbox("Occupied cells", False)
            self.on(cells, lambda: self._show_cells(cells.value))
        with gui.add_folder("Still picture", expand_by_default=False):
            self.still_width = gui.add_number("Width", 1280, min=1, max=LARGEST_SIDE, step=1)
            self.still_height = gui.add_number("Height", 720, min=1, max=LARGEST_SIDE, step=1)
            self.button("Save picture", self._save_still, f"Into {self.session.renders}, and to this browser.")

    def _output_changed(self) -> None:
        if "slice" in self.outputs:
            self.slice_axis.visible = self.slice_at.visible = self.output.value == "slice"
        self.ask()

    def _fov_changed(self) -> None:
        # Not where the slider only follows the camera, whose field of view is no whole number.
        if abs(math.degrees(self.client.camera.fov) - float(self.fov.value)) > 0.5:
            self.client.camera.fov = math.radians(float(self.fov.value))
            self._camera_moved()

    def _navigation_changed(self) -> None:
        stage, camera = self.session.stage, self.client.camera
        assert isinstance(stage, Stage)
        self._is_flying = self.navigation.value == "fly"
        ahead = camera.look_at - camera.position
        ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
        reach = FLY_REACH if self._is_flying else max(0.5, float(-camera.position @ ahead))
        camera.look_at = camera.position + reach * ahead

    def _crop_changed(self) -> None:
        self.clear("crop")
        crop, stage = self._crop(), self.session.stage
        if crop is not None and isinstance(stage, Stage):
            edges = stage.to_page(box_edges(crop)).astype(np.float32)
            self.keep("crop", self.client.scene.add_line_segments(
                "/crop", edges, (230, 140, 30), thickness=2.0, thickness_units="screen"))  # fmt: skip
        self.ask()

    def _show_cells(self, is_shown: bool) -> None:
        self.clear("cells")
        model, stage = self.session.model, self.session.stage
        if not is_shown or not isinstance(stage, Stage) or model is None:
            return
        centers, sides = model.occupied_cells(MOST_CELLS)  # type: ignore[attr-defined]
        if not len(centers):
            self.tell("no cell is occupied")
            return
        # Edges alone: dozens of faces one behind another would hide the picture.
        edges = box_edges(((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)))
        boxes = centers.numpy()[:, None, None, :] + sides.numpy().reshape(-1, 1, 1, 1) * edges
        self.keep("cells", self.client.scene.add_line_segments(
            "/cells", stage.to_page(boxes.reshape(-1, 2, 3)).astype(np.float32), (40, 110, 220), thickness=1.0,
            thickness_units="screen"))  # fmt: skip

    def keep(self, name: str, *nodes: Any) -> None:
        """Remember things in the page's scene, to be taken away together.

        Args:
            name: What they are.
            nodes: The things.
        """
        self.nodes.setdefault(name, []).extend(nodes)

    def clear(self, name: str) -> None:
        """Take away from the scene what was kept under a name."""
        with self.lock:
            for node in self.nodes.pop(name, []):
                node.remove()

    def _save_still(self) -> None:
        wish = self.wish()
        if wish is None:
            return
        width, height = size_of(self.still_width.value, self.still_height.value)
        self.tell("the picture is drawn ...")
        self.session.loop.start(self.session.still(wish, width, height, self.done, self.tell))

    def done(self, file: Path) -> None:
        """Say where a file lies, and send it to the browser."""
        self.tell(f"saved: {file}")
        if not self.is_gone and file.stat().st_size <= LONGEST_DOWNLOAD:
            self.client.send_file_download(file.name, file.read_bytes())

    # --- a trained picture

    def _show_whole(self) -> None:
        stage = self.session.stage
        assert isinstance(stage, PictureStage)
        self._place(*(np.array(v) for v in stage.place(stage.whole)))

    def _show_one_to_one(self) -> None:
        stage = self.session.stage
        assert isinstance(stage, PictureStage) and isinstance(self.seen, Pan)
        pan = Pan(self.seen.center, float(self.rows.value))
        self._place(*(np.array(v) for v in stage.place(pan)))

    def _zoom_to(self, event: Any) -> None:
        stage = self.session.stage
        if isinstance(stage, PictureStage) and isinstance(self.seen, Pan):
            pan = stage.zoomed_to(self.seen, (event.screen_min, event.screen_max), self.aspect)
            self._place(*(np.array(v) for v in stage.place(pan)))


def box_edges(corners: Corners) -> np.ndarray:
    """The twelve edges of a box: [12, 2, 3]."""
    point = np.array(list(itertools.product(*zip(*corners, strict=True))))
    pairs = [(a, b) for a, b in itertools.combinations(range(8), 2) if (a ^ b).bit_count() == 1]
    return np.array([[point[a], point[b]] for a, b in pairs])


def _is_same(a: View, b: View | None) -> bool:
    if isinstance(a, Eye) and isinstance(b, Eye):
        return abs(a.fov_y - b.fov_y) < 1e-9 and torch.equal(a.camera_to_world, b.camera_to_world)
    return a == b

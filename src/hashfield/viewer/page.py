"""The page that browsers open: viser's server, a panel and a picture for every visitor. Only this file knows viser.

Every visitor has their own camera, panel and picture. What a visitor does arrives on threads of viser's, many at once;
it only changes the visitor's own state, under a lock, and hands the newest wish to the loop that draws.
"""

import contextlib
import html
import io
import itertools
import math
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
import viser
import viser.transforms as tf
import websockets.asyncio.server as websocket_server
from jaxtyping import UInt8
from viser import uplot

from hashfield.errors import ConfigError, HashfieldError
from hashfield.geometry.cameras import Camera
from hashfield.log import logger
from hashfield.tasks.frames import Corners, HasBox
from hashfield.viewer.loop import Job, Shown, Watcher
from hashfield.viewer.path_editor import PathEditor
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
    eye_of,
    outputs_of,
)
from hashfield.viewer.session import Session, figures_of

QUICK_QUALITY: Final = 70
"""JPEG quality of pictures while someone moves."""
FINAL_QUALITY: Final = 93
"""JPEG quality of finished pictures."""
MIN_ROWS: Final = 120
MAX_ROWS: Final = 2160
"""Rows of a finished picture, at most: whatever a browser asks for."""
MOST_FRUSTA: Final = 100
THUMBNAIL_PX: Final = 64
MOST_CELLS: Final = 6000
FLY_REACH: Final = 0.05
"""How far before the eye the point lies that it turns around when flying, in the page's units."""
LAST: Final = 1e15
"""Place in the panel below everything that has none."""
TICK_SECONDS: Final = 0.25
LONGEST_DOWNLOAD: Final = 2**28
"""Bytes of a file above which it is not sent to the browser."""


# --- who may connect


def refusal(host: str | None, origin: str | None, *, is_local: bool) -> str | None:
    """Why a request is refused, or None.

    Other pages in the same browser can reach this port too. They are told by the Origin header, which scripts cannot
    forge; and a name of theirs that leads to this machine, by the Host header.

    Args:
        host: The request's Host header.
        origin: Its Origin header; None where it has none.
        is_local: Whether the server only listens to this machine, which is also the end of SSH tunnels.

    >>> refusal("localhost:8080", "http://localhost:8080", is_local=True)
    >>> refusal("localhost:8080", "https://elsewhere.org", is_local=True)
    'another page asks'
    """
    name = re.sub(r":\d+$", "", host or "").strip("[]").lower()
    if is_local and name not in ("localhost", "127.0.0.1", "::1"):
        return "the name in the request is not this machine's"
    if origin is not None and origin.partition("://")[2] != (host or ""):
        return "another page asks"
    return None


@contextlib.contextmanager
def _guarded_server(is_local: bool) -> Iterator[None]:
    """Within the block, a websocket server that is made refuses requests of other pages. viser has no option for it."""
    serve = websocket_server.serve

    def guarded(handler: Any, *arguments: Any, process_request: Any, **options: Any) -> Any:
        def process(connection: Any, request: Any) -> Any:
            reason = refusal(request.headers.get("Host"), request.headers.get("Origin"), is_local=is_local)
            if reason is not None:
                return connection.respond(HTTPStatus.FORBIDDEN, f"refused: {reason}\n")
            return process_request(connection, request)

        return serve(handler, *arguments, process_request=process, **options)

    websocket_server.serve = guarded  # type: ignore[assignment]
    try:
        yield
    finally:
        websocket_server.serve = serve


def _check_address(host: str, port: int) -> None:
    if not 1 <= port <= 65535 - 1000:
        raise ConfigError(f"--port: expected 1 to {65535 - 1000}, got {port}")
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as trial:
            trial.bind(found[4])
    except OSError as error:
        raise ConfigError(f"--host {host}: cannot be listened on: {error.strerror or error}") from error


# --- the page


class Page:
    """The server with all its visitors."""

    def __init__(self, session: Session, host: str = "127.0.0.1", port: int = 8080) -> None:
        """Args:
        session: What is shown.
        host: Address to listen on.
        port: The next free one from here on is taken.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        _check_address(host, port)
        self.session = session
        self.visitors: dict[int, Visitor] = {}
        self._left: set[int] = set()
        """Those who have left before they were let in."""
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        # A visitor who leaves while something is sent to them is no news.
        warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
        is_local = host in ("localhost", "127.0.0.1", "::1")
        with _guarded_server(is_local), contextlib.redirect_stdout(io.StringIO()):
            self.server = viser.ViserServer(host=host, port=port, label="hashfield", verbose=False)
        # Any browser may ask viser for a tunnel to the public; nobody gets one here.
        self.server.request_share_url = lambda verbose=True: None  # type: ignore[method-assign]
        self.server.gui.configure_theme(
            control_width="medium", show_logo=False, show_share_button=False, dark_mode=False
        )
        self.server.scene.set_background_image(np.full((2, 2, 3), 128, np.uint8), format="png")
        self._is_set_up = False
        self._set_up()
        session.say = self.tell
        self.server.on_client_connect(self._come)
        self.server.on_client_disconnect(self._leave)
        threading.Thread(target=self._tick, daemon=True, name="hashfield-page").start()

    @property
    def port(self) -> int:
        """Where the server listens."""
        return self.server.get_port()

    def tell(self, text: str) -> None:
        """A notice for everyone."""
        logger.info("%s", text)
        for visitor in list(self.visitors.values()):
            visitor.tell(text)

    def stop(self) -> None:
        """End the server."""
        self._is_stopped.set()
        for visitor in list(self.visitors.values()):
            self._leave(visitor.client)
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _set_up(self) -> None:
        """Where visitors stand at first, as soon as it is known."""
        stage = self.session.stage
        if self._is_set_up or stage is None:
            return
        camera = self.server.initial_camera
        if isinstance(stage, PictureStage):
            position, target = stage.place(stage.whole)
            camera.up = (0.0, 0.0, 1.0)
            camera.near = 1e-6
            camera.fov = stage.fov_y
        else:
            self.server.scene.set_up_direction(stage.up)
            position, target, camera.fov = *page_camera(stage, stage.home), stage.home.fov_y
            camera.up = -stage.home.camera_to_world[:, 1].numpy()
        camera.position, camera.look_at = np.array(position), np.array(target)
        self._is_set_up = True

    def _come(self, client: viser.ClientHandle) -> None:
        visitor = Visitor(self.session, client)
        with self._lock:
            if client.client_id in self._left:
                self._left.remove(client.client_id)
                return
            self.visitors[client.client_id] = visitor
        visitor.begin()

    def _leave(self, client: viser.ClientHandle) -> None:
        with self._lock:
            visitor = self.visitors.pop(client.client_id, None)
            if visitor is None:  # these calls come on several threads: this one was faster than that of the coming
                self._left.add(client.client_id)
        if visitor is not None:
            visitor.end()

    def _tick(self) -> None:
        for count in itertools.count():
            if self._is_stopped.wait(TICK_SECONDS):
                return
            self._set_up()
            for visitor in list(self.visitors.values()):
                visitor.tick(is_second=count % 4 == 0)


def page_camera(stage: Stage, eye: Eye) -> tuple[np.ndarray, np.ndarray]:
    """Position and target on the page of an eye that orbits what lies in the middle of the stage.

    Args:
        stage: How the page lies to the world.
        eye: In the world.
    """
    position = stage.to_page(eye.camera_to_world[:, 3].numpy())
    forward = eye.camera_to_world[:, 2].numpy()
    return position, position + max(0.5, float(-position @ forward)) * forward


# --- a visitor


class Visitor:
    """One browser: its panel, what it wants to see, and what it is shown."""

    def __init__(self, session: Session, client: viser.ClientHandle) -> None:
        self.session, self.client = session, client
        self.watcher = Watcher(self._show, self._fail)
        self.path = PathEditor()
        self._lock = threading.RLock()
        self._is_gone = self._is_built = self._is_flying = False
        self._seen: View | None = None
        self._aspect, self._moved = 1.5, 0.0
        self._sent = ""
        self._nodes: dict[str, list[Any]] = {}
        self._film: Job | None = None
        self._preview: threading.Event | None = None
        self._thumbnails: Job | None = None
        self._cameras: list[Camera] = []

    # --- coming, being there, going

    def begin(self) -> None:
        """Make the panel and ask for the first picture."""
        gui = self.client.gui
        name = html.escape(self.session.title)
        gui.add_html(f"<div style='padding:0 1em;font-weight:600;overflow-wrap:anywhere'>{name}</div>")
        self.status = gui.add_html(_line("the model is made ready ..."))
        with self._lock:
            if self._is_gone:
                return
            self.session.loop.add(self.watcher)
        self.client.camera.on_update(self._guarded(lambda _: self._camera_moved()))
        if self.session.training is not None:
            self._guarded(self._build_training)()
        self.tick(is_second=True)

    def tick(self, *, is_second: bool) -> None:
        """What is to be done from time to time.

        Args:
            is_second: Whether a second has passed since the last such call.
        """
        if not self._is_built and self.session.stage is not None and not self._is_gone:
            with self._lock:
                if not self._is_built:
                    self._is_built = True
                    self._guarded(self._build)()
        if self._is_built and time.monotonic() > self._moved + 0.3:
            self._guarded(self._settle)()
        if is_second and self.session.training is not None:
            self._guarded(self._show_training)()

    def end(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._is_gone = True
            self.session.loop.remove(self.watcher)
        for job in (self._film, self._thumbnails):
            if job is not None:
                self.session.loop.cancel(job)
        if self._preview is not None:
            self._preview.set()

    def tell(self, text: str) -> None:
        """A notice."""
        if not self._is_gone:
            self.client.add_notification("hashfield", text, auto_close_seconds=8.0)

    def _guarded(self, act: Callable[..., Any]) -> Callable[..., None]:
        """What the visitor does, with errors as notices."""

        def guarded(*arguments: Any) -> None:
            if self._is_gone:
                return
            try:
                act(*arguments)
            except HashfieldError as error:
                self.tell(str(error))
            except Exception as error:
                if not self._is_gone:
                    logger.error("the viewer's page failed", exc_info=error)
                    self.tell(f"that failed: {type(error).__name__}: {error}")

        return guarded

    # --- pictures

    def _show(self, picture: UInt8[np.ndarray, "h w 3"], shown: Shown) -> None:
        if self._is_gone:
            return
        quality = FINAL_QUALITY if shown.is_final else QUICK_QUALITY
        self.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=quality)
        if shown.is_final or shown.note:
            what = f"{shown.width}x{shown.height}" + (f", {shown.note}" if shown.note else "")
            self._say_status(f"{what}, drawn in {shown.seconds:.2f} s" if shown.is_final else what)

    def _fail(self, text: str) -> None:
        if self._is_gone:
            return
        if self.watcher.picture is None:
            self.client.scene.set_background_image(np.full((2, 2, 3), 96, np.uint8), format="png")
        self._say_status(text)

    def _say_status(self, text: str) -> None:
        if text != self._sent:
            self._sent = text
            self.status.content = _line(text)

    def _camera_moved(self) -> None:
        camera = self.client.camera
        aspect = camera.aspect
        if not (math.isfinite(aspect) and aspect > 0):
            return
        with self._lock:
            view = self._view_now()
            if view is None or (_is_same(view, self._seen) and abs(aspect - self._aspect) < 1e-3 * aspect):
                return
            self._seen, self._aspect, self._moved = view, min(max(aspect, 0.1), 10.0), time.monotonic()
        self.ask()

    def _view_now(self) -> View | None:
        stage, camera = self.session.stage, self.client.camera
        if stage is None:
            return None
        if isinstance(stage, PictureStage):
            return stage.pan(camera.position, camera.look_at)
        return stage.eye(tf.SO3(camera.wxyz).as_matrix(), camera.position, float(camera.fov))

    def wish(self) -> Wish | None:
        """What the visitor wants to see."""
        if self._seen is None or not self._is_built:
            return None
        return Wish(self._seen, self._look(), self._aspect, min(max(round(float(self.rows.value)), MIN_ROWS), MAX_ROWS))

    def ask(self) -> None:
        """Have what is seen drawn."""
        with self._lock:
            wish = self.wish()
        if wish is None or self._is_gone:
            return
        if wish.look.output in ("difference", "photo") and self.session.loop.reference is None:
            self.session.want_reference()
        self.session.loop.ask(self.watcher, wish)

    def _look(self) -> Look:
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
            with self._lock:
                seen = self._seen
            if isinstance(seen, Pan):
                position, target = stage.place(seen)
                size = abs(position[1])
                if np.abs(np.array([*position, *target]) - [*camera.position, *camera.look_at]).max() > 1e-3 * size:
                    self._place(np.array(position), np.array(target))
        elif self._is_flying:
            ahead = camera.look_at - camera.position
            distance = float(np.linalg.norm(ahead))
            if distance > 1.5 * FLY_REACH:
                camera.look_at = camera.position + ahead * (FLY_REACH / distance)

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
        self._cameras = cameras_of(model)
        self.outputs = outputs_of(model)
        if not self.session.has_reference:
            self.outputs = tuple(name for name in self.outputs if name not in ("difference", "photo"))
        tabs = gui.add_tab_group()
        with tabs.add_tab("View"):
            self._build_view(model)
        if self._cameras and isinstance(stage, Stage):
            with tabs.add_tab("Cameras"):
                self._build_cameras()
        if isinstance(stage, Stage):
            with tabs.add_tab("Path"):
                self._build_path()
        told = figures_of(model)
        self._say_status(told or "the first picture is drawn ...")
        if isinstance(stage, PictureStage):
            self.client.camera.min_orbit_distance = 1e-7
            self.client.scene.on_rect_select(modifier="shift")(self._guarded(self._zoom_to))
        if self.session.training is not None:  # the camera was there before the stage was known
            self.go(stage.home) if isinstance(stage, Stage) else self._show_whole()
        self._camera_moved()

    def _on(self, handle: Any, act: Callable[[], Any] | None = None) -> Any:
        """Ask for a picture, or do something else, when a control changes."""
        handle.on_update(self._guarded(lambda _: (act or self.ask)()))
        return handle

    def _button(self, label: str, act: Callable[[], Any], hint: str | None = None) -> Any:
        button = self.client.gui.add_button(label, hint=hint)
        button.on_click(self._guarded(lambda _: act()))
        return button

    def _build_view(self, model: Any) -> None:
        gui, stage = self.client.gui, self.session.stage
        self.output = self._on(gui.add_dropdown("Show", self.outputs), self._output_changed)
        background = tuple(round(255 * v) for v in model.background)
        self.background = self._on(gui.add_rgb("Background", background))  # type: ignore[arg-type]
        self.rows = self._on(
            gui.add_slider("Rows at rest", MIN_ROWS, MAX_ROWS, 20, 540, hint="Height in pixels of a finished picture.")
        )
        if isinstance(stage, PictureStage):
            self.single = self._on(gui.add_checkbox("Single pixels", True, hint="From near, show pixels as squares."))
            self._button("Whole picture", self._show_whole)
            self._button("One to one", self._show_one_to_one, "A pixel of the picture for each of the finished one.")
            gui.add_html(_line("Drag pans, the wheel zooms, Shift and a drag zoom into a rectangle."))
        elif isinstance(stage, Stage):
            fov = round(math.degrees(stage.home.fov_y))
            self.fov = gui.add_slider("Field of view", 5, 120, 1, min(max(fov, 5), 120), hint="Vertical, degrees.")
            self._on(self.fov, self._fov_changed)
            self.navigation = gui.add_dropdown("Move", ("orbit", "fly"), hint="W A S D Q E move in both.")
            self._on(self.navigation, self._navigation_changed)
            self._button("Home", lambda: self.go(stage.home))
        if "slice" in self.outputs:
            self.slice_axis = self._on(gui.add_dropdown("Slice across", ("x", "y", "z"), initial_value="z"))
            self.slice_at = self._on(gui.add_slider("Slice at", 0.0, 1.0, 0.005, 0.5))
            self.slice_axis.visible = self.slice_at.visible = False
        if isinstance(model, HasBox) and isinstance(stage, Stage):
            with gui.add_folder("Crop box", expand_by_default=False):
                self.has_crop = self._on(gui.add_checkbox("Only what lies in the box", False), self._crop_changed)
                self.crop_sliders = [
                    self._on(gui.add_multi_slider(f"{axis}, %", 0.0, 100.0, 0.5, (0.0, 100.0)), self._crop_changed)
                    for axis in "xyz"
                ]
        if hasattr(model, "occupied_cells"):
            cells = gui.add_checkbox("Occupied cells", False)
            self._on(cells, lambda: self._show_cells(cells.value))
        with gui.add_folder("Still picture", expand_by_default=False):
            self.still_width = gui.add_number("Width", 1280, min=1, max=LARGEST_SIDE, step=1)
            self.still_height = gui.add_number("Height", 720, min=1, max=LARGEST_SIDE, step=1)
            self._button("Save picture", self._save_still, f"Into {self.session.renders}, and to this browser.")

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
        self._clear("crop")
        crop, stage = self._crop(), self.session.stage
        if crop is not None and isinstance(stage, Stage):
            edges = stage.to_page(box_edges(crop)).astype(np.float32)
            self._keep("crop", self.client.scene.add_line_segments(
                "/crop", edges, (230, 140, 30), thickness=2.0, thickness_units="screen"))  # fmt: skip
        self.ask()

    def _show_cells(self, is_shown: bool) -> None:
        self._clear("cells")
        model, stage = self.session.model, self.session.stage
        if not is_shown or not isinstance(stage, Stage) or model is None:
            return
        centers, sides = model.occupied_cells(MOST_CELLS)  # type: ignore[attr-defined]
        if not len(centers):
            self.tell("no cell is occupied")
            return
        corner = np.array(list(itertools.product((-0.5, 0.5), repeat=3)), np.float32)
        faces = np.array(
            [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
             [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]], np.uint32)  # fmt: skip
        places = stage.to_page(centers.numpy()).astype(np.float32)
        self._keep("cells", self.client.scene.add_batched_meshes_simple(
            "/cells", corner, faces, np.tile(np.array([1, 0, 0, 0], np.float32), (len(places), 1)), places,
            batched_scales=(0.94 * sides.numpy() * stage.scale).astype(np.float32), batched_colors=(70, 130, 220),
            opacity=0.3, flat_shading=True, cast_shadow=False, receive_shadow=False))  # fmt: skip

    def _keep(self, name: str, *nodes: Any) -> None:
        self._nodes.setdefault(name, []).extend(nodes)

    def _clear(self, name: str) -> None:
        with self._lock:
            for node in self._nodes.pop(name, []):
                node.remove()

    def _save_still(self) -> None:
        wish = self.wish()
        if wish is None:
            return
        width, height = _size(self.still_width.value, self.still_height.value)
        self.tell("the picture is drawn ...")
        self.session.loop.start(self.session.still(wish, width, height, self._done, self.tell))

    def _done(self, file: Path) -> None:
        """Say where a file lies, and send it to the browser."""
        self.tell(f"saved: {file}")
        if not self._is_gone and file.stat().st_size <= LONGEST_DOWNLOAD:
            self.client.send_file_download(file.name, file.read_bytes())

    # --- a trained picture

    def _show_whole(self) -> None:
        stage = self.session.stage
        assert isinstance(stage, PictureStage)
        self._place(*(np.array(v) for v in stage.place(stage.whole)))

    def _show_one_to_one(self) -> None:
        stage = self.session.stage
        assert isinstance(stage, PictureStage) and isinstance(self._seen, Pan)
        pan = Pan(self._seen.center, float(self.rows.value))
        self._place(*(np.array(v) for v in stage.place(pan)))

    def _zoom_to(self, event: Any) -> None:
        stage = self.session.stage
        if isinstance(stage, PictureStage) and isinstance(self._seen, Pan):
            pan = stage.zoomed_to(self._seen, (event.screen_min, event.screen_max), self._aspect)
            self._place(*(np.array(v) for v in stage.place(pan)))

    # --- the photos' cameras

    def _build_cameras(self) -> None:
        gui = self.client.gui
        shown = gui.add_checkbox("Show cameras", False, hint="Click one to stand there.")
        self._on(shown, lambda: self._show_frusta(shown.value))
        self.photo = gui.add_slider("Camera", 0, max(1, len(self._cameras) - 1), 1, 0)
        self._on(self.photo, lambda: self._go_to_photo(int(self.photo.value)))
        self._button("Previous", lambda: self._next_photo(-1))
        self._button("Next", lambda: self._next_photo(1))
        self.photo_name = gui.add_html(_line(f"{len(self._cameras)} cameras"))

    def _next_photo(self, by: int) -> None:
        index = (int(self.photo.value) + by) % len(self._cameras)
        self.photo.value = index  # its callback goes there

    def _go_to_photo(self, index: int) -> None:
        index = min(max(index, 0), len(self._cameras) - 1)
        camera, photos = self._cameras[index], self.session.photos()
        name = ""
        if photos is not None:
            name = next((n for c, n in zip(photos.cameras, photos.names, strict=True) if c == camera), "")
        self.photo_name.content = _line(f"camera {index}" + (f": {name}" if name else ""))
        self.go(eye_of(camera))

    def _show_frusta(self, is_shown: bool) -> None:
        self._clear("frusta")
        if self._thumbnails is not None:
            self.session.loop.cancel(self._thumbnails)
            self._thumbnails = None
        if is_shown:
            chosen = np.unique(np.linspace(0, len(self._cameras) - 1, MOST_FRUSTA).round().astype(int)).tolist()
            frusta = {index: self._add_frustum(index) for index in chosen}
            self._keep("frusta", *frusta.values())
            self._thumbnails = self._thumbnail_job(frusta)
            self.session.loop.start(self._thumbnails)

    def _thumbnail_job(self, frusta: dict[int, Any]) -> Job:
        """Puts a thumbnail into each camera: the photo where it is read, else what the model shows."""
        photos = self.session.photos()
        known = {} if photos is None else {camera: k for k, camera in enumerate(photos.cameras)}
        for index, frustum in frusta.items():
            camera = self._cameras[index]
            scale = THUMBNAIL_PX / max(camera.width, camera.height)
            width, height = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
            found: list[np.ndarray] = []
            if photos is not None and camera in known:
                found.append(photos.scaled(known[camera], width, height)[..., :3])
                yield
            else:
                wish = Wish(eye_of(camera), Look(background=self._look().background), width / height, height)
                yield from self.session.loop.painted(wish, width, height, found.append)
            with self._lock:  # they may be taken away meanwhile
                if self._is_gone or frustum not in self._nodes.get("frusta", ()):
                    return
                frustum.image = found[0]

    def _add_frustum(self, index: int) -> Any:
        stage, camera = self.session.stage, self._cameras[index]
        assert isinstance(stage, Stage)
        frustum = self.client.scene.add_camera_frustum(
            f"/cameras/{index}", 2 * math.atan(0.5 * camera.height / camera.fy),
            camera.width / camera.height * camera.fy / camera.fx, scale=0.12, color=(60, 60, 60),
            thickness=1.5, thickness_units="screen",
            format="jpeg", wxyz=tf.SO3.from_matrix(camera.camera_to_world[:, :3].numpy()).wxyz,
            position=stage.to_page(camera.position.numpy()), cast_shadow=False, receive_shadow=False,
        )  # fmt: skip
        frustum.on_click(self._guarded(lambda _, index=index: self._go_to_photo(index)))
        return frustum

    # --- camera path

    def _build_path(self) -> None:
        gui = self.client.gui
        self.keyframe = gui.add_dropdown("Keyframe", cast(tuple[str, ...], ("none",)))
        self._on(self.keyframe, self._keyframe_chosen)
        self._button("Add here", lambda: self._edit(lambda path, eye: path.add(eye)), "Behind the chosen keyframe.")
        self._button("Replace by here", lambda: self._edit(lambda path, eye: path.replace(eye)))
        self._button("Remove", lambda: self._edit(lambda path, eye: path.remove()))
        self._button("Earlier", lambda: self._edit(lambda path, eye: path.move(-1)))
        self._button("Later", lambda: self._edit(lambda path, eye: path.move(1)))
        self._button("Go to it", self._go_to_keyframe)
        self.path_seconds = self._on(gui.add_number("Seconds", 4.0, min=0.1, max=600.0, step=0.1), self._path_changed)
        self.path_fps = self._on(gui.add_number("Frames per second", 24.0, min=1.0, max=120.0), self._path_changed)
        self.path_closed = self._on(gui.add_checkbox("Return to the start", False), self._path_changed)
        self.path_width = gui.add_number("Width", 640, min=2, max=LARGEST_SIDE, step=2)
        self.path_height = gui.add_number("Height", 360, min=2, max=LARGEST_SIDE, step=2)
        self._button("Preview", self._start_preview)
        self._button("Save path", self._save_path, f"Into {self.session.renders}, for hashfield render.")
        self._button("Render video", self._start_film, f"Into {self.session.renders}, as it looks now.")
        self.film_progress = gui.add_progress_bar(0.0, visible=False)
        self.film_cancel = self._button("Cancel video", self._cancel_film)
        self.film_cancel.visible = False

    def _edit(self, act: Callable[[PathEditor, Eye], None]) -> None:
        with self._lock:
            eye = self._view_now()  # not what is shown, which may lag behind
            if isinstance(eye, Eye):
                act(self.path, eye)
        self._path_changed()

    def _keyframe_chosen(self) -> None:
        with self._lock:
            if self.path.eyes and self.keyframe.value != "none":
                self.path.chosen = min(int(self.keyframe.value), len(self.path.eyes)) - 1

    def _path_changed(self) -> None:
        stage, path = self.session.stage, self.path
        assert isinstance(stage, Stage)
        with self._lock:
            self._read_times()
            names = tuple(str(k + 1) for k in range(len(path.eyes))) or ("none",)
            if tuple(self.keyframe.options) != names:
                self.keyframe.options = names
            chosen = names[max(path.chosen, 0)]
            if self.keyframe.value != chosen:
                self.keyframe.value = chosen
            self._clear("path")
            if len(path.eyes) > 1:
                line = torch.stack([c.position for c in path.cameras(64, 36, 20 * len(path.eyes))]).numpy()
                pairs = np.stack([line[:-1], line[1:]], 1)
                self._keep("path", self.client.scene.add_line_segments(
                    "/path/line", stage.to_page(pairs).astype(np.float32), (200, 40, 90), thickness=2.0,
                    thickness_units="screen"))  # fmt: skip
            for k, eye in enumerate(path.eyes):
                color = (200, 40, 90) if k == path.chosen else (120, 60, 80)
                self._keep("path", self.client.scene.add_camera_frustum(
                    f"/path/{k}", eye.fov_y, 16 / 9, scale=0.08, color=color,
                    thickness=1.5, thickness_units="screen", cast_shadow=False, receive_shadow=False,
                    wxyz=tf.SO3.from_matrix(eye.camera_to_world[:, :3].numpy()).wxyz,
                    position=stage.to_page(eye.camera_to_world[:, 3].numpy())))  # fmt: skip

    def _read_times(self) -> None:
        """Take over length and frames from the panel: a button may be quicker than the control before it."""
        self.path.seconds, self.path.fps = float(self.path_seconds.value), float(self.path_fps.value)
        self.path.is_closed = bool(self.path_closed.value)

    def _go_to_keyframe(self) -> None:
        with self._lock:
            eye = self.path.eyes[self.path.chosen] if self.path.eyes else None
        if eye is not None:
            self.go(eye)

    def _start_preview(self) -> None:
        with self._lock:
            self._read_times()
            cameras = self.path.cameras(64, 36)
            seconds = self.path.seconds
        if self._preview is not None:
            self._preview.set()
        self._preview = stop = threading.Event()
        threading.Thread(target=self._guarded(self._play), args=(cameras, seconds, stop), daemon=True).start()

    def _play(self, cameras: tuple[Camera, ...], seconds: float, stop: threading.Event) -> None:
        before, begun = self._seen, time.monotonic()
        while not stop.is_set() and not self._is_gone:
            share = (time.monotonic() - begun) / seconds
            if share >= 1:
                break
            self.go(eye_of(cameras[int(share * len(cameras))]))
            stop.wait(1 / 15)
        if isinstance(before, Eye) and not stop.is_set():
            self.go(before)

    def _save_path(self) -> None:
        width, height = _size(self.path_width.value, self.path_height.value)
        with self._lock:
            self._read_times()
            self.path.cameras(width, height)  # what is wrong is said before there is a file
            file = self.session.new_file("path", ".json")
            self.path.write(file, width, height)
        self._done(file)

    def _start_film(self) -> None:
        if self._film is not None:
            raise ConfigError("a video is being rendered; cancel it first")
        width, height = _size(self.path_width.value, self.path_height.value)
        look = self._look()
        if look.output in ("difference", "photo") and self.session.loop.reference is None:
            raise ConfigError("the photos are not read yet")
        with self._lock:
            self._read_times()
            self._film = self.session.video(
                self.path, look, width, height, self._film_at, self._film_done, self._film_failed
            )
        self.film_progress.value, self.film_progress.visible, self.film_cancel.visible = 0.0, True, True
        self.session.loop.start(self._film)

    def _film_at(self, share: float) -> None:
        if not self._is_gone:
            self.film_progress.value = 100 * share

    def _film_ends(self) -> None:
        self._film = None
        if not self._is_gone:
            self.film_progress.visible = self.film_cancel.visible = False

    def _film_done(self, file: Path) -> None:
        self._film_ends()
        self._done(file)

    def _film_failed(self, text: str) -> None:
        self._film_ends()
        self.tell(text)

    def _cancel_film(self) -> None:
        if self._film is not None:
            self.session.loop.cancel(self._film)
            self._film_ends()
            self.tell("the video is cancelled")

    # --- training

    def _build_training(self) -> None:
        gui = self.client.gui
        training = self.session.training
        assert training is not None
        self._training_folder = gui.add_folder("Training", order=LAST)
        with self._training_folder:
            self.training_status = gui.add_html(_line(training.status()))
            pause = gui.add_checkbox("Pause", training.share.is_paused)
            self._on(pause, lambda: training.pause(pause.value))
            self._pause = pause
            self._button("Save checkpoint", training.save, "After the step at hand.")
            self._plots: list[Any] | None = None

    def _show_training(self) -> None:
        training = self.session.training
        if training is None or not hasattr(self, "training_status"):
            return
        text = _line(training.status())
        if self.training_status.content != text:
            self.training_status.content = text
        if self._pause.value != training.share.is_paused and not training.is_over:
            self._pause.value = training.share.is_paused  # someone else has pressed it
        seconds, loss, psnr = training.curves.arrays()
        if len(seconds) < 2:
            return
        figures = [(psnr, "batch PSNR, dB")] if np.isfinite(psnr).any() else []
        figures.append((loss, "loss, log10"))
        if self._plots is None:
            with self._training_folder:
                self._plots = [
                    self.client.gui.add_uplot(
                        (seconds, values),
                        (uplot.Series(label="seconds"), uplot.Series(label=name, stroke="#2060c0", width=2)),
                        scales={"x": uplot.Scale(time=False)}, title=name, height=150,
                    )
                    for values, name in figures
                ]  # fmt: skip
            return
        for plot, (values, _) in zip(self._plots, figures, strict=False):
            plot.data = (seconds, values)


def box_edges(corners: Corners) -> np.ndarray:
    """The twelve edges of a box: [12, 2, 3]."""
    point = np.array(list(itertools.product(*zip(*corners, strict=True))))
    pairs = [(a, b) for a, b in itertools.combinations(range(8), 2) if (a ^ b).bit_count() == 1]
    return np.array([[point[a], point[b]] for a, b in pairs])


def _size(width: float, height: float) -> tuple[int, int]:
    """Width and height as a browser gives them.

    Raises:
        ConfigError: they are no size of a picture.
    """
    for name, value in (("width", width), ("height", height)):
        if not (math.isfinite(value) and 1 <= value <= LARGEST_SIDE):
            raise ConfigError(f"{name}: expected 1 to {LARGEST_SIDE} pixels, got {value:g}")
    return round(width), round(height)


def _line(text: str) -> str:
    """Text as HTML, whatever it holds."""
    return f"<div style='padding:0.2em 1em;font-size:0.85em;overflow-wrap:anywhere'>{html.escape(text)}</div>"


def _is_same(a: View, b: View | None) -> bool:
    if isinstance(a, Eye) and isinstance(b, Eye):
        return abs(a.fov_y - b.fov_y) < 1e-9 and torch.equal(a.camera_to_world, b.camera_to_world)
    return a == b

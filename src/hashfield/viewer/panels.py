"""Parts of a visitor's panel: the photos' cameras, a camera path, and how a training goes."""

import html
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import torch
import viser
import viser.transforms as tf
from viser import uplot

from hashfield.errors import ConfigError
from hashfield.export.images import over, to_uint8
from hashfield.geometry.cameras import Camera
from hashfield.viewer.loop import Job
from hashfield.viewer.path_editor import PathEditor
from hashfield.viewer.pictures import LARGEST_SIDE, Eye, Look, Stage, View, Wish, eye_of
from hashfield.viewer.session import Session, Training

MOST_FRUSTA: Final = 100
THUMBNAIL_PX: Final = 64
LAST: Final = 1e15
"""Place in the panel below everything that has none."""


class Host(Protocol):
    """What the parts of a panel ask of the visitor whose panel it is, see `hashfield.viewer.visitor.Visitor`."""

    session: Session
    client: viser.ClientHandle
    is_gone: bool
    seen: View | None
    nodes: dict[str, list[Any]]

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while what several threads use is changed."""
        ...

    def done(self, file: Path) -> None:
        """Say where a file lies, and send it to the browser."""
        ...

    def on(self, handle: Any, act: Callable[[], Any] | None = None) -> Any:
        """Ask for a picture, or do something else, when a control changes."""
        ...

    def button(self, label: str, act: Callable[[], Any], hint: str | None = None) -> Any:
        """A button, see `Visitor.button`."""
        ...

    def guarded(self, act: Callable[..., Any]) -> Callable[..., None]:
        """What the visitor does, with errors as notices."""
        ...

    def tell(self, text: str) -> None:
        """A notice."""
        ...

    def go(self, eye: Eye) -> None:
        """Stand where an eye stands."""
        ...

    def view_now(self) -> View | None:
        """What the page's camera sees; None before a model is there."""
        ...

    def look(self) -> Look:
        """How it is to be shown, by the panel."""
        ...

    def keep(self, name: str, *nodes: Any) -> None:
        """Remember things in the page's scene, to be taken away together."""
        ...

    def clear(self, name: str) -> None:
        """Take away from the scene what was kept under a name."""
        ...


class Panel:
    """A part of a visitor's panel."""

    def __init__(self, visitor: Host) -> None:
        self.visitor, self.session, self.client = visitor, visitor.session, visitor.client

    def end(self) -> None:
        """Let go of everything: the visitor has left."""


class CamerasTab(Panel):
    """The photos' own cameras: shown, gone through, stood at."""

    def __init__(self, visitor: Host, cameras: Sequence[Camera]) -> None:
        super().__init__(visitor)
        self._cameras = cameras
        self._thumbnails: Job | None = None
        gui = self.client.gui
        shown = gui.add_checkbox("Show cameras", False, hint="Click one to stand there.")
        self.visitor.on(shown, lambda: self._show_frusta(shown.value))
        self.photo = gui.add_slider("Camera", 0, max(1, len(self._cameras) - 1), 1, 0)
        self.visitor.on(self.photo, lambda: self._go_to_photo(int(self.photo.value)))
        self.visitor.button("Previous", lambda: self._next_photo(-1))
        self.visitor.button("Next", lambda: self._next_photo(1))
        self.photo_name = gui.add_html(line(f"{len(self._cameras)} cameras"))

    def end(self) -> None:
        """See `Panel`."""
        if self._thumbnails is not None:
            self.session.loop.cancel(self._thumbnails)

    def _next_photo(self, by: int) -> None:
        index = (int(self.photo.value) + by) % len(self._cameras)
        self.photo.value = index  # its callback goes there

    def _go_to_photo(self, index: int) -> None:
        index = min(max(index, 0), len(self._cameras) - 1)
        camera, photos = self._cameras[index], self.session.photos()
        name = ""
        if photos is not None:
            name = next((n for c, n in zip(photos.cameras, photos.names, strict=True) if c == camera), "")
        self.photo_name.content = line(f"camera {index}" + (f": {name}" if name else ""))
        self.visitor.go(eye_of(camera))

    def _show_frusta(self, is_shown: bool) -> None:
        self.visitor.clear("frusta")
        if self._thumbnails is not None:
            self.session.loop.cancel(self._thumbnails)
            self._thumbnails = None
        if is_shown:
            chosen = np.unique(np.linspace(0, len(self._cameras) - 1, MOST_FRUSTA).round().astype(int)).tolist()
            frusta = {index: self._add_frustum(index) for index in chosen}
            self.visitor.keep("frusta", *frusta.values())
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
                photo = photos.scaled(known[camera], width, height)
                found.append(to_uint8(over(photo, self.visitor.look().background)))
                yield
            else:
                wish = Wish(eye_of(camera), Look(background=self.visitor.look().background), width / height, height)
                yield from self.session.loop.painted(wish, width, height, found.append)
            with self.visitor.lock:  # they may be taken away meanwhile
                if self.visitor.is_gone or frustum not in self.visitor.nodes.get("frusta", ()):
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
        frustum.on_click(self.visitor.guarded(lambda _, index=index: self._go_to_photo(index)))
        return frustum


class PathTab(Panel):
    """A camera path: its keyframes, a preview, the file and the video."""

    def __init__(self, visitor: Host) -> None:
        super().__init__(visitor)
        self.path = PathEditor()
        self._film: Job | None = None
        self._preview: threading.Event | None = None
        gui = self.client.gui
        self.keyframe = gui.add_dropdown("Keyframe", cast(tuple[str, ...], ("none",)))
        self.visitor.on(self.keyframe, self._keyframe_chosen)
        self.visitor.button(
            "Add here", lambda: self._edit(lambda path, eye: path.add(eye)), "Behind the chosen keyframe."
        )
        self.visitor.button("Replace by here", lambda: self._edit(lambda path, eye: path.replace(eye)))
        self.visitor.button("Remove", lambda: self._edit(lambda path, eye: path.remove()))
        self.visitor.button("Earlier", lambda: self._edit(lambda path, eye: path.move(-1)))
        self.visitor.button("Later", lambda: self._edit(lambda path, eye: path.move(1)))
        self.visitor.button("Go to it", self._go_to_keyframe)
        self.path_seconds = self.visitor.on(
            gui.add_number("Seconds", 4.0, min=0.1, max=600.0, step=0.1), self._path_changed
        )
        self.path_fps = self.visitor.on(
            gui.add_number("Frames per second", 24.0, min=1.0, max=120.0), self._path_changed
        )
        self.path_closed = self.visitor.on(gui.add_checkbox("Return to the start", False), self._path_changed)
        self.path_width = gui.add_number("Width", 640, min=2, max=LARGEST_SIDE, step=2)
        self.path_height = gui.add_number("Height", 360, min=2, max=LARGEST_SIDE, step=2)
        self.visitor.button("Preview", self._start_preview)
        self.visitor.button("Save path", self._save_path, f"Into {self.session.renders}, for hashfield render.")
        self.visitor.button("Render video", self._start_film, f"Into {self.session.renders}, as it looks now.")
        self.film_progress = gui.add_progress_bar(0.0, visible=False)
        self.film_cancel = self.visitor.button("Cancel video", self._cancel_film)
        self.film_cancel.visible = False

    def end(self) -> None:
        """See `Panel`."""
        if self._film is not None:
            self.session.loop.cancel(self._film)
        if self._preview is not None:
            self._preview.set()

    def _edit(self, act: Callable[[PathEditor, Eye], None]) -> None:
        with self.visitor.lock:
            eye = self.visitor.view_now()  # not what is shown, which may lag behind
            if isinstance(eye, Eye):
                act(self.path, eye)
        self._path_changed()

    def _keyframe_chosen(self) -> None:
        with self.visitor.lock:
            if self.path.eyes and self.keyframe.value != "none":
                self.path.chosen = min(int(self.keyframe.value), len(self.path.eyes)) - 1

    def _path_changed(self) -> None:
        stage, path = self.session.stage, self.path
        assert isinstance(stage, Stage)
        with self.visitor.lock:
            self._read_times()
            names = tuple(str(k + 1) for k in range(len(path.eyes))) or ("none",)
            if tuple(self.keyframe.options) != names:
                self.keyframe.options = names
            chosen = names[max(path.chosen, 0)]
            if self.keyframe.value != chosen:
                self.keyframe.value = chosen
            self.visitor.clear("path")
            if len(path.eyes) > 1:
                places = torch.stack([c.position for c in path.cameras(64, 36, 20 * len(path.eyes))]).numpy()
                pairs = np.stack([places[:-1], places[1:]], 1)
                self.visitor.keep("path", self.client.scene.add_line_segments(
                    "/path/line", stage.to_page(pairs).astype(np.float32), (200, 40, 90), thickness=2.0,
                    thickness_units="screen"))  # fmt: skip
            for k, eye in enumerate(path.eyes):
                color = (200, 40, 90) if k == path.chosen else (120, 60, 80)
                self.visitor.keep("path", self.client.scene.add_camera_frustum(
                    f"/path/{k}", eye.fov_y, 16 / 9, scale=0.08, color=color,
                    thickness=1.5, thickness_units="screen", cast_shadow=False, receive_shadow=False,
                    wxyz=tf.SO3.from_matrix(eye.camera_to_world[:, :3].numpy()).wxyz,
                    position=stage.to_page(eye.camera_to_world[:, 3].numpy())))  # fmt: skip

    def _read_times(self) -> None:
        """Take over length and frames from the panel: a button may be quicker than the control before it."""
        self.path.seconds, self.path.fps = float(self.path_seconds.value), float(self.path_fps.value)
        self.path.is_closed = bool(self.path_closed.value)

    def _go_to_keyframe(self) -> None:
        with self.visitor.lock:
            eye = self.path.eyes[self.path.chosen] if self.path.eyes else None
        if eye is not None:
            self.visitor.go(eye)

    def _start_preview(self) -> None:
        with self.visitor.lock:
            self._read_times()
            cameras = self.path.cameras(64, 36)
            seconds = self.path.seconds
        if self._preview is not None:
            self._preview.set()
        self._preview = stop = threading.Event()
        threading.Thread(target=self.visitor.guarded(self._play), args=(cameras, seconds, stop), daemon=True).start()

    def _play(self, cameras: tuple[Camera, ...], seconds: float, stop: threading.Event) -> None:
        before, begun = self.visitor.seen, time.monotonic()
        while not stop.is_set() and not self.visitor.is_gone:
            share = (time.monotonic() - begun) / seconds
            if share >= 1:
                break
            self.visitor.go(eye_of(cameras[int(share * len(cameras))]))
            stop.wait(1 / 15)
        if isinstance(before, Eye) and not stop.is_set():
            self.visitor.go(before)

    def _save_path(self) -> None:
        width, height = size_of(self.path_width.value, self.path_height.value)
        with self.visitor.lock:
            self._read_times()
            self.path.cameras(width, height)  # what is wrong is said before there is a file
            file = self.session.new_file("path", ".json")
            self.path.write(file, width, height)
        self.visitor.done(file)

    def _start_film(self) -> None:
        if self._film is not None:
            raise ConfigError("a video is being rendered; cancel it first")
        width, height = size_of(self.path_width.value, self.path_height.value)
        look = self.visitor.look()
        if look.output in ("difference", "photo") and self.session.loop.reference is None:
            raise ConfigError("the photos are not read yet")
        with self.visitor.lock:
            self._read_times()
            self._film = self.session.video(
                self.path, look, width, height, self._film_at, self._film_done, self._film_failed
            )
        self.film_progress.value, self.film_progress.visible, self.film_cancel.visible = 0.0, True, True
        self.session.loop.start(self._film)

    def _film_at(self, share: float) -> None:
        if not self.visitor.is_gone:
            self.film_progress.value = 100 * share

    def _film_ends(self) -> None:
        self._film = None
        if not self.visitor.is_gone:
            self.film_progress.visible = self.film_cancel.visible = False

    def _film_done(self, file: Path) -> None:
        self._film_ends()
        self.visitor.done(file)

    def _film_failed(self, text: str) -> None:
        self._film_ends()
        self.visitor.tell(text)

    def _cancel_film(self) -> None:
        if self._film is not None:
            self.session.loop.cancel(self._film)
            self._film_ends()
            self.visitor.tell("the video is cancelled")


class TrainingFolder(Panel):
    """How a training goes, and what may be done with it."""

    def __init__(self, visitor: Host, training: Training) -> None:
        super().__init__(visitor)
        self.training = training
        gui = self.client.gui
        self._folder = gui.add_folder("Training", order=LAST)
        with self._folder:
            self.status = gui.add_html(line(training.status()))
            pause = gui.add_checkbox("Pause", training.share.is_paused)
            self.visitor.on(pause, lambda: training.pause(pause.value))
            self._pause = pause
            self.visitor.button("Save checkpoint", training.save, "After the step at hand.")
            self._plots: list[Any] | None = None

    def show(self) -> None:
        """Show how it goes now."""
        training = self.training
        text = line(training.status())
        if self.status.content != text:
            self.status.content = text
        if self._pause.value != training.share.is_paused and not training.is_over:
            self._pause.value = training.share.is_paused  # someone else has pressed it
        seconds, loss, psnr = training.curves.arrays()
        if len(seconds) < 2:
            return
        figures = [(psnr, "batch PSNR, dB")] if np.isfinite(psnr).any() else []
        figures.append((loss, "loss, log10"))
        if self._plots is None:
            with self._folder:
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


def size_of(width: float, height: float) -> tuple[int, int]:
    """Width and height as a browser gives them.

    Raises:
        ConfigError: they are no size of a picture.
    """
    for name, value in (("width", width), ("height", height)):
        if not (math.isfinite(value) and 1 <= value <= LARGEST_SIDE):
            raise ConfigError(f"{name}: expected 1 to {LARGEST_SIDE} pixels, got {value:g}")
    return round(width), round(height)


def line(text: str) -> str:
    """Text as HTML, whatever it holds."""
    return f"<div style='padding:0.2em 1em;font-size:0.85em;overflow-wrap:anywhere'>{html.escape(text)}</div>"

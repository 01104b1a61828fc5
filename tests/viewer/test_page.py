"""The page: what visitors get and may do, over viser's protocol, and once in a real browser."""

import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from hashfield.errors import ConfigError, DataError
from hashfield.geometry.camera_path import read_camera_path
from hashfield.train.loop import Progress
from hashfield.viewer.loop import FixedSource, TimeShare
from hashfield.viewer.pictures import SURROUND, Photos, fitted
from hashfield.viewer.session import Session, TaskSource, Training
from tests.viewer.fakes import Gradient, SlowScene

pytest.importorskip("viser", reason="viser is not installed (pip install 'hashfield[view]')")
from websockets.exceptions import InvalidStatus

from hashfield.viewer.page import Page, refusal
from hashfield.viewer.visitor import box_edges
from tests.viewer.tab import Tab

PORT = 18200
HERE = (0.0, -3.0, 1.0)


def photos_of(scene: SlowScene, name: str = "photo") -> Photos:
    """Photos of the ball, all blue."""
    cameras = scene.cameras["train"]
    images = [np.full((camera.height, camera.width, 4), (0, 0, 255, 255), np.uint8) for camera in cameras]
    return Photos(cameras, [f"{name} {k}" for k in range(len(cameras))], images)


@contextlib.contextmanager
def page_of(model, folder: Path, **options) -> Iterator[Page]:
    """A page that is drawn by a thread."""
    session = Session(FixedSource(model), folder / "renders", title=options.pop("title", "ball"), **options)
    page = Page(session, port=PORT)
    thread = threading.Thread(target=session.loop.run)
    thread.start()
    try:
        yield page
    finally:
        session.loop.stop()
        thread.join(10)
        page.stop()


def final_shown(tab: Tab) -> np.ndarray:
    """The finished picture."""
    tab.wait(lambda: "drawn in" in "".join(str(c.get("content")) for c in tab.controls.values()))
    return tab.shown()


def test_a_visitor_sees_moves_and_leaves(tmp_path: Path) -> None:
    scene = SlowScene()
    with page_of(scene, tmp_path) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        picture = final_shown(tab)
        assert picture.shape == (540, 810, 3)
        assert picture[0, 0].min() > 240 and picture[270, 405].min() < 200  # white, and the ball in the middle
        tab.set("Rows at rest", 200)
        tab.wait(lambda: tab.shown().shape[0] == 200)
        before = tab.n_pictures
        tab.move((3.0, 0.0, 1.0))
        tab.wait(lambda: tab.n_pictures > before)
        for output in ("depth", "normals", "opacity"):
            before = tab.n_pictures
            tab.set("Show", output)
            tab.wait(lambda before=before: tab.n_pictures > before)
        tab.close()
        end = time.monotonic() + 5
        while page.visitors and time.monotonic() < end:
            time.sleep(0.01)
        assert not page.visitors and not page.session.loop.n_watchers


def test_ten_visitors_each_see_their_own(tmp_path: Path) -> None:
    with page_of(SlowScene(), tmp_path) as page:
        tabs = [Tab(page.port) for _ in range(10)]
        for k, tab in enumerate(tabs):
            tab.move((3 * np.cos(k), 3 * np.sin(k), 0.2 * k))
        for tab in tabs:
            final_shown(tab)
        assert page.session.loop.n_watchers == 10
        heights = [tab.shown()[:, :, 0].mean() for tab in tabs]
        assert len({round(float(h), 1) for h in heights}) > 5
        for tab in tabs:
            tab.close()


def test_one_who_never_reads_keeps_nobody_waiting(tmp_path: Path) -> None:
    with page_of(SlowScene(), tmp_path) as page:
        hanging = Tab(page.port, reads=False)
        for k in range(60):
            hanging.move((3.0, 0.01 * k, 1.0))
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        buffer = next(iter(page.visitors.values())).client._websock_connection._state.message_buffer
        pictures = [m for m in buffer.message_from_id.values() if type(m).__name__ == "BackgroundImageMessage"]
        assert len(pictures) <= 1  # the newest only
        hanging.socket.socket.close()
        tab.close()


def test_what_a_browser_sends_that_makes_no_sense_ends_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with page_of(SlowScene(), tmp_path) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        tab.set("Show", "../../etc/passwd")
        tab.wait(lambda: "cannot be shown as" in "".join(str(c.get("content")) for c in tab.controls.values()))
        tab.set("Show", "color")
        tab.set("Rows at rest", 10**9)
        tab.set("Width", 0)
        tab.press("Save picture")
        tab.wait(lambda: any("width: expected" in notice for notice in tab.notices))
        tab.send(
            type="ViewerCameraMessage", wxyz=[1.0, 0, 0, 0], position=[float("nan")] * 3, fov=-1.0, near=0.01,
            far=10.0, image_height=0, image_width=0, look_at=[0.0, 0, 0], up_direction=[0.0, 0, 1.0],
        )  # fmt: skip
        tab.press("Render video")
        tab.wait(lambda: any("no keyframes" in notice for notice in tab.notices))
        tab.send(type="ShareUrlRequest")
        tab.set("Rows at rest", 200)
        tab.move((3.0, 0.0, 0.0))
        tab.wait(lambda: tab.shown().shape[0] == 200)
        assert page.server._share_tunnel is None
        assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "renders").exists()
        tab.close()


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    scene, name = SlowScene(), "<img src=x onerror=alert(1)>{1+1}"
    with page_of(scene, tmp_path, title=name, read_reference=lambda: photos_of(scene, name)) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        tab.set("Show", "photo")
        tab.wait(lambda: "&lt;img src=x onerror=alert(1)&gt;{1+1} " in "".join(
            str(c.get("content")) for c in tab.controls.values()))  # fmt: skip
        tab.set("Camera", 2)
        tab.wait(lambda: "camera 2" in "".join(str(c.get("content")) for c in tab.controls.values()))
        assert "<img" not in tab.text()
        assert not any(c["kind"] == "GuiMarkdownMessage" for c in tab.controls.values())
        tab.close()


def test_photos_cameras_and_differences(tmp_path: Path) -> None:
    scene = SlowScene()
    with page_of(scene, tmp_path, read_reference=lambda: photos_of(scene)) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        tab.set("Show", "photo")
        tab.wait(lambda: "photo " in str(tab.controls) and tab.shown()[tab.shown().shape[0] // 2, -9:, 0].max() < 60)
        picture = tab.shown()
        middle = picture[picture.shape[0] // 2]
        assert middle[len(middle) // 2].tolist() == pytest.approx([0, 0, 255], abs=6)
        assert middle[0].tolist() == pytest.approx([SURROUND] * 3, abs=9)  # the photo is narrower than the window
        tab.set("Show cameras", True)
        tab.wait(lambda: {f"/cameras/{k}" for k in range(6)} <= tab.nodes)
        tab.press("Next")
        place = tab.wait(lambda: tab.camera.get("SetCameraPositionMessage"))["position"]
        assert np.allclose(place, page.session.stage.to_page(scene.cameras["train"][1].position.numpy()))
        tab.set("Show cameras", False)
        tab.wait(lambda: not tab.nodes & {f"/cameras/{k}" for k in range(6)})
        tab.close()


def test_thumbnails_show_clear_photos_before_the_background(tmp_path: Path) -> None:
    scene = SlowScene()
    photos = photos_of(scene)
    for image in photos.images:
        image[: len(image) // 2] = (255, 0, 0, 0)  # the upper half is clear; its red must not be seen
    with page_of(scene, tmp_path, read_reference=lambda: photos) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        tab.set("Background", [0, 255, 0])
        tab.set("Show", "photo")
        tab.wait(lambda: "photo " in str(tab.controls))  # photos are read
        tab.set("Show cameras", True)
        (visitor,) = page.visitors.values()
        frusta = tab.wait(lambda: [f for f in visitor.nodes.get("frusta", ()) if f.image is not None])
        height, width, _ = frusta[0].image.shape
        assert (width, height) == (64, 48)
        assert frusta[0].image[height // 4, width // 2].tolist() == [0, 255, 0]
        assert frusta[0].image[3 * height // 4, width // 2].tolist() == [0, 0, 255]
        tab.close()


def test_photos_that_are_gone_are_said(tmp_path: Path) -> None:
    def read() -> Photos:
        raise DataError("photos/: not there any more")

    with page_of(SlowScene(), tmp_path, read_reference=read) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        tab.set("Show", "difference")
        tab.wait(lambda: "photos/: not there any more" in tab.notices)
        tab.close()


def test_a_still_a_path_and_a_video_are_saved(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with page_of(SlowScene(), tmp_path) as page:
        tab = Tab(page.port)
        tab.move(HERE)
        final_shown(tab)
        tab.press("Save picture")
        tab.wait(lambda: "view_001.png" in tab.downloads)
        tab.press("Add here")
        tab.wait(lambda: "/path/0" in tab.nodes)
        tab.move((3.0, 0.0, 1.0))
        time.sleep(0.1)
        tab.press("Add here")
        tab.wait(lambda: {"/path/1", "/path/line"} <= tab.nodes)
        tab.set("Seconds", 0.5)
        tab.set("Frames per second", 8.0)
        tab.press("Save path")
        tab.wait(lambda: "path_001.json" in tab.downloads)
        assert len(read_camera_path(tmp_path / "renders" / "path_001.json").cameras) == 4
        tab.press("Render video")
        tab.wait(lambda: "video_001.mp4" in tab.downloads)
        tab.press("Earlier")
        tab.press("Remove")
        tab.wait(lambda: "/path/1" not in tab.nodes)
        tab.press("Preview")
        tab.close()


def test_a_picture_is_panned_and_zoomed(tmp_path: Path) -> None:
    with page_of(Gradient(), tmp_path) as page:
        stage = page.session.stage
        tab = Tab(page.port)
        position, target = stage.place(stage.whole)
        tab.move(position, target, fov=stage.fov_y)
        picture = final_shown(tab)
        assert picture[270, 5].tolist() == pytest.approx([30, 19, 0], abs=30) and picture[2, 2].max() < 100
        before = tab.n_pictures
        position = [20.0 / 10 - 2, -0.05, 0.0]
        tab.move(position, [position[0], 0.0, 0.0], fov=stage.fov_y)
        tab.wait(lambda: tab.n_pictures > before + 1)
        # A drag by the left button turns the page's camera; at rest it is put straight again.
        tab.move((0.3, -1.0, 0.0), (0.0, 0.0, 0.0), fov=stage.fov_y)
        place = tab.wait(lambda: tab.camera.get("SetCameraPositionMessage"))["position"]
        look = tab.wait(lambda: tab.camera.get("SetCameraLookAtMessage"))["look_at"]
        assert place[0] == pytest.approx(look[0]) and place[1] < 0 and look[1] == 0
        tab.close()


def test_a_picture_is_whole_at_first_wherever_the_browsers_camera_stood(tmp_path: Path) -> None:
    with page_of(Gradient(), tmp_path) as page:
        stage = page.session.stage
        tab = Tab(page.port)
        tab.move((3.0, 3.0, 3.0))  # before a browser has read where it is to stand
        final_shown(tab)
        time.sleep(0.8)
        assert "SetCameraPositionMessage" not in tab.camera  # it is left alone until it has got there
        tab.move(*stage.place(stage.whole), fov=stage.fov_y)
        (visitor,) = page.visitors.values()
        tab.wait(lambda: visitor.seen == stage.whole)
        tab.close()


def test_other_pages_may_not_connect(tmp_path: Path) -> None:
    with page_of(SlowScene(), tmp_path) as page:
        with pytest.raises(InvalidStatus):
            Tab(page.port, origin="https://elsewhere.org")
        Tab(page.port, origin=f"http://127.0.0.1:{page.port}").close()
        for host, status in ((f"127.0.0.1:{page.port}", 200), (f"elsewhere.org:{page.port}", 403)):
            asked = HTTPConnection("127.0.0.1", page.port)
            asked.request("GET", "/", headers={"Host": host})
            assert asked.getresponse().status == status
            asked.close()
        for path in ("/../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/renders/view_001.png"):
            asked = HTTPConnection("127.0.0.1", page.port)
            asked.request("GET", path)
            assert asked.getresponse().status == 404
            asked.close()
    assert refusal("[::1]:80", None, is_local=True) is None
    assert refusal("example.org", "http://example.org", is_local=False) is None
    assert refusal("example.org", "http://example.org", is_local=True)
    assert refusal(None, None, is_local=True)


def test_a_port_in_use_and_a_wrong_address(tmp_path: Path) -> None:
    with page_of(SlowScene(), tmp_path) as first, page_of(SlowScene(), tmp_path) as second:
        assert first.port == PORT and second.port != PORT
        tab = Tab(second.port)
        tab.move(HERE)
        final_shown(tab)
        tab.close()
    session = Session(FixedSource(SlowScene()), tmp_path, title="x")
    with pytest.raises(ConfigError, match=r"--host 203\.0\.113\.9"):
        Page(session, host="203.0.113.9")
    with pytest.raises(ConfigError, match="--port"):
        Page(session, port=70000)


def test_a_page_that_comes_back_serves_the_tab_again(tmp_path: Path) -> None:
    for _ in range(2):  # the second one is the viewer started again
        with page_of(SlowScene(), tmp_path) as page:
            assert page.port == PORT
            tab = Tab(page.port)
            tab.move(HERE)
            final_shown(tab)


def test_a_training_is_watched_paused_and_saved(tmp_path: Path) -> None:
    class Task:
        scene = SlowScene()

        def model(self):
            return self.scene

    source = TaskSource(Task())  # type: ignore[arg-type]
    session = Session(source, tmp_path / "renders", title="ball")
    share = TimeShare(session.loop)
    share.on_step = source.stepped
    training = Training(share, session.loop)
    session.watch_training(training)
    page = Page(session, port=PORT)
    saved, steps, is_over = [], [0], threading.Event()

    def train() -> None:
        while not is_over.is_set():
            time.sleep(0.005)
            steps[0] += 1
            training.report(Progress("training", steps[0], None, 0.01 * steps[0], 0.1, 0.1, 20.0, 1.0, 1.0, 5.0))
            while (asked := share.between_steps()) != "go" and not is_over.is_set():
                if asked == "save":
                    saved.append(steps[0])

    try:
        tab = Tab(page.port)
        tab.move(HERE)
        tab.wait(lambda: "making kernels ready" in "".join(str(c.get("content")) for c in tab.controls.values()))
        thread = threading.Thread(target=train)
        thread.start()
        tab.wait(lambda: tab.n_pictures > 2)
        tab.wait(lambda: sum(c["kind"] == "GuiUplotMessage" for c in tab.controls.values()) == 2)
        tab.press("Save checkpoint")
        tab.wait(lambda: saved)
        tab.set("Pause", True)
        tab.wait(lambda: "paused" in "".join(str(c.get("content")) for c in tab.controls.values()))
        there = steps[0]
        time.sleep(0.1)
        assert steps[0] == there
        tab.set("Pause", False)
        tab.wait(lambda: steps[0] > there)
        tab.close()
    finally:
        is_over.set()
        thread.join(5)
        page.stop()


def test_tabs_that_close_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    with page_of(SlowScene(), tmp_path) as page:
        for k in range(20):
            tab = Tab(page.port)
            tab.move((3.0, 0.1 * k, 1.0))
            tab.close()
        end = time.monotonic() + 10
        quiet = 0
        while quiet < 20 and time.monotonic() < end:
            time.sleep(0.02)
            quiet = 0 if page.visitors or page.server.get_clients() or page.session.loop.is_needed else quiet + 1
        assert quiet == 20


def test_those_who_have_left_are_let_go_of(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()  # what is let go of, the page has let go of
    try:
        with page_of(SlowScene(), tmp_path) as page:
            known = []
            for _ in range(3):
                tab = Tab(page.port)
                tab.move(HERE)
                final_shown(tab)
                known += [weakref.ref(visitor) for visitor in page.visitors.values()]
                tab.close()
            tab.wait(lambda: all(visitor() is None for visitor in known), 10.0)
            assert len(known) >= 3
    finally:
        gc.enable()


def test_edges_of_a_box() -> None:
    edges = box_edges(((0.0, 0.0, 0.0), (1.0, 2.0, 3.0)))
    assert edges.shape == (12, 2, 3)
    assert sorted(np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1)) == [1] * 4 + [2] * 4 + [3] * 4


def test_in_a_real_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    with page_of(SlowScene(), tmp_path) as page, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless=new", "--no-sandbox"])
        errors: list[str] = []
        window = browser.new_page(viewport={"width": 500, "height": 320})
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.goto(f"http://127.0.0.1:{page.port}")
        end = time.monotonic() + 60
        while not page.visitors and time.monotonic() < end:
            window.wait_for_timeout(50)
        (visitor,) = page.visitors.values()
        while not visitor.watcher.is_finished and time.monotonic() < end:
            window.wait_for_timeout(50)
        found, wanted = np.zeros(3), np.ones(3) * 255
        while np.abs(found - wanted).max() > 8 and time.monotonic() < end:
            window.wait_for_timeout(100)
            rendered: list[np.ndarray] = []
            asking = threading.Thread(
                target=lambda into=rendered: into.append(visitor.client.get_render(60, 90, timeout=20))
            )
            asking.start()
            while asking.is_alive():
                window.wait_for_timeout(50)
            found = rendered[0][..., :3].mean((0, 1)) if rendered else found
            # The one that is there now: when the browser says its size late, another follows the first.
            assert visitor.watcher.picture is not None
            picture = fitted(visitor.watcher.picture, visitor.aspect)
            wanted = picture[:: picture.shape[0] // 60, :: picture.shape[1] // 90].mean((0, 1))
        assert np.abs(found - wanted).max() <= 8
        before = visitor.seen
        window.mouse.move(150, 160)
        window.mouse.down()
        window.mouse.move(220, 170, steps=4)
        window.mouse.up()
        while visitor.seen is before and time.monotonic() < end:
            window.wait_for_timeout(50)
        assert visitor.seen is not before and not errors
        window.reload()
        while visitor in page.visitors.values() and time.monotonic() < end:
            window.wait_for_timeout(50)
        browser.close()

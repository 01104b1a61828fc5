"""The live viewer on this machine: pictures a second while someone moves, time to a finished picture, training with
nobody, someone who looks and someone who moves, many browsers, and what tabs that come and go leave behind.

python benchmarks/view.py RUN [RUN ...]                      pictures of these runs
python benchmarks/view.py --train PATH                       a training on these photos
python benchmarks/view.py RUN --browsers 10 --seconds 60     open pages, which move all the time
python benchmarks/view.py RUN --cycles 100                   pages that are opened and closed
python benchmarks/view.py RUN --pictures DIR                 screenshots of every mode and tab, in Chromium

Browsers are stood in for by what a page is sent: encoded pictures over a socket, without drawing them on a screen.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import math
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from common import append
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hashfield.api import load
from hashfield.geometry.paths import orbit_path
from hashfield.train.run_folder import RunFolder
from hashfield.viewer.loop import FixedSource, RenderLoop, Shown, TimeShare, Watcher
from hashfield.viewer.pictures import Look, Pan, PictureStage, View, Wish, cameras_of, eye_of, is_picture
from hashfield.viewer.session import Session, TaskSource

WIDTH, HEIGHT = 800, 800


class Looker:
    """Takes pictures as a page does, encoded, and keeps when they came."""

    def __init__(self, loop: RenderLoop, outputs: str = "color") -> None:
        self.loop, self.output = loop, outputs
        self.came: list[tuple[float, Shown]] = []
        self.watcher = Watcher(self._show, lambda text: sys.exit(text))
        loop.add(self.watcher)

    def _show(self, picture: np.ndarray, shown: Shown) -> None:
        Image.fromarray(picture).save(io.BytesIO(), "JPEG", quality=93 if shown.is_final else 70)
        self.came.append((time.perf_counter(), shown))

    def ask(self, view: View) -> None:
        """Want to see something."""
        self.asked = time.perf_counter()
        self.loop.ask(self.watcher, Wish(view, Look(self.output), WIDTH / HEIGHT, HEIGHT))

    def finish(self, at_most: float = 300.0) -> float:
        """Wait for the picture of the last wish in full; the time at which it came."""
        while time.perf_counter() < self.asked + at_most:
            for when, shown in reversed(self.came):
                if when < self.asked:
                    break
                if shown.is_final and not self.watcher.is_waiting:
                    return when
            time.sleep(0.005)
        sys.exit(f"no finished picture in {at_most:g} s")


def tour(model, n: int) -> list[View]:
    """Views all around a model, or all over a picture."""
    if is_picture(model):
        whole = model.views["whole"][0]
        stage = PictureStage(whole.crop[2], whole.crop[3])
        return [
            Pan((stage.width * (0.5 + 0.4 * math.cos(a)), stage.height * (0.5 + 0.4 * math.sin(a))),
                stage.height * (0.1 + 0.4 * (1 + math.cos(3 * a))))
            for a in np.linspace(0, 2 * math.pi, n)
        ]  # fmt: skip
    return [eye_of(camera) for camera in orbit_path(cameras_of(model), n, width=WIDTH, height=HEIGHT)]


def pictures(run: Path, seconds: float = 8.0, rate: float = 30.0) -> dict:
    """How a run is shown to one who moves all the time, and then rests."""
    model = load(run)
    loop = RenderLoop(FixedSource(model))
    looker = Looker(loop)
    drawing = threading.Thread(target=loop.run)
    drawing.start()
    views = tour(model, 240)
    looker.ask(views[0])
    looker.finish()  # kernels are loaded, or made
    for k in range(60):  # and it is known how large a quick picture may be
        looker.ask(views[k % len(views)])
        time.sleep(1 / rate)
    looker.came.clear()
    begun = time.perf_counter()
    for k in range(round(seconds * rate)):
        looker.ask(views[k % len(views)])
        time.sleep(max(0.0, begun + (k + 1) / rate - time.perf_counter()))
    moving = [(when, shown) for when, shown in looker.came if when <= begun + seconds]
    # Seconds from the last move to the whole picture in full, at a few places of the tour.
    finished = [looker.finish() - looker.asked]
    for k in range(1, 4):
        looker.ask(views[60 * k])
        finished.append(looker.finish() - looker.asked)
    loop.stop()
    drawing.join()
    times = [begun, *(when for when, _ in moving)]
    return {
        "what": "moving", "run": run.name, "pictures_per_s": round(len(moving) / seconds, 2),
        "longest_gap_s": round(float(np.diff([*times, begun + seconds]).max()), 3),
        "rows_median": int(np.median([shown.height for _, shown in moving])) if moving else 0,
        "finished_rows": HEIGHT, "finished_s": round(float(np.median(finished)), 2),
        "finished_worst_s": round(max(finished), 2),
    }  # fmt: skip


def training(path: Path, seconds: float = 12.0, downscale: int = 1) -> list[dict]:
    """Steps a second of a training that nobody sees, one sees, and one moves through."""
    from hashfield.data import ReadOptions, load_scene
    from hashfield.tasks.nerf import NerfTask
    from hashfield.tasks.nerf_config import PRESETS
    from hashfield.train.loop import TrainOptions, train

    scene = load_scene(path, ReadOptions(downscale=downscale))
    task = NerfTask(PRESETS["fast"], scene, seed=0)
    source = TaskSource(task)
    loop = RenderLoop(source)
    loop.has_resting_limit = True
    share = TimeShare(loop)
    steps = [0]

    def on_step() -> None:
        source.stepped()
        steps[0] += 1

    share.on_step = on_step
    rows: list[dict] = []
    is_over = threading.Event()

    def watch() -> None:
        while steps[0] < 60 and not is_over.is_set():  # the first steps are not like the others
            time.sleep(0.05)
        views = [
            eye_of(camera) for camera in orbit_path(scene.splits["train"].cameras, 240, width=WIDTH, height=HEIGHT)
        ]
        looker: Looker | None = None
        for who in ("nobody", "still", "moving", "nobody", "still", "moving"):
            if who == "nobody":
                if looker is not None:
                    loop.remove(looker.watcher)
                looker = None
            elif looker is None:
                looker = Looker(loop)
                looker.ask(views[0])
                while not looker.came and not is_over.is_set():  # until kernels are loaded, or made
                    time.sleep(0.05)
                time.sleep(2.0)
            before, drawn, begun = steps[0], share.drawn, time.perf_counter()
            if looker is not None:
                looker.came.clear()
            k = 0
            while time.perf_counter() < begun + seconds and not is_over.is_set():
                if who == "moving" and looker is not None:
                    looker.ask(views[k % len(views)])
                    k += 1
                time.sleep(1 / 30)
            spent = time.perf_counter() - begun
            came = [] if looker is None else [shown for when, shown in looker.came]
            rows.append({
                "what": f"training, {who}", "run": path.name, "steps_per_s": round((steps[0] - before) / spent, 2),
                "share_drawn": round((share.drawn - drawn) / spent, 3),
                "pictures_per_s": round(len(came) / spent, 2),
                "rows_median": int(np.median([shown.height for shown in came])) if came else 0,
            })  # fmt: skip
        is_over.set()

    watching = threading.Thread(target=watch)
    watching.start()
    with tempfile.TemporaryDirectory() as folder:

        def between():
            if is_over.is_set():
                raise KeyboardInterrupt
            return share.between_steps()

        with contextlib.suppress(KeyboardInterrupt):
            train(
                task,
                RunFolder.create(Path(folder) / "run", "run"),
                TrainOptions(max_seconds=3600),
                None,
                False,
                between,
            )
    watching.join()
    return rows


def resident() -> float:
    """MiB that this process has in memory now."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def browsers(run: Path, n: int, seconds: float) -> dict:
    """Many pages at once, each moving all the time."""
    from tests.viewer.tab import Tab

    from hashfield.viewer.page import Page

    session = Session(FixedSource(load(run)), Path(tempfile.mkdtemp()), title=str(run))
    page = Page(session, port=18500)
    threading.Thread(target=session.loop.run, daemon=True).start()
    tabs = [Tab(page.port) for _ in range(n)]
    for tab in tabs:
        tab.move((3.0, 0.0, 1.0))
    for tab in tabs:
        tab.wait(lambda tab=tab: "drawn in" in str(tab.controls), 300.0)
    n_before = [tab.n_pictures for tab in tabs]
    before, begun, k = resident(), time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        for j, tab in enumerate(tabs):
            angle = 0.02 * k + j
            tab.move((3 * math.cos(angle), 3 * math.sin(angle), 1.0))
        k += 1
        time.sleep(1 / 15)
    spent = time.perf_counter() - begun
    rates = [(tab.n_pictures - n) / spent for tab, n in zip(tabs, n_before, strict=True)]
    after = resident()
    for tab in tabs:
        tab.close()
    page.stop()
    session.loop.stop()
    return {
        "what": f"{n} browsers for {seconds:g} s", "run": run.name, "pictures_per_s": round(min(rates), 2),
        "most_pictures_per_s": round(max(rates), 2), "MiB_before": round(before), "MiB_after": round(after),
    }  # fmt: skip


def left_behind() -> dict[str, int]:
    """How many visitors, and pictures of theirs in memory, there still are: those who look, and those who have left."""
    from hashfield.viewer.visitor import Visitor

    visitors = [thing for thing in gc.get_objects() if type(thing) is Visitor]
    return {"visitors": len(visitors), "pictures": sum(v.watcher.picture is not None for v in visitors)}


def cycles(run: Path, n: int) -> dict:
    """Pages that are opened, look at a finished picture and close, one after another."""
    from tests.viewer.tab import Tab

    from hashfield.viewer.page import Page

    session = Session(FixedSource(load(run)), Path(tempfile.mkdtemp()), title=str(run))
    page = Page(session, port=18500)
    threading.Thread(target=session.loop.run, daemon=True).start()

    def cycle(k: int) -> None:
        tab = Tab(page.port)
        tab.move((3 * math.cos(k), 3 * math.sin(k), 1.0))
        tab.wait(lambda: "drawn in" in str(tab.controls), 60.0)
        tab.close()
        while page.visitors:
            time.sleep(0.01)

    for k in range(10):
        cycle(k)
    gc.collect()
    before, threads = resident(), threading.active_count()
    sizes = [before]
    for k in range(n):
        cycle(k)
        if (k + 1) % 20 == 0:
            sizes.append(resident())
            print(
                f"{k + 1} cycles: {sizes[-1]:.1f} MiB, threads {threading.active_count()}, kept {left_behind()}",
                flush=True,
            )
    kept = left_behind()
    gc.collect()
    after = resident()
    left = threading.active_count() - threads
    given_back = "unknown"
    with contextlib.suppress(OSError, AttributeError):  # what the allocator holds, though nobody needs it; glibc only
        ctypes.CDLL(None).malloc_trim(0)
        given_back = f"{after - resident():.1f} MiB"
    print(f"collected: {after:.1f} MiB, kept {left_behind()}; free in the allocator: {given_back}")
    page.stop()
    session.loop.stop()
    return {
        "what": f"{n} open-close cycles", "run": run.name, "MiB_before": round(before, 1), "MiB_after": round(after, 1),
        "MiB_half_way": round(sizes[len(sizes) // 2], 1), "threads_left": left, "visitors_kept": kept["visitors"],
        "pictures_kept": kept["pictures"],
    }  # fmt: skip


def screenshots(run: Path, folder: Path, rows: int = 360) -> None:
    """Every mode of a run's page and its tabs, in Chromium.

    Args:
        run: The run's folder; its photos are read from where they lay.
        folder: Gets the pictures.
        rows: Of a finished picture.
    """
    import shutil

    from playwright.sync_api import sync_playwright

    from hashfield.cli.evaluate import Evaluate, views_of
    from hashfield.cli.nerf import photos_of
    from hashfield.tasks.nerf_model import NerfModel
    from hashfield.viewer.page import Page

    folder.mkdir(parents=True, exist_ok=True)
    model = load(run)
    read = None
    if isinstance(model, NerfModel):
        read = lambda: photos_of([views_of(model, Evaluate(run, None, split)) for split in ("train", "test")])  # noqa: E731
    session = Session(FixedSource(model), Path(tempfile.mkdtemp()), title=run.name, read_reference=read)
    page = Page(session, port=18500)
    threading.Thread(target=session.loop.run, daemon=True).start()
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=["--headless=new", "--no-sandbox"])
        window = browser.new_page(viewport={"width": 1000, "height": 600})
        said: list[str] = []
        window.on("pageerror", lambda error: said.append(str(error)))
        window.goto(f"http://127.0.0.1:{page.port}")
        while not page.visitors:
            window.wait_for_timeout(50)
        (visitor,) = page.visitors.values()

        def shot(name: str) -> None:
            window.wait_for_timeout(600)
            begun = time.perf_counter()
            while not visitor.watcher.is_finished or visitor.watcher.is_waiting or session._is_reading:
                window.wait_for_timeout(100)
            window.wait_for_timeout(700)  # it is sent, and the browser shows it
            window.screenshot(path=folder / f"{run.name}_{name}.png")
            print(f"{run.name}: {name} after {time.perf_counter() - begun:.1f} s", flush=True)

        def put(label: str, value: object) -> None:
            handles = visitor.client.gui._gui_input_handle_from_uuid.values()
            next(h for h in handles if getattr(h, "label", None) == label).value = value

        while not visitor._is_built:
            window.wait_for_timeout(50)
        put("Rows at rest", rows)
        for output in visitor.outputs:
            put("Show", output)
            shot(output)
        put("Show", visitor.outputs[0])
        if not is_picture(model):
            put("Only what lies in the box", True)
            visitor.crop_sliders[0].value = (20.0, 70.0)
            put("Occupied cells", True) if hasattr(model, "occupied_cells") else None
            shot("crop_and_cells")
            put("Only what lies in the box", False)
            put("Occupied cells", False) if hasattr(model, "occupied_cells") else None
            window.get_by_role("tab", name="Path").click()
            for camera in cameras_of(model)[:: max(1, len(cameras_of(model)) // 3)][:3]:
                visitor.go(eye_of(camera))
                window.wait_for_timeout(600)
                window.get_by_role("button", name="Add here").click()
            position, target = visitor.client.camera.position, visitor.client.camera.look_at
            visitor._place(target + 2.2 * (position - target), target)
            shot("path")
            window.get_by_role("tab", name="Cameras").click()
            put("Show cameras", True)
            window.wait_for_timeout(8000)  # for the thumbnails
            shot("cameras")
        print(f"{run.name}: {said or 'no errors in the page'}")
        browser.close()
    page.stop()
    session.loop.stop()


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--browsers", type=int)
    parser.add_argument("--cycles", type=int)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true", help="append to results/view.csv")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[dict] = []
    if options.train is not None:
        rows += training(options.train, options.seconds)
    for run in options.runs:
        if options.browsers:
            rows.append(browsers(run, options.browsers, options.seconds))
        elif options.cycles:
            rows.append(cycles(run, options.cycles))
        elif options.pictures:
            screenshots(run, options.pictures)
        else:
            rows.append(pictures(run, options.seconds))
    for row in rows:
        print(row)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if options.write:
        append("view", rows)


if __name__ == "__main__":
    main()

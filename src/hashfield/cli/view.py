"""`hashfield view RUN`, and the page of `hashfield train ... --view`."""

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from hashfield.api import load
from hashfield.cli.shared import DeviceName, kind_of_run, parse, run_command, say, set_up
from hashfield.train.loop import Progress
from hashfield.train.run_folder import RunFolder
from hashfield.train.task import Task
from hashfield.viewer.loop import SHARE_MOVING, SHARE_STILL, TimeShare
from hashfield.viewer.pictures import Reference
from hashfield.viewer.session import FileSource, Session, TaskSource, Training

PORT = 8080
LAST_LOOK_SECONDS = 10.0
"""A training that is done waits so long for a page that is being loaded again."""


@dataclass(frozen=True)
class View:
    """Look at a trained model in a browser: move through it, film it. Ends with Ctrl-C."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint file; if it is replaced meanwhile, it is read again."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own lets others see the model and write renders."""
    port: int = PORT
    """Port to listen on; the next free one is taken where it is in use."""
    data: Path | None = None
    """What the run was learned from, to compare with; default: where it lay during training."""
    threads: int | None = None
    """Threads of the kernels."""
    device: DeviceName = "auto"
    """Where to render; auto takes a supported GPU if there is one, else the CPU."""


def main(arguments: list[str]) -> int:
    """Run the verb for whatever kind of run is named."""
    return run_command(kind_of_run("view", arguments), "view", arguments)


def view_model(arguments: list[str]) -> int:
    """`view` of a model that is not compared with anything."""
    return view(parse(View, arguments, "view"), None)


def view(options: View, read_reference: Callable[[Any], Reference] | None) -> int:
    """Serve the page of a run until Ctrl-C.

    Args:
        options: What the user asked for.
        read_reference: Model -> what it was learned from.
    """
    importlib.import_module("viser")  # a missing extra is named before the model is read
    device = set_up(options.device, options.threads)
    run = RunFolder.open(options.run)
    source = FileSource(run.checkpoint, lambda path: load(path, device))
    read = None if read_reference is None else lambda: read_reference(source.known)
    session = Session(source, run.renders, title=str(options.run), read_reference=read)
    with page_of(session, options.host, options.port) as page:
        drawing = threading.Thread(target=session.loop.run, daemon=True, name="hashfield-viewer")
        drawing.start()
        try:
            while drawing.is_alive() and page is not None:
                drawing.join(1.0)
        except KeyboardInterrupt:
            say("ended")
    return 0


@contextmanager
def page_of(session: Session, host: str, port: int) -> Iterator[Any]:
    """The page of a session, for as long as the block lasts.

    Args:
        session: What is shown.
        host: Address to listen on.
        port: Port to listen on, or the next free one.
    """
    from hashfield.viewer.page import Page

    page = Page(session, host, port)
    try:
        taken = "" if page.port == port else f" (port {port} is in use)"
        shown = f"[{host}]" if ":" in host else host
        if host not in ("127.0.0.1", "localhost", "::1"):
            say(f"warning: whoever reaches {host} sees the model and can write into {session.renders}; no password")
        say(f"viewer: http://{shown}:{page.port}{taken}; Ctrl-C ends it")
        say(
            f"from another machine: ssh -L {page.port}:localhost:{page.port} USER@THIS_MACHINE, then open the same page"
        )
        yield page
    finally:
        session.loop.stop()
        page.stop()


class WatchedTraining:
    """A training with a page: what `train ... --view` adds to the loop."""

    def __init__(
        self, task: Task, run: RunFolder, title: str, device: torch.device, read_reference: Callable[[], Any] | None
    ) -> None:
        """Args:
        task: What is trained.
        run: Folder of the run.
        title: What is learned from, for people.
        device: Where the task trains.
        read_reference: Gives what is learned from, to compare with.
        """
        self.source = TaskSource(task)
        self.session = Session(self.source, run.renders, title=title, read_reference=read_reference)
        wait = torch.cuda.synchronize if device.type == "cuda" else None
        self.share = TimeShare(self.session.loop, wait)
        self.share.on_step = self.source.stepped
        self.training = Training(self.share, self.session.loop)
        self.session.watch_training(self.training)

    def report(self, progress: Progress) -> None:
        """Take note of how far the training is."""
        self.training.report(progress)

    def after(self, run: RunFolder) -> None:
        """The training is over: pictures are drawn by a thread of their own from now on."""
        self.training.is_over = True
        self.training.pause(False)
        threading.Thread(target=self.session.loop.run, daemon=True, name="hashfield-viewer").start()

    def wait(self) -> None:
        """Stay as long as someone looks, or until Ctrl-C."""
        if not self.session.loop.n_watchers:
            return
        say("the page stays until it is closed, or until Ctrl-C")
        last = time.monotonic()
        try:
            while time.monotonic() < last + LAST_LOOK_SECONDS:
                time.sleep(0.2)
                if self.session.loop.is_needed:
                    last = time.monotonic()
        except KeyboardInterrupt:
            say("ended")


def about_share() -> str:
    """What a page costs a training, in words."""
    moving, still = f"{SHARE_MOVING:.0%}", f"{SHARE_STILL:.0%}"
    return f"while someone looks, drawing takes at most {moving} of the time, {still} if they do not move"

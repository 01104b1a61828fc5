"""The page that browsers open: viser's server, and who may connect. What one visitor sees is in `visitor.py` and
`panels.py`; no other file knows viser.

What visitors do arrives on threads of viser's, many at once; it only changes the visitor's own state, under a lock, and
hands the newest wish to the loop that draws.
"""

import contextlib
import gc
import io
import itertools
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import viser
import websockets.asyncio.server as websocket_server

from hashfield.errors import ConfigError
from hashfield.log import logger
from hashfield.viewer.pictures import PictureStage
from hashfield.viewer.session import Session
from hashfield.viewer.visitor import Visitor, page_camera

TICK_SECONDS: Final = 0.25
MOST_GONE: Final = 10
"""So many who have left are kept in memory, at most, while others look."""
GONE_SECONDS: Final = 1.0
"""So long after the last one has left are all let go of; viser needs some of it."""


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
        self._n_gone, self._gone_at = 0, 0.0
        """Those who have left and are still in memory, and when the last of them left."""
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
            with self._lock:
                self._n_gone, self._gone_at = self._n_gone + 1, time.monotonic()

    def _tick(self) -> None:
        for count in itertools.count():
            if self._is_stopped.wait(TICK_SECONDS):
                return
            self._set_up()
            self._tick_visitors(is_second=count % 4 == 0)
            with self._lock:
                is_time = not self.visitors and time.monotonic() > self._gone_at + GONE_SECONDS
                forgets = self._n_gone >= MOST_GONE or (self._n_gone > 0 and is_time)
                if forgets:
                    self._n_gone = 0
            if forgets:
                # viser's handles refer to each other, and Python lets hundreds of them gather before it looks. That
                # takes it a tenth of a second: hence not for each who leaves while others look.
                gc.collect()

    def _tick_visitors(self, *, is_second: bool) -> None:
        for visitor in list(self.visitors.values()):
            visitor.tick(is_second=is_second)

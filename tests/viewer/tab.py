"""A browser's end of the page, without a browser: it speaks viser's protocol, so that what a visitor gets and may do is
tested in milliseconds."""

import io
import threading
import time
from typing import Any

import msgspec.msgpack
import numpy as np
import viser
import viser.transforms as tf
import zstandard
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


class Tab:
    """One open page."""

    def __init__(self, port: int, *, reads: bool = True, host: str = "127.0.0.1", **options: Any) -> None:
        """Args:
        port: Of the page.
        reads: Whether it takes what it is sent; one that does not is a browser that hangs.
        host: Address of the page.
        options: Of the connection, such as `origin`.
        """
        protocol: Any = f"viser-v{viser.__version__}"
        self.socket = connect(f"ws://{host}:{port}", subprotocols=[protocol], max_size=None, **options)
        self.controls: dict[str, dict[str, Any]] = {}
        """Controls of the panel, by their ids."""
        self.nodes: set[str] = set()
        self.notices: list[str] = []
        self.picture: bytes | None = None
        self.n_pictures = 0
        self.downloads: list[str] = []
        self.camera: dict[str, Any] = {}
        self._lock = threading.Lock()
        if reads:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for message in self.socket:
                assert isinstance(message, bytes)
                size = int.from_bytes(message[8:16], "little")
                body = zstandard.decompress(message[16 : 16 + size])
                found = msgspec.msgpack.decode(body)
                start = (16 + size + 7) // 8 * 8
                buffers = []
                for length in found["binaryBufferLengths"]:
                    buffers.append(message[start : start + length])
                    start += (length + 7) // 8 * 8
                with self._lock:
                    for part in found["messages"]:
                        self._take(part, buffers)
        except ConnectionClosed:
            pass

    def _take(self, part: dict[str, Any], buffers: list[bytes]) -> None:
        kind = part["type"]
        if kind == "BackgroundImageMessage":
            data = part["rgb_data"]
            self.picture = buffers[data["__binary_index"]] if isinstance(data, dict) else data
            self.n_pictures += 1
        elif kind.startswith("Gui") and "props" in part and "uuid" in part:
            self.controls[part["uuid"]] = {"kind": kind, **part["props"], "value": part.get("value")}
        elif kind == "GuiUpdateMessage" and part["uuid"] in self.controls:
            self.controls[part["uuid"]].update(part["updates"])
        elif kind == "NotificationShowMessage":
            self.notices.append(part["props"]["body"])
        elif kind == "FileTransferStartDownload":
            self.downloads.append(part["filename"])
        elif kind.startswith("SetCamera") and not part.get("initial"):
            self.camera[kind] = {k: v for k, v in part.items() if k != "type"}
        elif kind == "RemoveSceneNodeMessage":
            self.nodes.discard(part["name"])
        elif "name" in part and "props" in part:
            self.nodes.add(part["name"])

    def send(self, **message: Any) -> None:
        """Send any message."""
        self.socket.send(msgspec.msgpack.encode(message))

    def move(self, position, target=(0.0, 0.0, 0.0), size: tuple[int, int] = (300, 200), fov: float = 0.8) -> None:
        """Stand somewhere on the page, and look at a point of it."""
        forward = np.asarray(target, float) - position
        forward /= np.linalg.norm(forward)
        up = (0.0, 0.0, 1.0)
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward], 1)
        self.send(
            type="ViewerCameraMessage", wxyz=[float(v) for v in tf.SO3.from_matrix(rotation).wxyz],
            position=[float(v) for v in position], fov=fov, near=0.01, far=1000.0, image_height=size[1],
            image_width=size[0], look_at=[float(v) for v in target], up_direction=list(up),
        )  # fmt: skip

    def control(self, label: str) -> str:
        """The id of a control."""
        found = self.wait(lambda: [k for k, props in self.controls.items() if props.get("label") == label])
        return found[0]

    def set(self, label: str, value: Any) -> None:
        """Change a control, or press a button (`True`)."""
        self.send(type="GuiUpdateMessage", uuid=self.control(label), updates={"value": value})

    def press(self, label: str) -> None:
        """Press a button."""
        self.set(label, True)

    def text(self) -> str:
        """All HTML of the panel."""
        with self._lock:
            return "\n".join(c["content"] for c in self.controls.values() if c["kind"] == "GuiHtmlMessage")

    def shown(self) -> np.ndarray:
        """The picture that is shown."""
        assert self.picture is not None
        return np.asarray(Image.open(io.BytesIO(self.picture)).convert("RGB"))

    def wait(self, condition, seconds: float = 20.0) -> Any:
        """What a condition gives, once it is something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self._lock:
                found = condition()
            if found:
                return found
            time.sleep(0.01)
        raise AssertionError(f"nothing came of it in {seconds} s; notices: {self.notices}")

    def close(self) -> None:
        """Close the tab."""
        self.socket.close()

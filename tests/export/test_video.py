"""Videos: what is written can be read again, and mistakes end in one line."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hashfield.errors import ConfigError, DataError, ShapeError
from hashfield.export.video import check_video, write_mp4


def flat_frames(n: int, height: int, width: int) -> list[np.ndarray]:
    """Frames of one grey each, which survive compression."""
    return [np.full((height, width, 3), 20 + 20 * i, np.uint8) for i in range(n)]


def read_back(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].pix_fmt == "yuv420p"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1), (101, 64)])
def test_every_size_is_written(size: tuple[int, int], tmp_path: Path):
    frames = flat_frames(5, *size)
    assert write_mp4(tmp_path / "new" / "a.mp4", frames, fps=12.5) == 5
    found = read_back(tmp_path / "new" / "a.mp4")
    assert len(found) == 5 and found[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    for a, b in zip(found, frames, strict=True):
        assert abs(a.astype(int).mean() - b.astype(int).mean()) < 4
    assert os.listdir(tmp_path / "new") == ["a.mp4"]


def test_frames_are_taken_one_by_one(tmp_path: Path):
    alive = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal alive
        for frame in flat_frames(4, 16, 16):
            alive += 1
            yield frame

    assert write_mp4(tmp_path / "a.mp4", frames()) == 4 == alive


def test_a_failure_keeps_the_old_video(tmp_path: Path):
    path = tmp_path / "a.mp4"
    write_mp4(path, flat_frames(2, 16, 16))
    before = path.read_bytes()

    def broken() -> Iterator[np.ndarray]:
        yield from flat_frames(1, 16, 16)
        raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError):
        write_mp4(path, broken())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_mistakes_are_named(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with pytest.raises(DataError, match="no frames"):
        write_mp4(path, [])
    with pytest.raises(ShapeError, match="frame 1"):
        write_mp4(path, [*flat_frames(1, 16, 16), *flat_frames(1, 18, 16)])
    with pytest.raises(ShapeError, match="frame 0"):
        write_mp4(path, [np.zeros((16, 16, 4), np.uint8)])
    with pytest.raises(ConfigError, match="fps"):
        write_mp4(path, flat_frames(1, 16, 16), fps=0.0)
    with pytest.raises(ConfigError, match="quality"):
        write_mp4(path, flat_frames(1, 16, 16), quality=60)
    with pytest.raises(ConfigError, match=r"\.mp4"):
        write_mp4(tmp_path / "a.avi", flat_frames(1, 16, 16))
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write the video"):
        write_mp4(tmp_path / "file" / "a.mp4", flat_frames(1, 16, 16))
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match="pip install av") as caught:
        check_video()
    assert "\n" not in str(caught.value)

"""Decoding to uint8 RGBA, and downscaling that keeps the geometry and does not bleed."""

import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hashfield.data.images import (
    decode_all,
    decode_rgb,
    decode_rgba,
    decoding_bytes,
    downscale_rgba,
    exif_orientation,
    read_header,
)
from hashfield.errors import ConfigError, DataError
from tests.data.small_scenes import picture, save


def write_png16(path: Path, values: np.ndarray) -> None:
    """A PNG with 16 bits a channel, of 1 to 4 channels; Pillow writes only grey ones."""
    height, width, channels = values.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# --- decoding


@pytest.mark.parametrize(
    ("ending", "options"), [(".png", {}), (".webp", {"lossless": True, "exact": True}), (".tga", {})]
)
def test_rgba_is_kept_exactly_even_under_alpha_0(tmp_path: Path, ending: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"a{ending}"
    save(path, picture(3), **options)
    pixels = decode_rgba(path)
    assert np.array_equal(pixels, picture(3))
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    header = read_header(path)
    assert (header.width, header.height, header.reduction) == (12, 8, None)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".ppm", ".tiff", ".gif"])
def test_rgb_gets_alpha_255(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    flat = np.full((4, 5, 4), 255, np.uint8)
    flat[..., :3] = (10, 200, 30)
    save(path, flat, "RGB")
    assert np.array_equal(decode_rgba(path), flat)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(decode_rgba(tmp_path / "a.png"), np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    Image.fromarray(np.dstack([grey, grey // 2])).save(tmp_path / "b.png")
    assert np.array_equal(decode_rgba(tmp_path / "b.png"), np.dstack([grey, grey, grey, grey // 2]))
    Image.fromarray(grey > 100).save(tmp_path / "c.png")
    assert np.array_equal(decode_rgba(tmp_path / "c.png")[..., 1], (grey > 100) * np.uint8(255))


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert decode_rgba(tmp_path / "a.png").tolist() == [[[1, 2, 3, 255], [40, 50, 60, 0]]]


def test_transparent_colour_of_an_rgb_png(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(9, 9, 9))
    assert decode_rgba(tmp_path / "a.png")[0, :, 3].tolist() == [255, 0]


def test_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = np.array([[[0], [257], [40000], [65535], [128], [129]]])
    write_png16(path, grey)
    assert decode_rgba(path)[0, :, 0].tolist() == [0, 1, 156, 255, 0, 1], "divided by 257, rounded"
    assert decode_rgba(path)[0, :, 3].tolist() == [255] * 6
    for channels in (1, 2, 3, 4):
        write_png16(path, np.full((2, 2, channels), 40000))
        assert read_header(path).reduction == "16 bits a channel reduced to 8"
        assert decode_rgba(path)[0, 0, 0] == 156


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    values = np.array([[5, 60000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=5)
    assert decode_rgba(tmp_path / "a.png")[0, :, 3].tolist() == [0, 255]


def test_32_bit_integers(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "a.tiff")
    assert decode_rgba(tmp_path / "a.tiff")[0, :, 0].tolist() == [0, 255]
    Image.fromarray(np.array([[0, 65536]], np.int32)).save(tmp_path / "b.tiff")
    with pytest.raises(DataError, match=r"b\.tiff: grey values beyond 16 bits"):
        decode_rgba(tmp_path / "b.tiff")


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.tiff")
    assert decode_rgba(tmp_path / "a.tiff")[3, 3].tolist() == [255, 0, 0, 255]
    assert "CMYK" in (read_header(tmp_path / "a.tiff").reduction or "")


def test_exif_orientation_is_never_applied(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    save(tmp_path / "a.png", picture(1), exif=tag)
    save(tmp_path / "b.png", picture(1))
    assert np.array_equal(decode_rgba(tmp_path / "a.png"), picture(1))
    assert (read_header(tmp_path / "a.png").width, read_header(tmp_path / "a.png").height) == (12, 8)
    assert [exif_orientation(tmp_path / name) for name in ("a.png", "b.png", "absent.png")] == [6, 1, 1]


def test_the_header_is_read_without_decoding(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(0, 200, 200))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:60])
    assert read_header(tmp_path / "a.png").width == 200
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_rgba(tmp_path / "a.png")


@pytest.mark.parametrize("function", [read_header, decode_rgba])
def test_unreadable_images(tmp_path: Path, function: Any) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "a.hdr").write_bytes(b"#?RADIANCE\n")
    for name, message in (
        ("absent.png", "no such file"),
        ("text.png", "not an image"),
        ("a.hdr", "HDR images"),
    ):
        with pytest.raises(DataError, match=f"{name}: {message}"):
            function(tmp_path / name)
    with pytest.raises(DataError, match=r"folder\.png: "):
        function(tmp_path / "folder.png")


def test_pictures_of_any_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", picture(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_header(tmp_path / "a.png").width == 12
    assert np.array_equal(decode_all([tmp_path / "a.png"] * 20)[7], picture(0))
    assert Image.MAX_IMAGE_PIXELS == 10, "the limit of the process is left as it was"


def test_a_fraction_of_a_large_jpeg_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.mgrid[:83, :107]
    smooth = np.dstack([2 * rows, columns, rows + columns, np.full_like(rows, 255)]).astype(np.uint8)
    save(tmp_path / "a.jpg", smooth, "RGB", quality=95)
    whole = decode_rgba(tmp_path / "a.jpg", 4)
    header = read_header(tmp_path / "a.jpg")
    assert decoding_bytes(header, 4) == 4 * 107 * 83
    monkeypatch.setattr("hashfield.data.images._LARGE", 1000)
    for downscale in (4, 12):
        assert decoding_bytes(header, downscale) == 4 * 26 * 20
    small = decode_rgba(tmp_path / "a.jpg", 4)
    assert small.shape == whole.shape == (20, 26, 4)
    assert small.flags.c_contiguous
    assert np.abs(small.astype(int) - whole).max() <= 3
    assert decode_rgba(tmp_path / "a.jpg", 12).shape == (6, 8, 4)
    assert decode_rgba(tmp_path / "a.jpg", 3).shape == (27, 35, 4), "3 is not a fraction that a JPEG can be decoded at"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_a_jpeg_that_lacks_only_its_end_marker(tmp_path: Path, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 4), np.uint8)
    save(tmp_path / "a.jpg", noise, "RGB", **options)
    whole, data = decode_rgba(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()
    assert data[-2:] == b"\xff\xd9"
    for end in (-2, -1):
        (tmp_path / "b.jpg").write_bytes(data[:end])
        said: list[str] = []
        assert np.array_equal(decode_rgba(tmp_path / "b.jpg", warn=said.append), whole)
        assert said == ["the end marker of a JPEG is missing"]
        assert np.array_equal(decode_rgb(tmp_path / "b.jpg", said.append), whole[..., :3]) and len(said) == 2
    for end in (-6, -20, -len(data) // 2):
        (tmp_path / "b.jpg").write_bytes(data[:end])
        with pytest.raises(DataError, match="cannot be decoded: image file is truncated"):
            decode_rgba(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("RGB", ".jpg"), ("RGB", ".png"), ("L", ".png"), ("L", ".jpg"), ("1", ".png"), ("P", ".png"), ("I;16", ".png"),
     ("CMYK", ".jpg"), ("YCbCr", ".tiff")],
)  # fmt: skip
def test_colours_alone_are_those_beside_alpha(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    grey = picture(3)[..., 0].astype(np.uint16) * 200
    image = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(picture(3)[..., :3]).convert(mode)
    image.save(path)
    assert not read_header(path).may_have_alpha
    assert np.array_equal(decode_rgb(path), decode_rgba(path)[..., :3])


# --- many at once


def test_many_images_come_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for index, path in enumerate(paths):
        save(path, picture(index))
    images = decode_all(paths)
    assert [int(image[0, 0, 0]) for image in images] == [7 * index + 50 for index in range(20)]
    assert decode_all([]) == []
    assert [image.shape for image in decode_all(paths[:2], downscale=3)] == [(2, 4, 4)] * 2


def test_the_first_broken_image_is_named_and_no_thread_stays(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(30)]
    for path in paths:
        save(path, picture(0))
    for index in (7, 3, 20):
        paths[index].write_text("broken")
    with pytest.raises(DataError, match=r"3\.png: not an image"):
        decode_all(paths)
    with pytest.raises(DataError, match=r"^image 3 is bad$"):
        decode_all(paths, explain=lambda index, error: DataError(f"image {index} is bad"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


# --- downscaling


def test_downscale_by_hand() -> None:
    block = np.array([[[10, 0, 0, 255], [20, 0, 0, 255]], [[31, 0, 0, 255], [40, 0, 0, 255]]], np.uint8)
    assert downscale_rgba(block, 2).tolist() == [[[25, 0, 0, 255]]]
    block[0, 0] = (255, 255, 255, 0)  # must not bleed
    block[0, 1, 3] = 128
    # (20 * 128 + 31 * 255 + 40 * 255) / 638 = 32.4; (128 + 2 * 255) / 4 = 159.5
    assert downscale_rgba(block, 2).tolist() == [[[32, 0, 0, 160]]]


def test_downscale_of_a_transparent_block_is_black() -> None:
    block = np.full((2, 2, 4), 200, np.uint8)
    block[..., 3] = 0
    assert downscale_rgba(block, 2).tolist() == [[[0, 0, 0, 0]]]
    block[0, 0, 3] = 1  # alpha 0.25 rounds to 0: no colour may stay under it
    assert downscale_rgba(block, 2).tolist() == [[[0, 0, 0, 0]]]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    factor=st.integers(1, 6),
    seed=st.integers(0, 99),
    opaque=st.booleans(),
)
def test_downscale_is_the_weighted_mean(height: int, width: int, factor: int, seed: int, opaque: bool) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    if opaque:
        image[..., 3] = 255
    if factor > min(height, width):
        with pytest.raises(ConfigError, match="does not fit"):
            downscale_rgba(image, factor)
        return
    small = downscale_rgba(image, factor)
    assert small.shape == (height // factor, width // factor, 4)
    for row in range(small.shape[0]):
        for column in range(small.shape[1]):
            block = image[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor].astype(float)
            alpha = block[..., 3]
            assert abs(small[row, column, 3] - alpha.mean()) <= 0.5
            if small[row, column, 3] > 0:
                color = (block[..., :3] * alpha[..., None]).sum((0, 1)) / alpha.sum()
                assert np.abs(small[row, column, :3] - color).max() <= 0.5


def test_downscale_by_a_large_factor_does_not_overflow() -> None:
    image = np.full((600, 600, 4), 255, np.uint8)
    assert downscale_rgba(image, 300).tolist() == [[[255] * 4] * 2] * 2
    image[0, 0, 3] = 254
    assert downscale_rgba(image, 300)[0, 0].tolist() == [255, 255, 255, 255]


def test_downscale_checks() -> None:
    image = picture(0)
    assert downscale_rgba(image, 1) is image
    with pytest.raises(ConfigError, match="downscale: 0"):
        downscale_rgba(image, 0)

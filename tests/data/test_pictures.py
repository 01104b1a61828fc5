"""Pictures as stored: every kind comes in exactly, large ones through a scratch file that leaves nothing behind."""

import importlib.util
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from hashfield.data import images, pictures
from hashfield.data.demo_picture import make_demo_picture
from hashfield.data.pictures import read_picture, read_picture_header
from hashfield.errors import ConfigError, DataError
from hashfield.export.images import ExrWriter, PngWriter
from hashfield.geometry.srgb import srgb_from_linear
from tests.data.broken_cases import PICTURE_CASES, PictureCase


def numbers(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Random numbers of a type, no alpha wholly opaque."""
    random = np.random.default_rng(0)
    if kind.startswith("float"):
        return (random.random(shape) * 50).astype(kind)
    return random.integers(0, np.iinfo(kind).max, shape).astype(kind)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_png_comes_in_as_it_was_written(n_channels: int, bits: int, tmp_path: Path) -> None:
    pixels = numbers((37, 53, n_channels), f"uint{bits}")
    with PngWriter(tmp_path / "a.png", 53, 37, n_channels, bits) as writer:
        for y in range(0, 37, 10):
            writer.add(pixels[y : y + 10])
    with read_picture(tmp_path / "a.png") as found:
        assert (found.header.dtype, found.n_channels, found.is_hdr) == (f"uint{bits}", n_channels, False)
        assert np.array_equal(found.pixels, pixels)
        values = pixels / np.float32(2**bits - 1)
        if n_channels in (2, 4):
            values[..., :-1] *= values[..., -1:]
        assert np.allclose(found.region(5, 7, 20, 9), values[7:16, 5:25], atol=1e-6)
    if bits == 8:  # another reader agrees about what was written
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_exr_comes_in_as_it_was_written(n_channels: int, tmp_path: Path) -> None:
    pixels = numbers((37, 53, n_channels), "float16")
    with ExrWriter(tmp_path / "a.exr", 53, 37, n_channels) as writer:
        writer.add(pixels[:20])
        writer.add(pixels[20:])
    with read_picture(tmp_path / "a.exr") as found:
        assert found.is_hdr and found.header.dtype == "float16" and np.array_equal(found.pixels, pixels)
        wanted = srgb_from_linear(pixels.astype(np.float32))
        if n_channels in (2, 4):
            wanted[..., -1] = pixels[..., -1]  # alpha is no light; colours are multiplied by it in the file
        assert np.allclose(found.region(0, 0, 53, 37), wanted, rtol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1", "P"])
def test_pillow_modes(mode: str, tmp_path: Path) -> None:
    pixels = numbers((37, 53, 4), "uint8")
    image = Image.fromarray(pixels if "A" in mode else pixels[..., :3].copy()).convert(mode)
    image.save(tmp_path / "a.png")
    with read_picture(tmp_path / "a.png") as found:
        expected = image.convert({"1": "L", "P": "RGB"}.get(mode, mode))
        assert np.array_equal(found.pixels, np.asarray(expected).reshape(found.pixels.shape))
    if mode == "RGB":
        image.save(tmp_path / "a.webp", lossless=True)
        image.save(tmp_path / "a.jpg", quality=95)
        image.save(tmp_path / "a.tif")
        assert np.array_equal(read_picture(tmp_path / "a.webp").pixels, pixels[..., :3])
        assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, pixels[..., :3])
        assert read_picture(tmp_path / "a.jpg").pixels.shape == (37, 53, 3)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("options", [{"tile": (16, 32)}, {}, {"compression": "zlib", "bigtiff": True}])
def test_tiff_with_tifffile(kind: str, options: dict, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = numbers((37, 53, 3), kind)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    with read_picture(tmp_path / "a.tif") as found:
        assert found.header.dtype == kind and found.is_hdr == kind.startswith("float")
        wanted = srgb_from_linear(pixels) if kind == "float32" else pixels
        assert np.array_equal(found.pixels, wanted)


def test_a_large_picture_lies_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = numbers((370, 53, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "IN_MEMORY", 1000)
    monkeypatch.setattr(pictures, "STRIP_BYTES", 53 * 3 * 64)  # several strips
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    picture = read_picture(tmp_path / "a.png", scratch=scratch)
    assert np.array_equal(picture.pixels, pixels)
    if sys.platform == "linux":
        assert not list(scratch.iterdir())
        assert "(deleted)" in Path("/proc/self/maps").read_text()
    picture.close()
    with pytest.raises(DataError, match="no room for a scratch file"):
        read_picture(tmp_path / "a.png", scratch=tmp_path / "gone")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_of_a_process_that_is_killed(tmp_path: Path) -> None:
    Image.fromarray(numbers((370, 53, 3), "uint8")).save(tmp_path / "a.png")
    (tmp_path / "scratch").mkdir()
    code = (
        "import os, signal, pathlib; from hashfield.data import pictures; pictures.IN_MEMORY = 1000\n"
        f"p = pictures.read_picture({str(tmp_path / 'a.png')!r}, scratch=pathlib.Path({str(tmp_path / 'scratch')!r}))\n"
        "assert '(deleted)' in open('/proc/self/maps').read()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not list((tmp_path / "scratch").iterdir())


def test_a_size_beyond_the_limit_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    """A PNG that says it is 100000 x 100000 and holds next to nothing."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(9))
    with pytest.raises(ConfigError, match="more than --max-pixels 2147483648"):
        read_picture_header(tmp_path / "bomb.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ConfigError, match="max_pixels"):
        read_picture_header(tmp_path / "bomb.png", max_pixels=0)
    assert before == Image.MAX_IMAGE_PIXELS  # Pillow's own limit is what it was for everyone else


# --- which way is up -----------------------------------------------------------------------------------------


def turned(path: Path, orientation: int) -> np.ndarray:
    """The upright pixels, by Pillow, of a random picture written here: 53 x 37 as stored, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(numbers((37, 53, 3), "uint8"))
    image.save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    with Image.open(path) as stored:
        return np.asarray(ImageOps.exif_transpose(stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_a_picture_stored_on_its_side_comes_in_upright(
    name: str, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "IN_MEMORY", 1000)  # a scratch file, filled by several strips
    monkeypatch.setattr(pictures, "STRIP_BYTES", 53 * 3 * 8)
    if name == "a.tif":  # as where tifffile is not installed
        monkeypatch.setattr(pictures, "PICTURE_READERS", [r for r in pictures.PICTURE_READERS if r.name != "tifffile"])
    upright = turned(tmp_path / name, orientation)
    header = read_picture_header(tmp_path / name)
    with read_picture(tmp_path / name, scratch=tmp_path) as found:
        assert (found.width, found.height) == (header.width, header.height) == upright.shape[1::-1]
        assert (found.width > found.height) == (orientation < 5)
        assert np.array_equal(found.pixels, upright)
        assert np.allclose(found.region(3, 5, 20, 9), upright[5:14, 3:23] / np.float32(255), atol=1e-6)
        said = [note for note in found.notes if "upright" in note]
        assert len(said) == (orientation > 1) and all(f"({orientation})" in note for note in said)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{"tile": (16, 32)}, {"rowsperstrip": 8}], ids=["tiles", "strips"])
def test_tiles_are_turned_one_by_one(options: dict, orientation: int, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = numbers((37, 53, 3), "uint16")
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[tag], **options)
    upright = turned(tmp_path / "a.png", orientation)  # of other numbers, but turned alike
    stored = numbers((37, 53, 3), "uint8")
    with read_picture(tmp_path / "a.tif") as found:
        assert found.pixels.shape == upright.shape and found.pixels.dtype == np.uint16
        # Every pixel went where Pillow puts it; no two have the same of 2^24 colours.
        place = {tuple(color): tuple(pixels[y, x]) for (y, x), color in pixels_of(stored)}
        assert all(tuple(found.pixels[y, x]) == place[tuple(color)] for (y, x), color in pixels_of(upright))


def pixels_of(picture: np.ndarray) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """((row, column), colour) of every pixel."""
    return ((place, picture[place].tolist()) for place in np.ndindex(picture.shape[:2]))


def with_chunk(path: Path, kind: bytes, data: bytes) -> None:
    """Add a chunk to a PNG, right behind its header."""
    png = path.read_bytes()
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(png[:33] + chunk + png[33:])


def test_a_png_of_16_bits_is_turned_too(tmp_path: Path) -> None:
    pixels = numbers((37, 53, 3), "uint16")
    with PngWriter(tmp_path / "a.png", 53, 37, 3, 16) as writer:
        writer.add(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    with_chunk(tmp_path / "a.png", b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    with read_picture(tmp_path / "a.png") as found:
        assert np.array_equal(found.pixels, np.rot90(pixels, -1))  # a quarter turn clockwise


def test_an_orientation_that_does_not_exist_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.fromarray(numbers((37, 53, 3), "uint8")).save(tmp_path / "a.png", exif=exif)
    with read_picture(tmp_path / "a.png") as found:
        assert np.array_equal(found.pixels, numbers((37, 53, 3), "uint8")) and not found.notes


def test_a_header_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned(tmp_path / "a.png", 6)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_picture_header(tmp_path / "a.png").width == 37


# --- whose colours -------------------------------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3() -> bytes:
    """The profile of a phone: sRGB's curve with wider primaries. Its name still says sRGB: colours decide."""
    profile, red, green = bytearray(SRGB), (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419)
    primaries = {b"rXYZ": red, b"gXYZ": green, b"bXYZ": (0.1571, 0.0666, 0.7841)}
    for k in range(struct.unpack(">I", profile[128:132])[0]):
        name, offset, _ = struct.unpack(">4sII", profile[132 + 12 * k : 144 + 12 * k])
        if name in primaries:
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *(round(65536 * v) for v in primaries[name]))
    return bytes(profile)


PROFILES = {
    "sRGB": (SRGB, None),
    "Display P3": (display_p3(), r"sRGB built-in"),
    "Lab": (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), r"Lab"),
    "broken": (SRGB[:200], r"not readable"),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_profile_other_than_srgb_is_warned_of_once(name: str, ending: str, tmp_path: Path) -> None:
    profile, words = PROFILES[name]
    pixels = numbers((37, 53, 3), "uint8")
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, icc_profile=profile, **({"lossless": True} if ending == "webp" else {}))
    with read_picture(path) as found:
        if ending != "jpg":
            assert np.array_equal(found.pixels, pixels)  # nothing is converted
        warnings = [note for note in found.notes if "profile" in note]
        assert len(warnings) == (words is not None), found.notes
        if words is not None:
            assert re.search(rf"warning: a\.{ending}: its colour profile \({words}.*\) is not sRGB", warnings[0])
            assert warnings[0].endswith("its numbers are taken as sRGB")


def test_a_png_of_16_bits_has_a_profile_too(tmp_path: Path) -> None:
    with PngWriter(tmp_path / "a.png", 53, 37, 3, 16) as writer:
        writer.add(numbers((37, 53, 3), "uint16"))
    with_chunk(tmp_path / "a.png", b"iCCP", b"p3\0\0" + zlib.compress(display_p3()))
    with read_picture(tmp_path / "a.png") as found:
        assert len(found.notes) == 1 and "is not sRGB" in found.notes[0]


@pytest.mark.parametrize("case", PICTURE_CASES, ids=lambda case: case.name)
def test_message(case: PictureCase, tmp_path: Path) -> None:
    if case.needs is not None and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    path = case.build(tmp_path)
    if case.outcome == "error":
        with pytest.raises((DataError, ConfigError), match=case.expected) as error:
            read_picture(path, max_pixels=case.max_pixels)
        text = str(error.value)
        assert "\n" not in text and text.startswith(str(path)), text
        return
    with read_picture(path, max_pixels=case.max_pixels) as picture:
        assert re.search(case.expected, "\n".join(picture.notes)), picture.notes


def test_the_demo_picture_is_the_same_for_the_same_seed() -> None:
    a, b, c = make_demo_picture(3, 80, 60), make_demo_picture(3, 80, 60), make_demo_picture(4, 80, 60)
    assert a.shape == (60, 80, 3) and np.array_equal(a, b) and not np.array_equal(a, c)
    assert a.std() > 20
    with pytest.raises(ConfigError):
        make_demo_picture(0, 4, 4)


# --- what a TIFF's channels beyond colours are ------------------------------------------------------------------


def tiff_with(path: Path, pixels: np.ndarray, extra: int | None) -> Path:
    """An uncompressed TIFF, little-endian, whose tag ExtraSamples says `extra`; without that tag if None.

    Args:
        path: Where to write it.
        pixels: [height, width, channels] of uint8, uint16 or float32.
        extra: 0 not said, 1 alpha that colours are multiplied by, 2 alpha.
    """
    height, width, n = pixels.shape
    values = {256: width, 257: height, 259: 1, 262: 2 if n > 2 else 1, 273: 8, 277: n, 278: height, 279: pixels.nbytes}
    entries = [(tag, 4, 1, value) for tag, value in values.items()]
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    after = 8 + len(data)
    bits, form = 8 * pixels.itemsize, 3 if pixels.dtype.kind == "f" else 1
    long = struct.pack(f"<{n}H", *[bits] * n) + struct.pack(f"<{n}H", *[form] * n)
    if n > 2:
        entries += [(258, 3, n, after), (339, 3, n, after + 2 * n)]
    else:
        entries += [(258, 3, n, bits * 0x10001), (339, 3, n, form * 0x10001)]
    if extra is not None:
        entries.append((338, 3, 1, extra))
    entries.sort()
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", after + len(long)) + data + long + directory + bytes(4))
    return path


@pytest.fixture(params=["tifffile", "Pillow"])
def tiff_reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the extra `tiff` and without."""
    if request.param == "tifffile":
        pytest.importorskip("tifffile")
    else:
        monkeypatch.setattr(pictures, "PICTURE_READERS", [r for r in pictures.PICTURE_READERS if r.name != "tifffile"])
    return request.param


@pytest.mark.parametrize("n_channels", [2, 4])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_alpha_that_colours_are_multiplied_by_counts_once(
    kind: str, n_channels: int, tiff_reader: str, tmp_path: Path
) -> None:
    if tiff_reader == "Pillow" and (kind == "float32" or (n_channels == 2 and kind == "uint16")):
        pytest.skip("Pillow refuses these")
    if kind == "float32":
        straight, top = np.random.default_rng(0).random((9, 7, n_channels)).astype(kind), 1.0
    else:
        straight, top = numbers((9, 7, n_channels), kind), float(np.iinfo(kind).max)
    straight[:2, :, -1] = top / 2
    multiplied = straight.copy()
    products = straight[..., :-1].astype(float) * straight[..., -1:] / top
    multiplied[..., :-1] = products if kind == "float32" else np.round(products)
    found = {}
    for extra, pixels in ((1, multiplied), (2, straight)):
        with read_picture(tiff_with(tmp_path / f"{extra}.tif", pixels, extra)) as picture:
            assert picture.n_channels == n_channels
            found[extra] = picture.region(0, 0, 7, 9)
    # The independent figure: what is learned is colour times alpha, as sRGB; of linear floats the curve comes after.
    values = products if kind == "float32" else products / top
    expected = srgb_from_linear(values.astype(np.float32)) if kind == "float32" else values
    bound = (
        1e-5 if kind == "float32" else (2.5 if kind == "uint16" else 1.5) / (255 if tiff_reader == "Pillow" else top)
    )
    for extra in (1, 2):
        assert np.abs(found[extra][..., :-1] - expected).max() <= bound, extra
        assert np.allclose(found[extra][..., -1], straight[..., -1] / top, atol=1 / 255), extra


@pytest.mark.parametrize("n_channels", [2, 4])
def test_a_channel_that_is_not_alpha_is_left_out(n_channels: int, tiff_reader: str, tmp_path: Path) -> None:
    pixels = numbers((9, 7, n_channels), "uint8")
    with read_picture(tiff_with(tmp_path / "a.tif", pixels, 0)) as picture:
        assert picture.n_channels == n_channels - 1 and not picture.has_alpha
        assert np.array_equal(picture.pixels, pixels[..., :-1])
        which = {2: "second", 4: "fourth"}[n_channels]
        assert picture.notes == (f"a.tif: its {which} channel is not alpha, as the file says, and is left out",)


def test_a_fourth_channel_that_nothing_is_said_of_is_alpha_and_a_line_says_so(tiff_reader: str, tmp_path: Path) -> None:
    pixels = numbers((9, 7, 4), "uint8")
    with read_picture(tiff_with(tmp_path / "a.tif", pixels, None)) as picture:
        assert np.array_equal(picture.pixels, pixels)
        assert picture.notes == ("a.tif: its fourth channel is taken as alpha; the file does not say what it is",)


def test_near_infrared_in_tiles_is_left_out(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = numbers((37, 53, 4), "uint16")
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"], tile=(16, 32), bigtiff=True
    )
    with read_picture(tmp_path / "a.tif") as picture:
        assert np.array_equal(picture.pixels, pixels[..., :3])


def test_a_tiff_of_brightness_and_colour_differences_becomes_rgb(tiff_reader: str, tmp_path: Path) -> None:
    image = smooth().convert("YCbCr")
    image.save(tmp_path / "a.tif")
    with read_picture(tmp_path / "a.tif") as picture:
        assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))


# --- raw photos ---------------------------------------------------------------------------------------------------


def raw_file(path: Path, *, is_dng: bool, photometric: int, order: str = "<") -> Path:
    """What cameras write: a small RGB preview in the first directory, the sensor's numbers in one below it.

    Args:
        path: Where to write it.
        is_dng: Whether the first directory has a DNG version.
        photometric: Of the directory below; 32803 is a colour filter array.
        order: "<" or ">".
    """

    def directory(at: int, tags: dict[int, tuple[int, int]]) -> bytes:
        parts = [struct.pack(order + "HHI", tag, form, 1) + (
            struct.pack(order + "H2x", value) if form == 3 else struct.pack(order + "I", value)
        ) for tag, (form, value) in sorted(tags.items())]  # fmt: skip
        return struct.pack(order + "H", len(parts)) + b"".join(parts) + bytes(4)

    first = {254: (4, 1), 256: (4, 4), 257: (4, 4), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1),
             278: (4, 4), 279: (4, 16), 330: (4, 600)}  # fmt: skip
    if is_dng:
        first[50706] = (4, 0x00000401)
    below = {254: (4, 0), 256: (4, 40), 257: (4, 40), 258: (3, 16), 259: (3, 1), 262: (3, photometric), 273: (4, 900),
             277: (3, 1), 278: (4, 40), 279: (4, 3200)}  # fmt: skip
    magic = b"II*\0" if order == "<" else b"MM\0*"
    content = (magic + struct.pack(order + "I", 24) + bytes(range(16)) + directory(24, first)).ljust(600, b"\0")
    path.write_bytes((content + directory(600, below)).ljust(900 + 3200, b"\0"))
    return path


@pytest.mark.parametrize(
    ("name", "is_dng", "photometric", "order", "kind"),
    [
        ("a.dng", True, 32803, "<", "DNG"),
        ("a.tif", True, 34892, ">", "DNG"),
        ("a.nef", False, 32803, ">", "NEF"),
        ("a.tiff", False, 32803, "<", "TIFF with the numbers of a sensor"),
        ("a.ARW", False, 1, "<", "ARW"),
    ],
)
def test_a_raw_photo_is_refused_by_name(
    name: str, is_dng: bool, photometric: int, order: str, kind: str, tmp_path: Path
) -> None:
    path = raw_file(tmp_path / name, is_dng=is_dng, photometric=photometric, order=order)
    for read in (read_picture, read_picture_header, images.read_header, images.decode_rgba):
        with pytest.raises(DataError) as error:
            read(path)
        assert str(error.value) == (
            f"{path}: is a raw photo ({kind}), which is not read; develop it to a TIFF, PNG or JPEG file first"
        )


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("a.cr2", b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        ("a.CR3", b"\0\0\0\x18ftypcrx \0\0\0\1", "CR3"),
        ("b.tif", b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        ("a.raf", b"FUJIFILMCCD-RAW 0201", "RAF"),
        ("a.orf", b"IIRO\x08\0\0\0", "ORF"),
        ("a.rw2", b"IIU\0\x18\0\0\0", "RW2"),
        ("a.x3f", b"FOVb\0\0\2\0", "X3F"),
        ("a.3fr", b"MM\0*\0\0\0\x08", "3FR"),
    ],
)
def test_raw_photos_of_other_cameras(name: str, start: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(start.ljust(400, b"\0"))
    with pytest.raises(DataError, match=rf"is a raw photo \({kind}\)"):
        read_picture(tmp_path / name)


def test_a_jpeg_with_the_name_of_a_raw_file_is_a_picture(tmp_path: Path) -> None:
    Image.fromarray(numbers((9, 7, 3), "uint8")).save(tmp_path / "a.nef", format="JPEG")
    with read_picture(tmp_path / "a.nef") as picture:
        assert picture.width == 7


# --- JPEG without its end -------------------------------------------------------------------------------------------


def smooth(width: int = 61, height: int = 45) -> Image.Image:
    """A picture that JPEG keeps well, without two equal blocks."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([4 * x % 256, 5 * y % 256, (x * y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
@pytest.mark.parametrize("n_cut", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(options: dict, n_cut: int, tmp_path: Path) -> None:
    smooth().save(tmp_path / "whole.jpg", **options)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:-n_cut])
    with read_picture(tmp_path / "whole.jpg") as whole, read_picture(tmp_path / "cut.jpg") as cut:
        assert np.array_equal(whole.pixels, cut.pixels)
        assert not whole.notes
        assert cut.notes == ("warning: cut.jpg: its end marker is missing; all pixels are there",)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
def test_a_jpeg_that_lacks_more_stays_an_error(options: dict, tmp_path: Path) -> None:
    smooth().save(tmp_path / "whole.jpg", **options)
    data = (tmp_path / "whole.jpg").read_bytes()
    scans = [k for k in range(len(data) - 1) if data[k : k + 2] == b"\xff\xda"]
    for end in [*range(len(data) - 60, len(data) - 4), *scans[1:], (scans[-1] + len(data)) // 2]:
        (tmp_path / "cut.jpg").write_bytes(data[:end])
        with pytest.raises(DataError, match="truncated"):
            read_picture(tmp_path / "cut.jpg")


# --- what was reported elsewhere ------------------------------------------------------------------------------------

REPORTED = Path(__file__).parents[3] / "shared" / "cases"


@pytest.mark.skipif(not REPORTED.is_dir(), reason="the reported files are not beside this project")
def test_reported_pictures(tiff_reader: str) -> None:
    alpha = REPORTED / "30-tiff-premultiplied-alpha"
    with read_picture(alpha / "premultiplied.tif") as a, read_picture(alpha / "straight.tif") as b:
        assert np.abs(a.region(0, 0, 16, 16) - b.region(0, 0, 16, 16)).max() < 1.5 / 255
    for name in ("rgb_nir.tif", "rgb_nir_tiled.tif"):
        with read_picture(REPORTED / "31-tiff-near-infrared" / name) as picture:
            assert picture.n_channels == 3 and "is not alpha" in picture.notes[0]
    with pytest.raises(DataError, match=r"raw photo \(DNG\)"):
        read_picture(REPORTED / "32-raw-photo-with-thumbnail" / "photo.dng")

"""Damages inputs at random, reproducibly, and reads them: data sets as JSON, COLMAP models, npy and npz, pictures, meshes.

python benchmarks/fuzz_inputs.py                   # 2,000 inputs
python benchmarks/fuzz_inputs.py --first 700 --n 1 --keep DIR   # one of them again, kept for a look

Each input is read in another process, under a limit of time and of memory. Whatever is not read must end in one line
of a HashfieldError; and a file that was cut short must not be read as a smaller one without a warning, where its
format lets that be seen. Anything else is printed, and the exit code is 1.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.data.colmap_files import ring, write_capture, write_llff, write_neus
from tests.data.small_scenes import write_scene

SECONDS = 20.0
"""Time limit of one input; the slowest ordinary one takes well below one second."""
MEMORY = 6 << 30
"""Bytes of address space that reading may take beyond what the process has at its start."""
MAX_PIXELS = 10**7


@dataclass(frozen=True)
class Original:
    """A whole file of one kind."""

    name: str
    """Its place below the folder of all; others of the same data set lie around it."""
    data: bytes
    size: int
    """What a reader finds in it: pixels, triangles or photos."""
    shows_cuts: bool
    """Whether its format says how much there should be."""


@dataclass(frozen=True)
class Outcome:
    """What became of an input."""

    kind: str
    """read, refused, or what must not happen: traceback, hang, died, half read."""
    text: str = ""


# --- whole files


def cube() -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of a cube whose sides are grids of 4 x 4."""
    import trimesh

    mesh = trimesh.creation.box().subdivide().subdivide()
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def originals(folder: Path) -> list[Original]:
    """One of each kind, written here."""
    found = []
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :56]
    pixels = np.stack([4 * x, 5 * y, x * y % 256, 255 - (x + y)], -1).astype(np.uint8)
    pixels[::3, ::5] = rng.integers(0, 256, pixels[::3, ::5].shape)
    rgb, rgba = Image.fromarray(pixels[..., :3].copy()), Image.fromarray(pixels)
    for name, image, options in (
        ("a.png", rgba, {}), ("grey.png", rgb.convert("L"), {}), ("a.jpg", rgb, {}),
        ("progressive.jpg", rgb, {"progressive": True}), ("a.webp", rgb, {}), ("a.tif", rgba, {}),
        ("packed.tif", rgb, {"compression": "tiff_adobe_deflate"}), ("a.bmp", rgb, {}), ("a.gif", rgb, {}),
        ("a.tga", rgba, {}), ("a.ppm", rgb, {}),
    ):  # fmt: skip
        image.save(folder / name, **options)
        found.append(Original(name, (folder / name).read_bytes(), 40 * 56, True))
    from hashfield.export.images import ExrWriter, PngWriter

    with PngWriter(folder / "wide.png", 56, 40, 4, 16) as writer:
        writer.add(pixels.astype(np.uint16) * 257)
    with ExrWriter(folder / "a.exr", 56, 40, 3) as writer:
        writer.add((pixels[..., :3] / 255).astype(np.float16))
    found += [Original(name, (folder / name).read_bytes(), 40 * 56, True) for name in ("wide.png", "a.exr")]
    vertices, faces = cube()
    found += meshes(folder, vertices, faces)
    scene = write_scene(folder / "scene", 4)
    found.append(Original("scene/transforms.json", (scene / "transforms.json").read_bytes(), 4, True))
    found += captures(folder)
    return found


def captures(folder: Path) -> Iterator[Original]:
    """The files of data sets in other forms than JSON: COLMAP models, LLFF, NeuS."""
    lenses = ring(9, "OPENCV", [15, 15, 6, 4, 0.1, 0.2, 0.01, 0.02])
    for form, ending in (("colmap", "bin"), ("colmap-text", "txt")):
        write_capture(folder / form, lenses, text=ending == "txt")
        for name in ("cameras", "images", "points3D"):
            place = f"{form}/sparse/0/{name}.{ending}"
            yield Original(place, (folder / place).read_bytes(), 9, True)
    for place in ("llff/poses_bounds.npy", "neus/cameras_sphere.npz"):
        target = folder / place
        (write_llff if target.suffix == ".npy" else write_neus)(target.parent)
        yield Original(place, target.read_bytes(), 9, True)


def meshes(folder: Path, vertices: np.ndarray, faces: np.ndarray) -> Iterator[Original]:
    """A mesh in every format."""
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    text = "\n".join(["v {} {} {}".format(*v) for v in vertices] + ["f {} {} {}".format(*(f + 1)) for f in faces])
    yield Original("a.obj", text.encode(), len(faces), False)
    exports = {
        "a.ply": mesh.export(file_type="ply"), "text.ply": mesh.export(file_type="ply", encoding="ascii"),
        "a.stl": mesh.export(file_type="stl"), "text.stl": mesh.export(file_type="stl_ascii").encode(),
        "a.glb": mesh.export(file_type="glb"),
    }  # fmt: skip
    gltf = trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh), merge_buffers=True)
    (buffer,) = (name for name in gltf if name.endswith(".bin"))
    (folder / buffer).write_bytes(gltf[buffer])
    exports["a.gltf"] = gltf["model.gltf"]
    yield from (Original(name, bytes(data), len(faces), True) for name, data in exports.items())


# --- damage

ODD = (
    b"0",
    b"-1",
    b"1e300",
    b"nan",
    b"inf",
    b"-2147483649",
    b"99999999999999999999",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"true",
)


def cut(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """The end is missing: anywhere, or the last few bytes."""
    return data[: int(rng.integers(0, len(data)))] if rng.random() < 0.7 else data[: -int(rng.integers(1, 40))]


def flipped(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A few bytes are others, oftener near the beginning, where formats say what follows."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 128)
        changed[int(rng.integers(reach))] = int(rng.choice([0, 255, 127, 128, int(rng.integers(256))]))
    return bytes(changed)


def without(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A part in the middle is missing."""
    begin = int(rng.integers(len(data)))
    return data[:begin] + data[begin + int(rng.integers(1, 200)) :]


def doubled(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A part is there twice."""
    begin = int(rng.integers(len(data)))
    return data[: begin + int(rng.integers(1, 200))] + data[begin:]


def zeroed(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A part is zeros, as after a failed copy."""
    begin = int(rng.integers(len(data)))
    end = min(len(data), begin + int(rng.integers(1, 400)))
    return data[:begin] + bytes(end - begin) + data[end:]


def other_numbers(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """In text, some words are odd values."""
    import re

    places = [match.span() for match in re.finditer(rb"-?[0-9][0-9.eE+-]*", data)]
    for _ in range(int(rng.integers(1, 4))):
        if not places:
            break
        begin, end = places[int(rng.integers(len(places)))]
        if end <= len(data):
            data = data[:begin] + ODD[int(rng.integers(len(ODD)))] + data[end:]
        places = [match.span() for match in re.finditer(rb"-?[0-9][0-9.eE+-]*", data)]
    return data


def spliced(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """It begins as one file and goes on as another."""
    other = others[int(rng.integers(len(others)))]
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


DAMAGE: tuple[Callable[[bytes, np.random.Generator, list[bytes]], bytes], ...] = (
    cut, cut, flipped, flipped, without, doubled, zeroed, other_numbers, spliced,
)  # fmt: skip


# --- reading, in another process


def read(path: Path) -> tuple[int, list[str]]:
    """(what was found, notes); raises what the readers raise."""
    from hashfield.data import load_scene
    from hashfield.data.meshes import EXTENSIONS, read_mesh
    from hashfield.data.pictures import read_picture

    if path.name == "transforms.json" or path.suffix in (".bin", ".txt", ".npy", ".npz"):
        scene = load_scene(path)
        return sum(len(views.cameras) for views in scene.splits.values()), list(scene.notes)
    if path.suffix in EXTENSIONS:
        mesh = read_mesh(path)
        return len(mesh.faces), list(mesh.notes)
    with read_picture(path, max_pixels=MAX_PIXELS, scratch=path.parent) as picture:
        picture.region(0, 0, picture.width, picture.height)
        return picture.width * picture.height, list(picture.notes)


def serve(connection: Connection) -> None:
    """What the other process does: reads what it is told to, until it is told nothing."""
    import hashfield.data.meshes
    import hashfield.data.pictures  # noqa: F401  # loaded before memory is limited
    from hashfield.errors import HashfieldError

    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    except (ImportError, OSError):
        pass  # elsewhere memory is not limited
    connection.send("ready")
    while (path := connection.recv()) is not None:
        try:
            found, notes = read(Path(path))
            connection.send((found, notes))
        except HashfieldError as error:
            connection.send(Outcome("traceback" if "\n" in str(error) else "refused", str(error)))
        except BaseException:
            connection.send(Outcome("traceback", traceback.format_exc()))


class Reader:
    """The other process; a new one follows where it dies or does not answer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()

    def read(self, path: Path) -> Outcome | tuple[int, list[str]]:
        if self._process is None:
            self.start()
        try:
            self._connection.send(str(path))
            if self._connection.poll(self.seconds):
                return self._connection.recv()
            outcome = Outcome("hang", f"no answer after {self.seconds:g} s")
        except (EOFError, OSError):
            outcome = Outcome("died")
        self.close()
        return outcome

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def fuzz(first: int, n: int, folder: Path, seconds: float = SECONDS) -> Iterator[tuple[int, str, str, Outcome]]:
    """(number, name, damage, outcome) of inputs, each a function of its number alone.

    Args:
        first: Number of the first.
        n: How many.
        folder: Where they are written; each in place of the one before.
        seconds: Time limit of each.
    """
    whole = originals(folder)
    reader = Reader(seconds)
    try:
        for number in range(first, first + n):
            rng = np.random.default_rng(number)
            original = whole[number % len(whole)]
            damage = DAMAGE[int(rng.integers(len(DAMAGE)))]
            data = damage(original.data, rng, [other.data for other in whole])
            path = folder / original.name
            path.write_bytes(data)
            answer = reader.read(path)
            if number + 1 < first + n:  # the last one stays, for a look
                path.write_bytes(original.data)  # the others of its data set are read with it
            if isinstance(answer, Outcome):
                outcome = answer
            else:
                found, notes = answer
                is_said = any(note.startswith("warning") for note in notes)
                is_half = damage is cut and original.shows_cuts and found < original.size and not is_said
                outcome = Outcome("half read", f"{found} of {original.size}: {notes}") if is_half else Outcome("read")
            yield number, original.name, damage.__name__, outcome
    finally:
        reader.close()


GOOD = ("read", "refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--n", type=int, default=2000, help="how many inputs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs; default a temporary one")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    bad = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for number, name, damage, outcome in fuzz(options.first, options.n, folder, options.seconds):
            counts[outcome.kind] += 1
            if outcome.kind not in GOOD:
                bad.append(number)
                print(f"{number} {name} {damage}: {outcome.kind}\n{outcome.text}", flush=True)
    print(json.dumps({"n": options.n, **counts, "bad": bad}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""The command `hashfield`: finds the verb, and turns errors into one line each.

Each verb's file is loaded only when it is called, so that `hashfield --help` answers at once.
"""

import errno
import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext

from hashfield._version import __version__
from hashfield.errors import HashfieldError

VERBS = {
    "prepare": (
        "hashfield.cli.prepare",
        "find the cameras of photos or of a video, for train nerf: hashfield prepare PHOTOS|VIDEO",
    ),
    "demo": (
        "hashfield.cli.demo",
        "make a small scene (or: demo image, demo sdf), train on it and show what comes out",
    ),
    "inspect": (
        "hashfield.cli.inspect",
        "say what is wrong with photos and cameras, photo by photo, and write a page with pictures",
    ),
    "train": ("hashfield.cli.train", "train a model: hashfield train nerf PATH, train image FILE, train sdf MESH"),
    "evaluate": (
        "hashfield.cli.evaluate",
        "judge a run: on views it has not seen, on the whole picture, against the mesh",
    ),
    "render": (
        "hashfield.cli.render",
        "show what a run has learned: test views, an orbit, a camera path; a picture at any size",
    ),
    "view": ("hashfield.cli.view", "look at a run in a browser: move through it, compare it with the photos, film it"),
    "mesh": (
        "hashfield.cli.mesh",
        "write a run's surface: triangles with vertex colours or a texture, points; or its values in space",
    ),
    "sweep": (
        "hashfield.cli.sweep",
        "train a matrix of settings on one input: tables and plots of the paper's comparison",
    ),
    "export": (
        "hashfield.cli.export",
        "write a run as a small checkpoint, as a web page, or its cameras for other programs",
    ),
    "info": ("hashfield.cli.info", "tell versions, CPU and kernels, or what a run or checkpoint holds"),
}

# Modules whose absence has a remedy: what to install.
EXTRAS = {
    "pycolmap": "hashfield[photos]",
    "pillow_heif": "hashfield[heif]",
    "tifffile": "hashfield[tiff]",
    "imagecodecs": "hashfield[tiff]",
    "tensorboard": "hashfield[tensorboard]",
    "av": "imageio[pyav]",
    "imageio": "imageio[pyav]",
    "xatlas": "hashfield[texture]",
    "fast_simplification": "hashfield[texture]",
    "trimesh": "hashfield[mesh]",
    "skimage": "hashfield[mesh]",
    "scipy": "hashfield[mesh]",
    "viser": "hashfield[view]",
}


def usage() -> str:
    """The text of `hashfield --help`."""
    lines = [f"  {verb:10s}{summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(
        [
            "usage: hashfield VERB ... [--debug]",
            "",
            "Neural graphics primitives on any computer: posed photos, pictures or meshes in, small models out.",
            "",
            *lines,
            "",
            "  hashfield VERB --help   options of a verb",
            "  --debug                 show the traceback of an error",
            "  --version               print the version",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code: 0 done, 2 the user's mistake, 130 interrupted, 1 a bug."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """The exit code of a command."""
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _say(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        _say(f"hashfield {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        return _fail(f"unknown command {verb!r}: expected one of {', '.join(VERBS)}")
    try:
        with _among_ranks(verb):
            return importlib.import_module(VERBS[verb][0]).main(rest) or 0
    except HashfieldError as error:
        if debug:
            raise
        return _fail(str(error).replace("\n", " "))
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if debug or name not in EXTRAS:
            raise
        return _fail(f"this needs the package {name}: pip install '{EXTRAS[name]}'")
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has left (`| head`); Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk or a missing permission is the user's to mend; an error that names neither is a bug.
        if debug or (error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT)):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{where}{error.strerror or error}")
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name's sake
            raise
        return _fail("out of GPU memory: try --device cpu, or smaller pictures")
    except MemoryError:
        return _fail("out of memory: close other programs, or try smaller pictures or a smaller part of them")


RANKS_SHARE = ("train", "render", "evaluate", "sweep")
"""Verbs whose work several processes, started by torchrun, do together."""


def _among_ranks(verb: str) -> AbstractContextManager[object]:
    """Within the block this process is one of those that torchrun has started, if it has."""
    if os.environ.get("WORLD_SIZE", "1").strip() in ("", "0", "1"):
        return nullcontext()
    # Of a host that does not answer, torch prints a page at each of many tries, and then raises what we say. It reads
    # this when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from hashfield.errors import ConfigError
    from hashfield.steps.joining import joined

    if verb not in RANKS_SHARE:
        if os.environ.get("RANK", "0") != "0":
            sys.exit(2)  # the first one says it
        raise ConfigError(f"{verb}: is not shared among processes; start it without torchrun")
    return joined()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(text: str, code: int = 2) -> int:
    sys.stderr.write(f"hashfield: {text}\n")
    return code

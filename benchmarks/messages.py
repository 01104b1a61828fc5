"""Prints, as Markdown tables, what the readers say about each broken or odd data set, picture and mesh of the tests.

python benchmarks/messages.py
"""

import importlib.util
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.data import mesh_cases
from tests.data.broken_cases import CASES, PICTURE_CASES, Case, PictureCase

from hashfield.data import load_scene
from hashfield.data.meshes import read_mesh
from hashfield.data.pictures import read_picture
from hashfield.errors import ConfigError, DataError
from hashfield.tasks.sdf import MeshInUnitSpace


def message(case: Case, folder: Path) -> str:
    """The line that the case is about, with the temporary folder's name left out."""
    path = case.build(folder)
    try:
        notes = load_scene(path, case.options).notes
        text = next((note for note in notes if re.search(case.expected, note)), "")
        text = f"read: {text}" if case.outcome == "note" else "read, nothing to say"
    except DataError as error:
        text = f"**error**: {error}"
    return text.replace(str(folder), "DIR").replace("|", "\\|")


def picture_message(case: PictureCase, folder: Path) -> str:
    """The line that a picture's case is about."""
    path = case.build(folder)
    try:
        notes = read_picture(path, max_pixels=case.max_pixels).notes
        text = "read: " + next((note for note in notes if re.search(case.expected, note)), "")
    except (DataError, ConfigError) as error:
        text = f"**error**: {error}"
    return text.replace(str(folder), "DIR").replace("|", "\\|")


def mesh_message(case: mesh_cases.MeshCase, folder: Path) -> str:
    """All lines about a mesh."""
    path = case.build(folder)
    try:
        mesh = read_mesh(path)
        text = "read: " + "; ".join([*mesh.notes, *MeshInUnitSpace(mesh).notes()])
    except DataError as error:
        text = f"**error**: {error}"
    return text.replace(str(folder), "DIR").replace("|", "\\|")


def main() -> None:
    """Print the tables."""
    print("| case | what the user gets |\n|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {case.situation} | {message(case, Path(folder).resolve())} |")
    print("\n| picture | what the user gets |\n|---|---|")
    for case in PICTURE_CASES:
        if case.needs is not None and importlib.util.find_spec(case.needs) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {case.situation} | {picture_message(case, Path(folder).resolve())} |")
    print("\n| mesh | what the user gets |\n|---|---|")
    for case in mesh_cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {case.situation} | {mesh_message(case, Path(folder).resolve())} |")


if __name__ == "__main__":
    main()

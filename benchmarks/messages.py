"""Prints, as Markdown tables, what the readers say about each broken or odd data set and mesh of the tests.

python benchmarks/messages.py
"""

import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.data import mesh_cases
from tests.data.broken_cases import CASES, Case

from hashfield.data import load_scene
from hashfield.data.meshes import read_mesh
from hashfield.errors import DataError
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


def mesh_message(case: mesh_cases.MeshCase, folder: Path) -> str:
    """The same for a mesh."""
    path = case.build(folder)
    try:
        mesh = read_mesh(path)
        notes = [*mesh.notes, *MeshInUnitSpace(mesh).notes()]
        text = "read: " + "; ".join(notes)
    except DataError as error:
        text = f"**error**: {error}"
    return text.replace(str(folder), "DIR").replace("|", "\\|")


def main() -> None:
    """Print the tables."""
    for cases, text in ((CASES, message), (mesh_cases.CASES, mesh_message)):
        print("| case | what the user gets |\n|---|---|")
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {case.situation} | {text(case, Path(folder).resolve())} |")
        print()


if __name__ == "__main__":
    main()

"""Prints, as a Markdown table, what the loader says about each broken or odd data set of the tests.

python benchmarks/messages.py
"""

import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.data.broken_cases import CASES, Case

from hashfield.data import load_scene
from hashfield.errors import DataError


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


def main() -> None:
    """Print the table."""
    print("| case | what the user gets |\n|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {case.situation} | {message(case, Path(folder).resolve())} |")


if __name__ == "__main__":
    main()

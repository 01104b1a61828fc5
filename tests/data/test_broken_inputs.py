"""What users are told about broken and odd data: one table of cases, one line each."""

import re
from pathlib import Path

import pytest

from hashfield.data import load_scene
from hashfield.errors import DataError
from tests.data.broken_cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    if case.outcome == "error":
        with pytest.raises(DataError, match=case.expected) as error:
            load_scene(path, case.options)
        text = str(error.value)
        assert "\n" not in text
        assert text.startswith(str(tmp_path)), "names the file"
        return
    scene = load_scene(path, case.options)
    assert re.search(case.expected, "\n".join(scene.notes)), scene.notes
    assert all("\n" not in note for note in scene.notes)
    if case.outcome == "silent":
        # counts, splits, spaces, box: nothing more
        assert len(scene.notes) == 4, scene.notes
        assert not any(note.startswith("warning") for note in scene.notes)


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)

"""What users are told about broken and odd data: one table of cases, one line each."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hashfield.data import load_scene
from hashfield.data.posed_frames import REFUSED
from hashfield.errors import DataError, HashfieldError
from hashfield.geometry.cameras import camera_rays
from tests.data.broken_cases import CASES, Case
from tests.data.small_scenes import document, write_json, write_scene


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


# --- anything at all in place of any value

BIG = 10**400
ODD_VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        2.5,
        1e-320,
        1e300,
        BIG,
        math.nan,
        math.inf,
        "",
        "x\ny",
        "../..",
        [],
        [[]],
        {},
        [1] * 4,
        [[0] * 4] * 4,
        {"a": 1},
        [None],
        "images/0002.png",
        -1e9,
        1e9,
        3,
        "\ud800",
        "a\x00b",
    ]
)
FIELDS = (
    *("fl_x", "fl_y", "w", "h", "cx", "cy", "camera_angle_x", "x_fov", "k1", "k2", "k3", "k4", "p1", "p2"),
    *("distortion_params", "camera_model", "is_fisheye", "aabb_scale", "scale", "offset", "aabb", "n_frames", "time"),
    *("train_filenames", "val_filenames", "test_filenames", "frames", "camera", "enable_ray_loading"),
    *("file_path", "transform_matrix", "sharpness", "rolling_shutter", *REFUSED),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.sampled_from([None, 0, 1, 3]), st.sampled_from(FIELDS), ODD_VALUES), min_size=1, max_size=2
    )
)
@example(changes=[(None, "x_fov", 1e-320)])
@example(changes=[(None, "camera_angle_x", 5e-324)])
@example(changes=[(None, "fl_x", 1e308), (None, "fl_y", 1e-320)])
def test_odd_values_end_in_one_line(small_folder: Path, changes: list[tuple[int | None, str, object]]) -> None:
    values = document(4)
    for place, name, value in changes:
        frames = values["frames"]
        if place is None:
            values[name] = value
        elif isinstance(frames, list) and len(frames) > place:
            frames[place][name] = value
    write_json(small_folder / "transforms.json", values)
    try:
        scene = load_scene(small_folder)
    except HashfieldError as error:
        assert "\n" not in str(error)
    else:
        assert all("\n" not in note for note in scene.notes)
        for views in scene.splits.values():
            for camera in views.cameras:
                assert bool(torch.isfinite(camera_rays(camera)[1]).all())


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four images."""
    return write_scene(tmp_path_factory.mktemp("odd"), 4)

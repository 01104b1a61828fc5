"""Captures of other programs that are not read: one line says what they are and what to do."""

from pathlib import Path

import pytest

from hashfield.cli.main import run
from tests.data.small_scenes import picture, save

METASHAPE = '<?xml version="1.0"?><document version="2.0.0"><chunk label="1"><sensors next_id="1"/></chunk></document>'
CASES = {
    "metashape_cameras": (["cameras.xml"], METASHAPE, "cameras.xml", "Metashape"),
    "metashape_project": (["scan.psx", "scan.files/0/chunk.zip"], "", ".", "Metashape"),
    "reality_project": (["a.rcproj", "images/1.jpg"], "", ".", "RealityCapture"),
    "reality_table": (
        ["out.csv"],
        "#name,x,y,alt,heading,pitch,roll\na.jpg,0,0,0,0,0,0\n",
        "out.csv",
        "RealityCapture",
    ),
    "reality_sidecars": (["1.jpg", "1.xmp"], '<x:xmpmeta xcr:Version="3"/>', ".", "RealityCapture"),
    "polycam": (["keyframes/images/1.jpg", "keyframes/cameras/1.json", "mesh_info.json"], "{}", ".", "Polycam"),
    "record3d_folder": (["rgbd/0.jpg", "rgbd/0.depth", "metadata"], "{}", ".", "Record3D"),
    "record3d_file": (["a.r3d"], "PK", "a.r3d", "Record3D"),
    "opensfm": (["reconstruction.json", "images/1.jpg"], "[]", ".", "OpenSfM"),
    "meshroom": (["scene.mg"], "{}", ".", "Meshroom"),
    "video": (["walk.MOV"], "x", "walk.MOV", "hashfield prepare"),
    "folder_of_a_video": (["clip {1}.mp4"], "x", ".", "hashfield prepare"),
    "archive": (["photos.zip"], "PK", "photos.zip", "unpack it"),
    "folder_of_an_archive": (["photos.tar.gz"], "x", ".", "unpack it"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_is_named_with_a_remedy(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    files, text, named, wanted = CASES[case]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jpg"):
            save(tmp_path / name, picture(0, alpha=False), "RGB")
        else:
            (tmp_path / name).write_text(text)
    assert run(["train", "nerf", str(tmp_path / named), "--n-steps", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "which is not read: " in said and wanted in said
    if any(name.endswith(".jpg") for name in files):
        assert f"hashfield prepare {tmp_path}" in said


def test_what_is_not_known_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.xml").write_text("<notes/>")
    (tmp_path / "table.csv").write_text("a,b\n")
    assert run(["train", "nerf", str(tmp_path), "--n-steps", "1"]) == 2
    assert "which is not read" not in capsys.readouterr().err

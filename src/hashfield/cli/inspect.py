"""`hashfield inspect PATH`: what is wrong with a capture, photo by photo, before it is trained on."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from hashfield.cli.findings import say_findings
from hashfield.cli.prepare import StageView, n_threads
from hashfield.cli.shared import parse, say
from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.data.dataset import GIB
from hashfield.data.doctor import Diagnosis, PhotoFigures, examine
from hashfield.data.json_fields import some
from hashfield.data.photo_checks import READ_SIDE
from hashfield.data.prepared_set import rotation_between
from hashfield.data.structure_from_motion import has_pycolmap
from hashfield.export.inspect_page import PageFinding, PhotoCard, Plan, write_inspection
from hashfield.geometry.paths import up_axis


@dataclass(frozen=True)
class Inspect:
    """Look at photos and cameras for what will make a bad result, and write a page with pictures.

    With pip install 'hashfield[photos]', features of the photos are matched too, which shows wrong poses."""

    path: Annotated[Path, tyro.conf.Positional]
    """Folder or file of posed photos, as for train nerf."""
    out: Path | None = None
    """The page; default: inspect-<name of the data>.html here."""
    quick: bool = False
    """Do not match features."""
    aabb_scale: int | None = None
    """Side of the training box, a power of two up to 128; default: the file's, or chosen."""
    camera_axes: Literal["opengl", "opencv"] = "opengl"
    """Axes of the cameras in the file, see train nerf."""
    max_image_memory: float = 4.0
    """GiB that the photos may take; they are reduced to about 800 pixels."""
    threads: int | None = None
    """Threads; default: one for each CPU."""


def main(arguments: list[str]) -> int:
    """Run the verb: 0 even where something is found."""
    options = parse(Inspect, arguments, "inspect")
    began = time.perf_counter()
    read = ReadOptions(
        aabb_scale=options.aabb_scale, camera_axes=options.camera_axes, longest_side=READ_SIDE,
        max_image_memory=int(options.max_image_memory * GIB),
    )  # fmt: skip
    scene = load_scene(options.path, read)
    for note in scene.notes:
        say(note)
    if not options.quick and not has_pycolmap():
        say("features are not matched: pip install 'hashfield[photos]' to have wrong poses found")
    with StageView() as view:
        diagnosis = examine(
            scene,
            not options.quick,
            lambda done, total: view.show("features and matches", done, total),
            n_threads(options.threads),
        )
    say_findings(diagnosis.findings)
    for name, value in diagnosis.facts:
        say(f"{name}: {value}")
    page = options.out or Path(f"inspect-{scene.name}.html")
    write_page(page, scene, diagnosis)
    count = len(diagnosis.findings)
    say(f"{count or 'no'} finding{'' if count == 1 else 's'} in {time.perf_counter() - began:.0f} s; page: {page}")
    return 0


def write_page(path: Path, scene: Scene, diagnosis: Diagnosis) -> None:
    """Write the page of pictures.

    Args:
        path: Where.
        scene: What was examined.
        diagnosis: What was found.
    """
    why: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        for name in finding.photos:
            why.setdefault(name, []).append(finding.text)
    names = [photo.name for photo in diagnosis.photos]
    # seen along the cameras' own up, whatever the world's is
    turn = rotation_between(up_axis(diagnosis.cameras).numpy(), np.array([0.0, 0.0, 1.0]))[:2]
    position = torch.stack([camera.position for camera in diagnosis.cameras]).numpy()
    forward = torch.stack([camera.forward for camera in diagnosis.cameras]).numpy()
    half = 0.5 * scene.spaces.aabb_scale / scene.spaces.scale
    corners = scene.spaces.box_center_world.numpy() + half * np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    plan = Plan(
        position @ turn.T, forward @ turn.T, names, np.array([name in why for name in names]), corners @ turn.T,
        None if diagnosis.points is None else diagnosis.points @ turn.T,
    )  # fmt: skip
    findings = [PageFinding(some(f.photos, 12), f.text, f.remedy) for f in diagnosis.findings]
    cards = [PhotoCard(photo.name, photo.small, _figures(photo), why.get(photo.name, ())) for photo in diagnosis.photos]
    write_inspection(path, f"{scene.name}: photos and cameras", findings, diagnosis.facts, plan, cards)


def _figures(photo: PhotoFigures) -> list[tuple[str, str, bool]]:
    rows = [
        ("sharpness", f"{photo.sharpness:.2f} of neighbours", photo.sharpness < 0.55),
        ("exposure", f"{photo.stops:+.2f} stops", abs(photo.stops) > 0.8),
    ]
    if photo.n_points is not None:
        rows.append(("points", str(photo.n_points), photo.n_points < 30))
    if photo.error is not None:
        rows.append(("error", f"{photo.error:.2f} px of 1000", photo.error > 12))
    if photo.agreement is not None:
        rows.append(("fits others", f"{100 * photo.agreement:.0f} %", photo.agreement < 0.3))
    rows.append(("view in the box", f"{100 * photo.share_in_box:.0f} %", photo.share_in_box < 0.3))
    rows.append(("used for", photo.split, False))
    if photo.nearest:
        rows.append(("nearest", ", ".join(Path(name).name for name in photo.nearest), False))
    return rows

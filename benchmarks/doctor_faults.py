"""Plants known faults into captures and tells what `hashfield inspect` says of them, and of the captures as they are.

    python benchmarks/doctor_faults.py DATA [DATA ...] [--quick] [--longest-side 800]

Photos are blurred (Gaussian, 3 pixels of a picture of 800), darkened by two stops, mirrored, given twice; two poses are
exchanged, one camera is moved far away; then, in runs of their own, all matrices are inverted, and the focal length along
y is scaled by the picture's width to height. A line for each fault: found or missed; everything else that is said of any
photo is counted as a false alarm, and so is whatever is said of the capture as it is.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from hashfield.data import ReadOptions, Scene, load_scene
from hashfield.data.dataset import PosedImages
from hashfield.data.doctor import Diagnosis, examine
from hashfield.data.photo_checks import READ_SIDE
from hashfield.data.pose_checks import inverted


def one_split(scene: Scene) -> Scene:
    """The scene with all views in one split, in the order of their names."""
    views = {}
    for split in scene.splits.values():
        for name, camera, image in zip(split.names, split.cameras, split.images, strict=True):
            views[name] = (camera, image)
    names = tuple(sorted(views))
    cameras, images = (tuple(views[name][k] for name in names) for k in (0, 1))
    return replace(scene, splits={"train": PosedImages(cameras, images, names)})


def with_views(scene: Scene, cameras, images, names) -> Scene:
    """The scene with other views."""
    return replace(scene, splits={"train": PosedImages(tuple(cameras), tuple(images), tuple(names))})


def plant(scene: Scene) -> tuple[Scene, dict[str, set[str]]]:
    """The scene with a fault of each kind, and the names of the photos that have it."""
    views = scene.splits["train"]
    cameras, images, names = list(views.cameras), [image.copy() for image in views.images], list(views.names)
    n = len(names)
    # spread over the capture, so that no photo is another one's neighbour
    blurred, dark, mirrored, stray, first, second, twice = (round((k + 0.5) * n / 7) for k in range(7))
    sigma = 3 * max(images[blurred].shape[:2]) / 800
    blur = Image.fromarray(images[blurred]).filter(ImageFilter.GaussianBlur(sigma))
    images[blurred] = np.array(blur)
    linear = (images[dark][..., :3] / 255.0) ** 2.2 / 4
    images[dark][..., :3] = (255 * linear ** (1 / 2.2)).round()
    images[mirrored] = np.ascontiguousarray(images[mirrored][:, ::-1])
    pose = cameras[stray].camera_to_world.clone()
    position = torch.stack([camera.position for camera in cameras])
    pose[:, 3] = position.mean(dim=0) + 100 * (pose[:, 3] - position.mean(dim=0))
    cameras[stray] = cameras[stray].moved(pose)
    a, b = cameras[first].camera_to_world, cameras[second].camera_to_world
    cameras[first], cameras[second] = cameras[first].moved(b), cameras[second].moved(a)
    cameras.append(cameras[twice])
    images.append(images[twice])
    names.append(f"copy_of_{Path(names[twice]).name}")
    wanted = {
        "blurred": {names[blurred]},
        "exposure": {names[dark]},
        "mirrored": {names[mirrored]},
        "stray": {names[stray]},
        "swapped": {names[first], names[second]},
        "duplicate": {names[twice], names[-1]},
    }
    return with_views(scene, cameras, images, names), wanted


EQUIVALENT = {"swapped": ("swapped", "pose"), "mirrored": ("mirrored", "pose"), "stray": ("stray", "pose")}


def tell(diagnosis: Diagnosis, wanted: dict[str, set[str]], usual: set[tuple[str, str]]) -> None:
    """Print what was found of the planted faults, and what was said beside."""
    said: dict[str, set[str]] = {}
    for finding in diagnosis.findings:
        for name in finding.photos or ("",):
            said.setdefault(finding.kind, set()).add(name)
    for kind, names in wanted.items():
        exact = names <= said.get(kind, set())
        near = names <= set().union(*(said.get(k, set()) for k in EQUIVALENT.get(kind, (kind,))))
        print(f"  {kind:10s} {'found' if exact else 'found as a wrong pose' if near else 'MISSED'}")
    planted = set().union(*wanted.values())
    others = [
        (kind, name)
        for kind, names in said.items()
        for name in sorted(names)
        if (name not in planted and (kind, name) not in usual and kind not in wanted)
        or (name and name not in planted and (kind, name) not in usual)
    ]
    print(f"  said of other photos: {len(others)} {others[:6]}")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true", help="without matching features")
    parser.add_argument("--longest-side", type=int, default=READ_SIDE)
    options = parser.parse_args()
    for path in options.data:
        scene = one_split(load_scene(path, ReadOptions(longest_side=options.longest_side)))
        began = time.perf_counter()
        plain = examine(scene, not options.quick)
        print(f"{path.name}: {len(plain.photos)} photos, examined in {time.perf_counter() - began:.1f} s")
        print(f"  as it is: {len(plain.findings)} findings")
        for finding in plain.findings:
            print(f"    {finding.kind}: {finding.line()}")
        usual = {(finding.kind, name) for finding in plain.findings for name in finding.photos or ("",)}
        faulty, wanted = plant(scene)
        tell(examine(faulty, not options.quick), wanted, usual)
        views = scene.splits["train"]
        turned = with_views(scene, inverted(views.cameras, scene.camera_axes), views.images, views.names)
        tell(examine(turned, not options.quick), {"inverted": {""}}, usual)
        first = views.cameras[0]
        if first.width != first.height:
            scaled = [type(c).from_dict({**c.to_dict(), "fy": c.fy * c.width / c.height}) for c in views.cameras]
            found = examine(with_views(scene, scaled, views.images, views.names), not options.quick)
            told = any(finding.kind == "aspect" for finding in found.findings)
            print(f"  {'aspect':10s} {'found' if told else 'MISSED'}")


if __name__ == "__main__":
    main()

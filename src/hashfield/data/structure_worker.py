"""One stage of structure from motion with pycolmap, in a process of its own.

pycolmap's C++ cannot be interrupted, aborts the process on some errors and takes memory that it does not give back. So
`hashfield.data.structure_from_motion` runs `python -P structure_worker.py`. This file imports nothing of hashfield:
torch would cost two seconds at each stage. A job is a JSON object on standard input; lines of JSON on standard output
tell the progress ({"done": 3, "total": 50}) and, at last, the result ({"result": ...} or {"error": "..."}).
"""

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image  # noqa: F401  before pycolmap, which otherwise aborts the process when Pillow is loaded
import pycolmap

CHUNK = 8
"""Photos, or eights of pairs, between two lines about the progress."""


def say(message: dict[str, Any]) -> None:
    """One line for the parent; when that is gone, this process ends by the broken pipe."""
    print(json.dumps(message), flush=True)  # noqa: T201


def features(job: dict[str, Any]) -> dict[str, Any]:
    """Find the features of each photo, and make a camera for each group. Photos that have theirs are left alone."""
    database, done = Path(job["database"]), 0
    total = sum(len(group["names"]) for group in job["groups"])
    options = extraction_options(job, job["first_octave"])
    for group in job["groups"]:
        for start in range(0, len(group["names"]), CHUNK):
            reader = pycolmap.ImageReaderOptions(camera_model=group["model"], camera_params=group["params"])
            with pycolmap.Database.open(database) as opened:
                known = {image.name: image.camera_id for image in opened.read_all_images()}
            reader.existing_camera_id = next((known[name] for name in group["names"] if name in known), -1)
            names = group["names"][start : start + CHUNK]
            pycolmap.extract_features(
                database,
                job["photos"],
                image_names=names,
                camera_mode=pycolmap.CameraMode.SINGLE,
                reader_options=reader,
                extraction_options=options,
                device=pycolmap.Device.cpu,
            )
            done += len(names)
            say({"done": done, "total": total})
    return {}


def extraction_options(job: dict[str, Any], first_octave: int) -> Any:
    """How features are found. An octave of -1 looks at pictures of twice the size, which finds finer structure too."""
    options = pycolmap.FeatureExtractionOptions(num_threads=job["threads"], use_gpu=False)
    options.max_image_size = job["longest_side"]
    options.sift.max_num_features = job["features"]
    options.sift.first_octave = first_octave
    return options


def probe(job: dict[str, Any]) -> dict[str, Any]:
    """How many features a few photos have at their own size."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "database.db"
        pycolmap.extract_features(
            database,
            job["photos"],
            image_names=job["names"],
            camera_mode=pycolmap.CameraMode.AUTO,
            extraction_options=extraction_options(job, 0),
            device=pycolmap.Device.cpu,
        )
        with closing(sqlite3.connect(database)) as rows:
            return {"counts": [count for (count,) in rows.execute("SELECT rows FROM keypoints")]}


def match(job: dict[str, Any]) -> dict[str, Any]:
    """Match the features of pairs of photos and keep what one motion explains. Pairs that were matched stay so."""
    database, pairs = Path(job["database"]), job["pairs"]
    options = pycolmap.FeatureMatchingOptions(num_threads=job["threads"], use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = job["seed"]
    size = 8 * CHUNK
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(pairs), size):
            chunk = pairs[start : start + size]
            listed = Path(folder) / "pairs.txt"
            listed.write_text("".join(f"{first} {second}\n" for first, second in chunk))
            pycolmap.match_image_pairs(
                database,
                matching_options=options,
                pairing_options=pycolmap.ImportedPairingOptions(match_list_path=listed),
                verification_options=verification,
                device=pycolmap.Device.cpu,
            )
            say({"done": min(start + size, len(pairs)), "total": len(pairs)})
    return {}


def solve(job: dict[str, Any]) -> dict[str, Any]:
    """Poses, lenses and points from the matches; the largest model is adjusted once more and written to `out`."""
    options = pycolmap.IncrementalPipelineOptions(
        num_threads=job["threads"], random_seed=job["seed"], min_model_size=3, extract_colors=False
    )
    options.multiple_models = True
    total, done = job["n_photos"], 0

    def count() -> None:
        nonlocal done
        done += 1
        say({"done": min(done, total), "total": total})

    with tempfile.TemporaryDirectory() as folder:
        models = pycolmap.incremental_mapping(
            job["database"],
            job["photos"],
            folder,
            options,
            initial_image_pair_callback=count,
            next_image_callback=count,
        )
    pieces = sorted(models.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
    if not pieces:
        return {"pieces": []}
    best = adjusted(pieces[0], job["threads"], job["least_photos"])
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    best.write_binary(out)
    return {
        "pieces": [sorted(piece.image(k).name for k in piece.reg_image_ids()) for piece in pieces],
        **description(best),
    }


LENSES = (("SIMPLE_RADIAL", False), ("RADIAL", False), ("RADIAL", True), ("OPENCV", True))
"""Lenses that are tried for a camera with enough photos, the simplest first: model, and whether the principal point is
free. All but the last have square pixels."""
AS_GOOD = 1.005
"""A simpler lens is taken if its error is at most so many times that of the best one."""


def adjusted(model: Any, threads: int, least_photos: int) -> Any:
    """The model after an adjustment with the simplest lens that explains the photos as well as the others do.

    A lens with more terms always fits a little better. Where photos do not determine its terms (a turntable, a flat
    subject), these are arbitrary, and bend the whole scene: focal lengths came out 20 and 40 % too short.

    Args:
        model: A reconstruction.
        threads: For the adjustment.
        least_photos: Photos that a camera needs for its lens to be found; others keep theirs.
    """
    used: dict[int, int] = {}
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
        camera_id = model.image(image_id).camera_id
        used[camera_id] = used.get(camera_id, 0) + 1
    full = [camera_id for camera_id, n_photos in used.items() if n_photos >= least_photos]
    if not full:
        return model
    for camera_id in used:
        if camera_id not in full:
            config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    found, tried = model.__deepcopy__({}), []
    for name, has_free_center in LENSES:
        for camera_id in full:
            set_lens(found.cameras[camera_id], name)
        options = pycolmap.BundleAdjustmentOptions(refine_principal_point=has_free_center, print_summary=False)
        options.ceres.solver_options.num_threads = threads
        pycolmap.create_default_bundle_adjuster(options, config, found).solve()
        found.update_point_3d_errors()
        if all(is_central(found.cameras[camera_id]) for camera_id in full):
            tried.append((found.compute_mean_reprojection_error(), found.__deepcopy__({})))
    tried.append((model.compute_mean_reprojection_error(), model))
    least = min(error for error, _ in tried)
    return next(candidate for error, candidate in tried if error <= AS_GOOD * least)


def set_lens(camera: Any, name: str) -> None:
    """Give a camera one of LENSES, with what it knows of its own: square pixels, and a principal point in the middle
    where its lens so far had none of its own to be trusted."""
    values = dict(zip(camera.params_info.replace(" ", "").split(","), camera.params, strict=True))
    focal = values["f"] if "f" in values else (values["fx"] * values["fy"]) ** 0.5
    center = (values["cx"], values["cy"]) if "f" in values else (camera.width / 2, camera.height / 2)
    terms = (values.get("k", values.get("k1", 0.0)), values.get("k2", 0.0)) if "f" in values else (0.0, 0.0)
    camera.model = getattr(pycolmap.CameraModelId, name)
    camera.params = {
        "SIMPLE_RADIAL": (focal, *center, terms[0]),
        "RADIAL": (focal, *center, *terms),
        "OPENCV": (focal, focal, *center, *terms, 0.0, 0.0),
    }[name]


def is_central(camera: Any) -> bool:
    """Whether the principal point is where a real camera can have it."""
    shares = (camera.principal_point_x / camera.width, camera.principal_point_y / camera.height)
    return all(0.35 < share < 0.65 for share in shares)


def description(model: Any) -> dict[str, Any]:
    """Cameras, poses and figures of a model as plain values."""
    errors = {k: point.error for k, point in model.points3D.items()}
    images = {}
    for image_id in model.reg_image_ids():
        image = model.image(image_id)
        seen = [errors[point.point3D_id] for point in image.points2D if point.has_point3D()]
        images[image.name] = {
            "id": image_id,
            "camera": image.camera_id,
            "camera_to_world": image.cam_from_world().inverse().matrix().tolist(),
            "points": len(seen),
            "error": float(np.mean(seen)) if seen else None,
        }
    return {
        "images": images,
        "cameras": {
            k: {"model": c.model_name, "width": c.width, "height": c.height, "params": list(map(float, c.params))}
            for k, c in model.cameras.items()
        },
        "points": [point.xyz.tolist() for point in model.points3D.values()],
        "error": float(model.compute_mean_reprojection_error()),
        "track_length": float(model.compute_mean_track_length()),
    }


def write(job: dict[str, Any]) -> dict[str, Any]:
    """Write the model of `solve` in another world and for photos of other names and sizes, with the points as PLY."""
    model = pycolmap.Reconstruction(job["model"])
    model.extract_colors_for_all_images(job["photos"])
    move = job["world"]
    rotation = pycolmap.Rotation3d(np.array(move["rotation"]))
    model.transform(pycolmap.Sim3d(move["scale"], rotation, np.array(move["translation"])))
    ratios = {}
    for camera_id, camera in model.cameras.items():
        width, height = job["sizes"][str(camera_id)]
        ratios[camera_id] = (width / camera.width, height / camera.height)
        camera.rescale(width, height)
    for image in model.images.values():
        ratio = np.array(ratios[image.camera_id])
        for point in image.points2D:
            point.xy = point.xy * ratio
        image.name = job["names"].get(image.name, image.name)
    model.update_point_3d_errors()
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    model.write_binary(out)
    model.export_PLY(out / "sparse.ply")
    return description(model)


STAGES = {"probe": probe, "features": features, "match": match, "solve": solve, "write": write}


def main() -> None:
    """Run the job on standard input."""
    job = json.load(sys.stdin)
    pycolmap.logging.minloglevel = pycolmap.logging.Level.WARNING.value
    pycolmap.set_random_seed(job.get("seed", 0))
    try:
        say({"result": STAGES[job["stage"]](job)})
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
    except Exception as error:  # whatever the library raises is told to the parent, which knows what was done
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()

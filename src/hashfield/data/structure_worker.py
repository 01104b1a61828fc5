"""One stage of structure from motion with pycolmap, in a process of its own.

pycolmap's C++ cannot be interrupted, aborts the process on some errors and takes memory that it does not give back. So
`hashfield.data.structure_from_motion` runs `python -P structure_worker.py`. This file imports nothing of hashfield:
torch would cost two seconds at each stage. A job is a JSON object on standard input; lines of JSON on standard output
tell the progress ({"done": 3, "total": 50}) and, at last, the result ({"result": ...} or {"error": "..."}).
"""

import json
import sys
import tempfile
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
    options = pycolmap.FeatureExtractionOptions(num_threads=job["threads"], use_gpu=False)
    options.max_image_size = job["longest_side"]
    options.sift.max_num_features = job["features"]
    options.sift.first_octave = 0
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
    best = adjusted(pieces[0], job["threads"], job["least_for_center"])
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    best.write_binary(out)
    return {
        "pieces": [sorted(piece.image(k).name for k in piece.reg_image_ids()) for piece in pieces],
        **description(best),
    }


def adjusted(model: Any, threads: int, least_for_center: int) -> Any:
    """The model after an adjustment in which the principal points of cameras with enough photos are free, or the model
    itself where that throws one of them off.

    Args:
        model: A reconstruction.
        threads: For the adjustment.
        least_for_center: Photos that a camera needs for its principal point to be free.
    """
    used: dict[int, int] = {}
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
        camera_id = model.image(image_id).camera_id
        used[camera_id] = used.get(camera_id, 0) + 1
    free = [camera_id for camera_id, n_photos in used.items() if n_photos >= least_for_center]
    if not free:
        return model
    for camera_id in used:
        if camera_id not in free:
            config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions(refine_principal_point=True, print_summary=False)
    options.ceres.solver_options.num_threads = threads
    before = model.compute_mean_reprojection_error()
    found = model.__deepcopy__({})
    pycolmap.create_default_bundle_adjuster(options, config, found).solve()
    found.update_point_3d_errors()
    for camera_id in free:
        camera = found.cameras[camera_id]
        shares = (camera.principal_point_x / camera.width, camera.principal_point_y / camera.height)
        if not all(0.35 < share < 0.65 for share in shares):
            return model
    return found if found.compute_mean_reprojection_error() <= before else model


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


def main() -> None:
    """Run the job on standard input."""
    job = json.load(sys.stdin)
    pycolmap.logging.minloglevel = pycolmap.logging.Level.WARNING.value
    pycolmap.set_random_seed(job.get("seed", 0))
    try:
        say({"result": {"features": features, "match": match, "solve": solve, "write": write}[job["stage"]](job)})
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
    except Exception as error:  # whatever the library raises is told to the parent, which knows what was done
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()

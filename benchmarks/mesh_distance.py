"""Queries per second of the libraries that answer "how far is this point from that mesh", and how right they are.

python benchmarks/mesh_distance.py MESH [--n 200000]

Each library that is installed gets the same points, in the order of the points given, not sorted: half of them near
the surface (surface + logistic noise of standard deviation 8.5e-4, as the training draws them), half uniform in the
mesh's box. `others run` is the speed of a pure Python thread while a query runs, over its speed alone: near 0 where the
library holds the interpreter lock. Errors are against libigl's float64 distances with angle-weighted normals for the sign, which is exact for
a closed mesh. `rate` counts both what the library returns and what it takes to have it as arrays.
"""

import argparse
import importlib.metadata
import threading
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch
import trimesh

Query = Callable[[np.ndarray], np.ndarray]


def normalised(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices in the unit cube, faces; equal positions merged."""
    mesh = trimesh.load(path, process=False)
    mesh = mesh.to_mesh() if isinstance(mesh, trimesh.Scene) else mesh
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    v, f = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    low, high = v.min(0), v.max(0)
    return (v - (low + high) / 2) / (1.01 * (high - low).max()) + 0.5, f


def queries(v: np.ndarray, f: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Points near the surface and uniform ones."""
    rng = np.random.default_rng(0)
    a, b, c = v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]
    cumulated = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=1))
    face = np.searchsorted(cumulated, rng.random(n) * cumulated[-1])
    r, s = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
    surface = (1 - r) * a[face] + r * (1 - s) * b[face] + r * s * c[face]
    u = rng.random((n, 3))
    near = surface + np.log(u / (1 - u)) * 0.8660254 / 1024 * 0.5513289
    return {"near": near, "uniform": v.min(0) + rng.random((n, 3)) * (v.max(0) - v.min(0))}


def with_igl(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """libigl: float64, all threads, releases the interpreter lock or not as measured."""
    import igl

    tree = igl.AABB()
    tree.init(v, f)

    def signed(kind: object) -> Query:
        return lambda p: igl.signed_distance(p, v, f, kind)[0]

    def winding(p: np.ndarray) -> np.ndarray:
        distance = np.sqrt(tree.squared_distance(v, f, p)[0])
        return np.where(igl.fast_winding_number(v, f, p) > 0.5, -distance, distance)

    kinds = igl.SignedDistanceType
    return {
        "unsigned": lambda p: np.sqrt(tree.squared_distance(v, f, p)[0]),
        "signed, angle-weighted normals (tree built each call)": signed(kinds.SIGNED_DISTANCE_TYPE_PSEUDONORMAL),
        "signed, fast winding number": winding,
    }


def with_hashfield(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """libigl's tree asked in Morton order, with this package's own signs, as training uses it."""
    from hashfield.data.mesh_distance import DistanceQuery

    by_normals, by_winding = DistanceQuery(v, f, "normals"), DistanceQuery(v, f, "winding")
    return {
        "unsigned": by_normals.unsigned,
        "signed, angle-weighted normals": by_normals.signed,
        "signed, fast winding number": by_winding.signed,
    }


def with_pcu(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """point-cloud-utils: builds its tree in every call."""
    import point_cloud_utils as pcu

    return {
        "unsigned": lambda p: pcu.closest_points_on_mesh(p, v, f)[0],
        "signed, fast winding number": lambda p: pcu.signed_distance_to_mesh(p, v, f)[0],
    }


def with_open3d(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """Open3D's RaycastingScene, over Embree: float32, all threads."""
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(v.astype(np.float32)), o3d.core.Tensor(f.astype(np.uint32)))

    def signed(n_rays: int) -> Query:
        return lambda p: scene.compute_signed_distance(
            o3d.core.Tensor(p.astype(np.float32)), nsamples=n_rays
        ).numpy()  # fmt: skip

    return {
        "unsigned": lambda p: scene.compute_distance(o3d.core.Tensor(p.astype(np.float32))).numpy(),
        "signed, parity of 1 ray": signed(1),
        "signed, parity of 5 rays": signed(5),
    }


def with_warp(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """Warp on the CPU: float32, one thread a launch, here as many launches as threads."""
    import warp as wp

    wp.config.log_level = 30
    wp.init()
    points, indices = wp.array(v.astype(np.float32), dtype=wp.vec3), wp.array(f.astype(np.int32).ravel(), dtype=int)
    plain = wp.Mesh(points, indices)
    winding = wp.Mesh(wp.clone(points), indices, support_winding_number=True)

    def run(kernel: object, mesh: object) -> Query:
        def query(p: np.ndarray) -> np.ndarray:
            parts = np.array_split(np.ascontiguousarray(p, np.float32), torch.get_num_threads())
            found = [np.empty(len(part), np.float32) for part in parts]

            def work(k: int) -> None:
                given, got = wp.array(parts[k], dtype=wp.vec3, copy=False), wp.array(found[k], dtype=float, copy=False)
                wp.launch(kernel, len(parts[k]), [mesh.id, given, got])

            workers = [threading.Thread(target=work, args=(k,)) for k in range(len(parts))]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return np.concatenate(found)

        return query

    from mesh_distance_warp import no_sign, sign_normal, sign_parity, sign_winding

    return {
        "unsigned": run(no_sign, plain),
        "signed, angle-weighted normals": run(sign_normal, plain),
        "signed, parity": run(sign_parity, plain),
        "signed, fast winding number": run(sign_winding, winding),
    }


def with_fcpw(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """FCPW: float32; the answers arrive as a list of objects."""
    import fcpw

    scene = fcpw.scene_3D()
    scene.set_object_count(1)
    scene.set_object_vertices(np.asfortranarray(v, np.float32), 0)
    scene.set_object_triangles(np.asfortranarray(f, np.int32), 0)
    scene.build(fcpw.aggregate_type.bvh_surface_area, True)

    def closest(p: np.ndarray) -> object:
        found = fcpw.interaction_3D_list()
        bounds = np.full(len(p), 3.0e38, np.float32)
        scene.find_closest_points(np.asfortranarray(p, np.float32), bounds, found)
        return found

    def unsigned(p: np.ndarray) -> np.ndarray:
        return np.fromiter((i.d for i in closest(p)), np.float32, len(p))

    def raw(p: np.ndarray) -> np.ndarray:
        closest(p)
        return np.full(len(p), np.nan)

    return {"unsigned": unsigned, "unsigned, answers left in its own list": raw}


def with_trimesh(v: np.ndarray, f: np.ndarray) -> dict[str, Query]:
    """trimesh itself (needs rtree); rays through embreex if installed."""
    mesh = trimesh.Trimesh(v, f, process=False)

    def unsigned(p: np.ndarray) -> np.ndarray:
        return trimesh.proximity.closest_point(mesh, p[:2000])[1]

    def signed(p: np.ndarray) -> np.ndarray:
        return -trimesh.proximity.signed_distance(mesh, p[:2000])

    return {"unsigned": unsigned, "signed": signed}


LIBRARIES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], dict[str, Query]]]] = {
    "libigl": ("libigl", with_igl),
    "libigl, as hashfield asks it": ("libigl", with_hashfield),
    "point-cloud-utils": ("point-cloud-utils", with_pcu),
    "open3d": ("open3d", with_open3d),
    "warp": ("warp-lang", with_warp),
    "fcpw": ("fcpw", with_fcpw),
    "trimesh": ("trimesh", with_trimesh),
}


def busy_rate(query: Query, p: np.ndarray) -> float:
    """Loops per second of a pure Python thread while a query runs, over those while nothing runs: near 0 where the
    library holds the interpreter lock."""
    counts = [0]
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1

    worker = threading.Thread(target=count)
    worker.start()
    before, started = counts[0], time.perf_counter()
    query(p)
    during = (counts[0] - before) / (time.perf_counter() - started)
    before, started = counts[0], time.perf_counter()
    time.sleep(0.3)
    alone = (counts[0] - before) / (time.perf_counter() - started)
    stop.set()
    worker.join()
    return during / alone


def main() -> None:
    """Measure, print and append to results/mesh_distance.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mesh", type=Path)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--only", nargs="*", help="names of libraries")
    options = parser.parse_args()
    v, f = normalised(options.mesh)
    points = queries(v, f, options.n)
    import igl

    kind = igl.SignedDistanceType.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    truth = {where: igl.signed_distance(p, v, f, kind)[0] for where, p in points.items()}
    print(f"{options.mesh.name}: {len(v)} vertices, {len(f)} faces; others keep {common.other_load():.2f} cores busy")
    rows = []
    for name, (package, make) in LIBRARIES.items():
        if options.only and name not in options.only:
            continue
        try:
            version = importlib.metadata.version(package)
            started = time.perf_counter()
            found = make(v, f)
            build = time.perf_counter() - started
        except (ImportError, importlib.metadata.PackageNotFoundError) as error:
            print(f"{name}: left out: {error}")
            continue
        for what, query in found.items():
            row = {"mesh": options.mesh.name, "library": name, "version": version, "query": what, "build_s": build}
            for where, p in points.items():
                query(p[:1000])  # first use: compilation, thread pools
                seconds = []
                for _ in range(3):
                    started = time.perf_counter()
                    got = query(p)
                    seconds.append(time.perf_counter() - started)
                want = truth[where][: len(got)]
                error = np.abs(np.abs(got) - np.abs(want))
                row[f"{where}_per_s"] = len(got) / min(seconds)
                row[f"{where}_max_error"] = error.max()
                row[f"{where}_wrong_signs"] = (
                    float(np.mean((got < 0) != (want < 0))) if what.startswith("signed") else ""
                )
            row["lock_free"] = busy_rate(query, points["near"])
            rows.append(row)
            print(
                f"{name:28s} {what:52s} near {row['near_per_s']:9.0f}/s uniform {row['uniform_per_s']:9.0f}/s "
                f"error {row['near_max_error']:.1e} wrong signs {row['near_wrong_signs']!s:8.8} "
                f"{row['uniform_wrong_signs']!s:8.8} others run {row['lock_free']:.2f}"
            )
    common.append("mesh_distance", rows)


if __name__ == "__main__":
    main()

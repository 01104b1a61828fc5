"""Seconds and peak memory of a mesh, and whether it is watertight.

    python benchmarks/mesh.py sphere torus RUN ... --resolution 1024 [--suffix .ply]

Each mesh is made in a process of its own, so that its peak of resident memory is its own: loading, rendering depth,
sampling, marching cubes, clean-up, colours and encoding the file. sphere and torus are formulas, evaluated everywhere
near the surface. The file is read back by trimesh afterwards, outside the figures. File-backed pages (libraries) are
included in the peak and stated apart.
"""

import argparse
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import append, cpu_model, other_load, peak_memory_gb
from torch import Tensor

from hashfield.export.meshes import encode_mesh
from hashfield.tasks.mesh import Surface, surface_mesh


def sphere(p: Tensor) -> Tensor:
    return p.norm(dim=1) - 0.8


def torus(p: Tensor) -> Tensor:
    return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.6, p[:, 2]) - 0.3


FORMULAS = {"sphere": sphere, "torus": torus}


def file_backed_gb() -> float:
    """Resident pages of files (libraries, caches) of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssFile"].split()[0]) / 2**20


def formula_surface(name: str) -> Surface:
    distance = FORMULAS[name]
    return Surface(
        value=distance, level=0.0, box=(-1.0, -1.0, -1.0, 1.0, 1.0, 1.0), inside="below",
        shortcut=lambda c, r: torch.where(distance(c).abs() > r, distance(c), torch.nan),
    )  # fmt: skip


def measured(what: str, resolution: int, suffix: str, components: int, out: Path | None) -> dict[str, Any]:
    """One line of figures; runs in its own process."""
    own, start = time.process_time(), time.perf_counter()
    if what in FORMULAS:
        surface = formula_surface(what)
    else:
        from hashfield.api import load

        surface = load(what).surface(resolution=resolution)
    prepared = time.perf_counter()
    mesh, _ = surface_mesh(surface, resolution, n_components=components)
    meshed = time.perf_counter()
    content = encode_mesh(Path(f"x{suffix}"), mesh, surface.notes)
    end = time.perf_counter()
    share = (time.process_time() - own) / (end - start) / torch.get_num_threads()
    peak, backed = peak_memory_gb(), file_backed_gb()
    if out is not None:
        out.write_bytes(content)
    import trimesh

    read = trimesh.load(io.BytesIO(content), file_type=suffix[1:], force="mesh", process=suffix == ".stl")
    return {
        "what": Path(what).name, "resolution": resolution, "file": suffix, "components": components,
        "vertices": len(mesh.vertices), "triangles": len(mesh.faces), "level": f"{surface.level:.4g}",
        "box": " ".join(f"{v:.3f}" for v in surface.box), "watertight": bool(read.is_watertight),
        "winding_consistent": bool(read.is_winding_consistent), "file_MB": round(len(content) / 1e6, 1),
        "prepare_s": round(prepared - start, 1), "mesh_s": round(meshed - prepared, 1),
        "encode_s": round(end - meshed, 1), "own_cpu_share": round(share, 3), "peak_memory_GB": round(peak, 2),
        "of_it_files_GB": round(backed, 2), "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="+", help="sphere, torus, or a run folder")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--suffix", default=".ply", choices=[".ply", ".glb", ".stl", ".obj"])
    parser.add_argument("--components", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the file of the last mesh")
    parser.add_argument("--json", action="store_true", help="measure in this process and print the line")
    options = parser.parse_args()
    if options.json:
        print(
            json.dumps(measured(options.what[0], options.resolution, options.suffix, options.components, options.out))
        )
        return
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    for what in options.what:
        command = [sys.executable, __file__, what, "--json", "--resolution", str(options.resolution)]
        command += ["--suffix", options.suffix, "--components", str(options.components)]
        command += ["--out", str(options.out)] if options.out else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        append("mesh", [row])


if __name__ == "__main__":
    main()

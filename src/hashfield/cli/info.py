"""`hashfield info [RUN]`."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hashfield._version import __version__
from hashfield.cli.shared import parse, say
from hashfield.train.checkpoint import read_metadata, tensor_shapes
from hashfield.train.run_folder import RunFolder

SHOWN_ELSEWHERE = ("scene", "figures", "loop", "state", "cameras", "config")


@dataclass(frozen=True)
class Info:
    """Versions, CPU, kernels; with a run, what it holds."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run folder or checkpoint file."""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    options = parse(Info, arguments, "info")
    if options.run is None:
        about_this_machine()
    else:
        about_run(RunFolder.open(options.run))
    return 0


def about_this_machine() -> None:
    """Lines about versions, CPU and the backend of each op."""
    import numba
    import numpy
    import torch

    from hashfield.kernels.numba_cpu.common import cache_folder, is_cache_warm
    from hashfield.kernels.numba_cpu.target import ARE_TILES_EMULATED, LANES, PATH, available_paths
    from hashfield.ops.backend import available_backends, ops

    say(f"hashfield {__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        f"numba {numba.__version__}, numpy {numpy.__version__}")  # fmt: skip
    say(f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads, kernels for {PATH} ({LANES} lanes"
        f"{', tiles emulated' if ARE_TILES_EMULATED else ''}); "
        f"possible here: {', '.join(available_paths())}")  # fmt: skip
    say(f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none that torch can use'}")
    say(f"compiled kernels: {cache_folder()} ({'warm' if is_cache_warm() else 'empty'})")
    for op in ops():
        found = available_backends(op)
        say(f"  {op:20s}" + "; ".join(f"{name}: {reason or 'yes'}" for name, reason in found.items()))


def about_run(run: RunFolder) -> None:
    """Lines about a checkpoint, from its header alone."""
    metadata, shapes = read_metadata(run.checkpoint), tensor_shapes(run.checkpoint)
    size = run.checkpoint.stat().st_size
    figures, scene = metadata.get("figures", {}), metadata.get("scene", {})
    say(f"{run.checkpoint}: {metadata.get('task')}, {size / 1e6:.1f} MB, format {metadata['format_version']}, "
        f"written by hashfield {metadata.get('hashfield')}")  # fmt: skip
    say(f"scene: {scene.get('name')} from {scene.get('path')}")
    for name, value in metadata.items():  # what only some kinds of run have
        if name not in ("task", "hashfield", "format", "format_version", "torch", "python", *SHOWN_ELSEWHERE):
            say(f"{name}: {value}")
    say(f"trained: {figures.get('steps')} steps, {figures.get('train_seconds', 0):.1f} s, "
        f"{figures.get('n_rays', 0) / 1e6:.1f} M rays, {figures.get('n_samples', 0) / 1e6:.1f} M samples")  # fmt: skip
    loop = metadata.get("loop", {})
    if "state" in metadata:
        planned = f"{loop['n_steps']} steps" if loop.get("n_steps") else f"{loop.get('max_seconds')} s of training"
        say(f"planned for: {planned}; can be resumed: yes")
    else:
        say("can be resumed: no, this is an export")
    if "cameras" in metadata:
        say("cameras: " + ", ".join(f"{len(views)} {split}" for split, views in metadata["cameras"].items()))
    config = metadata.get("config", {})
    encoding = {k: v for k, v in config.get("encoding", {}).items() if k != "per_level_scale"}
    finest = config.get("finest_resolution")
    say(f"config: preset {config.get('preset')}, encoding {encoding}, finest resolution {finest}")
    for name, (shape, dtype) in shapes.items():
        if not name.startswith("optimizer."):
            say(f"  {name:40s} {dtype:5s} {list(shape)}")

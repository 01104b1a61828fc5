"""`hashfield info [RUN]`."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import tyro

from hashfield._version import __version__
from hashfield.cli.shared import parse, say
from hashfield.train.checkpoint import OpenCheckpoint
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
    """Lines about versions, CPU, GPU and the backend of each op."""
    import numba
    import numpy
    import torch

    from hashfield.ops.backend import available_backends, ops
    from hashfield.ops.machine import cpu_kernels, is_kernel_cache_warm

    say(f"hashfield {__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {version_of('triton')}, numba {numba.__version__}, numpy {numpy.__version__}")  # fmt: skip
    cpu = cpu_kernels()
    say(f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads, kernels for {cpu.path} ({cpu.lanes} lanes"
        f"{', tiles emulated' if cpu.are_tiles_emulated else ''}); "
        f"possible here, fastest first: {', '.join(cpu.possible_paths)}"
        + (f"; {cpu.reason}" if cpu.reason else ""))  # fmt: skip
    for line in about_gpus():
        say(line)
    say(f"compiled kernels: {cpu.cache} ({'warm' if is_kernel_cache_warm() else 'empty'})")
    has_gpu = torch.cuda.is_available()
    for op in ops():
        found = dict(available_backends(op))
        if found["triton"] is None and not has_gpu:
            found["triton"] = "no GPU that torch can use"
        order = ("triton", "numba", "reference")
        say(f"  {op:20s}{next(name for name in order if found[name] is None):10s}"
            + "; ".join(f"{name}: {found[name] or 'yes'}" for name in order))  # fmt: skip
    from hashfield.tcnn.coverage import coverage

    say("modules of tinycudann (hashfield.tcnn) run in:")
    for kind, where in coverage():
        say(f"  {kind:44s}{where}")


def about_gpus() -> list[str]:
    """Lines about the GPUs that torch sees, or why none is used and what would help."""
    import torch

    lines = []
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(k)
            lines.append(
                f"GPU: {card.name}, capability {card.major}.{card.minor}, {card.total_memory / 2**30:.1f} GiB, "
                f"{card.multi_processor_count} multiprocessors"
            )
        if version_of("triton") == "not installed":
            lines.append("GPU kernels need triton, which is not installed: pip install triton (Linux, and torch's own "
                         "version of it); until then the CPU is used")  # fmt: skip
        elif not torch.version.hip and torch.cuda.get_device_capability() < (8, 0):
            lines.append("GPU kernels are made for capability 8.0 and newer; on this card they are untried")
    elif torch.version.cuda or torch.version.hip:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm"
        lines.append(f"GPU: none; torch is built for {built}, so a driver is missing, or the card is hidden")
    else:
        lines.append("GPU: none that torch can use: this torch is built for CPUs; install its CUDA or ROCm build to "
                     "use a card")  # fmt: skip
    if torch.xpu.is_available():
        lines.append("xpu: torch sees it; --device xpu runs the plain torch reference, which is slow")
    if torch.backends.mps.is_available():
        lines.append("mps: torch sees it, but it has no float64, which rays are made in; the CPU is used")
    return lines


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def about_run(run: RunFolder) -> None:
    """Lines about a checkpoint, from its header alone."""
    checkpoint = OpenCheckpoint(run.checkpoint)
    stored, shapes = checkpoint.metadata, checkpoint.shapes()
    size = run.checkpoint.stat().st_size
    figures, scene = stored.get("figures", {}), stored.get("scene", {})
    say(f"{run.checkpoint}: {stored.get('task')}, {size / 1e6:.1f} MB, format {stored['format_version']}, "
        f"written by hashfield {stored.get('hashfield')}")  # fmt: skip
    say(f"scene: {scene.get('name')} from {scene.get('path')}")
    for name, value in stored.items():  # what only some kinds of run have
        if name not in ("task", "hashfield", "format", "format_version", "torch", "python", *SHOWN_ELSEWHERE):
            say(f"{name}: {value}")
    say(f"trained: {figures.get('steps')} steps, {figures.get('train_seconds', 0):.1f} s, "
        f"{figures.get('n_rays', 0) / 1e6:.1f} M rays, {figures.get('n_samples', 0) / 1e6:.1f} M samples")  # fmt: skip
    loop = stored.get("loop", {})
    if "state" in stored:
        planned = f"{loop['n_steps']} steps" if loop.get("n_steps") else f"{loop.get('max_seconds')} s of training"
        say(f"planned for: {planned}; can be resumed: yes")
    else:
        say("can be resumed: no, this is an export")
    if "cameras" in stored:
        say("cameras: " + ", ".join(f"{len(views)} {split}" for split, views in stored["cameras"].items()))
    config = stored.get("config", {})
    encoding = {k: v for k, v in config.get("encoding", {}).items() if k != "per_level_scale"}
    finest = config.get("finest_resolution")
    say(f"config: preset {config.get('preset')}, encoding {encoding}, finest resolution {finest}")
    for name, (shape, dtype) in shapes.items():
        if not name.startswith("optimizer."):
            say(f"  {name:40s} {dtype:5s} {list(shape)}")

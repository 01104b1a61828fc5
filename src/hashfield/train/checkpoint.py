"""One checkpoint file: safetensors with JSON metadata, written aside, synced and renamed. Never a pickle."""

import dataclasses
import json
import platform
import tempfile
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hashfield._version import __version__
from hashfield.aside import write_aside
from hashfield.errors import CheckpointError, HashfieldError

FORMAT_VERSION = 2
"""Version 2 calls every kind's batch `config.train.batch`; see `migrated`."""
STATE_PREFIXES = ("optimizer.", "occupancy.", "refinement.")
"""Tensors that only a resumed run needs; an export leaves them out."""
_MAX_METADATA_BYTES = 64 << 20


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as the file at `path`.

    Args:
        path: File to write; it is replaced only when the new one is complete.
        tensors: What to store, by name.
        metadata: JSON values; format and versions are added.

    Raises:
        CheckpointError: it could not be written (full disk, no permission); the previous file is untouched.
    """
    header = {
        "format": "hashfield",
        "format_version": FORMAT_VERSION,
        "hashfield": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **metadata,
    }
    flat = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        text = json.dumps(header, allow_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path}: metadata is not plain JSON: {error}") from error
    try:
        write_aside(path, lambda aside: save_file(flat, aside, metadata={"hashfield": text}))
    except (OSError, SafetensorError) as error:
        kept = "; the previous checkpoint is kept" if path.exists() else ""
        raise CheckpointError(f"{path}: cannot be written: {error}{kept}") from error


def read_metadata(path: Path, task: str | None = None) -> dict[str, Any]:
    """The JSON metadata of a checkpoint file.

    Raises:
        CheckpointError: no such file, broken, not hashfield's, of a newer format, or not of this task.
    """
    opened = OpenCheckpoint(path)
    return opened.metadata if task is None else opened.of_task(task)


class OpenCheckpoint:
    """A checkpoint file opened once: its metadata and shapes at hand, its tensors read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Args:
        path: The file.

        Raises:
            CheckpointError: no such file, broken, not hashfield's, or of a newer format.
        """
        self.path = path
        self._handle = _opened(path)
        self.metadata: dict[str, Any] = _metadata(path, self._handle)

    def of_task(self, task: str) -> dict[str, Any]:
        """The metadata of a checkpoint that is of this task.

        Raises:
            CheckpointError: it is of another task.
        """
        if self.metadata.get("task") != task:
            raise CheckpointError(f"{self.path}: task: expected {task!r}, got {self.metadata.get('task')!r}")
        return self.metadata

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each tensor, from the header alone: nothing of their size is allocated."""
        slices = {name: self._handle.get_slice(name) for name in self._handle.keys()}  # noqa: SIM118
        return {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}

    def tensors(self, expected: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        """All tensors, of which some must have these shapes: nothing is read before that is known.

        Raises:
            CheckpointError: one of them is missing, of another shape, or broken.
        """
        found = self.shapes()
        for name, shape in (expected or {}).items():
            if name not in found:
                raise CheckpointError(f"{self.path}: tensor {name!r} is missing")
            if found[name][0] != shape:
                raise CheckpointError(f"{self.path}: tensor {name!r}: expected shape {shape}, got {found[name][0]}")
        try:
            return {name: self._handle.get_tensor(name) for name in found}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: broken tensor data: {error}") from error


def open_checkpoint(source: Path | OpenCheckpoint) -> OpenCheckpoint:
    """The checkpoint itself, opened unless it is already.

    Raises:
        CheckpointError: as `OpenCheckpoint`.
    """
    return source if isinstance(source, OpenCheckpoint) else OpenCheckpoint(source)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON metadata of a checkpoint file.

    Raises:
        CheckpointError: no such file, broken, not hashfield's, or of a newer format.
    """
    opened = OpenCheckpoint(path)
    return opened.tensors(), opened.metadata


def export_checkpoint(source: Path, target: Path) -> int:
    """Write a checkpoint in half precision, without what only training needs, and return the bytes of the new file.

    Raises:
        CheckpointError: the source cannot be read or the target not written.
    """
    tensors, metadata = load_checkpoint(source)
    small = {}
    for name, tensor in tensors.items():
        if not name.startswith(STATE_PREFIXES):
            # bfloat16, since that is what lookups read; the tiny networks keep more digits as float16.
            half = torch.bfloat16 if name.endswith("table") else torch.float16
            small[name] = tensor.to(half) if tensor.dtype == torch.float32 else tensor
    metadata = {k: v for k, v in metadata.items() if k != "state"}
    save_checkpoint(target, small, {**metadata, "format_version": FORMAT_VERSION, "precision": "half"})
    return target.stat().st_size


def exported_size(path: Path) -> int:
    """Bytes of the export of a checkpoint: the file's own if it is one, else measured by writing one.

    Raises:
        CheckpointError: it cannot be read, or there is no room for temporary files.
    """
    if "state" not in read_metadata(path):
        return path.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        return export_checkpoint(path, Path(folder) / "export.safetensors")


def _opened(path: Path) -> Any:
    if path.is_dir() or not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {error}") from error


def _metadata(path: Path, handle: Any) -> dict[str, Any]:
    text = (handle.metadata() or {}).get("hashfield")
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not one of hashfield's")
    if len(text) > _MAX_METADATA_BYTES:
        raise CheckpointError(f"{path}: metadata of {len(text)} bytes is more than a checkpoint can have")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: broken metadata: {error}") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path}: metadata: format_version: expected a positive integer, got {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version} is newer than this program's {FORMAT_VERSION}; update hashfield"
        )
    _check_sections(path, metadata)
    return migrated(metadata)


def migrated(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of any earlier format as this version writes it; `format_version` keeps telling what the file has.

    Version 1 called the batch of a radiance field `config.train.batch_samples` and that of a signed distance
    `config.train.batch_points`.
    """
    train = metadata.get("config", {}).get("train")
    if metadata["format_version"] >= 2 or not isinstance(train, dict):
        return metadata
    renamed = {{"batch_samples": "batch", "batch_points": "batch"}.get(name, name): train[name] for name in train}
    return {**metadata, "config": {**metadata["config"], "train": renamed}}


def _check_sections(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise where a section is not of the kind that everything which reads it relies on."""

    def wrong(name: str, expected: str, value: Any) -> CheckpointError:
        return CheckpointError(f"{path}: metadata: {name}: expected {expected}, got {value!s:.60}")

    for name in ("config", "spaces", "cameras", "scene", "figures", "loop", "state"):
        if not isinstance(metadata.get(name, {}), dict):
            raise wrong(name, "an object", metadata[name])
    for split, views in metadata.get("cameras", {}).items():
        if not isinstance(views, list) or not all(isinstance(view, dict) for view in views):
            raise wrong(f"cameras.{split}", "a list of objects", views)
    for name in ("name", "path"):
        value = metadata.get("scene", {}).get(name, "")
        if not isinstance(value, str):
            raise wrong(f"scene.{name}", "a text", value)
    for name, value in metadata.get("figures", {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(f"figures.{name}", "a number", value)


# --- configurations as JSON -------------------------------------------------------------------------------

_Config = TypeVar("_Config")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A frozen config dataclass as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_from_dict(kind: type[_Config], values: Any, where: str = "config") -> _Config:
    """The config dataclass that `config_to_dict` wrote.

    Args:
        kind: The dataclass to make.
        values: What the file holds there.
        where: Its place in the file, for the error.

    Raises:
        CheckpointError: a field is unknown, missing or of the wrong type; the text names it.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: expected an object, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise CheckpointError(
            f"{where}: unknown field {unknown[0]!r}: written by a newer hashfield, or not a configuration"
        )
    hints = typing.get_type_hints(kind)
    found = {name: _converted(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**found)
    except (TypeError, HashfieldError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _converted(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return config_from_dict(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise CheckpointError(f"{where}: expected a list, got {value!r}")
        inner = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        if len(inner) != len(value):
            raise CheckpointError(f"{where}: expected {len(inner)} values, got {len(value)}")
        return tuple(_converted(h, v, f"{where}[{k}]") for k, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin is typing.Literal:
        if value not in arguments:
            raise CheckpointError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    allowed = arguments if arguments else (hint,)
    if value is None and type(None) in allowed:
        return None
    lists = [kind for kind in allowed if typing.get_origin(kind) is tuple]
    if lists:  # or None
        return _converted(lists[0], value, where)
    for kind in (bool, int, float, str):
        if kind in allowed and isinstance(value, int if kind is float and type(value) is int else kind):
            if kind in (int, float) and isinstance(value, bool):
                continue
            return float(value) if kind is float else value
    raise CheckpointError(f"{where}: expected {hint}, got {value!r}")

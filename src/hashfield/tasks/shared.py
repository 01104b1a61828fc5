"""What the kinds of tasks have in common: seeds and colours as given, and what their checkpoints all hold."""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from hashfield.errors import CheckpointError, ConfigError
from hashfield.geometry.cameras import Camera

CPU: Final = torch.device("cpu")

# --- as given ----------------------------------------------------------------------------------------------


def check_seed(seed: int) -> int:
    """The seed itself.

    Raises:
        ConfigError: it is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed: expected a whole number >= 0, got {seed}")
    return seed


def parse_background(text: str) -> tuple[float, float, float]:
    """(r, g, b) in 0..1 of "white", "black" or "#rrggbb".

    Raises:
        ConfigError: it is none of these.
    """
    named = {"white": "#ffffff", "black": "#000000"}
    code = named.get(text.lower(), text)
    try:
        if len(code) != 7 or code[0] != "#":
            raise ValueError
        r, g, b = (int(code[k : k + 2], 16) / 255 for k in (1, 3, 5))
    except ValueError:
        raise ConfigError(f"background: expected white, black or #rrggbb, got {text!r}") from None
    return r, g, b


def background_text(color: tuple[float, float, float]) -> str:
    """ "#rrggbb", of which `parse_background` makes the colour again."""
    r, g, b = (round(255 * value) for value in color)
    return f"#{r:02x}{g:02x}{b:02x}"


FINGERPRINT_BYTES: Final = 2**28
"""Bytes of a tensor that a fingerprint reads, at most, evenly spread."""


def fingerprint_of(*tensors: Tensor) -> int:
    """A number that differs, in all likelihood, where one of these tensors does."""
    found = 0
    for tensor in tensors:
        values = tensor.detach().reshape(-1)
        step = -(-values.numel() * values.element_size() // FINGERPRINT_BYTES)
        some = values[:: max(1, step)].cpu().contiguous()
        data: Any = some.view(torch.uint8).numpy() if len(some) else b""
        found = zlib.crc32(data, zlib.crc32(str(list(tensor.shape)).encode(), found))
    return found


# --- metadata of a checkpoint --------------------------------------------------------------------------------


def stored(metadata: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    """One entry of a checkpoint's metadata; whole numbers do for float.

    Args:
        metadata: Metadata of the checkpoint.
        name: The entry.
        kind: The type it must have.
        path: The file, for the error.

    Raises:
        CheckpointError: it is missing, of another type or not finite; the text names it and `path`.
    """
    value = metadata.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{path}: metadata: {name}: expected {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{path}: metadata: {name}: expected a finite number, got {value!r}")
    return value


def stored_background(metadata: Mapping[str, Any], path: Path) -> tuple[float, float, float]:
    """(r, g, b) in 0..1 of the entry "background".

    Raises:
        CheckpointError: it is not such a colour.
    """
    values = stored(metadata, "background", list, path)
    if len(values) != 3 or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in values):
        raise CheckpointError(f"{path}: metadata: background: expected three numbers in 0..1, got {values!r}")
    return values[0], values[1], values[2]


def stored_cameras(metadata: Mapping[str, Any], path: Path) -> dict[str, list[Camera]]:
    """The cameras by split, or by name, of the entry "cameras".

    Raises:
        CheckpointError: there is no such entry.
        DataError: a camera is none.
    """
    views_of = stored(metadata, "cameras", dict, path)
    return {split: [Camera.from_dict(view) for view in views] for split, views in views_of.items()}


def stored_info(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a model keeps of the metadata of its checkpoint, for whoever asks where it comes from."""
    return {
        k: metadata[k] for k in ("scene", "figures", "hashfield", "config", "precision", "refinement") if k in metadata
    }

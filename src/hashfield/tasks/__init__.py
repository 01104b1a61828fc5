"""The kinds of things that can be learned, and where each one's parts are. Nothing is imported until it is asked for.

A new kind is three files here (as `sdf_config`, `sdf_model` and `sdf`), a file of commands in `cli` (as
`cli/sdf.py`), and an entry of `KINDS`. Below `tasks` no code names a kind, and in `cli` only that file does.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hashfield.errors import CheckpointError


@dataclass(frozen=True)
class Kind:
    """One kind of task."""

    name: str
    """Name in checkpoints and commands, such as "nerf"."""
    learns: str
    """What is learned from what, for the help text."""
    module: str
    """Holds `load_model(source, device)`: the model in a checkpoint, opened or not."""
    commands: dict[str, str]
    """Verb of the command line -> "module:name" of what takes the verb's arguments and returns the exit code. "train",
    "demo" and "sweep" get what follows the kind's name, "render", "view" and "evaluate" all of their arguments."""

    def load_model(self, source: Any, device: Any) -> Any:
        """The model in a checkpoint of this kind.

        Args:
            source: Path of the checkpoint, or a `train.checkpoint.OpenCheckpoint`.
            device: torch's device that the model shall answer on.
        """
        return importlib.import_module(self.module).load_model(source, device)

    def command(self, verb: str) -> Callable[[list[str]], int] | None:
        """What runs a verb, or None where this kind has none."""
        if verb not in self.commands:
            return None
        module, _, name = self.commands[verb].partition(":")
        return getattr(importlib.import_module(module), name)


KINDS: Final = (
    Kind(
        "nerf",
        "a radiance field from photos with camera poses",
        "hashfield.tasks.nerf_model",
        {
            "train": "hashfield.cli.nerf:TRAIN",
            "demo": "hashfield.cli.nerf:DEMO",
            "sweep": "hashfield.cli.nerf:SWEEP",
            "render": "hashfield.cli.render:render_nerf",
            "view": "hashfield.cli.nerf:view_nerf",
            "evaluate": "hashfield.cli.evaluate:evaluate_nerf",
        },
    ),
    Kind(
        "image",
        "a picture of any size as a function from position to colour",
        "hashfield.tasks.image_model",
        {
            "train": "hashfield.cli.image:TRAIN",
            "demo": "hashfield.cli.image:DEMO",
            "sweep": "hashfield.cli.image:SWEEP",
            "render": "hashfield.cli.image:render_image",
            "view": "hashfield.cli.image:view_image",
            "evaluate": "hashfield.cli.image:evaluate_image",
        },
    ),
    Kind(
        "sdf",
        "a signed distance from a mesh",
        "hashfield.tasks.sdf_model",
        {
            "train": "hashfield.cli.sdf:TRAIN",
            "demo": "hashfield.cli.sdf:DEMO",
            "sweep": "hashfield.cli.sdf:SWEEP",
            "render": "hashfield.cli.sdf:render_sdf",
            "view": "hashfield.cli.view:view_model",
            "evaluate": "hashfield.cli.sdf:evaluate_sdf",
        },
    ),
)
"""All of them; the first is the one meant where none is named."""


def kind_named(name: Any) -> Kind | None:
    """The kind with this name, or None."""
    return next((kind for kind in KINDS if kind.name == name), None)


def kind_of(metadata: dict[str, Any], path: Path) -> Kind:
    """The kind of the checkpoint with this metadata.

    Raises:
        CheckpointError: this program has no such kind; the text names `path`.
    """
    kind = kind_named(metadata.get("task"))
    if kind is None:
        known = ", ".join(repr(kind.name) for kind in KINDS)
        raise CheckpointError(f"{path}: task: expected {known}, got {metadata.get('task')!r}")
    return kind

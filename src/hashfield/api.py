"""`hashfield.load`: a trained model from a run folder or a checkpoint file."""

from pathlib import Path
from typing import Any

from hashfield.tasks import kind_of
from hashfield.train.checkpoint import read_metadata
from hashfield.train.run_folder import RunFolder


def load(path: str | Path) -> Any:
    """The model of a run folder or checkpoint file; needs no photos.

    Args:
        path: A run folder, or a checkpoint file (full or exported).

    Returns:
        The model of whatever was learned: a `tasks.nerf.NerfModel`, `tasks.image.ImageModel`, ...

    Raises:
        CheckpointError: nothing readable is there; the text says what is wrong.
    """
    checkpoint = RunFolder.open(Path(path)).checkpoint
    return kind_of(read_metadata(checkpoint), checkpoint).load_model(checkpoint)

"""`hashfield.load`: a trained model from a run folder or a checkpoint file."""

from pathlib import Path
from typing import Any

import torch

from hashfield.tasks import kind_of
from hashfield.train.checkpoint import OpenCheckpoint
from hashfield.train.run_folder import RunFolder


def load(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """The model of a run folder or checkpoint file; needs no photos.

    Args:
        path: A run folder, or a checkpoint file (full or exported).
        device: Where the model answers.

    Returns:
        The model of whatever was learned: a `tasks.nerf_model.NerfModel`, `tasks.image_model.ImageModel`, ...

    Raises:
        CheckpointError: nothing readable is there; the text says what is wrong.
    """
    checkpoint = OpenCheckpoint(RunFolder.open(Path(path)).checkpoint)
    return kind_of(checkpoint.metadata, checkpoint.path).load_model(checkpoint, torch.device(device))

"""`hashfield.load`: a trained model from a run folder or a checkpoint file."""

from pathlib import Path

import torch

from hashfield.tasks.nerf import NerfModel, load_model
from hashfield.train.run_folder import RunFolder


def load(path: str | Path, device: str | torch.device = "cpu") -> NerfModel:
    """The model of a run folder or checkpoint file; needs no photos.

    Args:
        path: A run folder, or a checkpoint file (full or exported).
        device: Where it renders.

    Raises:
        CheckpointError: nothing readable is there; the text says what is wrong.
    """
    return load_model(RunFolder.open(Path(path)).checkpoint, torch.device(device))

"""What a checkpoint holds of a run: field, optimiser's moments, random numbers, what its last bits depend on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hashfield.errors import CheckpointError
from hashfield.log import logger
from hashfield.steps.optimizers import Optimizer

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors on the host, and JSON values."""


def trained_state(field: nn.Module, optimizer: Optimizer, precision: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON values) of what every task trains, and of what its last bits depend on.

    Args:
        field: Its parameters are called "field.<name>".
        optimizer: Its moments are called "optimizer.<name>".
        precision: Number type of the networks in this run.
    """
    tensors = {f"field.{name}": p.detach() for name, p in field.named_parameters()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
    values = {"optimizer_steps": optimizer.n_steps, "threads": torch.get_num_threads(), "precision": precision}
    return tensors, values


def restore_trained(
    field: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Take back field and optimiser from what `trained_state` gave.

    Args:
        field: Module that takes the parameters.
        optimizer: Takes its moments and its count of steps.
        tensors: Tensors of `trained_state`, by name.
        values: Its JSON values.

    Raises:
        CheckpointError: something is missing, or of another shape.
    """
    restore_module(field, tensors, "checkpoint")
    moments = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    try:
        optimizer.restore(moments, int(values["optimizer_steps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: state: optimizer_steps: missing or wrong: {error}") from error


def restore_gradient(gradient: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Take back the gradient of those parts of a table that wait for an update. Runs on rays of versions in which no
    part waited have none: nothing waits then.

    Args:
        gradient: [n_entries, n_features], changed in place.
        tensors: Tensors of a checkpoint, by name.

    Raises:
        CheckpointError: it is of another shape.
    """
    saved = tensors.get("optimizer.gradient")
    if saved is None:
        gradient.zero_()
    elif saved.shape != gradient.shape:
        raise CheckpointError("optimizer.gradient: wrong shape")
    else:
        gradient.copy_(saved)


def warn_of_other_bits(values: Mapping[str, Any], precision: str, *, follows_threads: bool = True) -> None:
    """Say where a run that goes on will differ from one that was never stopped.

    Args:
        values: As `trained_state` gave them.
        precision: Number type of the networks now.
        follows_threads: Whether sums depend on the number of threads.
    """
    threads, before = values.get("threads"), values.get("precision")
    if follows_threads and threads not in (None, torch.get_num_threads()):
        logger.warning(
            "the run was begun on %s threads and goes on with %s: it will differ in the last bits",
            threads, torch.get_num_threads(),
        )  # fmt: skip
    if before not in (None, precision):
        logger.warning(
            "the run was begun with %s networks and goes on with %s, which this machine runs faster", before, precision
        )


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """State of a numpy generator as JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray):
            return [str(v) for v in value.tolist()]
        return str(value) if isinstance(value, int) else value

    return plain(dict(generator.bit_generator.state))


def restore_generator(generator: np.random.Generator, state: Any, where: str) -> None:
    """Put a generator into a saved state.

    Args:
        generator: Changed in place.
        state: What was saved, as JSON has it.
        where: Where this stood, for the error.

    Raises:
        CheckpointError: the state is not one of this kind of generator.
    """

    def back(value: Any, like: Any) -> Any:
        if isinstance(like, dict):
            return {k: back(value[k], like[k]) for k in like}
        if isinstance(like, np.ndarray):
            return np.array([int(v) for v in value], like.dtype)
        return int(value) if isinstance(like, int) else value

    try:
        generator.bit_generator.state = back(state, dict(generator.bit_generator.state))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{where}: not a generator's state: {error}") from error


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Copy a module's parameters from the tensors "field.<name>" of a checkpoint.

    Args:
        module: Changed in place.
        tensors: All tensors of the checkpoint, by name.
        path: The file, for the error.

    Raises:
        CheckpointError: one is missing, of another shape, or holds numbers that are not finite; the text names it.
    """
    for name, parameter in module.named_parameters():
        value = tensors.get(f"field.{name}")
        if value is None or value.shape != parameter.shape:
            raise CheckpointError(f"{path}: tensor 'field.{name}': missing or of the wrong shape")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: tensor 'field.{name}' holds numbers that are not finite")
        with torch.no_grad():
            parameter.copy_(value)

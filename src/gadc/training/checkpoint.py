"""Checkpoints: everything that a run needs to go on, in one safetensors file each."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gadc.errors import InputError, RunError
from gadc.training.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

FOLDER_NAME = "checkpoints"
N_KEPT = 2
"""If the last one is damaged, the one before it still is there."""
FILE_NAME = re.compile(r"step-(\d{9})\.safetensors")
MODEL_PREFIX = "model."
OPTIMISER_PREFIX = "optimiser."
CORRUPT_SUFFIX = ".corrupt"
IDENTITY_KEY = "identity"
"""Of the metadata."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a file.

    Attributes:
        step: Optimiser steps done.
        tensors: By name.
        metadata: What was stored with them.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / FOLDER_NAME / f"step-{step:09d}.safetensors"


def saved_steps(run: Path) -> list[int]:
    """Return the steps of which there are checkpoints, ascending."""
    folder = run / FOLDER_NAME
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := FILE_NAME.fullmatch(name)))


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write a checkpoint, then remove all but the last two.

    Raises:
        RunError: The disk is full; the checkpoints before are still there.
    """
    path = checkpoint_path(run, step)
    path.parent.mkdir(exist_ok=True)
    save_tensors(path, tensors, {**metadata, "step": str(step)})
    for old in saved_steps(run)[:-N_KEPT]:
        checkpoint_path(run, old).unlink(missing_ok=True)
    return path


def load_latest(
    run: Path,
    identity: str,
    *,
    wanted: Callable[[str], bool] = lambda _name: True,
    set_aside: bool = False,
) -> Checkpoint | None:
    """Read the last whole checkpoint.

    Args:
        run: The run's folder.
        identity: Of the run, see `TrainConfig.identity`; a checkpoint of another one is damaged.
        wanted: Which tensors are needed, by name.
        set_aside: Whether a damaged file is renamed, so that it is not counted among those kept;
            only for who holds the run's lock.

    Returns:
        None if there is none that is whole; every damaged one is logged as an error.
    """
    for step in reversed(saved_steps(run)):
        path = checkpoint_path(run, step)
        try:
            tensors, metadata = load_tensors(path, wanted=wanted)
            if (metadata.get("step"), metadata.get(IDENTITY_KEY)) != (str(step), identity):
                raise RunError("corrupt", f"{path} is the checkpoint of another step or run")
            return Checkpoint(step, tensors, metadata)
        except RunError as error:
            logger.error("DAMAGED CHECKPOINT: %s; falling back to the one before it", error)
            if set_aside:
                path.replace(path.with_name(path.name + CORRUPT_SUFFIX))
    return None


def load_weights(run: Path, identity: str, prefix: str) -> tuple[int, dict[str, torch.Tensor]]:
    """Read one set of weights from the last whole checkpoint.

    Args:
        run: The run's folder.
        identity: See `load_latest`.
        prefix: `MODEL_PREFIX`, or `gadc.training.ema.prefix_of(decay)`.

    Returns:
        The step, and the weights by parameter.

    Raises:
        InputError: `no_checkpoint`: none, or none that is whole; `unknown_ema`: not this one.
    """
    found = load_latest(run, identity, wanted=lambda name: name.startswith(prefix))
    if found is None:
        raise InputError(
            "no_checkpoint", f"{run} has no whole checkpoint; `gadc train` writes them, run it on"
        )
    if not found.tensors:
        raise InputError(
            "unknown_ema",
            f"the checkpoints of {run} hold no weights {prefix.removesuffix('.')!r}; choose one of "
            "the averages that the run was trained with, or none",
        )
    return found.step, {name.removeprefix(prefix): tensor for name, tensor in found.tensors.items()}

"""What a protocol will cost, before it runs: runs, steps, bytes, and time at a measured rate."""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gadc.comparison.methods import chosen_methods
from gadc.errors import InputError
from gadc.experiment.data import find_images
from gadc.experiment.protocol import Length, Protocol
from gadc.per_class.selection import single_thread
from gadc.runtime import pick_device
from gadc.sampling.config import SampleConfig, choose_sampler
from gadc.training.config import DEFAULT_PROJECTION_DEPTH, TrainConfig
from gadc.training.spaces import PIXEL_CHANNELS
from gadc.training.throughput import training_flops
from gadc.training.transformer import DiffusionTransformer, TransformerShape

LATENT_CHANNELS, LATENT_FACTOR = 4, 8
"""Of the VAEs of Stable Diffusion; others are not loaded for a plan."""
TRIAL_FLOPS = 2e10
"""Of a step that is measured: a second or so on a core; larger batches are extrapolated."""
N_TRIALS = 3
FLOAT_BYTES = 4
N_MOMENTS = 2
"""That AdamW keeps of each weight."""
N_CHECKPOINTS = 2
CALLS = {"heun": 2}
"""Network calls a step; 1 of the other samplers."""


@dataclass(frozen=True)
class ModelCost:
    """What one model costs on this machine.

    Attributes:
        n_parameters: Of the network.
        train_seconds: Of an image in a training step.
        forward_seconds: Of an image in a network call.
    """

    n_parameters: int
    train_seconds: float
    forward_seconds: float


def plan_experiment(
    protocol: Protocol, *, n_workers: int = 1, device: str = "auto"
) -> dict[str, Any]:
    """Count the runs of a protocol, and estimate their time and bytes; nothing is kept.

    The time is that of training and sampling on this machine as it is now, from a few measured
    steps of each model; selecting and judging come on top.

    Args:
        protocol: What to compare.
        n_workers: Cells at the same time.
        device: Where to compute.

    Returns:
        For scripts: a dictionary for each model, length and budget, and sums.
    """
    n_classes, remarks = _n_classes(protocol)
    methods = chosen_methods(protocol.methods)
    n_runs = len(methods) * len(protocol.seeds)
    where = pick_device(device)
    parts = []
    for model in protocol.models:
        config = protocol.train_config(model, steps=1, seed=0)
        sampling = protocol.sample_config(seed=0)
        cost = measure_model(_shape(config, n_classes or 1), config.batch_size, where)
        for length, n in itertools.product(protocol.lengths, protocol.per_class):
            parts.append(_part(config, sampling, cost, length, n, n_classes, n_runs))
    known = [part["seconds_each"] for part in parts]
    total = None if None in known else sum(seconds * n_runs for seconds in known) / n_workers
    return {
        "name": protocol.name,
        "methods": [method.name for method in methods],
        "seeds": protocol.seeds,
        "n_selections": sum(
            len(protocol.per_class) * (len(protocol.seeds) if method.is_random else 1)
            for method in methods
        ),
        "n_runs": n_runs * len(parts),
        "parts": parts,
        "n_steps": None
        if any(part["steps"] is None for part in parts)
        else sum(part["steps"] * n_runs for part in parts),
        "bytes": sum(part["bytes_each"] * n_runs for part in parts),
        "workers": n_workers,
        "device": str(where),
        "seconds": total,
        "remarks": remarks,
    }


def measure_model(shape: TransformerShape, batch_size: int, device: torch.device) -> ModelCost:
    """Time a few steps of a model, on one thread as cells run."""
    n_images = int(max(1, min(batch_size, TRIAL_FLOPS // training_flops(shape))))
    with single_thread():
        network = DiffusionTransformer(shape).to(device)
        x = torch.zeros(n_images, shape.channels, shape.side, shape.side, device=device)
        times = torch.zeros(n_images, device=device)
        labels = torch.zeros(n_images, dtype=torch.int64, device=device)
        arguments = (x, times, labels if shape.n_classes else None, None)

        def step() -> None:
            network(*arguments).prediction.square().mean().backward()

        @torch.inference_mode()
        def forward() -> None:
            network(*arguments)

        train_seconds, forward_seconds = _seconds(step, device), _seconds(forward, device)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return ModelCost(n_parameters, train_seconds / n_images, forward_seconds / n_images)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Return the shortest time of a few: others at work only ever add to it."""
    found = []
    for _ in range(N_TRIALS):
        began = time.monotonic()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.monotonic() - began)
    return min(found)


def _part(
    config: TrainConfig,
    sampling: SampleConfig,
    cost: ModelCost,
    length: Length,
    n_per_class: int,
    n_classes: int | None,
    n_runs: int,
) -> dict[str, Any]:
    """Return what the cells of one model, length and budget cost, each the same."""
    steps = length.steps
    if steps is None and n_classes is not None:
        steps = length.steps_of(n_classes * n_per_class, config.batch_size)
    sampler = choose_sampler(sampling.sampler, config.parts.family)
    n_calls = sampling.steps * CALLS.get(sampler, 1) * (2 if sampling.cfg_scale != 1.0 else 1)
    train_seconds = None if steps is None else steps * config.batch_size * cost.train_seconds
    sample_seconds = sampling.n_samples * n_calls * cost.forward_seconds
    per_weight = FLOAT_BYTES * (1 + N_MOMENTS + len(config.ema_decays)) * N_CHECKPOINTS
    # PNG files are somewhat smaller than their pixels.
    picture_bytes = sampling.n_samples * PIXEL_CHANNELS * config.resolution_px**2
    return {
        "model": config.model,
        "length": length.title,
        "n_per_class": n_per_class,
        "n_runs": n_runs,
        "steps": steps,
        "n_parameters": cost.n_parameters,
        "train_seconds_each": train_seconds,
        "sample_seconds_each": sample_seconds,
        "seconds_each": None if train_seconds is None else train_seconds + sample_seconds,
        "bytes_each": cost.n_parameters * per_weight + picture_bytes,
    }


def _shape(config: TrainConfig, n_classes: int) -> TransformerShape:
    is_pixel = config.space == "pixel"
    channels = PIXEL_CHANNELS if is_pixel else LATENT_CHANNELS
    return TransformerShape(
        size=config.parts.size,
        patch=config.parts.patch,
        side=config.resolution_px if is_pixel else config.resolution_px // LATENT_FACTOR,
        channels=channels,
        channels_out=channels * config.parts.process.prediction_factor,
        n_classes=n_classes if config.conditional else 0,
        projection_depth=min(DEFAULT_PROJECTION_DEPTH, config.parts.size.depth),
    )


def _n_classes(protocol: Protocol) -> tuple[int | None, list[str]]:
    """Return the classes of the source, or None and why not."""
    remarks = []
    if protocol.conditions is not None or protocol.attach is not None:
        remarks.append("texts and visual targets come on top: they are not measured")
    try:
        with tempfile.TemporaryDirectory() as folder:
            images = find_images(protocol.data, Path(folder))
            return max(1, len(images.pool.class_names)), remarks
    except InputError as error:
        if error.code != "missing_source":
            raise
        remarks.append(f"{error.message}; steps of lengths in epochs are not known")
        return None, remarks

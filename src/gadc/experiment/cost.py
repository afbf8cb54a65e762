"""What a protocol will cost, before it runs: runs, steps, bytes, and time at a measured rate."""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from gadc.comparison.methods import Compared, chosen_methods
from gadc.errors import GadcError, InputError
from gadc.experiment.data import find_images
from gadc.experiment.protocol import Length, Protocol
from gadc.experiment.selecting import units_of
from gadc.experiment.stage_costs import (
    JudgingCost,
    SelectionCost,
    measure_judging,
    measure_selection,
)
from gadc.forks import on_cores
from gadc.runs.cost_model import makespan
from gadc.runtime import pick_device
from gadc.sampling.config import SampleConfig, choose_sampler
from gadc.training.config import DEFAULT_PROJECTION_DEPTH, TrainConfig
from gadc.training.ema import WeightAverages
from gadc.training.spaces import PIXEL_CHANNELS
from gadc.training.throughput import training_flops
from gadc.training.transformer import DiffusionTransformer, TransformerShape

T = TypeVar("T")

ATTACHING = "attaching"

LATENT_CHANNELS, LATENT_FACTOR = 4, 8
"""Of the VAEs of Stable Diffusion; others are not loaded for a plan."""
TRIAL_FLOPS = 2e10
"""Of a step that is measured: a second or so on a core; larger batches are extrapolated."""
TRIAL_WEIGHTS = 20_000_000
"""That an optimiser is tried on: 320 MB with its state."""
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
        update_seconds: Of a step besides: the optimiser, and the averages of the weights.
        forward_seconds: Of an image in a network call.
    """

    n_parameters: int
    train_seconds: float
    update_seconds: float
    forward_seconds: float


@dataclass(frozen=True)
class Stages:
    """What of an experiment is no training; None where it could not be measured.

    Attributes:
        n_classes: Of the source; None if it is not there.
        selection: Up to the subsets.
        judging: Of real images, and of each cell.
        remarks: Why something is missing.
    """

    n_classes: int | None
    selection: SelectionCost | None
    judging: JudgingCost | None
    remarks: list[str]


def plan_experiment(
    protocol: Protocol, *, n_workers: int = 1, device: str = "auto", seconds: float = 20.0
) -> dict[str, Any]:
    """Count the runs of a protocol, and estimate their time and bytes; nothing is kept.

    The time is that of this machine as it is now: a few steps of each model, features and judging
    of some images, selections from some classes. Texts and visual targets are only counted.

    Args:
        protocol: What to compare.
        n_workers: Cells at the same time.
        device: Where to compute.
        seconds: About how long images, and then classes, are tried.

    Returns:
        For scripts: a dictionary for each model, length and budget, one for each stage, and sums.
    """
    if not seconds > 0:
        raise InputError("bad_argument", f"seconds={seconds} must be above 0")
    methods = chosen_methods(protocol.methods)
    n_runs = len(methods) * len(protocol.seeds)
    where = pick_device(device)
    measured = _measure_stages(protocol, methods, device, seconds)
    n_classes = measured.n_classes
    parts = []
    for model in protocol.models:
        config = protocol.train_config(model, steps=1, seed=0)
        sampling = protocol.sample_config(seed=0)
        cost = measure_model(_shape(config, n_classes or 1), config, where)
        for length, n in itertools.product(protocol.lengths, protocol.per_class):
            part = _part(config, sampling, cost, length, n, n_classes, n_runs)
            part["judge_seconds_each"] = _judge_seconds(protocol, measured, n)
            parts.append(part)
    units = units_of(methods, protocol.per_class, protocol.seeds)
    stages = _stages(protocol, measured, parts, len(units), n_workers)
    known = [stage["seconds"] for stage in stages if stage["seconds"] is not None]
    is_known = all(part["train_seconds_each"] is not None for part in parts)
    return {
        "name": protocol.name,
        "methods": [method.name for method in methods],
        "seeds": protocol.seeds,
        "n_selections": len(units),
        "n_runs": n_runs * len(parts),
        "parts": parts,
        "stages": stages,
        "n_steps": None
        if any(part["steps"] is None for part in parts)
        else sum(part["steps"] * n_runs for part in parts),
        "bytes": sum(part["bytes_each"] * n_runs for part in parts),
        "workers": n_workers,
        "device": str(where),
        "seconds": sum(known) if is_known else None,
        "remarks": measured.remarks,
    }


def measure_model(shape: TransformerShape, config: TrainConfig, device: torch.device) -> ModelCost:
    """Time a few steps of a model, on one thread as cells run."""
    n_images = int(max(1, min(config.batch_size, TRIAL_FLOPS // training_flops(shape))))
    with on_cores(1):
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
        update_seconds = _update_seconds(network, config, device)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return ModelCost(
        n_parameters, train_seconds / n_images, update_seconds, forward_seconds / n_images
    )


def _update_seconds(
    network: DiffusionTransformer, config: TrainConfig, device: torch.device
) -> float:
    """Return the time of optimiser and averages, in proportion to that of a part of the weights.

    Their state for all weights of a large model takes more memory than a plan should.
    """
    weights = list(network.parameters())
    counts = list(itertools.accumulate(weight.numel() for weight in weights))
    n_tried = next((n for n, count in enumerate(counts, 1) if count >= TRIAL_WEIGHTS), len(weights))
    part = nn.ParameterList(weights[:n_tried])
    optimiser = torch.optim.AdamW(part.parameters(), fused=True)
    averages = WeightAverages(part, config.ema_decays)

    def update() -> None:
        optimiser.step()
        averages.update()

    return _seconds(update, device) * counts[-1] / counts[n_tried - 1]


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
    step_seconds = config.batch_size * cost.train_seconds + cost.update_seconds
    train_seconds = None if steps is None else steps * step_seconds
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


def _measure_stages(
    protocol: Protocol, methods: Sequence[Compared], device: str, seconds: float
) -> Stages:
    """Measure what can be measured, and say why not the rest."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            images = find_images(protocol.data, Path(folder))
        except InputError as error:
            if error.code != "missing_source":
                raise
            remark = (
                f"{error.message}; steps of lengths in epochs, features, selections and judging "
                "are not known"
            )
            return Stages(None, None, None, [remark])
        resolution_px = protocol.train_config(protocol.models[0], steps=1, seed=0).resolution_px
        remarks: list[str] = []

        def tried(what: str, run: Callable[[], T]) -> T | None:
            try:
                return run()
            except GadcError as error:
                remarks.append(f"{what} can't be measured: {error.message}")
                return None

        selection = tried(
            "selecting",
            lambda: measure_selection(protocol, images, methods, device=device, seconds=seconds),
        )
        judging = tried(
            "judging",
            lambda: measure_judging(
                protocol.judge,
                images,
                Path(folder),
                resolution_px=resolution_px,
                device=device,
            ),
        )
        return Stages(max(1, len(images.pool.class_names)), selection, judging, remarks)


def _judge_seconds(protocol: Protocol, measured: Stages, n_per_class: int) -> float | None:
    """Return the time to judge a cell; memorisation looks at its training images as well."""
    if measured.judging is None:
        return None
    n_images = protocol.sample_config(seed=0).n_samples
    if protocol.data.held_out is not None:
        n_images += n_per_class * (measured.n_classes or 1)
    return measured.judging.seconds(n_images)


def _stages(
    protocol: Protocol,
    measured: Stages,
    parts: Sequence[dict[str, Any]],
    n_selections: int,
    n_workers: int,
) -> list[dict[str, Any]]:
    """Return the stages in their order, each with its time, and where that is from."""

    def of_cells(name: str) -> float | None:
        each = [(part[name], part["n_runs"]) for part in parts]
        if any(seconds is None for seconds, _ in each):
            return None
        return float(sum(seconds * n for seconds, n in each)) / n_workers

    selection, judging = measured.selection, measured.judging
    found: list[tuple[str, float | None, str]] = [
        (
            "features and checks",
            None if selection is None else selection.features_seconds + selection.checks_seconds,
            "measured on some images",
        ),
        (
            "judge",
            None if judging is None else judging.prepare_seconds,
            "measured on some images",
        ),
        (
            "selection",
            None if selection is None else makespan(selection.unit_seconds, n_workers),
            "measured on some classes"
            if selection is None
            else f"measured on {selection.n_classes:,} of {measured.n_classes:,} classes at least",
        ),
    ]
    if protocol.attach is not None:
        found.append((ATTACHING, None, _counted(protocol, measured, n_selections)))
    found += [
        ("training", of_cells("train_seconds_each"), "measured on a few steps of each model"),
        ("sampling", of_cells("sample_seconds_each"), "measured on a few calls of each model"),
        ("judging", of_cells("judge_seconds_each"), "measured on some real images"),
    ]
    return [
        {
            "stage": stage,
            "seconds": seconds,
            "basis": "not known" if seconds is None and stage != ATTACHING else basis,
        }
        for stage, seconds, basis in found
    ]


def _counted(protocol: Protocol, measured: Stages, n_selections: int) -> str:
    """Say what is attached; encoders are not loaded for a plan."""
    part = protocol.attach
    if part is None or measured.n_classes is None:
        return "not known"
    n_each = n_selections // len(protocol.per_class)
    n_images = n_each * sum(protocol.per_class) * measured.n_classes
    counts = []
    if part.text is not None:
        counts.append(f"{n_selections * measured.n_classes:,} captions")
    if part.visual is not None:
        is_flipped = protocol.train_config(protocol.models[0], steps=1, seed=0).flip
        counts.append(f"{n_images:,} images" + (" in two orientations" if is_flipped else ""))
    return f"counted, not measured: {' and '.join(counts)} at most"

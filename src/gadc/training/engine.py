"""One optimiser step: network, averages and what they need to be saved and restored."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gadc.errors import InputError
from gadc.training.checkpoint import MODEL_PREFIX, OPTIMISER_PREFIX, Checkpoint
from gadc.training.conditions import Conditions
from gadc.training.config import TrainConfig
from gadc.training.ema import WeightAverages
from gadc.training.latents import TrainingInputs
from gadc.training.processes import Loss
from gadc.training.stream import Batch
from gadc.training.transformer import DiffusionTransformer, TransformerOutput, TransformerShape

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

WEIGHTS_SEED_KEY = 1_000_003
"""Keeps the generator of the first weights apart from those of other uses of the same seed."""


class Engine:
    """Holds all that a step changes.

    Args:
        accelerator: Of accelerate; knows device, precision and the other processes.
        config: See `TrainConfig`.
        shape: Of the network.
        inputs: Clean inputs of all images.
        labels: Int64 [n]; None for a model without classes.
        conditions: Texts and targets in the order of the images; None without.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        config: TrainConfig,
        shape: TransformerShape,
        inputs: TrainingInputs,
        labels: torch.Tensor | None,
        conditions: Conditions | None,
    ) -> None:
        self._accelerator, self._config = accelerator, config
        self._inputs, self._labels, self._conditions = inputs, labels, conditions
        self._process = config.parts.process
        self.device: torch.device = accelerator.device
        self.network = new_network(shape, seed=config.seed).to(self.device)
        self.network.train()
        self.averages = WeightAverages(self.network, config.ema_decays)
        optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._optimiser = optimiser
        self._model, self._stepper = accelerator.prepare(self.network, optimiser)
        self._share = _local_share(accelerator, config)

    def step(self, step: int, batch: Batch) -> dict[str, torch.Tensor]:
        """Do step number `step`, from 0.

        Returns:
            Means over this process's images, on the device: `loss`, its parts and `grad_norm`.
        """
        config = self._config
        rate = config.learning_rate
        if config.warmup_steps:
            rate *= min(1.0, (step + 1) / config.warmup_steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        rows = list(self._share)
        size = config.micro_batch or len(rows)
        pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
        sums: dict[str, torch.Tensor] = {}
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            if is_last:
                self._add_gradient(batch, piece, len(rows), sums)
            else:
                with self._accelerator.no_sync(self._model):
                    self._add_gradient(batch, piece, len(rows), sums)
        if config.grad_clip is not None:
            sums["grad_norm"] = self._accelerator.clip_grad_norm_(
                self.network.parameters(), config.grad_clip
            )
        self._stepper.step()
        self._stepper.zero_grad()
        self.averages.update()
        return sums

    def _add_gradient(
        self, batch: Batch, piece: list[int], n_local: int, sums: dict[str, torch.Tensor]
    ) -> None:
        loss = self._loss(batch, piece)
        share = loss.total.sum() / n_local
        self._accelerator.backward(share)
        parts = {"loss": share, **{name: term.sum() / n_local for name, term in loss.terms.items()}}
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.detach()

    def _loss(self, batch: Batch, piece: list[int]) -> Loss:
        """Return the loss of some images of a batch."""
        device = self.device
        rows, flips, drops = batch.rows[piece], batch.flips[piece], batch.drops[piece]
        noise = torch.from_numpy(batch.noise[piece]).to(device, non_blocking=True)
        uniform = torch.from_numpy(batch.uniform[piece]).to(device, non_blocking=True)
        posterior = None
        if batch.posterior is not None:
            posterior = torch.from_numpy(batch.posterior[piece]).to(device, non_blocking=True)
        x0 = self._inputs.gather(rows, flips, posterior, device)
        labels = text = targets = None
        if self._labels is not None:
            chosen = self._labels[torch.from_numpy(rows)]
            chosen[torch.from_numpy(drops)] = self.network.null_label
            labels = chosen.to(device)
        if self._conditions is not None:
            if self.network.text is not None:
                text = _on(self._conditions.texts(rows, drops), device)
            if self.network.projector is not None:
                targets = _on(self._conditions.targets(rows, flips), device)
        outputs: list[TransformerOutput] = []

        def predict(x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            outputs.append(self._model(x_t, times, labels, text))
            return outputs[-1].prediction

        loss = self._process.loss(predict, x0, noise, uniform)
        projected = outputs[-1].projected
        if projected is None or targets is None:
            return loss
        misaligned = self._config.projection_weight * misalignment(projected, targets)
        return Loss(loss.total + misaligned, {**loss.terms, "alignment": misaligned})

    def is_finite(self) -> bool:
        """Tell whether every weight is a number."""
        norms = torch._foreach_norm(list(self.network.parameters()))
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights, averages and the optimiser's state by name."""
        parameters = dict(self.network.named_parameters())
        held: dict[str, torch.Tensor] = {
            f"{MODEL_PREFIX}{name}": parameter for name, parameter in parameters.items()
        }
        held.update(self.averages.tensors())
        for name, parameter in parameters.items():
            for key, value in self._optimiser.state[parameter].items():
                held[f"{OPTIMISER_PREFIX}{key}.{name}"] = value
        return held

    def metadata(self) -> dict[str, str]:
        """Return what goes on that is no tensor: the scale of fp16's gradients."""
        scaler = self._accelerator.scaler
        return {} if scaler is None else {"scaler": json.dumps(scaler.state_dict())}

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what `tensors` and `metadata` returned."""
        tensors = checkpoint.tensors
        names = [name for name, _ in self.network.named_parameters()]
        for name, parameter in self.network.named_parameters():
            parameter.copy_(tensors[f"{MODEL_PREFIX}{name}"])
        self.averages.load(tensors)
        state = {number: _state_of(name, tensors) for number, name in enumerate(names)}
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        if self._accelerator.scaler is not None and "scaler" in checkpoint.metadata:
            self._accelerator.scaler.load_state_dict(json.loads(checkpoint.metadata["scaler"]))


def new_network(shape: TransformerShape, *, seed: int) -> DiffusionTransformer:
    """Return a network whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED_KEY + seed)
        return DiffusionTransformer(shape)


def misalignment(projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return minus the mean cosine of tokens and targets, both [b, n, width], as [b].

    Source: equation 8 of Yu et al., arXiv:2410.06940.
    """
    cosines = nn.functional.cosine_similarity(projected.float(), targets.float(), dim=2)
    return -cosines.mean(dim=1)


def _state_of(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the optimiser's state of one parameter."""
    keys = ("step", "exp_avg", "exp_avg_sq")
    return {key: tensors[f"{OPTIMISER_PREFIX}{key}.{name}"] for key in keys}


def _on(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


def _local_share(accelerator: "Accelerator", config: TrainConfig) -> range:
    """Return which images of a batch are this process's."""
    n_processes = int(accelerator.num_processes)
    if config.batch_size % n_processes:
        raise InputError(
            "batch_division",
            f"batch_size={config.batch_size} can't be divided among {n_processes} processes; "
            "choose a multiple",
        )
    n_local = config.batch_size // n_processes
    first = int(accelerator.process_index) * n_local
    return range(first, first + n_local)

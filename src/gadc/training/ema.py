"""Averages of the weights over the steps, exponentially weighted."""

from collections.abc import Mapping

import torch
from torch import nn


class WeightAverages:
    """One average for each decay: `average ← decay · average + (1 − decay) · weights`."""

    def __init__(self, network: nn.Module, decays: tuple[float, ...]) -> None:
        self.decays = decays
        self._names = [name for name, _ in network.named_parameters()]
        self._weights: list[torch.Tensor] = list(network.parameters())
        self._averages = {
            decay: [weight.detach().clone() for weight in self._weights] for decay in decays
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take one more step into account."""
        for decay, averages in self._averages.items():
            torch._foreach_lerp_(averages, self._weights, 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averages as `ema.<decay>.<parameter>`."""
        return {
            f"{prefix_of(decay)}{name}": average
            for decay, averages in self._averages.items()
            for name, average in zip(self._names, averages, strict=True)
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` returned."""
        for name, average in self.tensors().items():
            average.copy_(tensors[name])

    def weights_of(self, decay: float) -> dict[str, torch.Tensor]:
        """Return one average by the parameters' names."""
        return dict(zip(self._names, self._averages[decay], strict=True))


def prefix_of(decay: float) -> str:
    """Return what the names of an average's tensors begin with."""
    return f"ema.{decay!r}."

"""What a way of noising images has to offer, and the two there are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

MODEL_TIME_SCALE = 1000.0
"""The network sees times from 0 to 1000 whatever the process."""

Family = Literal["DiT", "SiT"]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From noisy images [b, c, ...] and times from 0 to 1000, [b], to the network's prediction."""


@dataclass(frozen=True)
class Loss:
    """The loss of each image of a batch.

    Attributes:
        total: What is minimised, float32 [b].
        terms: Its parts for the record, by name, [b] each, already weighted.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]


class Process(Protocol):
    """How images become noise, and what a network has to learn to reverse it."""

    @property
    def prediction_factor(self) -> int:
        """Channels of the prediction for each channel of the image."""

    def loss(
        self, predict: Predict, x0: torch.Tensor, noise: torch.Tensor, uniform: torch.Tensor
    ) -> Loss:
        """Return the loss of a batch.

        Args:
            predict: The network with its condition.
            x0: Clean images [b, c, ...].
            noise: Standard normal, like `x0`.
            uniform: From [0, 1), float64 [b]; says at which time each image is noised.
        """


def per_image(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of each image, [b], of values [b, ...]."""
    return values.flatten(1).mean(dim=1)


def broadcast(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return values [b] as [b, 1, ...] with as many dimensions as `like`, in its type."""
    return values.to(device=like.device, dtype=like.dtype).view(-1, *[1] * (like.ndim - 1))

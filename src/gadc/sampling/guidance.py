"""Classifier-free guidance.

[1] Ho, Salimans: Classifier-Free Diffusion Guidance. arXiv:2207.12598.
[2] Kynkäänniemi et al.: Applying Guidance in a Limited Interval. arXiv:2404.07724.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gadc.errors import InputError
from gadc.training.processes import MODEL_TIME_SCALE

PredictAt = Callable[[torch.Tensor, float], torch.Tensor]
"""From noisy images [b, c, ...] and one time, 0 to 1000, to the network's prediction."""


@dataclass(frozen=True)
class Guidance:
    """How far the prediction is moved away from that without class and text.

    Attributes:
        scale: 1 is the conditional model itself, 0 the unconditional.
        interval: Guidance acts at these times only, from 0 (image) to 1 (noise), both included.
        channels: It acts on the first so many channels of the image; None for all. DiT's own
            code guides 3 of 4 latent channels.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise InputError(
                "guidance_range",
                f"interval={self.interval} must be two times, 0 <= from <= to <= 1",
            )
        if not 0.0 <= self.scale < float("inf"):
            raise InputError("guidance_range", f"cfg_scale={self.scale} must be finite and >= 0")
        if self.channels is not None and self.channels < 1:
            raise InputError("guidance_range", f"channels={self.channels} must be at least 1")

    def acts_at(self, time: float) -> bool:
        """Tell whether a time, 0 to 1000, needs the unconditional prediction."""
        low, high = self.interval
        return self.scale != 1.0 and low <= time / MODEL_TIME_SCALE <= high


def guided(
    predict: Callable[[torch.Tensor, float, bool], torch.Tensor],
    guidance: Guidance,
    *,
    n_channels: int,
) -> PredictAt:
    """Return the prediction under guidance; equation 6 of [1], in the interval of [2].

    Args:
        predict: The network on a batch, a time and whether the second half of the batch is
            without class and text.
        guidance: How much, when and where.
        n_channels: Channels of an image; a learned variance, which comes after them, is that of
            the conditional model.
    """
    n_guided = guidance.channels or n_channels

    def predict_at(x: torch.Tensor, time: float) -> torch.Tensor:
        if not guidance.acts_at(time):
            return predict(x, time, False)
        conditional, null = predict(torch.cat([x, x]), time, True).chunk(2)
        moved = null[:, :n_guided] + guidance.scale * (
            conditional[:, :n_guided] - null[:, :n_guided]
        )
        return torch.cat([moved, conditional[:, n_guided:]], dim=1)

    return predict_at

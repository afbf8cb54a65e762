"""The linear interpolant between image and noise, with velocity prediction.

[1] Ma et al.: SiT, arXiv:2401.08740. [2] Lipman et al.: Flow Matching, arXiv:2210.02747.
"""

import torch

from gadc.training.processes import MODEL_TIME_SCALE, Loss, Predict, broadcast, per_image


class LinearInterpolant:
    """x_t = (1 − t) x0 + t noise for t from 0 to 1; the velocity is dx_t/dt = noise − x0."""

    prediction_factor = 1

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return x_t for times [b]; equation 1 of [1] with α_t = 1 − t, σ_t = t."""
        t = broadcast(times, x0)
        return (1 - t) * x0 + t * noise

    def loss(
        self, predict: Predict, x0: torch.Tensor, noise: torch.Tensor, uniform: torch.Tensor
    ) -> Loss:
        """Return the squared error of the velocity at times uniform in [0, 1]; L_v of [1]."""
        x_t = self.noised(x0, noise, uniform)
        predicted = predict(x_t, uniform.float() * MODEL_TIME_SCALE).float()
        velocity = per_image((noise - x0 - predicted).square())
        return Loss(velocity, {"velocity": velocity})

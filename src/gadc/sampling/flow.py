"""From noise to image along a velocity: ordinary and stochastic differential equations.

[1] Ma et al.: SiT, arXiv:2401.08740. [2] Karras et al.: Elucidating the Design Space of
Diffusion-Based Generative Models, arXiv:2206.00364. [3] Yu et al., arXiv:2410.06940.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.sampling.guidance import PredictAt
from gadc.sampling.noise import ImageNoise
from gadc.training.processes import MODEL_TIME_SCALE

SDE_LAST_STEP = 0.04
"""Size of the last step, which adds no noise; the setting of [3]."""


def _times(n_steps: int) -> NDArray[np.float64]:
    if n_steps < 1:
        raise InputError("steps_range", f"steps={n_steps} must be at least 1")
    return np.linspace(1.0, 0.0, n_steps + 1)


def sample_euler(
    predict: PredictAt, noise: ImageNoise, *, n_steps: int, is_bounded: bool
) -> torch.Tensor:
    """Solve dx/dt = v(x, t) from t = 1 to 0 by Euler's method, a network call a step.

    Args:
        predict: The velocity [b, c, ...].
        noise: Source of the start.
        n_steps: Number of steps.
        is_bounded: Whether the result is cut off at ±1.

    Returns:
        Images or latents [b, c, ...].
    """
    x = noise.normal()
    times = _times(n_steps)
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x = x + (t_next - t) * predict(x, t * MODEL_TIME_SCALE)
    return _bounded(x, is_bounded=is_bounded)


def sample_heun(
    predict: PredictAt, noise: ImageNoise, *, n_steps: int, is_bounded: bool
) -> torch.Tensor:
    """Solve the same by Heun's method of second order, two network calls a step.

    Algorithm 1 of [2] for the velocity. Arguments as `sample_euler`.
    """
    x = noise.normal()
    times = _times(n_steps)
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        velocity = predict(x, t * MODEL_TIME_SCALE)
        ahead = predict(x + (t_next - t) * velocity, t_next * MODEL_TIME_SCALE)
        x = x + (t_next - t) * (velocity + ahead) / 2
    return _bounded(x, is_bounded=is_bounded)


def sample_euler_maruyama(
    predict: PredictAt, noise: ImageNoise, *, n_steps: int, is_bounded: bool
) -> torch.Tensor:
    """Solve the reverse-time SDE with the diffusion w_t = 2t by the Euler–Maruyama method.

    dx = (v − w_t s / 2) dt + √w_t dW with the score s = −(x + (1 − t) v) / t: equations 5 and 6
    of [1] for the linear interpolant. So w_t s / 2 = −(x + (1 − t) v), without a singularity.
    Arguments as `sample_euler`; at least two steps.
    """
    if n_steps < 2:
        raise InputError("steps_range", f"steps={n_steps} must be at least 2 for an SDE")
    x = noise.normal()
    times = np.append(np.linspace(1.0, SDE_LAST_STEP, n_steps), 0.0).tolist()
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        velocity = predict(x, t * MODEL_TIME_SCALE)
        drift = velocity + x + (1 - t) * velocity
        x = x + (t_next - t) * drift
        if t_next > 0:
            x = x + (2 * t * (t - t_next)) ** 0.5 * noise.normal()
    return _bounded(x, is_bounded=is_bounded)


def _bounded(x: torch.Tensor, *, is_bounded: bool) -> torch.Tensor:
    return x.clamp(-1, 1) if is_bounded else x

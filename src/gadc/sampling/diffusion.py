"""DDPM and DDIM with fewer steps than the model was trained with.

[1] Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. arXiv:2006.11239.
[2] Nichol, Dhariwal: Improved Denoising Diffusion Probabilistic Models. arXiv:2102.09672.
[3] Song, Meng, Ermon: Denoising Diffusion Implicit Models. arXiv:2010.02502.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.sampling.guidance import PredictAt
from gadc.sampling.noise import ImageNoise
from gadc.training.ddpm import N_TIMES, Schedule, linear_betas


def respaced(n_steps: int) -> tuple[NDArray[np.int64], Schedule]:
    """Choose evenly spaced times of the 1000, and the schedule that leads through them.

    ᾱ at the chosen times stays what it was, so β' = 1 − ᾱ_t / ᾱ_before; section 4 of [2].

    Returns:
        The times, ascending, int64 [n_steps], and their schedule.

    Raises:
        InputError: `steps_range`.
    """
    if not 1 <= n_steps <= N_TIMES:
        raise InputError(
            "steps_range", f"steps={n_steps} must lie between 1 and {N_TIMES}, the trained times"
        )
    # A single step has to begin in noise, not in the image.
    times = np.round(np.linspace(0, N_TIMES - 1, n_steps)).astype(np.int64)
    if n_steps == 1:
        times = np.array([N_TIMES - 1])
    alpha_bars = Schedule(linear_betas()).alpha_bars[times]
    return times, Schedule(1 - alpha_bars / np.append(1.0, alpha_bars[:-1]))


def sample_ddpm(
    predict: PredictAt, noise: ImageNoise, *, n_steps: int, is_bounded: bool
) -> torch.Tensor:
    """Follow the reverse chain with its learned variance; algorithm 2 of [1].

    Args:
        predict: Noise, and the variance between its bounds, [b, 2c, ...].
        noise: Source of all noise.
        n_steps: Number of steps, at most 1000.
        is_bounded: Whether estimates of the image are cut off at ±1.

    Returns:
        Images or latents [b, c, ...].
    """
    times, schedule = respaced(n_steps)
    x = noise.normal()
    for place in range(n_steps - 1, -1, -1):
        predicted, variance = predict(x, float(times[place])).chunk(2, dim=1)
        x0 = _estimate(x, predicted, schedule, place, is_bounded=is_bounded)
        mean = float(schedule.mean_x0[place]) * x0 + float(schedule.mean_xt[place]) * x
        if place == 0:
            return mean
        share = (variance + 1) / 2
        log_variance = share * float(schedule.log_largest[place]) + (1 - share) * float(
            schedule.log_smallest[place]
        )
        x = mean + torch.exp(0.5 * log_variance) * noise.normal()
    return x


def sample_ddim(
    predict: PredictAt, noise: ImageNoise, *, n_steps: int, is_bounded: bool
) -> torch.Tensor:
    """Follow the deterministic chain; equation 12 of [3] with σ = 0. Arguments as `sample_ddpm`."""
    times, schedule = respaced(n_steps)
    x = noise.normal()
    for place in range(n_steps - 1, -1, -1):
        predicted, _ = predict(x, float(times[place])).chunk(2, dim=1)
        x0 = _estimate(x, predicted, schedule, place, is_bounded=is_bounded)
        if is_bounded:  # the noise that goes with the image that was cut off
            signal, sigma = float(schedule.signal[place]), float(schedule.sigma[place])
            predicted = (x - signal * x0) / sigma
        before = float(schedule.alpha_bars_before[place])
        x = math.sqrt(before) * x0 + math.sqrt(1 - before) * predicted
    return x


def _estimate(
    x: torch.Tensor, predicted: torch.Tensor, schedule: Schedule, place: int, *, is_bounded: bool
) -> torch.Tensor:
    """Return the image that the predicted noise implies."""
    x0 = (x - float(schedule.sigma[place]) * predicted) / float(schedule.signal[place])
    return x0.clamp(-1, 1) if is_bounded else x0

"""The Gaussian diffusion of DDPM with a linear schedule and a learned variance.

[1] Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. 2020, arXiv:2006.11239.
[2] Nichol, Dhariwal: Improved Denoising Diffusion Probabilistic Models. 2021, arXiv:2102.09672.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.training.processes import Loss, Predict, broadcast, per_image

N_TIMES = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
"""Section 4 of [1]."""
VLB_WEIGHT = 1e-3
"""λ in equation 16 of [2], which weights the sum over all times."""
HALF_LEVEL = 1 / 255
"""Half the distance of two of 256 levels in [-1, 1]; section 3.3 of [1]."""
OUTERMOST = 0.999
"""Beyond this a level's interval is open; levels themselves are at most ±1."""
SMALLEST_PROBABILITY = 1e-12


class Schedule:
    """Variances by time, float64; of all times, or respaced for sampling.

    Attributes:
        betas: β_t, [n].
        alpha_bars: ᾱ_t = Π (1 − β_s), [n].
        signal: √ᾱ_t; sigma: √(1 − ᾱ_t).
        posterior_variances: β̃_t, equation 7 of [1]; the first, which is 0, takes the second's
            place in logarithms.
    """

    def __init__(self, betas: NDArray[np.float64]) -> None:
        self.betas = betas
        self.alpha_bars = np.cumprod(1 - betas)
        self.signal, self.sigma = np.sqrt(self.alpha_bars), np.sqrt(1 - self.alpha_bars)
        self.alpha_bars_before = np.append(1.0, self.alpha_bars[:-1])
        self.posterior_variances = betas * (1 - self.alpha_bars_before) / (1 - self.alpha_bars)
        # x_{t-1} has the mean  mean_x0 · x0 + mean_xt · x_t.
        self.mean_x0 = np.sqrt(self.alpha_bars_before) * betas / (1 - self.alpha_bars)
        self.mean_xt = np.sqrt(1 - betas) * (1 - self.alpha_bars_before) / (1 - self.alpha_bars)
        floor = self.posterior_variances[1] if len(betas) > 1 else betas[0]
        self.log_smallest = np.log(np.maximum(self.posterior_variances, floor))
        self.log_largest = np.log(betas)


def linear_betas(n_times: int = N_TIMES) -> NDArray[np.float64]:
    """Return β_t from 1e-4 to 0.02."""
    return np.linspace(FIRST_BETA, LAST_BETA, n_times)


class GaussianDiffusion:
    """Noise prediction at 1000 times, with the variance of the reverse step learned beside it."""

    prediction_factor = 2

    def __init__(self) -> None:
        self.schedule = Schedule(linear_betas())
        tables = ("signal", "sigma", "mean_x0", "mean_xt", "log_smallest", "log_largest")
        self._tables = {name: torch.from_numpy(getattr(self.schedule, name)) for name in tables}

    def _at(self, name: str, times: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        table = self._tables[name]
        if table.device != like.device:
            table = self._tables[name] = table.to(like.device)
        return broadcast(table[times], like)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return x_t = √ᾱ_t x0 + √(1 − ᾱ_t) noise for times int64 [b]; equation 4 of [1]."""
        return self._at("signal", times, x0) * x0 + self._at("sigma", times, x0) * noise

    def loss(
        self, predict: Predict, x0: torch.Tensor, noise: torch.Tensor, uniform: torch.Tensor
    ) -> Loss:
        """Return L_simple + λ L_vlb; equation 16 of [2].

        The variational bound is in bits per dimension, estimated at the time drawn, and trains the
        variance alone: no gradient goes to the mean (section 3.1 of [2]).
        """
        times = (uniform * N_TIMES).long().clamp(max=N_TIMES - 1)
        x_t = self.noised(x0, noise, times)
        predicted, variance = predict(x_t, times).float().chunk(2, dim=1)
        simple = per_image((noise - predicted).square())
        bound = self._bound(x0, x_t, times, predicted.detach(), variance)
        weighted = VLB_WEIGHT * N_TIMES * bound
        return Loss(simple + weighted, {"simple": simple, "vlb": weighted})

    def _bound(
        self,
        x0: torch.Tensor,
        x_t: torch.Tensor,
        times: torch.Tensor,
        predicted: torch.Tensor,
        variance: torch.Tensor,
    ) -> torch.Tensor:
        """Return L_t of [1], equation 5, in bits per dimension, [b]."""
        signal, sigma = self._at("signal", times, x0), self._at("sigma", times, x0)
        estimate = (x_t - sigma * predicted) / signal
        mean_x0, mean_xt = self._at("mean_x0", times, x0), self._at("mean_xt", times, x0)
        smallest = self._at("log_smallest", times, x0)
        largest = self._at("log_largest", times, x0)
        log_variance = between(smallest, largest, variance)
        mean = mean_x0 * estimate + mean_xt * x_t
        divergence = per_image(_kl(mean_x0 * x0 + mean_xt * x_t, smallest, mean, log_variance))
        likelihood = per_image(_level_log_likelihood(x0, mean, log_variance))
        return torch.where(times == 0, -likelihood, divergence) / math.log(2.0)


def between(smallest: torch.Tensor, largest: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the log variance that a prediction from −1 to 1 stands for; equation 15 of [2]."""
    share = (v + 1) / 2
    return share * largest + (1 - share) * smallest


def _kl(
    mean1: torch.Tensor,
    log_variance1: torch.Tensor,
    mean2: torch.Tensor,
    log_variance2: torch.Tensor,
) -> torch.Tensor:
    """Return KL(N1 ‖ N2) of every element, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2).square() * torch.exp(-log_variance2)
    )


def _level_log_likelihood(
    x0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor
) -> torch.Tensor:
    """Return the log probability that a normal variable rounds to the level of x0.

    Equation 13 of [1]; latents, which have no levels, are treated alike, as DiT does.
    """
    inverse_std = torch.exp(-0.5 * log_variance)
    below = torch.special.ndtr((x0 - mean - HALF_LEVEL) * inverse_std)
    above = torch.special.ndtr((x0 - mean + HALF_LEVEL) * inverse_std)
    below = torch.where(x0 < -OUTERMOST, 0.0, below)
    above = torch.where(x0 > OUTERMOST, 1.0, above)
    return (above - below).clamp(min=SMALLEST_PROBABILITY).log()

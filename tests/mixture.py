"""A mixture of normal distributions in the plane, with its exact denoiser."""

import torch

CENTRES = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.0, -1.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])
STD = 0.2


def draw(n_points: int, source: torch.Generator) -> torch.Tensor:
    """Return points [n, 2]."""
    which = torch.multinomial(SHARES, n_points, replacement=True, generator=source)
    return CENTRES[which] + STD * torch.randn(n_points, 2, generator=source)


def denoised(x: torch.Tensor, signal: float, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E[x0 | x] and E[noise | x] for x = signal x0 + sigma noise, points [n, 2]."""
    variance = signal**2 * STD**2 + sigma**2
    offsets = x[:, None] - signal * CENTRES  # [n, 3, 2]
    logits = SHARES.log() - offsets.square().sum(2) / (2 * variance)
    shares = logits.softmax(1)[:, :, None]
    x0 = (shares * (CENTRES + signal * STD**2 / variance * offsets)).sum(1)
    noise = (shares * sigma / variance * offsets).sum(1)
    return x0, noise


def deviations(points: torch.Tensor) -> tuple[float, float, float]:
    """Return how far shares, centres and spread of points [n, 2] are from the mixture's."""
    nearest = torch.cdist(points, CENTRES).argmin(1)
    shares = torch.bincount(nearest, minlength=len(CENTRES)) / len(points)
    means = torch.stack([points[nearest == k].mean(0) for k in range(len(CENTRES))])
    spreads = torch.stack([points[nearest == k].std(0) for k in range(len(CENTRES))])
    return (
        float((shares - SHARES).abs().max()),
        float((means - CENTRES).abs().max()),
        float((spreads - STD).abs().max()),
    )

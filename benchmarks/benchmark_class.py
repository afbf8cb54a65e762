"""A synthetic class that looks like one ImageNet class in a 2048-d network."""

import torch


def benchmark_class(n: int = 1300, d: int = 2048, seed: int = 0) -> torch.Tensor:
    """Return features [n, d], float32: six modes on a 24-d sheet plus noise, rectified."""
    generator = torch.Generator().manual_seed(seed)
    sheet = torch.randn(24, d, generator=generator) * 0.05
    modes = torch.randn(6, 24, generator=generator) * 1.2
    mode = torch.randint(0, 6, (n,), generator=generator)
    position = modes[mode] + torch.randn(n, 24, generator=generator)
    noise = 0.2 * torch.randn(n, d, generator=generator)
    return torch.relu(0.35 + position @ sheet + noise)

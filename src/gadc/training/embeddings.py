"""What the transformer is told beside the image: place, time, class and text."""

import numpy as np
import torch
from torch import nn

FREQUENCY_WIDTH = 256
"""Sines and cosines of the time; Peebles & Xie 2023 use 256."""
MAX_PERIOD = 10_000.0
"""Longest wavelength, as in Vaswani et al. 2017."""
INITIAL_STD = 0.02
"""Of the class table and of the network that embeds the time."""


def grid_embedding(width: int, side: int) -> torch.Tensor:
    """Return the fixed sine-cosine embedding of a square grid of patches.

    Half of the width encodes the row, half the column, each as in Vaswani et al. 2017, section 3.5.

    Args:
        width: Size of an embedding; a multiple of 4.
        side: Patches along each side.

    Returns:
        Float32 [side², width].
    """
    n_frequencies = width // 4
    frequencies = MAX_PERIOD ** -(np.arange(n_frequencies) / n_frequencies)
    angles = np.arange(side)[:, None] * frequencies  # [side, width / 4]
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [side, width / 2]
    rows = np.repeat(axis, side, axis=0)
    columns = np.tile(axis, (side, 1))
    return torch.from_numpy(np.concatenate([columns, rows], axis=1)).float()


class TimeEmbedding(nn.Module):
    """A diffusion time as a vector: sines and cosines, then a small network."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        n_frequencies = FREQUENCY_WIDTH // 2
        # NumPy's: they have values even where the network is built without any, on `meta`.
        frequencies = MAX_PERIOD ** -(np.arange(n_frequencies) / n_frequencies)
        self.register_buffer("frequencies", torch.from_numpy(frequencies).float(), persistent=False)
        self.network = nn.Sequential(
            nn.Linear(FREQUENCY_WIDTH, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Return [b, width] for times [b] from 0 to 1000."""
        angles = times.float()[:, None] * self.frequencies
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)  # [b, 256]
        embedded: torch.Tensor = self.network(waves)
        return embedded


class TextEmbedding(nn.Module):
    """A text as a vector: the dual conditional embedding of D2C.

    One convolution over all tokens gives `e`; the result is `network(e) + e`, to which the class's
    embedding is added. A text of zeros is no text.

    Source: D2C, arXiv:2507.05914, section "Attach".
    """

    def __init__(self, n_tokens: int, text_width: int, width: int) -> None:
        super().__init__()
        self.join = nn.Conv1d(text_width, width, kernel_size=n_tokens, stride=n_tokens)
        self.network = nn.Sequential(
            nn.LayerNorm(width, elementwise_affine=False, eps=1e-6),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return [b, width] for token embeddings [b, n_tokens, text_width], masked with zeros."""
        text = text.to(self.join.weight.dtype)
        joined = self.join(text.transpose(1, 2)).squeeze(2)  # [b, width]
        embedded: torch.Tensor = self.network(joined) + joined
        return embedded

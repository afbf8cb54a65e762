"""Cells of neighbouring images: k-means within k-means, for any number of images and cells."""

import numpy as np
import torch

from gadc.objective.cost import squared_distances
from gadc.objective.threads import Threads
from gadc.search.whole import BLOCK_ROWS, Whole

# A cell is divided into at most this many parts at once: two levels make 4,096 cells.
MOST_PARTS = 64
# Centres are means: so many rows for each are plenty.
ROWS_PER_PART = 256
# Lloyd's steps: cells need not be the best, only round.
N_STEPS = 10
# A cell may exceed the size wanted by this factor.
OVERSIZE = 1.6


def divide(
    whole: Whole, n_per_cell: int, generator: np.random.Generator, threads: Threads
) -> list[np.ndarray]:
    """Divide all images into cells of about `n_per_cell` neighbours.

    Args:
        whole: The images.
        n_per_cell: Size of a cell; some are smaller, none is more than 1.6 times as large.
        generator: Chooses the first centres.
        threads: Where blocks of rows are worked on.

    Returns:
        The rows of each cell, ascending.

    Source: Lloyd 1982, again and again in what is still too large.
    """
    waiting = [np.arange(whole.n_images)]
    cells = []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= OVERSIZE * n_per_cell:
            cells.append(rows)
            continue
        n_parts = int(min(MOST_PARTS, max(2, round(len(rows) / n_per_cell))))
        centres = _centres(whole, rows, n_parts, generator)
        owner = _owners(whole, rows, centres, threads)
        parts = [rows[owner == part] for part in range(n_parts)]
        if max(len(part) for part in parts) == len(rows):  # all alike
            parts = np.array_split(rows, n_parts)
        waiting += [part for part in reversed(parts) if len(part)]
    return cells


def _centres(
    whole: Whole, rows: np.ndarray, n_parts: int, generator: np.random.Generator
) -> torch.Tensor:
    """Return the centres of a sample of `rows`, float32 [n_parts, d]."""
    n_sampled = min(len(rows), ROWS_PER_PART * n_parts)
    sample = whole.read(np.sort(generator.choice(rows, n_sampled, replace=False)))
    centres = sample[torch.from_numpy(generator.choice(n_sampled, n_parts, replace=False))]
    for _ in range(N_STEPS):
        owner = squared_distances(sample, centres).argmin(1)
        sizes = torch.bincount(owner, minlength=n_parts)
        sums = torch.zeros_like(centres).index_add_(0, owner, sample)
        means = sums / sizes.clamp(min=1)[:, None]
        centres = torch.where((sizes > 0)[:, None], means, centres)
    return centres


def _owners(whole: Whole, rows: np.ndarray, centres: torch.Tensor, threads: Threads) -> np.ndarray:
    """Return the nearest centre of each row [b]."""

    def nearest(some: np.ndarray) -> np.ndarray:
        owner = squared_distances(whole.read(some), centres).argmin(1)
        return np.asarray(owner.numpy())

    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    return np.concatenate(threads.map(nearest, blocks))

"""Greedy cover: every image of the class near to a selected one, found lazily.

Shared by facility location and by the first phase of k-medoids, which differ in the distance.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Rows of distances at a time: a few megabytes.
BLOCK_ROWS = 256
# Outdated gains brought up to date together; most steps need no second batch.
BATCH_ROWS = 16
# Gains that differ by less than this share are equal but for rounding. Equal ones are common: two
# images that only serve each other gain the same.
ROUNDING = 1e-6

Distances = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Gives the distances of some images to all, [k, n]."""


def cover_greedily(distances: Distances, n_images: int, n_selected: int) -> list[int]:
    """Add, again and again, the image that lowers `sum_j min_{i in S} d_ij` most.

    An image's gain only shrinks while the subset grows (the sum is supermodular), so that
    outdated gains are bounds, and few must be brought up to date at each step. The selection is
    that of the plain greedy algorithm, with the first of equal images.

    Args:
        distances: d.
        n_images: n.
        n_selected: m <= n.

    Returns:
        Images in the order of selection.

    Source: Minoux 1978, "Accelerated greedy algorithms for maximizing submodular set functions".
    """
    starts = range(0, n_images, BLOCK_ROWS)
    blocks = [np.arange(start, min(start + BLOCK_ROWS, n_images)) for start in starts]
    totals = [distances(block).sum(1, dtype=np.float64) for block in blocks]
    chosen = [int(np.concatenate(totals).argmin())]
    nearest = distances(np.array(chosen))[0].copy()  # [n]
    gains = np.concatenate([_gains(distances, block, nearest) for block in blocks])  # [n]
    while len(chosen) < n_selected:
        gains[chosen[-1]] = -np.inf
        best = _best(distances, gains, nearest)
        chosen.append(best)
        np.minimum(nearest, distances(np.array([best]))[0], out=nearest)
    return chosen


def _best(distances: Distances, gains: NDArray[np.float64], nearest: NDArray[np.float32]) -> int:
    """Return the image of the highest gain, between equals the first; bring gains up to date."""
    is_fresh = np.zeros(len(gains), dtype=np.bool_)
    while (highest := gains.max()) > 0.0:
        tied = np.flatnonzero(gains >= highest * (1.0 - ROUNDING))
        if is_fresh[tied].all():
            return int(tied[0])
        bounds = np.where(is_fresh, -np.inf, gains)
        batch = np.argpartition(-bounds, min(BATCH_ROWS, len(bounds) - 1))[:BATCH_ROWS]
        batch = batch[np.isfinite(bounds[batch])]
        gains[batch] = _gains(distances, batch, nearest)
        is_fresh[batch] = True
    return int(gains.argmax())  # every image has a selected one like it


def _gains(
    distances: Distances, candidates: NDArray[np.int64], nearest: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return by how much each candidate would shorten the distances to the nearest selected."""
    shorter = np.subtract(nearest, distances(candidates))  # [p, n]
    np.maximum(shorter, 0.0, out=shorter)
    return np.asarray(shorter.sum(1, dtype=np.float64))

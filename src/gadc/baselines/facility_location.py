"""Facility location: every image of the class served by a similar selected one."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.inner_products import InnerProducts, centred_rows
from gadc.baselines.pool import Pool, check_n_selected

# Rows of distances at a time: a few megabytes.
BLOCK_ROWS = 256
# Outdated gains brought up to date together; most steps need no second batch.
BATCH_ROWS = 16
# Gains that differ by less than this share are equal but for rounding. Equal ones are common: two
# images that only serve each other gain the same.
ROUNDING = 1e-6


def facility_location(
    pool: Pool, n_selected: int, *, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Select greedily to maximise `sum_j max_{i in S} (c - ||x_i - x_j||)`, c a constant.

    At least 1 - 1/e of the optimum, as the sum is monotone submodular. Lazy: an image's gain only
    shrinks while the subset grows, so that outdated gains are bounds, and few must be brought up
    to date at each step. The selection is that of the plain greedy algorithm.

    Args:
        pool: The class [n].
        n_selected: m <= n.
        generator: Unused: the method has no randomness.

    Returns:
        Rows in the order of selection, int64 [m].

    Raises:
        InputError: `n_selected_range`.

    Source: Nemhauser, Wolsey & Fisher 1978; Minoux 1978 (lazy evaluation); with Euclidean
    distances, Mirzasoleiman et al. 2020, CRAIG.
    """
    check_n_selected(pool, n_selected)
    distances = _Distances(pool.features)
    n = pool.n_images
    blocks = [np.arange(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS)]
    totals = [distances.of(block).sum(1, dtype=np.float64) for block in blocks]
    chosen = [int(np.concatenate(totals).argmin())]
    nearest = distances.of(np.array(chosen))[0]  # [n]
    gains = np.concatenate([_gains(distances, block, nearest) for block in blocks])  # [n]
    while len(chosen) < n_selected:
        gains[chosen[-1]] = -np.inf
        best = _best(distances, gains, nearest)
        chosen.append(best)
        np.minimum(nearest, distances.of(np.array([best]))[0], out=nearest)
    return np.array(chosen, dtype=np.int64)


def _best(distances: "_Distances", gains: NDArray[np.float64], nearest: NDArray[np.float32]) -> int:
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
    distances: "_Distances", candidates: NDArray[np.int64], nearest: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return by how much each candidate would shorten the distances to the nearest selected."""
    shorter = np.subtract(nearest, distances.of(candidates))  # [p, n]
    np.maximum(shorter, 0.0, out=shorter)
    return np.asarray(shorter.sum(1, dtype=np.float64))


class _Distances:
    """Euclidean distances of some images to all, float32."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        rows = centred_rows(features).astype(np.float32)
        self._norms = np.einsum("nd,nd->n", rows, rows, dtype=np.float64).astype(np.float32)
        self._products = InnerProducts(rows)

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the distances of some images to all [k, n]."""
        squared = -2.0 * self._products.of(indices)
        squared += self._norms
        squared += self._norms[indices, None]
        np.maximum(squared, 0.0, out=squared)
        squared[np.arange(len(indices)), indices] = 0.0
        return np.asarray(np.sqrt(squared, out=squared))

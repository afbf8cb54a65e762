"""Facility location: every image of the class served by a similar selected one."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.inner_products import InnerProducts, centred_rows
from gadc.baselines.lazy_greedy import cover_greedily
from gadc.baselines.pool import Pool, check_n_selected


def facility_location(
    pool: Pool, n_selected: int, *, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Select greedily to maximise `sum_j max_{i in S} (c - ||x_i - x_j||)`, c a constant.

    At least 1 - 1/e of the optimum, as the sum is monotone submodular.

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
    return np.array(cover_greedily(distances, pool.n_images, n_selected), dtype=np.int64)


class _Distances:
    """Euclidean distances of some images to all, float32."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        rows = centred_rows(features).astype(np.float32)
        self._norms = np.einsum("nd,nd->n", rows, rows, dtype=np.float64).astype(np.float32)
        self._products = InnerProducts(rows)

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the distances of some images to all [k, n]."""
        squared = -2.0 * self._products.of(indices)
        squared += self._norms
        squared += self._norms[indices, None]
        np.maximum(squared, 0.0, out=squared)
        squared[np.arange(len(indices)), indices] = 0.0
        return np.asarray(np.sqrt(squared, out=squared))

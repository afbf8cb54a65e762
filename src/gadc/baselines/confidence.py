"""Confidence alone: the images of which a classifier is surest."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.pool import Pool, check_n_selected


def confidence(pool: Pool, n_selected: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """Select the images of the lowest `-log p(c | x)`.

    Args:
        pool: The class [n], with `confidence_loss`.
        n_selected: m <= n.
        generator: Unused: the method has no randomness.

    Returns:
        Rows, the surest first, between equals the first row, int64 [m].

    Raises:
        InputError: `n_selected_range` or `confidence_missing`.
    """
    check_n_selected(pool, n_selected)
    losses = pool.needed_confidence("confidence")
    return np.argsort(losses, kind="stable")[:n_selected]

"""Moderate coreset: images at the usual distance from the centre of their class."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.inner_products import centred_rows
from gadc.baselines.pool import Pool, check_n_selected


def moderate(pool: Pool, n_selected: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """Select the images whose distance from the class's mean is nearest to the median distance.

    Args:
        pool: The class [n].
        n_selected: m <= n.
        generator: Unused: the method has no randomness.

    Returns:
        Rows, the nearest to the median first, between equals the first row, int64 [m].

    Raises:
        InputError: `n_selected_range`.

    Source: Xia et al. 2023, "Moderate coreset: a universal method of data selection for
    real-world data-efficient deep learning", section 3.
    """
    check_n_selected(pool, n_selected)
    distances = np.linalg.norm(centred_rows(pool.features), axis=1)
    return np.argsort(np.abs(distances - np.median(distances)), kind="stable")[:n_selected]

"""Random selection: the yardstick of all others."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.pool import Pool, check_n_selected


def uniform(pool: Pool, n_selected: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw images without replacement, all equally likely.

    One draw for each class is stratified sampling. The same generator gives nested subsets: a
    smaller one is the beginning of a larger one.

    Args:
        pool: The class [n].
        n_selected: m <= n.
        generator: Decides which.

    Returns:
        Rows, int64 [m].

    Raises:
        InputError: `n_selected_range`.
    """
    check_n_selected(pool, n_selected)
    return generator.permutation(pool.n_images)[:n_selected]

"""k-medoids: the class's images as near as possible to their nearest selected one."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.costs import class_cost
from gadc.baselines.lazy_greedy import cover_greedily
from gadc.baselines.pool import Pool, check_n_selected
from gadc.search import Candidates
from gadc.search.medoids import medoids


def k_medoids(pool: Pool, n_selected: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """Select images S that minimise `sum_j min_{i in S} ||x_i - x_j||^2`: greedy, then exchanges.

    Needs the class's cost matrix: 4 n^2 bytes.

    Args:
        pool: The class [n].
        n_selected: m <= n.
        generator: Unused: the method has no randomness.

    Returns:
        Rows in the order of construction, exchanged ones in the places of the replaced, int64 [m].

    Raises:
        InputError: `n_selected_range` or `class_too_large`.

    Source: Kaufman & Rousseeuw 1990, PAM: its BUILD, here lazily, and its SWAP with the shared
    removal loss of FasterPAM (Schubert & Rousseeuw 2021); see `gadc.search.medoids`.
    """
    check_n_selected(pool, n_selected)
    cost = class_cost(pool.features)
    rows = cost.numpy()  # the same memory
    start = cover_greedily(lambda indices: rows[indices], pool.n_images, n_selected)
    found = medoids(cost, n_selected, Candidates(pool.n_images), start=start)
    return np.array(found, dtype=np.int64)

"""k-center: no image of the class far from a selected one."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.inner_products import centred_rows
from gadc.baselines.pool import Pool, check_n_selected


def k_center(pool: Pool, n_selected: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """Select, again and again, the image farthest from those selected.

    `max_j min_{i in S} ||x_i - x_j||` is at most twice the smallest possible. O(n m d).

    Args:
        pool: The class [n].
        n_selected: m <= n.
        generator: Draws the first image.

    Returns:
        Rows in the order of selection, int64 [m].

    Raises:
        InputError: `n_selected_range`.

    Source: Gonzalez 1985; Sener & Savarese 2018, "Active learning for convolutional neural
    networks: a core-set approach", algorithm 1.
    """
    check_n_selected(pool, n_selected)
    rows = centred_rows(pool.features)
    norms = np.einsum("nd,nd->n", rows, rows)  # [n]
    chosen = [int(generator.integers(pool.n_images))]
    nearest = np.full(pool.n_images, np.inf)  # squared distance to the selected; -inf: is one
    while len(chosen) < n_selected:
        last = chosen[-1]
        np.minimum(nearest, norms + norms[last] - 2.0 * (rows @ rows[last]), out=nearest)
        nearest[last] = -np.inf
        chosen.append(int(nearest.argmax()))
    return np.array(chosen, dtype=np.int64)

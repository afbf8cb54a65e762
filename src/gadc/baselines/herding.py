"""Herding: a subset whose mean follows that of the class, at every size."""

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.inner_products import centred_rows
from gadc.baselines.pool import Pool, check_n_selected


def herding(pool: Pool, n_selected: int, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """Select, again and again, the image that brings the subset's mean nearest to the class's.

    The t-th is `argmin_x ||t mu - sum_S x_i - x||`. O(n m d).

    Args:
        pool: The class [n]; features are taken as they are, not normalised.
        n_selected: m <= n.
        generator: Unused: the method has no randomness.

    Returns:
        Rows in the order of selection, int64 [m].

    Raises:
        InputError: `n_selected_range`.

    Source: Welling 2009, "Herding dynamical weights to learn"; in this form Rebuffi et al. 2017,
    iCaRL, algorithm 4.
    """
    return _herd(pool, n_selected, sign=1.0)


def herding_deepcore(
    pool: Pool, n_selected: int, *, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Select as DeepCore's herding does: the image that brings the mean *farthest* away.

    DeepCore takes the argmax of the distance of which `herding` takes the argmin, so it collects
    outliers. It is no good method, but many published numbers named herding are of it.

    Args:
        pool: See `herding`.
        n_selected: See there.
        generator: See there.

    Returns:
        Rows in the order of selection, int64 [m].

    Raises:
        InputError: `n_selected_range`.

    Source: Guo et al. 2022, "DeepCore", `deepcore/methods/herding.py`.
    """
    return _herd(pool, n_selected, sign=-1.0)


def _herd(pool: Pool, n_selected: int, *, sign: float) -> NDArray[np.int64]:
    """Select by the lowest `sign * ||t mu - sum_S x_i - x||`.

    With the class's mean at the origin, its square is `||sum_S x_i||^2 + 2 x . sum_S x_i +
    ||x||^2`, of which the first term is the same for all x.
    """
    check_n_selected(pool, n_selected)
    rows = centred_rows(pool.features)
    score = 0.5 * sign * np.einsum("nd,nd->n", rows, rows)  # [n]
    chosen: list[int] = []
    for _ in range(n_selected):
        best = int(score.argmin())
        chosen.append(best)
        score += sign * (rows @ rows[best])
        score[best] = np.inf
    return np.array(chosen, dtype=np.int64)

"""CCS: coverage-centric coreset selection, a random draw that is even over difficulty."""

import logging

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.pool import Pool, check_n_selected
from gadc.errors import InputError

logger = logging.getLogger(__name__)

N_STRATA = 50
# Published for 90 % pruning of ImageNet, the strongest there; it grows with the pruning.
HARD_CUTOFF = 0.3


def coverage_centric(
    pool: Pool,
    n_selected: int,
    *,
    generator: np.random.Generator,
    hard_cutoff: float = HARD_CUTOFF,
    n_strata: int = N_STRATA,
) -> NDArray[np.int64]:
    """Drop the hardest images, then draw evenly from strata of equal width in difficulty.

    The published code stratifies all classes at once and may leave classes out; here every class
    is stratified on its own, so that each gets its budget. Strata are visited from the smallest
    on; each gives its images or an equal share of what is still wanted, rounded down. A budget
    below the number of strata so goes to the fullest of them.

    Args:
        pool: The class [n], with `difficulty`.
        n_selected: m <= n.
        generator: Draws within strata.
        hard_cutoff: beta: this share of the class, rounded down, is dropped. Where fewer than m
            would be left, only n - m are, and the log says so.
        n_strata: Number of strata between the lowest and the highest difficulty left.

    Returns:
        Rows, stratum by stratum, int64 [m].

    Raises:
        InputError: `n_selected_range`, `difficulty_missing`, `hard_cutoff_range` or
            `strata_range`.

    Source: Zheng et al. 2023, "Coverage-centric coreset selection for high pruning rates",
    algorithm 1; score there: AUM, low for hard images.
    """
    check_n_selected(pool, n_selected)
    if not 0.0 <= hard_cutoff < 1.0:
        raise InputError(
            "hard_cutoff_range",
            f"hard_cutoff={hard_cutoff} must be at least 0 and below 1, a share of the class",
        )
    if n_strata < 1:
        raise InputError("strata_range", f"n_strata={n_strata} must be >= 1")
    difficulty = pool.needed_difficulty("ccs")
    n_dropped = int(hard_cutoff * pool.n_images)
    if n_dropped > pool.n_images - n_selected:
        n_dropped = pool.n_images - n_selected
        logger.warning(
            "hard_cutoff=%s leaves fewer than %d of %d images: only the %d hardest are dropped",
            hard_cutoff,
            n_selected,
            pool.n_images,
            n_dropped,
        )
    kept = np.argsort(difficulty, kind="stable")[: pool.n_images - n_dropped]
    strata = _strata(kept, difficulty[kept], n_strata)
    chosen = []
    n_left = n_selected
    for place, rows in enumerate(sorted(strata, key=len)):
        n_drawn = min(len(rows), n_left // (n_strata - place))
        chosen.append(generator.choice(rows, n_drawn, replace=False))
        n_left -= n_drawn
    return np.concatenate(chosen)


def _strata(
    rows: NDArray[np.int64], difficulty: NDArray[np.float64], n_strata: int
) -> list[NDArray[np.int64]]:
    """Return the rows in each of `n_strata` intervals of equal width, from easy to hard."""
    lowest, highest = difficulty.min(), difficulty.max()
    edges = np.linspace(lowest, highest, n_strata + 1)[1:-1]  # the highest belongs to the last
    stratum = np.searchsorted(edges, difficulty, side="right")
    return [rows[stratum == place] for place in range(n_strata)]

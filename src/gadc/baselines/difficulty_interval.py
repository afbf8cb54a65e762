"""D2C Select: every k-th image from the easiest to the hardest."""

import logging

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.pool import Pool, check_n_selected
from gadc.errors import InputError

logger = logging.getLogger(__name__)

PUBLISHED_INTERVALS = {10: 96, 50: 16, 100: 10}
"""The paper's interval by images per class, for ImageNet's classes of 732 to 1300 images."""


def difficulty_interval(
    pool: Pool,
    n_selected: int,
    *,
    generator: np.random.Generator,
    interval: int | None = None,
) -> NDArray[np.int64]:
    """Sort images by difficulty, ascending, and select the ranks 0, k, 2k, ...

    Args:
        pool: The class [n], with `difficulty`; the paper's is the mean loss of a diffusion model.
        n_selected: m <= n.
        generator: Unused: the method has no randomness.
        interval: k; default n // m, which spans the class. The published ones
            (`PUBLISHED_INTERVALS`) are for ImageNet. Where a class is too small for k, the paper
            says nothing; here it gets n // m, and the log says so.

    Returns:
        Rows, the easiest first, int64 [m].

    Raises:
        InputError: `n_selected_range`, `difficulty_missing` or `interval_range`.

    Source: D2C (arXiv 2507.05914, CVPR 2026), "Select". Its eq. 7 gives the loss a minus sign
    against its own text and algorithm; here a low loss is easy, and easy comes first.
    """
    check_n_selected(pool, n_selected)
    if interval is not None and interval < 1:
        raise InputError("interval_range", f"interval={interval} must be >= 1")
    difficulty = pool.needed_difficulty("d2c")
    widest = pool.n_images // n_selected
    if interval is None:
        interval = widest
    elif (n_selected - 1) * interval >= pool.n_images:
        logger.warning(
            "interval=%d is too wide for %d of %d images: %d is used",
            interval,
            n_selected,
            pool.n_images,
            widest,
        )
        interval = widest
    return np.argsort(difficulty, kind="stable")[: n_selected * interval : interval]

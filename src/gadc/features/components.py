"""Principal components of rows too many for memory."""

from collections.abc import Callable, Iterable

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray

from gadc.runtime import generator

LEVELS = 255
"""Rows are 8-bit levels; features are on the scale from 0 to 1."""
LANCZOS_BELOW = 0.1
"""A tenth of all directions or fewer are found by iteration, in a tenth of the time."""
LEAST_VARIANCE = 1e-10
"""Of the largest: components below are rounding."""


def principal_components(
    blocks: Callable[[], Iterable[NDArray[np.uint8]]], *, n_components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the directions in which 8-bit rows vary most.

    Sums of 8-bit levels and of their products are whole numbers that float64 holds exactly (up to
    1e11 rows), so that they depend neither on the blocks nor on the order of the rows.

    Args:
        blocks: Gives the rows [b, d], in blocks.
        n_components: The most directions returned; directions without variance are left out, but
            one is kept.

    Returns:
        The mean [d] and the directions [d, k], each with its largest entry positive.
    """
    n_rows = 0
    total: NDArray[np.float64] = np.zeros(())  # takes the shape of the first block's sum
    products: NDArray[np.float64] = np.zeros(())
    for block in blocks():
        levels = block.astype(np.float64)
        n_rows += len(levels)
        total = total + levels.sum(axis=0)
        products = products + levels.T @ levels
    mean = total / n_rows
    covariance = products / n_rows - np.outer(mean, mean)
    n_levels = len(covariance)
    n_kept = min(n_components, n_levels)
    if n_kept < LANCZOS_BELOW * n_levels and covariance.any():
        # A start of our own: the default is another one in every run.
        start = generator(0, "principal components").standard_normal(n_levels)
        variances, directions = scipy.sparse.linalg.eigsh(covariance, k=n_kept, v0=start)
    else:
        variances, directions = scipy.linalg.eigh(
            covariance, subset_by_index=(n_levels - n_kept, n_levels - 1)
        )
    variances, directions = variances[::-1], directions[:, ::-1]
    n_real = max(1, int((variances > LEAST_VARIANCE * variances[0]).sum()))
    directions = directions[:, :n_real]
    largest = np.abs(directions).argmax(axis=0)
    return mean, directions * np.sign(directions[largest, np.arange(n_real)])


def project(
    block: NDArray[np.uint8], mean: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the coordinates [b, k] of 8-bit rows [b, d] along `directions`."""
    centred = (block.astype(np.float64) - mean) / LEVELS
    return np.asarray(centred @ directions, dtype=np.float32)

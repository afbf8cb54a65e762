"""Inner products between images, a few rows at a time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The matrix is stored up to this size (16,384 images): one large product instead of many thin.
STORED_BYTES = 1 << 30


class InnerProducts:
    """`x_i . x_j`: all of them where they fit into 1 GiB, else computed when they are asked for.

    Args:
        rows: x [n, d], float32.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows
        self._stored: NDArray[np.float32] | None = None
        if 4 * len(rows) ** 2 <= STORED_BYTES:
            self._stored = rows @ rows.T

    def of(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Return the products of some images with all, float32 [k, n]."""
        if self._stored is not None:
            return self._stored[indices]
        return self._rows[indices] @ self._rows.T


def centred_rows(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `features` less their mean, float64 [n, d]: small numbers keep their digits."""
    rows = features.astype(np.float64)
    rows -= rows.mean(0)
    return rows

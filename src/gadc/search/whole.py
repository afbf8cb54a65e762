"""A data set too large for its cost matrix: rows read as they are needed, and what all of them say.

Features stay where they are, on disk as a rule. Everything that a search needs of all images at
once (moments, the typical cost) is gathered in a few passes over blocks of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from gadc.errors import InputError
from gadc.objective.cost import centre_of, cost_scale, squared_distances
from gadc.objective.weights import as_weights
from gadc.runtime import generator

# Rows read at a time, 12 MB at 768 numbers.
BLOCK_ROWS = 4096
# A row read at random brings its neighbours into memory, up to all of a large page. After a read
# that brings what is there to half a gigabyte, pages are given back.
LARGE_PAGE_BYTES = 2 << 20
RELEASED_PAGES = 256
# The median cost is that of so many rows among each other: exact up to here, else within about 1 %.
SAMPLE_ROWS = 4096


class Rows(Protocol):
    """Features [n, d], of which some rows are read at a time: an array, a memory map, several."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and d."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [b, d] by their numbers."""


@dataclass(frozen=True)
class Terms:
    """The objective's settings, in absolute units.

    Attributes:
        capacity: kappa.
        epsilon: Entropic regularisation.
        mean_weight: Weight of `||mu_S - mu||^2`.
        std_weight: Weight of `||sigma_S - sigma||^2`.
        confidence_weight: Weight of the mean confidence loss.
    """

    capacity: float
    epsilon: float
    mean_weight: float
    std_weight: float
    confidence_weight: float

    @property
    def has_slack(self) -> bool:
        """Whether columns may stay partly unused."""
        return self.capacity > 1.0


class Whole:
    """All images, row by row, and their moments.

    Args:
        features: [n, d]; rows are read, centred and forgotten.
        weights: How much each image counts in what is matched [n]; default: all the same.
        seed: Chooses the rows that the median cost is taken from.
        release: Called now and then, to give back the memory of a memory map's pages.

    Attributes:
        shares: The weights, summing to one, float64 [n].
        mean: Of all rows, centred, float64 [d].
        std: Likewise.
        scale: The median cost.

    Raises:
        InputError: Bad shapes, numbers not finite or too large, or bad weights.
    """

    def __init__(
        self,
        features: Rows,
        *,
        weights: np.ndarray | None = None,
        seed: int = 0,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._features, self._release, self._n_pages = features, release, 0
        if len(features.shape) != 2 or 0 in features.shape:
            raise InputError(
                "features_shape",
                f"features must be [n, d] with n, d >= 1; got {list(features.shape)}",
            )
        n = self.n_images
        self.shares = np.full(n, 1.0 / n)
        if weights is not None:
            self.shares = as_weights(weights, n, "target_weights").numpy()
        self._centre = np.zeros(features.shape[1], dtype=np.float32)
        sample = np.arange(n)
        if n > SAMPLE_ROWS:
            sample = np.sort(generator(seed, "sample").choice(n, SAMPLE_ROWS, replace=False))
        values = self._finite(sample)
        self._centre = centre_of(values).float().numpy()
        self.mean = self._moment(0.0, 1)
        unbiased = float((self.shares * (1.0 - self.shares)).sum())
        squares = self._moment(self.mean, 2)
        self.std = np.sqrt(squares / unbiased) if n > 1 else np.zeros_like(squares)
        self.scale = self._median_cost(sample)
        if not (np.isfinite(self.scale) and np.isfinite(squares).all()):
            raise InputError(
                "features_too_large",
                "squared distances overflow float32; scale the features down (their largest "
                f"magnitude in a sample is {float(values.abs().max()):.3g})",
            )

    @property
    def n_images(self) -> int:
        """Number of rows."""
        return int(self._features.shape[0])

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return rows, centred, float32 [b, d]."""
        found = np.asarray(self._features[rows], dtype=np.float32)
        row_bytes = found.itemsize * found.shape[1]
        pages = np.asarray(rows, dtype=np.int64) * row_bytes // LARGE_PAGE_BYTES
        self._n_pages += 1 + int(np.count_nonzero(np.diff(pages)))
        if self._n_pages >= RELEASED_PAGES:
            self._n_pages = 0
            self._release()
        return torch.from_numpy(found - self._centre)

    def _finite(self, rows: np.ndarray) -> torch.Tensor:
        values = self.read(rows)
        finite = torch.isfinite(values).all(1)
        if not bool(finite.all()):
            bad = rows[~finite.numpy()][:10].tolist()
            raise InputError(
                "features_not_finite",
                f"features hold NaN or infinity in rows {bad} (first ten shown); "
                "remove these images or extract their features again",
            )
        return values

    def _moment(self, about: np.ndarray | float, power: int) -> np.ndarray:
        """Return the weighted mean of a power of the numbers about something, float64 [d]."""
        total = np.zeros(self._features.shape[1])
        for start in range(0, self.n_images, BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, self.n_images))
            values = self._finite(rows).double().numpy()
            total += self.shares[rows] @ (values - about) ** power
        return total

    def _median_cost(self, rows: np.ndarray) -> float:
        values = self.read(rows)
        cost = squared_distances(values, values)
        cost.fill_diagonal_(0.0)
        shares = torch.from_numpy(self.shares[rows])
        if bool((shares == shares[0]).all()):
            return cost_scale(cost, is_square=True)
        return cost_scale(cost, is_square=True, column_weights=shares / shares.sum())

"""A sum of small matrices over overlapping sets of rows, as Hessians of large problems are."""

import numpy as np
from scipy import sparse

# Of so many rows it is added up as a whole matrix (of 400 MB), of more as a sparse one, which is
# slower.
MOST_DENSE = 10_000


class OverlapSum:
    """Adds them up to [m, m].

    Args:
        m: Rows in all.
    """

    def __init__(self, m: int) -> None:
        self._shape = (m, m)
        self._dense = np.zeros(self._shape, np.float32) if m <= MOST_DENSE else None
        self._sparse = sparse.csr_array(self._shape, dtype=np.float32)

    def add(self, near: list[np.ndarray], overlaps: list[np.ndarray]) -> None:
        """Add matrices [q, q], each of the rows `near` [q]; all are there once in a matrix."""
        if self._dense is not None:
            for places, overlap in zip(near, overlaps, strict=True):
                self._dense[np.ix_(places, places)] += overlap
            return
        met = [np.nonzero(overlap) for overlap in overlaps]
        entries = [overlap[where] for overlap, where in zip(overlaps, met, strict=True)]
        first, second = (
            np.concatenate([places[where[axis]] for places, where in zip(near, met, strict=True)])
            for axis in (0, 1)
        )
        added = sparse.coo_array((np.concatenate(entries), (first, second)), shape=self._shape)
        self._sparse += added.tocsr()

    def total(self) -> sparse.csr_array:
        """Return the sum."""
        return self._sparse if self._dense is None else sparse.csr_array(self._dense)

"""Rows of numbers that lie in several files, indexed as if they were one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.features.tensors import StoredTensor, release_pages


class ShardedRows:
    """Float32 [n, d] made of several memory maps, one below the other.

    Indexing reads the rows asked for, and no others, as an array in memory; other number types
    become float32 then. So features larger than memory need neither be joined nor converted.

    Args:
        parts: Tensors [n_i, d] of any real type, at least one, with one d.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, parts: Sequence[StoredTensor]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part.values) for part in parts])
        self.shape = (int(self._ends[-1]), int(parts[0].values.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows [b, d]: a slice, or the numbers of rows from 0, in any order."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"rows {wanted.min()} to {wanted.max()} of {len(self)}, which start at 0"
            )
        found = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        shard = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(shard).tolist():
            part = self._parts[number]
            is_here = shard == number
            first = int(self._ends[number]) - len(part.values)
            found[is_here] = part.numbers(wanted[is_here] - first)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything, for `numpy.asarray`."""
        if copy is False:
            raise ValueError("rows in several files can't become one array without a copy")
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)

    def release(self) -> None:
        """Give back the memory of the files' pages."""
        for part in self._parts:
            release_pages(part.values)


class SelectedRows:
    """Some rows of features, in some order, that stay where they are until they are asked for.

    Args:
        features: [n, d].
        rows: Numbers of the rows [s].
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, features: "FeatureRows", rows: NDArray[np.int64]) -> None:
        self._features, self._rows = features, rows
        self.shape = (len(rows), int(features.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows [b, d]: a slice, or the numbers of rows from 0, in any order."""
        return np.asarray(self._features[self._rows[rows]], dtype=np.float32)

    def release(self) -> None:
        """Give back the memory of the pages that were read."""
        release_rows(self._features)


FeatureRows = NDArray[np.float32] | ShardedRows
"""Rows of features or probabilities: one array, perhaps a memory map, or several files."""


def release_rows(rows: FeatureRows) -> None:
    """Give back the memory of the pages of memory maps; they are read again when needed."""
    if isinstance(rows, ShardedRows):
        rows.release()
    else:
        release_pages(rows)

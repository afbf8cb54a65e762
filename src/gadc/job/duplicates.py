"""Exact duplicates: the same image under several names, in one class or in several."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gadc.features.checks import check_finite
from gadc.features.rows import FeatureRows, release_rows

ROWS_AT_A_TIME = 4096
DIGEST_BYTES = 16


def row_digests(features: FeatureRows, name: str) -> list[bytes]:
    """Return a digest of each row; equal numbers have equal digests.

    A memory map is read once, block by block, and its pages are given back.

    Args:
        features: Float32 [n, d].
        name: What the error calls them.

    Raises:
        InputError: `features_not_finite`, with the first rows.
    """
    digests = []
    for start in range(0, len(features), ROWS_AT_A_TIME):
        block = np.array(features[start : start + ROWS_AT_A_TIME], order="C")
        if not np.isfinite(block).all():
            check_finite(features, name)
        block += np.float32(0.0)  # -0 becomes 0
        digests += [hashlib.blake2b(row.data, digest_size=DIGEST_BYTES).digest() for row in block]
        release_rows(features)
    return digests


def later_copies(
    digests: Sequence[str] | Sequence[bytes], order: NDArray[np.int64], preferred: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Tell which images are copies of one that stands for them.

    Args:
        digests: What equal images have in common [n].
        order: Rows in the order in which the first of equal ones stands for the others [n].
        preferred: Rows that stand for their copies wherever they are in that order [n].

    Returns:
        True for every image but those that stand for themselves; always false where preferred.
    """
    taken = {digests[row] for row in np.flatnonzero(preferred).tolist()}
    is_copy = np.zeros(len(digests), dtype=np.bool_)
    for row in order.tolist():
        if preferred[row]:
            continue
        is_copy[row] = digests[row] in taken
        taken.add(digests[row])
    return is_copy


def groups_of_copies(
    digests: Sequence[str] | Sequence[bytes], order: NDArray[np.int64]
) -> list[list[int]]:
    """Return the rows of every image that is in `order` more than once, in that order."""
    seen: set[str | bytes] = set()
    repeated: dict[str | bytes, list[int]] = {}
    for row in order.tolist():
        if digests[row] in seen:
            repeated[digests[row]] = []
        seen.add(digests[row])
    for row in order.tolist():
        if digests[row] in repeated:
            repeated[digests[row]].append(row)
    return list(repeated.values())

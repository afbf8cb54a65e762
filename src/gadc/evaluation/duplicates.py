"""Vectors that stand in a sample twice, exactly or nearly."""

import numpy as np

from gadc.errors import InputError
from gadc.evaluation.distances import nearest_others
from gadc.evaluation.sample import Features, as_pair, as_sample

NEAR_DUPLICATE_RATIO = 1.0 / 3.0
"""Nearer than this share of what is usual between neighbours: the ratio of memorisation tests."""


def duplicate_share(rows: Features, *, threshold: float = 0.0) -> float:
    """Return the share of vectors whose nearest other vector is within a distance.

    All of a group of duplicates count, not only the later ones.

    Args:
        rows: [n, d], n >= 2.
        threshold: Largest distance; 0: exact duplicates alone.

    Returns:
        0 to 1; lower is better.

    Raises:
        InputError: `bad_threshold`, or fewer than two vectors.
    """
    if not threshold >= 0.0:
        raise InputError("bad_threshold", f"threshold={threshold} must be >= 0")
    squared, _ = nearest_others(as_sample(rows, "rows"))
    return float((squared.sqrt() <= threshold).double().mean())


def near_duplicate_share(
    *, selected: Features, real: Features, ratio: float = NEAR_DUPLICATE_RATIO
) -> float:
    """Return the share of selected vectors that nearly repeat another selected one.

    A near duplicate is nearer than `ratio` times the median distance between a real vector and its
    nearest other: the unit is the real vectors' own, so no threshold has to be known.

    Args:
        selected: [m, d], m >= 2.
        real: [n, d], n >= 2.
        ratio: 0: exact duplicates alone.

    Raises:
        InputError: `bad_threshold`, `too_few_rows`, or as `as_pair`.
    """
    if not (np.isfinite(ratio) and ratio >= 0.0):
        raise InputError("bad_threshold", f"ratio={ratio} must be finite and >= 0")
    few, many = as_pair(selected, real, ("selected", "real"))
    usual = float(np.median(nearest_others(many)[0].sqrt().cpu().numpy()))
    return duplicate_share(few, threshold=ratio * usual)

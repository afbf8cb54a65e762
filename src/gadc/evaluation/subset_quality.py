"""How well a few selected vectors stand for many: five measures that no selection here optimises.

Every function takes `selected` [m, d], the few, and `real` [n, d], the many that they stand for, by
name, so that the two can't be confused. All work in float64 on Euclidean distances, in blocks of
rows, and need no optional library.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from gadc.errors import InputError

Estimator = Literal["unbiased", "empirical"]

DEFAULT_NEIGHBOURS = 5
"""k of coverage and recall, the value of Naeem et al."""
BLOCK_DISTANCES = 1 << 24
"""Distances held at a time: 128 MB."""
BANDWIDTH_ROWS = 2_000
"""The median distance of this many rows is that of all of them, to a per cent or two."""

Matrix = NDArray[np.float64]


def energy_distance(*, selected: ArrayLike, real: ArrayLike) -> float:
    """Return the energy distance between the two sets, taken as distributions of equal weights.

    `2 E|S - R| - E|S - S'| - E|R - R'|`: zero if and only if both are the same distribution; in
    one dimension twice the squared area between the distribution functions. No estimate of
    anything beyond the two sets, so a vector's distance to itself counts.

    Args:
        selected: [m, d].
        real: [n, d].

    Returns:
        >= 0, in the unit of a distance.

    Source:
        Szekely and Rizzo, Energy statistics, 2013, section 2.
    """
    few, many = _checked(selected, real)
    cross, within_few, within_many = (
        _mean_distance(few, many),
        _mean_distance(few, few),
        _mean_distance(many, many),
    )
    return max(0.0, 2.0 * cross - within_few - within_many)


def rbf_mmd_squared(
    *,
    selected: ArrayLike,
    real: ArrayLike,
    bandwidth: float | None = None,
    estimator: Estimator = "unbiased",
) -> float:
    """Return the squared maximum mean discrepancy under the kernel `exp(-|x - y|^2 / (2 h^2))`.

    Args:
        selected: [m, d], m >= 2 for `unbiased`.
        real: [n, d], n >= 2 for `unbiased`.
        bandwidth: h; default: the median distance between two vectors of `real`.
        estimator: `unbiased` estimates the discrepancy of the distributions that both were drawn
            from, and may be negative: for a spread-out choice, it is. `empirical` compares the
            two sets themselves, is never negative, and is what to compare choices of one size by.

    Source:
        Gretton et al., A kernel two-sample test, 2012, equations 3 (unbiased) and 5 (empirical).
    """
    few, many = _checked(selected, real)
    if estimator not in ("unbiased", "empirical"):
        raise InputError("bad_choice", f"estimator={estimator!r}; use 'unbiased' or 'empirical'")
    if estimator == "unbiased" and min(len(few), len(many)) < 2:
        raise InputError(
            "too_few_rows",
            f"the unbiased estimate needs two vectors of each; got {len(few)} selected and "
            f"{len(many)} real; use estimator='empirical'",
        )
    if bandwidth is None:
        bandwidth = median_distance(many)
    if not (np.isfinite(bandwidth) and bandwidth > 0.0):
        raise InputError("bad_bandwidth", f"bandwidth={bandwidth} must be finite and above 0")
    cross = _kernel_sum(few, many, bandwidth) / (len(few) * len(many))
    within = 0.0
    for rows in (few, many):
        total, n = _kernel_sum(rows, rows, bandwidth), len(rows)
        # The kernel of a vector with itself is 1.
        within += (total - n) / (n * (n - 1)) if estimator == "unbiased" else total / n**2
    return within - 2.0 * cross


def coverage(*, selected: ArrayLike, real: ArrayLike, k: int = DEFAULT_NEIGHBOURS) -> float:
    """Return the share of real vectors with a selected one in their neighbourhood.

    A real vector's neighbourhood is the ball that reaches its k-th nearest real neighbour.

    Args:
        selected: [m, d].
        real: [n, d], n > k.
        k: Number of neighbours.

    Returns:
        0 to 1; higher is better.

    Source:
        Naeem et al., Reliable fidelity and diversity metrics for generative models, 2020.
    """
    few, many = _checked(selected, real)
    radii = _neighbour_radii(many, k, "real")
    nearest = np.concatenate([cdist(block, few).min(axis=1) for block in _blocks(many, len(few))])
    return float(np.mean(nearest <= radii))


def recall(*, selected: ArrayLike, real: ArrayLike, k: int = DEFAULT_NEIGHBOURS) -> float:
    """Return the share of real vectors inside the manifold that the selected ones span.

    The manifold is the union of the balls around the selected vectors that reach their k-th
    nearest selected neighbour: the fewer are selected, the larger the balls, so only sets of one
    size compare.

    Args:
        selected: [m, d], m > k.
        real: [n, d].
        k: Number of neighbours.

    Returns:
        0 to 1; higher is better.

    Source:
        Kynkaanniemi et al., Improved precision and recall metric for assessing generative models,
        2019, equations 1 and 2.
    """
    few, many = _checked(selected, real)
    radii = _neighbour_radii(few, k, "selected")
    inside = [(cdist(block, few) <= radii).any(axis=1) for block in _blocks(many, len(few))]
    return float(np.mean(np.concatenate(inside)))


def nearest_neighbour_accuracy(
    *,
    selected: ArrayLike,
    selected_labels: ArrayLike,
    real: ArrayLike,
    real_labels: ArrayLike,
) -> float:
    """Return how often the nearest selected vector has the class of a real one.

    Args:
        selected: What the classifier knows [m, d].
        selected_labels: Their classes [m].
        real: What it is asked [n, d]; leave the selected ones out, or they answer for themselves.
        real_labels: Their classes [n].

    Returns:
        0 to 1; of several nearest, the one that stands first in `selected` answers.
    """
    few, many = _checked(selected, real)
    few_labels, many_labels = np.asarray(selected_labels), np.asarray(real_labels)
    for name, labels, rows in (
        ("selected_labels", few_labels, few),
        ("real_labels", many_labels, many),
    ):
        if labels.shape != (len(rows),):
            raise InputError(
                "length_mismatch", f"{name} has shape {labels.shape}, expected ({len(rows)},)"
            )
    nearest = np.concatenate([cdist(block, few).argmin(1) for block in _blocks(many, len(few))])
    return float(np.mean(few_labels[nearest] == many_labels))


def median_distance(rows: ArrayLike) -> float:
    """Return the median distance between two different rows of [n, d]; of evenly spaced ones.

    Raises:
        InputError: Fewer than two rows.
    """
    values = _as_rows(rows, "rows")
    if len(values) < 2:
        raise InputError("too_few_rows", "a distance needs two vectors")
    step = -(-len(values) // BANDWIDTH_ROWS)
    sample = values[::step]
    distances = cdist(sample, sample)
    return float(np.median(distances[np.triu_indices(len(sample), k=1)]))


def _checked(selected: ArrayLike, real: ArrayLike) -> tuple[Matrix, Matrix]:
    few, many = _as_rows(selected, "selected"), _as_rows(real, "real")
    if few.shape[1] != many.shape[1]:
        raise InputError(
            "width_mismatch",
            f"selected has {few.shape[1]} features, real {many.shape[1]}; use one encoder for both",
        )
    return few, many


def _as_rows(values: ArrayLike, name: str) -> Matrix:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(
            "bad_shape", f"{name} must have the shape [n, d], n, d >= 1; not {rows.shape}"
        )
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))[:10].tolist()
        raise InputError("features_not_finite", f"{name}: NaN or infinity in rows {bad}")
    return rows


def _blocks(rows: Matrix, n_others: int) -> Iterator[Matrix]:
    n_rows = max(1, BLOCK_DISTANCES // n_others)
    for start in range(0, len(rows), n_rows):
        yield rows[start : start + n_rows]


def _mean_distance(some: Matrix, others: Matrix) -> float:
    total = sum(float(cdist(block, others).sum()) for block in _blocks(some, len(others)))
    return total / (len(some) * len(others))


def _kernel_sum(some: Matrix, others: Matrix, bandwidth: float) -> float:
    total = 0.0
    for block in _blocks(some, len(others)):
        squared = cdist(block, others, "sqeuclidean")
        total += float(np.exp(squared / (-2.0 * bandwidth**2)).sum())
    return total


def _neighbour_radii(rows: Matrix, k: int, name: str) -> Matrix:
    """Return the distance of each row to its k-th nearest other row, [n]."""
    if not 1 <= k < len(rows):
        raise InputError(
            "bad_neighbours", f"k={k} must lie between 1 and {len(rows) - 1}, the other {name} rows"
        )
    # Position 0 of a sorted row of distances is the vector itself.
    radii = [
        np.partition(cdist(block, rows), k, axis=1)[:, k] for block in _blocks(rows, len(rows))
    ]
    return np.concatenate(radii)
